"""What Bitly has said of an endpoint's limits, as a state that outlives the process: when to ask again, who else calls.

Pure: the budget keeps the state and gives the time, as it does for `throttle`.
"""

from dataclasses import dataclass

from harvester.throttle import Throttle

ASK_SECONDS = 300.0
ASK_ATTEMPTS = 100
"""Bitly is asked again for its limits at most so often, so that helper calls stay at one in a hundred."""
ASK_CLOSED_SECONDS = 60.0
"""Once after a throttled answer already so soon: only as long as it is closed can Bitly say that its hour is full."""
ASK_AFTER_REFUSAL_SECONDS = 86400.0
"""Where Bitly answered, and did not tell."""
_UNDER_WAY = 5
"""Attempts that we have counted and Bitly perhaps not yet, when it says how many it has counted."""


@dataclass(slots=True)
class Said:
    """What Bitly has said of the endpoint. limit: per hour; None: nothing that makes sense. Times: elapsed seconds.

    base_*: Bitly's count and our total when its present hour was first seen, from which others' use is told.
    """

    asked_at: float
    asked_total: int
    limit: int | None = None
    count: int = 0
    base_count: int = 0
    base_total: int = 0

    def asking_pays(self, throttle: Throttle, *, total: int, now: float, begin: bool) -> bool:
        """Say whether it should be asked again. total: our attempts ever. begin: a run begins."""
        age = now - self.asked_at
        if self.limit is None:
            return age >= ASK_AFTER_REFUSAL_SECONDS
        if begin:
            return age >= ASK_SECONDS
        if throttle.closed and throttle.began_at > self.asked_at and age >= ASK_CLOSED_SECONDS:
            return True
        told_since = throttle.closed_at > self.asked_at
        return age >= ASK_SECONDS and (told_since or total - self.asked_total >= ASK_ATTEMPTS)

    def ask_soon(self, now: float) -> None:
        """Let it be asked again before long, and not only after a day: the question did not reach it."""
        self.asked_at = now - ASK_AFTER_REFUSAL_SECONDS + ASK_SECONDS

    def others(self, count: int, *, total: int, used: int) -> int:
        """Tell from Bitly's count how many attempts were not ours, and keep it for the next time.

        total: our attempts ever. used: those in the hour's window.
        """
        if self.limit is None or count < self.count:  # the first, or an hour of Bitly's has begun
            self.base_count, self.base_total = count, total
        self.count = count
        others = (count - self.base_count) - (total - self.base_total) - _UNDER_WAY
        return max(others, count - used, 0)
