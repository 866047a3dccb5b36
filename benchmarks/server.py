"""A Bitly that costs next to nothing: ready-made answers, so that the client is what is measured.

One answer differs from the next, as those of ordinary links do: what repeats the last one is looked at longer.

Prints its base URL and serves until it gets SIGTERM, or for LONGEST_SECONDS, whatever became of who started it.
usage: python -m benchmarks.server [--latency-ms 50] [--metrics 100000] [--clicks] [--tls authority.pem]
"""

import argparse
import asyncio
import json
import signal
import ssl
from itertools import cycle

import trustme

LONGEST_SECONDS = 2 * 3600.0

# Shaped like the recorded answers in tests/samples, with as many rows as an ordinary link has.
_ORDINARY = [
    {"value": "direct", "clicks": 4711},
    {"value": "https://t.co/", "clicks": 1204},
    {"value": "https://www.google.com/", "clicks": 311},
    {"value": "https://www.linkedin.com/", "clicks": 27},
    {"value": "X (Formerly Twitter)", "clicks": 3},
]
_END_OF_REQUEST = b"\r\n\r\n"


_CLICKS = {"link_clicks": [{"clicks": 3, "date": "2026-11-22T00:00:00+0000"}], "units": 1, "unit": "day"}


def answer(metrics: int = 0, *, clicks: bool = False, units: int = 30) -> bytes:
    """Return a whole response. metrics: how many it lists; 0 for those of an ordinary link. clicks: a day's instead."""
    listed = [{"value": f"https://{number}.example/", "clicks": 1} for number in range(metrics)] or _ORDINARY
    content = {
        "metrics": listed,
        "units": units,
        "unit": "day",
        "facet": "referrers",
    }
    body = json.dumps(_CLICKS if clicks else content, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Connection(asyncio.Protocol):
    """Answers every GET of a kept connection; what is asked for it does not read. answers: two or more."""

    def __init__(self, answers: list[bytes], latency_seconds: float) -> None:
        self._rest = b""
        self._answers = cycle(answers)
        self._latency = latency_seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(_END_OF_REQUEST)
        said = b"".join(next(self._answers) for _ in requests)
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, said)
        else:
            self._transport.write(said)


def certified(authority_path: str) -> ssl.SSLContext:
    """Return a TLS server's settings, and write the certificate of the authority that vouches for it."""
    authority, settings = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(authority_path)
    authority.issue_cert("127.0.0.1").configure_cert(settings)
    return settings


async def serve(answers: list[bytes], latency_seconds: float, tls: ssl.SSLContext | None) -> None:
    """Serve on a free port of 127.0.0.1."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.call_later(LONGEST_SECONDS, over.set)
    server = await loop.create_server(lambda: Connection(answers, latency_seconds), "127.0.0.1", 0, ssl=tls)
    print(f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v4", flush=True)
    await over.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A Bitly that costs next to nothing.")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--metrics", type=int, default=0, help="of an answer; 0 for those of an ordinary link")
    parser.add_argument("--clicks", action="store_true", help="answer with a day's clicks instead")
    parser.add_argument(
        "--tls", metavar="FILE", help="serve by TLS, and write the authority's certificate to this file"
    )
    options = parser.parse_args()
    tls = certified(options.tls) if options.tls else None
    answers = [answer(options.metrics, clicks=options.clicks, units=units) for units in (30, 31)]
    asyncio.run(serve(answers, options.latency_ms / 1000, tls))
