"""What a run reports of itself: its progress, an estimate of its end, and its part of the manifest."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import ceil
from typing import Any, Protocol

from harvester.budget.budget import Budget
from harvester.budget.forecast import Forecast, Start, beginning, forecast
from harvester.budget.limits import Limits
from harvester.client.pacer import HintedPauses
from harvester.clock import utc_iso
from harvester.dataset.manifest import (
    BudgetReport,
    Command,
    Invocation,
    LimitedBy,
    Rate,
    RunReport,
    Stopped,
    WindowCheck,
    WindowUsage,
)
from harvester.errors import OutputError
from harvester.events import RunObserver, RunOutcome
from harvester.history import Activity, Recorded, StoredEntry
from harvester.progress import RunProgress, WaitReason, WindowState
from harvester.run.recorder import Recorder, Sent, activity
from harvester.sharing.home import Elsewhere
from harvester.transport.pool import Pool, Slot

_STILL_SECONDS = 3
_LONGEST_WHY = 200
PROGRESS_SECONDS = 1.0
"""The interval at which the observer is told the progress."""


class Sender(Sent, Protocol):
    """What is reported of the sender of attempts.

    trouble: the last attempt's transient failure. not_sent: attempts that did not reach the server. pauses: those of
    single calls. pool: its connections. in_flight: the slots of attempts that are being answered.
    """

    waiting: WaitReason | None
    pauses: HintedPauses
    pool: Pool
    in_flight: list[Slot]
    trouble: str | None
    not_sent: int


@dataclass(frozen=True, slots=True)
class _Block:
    """What keeps a run from sending. since: when it began. finished: the calls that were finished then."""

    reason: WaitReason
    since: datetime
    finished: int


class Telemetry:
    """The progress of one run, reported to the observer every second, and in the manifest.

    It lives as long as the run. Until `begin` it reports a run that has read nothing yet. invocation: this run's number
    within the dataset, from 1. lists: as the command named them. command: None for a run from Python. awaits_reader:
    tells whether the reader of standard output takes no rows. history: of earlier runs.
    """

    def __init__(
        self,
        budget: Budget,
        invocation: int,
        lists: Sequence[str],
        command: Command | None = None,
        awaits_reader: Callable[[], bool] = lambda: False,
        history: Recorded = Recorded(),  # noqa: B008 - nothing changes it
    ) -> None:
        self.progress = RunProgress()
        self.throughput = Throughput()
        self._lists, self._command = lists, command
        self._awaits_reader = awaits_reader
        self._budget = budget
        self._invocation = invocation
        self._recorder = Recorder(history, invocation)
        self._sender: Sender | None = None
        self._warned = ""
        self._lines, self._list_is_still = 0, False
        self._block: _Block | None = None
        self._reported = ""
        self.window_check: WindowCheck | None = None

    def begin(self, sender: Sender, connections: int, *, to_make: int | None, max_calls: int | None) -> None:
        """Follow the harvest that begins now. to_make: calls that the list needs; None if it was not counted."""
        progress = self.progress
        progress.attempts, progress.to_make, progress.max_calls = sender.counters, to_make, max_calls
        self._sender = sender
        self._estimator = EtaEstimator(self._budget, connections)

    async def keep_observer_informed(self, observer: RunObserver, seconds: float) -> None:
        """Bring the progress up to date and pass it on, every `seconds`; ends when it is cancelled."""
        progress = self.progress
        while True:
            if self._sender:
                self._list_is_still, self._lines = self._lines == progress.listed.lines, progress.listed.lines
                progress.waiting, progress.trouble = self._waiting(), self._sender.trouble
                self._warn_of_stopped(observer)
                why = progress.waiting.window if progress.waiting else None
                self._recorder.see(self._activity(self._sender), why, self._budget.limits)
            await self._estimator.update(progress)
            observer.progress(progress)
            await asyncio.sleep(seconds)

    def take_history(self) -> list[StoredEntry]:
        """Return the entries of the history that have changed since the last call, for the commit that is due."""
        sender = self._sender
        return self._recorder.take_changed(self._activity(sender), self._budget.limits) if sender else []

    def _activity(self, sender: Sender) -> Activity:
        self.progress.connecting = sum(slot.line.unsent for slot in sender.in_flight)
        return activity(self.progress, sender, self.progress.connecting)

    def _waiting(self) -> WaitReason | None:
        """Return why nothing is sent: the limit that keeps the sender from it, or, where no call finishes, what keeps
        the calls from the sender."""
        sender, progress = self._sender, self.progress
        if sender is None:
            return None
        waiting = sender.waiting
        if waiting is not None and waiting.window == "connections":
            blockers = sender.pool.slots.blockers
            window = blockers.window if isinstance(blockers, Elsewhere) else waiting.window
            return waiting._replace(window=window, why=str(blockers))
        if (
            waiting is not None
            or len(progress.per_second) < _STILL_SECONDS
            or any(progress.per_second[-_STILL_SECONDS:])
        ):
            return waiting
        if self._awaits_reader():
            return WaitReason("reader", 0, None)
        if not progress.pending and not progress.read_to_end:
            return WaitReason("list", 0, None) if self._list_is_still else None
        return sender.pauses.first

    def _warn_of_stopped(self, observer: RunObserver) -> None:
        """Warn once of stopped processes that hold all connections: without help nothing goes on."""
        sender, waiting = self._sender, self.progress.waiting
        if sender is None or waiting is None or waiting.window != "connections":
            return
        stopped = sender.pool.slots.blockers.stopped_in_words
        if stopped and stopped != self._warned:
            observer.warn(f"waiting for a connection: {stopped}")
            self._warned = stopped

    def end(self) -> None:
        """Read the budget's windows for the last time: nothing more will be sent."""
        self._estimator.finish(self.progress)
        if self._sender:
            self.progress.not_sent = self._sender.not_sent

    def report(self, outcome: RunOutcome | None) -> RunReport:
        """Return the run's part of the manifest. outcome: None while the run goes on."""
        limited_by = self._limited_by()
        self._reported = limited_by.window if limited_by else ""
        invocation = self.throughput.report(self._invocation, self._lists, self._command)
        report = run_report(self.progress, outcome, invocation, budget_report(self._budget, limited_by))
        recorder = self._recorder
        return replace(report, window_check=self.window_check, runs=recorder.runs, history=recorder.entries)

    @property
    def begins_to_block(self) -> bool:
        """True if something keeps the run from sending that is not in its last report."""
        block = self._look()
        return block is not None and block.reason.window != self._reported

    def _look(self) -> _Block | None:
        """Return what keeps the run from sending. An attempt in an outage does not end it before it is answered."""
        waiting, block, finished = self._waiting(), self._block, self.progress.finished
        if waiting is not None and waiting.window != "pace":
            goes_on = block is not None and block.reason.window == waiting.window and block.finished == finished
            since = block.since if block is not None and goes_on else datetime.now(UTC)
            self._block = _Block(waiting, since, finished)
        elif block is not None and block.reason.window == "outage" and block.finished == finished:
            self._block = replace(block, reason=block.reason._replace(until=None))
        else:
            self._block = None
        return self._block

    def _limited_by(self) -> LimitedBy | None:
        block, pace = self._look(), self._waiting()
        if block is None:
            return LimitedBy(pace.window, pace.limit or None, None, None, None) if pace else None
        reason = block.reason
        until = utc_iso(reason.until) if reason.until else None
        return LimitedBy(
            reason.window, reason.limit or None, until, utc_iso(block.since), reason.why[:_LONGEST_WHY] or None
        )


def run_report(
    progress: RunProgress, outcome: RunOutcome | None, invocation: Invocation, budget: BudgetReport
) -> RunReport:
    """Return a run's part of the manifest. outcome: None while the run goes on."""
    stop = outcome.stop if outcome else None
    return RunReport(
        complete=bool(outcome and outcome.complete),
        stopped=Stopped(stop.reason, stop.message, stop.until) if stop else None,
        input_read_to_end=progress.read_to_end,
        list=replace(progress.listed) if progress.read_to_end else None,
        ended=utc_iso(datetime.now(UTC)) if outcome else None,
        invocation=invocation,
        remaining=progress.outstanding,
        given_up=progress.given_up + progress.exhausted,
        budget=budget,
        pending=progress.pending - progress.repeated,
        refresh=progress.ages,
    )


def budget_report(budget: Budget, limited_by: LimitedBy | None) -> BudgetReport:
    """Return the limit that blocks sending and the use of each window; no windows if the budget file is busy."""
    try:
        windows = budget.windows()
    except OutputError:
        windows = []
    return BudgetReport(budget.account.name, budget.account.token, limited_by, tuple(map(_usage, windows)))


def window_report(state: WindowState) -> dict[str, Any]:
    """Return a window's use as a JSON object, for the plan and the log."""
    return asdict(_usage(state))


def _usage(state: WindowState) -> WindowUsage:
    return WindowUsage(
        window=state.window,
        limit=state.limit or None,
        used=state.used,
        remaining=state.remaining,
        until=utc_iso(state.until) if state.until else None,
        source=state.source,
    )


SECONDS = 60
FORECAST_SECONDS = 10.0
"""Time between two forecasts; shorter at first, and a change of the limits is followed at once."""
_SHARE = 0.01
"""The most that forecasts may take of one processor: that of a very long list is expensive."""
_ENOUGH_CALLS = 100
_FREE_SECONDS = 3
_FIRST_SECONDS = 1.0


class Minute:
    """Calls finished in each second of the last minute. began: when counting starts, in seconds of any clock."""

    def __init__(self, began: float) -> None:
        self._seen_at = began
        self._finished = 0
        self._newest = int(began)
        self._counts: deque[float] = deque([0.0], SECONDS + 1)

    def see(self, now: float, finished: int) -> None:
        """Record the calls finished until now; the new ones are spread evenly over the time since the last."""
        new, since = finished - self._finished, self._seen_at
        span = now - since
        for second in range(max(self._newest + 1, int(now) - SECONDS), int(now) + 1):
            self._counts.append(0.0)
            self._newest = second
        for index in range(len(self._counts)):
            begins = self._newest - len(self._counts) + 1 + index
            overlap = min(now, begins + 1) - max(since, begins)
            if overlap > 0:
                self._counts[index] += new * overlap / span
        self._seen_at, self._finished = now, finished

    def seconds(self) -> list[float]:
        """Return the counts of whole seconds, the latest last; without the present one, which is not over."""
        return list(self._counts)[:-1]


class EtaEstimator:
    """Estimates when a run will end and when the month will be spent. connections: open at the same time."""

    def __init__(self, budget: Budget, connections: int) -> None:
        self._budget = budget
        self._connections = connections
        self._began = time.monotonic()
        self._minute = Minute(self._began)
        self._due = 0.0
        self._limits: Limits | None = None
        self._free = 0
        self._rate = 0.0

    async def update(self, status: RunProgress) -> None:
        """Update speed, windows and estimate. A forecast runs in a thread, every FORECAST_SECONDS at most.

        While the budget file is busy, windows and estimate stay as they were.
        """
        now = time.monotonic()
        self._minute.see(now, status.finished)
        status.per_second = self._minute.seconds()
        self._measure(status)
        with suppress(OutputError):
            status.windows = self._budget.windows()
            await self._forecast(status, now)

    def finish(self, status: RunProgress) -> None:
        """Close the budget and read its windows for the last time."""
        with suppress(OutputError):
            self._budget.close()
            status.windows = self._budget.windows()

    def _measure(self, status: RunProgress) -> None:
        """Measure the server's own speed: calls a second while no limit of ours has blocked sending for 3 s."""
        self._free = 0 if status.waiting else self._free + 1
        if self._free >= _FREE_SECONDS and len(status.per_second) >= _FREE_SECONDS:
            self._rate = sum(status.per_second[-_FREE_SECONDS:]) / _FREE_SECONDS

    async def _forecast(self, status: RunProgress, now: float) -> None:
        remaining, limits = status.remaining, self._budget.limits
        if remaining is None or (now < self._due and limits == self._limits):
            return
        each = status.attempts.total / status.finished if status.finished >= _ENOUGH_CALLS else 1.0
        attempts = ceil(remaining * max(each, 1.0))
        start = beginning(self._budget, status.windows, self._connections)
        if self._rate:
            start = replace(start, answer_seconds=self._connections / (self._rate * max(each, 1.0)))
        found, took = await asyncio.to_thread(_timed, attempts, limits, start)
        status.ends, status.spent = found.ends, next(iter(found.pauses), None)
        interval = min(_FIRST_SECONDS + (now - self._began) / 2, FORECAST_SECONDS)
        self._limits, self._due = limits, now + max(interval, took / _SHARE)


def _timed(attempts: int, limits: Limits, start: Start) -> tuple[Forecast, float]:
    began = time.thread_time()
    found = forecast(attempts, limits, start)
    return found, time.thread_time() - began


HOUR_SECONDS = 3600.0
_SAMPLE_SECONDS = 30.0


class Throughput:
    """Counts the verdicts of one run. clock: seconds that no step of the wall clock moves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = datetime.now(UTC)
        self._calls = 0
        self._last: float | None = None
        self._samples = deque([(clock(), 0)])

    def restart(self) -> None:
        """Measure the rate from now on, without the time that it took to read the list through."""
        self._samples = deque([(self._clock(), self._calls)])

    def count_verdict(self, now: float) -> None:
        """Count a call that has its verdict. now: seconds since 1970."""
        self._calls += 1
        self._last = now

    def rate(self) -> Rate:
        """Return the verdicts of the last hour and its seconds, or of the shorter time since `restart`.

        Samples are taken only here, about once a minute, so the hour begins at the nearest earlier call.
        """
        now = self._clock()
        samples = self._samples
        if now - samples[-1][0] >= _SAMPLE_SECONDS:
            samples.append((now, self._calls))
        while len(samples) > 1 and samples[1][0] <= now - HOUR_SECONDS:
            samples.popleft()
        begin, before = samples[0]
        return Rate(self._calls - before, round(now - begin, 1))

    def report(self, number: int, lists: Sequence[str], command: Command | None = None) -> Invocation:
        """Return the manifest's object on this run. number: of the dataset's runs, from 1."""
        return Invocation(
            number=number,
            started=utc_iso(self._started),
            command=command,
            lists=tuple(lists),
            calls=self._calls,
            last_verdict=None if self._last is None else utc_iso(datetime.fromtimestamp(self._last, UTC)),
            rate=self.rate(),
        )
