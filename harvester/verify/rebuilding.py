"""A ledger that is built anew from what a dataset has besides it: its rows, its journals, its failures, its manifest.

Each part gets a segment below zero, so that every journal that is left counts as unpublished. Their lines are settled
by the next run, as after a kill. Lines whose rows are published already are blanked out of them first.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, TypeVar

import orjson

from harvester.bitly.query import Query
from harvester.dataset.journal import (
    HELD,
    RECENT_FAILURES,
    VOID,
    Gap,
    Record,
    Survey,
    good_lines,
    mend,
    read,
    segment_path,
    segments,
    survey,
)
from harvester.dataset.ledger import FileCheckpoint, Ledger, Part
from harvester.dataset.manifest import WINDOW_CHECK, Manifest, PublishedPart, WindowCheck
from harvester.dataset.part_publisher import PART_NAME
from harvester.history import History, Recorded, is_run, recorded_in, whole_runs
from harvester.jsonlines import object_in, whole_lines
from harvester.rows.call import CallState, Entry, Known
from harvester.rows.decode import BadRow, HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.rows.row import RowBuilder, entry_of
from harvester.rows.schema import Shape
from harvester.storage.sqlite import rows_left

T = TypeVar("T")
_BATCH = 1000
_FAILED = {"refused": CallState.REFUSED, "failed": CallState.FAILED}


class Origin(NamedTuple):
    """What a dataset was begun with, by whichever source still has it."""

    run_id: str
    query: Query
    part_format: PartFormat
    started: str
    invocation: int
    server: str | None = None


class Remains(NamedTuple):
    """What can be read of a damaged ledger. parts: with fields of any type. failures: their lines. path: its own."""

    facts: dict[str, str | int]
    parts: list[Part]
    failures: list[bytes]
    path: str
    history: Recorded = Recorded()

    def failed_runs(self) -> Iterator[tuple[bytes, int]]:
        """Yield the failed calls, and in how many runs each has failed."""
        for _, key, state, failed_runs in rows_left(self.path, "calls", ("id", "key", "state", "failed_runs")):
            if state == CallState.FAILED and isinstance(key, bytes) and type(failed_runs) is int:
                yield key, failed_runs

    def calls_of(self, segment: int) -> list[bytes]:
        """Return the keys of the calls with a row whose last line was in this segment."""
        calls = rows_left(self.path, "calls", ("id", "key", "state", "segment"))
        return list({key: None for _, key, state, its in calls if (state, its) == (CallState.ROW, segment)})


def remains(path: str) -> Remains:
    """Read what can be read of a ledger, whatever has happened to it; nothing of one that is gone."""
    facts = dict(rows_left(path, "facts", ("name", "value")))
    parts = {row[0]: Part(*row) for row in rows_left(path, "parts", Part._fields)}
    lines = {call: line for _, call, line in rows_left(path, "failures", ("id", "call", "line"))}
    history = recorded_in(rows_left(path, "history", ("kind", "start", "entry")))
    return Remains(facts, [parts[number] for number in sorted(parts)], list(lines.values()), path, history)


def window_facts(
    manifest: Manifest | None, old: Mapping[str, str | int], query: Query, remarks: list[str]
) -> dict[str, str | int]:
    """Return the ledger's fact with the check of a period's window, as manifest or old ledger have it.

    A check that failed is left out: the next run makes it again. old: the facts of the old ledger. remarks: gets what
    is to be said where neither of them can be read.
    """
    check = manifest.window_check if manifest else None
    if check is not None:
        return {WINDOW_CHECK: orjson.dumps(asdict(check)).decode()} if check.ok is not False else {}
    kept = str(old.get(WINDOW_CHECK, ""))
    if object_in(kept.encode()).keys() == {field.name for field in fields(WindowCheck)}:
        return {WINDOW_CHECK: kept}
    lost = "the check of the window is lost: `window_check` is null until a run makes a call"
    if query.period_start is not None and manifest is None and "run_id" not in old and lost not in remarks:
        remarks.append(lost)
    return {}


@dataclass(slots=True)
class Tally:
    """What a rebuilt ledger was made of.

    parts, part_calls: parts that were read, and the calls of their rows. moved, moved_calls: parts that are not there,
    whose calls another source names. lost_parts: those whose calls nothing names. row_calls: calls with a row, also in
    journals. journal_lines: whole lines. file_bytes: whole rows of a growing file. unreadable: files with the reason.
    unknown_to_ledger: calls with a row that the present ledger does not know.
    """

    parts: int = 0
    part_calls: int = 0
    moved: list[str] = field(default_factory=list)
    moved_calls: int = 0
    lost_parts: list[str] = field(default_factory=list)
    lost_calls: int = 0
    row_calls: int = 0
    refused: int = 0
    failed: int = 0
    journals: int = 0
    journal_lines: int = 0
    damaged_lines: int = 0
    file_bytes: int = 0
    unreadable: list[str] = field(default_factory=list)
    unknown_to_ledger: int = 0


class Rebuilding:
    """Fills a new ledger, which has its facts already. private: the folder of the journals.

    Where rows are refreshed the last row of a call counts. A failure that followed it is not known to have done so,
    because its line has no date: the link is then asked for when its row is due.
    """

    def __init__(
        self, ledger: Ledger, query: Query, run_id: str, part_format: PartFormat, invocation: int, private: str
    ) -> None:
        self.tally = Tally()
        self._ledger = ledger
        self._rows = RowBuilder(query, run_id)
        self.run_id = run_id
        self._facet = query.facet
        self._part_format = part_format
        self._invocation = invocation
        self._private = private
        self._published: dict[int, Survey] = {}
        self._followed = 0

    # --- parts -----------------------------------------------------------------------------------------------------

    def take_parts(
        self,
        listed: dict[str, PublishedPart],
        open_part: Callable[[str], BinaryIO | None],
        calls_of: Callable[[str], list[bytes] | None],
        settled_before: Callable[[list[Entry]], int],
        *,
        forget_moved: bool = False,
    ) -> None:
        """Settle the calls of all parts. listed: by name, with those of the manifest; others have no sha256.

        open_part: opens a part; None if it is not there. calls_of: the calls of one that is not there, by the present
        ledger; None if it does not know all. settled_before: how many of these rows the present ledger knows.
        forget_moved: do not settle the calls of a part that is not there.
        """
        numbers = {int(match["number"]): name for name in listed if (match := PART_NAME.fullmatch(name))}
        count = max(numbers, default=-1) + 1
        for number in range(count):
            segment = number - count
            name = numbers.get(number, f"part-{self.run_id}-{number:05d}.{self._part_format.format}")
            part = listed.get(name, PublishedPart(name, 0, 0, 0, ""))
            stream = open_part(name)
            if stream is not None:
                with closing(stream):
                    part = self._read_part(segment, part, stream, settled_before)
                self.tally.parts += 1
                self.tally.part_calls += part.calls
            else:
                part = self._part_that_is_gone(segment, part, calls_of(name), forget=forget_moved)
            row = Part(number, segment, name, part.rows, part.bytes, part.sha256 or "", part.calls, sealed=False)
            self._ledger.intend(row)
            self._ledger.seal(row)

    def _read_part(
        self, segment: int, part: PublishedPart, stream: BinaryIO, settled_before: Callable[[list[Entry]], int]
    ) -> PublishedPart:
        hashed, rows, seen = HashingReader(stream), 0, set[tuple[bytes, int | None]]()
        calls, bad = 0, 0

        def entries() -> Iterator[Entry]:
            nonlocal rows, bad
            for _, row in rows_of(hashed, self._part_format._replace(format=Format(part.path.partition(".")[2]))):
                rows += 1
                entry = self._entry_of(row)
                if entry is None:
                    bad += 1
                elif (answer := (entry.key, entry.asked_at)) not in seen:
                    seen.add(answer)
                    yield entry

        try:
            for batch in _batches(entries()):
                self._settle(segment, batch)
                calls += len(batch)
                self.tally.unknown_to_ledger += len(batch) - settled_before(batch)
        except UnreadableFile as error:
            self.tally.unreadable.append(f"{part.path}: {error}")
        hashed.drain()
        if bad:
            self.tally.unreadable.append(f"{part.path}: {bad} rows that cannot be read, or belong to another run")
        if part.sha256 and hashed.sha256 != part.sha256:
            self.tally.unreadable.append(f"{part.path}: it was changed after it was published")
        return PublishedPart(part.path, rows, calls, hashed.size, hashed.sha256)

    def _part_that_is_gone(
        self, segment: int, part: PublishedPart, keys: list[bytes] | None, *, forget: bool
    ) -> PublishedPart:
        """Settle the calls of a part that is not there: by the old ledger, or by the journal that it was made of."""
        if keys is None:
            keys = self._journal_of(part)
        if keys is None or (keys and forget):
            self.tally.lost_parts.append(part.path)
            self.tally.lost_calls += part.calls
            return PublishedPart(part.path, part.rows, 0, part.bytes, part.sha256)
        for batch in _batches(Entry(key, CallState.ROW, None) for key in keys):
            self._settle(segment, batch)
        self.tally.moved.append(part.path)
        self.tally.moved_calls += len(keys)
        return part if keys or self._ledger.refreshing else replace(part, calls=0)  # forgotten before

    def _journal_of(self, part: PublishedPart) -> list[bytes] | None:
        """Return the calls of the journal whose rows make exactly this part; None if there is none."""
        for segment in segments(self._private) if part.sha256 else ():
            path = segment_path(self._private, segment)
            rows = [record for record in read(path, 0) if record.state == CallState.ROW]
            if len(rows) != part.calls:
                continue
            with open(os.devnull, "wb") as nowhere:
                target = HashingWriter(nowhere)
                write_part((record.payload + b"\n" for record in rows), target, self._part_format)
            if (target.size, target.sha256) == (part.bytes, part.sha256):
                return [record.key for record in rows]
        return None

    # --- the growing file ------------------------------------------------------------------------------------------

    def take_growing_file(self, path: str, settled_before: Callable[[list[Entry]], int]) -> None:
        """Settle the calls of the rows in a growing file."""
        bad, end, rows = 0, 0, 0

        def entries() -> Iterator[Entry]:
            nonlocal bad, end, rows
            for position, line in whole_lines(path, 0):
                entry, end, rows = self._entry_of(object_in(line)), position, rows + 1
                bad += entry is None
                if entry is not None:
                    yield entry

        for batch in _batches(entries()):
            self._settle(-1, batch)
            self.tally.part_calls += len(batch)
            self.tally.unknown_to_ledger += len(batch) - settled_before(batch)
        self.tally.file_bytes = end
        # Rows that are in the file are blanked out of the journals, so all that is left there comes behind it.
        self._ledger.set_checkpoint(FileCheckpoint(bytes=end, rows=rows))
        if bad:
            self.tally.unreadable.append(f"{path}: {bad} lines that cannot be read, or belong to another run")

    def _entry_of(self, row: Any) -> Entry | None:
        """Return a published row's call; None for a row that cannot be read, or is none of this dataset's."""
        if isinstance(row, BadRow) or not isinstance(row, dict) or row.get("run_id") != self.run_id:
            return None
        try:
            name = "record_id" if self._part_format.shape is Shape.NESTED else "call_id"
            expected = self._rows.key(row["bitlink"])
            if self._ledger.refreshing:
                expected = self._rows.record_id(row["bitlink"], row["unit_reference"])
            return entry_of(self._rows.key(row["bitlink"]), row) if row[name] == expected.hex() else None
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    # --- failures and journals -------------------------------------------------------------------------------------

    def take_recent_failures(self) -> None:
        """Settle the failures of journals that are published since `_failures.ndjson` was written."""
        path = os.path.join(self._private, RECENT_FAILURES)
        if os.path.exists(path):
            self.take_failures(record.payload for _, record in good_lines(path))

    def take_failures(self, lines: Iterable[bytes]) -> None:
        """Settle refusals and failures that are not settled yet. lines: of `_failures.ndjson` or of a ledger."""
        lowest = -1 - len(self._ledger.parts())

        def entries() -> Iterator[Entry]:
            for line in lines:
                failure = object_in(line)
                state, bitlink = _FAILED.get(str(failure.get("kind"))), failure.get("bitlink")
                if state is not None and isinstance(bitlink, str) and failure.get("facet") == self._facet:
                    yield Entry(self._rows.key(bitlink), state, line.rstrip(b"\n"))

        for batch in _batches(entries()):
            known = self._ledger.known([entry.key for entry in batch])
            if self._ledger.refreshing:
                self._followed += sum(e.key in known and e.state is CallState.REFUSED for e in batch)
            self._settle(lowest, [entry for entry in batch if entry.key not in known])

    def take_failed_runs(self, failed_runs: Iterable[tuple[bytes, int]]) -> None:
        """Set in how many runs calls have failed, by an old ledger; one that it does not know has failed in one."""
        for batch in _batches(failed_runs):
            self._ledger.set_failed_runs(batch)

    def take_history(self, sources: Sequence[Recorded]) -> None:
        """Store the history of earlier runs, by the rules of `harvester.history` where the sources' entries overlap."""
        times = History(entry for each in sources for entry in each.times if entry.has_own_time)
        runs = whole_runs(entry for each in sources for entry in each.runs if is_run(entry))
        stored = [*(run.stored for run in runs), *(entry.stored for entry in times.entries)]
        self._ledger.commit(invocation=self._invocation, history=stored)

    def look_at_journals(self) -> None:
        """Count what the journals hold, and find in them the rows that are published already.

        The next run settles the journals anew, and counts each failure in them as one more run that the call failed in:
        these are taken back here.
        """
        waiting, refused = set[bytes](), set[bytes]()
        for segment in segments(self._private):
            path = segment_path(self._private, segment)
            found, published = survey(path), list[Gap]()
            for lines in _batches(good_lines(path)):
                known = self._ledger.known([record.key for _, record in lines])
                by_state = {state: {record.key for _, record in lines if record.state == state} for state in CallState}
                self._ledger.take_back_failed_runs(by_state[CallState.FAILED] - by_state[CallState.REFUSED])
                for start, record in lines:
                    has = known.get(record.key)
                    if record.state == CallState.ROW and has and self._is_published(record, has):
                        published.append(Gap(start, record.end, 0))
                    elif record.state == CallState.ROW and not (has and has.state is CallState.ROW):
                        waiting.add(record.key)
                    elif record.state == CallState.REFUSED and not has:
                        refused.add(record.key)
                    self.tally.journal_lines += record.state not in (VOID, HELD)
            self.tally.journals += 1
            self.tally.damaged_lines += len(found.gaps)
            self._published[segment] = Survey(found.size, found.end, [*found.gaps, *published], found.unended)
        totals = self._ledger.totals()
        self.tally.row_calls = totals.rows + len(waiting)
        self.tally.refused = totals.refused + len(refused - waiting) + self._followed
        self.tally.failed = totals.failed

    def _is_published(self, record: Record, has: Known) -> bool:
        """Return True if the output has a journal's row already. has: what the ledger knows by the output's rows."""
        if not self._ledger.refreshing:
            return has.state is CallState.ROW
        return (has.asked_at or 0) >= (entry_of(record.key, object_in(record.payload)).asked_at or 0)

    def blank_published_rows(self) -> None:
        """Blank the rows out of the journals that the output has already, so that each is published once."""
        for segment, found in self._published.items():
            mend(segment_path(self._private, segment), found)

    def _settle(self, segment: int, entries: list[Entry]) -> None:
        self._ledger.commit(entries=[(segment, entries)], invocation=self._invocation)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
