"""The server of the chaos runner: the sandbox's answers on raw sockets, with faults that a mood draws.

It runs in a process of its own and takes orders from a socket, a line of JSON each: a mood, or `{}`, which asks for the
counts since the last `{"new": true}`, which also has the links of the group. Every order is answered by the counts.
"""

import asyncio
import json
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from harvester.sandbox import metrics_for

FAULTS = ("500", "503", "429", "reset", "torn", "slow", "html", "hangup")
_PAGE = 20
"""Links on a page of the group's."""
_REFUSED = {"missing": (404, "NOT_FOUND"), "gone": (410, "GONE")}


@dataclass(frozen=True)
class Mood:
    """How requests are answered from now on.

    seed: of the faults, which depend on it, the link and the number of its request. share: of requests that meet a
    fault, drawn from kinds. slow_seconds: of a slow answer. dies_after: answers until the server is down; -1 for never.
    back_seconds: until it is back; -1 for as long as this mood lasts.
    """

    seed: str = ""
    share: float = 0.0
    kinds: tuple[str, ...] = ()
    slow_seconds: float = 0.0
    dies_after: int = -1
    back_seconds: float = 0.0


class Server:
    """A loopback server whose port stays its own while it is down.

    answered: successful answers that were sent, by bitlink, size, facet and day of the window's end. cut: answers that
    a death may have cut off. faults: those that requests met, by kind.
    """

    def __init__(self) -> None:
        # Bound but not listening, beside the one that listens: nobody else gets the port meanwhile.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self._mood = Mood()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._revival: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self.answered: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.cut = 0
        self.links: list[str] = []

    def run(self, control: socket.socket) -> None:
        """Serve until the other side of control is closed."""
        asyncio.run(self._run(control))

    async def _run(self, control: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=control)
        while line := await reader.readline():
            order = json.loads(line)
            if order.pop("new", False):
                self._begin()
                self.links = order.pop("links")
            if order:
                await self._be(Mood(**order))
            await asyncio.sleep(0)  # what is on its way to the handlers is counted
            counts = {"answered": self.answered, "faults": self.faults, "cut": self.cut}
            writer.write(json.dumps(counts).encode() + b"\n")
        os._exit(0)

    async def _be(self, mood: Mood) -> None:
        if self._revival:
            self._revival.cancel()
            self._revival = None
        self._mood, self._left = mood, mood.dies_after
        for writer in list(self._open):  # those of a run that was killed
            writer.transport.abort()
        if self._left == 0:
            self._die()
        else:
            await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self.port))

    def _die(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut += len(self._open)
        for writer in list(self._open):
            writer.transport.abort()
        self.faults["server down"] += 1
        if self._mood.back_seconds >= 0:
            self._revival = asyncio.create_task(self._revive(self._mood.back_seconds))

    async def _revive(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._revival = None
        await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while not writer.transport.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.split(b" ", 2)[1].decode(), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, target: str, writer: asyncio.StreamWriter) -> None:
        url = urlsplit(target)
        parts = unquote(url.path).split("/")
        if parts[2:3] not in (["bitlinks"], ["groups"]):
            writer.write(_wire(404, b"404 page not found"))
            return
        listing = parts[2] == "groups"
        link = url.query if listing else "/".join(parts[3:5])
        self.requests[link] += 1
        rng = random.Random(f"{self._mood.seed} {link} {self.requests[link]}")
        fault = rng.choice(self._mood.kinds) if self._mood.kinds and rng.random() < self._mood.share else ""
        if fault:
            self.faults[fault] += 1
        status, body = (200, self._page(url.query)) if listing else _good(target, link)
        match fault:
            case "500" | "503":
                writer.write(_wire(int(fault), b'{"message":"INTERNAL_ERROR"}'))
            case "429":
                writer.write(_wire(429, b'{"message":"RATE_LIMIT_EXCEEDED"}', "Retry-After: 1\r\n"))
            case "html":
                writer.write(_wire(200, b"<!doctype html><title>Sign in</title>"))
            case "reset" | "hangup":
                writer.transport.abort() if fault == "reset" else writer.close()
            case "torn":
                writer.write(_wire(status, body)[: -len(body) // 2])
                writer.close()
            case _:
                if fault == "slow":
                    await asyncio.sleep(self._mood.slow_seconds)
                if not writer.transport.is_closing():
                    self._send(status, body, link, url, writer)

    def _page(self, query: str) -> bytes:
        """Return a page of the group's links; its cursor is the number of the next one's first."""
        begin = int(parse_qs(query).get("search_after", ["0"])[0])
        following = begin + _PAGE
        links = [{"id": link, "custom_bitlinks": []} for link in self.links[begin:following]]
        more = {"next": "https://next.example/", "search_after": str(following)} if self.links[following:] else {}
        return json.dumps({"links": links, "pagination": more}).encode()

    def _send(self, status: int, body: bytes, link: str, url: SplitResult, writer: asyncio.StreamWriter) -> None:
        writer.write(_wire(status, body))
        asked = {name: value for name, (value,) in parse_qs(url.query).items()}
        if status == 200 and "size" in asked:  # without one it is the check of a period
            facet, day = url.path.rpartition("/")[2], asked.get("unit_reference", "-")[:10]
            self.answered[f"{link} {asked['size']} {facet} {day}"] += 1
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self._die()


@lru_cache(100_000)
def _good(target: str, link: str) -> tuple[int, bytes]:
    for name, (status, message) in _REFUSED.items():
        if name in link:
            return status, json.dumps({"message": message, "resource": "bitlinks"}).encode()
    asked = {name: value for name, (value,) in parse_qs(urlsplit(target).query).items()}
    facet = urlsplit(target).path.rpartition("/")[2]
    found: dict[str, Any] = metrics_for(
        link, facet, int(asked.get("size", 0)), asked["unit"], int(asked["units"]), asked["unit_reference"]
    )
    return 200, json.dumps(found).encode()


def _wire(status: int, body: bytes, headers: str = "") -> bytes:
    framing = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return f"HTTP/1.1 {status} Chaos\r\n{framing}".encode() + body


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class ServerProcess:
    """A server in a fork of this process; a context manager."""

    def __init__(self) -> None:
        server = Server()
        self.port = server.port
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                server.run(theirs)
            finally:
                os._exit(1)
        theirs.close()
        server._reserved.close()
        self._control = ours
        self._answers = ours.makefile("rb")

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._control.close()
        os.waitpid(self._pid, 0)

    def tell(self, mood: Mood | None = None, *, group: Sequence[str] | None = None) -> dict[str, Any]:
        """Change the mood, and return the counts. group: begin to count anew, with these links in the only group."""
        order = (asdict(mood) if mood else {}) | ({} if group is None else {"new": True, "links": [*group]})
        self._control.sendall(json.dumps(order).encode() + b"\n")
        counts: dict[str, Any] = json.loads(self._answers.readline())
        return counts
