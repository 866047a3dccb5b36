"""Requests written by ourselves, over aiohttp's connector and response parser.

A session makes some fifteen objects for a request, and they cost more than everything else that a call does. All calls
of a run differ in nothing but their path. So the rest of the request is made once, and of aiohttp only what is hard
remains: addresses, proxies, TLS, time limits, and the parser, which is C.

What is used of aiohttp here is not documented. It stands in this module alone, and only with a version of aiohttp that
the tests run with.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from harvester.transport.connection import HEAD_LIMIT, HEADERS_LIMIT, Connector, Disconnected
from harvester.transport.exchange import JSON_BODY

TESTED_VERSIONS = frozenset({"3.14.5"})
"""The versions of aiohttp with which the suite runs both ways of sending."""


def why_not() -> str | None:
    """Return why requests cannot be written directly with the aiohttp that is installed; None if they can."""
    if aiohttp.__version__ not in TESTED_VERSIONS:
        return f"aiohttp {aiohttp.__version__} is not one of those tested: {', '.join(sorted(TESTED_VERSIONS))}"
    # A test of somebody's that replaces what a session sends with must not reach the network past it.
    if aiohttp.ClientSession._request.__module__ != "aiohttp.client":
        return "another library has replaced how aiohttp's session sends requests"
    return None


def note_fallback(note: Callable[[str], None], *, direct: bool) -> None:
    """Note why requests are sent by the session although nobody asked for that."""
    if direct and (why := why_not()):
        note(f"requests are sent by aiohttp's session, which takes more CPU: {why}")


class DirectTransport:
    """Sends requests over a slot's connection.

    connector: makes and keeps the connection. base: the origin, without a path. headers: of every request.
    """

    def __init__(
        self,
        connector: Connector,
        base: URL,
        proxy: str | None,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._connector = connector
        self._timeout = timeout
        # Tells the connector where to connect to. It is never sent itself.
        self._address = aiohttp.ClientRequest(
            "GET", base, loop=asyncio.get_running_loop(), proxy=URL(proxy) if proxy else None
        )
        lines = {"Host": self._address.headers["Host"], **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    def request(self, target: str, authorization: str, body: bytes | None = None) -> "_Exchange":
        """Return a request to be sent; as Transport has it.

        Raises:
            ValueError: target or authorization could be read as more than one line of the request.
        """
        if " " in target or not (target.isprintable() and authorization.isprintable()):
            raise ValueError("a space or a control character in a request's target or authorization")
        last = "Connection: close\r\n" if self._connector.force_close else ""
        head = f"{target} HTTP/1.1\r\n{self._head}Authorization: {authorization}\r\n{last}"
        if body is None:
            return _Exchange(self, f"GET {head}\r\n".encode("ascii"))
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**JSON_BODY, "Content-Length": len(body)}.items())
        return _Exchange(self, f"POST {head}{lines}\r\n".encode("ascii") + body)

    async def send(self, request: bytes) -> tuple[Connection, "_Response"]:
        """Send a request and wait for the head of its response.

        Raises:
            aiohttp.ClientError: as a session does.
        """
        try:
            connection = await self._connector.connect(self._address, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {self._address.url}") from error
        try:
            protocol, transport = connection.protocol, connection.transport
            assert protocol is not None
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=HEAD_LIMIT,
                max_field_size=HEAD_LIMIT,
                max_headers=HEADERS_LIMIT,
            )
            transport.write(request)
            while True:
                message, payload = await protocol.read()
                if message.code >= 200 or message.code == 101:
                    return connection, _Response(message.code, message.headers, payload, connection)
        except HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientResponseError(
                self._address.request_info, (), status=error.code, message=error.message, headers=error.headers
            ) from error
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            connection.close()
            raise Disconnected(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.close()
            raise

    async def close(self) -> None:
        """Close the connection."""
        await self._connector.close()


class _Exchange:
    __slots__ = ("_connection", "_request", "_sender")

    def __init__(self, sender: DirectTransport, request: bytes) -> None:
        self._sender, self._request = sender, request
        self._connection: Connection | None = None

    async def __aenter__(self) -> "_Response":
        self._connection, response = await self._sender.send(self._request)
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._connection is not None
        if kind is None:
            self._connection.release()  # closes it instead if something of the body was not read
        else:
            self._connection.close()


class _Response:
    """The head of a response, and its body as a stream: what `read_bounded` and the verdicts need of one."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, connection: Connection
    ) -> None:
        self.status, self.headers, self.content = status, headers, content
        self._connection = connection

    @property
    def content_length(self) -> int | None:
        """The length that the head states; None without one."""
        length = self.headers.get("Content-Length")
        return int(length) if length is not None and length.isdecimal() else None

    async def read(self) -> bytes:
        """Return the whole body."""
        # Most bodies come together with their head, and are read without any waiting.
        return self.content.read_nowait() if self.content.is_eof() else await self.content.read()

    def close(self) -> None:
        """Close the connection: what is left of the body is not read."""
        self._connection.close()
