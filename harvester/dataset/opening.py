"""Opening a dataset: begun or resumed under its lock, and recovered first; or read alone, without the lock."""

import contextlib
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from harvester.bitly.query import BASE_URL, Query, host_of, refuse_another, refuse_another_server
from harvester.clock import seconds_since_1970, utc_iso
from harvester.dataset.dataset import Dataset, Publisher
from harvester.dataset.file_publisher import FilePublisher, find_checkpoint
from harvester.dataset.journal import (
    HELD,
    VOID,
    Journal,
    PartLimits,
    append_rows,
    held_rows,
    mend,
    read,
    remove,
    segment_path,
    segments,
    survey,
)
from harvester.dataset.ledger import ASKED, MOST_UNANSWERED, Ledger
from harvester.dataset.part_publisher import PartPublisher, check_unclaimed, claim_prefix
from harvester.dataset.sidecars import Sidecars, read_attempts
from harvester.dataset.stream_publisher import RowSink, StdoutSink, StreamPublisher
from harvester.errors import UsageError, as_output_error
from harvester.progress import AttemptCounts
from harvester.rows.call import CallState, Entry
from harvester.rows.encode import PartFormat, RequestedPartFormat, encoded_size
from harvester.rows.row import RowBuilder, entry_of, moment_fetched
from harvester.rows.schema import Shape
from harvester.storage import folders
from harvester.storage.filesystem import sync_folder, truncate_file
from harvester.storage.location import OutputLocation
from harvester.storage.object_store import MOST_PART_BYTES, ObjectStorage, open_store
from harvester.storage.scratch import scratch_folder
from harvester.storage.storage import LocalStorage
from harvester.storage.watch import FolderLock, check_kinds, check_state

_BATCH_RECORDS = 1000
_LINES_NAMED = 10
_UNSPECIFIED = RequestedPartFormat()
_BITLY = host_of(BASE_URL)


@contextlib.contextmanager
def open_dataset(
    location: OutputLocation,
    query: Query,
    limits: PartLimits,
    warn: Callable[[str], None],
    *,
    server: str = _BITLY,
    pin_reference: bool = True,
    refreshing: bool = False,
    asked: RequestedPartFormat = _UNSPECIFIED,
    sink: RowSink | None = None,
    ending: threading.Event | None = None,
) -> Iterator[Dataset]:
    """Open a dataset for one process at a time, beginning it if it is new.

    server: the host that is asked. pin_reference: True if the query's unit_reference is only the default, the present
    moment: an existing dataset keeps its own. refreshing: its rows are refreshed from now on. warn: called with
    warnings for people. asked: the part format, as far as options specify it. sink: the reader of rows that are not
    kept, by default standard output. ending: set when the run is ending, so that an unavailable object store is waited
    for only briefly.

    Raises:
        DatasetBusy: another process has it open. OutputError: it is damaged, or cannot be written.
        UsageError: it was begun with another query, server or part format, the format needs a missing library, or the
        limits are too large for an object store.
    """
    folders.refuse_second_work_dir(location)
    store = _open_store(location, limits, ending) if location.in_store else None
    new = asked.for_new(query.facet, folder=location.in_parts)
    with contextlib.ExitStack() as stack:
        if store and not folders.has_ledger(location):
            check_unclaimed(store, location)
        stack.enter_context(folders.made_folders(location))
        # Rows on standard output have a scratch folder, which nobody else can name, and which is locked already.
        lock = FolderLock(location.private, location.out) if location.kept else None
        with as_output_error(location.private):
            stack.enter_context(lock or contextlib.nullcontext())
        check_state(location, warn)
        ledger = stack.enter_context(contextlib.closing(Ledger(location.ledger, location.repair_advice)))
        _begin(location, ledger, query, new, server)
        begun = _begun_query(location, ledger, query, server, pin_reference=pin_reference)
        if refreshing and not ledger.refreshing:
            ledger.begin_refreshing(seconds_since_1970(begun.unit_reference))
        part_format = asked.for_begun(ledger.facts(), begun.facet, location.out)
        with as_output_error(location.private):
            if store:
                claim_prefix(store, location, ledger)
            growing = location.out if location.kept and not location.in_parts else None
            publisher = stack.enter_context(
                contextlib.closing(_publisher_for(location, ledger, part_format, store, sink))
            )
            recovery = _Recovery(location.private, growing, ledger, publisher, warn, ledger.begin_invocation() - 1)
            recovery.recover()
            recovery.count_attempts()
            journal = recovery.resume_publishing(part_format.shape)
            refreshed = recovery.count_refreshed(in_parts=location.in_parts)
        asked_query = replace(begun, unit_reference=query.unit_reference) if ledger.refreshing else begun
        if ledger.refreshing:
            ledger.replace_facts({ASKED: asked_query.unit_reference})
        rows = RowBuilder(asked_query, str(ledger.facts()["run_id"]), begun)
        sidecars = Sidecars(location.public if location.kept else None, store, warn)
        dataset = Dataset(
            location, ledger, begun, limits, part_format, publisher, sidecars, journal, lock, rows, refreshed
        )
        stack.callback(dataset.close)
        yield dataset


def _open_store(location: OutputLocation, limits: PartLimits, ending: threading.Event | None) -> ObjectStorage:
    if limits.bytes > MOST_PART_BYTES:
        raise UsageError(
            f": an object store gets at most {MOST_PART_BYTES // 2**20}MiB in one request", option="--part-bytes"
        )
    return open_store(location.out, ending)


def _begin(location: OutputLocation, ledger: Ledger, query: Query, part_format: PartFormat, server: str) -> None:
    """Create a fresh ledger, check one that was begun before, and store the facts in one that is still unused."""
    facts: dict[str, str | int] = {
        "run_id": secrets.token_hex(6),
        "query": orjson.dumps(query.as_dict()).decode(),
        "server": server,
        "started": utc_iso(datetime.now(UTC)),
        "out": location.name,
        "format": part_format.format,
        "shape": part_format.shape,
    }
    if ledger.fresh:
        folders.check_unused(location)
        ledger.create(facts)
    else:
        ledger.check()
    journals = (segment_path(location.private, segment) for segment in segments(location.private))
    # Without a verdict the query may still change: a refused run pins nothing.
    if ledger.unused and not any(os.path.getsize(path) for path in journals):
        # The run_id stays: by it the parts and rows are known that a ledger lacks which is older than they are.
        ledger.replace_facts(facts | {"run_id": ledger.facts()["run_id"]})
    elif "server" not in ledger.facts():  # it was rebuilt from rows alone, which do not say
        ledger.replace_facts({"server": server})


def _publisher_for(
    location: OutputLocation, ledger: Ledger, part_format: PartFormat, store: ObjectStorage | None, sink: RowSink | None
) -> Publisher:
    if location.in_parts:
        return PartPublisher(location, ledger, part_format, store or LocalStorage(location.out))
    if location.kept:
        return FilePublisher(location, ledger)
    return StreamPublisher(location, ledger, sink or StdoutSink())


class DatasetSnapshot(NamedTuple):
    """A dataset as last committed, read-only. attempts: requests so far; calls: with a verdict, of which some idle."""

    ledger: Ledger
    rows: RowBuilder
    query: Query
    attempts: int
    calls: int
    idle: int


@contextlib.contextmanager
def peek(
    location: OutputLocation | None, query: Query, *, server: str = _BITLY, pin_reference: bool = True
) -> Iterator[DatasetSnapshot]:
    """Open a dataset for reading, without its lock, even while a run has it; empty if it was not begun, or for None.

    query, server, pin_reference: as for `open_dataset`.

    Raises:
        OutputError: it is damaged, or of another version. UsageError: it was begun with another query or server.
    """
    with contextlib.ExitStack() as stack:
        ledger = None
        if location is not None:
            folders.refuse_second_work_dir(location)
            if folders.has_ledger(location):
                check_kinds(location)
                ledger = stack.enter_context(
                    contextlib.closing(Ledger(location.ledger, location.repair_advice, read_only=True))
                )
        if location is None or ledger is None or ledger.fresh:
            folder = stack.enter_context(scratch_folder(None))
            ledger = stack.enter_context(contextlib.closing(Ledger(os.path.join(folder, "ledger.sqlite"))))
            ledger.create({})
        else:
            ledger.check_version()
            if not ledger.unused:
                query = _begun_query(location, ledger, query, server, pin_reference=pin_reference)
        attempts, totals = int(ledger.facts().get("total", 0)), ledger.totals()
        calls = totals.rows + totals.refused + totals.failed
        yield DatasetSnapshot(ledger, RowBuilder(query, ""), query, attempts, calls, totals.idle)


def _begun_query(location: OutputLocation, ledger: Ledger, query: Query, server: str, *, pin_reference: bool) -> Query:
    """Return the query that the dataset was begun with.

    Raises:
        UsageError: it was begun with another query or server, or the work dir belongs to another output.
    """
    facts = ledger.facts()
    begun = Query(**orjson.loads(str(facts["query"])))
    if pin_reference:
        query = replace(query, unit_reference=begun.unit_reference)
    # First: another output may well have another query.
    if other := folders.owner_of_state(location, str(facts["out"])):
        if location.work_dir is None:
            raise UsageError(
                f"{location.private} is the state of --out {other}, reached by a symbolic link: each output needs a "
                "state of its own, so remove the link"
            )
        raise UsageError(
            f"{location.private} belongs to --out {other}, not to {location.out}: use another", option="--work-dir"
        )
    refuse_another_server(location.out, str(facts.get("server", server)), server)
    refuse_another(location.out, begun, query)
    return begun


# --- recovery -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scan:
    """A journal file's bytes: all of them, those up to the last good line, and those committed.

    mended: the numbers of the damaged lines before that.
    """

    segment: int
    size: int
    good: int
    committed: int
    mended: list[int]

    @property
    def lossy(self) -> bool:
        """True if committed lines are missing."""
        return self.good < self.committed


@dataclass(frozen=True, slots=True)
class _Recovery:
    """Brings ledger, journals and output together after whatever ended the last run.

    Each journal has a committed length in the ledger. Lines behind it are verdicts that a kill kept from being
    committed: they are settled now and never asked for again. What follows the last good line is a torn write, which is
    cut off. A journal that is shorter than committed has lost calls in a power cut, and one with a bad line before a
    good one has lost those of the bad line: they become unsettled, except those that the output shows. Which calls a
    bad line held nobody can read there, so it follows from the ledger: those of the segment that no good line names.

    folder: of the private state. growing: the growing file, if there is one. invocation: the number of the last run,
    which recovered verdicts belong to.
    """

    folder: str
    growing: str | None
    ledger: Ledger
    publisher: Publisher
    warn: Callable[[str], None]
    invocation: int

    def recover(self) -> None:
        """Settle what the last run left in the journals, and bring the output to a known state."""
        for segment in segments(self.folder):
            if segment <= self.ledger.ended():
                remove(self.folder, segment)
        committed = self.ledger.journals()
        scans = [self._scan(g, committed.get(g, 0)) for g in sorted(set(segments(self.folder)) | set(committed))]
        # The output first: rows that it shows cannot be taken back, so it decides which lost calls stay settled.
        sizes = {scan.segment: scan.good for scan in scans}
        if self.growing and any(scan.lossy for scan in scans):
            find_checkpoint(self.growing, self.folder, self.ledger, self.warn, sizes)
        self.publisher.recover(self.warn, sizes, lossy=any(scan.lossy for scan in scans))
        ended = self.ledger.ended()  # a part may have been adopted just now
        for scan in scans:
            if scan.segment > ended:
                self._settle(scan)

    def count_attempts(self) -> None:
        """Add the attempts that the last run sent after its last commit."""
        counted = asdict(AttemptCounts.among(self.ledger.facts()))
        missing = {name: sent - counted[name] for name, sent in asdict(read_attempts(self.folder)).items()}
        if more := {name: count for name, count in missing.items() if count > 0}:
            self.ledger.commit(counters=more, invocation=self.invocation)

    def count_refreshed(self, *, in_parts: bool) -> int:
        """Return the rows that a newer verdict has followed: those published or waiting, less one for each call."""
        if not self.ledger.refreshing:
            return 0
        published = sum(part.calls for part in self.publisher.parts())
        journals = self.ledger.journals() if in_parts else {}  # what a growing file lacks was appended just now
        waiting = sum(
            record.state == CallState.ROW
            for segment, size in journals.items()
            for record in read(segment_path(self.folder, segment), 0, size)
        )
        return published + waiting - self.ledger.totals().rows

    def resume_publishing(self, shape: Shape) -> Journal:
        """Publish all journals but the last, and return that one, to be appended to. shape: that of the parts."""
        # Without those whose part was adopted.
        *full, last = self.ledger.journals() or [self.ledger.ended() + 1]
        self._settle_held(last)  # before the journals are deleted that have these rows
        self.publisher.publish(self.ledger.journals(), full)
        rows, row_bytes, first_row_at, refused = 0, 0, None, deque[bytes](maxlen=MOST_UNANSWERED)
        for record in read(segment_path(self.folder, last), 0):
            if record.state == CallState.ROW:
                more = encoded_size(record.payload, shape)
                rows, row_bytes = rows + more.rows, row_bytes + more.bytes
                first_row_at = first_row_at or moment_fetched(record.payload)
                refused.clear()
            elif record.state == CallState.REFUSED:
                refused.append(record.key)
        self.ledger.note_unanswered(refused)
        return Journal(self.folder, last, rows=rows, row_bytes=row_bytes, first_row_at=first_row_at)

    def _scan(self, segment: int, committed: int) -> _Scan:
        path = segment_path(self.folder, segment)
        found = survey(path, committed)
        # A length with a line across it is another file's. One that the file does not have keeps calls unsettled until
        # they are settled again, whatever ends this run before: the mended file does not show any more what is lost.
        known = committed
        if found.gaps or not found.aligned or found.end < committed <= found.size:
            known = found.size + 1
            self.ledger.commit(journals={segment: known}, invocation=self.invocation)
        mended = mend(path, found, committed)
        return _Scan(segment, found.size, found.end, known, mended)

    def _settle(self, scan: _Scan) -> None:
        """Settle the verdicts behind a journal's committed length, and cut a torn tail off."""
        if scan.size and scan.size != scan.committed:
            truncate_file(segment_path(self.folder, scan.segment), scan.good)
            sync_folder(self.folder)  # the last run may have been killed before it made the name durable
        if not scan.lossy:
            self._replay(scan.segment, scan.committed)
            return
        before = self.ledger.calls_of(scan.segment)
        self.ledger.forget_calls(scan.segment, self.publisher.published_keys())
        self._replay(scan.segment, 0)
        lost = before - self.ledger.calls_of(scan.segment)
        if count := len(scan.mended):
            path, lines = segment_path(self.folder, scan.segment), ", ".join(map(str, scan.mended[:_LINES_NAMED]))
            self.warn(
                f"{path}:{lines}: {count} damaged line{'s' if count > 1 else ''} in the journal (a failing disk, or "
                "another program?). Its calls are made again unless their rows are published; all other lines "
                "are kept"
            )
            return
        # Not counted: their rows are published, or as many lines that were not committed have taken their place.
        what = f"{lost} committed call{'s are' if lost > 1 else ' is'}" if lost > 0 else "committed lines are"
        self.warn(f"{what} missing from the journal (a power failure?): those without a published row are made again")

    def _settle_held(self, segment: int) -> None:
        """Make each row that the last run held the row of its call, at the end of a segment's journal."""
        held = held_rows(self.folder)
        for key, has in self.ledger.known(list(held)).items():
            # Its call may have a newer row, whose line was damaged.
            asked_at = entry_of(key, orjson.loads(held[key])).asked_at or 0
            if has.state is CallState.ROW and (has.asked_at or asked_at) >= asked_at:
                del held[key]
        if held:
            self._replay(segment, append_rows(self.folder, segment, held))

    def _replay(self, segment: int, start: int) -> None:
        """Settle a journal's lines from start on, in batches; at least one, which commits the journal's length."""
        entries: list[Entry] = []
        end, asked = start, self.ledger.facts().get(ASKED) if self.ledger.refreshing else None
        for record in read(segment_path(self.folder, segment), start):
            end = record.end
            if record.state == CallState.ROW:
                entries.append(entry_of(record.key, orjson.loads(record.payload)))
            elif record.state not in (VOID, HELD):
                asked_at = seconds_since_1970(str(asked)) if asked else None
                entries.append(Entry(record.key, CallState(record.state), record.payload, asked_at=asked_at))
            if len(entries) >= _BATCH_RECORDS:
                self._commit(segment, entries, end)
                entries = []
        self._commit(segment, entries, end)

    def _commit(self, segment: int, entries: list[Entry], end: int) -> None:
        self.ledger.commit(entries=[(segment, entries)], invocation=self.invocation, journals={segment: end})
