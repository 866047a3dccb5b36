"""The pause after a throttled response, and the limits learned from it, as changes of an endpoint's state.

Pure: the budget stores the state and passes in the time.
"""

import math
import random
from dataclasses import replace
from datetime import datetime

from harvester.budget.limits import HOUR, MINUTE
from harvester.budget.states import EndpointThrottle, LearnedLimit

LONGEST_HINT_SECONDS = 3600.0
PROBE_SECONDS = 35.0
"""A probe without a response after this time counts as lost, together with its process."""
_JITTER = 0.1
"""A pause is lengthened by up to this fraction, so that several hosts do not send their probes at the same moment. It
is never shortened: a probe before the time asked for would be throttled again."""
RNG = random.SystemRandom()
"""For that fraction. It has no seed, whose making costs more than all that is drawn from it."""
_EARLY_SECONDS = 1.5
"""The pause after a first throttled response without a hint. It may be its link's own, or the server's mood: then a
probe passes at once, and nobody is held for a minute."""
_MINUTE_STRIKES = 2
"""A full minute window frees within this many pauses, not counting early ones; if more were needed, the hourly limit
was hit."""
_LONGEST_MINUTE_SECONDS = 150.0
"""The longest wait of two strikes (60 s each, plus jitter) and some time for the response."""
_NEARLY_FULL, _HALF_FULL = 0.9, 0.5
"""Fractions of hour and minute by which one is told from the other near the hour's end."""
_DECREASE = 0.9
"""A limit that was all used when it proved too high is lowered to this fraction."""
_MOST_DECREASE = 0.5
"""A limit that was learned before is lowered to no less than this fraction."""
_LEAST_STEP = 1.02
"""The smallest factor by which a learned limit is raised."""
_MOST_PATIENCE = 5000
"""The longest patience in attempts, unless the limit itself is larger."""
_REMEMBERED = 10
"""A learned limit that has reached the window's own limit is forgotten after this multiple of its patience."""
_LEAST_HOUR = 100
"""The least that an unlimited hour is lowered to in one step, if its minute has no limit either."""
_LEAST_PART = {MINUTE: 10, HOUR: 4}
"""One step lowers a window to no less than this fraction of its limit (one tenth, one quarter). A run that is throttled
by other clients' use soon after its start has measured next to nothing, and an hour's limit takes long to regain.
"""


_MOST_BEFORE = 8


class LearnedBefore:
    """The limits learned before the latest pauses, each by the bitlink whose attempt began the pause."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, LearnedLimit]] = {}

    def keep(self, bitlink: str, learned_limits: dict[str, LearnedLimit]) -> None:
        """Keep what was learned before a pause that begins now."""
        self._kept.pop(bitlink, None)
        self._kept[bitlink] = _copied(learned_limits)
        if len(self._kept) > _MOST_BEFORE:
            del self._kept[next(iter(self._kept))]

    def take(self, bitlink: str) -> dict[str, LearnedLimit] | None:
        """Return what was learned before a bitlink's pause, None if that began none; what came later is forgotten."""
        began = list(self._kept)
        if bitlink not in self._kept:
            return None
        for later in began[began.index(bitlink) + 1 :]:
            self._kept[later] = _copied(self._kept[bitlink])
        return self._kept.pop(bitlink)


def _copied(learned_limits: dict[str, LearnedLimit]) -> dict[str, LearnedLimit]:
    return {window: replace(learned) for window, learned in learned_limits.items()}


def pause_as_hinted(
    state: EndpointThrottle,
    hint: float | datetime | None,
    wall: float,
    rng: random.Random,
    *,
    now: float,
    passed: dict[str, int],
) -> None:
    """Pause the endpoint after a throttled response. hint, wall, rng: as in `pause_seconds`. passed: as in `pause`."""
    early = early_seconds(state, hint, wall, rng)
    seconds = early or pause_seconds(state.strikes - state.early + 1, hint, wall, rng)
    pause(state, now=now, seconds=seconds, passed=passed, early=early > 0.0)


def pause(state: EndpointThrottle, *, now: float, seconds: float, passed: dict[str, int], early: bool = False) -> None:
    """Pause the endpoint for `seconds` after a throttled response. passed: as in EndpointThrottle. early: the seconds
    are those of `early_seconds`.
    """
    if not state.paused:
        state.passed, state.full, state.began_at = dict(passed), False, now
    state.early = state.early or early
    state.strikes += 1
    state.paused_at = now
    state.opens_at = now + seconds
    state.probing = False


def note_late(state: EndpointThrottle) -> None:
    """Correct `passed` by one attempt: it was sent before the pause began, and its response was throttled, too."""
    state.passed = {window: max(passed - 1, 0) for window, passed in state.passed.items()}


def note_full(state: EndpointThrottle) -> None:
    """Record that Bitly reports its hour as used up, where our own hourly limit is no larger than Bitly's."""
    state.full = state.paused


def begin_probe(state: EndpointThrottle, now: float) -> None:
    """Make the attempt that is sent now the probe."""
    state.probing, state.opens_at = True, now + PROBE_SECONDS


def reopen(state: EndpointThrottle, *, sent_at: float, total: int, limits: dict[str, int]) -> None:
    """Reopen the endpoint for all processes after a probe that passed, and lower the window whose limit was hit, once
    that is confirmed.

    total: attempts so far. limits: each window's limit in force, 0 for none.
    """
    # Bitly does not say which limit was hit. The time it took to pass again does: a sliding minute frees within about
    # two minutes, so a longer wait means the hour. That window's new limit is what last passed in it. From then on it
    # is raised by a factor after some patience, and each time the raised limit proves too high, the factor gets smaller
    # and the patience longer, so that the limit settles just below Bitly's.
    #
    # If Bitly reported its hour as used up there is nothing to learn: our limit is right, and other clients of the same
    # token used the rest.
    #
    # One throttled response alone may be the server's mood at that moment. A few attempts into a run it would teach a
    # limit of those few, and the run would crawl for minutes. So it is waited out, and teaches when it is confirmed.
    window = _to_blame(state, sent_at, limits)
    if not state.full and _is_confirmed(state, window, sent_at, limits):
        state.learned_limits[window] = _learned(state, window, total, limits)
        state.suspected.pop(window, None)
    state.opens_at, state.probing, state.strikes, state.early = None, False, 0, False
    # The minute lies within the hour: a new hour is a new minute, and a new minute is still the same hour.
    for inner in (MINUTE, HOUR) if window == HOUR else (MINUTE,):
        state.reopened[inner] = total - 1


def _is_confirmed(state: EndpointThrottle, window: str, sent_at: float, limits: dict[str, int]) -> bool:
    """Return whether a throttled response was no exception; if it may be one, remember what had passed before it."""
    passed, suspected = state.passed.get(window, 0), state.suspected.get(window)
    # If an early probe passes, the windows cannot have been full, unless one has just ended.
    early = state.early and state.strikes == 1
    long = sent_at - state.paused_at > _LONGEST_MINUTE_SECONDS
    nearly_full = 0 < _NEARLY_FULL * limits[window] <= passed
    if window in state.learned_limits or long or (not early and (state.strikes > 1 or nearly_full)):
        return True
    if suspected is not None and passed <= 2 * suspected:
        # A server that slides or refills lets less pass after a probe than before it.
        state.passed[window] = max(passed, suspected)
        return True
    state.suspected[window] = passed
    return False


def _learned(state: EndpointThrottle, window: str, total: int, limits: dict[str, int]) -> LearnedLimit:
    passed, limit = state.passed.get(window, 0), limits[window]
    if window == HOUR and not limit:  # nothing is known of the hour, except that it holds a minute
        passed = max(passed, limits[MINUTE] or _LEAST_HOUR)
    if limit and passed >= limit:  # Bitly's windows begin at other moments than ours
        passed = min(math.floor(limit * _DECREASE), limit - 1)
    if window in state.learned_limits:  # a sliding or refilling window lets little pass soon after a probe
        passed = max(passed, math.floor(limit * _MOST_DECREASE))
    passed = max(passed, limit // _LEAST_PART[window], 1)
    return _lower(state.learned_limits.get(window), passed, total)


def _to_blame(state: EndpointThrottle, sent_at: float, limits: dict[str, int]) -> str:
    long = sent_at - state.paused_at > _LONGEST_MINUTE_SECONDS
    lowest = limits[MINUTE] == 1  # the minute cannot be lowered any further
    if long or lowest or state.strikes - state.early > _MINUTE_STRIKES:
        return HOUR
    # Near the hour's end the wait for the hour is short, too. It was the hour if that was nearly full, but the minute
    # not even half.
    nearly_full = limits[HOUR] and state.passed.get(HOUR, 0) >= _NEARLY_FULL * limits[HOUR]
    return HOUR if nearly_full and state.passed.get(MINUTE, 0) < _HALF_FULL * limits[MINUTE] else MINUTE


def _lower(learned: LearnedLimit | None, limit: int, total: int) -> LearnedLimit:
    if learned is None:
        return LearnedLimit(limit, total, patience=limit)
    patience = min(max(2 * learned.patience, limit), max(_MOST_PATIENCE, limit))
    return LearnedLimit(limit, total, patience, max(1 + (learned.step - 1) / 2, _LEAST_STEP), learned.own)


def raise_learned_limits(state: EndpointThrottle, *, total: int, limits: dict[str, int]) -> bool:
    """Raise each learned limit whose patience is over; return True if the state changed.

    limits: the windows' own, without what was learned; 0 for none.
    """
    # A learned limit that has reached the window's own limit is kept for a while, so that its patience is not lost if
    # that limit proves too high after all. Processes may be configured with different limits: the largest one counts,
    # because a process with a smaller one would otherwise forget a learned limit that another still needs.
    changed = False
    for window, learned in list(state.learned_limits.items()):
        if limits[window] > learned.own:
            learned.own, changed = limits[window], True
        reached = 0 < learned.own <= learned.limit
        due = total - learned.since >= learned.patience * (_REMEMBERED if reached else 1)
        if state.paused or not due:
            continue
        changed = True
        if reached:
            del state.learned_limits[window]
        else:
            _raise(learned, total)
    return changed


def _raise(learned: LearnedLimit, total: int) -> None:
    raised = max(math.ceil(learned.limit * learned.step), learned.limit + 1)
    learned.limit = min(raised, learned.own) if learned.own else raised
    learned.since = total
    learned.patience = max(learned.patience, learned.limit)


def pause_seconds(strikes: int, hint: float | datetime | None, wall: float, rng: random.Random) -> float:
    """Return the seconds to pause. strikes: throttled responses in a row. wall: now, seconds since 1970.

    A hint is followed, up to an hour. Without one, and from the third strike on if the hint is shorter, the pause ends
    at the next minute's edge, then grows by doubling, but never past the next hour's edge.
    """
    hinted, edge = hinted_seconds(hint, wall, LONGEST_HINT_SECONDS), _until_next_edge(strikes, wall)
    seconds = max(hinted, edge) if strikes > _MINUTE_STRIKES else hinted or edge
    return seconds * (1 + _JITTER * rng.random())


def early_seconds(state: EndpointThrottle, hint: float | datetime | None, wall: float, rng: random.Random) -> float:
    """Return the seconds until an early probe; 0.0 for none. hint, wall, rng: as in `pause_seconds`."""
    # Where a limit was learned, and not forgotten again as one link's own, it is the likely cause.
    known = state.strikes or state.learned_limits
    if known or hinted_seconds(hint, wall, LONGEST_HINT_SECONDS):
        return 0.0
    return _EARLY_SECONDS * (1 + _JITTER * rng.random())


def _until_next_edge(strikes: int, wall: float) -> float:
    to_minute, to_hour = 60.0 - wall % 60.0, 3600.0 - wall % 3600.0
    later = 60.0 * (2.0 ** min(strikes - 1, 6) - 1)
    return min(max(to_minute, 1.0) + later, max(to_hour, 1.0))


def hinted_seconds(hint: float | datetime | None, wall: float, longest: float) -> float:
    """Return the seconds that a server asked to wait, at most `longest`; 0.0 for no hint, zero or a past moment.

    wall: now, seconds since 1970.
    """
    seconds = hint.timestamp() - wall if isinstance(hint, datetime) else hint or 0.0
    return min(max(seconds, 0.0), longest)
