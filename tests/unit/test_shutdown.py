"""The signal that ends a run: the first reason counts, and what waits is woken."""

import asyncio
import time

import pytest

from harvester.errors import RunStopping
from harvester.shutdown import ShutdownSignal, Stop, StopReason

STOP = Stop(StopReason.SIGNAL, "SIGTERM")


async def test_the_first_reason_counts() -> None:
    shutdown = ShutdownSignal()
    assert shutdown.stop is None
    shutdown.request(STOP)
    shutdown.request(Stop(StopReason.OUTPUT, "disk full"))
    assert shutdown.stop == STOP
    await shutdown.wait()


async def test_a_pause_ends_by_itself() -> None:
    began = time.monotonic()
    await ShutdownSignal().sleep_unless_stopping(0.01)
    assert 0.005 < time.monotonic() - began < 5


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_pause_of_no_length_ends_at_once(seconds: float) -> None:
    await ShutdownSignal().sleep_unless_stopping(seconds)


async def test_a_pause_is_broken_off_when_the_run_ends() -> None:
    shutdown = ShutdownSignal()
    pauses = [asyncio.create_task(shutdown.sleep_unless_stopping(3600)) for _ in range(5)]
    await asyncio.sleep(0)
    shutdown.request(STOP)
    results = await asyncio.gather(*pauses, return_exceptions=True)
    assert [type(result) for result in results] == [RunStopping] * 5


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
async def test_a_run_that_has_ended_does_not_pause(seconds: float) -> None:
    shutdown = ShutdownSignal()
    shutdown.request(STOP)
    with pytest.raises(RunStopping):
        await shutdown.sleep_unless_stopping(seconds)


async def test_a_cancelled_pause_is_cancelled() -> None:
    pause = asyncio.create_task(ShutdownSignal().sleep_unless_stopping(3600))
    await asyncio.sleep(0)
    pause.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pause


class Work:
    """Something to await: it tells whether it was begun, and whether it was cancelled."""

    def __init__(self) -> None:
        self.begun = False
        self.cancelled = False
        self.end = asyncio.Event()

    async def __call__(self) -> str:
        self.begun = True
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "done"


async def test_guarded_work_gives_its_result() -> None:
    work = Work()
    work.end.set()
    assert await ShutdownSignal().unless_stopping(work()) == "done"


async def test_guarded_works_error_is_passed_on() -> None:
    async def broken() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await ShutdownSignal().unless_stopping(broken())


async def test_guarded_work_is_cancelled_when_the_run_ends() -> None:
    shutdown, work = ShutdownSignal(), Work()
    guarded = asyncio.create_task(shutdown.unless_stopping(work()))
    await asyncio.sleep(0.001)
    assert work.begun
    shutdown.request(STOP)
    with pytest.raises(RunStopping):
        await guarded
    await asyncio.sleep(0)
    assert work.cancelled


async def test_work_is_not_begun_when_the_run_has_ended() -> None:
    shutdown, work = ShutdownSignal(), Work()
    shutdown.request(STOP)
    with pytest.raises(RunStopping):
        await shutdown.unless_stopping(work())
    assert not work.begun


async def test_a_guard_that_is_cancelled_cancels_its_work() -> None:
    work = Work()
    guarded = asyncio.create_task(ShutdownSignal().unless_stopping(work()))
    await asyncio.sleep(0.001)
    guarded.cancel()
    with pytest.raises(asyncio.CancelledError):
        await guarded
    await asyncio.sleep(0)
    assert work.cancelled


async def test_nothing_is_left_running_behind_a_guard_or_a_pause() -> None:
    shutdown, work = ShutdownSignal(), Work()
    work.end.set()
    await shutdown.unless_stopping(work())
    await shutdown.sleep_unless_stopping(0.0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
