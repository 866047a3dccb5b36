"""From a thread to the event loop: a bounded queue whose writer waits for room, and whose reader may leave."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class ReaderGone(Exception):
    """The reader has closed the channel: nothing that is put into it is read any more."""


class ThreadToLoopQueue(Generic[T]):
    """Made and read in an event loop, written in one thread. room: things that may wait in it."""

    def __init__(self, room: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = room
        self._things: deque[T] = deque()
        self._changed = threading.Condition()
        self._told = asyncio.Event()
        self._ended = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """True when the reader has left."""
        return self._closed

    def put(self, thing: T) -> None:
        """Add something, as soon as there is room; blocks.

        Raises:
            ReaderGone: the reader has closed the channel.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._things) < self._room)
            if self._closed:
                raise ReaderGone
            self._things.append(thing)
        self._tell()

    def end(self) -> None:
        """Say that nothing more will come."""
        self._ended = True
        self._tell()

    async def take(self, most: int) -> list[T]:
        """Give what is there, most things at most, as soon as there is anything; nothing at the end."""
        while True:
            self._told.clear()
            with self._changed:
                ended = self._ended
                taken = [self._things.popleft() for _ in range(min(most, len(self._things)))]
                self._changed.notify_all()
            if taken or ended or self._closed:
                return taken
            await self._told.wait()

    async def over(self) -> None:
        """Return when the writer has said that nothing more will come."""
        while not self._ended:
            self._told.clear()
            if not self._ended:
                await self._told.wait()

    def close(self) -> None:
        """Leave: what is there is dropped, and who waits for room is woken."""
        with self._changed:
            self._closed = True
            self._things.clear()
            self._changed.notify_all()
        self._tell()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._told.set)


async def in_daemon(work: Callable[[], T]) -> T:
    """Do work that may block for ever (reading from a silent pipe) in a thread that nobody waits for at the end.

    Raises what work raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def do() -> None:
        result: T | None = None
        caught: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # handed to whoever waits, who would wait for ever without it
            caught = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result, caught)

    threading.Thread(target=do, name="harvester-reader", daemon=True).start()
    return await future
