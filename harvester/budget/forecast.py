"""Estimate of when a number of calls would end: a simulation of the budget's rules. Pure."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from harvester.budget.budget import Budget
from harvester.budget.limits import COUNTED_SECONDS, HOUR, MINUTE, PLAN_MONTHS, Limits
from harvester.clock import next_month
from harvester.progress import WindowState

ANSWER_SECONDS = 0.3
"""Assumed time for a response, in seconds, where no limit sets the pace."""
_MOST_STEPS = 50_000
"""A batch is at least one 50,000th of all attempts: the longer the forecast, the larger its steps."""
_LONGEST = timedelta(days=366 * 200)
"""A later end is as good as none; and datetime knows no year after 9999."""
_WORTH_SAYING = 0.99
"""A suggestion must save one hundredth of the time at least; less is within the forecast's error."""


@dataclass(frozen=True, slots=True)
class Start:
    """The state that a forecast starts from.

    now: UTC. minute_used: attempts in the minute's window. leaving: pairs of seconds from now and the number of
    attempts that leave the hour's window then, in order. month_left: attempts left in the current month; None without
    a limit. connections: calls in flight at once. answer_seconds: duration of one call.
    """

    now: datetime
    minute_used: int = 0
    leaving: Iterable[tuple[float, int]] = ()
    month_left: int | None = None
    connections: int = 5
    answer_seconds: float = ANSWER_SECONDS


@dataclass(frozen=True, slots=True)
class Forecast:
    """The estimated end of calls. ends: None if it is more than 200 years away.

    pauses: the moments at which a month's limit runs out before the end. this_month: attempts that would be sent
    before the current month ends.
    """

    ends: datetime | None
    pauses: tuple[datetime, ...]
    this_month: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change that would make the calls end earlier. option: the option to give. why: its condition, in words."""

    option: str
    why: str
    ends: datetime


def beginning(budget: Budget, windows: Sequence[WindowState], connections: int) -> Start:
    """Return the current state to start a forecast from. windows: the budget's. Raises OutputError for its file."""
    return Start(
        budget.at(budget.opens_in()),
        leaving=budget.hour_releases(),
        minute_used=windows[0].used,
        month_left=windows[-1].remaining,
        connections=connections,
    )


def forecast(attempts: int, limits: Limits, start: Start) -> Forecast:
    """Return when this number of attempts would be done, without throttling and outages."""
    course = _Course(attempts, limits, start)
    while course.remaining and course.now - start.now <= _LONGEST:
        course.step()
    ends = None if course.remaining else course.now
    return Forecast(ends, tuple(course.pauses), course.this_month)


class _Course:
    """A running simulation: `now` jumps from one batch of attempts, or wait, to the next."""

    # A sliding window frees each attempt one span after it was sent, so what was sent in one hour decides when the next
    # hour's attempts go: `_leaving` replays that, batch by batch. The minute's window is not replayed but spread evenly
    # as a time per attempt. A new month gives its full limit, whatever state the windows are in. What has no limit has
    # an infinite one here.

    def __init__(self, attempts: int, limits: Limits, start: Start) -> None:
        self.remaining = attempts
        self.now = start.now
        self.pauses: list[datetime] = []
        self.this_month = 0
        self._per_hour = limits.per_hour or math.inf
        self._month_left = math.inf if start.month_left is None else start.month_left
        self._per_month = math.inf if start.month_left is None else limits.per_month or math.inf
        self._month_ends = self._first_month_ends = next_month(start.now)
        self._leaving = deque((start.now + timedelta(seconds=seconds), count) for seconds, count in start.leaving)
        self._in_hour = sum(count for _, count in self._leaving)
        self._seconds_each = start.answer_seconds / start.connections
        room = min(limits.per_minute - start.minute_used, self._per_hour - self._in_hour, self._month_left)
        if limits.per_minute and attempts > room:  # what fits into the free windows is sent without pacing
            self._seconds_each = max(COUNTED_SECONDS[MINUTE] / limits.per_minute, self._seconds_each)
        # A minute's attempts, or an hour's, where they are spread evenly anyway.
        self._largest_batch = max(limits.per_minute or limits.per_hour or 1000, attempts // _MOST_STEPS, 1)

    def step(self) -> None:
        """Send the next batch, or advance to when the next attempt is allowed."""
        if self.now >= self._month_ends:
            self._month_ends = next_month(self.now)
            self._month_left = self._per_month
        if self._month_left == 0:
            self.pauses.append(self.now)
            self.now = self._month_ends
            return
        while self._leaving and self._leaving[0][0] <= self.now:
            self._in_hour -= self._leaving.popleft()[1]
        room = self._per_hour - self._in_hour
        if room <= 0:
            self.now = self._leaving[0][0]
            return
        self._send(int(min(room, self._largest_batch, self.remaining, self._month_left)))

    def _send(self, count: int) -> None:
        self.remaining -= count
        self._month_left -= count
        self._in_hour += count
        self._leaving.append((self.now + timedelta(seconds=COUNTED_SECONDS[HOUR]), count))
        if self.now < self._first_month_ends:
            self.this_month += count
        self.now += timedelta(seconds=count * self._seconds_each)


DAYS_PER_MONTH = 365.2425 / 12


@dataclass(frozen=True, slots=True)
class SteadyState:
    """How old answers become that are asked for again and again. requests: those that all links need once.

    per_month: the requests of a month that the limits allow, None without any. oldest_days: the age of the oldest
    answer just before its turn. kept: the requested age is enough for all links.
    """

    requests: int
    per_month: int | None
    oldest_days: float
    kept: bool


def steady_state(requests: int, limits: Limits, refresh_days: float) -> SteadyState:
    """Return how old the oldest answer becomes once all links have one. refresh_days: the age at which one is due.

    A month's requests are sent when it begins, so an answer whose turn does not come in one month waits for the next:
    the age is a whole number of months.
    """
    monthly = [limits.per_month] if limits.per_month else []
    hourly = [int(limits.per_hour * 24 * DAYS_PER_MONTH)] if limits.per_hour else []
    per_month = min(monthly + hourly, default=None)
    if per_month is None or requests <= per_month * refresh_days / DAYS_PER_MONTH:
        return SteadyState(requests, per_month, refresh_days, kept=True)
    months = math.ceil(requests / per_month) if monthly == [per_month] else requests / per_month
    return SteadyState(requests, per_month, max(months * DAYS_PER_MONTH, refresh_days), kept=False)


def suggestions_for(
    attempts: int, limits: Limits, own: Limits, without_reserve: Limits, start: Start
) -> list[Suggestion]:
    """Return each single option change that would finish the calls earlier. own: limits excluding learned ones."""
    ends = forecast(attempts, limits, start).ends
    found = []
    for option, why, changed in _changes(limits, own, without_reserve):
        left = start.month_left
        if left is not None:
            left = left + changed.per_month - limits.per_month if changed.per_month else None
        sooner = forecast(attempts, changed, replace(start, month_left=left)).ends
        if sooner and (ends is None or (sooner - start.now) < (ends - start.now) * _WORTH_SAYING):
            found.append(Suggestion(option, why, sooner))
    return found


def _changes(limits: Limits, own: Limits, without_reserve: Limits) -> Iterable[tuple[str, str, Limits]]:
    if own != limits:
        yield "patience", "if Bitly stops throttling", own
    if without_reserve != own:
        yield "--reserve 0%", "leaves no share to other programs", without_reserve
    for name, per_month in PLAN_MONTHS.items():
        if limits.per_month and per_month > limits.per_month:
            yield f"--plan {name}", f"if that is your plan: {per_month:,} a month", replace(limits, per_month=per_month)
    if limits.per_hour:
        wide = replace(limits, per_hour=2 * limits.per_hour, per_minute=2 * limits.per_minute)
        option = f"--per-hour {wide.per_hour}" + (f" --per-minute {wide.per_minute}" if wide.per_minute else "")
        yield option, "if Bitly allows the account twice as much", wide
