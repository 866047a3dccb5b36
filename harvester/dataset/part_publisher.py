"""The publisher that makes parts, in a folder or an object store, and the claim that ties a store's prefix to a ledger.

Everything published is made from committed journal lines, in the journal's order, so a crash at any point is repaired
by doing the same again. Every method blocks: the event loop calls them in a thread.
"""

# ruff: noqa: D102 - the methods are described by dataset.Publisher

import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson

from harvester._version import __version__
from harvester.clock import utc_iso
from harvester.dataset.journal import read_rows, remove, segment_path
from harvester.dataset.ledger import Ledger, Part
from harvester.dataset.manifest import PublishedPart
from harvester.errors import OutputError
from harvester.jsonlines import object_in
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.storage.filesystem import digest_of_file, open_new, sync_folder
from harvester.storage.location import CLAIM, MANIFEST, OutputLocation
from harvester.storage.storage import Storage

PART_NAME = re.compile(
    rf"part-(?P<run_id>[0-9a-f]+)-(?P<number>\d{{5,}})\.(?P<format>{'|'.join(map(re.escape, Format))})"
)
"""A published part's name."""
UNCOMMITTED_LIMIT = 10_000
"""Verdicts that may wait for a commit; beyond that the workers wait for the disk."""
_TRIES = 3


def rows_in(location: OutputLocation, segment: int, start: int, end: int | None) -> Iterator[bytes]:
    """Yield a journal's rows between two byte positions as published, each with its line feed.

    Raises:
        OutputError: the journal is damaged before end, or gone.
    """
    path = segment_path(location.private, segment)
    position = yield from read_rows(path, start, end)
    if end is not None and position < end:
        if not os.path.exists(path):
            raise OutputError(
                f"{path} is missing: it or its folder was moved or removed. Restore it, then run the same command again"
            )
        raise damaged(path, position)


def damaged(path: str, position: int) -> OutputError:
    """Return the error for a journal that is damaged within its committed bytes."""
    return OutputError(
        f"{path} is damaged at byte {position}, within what was committed: run the same command again. It keeps "
        "the intact lines, makes the other calls again, and lists them"
    )


class PartPublisher:
    """Makes an immutable part of each ended journal.

    A part takes five steps, each durable before the next: write it under a hidden name; record the intent (name, size,
    SHA-256) in the ledger; publish it under its name; record the seal; delete the journal. After a crash the ledger
    says how far it came: without an intent the hidden file is deleted and made again, with the same bytes; with an
    intent and no seal, the part is looked for under its name, then under the hidden one. A part that readers may have
    seen is thus never written twice.

    storage: where parts are published.
    """

    uncommitted_limit = UNCOMMITTED_LIMIT

    def __init__(self, location: OutputLocation, ledger: Ledger, part_format: PartFormat, storage: Storage) -> None:
        self._location = location
        self._ledger = ledger
        self._part_format = part_format
        self._storage = storage
        self._run_id = str(ledger.facts()["run_id"])
        self._in_doubt = False

    def checkpoint(self) -> None:
        """Do nothing: parts need no checkpoint, as each has its intent."""

    def published_keys(self) -> Iterable[bytes]:
        return ()  # the journal of a published part is not needed any more

    def shorten_waits(self) -> None:
        self._storage.shorten_waits()

    leave = shorten_waits

    def close(self) -> None:
        pass  # nothing is open between two calls

    def parts(self) -> list[PublishedPart]:
        """Return the sealed parts, including those that a loader has moved away."""
        return [PublishedPart(p.name, p.rows, p.calls, p.bytes, p.sha256) for p in self._ledger.parts() if p.sealed]

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Make a part of each ended segment."""
        if self._in_doubt:  # an earlier call failed half-way
            self._resolve_all(lambda _: None)
        self._in_doubt = bool(ended)
        for segment in ended:
            if segment <= self._ledger.ended():
                continue
            part = self._write(segment, committed[segment])
            if part is None:
                self._ledger.end_segment(segment)
            else:
                self._ledger.intend(part)
                self._put(part)
                self._seal(part)
            remove(self._location.private, segment)
        self._in_doubt = False

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:  # noqa: ARG002
        """Adopt published parts, publish complete hidden ones, delete incomplete ones, and check for unknown ones."""
        self._resolve_all(warn)
        for name in os.listdir(self._location.public):
            if name.startswith(".part-") and name.endswith(".tmp"):
                os.unlink(os.path.join(self._location.public, name))
        self._check_known({part.name for part in self._ledger.parts()})

    def _resolve_all(self, warn: Callable[[str], None]) -> None:
        for part in self._ledger.parts():
            if not part.sealed:
                self._resolve(part, warn)

    def _resolve(self, part: Part, warn: Callable[[str], None]) -> None:
        """Seal a part that has an intent, publishing it first if needed; withdraw the intent if its file is lost."""
        hidden = self._hidden(part.number)
        if not self._is_published(part):
            if os.path.exists(hidden):
                if digest_of_file(hidden) != (part.bytes, part.sha256):
                    self._ledger.withdraw(part)
                    return
                self._put(part)
            elif not self._storage.moves_files:
                self._ledger.withdraw(part)  # to be made again, with the same bytes
                return
            else:
                # The hidden name was durable before the intent, and only publishing takes it away.
                warn(f"{part.name} was published before the last crash and moved away since: taken as loaded")
        self._seal(part)
        remove(self._location.private, part.segment)

    def _is_published(self, part: Part) -> bool:
        """True if the part is there, byte for byte; False if its name is free.

        Raises:
            OutputError: something else has its name.
        """
        found = self._storage.digest(part.name)
        if found is not None and found != (part.bytes, part.sha256):
            raise OutputError(f"{self._storage.path(part.name)} has the name of a new part: move it away")
        return found is not None

    def _put(self, part: Part) -> None:
        """Publish the hidden file under the part's name, without replacing anything.

        A rename cannot alter the bytes; an upload can, so it is read back. One that is gone by then was taken by a
        loader in between.
        """
        for _ in range(_TRIES):
            created = self._storage.create_from_file(part.name, self._hidden(part.number))
            if (created and self._storage.moves_files) or self._is_published(part) or created:
                return
        path = self._storage.path(part.name)
        raise OutputError(
            f"{path} appears and disappears: stop the program that moves parts, then run the same command again"
        )

    def _seal(self, part: Part) -> None:
        """Record the seal, then delete the hidden file if publishing has left it."""
        self._ledger.seal(part)
        if not self._storage.moves_files:
            with suppress(FileNotFoundError):
                os.unlink(self._hidden(part.number))

    def _write(self, segment: int, end: int) -> Part | None:
        """Write a segment's rows under a hidden name, durably; return None if it has no rows."""
        number = self._ledger.next_part()
        hidden = self._hidden(number)
        try:
            with open_new(hidden) as stream:
                target = HashingWriter(stream)
                counts = write_part(rows_in(self._location, segment, 0, end), target, self._part_format)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            error.filename = error.filename or hidden  # a failed write does not name its file
            with suppress(OSError):
                os.unlink(hidden)  # frees its disk space
            raise
        if not counts.rows:
            os.unlink(hidden)
            return None
        sync_folder(self._location.public)
        name = f"part-{self._run_id}-{number:05d}.{self._part_format.format}"
        return Part(number, segment, name, counts.rows, target.size, target.sha256, counts.calls, sealed=False)

    def _hidden(self, number: int) -> str:
        # The name must not match *.ndjson*, even for programs that see hidden files.
        return os.path.join(self._location.public, f".part-{self._run_id}-{number:05d}.tmp")

    def _check_known(self, known: set[str]) -> None:
        """Raise OutputError for a part, present or listed in the manifest, that the ledger does not know.

        The manifest is never ahead of the ledger that wrote it, so it also reveals a part that a loader has moved.
        """
        present = {name for name in self._storage.names() if name.startswith("part-")}
        for name in sorted(present | listed_parts(self._storage.get(MANIFEST))):
            if name in known:
                continue
            path, match = self._storage.path(name), PART_NAME.fullmatch(name)
            if self._location.in_store:  # the prefix is claimed: nobody else's parts belong there
                raise OutputError(
                    f"{path} is not in the ledger in {self._location.private}: the ledger is older than this "
                    "output, or another program wrote the part. Restore the newer work dir, or move the part away. "
                    f"{self._location.repair_advice}. Or start a new --out"
                )
            if match and match["run_id"] == self._run_id:  # no copy, and no other program's, beside the parts
                raise OutputError(
                    f"{path} is not in the ledger, which is older than this output. Restore the newer ledger. "
                    f"{self._location.repair_advice}. Or keep this output as it is and start a new --out"
                )


def listed_parts(manifest: bytes | None) -> set[str]:
    """Return the names of the parts that a manifest lists; empty for no manifest, or a torn one."""
    parts = object_in(manifest).get("parts")
    entries = parts if isinstance(parts, list) else []
    return {str(entry["path"]) for entry in entries if isinstance(entry, dict) and "path" in entry}


# --- the claim ----------------------------------------------------------------------------------------------------


def check_unclaimed(store: Storage, location: OutputLocation) -> None:
    """Check that a prefix is free for a new ledger, before anything is made for it. Raises as `claim_prefix`."""
    found = store.get(CLAIM)
    if found is not None:
        raise _claimed_by_another(location, object_in(found))
    if MANIFEST in store.names():
        raise _begun_before(location)


def claim_prefix(store: Storage, location: OutputLocation, ledger: Ledger) -> None:
    """Claim an object store's prefix for this ledger, or check that it is claimed for it already.

    No kernel lock reaches a second machine, so the prefix itself records which ledger may publish there: `_claim.json`
    is created by a conditional request, which only one of two machines can win, and contains a secret of the ledger's.

    Raises:
        OutputError: the prefix belongs to another work dir, was begun with one that is lost, or the store ignores the
        condition.
    """
    secret = ledger.facts().get("claim")
    if secret is None:
        secret = secrets.token_hex(16)
        ledger.replace_facts({"claim": secret})
    found = store.get(CLAIM)
    if found is None:
        # Without a claim a prefix is new, or somebody has deleted the claim so that a ledger that is not new can go on.
        if ledger.unused and MANIFEST in store.names():
            raise _begun_before(location)
        text = orjson.dumps(_claim_of(location, ledger, str(secret)), option=orjson.OPT_INDENT_2)
        found = text if store.create(CLAIM, text) else store.get(CLAIM)
        # Some stores that speak S3 ignore If-None-Match: one run could replace what another has published.
        if store.create(CLAIM, text):
            raise OutputError(
                f"{location.out}: this store replaces an object that harvester asked it only to create, so harvester "
                "cannot publish safely there. Update the store, or use another --out"
            )
    claim = object_in(found)
    if claim.get("claim") != secret:
        raise _claimed_by_another(location, claim)


def _claim_of(location: OutputLocation, ledger: Ledger, secret: str) -> dict[str, Any]:
    return {
        "claim": secret,
        "run_id": ledger.facts()["run_id"],
        "host": socket.gethostname(),
        "work_dir": location.work_dir,
        "made": utc_iso(datetime.now(UTC)),
        "tool": f"harvester {__version__}",
    }


def _begun_before(location: OutputLocation) -> OutputError:
    return OutputError(
        f"{location.out} was started with another --work-dir than {location.private}. That work dir "
        "records which calls were paid for: name it. If it is lost, "
        f"{location.repair_advice}. Or start a new --out with the links that are missing from this one"
    )


def _claimed_by_another(location: OutputLocation, claim: Mapping[str, Any]) -> OutputError:
    owner = " ".join(f"{name} {claim.get(name, 'unknown')}" for name in ("host", "work_dir", "run_id", "made"))
    return OutputError(
        f"{location.out} belongs to another work dir ({owner}), which records what was paid for and published: run "
        f"there, or bring that work dir here. If it is lost, {location.repair_advice}. Or keep this output as it is "
        "and start a new --out with the links that are missing from it. To discard all of it, delete every "
        f"object under {location.out}, {CLAIM} last, and run the same command again"
    )
