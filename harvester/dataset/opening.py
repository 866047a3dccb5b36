"""Opening a dataset: begun or resumed under its lock, and recovered first; or read alone, without the lock."""

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from harvester.bitly.query import Query
from harvester.clock import utc_iso
from harvester.dataset.dataset import Dataset, PartLimits, Publisher, Warn
from harvester.dataset.file_publisher import FilePublisher
from harvester.dataset.journal import Journal, read, read_attempts, remove, segment_path, segments
from harvester.dataset.ledger import CallState, Entry, Ledger
from harvester.dataset.part_publisher import PartPublisher, claim_prefix, damaged
from harvester.dataset.sidecars import Sidecars
from harvester.dataset.stream_publisher import RowSink, StdoutSink, StreamPublisher
from harvester.errors import DatasetBusy, UsageError, as_output_error
from harvester.progress import AttemptCounts
from harvester.rows.encode import PartFormat, RequestedPartFormat, encoded_size
from harvester.rows.row import RowBuilder, moment_fetched
from harvester.rows.schema import Shape, shortfall_of
from harvester.storage.filesystem import make_folder, truncate_file, try_lock
from harvester.storage.folders import check_unused, refuse_second_work_dir
from harvester.storage.location import OutputLocation
from harvester.storage.object_store import MOST_PART_BYTES, ObjectStorage, open_store
from harvester.storage.scratch import scratch_folder
from harvester.storage.storage import LocalStorage

_BATCH_RECORDS = 1000
_UNSPECIFIED = RequestedPartFormat()


@contextlib.contextmanager
def open_dataset(
    location: OutputLocation,
    query: Query,
    limits: PartLimits,
    warn: Warn,
    *,
    pin_reference: bool = True,
    asked: RequestedPartFormat = _UNSPECIFIED,
    sink: RowSink | None = None,
    ending: threading.Event | None = None,
) -> Iterator[Dataset]:
    """Open a dataset for one process at a time, beginning it if it is new.

    pin_reference: True if the query's unit_reference is only the default, the present moment: an existing dataset keeps
    its own. warn: called with warnings for people. asked: the part format, as far as options specify it.
    sink: the reader of rows that are not kept, by default standard output. ending: set when the run is ending, so
    that an unavailable object store is waited for only briefly.

    Raises:
        DatasetBusy: another process has it open. OutputError: it is damaged, or cannot be written.
        UsageError: it was begun with another query or part format, the format needs a missing library, or the limits
        are too large for an object store.
    """
    refuse_second_work_dir(location)
    store = _open_store(location, limits, ending) if location.in_store else None
    new = asked.for_new(folder=location.in_parts)
    with contextlib.ExitStack() as stack:
        with as_output_error(location.out):
            make_folder(location.public)
            make_folder(location.private)
        stack.enter_context(_locked(location))
        ledger = stack.enter_context(contextlib.closing(Ledger(location.ledger)))
        _begin(location, ledger, query, new)
        begun = _begun_query(location, ledger, query, pin_reference=pin_reference)
        part_format = asked.for_begun(ledger.facts(), location.out)
        with as_output_error(location.private):
            if store:
                claim_prefix(store, location, ledger)
            publisher = _publisher_for(location, ledger, part_format, store, sink)
            recovery = _Recovery(location.private, ledger, publisher, warn, ledger.begin_invocation() - 1)
            recovery.recover()
            recovery.count_attempts()
            journal = recovery.resume_publishing(part_format.shape)
        sidecars = Sidecars(location.public if location.kept else None, store, warn)
        dataset = Dataset(location, ledger, begun, limits, part_format, publisher, sidecars, journal)
        stack.callback(dataset.close)
        yield dataset


def _open_store(location: OutputLocation, limits: PartLimits, ending: threading.Event | None) -> ObjectStorage:
    if limits.bytes > MOST_PART_BYTES:
        raise UsageError(
            f": an object store gets at most {MOST_PART_BYTES // 2**20}MiB in one request", option="--part-bytes"
        )
    return open_store(location.out, ending)


def _begin(location: OutputLocation, ledger: Ledger, query: Query, part_format: PartFormat) -> None:
    """Create a fresh ledger, check one that was begun before, and store the facts in one that is still unused."""
    facts: dict[str, str | int] = {
        "run_id": secrets.token_hex(6),
        "query": orjson.dumps(query.as_dict()).decode(),
        "started": utc_iso(datetime.now(UTC)),
        "out": location.name,
        "format": part_format.format,
        "shape": part_format.shape,
    }
    if ledger.fresh:
        check_unused(location)
        ledger.create(facts)
    else:
        ledger.check()
    journals = (segment_path(location.private, segment) for segment in segments(location.private))
    # Without a verdict the query may still change: a refused run pins nothing.
    if ledger.unused and not any(os.path.getsize(path) for path in journals):
        ledger.repin(facts)


def _publisher_for(
    location: OutputLocation, ledger: Ledger, part_format: PartFormat, store: ObjectStorage | None, sink: RowSink | None
) -> Publisher:
    if location.in_parts:
        return PartPublisher(location, ledger, part_format, store or LocalStorage(location.out))
    if location.kept:
        return FilePublisher(location, ledger)
    return StreamPublisher(location, ledger, sink or StdoutSink())


class DatasetSnapshot(NamedTuple):
    """A dataset as it was last committed, read-only. attempts: HTTP requests so far; calls: those with a verdict."""

    ledger: Ledger
    rows: RowBuilder
    query: Query
    attempts: int
    calls: int


@contextlib.contextmanager
def peek(location: OutputLocation | None, query: Query, *, pin_reference: bool = True) -> Iterator[DatasetSnapshot]:
    """Open a dataset for reading, without its lock, even while a run has it; empty if it was not begun, or for None.

    query, pin_reference: as for `open_dataset`.

    Raises:
        OutputError: it is damaged, or of another version. UsageError: it was begun with another query.
    """
    with contextlib.ExitStack() as stack:
        ledger = None
        if location is not None:
            refuse_second_work_dir(location)
            if os.path.exists(location.ledger):
                ledger = stack.enter_context(contextlib.closing(Ledger(location.ledger, read_only=True)))
        if location is None or ledger is None or ledger.fresh:
            folder = stack.enter_context(scratch_folder(None))
            ledger = stack.enter_context(contextlib.closing(Ledger(os.path.join(folder, "ledger.sqlite"))))
            ledger.create({})
        else:
            ledger.check_version()
            if not ledger.unused:
                query = _begun_query(location, ledger, query, pin_reference=pin_reference)
        attempts, totals = int(ledger.facts().get("total", 0)), ledger.totals()
        calls = totals.rows + totals.refused + totals.failed
        yield DatasetSnapshot(ledger, RowBuilder(query, ""), query, attempts, calls)


def _begun_query(location: OutputLocation, ledger: Ledger, query: Query, *, pin_reference: bool) -> Query:
    """Return the query that the dataset was begun with.

    Raises:
        UsageError: it was begun with another query, or the work dir belongs to another output.
    """
    facts = ledger.facts()
    begun = Query(**orjson.loads(str(facts["query"])))
    if pin_reference:
        query = replace(query, unit_reference=begun.unit_reference)
    out = facts["out"]
    inside = os.path.commonpath([location.private, location.public]) == location.public
    if out != location.name and not inside:  # checked first: another output may well have another query
        raise UsageError(
            f"{location.private} belongs to --out {out}, not to {location.out}: name another", option="--work-dir"
        )
    if begun != query:
        raise UsageError(
            f"{location.out} was begun with another query:\n  it has  {_shown(begun)}\n  asked   {_shown(query)}\n"
            "Name another --out for the new query, or give the options it has"
        )
    return begun


def _shown(query: Query) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in query.as_dict().items())


@contextlib.contextmanager
def _locked(location: OutputLocation) -> Iterator[None]:
    """Hold the dataset's kernel lock, which the kernel releases when the process ends, however it ends."""
    path = os.path.join(location.private, "lock")
    with as_output_error(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not try_lock(descriptor):
            raise DatasetBusy(
                f"another harvester works on {location.out}: wait until it has ended, or name another --out"
            )
        yield
    finally:
        os.close(descriptor)


# --- recovery -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scan:
    """A journal file's bytes: all of them, those before the first bad line, and those committed."""

    segment: int
    size: int
    good: int
    committed: int

    @property
    def lossy(self) -> bool:
        """True if committed lines are missing."""
        return self.good < self.committed


@dataclass(frozen=True, slots=True)
class _Recovery:
    """Brings ledger, journals and output together after whatever ended the last run.

    Each journal has a committed length in the ledger. Lines behind it are verdicts that a kill kept from being
    committed: read up to the first bad line, which a torn write has left, they are settled now and never asked for
    again. A journal that is shorter has lost calls in a power cut: they become unsettled, except those that the output
    shows. A bad line within the committed length, with good length behind it, is damage, which is never repaired on a
    guess: an OutputError, as for a file that another program has changed.

    folder: of the private state. invocation: the number of the last run, which recovered verdicts belong to.
    """

    folder: str
    ledger: Ledger
    publisher: Publisher
    warn: Warn
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

    def resume_publishing(self, shape: Shape) -> Journal:
        """Publish all journals but the last, and return that one, to be appended to. shape: that of the parts."""
        committed = self.ledger.journals()  # without those whose part was adopted
        *full, last = committed or [self.ledger.ended() + 1]
        self.publisher.publish(committed, full)
        rows, row_bytes, first_row_at = 0, 0, None
        for record in read(segment_path(self.folder, last), 0):
            if record.state == CallState.ROW:
                more = encoded_size(record.payload, shape)
                rows, row_bytes = rows + more.rows, row_bytes + more.bytes
                first_row_at = first_row_at or moment_fetched(record.payload)
        return Journal(self.folder, last, rows=rows, row_bytes=row_bytes, first_row_at=first_row_at)

    def _scan(self, segment: int, committed: int) -> _Scan:
        path = segment_path(self.folder, segment)
        size = os.path.getsize(path) if os.path.exists(path) else 0
        good = 0
        for record in read(path, 0):
            good = record.end
        if good < committed <= size:
            raise damaged(path, good)
        return _Scan(segment, size, good, committed)

    def _settle(self, scan: _Scan) -> None:
        """Settle the verdicts behind a journal's committed length, and cut a torn tail off."""
        if scan.size and scan.size != scan.committed:
            truncate_file(segment_path(self.folder, scan.segment), scan.good)
        if not scan.lossy:
            self._replay(scan.segment, scan.committed)
            return
        before = self.ledger.calls_of(scan.segment)
        self.ledger.forget_calls(scan.segment, self.publisher.published_keys())
        self._replay(scan.segment, 0)
        lost = before - self.ledger.calls_of(scan.segment)
        self.warn(
            f"{lost} committed calls are not in the journal any more (a power failure?): they are asked for again"
        )

    def _replay(self, segment: int, start: int) -> None:
        """Settle a journal's lines from start on, in batches; at least one, which commits the journal's length."""
        entries: list[Entry] = []
        end = start
        for record in read(segment_path(self.folder, segment), start):
            end = record.end
            if record.state == CallState.ROW:
                entries.append(Entry(record.key, CallState.ROW, None, shortfall_of(orjson.loads(record.payload))))
            else:
                entries.append(Entry(record.key, CallState(record.state), record.payload))
            if len(entries) >= _BATCH_RECORDS:
                self._commit(segment, entries, end)
                entries = []
        self._commit(segment, entries, end)

    def _commit(self, segment: int, entries: list[Entry], end: int) -> None:
        self.ledger.commit(entries=[(segment, entries)], invocation=self.invocation, journals={segment: end})
