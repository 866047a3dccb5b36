"""One connection to Bitly that records whether a request was written, and whether bytes came that nobody asked for.

aiohttp does the HTTP. This module adds the facts that decide what an attempt has cost and whether its answer can be
believed. It also keeps a dead address or a stopped process from failing an attempt.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from harvester.threads import in_daemon
from harvester.transport.deadline import READ_TURNS, Deadline

HEAD_LIMIT = 64 * 1024
"""Largest head of a response, status line and headers, in bytes."""
HEADERS_LIMIT = 1024
CONNECT_SECONDS = 10.0
"""The longest wait for a connection, all addresses of a name taken together."""
_ADDRESS_SECONDS = 3.0
"""The longest wait for one address of a name while others are left. The last may use up the time for connecting."""
_CLOSE_TURNS, _LEAST_CLOSE_TURNS = 20, 3
"""Iterations of the event loop until a socket is closed; Python 3.13 needs more of them than 3.11."""
_SHORTEST_REST_SECONDS, _LONGEST_REST_SECONDS = 0.02, 1.0
_REST_EVERY = 16
_SHORT_LIVES = 3
_TRIAL_EVERY = 100


class Disconnected(aiohttp.ClientError):
    """The server closed the connection before it answered."""


class NotQuiet(aiohttp.ClientError):
    """Bytes came over a connection before anything was asked of it."""


class Peer:
    """What the connections of this process have learned of a server: its addresses, and whether it keeps them open.

    closes: it closes each after its first answer without saying so.
    """

    def __init__(self) -> None:
        self.closes = False
        self._ranks: dict[Any, float] = {}
        self._short_lives = 0
        self._closed = 0

    # A name may have an address that is dead. The one that answered last is tried first, and one that failed comes
    # after those that were never tried: so a dead address costs its wait once, and not once an attempt.

    def in_order(self, infos: list[Any]) -> list[Any]:
        """Return addresses, as `getaddrinfo` has them, in the order in which to try them."""
        return sorted(infos, key=lambda info: self._ranks.get(info[4], 0.0))

    def worked(self, info: Any) -> None:
        """Record that a connection to an address was made."""
        self._ranks[info[4]] = -asyncio.get_running_loop().time()

    def failed(self, info: Any) -> None:
        """Record that an address refused a connection, or took too long."""
        self._ranks[info[4]] = asyncio.get_running_loop().time()

    # A server that closes after each answer without saying so would now and then get the next request into the closing
    # connection, and that attempt is lost. After some such connections in a row requests say that they are the last on
    # theirs. Now and then one does not, because a restart or a long pause looks the same.

    def is_trial(self) -> bool:
        """Return whether the next connection is kept although the server closes them."""
        self._closed += 1
        return self._closed % _TRIAL_EVERY == 0

    def closed_by_peer(self, answers: int) -> None:
        """Record that the server closed a connection unannounced. answers: how many it had given."""
        self._short_lives = self._short_lives + 1 if answers == 1 else 0
        self.closes = self._short_lives >= _SHORT_LIVES

    def answered_again(self) -> None:
        """Record a second answer over one connection."""
        self._short_lives, self.closes = 0, False


def is_final(status: int) -> bool:
    """Return whether a status is an answer's. Informational ones come before it, but 101 is the last over HTTP."""
    return status >= 200 or status == 101


class SlotProtocol(ResponseHandler):
    """A connection that counts requests against answers, so that no answer is taken for another request's.

    The socket is aborted instead of waiting (up to 30 s) for the peer's TLS close_notify; Bitly would count the
    connection all that time.
    """

    def __init__(self, line: "SlotConnection", peer: Peer) -> None:
        super().__init__(asyncio.get_running_loop())
        self._line = line
        self._peer = peer
        self._requests = 0
        self._answers = 0
        self._head_bytes = 0
        self._began_at = self._answered_at = self._took = self._rest = 0.0
        self._last = b""
        self._repeats = 0
        self._unasked = False
        self._ended = False
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Record the connection as the slot's."""
        super().connection_made(transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._line.protocol = self

    def close(self) -> None:
        """Abort the socket."""
        self.abort()

    @property
    def is_new(self) -> bool:
        """True until a request was written."""
        return not self._requests

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last answer."""
        return self._loop.time() - self._answered_at

    def begin(self) -> None:
        """Record that a request is written now."""
        self._requests += 1
        self._head_bytes = 0
        self._began_at = self._answered_at = self._loop.time()

    def has_news(self) -> bool:
        """Return whether something lies in the socket, be it the peer's close."""
        return self.transport is not None and bool(self._poll.poll(0))

    async def read_news(self) -> None:
        """Let the event loop read what lies in the socket. Under TLS it may be a session ticket, which is nothing."""
        for _ in range(READ_TURNS):
            if not self.is_connected() or not self.has_news():
                return
            await asyncio.sleep(0)

    @property
    def is_quiet(self) -> bool:
        """True as long as nothing was read but one answer to each request."""
        return not self._unasked and self._answers <= self._requests

    def looks_sole(self, content: bytes) -> bool:
        """Return whether nothing speaks against it that the answer with this body is the only one to its request."""
        # An answer too many, sent while a request is out, is taken for that request's answer, and so on with each that
        # follows: as long as the connection has no rest, nothing unasked is ever seen. What is sent too often is mostly
        # a repetition, so an answer that repeats the last one is given a rest, which takes longer than an answer; where
        # many links in a row have the same metrics, the first and then each sixteenth.
        self._repeats = self._repeats + 1 if content == self._last and self._answers > 1 else 0
        rests = self._repeats and (self._repeats == 1 or self._repeats % _REST_EVERY == _REST_EVERY - 1)
        self._rest = min(max(2 * self._took, _SHORTEST_REST_SECONDS), _LONGEST_REST_SECONDS) if rests else 0.0
        self._last, self._answered_at = content, self._loop.time()
        self._took = self._answered_at - self._began_at
        if rests or self._unasked or self._answers > self._requests:
            return False
        return self.transport is None or not self._poll.poll(0)

    async def confirm_sole(self) -> bool:
        """Look closer at an answer of which `looks_sole` has returned False."""
        if self.transport is not None:
            await asyncio.sleep(self._rest)
        await self.read_news()
        return self.is_quiet

    def data_received(self, data: bytes) -> None:
        """Parse what belongs to an answer; note what nobody has asked for."""
        if self._answers < self._requests:
            super().data_received(data)
            self.bound_head(len(data))
        elif data and (self._payload is None or self._payload.is_eof()) and not self._unasked:
            self._unasked = True
            if self._requests:
                self.abort()
            else:  # a proxy's answer to CONNECT, which is not counted here
                super().data_received(data)
        else:
            super().data_received(data)

    def bound_head(self, size: int) -> None:
        """Abort the connection if a response's head is longer than HEAD_LIMIT. size: bytes that were just received."""
        self._head_bytes += size
        if self._answers < self._requests and self._head_bytes > HEAD_LIMIT:
            self.abort()
            self.set_exception(aiohttp.ClientError(f"a response's head of more than {HEAD_LIMIT} bytes"))

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Count the head of an answer, and hand it over."""
        message, _ = data
        if is_final(message.code):
            self.count_answer()
        super().feed_data(data, size)

    def count_answer(self) -> None:
        """Record the head of an answer."""
        self._answers += 1
        if self._answers == 2:
            self._peer.answered_again()

    def eof_received(self) -> None:
        """Record that the server has closed the connection."""
        self._ended = True
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Record what the close says of the server."""
        if (self._ended or exc is not None) and self._requests and self._answers and not self._should_close:
            self._peer.closed_by_peer(self._answers)
        super().connection_lost(exc)


class SlotConnection:
    """A slot's connection in the course of an attempt.

    deadline: for its attempts. ready: called when the connection is ready, right before a request is written; what it
    raises keeps the request from being written. unsent: certain that not one byte of the attempt's request was written.
    kept: the latest response was whole and left the connection open. sole: nothing speaks against it that it is the
    only one to its request; else `confirm_sole` looks closer. protocol: of the latest connection.
    """

    def __init__(self) -> None:
        self.deadline = Deadline()
        self.ready: Callable[[], None] = _nothing
        self.unsent = self.kept = self.sole = False
        self.protocol: SlotProtocol | None = None

    def begin(self, protocol: SlotProtocol) -> None:
        """Record that a request is written next, if nothing keeps it from that."""
        self.ready()
        protocol.begin()
        self.unsent = False

    async def closed(self) -> None:
        """Let the event loop close the socket of a connection that was given up, before another one is opened.

        That takes an iteration or more; a connection that is kept after all costs a few idle ones.
        """
        for turn in range(_CLOSE_TURNS):
            if turn >= _LEAST_CLOSE_TURNS and (self.protocol is None or self.protocol.transport is None):
                return
            await asyncio.sleep(0)

    async def confirm_sole(self) -> bool:
        """Look closer at an answer that may not be the only one to its request."""
        return self.protocol is None or await self.protocol.confirm_sole()


def _nothing() -> None:
    pass


class Connector(aiohttp.TCPConnector):
    """Makes one connection at a time, to one address after the other, and keeps it while nothing unasked comes.

    protocol: the class of its connections.
    """

    def __init__(self, line: SlotConnection, peer: Peer, protocol: type[SlotProtocol] = SlotProtocol) -> None:
        # Happy eyeballs would open a second connection beside a slow first one, and one is what a slot is.
        super().__init__(limit=1, happy_eyeballs_delay=None, resolver=_Resolver())
        self._line = line
        self._peer = peer
        # aiohttp has no public way to choose a connection's protocol.
        self._factory = partial(protocol, line, peer)  # type: ignore[assignment]

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        """Return a connection on which the request is written next."""
        self._line.unsent = True
        self._force_close = self._peer.closes and not self._peer.is_trial()
        kept = self._line.protocol
        if kept is not None and kept.has_news():
            await kept.read_news()
            await self._line.closed()
            kept = None
        connection = await super().connect(*args, **kwargs)
        # From here to the request's first byte aiohttp awaits nothing: what is said of it now is true then.
        try:
            protocol = connection.protocol
            assert isinstance(protocol, SlotProtocol)
            if protocol.is_new:
                await protocol.read_news()
                if not protocol.is_quiet:
                    raise NotQuiet("the server sent data before the request")
                if not protocol.is_connected():
                    raise aiohttp.ClientConnectionResetError("the server closed the new connection")
            self._line.begin(protocol)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], **kwargs: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        """Connect to the first address that answers. aiohttp itself would skip one of each family with each failure."""
        if self._line.protocol is not None:  # aiohttp may have given its connection up a moment before
            await self._line.closed()
        ordered = self._peer.in_order(addr_infos)
        addr_infos.clear()  # so that aiohttp, which would go on with what is left in it, raises what is raised here
        while True:
            info = ordered.pop(0)
            kwargs["timeout"] = aiohttp.ClientTimeout(sock_connect=_ADDRESS_SECONDS if ordered else None)
            try:
                made = await super()._wrap_create_connection(*args, addr_infos=[info], **kwargs)
            except (aiohttp.ClientConnectorError, TimeoutError):
                self._peer.failed(info)
                if not ordered:
                    raise
            else:
                self._peer.worked(info)
                return made


class _Resolver(AbstractResolver):
    """Resolves names in daemon threads: a lookup that hangs must not delay the end of the run."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        kind, flags = socket.SOCK_STREAM, socket.AI_ADDRCONFIG
        found = await in_daemon(partial(socket.getaddrinfo, host, port, family, kind, flags=flags))
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=found_family, proto=proto, flags=numeric
            )
            for found_family, _, proto, _, address in found
        ]

    async def close(self) -> None:
        pass
