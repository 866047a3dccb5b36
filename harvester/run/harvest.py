"""The harvest: a feeder reads the list and drops what is known, workers ask, a committer makes the answers last.

Everything is bounded: the calls in hand by the feeder's batches, those that wait to be repeated by ROOM, the verdicts
that wait for the disk by the store.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from harvester.bitly.verdicts import Answer, Refused, Transient, Unknown, Unreadable, Verdict
from harvester.budget.budget import Budget
from harvester.client.client import KNOWN_GOOD_LINKS, Client
from harvester.client.limit_discovery import LimitDiscovery
from harvester.clock import utc_iso
from harvester.dataset.dataset import Dataset
from harvester.dataset.ledger import Known, State, should_retry
from harvester.errors import BudgetBusy, InputBroken, OutputError, RunStopping
from harvester.events import RunObserver
from harvester.links.batch import Batch, Link
from harvester.links.feed import GIVEN, FileFeed, IterableFeed
from harvester.links.files import Source
from harvester.progress import RunOutcome
from harvester.run.abort_rules import AbortRules
from harvester.run.committer import COMMIT_SECONDS, COMMIT_VERDICTS, Committer, Heartbeat
from harvester.run.telemetry import Telemetry
from harvester.shutdown import ShutdownSignal, Stop, StopReason

ROOM = 100
"""Calls that may wait to be repeated while their workers go on."""
LOW_WATER = 1000
"""Fewer calls in hand than this let the feeder read on, or fewer than a minute's window."""
MOST_READ_AHEAD = 20_000
GRACE_SECONDS = 5.0
"""What calls in flight get when the run is to end."""
TELL_SECONDS = 1.0
LEARN_SECONDS = 10.0
"""So often it is looked at whether Bitly should be asked for its limits; the budget says how often that pays."""


class Call(NamedTuple):
    """A bitlink to ask for. previous: what the ledger had on it."""

    link: Link
    key: bytes
    previous: State | None


@dataclass(frozen=True, slots=True)
class HarvestOptions:
    """How to harvest. max_calls: calls made at most in this run. retry_*: ask again what is otherwise left alone.

    to_make: calls that the list needs, where it was counted. learn: ask Bitly for its limits;
    that is not worth a helper call for a link or two.
    """

    workers: int
    max_calls: int | None = None
    to_make: int | None = None
    retry_failed: bool = False
    retry_refused: bool = False
    commit_seconds: float = COMMIT_SECONDS
    tell_seconds: float = TELL_SECONDS
    learn_seconds: float = LEARN_SECONDS
    learn: bool = True


class Harvest:
    """One run over one list; `run` is its only use."""

    def __init__(
        self,
        store: Dataset,
        client: Client,
        budget: Budget,
        inquiry: LimitDiscovery,
        shutdown: ShutdownSignal,
        rules: AbortRules,
        observer: RunObserver,
        options: HarvestOptions,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        heartbeat = heartbeat or Heartbeat(store, Telemetry(budget, store.invocation))
        self._telemetry = heartbeat.telemetry
        self._telemetry.begin(client.sender, options.workers, to_make=options.to_make, max_calls=options.max_calls)
        self.status = self._telemetry.progress
        self._store = store
        self._client = client
        self._budget = budget
        self._inquiry = inquiry
        self._shutdown = shutdown
        self._rules = rules
        self._observer = observer
        self._options = options
        self._keeper = Committer(
            store, shutdown, heartbeat, client.sender.counters, commit_seconds=options.commit_seconds
        )
        self._ready: deque[Call] = deque()
        self._in_hand = self._keeper.in_hand
        self._fed = asyncio.Event()
        self._hungry = asyncio.Event()
        self._no_more = False
        self._then: Stop | None = None
        self._again = 0
        self._fresh_asked = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        client.sender.pace.sprint = lambda: self.status.read_to_end and len(self._ready) < budget.room()
        client.fresh_asked = lambda: self._fresh_asked > 0

    async def run(self, links: list[Source] | IterableFeed) -> RunOutcome:
        """Harvest the links, and leave everything that was answered committed and published.

        Raises:
            OutputError: what was answered could not be committed or published at the end.
        """
        self._telemetry.lists = names_of(links)
        self._telemetry.throughput.restart()
        ending = asyncio.create_task(self._cut_short())
        try:
            async with self._keeper:
                async with asyncio.TaskGroup() as around:
                    telling = self._telemetry.keep_observer_informed(self._observer, self._options.tell_seconds)
                    beside = [around.create_task(work) for work in (telling, self._keep_learning())]
                    try:
                        await self._ask_all(links)
                    finally:
                        for task in beside:
                            task.cancel()
                if stop := self._then or self._rules.at_end():
                    self._shutdown.request(stop)
                return await self._finish()
        finally:
            ending.cancel()

    async def _ask_all(self, links: list[Source] | IterableFeed) -> None:
        async with asyncio.TaskGroup() as group:
            self._feeder = self._spawn(group, self._feed(links))
            for _ in range(self._options.workers):
                self._spawn(group, self._work(group))

    def _spawn(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cut_short(self) -> None:
        """Give calls in flight, and a reader of standard output, their grace when the run is to end."""
        await self._shutdown.wait()
        await asyncio.sleep(GRACE_SECONDS)
        self._store.abandon()
        for task in list(self._tasks):
            task.cancel()

    async def _finish(self) -> RunOutcome:
        status, stop = self.status, self._shutdown.stop
        done = status.read_to_end and not status.pending and status.listed.links > 0
        if done and stop and stop.reason in {StopReason.SIGNAL, StopReason.MAX_TIME, StopReason.MAX_CALLS}:
            stop = None
        settled = done and not status.failed and not status.given_up
        self._telemetry.end()
        outcome = RunOutcome(settled and stop is None, stop, status)
        await self._keeper.finish(outcome)
        # A task that is cancelled ends its group in silence: without a reason to stop no call may be left.
        assert stop is not None or not status.pending, f"{status.pending} calls were dropped"
        return outcome

    # --- the list --------------------------------------------------------------------------------------------------

    async def _feed(self, links: list[Source] | IterableFeed) -> None:
        """Read the list and take its calls up, no faster than they are made."""
        intake = links if isinstance(links, IterableFeed) else FileFeed(links)
        try:
            while batch := await self._shutdown.unless_stopping(intake.next()):
                await self._take_up(batch)
                await self._wait_until_needed()
            self.status.read_to_end = True
            self._client.sender.pace.hurry()
        except InputBroken as error:
            self._then = Stop(StopReason.INPUT, str(error))  # once the calls that could be read are made
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
        except RunStopping:
            pass
        finally:
            self._no_more = True
            self._fed.set()

    async def _wait_until_needed(self) -> None:
        while len(self._ready) >= self._low_water:
            self._hungry.clear()
            await self._shutdown.unless_stopping(self._hungry.wait())
        while self._store.backlogged:
            await self._shutdown.unless_stopping(self._keeper.committed())

    @property
    def _low_water(self) -> int:
        """How many calls in hand are enough: a window's worth, so that it is seen if the list ends within it."""
        return max(LOW_WATER, min(self._budget.limits.per_minute, MOST_READ_AHEAD))

    async def _take_up(self, batch: Batch) -> None:
        listed = self.status.listed
        listed.lines += batch.lines
        listed.blank += batch.blank
        listed.comments += batch.comments
        listed.headers += batch.headers
        listed.invalid += len(batch.invalid)
        for bad in batch.invalid:
            self._observer.invalid(bad)
            line = self._store.rows.failure("invalid", file=bad.file, line=bad.line, text=bad.text, message=bad.reason)
            self._store.note_invalid(line)
        claimed = [(link, key) for link in batch.links if (key := self._claim(link)) is not None]
        known = await self._keeper.in_thread(self._store.known, [key for _, key in claimed])
        calls = [call for link, key in claimed if (call := self._sort(link, key, known.get(key)))]
        if calls and not self._begun:
            await self._learn()
            await self._keeper.in_thread(self._store.take_success_back)
            self._begun = True
        self.status.pending += len(calls)
        self._ready.extend(calls)
        self._fed.set()

    def _claim(self, link: Link) -> bytes | None:
        """Take a link into hand; None if it is there already, however its call stands."""
        key = self._store.rows.key(link.bitlink)
        if key in self._in_hand:
            self.status.listed.duplicates += 1
            return None
        self._in_hand.add(key)
        return key

    def _sort(self, link: Link, key: bytes, known: Known | None) -> Call | None:
        """Give the call that a link needs, or None when it needs none."""
        listed = self.status.listed
        if known is None:
            listed.links += 1
            return Call(link, key, None)
        if known.seen == self._store.invocation:
            listed.duplicates += 1
            self._in_hand.discard(key)
            return None
        listed.links += 1
        if self._wanted_again(known):
            return Call(link, key, known.state)
        self._store.note_seen(key)
        if known.state is State.ROW and len(self._client.known_good_links) < KNOWN_GOOD_LINKS:
            self._client.known_good_links.append(link.bitlink)
        self.status.known += 1
        self.status.given_up += known.state is State.FAILED
        return None

    def _wanted_again(self, known: Known) -> bool:
        options = self._options
        return should_retry(known, retry_failed=options.retry_failed, retry_refused=options.retry_refused)

    # --- the calls -------------------------------------------------------------------------------------------------

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Make calls until there are no more; those that fail in passing wait elsewhere to be repeated."""
        try:
            while (call := await self._next()) is not None:
                verdict = await self._ask(call)
                if not isinstance(verdict, Transient | Unreadable):
                    self._settle(call, verdict, 1)
                elif self._again < ROOM:
                    self._again += 1
                    self._spawn(group, self._repeat(call, verdict))
                else:
                    self._again += 1
                    await self._repeat(call, verdict)
                while self._store.backlogged:
                    await self._shutdown.unless_stopping(self._keeper.committed())
        except RunStopping:
            return

    async def _ask(self, call: Call) -> Verdict:
        fresh = call.previous is not State.FAILED
        self._fresh_asked += fresh
        try:
            return await self._client.fetch(call.link.bitlink, fresh=fresh)
        finally:
            self._fresh_asked -= fresh

    async def _next(self) -> Call | None:
        while not self._ready:
            if self._no_more:
                return None
            self._fed.clear()
            self._hungry.set()
            await self._fed.wait()
        if self._shutdown.stop is not None:
            return None
        if self.status.asked == self._options.max_calls:
            self._end_at_max_calls()
            return None
        self.status.asked += 1
        if len(self._ready) <= self._low_water:
            self._hungry.set()
        return self._ready.popleft()

    def _end_at_max_calls(self) -> None:
        self._then = Stop(StopReason.MAX_CALLS, f"{self.status.asked} calls were made (--max-calls)")
        self._feeder.cancel()
        self._no_more = True

    async def _repeat(self, call: Call, first: Verdict) -> None:
        try:
            verdict, attempts = await self._client.retry(call.link.bitlink, first)
            self._settle(call, verdict, attempts)
        except RunStopping:
            return
        finally:
            self._again -= 1

    def _settle(self, call: Call, verdict: Verdict, attempts: int) -> None:
        """Record a call's last verdict, and end the run if it says so; nothing is awaited in between."""
        stop = self._rules.see(verdict)
        try:
            if isinstance(verdict, Answer):
                self._record_row(call, verdict)
            elif isinstance(verdict, Refused | Transient | Unreadable | Unknown):
                self._record_failure(call, verdict, attempts)
        except OutputError as error:
            stop = Stop(StopReason.OUTPUT, str(error))
        if stop is not None:
            self._shutdown.request(stop)
        if self._store.waiting >= COMMIT_VERDICTS:
            self._keeper.hurry()

    def _record_row(self, call: Call, answer: Answer) -> None:
        line = self._store.rows.row(call.link.bitlink, call.key, answer, _second_text(int(time.time())))
        self._store.record(call.key, State.ROW, line, call.previous)
        self._telemetry.throughput.count_verdict()
        self.status.pending -= 1
        self.status.rows += 1

    def _record_failure(self, call: Call, verdict: Refused | Transient | Unreadable | Unknown, attempts: int) -> None:
        # A server that knows no path at all may be the wrong one: nothing is written off for good on its word.
        refused = isinstance(verdict, Refused) and (self._rules.answered or not verdict.no_route)
        line = self._store.rows.failure(
            "refused" if refused else "failed",
            bitlink=call.link.bitlink,
            file=call.link.file,
            line=call.link.line,
            status=verdict.status,
            message=verdict.message,
            attempts=attempts,
            body=verdict.body if isinstance(verdict, Unreadable | Unknown) else None,
        )
        self._store.record(call.key, State.REFUSED if refused else State.FAILED, line, call.previous)
        self._observer.failure(line)
        self._telemetry.throughput.count_verdict()
        self.status.pending -= 1
        self.status.refused += refused
        self.status.failed += not refused

    # --- telling ---------------------------------------------------------------------------------------------------

    async def _keep_learning(self) -> None:
        with suppress(RunStopping):
            while True:
                await asyncio.sleep(self._options.learn_seconds)
                if self._begun and self._shutdown.stop is None:
                    await self._learn()

    async def _learn(self) -> None:
        if not self._options.learn:
            return
        try:
            told = await self._inquiry.learn()
        except BudgetBusy:
            return
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
            raise RunStopping from error
        if told:
            self._observer.note(told.text, told.event, **told.fields)


def names_of(links: list[Source] | IterableFeed) -> list[str]:
    """Name the lists, as the manifest does."""
    return [GIVEN] if isinstance(links, IterableFeed) else [source.name for source in links]


@lru_cache(1)
def _second_text(second: int) -> str:
    """Write a second since 1970, once for all the answers that came in it."""
    return utc_iso(datetime.fromtimestamp(second, UTC))
