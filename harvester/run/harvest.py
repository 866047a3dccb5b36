"""The harvest: a feeder fills the worklist, workers make its calls, a committer makes the verdicts durable.

Memory is bounded at each stage: the worklist by its low-water mark, calls that wait for a retry by RETRY_ROOM,
verdicts that wait for the disk by the dataset's backlog, for which feeder and workers stop.
"""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harvester.bitly.verdicts import Answer, Failure, NoAnswer, Refused, Verdict, is_plain_no
from harvester.budget.budget import Budget
from harvester.client.client import Client
from harvester.client.held_verdicts import STREAK, Place
from harvester.client.limit_discovery import LimitDiscovery
from harvester.clock import iso_second
from harvester.dataset.dataset import Dataset
from harvester.errors import InputBroken, OutputError, RunStopping
from harvester.events import RunObserver, RunOutcome
from harvester.jsonlines import object_in, one_line
from harvester.links.batch import Feed
from harvester.rows.call import FAILED_STATE, REFUSED_STATE, ROW_STATE, WHOLE, CallState, Shortfall
from harvester.run.abort_rules import AbortRules, WindowGuard, nobody_answered, stop_for_invalid
from harvester.run.committer import COMMIT_SECONDS, COMMIT_VERDICTS, Committer, Heartbeat
from harvester.run.telemetry import PROGRESS_SECONDS
from harvester.shutdown import Allowance, FailureLimit, ShutdownSignal, Stop, StopReason
from harvester.worklist.calls import Call
from harvester.worklist.elsewhere import Elsewhere
from harvester.worklist.refresh import Refresh
from harvester.worklist.worklist import Worklist

RETRY_ROOM = 100
"""Calls that may wait for a retry in tasks of their own, while their workers go on."""
GRACE_SECONDS = 5.0
"""Time for calls in flight to be answered after the run was asked to stop."""
DISCOVERY_SECONDS = 10.0
"""Interval at which the budget is asked whether Bitly's limits should be fetched; it decides how often that pays."""


class CallsDropped(RuntimeError):
    """Calls of a list that was read to its end have no verdict, though nothing asked the run to stop: a bug."""


@dataclass(frozen=True, slots=True)
class HarvestOptions:
    """How to harvest. allowance: the calls that may be made. retry_*: make calls again that failed or were refused.

    to_make: calls that the list needs, None if it was not counted. refresh: the rules of --refresh. invalid_limit: None
    for half of the lines. allow_empty: a list without links is complete.
    """

    workers: int
    allowance: Allowance = field(default_factory=lambda: Allowance(None))
    to_make: int | None = None
    retry_failed: bool = False
    retry_refused: bool = False
    refresh: Refresh | None = None
    invalid_limit: FailureLimit | None = None
    allow_empty: bool = False
    commit_seconds: float = COMMIT_SECONDS
    report_seconds: float = PROGRESS_SECONDS
    learn_seconds: float = DISCOVERY_SECONDS


class Harvest:
    """One run over one list; call `run` once."""

    def __init__(
        self,
        dataset: Dataset,
        client: Client,
        budget: Budget,
        discovery: LimitDiscovery,
        shutdown: ShutdownSignal,
        rules: AbortRules,
        observer: RunObserver,
        options: HarvestOptions,
        heartbeat: Heartbeat,
    ) -> None:
        self._telemetry = heartbeat.telemetry
        self._telemetry.begin(client.sender, options.workers, to_make=options.to_make, max_calls=options.allowance.most)
        self.progress = self._telemetry.progress
        self._dataset, self._client = dataset, client
        self._budget, self._discovery, self._shutdown = budget, discovery, shutdown
        self._rules, self._observer, self._options = rules, observer, options
        counters, seconds = client.sender.counters, options.commit_seconds
        self._committer = Committer(dataset, shutdown, heartbeat, counters, commit_seconds=seconds)
        self._stop_at_end: Stop | None = None
        self._retrying = self._unproven = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        self.window: WindowGuard | None = None
        self.elsewhere: Elsewhere | None = None
        self.in_thread = self._committer.in_thread

    def _worklist_of(self, feed: Feed) -> Worklist:
        return Worklist(
            feed,
            self._dataset,
            self._committer.in_progress,
            self._committer.in_thread,
            self._client.known_good.links,
            self._budget,
            self._shutdown,
            self._observer,
            self.progress,
            token=self._client.token,
            retry_failed=self._options.retry_failed,
            retry_refused=self._options.retry_refused,
            refresh=self._options.refresh,
        )

    async def run(self, feed: Feed) -> RunOutcome:
        """Make the calls that the list needs, and leave every verdict committed and every row published.

        Raises:
            OutputError: the verdicts could not be committed or published at the end.
            CallsDropped: calls were left though nothing asked the run to stop: a bug.
        """
        self._worklist = self._worklist_of(feed)
        self._client.pace_by(self._worklist)
        self._telemetry.throughput.restart()
        cancelling = asyncio.create_task(self._cancel_after_grace())
        try:
            async with self._committer:
                async with asyncio.TaskGroup() as around:
                    reporting = self._telemetry.keep_observer_informed(self._observer, self._options.report_seconds)
                    beside = [around.create_task(work) for work in (reporting, self._keep_learning())]
                    try:
                        await self._make_calls()
                    finally:
                        for task in beside:
                            task.cancel()
                if self._unproven and not self._client.known_good.links:
                    self._observer.warn(nobody_answered(self._unproven))
                invalid = stop_for_invalid(self.progress.listed, self._options.invalid_limit)
                if stop := self._stop_at_end or self._rules.at_end() or invalid:
                    self._shutdown.request(stop)
                return await self._finish()
        finally:
            cancelling.cancel()

    async def _make_calls(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._feeder = self._spawn(group, self._feed())
            doubted = 0 if self._options.retry_refused else STREAK + self._options.workers  # else both take them back
            for key, line in self._dataset.ledger.last_refused(doubted):
                self._spawn(group, self._doubt_again(key, line))
            workers = [self._spawn(group, self._work(group)) for _ in range(self._options.workers)]
            await asyncio.wait(workers)
            self._client.calls_ended(list_ended=self._stop_at_end is None)

    def _spawn(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel_after_grace(self) -> None:
        # An attempt in flight is counted already, and its answer would be lost with its task: so a shutdown first stops
        # only the hand-out of calls, and cancels what is left after GRACE_SECONDS. A reader and an object store get the
        # same time. What is cancelled without a verdict stays pending.
        await self._shutdown.wait()
        self._client.calls_ended()
        await asyncio.sleep(GRACE_SECONDS)
        self._dataset.shorten_waits()
        for task in list(self._tasks):
            task.cancel()

    async def _finish(self) -> RunOutcome:
        progress, stop = self.progress, self._shutdown.stop
        progress.failed += len(self._worklist.reopened)
        # Lines that are no links do not make an empty list: it may be another list's file, or another column.
        empty = self._options.allow_empty and not progress.listed.invalid
        done = progress.read_to_end and not progress.pending and (progress.listed.links > 0 or empty)
        if done and stop and stop.reason in {StopReason.SIGNAL, StopReason.MAX_TIME, StopReason.MAX_CALLS}:
            stop = None
        settled = done and not progress.failed and not progress.given_up
        self._telemetry.end()
        outcome = RunOutcome(settled and stop is None, stop, progress)
        await self._committer.finish(outcome)
        # A cancelled task leaves its group without an error, so that lost calls would pass for a finished list.
        if stop is None and progress.pending:
            raise CallsDropped(f"{progress.pending} calls were dropped")
        return outcome

    async def wait_for_disk(self) -> None:
        """Wait while more verdicts are uncommitted than a power cut may cost. Raises RunStopping: the run is ending."""
        while self._dataset.backlogged:
            await self._shutdown.unless_stopping(self._committer.committed())

    # --- the feeder ------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Fill the worklist no faster than its calls are made."""
        try:
            while (calls := await self._worklist.read()) is not None:
                if calls and not self._begun:
                    await self._begin(calls)
                if self.elsewhere is not None and calls:
                    calls = await self.elsewhere.settle(calls, self._worklist)
                self._worklist.add(calls)
                await self._worklist.wait_until_low()
                await self.wait_for_disk()
            if self.elsewhere is not None:
                await self.elsewhere.finish()
            self._client.input_ended()
        except InputBroken as error:
            # The calls already read are made first: their answers are good.
            self._stop_at_end = Stop(StopReason.INPUT, str(error))
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
        except RunStopping:
            pass
        finally:
            self._worklist.close()

    async def _begin(self, calls: list[Call]) -> None:
        """Prepare for the first call: fetch Bitly's limits, check the window, remove `_SUCCESS`."""
        await self._learn()
        if self.window is not None:
            await self.window.confirm([call.link.bitlink for call in calls])
        await self._committer.in_thread(self._dataset.remove_success_marker)
        self._begun = True

    # --- the workers -----------------------------------------------------------------------------------------------

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Make calls until there are no more."""
        with suppress(RunStopping):
            while (self._worklist.ready or await self._worklist.wait_for_call()) and (call := self._next()):
                verdict = await self._client.fetch(call.link.bitlink, fresh=call.previous is not FAILED_STATE)
                if self._client.completion.is_due(verdict):
                    verdict = await self._completed(call, verdict)
                if isinstance(verdict, Answer):
                    self._settle(call, verdict, 1)
                else:
                    await self._settle_or_doubt(group, call, verdict)
                if self._dataset.backlogged:
                    await self.wait_for_disk()

    async def _settle_or_doubt(self, group: asyncio.TaskGroup, call: Call, verdict: Verdict) -> None:
        """Settle a call whose first attempt was not answered, or find its last verdict in the retry room."""
        # The retry room: backing off takes up to minutes, and five links that fail would stop five workers. So a call
        # whose first attempt failed is repeated by a task of its own, and its worker takes the next call. There are at
        # most RETRY_ROOM such tasks; beyond that a worker repeats its call itself, which slows the run down just when
        # nearly everything fails. A definite no gets a task, in which it is doubted: at most a STREAK, and one for each
        # worker, which takes no call while a known-good link is asked; or as many as there is room for, where it waits
        # for the first answer to anybody.
        place, final = self._client.place_of(verdict), self._client.is_final(verdict)
        if held := final and is_plain_no(verdict) and self._retrying < RETRY_ROOM:
            if stop := self._rules.see(verdict):
                self._shutdown.request(stop)
        elif final or is_plain_no(verdict):
            self._settle(call, verdict, 1)
        if final and not held:
            return
        in_room = self._retrying < RETRY_ROOM or not isinstance(verdict, NoAnswer)
        in_doubt = self._client.asks_about(verdict)
        self._retrying += 1
        conclusion = self._conclude(call, verdict, place, held=held)
        if in_room:
            self._spawn(group, conclusion)
        else:
            await conclusion
        if in_doubt:
            await self._client.question_over()

    def _next(self) -> Call | None:
        """Take the next call, of which there is one; None if this run makes no more."""
        if self._shutdown.stop is not None:
            return None
        if not (allowed := self._options.allowance).take():
            self._stop_at_end = Stop(StopReason.MAX_CALLS, f"{allowed.most} calls were made (--max-calls)")
            self._feeder.cancel()
            self._worklist.close()
            return None
        self.progress.started += 1
        return self._worklist.take()

    async def _conclude(self, call: Call, first: Verdict, place: Place, *, held: bool) -> None:
        # A plain no is settled already, so that no kill loses it; where the server refuses everything this run takes it
        # back, or the next. Where nobody was ever answered it is held instead: a kill must leave it open.
        settled = first if is_plain_no(first) and not held else None
        verdict, attempts = None, 0
        try:
            with suppress(RunStopping):
                verdict, attempts = await self._client.conclude(call.link.bitlink, first, place)
                if self._client.completion.is_due(verdict):
                    verdict = await self._completed(call, verdict)
        finally:
            self._retrying -= 1
            if settled and not isinstance(verdict, Refused):
                self._take_back(call.key, self._dataset.rows.failed_call("failed", *call.link[:3], settled, 1))
                self.progress.take_back_refusal(settled.status, call)
        if verdict is None or (settled and isinstance(verdict, Refused)):
            return
        if settled:
            call = call._replace(previous=CallState.FAILED, lacked=WHOLE)
            self.progress.failed -= 1
            self.progress.pending += 1
            self.progress.repeated += 1
        self._settle(call, verdict, attempts, seen=held and isinstance(verdict, Refused))

    async def _completed(self, call: Call, first: Answer) -> Verdict:
        """Return an answer with the metrics that it lacks, or as it is; no kill loses it meanwhile: it was paid for."""
        try:
            self._dataset.hold(call.key, self._row(call, first, time.time()))
            return await self._client.completion.of(call.link.bitlink, first)
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(self._dataset.cause_of(error))))
        except asyncio.CancelledError:  # GRACE_SECONDS are over
            if self._shutdown.stop is None:
                raise
        return first

    async def _doubt_again(self, key: bytes, line: bytes) -> None:
        """Take an earlier run's refusal back if the server is found to refuse everything."""
        refused = object_in(line)
        with suppress(RunStopping):
            if await self._client.doubt_again(refused["bitlink"], Refused(refused["status"], refused["message"])):
                return
        self._worklist.reopened.add(key)
        self._take_back(key, one_line({**refused, "kind": "failed"}))

    def _take_back(self, key: bytes, line: bytes) -> None:
        """Record a refused call as failed, so that a later run makes it again. line: its failure as JSON."""
        try:
            self._dataset.record(key, CallState.FAILED, line, CallState.REFUSED)
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))

    def _settle(self, call: Call, verdict: Verdict, attempts: int, *, seen: bool = False) -> None:
        """Record a call's last verdict in the journal, and stop the run if the verdict or the disk says so.

        seen: the rules have counted it.
        """
        # Nothing is awaited between the answer and its journal line, or the task could be cancelled in between: an
        # answer that was paid for would be lost, and the call be bought again. That is why this is no coroutine, and
        # why the journal is written in the event loop's own thread: one short write costs less than a hand-over.
        if self.window is not None and isinstance(verdict, Answer) and not self.window.accepts(verdict, call.link):
            return
        stop = None if seen else self._rules.see(verdict)
        try:
            if isinstance(verdict, Answer):
                self._record_row(call, verdict)
            elif isinstance(verdict, Failure):
                self._record_failure(call, verdict, attempts)
        except OutputError as error:
            stop = Stop(StopReason.OUTPUT, str(self._dataset.cause_of(error)))
        if stop is not None:
            self._shutdown.request(stop)
        if self._dataset.waiting >= COMMIT_VERDICTS:
            self._committer.commit_soon()

    def _record_row(self, call: Call, answer: Answer) -> None:
        lacks, now = self._dataset.rows.shortfall(answer), time.time()
        line = self._row(call, answer, now, lacks)
        self._dataset.record(call.key, ROW_STATE, line, call.previous, lacks, call.lacked, answer.clicks_listed)
        self._telemetry.throughput.count_verdict(now)
        self.progress.count_row(call, truncated=lacks.truncated, clipped=lacks.clipped)

    def _row(self, call: Call, answer: Answer, now: float, lacks: Shortfall | None = None) -> bytes:
        link, fetched_at = call.link, iso_second(int(now))
        return self._dataset.rows.row(link.bitlink, call.key, answer, fetched_at, link.carried, lacks=lacks)

    def _record_failure(self, call: Call, verdict: Failure, attempts: int) -> None:
        # A server that does not know the path, or has never answered anybody, may be the wrong one, or be asked with
        # another account's token: its refusals count as failures, which later runs try again.
        refused = is_plain_no(verdict) and bool(self._client.known_good.links)
        self._unproven += isinstance(verdict, Refused) and not refused
        line = self._dataset.rows.failed_call("refused" if refused else "failed", *call.link[:3], verdict, attempts)
        state = REFUSED_STATE if refused else FAILED_STATE
        self._dataset.record(call.key, state, line, call.previous, WHOLE, call.lacked)
        self._observer.failure(line)
        self._telemetry.throughput.count_verdict(time.time())
        self.progress.count_without_row(verdict.status, call, refused=refused)

    # --- beside the calls ------------------------------------------------------------------------------------------

    async def _keep_learning(self) -> None:
        with suppress(RunStopping):
            while True:
                await asyncio.sleep(self._options.learn_seconds)
                if self._begun and self._shutdown.stop is None:
                    await self._learn()

    async def _learn(self) -> None:
        """Fetch Bitly's limits if that is due, and report what has changed.

        Raises:
            RunStopping: the budget's file cannot be written, which ends the run.
        """
        if learned := await self._discovery.learn():
            self._observer.note(learned.text, learned.event, **learned.fields)
