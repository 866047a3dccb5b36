"""The `_` files beside the rows: `_manifest.json`, `_failures.ndjson`, `_SUCCESS`, and an object store's `_claim.json`.

An object store's files are written into the work dir first and uploaded from there; its claim ties the two together.
"""

import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import orjson

from harvester._version import __version__
from harvester.dataset.ledger import Ledger
from harvester.errors import OutputError, StoreRefused, explained
from harvester.jsonlines import object_in
from harvester.storage.location import CLAIM, FAILURES, MANIFEST, SUCCESS, OutputLocation
from harvester.storage.storage import LocalStorage, Storage


class Sidecars:
    """Writes the `_` files into a local folder and, for an object store, uploads them from there.

    folder: None for rows on standard output, which have no such files. uploaded_to: the object store, if there is one.
    warn: called once for each time that the store becomes unavailable.
    """

    def __init__(self, folder: str | None, uploaded_to: Storage | None, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._uploaded_to = uploaded_to
        self._warn = warn
        self._pending_uploads: set[str] = set()
        self._warned = False

    def write_manifest(self, manifest: Mapping[str, Any], *, last: bool) -> None:
        """Replace `_manifest.json`. last: True at the run's end, when every upload must have succeeded."""
        text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        self._replace(MANIFEST, [text], last=last)

    def write_failures(self, lines: Iterable[bytes]) -> None:
        """Replace `_failures.ndjson` with these lines, given without line feeds."""
        self._replace(FAILURES, (line + b"\n" for line in lines), last=False)

    def write_success(self) -> None:
        """Create `_SUCCESS`: the whole list was read and every call is settled. Nothing if it is there."""
        with self._local() as local:
            if local:
                local.create(SUCCESS, b"")
                if self._uploaded_to:
                    self._uploaded_to.create(SUCCESS, b"")

    def delete_success(self) -> None:
        """Delete `_SUCCESS`, where readers see it first."""
        with self._local() as local:
            if local:
                if self._uploaded_to:
                    self._uploaded_to.delete(SUCCESS)
                local.delete(SUCCESS)

    @contextmanager
    def _local(self) -> Iterator[LocalStorage | None]:
        with explained(self._folder or ""):
            yield None if self._folder is None else LocalStorage(self._folder)

    def _replace(self, name: str, chunks: Iterable[bytes], *, last: bool) -> None:
        with self._local() as local:
            if local:
                local.replace(name, chunks)
                if self._uploaded_to:
                    self._upload(name, local, self._uploaded_to, last=last)

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
                self._warn(f"{error}; it is tried again later, and the run goes on")
            self._warned = True
        else:
            self._warned = False


# --- the claim ----------------------------------------------------------------------------------------------------


def claim_prefix(store: Storage, location: OutputLocation, ledger: Ledger) -> None:
    """Claim an object store's prefix for this ledger, or check that it is claimed for it already.

    No kernel lock reaches a second machine, so the prefix itself records which ledger may publish there: `_claim.json`
    is created by a conditional request, which only one of two machines can win, and contains a secret of the ledger's.

    Raises:
        OutputError: the prefix belongs to another work dir, was begun with one that is lost, or the store ignores the
        condition.
    """
    secret = ledger.meta().get("claim")
    if secret is None:
        secret = secrets.token_hex(16)
        ledger.repin({"claim": secret})
    found = store.get(CLAIM)
    if found is None:
        _check_prefix_unused(store, location, ledger)
        text = orjson.dumps(_claim_of(location, ledger, str(secret)), option=orjson.OPT_INDENT_2)
        found = text if store.create(CLAIM, text) else store.get(CLAIM)
        _check_conditional_writes(store, location, text)
    claim = object_in(found)
    if claim.get("claim") != secret:
        raise _claimed_by_another(location, claim)


def _claim_of(location: OutputLocation, ledger: Ledger, secret: str) -> dict[str, Any]:
    return {
        "claim": secret,
        "run_id": ledger.meta()["run_id"],
        "host": socket.gethostname(),
        "work_dir": os.fsencode(location.private).decode(errors="backslashreplace"),
        "made": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tool": f"harvester {__version__}",
    }


def _check_prefix_unused(store: Storage, location: OutputLocation, ledger: Ledger) -> None:
    """Raise OutputError if a new ledger finds a manifest: without a claim a prefix is new, or somebody deleted the
    claim so that this ledger, which is not new, can go on.
    """
    if ledger.unused and MANIFEST in store.names():
        raise OutputError(
            f"{location.out} was begun before, and not with --work-dir {location.private}. Without the work "
            "dir that it was begun with nobody knows which calls were paid for: name that one, or begin a new "
            "--out with the links that this one lacks"
        )


def _check_conditional_writes(store: Storage, location: OutputLocation, text: bytes) -> None:
    """Raise OutputError if the store ignores If-None-Match, as some that speak S3 do: one run could replace what
    another has published.
    """
    if store.create(CLAIM, text):
        raise OutputError(
            f"{location.out}: this store replaces what is there when it is asked to create only: harvester "
            "cannot publish safely there. Update the store, or name another --out"
        )


def _claimed_by_another(location: OutputLocation, claim: Mapping[str, Any]) -> OutputError:
    owner = " ".join(f"{name} {claim.get(name, 'unknown')}" for name in ("host", "work_dir", "run_id", "made"))
    return OutputError(
        f"{location.out} belongs to another work dir ({owner}), which knows what was paid for and published: run "
        "there, or bring that work dir here. If it is lost, keep this output as it is and begin a new --out with "
        f"the links that it lacks; only when all there is to be thrown away, delete every object under "
        f"{location.out}, {CLAIM} last, and run the same command again"
    )
