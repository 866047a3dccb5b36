"""One call to one verdict: pace, slot, gate, budget, retries.

An attempt goes: pace, slot, gate, budget, request. Whoever must wait does so without a slot. A throttled answer, and
any transient one during an outage, is the server's affair: the attempt is made again and the call is charged nothing.
Before a call is written off, most others must have been answered since it first failed; unless they were, a link that
answered before is asked, the witness.
"""

import asyncio
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NamedTuple, TypeVar

import aiohttp
import tenacity
from aiolimiter import AsyncLimiter
from yarl import URL

from harvester.bitly import (
    FACETS,
    Answer,
    Hint,
    MonthSpent,
    Query,
    Throttled,
    TokenRefused,
    Transient,
    Unreadable,
    Verdict,
    path,
    utc_text,
    verdict,
)
from harvester.budget import Budget
from harvester.connections import Pool, Slot, for_good, in_passing, pooled, read_bounded
from harvester.errors import BudgetBusy, OutputError, Stopping
from harvester.gate import OUTAGE, Gate
from harvester.quota import MonthOver, Wait
from harvester.slots import Slots
from harvester.status import Counters, Waiting
from harvester.stopping import Reason, Stop, Stopper
from harvester.throttle import hinted_seconds
from harvester.tokens import Token

T = TypeVar("T")

_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_HINT_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 60.0
"""Whoever waits asks again at least so often: another process may have learned something, or the machine slept."""
_BUSY_SECONDS = 0.5
_DATE_SECONDS = 60.0
WITNESSES = 8
_THROTTLED_SECONDS = 2 * 3600.0
"""After so long with nothing but throttled answers the run stops: it may be the month."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to ask. attempts: HTTP tries that a call is worth. timeout_seconds: for one of them, in all."""

    base_url: str
    connections: int
    attempts: int
    timeout_seconds: float
    backoff_seconds: float = 1.0


NOT_ASKED = 0
"""The status of a helper route that was not asked."""


class Looked(NamedTuple):
    """What a helper route has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Asks Bitly; made by `opened`.

    sprint: True when what is left of the list fits into the room left, so that there is nothing to pace. fresh_asked:
    True while a call that has not failed before is being asked. trouble: how the last attempt failed, if it did so in
    passing. witnesses: links that have been answered, lately.
    clock: the budget's elapsed seconds.
    """

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        query: Query,
        token: Token,
        budget: Budget,
        gate: Gate,
        stopper: Stopper,
        clock: Callable[[], float],
    ) -> None:
        self.counters = Counters()
        self.waiting: Waiting | None = None
        self.trouble: str | None = None
        self.witnesses: deque[str] = deque(maxlen=WITNESSES)
        self.sprint: Callable[[], bool] = lambda: False
        self.fresh_asked: Callable[[], bool] = lambda: False
        self._pool = pool
        self._settings = settings
        self._token = token
        self._budget = budget
        self._gate = gate
        self._stopper = stopper
        self._clock = clock
        self._facet = FACETS[query.facet]
        self._base = URL(settings.base_url)
        self._base_path = self._base.raw_path.rstrip("/")
        self._parameters = query.parameters
        self._paced = 0
        self._pacing: set[asyncio.Future[None]] = set()
        self._pace: AsyncLimiter | None = None
        self._throttled_since: float | None = None
        self._date_due = 0.0

    async def ask(self, bitlink: str, *, fresh: bool = True) -> Verdict:
        """Make a call's first attempt and give its verdict, which is never Throttled.

        fresh: False for a call that failed in an earlier run: if it does again, that says nothing of the server.

        Raises:
            Stopping: the run ended before the attempt was sent.
        """
        return await self._attempt(bitlink, fresh=fresh, again=False)

    async def ask_again(self, bitlink: str, first: Verdict) -> tuple[Verdict, int]:
        """Repeat a call whose first attempt gave a Transient or Unreadable verdict; give the last one, and how many
        attempts it was charged in all.

        Raises:
            Stopping: the run ended first, and the call is left for the next.
        """
        # tenacity takes the first attempt, already made, for its own: stop and wait then count from there. In an
        # outage it is charged to nobody.
        earlier: list[Verdict] = [] if self._gate.outage else [first]
        failed_at, charged = self._clock(), 0

        async def attempt() -> Verdict:
            nonlocal charged
            charged += 1
            if earlier:
                return earlier.pop()
            self.counters.retried += 1
            verdict = await self._attempt(bitlink, fresh=False, again=True)
            if isinstance(verdict, Transient) and charged >= self._settings.attempts:
                return await self._doubt(bitlink, verdict, failed_at)
            return verdict

        # A retrier of its own for every call: one shared by tasks would mix up their results.
        retrier = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda verdict: isinstance(verdict, Transient | Unreadable)),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self._settings.attempts), _UnreadableTwice()),
            wait=self._backoff,
            sleep=self._stopper.pause,
            retry_error_callback=_last_verdict,
        )
        result: Verdict = await retrier(attempt)
        return result, int(retrier.statistics["attempt_number"])

    def _backoff(self, state: tenacity.RetryCallState) -> float:
        """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

        A server's hint counts if it asks for longer.
        """
        hint: Hint = getattr(_last_verdict(state), "hint", None)
        jittered = tenacity.wait_random_exponential(
            multiplier=self._settings.backoff_seconds, max=_LONGEST_BACKOFF_SECONDS
        )(state)
        return max(jittered, hinted_seconds(hint, time.time(), _LONGEST_HINT_SECONDS))

    async def look_up(self, target: str, budget: Budget) -> Looked | None:
        """Ask a helper route once, in a slot; None when no answer came, NOT_ASKED when the budget has no room now.

        target: path and query below the base URL, encoded.

        Raises:
            Stopping: the run ended first.
        """
        slot = await self._pool.get(self._stopper)
        try:
            self._keep_token(budget)
            if self._do_or_raise(budget.take) is not None:
                return Looked(NOT_ASKED, {}, b"")
            slot.sent_at = self._clock()
            self.counters.helper += 1
            url = URL(f"{self._base_path}{target}", encoded=True)
            headers = {"Authorization": self._token.header}
            async with slot.session.get(self._base.join(url), headers=headers, allow_redirects=False) as response:
                body, whole = await read_bounded(response)
                return Looked(response.status, response.headers, body) if whole else None
        except (aiohttp.ClientError, OSError, TimeoutError, zlib.error, ValueError, BudgetBusy):
            return None
        finally:
            await asyncio.sleep(0)  # as in _request
            self._pool.put(slot)

    def _keep_token(self, budget: Budget) -> None:
        """Count helper routes, too, for the token that is in use now: it may have been rotated since."""
        token = self._budget.account.token
        if budget.account.token != token:
            self._do_or_raise(partial(budget.use_token, token))

    async def _attempt(self, bitlink: str, *, fresh: bool, again: bool) -> Verdict:
        """Send until there is a verdict that is the call's own. again: it has been asked before in this run."""
        url = self._url(bitlink)
        renewed = False
        while True:
            if self._witness_goes(fresh):
                await self._ask_witness()
                continue
            header = self._token.header
            found, sent_at = await self._send_when_allowed(url, header, may_probe=fresh or not self.fresh_asked())
            if found is None:
                continue
            self._note(found, sent_at, evidence=fresh)
            if isinstance(found, Throttled):
                continue
            if isinstance(found, Transient):
                if not again or not self._gate.outage:
                    return found
            elif isinstance(found, TokenRefused) and not renewed and await self._renewed(header):
                renewed = True  # once: a source may have another token each time, and none that is any good
            else:
                if isinstance(found, Answer) and bitlink not in self.witnesses:
                    self.witnesses.append(bitlink)
                return found

    def _url(self, bitlink: str) -> URL:
        return URL.build(
            scheme=self._base.scheme,
            authority=self._base.raw_authority,
            path=self._base_path + path(bitlink, self._facet),
            query_string=self._parameters,
            encoded=True,
        )

    def _note(self, found: Verdict, sent_at: float, *, evidence: bool, witness: bool = False) -> None:
        """Tell gate and budget what an answer says of the server and its limits."""
        if isinstance(found, Throttled):
            self.counters.throttled += 1
            self._throttled_since = self._throttled_since or self._clock()
            self._do(partial(self._budget.throttled, found.hint, sent_at=sent_at))
            self._gate.throttled()
            return
        self.trouble = None
        if isinstance(found, Transient):
            self.trouble = f"{found.status or 'no answer'} {found.message}".strip()
            self._gate.transient(sent_at=sent_at, evidence=evidence)
        else:
            self._gate.answered(evidence=evidence, witness=witness)
        if not isinstance(found, Transient) or found.status is not None:
            self._throttled_since = None
            if isinstance(found, MonthSpent):
                self._do(self._budget.month.refused)
            elif self._budget.month.told_before and isinstance(found, Answer):
                self._do(self._budget.month.goes_on)
            if self._budget.closed:
                self._do(partial(self._budget.answered, sent_at=sent_at))

    async def _renewed(self, header: str) -> bool:
        renewed = await self._token.renewed(header, self._stopper)
        counted = not renewed
        while not counted:
            try:
                self._do_or_raise(partial(self._budget.use_token, self._token.fingerprint))
                counted = True
            except BudgetBusy:
                await self._stopper.pause(_BUSY_SECONDS)
        return renewed

    # --- whose fault is it? ----------------------------------------------------------------------------------------

    def _witness_goes(self, fresh: bool) -> bool:
        """Say whether an outage's next probe should be the witness, because calls may fail by their own fault."""
        if not self._gate.outage or not self.witnesses:
            return False
        return self._gate.wants_witness or not (fresh or self.fresh_asked())

    async def _ask_witness(self) -> None:
        """Ask for a link that was answered before, to learn whether the server is there; what it says is dropped."""
        url, header = self._url(self.witnesses[0]), self._token.header
        found, sent_at = await self._send_when_allowed(url, header, may_probe=True)
        if found is not None:
            self.counters.retried += 1
            self._note(found, sent_at, evidence=False, witness=True)
            if isinstance(found, Transient):
                self.witnesses.rotate(-1)  # it may have come to fail by itself since

    async def _doubt(self, bitlink: str, verdict: Verdict, failed_at: float) -> Verdict:
        """Make sure that a call which is about to be written off has failed by itself; give its last verdict.

        failed_at: when it first failed. Unless most others have been answered since, a witness decides; if the server
        was out, or answers only some, the call is asked again. Where nobody has ever been answered, that is an outage.
        """
        while isinstance(verdict, Transient) and not self._gate.blames(failed_at):
            if not self.witnesses and self._gate.ever_answered:
                return verdict
            failures = self._gate.probes_failed
            self._gate.doubt()
            while self.witnesses and self._gate.outage:
                await self._ask_witness()
            if not self.witnesses or self._gate.probes_failed != failures:
                verdict = await self._attempt(bitlink, fresh=False, again=True)
        return verdict

    # --- sending ---------------------------------------------------------------------------------------------------

    async def _keep_pace(self) -> None:
        limit = self._budget.limits.per_minute
        if limit != self._paced:
            self._paced, self._pace = limit, _pace(limit)
        if self._pace is None:
            return
        if self._pace.has_capacity():
            await self._pace.acquire()  # at once
            return
        self.waiting = self.waiting or Waiting("pace", limit, None)  # a window that binds says more
        if not self._do(self.sprint):
            waiting = asyncio.ensure_future(_acquire(self._pace))
            self._pacing.add(waiting)
            try:
                await self._stopper.guard(waiting)
            finally:
                self._pacing.discard(waiting)

    def hurry(self) -> None:
        """The list has come to its end: if what is left fits into the room left, nobody waits for the pace any more."""
        if not self._pacing:
            return
        fits = self._do(self.sprint)
        for waiting in self._pacing if fits else ():
            waiting.cancel()

    async def _send_when_allowed(self, url: URL, header: str, *, may_probe: bool) -> tuple[Verdict | None, float]:
        """Send within a slot if gate and budget allow it now, else wait without the slot and give no verdict.

        Gives the verdict and when its request was sent.
        """
        sent_at, refused = 0.0, self._gate.closed(fresh=may_probe)
        if refused is None:
            await self._keep_pace()
            if self._pool.empty_handed:
                self.waiting = Waiting("connections", 0, None)
            slot = await self._pool.get(self._stopper)
            try:
                if self._stopper.stop is not None:
                    raise Stopping
                refused = self._gate.enter(fresh=may_probe)
                slot.sent_at = self._clock()
                refused = refused or self._take(slot.sent_at)
                if refused is None:
                    self.waiting = None
                    self.counters.total += 1
                    # Behind enter and take, which may have waited for the file: so no probe seems to be older than what
                    # it is to open.
                    sent_at = self._clock()
                    return await self._request(slot, url, header), sent_at
            finally:
                self._pool.put(slot)
        await self._wait(refused)
        return None, sent_at

    async def _wait(self, refused: Wait) -> None:
        why = (self.trouble or "") if refused.window == OUTAGE else ""
        self.waiting = Waiting(refused.window, refused.limit, self._budget.at(refused.seconds), why)
        await self._stopper.pause(min(refused.seconds, _LONGEST_PAUSE_SECONDS))
        if self._gate.over_limit:
            message = "the server has answered next to nothing for a long while (--outage-limit); run it again later"
            self._stopper.request(Stop(Reason.OUTAGE, f"{message}. Lately: {self.trouble}"))
        if self._throttled_since is not None and self._clock() - self._throttled_since >= _THROTTLED_SECONDS:
            message = (
                "for two hours Bitly has given nothing but throttled answers: the account's month may be spent, or "
                "others use up this token's limits. Look at the account's usage; the same command tries again"
            )
            self._stopper.request(Stop(Reason.THROTTLED, message))

    def _take(self, now: float) -> Wait | None:
        """Count the attempt, or say how long to wait; ends the run when that is until the next month."""
        try:
            refused = self._do_or_raise(self._budget.take)
        except BudgetBusy:
            refused = Wait(_BUSY_SECONDS, "budget")
        if refused is not None:
            self._gate.leave(sent_at=now)
        if isinstance(refused, MonthOver):
            name, limit = self._budget.account.name, self._budget.limits.per_month
            spent = (
                f"the {limit:,} attempts of the month (--per-month) are spent by account {name}; allow more, or wait"
            )
            if refused.told:
                spent = f"Bitly has said that the month of account {name} is spent; it is asked again once a day"
            self._stopper.request(Stop(Reason.MONTH_SPENT, spent, utc_text(refused.until)))
            raise Stopping
        return refused

    def _do(self, ask: Callable[[], T]) -> T | None:
        """Ask the budget; None where its file is busy, and the answer has to do without.

        A budget that cannot be counted ends the run, because nothing may be sent uncounted.
        """
        try:
            return self._do_or_raise(ask)
        except BudgetBusy:
            return None

    def _do_or_raise(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except BudgetBusy:
            raise
        except OutputError as error:
            self._stopper.request(Stop(Reason.OUTPUT, str(error)))
            raise Stopping from error

    async def _request(self, slot: Slot, url: URL, authorization: str) -> Verdict:
        kept_alive = False
        try:
            async with slot.session.get(
                url, headers={"Authorization": authorization}, allow_redirects=False
            ) as response:
                try:
                    body, whole = await read_bounded(response)
                except (zlib.error, ValueError):  # compressed in a way that was not asked for, or wrongly
                    body, whole = b"", True
                kept_alive = whole and response.headers.get("Connection", "keep-alive").lower() == "keep-alive"
                return self._understand(response, body, slot.sent_at, whole=whole)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return self._explain(error)
        finally:
            if not kept_alive:
                await asyncio.sleep(0)  # the transport closes its socket in the loop's next round

    def _understand(self, response: aiohttp.ClientResponse, body: bytes, sent_at: float, *, whole: bool) -> Verdict:
        found = verdict(response.status, response.headers, body, self._facet, whole=whole)
        if self._token.has_to_hide(body, found):
            body = self._token.hidden_in(body.decode(errors="replace")).encode()
            return verdict(response.status, response.headers, body, self._facet, whole=whole)
        if isinstance(found, Answer) and self._clock() >= self._date_due:
            self._see_date(response.headers.get("Date", ""), sent_at)
        return found

    def _see_date(self, text: str, sent_at: float) -> None:
        """Let the budget's calendar follow the server's: it is the server that begins a month anew."""
        self._date_due = self._clock() + _DATE_SECONDS
        with suppress(ValueError, OverflowError):
            date = parsedate_to_datetime(text)
            if date.tzinfo is not None:
                self._do(partial(self._budget.month.see_date, date, sent_at=sent_at))

    def _explain(self, error: Exception) -> Verdict:
        """Give foreign errors their meaning: the only border that they cross."""
        if stop := for_good(error):
            self._stopper.request(Stop(Reason.CONNECTION_REFUSED, stop))
            raise Stopping from error
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return Transient(None, f"no whole answer within {self._settings.timeout_seconds:g} s")
        return Transient(None, self._token.hidden_in(in_passing(error))[:200])


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


async def _acquire(pace: AsyncLimiter) -> None:
    with suppress(asyncio.CancelledError):  # there is nothing to wait for any more
        await pace.acquire()


def _pace(per_minute: int) -> AsyncLimiter | None:
    """Give the limiter that smooths below the minute's window.

    A full bucket would let nearly twice the limit through in its first minute, and a bucket of one cannot keep a
    high rate; one of 1 % does (measured: 99.5 % at 500 a second).
    """
    if not per_minute:
        return None
    burst = max(per_minute // 100, 1)
    return AsyncLimiter(burst, burst * 60.0 / per_minute)


@asynccontextmanager
async def opened(
    settings: Settings,
    query: Query,
    token: Token,
    budget: Budget,
    gate: Gate,
    stopper: Stopper,
    *,
    slots: Slots,
    clock: Callable[[], float],
) -> AsyncIterator[Client]:
    """Open a client, and close its connections at the end. slots: joined already; left by the caller.

    Raises:
        UsageError: as `pooled` says.
    """
    async with pooled(
        slots,
        stopper,
        base_url=settings.base_url,
        timeout_seconds=settings.timeout_seconds,
        clock=clock,
        made_late=budget.made_late,
    ) as pool:
        yield Client(pool, settings, query, token, budget, gate, stopper, clock)
