"""The end of a login's redirect: a server on 127.0.0.1 that takes one request and refuses all others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from harvester.errors import UsageError
from harvester.oauth import CALLBACK, NotForUs, Redirect

_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = "<!doctype html><html lang=en><meta charset=utf-8><title>harvester</title><p>{}</p></html>\n"


@dataclass(frozen=True, slots=True)
class Listener:
    """What is being listened on. redirect_uri: where Bitly is to send the browser. code: what it brings."""

    redirect_uri: str
    code: asyncio.Future[str]


@asynccontextmanager
async def listening(port: int, redirect: Redirect, tell: Callable[[str], None]) -> AsyncIterator[Listener]:
    """Listen for a redirect; port 0 takes a free one. The code may end in a UsageError, as `Redirect.code_in` says.

    Raises:
        UsageError: the port cannot be had.
    """
    code: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    hosts: set[str] = set()

    async def answer(request: web.Request) -> web.Response:
        return _answer(request, hosts, redirect, code, tell)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"--port {port}: {why}; give another, and register its redirect URI") from error
        taken = runner.addresses[0][1]
        # Another name for this machine would be somebody's who has made it one (DNS rebinding).
        hosts |= {f"127.0.0.1:{taken}", f"localhost:{taken}"}
        yield Listener(f"http://127.0.0.1:{taken}{CALLBACK}", code)
    finally:
        code.cancel()
        await runner.cleanup()


def _answer(
    request: web.Request,
    hosts: set[str],
    redirect: Redirect,
    code: asyncio.Future[str],
    tell: Callable[[str], None],
) -> web.Response:
    if request.headers.getall("Host", []) not in [[host] for host in hosts]:
        return _page(421, "This address is not harvester's.")
    if request.rel_url.raw_path != CALLBACK:
        return _page(404, "There is nothing here.")
    if request.method != "GET":
        return _page(405, "Only a browser's redirect is taken here.", {"Allow": "GET"})
    try:
        found = redirect.code_in(request.rel_url.raw_query_string)
    except NotForUs as error:
        tell(f"a redirect was refused: {error}; still waiting for the right one")
        return _page(400, "This redirect was refused. Go back to the terminal, which says what to do.")
    except UsageError as error:
        if not code.done():
            code.set_exception(error)
        return _page(200, "No access was given. Go back to the terminal.")
    if not code.done():
        code.set_result(found)
    return _page(200, "Go back to the terminal, where harvester goes on. This page can be closed.")


def _page(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    """Give a page; nothing of what was asked stands in it."""
    body = _PAGE.format(text)
    return web.Response(status=status, text=body, content_type="text/html", headers={**_HEADERS, **(headers or {})})
