"""The runs of one command: facets side by side, periods one after another, under one budget and one set of connections.

Each run is one of `run.job.run`, over a dataset of its own. They share what is the process's: the connections, so that
a facet whose window is full leaves them to the others; the check of the window; the calls of --max-calls; the list, of
which what can be read only once is copied first; and the reasons to stop that concern everybody.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from harvester.errors import OutputError, RunStopping, UsageError
from harvester.events import RunObserver, RunOutcome
from harvester.links.files import Source, spool
from harvester.progress import RunProgress
from harvester.run.assembly import Job, shared_pool
from harvester.series.combined import CombinedObserver, OneOfSeveral, combined
from harvester.shutdown import ShutdownSignal, Stop, StopReason, time_limited
from harvester.storage.scratch import scratch_folder
from harvester.threads import in_daemon

FOR_EVERYBODY = frozenset(
    {
        StopReason.SIGNAL,
        StopReason.MAX_TIME,
        StopReason.OUTAGE,
        StopReason.MONTH_SPENT,
        StopReason.TOKEN_REFUSED,
        StopReason.CONNECTION_REFUSED,
        StopReason.INPUT,
        StopReason.WINDOW_MISMATCH,
    }
)
"""What stops all runs as soon as one meets it. Any other reason stops its facet alone, also in later periods."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended. error: what it raised, None if it has an outcome. begun: False if it was stopped before."""

    job: Job
    outcome: RunOutcome
    error: Exception | None = None
    begun: bool = True

    @property
    def stop(self) -> Stop | None:
        """Why it ended before its list did; what it raised counts as a reason."""
        return self.outcome.stop or (None if self.error is None else Stop(StopReason.NOT_BEGUN, str(self.error)))


RunsJob = Callable[[Job, ShutdownSignal, RunObserver], Awaitable[RunOutcome]]
"""`run.job.run`, or what stands for it."""


async def run_all(
    rounds: Sequence[Sequence[Job]], run: RunsJob, shutdown: ShutdownSignal, observer: RunObserver
) -> list[Ended]:
    """Run jobs: those of a round side by side, the rounds one after another; return how each that was begun ended.

    If the command was stopped between two rounds, the first run that was not begun is returned too.

    run: runs one of them.

    Raises:
        ConnectionsBusy: other processes use all of this machine's connections. OutputError: no folder for copies.
        InputBroken: the links of an iterable, which are all read first, end with an error.
    """
    first, ended, left_out = rounds[0][0], list[Ended](), set[str]()
    together = CombinedObserver(observer, sum(map(len, rounds)))
    feeds = [] if first.feed is None else await first.feed.copies(sum(map(len, rounds)))
    async with _opened(first, shutdown, observer) as shared:
        for round_ in rounds:
            present = [
                replace(
                    job,
                    sources=shared.sources,
                    feed=feeds.pop() if feeds else None,
                    pool=shared.pool,
                    max_time_seconds=None,
                )
                for job in round_
                if job.query.facet not in left_out
            ]
            if shutdown.stop is not None and not any(each.stop for each in ended):
                stopped_before = RunOutcome(complete=False, stop=shutdown.stop, status=RunProgress())
                ended.append(Ended(round_[0], stopped_before, begun=False))
            if shutdown.stop is not None or not present:
                break
            ended += await _side_by_side(present, run, shutdown, together)
            stopped = [each for each in ended if each.stop]
            left_out = {each.job.query.facet for each in stopped}
            if any(each.stop and each.stop.reason is StopReason.MAX_CALLS for each in stopped):
                break
    return ended


@asynccontextmanager
async def _opened(first: Job, shutdown: ShutdownSignal, observer: RunObserver) -> AsyncIterator[Job]:
    """Open what the runs share, and yield a job that has it."""
    with ExitStack() as stack, time_limited(first.max_time_seconds, shutdown):
        folder = stack.enter_context(scratch_folder(None))
        sources = first.sources
        with suppress(RunStopping):
            sources = [await _reread(source, folder, number, shutdown) for number, source in enumerate(sources)]
        async with shared_pool(first, folder, observer, shutdown) as pool:
            yield replace(first, sources=sources, pool=pool)


async def _reread(source: Source, folder: str, number: int, shutdown: ShutdownSignal) -> Source:
    """Return a source that each run can read: what can be read only once is copied."""
    if source.rereadable:
        return source
    path = os.path.join(folder, f"list-{number}")
    try:
        return await shutdown.unless_stopping(in_daemon(partial(spool, source, path)))
    except OSError as error:
        raise OutputError(
            f"{path}: {error.strerror}; the list is copied there, because several runs read it"
        ) from error


async def _side_by_side(
    present: Sequence[Job], run: RunsJob, shutdown: ShutdownSignal, together: CombinedObserver
) -> list[Ended]:
    signals = [ShutdownSignal() for _ in present]
    with _linked(shutdown, signals):
        runs = (_ended(run, job, own, shutdown, together.of_next()) for job, own in zip(present, signals, strict=True))
        ended = await asyncio.gather(*runs)
    for each in ended:
        if each.stop is not None and each.stop.reason in FOR_EVERYBODY:
            shutdown.request(each.stop)
    return ended


async def _ended(
    run: RunsJob, job: Job, shutdown: ShutdownSignal, command: ShutdownSignal, observer: OneOfSeveral
) -> Ended:
    try:
        outcome = await run(job, shutdown, observer)
    except UsageError as error:  # what was asked for is wrong, and so it is for the others
        command.request(Stop(StopReason.NOT_BEGUN, str(error)))
        return Ended(job, RunOutcome(complete=False, stop=None, status=observer.status), error)
    except Exception as error:  # also a bug, which the command reports: it is no reason to end the other runs
        return Ended(job, RunOutcome(complete=False, stop=None, status=observer.status), error)
    observer.status = outcome.status
    return Ended(job, outcome)


@contextmanager
def _linked(shutdown: ShutdownSignal, signals: Sequence[ShutdownSignal]) -> Iterator[None]:
    """Pass what stops the command on to its runs, and what one of them meets for everybody on to the command."""

    async def downwards() -> None:
        await shutdown.wait()
        for each in signals:
            each.request(_reason(shutdown))

    async def upwards(own: ShutdownSignal) -> None:
        await own.wait()
        if _reason(own).reason in FOR_EVERYBODY:
            shutdown.request(_reason(own))

    tasks = [asyncio.create_task(downwards()), *(asyncio.create_task(upwards(own)) for own in signals)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _reason(shutdown: ShutdownSignal) -> Stop:
    assert shutdown.stop is not None
    return shutdown.stop


def progress_of(ended: Sequence[Ended], not_begun: int) -> RunProgress:
    """Return the progress of runs that have ended, as one. not_begun: how many were not begun at all."""
    return combined([each.outcome.status for each in ended], not_begun)
