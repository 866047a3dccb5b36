"""When a run ends before its list does, and why: reasons, the switch that everyone watches, the rules of verdicts."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from harvester.errors import RunStopping

T = TypeVar("T")


class StopReason(StrEnum):
    """Why a run stopped; written to the manifest, and turned into an exit code by the command."""

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
    """Why a run ends early. message: for a person, with what to do next. until: when to run again, UTC, if known."""

    reason: StopReason
    message: str
    until: str | None = None


class ShutdownSignal:
    """The switch that ends a run: whoever finds a reason turns it, and whoever waits is woken by it."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self._turned = asyncio.Event()

    def request(self, stop: Stop) -> None:
        """End the run for this reason, unless it is ending already."""
        if self.stop is None:
            self.stop = stop
            self._turned.set()

    async def wait(self) -> None:
        """Return when the run is to end."""
        await self._turned.wait()

    async def sleep_unless_stopping(self, seconds: float) -> None:
        """Sleep, unless the run ends meanwhile.

        Raises:
            Stopping: it does.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._turned.wait()
        except TimeoutError:
            return
        raise RunStopping

    async def unless_stopping(self, work: Awaitable[T]) -> T:
        """Await work, and give it up when the run ends first.

        Raises:
            Stopping: the run ended first; work was cancelled.
        """
        if self.stop is not None:
            _drop(work)
            raise RunStopping
        task = asyncio.ensure_future(work)
        turned = asyncio.ensure_future(self._turned.wait())
        try:
            await asyncio.wait({task, turned}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise RunStopping
        finally:
            turned.cancel()
            task.cancel()


def _drop(work: Awaitable[object]) -> None:
    if asyncio.iscoroutine(work):
        work.close()
    elif isinstance(work, asyncio.Future):
        work.cancel()


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many calls may be refused or fail before the run stops: a count, or a share of the calls made.

    A share is looked at from SHARE_FLOOR calls on, because the first failure of three would be a third, and at the end.
    """

    count: int | None = None
    share: float | None = None

    SHARE_FLOOR = 100

    def exceeded(self, failed: int, calls: int, *, final: bool = False) -> bool:
        """True when failed calls of calls made are too many. final: no more will be made."""
        if self.count is not None and failed > self.count:
            return True
        return self.share is not None and (final or calls >= self.SHARE_FLOOR) and failed > self.share * calls
