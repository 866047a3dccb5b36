"""A forward proxy on loopback that tunnels what CONNECT asks for, or refuses, and notes what it was asked."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from tests.support.servers import in_thread

_INTERNAL_ERROR = bytes((21, 3, 3, 0, 2, 2, 80))
"""A fatal alert of TLS 1.2 and 1.3: https://www.rfc-editor.org/rfc/rfc8446#section-6."""


@dataclass
class Proxy:
    """A proxy as a test sets it up. target: the port of this machine that every name leads to.

    credentials: `user:password` that it wants, "" for nobody's. refusal: the status line that answers every CONNECT,
    "" for none. alerts: so many tunnels end with an alert instead of a handshake. asked: request lines as they came;
    headers: of all requests, as text.
    """

    target: int
    credentials: str = ""
    refusal: str = ""
    alerts: int = 0
    address: str = ""
    asked: list[str] = field(default_factory=list)
    headers: str = ""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _over: bool = False

    @property
    def url(self) -> str:
        """What a proxy variable names, with the credentials in it."""
        return f"http://{self.credentials}@{self.address}".replace("//@", "//")

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over:  # it came while the others were being cut off
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        self._over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, _, headers = head.partition("\r\n")
            self.asked.append(first)
            self.headers += headers
            answer = self._answer(first, headers)
            writer.write(f"HTTP/1.1 {answer}\r\n\r\n".encode())
            await writer.drain()
            if answer.startswith("200") and self.alerts:
                self.alerts -= 1
                await reader.read(65536)
                writer.write(_INTERNAL_ERROR)
                await writer.drain()
            elif answer.startswith("200"):
                await self._tunnel(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, first: str, headers: str) -> str:
        wanted = "Proxy-Authorization: Basic " + base64.b64encode(self.credentials.encode()).decode()
        if not first.startswith("CONNECT "):
            return "405 Only CONNECT\r\nContent-Length: 0"
        if self.refusal:
            return f"{self.refusal}\r\nContent-Length: 0"
        if self.credentials and wanted not in headers.split("\r\n"):
            return '407 Who are you?\r\nProxy-Authenticate: Basic realm="here"\r\nContent-Length: 0'
        return "200 Connected"

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, back))
                group.create_task(_copy(there, writer))


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


@asynccontextmanager
async def _serving(proxy: Proxy) -> AsyncIterator[Proxy]:
    async with await asyncio.start_server(proxy.accept, "127.0.0.1", 0) as server:
        proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            server.close()
            await proxy.end()


@contextmanager
def proxying(target: int, credentials: str = "", refusal: str = "", alerts: int = 0) -> Iterator[Proxy]:
    """Serve a proxy in a thread of its own."""
    with in_thread(_serving(Proxy(target, credentials, refusal, alerts))) as proxy:
        yield proxy
