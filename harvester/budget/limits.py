"""A budget's inputs and answers as plain values: limits, the account they belong to, waits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

MINUTE, HOUR = "minute", "hour"
SPANS = {MINUTE: 60.0, HOUR: 3600.0}
"""Seconds of the sliding windows."""
ARRIVAL_MARGIN_SECONDS = 0.5
"""Safety margin: an attempt counts for its window and half a second, because network delay can make two requests arrive
closer together than they were sent."""
COUNTED_SECONDS = {window: span + ARRIVAL_MARGIN_SECONDS for window, span in SPANS.items()}
"""How long an attempt counts in each sliding window."""
THROTTLED = "throttled"
"""RetryAfter.window while an endpoint is paused."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Attempts allowed in a sliding minute, a sliding hour and a calendar month; 0 means no limit."""

    per_minute: int
    per_hour: int
    per_month: int

    def of(self, window: str) -> int:
        """Return the limit of the window of this name, `minute` or `hour`."""
        return self.per_minute if window == MINUTE else self.per_hour


DEFAULTS = Limits(per_minute=100, per_hour=1000, per_month=1000)
"""Bitly's example for an endpoint, and its free plan's month: https://dev.bitly.com/docs/getting-started/rate-limits."""


PLAN_MONTHS = {"free": 1000, "core": 5000, "growth": 25_000, "premium": 50_000}
"""API requests a month by Bitly's plan, as reported; they may change: https://bitly.com/pages/pricing."""


def option_for(per_month: int) -> str:
    """Return the option that sets a month's limit: the plan's name if there is one of that limit."""
    plan = next((name for name, month in PLAN_MONTHS.items() if month == per_month), None)
    return f"--plan {plan}" if plan else f"--per-month {per_month}"


@dataclass(frozen=True, slots=True)
class RequestedLimits:
    """The limits that the options ask for, None where they do not. reserve: the share left to other clients, 0 to 1."""

    per_minute: int | None = None
    per_hour: int | None = None
    per_month: int | None = None
    reserve: float = 0.0

    @property
    def needs_report(self) -> bool:
        """True if it pays to ask Bitly for the endpoint's limits and count.

        Without a requested minute the reported hour sets the minute. With any hourly limit, the reported count reveals
        what other clients of the token have used of it. Otherwise the report would change nothing.
        """
        return self.per_minute is None or self.per_hour != 0

    def limits(self, reported_per_hour: int | None = None) -> Limits:
        """Return the limits in force. reported_per_hour: Bitly's hourly limit if known; its minute is a tenth of it."""
        per_hour, per_minute = DEFAULTS.per_hour, DEFAULTS.per_minute
        if reported_per_hour is not None:
            per_hour, per_minute = reported_per_hour, max(reported_per_hour // 10, 1)
        return Limits(
            self._less_reserve(per_minute if self.per_minute is None else self.per_minute),
            self._less_reserve(per_hour if self.per_hour is None else self.per_hour),
            self._less_reserve(DEFAULTS.per_month if self.per_month is None else self.per_month),
        )

    def source_of(self, window: str, *, throttled: bool, reported: bool) -> str:
        """Return where a sliding window's limit comes from, as WindowState has it.

        throttled: throttling has lowered it. reported: Bitly has reported the hour's.
        """
        if throttled:
            return "throttled"
        if (self.per_minute if window == MINUTE else self.per_hour) is not None:
            return "asked"
        return "bitly" if reported else "default"

    def month_use(self, limit: int, spent: int, *, reported_spent: bool) -> tuple[int, int, str]:
        """Return limit, use and source of the month, as WindowState has them.

        limit, spent: by our count. reported_spent: Bitly says that nothing is left.
        """
        if reported_spent:
            limit = min(limit, spent) or max(spent, 1)
            return limit, max(spent, limit), "bitly"
        return limit, spent, "default" if self.per_month is None else "asked"

    def _less_reserve(self, limit: int) -> int:
        return limit and max(math.floor(limit * (1 - self.reserve) + 1e-9), 1)


class Account(NamedTuple):
    """The owner of a budget. server: host and port. token: its fingerprint. name: the account that has the month."""

    server: str
    token: str
    name: str


class Counted(NamedTuple):
    """Where an attempt was counted. at: the time of its record in the windows, seconds since boot.

    asks_month: it is the attempt of the day that asks whether the month is still spent. asks_date: it asks for the
    server's date. record: the time of its record where that is another clock's, in milliseconds.
    """

    token: str
    at: float
    months: Sequence[str]
    asks_month: bool = False
    asks_date: bool = False
    record: int = 0


NOTHING_COUNTED = Counted("", 0.0, ())
MOST_LEASED = 64
"""The largest lease. It is also no more than a 64th of what is left of each limit."""


@dataclass(slots=True)
class Lease:
    """Attempts counted at once, to be sent before the time of their record.

    size: attempts counted, or sent if some were given back. left: not sent yet. counted: where each was counted.
    """

    size: int = 0
    left: int = 0
    counted: Counted = NOTHING_COUNTED
    given_back: bool = False

    @property
    def next_size(self) -> int:
        """The size of the lease that follows: it doubles as long as leases are used up in time."""
        return self.size if self.given_back else min(2 * self.size, MOST_LEASED)

    def end(self) -> None:
        """Record that what is left is counted no more."""
        self.size, self.left, self.given_back = self.size - self.left, 0, True


class RetryAfter(NamedTuple):
    """The attempt may not be sent yet. seconds: to wait. window: what blocks it. limit: its attempts; 0 if none."""

    seconds: float
    window: str
    limit: int = 0


class PlanReport(NamedTuple):
    """What Bitly reported of an account's plan. month: its calls a month; 0 if none were reported. entries: all of its
    limits, as they were recorded. age_seconds: how long ago that was.
    """

    month: int
    entries: list[Any]
    age_seconds: float


class MonthExhausted(NamedTuple):
    """No attempt may be sent this month.

    until: when the month ends, UTC. reported: Bitly says it is spent, regardless of our count.
    """

    until: datetime
    reported: bool = False

    def describe(self, account: str, limit: int, plan: int | None = None) -> str:
        """Return what to tell a person. limit: attempts a month. plan: those that Bitly reports for the account."""
        if self.reported:
            return (
                f"Bitly reported that account {account} has no calls left this month; harvester checks again once a day"
            )
        used = f"account {account} has used its {limit:,} calls for this month"
        if plan and plan > limit:
            return f"{used}; Bitly reports {plan:,} a month for its plan: use {option_for(plan)}"
        return f"{used}; if your plan has more, set --plan or --per-month (`harvester plan` asks Bitly)"
