"""Durability beside the event loop: commits, parts and the manifest, on a disk that may be slow."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from typing import ParamSpec, TypeAlias, TypeVar

from harvester.clock import from_epoch, utc_iso
from harvester.dataset.dataset import Batch, Dataset
from harvester.dataset.manifest import Manifest
from harvester.errors import HarvesterError, InputBroken, OutputError, ReaderClosed, RunStopping
from harvester.events import RunOutcome
from harvester.progress import AttemptCounts
from harvester.run.telemetry import Telemetry
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.threads import in_daemon

COMMIT_SECONDS = 0.5
COMMIT_VERDICTS = 1000
"""This many verdicts are committed at once, without waiting for COMMIT_SECONDS."""
MANIFEST_SECONDS, STORE_SECONDS = 10.0, 60.0
"""The longest between two manifests: on a local disk, and in an object store, where each is a request."""
_SOONEST = 10
"""What begins to block is written at once, but no sooner than a tenth of that time after the last manifest."""
LEAST_FREE_BYTES = 64 * 1024 * 1024
_FAILURES_SHARE = 100
"""Rewriting `_failures.ndjson` during a run takes at most 1/100 of the time."""

P = ParamSpec("P")
T = TypeVar("T")
ManifestExporter: TypeAlias = Callable[[Manifest], Awaitable[None]]
"""Exports a manifest's numbers; it neither fails nor takes long."""
InThread: TypeAlias = Callable[[Callable[[], Manifest]], Awaitable[Manifest]]


class Heartbeat:
    """Replaces the manifest at least every `seconds`, and when something begins to block, until the run has ended.

    It begins before the list is counted: `status` takes a run whose manifest is three minutes old for a dead one, so no
    stage of a run may be silent. The ledger allows one thread at a time, which is why two stages write in two ways.
    Before the harvest a thread compares the list with the ledger: the last manifest is written again with the present
    moment, and the ledger is left alone. During the harvest the committer writes in its own thread, after a commit,
    when the manifest is `due`.

    exporter: called with each manifest, also where there is no file of it.
    """

    def __init__(
        self,
        dataset: Dataset,
        telemetry: Telemetry,
        exporter: ManifestExporter | None = None,
        seconds: float = STORE_SECONDS,
    ) -> None:
        self.telemetry = telemetry
        self._dataset = dataset
        self._exporter = exporter
        self._seconds = seconds
        self._written_at = self._due_at = 0.0

    @property
    def due(self) -> bool:
        """True when the manifest is to be written again."""
        now = time.monotonic()
        if now >= self._due_at:
            return True
        return now >= self._written_at + self._seconds / _SOONEST and self.telemetry.begins_to_block

    async def write(self, outcome: RunOutcome | None, in_thread: InThread | None = None) -> Manifest:
        """Replace the manifest. outcome: None during the run. in_thread: runs what blocks; by default a daemon.

        Raises:
            OutputError: it cannot be written.
        """
        self._written_at = time.monotonic()
        self._due_at = self._written_at + self._seconds
        work = partial(self._dataset.write_manifest, self.telemetry.report(outcome))
        return await self._exported(await (in_thread or in_daemon)(work))

    @asynccontextmanager
    async def before_harvest(self, shutdown: ShutdownSignal) -> AsyncIterator[None]:
        """Write the manifest at once and keep it fresh; an error inside the block is recorded as the run's stop.

        Raises:
            OutputError: the manifest cannot be written.
        """
        manifest, over = await self.write(None), asyncio.Event()
        renewing = asyncio.create_task(self._renew(manifest, over))
        stop: Stop | None = None
        try:
            yield
        except RunStopping:
            stop = shutdown.stop
            raise
        except HarvesterError as error:
            stop = Stop(_reason_of(error), str(error))
            raise
        finally:
            over.set()
            await renewing
            self._due_at = 0.0  # the harvest's first commit writes the counts that were unknown until now
            if stop is not None:
                await self._write_end(stop)

    async def _renew(self, manifest: Manifest, over: asyncio.Event) -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await over.wait()
                    return
            with suppress(OutputError):  # the harvest will fail for the same reason, and say so
                await self._exported(await in_daemon(partial(self._dataset.renew_manifest, manifest)))

    async def _write_end(self, stop: Stop) -> None:
        self._dataset.shorten_waits()
        with suppress(OutputError):  # the error that ended the run is the one to report
            await in_daemon(self._dataset.remove_success_marker)
            await self.write(RunOutcome(complete=False, stop=stop, status=self.telemetry.progress))

    async def _exported(self, manifest: Manifest) -> Manifest:
        if self._exporter is not None:
            await self._exporter(manifest)
        return manifest


def _reason_of(error: HarvesterError) -> StopReason:
    if isinstance(error, InputBroken):
        return StopReason.INPUT
    return StopReason.OUTPUT if isinstance(error, OutputError) else StopReason.NOT_BEGUN


class Committer:
    """Commits what the workers record, makes parts of it, and keeps the manifest fresh; an async context manager.

    in_progress: the keys of the calls between the list and the ledger. counters: the run's attempts, which the ledger
    adds up over all runs.
    """

    def __init__(
        self,
        dataset: Dataset,
        shutdown: ShutdownSignal,
        heartbeat: Heartbeat,
        counters: AttemptCounts,
        *,
        commit_seconds: float = COMMIT_SECONDS,
        least_free_bytes: int = LEAST_FREE_BYTES,
    ) -> None:
        self.in_progress: set[bytes] = set()
        self._dataset = dataset
        self._shutdown = shutdown
        self._heartbeat = heartbeat
        self._counters = counters
        self._counted = replace(counters)
        self._commit_seconds = commit_seconds
        self._least_free = least_free_bytes
        self._disk_thread = ThreadPoolExecutor(1, "harvester-disk")
        self._parts_thread = ThreadPoolExecutor(1, "harvester-parts")
        self._making: asyncio.Future[None] | None = None
        self._due = asyncio.Event()
        self._done = asyncio.Event()
        self._over = False
        self._failures_due = 0.0

    async def __aenter__(self) -> "Committer":
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            # Unblock the writer thread: it may be waiting for a reader that is waiting for this coroutine.
            self._dataset.leave()
        try:
            await self._end()
        finally:
            if self._making:  # set only when the run ends by another error, and that is the one to raise
                await asyncio.gather(self._making, return_exceptions=True)
            for thread in (self._disk_thread, self._parts_thread):
                await in_daemon(thread.shutdown)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on the dataset in the one thread that may use it; parts are made in another."""
        assert not kwargs
        return await asyncio.get_running_loop().run_in_executor(self._disk_thread, work, *args)

    def commit_soon(self) -> None:
        """Commit at once, without waiting for COMMIT_SECONDS."""
        self._due.set()

    async def committed(self) -> None:
        """Return after the next commit."""
        self._done.clear()
        self._due.set()
        await self._done.wait()

    async def finish(self, outcome: RunOutcome) -> None:
        """Commit and publish everything, then write how the run ended into the manifest.

        Raises:
            OutputError: the output could not be written. ReaderClosed: the reader of standard output has gone.
        """
        await self._end()
        try:
            await self._publish_all(outcome)
        except ReaderClosed:
            raise
        except OutputError as symptom:
            error = self._dataset.cause_of(symptom)
            stop = Stop(StopReason.OUTPUT, str(error))
            # What has stopped the run is why the rest fails too, and says what to do.
            earlier = outcome.stop if outcome.stop and outcome.stop.reason is StopReason.OUTPUT else None
            spoiled = replace(outcome, complete=False, stop=earlier or stop)
            with suppress(OutputError):  # without its end in the manifest the run would still count as running
                await self._heartbeat.write(spoiled, self.in_thread)
            if earlier:
                raise OutputError(earlier.message) from error
            if error is symptom:
                raise
            raise error from symptom
        await self._note_oldest(outcome)
        await self._heartbeat.write(outcome, self.in_thread)
        if outcome.complete:
            await self.in_thread(self._dataset.declare_success)

    async def _note_oldest(self, outcome: RunOutcome) -> None:
        """Note the age of the oldest answer to a link of the list, if rows are refreshed and the list was read."""
        refresh = outcome.status.refresh
        if refresh is not None and refresh.due is not None and outcome.status.read_to_end:
            found = await self.in_thread(self._dataset.ledger.oldest_answer, self._dataset.invocation)
            refresh.oldest = None if found is None else utc_iso(from_epoch(found))

    async def _publish_all(self, outcome: RunOutcome) -> None:
        self._dataset.end_part()
        batch = self._take_batch()
        await self.in_thread(self._dataset.commit, batch)  # before the parts: an object store may be unreachable
        if not outcome.complete:
            await self.in_thread(self._dataset.remove_success_marker)
        await self._make_all_parts()
        await self.in_thread(self._dataset.write_failures)

    async def _end(self) -> None:
        self._over = True
        self._due.set()
        await self._task

    async def _keep(self) -> None:
        try:
            while not self._over:
                await self._commit()
                await self._check_disk()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._commit_seconds):
                        await self._due.wait()
                self._due.clear()
        except BaseException:
            # A bug: end the run, so that `_end` raises it, instead of making more calls without a commit.
            self._shutdown.request(Stop(StopReason.OUTPUT, "committing failed"))
            raise

    async def _commit(self) -> None:
        try:
            batch = self._take_batch()
        except OutputError as error:  # no new journal can be begun
            self._stop_for(error)
            self._done.set()
            return
        try:
            await self.in_thread(self._dataset.commit, batch)
            await self._beat(part_made=await self._make_parts())
        except ReaderClosed as error:
            self._shutdown.request(Stop(StopReason.CONSUMER_GONE, str(error)))
        except OutputError as error:
            self._stop_for(error)
        if batch.durable:
            self.in_progress.difference_update(batch.keys)
        else:
            self._dataset.give_back(batch)
        self._done.set()

    def _stop_for(self, error: OutputError) -> None:
        # A file that another program has removed is missed by whatever comes first; the watch says what has happened.
        self._shutdown.request(Stop(StopReason.OUTPUT, str(self._dataset.cause_of(error))))

    async def _make_parts(self) -> bool:
        """Start making the parts that are due. Return True when an earlier batch of parts has been finished."""
        made = False
        if self._making and (self._making.done() or self._dataset.behind):
            making, self._making = self._making, None
            await making
            made = True
        if self._making is None and self._dataset.due:
            self._making = asyncio.get_running_loop().run_in_executor(self._parts_thread, self._dataset.publish)
            self._making.add_done_callback(lambda _: self._due.set())
        return made

    async def _make_all_parts(self) -> None:
        making, self._making = self._making, None
        if making:
            with suppress(OutputError):  # tried once more below
                await making
        await asyncio.get_running_loop().run_in_executor(self._parts_thread, self._dataset.publish)

    def _take_batch(self) -> Batch:
        now = replace(self._counters)
        for counter in fields(AttemptCounts):
            if more := getattr(now, counter.name) - getattr(self._counted, counter.name):
                self._dataset.count(counter.name, more)
        self._counted = now
        batch = self._dataset.take_batch()
        # The history alone is worth no commit, whose sync would wake a sleeping disk twice a second during a wait.
        if batch.entries or batch.counters or self._over:
            batch.history = self._heartbeat.telemetry.take_history()
        return batch

    async def _beat(self, *, part_made: bool) -> None:
        """Replace the manifest at each part and when it is due, and the failures as often as _FAILURES_SHARE allows."""
        if not part_made and not self._heartbeat.due:
            return
        now = time.monotonic()
        await self._heartbeat.write(None, self.in_thread)
        if now >= self._failures_due:
            await self.in_thread(self._dataset.write_failures)
            self._failures_due = now + _FAILURES_SHARE * (time.monotonic() - now)

    async def _check_disk(self) -> None:
        try:
            free = await self.in_thread(self._dataset.free_bytes)
        except OutputError as error:
            self._stop_for(error)
            return
        if free < self._least_free:
            self._shutdown.request(
                Stop(
                    StopReason.OUTPUT,
                    f"{free // 2**20} MiB are free at {self._dataset.location.disk}, and {self._least_free // 2**20} "
                    "MiB is needed: free some space, then run the same command again",
                )
            )
