"""Logging in: the test plays the browser, the sandbox is Bitly; and what must never be taken for Bitly's answer."""

import asyncio
import http.client
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import aiohttp
import pytest

from harvester.bearer import fingerprint
from harvester.bitly.oauth import App, ForeignRedirect, Redirect, authorize_url, exchange, parse_token_response
from harvester.cli.login import _open, listening
from harvester.credentials.token_store import TokenStore
from harvester.errors import UsageError
from harvester.sandbox import CLIENT_SECRETS
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, TOKEN, TOKEN_STORE, environment, harvester, start
from tests.support.in_process import command
from tests.support.servers import in_thread

SECRET = CLIENT_SECRETS["sandbox"]
NONE = {"BITLY_TOKEN": ""}


class Browser:
    """A login that waits, and the browser that it waits for. shown: what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.shown = ""
        assert process.stderr
        while not self.shown.rstrip(" ").endswith("\n\n") or "  http" not in self.shown:
            line = process.stderr.readline().decode()
            assert line, self.shown
            self.shown += line
        found = re.search(r"^  (http\S+)$", self.shown, re.MULTILINE)
        assert found
        self.address = found[1]
        self.fields = {name: values[0] for name, values in parse_qs(urlsplit(self.address).query).items()}
        self.redirect_uri, self.state = self.fields["redirect_uri"], self.fields["state"]

    def allow(self) -> str:
        """Open Bitly's page, and give the address that it sends the browser to."""
        status, location, _ = get(self.address)
        assert (status, location is not None) == (302, True)
        return str(location)

    def ended(self, pasted: str | None = None) -> tuple[int, str, str]:
        """Wait for the end, and give the exit code and what was written to both streams."""
        out, err = self.process.communicate(pasted.encode() if pasted is not None else None, timeout=30)
        return self.process.returncode, out.decode(), self.shown + err.decode()


def get(
    url: str, method: str = "GET", host: str | None = None, body: bytes | None = None
) -> tuple[int, str | None, str]:
    """Ask for an address; give status, Location and body. host: another Host header."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, {"Host": host or parts.netloc})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Location"), answer.read().decode()
    finally:
        connection.close()


@contextmanager
def login(
    url: str, *options: str, client: str = "sandbox", secret: str = SECRET, port: int = 0, **env: str
) -> Iterator[Browser]:
    command = ("login", "--no-browser", "--port", str(port), "--base-url", url, "--client-id", client, *options)
    process = start(*command, env={**NONE, "HARVESTER_CLIENT_SECRET": secret, **env}, stdin=subprocess.PIPE)
    try:
        yield Browser(process)
    finally:
        process.kill()
        process.communicate()


# --- the way through --------------------------------------------------------------------------------------------------


def test_after_a_login_a_run_needs_no_other_token_and_no_secret_was_shown(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve()
    with login(served.url) as browser:
        location = browser.allow()
        status, _, page = get(location)
        code, out, err = browser.ended()
    assert (status, code) == (200, 0), err
    assert "Go back to the terminal" in page
    token = served.sandbox.consent.tokens[-1]
    brought = parse_qs(urlsplit(location).query)["code"][0]
    assert fingerprint(token) in out
    assert TokenStore(served.url, os.environ[TOKEN_STORE]).read() == (token, *re.findall(r"stored in (\S+);", out))
    assert [stat.S_IMODE(path.stat().st_mode) for path in Path(os.environ[TOKEN_STORE]).iterdir()] == [0o600]
    done = harvester(
        "run", "-", "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS, env=NONE, stdin=b"bit.ly/a\n"
    )
    assert done.returncode == 0, done.stderr
    assert fingerprint(token) in done.stderr
    for secret in (token, SECRET, brought):
        assert secret not in out + err + page + done.stdout + done.stderr


def test_the_redirect_uri_to_register_is_shown_and_has_the_port_asked_for(serve: Callable[..., Served]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with login(serve().url, port=port) as browser:
        assert browser.redirect_uri == f"http://127.0.0.1:{port}/callback"
        assert f"registered with the OAuth app: {browser.redirect_uri}\n" in browser.shown


def test_a_taken_port_is_reported(serve: Callable[..., Served]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for each in (port, "70000", "-1"):
            done = harvester(
                *("login", "--client-id", "sandbox", "--port", each, "--base-url", serve().url),
                env={**NONE, "HARVESTER_CLIENT_SECRET": SECRET},
            )
            assert done.returncode == 2, done.stderr
            assert f"--port {each}" in done.stderr


def test_the_users_browser_is_opened(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, script = serve(), tmp_path / "browser.py"
    script.write_text("import sys, urllib.request\nurllib.request.urlopen(sys.argv[1]).close()\n")
    env = {**NONE, "HARVESTER_CLIENT_SECRET": SECRET, "BROWSER": f"{sys.executable} {script} %s"}
    done = harvester("login", "--client-id", "sandbox", "--port", "0", "--base-url", served.url, env=env)
    assert done.returncode == 0, done.stderr
    assert fingerprint(served.sandbox.consent.tokens[-1]) in done.stdout


async def test_a_browser_that_cannot_be_opened_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    for opens in (lambda _: False, broken):
        said: list[str] = []
        monkeypatch.setattr(webbrowser, "open", opens)
        await _open("http://127.0.0.1:1/", said.append)
        assert "open the address by hand" in said[0]


def test_the_redirects_address_can_be_pasted(serve: Callable[..., Served]) -> None:
    served = serve()
    with login(served.url) as browser:
        location = browser.allow()
        wrong = location.replace(browser.state, "another")
        code, out, err = browser.ended(f"\n{wrong}\nnonsense\n{location}")
    assert code == 0, err
    assert fingerprint(served.sandbox.consent.tokens[-1]) in out
    assert err.count("this address was refused: its state belongs to another login") == 2


def test_with_standard_input_closed_the_login_still_waits_for_the_redirect(serve: Callable[..., Served]) -> None:
    with login(serve().url) as browser:
        assert browser.process.stdin
        browser.process.stdin.close()
        browser.process.stdin = None
        assert get(browser.allow())[0] == 200
        assert browser.ended()[0] == 0


# --- what is refused --------------------------------------------------------------------------------------------------


def forged(browser: Browser) -> dict[str, tuple[int, str, str, str | None]]:
    """What others may send: the status it must have, address, method, Host."""
    uri, port = browser.redirect_uri, urlsplit(browser.redirect_uri).port
    good = f"{uri}?{urlencode({'code': 'forged', 'state': browser.state})}"
    return {
        "another state": (400, f"{uri}?code=forged&state=another", "GET", None),
        "no state": (400, f"{uri}?code=forged", "GET", None),
        "an error without the state": (400, f"{uri}?error=access_denied", "GET", None),
        "two states": (400, f"{good}&state=another", "GET", None),
        "many fields": (400, f"{good}{'&a=b' * 50}", "GET", None),
        "POST": (405, good, "POST", None),
        "HEAD": (405, good, "HEAD", None),
        "another path": (404, good.replace("/callback", "/"), "GET", None),
        "a path like it": (404, good.replace("/callback", "/%63allback"), "GET", None),
        "another host": (421, good, "GET", f"evil.example:{port}"),
        "another port": (421, good, "GET", "127.0.0.1:1"),
    }


def test_only_the_redirect_of_this_login_is_accepted_and_the_wait_goes_on(serve: Callable[..., Served]) -> None:
    served = serve()
    with login(served.url) as browser:
        for what, (expected, url, method, host) in forged(browser).items():
            status, _, page = get(url, method, host)
            assert status == expected, what
            assert "forged" not in page
        assert get(browser.allow())[0] == 200
        code, out, err = browser.ended()
    assert code == 0, err
    assert fingerprint(served.sandbox.consent.tokens[-1]) in out
    assert err.count("a redirect was refused") == 5
    assert "forged" not in out + err


@asynccontextmanager
async def waiting(said: list[str]) -> AsyncIterator[tuple[str, asyncio.Future[str], aiohttp.ClientSession]]:
    async with listening(0, Redirect("good"), said.append) as listener, aiohttp.ClientSession() as session:
        yield listener.redirect_uri, listener.code, session


async def test_a_redirect_is_taken_once() -> None:
    said: list[str] = []
    async with waiting(said) as (uri, code, session):
        for expected in (200, 400):
            async with session.get(f"{uri}?code=first&state=good") as answer:
                assert answer.status == expected
        assert await code == "first"
    assert said == ["a redirect was refused: it was received before; still waiting for the right one"]


async def test_the_page_after_a_redirect_is_not_cached_and_loads_nothing() -> None:
    async with waiting([]) as (uri, _, session), session.get(f"{uri}?code=first&state=good") as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'"
        assert "first" not in await answer.text()


@pytest.mark.parametrize("query", ["state=good", "state=good&code=", "state=good&code=%00", "state=good&code=a&code=b"])
def test_a_redirect_without_a_code_ends_the_login(query: str) -> None:
    with pytest.raises(UsageError, match="no code"):
        Redirect("good").code_in(query)


@pytest.mark.parametrize(
    "query", ["", "&&", "state", "state=", "state=%ff", "state=Good", "STATE=good", "state=good%20"]
)
def test_the_whole_state_is_compared(query: str) -> None:
    with pytest.raises(ForeignRedirect):
        Redirect("good").code_in(query + "&code=a")


def test_access_that_is_denied_ends_the_login(serve: Callable[..., Served]) -> None:
    with login(serve().url, client="denied", secret="denied-secret") as browser:
        status, _, page = get(browser.allow())
        code, out, err = browser.ended()
    assert (status, code, out) == (200, 2, "")
    assert "Access was not granted" in page
    assert "access_denied" in err
    assert not list(Path(os.environ[TOKEN_STORE]).iterdir())


def test_a_login_that_is_not_answered_times_out(serve: Callable[..., Served]) -> None:
    with login(serve().url, "--wait", "0.5s") as browser:
        code, _, err = browser.ended()
    assert code == 2
    assert "--wait" in err


def test_control_c_ends_a_login_quietly(serve: Callable[..., Served]) -> None:
    with login(serve().url) as browser:
        browser.process.send_signal(signal.SIGINT)
        code, out, err = browser.ended()
    assert (code, out) == (130, "")
    assert "Traceback" not in err


# --- the exchange -----------------------------------------------------------------------------------------------------


def test_a_wrong_secret_is_refused_and_not_repeated(serve: Callable[..., Served]) -> None:
    with login(serve().url, secret="wrong-secret") as browser:
        get(browser.allow())
        code, out, err = browser.ended()
    assert (code, out) == (2, "")
    assert "INVALID_CLIENT" in err
    assert "wrong-secret" not in err


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"access_token=" + TOKEN.encode() + b"&login=me&apiKey=R_1"),
        (200, b"access_token=" + TOKEN.encode()),
        (200, b'{"access_token": "' + TOKEN.encode() + b'", "login": "me", "expires": 0}\n'),
    ],
)
def test_the_token_is_in_a_form_or_in_json(status: int, body: bytes) -> None:
    assert parse_token_response(status, body, ()) == TOKEN


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>log in to the proxy</html>", "HTML"),
        (200, b"", "200"),
        (200, b"{}", "200"),
        (200, b"{", "200"),
        (200, b'{"access_token": 7}', "200"),
        (200, b"access_token=two%20words", "200"),
        (200, b"access_token=a&access_token=b", "200"),
        (200, b"access_token=" + b"a" * 5000, "200"),
        (200, b"\xff\xfe\x00", "200"),
        (200, b"a=b&" * 100, "200"),
        (302, b"access_token=" + TOKEN.encode(), "302"),
        (400, b'{"error": "invalid_grant"}', "400 invalid_grant"),
        (400, b"error=invalid_grant", "400 invalid_grant"),
        (500, b'{"status_txt": "INVALID_CODE"}', "500 INVALID_CODE"),
        (403, b'{"message": "thesecret"}', "403)"),
        (403, b'{"message": "bad code thecode"}', "403)"),
    ],
)
def test_an_answer_without_a_token_is_reported_without_the_secret(status: int, body: bytes, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_token_response(status, body, ("thesecret", "thecode"))
    text = str(refused.value)
    assert said in text
    assert not {secret for secret in ("thesecret", "thecode", TOKEN) if secret in text}


def test_a_server_that_is_gone_at_the_exchange_is_reported(serve: Callable[..., Served]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v4"
    with login(url) as browser:
        get(f"{browser.redirect_uri}?{urlencode({'code': 'c0de', 'state': browser.state})}")
        code, _, err = browser.ended()
    assert code == 2
    assert "127.0.0.1" in err
    assert "cannot be reached" in err
    assert "c0de" not in err


@asynccontextmanager
async def refusing_proxy(seen: list[bytes]) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_the_exchange_goes_through_the_proxy() -> None:
    seen: list[bytes] = []
    with (
        in_thread(refusing_proxy(seen)) as port,
        login("https://bitly.invalid/v4", HTTPS_PROXY=f"http://me:pr0xy@127.0.0.1:{port}") as browser,
    ):
        get(f"{browser.redirect_uri}?{urlencode({'code': 'c0de', 'state': browser.state})}")
        code, _, err = browser.ended()
    assert code == 2
    assert b"CONNECT bitly.invalid:443" in seen[0]
    assert "HTTPS_PROXY" in err
    assert "pr0xy" not in err


def test_an_apps_secret_does_not_show() -> None:
    assert SECRET not in repr(App("sandbox", SECRET))
    assert "good" not in repr(Redirect("good"))


@pytest.mark.parametrize(
    ("base_url", "page", "token"),
    [
        ("https://api-ssl.bitly.com/v4", "https://bitly.com/oauth/", "https://api-ssl.bitly.com/oauth/"),
        ("http://127.0.0.1:8080/v4", "http://127.0.0.1:8080/oauth/", "http://127.0.0.1:8080/oauth/"),
    ],
)
def test_bitlys_page_is_on_another_host_than_its_api(base_url: str, page: str, token: str) -> None:
    address = authorize_url(base_url, "an id", "http://127.0.0.1:1/callback", "good")
    uri = quote("http://127.0.0.1:1/callback", safe="")
    assert address == f"{page}authorize?client_id=an+id&redirect_uri={uri}&state=good"
    url, form = exchange(base_url, App("id", "secret"), "code", "uri")
    assert url == f"{token}access_token"
    assert form == {"client_id": "id", "client_secret": "secret", "code": "code", "redirect_uri": "uri"}


# --- what is asked for first ------------------------------------------------------------------------------------------


def test_without_an_app_the_message_names_the_token_from_standard_input() -> None:
    done = harvester("login", env=NONE)
    assert done.returncode == 2
    assert "--client-id" in done.stderr
    assert "--with-token" in done.stderr


def test_without_a_secret_and_a_terminal_the_places_are_named() -> None:
    done = harvester("login", "--client-id", "me", env=NONE)
    assert done.returncode == 2
    assert "--client-secret-file" in done.stderr
    assert "HARVESTER_CLIENT_SECRET" in done.stderr


def test_the_secret_may_be_in_a_file_and_one_that_others_can_read_is_warned_about(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o644)
    with login(serve().url, "--client-secret-file", str(path), secret="wrong") as browser:
        get(browser.allow())
        code, _, err = browser.ended()
    assert code == 0
    assert f"--client-secret-file {path} can be read by others: chmod 600 {path}" in err
    done = harvester("login", "--client-id", "me", "--client-secret-file", str(tmp_path / "none"), env=NONE)
    assert done.returncode == 2
    assert "--client-secret-file" in done.stderr


# --- a token that is there --------------------------------------------------------------------------------------------


def test_a_token_from_standard_input_is_kept_and_forgotten(serve: Callable[..., Served]) -> None:
    url = serve().url
    done = harvester("login", "--with-token", "--base-url", url, env=NONE, stdin=f" {TOKEN}\r\nnote\n".encode())
    assert done.returncode == 0, done.stderr
    assert fingerprint(TOKEN) in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    first, again = (harvester("logout", "--base-url", url, env=NONE) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0)
    assert f"deleted: {os.environ[TOKEN_STORE]}" in first.stderr
    assert "revoke it at Bitly to invalidate it" in first.stdout
    assert "no token was stored" in again.stdout


@pytest.mark.parametrize("text", [b"", b"\n", b"s3cret word\n", b"s3cret\xff\n", b"Bearer s3cret"])
def test_text_that_is_not_a_token_is_neither_stored_nor_printed(text: bytes) -> None:
    done = harvester("login", "--with-token", env=NONE, stdin=text)
    assert done.returncode == 2
    assert "s3cret" not in done.stdout + done.stderr
    assert not list(Path(os.environ[TOKEN_STORE]).iterdir())


def test_a_token_in_the_environment_is_reported_to_take_precedence(serve: Callable[..., Served]) -> None:
    done = harvester("login", "--with-token", "--base-url", serve().url, stdin=b"another")
    assert done.returncode == 0
    assert "BITLY_TOKEN is set" in done.stderr


@pytest.mark.skipif(shutil.which("setsid") is None, reason="a terminal of one's own needs setsid")
def test_on_a_terminal_the_token_is_asked_for_and_not_shown() -> None:
    master, slave = os.openpty()
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "harvester", "login", "--with-token"]
    process = subprocess.Popen(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(NONE), cwd=ROOT
    )
    os.close(slave)
    shown = b""
    while b"(not shown): " not in shown:
        shown += os.read(master, 1024)
    os.write(master, f"{TOKEN}\n".encode())
    out, err = process.communicate(timeout=30)
    shown += os.read(master, 1024)
    os.close(master)
    assert process.returncode == 0, err
    assert fingerprint(TOKEN).encode() in out
    assert TOKEN.encode() not in shown + out + err


# --- the sandbox's routes ---------------------------------------------------------------------------------------------


def post(url: str, form: dict[str, str]) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/oauth/access_token", urlencode(form), headers)
    answer = connection.getresponse()
    status, body = answer.status, answer.read().decode()
    connection.close()
    return status, body


def test_the_sandbox_exchanges_a_code_once_for_its_app_and_redirect_uri_alone(serve: Callable[..., Served]) -> None:
    url = serve().url
    uri = "http://127.0.0.1:9/callback"

    def new_code() -> str:
        location = get(authorize_url(url, "sandbox", uri, "s"))[1]
        return parse_qs(urlsplit(location or "").query)["code"][0]

    good = {"client_id": "sandbox", "client_secret": SECRET, "redirect_uri": uri}
    code = new_code()
    assert post(url, {**good, "code": code})[0] == 200
    assert post(url, {**good, "code": code}) == (400, '{"message":"INVALID_CODE"}')
    assert post(url, {**good, "code": "made-up"})[0] == 400
    assert post(url, {**good, "code": new_code(), "redirect_uri": "http://127.0.0.1:9/"})[0] == 400
    assert post(url, {**good, "code": new_code(), "client_secret": "x"}) == (400, '{"message":"INVALID_CLIENT"}')


def test_the_sandbox_sends_nobody_to_another_machine_and_knows_its_apps(serve: Callable[..., Served]) -> None:
    url = serve().url
    assert get(authorize_url(url, "sandbox", "http://evil.example/callback", "s"))[0] == 400
    assert get(authorize_url(url, "somebody", "http://127.0.0.1:9/callback", "s"))[0] == 400


def test_what_a_logout_says_is_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = "http://127.0.0.1:9/v4"
    assert harvester("login", "--with-token", "--base-url", host, env=NONE, stdin=TOKEN.encode()).returncode == 0
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    said = command(capsys, "logout", "--base-url", host).out.splitlines()
    assert any(line.endswith(" it at Bitly to invalidate it") or line.startswith("  ") for line in said)
    assert all(len(line) <= 50 or line.startswith(("deleted: ", "  /")) for line in said)
