"""What a harvest under way can know of its end: the last minute's speed, and the budget's rules run ahead."""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from math import ceil

from harvester.budget import Budget
from harvester.errors import OutputError
from harvester.forecast import Forecast, Start, beginning, forecast
from harvester.quota import Limits
from harvester.status import Status

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


class Outlook:
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

    async def look(self, status: Status) -> None:
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

    def look_back(self, status: Status) -> None:
        """Tell what the budget holds when the run is over, and nothing more will be sent."""
        with suppress(OutputError):
            self._budget.close()
            status.windows = self._budget.windows()

    def _measure(self, status: Status) -> None:
        """Learn the server's own speed while nothing of ours holds calls back."""
        self._free = 0 if status.waiting else self._free + 1
        if self._free >= _FREE_SECONDS and len(status.per_second) >= _FREE_SECONDS:
            self._rate = sum(status.per_second[-_FREE_SECONDS:]) / _FREE_SECONDS

    async def _look_ahead(self, status: Status, now: float) -> None:
        left, limits = status.left, self._budget.limits
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
