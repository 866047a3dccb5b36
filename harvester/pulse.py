"""The pulse of a run: since when it goes, over which lists, when a call last had its verdict, how many an hour."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from harvester.bitly import utc_text

HOUR_SECONDS = 3600.0
_SAMPLE_SECONDS = 30.0


class Pulse:
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
            "started": utc_text(self._started),
            "lists": list(self.lists),
            "calls": self._calls,
            "last_verdict": None if self._last is None else utc_text(datetime.fromtimestamp(self._last, UTC)),
            "rate": {"calls": calls, "seconds": round(seconds, 1)},
        }
