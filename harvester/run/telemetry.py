"""The manifest's part that a harvest knows: how it stands or ended, and what its budget holds."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import ceil
from typing import Any

from harvester.budget.budget import Budget
from harvester.budget.forecast import Forecast, Start, beginning, forecast
from harvester.budget.limits import Limits
from harvester.clock import utc_iso
from harvester.errors import OutputError
from harvester.progress import RunOutcome, RunProgress, WaitReason, WindowState


def harvest_report(
    status: RunProgress, outcome: RunOutcome | None, invocation: dict[str, Any], budget: dict[str, Any]
) -> dict[str, Any]:
    """Give how a harvest stands, or how it ended. outcome: None while it runs; invocation, budget: their reports."""
    stop = outcome.stop if outcome else None
    return {
        "complete": bool(outcome and outcome.complete),
        "stopped": {"reason": stop.reason, "message": stop.message, "until": stop.until} if stop else None,
        "input_read_to_end": status.read_to_end,
        "list": asdict(status.listed) if status.read_to_end else None,
        "ended": utc_iso(datetime.now(UTC)) if outcome else None,
        "invocation": invocation,
        "remaining": status.outstanding,
        "given_up": status.given_up,
        "pending": status.pending,
        "budget": budget,
    }


def budget_report(budget: Budget, waiting: WaitReason | None) -> dict[str, Any]:
    """Say which window binds and until when, and what each holds; as far as the budget's file can be read."""
    try:
        windows = budget.windows()
    except OutputError:
        windows = []
    return {
        "account": budget.account.name,
        "token": budget.account.token,
        "limited_by": {
            "window": waiting.window,
            "limit": waiting.limit or None,
            "until": utc_iso(waiting.until) if waiting.until else None,
        }
        if waiting
        else None,
        "windows": [window_report(state) for state in windows],
    }


def window_report(state: WindowState) -> dict[str, Any]:
    """Give what a window holds as it stands in manifest and plan."""
    return {
        "window": state.window,
        "limit": state.limit or None,
        "used": state.used,
        "remaining": state.remaining,
        "until": utc_iso(state.until) if state.until else None,
        "source": state.source,
    }


SECONDS = 60
LOOK_SECONDS = 10.0
"""A forecast is made so often, more often at first, and at once when the limits have changed."""
_SHARE = 0.01
"""Forecasts of a very long list may take this share of a processor."""
_ENOUGH_CALLS = 100
_FREE_SECONDS = 3
_FIRST_SECONDS = 1.0


class Minute:
    """Calls settled in each second of the last minute. began: any clock's seconds, from which on it counts."""

    def __init__(self, began: float) -> None:
        self._seen_at = began
        self._settled = 0
        self._newest = int(began)
        self._counts: deque[float] = deque([0.0], SECONDS + 1)

    def see(self, now: float, settled: int) -> None:
        """Take note that so many calls were settled until now; those that are new came evenly since the last look."""
        new, since = settled - self._settled, self._seen_at
        span = now - since
        for second in range(max(self._newest + 1, int(now) - SECONDS), int(now) + 1):
            self._counts.append(0.0)
            self._newest = second
        for place in range(len(self._counts)):
            begins = self._newest - len(self._counts) + 1 + place
            overlap = min(now, begins + 1) - max(since, begins)
            if overlap > 0:
                self._counts[place] += new * overlap / span
        self._seen_at, self._settled = now, settled

    def seconds(self) -> list[float]:
        """Give the counts of whole seconds, the latest last; the present one is not over."""
        return list(self._counts)[:-1]


class EtaEstimator:
    """Tells a status what is ahead. connections: at once."""

    def __init__(self, budget: Budget, connections: int) -> None:
        self._budget = budget
        self._connections = connections
        self._began = time.monotonic()
        self._minute = Minute(self._began)
        self._due = 0.0
        self._limits: Limits | None = None
        self._free = 0
        self._rate = 0.0

    async def look(self, status: RunProgress) -> None:
        """Bring a status up to date; a forecast is made in a thread, and only now and then.

        What the budget's file does not tell at the moment stays as it was.
        """
        now = time.monotonic()
        self._minute.see(now, status.settled)
        status.per_second = self._minute.seconds()
        self._measure(status)
        with suppress(OutputError):
            status.windows = self._budget.windows()
            await self._look_ahead(status, now)

    def look_back(self, status: RunProgress) -> None:
        """Tell what the budget holds when the run is over, and nothing more will be sent."""
        with suppress(OutputError):
            self._budget.close()
            status.windows = self._budget.windows()

    def _measure(self, status: RunProgress) -> None:
        """Learn the server's own speed while nothing of ours holds calls back."""
        self._free = 0 if status.waiting else self._free + 1
        if self._free >= _FREE_SECONDS and len(status.per_second) >= _FREE_SECONDS:
            self._rate = sum(status.per_second[-_FREE_SECONDS:]) / _FREE_SECONDS

    async def _look_ahead(self, status: RunProgress, now: float) -> None:
        left, limits = status.remaining, self._budget.limits
        if left is None or (now < self._due and limits == self._limits):
            return
        each = status.attempts.total / status.settled if status.settled >= _ENOUGH_CALLS else 1.0
        attempts = ceil(left * max(each, 1.0))
        start = beginning(self._budget, status.windows, self._connections)
        if self._rate:
            start = replace(start, answer_seconds=self._connections / (self._rate * max(each, 1.0)))
        found, took = await asyncio.to_thread(_timed, attempts, limits, start)
        status.ends, status.spent = found.ends, next(iter(found.pauses), None)
        interval = min(_FIRST_SECONDS + (now - self._began) / 2, LOOK_SECONDS)
        self._limits, self._due = limits, now + max(interval, took / _SHARE)


def _timed(attempts: int, limits: Limits, start: Start) -> tuple[Forecast, float]:
    began = time.thread_time()
    found = forecast(attempts, limits, start)
    return found, time.thread_time() - began


HOUR_SECONDS = 3600.0
_SAMPLE_SECONDS = 30.0


class Throughput:
    """Counts the verdicts of one run.

    lists: what the run reads. clock: seconds that no step of the wall clock moves.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lists: Sequence[str] = ()
        self._clock = clock
        self._started = datetime.now(UTC)
        self._calls = 0
        self._last: float | None = None
        self._samples = deque([(clock(), 0)])

    def begin(self) -> None:
        """Measure the rate from now on: what was before went into reading the list through."""
        self._samples = deque([(self._clock(), self._calls)])

    def beat(self) -> None:
        """Take note that a call has its verdict."""
        self._calls += 1
        self._last = time.time()

    def rate(self) -> tuple[int, float]:
        """Give how many calls had their verdict in how many seconds: the last hour, or what there was of it.

        Asked about once a minute: the hour begins at the nearest of the moments at which it was asked.
        """
        now = self._clock()
        samples = self._samples
        if now - samples[-1][0] >= _SAMPLE_SECONDS:
            samples.append((now, self._calls))
        while len(samples) > 1 and samples[1][0] <= now - HOUR_SECONDS:
            samples.popleft()
        begin, before = samples[0]
        return self._calls - before, now - begin

    def report(self, number: int) -> dict[str, Any]:
        """Give what the manifest says of this run. number: of the dataset's runs, from 1."""
        calls, seconds = self.rate()
        return {
            "number": number,
            "started": utc_iso(self._started),
            "lists": list(self.lists),
            "calls": self._calls,
            "last_verdict": None if self._last is None else utc_iso(datetime.fromtimestamp(self._last, UTC)),
            "rate": {"calls": calls, "seconds": round(seconds, 1)},
        }
