"""`harvester login` and `harvester logout`: get a token from Bitly or from a person, and store it; or delete it.

In the browser it is OAuth's authorization code flow: Bitly redirects the browser to a server on loopback with a code,
which is exchanged for the token. The random `state` ties the redirect to this login.
"""

import asyncio
import os
import secrets
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from getpass import getpass

from aiohttp import web

from harvester.bearer import fingerprint
from harvester.bitly.oauth import (
    CALLBACK,
    App,
    ForeignRedirect,
    Redirect,
    authorize_url,
    exchange,
    parse_token_response,
)
from harvester.config.base_url import checked_base_url
from harvester.config.parsing import seconds_of
from harvester.credentials.options import LoginOptions, TokenStoreOptions
from harvester.credentials.secret_text import checked_secret, secret_in_file, warn_of_readers
from harvester.credentials.token_store import TokenStore
from harvester.errors import UsageError
from harvester.threads import in_daemon
from harvester.transport.http import post_form

_EXCHANGE_SECONDS = 30.0
_PASTED_BYTES = 64 * 1024

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Flow:
    """The settings of a login in the browser. base_url: validated."""

    base_url: str
    app: App
    port: int
    browser: bool
    timeout_seconds: float


def log_in(options: LoginOptions, tell: Tell) -> str:
    """Get a token, store it and return the closing message. tell: called with each line for the person meanwhile.

    Raises:
        UsageError: no token was given, or none can be stored.
    """
    base_url = checked_base_url(options.kept.base_url)
    flow = None if options.with_token else _flow_of(options, base_url, tell)
    tokens = TokenStore(base_url, options.kept.token_store)
    store = tokens.choose(options.store, tell)  # before a code is spent: it can be exchanged only once
    token = asyncio.run(_authorized_token(flow, tell)) if flow else _given_token()
    where = tokens.keep(token, store)
    if os.environ.get("BITLY_TOKEN", "").strip():
        tell("BITLY_TOKEN is set, and takes precedence over the stored token: unset it")
    return f"the token for {tokens.server} is stored in {where}; its fingerprint is {fingerprint(token)}"


def log_out(options: TokenStoreOptions, tell: Tell) -> str:
    """Delete the stored token and return the closing message.

    Raises:
        UsageError: the store cannot be changed.
    """
    tokens = TokenStore(checked_base_url(options.base_url), options.token_store)
    if not tokens.forget(tell):
        return f"no token was stored for {tokens.server}"
    return f"the stored token for {tokens.server} was deleted; revoke it at Bitly to invalidate it"


# --- from a person or a pipe ----------------------------------------------------------------------------------


def _given_token() -> str:
    if sys.stdin.isatty():
        return checked_secret(_asked_for("token"), "what was typed", "token")
    line = sys.stdin.buffer.readline(_PASTED_BYTES).decode(errors="replace")
    return checked_secret(line, "standard input", "token")


def _flow_of(options: LoginOptions, base_url: str, tell: Tell) -> Flow:
    if not options.client_id:
        raise UsageError(
            "a login in the browser needs the --client-id of your OAuth app (Bitly: Developer settings > Register new "
            "app); if you have a token (Settings > API), use harvester login --with-token"
        )
    return Flow(
        base_url=base_url,
        app=App(options.client_id, _client_secret(options.client_secret_file, tell)),
        port=options.port,
        browser=not options.no_browser,
        timeout_seconds=seconds_of("--wait", options.wait),
    )


def _client_secret(path: str | None, tell: Tell) -> str:
    what = "client secret"
    if path is not None:
        warn_of_readers("--client-secret-file", path, tell)
        return secret_in_file("--client-secret-file", path, what, tell)
    given = os.environ.get("HARVESTER_CLIENT_SECRET", "")
    if given.strip():
        return checked_secret(given, "HARVESTER_CLIENT_SECRET", what)
    if not sys.stdin.isatty():
        raise UsageError("no client secret: use --client-secret-file, or set HARVESTER_CLIENT_SECRET")
    return checked_secret(_asked_for(what), "what was typed", what)


def _asked_for(what: str) -> str:
    try:
        return getpass(f"{what} (not shown): ")
    except EOFError as error:
        raise UsageError(f"no {what} was typed") from error


# --- the web flow -----------------------------------------------------------------------------------------------------


async def _authorized_token(flow: Flow, tell: Tell) -> str:
    """Return the token that the person grants by authorizing the app in a browser."""
    state = secrets.token_urlsafe(32)
    redirect = Redirect(state)
    async with listening(flow.port, redirect, tell) as listener:
        uri = listener.redirect_uri
        address = authorize_url(flow.base_url, flow.app.client_id, uri, state)
        tell(f"redirect URI, to be registered with the OAuth app: {uri}")
        tell(f"open this address in a browser, and allow access:\n\n  {address}\n")
        waits = [asyncio.ensure_future(listener.code)]
        if flow.browser:
            opening = asyncio.ensure_future(_open(address, tell))
        else:
            tell("if the browser runs on another machine, paste the address of its last page (an error page) here")
            opening = None
            waits.append(asyncio.ensure_future(_pasted(redirect, tell)))
        try:
            code = await _first(waits, flow.timeout_seconds)
        finally:
            if opening is not None:
                opening.cancel()
        url, form = exchange(flow.base_url, flow.app, code, uri)
        status, body = await post_form(url, form, _EXCHANGE_SECONDS)
        return parse_token_response(status, body, (flow.app.client_secret, code))


async def _first(waits: list[asyncio.Future[str]], timeout_seconds: float) -> str:
    """Return the first code that arrives. Raises UsageError if none arrives in time, or access was denied."""
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise UsageError(
                f"access was not granted within {timeout_seconds:g} s (--wait): run harvester login again. "
                "If Bitly's page shows an error, check --client-id and the redirect URI registered with the app"
            )
        return done.pop().result()
    finally:
        for wait in waits:
            wait.cancel()


async def _open(address: str, tell: Tell) -> None:
    opened = False
    with suppress(webbrowser.Error):
        opened = await in_daemon(lambda: webbrowser.open(address))  # blocks while a browser in the terminal runs
    if not opened:
        tell("no browser could be opened: open the address by hand, or use --no-browser on a machine without one")


async def _pasted(redirect: Redirect, tell: Tell) -> str:
    """Return the code from the first pasted line that is the redirect's address; waits for ever at the end of input."""
    async for line in _lines():
        try:
            return redirect.code_in(line.partition("?")[2].partition("#")[0])
        except ForeignRedirect as error:
            tell(f"this address was refused: {error}; paste the whole address of the browser's last page")
    never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    return await never


async def _lines() -> AsyncIterator[str]:
    """Yield standard input's lines, without empty ones.

    Reads the descriptor, because a thread that holds the lock of sys.stdin would keep the interpreter from ending.
    """
    text, chunk = b"", b"more"
    while chunk and len(text) < _PASTED_BYTES:
        chunk = await in_daemon(lambda: os.read(0, _PASTED_BYTES))
        *lines, text = (text + (chunk or b"\n")).split(b"\n")
        for line in filter(None, map(bytes.strip, lines)):
            yield line.decode(errors="replace")


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
    """A server for one redirect. redirect_uri: where Bitly sends the browser. code: what the redirect brings."""

    redirect_uri: str
    code: asyncio.Future[str]


@asynccontextmanager
async def listening(port: int, redirect: Redirect, tell: Callable[[str], None]) -> AsyncIterator[Listener]:
    """Listen for a redirect on 127.0.0.1. port: 0 for a free one. The code may raise what `Redirect.code_in` raises.

    Raises:
        UsageError: the port cannot be opened.
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
            raise UsageError(f"{port}: {why}; use another, and register its redirect URI", option="--port") from error
        taken = runner.addresses[0][1]
        # Any other Host means that somebody has pointed a name of theirs at 127.0.0.1 (DNS rebinding).
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
        return _page(405, "Only a browser's redirect is accepted here.", {"Allow": "GET"})
    try:
        found = redirect.code_in(request.rel_url.raw_query_string)
    except ForeignRedirect as error:
        tell(f"a redirect was refused: {error}; still waiting for the right one")
        return _page(400, "This redirect was refused. Go back to the terminal, which says what to do.")
    except UsageError as error:
        if not code.done():
            code.set_exception(error)
        return _page(200, "Access was not granted. Go back to the terminal.")
    if not code.done():
        code.set_result(found)
    return _page(200, "Go back to the terminal, where harvester continues. You can close this page.")


def _page(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return a page, which repeats nothing of the request."""
    body = _PAGE.format(text)
    return web.Response(status=status, text=body, content_type="text/html", headers={**_HEADERS, **(headers or {})})
