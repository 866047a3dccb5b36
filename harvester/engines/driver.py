"""The driver of a cluster: it hands a list's calls to tasks in shards, and settles their answers in the one dataset.

Everything else of a run stays as it is: the list is read and counted, the ledger says which calls are needed, verdicts
are committed and published in parts, the manifest is kept fresh. Only the calls are made elsewhere. A driver that is
killed leaves its tasks' logs behind; the next run settles them first, so no answer is paid for twice.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from itertools import islice
from tempfile import TemporaryFile

import orjson

from harvester.config.options import RunOptions
from harvester.credentials.token_sources import TokenGiven
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import HELD, Record
from harvester.dataset.ledger import PINNED
from harvester.engines.answers import JOB, AnswerReader, FoundAnswer, links_name
from harvester.engines.shared_folder import SharedFolder, open_shared
from harvester.engines.tasks import FENCE_SECONDS, ShardCalls, TaskPlan, TaskResult, line_of
from harvester.errors import RunStopping
from harvester.events import RunObserver
from harvester.links.batch import shard_of
from harvester.progress import AttemptCounts
from harvester.rows.call import REFUSED_STATE, ROW_STATE, CallState
from harvester.rows.row import entry_of
from harvester.run.harvest import GRACE_SECONDS
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.threads import in_daemon
from harvester.worklist.calls import Call
from harvester.worklist.elsewhere import Bound, CallSource

Submit = Callable[[TaskPlan, Sequence[ShardCalls]], list[TaskResult]]
"""Runs `run_shard` for each shard in the cluster, and returns the results when all are over. Blocks."""
_ENDED = b"ended"
"""Stands in place of the job's name while tasks that are to end may still be running."""
_POLL_SECONDS = 1.0
_BATCH_ANSWERS = 1000
_UNTIL_MARGIN_SECONDS = 10.0
"""So much before --max-time the tasks stop, so that their last answers are published within it."""
_ASKED_FOR = frozenset({StopReason.SIGNAL, StopReason.MAX_TIME, StopReason.MAX_CALLS})
"""Reasons that say less of a run than any other that one of its tasks has."""
_NEW = Call(None, b"", None)  # type: ignore[arg-type]


class ClusterDriver:
    """Makes a run's calls in a cluster: the `cluster` of a job.

    place: where the shared folder is made, one for each dataset. submit: see Submit. shards: into how many the links
    are divided. options, token: the tasks', as in TaskPlan. most: the calls of this run, None for all. until: when to
    stop, seconds since 1970.
    """

    _folder: SharedFolder

    def __init__(
        self,
        place: str,
        submit: Submit,
        shards: int,
        options: RunOptions,
        token: TokenGiven,
        *,
        most: int | None = None,
        until: float | None = None,
    ) -> None:
        self._place, self._submit = place, submit
        self._shards, self._options, self._token = shards, options, token
        self._most = most
        self._until = None if until is None else until - _UNTIL_MARGIN_SECONDS
        self._job = f"{int(time.time()):x}-{secrets.token_hex(4)}"
        self._old: list[str] = []
        self._calls: ClusterCalls | None = None

    # --- before the list is read -----------------------------------------------------------------------------------

    async def adopt(self, dataset: Dataset, shutdown: ShutdownSignal, observer: RunObserver) -> None:
        """Settle the answers that tasks of earlier runs have paid for, and no driver has settled."""
        self._place = f"{self._place}/{dataset.run_id}"  # others may share their answers there, too
        self._folder = await in_daemon(partial(open_shared, self._place))
        earlier = await in_daemon(partial(self._folder.get, JOB))
        await in_daemon(partial(self._folder.put, JOB, self._job.encode()))
        reader = AnswerReader(self._folder)
        self._old = await in_daemon(self._folder.names)
        self._old.remove(JOB)
        if earlier and reader.names():
            observer.note("an earlier run left answers of its tasks; those are settled first")
            await shutdown.sleep_unless_stopping(2 * FENCE_SECONDS + GRACE_SECONDS)  # its tasks may still be running
        found, others = reader.new(), dict[bytes, Record]()
        while some := await in_daemon(lambda: [each.record for each in islice(found, _BATCH_ANSWERS)]):
            rows = {record.key: record for record in some if record.state == ROW_STATE}
            await _adopt(dataset, rows)
            # A refusal may be taken back, and a held row be followed by a larger one.
            others |= {record.key: record for record in some if record.state != ROW_STATE}
        await _adopt(dataset, others)
        _warn_of_damage(reader, observer)

    def begin(self, bound: Bound) -> "ClusterCalls":
        """Return what hands a run's calls to the tasks."""
        plan = TaskPlan(
            self._place, self._job, bound.dataset.query, bound.dataset.run_id, self._options, self._token, self._until
        )
        self._calls = ClusterCalls(bound, plan, self._folder, self._submit, self._shards, self._most)
        return self._calls

    async def clean(self) -> None:
        """Delete the logs and links of this job and of those before it: the dataset has all of their answers.

        Where tasks may still be running, theirs stay for the next run.
        """
        over = self._calls is None or self._calls.over

        def clean() -> None:
            for name in self._folder.names():
                if name in self._old or (over and self._job in name):
                    self._folder.delete(name)
            self._folder.put(JOB, b"" if over else _ENDED)

        await in_daemon(clean)


class ClusterCalls:
    """The calls of a run that tasks make; about 200 bytes each are kept.

    over: True while no task is running whose answers are not settled.
    """

    over = True

    def __init__(
        self, bound: Bound, plan: TaskPlan, folder: SharedFolder, submit: Submit, shards: int, most: int | None
    ) -> None:
        self._bound, self._plan, self._folder, self._submit = bound, plan, folder, submit
        self._most = most
        self._opened = ExitStack()
        self._files = [self._opened.enter_context(TemporaryFile()) for _ in range(shards)]  # noqa: SIM115 - it is one
        self._counts = [0] * shards
        self._pending: dict[bytes, Call] = {}
        self._open: dict[bytes, Record] = {}
        self._reader = AnswerReader(folder, plan.job)
        self._verdicts: dict[str, int] = {}

    async def settle(self, calls: list[Call], worklist: CallSource) -> list[Call]:
        """Take calls on: all of them."""
        worklist.count_pending(calls)
        for call in calls:
            shard = shard_of(call.link.bitlink, len(self._files)) - 1
            self._files[shard].write(line_of(call.link))
            self._counts[shard] += 1
            self._pending[call.key] = _NEW if call.previous is None else call._replace(link=_NEW.link)
        return []

    async def finish(self) -> None:
        """Have the calls made, and settle what comes until all tasks are over."""
        try:
            shards = await in_daemon(self._write_links)
        finally:
            self._opened.close()
        if not shards:
            return
        # From here on the dataset's query is the tasks', though it has no verdict yet.
        await self._bound.in_thread(self._bound.dataset.ledger.replace_facts, {PINNED: 1})
        await self._bound.leave()
        self.over = False
        submitted = asyncio.ensure_future(in_daemon(partial(self._submit, self._plan, shards)))
        ending = asyncio.create_task(self._end_tasks())
        try:
            while not submitted.done():
                await asyncio.wait({submitted}, timeout=_POLL_SECONDS)
                await self._settle_new()
            stop = self._stop_of(submitted)
            await self._settle_new()
            if submitted.exception() is None:
                await self._settle_rest()
                self.over = True
        finally:
            ending.cancel()
        _warn_of_damage(self._reader, self._bound.observer)
        if stop is None and self._pending:
            stop = Stop(StopReason.ENGINE, f"{len(self._pending):,} calls have no answer: their tasks were lost")
        if stop is not None:
            self._bound.shutdown.request(stop)
            raise RunStopping

    def _write_links(self) -> list[ShardCalls]:
        numbers = [number for number, count in enumerate(self._counts) if count]
        for number in numbers:
            self._files[number].seek(0)
            self._folder.put(links_name(self._plan.job, number), self._files[number].read())
        return _allotted([ShardCalls(number, self._counts[number]) for number in numbers], self._most)

    async def _end_tasks(self) -> None:
        """Have the tasks end once the run is asked to: they look at the job's name."""
        await self._bound.shutdown.wait()
        await in_daemon(partial(self._folder.put, JOB, _ENDED))

    async def _settle_new(self) -> None:
        found = self._reader.new()
        while some := await in_daemon(lambda: list(islice(found, _BATCH_ANSWERS))):
            for each in some:
                self._see(each)
            await self._bound.wait_for_disk()

    def _see(self, found: FoundAnswer) -> None:
        record, bound = found.record, self._bound
        if record.key not in self._pending:  # a second answer to a call that was being made when its task was killed
            return
        if record.state != ROW_STATE:  # a refusal may be taken back, and a held row be followed by a larger one
            self._open[record.key] = record
            return
        self._open.pop(record.key, None)
        self._verdicts[found.log] = self._verdicts.get(found.log, 0) + 1
        bound.counters.total += 1
        bound.dataset.record_attempts(bound.counters)
        self._settle(record)

    def _settle(self, record: Record) -> None:
        bound, call = self._bound, self._pending.pop(record.key)
        state = _record(bound.dataset, record, call.previous, call)
        if state is ROW_STATE:
            lacks = entry_of(record.key, orjson.loads(record.payload)).shortfall
            bound.progress.count_row(call, truncated=lacks.truncated, clipped=lacks.clipped)
        else:
            status = orjson.loads(record.payload)["status"]
            bound.progress.count_without_row(status, call, refused=state is REFUSED_STATE)
            bound.observer.failure(record.payload)
        bound.count_verdict(time.time())

    async def _settle_rest(self) -> None:
        """Settle the calls that have no row; what was held and not followed is the call's row."""
        for record in list(self._open.values()):
            self._settle(record)
            await self._bound.wait_for_disk()

    def _stop_of(self, submitted: "asyncio.Future[list[TaskResult]]") -> Stop | None:
        """Add up what the tasks have counted, and return why they did not make all calls; None if they did."""
        if (error := submitted.exception()) is not None:
            return Stop(StopReason.ENGINE, f"the cluster's job failed: {error}"[:1000])
        results, counters = submitted.result(), self._bound.counters
        for result in results:
            for counter in fields(AttemptCounts):
                more = result.attempts.get(counter.name, 0)
                if counter.name == "total":  # its answers are counted already
                    more = max(more - self._verdicts.get(result.log, 0), 0)
                setattr(counters, counter.name, getattr(counters, counter.name) + more)
        if errors := [f"{result.host}: {result.error}" for result in results if result.error]:
            return Stop(StopReason.ENGINE, "; ".join(sorted(set(errors))))
        stops = [Stop(StopReason(reason), message, until) for reason, message, until in _stops(results)]
        return min(stops, key=lambda stop: stop.reason in _ASKED_FOR, default=None)


def _stops(results: Iterable[TaskResult]) -> Iterable[tuple[str, str, str | None]]:
    return (result.stop for result in results if result.stop is not None)


def _record(dataset: Dataset, record: Record, previous: CallState | None, call: Call = _NEW) -> CallState:
    """Record an answer of a log in the dataset; a held row as a row."""
    if record.state not in (ROW_STATE, HELD):
        state = CallState(record.state)
        dataset.record(record.key, state, record.payload, previous)
        return state
    entry = entry_of(record.key, orjson.loads(record.payload))
    dataset.record(record.key, ROW_STATE, record.payload, previous, entry.shortfall, call.lacked, entry.clicks)
    return ROW_STATE


async def _adopt(dataset: Dataset, records: Mapping[bytes, Record]) -> None:
    """Settle answers that the ledger does not know, durably. A failure is no news of a call that is settled somehow."""
    known = await in_daemon(partial(dataset.ledger.known, list(records)))
    for key, record in records.items():
        has = known.get(key)
        if has is None or (has.state is not ROW_STATE and record.state in (ROW_STATE, HELD)):
            _record(dataset, record, has and has.state)
            dataset.count("total")  # nobody else knows of its attempt
    await in_daemon(partial(dataset.commit, dataset.take_batch()))


def _allotted(shards: list[ShardCalls], most: int | None) -> list[ShardCalls]:
    """Divide the calls that a run may make among shards, in proportion to the calls that each needs."""
    total = sum(shard.calls for shard in shards)
    if most is None or most >= total:
        return shards
    allotted, before, given = list[ShardCalls](), 0, 0
    for shard in shards:
        before += shard.calls
        share = most * before // total - given
        given += share
        if share:
            allotted.append(shard._replace(most=share))
    return allotted


def _warn_of_damage(reader: AnswerReader, observer: RunObserver) -> None:
    if reader.damaged:
        observer.warn(
            f"damaged lines in {', '.join(sorted(reader.damaged))}: their calls are made again, and no others"
        )
