"""One attempt: pace, slot, gate, budget, request; and what its answer says of the server and its limits.

Whoever must wait does so without a slot.
"""

import asyncio
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NamedTuple

import aiohttp
from yarl import URL

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, path
from harvester.bitly.verdicts import Answer, MonthSpent, Throttled, Transient, Verdict, classify
from harvester.budget.budget import Budget
from harvester.budget.limits import MonthExhausted, RetryAfter
from harvester.client.circuit_breaker import OUTAGE, CircuitBreaker
from harvester.client.counting import Counting
from harvester.client.http import Pool, Slot, for_good, in_passing, read_bounded
from harvester.client.pacer import Pacer
from harvester.client.token import Token
from harvester.errors import BudgetBusy, RunStopping
from harvester.progress import AttemptCounts, WaitReason
from harvester.shutdown import ShutdownSignal, Stop, StopReason

_LONGEST_PAUSE_SECONDS = 60.0
"""Whoever waits asks again at least so often: another process may have learned something, or the machine slept."""
_DATE_SECONDS = 60.0
_THROTTLED_SECONDS = 2 * 3600.0
"""After so long with nothing but throttled answers the run stops: it may be the month."""

NOT_ASKED = 0
"""The status of a helper route that was not asked."""


class HelperResponse(NamedTuple):
    """What a helper route has answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class ClientContext:
    """What asking takes beside connections. clock: the budget's elapsed seconds."""

    token: Token
    budget: Budget
    gate: CircuitBreaker
    shutdown: ShutdownSignal
    clock: Callable[[], float]


class AttemptSender:
    """Makes attempts, one at a time for each who asks.

    timeout_seconds: for an attempt in all. trouble: how the last attempt failed, if it did so in passing. waiting: why
    nothing is sent at present. counting: the budget as it is asked here.
    """

    def __init__(
        self, pool: Pool, query: Query, means: ClientContext, *, base_url: str, timeout_seconds: float
    ) -> None:
        self.counters = AttemptCounts()
        self.waiting: WaitReason | None = None
        self.trouble: str | None = None
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._token = means.token
        self._budget = means.budget
        self.counting = Counting(means.budget, means.shutdown)
        self.pace = Pacer(self.counting, means.shutdown)
        self._gate = means.gate
        self._shutdown = means.shutdown
        self._clock = means.clock
        self._facet = FACETS[query.facet]
        self._base = URL(base_url)
        self._base_path = self._base.raw_path.rstrip("/")
        self._parameters = query.parameters
        self._throttled_since: float | None = None
        self._date_due = 0.0

    def url(self, bitlink: str) -> URL:
        """Give where a bitlink is asked for."""
        return URL.build(
            scheme=self._base.scheme,
            authority=self._base.raw_authority,
            path=self._base_path + path(bitlink, self._facet),
            query_string=self._parameters,
            encoded=True,
        )

    async def send(
        self, url: URL, header: str, *, may_probe: bool, evidence: bool, witness: bool = False
    ) -> Verdict | None:
        """Make an attempt if gate and budget allow it now, and give its verdict; None after a wait, when they do not.

        may_probe: in an outage it may be the one that goes. evidence: how it ends says something of the server.

        Raises:
            Stopping: the run ended before the attempt was sent.
        """
        found, sent_at = await self._send_when_allowed(url, header, may_probe=may_probe)
        if found is not None:
            self._note(found, sent_at, evidence=evidence, witness=witness)
        return found

    async def look_up(self, target: str, budget: Budget) -> HelperResponse | None:
        """Ask a helper route once, in a slot; None when no answer came, NOT_ASKED when the budget has no room now.

        target: path and query below the base URL, encoded.

        Raises:
            Stopping: the run ended first.
        """
        slot = await self._pool.get(self._shutdown)
        try:
            self._keep_token(budget)
            if self.counting.must(budget.try_acquire) is not None:
                return HelperResponse(NOT_ASKED, {}, b"")
            slot.sent_at = self._clock()
            self.counters.helper += 1
            url = URL(f"{self._base_path}{target}", encoded=True)
            headers = {"Authorization": self._token.header}
            async with slot.session.get(self._base.join(url), headers=headers, allow_redirects=False) as response:
                body, whole = await read_bounded(response)
                return HelperResponse(response.status, response.headers, body) if whole else None
        except (aiohttp.ClientError, OSError, TimeoutError, zlib.error, ValueError, BudgetBusy):
            return None
        finally:
            await asyncio.sleep(0)  # as in _request
            self._pool.put(slot)

    def _keep_token(self, budget: Budget) -> None:
        """Count helper routes, too, for the token that is in use now: it may have been rotated since."""
        token = self._budget.account.token
        if budget.account.token != token:
            self.counting.must(partial(budget.use_token, token))

    def _note(self, found: Verdict, sent_at: float, *, evidence: bool, witness: bool) -> None:
        """Tell gate and budget what an answer says of the server and its limits."""
        if isinstance(found, Throttled):
            self.counters.throttled += 1
            self._throttled_since = self._throttled_since or self._clock()
            self.counting.ask(partial(self._budget.throttled, found.hint, sent_at=sent_at))
            self._gate.throttled()
            return
        self.trouble = None
        if isinstance(found, Transient):
            self.trouble = f"{found.status or 'no answer'} {found.message}".strip()
            self._gate.record_failure(sent_at=sent_at, evidence=evidence)
        else:
            self._gate.record_success(evidence=evidence, witness=witness)
        if not isinstance(found, Transient) or found.status is not None:
            self._throttled_since = None
            if isinstance(found, MonthSpent):
                self.counting.ask(self._budget.month.mark_spent)
            elif self._budget.month.told_before and isinstance(found, Answer):
                self.counting.ask(self._budget.month.clear_spent)
            if self._budget.closed:
                self.counting.ask(partial(self._budget.answered, sent_at=sent_at))

    async def _send_when_allowed(self, url: URL, header: str, *, may_probe: bool) -> tuple[Verdict | None, float]:
        """Send within a slot if gate and budget allow it now, else wait without the slot and give no verdict.

        Gives the verdict and when its request was sent.
        """
        sent_at, refused = 0.0, self._gate.closed(fresh=may_probe)
        if refused is None:
            await self.pace.keep(self._budget.limits.per_minute, self._wait_for_pace)
            if self._pool.empty_handed:
                self.waiting = WaitReason("connections", 0, None)
            slot = await self._pool.get(self._shutdown)
            try:
                if self._shutdown.stop is not None:
                    raise RunStopping
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

    def _wait_for_pace(self) -> None:
        # A window that binds says more.
        self.waiting = self.waiting or WaitReason("pace", self._budget.limits.per_minute, None)

    async def _wait(self, refused: RetryAfter) -> None:
        why = (self.trouble or "") if refused.window == OUTAGE else ""
        self.waiting = WaitReason(refused.window, refused.limit, self._budget.at(refused.seconds), why)
        await self._shutdown.sleep_unless_stopping(min(refused.seconds, _LONGEST_PAUSE_SECONDS))
        if self._gate.over_limit:
            message = "the server has answered next to nothing for a long while (--outage-limit); run it again later"
            self._shutdown.request(Stop(StopReason.OUTAGE, f"{message}. Lately: {self.trouble}"))
        if self._throttled_since is not None and self._clock() - self._throttled_since >= _THROTTLED_SECONDS:
            message = (
                "for two hours Bitly has given nothing but throttled answers: the account's month may be spent, or "
                "others use up this token's limits. Look at the account's usage; the same command tries again"
            )
            self._shutdown.request(Stop(StopReason.THROTTLED, message))

    def _take(self, now: float) -> RetryAfter | None:
        """Count the attempt, or say how long to wait; ends the run when that is until the next month."""
        refused = self.counting.take()
        if refused is not None:
            self._gate.leave(sent_at=now)
        if isinstance(refused, MonthExhausted):
            self.counting.end(refused)
            raise RunStopping
        return refused

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
        found = classify(response.status, response.headers, body, self._facet, whole=whole)
        if self._token.has_to_hide(body, found):
            body = self._token.redact(body.decode(errors="replace")).encode()
            return classify(response.status, response.headers, body, self._facet, whole=whole)
        if isinstance(found, Answer) and self._clock() >= self._date_due:
            self._see_date(response.headers.get("Date", ""), sent_at)
        return found

    def _see_date(self, text: str, sent_at: float) -> None:
        """Let the budget's calendar follow the server's: it is the server that begins a month anew."""
        self._date_due = self._clock() + _DATE_SECONDS
        with suppress(ValueError, OverflowError):
            date = parsedate_to_datetime(text)
            if date.tzinfo is not None:
                self.counting.ask(partial(self._budget.month.see_date, date, sent_at=sent_at))

    def _explain(self, error: Exception) -> Verdict:
        """Give foreign errors their meaning: the only border that they cross."""
        if stop := for_good(error):
            self._shutdown.request(Stop(StopReason.CONNECTION_REFUSED, stop))
            raise RunStopping from error
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            return Transient(None, f"no whole answer within {self._timeout_seconds:g} s")
        return Transient(None, self._token.redact(in_passing(error))[:200])
