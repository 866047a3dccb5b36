"""Connections to Bitly: one aiohttp session of one connection for each slot that this process holds.

Every feature of aiohttp is off that would send a request twice, hold a connection longer than needed, or read without
a bound.
"""

import asyncio
import os
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from harvester._version import __version__
from harvester.bitly.verdicts import BODY_LIMIT
from harvester.budget.budget import Budget
from harvester.budget.limits import Counted
from harvester.client.connection import HEAD_LIMIT, HEADERS_LIMIT, Connector, Peer, SlotConnection
from harvester.client.connection_slots import ConnectionSlots
from harvester.errors import OutputError, UsageError
from harvester.shutdown import ShutdownSignal, Stop, StopReason

CONNECT_SECONDS = 10.0
_READ_BYTES = 64 * 1024
_REBALANCE_SECONDS = 0.5
_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP = b"\x1f\x8b"
_HEADERS = {
    "Accept": "application/json",  # the same routes can answer CSV
    "Accept-Encoding": "gzip",
    "User-Agent": f"harvester/{__version__}",
}
Response: TypeAlias = AbstractAsyncContextManager[aiohttp.ClientResponse]
_PROXY = re.compile(r"https?://([^/\s]*@)?(\[[^]/\s]+]|[^]/\s@:.[]{1,63}(\.[^]/\s@:.[]{1,63})*\.?)(:\d+)?/?")
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})
"""OpenSSL's reasons for a server that speaks plain text. Any other failed handshake may succeed the next time."""
_CLOCK = (
    "Set this machine's clock if it is wrong; otherwise the operator of the server, or of the proxy that inspects TLS, "
    "must renew it (SSL_CERT_FILE does not help)"
)
_NAME = (
    "Another server answers at this address: check --base-url, DNS, and whether a proxy that inspects TLS is in "
    "between (SSL_CERT_FILE does not help)"
)
_ADVICE = {9: _CLOCK, 10: _CLOCK, 62: _NAME, 64: _NAME}
"""By OpenSSL's X509_V_ERR: not yet valid, expired, host name mismatch, IP address mismatch."""
_RECOUNT_AFTER_SECONDS = 0.2
"""If an attempt goes later than this after its count, too little of the budget's safety margin of 0.5 s is left for the
network."""
_MOST_MOVES = 5
"""How often an attempt's count is moved to now before it is given back. A move takes less than a millisecond, so only a
machine that stands still again and again needs more than one."""


class _TooLate(aiohttp.ClientError):
    """An attempt could not be sent in the window in which it is counted, nor be counted in another."""


class _Disconnected(aiohttp.ClientError):
    """The server closed the connection before it answered."""


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from resending a GET by itself after a disconnection: that attempt would not be counted."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Disconnected(f"{type(error).__name__}: {error}") from error


@dataclass(slots=True)
class SlotSession:
    """One of the machine's connections, held by this process: a session of one connection.

    line: that connection. counted: where its current attempt was counted; None once that was given back.
    counted_at: as of when it counts, seconds since boot. counted_by: by which budget.
    """

    number: int
    session: aiohttp.ClientSession
    line: SlotConnection = field(default_factory=SlotConnection)
    counted: Counted | None = None
    counted_at: float = 0.0
    counted_by: Budget | None = None

    def get(self, url: URL, authorization: str, posted: bytes | None = None) -> Response:
        """Send a GET request, or a POST request of JSON; the response is read inside the context."""
        # Not a header of the session, which would be quicker: aiohttp sends those to the proxy too, in the clear.
        headers = {"Authorization": authorization}
        if posted is None:
            return self.session.get(url, headers=headers, allow_redirects=False)
        headers["Content-Type"] = "application/json"
        return self.session.post(url, data=posted, headers=headers, allow_redirects=False)

    def count_when_sent(self, budget: Budget, clock: Callable[[], float]) -> None:
        """Move the attempt's count to now if it goes late: the windows are the server's.

        Raises:
            aiohttp.ClientError: it must not be sent.
        """
        # Whatever has held it up: the connection, the disk under the budget's commit, or a process that stood still.
        # The time of the count, not of its commit, is what the windows go by. Moving the count may be held up, too, so
        # the clock is read again after it. From here to the write nothing waits.
        late, moves = clock() - self.counted_at, 0
        while late > _RECOUNT_AFTER_SECONDS and self.counted is not None:
            try:
                moved = budget.sent_late(self.counted) if moves < _MOST_MOVES else None
            except OutputError as error:  # the next attempt meets it and reports it
                raise _TooLate("not sent: its count could not be moved to the time of sending") from error
            if moved is None:
                raise _TooLate(f"not sent, because it was due {late:.0f} s ago")
            self.counted, self.counted_at = moved, moved.at
            late, moves = clock() - moved.at, moves + 1


class Pool:
    """The slots that this process holds, kept at its share while other processes come and go.

    slots: this process's. open_slot: opens a slot's session.
    """

    def __init__(self, slots: ConnectionSlots, open_slot: Callable[[int], SlotSession]) -> None:
        self.slots = slots
        self._open_slot = open_slot
        self._free: asyncio.LifoQueue[SlotSession] = asyncio.LifoQueue()
        self._surplus: list[SlotSession] = []
        self._too_many = 0

    @property
    def empty_handed(self) -> bool:
        """True until other processes have released a connection."""
        return self.slots.held == 0

    def take(self) -> SlotSession | None:
        """Return a slot if one is free; the caller returns it with `put`."""
        return None if self._free.empty() else self._free.get_nowait()

    async def get(self, shutdown: ShutdownSignal) -> SlotSession:
        """Return a free slot as soon as there is one; the caller returns it with `put`.

        Raises:
            RunStopping: the run ended first.
        """
        if (slot := self.take()) is None:
            slot = await shutdown.unless_stopping(self._free.get())
        return slot

    def put(self, slot: SlotSession) -> None:
        """Return a slot to the pool; one beyond this process's share is closed by the next `rebalance`."""
        if self._too_many > 0:
            self._too_many -= 1
            self._surplus.append(slot)
        else:
            self._free.put_nowait(slot)

    async def rebalance(self) -> None:
        """Release slots beyond the share, and take those missing as far as others have released them."""
        share = self.slots.share
        self._too_many = max(self.slots.held - len(self._surplus) - share, 0)
        while self._too_many and not self._free.empty():
            self.put(self._free.get_nowait())
        await self._close_surplus()
        while self.slots.held < share and (number := self.slots.grab()) is not None:
            self._free.put_nowait(self._open_slot(number))

    async def keep_balanced(self, shutdown: ShutdownSignal) -> None:
        """Rebalance until cancelled; end the run if the lock files have gone."""
        try:
            while True:
                await asyncio.sleep(_REBALANCE_SECONDS)
                await self.rebalance()
        except OutputError as error:
            shutdown.request(Stop(StopReason.OUTPUT, str(error)))

    async def close(self) -> None:
        """Close the sessions that are not in use, and release their slots."""
        while not self._free.empty():
            self._surplus.append(self._free.get_nowait())
        await self._close_surplus()

    async def _close_surplus(self) -> None:
        while self._surplus:
            slot = self._surplus.pop()
            await slot.session.close()
            self.slots.give_back(slot.number)


@asynccontextmanager
async def pooled(slots: ConnectionSlots, shutdown: ShutdownSignal, base_url: str) -> AsyncIterator[Pool]:
    """Open a pool, keep it at this process's share, and close its connections at the end.

    slots: joined already; left by the caller. Its sessions do not limit an attempt's time but for connecting: that is
    for the caller, with `Deadline`.

    Raises:
        UsageError: a proxy variable is not an HTTP proxy's URL.
    """
    proxy, peer = _proxy_for(URL(base_url)), Peer()

    def open_slot(number: int) -> SlotSession:
        line = SlotConnection()
        return SlotSession(number, _session(None, proxy, Connector(line, peer)), line)

    pool = Pool(slots, open_slot)
    await pool.rebalance()
    balancing = asyncio.create_task(pool.keep_balanced(shutdown))
    try:
        yield pool
    finally:
        balancing.cancel()
        with suppress(asyncio.CancelledError):
            await balancing
        await pool.close()


def _session(timeout_seconds: float | None, proxy: str | None, connector: Connector) -> aiohttp.ClientSession:
    # Without trust_env: netrc would add a password of its own to the token.
    return aiohttp.ClientSession(
        connector=connector,
        middlewares=(_send_once,),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds, connect=CONNECT_SECONDS),
        headers=_HEADERS,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy,
        # aiohttp's own limit, 8 KiB for a line, would take some proxies' headers for an outage.
        max_line_size=HEAD_LIMIT,
        max_field_size=HEAD_LIMIT,
        max_headers=HEADERS_LIMIT,
    )


def _proxy_for(base: URL) -> str | None:
    """Return the proxy URL that the environment sets for the base URL; None for loopback and exceptions in NO_PROXY.

    Raises:
        UsageError: the URL is not an HTTP proxy's.
    """
    if base.scheme == "http" or not base.host or proxy_bypass(f"{base.host}:{base.port}"):
        return None  # only loopback may be plain http
    proxies = getproxies()
    proxy = proxies.get(base.scheme) or proxies.get("all")
    if proxy and not _PROXY.fullmatch(proxy):
        raise UsageError("HTTPS_PROXY: must be the URL of an HTTP proxy, such as http://proxy.example:3128")
    return proxy


async def post_form(url: str, form: Mapping[str, str], timeout_seconds: float) -> tuple[int, bytes]:
    """Send a form once, on a connection of its own, and return the response's status and body; follows no redirect.

    Not for API calls, because no budget counts it. Uses proxies and certificates as those do.

    Raises:
        UsageError: there was no response, or it could not be read.
    """
    target, headers = URL(url), {"Accept": "*/*"}
    session = _session(timeout_seconds, _proxy_for(target), Connector(SlotConnection(), Peer()))
    try:
        async with session, session.post(target, data=dict(form), headers=headers, allow_redirects=False) as response:
            return response.status, (await read_bounded(response)).content
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Not the exception's text: it may hold a proxy's password.
        why = permanent_cause(error) or f"it cannot be reached, or its answer cannot be read ({type(error).__name__})"
        raise UsageError(f"{target.host}: {why}") from error


class Body(NamedTuple):
    """A response's body, decoded. whole: False if there was more than BODY_LIMIT. flaw: why it could not be unpacked,
    or "". cut: that is because its end is missing.
    """

    content: bytes
    whole: bool = True
    flaw: str = ""
    cut: bool = False


async def read_bounded(response: aiohttp.ClientResponse) -> Body:
    """Read a body of at most BODY_LIMIT bytes, decoded.

    aiohttp's own decoding is off: a few KiB of gzip can hold gigabytes.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    length = response.content_length
    plain = encoding in {"", "identity"}
    if plain and length is not None and length <= BODY_LIMIT:
        return Body(await response.read())
    if not plain and encoding not in _ENCODINGS:
        return _undecoded(response, f"Content-Encoding {encoding[:40]!r}, which was not requested")
    unpack = None if plain else _Unpacker(encoding)
    body, taken = bytearray(), 0
    async for chunk in response.content.iter_chunked(_READ_BYTES):
        taken += len(chunk)
        try:
            body += unpack(chunk, BODY_LIMIT + 1 - len(body)) if unpack else chunk[: BODY_LIMIT + 1 - len(body)]
        except (zlib.error, ValueError) as error:
            return _undecoded(response, f"{encoding}: {error}")
        if len(body) > BODY_LIMIT or taken > 2 * BODY_LIMIT:  # gzip may have any number of empty members
            response.close()  # what is left is not worth reading
            return Body(bytes(body[:BODY_LIMIT]), whole=False)
    if unpack and not unpack.complete:
        return Body(b"", flaw=f"{encoding}: its end is missing", cut=True)
    return Body(bytes(body))


def _undecoded(response: aiohttp.ClientResponse, flaw: str) -> Body:
    response.close()
    return Body(b"", flaw=flaw)


class _Unpacker:
    """Decodes a compressed body piece by piece.

    gzip: members one after another are one body (https://www.rfc-editor.org/rfc/rfc1952#page-5). deflate: with zlib's
    header, as it is meant, or without, as some servers send it. complete: the end of the last member was read.
    """

    def __init__(self, encoding: str) -> None:
        self._deflate = encoding == "deflate"
        self._begun = b""
        self._inflate: Any = None if self._deflate else zlib.decompressobj(wbits=31)

    @property
    def complete(self) -> bool:
        return self._inflate is not None and self._inflate.eof

    def __call__(self, chunk: bytes, room: int) -> bytes:
        """Decode a piece into at most room bytes. Raises zlib.error, or ValueError for what follows the last member."""
        if self._inflate is None:
            chunk = self._begun = self._begun + chunk
            if len(chunk) < 2:
                return b""
            # zlib's header: method 8, and a check sum by 31 (https://www.rfc-editor.org/rfc/rfc1950#page-5).
            is_zlib = chunk[0] & 15 == 8 and int.from_bytes(chunk[:2], "big") % 31 == 0
            self._inflate = zlib.decompressobj(wbits=15 if is_zlib else -15)
        found = bytearray()
        while chunk and len(found) < room:
            if self._inflate.eof:
                chunk = chunk.lstrip(b"\0")  # as gzip(1) does: some servers fill the last block up
                if not chunk:
                    break
                if self._deflate or not _GZIP.startswith(chunk[: len(_GZIP)]):
                    raise ValueError("something follows the compressed body")
                self._inflate = zlib.decompressobj(wbits=31)
            found += self._inflate.decompress(chunk, room - len(found))
            chunk = self._inflate.unused_data
        return bytes(found)


def permanent_cause(error: Exception) -> str | None:
    """Return the cause of a connection error that no retry can fix, with advice; None for any other."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        reason = str(getattr(cause, "verify_message", "") or cause).rstrip(".")
        advice = _ADVICE.get(getattr(cause, "verify_code", 0)) or _missing_authority()
        return f"the certificate of {error.host}:{error.port} was refused ({reason}). {advice}"
    if isinstance(error, aiohttp.ClientConnectorSSLError) and getattr(error.os_error, "reason", "") in _NO_TLS:
        return (
            f"{error.host}:{error.port} does not speak TLS ({error.os_error}). Check --base-url, and HTTPS_PROXY: most "
            "proxies are reached by http://, also for https"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500:
        return f"the proxy refused the connection ({error.status} {error.message}). Check HTTPS_PROXY and NO_PROXY"
    return None


def _missing_authority() -> str:
    file, has = os.environ.get("SSL_CERT_FILE"), ""
    if file:
        has = "; what it names now " + ("does not have it" if os.access(file, os.R_OK) else "cannot be read")
    advice = "A proxy that inspects TLS has a certificate authority of its own"
    return f"{advice}: set SSL_CERT_FILE to a PEM file that contains it{has}"


def transient_cause(error: Exception) -> str:
    """Return why there was no response; names a proxy by host and port only, because its URL may hold a password.

    error: one for which `permanent_cause` returns None.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status} {error.message}"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"the proxy {error.host}:{error.port} cannot be reached: {_reason_of(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port} cannot be reached: {_reason_of(error.os_error)}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection within {CONNECT_SECONDS:g} s"
    return f"{type(error).__name__}: {error}"


def _reason_of(error: OSError) -> str:
    """Return the system's text for an OSError, whose own text asyncio replaces with its own."""
    if isinstance(error.errno, int) and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
