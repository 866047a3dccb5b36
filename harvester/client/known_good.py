"""Whom does a bad answer concern? A known-good link decides: one that was answered before, asked again.

It costs a call, so it is asked only where the answers to other calls have not decided: before a call is written off as
failed, before a verdict that is for every call stops the run, and after a row of definite no's without a row between
them. All who doubt at the same time share one question.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count

from harvester.bitly.verdicts import Answer, Refused, Throttled, Verdict

KNOWN_GOOD_LINKS = 8
"""How many are remembered; several, because one may come to fail by itself."""


class KnownGoodLinks:
    """Bitlinks that were answered, and what became of asking one of them again.

    links: the latest answered last; those of an earlier run may be added. in_run: True once this run had an answer.
    last: the latest verdict on a known-good link. asking: a question is under way. Moments are numbers that `moment`
    returns in their order. send: sends an attempt for a link, and returns None if it was not sent after all.
    """

    def __init__(self, send: Callable[[str], Awaitable[Verdict | None]]) -> None:
        self.links: deque[str] = deque(maxlen=KNOWN_GOOD_LINKS)
        self.in_run = False
        self.last: Verdict | None = None
        self.asking = False
        self._send = send
        self._moments = count(1)
        self._asked_at = 0
        self._answered_at = 0
        self._news = asyncio.Event()

    def moment(self) -> int:
        """Return the present moment, later than all before."""
        return next(self._moments)

    def answered(self, bitlink: str, begun: int) -> None:
        """Record an answer. begun: a moment before its attempt was sent."""
        self.in_run = True
        if bitlink not in self.links:
            self.links.append(bitlink)
        self._answered_at = max(self._answered_at, begun)
        self.wake()

    def answered_since(self, moment: int) -> bool:
        """Return whether an attempt that was sent after a moment has been answered, for whatever link."""
        return self._answered_at > moment

    def asked_since(self, moment: int) -> bool:
        """Return whether `last` is of an attempt that was sent after a moment."""
        return self._asked_at > moment

    async def news(self) -> None:
        """Return at the next answer, at the end of a question, or when somebody calls `wake`."""
        await self._news.wait()

    def wake(self) -> None:
        """Wake all that wait for news."""
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
            self.wake()

    async def _sent(self) -> Verdict:
        while (verdict := await self.send()) is None:
            pass
        return verdict
