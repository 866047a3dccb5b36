"""The way to Bitly in a company: a forward proxy, and TLS with a certificate authority of its own, both real."""

import asyncio
import base64
import datetime as dt
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trustme
from yarl import URL

from tests.e2e.test_operations import wait_until
from tests.support.commands import NO_LIMITS, STATE_DIR, TOKEN, harvester, start
from tests.support.output_checks import failures, manifest, public, rows
from tests.support.proxies import proxying
from tests.support.scripted_bitly import Scripted, scripted
from tests.support.servers import in_thread

HOST = "api.example"
"""Resolved by the proxy alone: a name that no resolver knows."""
BASE = f"https://{HOST}/v4"
CREDENTIALS = "harvest:wordOfPassage"
LINKS = [f"ok--{i}" for i in range(30)]


class Company:
    """A certificate authority that SSL_CERT_FILE names already, and runs of the command in its network."""

    def __init__(self, folder: Path, authority: trustme.CA, transport: str) -> None:
        self.folder = folder
        self.transport = transport
        self.out = folder / "out"
        self._authority = authority
        self.pem = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(str(self.pem))

    def certified(self, *names: str, not_after: dt.datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names, not_after=not_after).configure_cert(context)
        return context

    def run(self, base_url: str, *options: str, **env: str) -> CompletedProcess[str]:
        command = ("run", "-", "--out", str(self.out), "--base-url", base_url, "--transport", self.transport)
        links = "".join(f"bit.ly/{link}\n" for link in LINKS)
        return harvester(
            *command, *NO_LIMITS, *options, env={STATE_DIR: str(self.folder / "state"), **env}, stdin=links.encode()
        )

    def check_nobody_is_written_off(self) -> None:
        """The output is begun and resumable: no link has failed or was refused, and none has a row."""
        assert failures(self.out) == []
        assert rows(self.out) == []
        assert not manifest(self.out)["complete"]
        assert not (public(self.out) / "_SUCCESS").exists()

    def holding(self, *secrets: str) -> list[str]:
        """Name the files, of the output or of the state, that hold one of some secrets."""
        files = {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        return [path for path, data in files.items() if any(secret.encode() in data for secret in secrets)]


@pytest.fixture(params=["auto", pytest.param("session", marks=pytest.mark.nightly)])
def company(tmp_path: Path, authority: trustme.CA, request: pytest.FixtureRequest) -> Company:
    """Everything here holds for both transports."""
    return Company(tmp_path, authority, request.param)


@pytest.fixture
def bitly(company: Company) -> Iterator[Scripted]:
    """Bitly under the name HOST, with a certificate of the company's."""
    with scripted(company.certified(HOST)) as server:
        yield server


def port_of(bitly: Scripted) -> int:
    port = URL(bitly.url).port
    assert port is not None
    return port


# --- proxies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_variable_is_honoured_and_the_proxy_resolves_the_name(
    company: Company, bitly: Scripted, name: str
) -> None:
    with proxying(port_of(bitly)) as proxy:
        done = company.run(BASE, **{name: proxy.url})
    assert done.returncode == 0, done.stderr
    assert len(rows(company.out)) == len(LINKS) == len(bitly.requests)
    assert set(proxy.asked) == {f"CONNECT {HOST}:443 HTTP/1.1"}
    assert len(proxy.asked) <= 5
    assert TOKEN not in proxy.headers


@pytest.mark.parametrize("exempted", ["127.0.0.1", "*", "other.example, 127.0.0.1"])
def test_no_proxy_is_honoured(company: Company, exempted: str) -> None:
    with scripted(company.certified("127.0.0.1")) as bitly, proxying(port_of(bitly)) as proxy:
        done = company.run(bitly.url, HTTPS_PROXY=proxy.url, NO_PROXY=exempted)
    assert done.returncode == 0, done.stderr
    assert len(rows(company.out)) == len(LINKS)
    assert proxy.asked == []


def test_a_proxys_password_reaches_the_proxy_and_nothing_else(company: Company, bitly: Scripted) -> None:
    with proxying(port_of(bitly), CREDENTIALS) as proxy:
        done = company.run(BASE, HTTPS_PROXY=proxy.url)
    assert done.returncode == 0, done.stderr
    assert "proxy-authorization" not in {name for seen in bitly.requests for name in seen.headers}
    secrets = ("wordOfPassage", base64.b64encode(CREDENTIALS.encode()).decode(), TOKEN)
    assert company.holding(*secrets) == []
    assert not any(secret in done.stdout + done.stderr for secret in secrets)


def test_a_netrc_is_not_read(company: Company, bitly: Scripted) -> None:
    netrc = company.folder / ".netrc"
    netrc.write_text(f"machine {HOST} login somebody password else\nmachine 127.0.0.1 login some password body\n")
    netrc.chmod(0o600)
    with proxying(port_of(bitly)) as proxy:
        done = company.run(BASE, HTTPS_PROXY=proxy.url, HOME=str(company.folder), NETRC=str(netrc))
    assert done.returncode == 0, done.stderr
    assert "Proxy-Authorization" not in proxy.headers
    assert {seen.headers["authorization"] for seen in bitly.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("given", ["", "harvest:wrongWord@"])
def test_a_proxy_that_wants_another_password_ends_with_2(company: Company, bitly: Scripted, given: str) -> None:
    with proxying(port_of(bitly), CREDENTIALS) as proxy:
        done = company.run(BASE, HTTPS_PROXY=f"http://{given}{proxy.address}")
    assert done.returncode == 2, done.stderr
    assert "the proxy refused the connection (407" in done.stderr
    assert "HTTPS_PROXY" in done.stderr
    assert "wrongWord" not in done.stderr
    assert company.holding("wrongWord", TOKEN) == []
    company.check_nobody_is_written_off()


def test_a_proxy_that_forbids_the_host_ends_with_2(company: Company, bitly: Scripted) -> None:
    with proxying(port_of(bitly), refusal="403 Not in this house") as proxy:
        done = company.run(BASE, HTTPS_PROXY=proxy.url)
    assert done.returncode == 2, done.stderr
    assert "403 Not in this house" in done.stderr
    company.check_nobody_is_written_off()


@pytest.mark.slow
@pytest.mark.parametrize("refusal", ["502 No way", ""], ids=["502", "down"])
def test_a_proxy_that_is_down_is_reported_by_name_as_an_outage(company: Company, bitly: Scripted, refusal: str) -> None:
    """It comes back, as a server does: that ends with 5, and the same command carries on."""
    with proxying(port_of(bitly), CREDENTIALS, refusal) as proxy:
        if refusal:
            done = company.run(BASE, "--outage-limit", "1s", HTTPS_PROXY=proxy.url)
    if not refusal:
        done = company.run(BASE, "--outage-limit", "1s", HTTPS_PROXY=proxy.url)
    assert done.returncode == 5, done.stderr
    said = "the proxy answered 502 No way" if refusal else f"the proxy {proxy.address} cannot be reached"
    assert said in done.stderr.partition("stopped: ")[2]
    assert "wordOfPassage" not in done.stderr
    assert company.holding("wordOfPassage", TOKEN) == []
    company.check_nobody_is_written_off()
    with proxying(port_of(bitly)) as proxy:
        assert company.run(BASE, HTTPS_PROXY=proxy.url).returncode == 0
    assert len(rows(company.out)) == len(LINKS)


@pytest.mark.slow
def test_a_proxy_that_dies_in_the_middle_costs_what_was_in_flight(company: Company, bitly: Scripted) -> None:
    links = "".join(f"bit.ly/later--{number}\n" for number in range(200)).encode()
    common = ("run", "-", "--out", str(company.out), "--base-url", BASE, *NO_LIMITS)
    env = {STATE_DIR: str(company.folder / "state")}
    with ExitStack() as way:
        proxy = way.enter_context(proxying(port_of(bitly)))
        env["HTTPS_PROXY"] = proxy.url
        with start(*common, "--outage-limit", "1s", env=env, stdin=subprocess.PIPE) as run:
            assert run.stdin
            assert run.stderr
            run.stdin.write(links)
            run.stdin.close()
            wait_until(lambda: len(bitly.requests) >= 20, run)
            way.close()
            said = run.stderr.read().decode()
            assert run.wait() == 5, said
    assert f"the proxy {proxy.address} cannot be reached" in said.partition("stopped: ")[2]
    had = len(rows(company.out))
    assert 15 <= had < 200
    with proxying(port_of(bitly)) as proxy:
        done = harvester(*common, env={**env, "HTTPS_PROXY": proxy.url}, stdin=links)
    assert done.returncode == 0, done.stderr
    assert len(rows(company.out)) == 200
    assert len(bitly.requests) <= 200 + 5


def test_a_handshake_that_breaks_off_now_and_then_ends_nothing(company: Company, bitly: Scripted) -> None:
    with proxying(port_of(bitly), alerts=2) as proxy:
        done = company.run(BASE, HTTPS_PROXY=proxy.url)
    assert done.returncode == 0, done.stderr
    assert proxy.alerts == 0
    assert len(rows(company.out)) == len(LINKS)


def test_a_proxy_that_speaks_no_tls_ends_with_2_when_it_is_named_by_https(company: Company) -> None:
    with in_thread(plain_server()) as address:
        done = company.run(BASE, HTTPS_PROXY=f"https://{address}")
    assert done.returncode == 2, done.stderr
    assert f"{address} does not speak TLS" in done.stderr
    assert "most proxies are reached by http://" in done.stderr
    company.check_nobody_is_written_off()


@asynccontextmanager
async def plain_server() -> AsyncIterator[str]:
    """Serve what answers everything in plain HTTP, as proxies answer a handshake."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


# --- certificates -------------------------------------------------------------------------------------------------


def test_ssl_cert_file_makes_a_companys_authority_known(company: Company) -> None:
    with scripted(company.certified("127.0.0.1")) as bitly:
        done = company.run(bitly.url, SSL_CERT_FILE=str(company.pem))
    assert done.returncode == 0, done.stderr
    assert len(rows(company.out)) == len(LINKS)


def test_a_name_is_looked_up_by_the_systems_resolver(company: Company) -> None:
    with scripted(company.certified("localhost")) as bitly:
        done = company.run(bitly.url.replace("127.0.0.1", "localhost"))
    assert done.returncode == 0, done.stderr
    assert len(rows(company.out)) == len(LINKS)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to name the file as OpenSSL looks for it")
def test_ssl_cert_dir_is_honoured_too(company: Company) -> None:
    folder = company.folder / "authorities"
    folder.mkdir()
    hashed = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(company.pem)]
    name = subprocess.run(hashed, check=True, capture_output=True, text=True).stdout.strip()
    (folder / f"{name}.0").write_bytes(company.pem.read_bytes())
    with scripted(company.certified("127.0.0.1")) as bitly:
        done = company.run(bitly.url, SSL_CERT_FILE="", SSL_CERT_DIR=str(folder))
    assert done.returncode == 0, done.stderr


def test_an_unknown_authority_ends_with_2_and_says_what_to_do(company: Company) -> None:
    with scripted(company.certified("127.0.0.1")) as bitly:
        done = company.run(bitly.url, SSL_CERT_FILE="")
        assert done.returncode == 2, done.stderr
        assert "proxy that inspects TLS" in done.stderr
        assert "set SSL_CERT_FILE to a PEM file" in done.stderr
        assert "what it names now" not in done.stderr
        assert bitly.requests == []
        assert manifest(company.out)["stopped"]["reason"] == "connection_refused"
        company.check_nobody_is_written_off()
        assert company.run(bitly.url).returncode == 0
    assert len(rows(company.out)) == len(LINKS)


def test_a_file_of_authorities_that_does_not_help_is_reported(company: Company) -> None:
    other = company.folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with scripted(company.certified("127.0.0.1")) as bitly:
        done = company.run(bitly.url, SSL_CERT_FILE=str(other))
        assert done.returncode == 2, done.stderr
        assert "what it names now does not have it" in done.stderr
        done = company.run(bitly.url, SSL_CERT_FILE=str(company.folder / "nowhere.pem"))
        assert done.returncode == 2, done.stderr
        assert "what it names now cannot be read" in done.stderr
    company.check_nobody_is_written_off()


def test_a_certificate_of_another_name_ends_with_2_and_says_so(company: Company, bitly: Scripted) -> None:
    done = company.run(bitly.url)
    assert done.returncode == 2, done.stderr
    assert "certificate is not valid for '127.0.0.1'" in done.stderr
    assert "check --base-url, DNS, and whether a proxy that inspects TLS is in between" in done.stderr
    assert "SSL_CERT_FILE" in done.stderr
    assert bitly.requests == []
    company.check_nobody_is_written_off()


def test_a_certificate_that_expires_between_two_runs_ends_the_second_and_keeps_what_came(company: Company) -> None:
    with scripted(company.certified("127.0.0.1")) as bitly:
        assert company.run(bitly.url, "--max-calls", "2").returncode == 9
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    with scripted(company.certified("127.0.0.1", not_after=yesterday)) as expired:
        done = company.run(expired.url)
        assert (done.returncode, expired.requests) == (2, [])
    assert "has expired" in done.stderr
    with scripted(company.certified("127.0.0.1")) as renewed:
        assert company.run(renewed.url).returncode == 0
        assert len(renewed.requests) == len(LINKS) - 2
    assert len(rows(company.out)) == len(LINKS)


def test_a_certificate_that_has_expired_ends_with_2_and_names_the_clock(company: Company) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    with scripted(company.certified("127.0.0.1", not_after=yesterday)) as bitly:
        done = company.run(bitly.url)
        assert bitly.requests == []
    assert done.returncode == 2, done.stderr
    assert "has expired" in done.stderr
    assert "this machine's clock" in done.stderr
    assert "proxy that inspects TLS" in done.stderr
    assert "SSL_CERT_FILE" in done.stderr
    company.check_nobody_is_written_off()
