"""The publisher of `--out results.ndjson`: one growing file, which `tail -f` can follow."""

# ruff: noqa: D102 - the methods are described by dataset.Publisher

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import orjson

from harvester.bitly.query import Query
from harvester.clock import seconds_since_1970
from harvester.dataset.journal import read, remove, segment_path
from harvester.dataset.ledger import FileCheckpoint, Ledger
from harvester.dataset.manifest import PublishedPart
from harvester.dataset.part_publisher import UNCOMMITTED_LIMIT, rows_in
from harvester.errors import OutputError
from harvester.jsonlines import object_in, whole_lines
from harvester.rows.call import CallState
from harvester.rows.row import RowBuilder
from harvester.storage.appended_file import AppendedFile
from harvester.storage.filesystem import sync_path, truncate_file
from harvester.storage.location import OutputLocation

_CHUNK = 1024 * 1024
_SAVED = "removed-rows"
_REACH = "reach"


class FilePublisher:
    """Appends committed rows to one file; what a follower may have read is never withdrawn or repeated.

    The ledger's checkpoint pairs a length of the file with the position in the journal up to which its rows are
    contained in that length. A journal is deleted only when its rows are durable in the file, so the journals that are
    still there describe the file's end: the bytes behind the *reach*, which is the checkpoint less their rows before
    it. Recovery compares the file with them from the reach on.

    | the file | what is done |
    |---|---|
    | ends behind the checkpoint with the expected rows | the missing rows are appended |
    | has zeros behind the checkpoint, as a power cut leaves them | cut off at the first, and appended again |
    | ends between the reach and the checkpoint | it was truncated; the missing rows are appended, with a warning |
    | is shorter than the reach | an error: only the file had those rows |
    | is gone or empty | an error, because its rows may have been read: written again only under another name |
    | has other bytes | an error: another program wrote them |

    While a run goes on, AppendedFile watches the file. A change is an error that ends the run: the length that the file
    had is recorded, for the next run, and no journal ends any more.
    """

    uncommitted_limit = UNCOMMITTED_LIMIT

    def __init__(self, location: OutputLocation, ledger: Ledger) -> None:
        self._location = location
        self._ledger = ledger
        self._rows = RowBuilder(Query(**orjson.loads(str(ledger.facts()["query"]))), "")
        self._saved_as = os.path.join(location.private, _SAVED)
        self._file = AppendedFile(location.out, self._saved_as)
        self._checkpoint = ledger.checkpoint()
        self._synced: FileCheckpoint | None = self._checkpoint
        self._ahead = 0  # bytes behind the checkpoint that are in the file already
        self._in_doubt = False
        self._refuse_old_ledger()

    def parts(self) -> list[PublishedPart]:
        """Return the one file, up to the last checkpoint; a growing file has no checksum."""
        name, rows = os.path.basename(self._location.name), self._checkpoint.rows
        return [PublishedPart(name, rows, calls=rows, bytes=self._checkpoint.bytes)]

    def checkpoint(self) -> FileCheckpoint | None:
        """Sync the file and return its checkpoint; None if it is unchanged, or the last append may have failed."""
        if self._in_doubt or self._checkpoint == self._synced:
            return None
        try:
            self._file.check()
        except OutputError:  # `publish` raises it; the verdicts are committed before
            return None
        self._sync()
        return self._checkpoint

    def _sync(self) -> None:
        self._file.sync()
        self._synced = self._checkpoint

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        if self._in_doubt:  # an earlier call failed half-way
            self.recover(lambda _: None, committed, lossy=False)
        self._in_doubt = True
        try:
            self._file.check()
            for segment in sorted(committed):
                self._append(segment, committed[segment])
            self._in_doubt = False
            for segment in ended:
                self._end(segment)
        except OutputError:
            if self._file.changed:
                self._record_length()
            raise

    def _append(self, segment: int, end: int) -> None:
        checkpoint = self._checkpoint
        if segment < checkpoint.segment or segment <= self._ledger.ended():
            return
        start = checkpoint.position if segment == checkpoint.segment else 0
        size, rows, missing = checkpoint.bytes, checkpoint.rows, bytearray()
        for line in rows_in(self._location, segment, start, end):
            missing += line[self._ahead :]
            self._ahead = max(self._ahead - len(line), 0)
            size += len(line)
            rows += 1
            if len(missing) >= _CHUNK:
                self._file.append(missing)
                missing.clear()
        self._file.append(missing)
        self._checkpoint = FileCheckpoint(segment, end, size, rows)

    def _end(self, segment: int) -> None:
        """Record that a journal is not needed any more, and delete it, once its rows are durable in the file."""
        if segment > self._ledger.ended():
            checkpoint = self.checkpoint()
            self._file.check()
            self._ledger.end_segment(segment, checkpoint)
            remove(self._location.private, segment)

    def _record_length(self) -> None:
        """Store which length the changed file had, so that the next run knows what must be put back."""
        self._in_doubt = True
        with suppress(OSError, OutputError):  # the change itself is the error to report
            self._sync()
            self._ledger.set_checkpoint(self._checkpoint)

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """Find which of the journals' rows the file contains already, as the class describes."""
        self._checkpoint, self._ahead = self._ledger.checkpoint(), 0
        size = self._file.open()
        if lossy:
            self._recover_lossy(warn, sizes, size)
            return
        checkpoint, reach = self._checkpoint, self._reach(sizes)
        if size < reach.bytes or (not size and checkpoint.bytes and not self._is_renamed()):
            raise self._not_whole(size, reach)
        self._check_origin(reach.bytes)
        end = self._compare(reach, sizes, size)
        if end < size:
            self._file.truncate(end)
        if end < checkpoint.bytes:
            warn(f"{self._location.out} has {size} bytes, expected {checkpoint.bytes}: the rest is written again")
            self._checkpoint, self._synced = reach, None
        self._ahead = end - self._checkpoint.bytes
        if self._is_renamed():
            self._ledger.replace_facts({"out": self._location.name})

    def published_keys(self) -> Iterator[bytes]:
        """Yield the keys of all complete rows in the file."""
        for _, line in whole_lines(self._location.out, 0):
            if key := self._key_of(object_in(line)):
                yield key

    def _key_of(self, row: dict[str, Any]) -> bytes | None:
        """Return the key of a row's call; None if it is damaged."""
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            seconds_since_1970(row["unit_reference"])
            return self._rows.key(row["bitlink"])
        return None

    def shorten_waits(self) -> None:
        pass  # a local file makes nobody wait

    leave = shorten_waits

    def close(self) -> None:
        self._file.close()

    # --- recovery --------------------------------------------------------------------------------------------------

    def _refuse_old_ledger(self) -> None:
        """Raise OutputError if the file has rows behind the checkpoint that the ledger does not know.

        A row is appended after its commit, so the ledger is older than the file then: a backup, or one whose log was
        damaged, of which SQLite drops all that was committed from there on. Its next run would buy these rows again.
        """
        run_id, found = self._ledger.facts()["run_id"], dict[bytes, str]()
        for _, line in whole_lines(self._location.out, self._ledger.checkpoint().bytes):
            row = object_in(line)
            if row.get("run_id") == run_id and (key := self._key_of(row)):
                found[key] = row["unit_reference"]
        known = self._ledger.known([*found])
        refreshed = found if self._ledger.refreshing else {}
        older = any(
            (known[key].asked_at or 0) < seconds_since_1970(end) for key, end in refreshed.items() if key in known
        )
        if len(known) < len(found) or older:
            raise OutputError(
                f"{self._location.ledger} is older than {self._location.out} and lacks some of its rows: "
                f"{self._location.repair_advice}"
            )

    def _is_renamed(self) -> bool:
        """True if the dataset was begun under another name, so that a file without rows is a new one."""
        return os.path.basename(str(self._ledger.facts()["out"])) != os.path.basename(self._location.name)

    def _reach(self, sizes: Mapping[int, int]) -> FileCheckpoint:
        """Return the earliest position of the file from which on the journals hold all its rows."""
        checkpoint = self._checkpoint
        kept = [segment for segment in sizes if self._ledger.ended() < segment <= checkpoint.segment]
        if not kept:
            return checkpoint
        after_loss = FileCheckpoint(*orjson.loads(str(self._ledger.facts().get(_REACH, "[]"))))
        if after_loss.segment in kept and after_loss != FileCheckpoint():
            return after_loss
        size, rows = 0, 0
        for segment in kept:
            for line in rows_in(
                self._location, segment, 0, checkpoint.position if segment == checkpoint.segment else sizes[segment]
            ):
                size += len(line)
                rows += 1
        return FileCheckpoint(min(kept), 0, checkpoint.bytes - size, checkpoint.rows - rows)

    def _compare(self, start: FileCheckpoint, sizes: Mapping[int, int], size: int, *, lossy: bool = False) -> int:
        """Return the position up to which the file contains the journals' rows behind start.

        lossy: True if the file may have rows that the journals lack; these are not looked at.

        Raises:
            OutputError: it has bytes that are neither those rows nor, behind the checkpoint, zeros.
        """
        position, end = start.bytes, None
        for line in self._expected(start, sizes):
            found = self._file.read(position, len(line))
            if found != line:
                same = next((at for at, byte in enumerate(found) if byte != line[at]), len(found))
                end = position + same if end is None else end
                self._check_torn(found, line, position, end)
            position += len(found)
            if len(found) < len(line):
                break
        end = position if end is None else end
        while not lossy and position < size:
            found = self._file.read(position, _CHUNK)
            self._check_torn(found, b"", position, end)
            position += len(found)
        return end

    def _check_torn(self, found: bytes, line: bytes, position: int, end: int) -> None:
        """Raise OutputError for a byte that is neither the expected one nor a zero that a power cut can have left.

        A power cut keeps any of the blocks that were written since the last sync; the others are zeros.
        """
        own = found[: max(0, self._checkpoint.bytes - position)]
        expected_or_zero = all(byte in {0, right} for byte, right in zip_longest(found, line[: len(found)]))
        if line.startswith(own) and expected_or_zero:
            return
        if end < self._checkpoint.bytes:
            raise OutputError(
                f"{self._location.out} was changed from byte {end} on, after it was written: restore the original. "
                f"If there is none, cut off the changes (truncate --size={end} {self._location.out}), then run the "
                "same command again"
            )
        raise OutputError(
            f"{self._location.out} was written to by another program, after byte {end}: cut that off "
            f"(truncate --size={end} {self._location.out}), then run the same command again"
        )

    def _expected(self, start: FileCheckpoint, sizes: Mapping[int, int]) -> Iterator[bytes]:
        """Yield the journals' rows behind a checkpoint."""
        for segment, size in sorted(sizes.items()):
            if segment >= start.segment and segment > self._ledger.ended():
                yield from rows_in(self._location, segment, start.position if segment == start.segment else 0, size)

    def _check_origin(self, end: int) -> None:
        """Check the first row and the one before `end`, which no journal has any more, as far as they tell.

        Raises:
            OutputError: they are not this dataset's.
        """
        if not end:
            return
        run_id, advice = self._ledger.facts()["run_id"], self._location.repair_advice
        first = next((line for _, line in whole_lines(self._location.out, 0)), b"")
        if any(object_in(line).get("run_id") != run_id for line in (first, self._file.line_before(end))):
            raise OutputError(
                f"{self._location.out} does not contain the rows that were written to it: another file took its place. "
                f"Restore the right one, then run the same command again. If it is lost, {advice}. Or keep it where "
                "it is and start a new --out with the links that are missing from it"
            )

    def _not_whole(self, size: int, reach: FileCheckpoint) -> OutputError:
        """Return the error for a file that is gone, or was cut so far that the journals cannot complete it."""
        out, had = self._location.out, self._checkpoint.bytes
        if size:
            enough = f" (its first {reach.bytes} bytes are enough)" if reach.bytes < had else ""
            return OutputError(
                f"{out} has {size} bytes, expected {had}: it was truncated. Restore the rows{enough}. If they "
                f"are lost, {self._location.repair_advice}. Or keep the file where it is and start a new --out with "
                "the links that are missing from it"
            )
        what = f"{out} has no bytes, expected {had}: it was moved, removed or emptied."
        if os.path.exists(self._saved_as) and os.path.getsize(self._saved_as) >= reach.bytes:
            return OutputError(
                f"{what} It was saved when it was removed: move it back (mv {self._saved_as} {out}), then run the "
                "same command again"
            )
        if reach.bytes:
            return OutputError(
                f"{what} Restore it, then run the same command again. If it is lost, {self._location.repair_advice}. "
                "Or keep it where it is and start a new --out with the links that are missing from it"
            )
        return OutputError(
            f"{what} Restore it, then run the same command again. If it is lost, its rows can be written once more, "
            f"without a call: mv {self._location.private} NEW.ndjson.harvester, then run with --out NEW.ndjson"
            + (" and without --work-dir" if self._location.work_dir else "")
        )

    def _recover_lossy(self, warn: Callable[[str], None], sizes: Mapping[int, int], size: int) -> None:
        """Keep the complete rows behind the checkpoint although their journal lines are lost.

        The checkpoint is made durable at once, while the ledger still records that lines were lost.
        """
        if size < self._checkpoint.bytes:
            raise self._not_whole(size, self._checkpoint)
        self._checkpoint = self._checkpoint._replace(
            position=min(self._checkpoint.position, sizes.get(self._checkpoint.segment, 0))
        )
        end = self._compare(self._checkpoint, sizes, size, lossy=True)
        self._ahead = end - self._checkpoint.bytes
        expected = sum(len(line) for line in self._expected(self._checkpoint, sizes))
        if self._ahead == expected:
            end = self._accept_rows(end, sizes)
        if end < size:
            warn(f"{self._location.out}: the incomplete last row was removed; its call is made again")
            self._file.truncate(end)
        self._sync()
        # Before this position the file has rows that no journal has any more.
        self._ledger.replace_facts({_REACH: orjson.dumps(list(self._checkpoint)).decode()})
        self._ledger.set_checkpoint(self._checkpoint)

    def _accept_rows(self, start: int, sizes: Mapping[int, int]) -> int:
        """Move the checkpoint behind the whole rows from start on, and return their end."""
        end, run_id = start, self._ledger.facts()["run_id"]
        for position, line in whole_lines(self._location.out, start):
            if object_in(line).get("run_id") != run_id:
                break
            end = position
        rows = self._checkpoint.rows + sum(
            1 for at, _ in whole_lines(self._location.out, self._checkpoint.bytes) if at <= end
        )
        segment, position = max(sizes.items(), default=(self._checkpoint.segment, 0))
        self._checkpoint, self._ahead = FileCheckpoint(segment, position, end, rows), 0
        return end


def find_checkpoint(out: str, folder: str, ledger: Ledger, warn: Callable[[str], None], sizes: dict[int, int]) -> None:
    """Set the growing file's checkpoint by its rows: its place in a journal that has lost lines may be another's.

    The publisher compares what stands behind the checkpoint with the journal, so it must not begin at a row whose
    line is damaged, nor within a line. folder: of the journals. sizes: their readable bytes.
    """
    mark = ledger.checkpoint()
    records = [
        (segment, record.end, object_in(record.payload)["record_id"] if record.state == CallState.ROW else None)
        for segment, size in sorted(sizes.items())
        if segment >= mark.segment
        for record in read(segment_path(folder, segment), 0, size)
    ]
    end, rows, wanted, has = mark.bytes, mark.rows, {key for _, _, key in records}, set[str]()
    for position, line in whole_lines(out, 0):
        if position > mark.bytes:
            end, rows = position, rows + 1
        key = object_in(line).get("record_id")
        if not isinstance(key, str):
            return  # the publisher says what is wrong with it
        if key in wanted:
            has.add(key)
    waiting = next((number for number, (_, _, key) in enumerate(records) if key and key not in has), len(records))
    segment, place, _ = records[waiting - 1] if waiting else (mark.segment, 0, None)
    if not os.path.exists(out) or os.path.getsize(out) < mark.bytes:
        return  # so too
    following = b""
    if waiting < len(records):
        at, behind, _ = records[waiting]
        ahead = read(segment_path(folder, at), place * (at == segment))
        following = next(record.payload for record in ahead if record.end == behind) + b"\n"
    with open(out, "rb") as stream:
        stream.seek(end)
        torn = not following.startswith(stream.read(len(following) + 1))
    if torn:
        warn(f"{out}: the incomplete last row was removed; its call is made again")
        truncate_file(out, end)
    sync_path(out)
    ledger.set_checkpoint(FileCheckpoint(segment, place, end, rows))
