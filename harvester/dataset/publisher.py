"""What the consumer sees: parts, `_failures.ndjson`, `_manifest.json`, `_SUCCESS`; `growing` has the growing file.

Everything here is made from committed journal lines and from the ledger, in the journal's order, so a crash at any
point is mended by doing the same again. Functions block: the event loop calls them in a thread.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import orjson

from harvester.dataset.journal import path_of, read, remove
from harvester.dataset.ledger import FileCheckpoint, Ledger, Part, State
from harvester.errors import OutputError
from harvester.jsonlines import object_in
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.storage.filesystem import atomic_replace, sync_folder
from harvester.storage.location import OutputLocation

MANIFEST, FAILURES, SUCCESS = "_manifest.json", "_failures.ndjson", "_SUCCESS"
_CHUNK = 1024 * 1024


class Publisher(Protocol):
    """Brings committed journal lines to the consumer."""

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """Finish or undo what a crash left half done.

        sizes: the good bytes of each journal. lossy: committed journal lines are gone.
        """

    def mark(self) -> FileCheckpoint | None:
        """Make what was published durable, and give the mark to commit with the next verdicts."""

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Publish what is due of the journals' committed bytes; ended segments get no more lines."""

    def parts(self) -> list[dict[str, Any]]:
        """Give the manifest's list: path, rows, the calls that they tell of, bytes, sha256."""


def rows_in(place: OutputLocation, segment: int, start: int, end: int | None) -> Iterator[bytes]:
    """Yield the published form of a journal's rows, each with its line feed.

    Raises:
        OutputError: the journal is damaged before end.
    """
    path, at = path_of(place.private, segment), start
    for record in read(path, start, end):
        at = record.end
        if record.state == State.ROW:
            yield record.payload + b"\n"
    if end is not None and at < end:
        raise damaged(path, at)


def damaged(path: str, at: int) -> OutputError:
    """Give the error for a journal that is damaged inside what was committed."""
    return OutputError(
        f"{path} is damaged at byte {at}, inside what was committed. Put a backup of it back; or move the file away: "
        "the next run then asks again for the calls in it that are not published, and says how many"
    )


# --- parts --------------------------------------------------------------------------------------------------------


class Shelf(Protocol):
    """Where parts get their names. folder: where they are made, on a local disk.

    moved_when_gone: True when publishing takes the hidden file away, so that without either a loader has the part.
    """

    folder: str
    moved_when_gone: bool

    def holds(self, part: Part) -> bool:
        """True when the part is there. Raises OutputError where something else bears its name."""

    def put(self, hidden: str, part: Part) -> None:
        """Publish a file without replacing anything. Raises OutputError where that cannot be."""

    def check_known(self, known: set[str]) -> None:
        """Raise OutputError for a part that the ledger does not know."""


class PartPublisher:
    """Makes an immutable part of each ended journal.

    Write it under a hidden name and sync it; write the intent into the ledger; give it its name; write the seal into
    the ledger; delete the journal. A part that has its intent is never written again.
    """

    def __init__(self, place: OutputLocation, ledger: Ledger, run_id: str, making: PartFormat, shelf: Shelf) -> None:
        self._place = place
        self._shelf = shelf
        self._ledger = ledger
        self._run_id = run_id
        self._making = making
        self._in_doubt = False

    def mark(self) -> None:
        """Parts need no mark: an intent tells all."""
        return

    def parts(self) -> list[dict[str, Any]]:
        """Give the sealed parts, also those that a loader has moved away."""
        sealed = (part for part in self._ledger.parts() if part.sealed)
        return [
            {"path": p.name, "rows": p.rows, "calls": p.calls, "bytes": p.bytes, "sha256": p.sha256} for p in sealed
        ]

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Make a part of each ended segment."""
        if self._in_doubt:  # publishing failed half-way
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
                self._shelf.put(self._hidden(part.number), part)
                self._ledger.seal(part)
                self._drop(part)
            remove(self._place.private, segment)
        self._in_doubt = False

    def _resolve_all(self, warn: Callable[[str], None]) -> None:
        for part in self._ledger.unsealed():
            self._resolve(part, warn)

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:  # noqa: ARG002
        """Adopt the parts that were published, publish those that were whole, and drop what was half written."""
        self._resolve_all(warn)
        for name in os.listdir(self._shelf.folder):
            if name.startswith(".part-") and name.endswith(".tmp"):
                os.unlink(os.path.join(self._shelf.folder, name))
        self._shelf.check_known({part.name for part in self._ledger.parts()})

    def _resolve(self, part: Part, warn: Callable[[str], None]) -> None:
        """Bring a part with an intent to its end."""
        hidden = self._hidden(part.number)
        if self._shelf.holds(part):
            pass
        elif os.path.exists(hidden):
            if _digest(hidden) != (part.bytes, part.sha256):
                self._ledger.withdraw(part)
                return
            self._shelf.put(hidden, part)
        elif not self._shelf.moved_when_gone:
            self._ledger.withdraw(part)  # the same bytes are made again
            return
        else:
            # The hidden name was durable before the intent, and only publishing takes it away.
            warn(f"{part.name} was published before the last crash and has been moved away since: taken as loaded")
        self._ledger.seal(part)
        self._drop(part)
        remove(self._place.private, part.segment)

    def _drop(self, part: Part) -> None:
        """Delete the file that a part was published from, where publishing has left it."""
        if not self._shelf.moved_when_gone:
            with suppress(FileNotFoundError):
                os.unlink(self._hidden(part.number))

    def _write(self, segment: int, end: int) -> Part | None:
        """Write a segment's rows under a hidden name, durably; None if it has no rows."""
        number = self._ledger.next_part()
        hidden = self._hidden(number)
        with _dropped_on_error(hidden), open(hidden, "wb", buffering=_CHUNK) as stream:
            target = HashingWriter(stream)
            poured = write_part(rows_in(self._place, segment, 0, end), target, self._making)
            stream.flush()
            os.fsync(stream.fileno())
        if not poured.rows:
            os.unlink(hidden)
            return None
        sync_folder(self._shelf.folder)
        name = f"part-{self._run_id}-{number:05d}.{self._making.format}"
        return Part(number, segment, name, poured.rows, target.size, target.sha256, poured.calls, sealed=False)

    def _hidden(self, number: int) -> str:
        # No *.ndjson* pattern may match it, not even one that sees hidden names.
        return os.path.join(self._shelf.folder, f".part-{self._run_id}-{number:05d}.tmp")


class Folder:
    """A shelf that is a folder."""

    moved_when_gone = True

    def __init__(self, folder: str, run_id: str) -> None:
        self.folder = folder
        # Not what somebody has made of one, or put beside it.
        self._ours = re.compile(rf"part-{run_id}-\d{{5,}}\.(?:{'|'.join(map(re.escape, Format))})")

    def holds(self, part: Part) -> bool:
        """True when the file is there, byte for byte."""
        final = os.path.join(self.folder, part.name)
        if not os.path.lexists(final):
            return False
        if not os.path.isfile(final) or _digest(final) != (part.bytes, part.sha256):
            raise OutputError(f"{final} is in the way of a part: move it away")
        return True

    def put(self, hidden: str, part: Part) -> None:
        """Publish without replacing: the name holds the run's random id, and the dataset's lock is ours.

        Not link and unlink: between those two a crash would leave open whether a loader has taken the part already.
        """
        final = os.path.join(self.folder, part.name)
        if os.path.lexists(final):
            raise OutputError(f"{final} is in the way of a part: move it away")
        os.rename(hidden, final)
        sync_folder(self.folder)

    def check_known(self, known: set[str]) -> None:
        """Refuse a part of this run's that the ledger does not know, also one that a loader has moved away since."""
        for name in sorted({*os.listdir(self.folder), *listed_parts(self._manifest())}):
            if self._ours.fullmatch(name) and name not in known:
                raise OutputError(
                    f"{os.path.join(self.folder, name)} is unknown to the ledger, which is older than this output. "
                    "Put the newer ledger back, or keep this output as it is and begin a new --out"
                )

    def _manifest(self) -> bytes | None:
        try:
            with open(os.path.join(self.folder, MANIFEST), "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None


@contextmanager
def _dropped_on_error(path: str) -> Iterator[None]:
    """Give back the room that a file took which could not be finished."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path  # a write does not say where
        with suppress(OSError):
            os.unlink(path)
        raise


def _digest(path: str) -> tuple[int, str]:
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return stream.tell(), digest.hexdigest()


def listed_parts(manifest: bytes | None) -> set[str]:
    """Give the parts that a manifest says were published; it is never ahead of the ledger that wrote it."""
    parts = object_in(manifest).get("parts")
    entries = parts if isinstance(parts, list) else []
    return {str(entry["path"]) for entry in entries if isinstance(entry, dict) and "path" in entry}


def write_manifest(place: OutputLocation, manifest: Mapping[str, Any]) -> None:
    """Replace `_manifest.json`."""
    text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    atomic_replace(os.path.join(place.public, MANIFEST), [text])


def write_failures(place: OutputLocation, lines: Iterable[bytes]) -> None:
    """Replace `_failures.ndjson` by these lines."""
    atomic_replace(os.path.join(place.public, FAILURES), (line + b"\n" for line in lines))


def write_success(place: OutputLocation) -> None:
    """Say that the whole list was read and every call is settled."""
    path = os.path.join(place.public, SUCCESS)
    if not os.path.exists(path):
        atomic_replace(path, [])


def remove_success(place: OutputLocation) -> None:
    """Take `_SUCCESS` back, before a new call is made."""
    path = os.path.join(place.public, SUCCESS)
    if os.path.exists(path):
        os.unlink(path)
        sync_folder(place.public)
