"""A list as a harvest takes it up: batches of what has come, from files or from links that are given one by one."""

import asyncio
import inspect
import os
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeAlias

from harvester.bitly.bitlinks import is_bitlink
from harvester.errors import InputBroken, UsageError
from harvester.links.batch import Batch, batch_of_links
from harvester.links.files import Source, read
from harvester.threads import ReaderGone, ThreadToLoopQueue, in_daemon

AnyPath: TypeAlias = str | os.PathLike[str]

GIVEN = "<links>"
_ROOM = 100
"""Links that are read before anybody asks for them; what has come does not wait for what has not."""
_LEAVE_SECONDS = 1.0
_END: Any = object()


class FileFeed:
    """Files and standard input. `next` raises InputBroken where one cannot be read further."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._batches = read(sources)

    async def next(self) -> Batch | None:
        """Give the next lines, None behind the last; a pipe may be silent, and nobody waits for it at the end."""
        return await in_daemon(lambda: next(self._batches, None))


class IterableFeed:
    """Links given one by one, by an iterable or an asynchronous one. Made and used in one event loop.

    An iterable is read in a thread of its own, because it may block; an asynchronous one in a task of its own. Either
    is read once, a little ahead of what is needed, and closed at the end if it is a generator. error: what it has
    raised, for which `next` and `all` raise InputBroken.

    Raises:
        UsageError: links is no iterable.
    """

    def __init__(self, links: Iterable[object] | AsyncIterable[object]) -> None:
        if not isinstance(links, AsyncIterable):
            try:
                links = iter(links)
            except TypeError as error:
                raise UsageError(
                    f"links: a path, or an iterable of links, was expected, not {type(links).__name__}"
                ) from error
        self.error: BaseException | None = None
        self._links = links
        self._reader: _Threaded | _Awaited | None = None
        self._ready: deque[Batch] = deque()
        self._read = 0

    async def next(self) -> Batch | None:
        """Give the links that have come since, at least one; None behind the last."""
        return self._ready.popleft() if self._ready else await self._next()

    async def all(self) -> list[Batch]:
        """Read to the end at once, and keep what is there to be given then."""
        while batch := await self._next():
            self._ready.append(batch)
        return list(self._ready)

    async def close(self) -> None:
        """Read no further; one that blocks is left to itself after a second, and ends with its next link."""
        if self._reader is not None:
            await self._reader.close()

    async def _next(self) -> Batch | None:
        if self._reader is None:
            links = self._links
            self._reader = _Awaited(links) if isinstance(links, AsyncIterable) else _Threaded(links)
        things = await self._reader.take()
        if things:
            batch = batch_of_links(things, GIVEN, self._read + 1)
            self._read += len(things)
            return batch
        self.error = self._reader.error
        if self.error is not None:
            why = f"{GIVEN}: cannot be read past number {self._read}: {type(self.error).__name__}: {self.error}"
            raise InputBroken(why) from self.error
        return None


class _Threaded:
    """Reads an iterable in one thread."""

    def __init__(self, links: Iterable[object]) -> None:
        self.error: BaseException | None = None
        self._channel: ThreadToLoopQueue[object] = ThreadToLoopQueue(_ROOM)
        threading.Thread(target=self._pump, args=(links,), name="harvester-links", daemon=True).start()

    async def take(self) -> list[object]:
        return await self._channel.take(_ROOM)

    async def close(self) -> None:
        self._channel.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._channel.ended()

    def _pump(self, links: Iterable[object]) -> None:
        try:
            for link in links:
                self._channel.put(link)
        except ReaderGone:
            pass
        except BaseException as error:  # the caller's own, such as sys.exit: it is raised to the caller
            self.error = error
        finally:
            if inspect.isgenerator(links):  # another iterator, such as a file, is its owner's to close
                with suppress(Exception):
                    links.close()
            self._channel.end()


class _Awaited:
    """Reads an asynchronous iterable in one task: what it holds open may belong to its task."""

    def __init__(self, links: AsyncIterable[object]) -> None:
        self.error: BaseException | None = None
        self._queue: asyncio.Queue[object] = asyncio.Queue(_ROOM)
        self._over = False
        self._closing = False
        self._task = asyncio.create_task(self._pump(links))

    async def take(self) -> list[object]:
        taken: list[object] = []
        while not self._over and (not taken or not self._queue.empty()):
            thing = await self._queue.get()
            if thing is _END:
                self._over = True
            else:
                taken.append(thing)
        return taken

    async def close(self) -> None:
        self._closing = True
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _pump(self, links: AsyncIterable[object]) -> None:
        try:
            async with AsyncExitStack() as stack:
                if inspect.isasyncgen(links):
                    stack.push_async_callback(links.aclose)
                async for link in links:
                    await self._queue.put(link)
        except (Exception, asyncio.CancelledError) as error:  # the caller's own: it is raised to the caller
            self.error = error
        if not self._closing:
            await self._queue.put(_END)


Links: TypeAlias = AnyPath | Iterable[str] | Iterable[os.PathLike[str]] | AsyncIterable[str]


def lists_of(links: Links) -> list[str] | IterableFeed:
    """Tell what is meant: a path is the path of a list, a list or tuple of path objects several; anything else that can
    be iterated over gives links.

    Raises:
        UsageError: it is nothing of these.
    """
    if isinstance(links, str | os.PathLike):
        path = os.fsdecode(links)
        if not os.path.exists(path) and is_bitlink(path):
            raise UsageError(f'{path}: a text is the path of a list, and there is none; for links, give ["{path}"]')
        return [path]
    if isinstance(links, list | tuple) and links and all(isinstance(each, os.PathLike) for each in links):
        return [os.fsdecode(each) for each in links]
    if isinstance(links, bytes | bytearray | memoryview):
        raise UsageError(f"links: a path, or an iterable of links, was expected, not {type(links).__name__}")
    return IterableFeed(links)
