"""Whom does a bad answer concern? A known-good link decides: one that was answered before, asked again.

It costs a call, so it is asked only where the answers to other calls have not decided: before a call is written off as
failed, before a verdict that is for every call stops the run, and after a streak of definite no's without an answer
between them. All who doubt at the same time share one question.

Where nobody was ever answered there is no known-good link, and a definite no waits for the first answer. A verdict that
is for every call waits for that too, or for a second link that gets it. A server that
said no to a dozen links, and then answers, would answer a known-good link too: there one of the dozen is asked again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

from harvester.bitly.verdicts import (
    Answer,
    ForEveryCall,
    MonthSpent,
    No,
    NoAnswer,
    Refused,
    Throttled,
    Unknown,
    Verdict,
    reason,
)
from harvester.client.circuit_breaker import CircuitBreaker
from harvester.errors import RunStopping
from harvester.shutdown import ShutdownSignal, StopReason, refuses_everything

KNOWN_GOOD_LINKS = 8
"""How many are remembered; several, because one may come to fail by itself."""
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


@dataclass(slots=True)
class Streak:
    """Definite no's without an answer between them. began: the first one's moment. size: how many they are.

    ended: a moment before the attempt was sent whose answer ended the streak; 0 while it goes on. A no whose attempt
    began before that belongs to it, although it came later. asked_again: one of them is, or was. stands: it was refused
    again; None before that is known.
    """

    began: int = 0
    ended: int = 0
    size: int = 0
    asked_again: bool = False
    stands: bool | None = None


class Place(NamedTuple):
    """A verdict's place among the others. came: its moment. streak: the one it belongs to, if it is a definite no."""

    came: int
    streak: Streak


class KnownGoodLinks:
    """Bitlinks that were answered, and what became of asking one of them again.

    links: the latest answered last; those of an earlier run may be added. in_run: True once this run had an answer.
    last: the latest verdict on a known-good link. asking: a question is under way. streak: the latest definite no's.
    earlier_unanswered: those at the end of the run before. Moments are numbers that `moment` returns in their order.
    send: sends an attempt for a link, and returns None if it was not sent after all.
    """

    def __init__(self, send: Callable[[str], Awaitable[Verdict | None]]) -> None:
        self.links: deque[str] = deque(maxlen=KNOWN_GOOD_LINKS)
        self.in_run = False
        self.last: Verdict | None = None
        self.asking = False
        self.streak, self.earlier_unanswered = Streak(), 0
        self._send = send
        self._moments = count(1)
        self._under_way: set[int] = set()
        self._asked_at = self._answered_at = 0
        self._news = asyncio.Event()
        self._waiting = 0

    def moment(self) -> int:
        """Return the present moment, later than all before."""
        return next(self._moments)

    @property
    def unanswered(self) -> int:
        """Definite no's of this run since its last answer."""
        return 0 if self.streak.ended else self.streak.size

    def begin(self) -> int:
        """Return the present moment, before an attempt is sent."""
        self._under_way.add(begun := self.moment())
        return begun

    def end(self, begun: int) -> None:
        """Record that an attempt is over."""
        self._under_way.discard(begun)
        self.notify_all()

    def under_way_before(self, moment: int) -> int:
        """Return how many attempts are under way that began before a moment."""
        return sum(begun < moment for begun in self._under_way)

    def answered(self, bitlink: str, begun: int) -> None:
        """Record an answer. begun: a moment before its attempt was sent."""
        self.in_run = True
        if not self.streak.ended and begun > self.streak.began:
            self.streak.ended = begun
        if bitlink not in self.links:
            self.links.append(bitlink)
        self._answered_at = max(self._answered_at, begun)
        self.notify_all()

    def answered_since(self, moment: int) -> bool:
        """Return whether an attempt that was sent after a moment has been answered, for whatever link."""
        return self._answered_at > moment

    def asked_since(self, moment: int) -> bool:
        """Return whether `last` is of an attempt that was sent after a moment."""
        return self._asked_at > moment

    async def news(self) -> None:
        """Return at the next answer, at the end of a question, or when somebody calls `notify_all`."""
        self._waiting += 1
        try:
            await self._news.wait()
        finally:
            self._waiting -= 1

    def notify_all(self) -> None:
        """Wake all that wait for news."""
        if self._waiting:
            self._news.set()
            self._news = asyncio.Event()

    async def send(self) -> Verdict | None:
        """Send an attempt for a known-good link and return its verdict; None after a wait, or if it was throttled.

        Raises:
            RunStopping: the run ended before the attempt was sent.
        """
        bitlink, begun = self.links[0], self.moment()
        verdict = await self._send(bitlink)
        if verdict is None or isinstance(verdict, Throttled):
            return None
        if isinstance(verdict, Answer):
            self.answered(bitlink, begun)
        elif self.links[0] == bitlink:
            self.links.rotate(-1)  # it may have come to fail by itself since
        self._asked_at, self.last = begun, verdict
        return verdict

    async def ask(self) -> None:
        """Send attempts for known-good links until one has a verdict, and wake all that wait for it.

        If it is refused, a second one is asked: the first may have been deleted since.

        Raises:
            RunStopping: the run ended first.
        """
        self.asking = True
        try:
            if isinstance(await self._sent(), Refused) and len(self.links) > 1:
                await self._sent()
        finally:
            self.asking = False
            self.notify_all()

    async def _sent(self) -> Verdict:
        while (verdict := await self.send()) is None:
            pass
        return verdict


class HeldVerdicts:
    """Definite no's, and verdicts for every call, held back until it is known whom they concern.

    month_spent: records that Bitly reports the month as spent. in_flight: how many attempts are being answered.
    """

    def __init__(
        self,
        known_good: KnownGoodLinks,
        breaker: CircuitBreaker,
        shutdown: ShutdownSignal,
        month_spent: Callable[[], None],
        in_flight: Callable[[], int],
    ) -> None:
        self._known_good = known_good
        self._breaker = breaker
        self._shutdown = shutdown
        self._month_spent = month_spent
        self._in_flight = in_flight
        self._for_every_call: list[ForEveryCall] = []
        self._held: set[int] = set()
        self._carried = 0
        self._own: set[tuple[int, str]] = set()
        self._ended = self._list_ended = False
        self._earlier = Streak()
        self._joined_earlier = 0
        self._since_question = STREAK

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
        if not self._known_good.links:
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
