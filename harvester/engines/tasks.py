"""One task of a cluster: a run of its own over the links of a shard, whose journal is copied into the shared folder.

The task keeps nothing: its dataset is a temporary one. What it has paid for is in its log before anything else is
awaited, so another attempt at the shard, on whatever machine, goes on where this one was killed.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

import orjson

from harvester.bitly.bitlinks import parse
from harvester.bitly.query import Query
from harvester.config.options import ListOptions, OutputOptions, RunOptions
from harvester.credentials.token_sources import TokenGiven, token_reader
from harvester.dataset.part_publisher import UNCOMMITTED_LIMIT
from harvester.engines.answers import JOB, answered_keys, links_name, log_name
from harvester.engines.shared_folder import Log, SharedFolder, open_shared
from harvester.errors import ConnectionsBusy, HarvesterError, RunStopping
from harvester.events import RunObserver, RunOutcome
from harvester.links.batch import BATCH_LINES, Batch, Link
from harvester.links.feed import IterableFeed
from harvester.reporting.logs import LoggingObserver
from harvester.rows.row import RowBuilder
from harvester.run.assembly import Job, build_job
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage.location import STDOUT
from harvester.threads import in_daemon
from harvester.worklist.elsewhere import JournalCopy

RunJob = Callable[[Job, ShutdownSignal, RunObserver], Awaitable[RunOutcome]]
FENCE_SECONDS = 2.0
"""Interval at which a task looks whether its job is still the one that is going on."""
_BUSY_SECONDS = 5.0


class ShardCalls(NamedTuple):
    """A part of a job's links. calls: that it needs. most: the calls that it may make; None for all."""

    number: int
    calls: int
    most: int | None = None


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What all tasks of a job have in common; it can be pickled.

    place: of the shared folder. query, run_id: the dataset's. options: of its run; those of limits and access are the
    tasks' too. until: when to stop, in seconds since 1970; None for never.
    """

    place: str
    job: str
    query: Query
    run_id: str
    options: RunOptions
    token: TokenGiven
    until: float | None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How an attempt at a shard ended. log: its log. attempts: the counts of AttemptCounts. stop: why it ended early:
    StopReason, message, and when to run again. error: what kept it from beginning.
    """

    log: str
    host: str
    attempts: Mapping[str, int]
    stop: tuple[str, str, str | None] | None = None
    error: str | None = None

    def to_json(self) -> str:
        """Return the result as JSON, which every engine can hand back."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def parse(cls, text: str) -> "TaskResult":
        """Return a result from its JSON."""
        found = orjson.loads(text)
        return cls(**{**found, "stop": tuple(found["stop"]) if found["stop"] else None})


def run_shard(plan: TaskPlan, shard: ShardCalls, attempt: int, run: RunJob) -> TaskResult:
    """Make a shard's calls, except those that an earlier attempt has paid for. Blocks until it is done or stopped.

    attempt: its number, which no other attempt of the job has. run: `run.job.run`.
    """
    return asyncio.run(_run(plan, shard, attempt, run))


async def _run(plan: TaskPlan, shard: ShardCalls, attempt: int, run: RunJob) -> TaskResult:
    name, shutdown, observer = log_name(plan.job, shard.number, attempt), ShutdownSignal(), LoggingObserver()
    result = partial(TaskResult, name, socket.gethostname())
    try:
        folder = await in_daemon(partial(open_shared, plan.place))
        paid = await in_daemon(partial(answered_keys, folder, plan.job, shard.number))
        feed = await in_daemon(partial(ShardFeed, folder, links_name(plan.job, shard.number), plan.query, paid))
        watching = asyncio.create_task(_watch(folder, plan.job, shutdown))
        try:
            with closing(folder.log(name)) as log:
                job = await in_daemon(partial(_job_of, plan, shard, feed, log, observer, len(paid)))
                outcome = await _when_free(job, shutdown, observer, run)
        finally:
            watching.cancel()
    except RunStopping:  # while it waited for connections
        return result({}, _in_words(shutdown.stop))
    except HarvesterError as error:  # another attempt would meet it, too
        return result({}, error=str(error))
    return result(asdict(outcome.status.attempts), _in_words(outcome.stop))


def _in_words(stop: Stop | None) -> tuple[str, str, str | None] | None:
    return (stop.reason.value, stop.message, stop.until) if stop else None


def _job_of(
    plan: TaskPlan, shard: ShardCalls, feed: "ShardFeed", log: Log, observer: LoggingObserver, paid: int
) -> Job:
    # The driver has read the list already, however it is written or wherever it comes from.
    options = replace(plan.options, output=OutputOptions(out=STDOUT), list=ListOptions())
    read_token = token_reader(plan.token, options)
    job = build_job(feed, options, observer.warn, read_token, _NoReader())
    left = None if plan.until is None else max(plan.until - time.time(), 0.0)
    most = None if shard.most is None else max(shard.most - paid, 0)
    copy = JournalCopy(plan.run_id, log.append)
    return replace(job, query=plan.query, pin_reference=False, max_calls=most, max_time_seconds=left, copy=copy)


async def _when_free(job: Job, shutdown: ShutdownSignal, observer: LoggingObserver, run: RunJob) -> RunOutcome:
    """Run a job; where other processes use all connections of the machine, wait for them."""
    until = None if job.max_time_seconds is None else time.monotonic() + job.max_time_seconds
    while True:
        try:
            return await run(job, shutdown, observer)
        except ConnectionsBusy:
            if until is not None and time.monotonic() > until:
                raise
            await shutdown.sleep_unless_stopping(_BUSY_SECONDS)


async def _watch(folder: SharedFolder, job: str, shutdown: ShutdownSignal) -> None:
    """Stop a task whose job is over: its driver has stopped, or another run of the dataset has begun."""
    while True:
        await asyncio.sleep(FENCE_SECONDS)
        if await in_daemon(partial(folder.get, JOB)) != job.encode():
            shutdown.request(Stop(StopReason.SIGNAL, "the driver has ended this job"))
            return


class ShardFeed(IterableFeed):
    """The links of a shard, without those whose calls are paid for."""

    def __init__(self, folder: SharedFolder, name: str, query: Query, paid: set[bytes]) -> None:
        super().__init__(())
        rows = RowBuilder(query, "")
        lines = folder.get(name).splitlines()
        links = (link_of(line) for line in lines)
        self._links_left = iter([link for link in links if rows.key(link.bitlink) not in paid] if paid else links)

    async def next(self) -> Batch | None:
        """Return the next batch of links; None at the end."""
        links = [link for _, link in zip(range(BATCH_LINES), self._links_left, strict=False)]
        return Batch(last=links[-1].line, lines=len(links), links=links) if links else None


def line_of(link: Link) -> bytes:
    """Return a link as a line of a shard's file."""
    return orjson.dumps([link.bitlink, link.file, link.line, link.carried]) + b"\n"


def link_of(line: bytes) -> Link:
    """Return the link of a line of a shard's file."""
    bitlink, file, number, carried = orjson.loads(line)
    return Link(parse(bitlink), file, number, bitlink, carried)


class _NoReader:
    """Takes a run's rows, which its log has already."""

    uncommitted_limit = UNCOMMITTED_LIMIT
    awaits_reader = False

    def check(self) -> None:
        pass

    def write(self, line: bytes) -> None:
        pass

    def shorten_waits(self) -> None:
        pass

    leave = shorten_waits
