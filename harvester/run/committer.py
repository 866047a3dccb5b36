"""What a harvest does beside the event loop: committing to a disk that may be slow, and making parts meanwhile."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from harvester.budget.budget import Budget
from harvester.dataset.dataset import Batch, Dataset
from harvester.errors import HarvesterError, InputBroken, OutputError, ReaderClosed, RunStopping
from harvester.progress import AttemptCounts, RunOutcome, RunProgress
from harvester.run.telemetry import Throughput, budget_report, harvest_report
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.threads import in_daemon

COMMIT_SECONDS = 0.5
COMMIT_VERDICTS = 1000
"""So many verdicts are committed at once, without waiting for COMMIT_SECONDS."""
MANIFEST_SECONDS = 60.0
LEAST_FREE_BYTES = 64 * 1024 * 1024
_FAILURES_SHARE = 100
"""Rewriting `_failures.ndjson` while the run goes on takes at most one part in this many of the time."""

P = ParamSpec("P")
T = TypeVar("T")
Metrics = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Shows a manifest's numbers somewhere else too; it neither fails nor takes long."""


class Committer:
    """Commits what the workers record, makes parts of it, and keeps the manifest fresh; an async context manager.

    in_hand: the keys of the calls between the list and the ledger. report: gives the manifest's part that the harvest
    knows; None stands for a run that goes on. counters: the run's attempts, which the ledger adds up over all runs.
    metrics: called with each manifest, also where there is no file of it.
    """

    def __init__(
        self,
        store: Dataset,
        shutdown: ShutdownSignal,
        report: Callable[[RunOutcome | None], dict[str, Any]],
        counters: AttemptCounts,
        *,
        commit_seconds: float = COMMIT_SECONDS,
        least_free_bytes: int = LEAST_FREE_BYTES,
        metrics: Metrics | None = None,
    ) -> None:
        self.in_hand: set[bytes] = set()
        self._store = store
        self._shutdown = shutdown
        self._report = report
        self._counters = counters
        self._counted = replace(counters)
        self._commit_seconds = commit_seconds
        self._least_free = least_free_bytes
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "harvester-disk")
        self._press = ThreadPoolExecutor(1, "harvester-parts")
        self._making: asyncio.Future[None] | None = None
        self._due = asyncio.Event()
        self._done = asyncio.Event()
        self._over = False
        self._manifest_due = 0.0
        self._failures_due = 0.0

    async def __aenter__(self) -> "Committer":
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._store.leave()  # or the thread would wait for a reader who waits for us
        try:
            await self._end()
        finally:
            if self._making:  # only when the run is given up for another reason, which is what is to be seen
                await asyncio.gather(self._making, return_exceptions=True)
            for thread in (self._thread, self._press):
                await in_daemon(thread.shutdown)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work on the store, in the thread that alone may do it, but for the making of parts."""
        assert not kwargs
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def hurry(self) -> None:
        """Commit now."""
        self._due.set()

    async def committed(self) -> None:
        """Return after the next commit."""
        self._done.clear()
        self._due.set()
        await self._done.wait()

    async def finish(self, outcome: RunOutcome) -> None:
        """Commit and publish everything, and write down how the run ended.

        Raises:
            OutputError: that was not possible. ReaderClosed: nobody reads any more.
        """
        await self._end()
        try:
            await self._publish_all(outcome)
        except ReaderClosed:
            raise
        except OutputError as error:
            spoiled = replace(outcome, complete=False, stop=Stop(StopReason.OUTPUT, str(error)))
            with contextlib.suppress(OutputError):  # or it would say for ever that the run goes on
                await self._write_manifest(spoiled)
            raise
        await self._write_manifest(outcome)
        if outcome.complete:
            await self.in_thread(self._store.declare_success)

    async def _publish_all(self, outcome: RunOutcome) -> None:
        self._store.end_part()
        batch = self._take_batch()
        await self.in_thread(self._store.commit, batch)  # first: an object store may be out
        if not outcome.complete:
            await self.in_thread(self._store.take_success_back)
        await self._make_all_parts()
        await self.in_thread(self._store.write_failures)

    async def _end(self) -> None:
        self._over = True
        self._due.set()
        await self._task

    async def _keep(self) -> None:
        try:
            while not self._over:
                await self._commit()
                await self._check_disk()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._commit_seconds):
                        await self._due.wait()
                self._due.clear()
        except BaseException:
            # A bug: end the run, so that `_end` shows it, instead of asking on without a commit.
            self._shutdown.request(Stop(StopReason.OUTPUT, "committing failed"))
            raise

    async def _commit(self) -> None:
        try:
            batch = self._take_batch()
        except OutputError as error:  # no new journal can be begun
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
            self._done.set()
            return
        try:
            await self.in_thread(self._store.commit, batch)
            await self._tell(part_made=await self._make_parts())
        except ReaderClosed as error:
            self._shutdown.request(Stop(StopReason.CONSUMER_GONE, str(error)))
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
        if batch.durable:
            self.in_hand.difference_update(batch.keys)
        else:
            self._store.give_back(batch)
        self._done.set()

    async def _make_parts(self) -> bool:
        """Begin to make the parts that are due; True when some were made that were begun before."""
        made = False
        if self._making and (self._making.done() or self._store.behind):
            making, self._making = self._making, None
            await making
            made = True
        if self._making is None and self._store.due:
            self._making = asyncio.get_running_loop().run_in_executor(self._press, self._store.publish)
            self._making.add_done_callback(lambda _: self._due.set())
        return made

    async def _make_all_parts(self) -> None:
        making, self._making = self._making, None
        if making:
            with contextlib.suppress(OutputError):  # it is tried once more
                await making
        await asyncio.get_running_loop().run_in_executor(self._press, self._store.publish)

    def _take_batch(self) -> Batch:
        now = replace(self._counters)
        for counter in fields(AttemptCounts):
            if more := getattr(now, counter.name) - getattr(self._counted, counter.name):
                self._store.count(counter.name, more)
        self._counted = now
        return self._store.take_batch()

    async def _tell(self, *, part_made: bool) -> None:
        """Replace the manifest at each part and each minute, and the failures as often as they are cheap."""
        now = time.monotonic()
        if not part_made and now < self._manifest_due:
            return
        self._manifest_due = now + MANIFEST_SECONDS
        await self._write_manifest(None)
        if now >= self._failures_due:
            await self.in_thread(self._store.write_failures)
            self._failures_due = now + _FAILURES_SHARE * (time.monotonic() - now)

    async def _write_manifest(self, outcome: RunOutcome | None) -> None:
        manifest = await self.in_thread(self._store.write_manifest, self._report(outcome))
        if self._metrics is not None:
            await self._metrics(manifest)

    async def _check_disk(self) -> None:
        try:
            free = await self.in_thread(self._store.free_bytes)
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
            return
        if free < self._least_free:
            self._shutdown.request(
                Stop(
                    StopReason.OUTPUT,
                    f"{free // 2**20} MiB are free at {self._store.place.disk}, and {self._least_free // 2**20} are "
                    "needed: make room, then run the same command again",
                )
            )


@asynccontextmanager
async def announced(
    store: Dataset,
    budget: Budget,
    lists: Sequence[str],
    shutdown: ShutdownSignal,
    metrics: Metrics | None,
    seconds: float = MANIFEST_SECONDS,
) -> AsyncIterator[Throughput]:
    """Say in the manifest that the run goes on, every so many seconds too; and how it ended, if no harvest comes of it.

    lists: as they were named. Gives the pulse for the harvest.

    Raises:
        OutputError: the manifest cannot be written.
    """
    pulse = Throughput()
    pulse.lists = lists

    async def write(outcome: RunOutcome | None) -> Mapping[str, Any]:
        report = harvest_report(RunProgress(), outcome, pulse.report(store.invocation), budget_report(budget, None))
        return await _shown(await in_daemon(partial(store.write_manifest, report)), metrics)

    manifest, over = await write(None), asyncio.Event()
    renewing = asyncio.create_task(_renew(store, manifest, metrics, seconds, over))
    stop: Stop | None = None
    try:
        yield pulse
    except RunStopping:
        stop = shutdown.stop
        raise
    except HarvesterError as error:
        stop = Stop(_reason_of(error), str(error))
        raise
    finally:
        over.set()
        await renewing
        if stop is not None:
            store.abandon()
            with suppress(OutputError):  # what ended the run is to be told, and not this
                await in_daemon(store.take_success_back)
                await write(RunOutcome(complete=False, stop=stop, status=RunProgress()))


async def _renew(
    store: Dataset, manifest: Mapping[str, Any], metrics: Metrics | None, seconds: float, over: asyncio.Event
) -> None:
    """Write the manifest anew until it is over. The ledger is not asked meanwhile: the list is compared with it."""
    while not over.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await over.wait()
                return
        with suppress(OutputError):  # the harvest will find out
            await _shown(await in_daemon(partial(store.renew_manifest, manifest)), metrics)


async def _shown(manifest: Mapping[str, Any], metrics: Metrics | None) -> Mapping[str, Any]:
    if metrics is not None:
        await metrics(manifest)
    return manifest


def _reason_of(error: HarvesterError) -> StopReason:
    if isinstance(error, InputBroken):
        return StopReason.INPUT
    return StopReason.OUTPUT if isinstance(error, OutputError) else StopReason.NOT_BEGUN
