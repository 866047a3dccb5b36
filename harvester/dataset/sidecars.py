"""The `_` files beside the rows: `_manifest.json`, `_failures.ndjson`, `_SUCCESS`.

An object store's files are written into the work dir first and uploaded from there.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from harvester.errors import OutputError, StoreRefused, as_output_error
from harvester.storage.location import FAILURES, MANIFEST, SUCCESS
from harvester.storage.storage import LocalStorage, Storage

MOST_INVALID_LINES = 10_000
"""Invalid lines that `_failures.ndjson` lists; further ones are only counted. A wrong file may have millions."""


class Sidecars:
    """Writes the `_` files into a local folder and, for an object store, uploads them from there.

    folder: None for rows on standard output, which have no such files. uploaded_to: the object store, if there is one.
    warn: called once for each time that the store becomes unavailable.
    """

    def __init__(self, folder: str | None, uploaded_to: Storage | None, warn: Callable[[str], None]) -> None:
        self._folder = folder or ""
        self._local = None if folder is None else LocalStorage(folder)
        self._store = uploaded_to
        self._storages = [storage for storage in (self._local, self._store) if storage]
        self._warn = warn
        self._pending_uploads: set[str] = set()
        self._warned = False

    def write_manifest(self, manifest: Mapping[str, Any], *, last: bool) -> None:
        """Replace `_manifest.json`. last: True at the run's end, when every upload must have succeeded."""
        # An entry of the history a line: there may be 2,000, with a dozen keys each.
        history = [orjson.Fragment(orjson.dumps(entry)) for entry in manifest.get("history", ())]
        option = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        text = orjson.dumps({**manifest, "history": history}, option=option)
        self._replace(MANIFEST, [text], last=last)

    def write_failures(self, lines: Iterable[bytes]) -> None:
        """Replace `_failures.ndjson` with these lines, given without line feeds."""
        self._replace(FAILURES, (line + b"\n" for line in lines), last=False)

    def write_success(self) -> None:
        """Create `_SUCCESS`: the whole list was read and every call is settled. Nothing if it is there."""
        with as_output_error(self._folder):
            for storage in self._storages:
                storage.create(SUCCESS, b"")

    def delete_success(self) -> None:
        """Delete `_SUCCESS`, where readers see it first."""
        with as_output_error(self._folder):
            for storage in reversed(self._storages):
                storage.delete(SUCCESS)

    def _replace(self, name: str, chunks: Iterable[bytes], *, last: bool) -> None:
        if self._local is None:
            return
        with as_output_error(self._folder):
            self._local.replace(name, chunks)
            if self._store:
                self._upload(name, self._local, self._store, last=last)

    def _upload(self, name: str, local: Storage, store: Storage, *, last: bool) -> None:
        """Upload a file, and those whose upload failed before; the manifest comes last, as it speaks of the others.

        While the run goes on, an unavailable store costs one warning: the next upload catches up.
        """
        self._pending_uploads.add(name)
        try:
            for pending in sorted(self._pending_uploads, key=lambda pending: pending == MANIFEST):
                with local.open(pending) as stream:
                    store.replace(pending, [stream.read()], patient=last)
                self._pending_uploads.discard(pending)
        except OutputError as error:
            if last or isinstance(error, StoreRefused):
                raise
            if not self._warned:
                self._warn(f"{error}; the run continues, and tries again later")
            self._warned = True
        else:
            self._warned = False
