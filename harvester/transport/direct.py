"""Requests written by ourselves, over aiohttp's connector and response parser.

A session makes some fifteen objects for a request, and they cost more than everything else that a call does. All calls
of a run differ in nothing but their path. So the rest of the request is made once, and of aiohttp only what is hard
remains: addresses, proxies, TLS, time limits, and the parser, which is C. A connection that is kept goes back to the
connector only when another is needed, and has one parser for all its responses.

What is used of aiohttp here is not documented. It stands in this module alone, and only with a version of aiohttp that
the tests run with.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from multidict import CIMultiDictProxy
from yarl import URL

from harvester.transport.connection import (
    HEAD_LIMIT,
    HEADERS_LIMIT,
    Connector,
    Disconnected,
    Peer,
    SlotConnection,
    SlotProtocol,
    is_final,
)
from harvester.transport.exchange import JSON_BODY, Received, read_bounded

TESTED_VERSIONS = frozenset({"3.14.5"})
"""The versions of aiohttp with which the suite runs both ways of sending."""
IDLE_SECONDS = 15.0
"""A connection that was idle for longer is closed: this is what aiohttp's sessions do."""
_PARSER_LIMITS: dict[str, Any] = {
    "max_line_size": HEAD_LIMIT,
    "max_field_size": HEAD_LIMIT,
    "max_headers": HEADERS_LIMIT,
}
_END_OF_HEAD = b"\r\n\r\n"


_Begun: TypeAlias = tuple[RawResponseMessage, aiohttp.StreamReader]
"""A response whose head was read: that, and its body as a stream."""


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


class _DirectProtocol(SlotProtocol):
    """A connection whose responses are all parsed by one parser, and each handed to whoever waits for it.

    A response of which all came at once, as nearly all do, has its head parsed alone: a stream for the body costs more.
    """

    _heads: HttpResponseParser | None = None

    def is_plainly_good(self) -> bool:
        """Return whether the connection is open, nothing has come over it, and it was not idle for long."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._poll.poll(0):
            return False
        return self._loop.time() - self._answered_at <= IDLE_SECONDS

    def is_over(self) -> bool:
        """Return whether no request can follow. It is `should_close` without what only others' parsers could bring."""
        return self._should_close or (self._payload is not None and not self._payload.is_eof())

    def write(self, request: bytes) -> "asyncio.Future[Received | _Begun]":
        """Write a request, and return the future of its response."""
        if self._parser is None:
            self.set_response_params(read_until_eof=True, auto_decompress=False, **_PARSER_LIMITS)
            self._heads = HttpResponseParser(self, self._loop, HEAD_LIMIT, response_with_body=False, **_PARSER_LIMITS)
        if self._exception is not None:
            raise self._exception
        response: asyncio.Future[Any] = self._loop.create_future()
        self._waiter = response  # aiohttp wakes it if the connection fails
        assert self.transport is not None  # a lost connection has raised its exception
        self.transport.write(request)
        return response

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._parser is None or self._answers >= self._requests:
            super().data_received(data)
            return
        if not self._head_bytes and (received := self._whole_response(data)) is not None:
            self._hand_over(received)
            return
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except Exception as error:
            self.abort()
            self.set_exception(error if isinstance(error, HttpProcessingError) else HttpProcessingError(), error)
            return
        for message, payload in messages:
            if is_final(message.code):
                self._payload = payload
                self._should_close = self._should_close or message.should_close or upgraded
                self._hand_over((message, payload))
        self.bound_head(len(data))

    def _whole_response(self, data: bytes) -> Received | None:
        """Return an answer that is the first to have come, whole and alone, and is not packed."""
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if self._heads is None or not len(_END_OF_HEAD) <= end <= HEAD_LIMIT:
            return None
        try:
            ((message, _),) = self._heads.feed_data(data[:end])[0]
        except Exception:  # the other parser says what is wrong
            self._heads = None
            return None
        headers, content = message.headers, data[end:]
        if message.code != 200 or headers.get("Content-Length") != str(len(content)) or message.upgrade:
            return None
        if "Content-Encoding" in headers or "Transfer-Encoding" in headers:
            return None
        self._payload = None
        if message.should_close:
            self._should_close = True
        return tuple.__new__(Received, (200, headers, content, True, "", False))  # in half a constructor's time

    def _hand_over(self, response: "Received | _Begun") -> None:
        """Hand a response to the one who waits for it. One whose body is still to come has its head only."""
        self.count_answer()
        if self._answers > self._requests:
            self._should_close = True
        waiter: asyncio.Future[Any] | None = self._waiter
        self._waiter = None
        if waiter is not None and not waiter.done():
            waiter.set_result(response)

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused or self._buffer_paused:  # else there is nothing to resume, at the end of each body
            super().resume_reading(resume_parser)


class DirectTransport:
    """Sends requests over a slot's connection.

    base: the origin, without a path. headers: of every request.
    """

    def __init__(
        self,
        line: SlotConnection,
        peer: Peer,
        base: URL,
        proxy: str | None,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self._line = line
        self._peer = peer
        self._connector = Connector(line, peer, _DirectProtocol)
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        # Tells the connector where to connect to. It is never sent itself.
        self._address = aiohttp.ClientRequest("GET", base, loop=self._loop, proxy=URL(proxy) if proxy else None)
        lines = {"Host": self._address.headers["Host"], **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._authorization = self._rest = ""
        self._connection: Connection | None = None
        self._protocol: _DirectProtocol | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._is_last = False

    async def send(self, target: str, authorization: str, body: bytes | None = None) -> Received:
        """Send a request, and read its response; as Transport has it."""
        line = self._line
        line.unsent, line.kept = True, False
        if (protocol := self._reuse()) is None:
            protocol = await self._connect()
        try:
            response = await protocol.write(self._request(target, authorization, body))
            received = response if isinstance(response, Received) else await self._read(*response)
        except HttpProcessingError as error:
            self._drop()
            raise aiohttp.ClientResponseError(
                self._address.request_info, (), status=error.code, message=error.message, headers=error.headers
            ) from error
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            self._drop()
            raise Disconnected(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self._drop()
            raise
        if self._is_last or self._protocol is None or protocol.is_over():
            self._drop()
        else:
            line.kept = True
            if self._closing is None:
                self._closing = self._loop.call_later(IDLE_SECONDS, self._close_idle)
        line.sole = protocol.looks_sole(received.content)
        return received

    async def _read(self, message: RawResponseMessage, payload: aiohttp.StreamReader) -> Received:
        """Read the body of a response whose head was read."""
        streamed = _Response(message.headers, payload, self._drop)
        return Received(message.code, message.headers, *await read_bounded(streamed))

    async def close(self) -> None:
        """Close the connection."""
        if self._closing is not None:
            self._closing.cancel()
        self._drop()
        await self._connector.close()

    def _request(self, target: str, authorization: str, body: bytes | None) -> bytes:
        """Return the bytes of a request.

        Raises:
            ValueError: target or authorization could be read as more than one line of the request.
        """
        if authorization != self._authorization:
            if not authorization.isprintable():
                raise ValueError("a control character in a request's authorization")
            self._authorization = authorization
            self._rest = f" HTTP/1.1\r\n{self._headers}Authorization: {authorization}\r\n"
        if " " in target or not target.isprintable():
            raise ValueError("a space or a control character in a request's target")
        last = "Connection: close\r\n" if self._is_last else ""
        if body is None:
            return f"GET {target}{self._rest}{last}\r\n".encode("ascii")
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**JSON_BODY, "Content-Length": len(body)}.items())
        return f"POST {target}{self._rest}{last}{lines}\r\n".encode("ascii") + body

    def _reuse(self) -> _DirectProtocol | None:
        """Return the connection on which the request is written next, if the one that was kept is plainly good."""
        protocol = self._protocol
        if protocol is None or self._peer.closes or not protocol.is_plainly_good():
            return None
        try:
            self._line.begin(protocol)
        except BaseException:
            self._drop()
            raise
        return protocol

    async def _connect(self) -> _DirectProtocol:
        """Return the connection on which the request is written next: the kept one if it still is good, or a new one.

        Raises:
            aiohttp.ClientError: there is none.
        """
        if self._protocol is not None and self._protocol.idle_seconds > IDLE_SECONDS:
            self._drop()
        if self._connection is not None:  # the connector looks closer
            self._connection.release()
            self._connection = self._protocol = None
        try:
            connection = await self._connector.connect(self._address, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {self._address.url}") from error
        protocol = connection.protocol
        assert isinstance(protocol, _DirectProtocol)
        self._connection, self._protocol, self._is_last = connection, protocol, self._connector.force_close
        return protocol

    def _drop(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._protocol = None

    def _close_idle(self) -> None:
        """Close the connection if it was idle for long; else look again when it would be."""
        self._closing = None
        if self._protocol is None or not self._line.kept:
            return
        left = IDLE_SECONDS - self._protocol.idle_seconds
        if left > 0:
            self._closing = self._loop.call_later(left, self._close_idle)
        else:
            self._drop()


class _Response:
    """A response whose head was read, as `read_bounded` takes it. close: closes the connection."""

    def __init__(
        self, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, close: Callable[[], None]
    ) -> None:
        self.headers, self.content = headers, content
        self._close = close

    @property
    def content_length(self) -> int | None:
        """The length that the head states; None without one."""
        length = self.headers.get("Content-Length")
        return int(length) if length is not None and length.isdecimal() else None

    async def read(self) -> bytes:
        """Return the whole body."""
        return await self.content.read()

    def close(self) -> None:
        """Close the connection: what is left of the body is not read."""
        self._close()
