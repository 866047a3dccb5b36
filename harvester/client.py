"""One call to one verdict: slots, pace, gate, budget, retries, and the only place where aiohttp is seen.

An attempt goes: pace, slot, gate, budget, request. Whoever must wait does so without a slot. A throttled answer, and
any transient one during an outage, is the server's affair: the attempt is made again and the call is charged nothing.
"""

import asyncio
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.request import getproxies, proxy_bypass

import aiohttp
import tenacity
from aiohttp.client_proto import ResponseHandler
from aiolimiter import AsyncLimiter
from yarl import URL

from harvester import __version__
from harvester.bitly import (
    BODY_LIMIT,
    FACETS,
    Hint,
    Query,
    Throttled,
    TokenRefused,
    Transient,
    Unreadable,
    Verdict,
    path,
    utc_text,
    verdict,
)
from harvester.budget import Budget, Gate, MonthOver, Wait, hinted_seconds
from harvester.errors import Stopping, UsageError
from harvester.status import Counters
from harvester.stopping import Reason, Stop, Stopper
from harvester.tokens import Token

CONNECT_SECONDS = 10.0
_READ_BYTES = 64 * 1024
_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_HINT_SECONDS = 300.0


class _Disconnected(aiohttp.ClientError):
    """The server hung up before it answered."""


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a GET again by itself after a disconnection: nobody would count that attempt."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Disconnected(f"{type(error).__name__}: {error}") from error


class _Abrupt(ResponseHandler):
    """Closes without TLS's farewell, for up to 30 s of which the connection would still count."""

    def close(self) -> None:
        """Close at once."""
        self.abort()


@dataclass(frozen=True, slots=True)
class Settings:
    """How to ask. attempts: HTTP tries that a call is worth. timeout_seconds: for one of them, in all."""

    base_url: str
    connections: int
    attempts: int
    timeout_seconds: float
    backoff_seconds: float = 1.0


class Client:
    """Asks Bitly; made by `opened`.

    sprint: True when what is left of the list fits into the room left, so that there is nothing to pace. fresh_asked:
    True while a call that has not failed before is being asked.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: Settings,
        query: Query,
        token: Token,
        budget: Budget,
        gate: Gate,
        stopper: Stopper,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.waiting: str | None = None
        self.sprint: Callable[[], bool] = lambda: False
        self.fresh_asked: Callable[[], bool] = lambda: False
        self._session = session
        self._settings = settings
        self._token = token
        self._budget = budget
        self._gate = gate
        self._stopper = stopper
        self._clock = clock
        self._facet = FACETS[query.facet]
        self._base = URL(settings.base_url)
        self._base_path = self._base.raw_path.rstrip("/")
        self._parameters = query.parameters
        self._slots = asyncio.Semaphore(settings.connections)
        self._pace = _pace(budget.limits.per_minute)

    async def ask(self, bitlink: str, *, fresh: bool = True) -> Verdict:
        """Make a call's first attempt and give its verdict, which is never Throttled.

        fresh: False for a call that failed in an earlier run: if it does again, that says nothing of the server.

        Raises:
            Stopping: the run ended before the attempt was sent.
        """
        return await self._attempt(bitlink, fresh=fresh, again=False)

    async def ask_again(self, bitlink: str, first: Verdict) -> tuple[Verdict, int]:
        """Repeat a call whose first attempt gave a Transient or Unreadable verdict; give the last one, and how many
        attempts it was charged in all.

        Raises:
            Stopping: the run ended first, and the call is left for the next.
        """
        # tenacity takes the first attempt, already made, for its own: stop and wait then count from there. In an
        # outage it is charged to nobody.
        earlier: list[Verdict] = [] if self._gate.outage else [first]

        async def attempt() -> Verdict:
            if earlier:
                return earlier.pop()
            self.counters.retried += 1
            return await self._attempt(bitlink, fresh=False, again=True)

        # A retrier of its own for every call: one shared by tasks would mix up their results.
        retrier = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda verdict: isinstance(verdict, Transient | Unreadable)),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(self._settings.attempts), _UnreadableTwice()),
            wait=self._backoff,
            sleep=self._stopper.pause,
            retry_error_callback=_last_verdict,
        )
        result: Verdict = await retrier(attempt)
        return result, int(retrier.statistics["attempt_number"])

    def _backoff(self, state: tenacity.RetryCallState) -> float:
        """Full jitter, exponential: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter.

        A server's hint counts if it asks for longer.
        """
        hint: Hint = getattr(_last_verdict(state), "hint", None)
        jittered = tenacity.wait_random_exponential(
            multiplier=self._settings.backoff_seconds, max=_LONGEST_BACKOFF_SECONDS
        )(state)
        return max(jittered, hinted_seconds(hint, time.time(), _LONGEST_HINT_SECONDS))

    async def _attempt(self, bitlink: str, *, fresh: bool, again: bool) -> Verdict:
        """Send until there is a verdict that is the call's own. again: it has been asked before in this run."""
        url = URL.build(
            scheme=self._base.scheme,
            authority=self._base.raw_authority,
            path=self._base_path + path(bitlink, self._facet),
            query_string=self._parameters,
            encoded=True,
        )
        renewed = False
        while True:
            header = self._token.header
            found, sent_at = await self._send_when_allowed(url, header, fresh=fresh)
            if isinstance(found, Throttled):
                self.counters.throttled += 1
                self._gate.throttled(found.hint, sent_at=sent_at)
            elif isinstance(found, Transient):
                self._gate.transient(sent_at=sent_at, evidence=fresh)
                if not again or not self._gate.outage:
                    return found
            elif found is not None:
                self._gate.answered(sent_at=sent_at)
                if (
                    not isinstance(found, TokenRefused)
                    or renewed
                    or not await self._token.renewed(header, self._stopper)
                ):
                    return found
                renewed = True  # once: a source may have another token each time, and none that is any good

    async def _keep_pace(self) -> None:
        assert self._pace is not None
        if self._pace.has_capacity():
            await self._pace.acquire()  # at once
        elif not self.sprint():
            self.waiting = "pace"
            await self._stopper.guard(self._pace.acquire())

    async def _send_when_allowed(self, url: URL, header: str, *, fresh: bool) -> tuple[Verdict | None, float]:
        """Send within a slot if gate and budget allow it now, else wait without the slot and give no verdict.

        Gives the verdict and when its request was sent.
        """
        sent_at, refused = 0.0, self._gate.closed(fresh=self._may_probe(fresh))
        if refused is None:
            if self._pace is not None:
                await self._keep_pace()
            async with self._slots:
                if self._stopper.stop is not None:
                    raise Stopping
                refused = self._gate.enter(fresh=self._may_probe(fresh))
                sent_at = self._clock()  # behind enter, so that no probe seems to be older than the gate's opening
                refused = refused or self._take(sent_at)
                if refused is None:
                    self.waiting = None
                    self.counters.total += 1
                    return await self._request(url, header), sent_at
        self.waiting = refused.window
        await self._stopper.pause(refused.seconds)
        self._check_outage()
        return None, sent_at

    def _may_probe(self, fresh: bool) -> bool:
        return fresh or not self.fresh_asked()

    def _take(self, now: float) -> Wait | None:
        """Count the attempt, or say how long to wait; ends the run when that is until the next month."""
        refused = self._budget.take()
        if refused is not None:
            self._gate.leave(sent_at=now)
        if isinstance(refused, MonthOver):
            spent = f"the {self._budget.limits.per_month} attempts of --per-month are spent; allow more, or wait"
            self._stopper.request(Stop(Reason.MONTH_SPENT, spent, utc_text(refused.until)))
            raise Stopping
        return refused

    def _check_outage(self) -> None:
        if self._gate.over_limit:
            message = "the server has answered next to nothing for a long while; run the same command again later"
            self._stopper.request(Stop(Reason.OUTAGE, message))

    async def _request(self, url: URL, authorization: str) -> Verdict:
        kept_alive = False
        try:
            async with self._session.get(
                url, headers={"Authorization": authorization}, allow_redirects=False
            ) as response:
                try:
                    body, whole = await _read_bounded(response)
                except (zlib.error, ValueError):  # compressed in a way that was not asked for, or wrongly
                    body, whole = b"", True
                kept_alive = whole and response.headers.get("Connection", "keep-alive").lower() == "keep-alive"
                return self._understand(response, body, whole=whole)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return self._explain(error)
        finally:
            if not kept_alive:
                await asyncio.sleep(0)  # the transport closes its socket in the loop's next round

    def _understand(self, response: aiohttp.ClientResponse, body: bytes, *, whole: bool) -> Verdict:
        found = verdict(response.status, response.headers, body, self._facet, whole=whole)
        if self._token.has_to_hide(body, found):
            body = self._token.hidden_in(body.decode(errors="replace")).encode()
            return verdict(response.status, response.headers, body, self._facet, whole=whole)
        return found

    def _explain(self, error: Exception) -> Verdict:
        """Give foreign errors their meaning: the only border that they cross."""
        if stop := _for_good(error):
            self._stopper.request(Stop(Reason.CONNECTION_REFUSED, stop))
            raise Stopping from error
        if isinstance(error, TimeoutError):
            return Transient(None, f"no whole answer within {self._settings.timeout_seconds:g} s")
        return Transient(None, self._token.hidden_in(f"{type(error).__name__}: {error}")[:200])


def _for_good(error: Exception) -> str | None:
    """Say what to do about a connection that will not come about by trying again; None if it may."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return (
            f"the server's certificate was refused ({error}). Behind a company's proxy set SSL_CERT_FILE to a file "
            "with its certificate authority"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500:
        return f"the proxy refused the connection ({error.status} {error.message}). Check HTTPS_PROXY and NO_PROXY"
    return None


def _last_verdict(state: tenacity.RetryCallState) -> Verdict:
    assert state.outcome is not None
    result: Verdict = state.outcome.result()
    return result


class _UnreadableTwice(tenacity.stop.stop_base):
    """Something that is not the facet's JSON is asked for once more, not oftener."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        self._seen += isinstance(_last_verdict(retry_state), Unreadable)
        return self._seen > 1


def _pace(per_minute: int) -> AsyncLimiter | None:
    """Give the limiter that smooths below the minute's window.

    A full bucket would let nearly twice the limit through in its first minute, and a bucket of one cannot keep a
    high rate; one of 1 % does (measured: 99.5 % at 500 a second).
    """
    if not per_minute:
        return None
    burst = max(per_minute // 100, 1)
    return AsyncLimiter(burst, burst * 60.0 / per_minute)


async def _read_bounded(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """Read a body of at most BODY_LIMIT bytes, decoded; the second is False when there was more.

    aiohttp's own decoding is off: a few KiB of gzip can hold gigabytes.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    length = response.content_length
    if encoding in {"", "identity"} and length is not None and length <= BODY_LIMIT:
        return await response.read(), True
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        raise ValueError(f"Content-Encoding {encoding[:40]!r}, which was not asked for")
    inflate = zlib.decompressobj(wbits=31) if encoding not in {"", "identity"} else None
    body = bytearray()
    async for chunk in response.content.iter_chunked(_READ_BYTES):
        if inflate and inflate.eof:
            response.close()
            raise ValueError("something follows the compressed body")
        room = BODY_LIMIT + 1 - len(body)
        body += inflate.decompress(chunk, room) if inflate else chunk[:room]
        if len(body) > BODY_LIMIT:
            response.close()  # what is left is not worth reading
            return bytes(body[:BODY_LIMIT]), False
    if inflate and not inflate.eof:
        raise aiohttp.ClientPayloadError("the compressed body was cut")
    return bytes(body), True


@asynccontextmanager
async def opened(
    settings: Settings, query: Query, token: Token, budget: Budget, gate: Gate, stopper: Stopper
) -> AsyncIterator[Client]:
    """Open a client with one session, and close its connections at the end.

    Proxy variables are honoured, netrc is not: it would put another's password beside the token.
    """
    base = URL(settings.base_url)
    connector = aiohttp.TCPConnector(limit=settings.connections)
    # There is no public way to choose how connections close, and five is Bitly's limit for them.
    connector._factory = partial(_Abrupt, loop=asyncio.get_running_loop())  # type: ignore[assignment]
    session = aiohttp.ClientSession(
        connector=connector,
        middlewares=(_send_once,),
        timeout=aiohttp.ClientTimeout(total=settings.timeout_seconds, connect=CONNECT_SECONDS),
        headers={
            "Accept": "application/json",  # the same routes can answer CSV
            "Accept-Encoding": "gzip",
            "User-Agent": f"harvester/{__version__}",
        },
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=_proxy_for(base),
    )
    async with session:
        yield Client(session, settings, query, token, budget, gate, stopper)


def _proxy_for(base: URL) -> str | None:
    """Give the proxy that the environment names for the base URL; this machine is reached without one.

    Raises:
        UsageError: it is not an HTTP proxy.
    """
    if base.scheme == "http" or not base.host or proxy_bypass(f"{base.host}:{base.port}"):
        return None  # only loopback may be plain http
    proxies = getproxies()
    proxy = proxies.get(base.scheme) or proxies.get("all")
    if proxy and not re.fullmatch(r"https?://[^/\s]+/?", proxy):
        raise UsageError("HTTPS_PROXY: an HTTP proxy's URL, such as http://proxy.example:3128, was expected")
    return proxy
