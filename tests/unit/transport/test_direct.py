"""Requests that are written directly and those of the session: the same bytes, and the same verdicts."""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
import trustme
from aioresponses import aioresponses

from harvester.bitly.verdicts import Answer, Refused, Transient
from harvester.errors import RunStopping
from harvester.shutdown import ShutdownSignal
from harvester.transport import direct, http
from harvester.transport.connection_slots import ConnectionSlots
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.in_process import command
from tests.support.output_checks import rows
from tests.support.proxies import proxying
from tests.unit.transport.conftest import HOST, TRANSPORTS
from tests.unit.transport.test_connection import (
    ROW,
    ROW_BODY,
    Peer,
    answer,
    fetched,
    listening,
    reaching,
    resolve_to,
    saying,
    saying_once,
)

both = pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)


async def heads_of(
    monkeypatch: pytest.MonkeyPatch, base_url: Callable[[Peer], str], bitlinks: list[str], peer: Peer
) -> list[list[list[bytes]]]:
    """Fetch bitlinks with each transport; return the lines of each request, its headers sorted."""
    found = []
    for why in (None, "chosen by the test"):
        monkeypatch.setattr(http, "why_not", lambda why=why: why)
        peer.requests.clear()
        async with reaching(base_url(peer)) as rig:
            for bitlink in bitlinks:
                assert await rig.client.fetch(bitlink) == ROW
        lines = [head.removesuffix(b"\r\n\r\n").split(b"\r\n") for head in peer.requests]
        found.append([[first, *sorted(headers)] for first, *headers in lines])
    return found


async def test_both_send_the_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["bit.ly/x", "go.example.com/a-b_c", "bit.ly/%C3%A4", "bit.ly/a~b", "xn--bcher-kva.example/2"]
    with saying(answer()) as peer:
        written, of_session = await heads_of(monkeypatch, lambda peer: peer.url, names, peer)
    assert written == of_session
    assert len(written) == len(names)
    assert f"Host: 127.0.0.1:{peer.port}".encode() in written[0]
    assert b"Authorization: Bearer t0" in written[0]
    assert sum(line.startswith(b"User-Agent: harvester/") for line in written[0]) == 1
    assert len({line.partition(b":")[0].lower() for line in written[0]}) == len(written[0])


async def test_both_send_the_same_requests_to_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await peer.request(reader)
            writer.write(answer())

    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listening(serve, address="::1") as peer:
        written, of_session = await heads_of(
            monkeypatch, lambda peer: f"http://[::1]:{peer.port}/v4/", ["bit.ly/x"], peer
        )
    assert written == of_session
    assert f"Host: [::1]:{peer.port}".encode() in written[0]


async def test_both_send_the_same_through_a_proxy_which_sees_no_token(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext
) -> None:
    with (
        listening(saying_once, tls=certified) as peer,
        proxying(peer.port, credentials="me:pass") as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        written, of_session = await heads_of(monkeypatch, lambda _: f"https://{HOST}/v4", ["bit.ly/x"], peer)
        asked = proxy.headers.replace("\r\n\r\n", "\r\n").split("\r\n")
    assert written == of_session
    assert f"Host: {HOST}".encode() in written[0]
    assert proxy.asked == [f"CONNECT {HOST}:443 HTTP/1.1"] * 2
    assert sum(line.startswith("Proxy-Authorization: Basic ") for line in asked) == 2
    assert not any(re.match("(?i)authorization:", line) for line in asked)


@both
@pytest.mark.parametrize(
    ("name", "trusted", "until"),
    [("other.example", True, None), (HOST, False, None), (HOST, True, datetime(2020, 1, 1, tzinfo=UTC))],
    ids=["of another host", "of an unknown authority", "expired"],
)
async def test_a_certificate_that_does_not_hold_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool, until: datetime | None
) -> None:
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_after=until).configure_cert(server)
    client = ssl.create_default_context()
    if trusted:
        authority.configure_trust(client)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", client)
    resolve_to(monkeypatch, "127.0.0.1")
    with listening(saying_once, tls=server) as peer:
        async with reaching(f"https://{HOST}:{peer.port}/v4") as rig:
            with pytest.raises(RunStopping):
                await rig.client.fetch("bit.ly/x")
            assert rig.shutdown.stop is not None
            assert "was refused" in rig.shutdown.stop.message
            assert (rig.used, peer.requests) == ([0, 0, 0], [])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@both
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(CHUNKED + b"5\r\n" + ROW_BODY[:5] + b"\r\n9\r\n" + ROW_BODY[5:] + b"\r\n0\r\n\r\n", id="chunks"),
        pytest.param(CHUNKED + b"e;x=y\r\n" + ROW_BODY + b"\r\n0\r\nX-Sum: 1\r\n\r\n", id="trailers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(), id="100"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + answer(), id="103 twice"),
        pytest.param(answer(ROW_BODY, "Set-Cookie: a=b", "Connection: close"), id="cookies and close"),
        pytest.param(answer(ROW_BODY, "Content-Type: text/html"), id="another type"),
    ],
)
async def test_an_answer_is_read_in_any_form(said: bytes) -> None:
    assert await fetched(said) == ROW


@both
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(CHUNKED + b"zz\r\n" + ROW_BODY, id="no chunk"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="no length"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="101"),
    ],
)
async def test_what_is_no_answer_is_transient_or_unknown(said: bytes) -> None:
    found = await fetched(said)
    assert not isinstance(found, Answer | Refused), found


@both
async def test_what_cannot_be_read_as_a_response_is_said_in_one_line() -> None:
    found = await fetched(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 9\r\n\r\n")
    assert isinstance(found, Transient)
    assert found.message.startswith("the response is no HTTP: Duplicate Content-Length")
    assert "\n" not in found.message


@both
async def test_cookies_are_not_sent_back_and_redirects_not_followed() -> None:
    moved = answer(b"", "Location: /v4/elsewhere", "Set-Cookie: a=b", status=302)
    with saying(moved, answer()) as peer:
        async with reaching(peer.url) as rig:
            assert not isinstance(await rig.client.fetch("bit.ly/x"), Answer)
            assert await rig.client.fetch("bit.ly/y") == ROW
    assert len(peer.requests) == 2
    assert not any(b"cookie" in head.lower() or b"elsewhere" in head for head in peer.requests)


@both
async def test_an_answer_that_does_not_end_is_late() -> None:
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{") as peer:
        async with reaching(peer.url, timeout_seconds=0.2) as rig:
            found = await rig.client.fetch("bit.ly/x")
            assert rig.used == [1, 1, 1]
    assert found == Transient(None, "no complete answer within 0.2 s")


def test_a_version_that_was_not_tested_is_met_with_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(aiohttp, "__version__", "3.99.0")
    direct.note_fallback(notes.append, direct=False)
    assert notes == []
    direct.note_fallback(notes.append, direct=True)
    assert len(notes) == 1
    assert "aiohttp 3.99.0 is not one of those tested" in notes[0]


@pytest.mark.parametrize(
    ("words", "notes"),
    [((), 1), (("--facet", "referrers,countries"), 1), (("--transport", "session"), 0)],
    ids=["one facet", "two facets", "the session was asked for"],
)
def test_a_run_says_once_that_it_falls_back_and_has_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    serve: Callable[..., Served],
    tmp_path: Path,
    words: tuple[str, ...],
    notes: int,
) -> None:
    monkeypatch.setattr(direct, "TESTED_VERSIONS", frozenset({"0.0"}))
    monkeypatch.setattr(http, "why_not", direct.why_not)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    links, served = tmp_path / "links.txt", serve()
    links.write_text("bit.ly/a\nbit.ly/b\n")
    where = ("--out", str(tmp_path / "{facet}"), "--state-dir", str(tmp_path / "state"), "--base-url", served.url)
    said = command(capsys, "run", str(links), *where, *NO_LIMITS, *words)
    assert said.code == 0, said.err
    assert said.err.count("requests are sent by aiohttp's session") == notes
    assert len(rows(tmp_path / "referrers")) == 2


def test_an_unknown_transport_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = command(capsys, "run", "links.txt", "--out", "out", "--transport", "http3")
    assert said.code == 2
    assert "--transport" in said.err


def test_the_version_that_is_installed_for_development_is_a_tested_one() -> None:
    constraints = Path(__file__).parents[3] / "constraints.txt"
    found = re.search(r"^aiohttp==(\S+)$", constraints.read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] in direct.TESTED_VERSIONS


def test_a_session_that_a_library_has_replaced_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp, "__version__", min(direct.TESTED_VERSIONS))
    assert direct.why_not() is None
    with aioresponses():
        assert direct.why_not() is not None


@pytest.mark.parametrize("chosen", [True, False])
async def test_a_slot_has_the_transport_that_was_chosen(chosen: bool, quick_path: Path) -> None:
    slots = ConnectionSlots(str(quick_path / "connections"), 1)
    await slots.join()
    async with http.pooled(slots, ShutdownSignal(), "http://127.0.0.1:9/v4", direct=chosen) as pool:
        slot = pool.take()
        assert slot is not None
        assert isinstance(slot.transport, direct.DirectTransport) == chosen
        pool.put(slot)
    slots.leave()


@both
@pytest.mark.parametrize(
    ("target", "authorization"),
    [("/v4/x HTTP/1.1\r\nX: y", "Bearer t"), ("/v4/x", "Bearer t\r\nX: y"), ("/v4/x", "Bearer t\nX: y")],
)
async def test_no_header_can_be_smuggled_in(target: str, authorization: str, quick_path: Path) -> None:
    slots = ConnectionSlots(str(quick_path / "connections"), 1)
    await slots.join()
    with saying(answer()) as peer:
        async with http.pooled(slots, ShutdownSignal(), peer.url) as pool:
            slot = pool.take()
            assert slot is not None
            with suppress(ValueError, aiohttp.ClientError):
                await slot.transport.send(target, authorization)
            pool.put(slot)
    slots.leave()
    assert not any(re.search(rb"(?m)^X: y", head) for head in peer.requests)
