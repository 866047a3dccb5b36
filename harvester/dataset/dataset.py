"""The open dataset as a harvest uses it: verdicts recorded at once, committed in batches, published.

`record` and `take_batch` belong to the event loop's thread. What blocks belongs to one other thread, and `publish` to
a third one: a part of a hundred MB takes seconds to make, and minutes to upload.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from harvester._version import __version__
from harvester.bitly.query import Query
from harvester.clock import utc_iso
from harvester.dataset import publisher
from harvester.dataset.bucket import Bucket
from harvester.dataset.file_publisher import AppendPublisher
from harvester.dataset.journal import Journal
from harvester.dataset.ledger import Entry, Known, Ledger, State, Totals
from harvester.dataset.manifest import NEWEST, DatasetCounts, Manifest, PublishedPart, RunReport
from harvester.dataset.recovery import recover
from harvester.dataset.stream_publisher import RowSink, StdoutSink, StreamPublisher
from harvester.errors import explained
from harvester.progress import AttemptCounts
from harvester.rows.encode import PartFormat, encoded_size
from harvester.rows.row import RowBuilder
from harvester.storage.location import OutputKind, OutputLocation

Warn = Callable[[str], None]

UNCOMMITTED_LIMIT = 10_000
"""Verdicts that may wait for a commit; past that the workers wait for the disk."""
_ENDED_LIMIT = 8
_COUNTERS = tuple(counter.name for counter in fields(AttemptCounts))


@dataclass(frozen=True, slots=True)
class PartLimits:
    """When a part is full: rows, their bytes as NDJSON, or seconds since its first row, whichever comes first.

    At an API's pace bytes alone would keep a part open for weeks.
    """

    rows: int
    bytes: int
    seconds: float = math.inf

    def full(self, journal: Journal) -> bool:
        """True when a part made of this journal is due, or when failures alone have made it long."""
        return journal.rows >= self.rows or journal.row_bytes >= self.bytes or journal.size >= 4 * self.bytes

    def old(self, journal: Journal, now: float) -> bool:
        """True when the journal's first row is too old. now: the wall clock, seconds since 1970."""
        begun = journal.first_row_at
        # A clock that was set back must not hold a part open: it is as old as it was, and soon older.
        return begun is not None and not 0 <= now - begun < self.seconds


@dataclass(slots=True)
class Batch:
    """What a commit makes durable. sizes: bytes to commit of each journal; ended: journals that are full."""

    entries: dict[int, list[Entry]] = field(default_factory=dict)
    seen: list[bytes] = field(default_factory=list)
    invalid: list[bytes] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    ended: list[Journal] = field(default_factory=list)
    current: Journal | None = None
    size: int = 0
    durable: bool = False

    @property
    def keys(self) -> list[bytes]:
        """The calls that are known to the ledger once this batch is committed."""
        return [entry.key for entries in self.entries.values() for entry in entries] + self.seen


class Dataset:
    """An open dataset; made by `opening.opened`."""

    def __init__(
        self,
        place: OutputLocation,
        ledger: Ledger,
        query: Query,
        policy: PartLimits,
        making: PartFormat,
        warn: Warn,
        sink: RowSink | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        meta = ledger.meta()
        self.place = place
        self.ledger = ledger
        self.query = query
        self.run_id = str(meta["run_id"])
        self.rows = RowBuilder(query, self.run_id)
        self.invocation = ledger.begin_invocation()
        self._started = str(meta["started"])
        self._policy = policy
        self.making = making
        self._publisher = _publisher_for(place, ledger, self.run_id, making, sink, bucket)
        self._bucket = bucket
        self._most_waiting = sink.most_waiting if sink else UNCOMMITTED_LIMIT
        self._batch = Batch()
        self._to_end: list[int] = []
        self._waiting = 0
        self._journal, self._committed = recover(
            place, ledger, self._publisher, warn, self.invocation - 1, making.shape
        )
        totals = ledger.totals()
        self._counts = [totals.rows, totals.refused, totals.failed]  # in the order of State

    # --- the event loop's side -------------------------------------------------------------------------------------

    @property
    def totals(self) -> Totals:
        """Count the dataset's calls by what became of them, with those that wait for a commit."""
        return Totals(*self._counts)

    @property
    def backlogged(self) -> bool:
        """True while so much waits for the disk that no further call should be made."""
        # Behind too: the commits then wait for an upload, and a power cut must not cost more than a batch.
        return self._waiting >= self._most_waiting or len(self._batch.ended) >= _ENDED_LIMIT or self.behind

    @property
    def due(self) -> bool:
        """True when there is a part to be made."""
        return bool(self._to_end)

    @property
    def behind(self) -> bool:
        """True when so many parts are to be made that the commits should wait for them."""
        return len(self._to_end) >= _ENDED_LIMIT

    @property
    def waiting(self) -> int:
        """How many verdicts, known calls and invalid lines wait for the next commit."""
        return self._waiting

    def record(self, key: bytes, state: State, line: bytes, previous: State | None) -> None:
        """Write a call's verdict into the journal: from now on no kill loses it.

        line: the row, or the failure. previous: what the call was before, None for a new one.

        Raises:
            OutputError: the journal could not be written; the call stays unsettled.
        """
        journal = self._journal
        journal.append(key, state, line, *(encoded_size(line, self.making.shape) if state is State.ROW else ()))
        entry = Entry(key, state, None if state is State.ROW else line)
        self._batch.entries.setdefault(journal.segment, []).append(entry)
        self._waiting += 1
        self._tally(state, previous)
        if self._policy.full(journal):
            self._end_journal()

    def note_seen(self, key: bytes) -> None:
        """Take note that the present list names a call that was known before."""
        self._batch.seen.append(key)
        self._waiting += 1

    def note_invalid(self, line: bytes) -> None:
        """Take note of a line that is no bitlink."""
        self._batch.invalid.append(line)
        self._waiting += 1

    def count(self, name: str, more: int = 1) -> None:
        """Add to one of the dataset's counters; durable with the next commit."""
        self._batch.counters[name] = self._batch.counters.get(name, 0) + more

    def take_batch(self) -> Batch:
        """Give what has come since the last batch, to be committed; a part that is due ends with it.

        Raises:
            OutputError: no new journal could be begun; the batch is kept.
        """
        # Full too: a run may be resumed with less than the part has already.
        if self._policy.full(self._journal) or self._policy.old(self._journal, time.time()):
            self._end_journal()
        batch, self._batch = self._batch, Batch()
        batch.current, batch.size = self._journal, self._journal.size
        self._waiting = 0
        return batch

    def give_back(self, batch: Batch) -> None:
        """Take a batch back whose commit failed, so that a later one may try again; nothing if it is durable."""
        if batch.durable:
            return
        later, self._batch = self._batch, batch
        for segment, entries in later.entries.items():
            batch.entries.setdefault(segment, []).extend(entries)
        batch.seen += later.seen
        batch.invalid += later.invalid
        batch.ended += later.ended
        for name, more in later.counters.items():
            batch.counters[name] = batch.counters.get(name, 0) + more
        self._waiting += len(batch.keys) + len(batch.invalid) - len(later.keys) - len(later.invalid)

    def end_part(self) -> None:
        """Let the current part end here, if it has anything."""
        if self._journal.size:
            self._end_journal()

    def _end_journal(self) -> None:
        with explained(self.place.private):
            following = Journal(self.place.private, self._journal.segment + 1)
        self._batch.ended.append(self._journal)
        self._journal = following

    def _tally(self, state: State, previous: State | None) -> None:
        self._counts[state] += 1
        if previous is not None:
            self._counts[previous] -= 1

    # --- the other thread's side -----------------------------------------------------------------------------------

    def known(self, keys: Sequence[bytes]) -> dict[bytes, Known]:
        """Give what the ledger has on these calls."""
        return self.ledger.known(keys)

    def commit(self, batch: Batch) -> None:
        """Make a batch durable, and publish rows that flow; batch.durable says how far an error let it come.

        Raises:
            OutputError: the disk is full, or a file is not what was left there.
        """
        if not batch.durable:
            with explained(self.place.out):
                self._commit(batch)
            batch.durable = True
        if not self.place.in_parts:
            self.publish()

    def publish(self) -> None:
        """Publish what is due of the committed lines; parts may be made while more is committed.

        Raises:
            OutputError: as for `commit`; the next one finishes what this one left half done.
        """
        ended = list(self._to_end)  # first: what ended was committed before
        with explained(self.place.out):
            self._publisher.publish(dict(self._committed), ended)
        for segment in ended:
            del self._committed[segment]
        del self._to_end[: len(ended)]

    def _commit(self, batch: Batch) -> None:
        assert batch.current is not None
        mark = self._publisher.mark()
        sizes = {journal.segment: journal.size for journal in batch.ended}
        for journal in batch.ended:
            journal.sync(journal.size)
        if batch.size:
            batch.current.sync(batch.size)
            sizes[batch.current.segment] = batch.size
        if batch.keys or batch.invalid or batch.counters or mark is not None:
            self.ledger.commit(
                entries=list(batch.entries.items()),
                seen=batch.seen,
                invocation=self.invocation,
                invalid=batch.invalid,
                journals=sizes,
                mark=mark,
                counters=batch.counters,
            )
        self._committed.update(sizes)
        for journal in batch.ended:
            self._to_end.append(journal.segment)
            journal.close()
        batch.ended.clear()

    def free_bytes(self) -> int:
        """Give the free space where the output and the private state lie, whichever is less."""
        with explained(self.place.public):
            return min(shutil.disk_usage(path).free for path in {self.place.public, self.place.private})

    def abandon(self) -> None:
        """Do not wait much longer for a reader that does not take what is written to it, or for an object store that
        is out: the run is to end.
        """
        self._hurry_bucket()
        if isinstance(self._publisher, StreamPublisher):
            self._publisher.sink.hurry()

    def leave(self) -> None:
        """Wait for no reader at all: the run is given up."""
        self._hurry_bucket()
        if isinstance(self._publisher, StreamPublisher):
            self._publisher.sink.leave()

    def _hurry_bucket(self) -> None:
        if self._bucket:
            self._bucket.hurry()

    def write_manifest(self, report: RunReport) -> Manifest:
        """Replace `_manifest.json`, unless rows go to standard output, and return what it holds."""
        totals, meta = self.totals, self.ledger.meta()
        calls = totals.rows + totals.refused + totals.failed + report.pending
        manifest = Manifest(
            schema_version=NEWEST,
            tool=f"harvester {__version__}",
            run_id=self.run_id,
            work_dir=self.place.work_dir,
            query=self.query.as_dict(),
            format=self.making.format,
            shape=self.making.shape,
            started=self._started,
            updated=utc_iso(datetime.now(UTC)),
            complete=report.complete,
            stopped=report.stopped,
            input_read_to_end=report.input_read_to_end,
            list=report.list,
            ended=report.ended,
            invocation=report.invocation,
            remaining=report.remaining,
            given_up=report.given_up,
            budget=report.budget,
            dataset=DatasetCounts(calls, totals.rows, totals.refused, totals.failed, report.pending),
            attempts=AttemptCounts(**{name: int(meta.get(name, 0)) for name in _COUNTERS}),
            parts=tuple(PublishedPart(**part) for part in self._publisher.parts()),
        )
        self._replace_manifest(manifest)
        return manifest

    def renew_manifest(self, manifest: Manifest) -> Manifest:
        """Write the run's latest manifest once more, with the present moment, without asking the ledger."""
        renewed = manifest.renewed()
        self._replace_manifest(renewed)
        return renewed

    def _replace_manifest(self, manifest: Manifest) -> None:
        if self.place.form is not OutputKind.STDOUT:
            with explained(self.place.public):
                publisher.write_manifest(self.place, manifest.to_json())
                if self._bucket:
                    self._bucket.show_manifest(last=manifest.ended is not None)

    def write_failures(self) -> None:
        """Replace `_failures.ndjson` by what the ledger has."""
        if self.place.form is not OutputKind.STDOUT:
            with explained(self.place.public):
                publisher.write_failures(self.place, self.ledger.failure_lines())
                if self._bucket:
                    self._bucket.show_failures()

    def declare_success(self) -> None:
        """Write `_SUCCESS`."""
        if self.place.form is not OutputKind.STDOUT:
            with explained(self.place.public):
                publisher.write_success(self.place)
                if self._bucket:
                    self._bucket.declare_success()

    def take_success_back(self) -> None:
        """Remove `_SUCCESS`: a new call is about to be made, or the list is no longer all settled."""
        if self.place.form is not OutputKind.STDOUT:
            with explained(self.place.public):
                if self._bucket:
                    self._bucket.take_success_back()
                publisher.remove_success(self.place)

    def close(self) -> None:
        """Close the files."""
        self._journal.close()
        self.ledger.close()


def _publisher_for(
    place: OutputLocation, ledger: Ledger, run_id: str, making: PartFormat, sink: RowSink | None, bucket: Bucket | None
) -> publisher.Publisher:
    match place.form:
        case OutputKind.FOLDER:
            return publisher.PartPublisher(place, ledger, run_id, making, publisher.Folder(place.out, run_id))
        case OutputKind.STORE:
            assert bucket
            return publisher.PartPublisher(place, ledger, run_id, making, bucket)
        case OutputKind.FILE:
            return AppendPublisher(place, ledger)
        case OutputKind.STDOUT:
            return StreamPublisher(place, ledger, sink or StdoutSink())
