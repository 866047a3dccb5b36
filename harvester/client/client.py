"""One call to one verdict: attempts, retries, and whose fault it is when they fail.

A throttled answer, and any transient one during an outage, is the server's affair: the attempt is made again and the
call is charged nothing. Before a call is written off, most others must have been answered since it first failed, and
one of late; unless they were, a link that answered before is asked, the witness.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import tenacity

from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer, Hint, Throttled, TokenRefused, Transient, Unreadable, Verdict
from harvester.budget.throttling import hinted_seconds
from harvester.client.attempt import AttemptSender, ClientContext
from harvester.client.connection_slots import ConnectionSlots
from harvester.client.counting import BUSY_SECONDS
from harvester.client.http import Pool, pooled
from harvester.errors import BudgetBusy

KNOWN_GOOD_LINKS = 8
_SOON_SECONDS = 10.0
"""A witness that is answered later than so after a call has failed says nothing of that failure."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to ask. attempts: HTTP tries that a call is worth. timeout_seconds: for one of them, in all."""

    base_url: str
    connections: int
    attempts: int
    timeout_seconds: float
    backoff_seconds: float = 1.0


class Client:
    """Asks Bitly; made by `opened`.

    fresh_asked: True while a call that has not failed before is being asked. witnesses: links that have been answered,
    lately.
    """

    def __init__(self, pool: Pool, settings: ClientSettings, query: Query, means: ClientContext) -> None:
        self.sender = AttemptSender(
            pool, query, means, base_url=settings.base_url, timeout_seconds=settings.timeout_seconds
        )
        self.known_good_links: deque[str] = deque(maxlen=KNOWN_GOOD_LINKS)
        self.fresh_asked: Callable[[], bool] = lambda: False
        self._settings = settings
        self._token = means.token
        self._budget = means.budget
        self._gate = means.gate
        self._shutdown = means.shutdown
        self._clock = means.clock

    async def fetch(self, bitlink: str, *, fresh: bool = True) -> Verdict:
        """Make a call's first attempt and give its verdict, which is never Throttled.

        fresh: False for a call that failed in an earlier run: if it does again, that says nothing of the server.

        Raises:
            Stopping: the run ended before the attempt was sent.
        """
        return await self._attempt(bitlink, fresh=fresh, again=False)

    async def retry(self, bitlink: str, first: Verdict) -> tuple[Verdict, int]:
        """Repeat a call whose first attempt gave a Transient or Unreadable verdict; give the last one, and how many
        attempts it was charged in all.

        Raises:
            Stopping: the run ended first, and the call is left for the next.
        """
        # The first attempt, already made, is given to who repeats: stop and wait then count from there. In an outage
        # it is charged to nobody.
        earlier: list[Verdict] = [] if self._gate.outage else [first]
        failed_at, charged = self._clock(), 0

        async def attempt() -> Verdict:
            nonlocal charged
            charged += 1
            if earlier:
                return earlier.pop()
            self.sender.counters.retried += 1
            verdict = await self._attempt(bitlink, fresh=False, again=True)
            if isinstance(verdict, Transient) and charged >= self._settings.attempts:
                return await self._doubt(bitlink, verdict, failed_at)
            return verdict

        return await repeated(
            attempt,
            attempts=self._settings.attempts,
            backoff_seconds=self._settings.backoff_seconds,
            pause=self._shutdown.sleep_unless_stopping,
        )

    async def _attempt(self, bitlink: str, *, fresh: bool, again: bool) -> Verdict:
        """Send until there is a verdict that is the call's own. again: it has been asked before in this run."""
        url = self.sender.url(bitlink)
        renewed = False
        while True:
            if self._witness_goes(fresh):
                await self._ask_witness()
                continue
            header = self._token.header
            probes = fresh or not self.fresh_asked()
            found = await self.sender.send(url, header, may_probe=probes, evidence=fresh)
            if found is None or isinstance(found, Throttled):
                continue
            if isinstance(found, Transient):
                if not again or not self._gate.outage:
                    return found
            elif isinstance(found, TokenRefused) and not renewed and await self._renewed(header):
                renewed = True  # once: a source may have another token each time, and none that is any good
            else:
                if isinstance(found, Answer) and bitlink not in self.known_good_links:
                    self.known_good_links.append(bitlink)
                return found

    async def _renewed(self, header: str) -> bool:
        renewed = await self._token.renewed(header, self._shutdown)
        counted = not renewed
        while not counted:
            try:
                self.sender.counting.must(partial(self._budget.use_token, self._token.fingerprint))
                counted = True
            except BudgetBusy:
                await self._shutdown.sleep_unless_stopping(BUSY_SECONDS)
        return renewed

    # --- whose fault is it? ----------------------------------------------------------------------------------------

    def _witness_goes(self, fresh: bool) -> bool:
        """Say whether an outage's next probe should be the witness, because calls may fail by their own fault."""
        if not self._gate.outage or not self.known_good_links:
            return False
        return self._gate.wants_witness or not (fresh or self.fresh_asked())

    async def _ask_witness(self) -> None:
        """Ask for a link that was answered before, to learn whether the server is there; what it says is dropped."""
        url, header = self.sender.url(self.known_good_links[0]), self._token.header
        found = await self.sender.send(url, header, may_probe=True, evidence=False, witness=True)
        if found is not None:
            self.sender.counters.retried += 1
            if isinstance(found, Transient):
                self.known_good_links.rotate(-1)  # it may have come to fail by itself since

    async def _doubt(self, bitlink: str, verdict: Verdict, failed_at: float) -> Verdict:
        """Make sure that a call which is about to be written off has failed by itself; give its last verdict.

        failed_at: when it first failed. Unless most others have been answered since, a witness decides; if the server
        was out, or answers only some, the call is asked again. Where nobody has ever been answered, that is an outage.
        """
        while isinstance(verdict, Transient) and not self._gate.blames(failed_at):
            if not self.known_good_links and self._gate.ever_answered:
                return verdict
            failures, doubted_at = self._gate.probes_failed, self._clock()
            self._gate.doubt()
            while self.known_good_links and self._gate.outage:
                await self._ask_witness()
            late = self._clock() - doubted_at > _SOON_SECONDS  # it had to wait, and the server may be another by now
            if late or not self.known_good_links or self._gate.probes_failed != failures:
                verdict = await self._attempt(bitlink, fresh=False, again=True)
        return verdict


@asynccontextmanager
async def opened(
    slots: ConnectionSlots, settings: ClientSettings, query: Query, means: ClientContext
) -> AsyncIterator[Client]:
    """Open a client, and close its connections at the end. slots: joined already; left by the caller.

    Raises:
        UsageError: as `pooled` says.
    """
    async with pooled(
        slots,
        means.shutdown,
        base_url=settings.base_url,
        timeout_seconds=settings.timeout_seconds,
        clock=means.clock,
        made_late=means.budget.made_late,
    ) as pool:
        yield Client(pool, settings, query, means)


_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_HINT_SECONDS = 300.0


async def repeated(
    attempt: Callable[[], Awaitable[Verdict]],
    *,
    attempts: int,
    backoff_seconds: float,
    pause: Callable[[float], Awaitable[None]],
) -> tuple[Verdict, int]:
    """Attempt until a verdict is neither Transient nor Unreadable, or attempts are made; give the last, and how many.

    backoff_seconds: the first pause is at most so long.
    """
    # A retrier of its own for every call: one shared by tasks would mix up their results.
    retrier = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(lambda verdict: isinstance(verdict, Transient | Unreadable)),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(attempts), _UnreadableTwice()),
        wait=_Backoff(backoff_seconds),
        sleep=pause,
        retry_error_callback=_last_verdict,
    )
    result: Verdict = await retrier(attempt)
    return result, int(retrier.statistics["attempt_number"])


class _Backoff(tenacity.wait.wait_base):
    """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

    A server's hint counts if it asks for longer.
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
    """Something that is not the facet's JSON is asked for once more, not oftener."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        self._seen += isinstance(_last_verdict(retry_state), Unreadable)
        return self._seen > 1
