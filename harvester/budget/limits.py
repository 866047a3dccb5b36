"""What a budget is asked to keep and what it answers, as plain values: limits, whose they are, waits, windows."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from harvester.budget.throttling import MINUTE

THROTTLED = "throttled"


@dataclass(frozen=True, slots=True)
class Limits:
    """Attempts allowed in a sliding minute, a sliding hour and a calendar month; 0 means no limit."""

    per_minute: int
    per_hour: int
    per_month: int

    def of(self, window: str) -> int:
        """Give a window's limit by its name."""
        return self.per_minute if window == MINUTE else self.per_hour


DEFAULTS = Limits(per_minute=100, per_hour=1000, per_month=1000)
"""Bitly's example for an endpoint, and its free plan's month: https://dev.bitly.com/docs/getting-started/rate-limits."""


@dataclass(frozen=True, slots=True)
class RequestedLimits:
    """The limits as they were asked for: None where nothing was said. reserve: the share left to others, 0 to 1."""

    per_minute: int | None = None
    per_hour: int | None = None
    per_month: int | None = None
    reserve: float = 0.0

    @property
    def curious(self) -> bool:
        """True when Bitly's own word on the endpoint's limits would change anything."""
        return self.per_minute is None or self.per_hour != 0

    def limits(self, said_per_hour: int | None = None) -> Limits:
        """Give the limits to keep. said_per_hour: Bitly's, if it has said; its minute is a tenth of it."""
        per_hour, per_minute = DEFAULTS.per_hour, DEFAULTS.per_minute
        if said_per_hour is not None:
            per_hour, per_minute = said_per_hour, max(said_per_hour // 10, 1)
        return Limits(
            self._kept(per_minute if self.per_minute is None else self.per_minute),
            self._kept(per_hour if self.per_hour is None else self.per_hour),
            self._kept(DEFAULTS.per_month if self.per_month is None else self.per_month),
        )

    def _kept(self, limit: int) -> int:
        return limit and max(math.floor(limit * (1 - self.reserve) + 1e-9), 1)


class Account(NamedTuple):
    """Whose budget it is. server: host and port; token: its fingerprint; name: of the account that has the month."""

    server: str
    token: str
    name: str


class RetryAfter(NamedTuple):
    """Not now: seconds until it is worth asking again, the window that says so, and what it may hold."""

    seconds: float
    window: str
    limit: int = 0


class MonthExhausted(NamedTuple):
    """Not this month: the moment at which the next one begins. told: Bitly has said so, whatever we have counted."""

    until: datetime
    told: bool = False
