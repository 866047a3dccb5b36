"""A scripted Bitly on raw sockets: each link's back-half says how it is answered, and rudeness is noted.

`503x2-then-ok` is answered 503 twice and then well; `ok--7` is `ok` under another name. REPLIES and TRICKS have the
behaviours. Beside them there is one helper route, whose behaviour the test chooses, and the test may let everything be
out for a while. `scripted` fails its test if its clients had more than five connections at once, or sent anything that
is not the expected call with the expected token.
"""

import asyncio
import gzip
import json
import re
import select
import socket
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from harvester.bitly.query import MAX_CONNECTIONS
from tests.support.commands import TOKEN
from tests.support.servers import in_thread

MIB = 1024 * 1024
HUGE_BYTES = 300 * MIB
HINT = {"Retry-After": "1"}
SEPARATED = "a\u2028b\u2029c\u0085d\re\nf\x0bg\x0ch\x1ci"
"""Everything that some reader takes for the end of a line."""
COLOURED = "\x1b[31m\x9b31m\x7f\u202egnp.exe"
"""What a terminal would act upon: two forms of CSI, DEL, and a right-to-left override."""

_SCRIPT = re.compile(r"(.+?)-?x(\d+)-then-(.+)")
_TARGET = re.compile(r"/v4/bitlinks/bit\.ly/([-\w]+)/referrers\?(.*)", re.ASCII)
HELPER_TARGET = "/v4/user/platform_limits?path=%2Fbitlinks%2F%7Bbitlink%7D%2Freferrers"
_PARAMETERS = {"unit", "units", "unit_reference", "size"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came. headers: names in lower case. at: monotonic seconds."""

    target: str
    headers: Mapping[str, str]
    at: float

    @property
    def back_half(self) -> str:
        found = _TARGET.fullmatch(self.target)
        return found[1] if found else ""

    @property
    def asks_for_the_window(self) -> bool:
        """True for the call of a series that checks a period."""
        return "/clicks?" in self.target


class Reply(NamedTuple):
    """An ordinary answer: it is sent whole, and its connection stays open."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}

    def wire(self) -> bytes:
        framing = {"Content-Length": len(self.body), "Content-Type": self.content_type}
        return head(self.status, {**framing, **self.headers}) + self.body


def head(status: int, headers: Mapping[str, object]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


# --- answers ------------------------------------------------------------------------------------------------------


def metrics_of(back_half: str) -> list[dict[str, Any]]:
    """The rows of a link's good answer: no two links have the same."""
    value = SEPARATED if back_half.startswith("separators") else f"https://{back_half}.example/"
    return [{"value": value, "clicks": 2}, {"value": "direct", "clicks": 1}]


def good_body(back_half: str, **style: Any) -> bytes:
    said = {
        "metrics": metrics_of(back_half),
        "units": 30,
        "unit": "day",
        "facet": "referrers",
    }
    return json.dumps(said, ensure_ascii=False, **style).encode()


def good(seen: Seen) -> Reply:
    return Reply(200, good_body(seen.back_half))


def day_of_clicks(seen: Seen) -> Reply:
    """The series of a day that is what was asked for."""
    (reference,) = parse_qs(seen.target.partition("?")[2])["unit_reference"]
    body = {"link_clicks": [{"date": reference, "clicks": 3}], "unit_reference": reference, "units": 1, "unit": "day"}
    return Reply(200, json.dumps(body).encode())


def clicks(number: str) -> Callable[[Seen], Reply]:
    return fixed(200, f'{{"metrics":[{{"value":"direct","clicks":{number}}}]}}')


def fixed(status: int, body: str | bytes = b"", headers: Mapping[str, str] | None = None, /) -> Callable[[Seen], Reply]:
    raw = body.encode() if isinstance(body, str) else body
    return lambda _: Reply(status, raw, headers=headers or {})


def error(
    status: int, message: str, /, headers: Mapping[str, str] | None = None, **more: Any
) -> Callable[[Seen], Reply]:
    return fixed(status, json.dumps({"message": message, **more}), headers)


def text(status: int, body: str, content_type: str = "text/html") -> Callable[[Seen], Reply]:
    return lambda _: Reply(status, body.encode(), content_type)


@cache
def bomb() -> bytes:
    """Some 200 KB that decode to 200 MiB of blanks, which JSON allows anywhere."""
    press = zlib.compressobj(wbits=31)
    return b"".join([*(press.compress(b" " * MIB) for _ in range(200)), press.flush()])


HTML = "<!doctype html><title>Sign in</title>" + "<p>Welcome to the hotel's network</p>" * 100
GZIP = {"Content-Encoding": "gzip"}
_FIELD = [{"field": "bitlink", "error_code": "invalid"}]

REPLIES: dict[str, Callable[[Seen], Reply]] = {
    "ok": good,
    "pretty": lambda seen: Reply(200, good_body(seen.back_half, indent=4).replace(b"\n", b"\r\n")),
    "separators": good,
    "gzip": lambda seen: Reply(200, gzip.compress(good_body(seen.back_half)), headers=GZIP),
    "cookie": lambda seen: good(seen)._replace(headers={"Set-Cookie": "session=1; Path=/"}),
    # 200 that is not the facet's JSON
    "html": text(200, HTML),
    "list": fixed(200, "[]"),
    "null": fixed(200, "null"),
    "empty-body": fixed(200),
    "empty-object": fixed(200, "{}"),
    "clicks-string": clicks('"7"'),
    "clicks-true": clicks("true"),
    "clicks-negative": clicks("-1"),
    "nan": clicks("NaN"),
    "bigint": clicks(str(2**64)),
    "past-int64": clicks(str(2**63)),
    "surrogate": fixed(200, r'{"metrics":[{"value":"\ud800","clicks":1}]}'),
    "not-utf8": fixed(200, b'{"metrics":[{"value":"\xff","clicks":1}]}'),
    "deep": fixed(200, "[" * 200_000),
    "not-gzip": fixed(200, good_body("not-gzip"), GZIP),
    "gzip-in-two": lambda seen: Reply(
        200,
        gzip.compress(good_body(seen.back_half)[:20]) + gzip.compress(good_body(seen.back_half)[20:]),
        headers=GZIP,
    ),
    "brotli": fixed(200, b"\x0b", {"Content-Encoding": "br"}),
    "deflate": fixed(200, zlib.compress(good_body("deflate")), {"Content-Encoding": "deflate"}),
    "bomb": lambda _: Reply(200, bomb(), headers=GZIP),
    "torn-gzip": fixed(200, gzip.compress(good_body("torn-gzip"))[:-20], GZIP),
    "bom": lambda seen: Reply(200, b"\xef\xbb\xbf" + good_body(seen.back_half)),
    "null-metrics": fixed(200, '{"metrics":null,"units":30,"unit":"day","facet":"referrers"}'),
    "other-facet": fixed(200, '{"metrics":[{"value":"FR","clicks":7}],"facet":"countries"}'),
    # transient
    "408": text(408, "<h1>Request Timeout</h1>"),
    "425": fixed(425),
    "520": text(520, "<h1>Web server is returning an unknown error</h1>"),
    "500-for-ever": error(500, "INTERNAL_ERROR"),
    "502": text(502, "<h1>Bad Gateway</h1>"),
    "503": error(503, "TEMPORARILY_UNAVAILABLE"),
    "503-hinted": error(503, "TEMPORARILY_UNAVAILABLE", HINT),
    "503-for-minutes": error(503, "TEMPORARILY_UNAVAILABLE", {"Retry-After": "200"}),
    "503-doomsday": fixed(503, "", {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"}),
    "504": text(504, ""),
    # throttled
    "429": error(429, "RATE_LIMIT_EXCEEDED", HINT),
    "429-unknown": fixed(429, "", HINT),
    "429-bare": fixed(429),
    "403-throttled": error(403, "RATE_LIMIT_EXCEEDED", HINT),
    "403-reason": error(403, "FORBIDDEN", {**HINT, "X-Ratelimit-Reason": "minute"}),
    "200-throttled": fixed(200, '{"message":"RATE_LIMIT_EXCEEDED"}', HINT),
    # refused
    "403-resource": error(403, "FORBIDDEN", resource="bitlinks", description="You are currently forbidden"),
    "404": error(404, "NOT_FOUND", resource="bitlinks"),
    "404-plain": text(404, "404 page not found\n", "text/plain; charset=utf-8"),
    "410": error(410, "GONE"),
    "400-bitlink": error(400, "INVALID_ARG_BITLINK"),
    "400-field": error(400, "INVALID_REQUEST", errors=_FIELD),
    # unknown
    "204": lambda _: Reply(204),
    "400-other": error(400, "WHO_KNOWS"),
    "403-html": text(403, HTML),
    "404-html": text(404, HTML),
    "407": fixed(407, "", {"Proxy-Authenticate": "Basic"}),
    "418": text(418, "I am a teapot. " * 300, "text/plain"),
    "418-separators": text(418, SEPARATED, "text/plain"),
    "418-coloured": text(418, COLOURED, "text/plain"),
    "418-echo": lambda seen: Reply(418, f"you sent {seen.headers['authorization']}".encode()),
    "html-echo": lambda seen: Reply(200, f"<p>you sent {seen.headers['authorization']}".encode(), "text/html"),
    "400-echo": lambda seen: Reply(400, json.dumps({"message": seen.headers["authorization"]}).encode()),
    # the run's end
    "401": error(401, "UNAUTHORIZED"),
    "402": error(402, "UPGRADE_REQUIRED"),
    "402-coloured": error(402, f"UPGRADE_REQUIRED {COLOURED}"),
    "403-bare": error(403, "FORBIDDEN"),
    "403-token": error(403, "INVALID_ACCESS_TOKEN"),
    "400-token": error(400, "MISSING_ARG_ACCESS_TOKEN"),
    "400-unit": error(400, "INVALID_ARG_UNIT"),
    "429-month": error(429, "API_USAGE_LIMIT_EXCEEDED"),
    "429-monthly": error(429, "MONTHLY_LIMIT_EXCEEDED", HINT),
}


class Line(NamedTuple):
    """One connection with a request on it that waits for its answer."""

    seen: Seen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    bitly: "Scripted"


# --- tricks -------------------------------------------------------------------------------------------------------


async def tear(line: Line) -> None:
    whole = good(line.seen).wire()
    line.writer.write(whole[:-20])
    line.writer.close()


async def reset(line: Line) -> None:
    """Send an RST instead of an answer."""
    sock = line.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.writer.transport.abort()


async def hang_up(line: Line) -> None:
    line.writer.close()


async def be_silent(line: Line) -> None:
    await line.reader.read()  # until the client has had enough
    line.writer.close()


async def be_deaf(line: Line) -> None:
    """Neither answer nor listen: under TLS no farewell is returned either."""
    line.writer.transport.pause_reading()  # type: ignore[attr-defined]
    while not _hung_up(line.writer):
        await asyncio.sleep(0.05)
    line.writer.transport.abort()


async def dawdle(line: Line) -> None:
    """Send a byte a second, as long as someone listens."""
    for octet in good(line.seen).wire():
        if line.reader.at_eof():
            break
        line.writer.write(bytes([octet]))
        await line.writer.drain()
        await asyncio.sleep(1)
    line.writer.close()


async def answer_soon(line: Line) -> None:
    """Answer well, behind whatever else was asked at that time."""
    await asyncio.sleep(0.2)
    line.writer.write(good(line.seen).wire())


async def babble(line: Line) -> None:
    line.writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    line.writer.close()


async def hint_first(line: Line) -> None:
    line.writer.write(head(103, {"Link": "</style.css>; rel=preload"}) + good(line.seen).wire())


async def answer_twice(line: Line) -> None:
    """Send another answer, which nobody has asked for, right behind the first."""
    line.writer.write(good(line.seen).wire() + Reply(200, good_body("poison")).wire())


async def redirect(line: Line) -> None:
    line.writer.write(Reply(302, b"elsewhere", headers={"Location": f"{line.bitly.elsewhere}/v4/take-it"}).wire())


async def take_time(line: Line) -> None:
    await asyncio.sleep(0.03)
    line.writer.write(good(line.seen).wire())


async def fail_for_two_seconds(line: Line) -> None:
    """Be out from the first such request on, for all such links."""
    began = next(seen.at for seen in line.bitly.requests if seen.back_half.startswith("down-for-2s"))
    line.writer.write(REPLIES["503-hinted" if line.seen.at < began + 2 else "ok"](line.seen).wire())


def stream(status: int, headers: Mapping[str, object], begin: bytes = b"", *, chunked: bool = False) -> "Trick":
    """Make the trick that sends headers, begin and HUGE_BYTES of blanks, and notes how much of it was taken."""

    async def pour(line: Line) -> None:
        block = b" " * 65536
        line.writer.write(head(status, headers))
        for piece in [begin] * bool(begin) + [block] * (HUGE_BYTES // len(block)):
            line.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await line.writer.drain()
            line.bitly.poured += len(piece)
        line.writer.write(b"0\r\n\r\n" * chunked)

    return pour


_CHUNKED = {"Transfer-Encoding": "chunked"}
_GZIPPED_OK = gzip.compress(good_body("gzip-and-tail"))

Trick = Callable[[Line], Awaitable[None]]
TRICKS: dict[str, Trick] = {
    "torn": tear,
    "reset": reset,
    "hangup": hang_up,
    "silent": be_silent,
    "deaf": be_deaf,
    "slow": dawdle,
    "ok-soon": answer_soon,
    "not-http": babble,
    "early-hints": hint_first,
    "doubled": answer_twice,
    "redirect": redirect,
    "later": take_time,
    "down-for-2s": fail_for_two_seconds,
    "huge": stream(200, {"Content-Length": HUGE_BYTES + 1}, b"{"),
    "huge-chunked": stream(200, _CHUNKED, b"{", chunked=True),
    "huge-418": stream(418, {"Content-Length": HUGE_BYTES}),
    "gzip-and-tail": stream(200, {**_CHUNKED, **GZIP}, _GZIPPED_OK, chunked=True),
}


# --- the server ---------------------------------------------------------------------------------------------------


def behaviour_of(back_half: str, visit: int) -> str:
    """Name the behaviour that a link shows at a visit, counted from 0."""
    script = back_half.partition("--")[0]
    while found := _SCRIPT.fullmatch(script):
        if visit < int(found[2]):
            return found[1]
        visit, script = visit - int(found[2]), found[3]
    return script


@dataclass
class Scripted:
    """What a scripted Bitly has seen. faults: what no client may do. elsewhere_heard: connections to where redirects
    point. poured: bytes of endless bodies that were taken. helped: requests of the helper route, which behaves as
    helper. out: says whether every call is answered 503 now. everyone: names the behaviour that every call meets now,
    whatever its link; None for the link's own.
    """

    helper: str = "404-plain"
    out: Callable[[], bool] = lambda: False
    everyone: Callable[[], str | None] = lambda: None
    helped: list[Seen] = field(default_factory=list)
    url: str = ""
    elsewhere: str = ""
    requests: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    elsewhere_heard: list[bytes] = field(default_factory=list)
    most_connections: int = 0
    poured: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def open_connections(self) -> int:
        return sum(not _hung_up(writer) for writer in set(self._open))

    def visits(self, back_half: str) -> list[Seen]:
        return [seen for seen in self.requests if seen.back_half == back_half]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open = {other for other in self._open if not _hung_up(other)} | {writer}
        self.most_connections = max(self.most_connections, len(self._open))
        if len(self._open) > MAX_CONNECTIONS:
            self.faults.append(f"{len(self._open)} connections at once")
        self._start(self._serve(reader, writer))

    def accept_elsewhere(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def listen() -> None:
            self.elsewhere_heard.append(b"a connection")
            self.elsewhere_heard.append(await reader.read(65536))
            writer.close()

        self._start(listen())

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                seen = _parse(await reader.readuntil(b"\r\n\r\n"))
                self._note(seen)
                await self._answer(Line(seen, reader, writer, self))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as fault:  # a thread of its own: only faults reach the test
            self.faults.append(repr(fault))
        finally:
            writer.close()
            self._open.discard(writer)

    def _note(self, seen: Seen) -> None:
        is_helper = seen.target == HELPER_TARGET or seen.asks_for_the_window
        (self.helped if is_helper else self.requests).append(seen)
        target = _TARGET.fullmatch(seen.target)
        if not is_helper and (not target or parse_qs(target[2]).keys() != _PARAMETERS):
            self.faults.append(f"an unexpected target: {seen.target}")
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            self.faults.append(f"{seen.target}: not the token")
        if "json" not in seen.headers.get("accept", "") or "cookie" in seen.headers:
            self.faults.append(f"{seen.target}: no Accept, or a cookie")

    async def _answer(self, line: Line) -> None:
        if line.seen.asks_for_the_window:
            line.writer.write(day_of_clicks(line.seen).wire())
            return
        if line.seen.target == HELPER_TARGET:
            behaviour = self.helper
        elif self.out():
            behaviour = "503"
        elif everyones := self.everyone():
            behaviour = everyones
        else:
            behaviour = behaviour_of(line.seen.back_half, len(self.visits(line.seen.back_half)) - 1)
        if trick := TRICKS.get(behaviour):
            await trick(line)
        else:
            line.writer.write(REPLIES[behaviour](line.seen).wire())
        with suppress(ConnectionError):
            await line.writer.drain()


def _parse(request: bytes) -> Seen:
    first, *rest = request.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in rest if line)
    return Seen(
        target if method == "GET" else f"{method} {target}",
        {name.lower(): value for name, value in headers.items()},
        time.monotonic(),
    )


def _hung_up(writer: asyncio.StreamWriter) -> bool:
    """True when the other side has closed: its FIN may be here before the loop has looked, even behind other bytes."""
    closed = select.poll()
    try:
        closed.register(writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(closed.poll(0))  # also an error, and a descriptor that is closed
    except (OSError, ValueError):  # a socket of ours that is closed has the descriptor -1
        return True


@asynccontextmanager
async def _serving(tls: ssl.SSLContext | None) -> AsyncIterator[Scripted]:
    bitly = Scripted()
    async with (
        await asyncio.start_server(bitly.accept, "127.0.0.1", 0, ssl=tls) as server,
        await asyncio.start_server(bitly.accept_elsewhere, "127.0.0.1", 0) as elsewhere,
    ):
        bitly.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v4"
        bitly.elsewhere = f"http://127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}"
        try:
            yield bitly
        finally:
            await bitly.end()


@contextmanager
def scripted(tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Serve a scripted Bitly in a thread of its own.

    Raises AssertionError at the end if its client has done what no client may.
    """
    with in_thread(_serving(tls)) as bitly:
        yield bitly
    assert bitly.faults == []
