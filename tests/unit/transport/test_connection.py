"""Connections over real sockets: what was sent and what it cost, which address answers, and what an answer is worth."""

import asyncio
import contextlib
import gzip
import socket
import sqlite3
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from harvester.bearer import Token
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer, Refused, TokenRefused, Transient, Unreadable, Verdict
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, Counted, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.client.attempt import ClientContext, NotSent
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.client.client import Client, ClientSettings, opened
from harvester.clock import Clock
from harvester.errors import RunStopping, UsageError
from harvester.shutdown import ShutdownSignal
from harvester.transport import connection, deadline, http
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.http import post_form
from tests.conftest import quick_folder
from tests.support.proxies import proxying
from tests.support.servers import in_thread
from tests.unit.transport.conftest import HOST, TRANSPORTS

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
FREE = RequestedLimits(0, 10**6, 10**6)
ROW_BODY = b'{"metrics":[]}'
ROW = Answer([], 0, None, None)


# --- servers and clients ----------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """A server on loopback in a thread. requests: the heads that came. connections: how many were accepted."""

    serve: Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    address: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}/v4"

    async def request(self, reader: asyncio.StreamReader) -> str:
        """Read a request, and return the name of its link."""
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        return self.requests[-1].split(b"/referrers")[0].rpartition(b"/")[2].decode()


@asynccontextmanager
async def _listening(peer: Peer) -> AsyncIterator[Peer]:
    tasks: set[asyncio.Task[None]] = set()

    async def live(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer.serve(peer, reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.connections += 1
        tasks.add(asyncio.ensure_future(live(reader, writer)))

    async with await asyncio.start_server(accept, peer.address, peer.port, ssl=peer.tls) as server:
        peer.port = server.sockets[0].getsockname()[1]
        try:
            yield peer
        finally:
            server.close()
            await asyncio.sleep(0.01)  # what was accepted a moment ago arrives in the loop's next iterations
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def listening(serve: Any, **more: Any) -> Iterator[Peer]:
    with in_thread(_listening(Peer(serve, **more))) as peer:
        yield peer


def answer(body: bytes = ROW_BODY, *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def named(name: str) -> bytes:
    """The answer that belongs to a link: its metrics have its name."""
    return answer(b'{"metrics":[{"value":"%s","clicks":1}]}' % name.encode())


def value_of(verdict: Verdict) -> str:
    assert isinstance(verdict, Answer), verdict
    return str(verdict.metrics[0]["value"])


@contextmanager
def saying(*answers: bytes) -> Iterator[Peer]:
    """A server that gives each connection's requests these answers, the last for ever, and keeps connections open."""

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = list(answers)
        while True:
            await peer.request(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    with listening(serve) as peer:
        yield peer


@dataclass
class Rig:
    """A client with a budget in the machine's time."""

    client: Client
    budget: MachineBudget
    helpers: MachineBudget
    shutdown: ShutdownSignal

    @property
    def used(self) -> list[int]:
        """Attempts in the minute, the hour and the month."""
        return [window.used for window in self.budget.windows()]


@asynccontextmanager
async def reaching(base_url: str, *, connections: int = 1, timeout_seconds: float = 10.0) -> AsyncIterator[Rig]:
    clock, settings = Clock(), ClientSettings(base_url, connections, 5, timeout_seconds, 0.01)
    with quick_folder() as folder, closing(BudgetDatabase(str(folder / "budget.sqlite"), clock)) as book:
        slots = ConnectionSlots(str(folder / "connections"), connections)
        await slots.join()
        account = Account("api", "t0", "me")
        budget, helpers = (MachineBudget(book, account, endpoint, FREE) for endpoint in ("clicks", "helpers"))
        breaker, shutdown = CircuitBreaker(BreakerRules(), clock.boot_seconds), ShutdownSignal()
        context = ClientContext(Token(lambda: "t0"), budget, breaker, shutdown, clock.boot_seconds)
        async with opened(slots, settings, QUERY, context) as client:
            yield Rig(client, budget, helpers, shutdown)
        slots.leave()


_SLOW = {
    "test_an_answer_that_came_while_the_process_stood_still_is_read",
    "test_an_answer_that_does_not_come_is_late_though_the_process_stood_still",
    "test_an_attempt_whose_count_cannot_be_moved_is_not_sent_and_stays_counted",
    "test_an_attempt_whose_move_took_its_time_is_moved_again",
    "test_attempts_on_slow_connections_count_once_and_from_when_they_go",
}
"""Tests of the connector and the deadline, which both transports share; they take too long to be run twice."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with both transports."""
    transports = TRANSPORTS[:1] if metafunc.definition.originalname in _SLOW else TRANSPORTS
    metafunc.parametrize("transport", transports, indirect=True)


@contextmanager
def dead_address(address: str, port: int) -> Iterator[None]:
    """Let connections to an address hang: its queue of connections is full, and the kernel drops what comes."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((address, port))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the system's resolver know HOST by these addresses, in this order."""

    def getaddrinfo(host: str, port: int, *more: Any, **flags: Any) -> list[Any]:
        if host != HOST:
            return system(host, port, *more, **flags)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (each, port)) for each in addresses]

    system = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def unused_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        return int(found.getsockname()[1])


# --- what was never sent ----------------------------------------------------------------------------------------------


async def check_nothing_was_spent(rig: Rig) -> None:
    found = await rig.client.fetch("bit.ly/x")
    assert isinstance(found, NotSent)
    assert found.status is None
    assert await rig.client.sender.look_up("/groups", rig.helpers) is None
    assert rig.used == [window.used for window in rig.helpers.windows()] == [0, 0, 0]
    assert (rig.client.sender.counters.total, rig.client.sender.counters.helper) == (0, 0)
    assert rig.client.sender.not_sent == 2


async def test_a_refused_connection_costs_nothing() -> None:
    async with reaching(f"http://127.0.0.1:{unused_port()}/v4") as rig:
        await check_nothing_was_spent(rig)


async def test_a_name_that_does_not_resolve_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    async with reaching(f"https://{HOST}/v4") as rig:
        await check_nothing_was_spent(rig)


async def test_a_connection_that_is_not_made_in_time_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.3)
    port = unused_port()
    with dead_address("127.0.0.1", port):
        async with reaching(f"http://127.0.0.1:{port}/v4") as rig:
            await check_nothing_was_spent(rig)


@pytest.mark.parametrize("farewell", [b"", bytes((21, 3, 3, 0, 2, 2, 80))], ids=["closed", "an alert"])
async def test_a_handshake_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch, farewell: bytes) -> None:
    async def serve(_: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(farewell)

    resolve_to(monkeypatch, "127.0.0.1")
    with listening(serve) as peer:
        async with reaching(f"https://{HOST}:{peer.port}/v4") as rig:
            await check_nothing_was_spent(rig)


async def test_a_certificate_that_is_refused_costs_nothing_and_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext
) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context())
    with listening(None, tls=certified) as peer:
        async with reaching(f"https://{HOST}:{peer.port}/v4") as rig:
            with pytest.raises(RunStopping):
                await rig.client.fetch("bit.ly/x")
            assert rig.used == [0, 0, 0]
            assert rig.client.sender.counters.total == 0


@pytest.mark.parametrize("refusal", ["503 Not now", "502 Bad Gateway"])
async def test_a_proxy_that_makes_no_tunnel_costs_nothing(monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    with proxying(1, refusal=refusal) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with reaching(f"https://{HOST}/v4") as rig:
            await check_nothing_was_spent(rig)


async def test_a_proxy_that_cannot_be_reached_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port()}")
    async with reaching(f"https://{HOST}/v4") as rig:
        await check_nothing_was_spent(rig)


async def test_a_tunnel_that_breaks_in_the_handshake_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxying(1, alerts=10) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with reaching(f"https://{HOST}/v4") as rig:
            await check_nothing_was_spent(rig)


async def test_a_call_that_is_cancelled_before_its_connection_is_made_costs_nothing() -> None:
    port = unused_port()
    with dead_address("127.0.0.1", port):
        async with reaching(f"http://127.0.0.1:{port}/v4") as rig:
            call = asyncio.create_task(rig.client.fetch("bit.ly/x"))
            await asyncio.sleep(0.1)
            assert rig.used == [1, 1, 1]  # a kill here leaves too much counted
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert rig.used == [0, 0, 0]


async def reset(_: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang_up(peer: Peer, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await peer.request(reader)


async def tear(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.request(reader)
    writer.write(answer()[:-3])


@pytest.mark.parametrize("serve", [reset, hang_up, tear])
async def test_what_was_sent_stays_counted_whatever_becomes_of_it(serve: Any) -> None:
    with listening(serve) as peer:
        async with reaching(peer.url) as rig:
            found = await rig.client.fetch("bit.ly/x")
            assert isinstance(found, Transient)
            assert not isinstance(found, NotSent)
            assert rig.used == [1, 1, 1]
            assert (rig.client.sender.counters.total, rig.client.sender.not_sent) == (1, 0)


async def test_retries_that_never_left_are_no_repeated_attempts() -> None:
    async with reaching(f"http://127.0.0.1:{unused_port()}/v4") as rig:
        first = await rig.client.fetch("bit.ly/x")
        again = asyncio.create_task(rig.client.retry("bit.ly/x", first))
        await asyncio.sleep(0.3)
        again.cancel()
        await asyncio.wait({again})
        assert (rig.client.sender.counters.total, rig.client.sender.counters.retried) == (0, 0)
        assert rig.client.sender.not_sent > 1
        assert rig.used == [0, 0, 0]


# --- a slow way -------------------------------------------------------------------------------------------------------


@contextmanager
def relaying(port: int, seconds: float) -> Iterator[Peer]:
    """Lead to a port of this machine, each way taking some seconds."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(seconds)
                writer.write(data)
        finally:
            writer.close()

    async def serve(_: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    with listening(serve) as peer:
        yield peer


async def test_attempts_on_slow_connections_count_once_and_from_when_they_go(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext
) -> None:
    """100 ms one way, and a server that closes after each answer: 15 calls are 15 attempts in every window."""

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(answer(ROW_BODY, "Connection: close"))

    resolve_to(monkeypatch, "127.0.0.1")
    with listening(serve, tls=certified) as peer, relaying(peer.port, 0.1) as far:
        async with reaching(f"https://{HOST}:{far.port}/v4", connections=5) as rig:
            found = await asyncio.gather(*(rig.client.fetch(f"bit.ly/{n}") for n in range(15)))
            assert found == [ROW] * 15
            assert rig.used == [15, 15, 15]
            assert rig.client.sender.counters.total == len(peer.requests) == 15


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, name: str, *seconds: float) -> Iterator[list[float]]:
    """Let a method of the budget return late, as on a slow disk: so much each time. Yields when it returned."""
    method, waits, returned = getattr(MachineBudget, name), iter(seconds), list[float]()

    def slowly(*arguments: Any) -> Any:
        result = method(*arguments)
        time.sleep(next(waits, 0.0))
        returned.append(Clock().boot_seconds())
        return result

    with monkeypatch.context() as patch:
        patch.setattr(MachineBudget, name, slowly)
        yield returned


def last_count(rig: Rig) -> float:
    """As of when the last attempt counts."""
    return max(float(at) for (at,) in rig.budget._database.execute("SELECT at FROM attempts"))


@pytest.mark.parametrize("kept", [False, True])
async def test_an_attempt_whose_count_took_its_time_counts_from_when_it_goes(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The disk was slow, or the process was stopped."""
    with saying(answer(), answer()) as peer:
        async with reaching(peer.url) as rig:
            if kept:
                assert await rig.client.fetch("bit.ly/x") == ROW
            with held_up(monkeypatch, "try_acquire", 0.4) as counted:
                assert await rig.client.fetch("bit.ly/x") == ROW
            assert last_count(rig) >= counted[0]
            assert rig.used == [1 + kept] * 3


async def test_an_attempt_whose_connection_took_its_time_counts_from_when_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The windows are the server's: what leaves late arrives late."""
    late: list[Counted] = []

    def sent_late(budget: MachineBudget, attempt: Counted) -> Counted:
        late.append(attempt)
        return attempt._replace(at=attempt.at + 10.0)

    monkeypatch.setattr(MachineBudget, "sent_late", sent_late)
    with saying(answer(ROW_BODY, "Connection: close")) as peer:
        async with reaching(peer.url) as rig:
            assert await rig.client.fetch("bit.ly/x") == ROW
            assert late == []
            monkeypatch.setattr("harvester.client.counting._RECOUNT_AFTER_SECONDS", -1.0)
            assert await rig.client.fetch("bit.ly/x") == ROW
    assert len(late) == 1


async def test_an_attempt_whose_move_took_its_time_is_moved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with saying(answer()) as peer:
        async with reaching(peer.url) as rig:
            with held_up(monkeypatch, "try_acquire", 0.4), held_up(monkeypatch, "sent_late", 0.4) as moved:
                assert await rig.client.fetch("bit.ly/x") == ROW
            assert len(moved) == 2
            assert last_count(rig) >= moved[0]
            assert rig.used == [1, 1, 1]


@pytest.mark.parametrize(
    "answers", [lambda *_: None, lambda _, attempt: attempt], ids=["others have its place", "late again and again"]
)
async def test_an_attempt_that_has_left_its_window_before_it_could_go_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, answers: Callable[..., Counted | None]
) -> None:
    monkeypatch.setattr(MachineBudget, "sent_late", answers)
    with saying(answer()) as peer:
        async with reaching(peer.url) as rig:
            with held_up(monkeypatch, "try_acquire", 0.4):
                assert isinstance(await rig.client.fetch("bit.ly/x"), NotSent)
            assert rig.used == [0, 0, 0]
        assert peer.requests == []


async def test_an_attempt_whose_count_cannot_be_moved_is_not_sent_and_stays_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another process was stopped while it held the file."""
    with saying(answer()) as peer:
        async with reaching(peer.url) as rig, contextlib.AsyncExitStack() as stack:
            path, acquire = rig.budget._database.path, MachineBudget.try_acquire

            def try_acquire(budget: MachineBudget) -> Any:
                refusal = acquire(budget)
                other = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                other.execute("BEGIN IMMEDIATE")
                time.sleep(0.4)
                return refusal

            monkeypatch.setattr(MachineBudget, "try_acquire", try_acquire)
            assert isinstance(await rig.client.fetch("bit.ly/x"), NotSent)
            await stack.aclose()
            assert rig.used == [1, 1, 1]
        assert peer.requests == []


# --- a name's addresses -----------------------------------------------------------------------------------------------


@contextmanager
def three_addresses(monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None = None) -> Iterator[Peer]:
    """HOST has an address that never answers, one that refuses, and one where Bitly is."""
    monkeypatch.setattr(connection, "_ADDRESS_SECONDS", 0.3)

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(answer(ROW_BODY, "Connection: close"))

    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with listening(serve, tls=tls) as peer, dead_address("127.0.0.2", peer.port):
        yield peer


async def test_a_dead_address_is_passed_over_and_the_one_that_answers_is_remembered(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext
) -> None:
    with three_addresses(monkeypatch, certified) as peer:
        async with reaching(f"https://{HOST}:{peer.port}/v4", connections=2) as rig:
            began = time.monotonic()
            assert await rig.client.fetch("bit.ly/a") == ROW
            assert 0.3 <= time.monotonic() - began < 2.0
            began = time.monotonic()
            both = await asyncio.gather(*(rig.client.fetch(f"bit.ly/{n}") for n in range(2)))
            assert both == [ROW, ROW]
            assert time.monotonic() - began < 0.3
            assert rig.used == [3, 3, 3]


async def test_addresses_that_failed_come_last_so_that_each_has_its_turn_within_a_few_attempts() -> None:
    infos = [(socket.AF_INET, 0, 0, "", (f"192.0.2.{n}", 443)) for n in range(5)]
    peer = connection.Peer()
    assert peer.in_order(infos) == infos
    for info in infos[:3]:
        peer.failed(info)
        await asyncio.sleep(0.001)
    assert peer.in_order(infos) == infos[3:] + infos[:3]
    peer.worked(infos[1])
    assert peer.in_order(infos)[0] == infos[1]
    peer.failed(infos[1])
    assert peer.in_order(infos) == [*infos[3:], infos[0], infos[2], infos[1]]


async def test_the_last_address_may_take_all_the_time_there_is_for_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)

    monkeypatch.setattr(connection, "_ADDRESS_SECONDS", 0.1)
    resolve_to(monkeypatch, "127.0.0.1")
    with listening(serve) as peer:
        async with reaching(f"https://{HOST}:{peer.port}/v4") as rig:
            began = time.monotonic()
            assert isinstance(await rig.client.fetch("bit.ly/a"), NotSent)
            assert time.monotonic() - began >= 0.6


async def test_so_it_is_with_a_proxys_addresses(monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext) -> None:
    monkeypatch.setattr(connection, "_ADDRESS_SECONDS", 0.3)
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with listening(saying_once, tls=certified) as peer, proxying(peer.port) as proxy:
        port = proxy.address.partition(":")[2]
        monkeypatch.setenv("HTTPS_PROXY", f"http://{HOST}:{port}")
        with dead_address("127.0.0.2", int(port)):
            async with reaching(f"https://{HOST}/v4") as rig:
                assert await rig.client.fetch("bit.ly/a") == ROW


async def saying_once(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.request(reader)
    writer.write(answer())


async def test_so_it_is_with_a_login(monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext) -> None:
    with three_addresses(monkeypatch, certified) as peer:
        assert await post_form(f"https://{HOST}:{peer.port}/oauth", {"code": "c"}, 10.0) == (200, ROW_BODY)
    with pytest.raises(UsageError):
        await post_form(f"https://{HOST}:{peer.port}/oauth", {"code": "c"}, 10.0)


# --- bodies and heads -------------------------------------------------------------------------------------------------

GZIP, DEFLATE = "Content-Encoding: gzip", "Content-Encoding: deflate"


def raw_deflate(body: bytes) -> bytes:
    press = zlib.compressobj(wbits=-15)
    return press.compress(body) + press.flush()


async def fetched(*answers: bytes) -> Verdict:
    with saying(*answers) as peer:
        async with reaching(peer.url) as rig:
            return await rig.client.fetch("bit.ly/x")


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param(GZIP, gzip.compress(ROW_BODY[:5]) + gzip.compress(ROW_BODY[5:]), id="two members"),
        pytest.param(GZIP, b"".join(gzip.compress(ROW_BODY[n : n + 1]) for n in range(len(ROW_BODY))), id="many"),
        pytest.param(GZIP, gzip.compress(b"") + gzip.compress(ROW_BODY), id="an empty member first"),
        pytest.param(DEFLATE, zlib.compress(ROW_BODY), id="deflate as zlib"),
        pytest.param(DEFLATE, raw_deflate(ROW_BODY), id="deflate raw"),
    ],
)
async def test_a_body_is_unpacked(header: str, body: bytes) -> None:
    assert await fetched(answer(body, header)) == ROW


async def test_empty_members_without_end_are_not_read() -> None:
    found = await fetched(answer(gzip.compress(b"") * 1_000_000, GZIP))
    assert isinstance(found, Unreadable)
    assert "larger" in found.message


async def test_a_deflated_body_that_comes_byte_by_byte_is_unpacked() -> None:
    body = zlib.compress(ROW_BODY)
    chunks = b"".join(b"1\r\n%c\r\n" % octet for octet in body) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: deflate\r\n\r\n"

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        for n in range(0, len(head + chunks), 3):
            writer.write((head + chunks)[n : n + 3])
            await asyncio.sleep(0)
        await reader.read()

    with listening(serve) as peer:
        async with reaching(peer.url) as rig:
            assert await rig.client.fetch("bit.ly/x") == ROW


NOT_FOUND = b'{"message":"NOT_FOUND"}'


@pytest.mark.parametrize(
    "body",
    [b"", b"not packed", gzip.compress(NOT_FOUND)[:-9], gzip.compress(b"x") + b"tail"],
    ids=["empty", "not packed", "cut", "with a tail"],
)
async def test_a_status_counts_whatever_becomes_of_the_body(body: bytes) -> None:
    found = await fetched(answer(body, GZIP, status=401))
    assert isinstance(found, TokenRefused)
    assert "could not be unpacked: gzip: " in found.message
    plain = await fetched(answer(body, GZIP, "Content-Type: text/plain", status=404))
    assert isinstance(plain, Refused)
    assert plain.no_route
    assert isinstance(await fetched(answer(body, GZIP, status=410)), Refused)
    unavailable = await fetched(answer(body, GZIP, "Retry-After: 7", status=503))
    assert isinstance(unavailable, Transient)
    assert (unavailable.status, unavailable.hint) == (503, 7.0)


async def test_a_404_whose_body_can_be_unpacked_is_read() -> None:
    assert await fetched(answer(gzip.compress(NOT_FOUND), GZIP, status=404)) == Refused(404, "NOT_FOUND")


async def test_a_200_whose_packed_body_was_cut_is_asked_for_again() -> None:
    found = await fetched(answer(gzip.compress(ROW_BODY)[:-6], GZIP))
    assert isinstance(found, Transient)
    assert (found.status, "its end is missing" in found.message) == (200, True)


async def test_a_helper_request_whose_body_cannot_be_unpacked_still_has_a_status() -> None:
    with saying(answer(b"", GZIP, status=404)) as peer:
        async with reaching(peer.url) as rig:
            found = await rig.client.sender.look_up("/groups", rig.helpers)
    assert found is not None
    assert found.status == 404


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([f"X-Policy: {'p' * 60_000}"], id="one long"),
        pytest.param([f"X-Policy-{n}: {'p' * 90}" for n in range(500)], id="many"),
        pytest.param([f"Set-Cookie: {'c' * 9_000}"] * 6, id="some"),
    ],
)
async def test_a_head_of_64_kib_is_no_outage(headers: Sequence[str]) -> None:
    assert await fetched(answer(ROW_BODY, *headers)) == ROW


@pytest.mark.parametrize(
    "headers", [[f"X-Policy: {'p' * 90_000}"], [f"X-Policy-{n}: {'p' * 900}" for n in range(300)]], ids=["long", "many"]
)
async def test_a_head_without_end_is_not_read(headers: Sequence[str]) -> None:
    found = await fetched(answer(ROW_BODY, *headers))
    assert isinstance(found, Transient)
    assert found.status is None


# --- a process that stood still ---------------------------------------------------------------------------------------


def later(seconds: float) -> Any:
    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await peer.request(reader)
            await asyncio.sleep(seconds)
            writer.write(answer(b'{"metrics":[]' + b" " * 1_000_000 + b"}"))

    return serve


@pytest.mark.parametrize("frozen", [0.6, 2.5])
async def test_an_answer_that_came_while_the_process_stood_still_is_read(frozen: float) -> None:
    with listening(later(0.2)) as peer:
        async with reaching(peer.url, timeout_seconds=0.5) as rig:
            asyncio.get_running_loop().call_later(0.1, time.sleep, frozen)
            assert await rig.client.fetch("bit.ly/x") == ROW
            assert rig.used == [1, 1, 1]


@pytest.mark.parametrize("frozen", [0.0, 1.8])
async def test_an_answer_that_does_not_come_is_late_though_the_process_stood_still(
    monkeypatch: pytest.MonkeyPatch, frozen: float
) -> None:
    monkeypatch.setattr(deadline, "_GRACE_SECONDS", 0.3)
    with listening(later(60.0)) as peer:
        async with reaching(peer.url, timeout_seconds=0.5) as rig:
            began = time.monotonic()
            asyncio.get_running_loop().call_later(0.1, time.sleep, frozen)
            assert await rig.client.fetch("bit.ly/x") == Transient(None, "no complete answer within 0.5 s")
            assert time.monotonic() - began < max(frozen, 0.5) + 0.9


async def test_each_attempt_has_all_of_its_time_on_a_connection_that_was_used_before() -> None:
    with listening(later(0.3)) as peer:
        async with reaching(peer.url, timeout_seconds=0.5) as rig:
            for number in range(4):
                assert await rig.client.fetch(f"bit.ly/{number}") == ROW
        async with reaching(peer.url, timeout_seconds=0.2) as rig:
            for number in range(3):
                began = time.monotonic()
                assert await rig.client.fetch(f"bit.ly/{number}") == Transient(None, "no complete answer within 0.2 s")
                assert 0.2 <= time.monotonic() - began < 0.3


async def test_a_call_that_is_cancelled_at_its_deadline_is_cancelled() -> None:
    with listening(later(5.0)) as peer:
        async with reaching(peer.url, timeout_seconds=0.2) as rig:
            call = asyncio.create_task(rig.client.fetch("bit.ly/x"))
            await asyncio.sleep(0.1)
            asyncio.get_running_loop().call_later(0.02, time.sleep, 0.15)
            asyncio.get_running_loop().call_later(0.1, call.cancel)
            with pytest.raises(asyncio.CancelledError):
                await call


# --- answers that nobody asked for ------------------------------------------------------------------------------------


def shifting(delay: float) -> Any:
    """A server that sends one answer too many over each connection, behind its second, after a delay."""

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(1000):
            name = await peer.request(reader)
            writer.write(named(name))
            if number == 1:
                if delay:
                    await asyncio.sleep(delay)
                writer.write(named(name))

    return serve


@pytest.mark.parametrize(("delay", "pause"), [(0.0, 0.0), (0.0, 0.02), (0.02, 0.0), (0.02, 0.05), (0.1, 0.0)])
async def test_a_stray_answer_is_nobodys(delay: float, pause: float) -> None:
    with listening(shifting(delay)) as peer:
        async with reaching(peer.url) as rig:
            found: dict[str, str] = {}
            for number in range(30):
                verdict = await rig.client.fetch(f"bit.ly/{number}")
                while isinstance(verdict, Transient):
                    verdict = await rig.client.fetch(f"bit.ly/{number}")
                found[str(number)] = value_of(verdict)
                await asyncio.sleep(pause)
    assert found == {str(number): str(number) for number in range(30)}


async def test_a_repeated_answer_does_not_shift_those_of_a_busy_connection() -> None:
    """Each answer takes 5 ms, and a second copy of the tenth comes 2 ms later, when the next request is on its way."""

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(1000):
            name = await peer.request(reader)
            await asyncio.sleep(0.005)
            writer.write(named(name))
            if number == 10:
                await asyncio.sleep(0.002)
                writer.write(named(name))

    with listening(serve) as peer:
        async with reaching(peer.url) as rig:
            for number in range(60):
                while isinstance(verdict := await rig.client.fetch(f"bit.ly/{number}"), Transient):
                    pass
                assert value_of(verdict) == str(number)


async def test_links_that_have_the_same_metrics_are_answered_once_each() -> None:
    with saying(answer()) as peer:
        async with reaching(peer.url) as rig:
            for number in range(20):
                assert await rig.client.fetch(f"bit.ly/{number}") == ROW
            assert rig.used == [20, 20, 20]


async def test_an_answer_with_another_behind_it_is_asked_for_again() -> None:
    """Which of the two belongs to the request cannot be known."""
    found = await fetched(named("stray") + named("x"), named("x"))
    assert isinstance(found, Transient)
    assert not isinstance(found, NotSent)
    assert "more than one response" in found.message


async def test_a_connection_with_an_answer_too_many_is_not_used_again() -> None:
    with saying(answer() + answer(), answer()) as peer:
        async with reaching(peer.url) as rig:
            assert isinstance(await rig.client.fetch("bit.ly/0"), Transient)
            assert isinstance(await rig.client.fetch("bit.ly/1"), Transient)
    assert peer.connections == 2  # each connection begins with two answers


@pytest.mark.parametrize("headers", [(), ("Connection: close",)], ids=["kept open", "closed"])
async def test_an_unasked_408_on_a_resting_connection_fails_no_call(headers: Sequence[str]) -> None:
    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(named(await peer.request(reader)))
        await asyncio.sleep(0.05)
        writer.write(answer(b"", *headers, status=408))
        await reader.read()

    with listening(serve) as peer:
        async with reaching(peer.url) as rig:
            for name in "abc":
                assert value_of(await rig.client.fetch(f"bit.ly/{name}")) == name
                await asyncio.sleep(0.15)
            assert rig.client.sender.counters.total == len(peer.requests) == 3


async def test_a_server_that_speaks_first_is_asked_nothing() -> None:
    async def serve(_: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", status=503))
        await reader.read()

    with listening(serve) as peer:
        async with reaching(peer.url) as rig:
            first = await rig.client.fetch("bit.ly/x")
            assert isinstance(first, Transient)
            assert rig.used in ([0, 0, 0], [1, 1, 1])  # it may be heard only when the request is on its way


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("pause", [0.0, 0.02])
async def test_a_server_that_closes_after_each_answer_costs_few_attempts(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext, pause: float, tls: bool
) -> None:
    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(named(await peer.request(reader)))
        await asyncio.sleep(pause)

    resolve_to(monkeypatch, "127.0.0.1")
    with listening(serve, tls=certified if tls else None) as peer:
        base = f"https://{HOST}:{peer.port}/v4" if tls else peer.url
        async with reaching(base, connections=5) as rig:

            async def worker(names: Iterator[int]) -> None:
                for number in names:
                    while isinstance(found := await rig.client.fetch(f"bit.ly/{number}"), Transient):
                        pass
                    assert value_of(found) == str(number)

            numbers = iter(range(150))
            await asyncio.gather(*(worker(numbers) for _ in range(5)))
            assert rig.client.sender.counters.total <= 150 + 8
    assert any(b"Connection: close" in head for head in peer.requests)


async def test_a_server_that_keeps_connections_open_is_never_asked_to_close_them() -> None:
    with saying(answer()) as peer:
        async with reaching(peer.url) as rig:
            for number in range(50):
                assert await rig.client.fetch(f"bit.ly/{number}") == ROW
        assert peer.connections == 1
        assert not any(b"Connection: close" in head for head in peer.requests)


async def test_a_connection_is_kept_again_when_the_server_has_come_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_TRIAL_EVERY", 10)

    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(named(await peer.request(reader)))
            if len(peer.requests) < 10:
                return

    with listening(serve) as peer:
        async with reaching(peer.url) as rig:
            for number in range(100):
                while isinstance(await rig.client.fetch(f"bit.ly/{number}"), Transient):
                    pass
        assert peer.connections < 30


async def test_an_unreadable_answer_is_no_stray_one() -> None:
    assert isinstance(await fetched(answer(b"<html>")), Unreadable)
