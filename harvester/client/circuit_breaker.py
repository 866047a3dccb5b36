"""The circuit breaker: open, and nothing is sent, while the server is out; closed again by one probe.

Closed, it lets everything through and watches the last 20 first attempts. When 18 of them failed with a transient
error the server is out, not the links: the breaker opens, every worker waits, and failures are charged to no call.
After an interval it is half-open: a single attempt passes, the probe, while all others still wait. A non-transient
response to it closes the breaker, a failure opens it for twice as long, up to a minute.

Only evidence counts, that is first attempts of calls that never failed before: a call that keeps failing would keep
failing at a healthy server too. For the same reason a fresh call or a known-good link (one that was answered before)
is sent as probe. If the known-good link is answered where fresh ones are not, the links were at fault after all; then
it takes twice as many failures to open the breaker again, until a fresh call succeeds.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from harvester.budget.limits import RetryAfter

OUTAGE = "outage"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When the breaker opens, and for how long.

    streak, share: it opens when this share of the last `streak` first attempts failed. first_probe_seconds: the first
    interval, doubled after each failed probe up to longest_probe_seconds. limit_seconds: the longest outage to wait
    for. known_good_every: every such probe is a known-good link. trust_seconds: how long a known-good link's success
    proves that the server works. poll_seconds: the wait while a probe is under way. jitter: lengthens intervals.
    """

    streak: int = 20
    share: float = 0.9
    first_probe_seconds: float = 5.0
    longest_probe_seconds: float = 60.0
    limit_seconds: float = 15 * 60.0
    known_good_every: int = 3
    trust_seconds: float = 60.0
    jitter: float = 0.1
    poll_seconds: float = 0.2


_ENOUGH_ATTEMPTS = 5
"""Fewer first attempts than this do not show how the server is."""
_RECENT_SECONDS = 60.0
"""An older response to another call says nothing about a call that has failed just now."""
_SAME_OUTAGE_SECONDS = 300.0
"""An outage that begins sooner after the last one's end continues it, for limit_seconds."""
_NEVER = float("-inf")
_RNG = random.SystemRandom()
"""Without a seed, whose making costs more than all that is drawn from it."""


class CircuitBreaker:
    """Stops all sending during an outage. clock: seconds since boot.

    is_open: nothing but a probe is sent, and transient failures are charged to no call. probes_failed: in all.
    """

    def __init__(self, rules: BreakerRules, clock: Callable[[], float], rng: random.Random | None = None) -> None:
        self.is_open = False
        self.probes_failed = 0
        self._rules = rules
        self._clock = clock
        self._rng = rng or _RNG
        self._half_open_at = 0.0
        self._probing = False
        self._successes_needed = 0
        self._strikes = 0
        self._streak = rules.streak
        self._recent: deque[bool] = deque(maxlen=rules.streak)
        self._outage_began = 0.0
        self._closed_at = self._trusted_until = self._answered_at = self._failed_at = _NEVER

    @property
    def over_limit(self) -> bool:
        """True once the outage has lasted for limit_seconds, by its last failed attempt.

        Not by the clock: while the hour's window is full nothing is learned about the server.
        """
        return self.is_open and self._failed_at >= self._limit_at

    @property
    def _limit_at(self) -> float:
        return self._outage_began + self._rules.limit_seconds

    @property
    def wants_known_good(self) -> bool:
        """True if the next probe should be a known-good link, because fresh calls may fail by their own fault."""
        every = self._rules.known_good_every
        return self.is_open and (self._successes_needed > 0 or self._strikes % every == every - 1)

    @property
    def ever_answered(self) -> bool:
        """True once any call was answered."""
        return self._answered_at > _NEVER

    def blames(self, failed_at: float) -> bool:
        """Return whether a call that first failed at failed_at has failed by its own fault.

        It has if other calls were answered since, recently, and at least half of them; or if a known-good link was
        answered within trust_seconds.
        """
        now = self._clock()
        if now < self._trusted_until:
            return True
        healthy = len(self._recent) >= _ENOUGH_ATTEMPTS and 2 * sum(self._recent) >= len(self._recent)
        # Under tight limits hours, and two outages, may lie between a call's attempts.
        return healthy and self._answered_at > max(failed_at, now - _RECENT_SECONDS)

    # --- may an attempt pass? --------------------------------------------------------------------------------------

    def wait_before_sending(self, *, may_probe: bool = True) -> RetryAfter | None:
        """Return None if an attempt may try to enter now, otherwise how long to wait.

        may_probe: False for a call that has failed before.
        """
        if not self.is_open:
            return None
        if self.over_limit:
            return RetryAfter(0.0, OUTAGE)  # nobody waits: the run ends
        left = self._half_open_at - self._clock()
        if left > 0:
            return RetryAfter(left, OUTAGE)
        if self._probing or not may_probe:
            return RetryAfter(self._rules.poll_seconds, OUTAGE)
        return None

    def enter(self, *, may_probe: bool = True) -> RetryAfter | None:
        """Return None if the attempt passes, otherwise how long to wait; half-open, the first to pass is the probe."""
        if not self.is_open:
            return None
        wait = self.wait_before_sending(may_probe=may_probe)
        self._probing = self._probing or wait is None
        return wait

    def leave(self, *, sent_at: float) -> None:
        """Withdraw an attempt that had entered and was not sent: another one may be the probe."""
        if self.is_open and sent_at >= self._half_open_at:
            self._probing = False

    # --- what came of attempts -------------------------------------------------------------------------------------

    def record_success(self, *, evidence: bool = False, known_good: bool = False) -> None:
        """Record a non-transient response; closes the breaker if it was the probe.

        evidence: to the first attempt of a call that never failed. known_good: to a link that was answered before.
        """
        self._answered_at = self._clock()
        if evidence:
            self._recent.append(True)
            if self._streak != self._rules.streak:
                self._resize(self._rules.streak)
        if not self.is_open:
            return
        if known_good and self._successes_needed > 1:  # most recent calls failed: one success might be chance
            self._successes_needed -= 1
            self._open(self._answered_at, 0.0)
            return
        self._close(self._answered_at)
        if known_good:
            self._recent.clear()
            self._trusted_until = self._answered_at + self._rules.trust_seconds
            self._closed_at = _NEVER  # there was no outage that a later one could continue
            self._resize(2 * self._streak)

    def throttled(self) -> None:
        """Record a throttled response, which closes the breaker: the server is there."""
        if self.is_open:
            self._close(self._clock())

    def record_failure(self, *, sent_at: float, evidence: bool) -> None:
        """Record a transient failure; opens the breaker when nearly all recent first attempts failed.

        evidence: the first attempt of a call that never failed.
        """
        now = self._clock()
        if evidence:
            self._recent.append(False)
        if self.is_open:
            if sent_at < self._half_open_at:  # not the probe: it was under way when the breaker opened
                return
            self._strikes += not self._successes_needed
            self._successes_needed = 0
            self.probes_failed += 1
        elif evidence and self._recent.count(False) >= self._rules.share * self._streak:
            self._begin_outage(now)
        else:
            return
        self._failed_at = now
        self._open(now, self._probe_interval())

    def suspect(self) -> None:
        """Open at once to a probe by a known-good link, which shows whether the server is out.

        Where only a minority of recent calls was answered it takes two successes: such a server is not well either.
        """
        if not self.is_open:
            now = self._clock()
            self._begin_outage(now)
            answered, attempts = sum(self._recent), len(self._recent)
            self._successes_needed = 2 if attempts >= _ENOUGH_ATTEMPTS and 0 < 2 * answered < attempts else 1
            self._open(now, 0.0)

    # --- states ----------------------------------------------------------------------------------------------------

    def _begin_outage(self, now: float) -> None:
        self._strikes = 0
        if now - self._closed_at > _SAME_OUTAGE_SECONDS:
            self._outage_began = now

    def _open(self, now: float, seconds: float) -> None:
        self.is_open, self._probing = True, False
        self._half_open_at = now + seconds * (1 + self._rules.jitter * self._rng.random())
        if now < self._limit_at:  # the last probe goes at the limit, not after it
            self._half_open_at = min(self._half_open_at, self._limit_at)

    def _close(self, now: float) -> None:
        self.is_open, self._probing, self._successes_needed = False, False, 0
        self._closed_at = now

    def _resize(self, streak: int) -> None:
        if streak != self._streak:
            self._streak = streak
            self._recent = deque(self._recent, maxlen=streak)

    def _probe_interval(self) -> float:
        interval = self._rules.first_probe_seconds * 2.0 ** min(self._strikes, 10)
        return min(interval, self._rules.longest_probe_seconds)
