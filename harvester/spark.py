"""harvester on a Spark cluster: the links of a DataFrame, fetched by tasks, become the dataset of a run.

The driver is a run like any other; only the calls are made by tasks (`engines`). Nothing here is lazy: Spark evaluates
a transformation again for each action, and again for a lost partition, and each time would pay for its calls.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Unpack

import orjson

from harvester.config.keywords import AnyPath, Duration, MetricsKeywords, path_text, run_options
from harvester.config.options import RunOptions
from harvester.credentials.token_sources import TokenGiven, token_reader
from harvester.engines.driver import ClusterDriver
from harvester.engines.tasks import ShardCalls, TaskPlan, TaskResult, run_shard
from harvester.errors import UsageError
from harvester.extras import import_pyarrow, import_pyspark
from harvester.links.feed import IterableFeed
from harvester.reporting.logs import LoggingObserver
from harvester.run import job as jobs
from harvester.run.assembly import build_job
from harvester.series.expansion import rounds_of
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage.folders import resolve
from harvester.storage.location import MANIFEST, STDOUT

MACHINE = "machine"
"""The budget of executors that all run on one machine: its file."""
_DEFAULT_SHARDS = 8
_SHARED = "spark"
_SPECULATION = "spark.speculation"


class SparkKeywords(MetricsKeywords, total=False):
    """Options for the links of a DataFrame: also the output, when to stop, and which calls are made again."""

    work_dir: AnyPath | None
    max_failures: str | int | None
    max_invalid: str | int | None
    max_calls: int | None
    strict: bool
    part_rows: int
    part_bytes: str | int
    part_age: Duration
    format: str | None
    shape: str | None
    retry_failed: bool
    retry_refused: bool
    allow_empty: bool
    metrics_file: AnyPath | None


def harvest_dataframe(
    df: Any,
    out: AnyPath,
    *,
    column: str,
    token: TokenGiven = None,
    carry: Sequence[str] = (),
    shards: int | None = None,
    shared: AnyPath | None = None,
    **options: Unpack[SparkKeywords],
) -> dict[str, Any]:
    """Harvest the links of a DataFrame's column into a dataset, and return its `_manifest.json`. Blocks.

    Links that the output has already cost nothing, whatever DataFrame names them; the same call again resumes. A spent
    month, an outage and a deadline return, too: `stopped` in the manifest says why.

    out: as for `harvester.harvest`. token: a text or a callable, both of which the tasks get; by default each executor
    uses the sources of the command: its own variables and files. carry: columns whose values the rows carry. shards:
    the most tasks that make calls at the same time. shared: an absolute path that all machines have mounted, or an
    object store's URL, for what the tasks have paid for; by default within `out`.

    The rest are options of `harvest`. budget: `redis://HOST:PORT/N`, which all executors share, or `machine` if all of
    them run on one machine, as is the default with a local master.

    Raises:
        UsageError: no request was sent. DatasetBusy: another process writes this output. OutputError: the output, or
        the shared folder, cannot be written.
    """
    import_pyspark("harvester.spark needs pyspark")
    target, session = path_text("out", out), df.sparkSession
    if target == STDOUT:
        raise UsageError("out: must be a folder, a file or an object store")
    _check(session, df, [column, *carry])
    given = {**options, "budget": _budget_of(session, options.get("budget"))}
    chosen = _only_one(run_options(given, SparkKeywords, target))
    location = resolve(target, chosen.output.work_dir)
    place = path_text("shared", shared) if shared is not None else _within(target, location.private)
    driver = partial(
        ClusterDriver,
        place,
        partial(_submit, session),
        shards or _parallelism(session),
        chosen,
        token,
    )
    _in_own_loop(partial(_harvest, IterableFeed(_links_of(df, column, carry)), chosen, token, driver))
    found: dict[str, Any] = orjson.loads(Path(location.public, MANIFEST).read_bytes())
    return found


async def _harvest(
    feed: IterableFeed,
    options: RunOptions,
    token: TokenGiven,
    driver: Callable[..., ClusterDriver],
    shutdown: ShutdownSignal,
) -> None:
    observer = LoggingObserver()
    job = build_job(feed, options, observer.warn, token_reader(token, options))
    until = None if job.max_time_seconds is None else time.time() + job.max_time_seconds
    cluster = driver(most=job.max_calls, until=until)
    outcome = await jobs.run(replace(job, cluster=cluster), shutdown, observer)
    if outcome.stop is not None and outcome.stop.reason is StopReason.INPUT and feed.error is not None:
        raise feed.error


def _check(session: Any, df: Any, columns: Iterable[str]) -> None:
    """Raise UsageError for what no job can be made of, before anything is read."""
    if missing := [name for name in columns if name not in df.columns]:
        raise UsageError(f"column: the DataFrame has none named {missing[0]}; it has {', '.join(df.columns)}")
    if str(session.conf.get(_SPECULATION, "false")).lower() == "true":
        raise UsageError(f"{_SPECULATION} is on: Spark would make calls twice. Start the session with it set to false")


def _budget_of(session: Any, budget: str | None) -> str | None:
    """Return the Redis of the budget; None for the budget of one machine.

    Raises:
        UsageError: none is named, and executors on several machines would each keep one of their own.
    """
    if budget == MACHINE or (budget is None and str(session.conf.get("spark.master", "")).startswith("local")):
        return None
    if budget is None:
        raise UsageError(
            "budget: is needed on a cluster, whose machines share the account's limits: redis://HOST:PORT/N, or "
            f"{MACHINE} if all executors run on this machine"
        )
    return budget


def _only_one(options: RunOptions) -> RunOptions:
    """Return the options of the one dataset that they describe. Raises UsageError where they are of several."""
    rounds = rounds_of(options)
    if len(rounds) > 1 or len(rounds[0]) > 1:
        raise UsageError("facet, since: name one facet and one period, and call this once for each")
    return rounds[0][0]


def _parallelism(session: Any) -> int:
    try:
        return max(int(session.sparkContext.defaultParallelism), 1)
    except Exception:  # a client of Spark Connect has no context
        return _DEFAULT_SHARDS


def _within(out: str, private: str) -> str:
    """Return the shared folder of an output: with the state of one in a file system, below the prefix of a store."""
    return f"{out.rstrip('/')}/_{_SHARED}" if "://" in out else str(Path(private, _SHARED).absolute())


def _links_of(df: Any, column: str, carry: Sequence[str]) -> Iterator[Any]:
    """Yield the distinct links of a column, with what their rows carry; null is a blank line."""
    for row in df.select(column, *carry).distinct().toLocalIterator(prefetchPartitions=True):
        link = "" if row[0] is None else row[0]
        yield (link, dict(zip(carry, row[1:], strict=True))) if carry else link


def _submit(session: Any, plan: TaskPlan, shards: Sequence[ShardCalls]) -> list[TaskResult]:
    """Run all shards, each in a task, by one action."""
    tasks = session.range(0, len(shards), 1, len(shards)).mapInArrow(partial(_run, plan, shards), "result string")
    return [TaskResult.parse(row.result) for row in tasks.collect()]


def _run(plan: TaskPlan, shards: Sequence[ShardCalls], batches: Iterable[Any]) -> Iterator[Any]:
    """Run a task's shards on an executor. batches: record batches with their positions."""
    arrow, pyspark = import_pyarrow("harvester.spark needs pyarrow", extra="spark"), import_pyspark("a task")
    attempt = pyspark.TaskContext.get().taskAttemptId()
    for batch in batches:
        for position in batch.column(0).to_pylist():
            result = run_shard(plan, shards[position], attempt, jobs.run)
            yield arrow.RecordBatch.from_pydict({"result": [result.to_json()]})


def _in_own_loop(work: Callable[[ShutdownSignal], Any]) -> None:
    """Run work in an event loop in a thread of its own, as a notebook's own loop is running; an interrupt stops it."""
    started: list[tuple[asyncio.AbstractEventLoop, ShutdownSignal]] = []
    failed: list[BaseException] = []

    async def begin() -> None:
        started.append((asyncio.get_running_loop(), shutdown := ShutdownSignal()))
        await work(shutdown)

    def run() -> None:
        try:
            asyncio.run(begin())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run, name="harvester-spark")
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt:
            for loop, shutdown in started:
                loop.call_soon_threadsafe(shutdown.request, Stop(StopReason.SIGNAL, "the call was interrupted"))
    if failed:
        raise failed[0]
