"""An event loop whose time passes only when nothing else is left to do, so that weeks take seconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from harvester.clock import Clock
from harvester.links import feed as intake
from harvester.run import committer as keeper

T = TypeVar("T")
ROUND_SECONDS = 1e-6
THREADED = (intake, keeper)
"""What a harvest has of modules whose `in_daemon` must be `at_once` in virtual time."""


class VirtualClock(Clock):
    """The machine's clocks, in a time of their own. begin: seconds since 1970."""

    def __init__(self, begin: float) -> None:
        self.boot = "virtual"
        self.seconds = 1000.0
        self._offset = begin - self.seconds

    def boot_seconds(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.seconds + self._offset


class _Jumping(selectors.DefaultSelector):
    """Does not wait for its timeout, but has it passed."""

    clock: VirtualClock

    def select(self, timeout: float | None = None) -> Any:
        if events := super().select(0):
            return events
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        # Each round takes some time: timers are sometimes set for a moment that rounding puts at now.
        self.clock.seconds += max(timeout, 0.0) + ROUND_SECONDS
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; what belongs in a thread is done at once, because threads live in real time."""

    def __init__(self, clock: VirtualClock) -> None:
        selector = _Jumping()
        selector.clock = clock
        self._virtual = clock
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual.seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


async def at_once(work: Callable[[], T]) -> T:
    """Run the work at once; stands in for threads.in_daemon."""
    return work()


def run(clock: VirtualClock, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
        return runner.run(main)
