"""What a throttled answer teaches: until when nobody asks, and how much passes, as a state that outlives the process.

Pure: the budget keeps the state and gives the time. One throttled answer closes for everyone; when the time is over one
probe goes first. If the probe passes within two minutes it was the minute's limit, else the hour's: that window then
holds no more than what last passed, once learned no less than half of what it held, and is raised again by a factor
that gets smaller, after a patience that gets longer, each time it turns out to be too much. Where Bitly itself says
that its hour is full there is nothing to learn: others have used the token, too.
"""

import math
import random
from dataclasses import dataclass, field
from datetime import datetime

LONGEST_HINT_SECONDS = 3600.0
PROBE_SECONDS = 35.0
"""A probe that has not been answered after so long is given up for lost, with its process."""
_JITTER = 0.1
_MINUTE_STRIKES = 2
_LONGEST_MINUTE_SECONDS = 150.0
"""Two strikes' longest wait, 60 s and 60 s with the jitter, and some time to answer."""
_DECREASE = 0.9
_MOST_DECREASE = 0.5
_FIRST_STEP = 2.0
_LEAST_STEP = 1.02
_NEARLY_FULL = 0.9
_HALF_FULL = 0.5
_MOST_PATIENCE = 5000
_REMEMBERED = 10
"""A ceiling that has reached the window's own limit is forgotten after so many times its patience."""

MINUTE, HOUR = "minute", "hour"
_LEAST_HOUR = 100
"""An hour without a limit, whose minute has none, is lowered to so much at once, at the most."""
_LEAST_PART = {MINUTE: 10, HOUR: 4}
"""A window is lowered to one part in so many at once, at the most: who had just begun, before others' use throttled it,
has learned next to nothing. An hour's takes long to be regained.
"""


@dataclass(slots=True)
class LearnedLimit:
    """What a window may hold since a throttled answer. since: the total at which it was set or last raised.

    patience: attempts after which it is raised. step: by what factor. own: the largest limit that a process had of
    itself, up to which it is raised; 0 for none.
    """

    limit: int
    since: int
    patience: int
    step: float = _FIRST_STEP
    own: int = 0


@dataclass(slots=True)
class AdaptiveLimit:
    """A token's state at an endpoint. Times are the clock's elapsed seconds; None where it is open.

    closed_at: of the last throttled answer that told something. began_at: of the first since it was open. opens_at:
    when the probe may go, or when the one that is under way is lost. passed: attempts that had passed in each window
    before the first throttled answer. reopened: by window, the total before the probe that last found it open anew.
    full: since it closed, Bitly has counted as many in its hour as it allows, and we keep no more than that.
    """

    opens_at: float | None = None
    closed_at: float = 0.0
    began_at: float = 0.0
    probing: bool = False
    strikes: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    reopened: dict[str, int] = field(default_factory=dict)
    ceilings: dict[str, LearnedLimit] = field(default_factory=dict)
    full: bool = False

    @property
    def closed(self) -> bool:
        """True from a throttled answer until a probe has passed."""
        return self.opens_at is not None

    def lowered(self, window: str, limit: int) -> int:
        """Give what a window may hold whose own limit is this one; 0 means none."""
        ceiling = self.ceilings.get(window)
        return limit if ceiling is None else min(limit or ceiling.limit, ceiling.limit)


def close(state: AdaptiveLimit, *, now: float, seconds: float, passed: dict[str, int]) -> None:
    """Take note of a throttled answer that tells something: nobody asks for so long. passed: as in Throttle."""
    if not state.closed:
        state.strikes, state.passed, state.full, state.began_at = 0, dict(passed), False, now
    state.strikes += 1
    state.closed_at = now
    state.opens_at = now + seconds
    state.probing = False


def note_late(state: AdaptiveLimit) -> None:
    """Take note of a throttled answer to an attempt that was under way before: it was thought to have passed."""
    state.passed = {window: max(passed - 1, 0) for window, passed in state.passed.items()}


def note_full(state: AdaptiveLimit) -> None:
    """Take note that Bitly's own count says that its hour is full, of which we keep no more than it allows."""
    state.full = state.closed


def begin_probe(state: AdaptiveLimit, now: float) -> None:
    """Let the attempt that goes now be the probe."""
    state.probing, state.opens_at = True, now + PROBE_SECONDS


def reopen(state: AdaptiveLimit, *, sent_at: float, total: int, limits: dict[str, int]) -> None:
    """Take note that a probe has passed: open for everyone, and lower the window that was to blame.

    None is when Bitly's hour was full: that is its limit as it was told, and others have used up what we had not.
    total: attempts so far. limits: what each window may hold at present, 0 for no limit.
    """
    window = _to_blame(state, sent_at, limits)
    if not state.full:
        state.ceilings[window] = _learned(state, window, total, limits)
    state.opens_at, state.probing, state.strikes = None, False, 0
    # The minute lies within the hour: a new hour is a new minute, and a new minute is still the same hour.
    for inner in (MINUTE, HOUR) if window == HOUR else (MINUTE,):
        state.reopened[inner] = total - 1


def _learned(state: AdaptiveLimit, window: str, total: int, limits: dict[str, int]) -> LearnedLimit:
    passed, limit = state.passed.get(window, 0), limits[window]
    if window == HOUR and not limit:  # no part of it is known, but that it holds a minute
        passed = max(passed, limits[MINUTE] or _LEAST_HOUR)
    if limit and passed >= limit:  # its windows begin at other moments than ours
        passed = min(math.floor(limit * _DECREASE), limit - 1)
    if window in state.ceilings:  # a window that slides, or refills, lets only little pass soon after a probe
        passed = max(passed, math.floor(limit * _MOST_DECREASE))
    passed = max(passed, limit // _LEAST_PART[window], 1)
    return _lower(state.ceilings.get(window), passed, total)


def _to_blame(state: AdaptiveLimit, sent_at: float, limits: dict[str, int]) -> str:
    long = sent_at - state.closed_at > _LONGEST_MINUTE_SECONDS
    lowest = limits[MINUTE] == 1  # so it is not the minute that holds too much
    if long or lowest or state.strikes > _MINUTE_STRIKES:
        return HOUR
    # Near the hour's end the wait for it is short, too.
    nearly_full = limits[HOUR] and state.passed.get(HOUR, 0) >= _NEARLY_FULL * limits[HOUR]
    return HOUR if nearly_full and state.passed.get(MINUTE, 0) < _HALF_FULL * limits[MINUTE] else MINUTE


def _lower(ceiling: LearnedLimit | None, limit: int, total: int) -> LearnedLimit:
    if ceiling is None:
        return LearnedLimit(limit, total, patience=limit)
    patience = min(max(2 * ceiling.patience, limit), max(_MOST_PATIENCE, limit))
    return LearnedLimit(limit, total, patience, max(1 + (ceiling.step - 1) / 2, _LEAST_STEP), ceiling.own)


def raise_ceilings(state: AdaptiveLimit, *, total: int, limits: dict[str, int]) -> bool:
    """Raise what has passed long enough without a throttled answer; say whether anything changed.

    limits: the windows' own, 0 for no limit. A ceiling that has reached its own is kept for a while, so that its
    patience is remembered if that is too much after all. Processes may have other limits of their own: the largest
    counts, so that one's smaller limit does not forget what another needs.
    """
    changed = _widen(state, limits)
    if state.closed:
        return changed
    due = [(window, ceiling) for window, ceiling in state.ceilings.items() if _due(ceiling, total)]
    for window, ceiling in due:
        own = ceiling.own
        if own and ceiling.limit >= own:
            del state.ceilings[window]
            continue
        raised = max(math.ceil(ceiling.limit * ceiling.step), ceiling.limit + 1)
        ceiling.limit = min(raised, own) if own else raised
        ceiling.since = total
        ceiling.patience = max(ceiling.patience, ceiling.limit)
    return changed or bool(due)


def _widen(state: AdaptiveLimit, limits: dict[str, int]) -> bool:
    wider = [(window, ceiling) for window, ceiling in state.ceilings.items() if limits[window] > ceiling.own]
    for window, ceiling in wider:
        ceiling.own = limits[window]
    return bool(wider)


def _due(ceiling: LearnedLimit, total: int) -> bool:
    reached = ceiling.own and ceiling.limit >= ceiling.own
    return total - ceiling.since >= ceiling.patience * (_REMEMBERED if reached else 1)


def closing_seconds(strikes: int, hint: float | datetime | None, wall: float, rng: random.Random) -> float:
    """Give how long to close after so many throttled answers in a row, with jitter that only lengthens it.

    A hint is followed, up to an hour. Without one it is until the next minute's edge, then doubling, and never past
    the next hour's edge; so it is, too, when a hint has twice been too short. wall: now, seconds since 1970.
    """
    hinted, edge = hinted_seconds(hint, wall, LONGEST_HINT_SECONDS), _until_next_edge(strikes, wall)
    seconds = max(hinted, edge) if strikes > _MINUTE_STRIKES else hinted or edge
    return seconds * (1 + _JITTER * rng.random())


def _until_next_edge(strikes: int, wall: float) -> float:
    to_minute, to_hour = 60.0 - wall % 60.0, 3600.0 - wall % 3600.0
    later = 60.0 * (2.0 ** min(strikes - 1, 6) - 1)
    return min(max(to_minute, 1.0) + later, max(to_hour, 1.0))


def hinted_seconds(hint: float | datetime | None, wall: float, longest: float) -> float:
    """Give the seconds a server asked to wait, at most longest; 0.0 for no hint, zero and moments past.

    wall: now, seconds since 1970.
    """
    seconds = hint.timestamp() - wall if isinstance(hint, datetime) else hint or 0.0
    return min(max(seconds, 0.0), longest)


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
class ReportedLimits:
    """What Bitly has said of the endpoint. limit: per hour; None: nothing that makes sense. Times: elapsed seconds.

    base_*: Bitly's count and our total when its present hour was first seen, from which others' use is told.
    """

    asked_at: float
    asked_total: int
    limit: int | None = None
    count: int = 0
    base_count: int = 0
    base_total: int = 0

    def asking_pays(self, throttle: AdaptiveLimit, *, total: int, now: float, begin: bool) -> bool:
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
