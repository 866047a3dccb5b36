"""One attempt: pace, slot, breaker, budget, request; and what its response says about the server and its limits."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from yarl import URL

from harvester.bearer import Token
from harvester.bitly.account_limits import LIMITS_KEY, NOT_ASKED, HelperResponse, limits_target
from harvester.bitly.query import Query
from harvester.bitly.requests import FacetRequests, Requests
from harvester.bitly.verdicts import (
    Answer,
    NoAnswer,
    Throttled,
    Transient,
    Verdict,
    not_unpacked,
    reason,
)
from harvester.budget.budget import Budget
from harvester.budget.limits import MonthExhausted, RetryAfter
from harvester.client.circuit_breaker import OUTAGE, CircuitBreaker
from harvester.client.counting import AttemptCounter, CountedAttempt
from harvester.client.pacer import HintedPauses, Pacer
from harvester.clock import parse_http_date, utc_iso
from harvester.errors import OutputError, RunStopping
from harvester.jsonlines import object_in
from harvester.progress import AttemptCounts, WaitReason
from harvester.shutdown import ShutdownSignal, Stop, StopReason, outage_over_limit, throttled_for_hours
from harvester.transport.connection_errors import permanent_cause, transient_cause
from harvester.transport.exchange import Received
from harvester.transport.pool import Pool, Slot

_LONGEST_PAUSE_SECONDS = 60.0
"""A longer wait is cut into pieces: another process may have learned something, or the machine slept."""
_DATE_SECONDS = 60.0
"""How often a response's Date header is compared with the budget's calendar."""
_THROTTLED_SECONDS = 2 * 3600.0
"""After this long with nothing but throttled responses the run stops: the month may be spent."""


@dataclass(frozen=True, slots=True)
class NotSent(Transient):
    """A failure before a byte of the request was written: the attempt was given back to the budget."""


def record_nothing(counters: AttemptCounts) -> None:
    """Record no attempts: nobody asks for them after a kill."""


@dataclass(frozen=True, slots=True)
class ClientContext:
    """What a client works with beside connections. clock: the budget's seconds since boot.

    record_attempts: called with the counts before each request is sent; raises OutputError if it must not be sent.
    helpers: the budget of the helper routes, by which the server may be asked for its date; None: it is not asked.
    """

    token: Token
    budget: Budget
    breaker: CircuitBreaker
    shutdown: ShutdownSignal
    clock: Callable[[], float]
    record_attempts: Callable[[AttemptCounts], None] = record_nothing
    helpers: Budget | None = None


class AttemptSender:
    """Sends attempts; several tasks may use it at once.

    timeout_seconds: for one attempt in all. trouble: why the last attempt had no answer; None once one had.
    not_sent: attempts that did not reach the server, which are in no other count. in_flight: the slots of those being
    answered. waiting: the limit that currently keeps an attempt from being sent. pauses: those of single calls.
    """

    def __init__(
        self, pool: Pool, asked: Query | Requests, context: ClientContext, *, base_url: str, timeout_seconds: float
    ) -> None:
        self.counters = AttemptCounts()
        self.not_sent = self.server_errors = self.network_errors = 0
        self.in_flight: list[Slot] = []
        self.waiting: WaitReason | None = None
        self.trouble: str | None = None
        self.pacer = Pacer(context.budget, context.shutdown)
        self.pauses = HintedPauses()
        self.pool = pool
        self._timeout_seconds = timeout_seconds
        self._token = context.token
        self._budget = context.budget
        self._breaker = context.breaker
        self._shutdown = context.shutdown
        self._clock = context.clock
        self._counter = AttemptCounter(context.shutdown, context.clock, context.record_attempts)
        self._helpers = context.helpers
        self._requests = FacetRequests(asked) if isinstance(asked, Query) else asked
        self._body_for = self._requests.body
        self._base_path = URL(base_url).raw_path.rstrip("/")
        self._throttled_since: float | None = None
        self._date_due = 0.0

    async def send(
        self,
        bitlink: str,
        header: str,
        *,
        may_probe: bool,
        evidence: bool,
        known_good: bool = False,
        throttled_alone: bool = False,
        yields_probe: bool = False,
        parameters: str = "",
    ) -> Verdict | None:
        """Send an attempt if breaker and budget allow it now and return its verdict; otherwise wait and return None.

        header: for Authorization. may_probe: in an outage this attempt may be the probe. evidence: its outcome says
        something about the server. known_good: its link was answered before. throttled_alone: if it is throttled, that
        says nothing about the limits, because others pass. yields_probe: leave it to a known-good link to show whether
        a limit is full. parameters: instead of the query's.

        Raises:
            RunStopping: the run ended before the attempt was sent.
        """
        # The pace comes first, because it may take long and costs nothing. Then a slot: an attempt that held none might
        # be allowed by the budget and still wait for a connection, and would count in the wrong second. Breaker and
        # budget are asked last, with the slot in hand and nothing awaited between their yes and the request: the budget
        # counts the attempt before it is sent, so a kill can leave too much counted, never too little. An attempt that
        # may not go gives its slot back before it waits: a waiter never holds a connection.
        refusal = self._breaker.wait_before_sending(may_probe=may_probe) if self._breaker.is_open else None
        if refusal is None:
            if not self.pacer.lets_pass():
                await self.pacer.acquire(self._waits_for_pace)
            slot = self.pool.take() or await self._wait_for_slot()
            try:
                if yields_probe and self._budget.wants_known_good:  # it was paused while this attempt waited
                    return None
                attempt, entered_at = self._enter(slot, may_probe=may_probe)
                if isinstance(attempt, CountedAttempt):
                    verdict = await self._request(slot, attempt, bitlink, header, parameters)
                    if isinstance(verdict, Answer):
                        self._record_answer(attempt.sent_at, evidence=evidence, known_good=known_good)
                    elif throttled_alone and isinstance(verdict, Throttled) and not self._budget.paused:
                        self._record_throttled_alone(bitlink, entered_at)
                    else:
                        self._record(bitlink, verdict, attempt.sent_at, entered_at, evidence=evidence)
                    return verdict
                refusal = await self._doubt(slot, attempt) if isinstance(attempt, MonthExhausted) else attempt
            finally:
                self.pool.put(slot)
        await self._wait(refusal)
        return None

    async def _wait_for_slot(self) -> Slot:
        if self.pool.empty_handed:
            self.waiting = WaitReason("connections", 0, None)
        return await self.pool.get(self._shutdown)

    async def look_up(self, target: str, budget: Budget) -> HelperResponse | None:
        """Send a helper request once, in a slot. Return None if no response came, NOT_ASKED if the budget is full.

        target: path and query below the base URL, encoded. budget: of the helper routes.

        Raises:
            RunStopping: the run ended first.
        """
        slot = await self.pool.get(self._shutdown)
        try:
            self._follow_token(budget)
            attempt = self._counter.acquire(slot.line, budget)
            if not isinstance(attempt, CountedAttempt):
                return HelperResponse(NOT_ASKED, {}, b"")
            response = await self._send_helper(slot, target, attempt)
            if response is not None and response.status == 200 and self._clock() >= self._date_due:
                self._see_date(response.headers.get("Date", ""), attempt.sent_at)
            return response
        finally:
            self.pool.put(slot)

    async def account_answers(self) -> bool:
        """Ask the account's own route, of the limits, and return whether it was answered: then the token is good.

        Raises:
            RunStopping: the run ended first.
        """
        if self._helpers is None:
            return False
        response = await self.look_up(limits_target(self._requests.endpoint), self._helpers)
        return response is not None and response.status == 200 and LIMITS_KEY in object_in(response.body)

    def _follow_token(self, budget: Budget) -> None:
        if budget.account.token != self._budget.account.token:  # it was rotated since
            budget.use_token(self._budget.account.token)

    async def _send_helper(self, slot: Slot, target: str, attempt: CountedAttempt) -> HelperResponse | None:
        """Send a helper request that its budget has just counted, and return its response, None if none came."""
        self.counters.helper += 1
        self._counter.record(self.counters)
        try:
            try:
                with slot.line.deadline(self._timeout_seconds):
                    response = await slot.transport.send(f"{self._base_path}{target}", self._token.header)
                lost = not response.whole or (response.flaw and response.status == 200)
                if lost or not (slot.line.sole or await slot.line.confirm_sole()):
                    return None
                return HelperResponse(response.status, response.headers, response.content)
            finally:
                if slot.line.unsent:
                    self.counters.helper -= self._give_back(attempt)
                    self._counter.record_fewer(self.counters)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        finally:
            await slot.line.closed()

    async def _doubt(self, slot: Slot, exhausted: MonthExhausted) -> RetryAfter:
        """Ask the server for its date if a spent month may be over; otherwise end the run with RunStopping."""
        helpers = self._helpers
        if helpers is not None and self._may_ask_date(helpers):
            attempt = self._counter.begin(slot.line, helpers)
            response = await self._send_helper(slot, limits_target(self._requests.endpoint), attempt)
            if attempt.counted is not None:  # it was sent
                date = response.headers.get("Date", "") if response is not None else ""
                self._see_date(date, attempt.sent_at, asked=True)
            return RetryAfter(0.0, "month", self._budget.limits.per_month)
        plan = self._budget.month.plan_report()
        text = exhausted.describe(self._budget.account.name, self._budget.limits.per_month, plan and plan.month)
        self._shutdown.request(Stop(StopReason.MONTH_SPENT, text, utc_iso(exhausted.until)))
        raise RunStopping

    def _record_answer(self, sent_at: float, *, evidence: bool, known_good: bool) -> None:
        """Record in breaker and budget that a link was answered."""
        self.trouble = self._throttled_since = None
        self._breaker.record_success(evidence=evidence, known_good=known_good)
        if self._budget.paused or self._budget.month.reported_spent:
            self._record_in_budget(sent_at, answered=True)

    def _record(self, bitlink: str, verdict: Verdict, sent_at: float, entered_at: float, *, evidence: bool) -> None:
        """Record in breaker and budget what a verdict that is no answer says about the server and its limits.

        entered_at: when the breaker let the attempt pass, if it was open; else 0.
        """
        assert not isinstance(verdict, Answer)
        if isinstance(verdict, Throttled):
            self.counters.throttled += 1
            self._throttled_since = self._throttled_since or self._clock()
            self._breaker.throttled()
            with suppress(OutputError):
                self._budget.throttled(verdict.hint, sent_at=sent_at, bitlink=bitlink)
            return
        if isinstance(verdict, NoAnswer):
            self.trouble = reason(verdict)
            self.server_errors += verdict.status is not None
            self.network_errors += verdict.status is None
            self._breaker.record_failure(sent_at=entered_at, evidence=evidence)
        else:
            self.trouble = None
            self._breaker.record_success(evidence=evidence)
        if verdict.status is not None:
            self._throttled_since = None
            if self._budget.paused or self._budget.month.reported_spent:
                self._record_in_budget(sent_at, answered=False)

    def _record_in_budget(self, sent_at: float, *, answered: bool) -> None:
        # Nothing learned here is worth losing the response for. If the budget's file is broken, the next attempt fails.
        with suppress(OutputError):
            if answered and self._budget.month.reported_spent:
                self._budget.month.clear_spent()
            self._budget.answered(sent_at=sent_at)

    def _record_throttled_alone(self, bitlink: str, entered_at: float) -> None:
        """Record that a link was throttled although others pass, which says nothing about the limits."""
        self.counters.throttled += 1
        self._breaker.leave(sent_at=entered_at)  # as a probe it has shown nothing
        with suppress(OutputError):
            self._budget.unlearn(bitlink)

    def _enter(self, slot: Slot, *, may_probe: bool) -> tuple[CountedAttempt | RetryAfter | MonthExhausted, float]:
        """Pass the breaker and be counted, or return how long to wait; and when an open breaker let the attempt pass.

        That is 0 where it is closed: what is under way when it opens is no probe.
        """
        if self._shutdown.stop is not None:
            raise RunStopping
        entered_at = 0.0
        if self._breaker.is_open:
            if outage := self._breaker.enter(may_probe=may_probe):
                return outage, 0.0
            entered_at = self._clock()
        attempt = self._counter.acquire(slot.line, self._budget)
        if isinstance(attempt, CountedAttempt):
            self.waiting = None
            self.counters.total += 1
            self._counter.record(self.counters)
        else:
            self._breaker.leave(sent_at=entered_at)
        return attempt, entered_at

    def _waits_for_pace(self) -> None:
        # A window that is full says more, and stays.
        self.waiting = self.waiting or WaitReason("pace", self._budget.limits.per_minute, None)

    async def _wait(self, refusal: RetryAfter) -> None:
        why = (self.trouble or "") if refusal.window == OUTAGE else ""
        self.waiting = WaitReason(refusal.window, refusal.limit, self._budget.at(refusal.seconds), why)
        await self._shutdown.sleep_unless_stopping(min(refusal.seconds, _LONGEST_PAUSE_SECONDS))
        if self._breaker.over_limit:
            # Those in flight have not arrived yet.
            reached = self.counters.total > len(self.in_flight) or not self.not_sent
            self._shutdown.request(outage_over_limit(self.trouble or "", reached=reached))
        if self._throttled_since is not None and self._clock() - self._throttled_since >= _THROTTLED_SECONDS:
            self._shutdown.request(throttled_for_hours())

    def _may_ask_date(self, helpers: Budget) -> bool:
        self._follow_token(helpers)
        return self._counter.may_ask_date(helpers)

    def _give_back(self, attempt: CountedAttempt) -> bool:
        given_back = attempt.give_back()
        self.not_sent += given_back
        return given_back

    async def _request(
        self, slot: Slot, attempt: CountedAttempt, bitlink: str, authorization: str, parameters: str
    ) -> Verdict:
        line, matched = slot.line, False
        path, query = self._requests.target(bitlink)
        target = f"{self._base_path}{path}?{parameters or query}"
        posted = self._body_for(bitlink) if self._body_for else None
        self.in_flight.append(slot)
        try:
            with line.deadline(self._timeout_seconds):
                response = await slot.transport.send(target, authorization, posted)
            matched = line.sole or await line.confirm_sole()
            if not matched:
                # It may be the answer to an earlier request, and the one behind it the answer to this.
                return Transient(None, "the server sent more than one response, so none can be matched to the request")
            return self._classify(response, attempt.sent_at)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return self._failure(error, NotSent if line.unsent else Transient)
        finally:
            self.in_flight.remove(slot)
            if line.unsent:
                self.counters.total -= self._give_back(attempt)
                self._counter.record_fewer(self.counters)
            if not (line.kept and matched):
                await line.closed()

    def _classify(self, response: Received, sent_at: float) -> Verdict:
        content, whole = response.content, response.whole
        verdict = self._requests.classify(response.status, response.headers, content, whole=whole)
        if self._token.has_to_hide(content, good=isinstance(verdict, Answer)):
            content = self._token.redact(content.decode(errors="replace")).encode()
            return self._requests.classify(response.status, response.headers, content, whole=whole)
        if isinstance(verdict, Answer):
            if sent_at >= self._date_due:
                self._see_date(response.headers.get("Date", ""), sent_at)
        elif response.flaw:
            return not_unpacked(verdict, response.flaw, cut=response.cut)
        return verdict

    def _see_date(self, text: str, sent_at: float, *, asked: bool = False) -> None:
        """Correct the budget's calendar by the server's date: it is the server that begins a new month.

        asked: the request was sent for its date.
        """
        self._date_due = self._clock() + _DATE_SECONDS
        with suppress(OutputError):
            if (date := parse_http_date(text)) is not None:
                self._budget.month.see_date(date, sent_at=sent_at, asked=asked)
            elif asked:
                self._budget.month.see_no_date()

    def _failure(self, error: Exception, kind: type[Transient]) -> Verdict:
        """Turn a foreign error into a verdict, or end the run; no other code sees aiohttp's errors."""
        if stop := permanent_cause(error):
            self._shutdown.request(Stop(StopReason.CONNECTION_REFUSED, stop))
            raise RunStopping from error
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            what = "connection" if kind is NotSent else "complete answer"
            return kind(None, f"no {what} within {self._timeout_seconds:g} s")
        return kind(None, self._token.redact(transient_cause(error))[:200])
