"""Ending a run before its list does: the reasons, the signal that all tasks watch, the limit of failures."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from harvester.errors import RunStopping

T = TypeVar("T")


class StopReason(StrEnum):
    """Why a run stopped: written to the manifest, and mapped to the command's exit code."""

    SIGNAL = "signal"
    MAX_TIME = "max_time"
    MAX_CALLS = "max_calls"
    OUTAGE = "outage"
    THROTTLED = "throttled"
    MONTH_SPENT = "month_spent"
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a reason, not a secret
    PLAN_REFUSED = "plan_refused"
    PARAMETER_REFUSED = "parameter_refused"
    CONNECTION_REFUSED = "connection_refused"
    NO_ROUTE = "no_route"
    TOO_MANY_FAILURES = "too_many_failures"
    ALL_REFUSED = "all_refused"
    UNREADABLE = "unreadable"
    OUTPUT = "output"
    CONSUMER_GONE = "consumer_gone"
    INPUT = "input"
    NOT_BEGUN = "not_begun"


@dataclass(frozen=True, slots=True)
class Stop:
    """A reason to end a run. message: for a person, with what to do next. until: when to run again, UTC, if known."""

    reason: StopReason
    message: str
    until: str | None = None


class ShutdownSignal:
    """The signal that ends a run: any task may request it, once, and all tasks that wait are woken.

    It cancels nothing by itself. Waits (for the pace, a window, a back-off, the next line) go through
    `sleep_unless_stopping` or `unless_stopping` and end at once with RunStopping; an attempt in flight does not watch
    the signal, because it is counted already, and gets the harvest's grace instead. stop: the first reason requested.
    """

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self._requested = asyncio.Event()

    def request(self, stop: Stop) -> None:
        """End the run for this reason; later reasons are dropped."""
        if self.stop is None:
            self.stop = stop
            self._requested.set()

    async def wait(self) -> None:
        """Return when the run is asked to end."""
        await self._requested.wait()

    async def sleep_unless_stopping(self, seconds: float) -> None:
        """Sleep.

        Raises:
            RunStopping: the run is ending; raised at once.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        except TimeoutError:
            return
        raise RunStopping

    async def unless_stopping(self, work: Awaitable[T]) -> T:
        """Await work and return its result, which is preferred if both come at once.

        Raises:
            RunStopping: the run is ending; work is cancelled.
        """
        if self.stop is not None:
            _discard(work)
            raise RunStopping
        task = asyncio.ensure_future(work)
        requested = asyncio.ensure_future(self._requested.wait())
        try:
            await asyncio.wait({task, requested}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise RunStopping
        finally:
            requested.cancel()
            task.cancel()


def _discard(work: Awaitable[object]) -> None:
    """Dispose of work that was never awaited, without asyncio's warning."""
    if asyncio.iscoroutine(work):
        work.close()
    elif isinstance(work, asyncio.Future):
        work.cancel()


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """The most calls that may be refused or fail before the run stops: a count, or a share of the calls made.

    A share is checked from SHARE_FLOOR calls on, because the first failure among three would be a third, and at the
    end of the list.
    """

    count: int | None = None
    share: float | None = None

    SHARE_FLOOR = 100

    def exceeded(self, failed: int, calls: int, *, final: bool = False) -> bool:
        """True if failed is more than is allowed of calls. final: no more calls will be made."""
        if self.count is not None and failed > self.count:
            return True
        return self.share is not None and (final or calls >= self.SHARE_FLOOR) and failed > self.share * calls
