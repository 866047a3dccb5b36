"""Datasets, opened: begun or gone on with under a lock, or looked at without one."""

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from harvester.bitly.query import Query
from harvester.clock import utc_iso
from harvester.dataset.bucket import MOST_PART_BYTES, Bucket
from harvester.dataset.dataset import Dataset, PartLimits, Warn
from harvester.dataset.journal import path_of, segments
from harvester.dataset.ledger import Ledger
from harvester.dataset.stream_publisher import RowSink
from harvester.errors import DatasetBusy, UsageError, explained
from harvester.rows.encode import PartFormat, RequestedPartFormat
from harvester.rows.row import RowBuilder
from harvester.storage import filesystem
from harvester.storage.filesystem import make_folder
from harvester.storage.location import OutputKind, OutputLocation, check_state, check_unused
from harvester.storage.object_store import open_store

_NOTHING_ASKED = RequestedPartFormat()


@contextlib.contextmanager
def open_dataset(
    place: OutputLocation,
    query: Query,
    policy: PartLimits,
    warn: Warn,
    *,
    pin_reference: bool = True,
    asked: RequestedPartFormat = _NOTHING_ASKED,
    sink: RowSink | None = None,
    hurried: threading.Event | None = None,
) -> Iterator[Dataset]:
    """Open a dataset, beginning it if it is new; only one process may have it open.

    query: what is asked for. pin_reference: True when its unit_reference was not asked for but is this moment, so
    that a dataset begun before keeps its own. warn: called with what a person should know. asked: how parts are to be
    made, as far as that was said. sink: who reads rows that are not kept, by default standard output.
    hurried: set when the run is to end, and an object store is to be waited for no longer.

    Raises:
        DatasetBusy: another process has it. OutputError: it is damaged, or cannot be written.
        UsageError: it was begun with another query or another form of parts, the form needs a missing library, or an
        object store cannot take such parts.
    """
    check_state(place)
    if place.form is OutputKind.STORE and policy.bytes > MOST_PART_BYTES:
        raise UsageError(
            f": an object store gets at most {MOST_PART_BYTES // 2**20}MiB in one request", option="--part-bytes"
        )
    bucket = Bucket(place, open_store(place.out, hurried), warn) if place.form is OutputKind.STORE else None
    new = asked.for_new(folder=place.in_parts)
    with contextlib.ExitStack() as stack:
        with explained(place.out):
            make_folder(place.public)
            make_folder(place.private)
        stack.enter_context(_locked(place))
        ledger = stack.enter_context(contextlib.closing(Ledger(place.ledger)))
        if ledger.fresh:
            check_unused(place)
            ledger.create(_facts(place, query, new))
        else:
            ledger.check()
        if _unused(place, ledger):
            ledger.repin(_facts(place, query, new))
        begun = _begun_query(ledger)
        wanted = replace(query, unit_reference=begun.unit_reference) if pin_reference else query
        _check_same(place, ledger, begun, wanted)
        making = asked.for_begun(ledger.meta(), place.out)
        with explained(place.private):
            if bucket:
                bucket.claim(ledger)
            store = Dataset(place, ledger, begun, policy, making, warn, sink, bucket)
        stack.callback(store.close)
        yield store


class DatasetSnapshot(NamedTuple):
    """A dataset as it was last committed, to be read alone. attempts: made so far; calls: with a verdict."""

    ledger: Ledger
    rows: RowBuilder
    query: Query
    attempts: int
    calls: int


@contextlib.contextmanager
def peek(place: OutputLocation | None, query: Query, *, pin_reference: bool = True) -> Iterator[DatasetSnapshot]:
    """Look at a dataset without a lock, even while a run has it; one that is not begun, or no place, looks empty.

    query, pin_reference: as for `opened`.

    Raises:
        OutputError: it is damaged. UsageError: it was begun with another query.
    """
    with contextlib.ExitStack() as stack:
        ledger = None
        if place is not None:
            check_state(place)
            if os.path.exists(place.ledger):
                ledger = stack.enter_context(contextlib.closing(Ledger(place.ledger, read_only=True)))
        if place is None or ledger is None or ledger.fresh:
            folder = stack.enter_context(filesystem.scratch_folder(None))
            ledger = stack.enter_context(contextlib.closing(Ledger(os.path.join(folder, "ledger.sqlite"))))
            ledger.create({})
        elif not ledger.unused:
            has = _begun_query(ledger)
            _check_same(
                place, ledger, has, replace(query, unit_reference=has.unit_reference) if pin_reference else query
            )
            query = has
        totals = ledger.totals()
        attempts = int(ledger.meta().get("total", 0))
        calls = totals.rows + totals.refused + totals.failed
        yield DatasetSnapshot(ledger, RowBuilder(query, ""), query, attempts, calls)


def _facts(place: OutputLocation, query: Query, making: PartFormat) -> dict[str, str | int]:
    return {
        "run_id": secrets.token_hex(6),
        "query": orjson.dumps(query.as_dict()).decode(),
        "started": utc_iso(datetime.now(UTC)),
        "out": place.name,
        "format": making.format,
        "shape": making.shape,
    }


def _unused(place: OutputLocation, ledger: Ledger) -> bool:
    """True for a dataset that has no verdict at all: a run that was refused before its first call pins nothing."""
    files = (path_of(place.private, segment) for segment in segments(place.private))
    return ledger.unused and not any(os.path.getsize(path) for path in files)


def _begun_query(ledger: Ledger) -> Query:
    return Query(**orjson.loads(str(ledger.meta()["query"])))


def _check_same(place: OutputLocation, ledger: Ledger, begun: Query, wanted: Query) -> None:
    out = ledger.meta()["out"]
    inside = os.path.commonpath([place.private, place.public]) == place.public
    if out != place.name and not inside:  # first: another output may well have another query
        raise UsageError(
            f"{place.private} belongs to --out {out}, not to {place.out}: name another", option="--work-dir"
        )
    if begun != wanted:
        raise UsageError(
            f"{place.out} was begun with another query:\n  it has  {_shown(begun)}\n  asked   {_shown(wanted)}\n"
            "Name another --out for the new query, or give the options it has"
        )


def _shown(query: Query) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in query.as_dict().items())


@contextlib.contextmanager
def _locked(place: OutputLocation) -> Iterator[None]:
    """Hold the dataset's kernel lock, which ends with the process however it ends."""
    path = os.path.join(place.private, "lock")
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetBusy(
                f"another harvester works on {place.out}: wait until it has ended, or name another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)
