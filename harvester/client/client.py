"""One call to its verdict: attempts, retries, and whom a bad answer concerns.

A throttled response, and any answer that is none while the breaker is open, is the server's fault: the attempt is
repeated and the call is charged nothing. Three kinds of verdicts are doubted before they are believed:

- No answer (Transient, Unreadable, Unknown): before a call is written off as failed, it must be shown that the server
  answers others: most calls since it first failed were answered, and one recently.
- A definite no: one that stands among answers is the link's own. After STREAK of them without an answer in between it
  may be the server that says no to everything.
- A verdict for every call, such as a refused token: it may be that of this link alone. Where nobody was ever answered
  a second link must get it too. The same holds for a throttled response: a link that is throttled again although
  others have passed in between is charged for it.

Where the answers to others do not decide, a known-good link does (`known_good`).
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from harvester.bitly.query import Query
from harvester.bitly.requests import Requests
from harvester.bitly.verdicts import (
    Answer,
    No,
    NoAnswer,
    Refused,
    Throttled,
    TokenRefused,
    Transient,
    Unreadable,
    Verdict,
)
from harvester.client.attempt import AttemptSender, ClientContext, NotSent
from harvester.client.completion import Completion
from harvester.client.held_verdicts import STREAK, HeldVerdicts, Place, ThrottledLinks
from harvester.client.known_good import KnownGoodLinks
from harvester.client.pacer import AtOnce, Backoff, RemainingCalls, StrangeAnswers, retrier
from harvester.errors import OutputError
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.http import pooled
from harvester.transport.pool import Pool

_ENOUGH_CALLS = 5
"""Fewer calls than this do not show how the server is, where none of them was answered."""
_SOON_SECONDS = 10.0
"""A known-good link that is answered longer than this after a call's failure says nothing about that failure."""
_OTHERS_SECONDS = 60.0
"""How long the answers to other calls are waited for before a call has no answer: they cost nothing."""
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to make calls. attempts: made before a call counts as failed. timeout_seconds: total for one attempt.

    max_size: the metrics to ask for once more where an answer lists as many as the query's size; None to leave it.
    direct: as for `pooled`.
    """

    base_url: str
    connections: int
    attempts: int
    timeout_seconds: float
    backoff_seconds: float = 1.0
    max_size: int | None = None
    direct: bool = True


class Client:
    """Makes calls; created by `opened`.

    known_good: links that were answered, in this run or an earlier one. charges_tries: a call that fails too often is
    given up by later runs, so that a few strange answers are doubted too where nobody was answered.
    """

    def __init__(self, pool: Pool, settings: ClientSettings, asked: Query | Requests, context: ClientContext) -> None:
        self.sender = AttemptSender(
            pool, asked, context, base_url=settings.base_url, timeout_seconds=settings.timeout_seconds
        )
        self.known_good = KnownGoodLinks(self._send_known_good)
        self.charges_tries = False
        self._calls = self._fresh_calls = self._unanswered = self._begun = 0
        self._settings = settings
        self.completion = Completion(
            self._send_query,
            context.shutdown,
            asked if isinstance(asked, Query) else None,
            settings.max_size,
            attempts=settings.attempts,
            backoff_seconds=settings.backoff_seconds,
        )
        self.token, self._budget, self._clock = context.token, context.budget, context.clock
        self._breaker, self._shutdown = context.breaker, context.shutdown
        self._held = HeldVerdicts(
            self.known_good,
            context.breaker,
            context.shutdown,
            self._spend_month,
            lambda: len(self.sender.in_flight),
            self.sender.account_answers,
        )
        self._throttled = ThrottledLinks(self.known_good, context.shutdown, lambda: self._calls)
        self._strange = StrangeAnswers()

    def pace_by(self, worklist: RemainingCalls) -> None:
        """Send without pacing once the calls that remain in the worklist fit into the free window."""
        self.sender.pacer.worklist = worklist

    def input_ended(self) -> None:
        """Release the attempts that wait for the pace if the remaining calls fit; called at the input's end."""
        self.sender.pacer.input_ended()

    def calls_ended(self, *, list_ended: bool = False) -> None:
        """Let no verdict wait for the answers to other calls any more: no call is begun from now on.

        list_ended: the whole list was asked for, so that no later run will doubt its last refusals.
        """
        self._held.calls_ended(list_ended=list_ended)

    @property
    def under_way(self) -> int:
        """Calls whose first attempt has not ended, those that wait to be sent among them."""
        return self._calls

    def work_alone(self) -> None:
        """Make a few calls one after another: nothing paces them, and no other call's answer is waited for."""
        self.sender.pacer.worklist = AtOnce()
        self.calls_ended()

    def fetch(self, bitlink: str, *, fresh: bool = True) -> Coroutine[Any, Any, Verdict]:
        """Make a call's first attempt and return its verdict, which is never Throttled.

        fresh: False for a call that failed in an earlier run: if it fails again, that says nothing about the server.

        Raises:
            RunStopping: the run ended before the attempt was sent.
        """
        return self._attempt(bitlink, fresh=fresh, again=False)

    def is_final(self, verdict: Verdict) -> bool:
        """Return whether a first attempt's verdict is the call's last one; if not, `conclude` finds that."""
        return isinstance(verdict, Answer) or (isinstance(verdict, Refused) and not self.known_good.links)

    def asks_about(self, verdict: Verdict) -> bool:
        """Return whether others decide about a verdict at once: no call should be begun until `question_over`."""
        return isinstance(verdict, No) and self._held.asks_about(verdict)

    async def question_over(self) -> None:
        """Return once the call in doubt is not being decided any more; called after its task was created."""
        await asyncio.sleep(0)  # it asks in its first step
        await asyncio.sleep(0)  # and so do others, because answers may come several at a time
        while self.known_good.asking or (self._calls and self._held.hears_of_others):
            await self.known_good.news()
            await asyncio.sleep(0)

    def place_of(self, verdict: Verdict) -> Place:
        """Return the place of a verdict that has just been returned, before anything is awaited."""
        return self._held.place_of(verdict, self._begun)

    async def conclude(self, bitlink: str, first: Verdict, place: Place) -> tuple[Verdict, int]:
        """Find a call's last verdict after its first attempt's; return it, and how many attempts the call was charged.

        place: the first verdict's.

        Raises:
            RunStopping: the run ended first; the call is left for the next run.
        """
        verdict, charged = first, 1

        async def ask_again() -> Verdict:
            nonlocal verdict, place
            verdict = await self._attempt(bitlink, fresh=False, again=True)
            self.sender.counters.retried += not isinstance(verdict, NotSent)
            place = self.place_of(verdict)
            return verdict

        while True:
            if isinstance(verdict, NoAnswer):
                verdict, charged = await self.retry(bitlink, verdict)
                place = self.place_of(verdict)
            if isinstance(verdict, NoAnswer | Answer | Throttled):
                return verdict, charged
            doubted = verdict
            if (final := await self._held.confirmed(doubted, place, ask_again)) is not None:
                return final, charged
            if verdict is doubted:
                await ask_again()

    async def verdict_on(self, bitlink: str) -> Verdict:
        """Make a call, and return its last verdict, completed. Raises RunStopping."""
        verdict = await self.fetch(bitlink)
        place = self.place_of(verdict)
        if not self.is_final(verdict):
            verdict, _ = await self.conclude(bitlink, verdict, place)
        return await self.completion.of(bitlink, verdict)

    async def doubt_again(self, bitlink: str, verdict: Refused) -> bool:
        """Return whether a definite no of an earlier run, which no answer had followed, is still believed.

        Raises:
            RunStopping: the server says no to everything, or the run ended before it was known.
        """
        again, place = partial(self._attempt, bitlink, fresh=False, again=True), self._held.place_of_earlier()
        return isinstance(await self._held.confirmed(verdict, place, again, earlier=True), Refused)

    async def retry(self, bitlink: str, first: Verdict) -> tuple[Verdict, int]:
        """Repeat a call whose first attempt had no answer, as far as that may pass; return the last verdict, and how
        many attempts the call was charged in all.

        Raises:
            RunStopping: the run ended first; the call is left for the next run.
        """
        # The retrier starts with the first attempt's verdict, so that its stop and wait rules count that attempt too.
        # In an outage it is charged to no call, so the retrier starts from nothing. Each call has a retrier of its own:
        # tasks that share one mix up their results.
        earlier: list[Verdict] = [] if self._breaker.is_open else [first]
        failed_at, charged, unreadable = self._clock(), 0, 0

        async def attempt() -> Verdict:
            nonlocal charged, unreadable
            charged += 1
            out_of_attempts = charged >= self._settings.attempts
            if earlier:
                verdict = earlier.pop()
                out_of_attempts = out_of_attempts and not isinstance(verdict, Transient)
            else:
                verdict = await self._attempt(bitlink, fresh=False, again=True)
                self.sender.counters.retried += not isinstance(verdict, NotSent)
                if not isinstance(first, Transient):
                    self._strange.repeated(answered=isinstance(verdict, Answer))
            unreadable += isinstance(verdict, Unreadable)
            if isinstance(verdict, NoAnswer) and (out_of_attempts or not may_pass(verdict)):
                return await self._confirm_failure(bitlink, verdict, failed_at)
            return verdict

        def may_pass(verdict: Verdict) -> bool:
            return isinstance(verdict, NoAnswer) and not self._strange.is_final(verdict, unreadable)

        backoff = Backoff(self._settings.backoff_seconds, self.sender.pauses)
        verdict: Verdict = await retrier(self._settings.attempts, backoff, self._shutdown, may_pass)(attempt)
        self._throttled.forget(bitlink)
        return verdict, charged

    async def _attempt(self, bitlink: str, *, fresh: bool, again: bool) -> Verdict:
        """Send until a verdict is the call's own. again: it was sent before in this run."""
        renewed, own = False, None
        self._calls += not again
        self._fresh_calls += fresh
        try:
            while own is None:
                alone = False
                if self._budget.paused or self._breaker.is_open or self._throttled.links:
                    if not await self._let_others_pass(bitlink, fresh=fresh, again=again):
                        continue
                    alone = self._throttled.is_alone(bitlink)
                header, begun = self.token.header, self.known_good.begin()
                try:
                    verdict = await self.sender.send(
                        bitlink, header, may_probe=fresh or not self._fresh_calls, evidence=fresh,
                        throttled_alone=alone, yields_probe=bool(self.known_good.links),
                    )  # fmt: skip
                finally:
                    self.known_good.end(begun)
                self._begun = begun
                if isinstance(verdict, TokenRefused) and not renewed and await self._renew_token(header):
                    renewed = True  # once: a source may have another token each time, and none that is any good
                elif verdict is not None:
                    own = self._own(bitlink, verdict, begun, fresh=fresh, again=again, alone=alone)
            return own
        finally:
            self._fresh_calls -= fresh
            self._calls -= not again
            if self.known_good.waiting:
                self.known_good.notify_all()

    async def _let_others_pass(self, bitlink: str, *, fresh: bool, again: bool) -> bool:
        """Let others go first where they show what is the matter; return whether a call may be sent after that."""
        if self._budget.paused and self._known_good_probes_limits(bitlink):
            await (self.known_good.news() if self.known_good.sending else self.known_good.send())
            return False
        if self._breaker.is_open and self._known_good_goes(fresh):
            await self.known_good.send()
            return False
        return bitlink not in self._throttled.links or await self._throttled.let_others_pass(bitlink, again=again)

    def _own(
        self, bitlink: str, verdict: Verdict, begun: int, *, fresh: bool, again: bool, alone: bool
    ) -> Verdict | None:
        """Record the verdict of an attempt, and return the call's own; None if the attempt has to be repeated.

        begun: a moment before it was sent. alone: others had passed since the link was throttled.
        """
        if not isinstance(verdict, Answer):
            if isinstance(verdict, Throttled):
                self._throttled.add(bitlink, alone=alone)
                return Transient(verdict.status, verdict.message, verdict.hint) if alone else None
            if isinstance(verdict, NoAnswer):
                self._count_unanswered(fresh=fresh, again=again)
                return None if again and self._breaker.is_open else verdict
        self._unanswered = 0
        if bitlink in self._throttled.links:
            self._throttled.forget(bitlink)
        if isinstance(verdict, Answer):
            self.known_good.answered(bitlink, begun)
            if not (fresh or again):
                self._strange.passed()
        return verdict

    async def _send_query(self, bitlink: str, query: Query, again: bool) -> Verdict | None:
        header, parameters = self.token.header, query.parameters
        verdict = await self.sender.send(bitlink, header, may_probe=True, evidence=False, parameters=parameters)
        self.sender.counters.retried += again and verdict is not None and not isinstance(verdict, NotSent)
        return verdict

    async def _renew_token(self, header: str) -> bool:
        if renewed := await self.token.renewed(header, self._shutdown):
            self._budget.use_token(self.token.fingerprint)
        return renewed

    def _spend_month(self) -> None:
        with suppress(OutputError):  # the run ends all the same; the next one will be told again
            self._budget.month.mark_spent()

    # --- whose fault is it that there is no answer? ------------------------------------------------------------------

    def _known_good_probes_limits(self, bitlink: str) -> bool:
        """Return whether a pause's next probe should be a known-good link, as calls may be throttled for themselves."""
        return bool(self.known_good.links) and (self._budget.wants_known_good or self._throttled.is_alone(bitlink))

    def _known_good_goes(self, fresh: bool) -> bool:
        """Return whether an outage's next probe should be a known-good link, as calls may fail by their own fault."""
        return bool(self.known_good.links) and (self._breaker.wants_known_good or not (fresh or self._fresh_calls))

    async def _send_known_good(self, bitlink: str) -> Verdict | None:
        verdict = await self.sender.send(bitlink, self.token.header, may_probe=True, evidence=False, known_good=True)
        self.sender.counters.retried += verdict is not None and not isinstance(verdict, NotSent)
        if isinstance(verdict, Answer):
            self._unanswered = 0
        return verdict

    async def _confirm_failure(self, bitlink: str, verdict: Verdict, failed_at: float) -> Verdict:
        """Make sure that a call about to be written off has failed by its own fault, and return its last verdict.

        failed_at: when it first failed.
        """
        # Unless most other calls were answered since it failed, a known-good link decides. If that fails too, the
        # server is out, or answers only some, and the call is sent again. The same if the probe came too late to say
        # anything about the failure. Where no call was ever answered that is an outage, which has a limit of its own.
        if not isinstance(verdict, Transient):
            await self._hear_of_others(failed_at)
        while isinstance(verdict, NoAnswer) and not self._breaker.blames(failed_at):
            if self._unanswered < self._enough_to_be_out(verdict):
                return verdict
            failures, began = self._breaker.probes_failed, self._clock()
            self._breaker.suspect()
            while self.known_good.links and self._breaker.is_open:
                await (self.known_good.news() if self.known_good.asking else self.known_good.ask())
            late = self._clock() - began > _SOON_SECONDS
            if late or not self.known_good.links or self._breaker.probes_failed != failures:
                verdict = await self._attempt(bitlink, fresh=False, again=True)
        return verdict

    async def _hear_of_others(self, failed_at: float) -> None:
        """Wait for the answers to the calls that are being made, as long as they may show whose fault a failure is."""
        until = self._clock() + _OTHERS_SECONDS
        while self._calls and self._unanswered < _ENOUGH_CALLS and self._clock() < until:
            if self._breaker.is_open or self._breaker.blames(failed_at):
                return
            await self._shutdown.sleep_unless_stopping(_POLL_SECONDS)

    def _count_unanswered(self, *, fresh: bool, again: bool) -> None:
        """Count a call whose first attempt had no answer, in a row of such calls."""
        self._unanswered += not again
        # The breaker leaves calls out that failed in an earlier run. A list of nothing else must not be asked to its
        # end all the same, if nobody is answered.
        if not fresh and self._unanswered >= STREAK and not self._breaker.blames(self._clock()):
            self._breaker.suspect()

    def _enough_to_be_out(self, verdict: Verdict) -> int:
        """Return how many calls in a row without an answer are reason to doubt the server."""
        # A transient failure is a server's by its nature. Something strange may have been said of this link alone, and
        # if so few calls met it while others were answered, that is no reason to buy an answer.
        doubtful = isinstance(verdict, Transient) and self.known_good.links
        unheard = self.charges_tries or isinstance(verdict, Transient)
        return 0 if doubtful or (unheard and not self._breaker.ever_answered) else _ENOUGH_CALLS


@asynccontextmanager
async def opened(
    connections: ConnectionSlots | Pool, settings: ClientSettings, asked: Query | Requests, context: ClientContext
) -> AsyncIterator[Client]:
    """Open a client. connections: a pool that others share and close; or the slots of one. Raises: as `pooled`."""
    shared = nullcontext(connections) if isinstance(connections, Pool) else None
    slots, base_url = cast("ConnectionSlots", connections), settings.base_url
    async with shared or pooled(slots, context.shutdown, base_url, direct=settings.direct) as pool:
        yield Client(pool, settings, asked, context)
