"""Whom does a bad answer concern: its link or everybody? A verdict is held back until that is known.

The answers to other calls show it, and where they do not, a known-good link does (`known_good`). Where nobody was ever
answered there is none, and a definite no waits for the first answer. A verdict that is for every call waits for that
too, or for a second link that gets it; before the token is believed to be refused, or the month to be spent, the
account's own route is asked. A server that said no to a dozen links, and then answers, would answer a known-good link
too: there one of the dozen is asked again. A link that was throttled lets others go first.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from harvester.bitly.verdicts import (
    Answer,
    ForEveryCall,
    MonthSpent,
    No,
    NoAnswer,
    Refused,
    TokenRefused,
    Unknown,
    Verdict,
    reason,
)
from harvester.client.circuit_breaker import CircuitBreaker
from harvester.client.known_good import KnownGoodLinks, Streak
from harvester.errors import RunStopping
from harvester.shutdown import ShutdownSignal, StopReason, refuses_everything

STREAK = 20
"""After this many definite no's without an answer in between a known-good link is asked."""
BURST = 10
"""After this many of them that an answer has followed, one is asked again. In a list of which half is gone, one link in
two thousand ends such a streak."""
LAST_STREAK = 5
"""This many at the end of a list are reason to ask a known-good link. Most lists end with fewer, and in a list of which
half is gone one in 32 ends with as many."""
_NEW = 5
"""As many of a STREAK must be this run's own: those of an earlier run may have been confirmed in it."""


class Place(NamedTuple):
    """A verdict's place among the others. came: its moment. streak: the one it belongs to, if it is a definite no."""

    came: int
    streak: Streak


class HeldVerdicts:
    """Definite no's, and verdicts for every call, held back until it is known whom they concern.

    month_spent: records that Bitly reports the month as spent. in_flight: how many attempts are being answered.
    account_answers: asks the account's own route by a helper request, and returns whether that was answered.
    """

    def __init__(
        self,
        known_good: KnownGoodLinks,
        breaker: CircuitBreaker,
        shutdown: ShutdownSignal,
        month_spent: Callable[[], None],
        in_flight: Callable[[], int],
        account_answers: Callable[[], Awaitable[bool]],
    ) -> None:
        self._known_good = known_good
        self._breaker = breaker
        self._shutdown = shutdown
        self._month_spent = month_spent
        self._in_flight = in_flight
        self._account_answers = account_answers
        self._for_every_call: list[ForEveryCall] = []
        self._held: set[int] = set()
        self._carried = 0
        self._own: set[tuple[int, str]] = set()
        self._ended = self._list_ended = False
        self._earlier = Streak()
        self._joined_earlier = 0
        self._since_question = STREAK
        self._vouched_for = 0

    def calls_ended(self, *, list_ended: bool) -> None:
        """Let no verdict wait for the answers to other calls any more. list_ended: no later run will doubt them."""
        self._ended, self._list_ended = True, list_ended
        self._known_good.notify_all()

    def asks_about(self, verdict: No) -> bool:
        """Return whether `confirmed` asks a known-good link about a verdict at once, or hears of others first."""
        if isinstance(verdict, ForEveryCall) and not self._known_good.links:
            return True
        return self._is_reason_to_ask(verdict, self._streak + 1)

    @property
    def hears_of_others(self) -> bool:
        """True while a verdict for every call is held, and calls that are being made may bring the first answer."""
        return bool(self._for_every_call) and not self._known_good.links and self._shutdown.stop is None

    def _is_everybodys(self, verdict: No) -> bool:
        """Return whether a verdict for every call is believed where nobody was ever answered: a second link got it."""
        alike = sum(type(each) is type(verdict) for each in self._for_every_call)
        return alike > 1 and not self._known_good.links and not self._in_flight()

    async def _is_links_own(self, verdict: No) -> bool:
        """Return whether a verdict is not the account's, though nobody was ever answered: its own route is answered.

        That is asked once for a STREAK of verdicts.

        Raises:
            RunStopping: the run ended first.
        """
        if not isinstance(verdict, TokenRefused | MonthSpent):  # of plan and parameters that route says nothing
            return False
        while self._known_good.asking:
            await self._known_good.news()
        if self._shutdown.stop is not None:
            raise RunStopping
        if not self._vouched_for:
            self._known_good.asking = True
            try:
                self._vouched_for = STREAK if await self._account_answers() else 0
            finally:
                self._known_good.asking = False
                self._known_good.notify_all()
        vouched = self._vouched_for > 0
        self._vouched_for -= vouched
        return vouched

    @property
    def _own_streak(self) -> int:
        """How many verdicts of this run no answer has followed yet."""
        # An answer lets go of what came before it, but the tasks that wait for it have yet to run.
        return sum(not self._known_good.answered_since(since) for since in self._held)

    @property
    def _streak(self) -> int:
        return self._own_streak + (0 if self._known_good.in_run else min(self._carried, STREAK - _NEW))

    def _is_reason_to_ask(self, verdict: No, streak: int) -> bool:
        """Return whether an unconfirmed verdict is reason to ask a known-good link. streak: of it and those before."""
        if not self._known_good.links:
            return False
        if not isinstance(verdict, Refused):
            return streak >= (STREAK if (verdict.status, verdict.message) in self._own else 1)
        # Also those that were believed meanwhile: links whose retries end one after another are never held together.
        last = max(self._own_streak, self._known_good.unanswered)
        if self._ended and (verdict.no_route or (self._list_ended and last >= LAST_STREAK)):
            return True
        return streak >= STREAK

    async def confirmed(
        self,
        verdict: No,
        place: Place,
        ask_again: Callable[[], Awaitable[Verdict]],
        *,
        earlier: bool = False,
    ) -> Verdict | None:
        """Hold a verdict back until it is known whom it concerns; return what it means for its call.

        None: its link has to be asked again, unless `ask_again` was called. Where nobody is answered until the calls
        have ended, a definite no is returned as it is.

        ask_again: sends an attempt for its link. earlier: the verdict is an earlier run's, which is no reason to ask a
        known-good link by itself.

        Raises:
            RunStopping: the server says no to everything, or the run ended before it was known.
        """
        since, streak = place
        with self._holding(verdict, since, earlier=earlier):
            while not self._known_good.answered_since(since):
                if self._known_good.asked_since(since) and self._known_good.last is not None:
                    return self._concerns_all(verdict, self._known_good.last)
                if self._shutdown.stop is not None:
                    return self._unconfirmed(verdict, known=bool(self._known_good.links) or earlier)
                if not earlier and not self._known_good.asking and self._is_reason_to_ask(verdict, self._streak):
                    self._since_question = 0
                    await self._known_good.ask()
                elif self._is_everybodys(verdict) or (self._ended and not self._known_good.asking):
                    break
                else:
                    await self._known_good.news()
        if not self._known_good.links and not await self._is_links_own(verdict):
            return self._believed(verdict)
        if isinstance(verdict, Refused):
            followed = self._known_good.answered_since(since)
            if followed and not await self._stands(streak, ask_again):
                return None
            return replace(verdict, no_route=False)
        self._own.add((verdict.status, verdict.message))
        return Unknown(verdict.status, verdict.message, "")

    @contextmanager
    def _holding(self, verdict: No, since: int, *, earlier: bool) -> Iterator[None]:
        """Count a verdict among those that are held."""
        for_every_call = [verdict] if isinstance(verdict, ForEveryCall) else []
        self._for_every_call += for_every_call
        self._held |= set() if earlier else {since}
        self._carried += earlier
        self._known_good.notify_all()
        try:
            yield
        finally:
            self._held.discard(since)
            self._carried -= earlier
            for each in for_every_call:
                self._for_every_call.remove(each)

    def _believed(self, verdict: No) -> No:
        """Return a verdict that concerns everybody, or that nothing can tell from one."""
        if isinstance(verdict, MonthSpent):
            self._month_spent()
        return verdict

    def place_of(self, verdict: Verdict, begun: int) -> Place:
        """Return the place of a verdict that has just come. begun: a moment before its attempt was sent."""
        # Called at the moment at which the attempt ends, so that a no is either under way or in its streak.
        came, streak = self._known_good.moment(), self._known_good.streak
        if isinstance(verdict, Refused):
            if not streak.size or 0 < streak.ended < begun:
                streak = self._known_good.streak = Streak(came)
            streak.size += 1
            self._since_question += 1
        return Place(came, streak)

    def place_of_earlier(self) -> Place:
        """Return the place of a definite no of an earlier run; called for the latest first."""
        self._joined_earlier += 1
        self._earlier.size = self._known_good.earlier_unanswered
        belongs = self._joined_earlier <= self._earlier.size
        return Place(self._known_good.moment(), self._earlier if belongs else Streak())

    async def _stands(self, streak: Streak, ask_again: Callable[[], Awaitable[Verdict]]) -> bool:
        """Return whether the no's of a streak that an answer has followed are believed: False if one that was asked
        again is not refused any more.

        Raises:
            RunStopping: the run ended before it was known.
        """
        while streak.size < BURST <= streak.size + self._known_good.under_way_before(streak.ended):
            await self._known_good.news()
        if streak.stands is None and not streak.asked_again:
            streak.asked_again = streak.size >= BURST and self._since_question >= STREAK
            streak.stands = None if streak.asked_again else True
            if streak.asked_again:
                self._since_question = 0
                try:
                    streak.stands = isinstance(await ask_again(), Refused)
                finally:
                    streak.stands = bool(streak.stands)
                    self._known_good.notify_all()
        while streak.stands is None:
            await self._known_good.news()
        return streak.stands

    def _concerns_all(self, verdict: No, known_good: Verdict) -> Verdict | None:
        """Return what a verdict means once a known-good link was not answered either; None to ask again.

        known_good: that link's verdict.

        Raises:
            RunStopping: the server refuses everything, also what it answered before.
        """
        if isinstance(known_good, NoAnswer):
            self._breaker.suspect()
            return None
        if isinstance(verdict, Refused) and isinstance(known_good, ForEveryCall):
            verdict = known_good
        if not isinstance(verdict, Refused):
            return self._believed(verdict)
        stop = refuses_everything(reason(known_good), no_route=verdict.no_route and not self._known_good.in_run)
        self._shutdown.request(stop)
        raise RunStopping

    def _unconfirmed(self, verdict: No, *, known: bool) -> Verdict:
        """Return a definite no of a run that is ending, unless there is reason to doubt it.

        known: False if nobody was ever answered. Then it is returned only if it is one of the failures that end the
        run, because those are reported.

        Raises:
            RunStopping: there is reason.
        """
        too_many = self._shutdown.stop and self._shutdown.stop.reason is StopReason.TOO_MANY_FAILURES
        if not known and too_many and isinstance(verdict, Refused):
            return verdict
        good = known and (self._known_good.last is None or isinstance(self._known_good.last, Answer))
        if isinstance(verdict, Refused) and not verdict.no_route and good and self._streak < STREAK:
            return verdict
        raise RunStopping


@dataclass(frozen=True, slots=True)
class _Throttling:
    """A call's last throttled response. times: in a row. alone: others had passed since the one before."""

    moment: int
    times: int
    alone: bool


class ThrottledLinks:
    """Links that were throttled. Each lets other calls go first: they show whether everybody is throttled.

    calls: how many calls are being made. links: what is known of each.
    """

    def __init__(self, known_good: KnownGoodLinks, shutdown: ShutdownSignal, calls: Callable[[], int]) -> None:
        self._known_good = known_good
        self._shutdown = shutdown
        self._calls = calls
        self.links: dict[str, _Throttling] = {}
        self._yielding = 0

    def add(self, bitlink: str, *, alone: bool) -> None:
        """Record a throttled response. alone: as `is_alone` before its attempt."""
        times = self.links[bitlink].times if bitlink in self.links else 0
        self.links[bitlink] = _Throttling(self._known_good.moment(), times + 1, alone=alone)

    def forget(self, bitlink: str) -> None:
        """Record that a link's latest attempt was not throttled."""
        self.links.pop(bitlink, None)

    def is_alone(self, bitlink: str) -> bool:
        """Return whether a link was throttled and others have passed since: the next time it is the link's own."""
        last = self.links.get(bitlink)
        return last is not None and (last.alone or self._known_good.answered_since(last.moment))

    async def let_others_pass(self, bitlink: str, *, again: bool) -> bool:
        """Let other calls go before one that was throttled. Return whether it may go. again: as in Client.

        One that was throttled twice, with no other calls to go before it, sends a known-good link ahead.
        """
        last = self.links.get(bitlink)
        if last is None or self.is_alone(bitlink):
            return True
        self._yielding += not again
        try:
            while self._calls() > self._yielding and self._shutdown.stop is None:
                await self._known_good.news()
                if self.is_alone(bitlink):
                    return True
        finally:
            self._yielding -= not again
        if last.times < 2 or not self._known_good.links:
            return True
        await self._known_good.send()
        return False
