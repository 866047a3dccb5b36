"""Known-good links: links that were answered before. One asked again shows whether a bad answer concerns everybody.

It costs a call, so it is asked only where the answers to other calls have not decided: before a call is written off as
failed, before a verdict that is for every call stops the run, and after a streak of definite no's without an answer
between them. All who doubt at the same time share one question.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count

from harvester.bitly.verdicts import Answer, Refused, Throttled, Verdict

KNOWN_GOOD_LINKS = 8
"""How many are remembered; several, because one may come to fail by itself."""


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


class KnownGoodLinks:
    """Bitlinks that were answered, and what became of asking one of them again.

    links: the latest answered last; those of an earlier run may be added. in_run: True once this run had an answer.
    last: the latest verdict on a known-good link. asking: a question is under way. streak: the latest definite no's.
    earlier_unanswered: those at the end of the run before.
    waiting: how many wait for news. Moments are numbers that `moment` returns in their order.
    send: sends an attempt for a link, and returns None if it was not sent after all.
    """

    def __init__(self, send: Callable[[str], Awaitable[Verdict | None]]) -> None:
        self.links: deque[str] = deque(maxlen=KNOWN_GOOD_LINKS)
        self.in_run = False
        self.last: Verdict | None = None
        self.asking = self.sending = False
        self.streak, self.earlier_unanswered = Streak(), 0
        self._send = send
        self._moments = count(1)
        self._under_way: set[int] = set()
        self._asked_at = self._answered_at = 0
        self._news = asyncio.Event()
        self.waiting = 0

    def moment(self) -> int:
        """Return the present moment, later than all before."""
        return next(self._moments)

    @property
    def unanswered(self) -> int:
        """Definite no's of this run since its last answer."""
        return 0 if self.streak.ended else self.streak.size

    def begin(self) -> int:
        """Return the present moment, before an attempt is sent."""
        self._under_way.add(begun := next(self._moments))
        return begun

    def end(self, begun: int) -> None:
        """Record that an attempt is over."""
        self._under_way.discard(begun)
        if self.waiting:
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
        if self.waiting:
            self.notify_all()

    def answered_since(self, moment: int) -> bool:
        """Return whether an attempt that was sent after a moment has been answered, for whatever link."""
        return self._answered_at > moment

    def asked_since(self, moment: int) -> bool:
        """Return whether `last` is of an attempt that was sent after a moment."""
        return self._asked_at > moment

    async def news(self) -> None:
        """Return at the next answer, at the end of a question, or when somebody calls `notify_all`."""
        self.waiting += 1
        try:
            await self._news.wait()
        finally:
            self.waiting -= 1

    def notify_all(self) -> None:
        """Wake all that wait for news."""
        if self.waiting:
            self._news.set()
            self._news = asyncio.Event()

    async def send(self) -> Verdict | None:
        """Send an attempt for a known-good link and return its verdict; None after a wait, or if it was throttled.

        Raises:
            RunStopping: the run ended before the attempt was sent.
        """
        bitlink, begun = self.links[0], self.moment()
        self.sending = True
        try:
            verdict = await self._send(bitlink)
        finally:
            self.sending = False
            if not self.asking:  # else a second link may be asked, before which nobody is told
                self.notify_all()
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
