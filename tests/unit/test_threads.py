"""The queue from a thread to the event loop, and blocking work in a daemon thread."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

import pytest

from harvester.threads import QueueClosed, ThreadToLoopQueue, in_daemon


def thread(work: Callable[[], object]) -> threading.Thread:
    started = threading.Thread(target=work, daemon=True)
    started.start()
    return started


async def test_a_writer_waits_for_room_and_all_that_it_wrote_is_read_in_order() -> None:
    queue: ThreadToLoopQueue[int] = ThreadToLoopQueue(3)
    put: list[int] = []

    def write() -> None:
        for number in range(100):
            queue.put(number)
            put.append(number)
        queue.end()

    writer = thread(write)
    found: list[int] = []
    while items := await queue.take(2):
        assert len(items) <= 2
        found += items
        assert len(put) <= len(found) + 3
    assert found == list(range(100))
    await queue.ended()
    writer.join()


async def test_a_reader_that_leaves_wakes_a_writer_without_room_and_can_await_its_end() -> None:
    queue: ThreadToLoopQueue[int] = ThreadToLoopQueue(1)

    def write() -> None:
        with contextlib.suppress(QueueClosed):
            while True:
                queue.put(1)
        queue.end()

    thread(write)
    assert await queue.take(1) == [1]
    queue.close()
    assert queue.closed
    async with asyncio.timeout(5):
        await queue.ended()
    assert await queue.take(1) == []


def test_a_writer_outlives_its_loop() -> None:
    async def create() -> ThreadToLoopQueue[int]:
        return ThreadToLoopQueue(2)

    queue = asyncio.run(create())
    queue.put(1)
    queue.end()


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
async def test_an_error_of_daemon_work_is_raised_to_the_awaiting_task(error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)):
        await in_daemon(work)


def test_daemon_work_that_blocks_for_ever_holds_up_neither_its_task_nor_the_loop() -> None:
    never = threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_daemon(never.wait)

    asyncio.run(main())
    never.set()  # the thread delivers to a closed loop
