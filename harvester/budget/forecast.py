"""When calls would end: the budget's rules, run ahead in thought.

Pure. A window gives back each attempt its span after it was made, so what was sent in one hour decides when the next
hour's go; a month's end gives a new month's calls, in whatever state the windows are.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from harvester.budget.budget import Budget
from harvester.budget.database import LATE_SECONDS, SPANS
from harvester.budget.limits import Limits
from harvester.budget.throttling import HOUR, MINUTE
from harvester.clock import next_month
from harvester.progress import WindowState

ANSWER_SECONDS = 0.3
"""What an answer is taken to need where no window says how fast calls may go."""
_MOST_STEPS = 50_000
_LONGEST = timedelta(days=366 * 200)
PLANS = {5_000: "Core", 25_000: "Growth", 50_000: "Premium"}
"""Bitly's plans by their monthly API requests, as reported; they may change: https://bitly.com/pages/pricing."""
_WORTH_SAYING = 0.99


@dataclass(frozen=True, slots=True)
class Start:
    """Where a forecast begins.

    now: UTC. leaving: seconds from now and how many attempts leave the hour's window then, in order. minute_used:
    attempts in the minute's window. month_left: attempts that the present month still has; None without a limit.
    connections: at once. answer_seconds: what an answer takes.
    """

    now: datetime
    minute_used: int = 0
    leaving: Iterable[tuple[float, int]] = ()
    month_left: int | None = None
    connections: int = 5
    answer_seconds: float = ANSWER_SECONDS


@dataclass(frozen=True, slots=True)
class Forecast:
    """When calls would end. ends: None for later than anybody plans. pauses: when a month was spent before that.

    this_month: attempts that would go before the present month's end.
    """

    ends: datetime | None
    pauses: tuple[datetime, ...]
    this_month: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change that would bring the end forward. option: what to say; why: in words."""

    option: str
    why: str
    ends: datetime


def beginning(budget: Budget, windows: Sequence[WindowState], connections: int) -> Start:
    """Give where a forecast begins at present. windows: the budget's. Raises OutputError for the budget's file."""
    return Start(
        budget.at(budget.opens_in()),
        leaving=budget.leaving(),
        minute_used=windows[0].used,
        month_left=windows[-1].remaining,
        connections=connections,
    )


def forecast(attempts: int, limits: Limits, start: Start) -> Forecast:
    """Say when so many attempts would have been made, if nothing is throttled and no server is out."""
    course = _Course(attempts, limits, start)
    while course.remaining:
        if course.now - start.now > _LONGEST:
            return Forecast(None, tuple(course.pauses), course.this_month)
        course.step()
    return Forecast(course.now, tuple(course.pauses), course.this_month)


class _Course:
    """A forecast under way."""

    def __init__(self, attempts: int, limits: Limits, start: Start) -> None:
        self.remaining = attempts
        self.now = start.now
        self.pauses: list[datetime] = []
        self.this_month = 0
        self._limits = limits
        self._month_left = start.month_left
        self._month_ends = next_month(start.now)
        self._first_month_ends = self._month_ends
        self._leaving = deque((start.now + timedelta(seconds=seconds), count) for seconds, count in start.leaving)
        self._in_hour = sum(count for _, count in self._leaving)
        per_attempt = start.answer_seconds / start.connections
        if limits.per_minute and not self._fits(start):  # a short list is not paced
            per_attempt = max((SPANS[MINUTE] + LATE_SECONDS) / limits.per_minute, per_attempt)
        self._seconds_each = per_attempt
        self._most = max(limits.per_minute or limits.per_hour or 1000, attempts // _MOST_STEPS, 1)

    def _fits(self, start: Start) -> bool:
        """Say whether all goes into the room that the windows have now."""
        rooms = [self._limits.per_minute - start.minute_used]
        if self._limits.per_hour:
            rooms.append(self._limits.per_hour - self._in_hour)
        if start.month_left is not None:
            rooms.append(start.month_left)
        return self.remaining <= min(rooms)

    def step(self) -> None:
        """Send what may go now, or wait for what lets more go."""
        self._turn_month()
        if self._month_left == 0:
            self.pauses.append(self.now)
            self.now = self._month_ends
            return
        while self._leaving and self._leaving[0][0] <= self.now:
            self._in_hour -= self._leaving.popleft()[1]
        room = self._limits.per_hour - self._in_hour if self._limits.per_hour else self._most
        if room <= 0:
            self.now = self._leaving[0][0]
            return
        count = min(room, self._most, self.remaining, *(() if self._month_left is None else (self._month_left,)))
        if self._limits.per_hour:
            self._leaving.append((self.now + timedelta(seconds=SPANS[HOUR] + LATE_SECONDS), count))
            self._in_hour += count
        self._send(count)

    def _send(self, count: int) -> None:
        self.remaining -= count
        if self.now < self._first_month_ends:
            self.this_month += count
        if self._month_left is not None:
            self._month_left -= count
        self.now += timedelta(seconds=count * self._seconds_each)

    def _turn_month(self) -> None:
        if self.now >= self._month_ends:
            self._month_ends = next_month(self.now)
            if self._month_left is not None:
                self._month_left = self._limits.per_month


def suggestions_for(
    attempts: int, limits: Limits, own: Limits, without_reserve: Limits, start: Start
) -> list[Suggestion]:
    """Name the changes that would bring the end forward, each by itself.

    own: the limits without what throttled answers have taught.
    """
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
        yield "patience", "if Bitly lets pass again what it did before it throttled", own
    if without_reserve != own:
        yield "--reserve 0%", "leaving nothing to others", without_reserve
    for per_month, name in PLANS.items():
        if limits.per_month and per_month > limits.per_month:
            yield f"--per-month {per_month}", f"if the plan is {name}", replace(limits, per_month=per_month)
    if limits.per_hour:
        wide = replace(limits, per_hour=2 * limits.per_hour, per_minute=2 * limits.per_minute)
        option = f"--per-hour {wide.per_hour}" + (f" --per-minute {wide.per_minute}" if wide.per_minute else "")
        yield option, "if Bitly allows the account twice as much", wide
