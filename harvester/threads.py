"""Between threads and the event loop: a bounded queue, and blocking work that nobody waits for at the end."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueClosed(Exception):
    """The reader has closed the queue: nothing that is put into it is read any more."""


class ThreadToLoopQueue(Generic[T]):
    """A bounded queue from one thread to the event loop. Created and read in the loop, written by the thread.

    Either side ends it by itself: the writer with `end`, after which the reader still gets what waits; the reader with
    `close`, after which what waits is dropped and a blocked writer gets QueueClosed.

    janus 2.0 bounds memory and wakes a blocked writer too, but does not replace this class: it has one shutdown for
    both sides, so that a reader who leaves cannot wait for the writer's end (`ended`); it starts a task for each
    wake-up, which a loop that ends finds pending; and between its check that the loop is open and its call into the
    loop, a writer that outlives the loop, as the thread of a user's blocking iterable may, gets a RuntimeError.

    room: items that may wait.
    """

    def __init__(self, room: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = room
        self._items: deque[T] = deque()
        self._condition = threading.Condition()
        self._changed = asyncio.Event()
        self._ended = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """True when the reader has left."""
        return self._closed

    def put(self, item: T) -> None:
        """Add an item, blocking until there is room.

        Raises:
            QueueClosed: the reader has closed the queue.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._closed or len(self._items) < self._room)
            if self._closed:
                raise QueueClosed
            self._items.append(item)
        self._wake_reader()

    def end(self) -> None:
        """Mark the end: the writer adds no more items."""
        self._ended = True
        self._wake_reader()

    async def take(self, most: int) -> list[T]:
        """Wait for at least one item, and return up to most of them; an empty list at the end."""
        while True:
            self._changed.clear()
            with self._condition:
                ended = self._ended
                items = [self._items.popleft() for _ in range(min(most, len(self._items)))]
                self._condition.notify_all()
            if items or ended or self._closed:
                return items
            await self._changed.wait()

    async def ended(self) -> None:
        """Return when the writer has called `end`."""
        while not self._ended:
            self._changed.clear()
            if not self._ended:
                await self._changed.wait()

    def close(self) -> None:
        """Leave as the reader: drop the items, and wake a writer that waits for room."""
        with self._condition:
            self._closed = True
            self._items.clear()
            self._condition.notify_all()
        self._wake_reader()

    def _wake_reader(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, so that there is no reader to wake
            self._loop.call_soon_threadsafe(self._changed.set)


async def in_daemon(work: Callable[[], T]) -> T:
    """Run work that may block for ever, such as reading from a silent pipe, in a daemon thread, and return its result.

    Raises what work raises. If cancelled, the thread goes on, and the process ends without waiting for it: that is why
    no executor does this, whose threads are joined at exit.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(finish: Callable[[], None]) -> None:
        if not future.cancelled():
            finish()

    def run() -> None:
        try:
            finish = partial(future.set_result, work())
        except BaseException as error:  # SystemExit too: the awaiting task would otherwise wait for ever
            finish = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed, so that nobody awaits the result
            loop.call_soon_threadsafe(deliver, finish)

    threading.Thread(target=run, name="harvester-reader", daemon=True).start()
    return await future
