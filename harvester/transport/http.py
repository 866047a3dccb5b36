"""The aiohttp sessions of connections to Bitly: proxies, time limits, and what aiohttp must not do by itself.

Every feature of aiohttp is off that would send a request twice, hold a connection longer than needed, or read without
a bound.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from harvester._version import __version__
from harvester.errors import UsageError
from harvester.shutdown import ShutdownSignal
from harvester.transport.connection import (
    CONNECT_SECONDS,
    HEAD_LIMIT,
    HEADERS_LIMIT,
    Connector,
    Disconnected,
    Peer,
    SlotConnection,
)
from harvester.transport.connection_errors import permanent_cause
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.direct import DirectTransport, note_fallback, why_not
from harvester.transport.exchange import read_bounded
from harvester.transport.pool import Pool, Slot
from harvester.transport.session import SessionTransport

_HEADERS = {
    "Accept": "application/json",  # the same routes can answer CSV
    "Accept-Encoding": "gzip",
    "User-Agent": f"harvester/{__version__}",
}
_PROXY = re.compile(r"https?://([^/\s]*@)?(\[[^]/\s]+]|[^]/\s@:.[]{1,63}(\.[^]/\s@:.[]{1,63})*\.?)(:\d+)?/?")


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from resending a GET by itself after a disconnection: that attempt would not be counted."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Disconnected(f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def pooled(
    slots: ConnectionSlots,
    shutdown: ShutdownSignal,
    base_url: str,
    *,
    direct: bool = True,
    note: Callable[[str], None] | None = None,
) -> AsyncIterator[Pool]:
    """Open a pool, keep it at this process's share, and close its connections at the end.

    slots: joined already; left by the caller. Its sessions do not limit an attempt's time but for connecting: that is
    for the caller, with `Deadline`. direct: write requests ourselves, if this aiohttp was tested for that.
    note: is told why they are not written by ourselves, if they were to be.

    Raises:
        UsageError: a proxy variable is not an HTTP proxy's URL.
    """
    if note is not None:
        note_fallback(note, direct=direct)
    origin, peer = URL(base_url).origin(), Peer()
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
    proxy, is_direct = _proxy_for(origin), direct and why_not() is None

    def open_slot(number: int) -> Slot:
        line = SlotConnection()
        if is_direct:
            return Slot(number, DirectTransport(line, peer, origin, proxy, _HEADERS, timeout), line)
        return Slot(number, SessionTransport(_session(timeout, proxy, Connector(line, peer)), origin, line), line)

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


def _session(timeout: aiohttp.ClientTimeout, proxy: str | None, connector: Connector) -> aiohttp.ClientSession:
    # Without trust_env: netrc would add a password of its own to the token.
    return aiohttp.ClientSession(
        connector=connector,
        middlewares=(_send_once,),
        timeout=timeout,
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
    timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=CONNECT_SECONDS)
    session = _session(timeout, _proxy_for(target), Connector(SlotConnection(), Peer()))
    try:
        async with session, session.post(target, data=dict(form), headers=headers, allow_redirects=False) as response:
            return response.status, (await read_bounded(response)).content
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Not the exception's text: it may hold a proxy's password.
        why = permanent_cause(error) or f"it cannot be reached, or its answer cannot be read ({type(error).__name__})"
        raise UsageError(f"{target.host}: {why}") from error
