"""May the next attempt go now? Exact sliding windows, the month, and the gate that throttling and outages close.

Nothing here sleeps or knows of asyncio: every question is answered with "yes, and it is counted" or with how long to
wait and why. The clock is given, so that tests move it.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

LATE_SECONDS = 0.5
"""An attempt leaves its window this much late: the network may hold one request back and not the next."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Attempts allowed in a sliding minute, a sliding hour and a calendar month; 0 means no limit."""

    per_minute: int
    per_hour: int
    per_month: int


class Wait(NamedTuple):
    """Not now: seconds until it is worth asking again, and the window that says so."""

    seconds: float
    window: str


class MonthOver(NamedTuple):
    """Not this month: the moment at which the next one begins."""

    until: datetime


class Window:
    """An exact sliding window: never more than limit attempts in span_seconds.

    It keeps each attempt's time, so it is bounded by limit.
    """

    def __init__(self, name: str, limit: int, span_seconds: float) -> None:
        self.name = name
        self.limit = limit
        self._span = span_seconds + LATE_SECONDS
        self._times: deque[float] = deque()

    def wait(self, now: float) -> float:
        """Give the seconds until there is room: 0.0 when there is."""
        self._forget(now)
        if len(self._times) < self.limit:
            return 0.0
        return self._times[0] + self._span - now

    def room(self, now: float) -> int:
        """Give how many attempts may go at this moment."""
        self._forget(now)
        return self.limit - len(self._times)

    def count(self, now: float) -> None:
        """Take note of an attempt that goes now."""
        self._times.append(now)

    def _forget(self, now: float) -> None:
        times, horizon = self._times, now - self._span
        while times and times[0] <= horizon:
            times.popleft()


class Budget:
    """Counts attempts before they are sent, and refuses those that a limit forbids.

    clock: monotonic seconds, so that a step of the wall clock cannot open a window early. today: the moment in UTC,
    for the calendar month.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits = limits
        self.spent_this_month = 0
        self._clock = clock
        self._today = today
        self._month = _month_of(today())
        spans = (("minute", limits.per_minute, 60.0), ("hour", limits.per_hour, 3600.0))
        self._windows = [Window(name, limit, span) for name, limit, span in spans if limit]

    def take(self) -> Wait | MonthOver | None:
        """Count an attempt and give None if it may be sent now; otherwise count nothing and say why not."""
        if self.limits.per_month:
            self._turn_month()
            if self.spent_this_month >= self.limits.per_month:
                # Of the month that is counted: the wall clock may have been set back since.
                return MonthOver(next_month(datetime(*self._month, 1, tzinfo=UTC)))
        if not self._windows:
            self.spent_this_month += 1
            return None
        now = self._clock()
        waits = [(window.wait(now), window) for window in self._windows]
        longest = max(waits, key=lambda wait: wait[0], default=None)
        if longest and longest[0] > 0.0:
            return Wait(longest[0], longest[1].name)
        for _, window in waits:
            window.count(now)
        self.spent_this_month += 1
        return None

    def room(self) -> float:
        """Give how many attempts may go at this moment; infinite without limits."""
        now = self._clock()
        return min((float(window.room(now)) for window in self._windows), default=float("inf"))

    def _turn_month(self) -> None:
        month = _month_of(self._today())
        # Only forwards: a wall clock set back must not give the month's calls out again.
        if month > self._month:
            self._month, self.spent_this_month = month, 0


def _month_of(moment: datetime) -> tuple[int, int]:
    return moment.year, moment.month


def next_month(moment: datetime) -> datetime:
    """Give the first moment of the month after this one, UTC: when Bitly counts from zero again."""
    return (
        moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)
    ).replace(day=1)


THROTTLED = "throttled"
OUTAGE = "outage"


@dataclass(frozen=True, slots=True)
class GateRules:
    """When the gate closes, and for how long.

    An outage begins when as many calls in a row as streak failed in passing at their first attempt. Its probes wait
    first_probe_seconds, then twice as long each time up to longest_probe_seconds; past limit_seconds it is over_limit.
    A hint of the server's is followed up to longest_hint_seconds.
    """

    streak: int = 20
    first_probe_seconds: float = 5.0
    longest_probe_seconds: float = 60.0
    limit_seconds: float = 15 * 60.0
    longest_hint_seconds: float = 3600.0
    jitter: float = 0.1
    poll_seconds: float = 0.2


class Gate:
    """Closed for everyone after one throttled answer, and while the server is out; opened by one probe.

    While it is closed nothing is sent. When its time is over one attempt goes ahead, the probe, and its answer opens
    the gate or closes it for longer.
    """

    def __init__(
        self,
        rules: GateRules | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._rules = rules or GateRules()
        self._clock = clock
        self._wall = wall
        self._rng = rng or random.Random()  # noqa: S311 - spreads clients, guards nothing
        self._reason: str | None = None
        self._closed_at = 0.0
        self._opens_at = 0.0
        self._probing = False
        self._strikes = 0
        self._failed_in_a_row = 0
        self._outage_began = 0.0

    @property
    def outage(self) -> bool:
        """True while transient failures are the server's, and are charged to no call."""
        return self._reason == OUTAGE

    @property
    def over_limit(self) -> bool:
        """True when an outage has lasted longer than the run should wait."""
        return self.outage and self._clock() - self._outage_began > self._rules.limit_seconds

    def closed(self, *, fresh: bool = True) -> Wait | None:
        """Give how long to wait before asking to enter; None if that may be worth it now.

        fresh: False for a call that has failed before. In an outage it is no probe, because it may be the call's own
        fault that it fails.
        """
        if self._reason is None:
            return None
        left = self._opens_at - self._clock()
        if left > 0:
            return Wait(left, self._reason)
        if self._probing or (self.outage and not fresh):
            return Wait(self._rules.poll_seconds, self._reason)
        return None

    def enter(self, *, fresh: bool = True) -> Wait | None:
        """Give None if an attempt may pass; when the gate's time is over the first to enter becomes the probe."""
        if self._reason is None:
            return None
        wait = self.closed(fresh=fresh)
        self._probing = self._probing or wait is None
        return wait

    def leave(self, *, sent_at: float) -> None:
        """An attempt that had entered was not sent after all: let another probe go."""
        if self._reason is not None and sent_at >= self._opens_at:
            self._probing = False

    def answered(self, *, sent_at: float) -> None:
        """An answer came that was neither throttled nor transient to an attempt sent at sent_at: all is well.

        But an attempt that was under way before a throttled answer says nothing of what came after.
        """
        self._failed_in_a_row = 0
        if self._reason is not None and not (self._reason == THROTTLED and sent_at < self._opens_at):
            self._reason, self._probing, self._strikes = None, False, 0

    def throttled(self, hint: float | datetime | None, *, sent_at: float) -> None:
        """A throttled answer came to an attempt sent at sent_at (this gate's clock): close for everyone.

        Answers to attempts that were already under way when the gate closed say nothing new.
        """
        now = self._clock()
        if self._reason == THROTTLED and sent_at < self._closed_at:
            return
        self._strikes = self._strikes + 1 if self._reason == THROTTLED else 1
        self._close(THROTTLED, now, self._hinted(hint) or self._until_next_edge())

    def transient(self, *, sent_at: float, evidence: bool) -> None:
        """An attempt failed in passing; when nearly everything does, it is an outage.

        evidence: True for the first attempt of a call that has never failed; another may fail by its own fault.
        """
        now = self._clock()
        if self._reason == THROTTLED and sent_at >= self._opens_at:
            self._reason, self._probing, self._strikes = None, False, 0  # the probe was let through
        self._failed_in_a_row += evidence
        if self.outage:
            if sent_at >= self._opens_at:
                self._strikes += 1
                self._close(OUTAGE, now, self._probe_interval())
        elif evidence and self._failed_in_a_row >= self._rules.streak:
            self._strikes, self._outage_began = 0, now
            self._close(OUTAGE, now, self._probe_interval())

    def _close(self, reason: str, now: float, seconds: float) -> None:
        self._reason, self._probing = reason, False
        self._closed_at = now
        self._opens_at = now + seconds * (1 + self._rules.jitter * self._rng.random())

    def _probe_interval(self) -> float:
        interval = self._rules.first_probe_seconds * 2.0 ** min(self._strikes, 10)
        return min(interval, self._rules.longest_probe_seconds)

    def _hinted(self, hint: float | datetime | None) -> float:
        return hinted_seconds(hint, self._wall(), self._rules.longest_hint_seconds)

    def _until_next_edge(self) -> float:
        """Seconds to the next minute's edge at first, then doubling, and never past the next hour's edge."""
        wall = self._wall()
        to_minute, to_hour = 60.0 - wall % 60.0, 3600.0 - wall % 3600.0
        later = 60.0 * (2.0 ** min(self._strikes - 1, 6) - 1)
        return min(max(to_minute, 1.0) + later, max(to_hour, 1.0))


def hinted_seconds(hint: float | datetime | None, wall: float, longest: float) -> float:
    """Give the seconds a server asked to wait, at most longest; 0.0 for no hint, zero and moments past.

    wall: now, seconds since 1970.
    """
    seconds = hint.timestamp() - wall if isinstance(hint, datetime) else hint or 0.0
    return min(max(seconds, 0.0), longest)
