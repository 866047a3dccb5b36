"""The pace that spreads attempts evenly over the minute's window (aiolimiter), the pauses that the server asks for, and
those before a call is repeated (tenacity).

The budget's windows are what keeps the limits; the pace only keeps a window from being spent in its first seconds.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from harvester.bitly.verdicts import Transient, Unknown, Verdict, reason
from harvester.budget.budget import Budget
from harvester.budget.throttling import hinted_seconds
from harvester.errors import OutputError
from harvester.progress import WaitReason
from harvester.shutdown import ShutdownSignal

if TYPE_CHECKING:
    import tenacity
    from aiolimiter import AsyncLimiter

_LONGEST_BACKOFF_SECONDS = 60.0
_MOST_AT_ONCE = 64
"""Where thousands of attempts a second keep the pace, so many may keep it together: no more than a 64th of a burst."""
_IN_VAIN = 12
"""After this many attempts in a row that repeated calls with a strange answer in vain, such answers are the links' own.
Where two thirds of all requests are blocked at random, one such row in a hundred is as long."""


class RemainingCalls(Protocol):
    """The worklist, as far as the pace depends on it."""

    @property
    def remaining(self) -> int | None:
        """Calls that no worker has taken yet; None until the list was read to its end."""


class AtOnce:
    """A worklist that is never paced: its few calls are made one after another, and the windows bound them."""

    remaining = 0


class Pacer:
    """Holds attempts back so that the minute's window fills evenly.

    worklist: None paces every attempt; may be set once it exists.
    """

    def __init__(self, budget: Budget, shutdown: ShutdownSignal) -> None:
        self.worklist: RemainingCalls | None = None
        self._budget = budget
        self._shutdown = shutdown
        self._per_minute = 0
        self._limiter: AsyncLimiter | None = None
        self._in_hand = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def lets_pass(self) -> bool:
        """Return True for an attempt that needs no `acquire`: nothing is paced, or it was let pass with another one."""
        if self._budget.limits.per_minute != self._per_minute:
            return False
        if self._in_hand:
            self._in_hand -= 1
            return True
        return not self._per_minute

    async def acquire(self, will_wait: Callable[[], None]) -> None:
        """Wait until an attempt keeps the pace.

        will_wait: called before a wait; the attempt's sender passes what makes it report that the pace holds it back.

        Raises:
            RunStopping: the run ended first.
        """
        per_minute = self._budget.limits.per_minute
        if per_minute != self._per_minute:
            self._per_minute, self._limiter, self._in_hand = per_minute, None, 0
            return  # the first attempt would go at once anyway: a run of one link needs no limiter, nor its import
        if not per_minute:
            return
        if self._limiter is None:
            if self._rest_fits():
                return
            self._limiter = _limiter(per_minute)
            await self._limiter.acquire()  # at once, for the first attempt
        several = min(max(_burst(per_minute) // _MOST_AT_ONCE, 1), _MOST_AT_ONCE)
        if self._limiter.has_capacity(several):
            await self._limiter.acquire(several)  # at once
            self._in_hand = several - 1
            return
        # The pace is pointless where all that is left fits into the window: a list of 80 links under 100 a minute goes
        # at once. So an attempt that would wait asks: is the list known to end, and are fewer calls left than may go?
        will_wait()
        if not self._rest_fits():
            await self._wait(self._limiter)

    def input_ended(self) -> None:
        """Release all waiters at once if the remaining calls fit into the free window; called at the input's end."""
        if self._waiters and self._rest_fits():
            for waiter in self._waiters:
                waiter.cancel()

    def _rest_fits(self) -> bool:
        remaining = self.worklist.remaining if self.worklist else None
        if remaining is None:
            return False
        with suppress(OutputError):  # busy: the pace holds. Broken: the budget says so before the attempt is sent
            return remaining < self._budget.room()
        return False

    async def _wait(self, limiter: "AsyncLimiter") -> None:
        waiter = asyncio.ensure_future(limiter.acquire())
        self._waiters.add(waiter)
        try:
            # A waiter that `input_ended` has cancelled is done like any other: asyncio.wait does not raise for it.
            await self._shutdown.unless_stopping(asyncio.wait({waiter}))
        finally:
            waiter.cancel()
            self._waiters.discard(waiter)


def _limiter(per_minute: int) -> "AsyncLimiter":
    """Return a limiter that smooths below the minute's window.

    Its burst is 1 % of the window: a full bucket would let nearly twice the limit through in its first minute, and a
    bucket of one cannot keep a high rate (measured: 1 % reaches 99.5 % at 500 a second).
    """
    from aiolimiter import AsyncLimiter  # noqa: PLC0415 - few links are not paced

    burst = _burst(per_minute)
    return AsyncLimiter(burst, burst * 60.0 / per_minute)


def _burst(per_minute: int) -> int:
    return max(per_minute // 100, 1)


_LONGEST_HINT_SECONDS = 300.0


class HintedPauses:
    """The pauses before the next attempt of single calls, as the server asked for them with Retry-After.

    Other calls go on meanwhile; where there are none, the pauses are why nothing is sent.
    """

    def __init__(self) -> None:
        self._pauses: list[tuple[float, WaitReason]] = []

    def seconds(self, verdict: Verdict, least: float) -> float:
        """Return how long to wait after a verdict, and record a pause that its hint makes longer than `least`."""
        hint = verdict.hint if isinstance(verdict, Transient) else None
        hinted = hinted_seconds(hint, time.time(), _LONGEST_HINT_SECONDS)
        if hinted > least:
            until = datetime.now(UTC) + timedelta(seconds=hinted)
            self._pauses.append((time.monotonic() + hinted, WaitReason("retry_after", 0, until, reason(verdict))))
        return max(hinted, least)

    @property
    def first(self) -> WaitReason | None:
        """The pause that ends first, None if there is none."""
        self._pauses = [each for each in self._pauses if each[0] > time.monotonic()]
        return min(self._pauses, key=lambda each: each[0])[1] if self._pauses else None


class Backoff:
    """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

    The server's `Retry-After` counts if it asks for longer.
    """

    def __init__(self, seconds: float, pauses: HintedPauses) -> None:
        import tenacity  # noqa: PLC0415 - most runs of a link repeat nothing

        self._pauses = pauses
        self._jittered = tenacity.wait_random_exponential(multiplier=seconds, max=_LONGEST_BACKOFF_SECONDS)

    def __call__(self, retry_state: "tenacity.RetryCallState") -> float:
        """Return the seconds to wait before the next attempt."""
        return self._pauses.seconds(last_verdict(retry_state), self._jittered(retry_state))


def last_verdict(state: "tenacity.RetryCallState") -> Verdict:
    """Return the verdict of a retrier's latest attempt."""
    assert state.outcome is not None
    result: Verdict = state.outcome.result()
    return result


class StrangeAnswers:
    """Answers that no rule knows, or that are not the facet's JSON: may a call that had one be repeated?

    As a rule the first is the link's own, and the other is repeated once. But some firewalls block requests at random.
    They are known by a call that failed in an earlier run and is answered after all: from then on such calls are
    repeated as after any other failure, until a dozen attempts in a row were in vain.
    """

    def __init__(self) -> None:
        self._in_vain = _IN_VAIN

    @property
    def _at_random(self) -> bool:
        return self._in_vain < _IN_VAIN

    def is_final(self, verdict: Verdict, unreadable: int) -> bool:
        """Return whether a call ends with such a verdict. unreadable: its answers so far that were not the JSON."""
        return not self._at_random and (isinstance(verdict, Unknown) or unreadable > 1)

    def passed(self) -> None:
        """Record that a call which failed in an earlier run was answered."""
        self._in_vain = 0

    def repeated(self, *, answered: bool) -> None:
        """Record what came of an attempt that repeated a call which had such an answer."""
        if self._at_random:
            self._in_vain = 0 if answered else self._in_vain + 1


def retrier(
    attempts: int, backoff: Backoff, shutdown: ShutdownSignal, may_pass: Callable[[Verdict], bool]
) -> "tenacity.AsyncRetrying":
    """Return what repeats one call until its verdict is none that may pass, `attempts` times at most in all."""
    import tenacity  # noqa: PLC0415

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(may_pass),
        stop=tenacity.stop_after_attempt(attempts),
        wait=backoff,
        sleep=shutdown.sleep_unless_stopping,
        retry_error_callback=last_verdict,
    )
