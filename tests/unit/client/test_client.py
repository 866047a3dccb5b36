"""The client: what goes over the wire, what is counted before it, what is repeated, and who waits where."""

import asyncio
import gzip
import random
import re
import sqlite3
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import CallbackResult, aioresponses
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from harvester import __version__
from harvester.bearer import Token, fingerprint
from harvester.bitly.account_limits import NOT_ASKED
from harvester.bitly.facets import BODY_LIMIT
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer, Refused, TokenRefused, Transient, Unknown, Unreadable, Verdict
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, MonthExhausted, RequestedLimits, RetryAfter
from harvester.budget.machine import MachineBudget
from harvester.client.attempt import ClientContext, record_nothing
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.client.client import Client, ClientSettings, opened
from harvester.clock import Clock
from harvester.errors import OutputError, RunStopping, UsageError
from harvester.progress import AttemptCounts, WaitReason
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.pool import Pool
from tests.conftest import quick_folder
from tests.support.simulated_bitly import slot_over

BASE = "https://api-ssl.bitly.com/v4"
QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
FREE = RequestedLimits(0, 10**6, 10**6)
"""Limits that nothing reaches; without any, attempts are not counted one by one."""
ACCOUNT = Account("api-ssl.bitly.com:443", "fingerprint", "me")

Entry = tuple[int, dict[str, str], bytes]
"""A scripted answer: status, headers, body."""

ROW = Answer([], 0, None, None)
ROW_BODY = b'{"metrics":[]}'
OK: Entry = (200, {}, ROW_BODY)
HTML: Entry = (200, {"Content-Type": "text/html"}, b"<html>")
THROTTLED: Entry = (429, {}, b'{"message":"RATE_LIMIT_EXCEEDED"}')
THROTTLED_30: Entry = (429, {"Retry-After": "30"}, b'{"message":"RATE_LIMIT_EXCEEDED"}')
UNAVAILABLE: Entry = (503, {}, b'{"message":"TEMPORARILY_UNAVAILABLE"}')
UNAUTHORIZED: Entry = (401, {}, b'{"message":"UNAUTHORIZED"}')
NOT_FOUND: Entry = (404, {}, b'{"message":"NOT_FOUND"}')

FAILED = Transient(503, "TEMPORARILY_UNAVAILABLE")


# --- fakes ----------------------------------------------------------------------------------------------------------


class Sent:
    """What aiohttp asks of a request's writer when all is sent."""

    output_size = 0


class Response(aiohttp.ClientResponse):
    """aiohttp 3.14's response wants the request's writer, which aioresponses 0.7.9 does not give it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"stream_writer": Sent(), **kwargs})


class FakeClock(Clock):
    """Seconds that pass only when somebody pauses."""

    def __init__(self) -> None:
        self.boot = "boot"
        self.seconds = 1000.0
        self.stepped = 0.0

    def boot_seconds(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return NOON + self.seconds - 1000.0 + self.stepped

    def step(self, seconds: float) -> None:
        """The wall clock is set forward."""
        self.stepped += seconds


class Steady(random.Random):
    """Chance that always falls the same way: no jitter."""

    def random(self) -> float:
        return 0.0


class Pauses(ShutdownSignal):
    """A shutdown whose pauses take no time: they are written down, and the clock is moved. held: they last."""

    def __init__(self, clock: FakeClock, *, held: bool = False) -> None:
        super().__init__()
        self.taken: list[float] = []
        self.end = asyncio.Event()
        self._clock = clock
        if not held:
            self.end.set()

    async def sleep_unless_stopping(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)
        await self.end.wait()
        if self.stop is not None:
            raise RunStopping
        self._clock.seconds += seconds


class Refusing(MachineBudget):
    """A budget that gives these answers first."""

    def __init__(
        self, book: BudgetDatabase, wanted: RequestedLimits, first: Sequence[RetryAfter | MonthExhausted]
    ) -> None:
        super().__init__(book, ACCOUNT, "/bitlinks/{bitlink}/referrers", wanted, Steady())
        self._first = list(first)

    def try_acquire(self) -> RetryAfter | MonthExhausted | None:
        return self._first.pop(0) if self._first else super().try_acquire()


class Unpaced:
    """A worklist whose rest fits into any room, even none: nothing waits for the pace."""

    remaining = -1


class Tokens:
    """A source of tokens: gives each in turn, and the last for ever; counts how often it was read."""

    def __init__(self, *values: str) -> None:
        self._values = list(values)
        self.reads = 0

    def __call__(self) -> str:
        self.reads += 1
        return self._values.pop(0) if len(self._values) > 1 else self._values[0]


class Bitly:
    """A scripted Bitly: each request gets the next answer of the script, and is written down."""

    def __init__(self, mocked: aioresponses) -> None:
        self._script: list[Entry | Exception | Callable[[], Awaitable[Entry]]] = []
        self.requests: list[tuple[URL, dict[str, Any]]] = []
        self.seen: Callable[[], None] = lambda: None
        mocked.get(re.compile(".*"), callback=self._answer, repeat=True)

    def answers(self, *entries: Entry | Exception | Callable[[], Awaitable[Entry]]) -> None:
        """Add to the script: an answer, an error, or a function to await for an answer."""
        self._script += entries

    @property
    def tokens(self) -> list[str]:
        """The tokens that came, in their order."""
        return [request["headers"]["Authorization"].removeprefix("Bearer ") for _, request in self.requests]

    async def _answer(self, url: URL, **request: Any) -> CallbackResult:
        assert self._script, "a request that the script does not know"
        entry = self._script.pop(0)
        self.requests.append((url, request))
        self.seen()
        if isinstance(entry, Exception):
            raise entry
        status, headers, body = entry if isinstance(entry, tuple) else await entry()
        return CallbackResult(status=status, headers=headers, body=body, response_class=Response)


@dataclass
class Rig:
    """A client and all that it works with."""

    client: Client
    budget: MachineBudget
    breaker: CircuitBreaker
    shutdown: Pauses
    clock: FakeClock
    database: BudgetDatabase

    @property
    def spent(self) -> int:
        """Attempts that the month has counted."""
        return self.budget.windows()[-1].used


@asynccontextmanager
async def rigged(
    *,
    read: Callable[[], str] = lambda: "t0",
    wanted: RequestedLimits = FREE,
    refusals: Sequence[RetryAfter | MonthExhausted] = (),
    rules: BreakerRules | None = None,
    connections: int = 5,
    attempts: int = 5,
    held: bool = False,
    record: Callable[[AttemptCounts], None] = record_nothing,
) -> AsyncIterator[Rig]:
    """Open a client whose time is the rig's clock. refusals: what the budget says first."""
    clock = FakeClock()
    breaker = CircuitBreaker(rules or BreakerRules(jitter=0.0), clock.boot_seconds)
    shutdown = Pauses(clock, held=held)
    settings = ClientSettings(BASE, connections, attempts, 30.0)
    with quick_folder() as folder, closing(BudgetDatabase(str(folder / "budget.sqlite"), clock)) as book:
        budget = Refusing(book, wanted, refusals)
        helpers = MachineBudget(book, ACCOUNT, "helpers", RequestedLimits(per_month=wanted.per_month), Steady())
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            pooled(folder, session, connections) as pool,
        ):
            context = ClientContext(Token(read), budget, breaker, shutdown, clock.boot_seconds, record, helpers)
            client = Client(pool, settings, QUERY, context)
            yield Rig(client, budget, breaker, shutdown, clock, book)


@asynccontextmanager
async def pooled(folder: Path, session: aiohttp.ClientSession, connections: int) -> AsyncIterator[Pool]:
    """Open a pool whose slots share a session."""
    slots = ConnectionSlots(str(folder / "connections"), connections)
    await slots.join()
    pool = Pool(slots, lambda number: slot_over(number, session, BASE))
    await pool.rebalance()
    yield pool
    slots.leave()


@asynccontextmanager
async def reaching(base_url: str, token: str = "t0", *, direct: bool = True) -> AsyncIterator[Client]:
    """Open a client with connections of its own and the machine's time."""
    clock, settings = Clock(), ClientSettings(base_url, 5, 5, 10.0, direct=direct)
    with quick_folder() as folder, closing(BudgetDatabase(str(folder / "budget.sqlite"), clock)) as book:
        slots = ConnectionSlots(str(folder / "connections"), 5)
        await slots.join()
        budget, breaker = Refusing(book, FREE, ()), CircuitBreaker(BreakerRules(), clock.boot_seconds)
        context = ClientContext(Token(lambda: token), budget, breaker, ShutdownSignal(), clock.boot_seconds)
        async with opened(slots, settings, QUERY, context) as client:
            yield client
        slots.leave()


@pytest.fixture
def bitly() -> Iterator[Bitly]:
    with aioresponses() as mocked:
        yield Bitly(mocked)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def others_are_answered(rig: Rig) -> None:
    """The server is well: first attempts of other calls get their answers."""
    for _ in range(5):
        rig.breaker.record_success(evidence=True)


async def settle() -> None:
    """Let every task go as far as it gets without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


def whole_answer(headers: dict[str, str], body: bytes) -> bytes:
    """A 200 as it goes over the wire."""
    lines = [
        "HTTP/1.1 200 OK",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


@asynccontextmanager
async def wired(answer: bytes) -> AsyncIterator[tuple[Client, list[bytes]]]:
    """Open a client of a server on loopback that answers everything with these bytes; and the requests' heads."""
    async with wire(answer) as (url, heads), reaching(url) as client:
        yield client, heads


@asynccontextmanager
async def wire(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve these bytes as the answer to everything; yield the base URL and the requests' heads."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        with suppress(ConnectionError):  # the client may have read enough
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v4/", heads


# --- over the wire --------------------------------------------------------------------------------------------------


async def test_a_request_carries_the_token_and_asks_for_json_in_harvesters_name(bitly: Bitly) -> None:
    bitly.answers(OK)
    async with reaching(BASE, "s3cret", direct=False) as client:  # aioresponses replaces the session
        assert await client.fetch("bit.ly/x") == ROW
    [(_, request)] = bitly.requests
    assert request["headers"]["Authorization"] == "Bearer s3cret"
    assert request["headers"]["Accept"] == "application/json"
    assert request["headers"]["User-Agent"] == f"harvester/{__version__}"


async def test_the_request_line_on_the_wire_is_encoded_once_and_the_slash_is_literal() -> None:
    async with wired(whole_answer({}, ROW_BODY)) as (client, heads):
        assert await client.fetch("es.pn/a%2Fé+b") == ROW
    first, *rest = heads[0].decode().split("\r\n")
    assert first == (
        "GET /v4/bitlinks/es.pn/a%252F%C3%A9%2Bb/referrers"
        "?unit=day&units=-1&unit_reference=2026-11-23T06%3A00%3A00%2B0000&size=50 HTTP/1.1"
    )
    assert "Authorization: Bearer t0" in rest
    assert "Accept: application/json" in rest
    assert not any(header.lower().startswith("cookie") for header in rest)


async def test_both_transports_send_the_same_bytes_but_for_the_order_of_the_lines() -> None:
    async with wire(whole_answer({}, ROW_BODY)) as (url, heads):
        for direct in (True, False):
            async with reaching(url, direct=direct) as client:
                assert await client.fetch("es.pn/a%2Fé+b") == ROW
    (first, *lines), (first_of_session, *lines_of_session) = (head.decode().split("\r\n") for head in heads)
    assert first == first_of_session
    assert sorted(lines) == sorted(lines_of_session)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(bitly: Bitly, status: int) -> None:
    bitly.answers((status, {"Location": "https://evil.example/"}, b""), OK)
    async with rigged() as rig:
        assert await rig.client.fetch("bit.ly/x") == Unknown(status, f"HTTP {status}", "")
    assert [url.host for url, _ in bitly.requests] == ["api-ssl.bitly.com"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
async def test_a_gzipped_answer_is_read(bitly: Bitly, encoding: str) -> None:
    bitly.answers((200, {"Content-Encoding": encoding}, gzip.compress(ROW_BODY)))
    async with rigged() as rig:
        assert await rig.client.fetch("bit.ly/x") == ROW


@pytest.mark.parametrize("padding", [b"\0", bytes(1000)])
async def test_zeros_behind_a_gzipped_answer_are_passed_over(bitly: Bitly, padding: bytes) -> None:
    packed = gzip.compress(ROW_BODY)
    bitly.answers(
        *[(200, {"Content-Encoding": "gzip"}, body) for body in (packed + padding, packed + padding + packed)]
    )
    async with rigged() as rig:
        assert await rig.client.fetch("bit.ly/a") == ROW
        assert isinstance(await rig.client.fetch("bit.ly/b"), Unreadable)  # two answers, both of which were unpacked


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("spaces", "whole"), [(BODY_LIMIT - len(ROW_BODY), True), (BODY_LIMIT, False), (20 * BODY_LIMIT, False)]
)
async def test_a_body_is_read_up_to_its_limit_decoded(spaces: int, whole: bool, packed: bool) -> None:
    body = ROW_BODY + b" " * spaces
    headers = {"Content-Encoding": "gzip"} if packed else {}
    async with wired(whole_answer(headers, gzip.compress(body, 1) if packed else body)) as (client, _):
        found = await client.fetch("bit.ly/x")
    if whole:
        assert found == ROW
    else:
        assert isinstance(found, Unreadable)
        assert "larger" in found.message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + ROW_BODY,
        b"HTTP/1.1 200 OK\r\nConte",
        b"nonsense\r\n\r\n",
    ],
    ids=["none", "a torn body", "a torn head", "no HTTP"],
)
async def test_an_answer_that_is_torn_is_transient(answer: bytes) -> None:
    async with wired(answer) as (client, _):
        found = await client.fetch("bit.ly/x")
    assert isinstance(found, Transient)
    assert found.status is None


async def test_a_compressed_body_that_was_cut_is_asked_for_again(bitly: Bitly) -> None:
    bitly.answers((200, {"Content-Encoding": "gzip"}, gzip.compress(ROW_BODY)[:-6]))
    async with rigged() as rig:
        assert isinstance(await rig.client.fetch("bit.ly/x"), Transient)


@pytest.mark.parametrize(
    ("encoding", "body"), [("gzip", b"not gzip"), ("br", b"\x0b"), ("deflate", b"\x78\x9c\xff\xff\xff"), ("a, b", b"")]
)
async def test_a_body_that_cannot_be_unpacked_is_unreadable_and_the_message_says_why(
    bitly: Bitly, encoding: str, body: bytes
) -> None:
    bitly.answers((200, {"Content-Encoding": encoding}, body))
    async with rigged() as rig:
        found = await rig.client.fetch("bit.ly/x")
    assert isinstance(found, Unreadable)
    assert f"could not be unpacked: {encoding}" in found.message or f"Content-Encoding '{encoding}'" in found.message


# --- errors that are no answers -------------------------------------------------------------------------------------


KEY = ConnectionKey("api-ssl.bitly.com", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    "failure",
    [
        TimeoutError(),
        aiohttp.ClientConnectionError("refused"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("torn"),
        aiohttp.ServerTimeoutError(),
        ConnectionResetError("reset"),
        aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError("alert")),
        aiohttp.ConnectionTimeoutError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_no_answer_is_transient(bitly: Bitly, failure: Exception) -> None:
    bitly.answers(failure)
    async with rigged() as rig:
        found = await rig.client.fetch("bit.ly/x")
    assert isinstance(found, Transient)
    assert found.status is None
    assert found.message
    assert rig.shutdown.stop is None


def not_tls() -> ssl.SSLError:
    error = ssl.SSLError("wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


PROXY_SAID_NO = aiohttp.ClientHttpProxyError(
    aiohttp.RequestInfo(URL(BASE), "CONNECT", CIMultiDictProxy(CIMultiDict()), URL(BASE)),
    (),
    status=407,
    message="Proxy Authentication Required",
)


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("self-signed")), "SSL_CERT_FILE"),
        (aiohttp.ClientConnectorSSLError(KEY, not_tls()), "HTTPS_PROXY"),
        (PROXY_SAID_NO, "HTTPS_PROXY"),
    ],
    ids=["certificate", "plain text", "proxy"],
)
async def test_a_refused_certificate_or_proxy_stops_the_run_with_advice(
    bitly: Bitly, failure: Exception, advice: str
) -> None:
    bitly.answers(failure)
    async with rigged() as rig:
        with pytest.raises(RunStopping):
            await rig.client.fetch("bit.ly/x")
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.reason is StopReason.CONNECTION_REFUSED
        assert advice in rig.shutdown.stop.message


async def test_cancellation_goes_through_and_frees_the_slot(bitly: Bitly) -> None:
    never = asyncio.Event()

    async def silence() -> Entry:
        await never.wait()
        return OK

    bitly.answers(silence, OK)
    async with rigged(connections=1) as rig:
        task = asyncio.create_task(rig.client.fetch("bit.ly/x"))
        await settle()
        assert len(bitly.requests) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await rig.client.fetch("bit.ly/y") == ROW


async def test_cancellation_goes_through_a_retry_too(bitly: Bitly) -> None:
    async with rigged(held=True) as rig:
        task = asyncio.create_task(rig.client.retry("bit.ly/x", FAILED))
        await settle()
        assert len(rig.shutdown.taken) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bitly.requests == []


# --- the token ------------------------------------------------------------------------------------------------------


async def test_a_rotated_token_is_read_again_and_the_call_repeated_under_the_budget(bitly: Bitly) -> None:
    bitly.answers(UNAUTHORIZED, OK, OK)
    source = Tokens("old", "new")
    async with rigged(read=source) as rig:
        assert await rig.client.fetch("bit.ly/x") == ROW
        assert await rig.client.fetch("bit.ly/y") == ROW
        assert bitly.tokens == ["old", "new", "new"]
        assert source.reads == 2
        assert rig.spent == rig.client.sender.counters.total == 3


async def test_a_token_that_is_still_the_same_is_refused_after_one_request(bitly: Bitly) -> None:
    bitly.answers(UNAUTHORIZED)
    source = Tokens("only")
    async with rigged(read=source) as rig:
        assert await rig.client.fetch("bit.ly/x") == TokenRefused(401, "UNAUTHORIZED")
    assert (len(bitly.requests), source.reads) == (1, 2)


async def test_a_source_that_gives_another_token_each_time_is_believed_once(bitly: Bitly) -> None:
    """A command may mint tokens: that each is refused must not spend the month."""
    bitly.answers(*[UNAUTHORIZED] * 20)
    async with rigged(read=Tokens(*(f"t{n}" for n in range(30))), wanted=RequestedLimits(0, 0, 10)) as rig:
        try:
            found: Verdict | None = await rig.client.fetch("bit.ly/x")
        except RunStopping:
            found = None
    assert bitly.tokens == ["t0", "t1"]
    assert found == TokenRefused(401, "UNAUTHORIZED")


async def test_a_source_that_fails_when_it_is_read_again_leaves_the_token_refused(bitly: Bitly) -> None:
    """A password manager that has locked itself is no bug of harvester's."""
    bitly.answers(UNAUTHORIZED)
    reads = iter(["only"])

    def read() -> str:
        for token in reads:
            return token
        raise UsageError("--token-command failed")

    async with rigged(read=read) as rig:
        assert await rig.client.fetch("bit.ly/x") == TokenRefused(401, "UNAUTHORIZED")


async def test_calls_refused_together_read_the_source_once(bitly: Bitly) -> None:
    gathered = asyncio.Barrier(5)

    async def refused() -> Entry:
        await gathered.wait()
        return UNAUTHORIZED

    bitly.answers(*[refused] * 5, *[OK] * 5)
    source = Tokens("old", "new", "newer")
    async with rigged(read=source) as rig:
        assert await asyncio.gather(*(rig.client.fetch(f"bit.ly/{n}") for n in range(5))) == [ROW] * 5
    assert source.reads == 2
    assert bitly.tokens == ["old"] * 5 + ["new"] * 5


async def test_a_token_does_not_show_in_its_repr() -> None:
    assert "s3cret" not in f"{Token(lambda: 's3cret')!r} {Token(lambda: 's3cret')}"


# --- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "script", "attempts", "expected", "charged"),
    [
        pytest.param(FAILED, [OK], 5, ROW, 2, id="the second attempt answers"),
        pytest.param(FAILED, [UNAVAILABLE, UNAVAILABLE, OK], 5, ROW, 4, id="the fourth answers"),
        pytest.param(FAILED, [UNAVAILABLE] * 4, 5, FAILED, 5, id="none answers"),
        pytest.param(FAILED, [], 1, FAILED, 1, id="one attempt is all"),
        pytest.param(FAILED, [NOT_FOUND], 5, Refused(404, "NOT_FOUND"), 2, id="a refusal ends it"),
        pytest.param(FAILED, [THROTTLED_30, THROTTLED_30, OK], 2, ROW, 2, id="a throttled answer costs no attempt"),
        pytest.param(FAILED, [TimeoutError(), OK], 3, ROW, 3, id="no answer costs one"),
        pytest.param(Unreadable(200, "not JSON", "<"), [OK], 5, ROW, 2, id="an unreadable answer is asked for again"),
        pytest.param(
            Unreadable(200, "not JSON", "<"),
            [HTML],
            5,
            Unreadable(200, "not JSON", "<html>"),
            2,
            id="but only once",
        ),
        pytest.param(
            FAILED,
            [HTML, UNAVAILABLE, HTML],
            5,
            Unreadable(200, "not JSON", "<html>"),
            4,
            id="also with trouble in between",
        ),
    ],
)
async def test_a_call_is_repeated_and_charged(
    bitly: Bitly, first: Verdict, script: list[Entry | Exception], attempts: int, expected: Verdict, charged: int
) -> None:
    bitly.answers(*script)
    async with rigged(attempts=attempts) as rig:
        bitly.seen = partial(others_are_answered, rig)
        assert await rig.client.retry("bit.ly/x", first) == (expected, charged)
        throttled = sum(entry is THROTTLED_30 for entry in script)
        assert len(bitly.requests) == len(script) == charged - 1 + throttled
        counters = rig.client.sender.counters
        assert (counters.total, counters.retried, counters.throttled) == (len(script), charged - 1, throttled)
        assert rig.spent == len(script)


async def test_calls_that_are_repeated_together_get_their_own_results(bitly: Bitly) -> None:
    bodies = [b'{"metrics":[{"value":"%d","clicks":1}]}' % n for n in range(5)]
    order: list[str] = []
    bitly.seen = lambda: order.append(bitly.requests[-1][0].parts[-2])
    bitly.answers(*((200, {}, body) for body in bodies))
    async with rigged() as rig:
        links = [f"bit.ly/{n}" for n in range(5)]
        found = await asyncio.gather(*(rig.client.retry(link, FAILED) for link in links))
    values = {link: verdict.metrics[0]["value"] for link, (verdict, _) in zip(links, found, strict=True)}  # type: ignore[union-attr]
    assert values == {f"bit.ly/{name}": str(n) for n, name in enumerate(order)}


async def test_waits_grow_with_full_jitter_up_to_a_minute(bitly: Bitly) -> None:
    bitly.answers(*[UNAVAILABLE] * 19)
    async with rigged(attempts=20) as rig:
        bitly.seen = partial(others_are_answered, rig)
        await rig.client.retry("bit.ly/x", FAILED)
        assert len(rig.shutdown.taken) == 19
        assert all(0 <= wait <= min(2.0**n, 60.0) for n, wait in enumerate(rig.shutdown.taken, 1))
        assert len(set(rig.shutdown.taken)) == 19


@pytest.mark.parametrize(
    ("hint", "least", "most"),
    [
        (120.0, 120.0, 120.0),
        (0.0, 0.0, 1.0),
        (1e9, 300.0, 300.0),
        (datetime(2099, 1, 1, tzinfo=UTC), 300.0, 300.0),
        (datetime(1999, 1, 1, tzinfo=UTC), 0.0, 1.0),
        (None, 0.0, 1.0),
    ],
)
async def test_a_hint_makes_a_wait_longer_up_to_5_minutes(
    bitly: Bitly, hint: float | datetime | None, least: float, most: float
) -> None:
    bitly.answers(OK)
    async with rigged() as rig:
        assert await rig.client.retry("bit.ly/x", Transient(503, "", hint)) == (ROW, 2)
        [wait] = rig.shutdown.taken
        assert least <= wait <= most


async def test_an_answers_own_hint_is_honoured(bitly: Bitly) -> None:
    bitly.answers((503, {"Retry-After": "77"}, b""), OK)
    async with rigged() as rig:
        assert await rig.client.retry("bit.ly/x", FAILED) == (ROW, 3)
        assert rig.shutdown.taken[1] == 77.0


async def test_a_run_that_ends_breaks_off_the_retry(bitly: Bitly) -> None:
    async with rigged(held=True) as rig:
        task = asyncio.create_task(rig.client.retry("bit.ly/x", FAILED))
        await settle()
        rig.shutdown.request(Stop(StopReason.SIGNAL, "SIGTERM"))
        rig.shutdown.end.set()
        with pytest.raises(RunStopping):
            await task
    assert bitly.requests == []


# --- budget, slots and pace -----------------------------------------------------------------------------------------


async def test_each_attempt_is_counted_before_it_is_sent(bitly: Bitly) -> None:
    bitly.answers(UNAVAILABLE, THROTTLED_30, TimeoutError(), UNAUTHORIZED, OK)
    async with rigged(read=Tokens("old", "new")) as rig:
        counted: list[int] = []
        bitly.seen = lambda: counted.append(rig.spent)
        first = await rig.client.fetch("bit.ly/x")
        assert await rig.client.retry("bit.ly/x", first) == (ROW, 3)
    assert counted == [1, 2, 3, 4, 5]


async def test_an_attempt_that_must_wait_is_neither_counted_nor_sent_until_then(bitly: Bitly) -> None:
    bitly.answers(OK)
    async with rigged(refusals=[RetryAfter(7.0, "minute"), RetryAfter(3.0, "hour")]) as rig:
        assert await rig.client.fetch("bit.ly/x") == ROW
        assert rig.shutdown.taken == [7.0, 3.0]
        assert rig.spent == rig.client.sender.counters.total == len(bitly.requests) == 1


async def test_nobody_holds_a_slot_while_waiting(bitly: Bitly) -> None:
    bitly.answers(OK, OK)
    async with rigged(refusals=[RetryAfter(30.0, "minute")], connections=1, held=True) as rig:
        waiting = asyncio.create_task(rig.client.fetch("bit.ly/waits"))
        await settle()
        assert rig.shutdown.taken == [30.0]
        assert rig.client.sender.waiting == WaitReason("minute", 0, datetime.fromtimestamp(NOON + 30, UTC))
        assert await rig.client.fetch("bit.ly/goes") == ROW
        assert not waiting.done()
        rig.shutdown.end.set()
        assert await waiting == ROW
        assert rig.client.sender.waiting is None
    assert [url.parts[-2] for url, _ in bitly.requests] == ["goes", "waits"]


async def test_nobody_holds_a_slot_between_retries(bitly: Bitly) -> None:
    bitly.answers(OK, OK)
    async with rigged(connections=1, held=True) as rig:
        retried = asyncio.create_task(rig.client.retry("bit.ly/waits", FAILED))
        await settle()
        assert await rig.client.fetch("bit.ly/goes") == ROW
        rig.shutdown.end.set()
        assert await retried == (ROW, 2)


@pytest.mark.parametrize("connections", [1, 5])
async def test_no_more_requests_are_under_way_than_there_are_slots(bitly: Bitly, connections: int) -> None:
    under_way = most = 0

    async def slowly() -> Entry:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        under_way -= 1
        return OK

    bitly.answers(*[slowly] * 40)
    async with rigged(connections=connections) as rig:
        await asyncio.gather(*(rig.client.fetch(f"bit.ly/{n}") for n in range(40)))
    assert most == connections


async def test_a_spent_month_ends_the_run_and_says_until_when(bitly: Bitly) -> None:
    async with rigged(refusals=[MonthExhausted(datetime(2026, 12, 1, tzinfo=UTC))]) as rig:
        with pytest.raises(RunStopping):
            await rig.client.fetch("bit.ly/x")
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.reason is StopReason.MONTH_SPENT
        assert rig.shutdown.stop.until == "2026-12-01T00:00:00Z"
    assert bitly.requests == []


DECEMBER_3 = {"Date": "Thu, 03 Dec 2026 12:00:00 GMT"}
LIMITS: Entry = (200, {}, b'{"platform_limits":[]}')
TEN_DAYS = 10 * 86400.0


@pytest.mark.parametrize("status", [200, 403, 404, 429, 500])
async def test_a_month_that_ended_while_the_machine_was_suspended_is_seen_by_the_servers_date(
    bitly: Bitly, status: int
) -> None:
    """The wall clock is right again; the seconds since boot have missed ten days, and with them the month's end."""
    bitly.answers(OK, OK, (status, DECEMBER_3, b""), OK)
    async with rigged(wanted=RequestedLimits(0, 0, 2)) as rig:
        assert [await rig.client.fetch(f"bit.ly/{n}") for n in "ab"] == [ROW, ROW]
        rig.clock.step(TEN_DAYS)
        assert await rig.client.fetch("bit.ly/c") == ROW
        assert bitly.requests[2][0].path == "/v4/user/platform_limits"
        assert rig.client.sender.counters.helper == 1
        assert rig.spent == 2
        with pytest.raises(RunStopping):
            await rig.client.fetch("bit.ly/d")
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.until == "2027-01-01T00:00:00Z"
    assert len(bitly.requests) == 4


async def test_calls_at_the_same_time_ask_for_the_date_once(bitly: Bitly) -> None:
    asked = asyncio.Event()

    async def slowly() -> Entry:
        await asked.wait()
        return 200, DECEMBER_3, b"{}"

    bitly.answers(OK, OK, slowly, OK, OK, OK)
    async with rigged(wanted=RequestedLimits(0, 0, 4), held=True) as rig:
        assert [await rig.client.fetch(f"bit.ly/{n}") for n in "ab"] == [ROW, ROW]
        rig.budget.month.spend(["2026-11"], 2)
        rig.clock.step(TEN_DAYS)
        calls = [asyncio.create_task(rig.client.fetch(f"bit.ly/{n}")) for n in "cde"]
        await asyncio.sleep(0.05)
        assert len(bitly.requests) == 3
        asked.set()
        rig.shutdown.end.set()
        assert await asyncio.gather(*calls) == [ROW] * 3
    assert len(bitly.requests) == 6


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Date": "Mon, 23 Nov 2026 12:00:00 GMT"}, b"{}"),
        LIMITS,
        (200, {"Date": "soon"}, b""),
        aiohttp.ClientError(),
    ],
    ids=["the same month", "no date", "nonsense", "no answer"],
)
async def test_a_month_that_the_server_does_not_call_over_stays_spent(bitly: Bitly, answer: Entry | Exception) -> None:
    """One request is all that a wall clock that is set wrong costs, however often the run is repeated."""
    bitly.answers(OK, OK, answer)
    async with rigged(wanted=RequestedLimits(0, 0, 2)) as rig:
        assert [await rig.client.fetch(f"bit.ly/{n}") for n in "ab"] == [ROW, ROW]
        rig.clock.step(TEN_DAYS)
        for _ in range(3):
            with pytest.raises(RunStopping):
                await rig.client.fetch("bit.ly/c")
            assert rig.shutdown.stop is not None
            assert rig.shutdown.stop.reason is StopReason.MONTH_SPENT
    assert len(bitly.requests) == 3


async def test_a_helper_requests_date_sets_the_calendar_right_before_the_first_call(bitly: Bitly) -> None:
    bitly.answers((200, DECEMBER_3, LIMITS[2]))
    async with rigged() as rig:
        rig.clock.step(TEN_DAYS)
        assert await rig.client.sender.look_up("/user/platform_limits", rig.budget) is not None
        assert rig.budget.at(0.0) == datetime(2026, 12, 3, 12, tzinfo=UTC)


async def test_nothing_is_sent_once_the_run_ends(bitly: Bitly) -> None:
    async with rigged() as rig:
        rig.shutdown.request(Stop(StopReason.SIGNAL, "SIGTERM"))
        with pytest.raises(RunStopping):
            await rig.client.fetch("bit.ly/x")
        assert rig.spent == 0
    assert bitly.requests == []


async def test_the_pace_holds_attempts_back_below_the_minutes_limit(bitly: Bitly) -> None:
    bitly.answers(OK, OK)
    async with rigged(wanted=RequestedLimits(2, 0, 0)) as rig:
        assert await rig.client.fetch("bit.ly/a") == ROW
        second = asyncio.create_task(rig.client.fetch("bit.ly/b"))
        await asyncio.sleep(0.01)
        assert len(bitly.requests) == 1
        assert rig.spent == 1
        rig.shutdown.request(Stop(StopReason.SIGNAL, "SIGTERM"))
        with pytest.raises(RunStopping):
            await second


async def test_a_list_that_fits_into_the_room_left_is_not_paced(bitly: Bitly) -> None:
    bitly.answers(*[OK] * 30)
    async with rigged(wanted=RequestedLimits(30, 0, 0)) as rig:
        rig.client.pace_by(Unpaced())
        async with asyncio.timeout(2):
            for n in range(30):
                assert await rig.client.fetch(f"bit.ly/{n}") == ROW
        assert rig.shutdown.taken == []


async def test_a_busy_budget_is_waited_for_and_a_broken_one_ends_the_run(bitly: Bitly) -> None:
    bitly.answers(OK)
    async with rigged() as rig:
        with closing(sqlite3.connect(rig.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            call = asyncio.create_task(rig.client.fetch("bit.ly/a"))
            while not rig.shutdown.taken:
                await asyncio.sleep(0)
            other.execute("COMMIT")
            assert await call == ROW
            assert set(rig.shutdown.taken) == {0.5}
        rig.database.close()
        with pytest.raises(RunStopping):
            await rig.client.fetch("bit.ly/b")
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.reason is StopReason.OUTPUT
        assert len(bitly.requests) == 1


async def test_an_answer_is_kept_though_the_budget_cannot_record_what_it_teaches(bitly: Bitly) -> None:
    async with rigged() as rig:

        async def break_budget() -> Entry:
            rig.database.close()
            return 200, {"Date": "Tue, 01 Dec 2026 00:00:30 GMT"}, ROW_BODY

        bitly.answers(break_budget)
        assert await rig.client.fetch("bit.ly/a") == ROW


# --- throttling and outages -------------------------------------------------------------------------------------------


async def test_a_throttled_answer_is_waited_out_and_never_the_calls_verdict(bitly: Bitly) -> None:
    bitly.answers(THROTTLED_30, THROTTLED, OK)
    async with rigged() as rig:
        assert await rig.client.fetch("bit.ly/x") == ROW
        assert rig.shutdown.taken[0] == 30.0
        assert sum(rig.shutdown.taken) >= 60.0  # the second wait is to the minute's edge at least
        counters = rig.client.sender.counters
        assert (counters.total, counters.retried, counters.throttled) == (3, 0, 2)


async def test_two_hours_of_nothing_but_throttled_answers_end_the_run(bitly: Bitly) -> None:
    """It may be the month, which Bitly is free to call what it likes."""
    async with rigged() as rig:
        bitly.answers(*[THROTTLED] * 20)
        with pytest.raises(RunStopping):
            await rig.client.fetch("bit.ly/x")
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.reason is StopReason.THROTTLED
        assert 7200 <= rig.clock.seconds - 1000 <= 7200 + 60
        assert rig.client.sender.counters.throttled == len(bitly.requests) < 20


@pytest.mark.parametrize("other", [OK, UNAVAILABLE, NOT_FOUND])
async def test_any_other_answer_begins_the_two_hours_anew(bitly: Bitly, other: Entry) -> None:
    async with rigged() as rig:
        rig.client.pace_by(Unpaced())  # the pace has the loop's time, not the rig's
        for _ in range(3):
            bitly.answers((429, {"Retry-After": "3000"}, b""), other)
            await rig.client.fetch("bit.ly/x")
        assert rig.clock.seconds - 1000 >= 3 * 3000 > 7200
        assert rig.shutdown.stop is None


async def test_what_a_throttled_answer_taught_is_kept_for_the_next_attempts(bitly: Bitly) -> None:
    """One attempt had passed in this minute: no more than one passes in any, at first."""
    bitly.answers(OK, THROTTLED_30, THROTTLED_30, OK, OK)
    async with rigged() as rig:
        rig.client.pace_by(Unpaced())  # the pace has the loop's time, not the rig's
        assert await rig.client.fetch("bit.ly/a") == ROW
        before = rig.clock.seconds
        assert await rig.client.fetch("bit.ly/b") == ROW
        assert asked(bitly) == "abbab"  # a known-good link goes ahead, and reopens
        assert rig.clock.seconds - before >= 30.0 + 30.0 + 60.0


async def test_one_throttled_answer_holds_everyone_back(bitly: Bitly) -> None:
    bitly.answers(THROTTLED_30, *[OK] * 5)
    async with rigged(held=True) as rig:
        rig.client.pace_by(Unpaced())  # the pace has the loop's time, not the rig's
        first = asyncio.create_task(rig.client.fetch("bit.ly/0"))
        await settle()
        others = [asyncio.create_task(rig.client.fetch(f"bit.ly/{n}")) for n in range(1, 5)]
        await settle()
        assert len(bitly.requests) == 1
        assert rig.shutdown.taken == [30.0] * 5
        assert rig.client.sender.waiting == WaitReason("throttled", 0, datetime.fromtimestamp(NOON + 30, UTC))
        assert rig.spent == 1
        rig.shutdown.end.set()
        assert await asyncio.gather(first, *others) == [ROW] * 5


async def test_a_late_good_answer_does_not_reopen_what_a_throttled_one_closed(bitly: Bitly) -> None:
    """Five connections are under way when the limit is reached: the four that were in time say nothing new."""
    may_answer = asyncio.Event()

    async def late() -> Entry:
        await may_answer.wait()
        return OK

    bitly.answers(late, THROTTLED_30, OK, OK)
    async with rigged(held=True) as rig:
        rig.client.pace_by(Unpaced())  # the pace has the loop's time, not the rig's
        slow = asyncio.create_task(rig.client.fetch("bit.ly/slow"))
        await settle()
        rig.clock.seconds += 1.0
        bitly.seen = lambda: setattr(rig.clock, "seconds", rig.clock.seconds + 0.1)  # an answer takes its time
        throttled = asyncio.create_task(rig.client.fetch("bit.ly/throttled"))
        await settle()
        may_answer.set()
        assert await slow == ROW
        third = asyncio.create_task(rig.client.fetch("bit.ly/third"))
        await settle()
        assert len(bitly.requests) == 2
        rig.shutdown.end.set()
        assert [await throttled, await third] == [ROW, ROW]


async def test_a_probe_that_waited_for_the_budgets_file_opens_what_was_closed_meanwhile(
    bitly: Bitly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is throttled while this one waits for the file, and Bitly's hint is over when it has got it."""
    bitly.answers(OK)
    async with rigged() as rig:
        take = rig.budget.try_acquire

        def late() -> RetryAfter | MonthExhausted | None:
            monkeypatch.setattr(rig.budget, "try_acquire", take)
            rig.clock.seconds += 0.1
            rig.budget.throttled(0.1, sent_at=rig.clock.seconds)
            rig.clock.seconds += 0.3
            return take()

        monkeypatch.setattr(rig.budget, "try_acquire", late)
        assert await rig.client.fetch("bit.ly/probe") == ROW
        assert not rig.budget.paused


def throttling_one(bitly: Bitly, name: str) -> Callable[[], Awaitable[Entry]]:
    """A Bitly that throttles one link, and answers all others."""

    async def answer() -> Entry:
        return THROTTLED_30 if bitly.requests[-1][0].parts[-2] == name else OK

    return answer


OWN_THROTTLING = Transient(429, "RATE_LIMIT_EXCEEDED", 30.0)


async def test_a_link_that_is_throttled_again_while_others_pass_is_charged_and_lowers_no_limit(bitly: Bitly) -> None:
    bitly.answers(*[throttling_one(bitly, "t")] * 100)
    async with rigged(attempts=3) as rig:
        rig.client.pace_by(Unpaced())  # the pace has the loop's time, not the rig's
        for name in "abcdefghij":
            assert await rig.client.fetch(f"bit.ly/{name}") == ROW
        before = rig.budget.limits

        async def go_on() -> None:
            for n in range(30):
                assert await rig.client.fetch(f"bit.ly/o{n}") == ROW

        others = asyncio.create_task(go_on())
        first = await rig.client.fetch("bit.ly/t")
        assert first == OWN_THROTTLING
        assert rig.budget.limits == before
        place = rig.client.place_of(first)
        assert await rig.client.conclude("bit.ly/t", first, place) == (OWN_THROTTLING, 3)
        await others
        assert asked(bitly).count("t") == 1 + 3  # the first throttled answer costs no attempt
        assert rig.budget.limits == before
        assert rig.client.sender.counters.throttled == 4
        assert rig.client.sender.counters.total == rig.spent == len(bitly.requests)


async def test_a_last_link_that_is_throttled_twice_lets_a_known_good_link_go_first(bitly: Bitly) -> None:
    bitly.answers(*[throttling_one(bitly, "t")] * 100)
    async with rigged(attempts=2) as rig:
        rig.client.pace_by(Unpaced())
        assert await rig.client.fetch("bit.ly/w") == ROW
        before = rig.budget.limits
        first = await rig.client.fetch("bit.ly/t")
        assert first == OWN_THROTTLING
        assert asked(bitly) == "wttwt"
        place = rig.client.place_of(first)
        assert await rig.client.conclude("bit.ly/t", first, place) == (OWN_THROTTLING, 2)
        assert rig.budget.limits == before


async def test_where_all_are_throttled_together_each_waits_and_none_is_charged(bitly: Bitly) -> None:
    bitly.answers(*[OK] * 3, *[THROTTLED_30] * 5, *[OK] * 5)
    async with rigged() as rig:
        rig.client.pace_by(Unpaced())
        for name in "abc":
            await rig.client.fetch(f"bit.ly/{name}")
        before = rig.budget.limits
        async with asyncio.timeout(5):
            found = await asyncio.gather(*(rig.client.fetch(f"bit.ly/{n}") for n in range(5)))
        assert found == [ROW] * 5
        assert rig.budget.limits != before  # that was a limit


OUTAGE_RULES = BreakerRules(streak=2, jitter=0.0)


async def begin_outage(rig: Rig, bitly: Bitly) -> Verdict:
    """Let two calls fail, which is an outage here; only they are left."""
    bitly.answers(UNAVAILABLE, UNAVAILABLE)
    found = [await rig.client.fetch(f"bit.ly/{n}") for n in range(2)]
    assert found == [FAILED, FAILED]
    assert rig.breaker.is_open
    return found[0]


async def test_in_an_outage_attempts_are_charged_to_no_call(bitly: Bitly) -> None:
    async with rigged(attempts=2, rules=OUTAGE_RULES) as rig:
        first = await begin_outage(rig, bitly)
        bitly.answers(*[UNAVAILABLE] * 6, OK)
        assert await rig.client.retry("bit.ly/0", first) == (ROW, 1)
        assert not rig.breaker.is_open
        assert rig.spent == len(bitly.requests) == 9


async def test_an_outage_that_does_not_end_ends_the_run(bitly: Bitly) -> None:
    async with rigged(attempts=2, rules=OUTAGE_RULES) as rig:
        first = await begin_outage(rig, bitly)
        bitly.answers(*[UNAVAILABLE] * 60)
        with pytest.raises(RunStopping):
            await rig.client.retry("bit.ly/0", first)
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.reason is StopReason.OUTAGE
        assert 900 <= rig.clock.seconds - 1000 < 1000


# --- whose fault is it? ---------------------------------------------------------------------------------------------


def asked(bitly: Bitly) -> str:
    """The back-halves that were asked for, in their order, each one letter."""
    return "".join(url.parts[-2] for url, _ in bitly.requests)


async def test_before_a_call_is_written_off_a_link_that_answered_says_whether_the_server_is_there(
    bitly: Bitly,
) -> None:
    bitly.answers(OK, *[UNAVAILABLE] * 3, OK)
    async with rigged(attempts=3) as rig:
        assert await rig.client.fetch("bit.ly/w") == ROW
        first = await rig.client.fetch("bit.ly/x")
        assert await rig.client.retry("bit.ly/x", first) == (FAILED, 3)
        assert asked(bitly) == "wxxxw"
        assert not rig.breaker.is_open
        assert rig.spent == rig.client.sender.counters.total == 5


async def test_a_call_whose_witness_fails_too_is_asked_again_when_the_server_is_back(bitly: Bitly) -> None:
    bitly.answers(OK, *[UNAVAILABLE] * 3, UNAVAILABLE, TimeoutError(), OK, OK)
    async with rigged(attempts=3) as rig:
        assert await rig.client.fetch("bit.ly/w") == ROW
        first = await rig.client.fetch("bit.ly/x")
        assert await rig.client.retry("bit.ly/x", first) == (ROW, 3)
        assert asked(bitly) == "wxxxwwwx"
        assert sum(rig.shutdown.taken) >= 5 + 10  # between the probes


async def test_a_call_that_failed_while_others_were_answered_needs_no_witness(bitly: Bitly) -> None:
    bitly.answers(OK, *[UNAVAILABLE] * 3, OK)
    async with rigged(attempts=3, held=True) as rig:
        assert await rig.client.fetch("bit.ly/w") == ROW
        first = await rig.client.fetch("bit.ly/x")
        repeated = asyncio.create_task(rig.client.retry("bit.ly/x", first))
        await settle()
        rig.clock.seconds += 1.0
        bitly.seen = partial(others_are_answered, rig)
        rig.shutdown.end.set()
        assert await repeated == (FAILED, 3)
        assert asked(bitly) == "wxxx"


async def test_without_a_witness_a_call_that_failed_so_often_has_failed(bitly: Bitly) -> None:
    """Somebody was answered, though not with a row."""
    bitly.answers(NOT_FOUND, *[UNAVAILABLE] * 3)
    async with rigged(attempts=3) as rig:
        await rig.client.fetch("bit.ly/n")
        first = await rig.client.fetch("bit.ly/x")
        assert await rig.client.retry("bit.ly/x", first) == (FAILED, 3)


async def test_where_nobody_was_ever_answered_it_is_the_server_that_is_out(bitly: Bitly) -> None:
    bitly.answers(*[UNAVAILABLE] * 6, OK)
    async with rigged(attempts=3) as rig:
        first = await rig.client.fetch("bit.ly/x")
        assert await rig.client.retry("bit.ly/x", first) == (ROW, 3)
        assert asked(bitly) == "x" * 7


async def test_where_nobody_is_ever_answered_the_outage_ends_the_run(bitly: Bitly) -> None:
    bitly.answers(*[UNAVAILABLE] * 100)
    async with rigged(attempts=3) as rig:
        first = await rig.client.fetch("bit.ly/x")
        with pytest.raises(RunStopping):
            await rig.client.retry("bit.ly/x", first)
        assert rig.shutdown.stop is not None
        assert rig.shutdown.stop.reason is StopReason.OUTAGE
        assert len(bitly.requests) < 30


async def test_a_witness_that_has_come_to_fail_by_itself_is_replaced(bitly: Bitly) -> None:
    bitly.answers(OK, OK, *[UNAVAILABLE] * 3, UNAVAILABLE, OK, UNAVAILABLE)
    async with rigged(attempts=3) as rig:
        for link in ("bit.ly/w", "bit.ly/v"):
            await rig.client.fetch(link)
        first = await rig.client.fetch("bit.ly/x")
        assert await rig.client.retry("bit.ly/x", first) == (FAILED, 3)
        assert asked(bitly) == "wvxxxwvx"


async def test_where_few_are_answered_it_takes_two_witnesses_to_write_a_call_off(bitly: Bitly) -> None:
    bitly.answers(OK, *[UNAVAILABLE] * 7, OK, OK)
    async with rigged(attempts=3) as rig:
        await rig.client.fetch("bit.ly/w")
        for name in "abcde":
            await rig.client.fetch(f"bit.ly/{name}")
        assert await rig.client.retry("bit.ly/x", FAILED) == (FAILED, 3)
        assert asked(bitly) == "wabcdexxww"


# --- helper routes and clocks ---------------------------------------------------------------------------------------


async def test_each_request_is_recorded_before_it_is_sent(bitly: Bitly) -> None:
    bitly.answers(OK, (200, {}, b"{}"), THROTTLED, OK, OK)
    seen: list[tuple[AttemptCounts, int]] = []
    async with rigged(record=lambda counters: seen.append((replace(counters), len(bitly.requests)))) as rig:
        assert await rig.client.fetch("bit.ly/x") == ROW
        assert await rig.client.sender.look_up("/groups", rig.budget) is not None
        assert await rig.client.fetch("bit.ly/y") == ROW
        assert seen == [
            (AttemptCounts(1), 0),
            (AttemptCounts(1, helper=1), 1),
            (AttemptCounts(2, helper=1), 2),
            (AttemptCounts(3, throttled=1, helper=1), 3),  # the early probe, of a known-good link
            (AttemptCounts(4, retried=1, throttled=1, helper=1), 4),
        ]


async def test_a_request_that_cannot_be_recorded_is_not_sent_and_ends_the_run(bitly: Bitly) -> None:
    def fail(_: AttemptCounts) -> None:
        raise OutputError("the disk is full")

    async with rigged(record=fail) as rig:
        for work in (rig.client.fetch("bit.ly/x"), rig.client.sender.look_up("/groups", rig.budget)):
            with pytest.raises(RunStopping):
                await work
        assert rig.shutdown.stop == Stop(StopReason.OUTPUT, "the disk is full")
        assert bitly.requests == []


async def test_a_helper_route_is_asked_once_in_a_slot_and_counted_by_itself(bitly: Bitly) -> None:
    bitly.answers((404, {}, b"none"), TimeoutError())
    async with rigged() as rig:
        found = await rig.client.sender.look_up("/user/platform_limits?path=%2Fbitlinks", rig.budget)
        assert found is not None
        assert (found.status, found.body) == (404, b"none")
        [(url, request)] = bitly.requests
        assert (url.path, dict(url.query)) == ("/v4/user/platform_limits", {"path": "/bitlinks"})
        assert request["headers"]["Authorization"] == "Bearer t0"
        assert await rig.client.sender.look_up("/groups", rig.budget) is None
        assert (rig.client.sender.counters.helper, rig.client.sender.counters.total, rig.spent) == (2, 0, 2)


async def test_after_a_rotation_helper_routes_are_counted_for_the_token_in_use(bitly: Bitly) -> None:
    bitly.answers(UNAUTHORIZED, OK, (200, {}, b"{}"), (200, {}, b"{}"))
    tokens = Tokens("t0", "t1")
    async with rigged(read=tokens) as rig:
        helpers = MachineBudget(rig.database, ACCOUNT, "helpers", FREE)
        assert await rig.client.fetch("bit.ly/x") == ROW
        for _ in range(2):
            await rig.client.sender.look_up("/groups", helpers)
        assert helpers.account == rig.budget.account == ACCOUNT._replace(token=fingerprint("t1"))
        assert [window.used for window in helpers.windows()] == [2, 2, 4]


async def test_a_helper_route_is_not_asked_when_the_budget_has_no_room_now(bitly: Bitly) -> None:
    async with rigged(refusals=[RetryAfter(3.0, "hour")]) as rig:
        assert await rig.client.sender.look_up("/groups", rig.budget) == (NOT_ASKED, {}, b"")
        assert (bitly.requests, rig.shutdown.taken) == ([], [])


async def test_the_budgets_calendar_follows_the_dates_of_good_answers(bitly: Bitly) -> None:
    date = {"Date": "Tue, 01 Dec 2026 00:00:30 GMT"}
    bitly.answers((404, date, NOT_FOUND[2]), (200, {"Date": "nonsense"}, ROW_BODY), (200, date, ROW_BODY))
    async with rigged() as rig:
        for _ in range(2):
            await rig.client.fetch("bit.ly/x")
        assert rig.budget.at(0.0) == datetime.fromtimestamp(NOON, UTC)
        rig.clock.seconds += 100.0
        await rig.client.fetch("bit.ly/x")
        assert rig.budget.at(0.0) == datetime.fromtimestamp(NOON + 100, UTC)  # no clock of ours knows of December
        bitly.answers((200, date, ROW_BODY))
        rig.clock.step(8 * 86400.0 - 12 * 3600.0)
        rig.clock.seconds += 100.0
        await rig.client.fetch("bit.ly/x")
        assert rig.budget.at(0.0) == datetime(2026, 12, 1, 0, 0, 30, tzinfo=UTC)
        assert rig.spent == 1  # in December, when it was sent
