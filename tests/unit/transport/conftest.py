"""Both ways of sending a request, and a server's certificate that is trusted."""

import ssl

import pytest
import trustme

from harvester.transport import http

HOST = "api.example"
TRANSPORTS = ("direct", "session")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What sends the requests of a test, whichever version of aiohttp is installed."""
    chosen: str = getattr(request, "param", TRANSPORTS[0])
    monkeypatch.setattr(http, "why_not", lambda: None if chosen == "direct" else "chosen by the test")
    return chosen


@pytest.fixture
def certified(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS for HOST by an authority that the client trusts."""
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", client)
    return server
