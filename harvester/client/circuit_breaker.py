"""The gate: closed for everyone while the server is out, and opened by one probe."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from harvester.budget.limits import RetryAfter

OUTAGE = "outage"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When the gate closes, and for how long.

    An outage begins when nearly all (share) of the last streak calls failed in passing at their first attempt. Its
    probes wait first_probe_seconds, then twice as long each time up to longest_probe_seconds; past limit_seconds it is
    over_limit. Every witness_every-th probe is a link that answered before, if there is one. What a witness has shown
    holds for trust_seconds.
    """

    streak: int = 20
    share: float = 0.9
    first_probe_seconds: float = 5.0
    longest_probe_seconds: float = 60.0
    limit_seconds: float = 15 * 60.0
    witness_every: int = 3
    trust_seconds: float = 60.0
    jitter: float = 0.1
    poll_seconds: float = 0.2


_ENOUGH = 5
"""So many first attempts say how the server is; fewer do not."""
_LATELY_SECONDS = 60.0
"""An answer to others that is older says nothing of a call that has failed just now."""
_CALM_SECONDS = 300.0
"""An outage that begins later than so long after the last one's end is another."""


class CircuitBreaker:
    """Closed for everyone while nearly everything fails in passing: that is the server's fault, not the links'.

    While it is closed nothing is sent. When its time is over one attempt goes ahead, the probe, and its answer opens
    the gate or closes it for longer. clock: elapsed seconds.
    """

    def __init__(self, rules: BreakerRules, clock: Callable[[], float], rng: random.Random | None = None) -> None:
        self._rules = rules
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads clients, guards nothing
        self._closed = False
        self._opens_at = 0.0
        self._probing = False
        self._witnesses_needed = 0
        self._strikes = 0
        self._streak = rules.streak
        self._recent: deque[bool] = deque(maxlen=rules.streak)
        self._outage_began = 0.0
        self._opened_at = float("-inf")
        self._trusted_until = float("-inf")
        self._answered_at = float("-inf")
        self._failed_at = float("-inf")
        self.probes_failed = 0

    @property
    def outage(self) -> bool:
        """True while transient failures are the server's, and are charged to no call."""
        return self._closed

    @property
    def over_limit(self) -> bool:
        """True when an outage has lasted longer than the run should wait, by the last attempt that failed.

        Not by the clock: who waits for the hour's window learns nothing of the server.
        """
        return self._closed and self._failed_at - self._outage_began > self._rules.limit_seconds

    @property
    def wants_witness(self) -> bool:
        """True when the next probe should be a link that answered before: fresh ones may be at fault themselves."""
        every = self._rules.witness_every
        return self._closed and (self._witnesses_needed > 0 or self._strikes % every == every - 1)

    @property
    def ever_answered(self) -> bool:
        """True when somebody has been answered."""
        return self._answered_at > float("-inf")

    def blames(self, failed_at: float) -> bool:
        """Say whether a call that first failed at failed_at (elapsed seconds) has done so by its own fault.

        So it is when others were answered since, and lately, and most of them; or when a witness was, not long ago.
        """
        now = self._clock()
        if now < self._trusted_until:
            return True
        healthy = len(self._recent) >= _ENOUGH and 2 * sum(self._recent) >= len(self._recent)
        # Where few calls may go, hours can lie between a call's attempts, and two outages.
        return healthy and self._answered_at > max(failed_at, now - _LATELY_SECONDS)

    def closed(self, *, fresh: bool = True) -> RetryAfter | None:
        """Give how long to wait before asking to enter; None if that may be worth it now.

        fresh: False for a call that has failed before. It is no probe, because it may be its own fault that it fails.
        """
        if not self._closed:
            return None
        left = self._opens_at - self._clock()
        if left > 0:
            return RetryAfter(left, OUTAGE)
        if self._probing or not fresh:
            return RetryAfter(self._rules.poll_seconds, OUTAGE)
        return None

    def enter(self, *, fresh: bool = True) -> RetryAfter | None:
        """Give None if an attempt may pass; when the gate's time is over the first to enter becomes the probe."""
        if not self._closed:
            return None
        wait = self.closed(fresh=fresh)
        self._probing = self._probing or wait is None
        return wait

    def leave(self, *, sent_at: float) -> None:
        """An attempt that had entered was not sent after all: let another probe go."""
        if self._closed and sent_at >= self._opens_at:
            self._probing = False

    def record_success(self, *, evidence: bool = False, witness: bool = False) -> None:
        """An answer came that was not transient: the server is there.

        evidence: to the first attempt of a call that has never failed. witness: to a link that had answered before. If
        that ends an outage the links were at fault, and it takes twice as many of them to begin the next one, until a
        fresh call is answered.
        """
        self._answered_at = self._clock()
        if evidence:
            self._recent.append(True)
            self._set_streak(self._rules.streak)
        if not self._closed:
            return
        if witness and self._witnesses_needed > 1:  # some are answered and most are not: one more might be chance
            self._witnesses_needed -= 1
            self._close(self._answered_at, 0.0)
            return
        self._open(self._answered_at)
        if witness:
            self._recent.clear()
            self._trusted_until = self._answered_at + self._rules.trust_seconds
            self._opened_at = float("-inf")
            self._set_streak(2 * self._streak)

    def throttled(self) -> None:
        """A throttled answer came: somebody is there again, and whether calls are answered is not said."""
        if self._closed:
            self._open(self._clock())

    def record_failure(self, *, sent_at: float, evidence: bool) -> None:
        """An attempt failed in passing; when nearly everything does, it is an outage.

        evidence: True for the first attempt of a call that has never failed; another may fail by its own fault.
        """
        now = self._clock()
        if evidence:
            self._recent.append(False)
        if self._closed:
            if sent_at >= self._opens_at:
                self._strikes += not self._witnesses_needed
                self._witnesses_needed = 0
                self.probes_failed += 1
                self._failed_at = now
                self._close(now, self._probe_interval())
        elif evidence and self._recent.count(False) >= self._rules.share * self._streak:
            self._begin(now)
            self._failed_at = now
            self._close(now, self._probe_interval())

    def doubt(self) -> None:
        """Begin what may be an outage: a witness is to say at once whether the server is there.

        Where a few have been answered of late it takes two: a server that answers only some is not well either.
        """
        if not self._closed:
            now = self._clock()
            self._begin(now)
            answered, asked = sum(self._recent), len(self._recent)
            self._witnesses_needed = 2 if asked >= _ENOUGH and 0 < 2 * answered < asked else 1
            self._close(now, 0.0)

    def _begin(self, now: float) -> None:
        self._strikes = 0
        if now - self._opened_at > _CALM_SECONDS:
            self._outage_began = now

    def _open(self, now: float) -> None:
        self._closed, self._probing, self._witnesses_needed = False, False, 0
        self._opened_at = now

    def _set_streak(self, streak: int) -> None:
        if streak != self._streak:
            self._streak = streak
            self._recent = deque(self._recent, maxlen=streak)

    def _close(self, now: float, seconds: float) -> None:
        self._closed, self._probing = True, False
        self._opens_at = now + seconds * (1 + self._rules.jitter * self._rng.random())

    def _probe_interval(self) -> float:
        interval = self._rules.first_probe_seconds * 2.0 ** min(self._strikes, 10)
        return min(interval, self._rules.longest_probe_seconds)
