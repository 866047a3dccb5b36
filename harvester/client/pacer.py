"""The pace that spreads attempts evenly over the minute's window (aiolimiter), the pauses that the server asks for, and
those before a call is repeated (tenacity); and the second request after a full answer.

The budget's windows are what keeps the limits; the pace only keeps a window from being spent in its first seconds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias

import tenacity
from aiolimiter import AsyncLimiter

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, larger
from harvester.bitly.verdicts import (
    Answer,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    Refused,
    Throttled,
    TokenRefused,
    Transient,
    Unknown,
    Unreadable,
    Verdict,
    reason,
)
from harvester.budget.budget import Budget
from harvester.budget.throttling import hinted_seconds
from harvester.clock import utc_iso
from harvester.errors import OutputError, RunStopping
from harvester.progress import WaitReason
from harvester.shutdown import ShutdownSignal, Stop, StopReason

_LONGEST_BACKOFF_SECONDS = 60.0


class RemainingCalls(Protocol):
    """The worklist, as far as the pace depends on it."""

    @property
    def remaining(self) -> int | None:
        """Calls that no worker has taken yet; None until the list was read to its end."""


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
        self._waiters: set[asyncio.Future[None]] = set()

    async def acquire(self, will_wait: Callable[[], None]) -> None:
        """Wait until an attempt keeps the pace.

        will_wait: called before a wait; the attempt's sender passes what makes it report that the pace holds it back.

        Raises:
            RunStopping: the run ended first.
        """
        per_minute = self._budget.limits.per_minute
        if per_minute != self._per_minute:
            self._per_minute, self._limiter = per_minute, _limiter(per_minute)
        if self._limiter is None:
            return
        if self._limiter.has_capacity():
            await self._limiter.acquire()  # at once
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

    async def _wait(self, limiter: AsyncLimiter) -> None:
        waiter = asyncio.ensure_future(limiter.acquire())
        self._waiters.add(waiter)
        try:
            # A waiter that `input_ended` has cancelled is done like any other: asyncio.wait does not raise for it.
            await self._shutdown.unless_stopping(asyncio.wait({waiter}))
        finally:
            waiter.cancel()
            self._waiters.discard(waiter)


def _limiter(per_minute: int) -> AsyncLimiter | None:
    """Return a limiter that smooths below the minute's window.

    Its burst is 1 % of the window: a full bucket would let nearly twice the limit through in its first minute, and a
    bucket of one cannot keep a high rate (measured: 1 % reaches 99.5 % at 500 a second).
    """
    if not per_minute:
        return None
    burst = max(per_minute // 100, 1)
    return AsyncLimiter(burst, burst * 60.0 / per_minute)


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


class Backoff(tenacity.wait.wait_base):
    """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

    The server's `Retry-After` counts if it asks for longer.
    """

    def __init__(self, seconds: float, pauses: HintedPauses) -> None:
        self._pauses = pauses
        self._jittered = tenacity.wait_random_exponential(multiplier=seconds, max=_LONGEST_BACKOFF_SECONDS)

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        """Return the seconds to wait before the next attempt."""
        return self._pauses.seconds(last_verdict(retry_state), self._jittered(retry_state))


def last_verdict(state: tenacity.RetryCallState) -> Verdict:
    """Return the verdict of a retrier's latest attempt."""
    assert state.outcome is not None
    result: Verdict = state.outcome.result()
    return result


class UnreadableTwice(tenacity.stop.stop_base):
    """Stops once two responses were not the facet's JSON: such a call is repeated once."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        """Return whether that is so."""
        self._seen += isinstance(last_verdict(retry_state), Unreadable)
        return self._seen > 1


SendQuery: TypeAlias = Callable[[str, Query, bool], Awaitable[Verdict | None]]
"""Sends a query for a link; True for one that is repeated. Returns None if it had to wait instead."""


class Completion:
    """Asks a link again for more metrics where its answer lists as many as were requested.

    Whether Bitly answers a larger size is not documented. If it refuses the size, it is not asked again in this run.
    query: None for requests that are none. max_size: the metrics to ask for; None to ask no link again. attempts,
    backoff_seconds: as for a call.
    """

    def __init__(
        self,
        send: SendQuery,
        shutdown: ShutdownSignal,
        query: Query | None,
        max_size: int | None,
        *,
        attempts: int,
        backoff_seconds: float,
    ) -> None:
        self._send = send
        self._shutdown = shutdown
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._query = query
        self._larger = larger(query, max_size) if query else None

    def is_due(self, verdict: Verdict) -> bool:
        """Return whether a verdict is an answer that may lack metrics, and Bitly may have more."""
        if self._larger is None or self._query is None or not isinstance(verdict, Answer):
            return False
        return FACETS[self._query.facet].is_full(verdict.metrics, self._query.size)

    async def of(self, bitlink: str, first: Verdict) -> Verdict:
        """Return the answer with more metrics, or the first one if Bitly has no other."""
        # The first answer is paid for, so nothing that happens from here on may lose it; its row says `truncated`.
        if (query := self._larger) is None:
            return first
        for tries in range(self._attempts):
            try:
                verdict: Verdict | None = None
                while verdict is None:
                    verdict = await self._send(bitlink, query, tries > 0)
                if isinstance(verdict, Transient):
                    await self._shutdown.sleep_unless_stopping(self._backoff_seconds * 2**tries)
            except RunStopping:
                return first
            if isinstance(verdict, Answer):
                return replace(verdict, larger_size=query.size)
            if not isinstance(verdict, Transient | Throttled):
                # A no to a link that has just been answered is one to the size.
                if isinstance(verdict, Refused | Unknown | ParameterRefused | PlanRefused):
                    self._larger = None
                break
        return first


def month_spent(verdict: MonthSpent, next_begins: datetime) -> Stop:
    """Return the stop for Bitly's report that the month is spent. next_begins: as in budget.Month."""
    message = f"Bitly says that the account's month is spent ({reason(verdict)})"
    return Stop(StopReason.MONTH_SPENT, message, utc_iso(next_begins))


def token_refused(verdict: TokenRefused) -> Stop:
    """Return the stop for a token that Bitly refuses."""
    return Stop(
        StopReason.TOKEN_REFUSED,
        f"Bitly refused the token ({reason(verdict)}). Make a new one under Settings > API and set "
        "BITLY_TOKEN, --token-file or --token-command",
    )
