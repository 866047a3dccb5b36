"""One call to its verdict: attempts, retries, and whose fault it is when they fail.

A throttled response, and any transient failure while the breaker is open, is the server's fault: the attempt is
repeated and the call is charged nothing. Before a call is written off as failed, it must be shown that the server
answers others: most calls since it first failed were answered, and one recently. Otherwise a known-good link decides,
one that was answered before: if that fails too, the server is out and the call is repeated later.
"""

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import tenacity

from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer, Hint, Throttled, TokenRefused, Transient, Unreadable, Verdict
from harvester.budget.throttling import hinted_seconds
from harvester.client.attempt import AttemptSender, ClientContext
from harvester.client.connection_slots import ConnectionSlots
from harvester.client.http import Pool, Slot, pooled
from harvester.client.pacer import RemainingCalls
from harvester.errors import OutputError

KNOWN_GOOD_LINKS = 8
"""How many are remembered; several, because one may come to fail by itself."""
_LATE_SECONDS = 0.2
"""If connecting took longer than this, too little of the budget's safety margin of 0.5 s is left for the network."""
_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_HINT_SECONDS = 300.0
_SOON_SECONDS = 10.0
"""A known-good link that is answered longer than this after a call's failure says nothing about that failure."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to make calls. attempts: tries before a call has failed. timeout_seconds: for one try in all."""

    base_url: str
    connections: int
    attempts: int
    timeout_seconds: float
    backoff_seconds: float = 1.0


class Client:
    """Makes calls; created by `opened`.

    known_good_links: bitlinks that were answered, the latest last; those of an earlier run may be added.
    """

    def __init__(self, pool: Pool, settings: ClientSettings, query: Query, context: ClientContext) -> None:
        self.sender = AttemptSender(
            pool, query, context, base_url=settings.base_url, timeout_seconds=settings.timeout_seconds
        )
        self.known_good_links: deque[str] = deque(maxlen=KNOWN_GOOD_LINKS)
        self._fresh_calls = 0
        self._settings = settings
        self._token = context.token
        self._budget = context.budget
        self._breaker = context.breaker
        self._shutdown = context.shutdown
        self._clock = context.clock

    def pace_by(self, worklist: RemainingCalls) -> None:
        """Send without pacing once the calls that remain in the worklist fit into the free window."""
        self.sender.pacer.worklist = worklist

    def input_ended(self) -> None:
        """Release the attempts that wait for the pace if the remaining calls fit; called at the input's end."""
        self.sender.pacer.input_ended()

    async def fetch(self, bitlink: str, *, fresh: bool = True) -> Verdict:
        """Make a call's first attempt and return its verdict, which is never Throttled.

        fresh: False for a call that failed in an earlier run: if it fails again, that says nothing about the server.

        Raises:
            RunStopping: the run ended before the attempt was sent.
        """
        self._fresh_calls += fresh
        try:
            return await self._attempt(bitlink, fresh=fresh, again=False)
        finally:
            self._fresh_calls -= fresh

    async def retry(self, bitlink: str, first: Verdict) -> tuple[Verdict, int]:
        """Repeat a call whose first attempt had a Transient or Unreadable verdict; return the last verdict, and how
        many attempts the call was charged in all.

        Raises:
            RunStopping: the run ended first; the call is left for the next run.
        """
        # The retrier starts with the first attempt's verdict, so that its stop and wait rules count that attempt too.
        # In an outage it is charged to no call, so the retrier starts from nothing. Each call has a retrier of its own:
        # tasks that share one mix up their results.
        earlier: list[Verdict] = [] if self._breaker.is_open else [first]
        failed_at, charged = self._clock(), 0

        async def attempt() -> Verdict:
            nonlocal charged
            charged += 1
            if earlier:
                return earlier.pop()
            self.sender.counters.retried += 1
            verdict = await self._attempt(bitlink, fresh=False, again=True)
            if isinstance(verdict, Transient) and charged >= self._settings.attempts:
                return await self._confirm(bitlink, verdict, failed_at)
            return verdict

        retrier = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda verdict: isinstance(verdict, Transient | Unreadable)),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self._settings.attempts), _UnreadableTwice()),
            wait=_Backoff(self._settings.backoff_seconds),
            sleep=self._shutdown.sleep_unless_stopping,
            retry_error_callback=_last_verdict,
        )
        return await retrier(attempt), charged

    async def _attempt(self, bitlink: str, *, fresh: bool, again: bool) -> Verdict:
        """Send until a verdict is the call's own. again: it was sent before in this run."""
        renewed = False
        while True:
            if self._known_good_goes(fresh):
                await self._send_known_good()
                continue
            header = self._token.header
            may_probe = fresh or not self._fresh_calls
            verdict = await self.sender.send(bitlink, header, may_probe=may_probe, evidence=fresh)
            if verdict is None or isinstance(verdict, Throttled):
                continue
            if isinstance(verdict, Transient):
                if not again or not self._breaker.is_open:
                    return verdict
            elif isinstance(verdict, TokenRefused) and not renewed and await self._renew_token(header):
                renewed = True  # once: a source may have another token each time, and none that is any good
            else:
                if isinstance(verdict, Answer) and bitlink not in self.known_good_links:
                    self.known_good_links.append(bitlink)
                return verdict

    async def _renew_token(self, header: str) -> bool:
        renewed = await self._token.renewed(header, self._shutdown)
        if renewed:
            self._budget.use_token(self._token.fingerprint)
        return renewed

    # --- whose fault is it? ----------------------------------------------------------------------------------------

    def _known_good_goes(self, fresh: bool) -> bool:
        """Return whether an outage's next probe should be a known-good link, as calls may fail by their own fault."""
        if not self._breaker.is_open or not self.known_good_links:
            return False
        return self._breaker.wants_known_good or not (fresh or self._fresh_calls)

    async def _send_known_good(self) -> None:
        """Send an attempt for a known-good link to learn whether the server is there; its answer is dropped."""
        bitlink, header = self.known_good_links[0], self._token.header
        verdict = await self.sender.send(bitlink, header, may_probe=True, evidence=False, known_good=True)
        if verdict is not None:
            self.sender.counters.retried += 1
            if isinstance(verdict, Transient):
                self.known_good_links.rotate(-1)  # it may have come to fail by itself since

    async def _confirm(self, bitlink: str, verdict: Verdict, failed_at: float) -> Verdict:
        """Make sure that a call about to be written off has failed by its own fault, and return its last verdict.

        failed_at: when it first failed.
        """
        # Unless most other calls were answered since it failed, a known-good link decides. If that fails too, the
        # server is out, or answers only some, and the call is sent again. The same if the probe came too late to say
        # anything about the failure. Where no call was ever answered that is an outage, which has a limit of its own.
        while isinstance(verdict, Transient) and not self._breaker.blames(failed_at):
            if not self.known_good_links and self._breaker.ever_answered:
                return verdict
            failures, began = self._breaker.probes_failed, self._clock()
            self._breaker.suspect()
            while self.known_good_links and self._breaker.is_open:
                await self._send_known_good()
            late = self._clock() - began > _SOON_SECONDS
            if late or not self.known_good_links or self._breaker.probes_failed != failures:
                verdict = await self._attempt(bitlink, fresh=False, again=True)
        return verdict


@asynccontextmanager
async def opened(
    slots: ConnectionSlots, settings: ClientSettings, query: Query, context: ClientContext
) -> AsyncIterator[Client]:
    """Open a client, and close its connections at the end. slots, Raises: as `pooled`."""

    def connected(slot: Slot) -> None:
        if context.clock() - slot.sent_at > _LATE_SECONDS:
            with suppress(OutputError):  # the next attempt meets the same error and reports it
                context.budget.made_late()

    async with pooled(slots, context.shutdown, settings.base_url, settings.timeout_seconds, connected) as pool:
        yield Client(pool, settings, query, context)


class _Backoff(tenacity.wait.wait_base):
    """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

    The server's `Retry-After` counts if it asks for longer.
    """

    def __init__(self, seconds: float) -> None:
        self._jittered = tenacity.wait_random_exponential(multiplier=seconds, max=_LONGEST_BACKOFF_SECONDS)

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        hint: Hint = getattr(_last_verdict(retry_state), "hint", None)
        return max(self._jittered(retry_state), hinted_seconds(hint, time.time(), _LONGEST_HINT_SECONDS))


def _last_verdict(state: tenacity.RetryCallState) -> Verdict:
    assert state.outcome is not None
    result: Verdict = state.outcome.result()
    return result


class _UnreadableTwice(tenacity.stop.stop_base):
    """Stops once two responses were not the facet's JSON: such a call is repeated once."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        self._seen += isinstance(_last_verdict(retry_state), Unreadable)
        return self._seen > 1
