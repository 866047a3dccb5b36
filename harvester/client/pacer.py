"""The pace that spreads attempts over the minute's window (aiolimiter)."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiolimiter import AsyncLimiter

from harvester.client.counting import Counting
from harvester.shutdown import ShutdownSignal


class Pacer:
    """Holds attempts back so that a window fills evenly.

    sprint: True when what is left of the list fits into the room left, so that there is nothing to pace.
    """

    def __init__(self, counting: Counting, shutdown: ShutdownSignal) -> None:
        self.sprint: Callable[[], bool] = lambda: False
        self._counting = counting
        self._shutdown = shutdown
        self._paced = 0
        self._limiter: AsyncLimiter | None = None
        self._pacing: set[asyncio.Future[None]] = set()

    async def keep(self, per_minute: int, waits: Callable[[], None]) -> None:
        """Wait until an attempt keeps the pace. per_minute: the window's limit, 0 for none; waits: called before.

        Raises:
            Stopping: the run ended first.
        """
        if per_minute != self._paced:
            self._paced, self._limiter = per_minute, _limiter(per_minute)
        if self._limiter is None:
            return
        if self._limiter.has_capacity():
            await self._limiter.acquire()  # at once
            return
        waits()
        if not self._counting.ask(self.sprint):
            waiting = asyncio.ensure_future(_acquire(self._limiter))
            self._pacing.add(waiting)
            try:
                await self._shutdown.unless_stopping(waiting)
            except asyncio.CancelledError:
                # A wait that `hurry` ended before it had begun; whoever is cancelled itself stays so.
                task = asyncio.current_task()
                if not waiting.cancelled() or (task is not None and task.cancelling()):
                    raise
            finally:
                self._pacing.discard(waiting)

    def hurry(self) -> None:
        """The list has come to its end: if what is left fits into the room left, nobody waits for the pace any more."""
        if not self._pacing:
            return
        fits = self._counting.ask(self.sprint)
        for waiting in self._pacing if fits else ():
            waiting.cancel()


async def _acquire(limiter: AsyncLimiter) -> None:
    with suppress(asyncio.CancelledError):  # there is nothing to wait for any more
        await limiter.acquire()


def _limiter(per_minute: int) -> AsyncLimiter | None:
    """Give the limiter that smooths below the minute's window.

    A full bucket would let nearly twice the limit through in its first minute, and a bucket of one cannot keep a
    high rate; one of 1 % does (measured: 99.5 % at 500 a second).
    """
    if not per_minute:
        return None
    burst = max(per_minute // 100, 1)
    return AsyncLimiter(burst, burst * 60.0 / per_minute)
