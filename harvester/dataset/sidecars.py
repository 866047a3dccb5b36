"""The files beside the rows: `_manifest.json`, `_failures.ndjson`, `_SUCCESS`; and beside the journals `attempts`, the
count of attempts, written before each is sent, so that a kill leaves none uncounted.

An object store's files are written into the work dir first and uploaded from there.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import orjson

from harvester.errors import OutputError, StoreRefused, as_output_error
from harvester.progress import AttemptCounts
from harvester.storage.filesystem import Tampering, leads_to, restore_file
from harvester.storage.location import FAILURES, MANIFEST, SUCCESS
from harvester.storage.storage import LocalStorage, Storage

MOST_INVALID_LINES = 10_000
"""Invalid lines that `_failures.ndjson` lists; further ones are only counted. A wrong file may have millions."""
_ATTEMPTS = "attempts"
_COUNT, _OTHER_COUNTS = b"%020d ", b"%020d %020d %020d\n"
_COUNTED = re.compile(rb"(\d{20}) (\d{20}) (\d{20}) (\d{20})\n")


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
        lines = {
            name: [orjson.Fragment(orjson.dumps(entry)) for entry in manifest.get(name, ())]
            for name in ("runs", "history")
        }
        option = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        text = orjson.dumps({**manifest, **lines}, option=option)
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


class AttemptFile:
    """The attempts of all runs of a dataset, in one line that is replaced in place before each attempt is sent.

    The ledger adds them up with its commits, so it knows nothing of those between its last commit and a kill. The file
    outlives a kill, but not always a power cut, as it is never synced: after a crash the larger count is the true one.
    Its line is shorter than a sector, so it is written whole.
    """

    def __init__(self, folder: str, before: AttemptCounts) -> None:
        """Open the file in the private state, creating it if missing. before: the attempts of earlier runs."""
        self._path = os.path.join(folder, _ATTEMPTS)
        self._before = before
        self._others: tuple[int, int, int] | None = None
        self._others_text = b""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, run: AttemptCounts) -> None:
        """Replace the line. run: the attempts of the present run, with the one to be sent.

        Raises:
            OutputError: it cannot be written, so that the attempt must not be sent.
        """
        before, others = self._before, (run.retried, run.throttled, run.helper)
        if others != self._others:
            earlier = (before.retried, before.throttled, before.helper)
            self._others_text = _OTHER_COUNTS % tuple(map(sum, zip(earlier, others, strict=True)))
            self._others = others
        line = _COUNT % (before.total + run.total) + self._others_text
        try:
            written = os.pwrite(self._descriptor, line, 0)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error
        if written < len(line):
            raise OutputError(f"{self._path}: no space left for a line of {len(line)} bytes")

    def tampering(self) -> Tampering | None:
        """Return what another program has done to the file."""
        if leads_to(self._path, self._descriptor):
            return None
        return Tampering(self._path, "was removed or replaced by another program")

    def restore(self) -> None:
        """Write the file again from the open descriptor."""
        restore_file(self._path, self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_attempts(folder: str) -> AttemptCounts:
    """Return the counts in an AttemptFile's file; zeros if it is missing, or was never written whole."""
    with suppress(FileNotFoundError), open(os.path.join(folder, _ATTEMPTS), "rb") as stream:
        if found := _COUNTED.fullmatch(stream.read()):
            return AttemptCounts(*map(int, found.groups()))
    return AttemptCounts()
