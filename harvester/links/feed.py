"""The feeds of a harvest: `next` returns the next batch of links, from files or from an iterable in Python.

A feed blocks neither the event loop nor the end of a run. What may block for ever, such as a read from a silent pipe or
an iterable's `__next__`, happens in a daemon thread, because the interpreter does not join those at its exit.
"""

import asyncio
import inspect
import os
import threading
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, TypeAlias

from harvester.bitly.bitlinks import is_bitlink
from harvester.errors import InputBroken, UsageError
from harvester.links.batch import Batch, Shard, batch_of_links, batch_of_shard
from harvester.links.files import Source, read
from harvester.threads import QueueClosed, ThreadToLoopQueue, in_daemon

AnyPath: TypeAlias = str | os.PathLike[str]

GIVEN = "<links>"
_READ_AHEAD = 100
"""The largest number of links read from an iterable before `next` asks for them."""
_CLOSE_SECONDS = 1.0
_END: Any = object()


class FileFeed:
    """The batches of files and of standard input. `next` raises InputBroken if one cannot be read to its end."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._batches = read(sources)

    async def next(self) -> Batch | None:
        """Return the next batch, or None at the end. A read that blocks does not delay the end of the run."""
        return await in_daemon(lambda: next(self._batches, None))


class IterableFeed:
    """The batches of an iterable or asynchronous iterable of links. Made and used in one event loop.

    An iterable is read in a thread of its own, because it may block; an asynchronous one in a task of its own. Either
    is read once, at most _READ_AHEAD links ahead, and closed at the end if it is a generator. error: the exception that
    the iterable raised, for which `next` and `all` raise InputBroken. shard: the part of the links to
    yield, None for all.

    Raises:
        UsageError: links is not iterable.
    """

    def __init__(self, links: Iterable[object] | AsyncIterable[object]) -> None:
        if not isinstance(links, AsyncIterable):
            try:
                links = iter(links)
            except TypeError as error:
                raise UsageError(
                    f"links: must be a path, or an iterable of links, not {type(links).__name__}"
                ) from error
        self.error: BaseException | None = None
        self._links = links
        self._reader: _ThreadReader | _TaskReader | None = None
        self._ready: deque[Batch] = deque()
        self._read = 0
        self.shard: Shard | None = None

    async def next(self) -> Batch | None:
        """Return the links read since, at least one; None at the end."""
        return self._ready.popleft() if self._ready else await self._next()

    async def all(self) -> list[Batch]:
        """Read to the end now and return all batches; `next` returns them again, one by one."""
        while batch := await self._next():
            self._ready.append(batch)
        return list(self._ready)

    async def copies(self, count: int) -> "list[IterableFeed]":
        """Read to the end now and return feeds that have all batches, for runs side by side. Raises as `all`."""
        batches, made = await self.all(), [IterableFeed(()) for _ in range(count)]
        for feed in made:
            feed._ready.extend(replace(each, links=[*each.links], invalid=[*each.invalid]) for each in batches)
        return made

    async def close(self) -> None:
        """Stop reading. An iterable that blocks is left behind after a second; its thread ends with its next link."""
        if self._reader is not None:
            await self._reader.close()

    async def _next(self) -> Batch | None:
        if self._reader is None:
            links = self._links
            self._reader = _TaskReader(links) if isinstance(links, AsyncIterable) else _ThreadReader(links)
        received = await self._reader.take()
        if received:
            batch = batch_of_shard(batch_of_links(received, GIVEN, self._read + 1), self.shard)
            self._read += len(received)
            return batch
        self.error = self._reader.error
        if self.error is not None:
            message = f"{GIVEN}: cannot be read past number {self._read}: {type(self.error).__name__}: {self.error}"
            raise InputBroken(message) from self.error
        return None


class _ThreadReader:
    """Reads an iterable in one thread, which hands its links over through a bounded queue."""

    def __init__(self, links: Iterable[object]) -> None:
        self.error: BaseException | None = None
        self._queue: ThreadToLoopQueue[object] = ThreadToLoopQueue(_READ_AHEAD)
        threading.Thread(target=self._pump, args=(links,), name="harvester-links", daemon=True).start()

    async def take(self) -> list[object]:
        return await self._queue.take(_READ_AHEAD)

    async def close(self) -> None:
        self._queue.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._queue.ended()

    def _pump(self, links: Iterable[object]) -> None:
        try:
            for link in links:
                self._queue.put(link)
        except QueueClosed:
            pass
        except BaseException as error:  # also sys.exit: what the caller's iterable raises is raised to the caller
            self.error = error
        finally:
            if inspect.isgenerator(links):  # another iterator, such as a file, is closed by its owner
                with suppress(Exception):
                    links.close()
            self._queue.end()


class _TaskReader:
    """Reads an asynchronous iterable in one task, because a context that it holds open belongs to its task."""

    def __init__(self, links: AsyncIterable[object]) -> None:
        self.error: BaseException | None = None
        self._queue: asyncio.Queue[object] = asyncio.Queue(_READ_AHEAD)
        self._over = False
        self._closing = False
        self._task = asyncio.create_task(self._pump(links))

    async def take(self) -> list[object]:
        links: list[object] = []
        while not self._over and (not links or not self._queue.empty()):
            link = await self._queue.get()
            if link is _END:
                self._over = True
            else:
                links.append(link)
        return links

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
        except (
            Exception,
            asyncio.CancelledError,
        ) as error:  # the iterable's own: it is raised to the caller
            self.error = error
        if not self._closing:
            await self._queue.put(_END)


LinkGiven: TypeAlias = str | tuple[str, Mapping[str, Any]]
"""A link, alone or with what its row is to carry."""
Links: TypeAlias = AnyPath | Iterable[LinkGiven] | Iterable[os.PathLike[str]] | AsyncIterable[LinkGiven]


def lists_of(links: Links) -> list[str] | IterableFeed:
    """Return the paths of lists, or the feed of an iterable.

    A path names one list, a list or tuple of path objects several. Any other iterable yields links, or pairs of a link
    and a mapping, whose items its row carries.

    Raises:
        UsageError: links is neither, or a string that is a bitlink where a path was expected.
    """
    if isinstance(links, str | os.PathLike):
        path = os.fsdecode(links)
        if not os.path.exists(path) and is_bitlink(path):
            raise UsageError(f'{path}: no such file; text is the path of a list. For links, pass ["{path}"]')
        return [path]
    if isinstance(links, list | tuple) and links and all(isinstance(each, os.PathLike) for each in links):
        return [os.fsdecode(each) for each in links]
    if isinstance(links, bytes | bytearray | memoryview):
        raise UsageError(f"links: must be a path, or an iterable of links, not {type(links).__name__}")
    return IterableFeed(links)
