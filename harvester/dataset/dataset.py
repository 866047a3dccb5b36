"""An open dataset: records verdicts at once, commits them in batches, publishes what was committed.

Three threads use it: the event loop's, which never waits for the disk for long; one that commits; one that publishes.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Protocol

from harvester._version import __version__
from harvester.bitly.query import Query
from harvester.clock import seconds_since_1970, utc_iso
from harvester.dataset.journal import Journal, PartLimits, forget_failures
from harvester.dataset.ledger import FileCheckpoint, Ledger
from harvester.dataset.manifest import NEWEST, DatasetCounts, Manifest, PublishedPart, RunReport
from harvester.dataset.sidecars import AttemptFile, Sidecars
from harvester.errors import OutputError, as_output_error
from harvester.history import StoredEntry
from harvester.progress import AttemptCounts
from harvester.rows.call import ROW_STATE, WHOLE, CallState, Entry, Shortfall, Totals
from harvester.rows.encode import PartFormat, encoded_size
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape
from harvester.storage.filesystem import least_free_bytes
from harvester.storage.location import OutputLocation
from harvester.storage.watch import FolderLock, StateWatch, Watched

_ENDED_LIMIT = 8
"""Full journals that may wait to become parts; beyond that commits wait for them."""
_REPORTED = tuple(each.name for each in fields(RunReport) if each.name != "pending")  # the manifest's keys, too
_TRUNCATED = Totals._fields.index("truncated")  # where the counts of a Shortfall begin, in its order


@dataclass(slots=True)
class Batch:
    """What one commit makes durable.

    entries: verdicts by segment. seen: keys of known calls that the list names again. invalid: lines without a bitlink.
    ended: full journals. current, size: the open journal, its bytes to commit. durable: True once the ledger has it.
    """

    entries: defaultdict[int, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    seen: list[bytes] = field(default_factory=list)
    invalid: list[bytes] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    ended: list[Journal] = field(default_factory=list)
    current: Journal | None = None
    size: int = 0
    durable: bool = False
    totals: Totals | None = None
    history: list[StoredEntry] = field(default_factory=list)

    @property
    def keys(self) -> list[bytes]:
        """The keys of all calls that this batch makes known to the ledger."""
        return [entry.key for entries in self.entries.values() for entry in entries] + self.seen


class Publisher(Protocol):
    """Brings committed journal lines to the consumer. uncommitted_limit: verdicts that may wait for a commit."""

    uncommitted_limit: int

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """Finish or undo what a crash interrupted. sizes: readable bytes of each journal. lossy: lines are gone."""

    def checkpoint(self) -> FileCheckpoint | None:
        """Make what was published durable, and return the checkpoint to commit with the next verdicts, if there is one.

        Raises:
            ReaderClosed: the reader of a stream has left.
        """

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Publish what is due. committed: bytes of each journal; ended: segments that get no more lines."""

    def parts(self) -> list[PublishedPart]:
        """Return the published files, as the manifest lists them."""

    def published_keys(self) -> Iterable[bytes]:
        """Return the keys of published rows whose journal may still be lost: their calls stay settled."""

    def shorten_waits(self) -> None:
        """Wait only briefly for a slow reader or an unavailable store from now on: the run is ending."""

    def leave(self) -> None:
        """Wait for no reader at all from now on: the run is given up."""

    def close(self) -> None:
        """Close what it has open."""


class Dataset:
    """An open dataset; made by `opening.open_dataset`. lock: None where no second run could find the private folder.

    query: what it was begun with. rows: makes the lines of this run. refreshed: rows that a newer verdict has followed.
    waiting: the number of verdicts, known calls and invalid lines that wait for the next commit. record_attempts:
    records this run's attempts before the latest is sent; from then on no kill of the process hides one.
    """

    def __init__(
        self,
        location: OutputLocation,
        ledger: Ledger,
        query: Query,
        limits: PartLimits,
        part_format: PartFormat,
        publisher: Publisher,
        sidecars: Sidecars,
        journal: Journal,
        lock: FolderLock | None,
        rows: RowBuilder,
        refreshed: int = 0,
    ) -> None:
        facts = ledger.facts()
        with as_output_error(location.private):
            self._attempts = AttemptFile(location.private, AttemptCounts.among(facts))
        self.record_attempts = self._attempts.write
        self.location, self.ledger, self.query = location, ledger, query
        self.run_id, self.invocation = str(facts["run_id"]), int(facts["invocation"])
        self.rows, self.refreshed = rows, refreshed
        self._asked_at = seconds_since_1970(rows.query.unit_reference) if ledger.refreshing else None
        self.part_format, self._nested = part_format, part_format.shape is Shape.NESTED
        self._limits, self._publisher = limits, publisher
        self._sidecars, self._journal = sidecars, journal
        self._committed = ledger.journals()  # bytes committed, by segment
        self._batch = Batch()
        self._segments_to_publish: list[int] = []
        self.waiting = 0
        self._counts = list(ledger.totals())  # indexed by CallState, then by Shortfall from _TRUNCATED on
        self._ended: dict[int, Journal] = {}  # committed and not published: open, because only that survives a removal
        ledger.expected = self.totals
        self._watch = StateWatch(location.private, lock)

    # --- for the event loop's thread -------------------------------------------------------------------------------

    @property
    def totals(self) -> Totals:
        """The dataset's calls, including uncommitted ones."""
        return Totals(*self._counts)

    @property
    def backlogged(self) -> bool:
        """True while too much waits for the disk, so that no further call should be made."""
        # `behind` counts as well: commits wait for an upload then, and a power cut must not cost more than a batch.
        if self.waiting >= self._publisher.uncommitted_limit or len(self._batch.ended) >= _ENDED_LIMIT:
            return True
        return len(self._segments_to_publish) >= _ENDED_LIMIT

    @property
    def due(self) -> bool:
        """True when a full journal waits to become a part."""
        return bool(self._segments_to_publish)

    @property
    def behind(self) -> bool:
        """True when _ENDED_LIMIT journals wait to become parts, so that commits should wait for them."""
        return len(self._segments_to_publish) >= _ENDED_LIMIT

    def record(
        self, key: bytes, state: CallState, line: bytes, previous: CallState | None,
        lacks: Shortfall = WHOLE, lacked: Shortfall = WHOLE, clicks: int | None = None,
    ) -> None:  # fmt: skip
        """Append a call's verdict to the journal; from then on no kill of the process loses it.

        line: the row's or failure's JSON. previous: the call's state so far, None for a new call. lacks, clicks: the
        row's. lacked: the shortfall of the row that this verdict follows.

        Raises:
            OutputError: the journal could not be written; the call stays unsettled.
        """
        journal = self._journal
        if state is ROW_STATE:
            rows, size = (1, len(line) + 1) if self._nested else encoded_size(line, self.part_format.shape)
            journal.append(key, state, line, rows, size)
            entry = tuple.__new__(Entry, (key, state, None, lacks, self._asked_at, clicks))  # in half the time
        else:
            journal.append(key, state, line)
            entry = Entry(key, state, line, lacks, self._asked_at, clicks)
        self._batch.entries[journal.segment].append(entry)
        self.waiting += 1
        self._counts[state] += 1
        if lacks is not lacked:
            for count, (less, more) in enumerate(zip(lacked, lacks, strict=True), _TRUNCATED):
                self._counts[count] += more - less
        if previous is not None:
            self._counts[previous] -= 1
            self.refreshed += previous is ROW_STATE
        if self._limits.full(journal):
            self._end_journal()

    def hold(self, key: bytes, row: bytes) -> None:
        """Append a row that `record` follows; if a kill comes first, it is the call's row. Raises OutputError."""
        self._journal.hold(key, row)

    def copy_journal(self, to: Callable[[bytes], None]) -> None:
        """Pass each line of the journal to a function too; what it raises ends the run."""
        self._journal.copy_to = to

    def note_seen(self, key: bytes) -> None:
        """Record that the current list names a call that was known before."""
        self._batch.seen.append(key)
        self.waiting += 1

    def note_invalid(self, line: bytes) -> None:
        """Record a line that is no bitlink, as its JSON in `_failures.ndjson`."""
        self._batch.invalid.append(line)
        self.waiting += 1

    def count(self, name: str, more: int = 1) -> None:
        """Add to one of the dataset's counters; durable with the next commit."""
        self._batch.counters[name] += more

    def take_batch(self) -> Batch:
        """Return everything recorded since the last batch, for `commit`; ends the journal if it is full or too old.

        Raises:
            OutputError: no new journal could be created, or another program removed what was open. The batch is kept.
        """
        self._check_state()
        # `record` checks `full` only after an append, and a run may be resumed with lower limits.
        if self._limits.full(self._journal) or self._limits.old(self._journal, time.time()):
            self._end_journal()
        batch, self._batch = self._batch, Batch()
        batch.current, batch.size, batch.totals = self._journal, self._journal.size, self.totals
        self.waiting = 0
        return batch

    def give_back(self, batch: Batch) -> None:
        """Put a batch whose commit failed before the next one, for a later commit; nothing if it is durable."""
        if batch.durable:
            return
        later, self._batch = self._batch, batch
        for segment, entries in later.entries.items():
            batch.entries[segment] += entries
        batch.seen += later.seen
        batch.invalid += later.invalid
        batch.ended += later.ended
        batch.counters.update(later.counters)
        batch.history += later.history
        self.waiting += len(batch.keys) + len(batch.invalid) - len(later.keys) - len(later.invalid)

    def end_part(self) -> None:
        """End the current journal, if it is not empty, so that it becomes a part."""
        if self._journal.size and self._watch.spoiled is None:
            self._end_journal()

    def _end_journal(self) -> None:
        with as_output_error(self.location.private):
            ended, self._journal = self._journal, self._journal.following()
        self._batch.ended.append(ended)

    def cause_of(self, error: OutputError) -> OutputError:
        """Return why an error came about, as `StateWatch.cause_of` does. For the event loop's thread."""
        return self._watch.cause_of(error, self._check_state)

    def _check_state(self) -> None:
        with as_output_error(self.location.private):
            self._watch.check(self._open_state())

    def _open_state(self) -> Iterator[Watched]:
        yield from list[Watched]([self.ledger, self._attempts, self._journal, *self._batch.ended])
        for segment, journal in list(self._ended.items()):
            if segment not in self._segments_to_publish:
                self._ended.pop(segment).close()
            elif journal.tampering() and segment > self.ledger.ended():  # else its part is sealed, and we deleted it
                yield journal

    # --- for other threads -----------------------------------------------------------------------------------------

    def commit(self, batch: Batch) -> None:
        """Make a batch durable, and publish its rows at once unless they are published in parts, which takes long.

        After an error batch.durable tells whether the batch itself was committed.

        Raises:
            OutputError: the disk is full, or a file was changed by another program.
        """
        if not batch.durable:
            with as_output_error(self.location.out):
                self._commit(batch)
            batch.durable = True
        if not self.location.in_parts:
            self.publish()
        self._watch.raise_spoiled()

    def publish(self) -> None:
        """Publish the committed rows that are due. Parts may be made while another thread commits more.

        Raises:
            OutputError: as for `commit`; the next call finishes what this one left half done.
        """
        self._watch.raise_spoiled()
        ended = list(self._segments_to_publish)  # before _committed, which then includes every journal that has ended
        with as_output_error(self.location.out):
            self._publisher.publish(dict(self._committed), ended)
        for segment in ended:
            del self._committed[segment]
        del self._segments_to_publish[: len(ended)]

    def _commit(self, batch: Batch) -> None:
        """Sync the journals, then commit their verdicts and lengths to the ledger in one transaction.

        The order is the promise: the ledger never knows a verdict whose journal line a power cut could still lose. The
        length it commits marks where recovery has to read on.
        """
        if batch.current is None:
            raise ValueError("only a batch from take_batch() can be committed: its journals must be synced first")
        checkpoint = self._publisher.checkpoint()
        sizes = {journal.segment: journal.size for journal in batch.ended}
        for journal in batch.ended:
            journal.sync(journal.size)
        if batch.size:
            batch.current.sync(batch.size)
            sizes[batch.current.segment] = batch.size
        if batch.entries or batch.seen or batch.invalid or batch.counters or batch.history or checkpoint is not None:
            self.ledger.commit(
                entries=list(batch.entries.items()),
                seen=batch.seen,
                invocation=self.invocation,
                invalid=batch.invalid,
                journals=sizes,
                checkpoint=checkpoint,
                counters=batch.counters,
                history=batch.history,
            )
        self.ledger.expected = batch.totals or self.ledger.expected
        self._committed.update(sizes)
        for journal in batch.ended:
            self._ended[journal.segment] = journal
            self._segments_to_publish.append(journal.segment)
        batch.ended.clear()

    def free_bytes(self) -> int:
        """Return the free bytes on the disk of the output or of the private state, whichever has less."""
        with as_output_error(self.location.public):
            return least_free_bytes({self.location.public, self.location.private}, unless_gone=self.location.private)

    def shorten_waits(self) -> None:
        """Wait only briefly for a slow reader or an unavailable object store from now on: the run is ending."""
        self._publisher.shorten_waits()

    def leave(self) -> None:
        """Wait for no reader at all from now on: the run is given up."""
        self._publisher.leave()

    def write_manifest(self, report: RunReport) -> Manifest:
        """Replace `_manifest.json`, unless rows go to standard output, and return what it holds."""
        facts, counts = self.ledger.facts(), {**self.totals._asdict(), "pending": report.pending}
        calls = sum(counts[name] for name in ("rows", "refused", "failed", "pending"))
        manifest = Manifest(
            schema_version=NEWEST,
            tool=f"harvester {__version__}",
            run_id=self.run_id,
            server=str(facts["server"]),
            work_dir=self.location.work_dir,
            query=self.query.as_dict(),
            format=self.part_format.format,
            shape=self.part_format.shape,
            started=str(facts["started"]),
            updated=utc_iso(datetime.now(UTC)),
            dataset=DatasetCounts(calls=calls, refreshed=self.refreshed, **counts),
            attempts=AttemptCounts.among(facts),
            parts=tuple(self._publisher.parts()),
            **{name: getattr(report, name) for name in _REPORTED},
        )
        self._sidecars.write_manifest(manifest.to_json(), last=manifest.ended is not None)
        return manifest

    def renew_manifest(self, manifest: Manifest) -> Manifest:
        """Write the run's latest manifest once more, with the present moment, without asking the ledger."""
        manifest = replace(manifest, updated=utc_iso(datetime.now(UTC)))
        self._sidecars.write_manifest(manifest.to_json(), last=manifest.ended is not None)
        return manifest

    def write_failures(self) -> None:
        """Replace `_failures.ndjson` with the ledger's failures and invalid lines."""
        self._sidecars.write_failures(self.ledger.failure_lines())
        forget_failures(self.location.private)

    def declare_success(self) -> None:
        """Write `_SUCCESS`."""
        self._sidecars.write_success()

    def remove_success_marker(self) -> None:
        """Delete `_SUCCESS`: a call is about to be made, or not every call of the list is settled any more."""
        self._sidecars.delete_success()

    def close(self) -> None:
        """Close the journals and the ledger."""
        with suppress(OutputError):
            self._check_state()
        self._attempts.close()
        for journal in (self._journal, *self._batch.ended, *self._ended.values()):
            journal.close()
        self.ledger.close()
