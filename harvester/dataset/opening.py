"""Opening a dataset: begun or resumed under its lock, and recovered first; or read alone, without the lock."""

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from harvester.bitly.query import Query
from harvester.clock import utc_iso
from harvester.dataset.dataset import Dataset, PartLimits, Publisher, Recovered, Warn
from harvester.dataset.file_publisher import AppendPublisher
from harvester.dataset.journal import Journal, read, remove, segment_path, segments
from harvester.dataset.ledger import Entry, Ledger, State
from harvester.dataset.publisher import PartPublisher, claim_prefix, damaged
from harvester.dataset.sidecars import Sidecars
from harvester.dataset.stream_publisher import RowSink, StdoutSink, StreamPublisher
from harvester.errors import DatasetBusy, UsageError, explained
from harvester.rows.encode import PartFormat, RequestedPartFormat, encoded_size
from harvester.rows.row import RowBuilder, moment_fetched
from harvester.rows.schema import Shape
from harvester.storage.filesystem import make_folder, truncate_file, try_lock
from harvester.storage.folders import check_state, check_unused
from harvester.storage.location import OutputKind, OutputLocation
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
    hurried: threading.Event | None = None,
) -> Iterator[Dataset]:
    """Open a dataset for one process at a time, beginning it if it is new.

    pin_reference: True if the query's unit_reference is the default, this moment, which a dataset begun before replaces
    with its own. warn: called with warnings for people. asked: the part format, as far as options specify it.
    sink: the reader of rows that are not kept, by default standard output. hurried: set when the run is ending, so
    that an unavailable object store is waited for only briefly.

    Raises:
        DatasetBusy: another process has it open. OutputError: it is damaged, or cannot be written.
        UsageError: it was begun with another query or part format, the format needs a missing library, or the limits
        are too large for an object store.
    """
    check_state(location)
    store = _store_of(location, limits, hurried)
    new = asked.for_new(folder=location.in_parts)
    with contextlib.ExitStack() as stack:
        with explained(location.out):
            make_folder(location.public)
            make_folder(location.private)
        stack.enter_context(_locked(location))
        ledger = stack.enter_context(contextlib.closing(Ledger(location.ledger)))
        _begin(location, ledger, _facts(location, query, new))
        begun = _begun_query(ledger)
        _check_same(location, ledger, begun, _pinned(query, begun) if pin_reference else query)
        part_format = asked.for_begun(ledger.meta(), location.out)
        with explained(location.private):
            if store:
                claim_prefix(store, location, ledger)
            dataset = _recovered(location, ledger, begun, limits, part_format, store, sink, warn)
        stack.callback(dataset.close)
        yield dataset


def _begin(location: OutputLocation, ledger: Ledger, facts: dict[str, str | int]) -> None:
    """Create a fresh ledger, check one that was begun before, and store the facts in one that is still unused."""
    if ledger.fresh:
        check_unused(location)
        ledger.create(facts)
    else:
        ledger.check()
    if _unused(location, ledger):
        ledger.repin(facts)


def _store_of(location: OutputLocation, limits: PartLimits, hurried: threading.Event | None) -> ObjectStorage | None:
    """Return the object store that the output lies in; None for any other output."""
    if location.kind is not OutputKind.STORE:
        return None
    if limits.bytes > MOST_PART_BYTES:
        raise UsageError(
            f": an object store gets at most {MOST_PART_BYTES // 2**20}MiB in one request", option="--part-bytes"
        )
    return open_store(location.out, hurried)


def _recovered(
    location: OutputLocation,
    ledger: Ledger,
    query: Query,
    limits: PartLimits,
    part_format: PartFormat,
    store: ObjectStorage | None,
    sink: RowSink | None,
    warn: Warn,
) -> Dataset:
    """Recover a dataset that was opened, and return it ready for this run."""
    publisher = _publisher_for(location, ledger, part_format, store, sink)
    sidecars = Sidecars(None if location.kind is OutputKind.STDOUT else location.public, store, warn)
    invocation = ledger.begin_invocation()
    journal, committed = _recover(location, ledger, publisher, warn, invocation - 1, part_format.shape)
    recovered = Recovered(invocation, journal, committed)
    return Dataset(location, ledger, query, limits, part_format, publisher, sidecars, recovered)


def _publisher_for(
    location: OutputLocation, ledger: Ledger, part_format: PartFormat, store: ObjectStorage | None, sink: RowSink | None
) -> Publisher:
    if location.kind is OutputKind.FILE:
        return AppendPublisher(location, ledger)
    if location.kind is OutputKind.STDOUT:
        return StreamPublisher(location, ledger, sink or StdoutSink())
    run_id, storage = str(ledger.meta()["run_id"]), store or LocalStorage(location.out)
    return PartPublisher(location, ledger, run_id, part_format, storage, claimed=store is not None)


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
        OutputError: it is damaged. UsageError: it was begun with another query.
    """
    with contextlib.ExitStack() as stack:
        ledger = None
        if location is not None:
            check_state(location)
            if os.path.exists(location.ledger):
                ledger = stack.enter_context(contextlib.closing(Ledger(location.ledger, read_only=True)))
        if location is None or ledger is None or ledger.fresh:
            folder = stack.enter_context(scratch_folder(None))
            ledger = stack.enter_context(contextlib.closing(Ledger(os.path.join(folder, "ledger.sqlite"))))
            ledger.create({})
        elif not ledger.unused:
            begun = _begun_query(ledger)
            _check_same(location, ledger, begun, _pinned(query, begun) if pin_reference else query)
            query = begun
        totals = ledger.totals()
        attempts = int(ledger.meta().get("total", 0))
        calls = totals.rows + totals.refused + totals.failed
        yield DatasetSnapshot(ledger, RowBuilder(query, ""), query, attempts, calls)


def _facts(location: OutputLocation, query: Query, part_format: PartFormat) -> dict[str, str | int]:
    return {
        "run_id": secrets.token_hex(6),
        "query": orjson.dumps(query.as_dict()).decode(),
        "started": utc_iso(datetime.now(UTC)),
        "out": location.name,
        "format": part_format.format,
        "shape": part_format.shape,
    }


def _unused(location: OutputLocation, ledger: Ledger) -> bool:
    """True if the dataset has no verdict yet, so that its query may still change: a refused run pins nothing."""
    files = (segment_path(location.private, segment) for segment in segments(location.private))
    return ledger.unused and not any(os.path.getsize(path) for path in files)


def _begun_query(ledger: Ledger) -> Query:
    return Query(**orjson.loads(str(ledger.meta()["query"])))


def _pinned(query: Query, begun: Query) -> Query:
    return replace(query, unit_reference=begun.unit_reference)


def _check_same(location: OutputLocation, ledger: Ledger, begun: Query, query: Query) -> None:
    out = ledger.meta()["out"]
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


def _shown(query: Query) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in query.as_dict().items())


@contextlib.contextmanager
def _locked(location: OutputLocation) -> Iterator[None]:
    """Hold the dataset's kernel lock, which the kernel releases when the process ends, however it ends."""
    path = os.path.join(location.private, "lock")
    with explained(path):
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


def _recover(
    location: OutputLocation, ledger: Ledger, publisher: Publisher, warn: Warn, invocation: int, shape: Shape
) -> tuple[Journal, dict[int, int]]:
    """Bring ledger, journals and output together after whatever ended the last run.

    Each journal has a committed length in the ledger. Lines behind it are verdicts that a kill kept from being
    committed: read up to the first bad line, which a torn write has left, they are settled now and never asked for
    again. A journal that is shorter has lost calls in a power cut: they become unsettled, except those that the output
    shows. A bad line within the committed length, with good length behind it, is damage, which is never repaired on a
    guess.

    invocation: the number of the last run, which recovered verdicts belong to. shape: that of the parts.
    Returns the journal to append to, and the bytes committed of it, by its segment.

    Raises:
        OutputError: a file is damaged, or was changed by another program.
    """
    private = location.private
    for segment in segments(private):
        if segment <= ledger.ended():
            remove(private, segment)
    committed = ledger.journals()
    scans = [_scan(location, g, committed.get(g, 0)) for g in sorted(set(segments(private)) | set(committed))]
    # The output first: rows that it shows cannot be taken back, so it decides which lost calls stay settled.
    publisher.recover(warn, {scan.segment: scan.good for scan in scans}, lossy=any(scan.lossy for scan in scans))
    ended = ledger.ended()  # a part may have been adopted just now
    for scan in scans:
        if scan.segment > ended:
            _settle(location, ledger, publisher, scan, invocation, warn)
    return _resume_publishing(location, ledger, publisher, shape)


def _scan(location: OutputLocation, segment: int, committed: int) -> _Scan:
    path = segment_path(location.private, segment)
    size = os.path.getsize(path) if os.path.exists(path) else 0
    good = 0
    for record in read(path, 0):
        good = record.end
    if good < committed <= size:
        raise damaged(path, good)
    return _Scan(segment, size, good, committed)


def _settle(
    location: OutputLocation,
    ledger: Ledger,
    publisher: Publisher,
    scan: _Scan,
    invocation: int,
    warn: Warn,
) -> None:
    """Settle the verdicts behind a journal's committed length, and cut a torn tail off."""
    segment, path = scan.segment, segment_path(location.private, scan.segment)
    if scan.size and scan.size != scan.committed:
        truncate_file(path, scan.good)
    if not scan.lossy:
        _replay(path, ledger, segment, scan.committed, invocation)
        return
    before = ledger.calls_of(segment)
    ledger.forget_calls(segment, publisher.published_keys())
    _replay(path, ledger, segment, 0, invocation)
    lost = before - ledger.calls_of(segment)
    warn(f"{lost} committed calls are not in the journal any more (a power failure?): they are asked for again")


def _resume_publishing(
    location: OutputLocation, ledger: Ledger, publisher: Publisher, shape: Shape
) -> tuple[Journal, dict[int, int]]:
    """Publish all journals but the last, and open that one."""
    committed = ledger.journals()  # without those whose part was adopted
    *full, last = committed or [ledger.ended() + 1]
    publisher.publish(committed, full)
    rows, row_bytes, first_row_at = 0, 0, None
    for record in read(segment_path(location.private, last), 0):
        if record.state == State.ROW:
            more = encoded_size(record.payload, shape)
            rows, row_bytes = rows + more.rows, row_bytes + more.bytes
            first_row_at = first_row_at or moment_fetched(record.payload)
    journal = Journal(location.private, last, rows=rows, row_bytes=row_bytes, first_row_at=first_row_at)
    return journal, {g: size for g, size in committed.items() if g == last}


def _replay(path: str, ledger: Ledger, segment: int, start: int, invocation: int) -> None:
    """Settle a journal's lines from start on, in batches; at least one batch, which commits the journal's length."""
    entries: list[Entry] = []
    end = start
    for record in read(path, start):
        end = record.end
        line = None if record.state == State.ROW else record.payload
        entries.append(Entry(record.key, State(record.state), line))
        if len(entries) >= _BATCH_RECORDS:
            ledger.commit(entries=[(segment, entries)], invocation=invocation, journals={segment: end})
            entries = []
    ledger.commit(entries=[(segment, entries)], invocation=invocation, journals={segment: end})
