"""Real servers on loopback, each in a thread with an event loop of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def in_thread(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter an asynchronous context manager in another thread, and leave it there at the end."""
    ready, over = threading.Event(), threading.Event()
    entered: list[T] = []
    errors: list[BaseException] = []

    async def live() -> None:
        async with server as value:
            entered.append(value)
            waiting = asyncio.ensure_future(asyncio.to_thread(over.wait))
            await asyncio.sleep(0)  # so that its thread has started: some tests count the threads that they start
            ready.set()
            await waiting
        await _abort_connections()

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    ready.wait()
    try:
        if errors:
            raise errors[0]
        yield entered[0]
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]


async def _abort_connections() -> None:
    """Close what the loop still has open: a server does not know connections whose TLS handshake had not ended."""
    transports: Any = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]  # asyncio names no other way
    for _ in range(2):  # what was accepted a moment ago becomes a connection in the loop's next iterations
        await asyncio.sleep(0.01)
        for transport in list(transports.values()):
            transport.abort()
    await asyncio.sleep(0.01)  # their sockets are closed in the loop's next iterations
