"""harvester on a Spark cluster: the links of a DataFrame, fetched by tasks, become the dataset of a run.

The driver is a run like any other; only the calls are made by tasks (`engines`). Nothing here is lazy: Spark evaluates
a transformation again for each action, and again for a lost partition, and each time would pay for its calls.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Unpack

import orjson

from harvester.config.keywords import AnyPath, SparkKeywords, path_text, run_options
from harvester.config.options import RunOptions
from harvester.credentials.token_sources import TokenGiven, token_reader
from harvester.engines.driver import ClusterDriver
from harvester.engines.tasks import ShardCalls, TaskPlan, TaskResult, run_shard
from harvester.errors import UsageError
from harvester.events import RunObserver, RunOutcome
from harvester.extras import import_pyarrow, import_pyspark
from harvester.links.feed import IterableFeed
from harvester.reporting.logs import LoggingObserver
from harvester.run import job as jobs
from harvester.run.assembly import Job, build_job
from harvester.series.expansion import rounds_of
from harvester.sharing.home import MACHINE
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage.folders import resolve
from harvester.storage.location import MANIFEST, STDOUT, is_url

_DEFAULT_SHARDS = 8
_SHARED = "spark"
_SPECULATION = "spark.speculation"


def harvest_dataframe(
    df: Any,
    out: AnyPath,
    *,
    column: str,
    token: TokenGiven = None,
    carry: Sequence[str] = (),
    **options: Unpack[SparkKeywords],
) -> dict[str, Any]:
    """Harvest the links of a DataFrame's column into a dataset, and return its `_manifest.json`. Blocks.

    Links that the output has already cost nothing, whatever DataFrame names them; the same call again resumes. A spent
    month, an outage and a deadline return, too: `stopped` in the manifest says why.

    out: as for `harvester.harvest`. token: a text or a callable, both of which the tasks get; by default each executor
    uses the sources of the command: its own variables and files. carry: columns whose values the rows carry. The rest
    are options of `harvester run --engine spark`. budget: `redis://HOST:PORT/N`, which all executors share; or
    `machine` if all of them run on one machine, as is the default with a local master.

    Raises:
        UsageError: no request was sent. DatasetBusy: another process writes this output. OutputError: the output, or
        the shared folder, cannot be written.
    """
    import_pyspark("harvester.spark needs pyspark")
    target = path_text("out", out)
    if missing := [name for name in (column, *carry) if name not in df.columns]:
        raise UsageError(f"column: the DataFrame has none named {missing[0]}; it has {', '.join(df.columns)}")
    chosen = run_options(options, SparkKeywords, target)
    rounds = rounds_of(chosen)
    if len(rounds) > 1 or len(rounds[0]) > 1:
        raise UsageError("facet: name one, and call this once for each")
    feed, observer = IterableFeed(_links_of(df, column, carry)), LoggingObserver()
    job = build_job(feed, chosen, observer.warn, token_reader(token, chosen))
    outcome = _in_own_loop(partial(jobs.run, on_spark(job, chosen, token, df.sparkSession)), observer)
    if outcome.stop is not None and outcome.stop.reason is StopReason.INPUT and feed.error is not None:
        raise feed.error
    path = Path(resolve(job.out, job.work_dir).public, MANIFEST)
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found


def on_spark(job: Job, options: RunOptions, token: TokenGiven = None, session: Any = None) -> Job:
    """Return a job whose calls the tasks of a Spark cluster make.

    options: the job's. token: as for `harvest_dataframe`. session: None for the process's own, such as spark-submit's.

    Raises:
        UsageError: Spark is not installed or set so that calls would be made twice; or the job does what tasks cannot.
    """
    pyspark = import_pyspark("--engine spark needs pyspark")
    session = session or pyspark.sql.SparkSession.builder.appName("harvester").getOrCreate()
    if job.out == STDOUT:
        raise UsageError(": a cluster needs a folder, a file or an object store", option="--out")
    if job.skip_idle or job.refresh is not None:
        raise UsageError("spark: does not go together with --skip-idle or --refresh", option="--engine")
    if str(session.conf.get(_SPECULATION, "false")).lower() == "true":
        raise UsageError(f"{_SPECULATION} is on: Spark would make calls twice. Start the session with it set to false")
    _check_budget(session, options.limits.budget)
    place, tasks = options.cluster.shared_dir or _within(job), options.cluster.tasks or _parallelism(session)
    until = None if job.max_time_seconds is None else time.time() + job.max_time_seconds
    submit = partial(_submit, session)
    return replace(job, cluster=ClusterDriver(place, submit, tasks, options, token, most=job.max_calls, until=until))


def _check_budget(session: Any, budget: str | None) -> None:
    """Raise UsageError if executors on several machines would each keep a budget of their own."""
    if budget is None and not str(session.conf.get("spark.master", "")).startswith("local"):
        raise UsageError(
            ": is needed on a cluster, whose machines share the account's limits: redis://HOST:PORT/N, or "
            f"{MACHINE} if all executors run on this machine",
            option="--budget",
        )


def _parallelism(session: Any) -> int:
    try:
        return max(int(session.sparkContext.defaultParallelism), 1)
    except Exception:  # a client of Spark Connect has no context
        return _DEFAULT_SHARDS


def _within(job: Job) -> str:
    """Return the shared folder of an output: with the state of one in a file system, below the prefix of a store."""
    if is_url(job.out):
        return f"{job.out.rstrip('/')}/_{_SHARED}"
    return str(Path(resolve(job.out, job.work_dir).private, _SHARED).absolute())


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


def _in_own_loop(
    work: Callable[[ShutdownSignal, RunObserver], Coroutine[Any, Any, RunOutcome]], observer: RunObserver
) -> RunOutcome:
    """Run work in an event loop in a thread of its own, as a notebook's own loop is running; an interrupt stops it."""
    started: list[tuple[asyncio.AbstractEventLoop, ShutdownSignal]] = []
    done: Future[RunOutcome] = Future()

    async def begin() -> RunOutcome:
        started.append((asyncio.get_running_loop(), shutdown := ShutdownSignal()))
        return await work(shutdown, observer)

    def run() -> None:
        try:
            done.set_result(asyncio.run(begin()))
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, name="harvester-spark").start()
    while True:
        try:
            return done.result()
        except KeyboardInterrupt:
            for loop, shutdown in started:
                loop.call_soon_threadsafe(shutdown.request, Stop(StopReason.SIGNAL, "the call was interrupted"))
