"""Why there was no response, in words, and which causes no retry can remove."""

import os

import aiohttp

from harvester.transport.connection import CONNECT_SECONDS

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})
"""OpenSSL's reasons for a server that speaks plain text. Any other failed handshake may succeed the next time."""
_CLOCK = (
    "Set this machine's clock if it is wrong; otherwise the operator of the server, or of the proxy that inspects TLS, "
    "must renew it (SSL_CERT_FILE does not help)"
)
_NAME = (
    "Another server answers at this address: check --base-url, DNS, and whether a proxy that inspects TLS is in "
    "between (SSL_CERT_FILE does not help)"
)
_ADVICE = {9: _CLOCK, 10: _CLOCK, 62: _NAME, 64: _NAME}
"""By OpenSSL's X509_V_ERR: not yet valid, expired, host name mismatch, IP address mismatch."""


def permanent_cause(error: Exception) -> str | None:
    """Return the cause of a connection error that no retry can fix, with advice; None for any other."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        reason = str(getattr(cause, "verify_message", "") or cause).rstrip(".")
        advice = _ADVICE.get(getattr(cause, "verify_code", 0)) or _missing_authority()
        return f"the certificate of {error.host}:{error.port} was refused ({reason}). {advice}"
    if isinstance(error, aiohttp.ClientConnectorSSLError) and getattr(error.os_error, "reason", "") in _NO_TLS:
        return (
            f"{error.host}:{error.port} does not speak TLS ({error.os_error}). Check --base-url, and HTTPS_PROXY: most "
            "proxies are reached by http://, also for https"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500:
        return f"the proxy refused the connection ({error.status} {error.message}). Check HTTPS_PROXY and NO_PROXY"
    return None


def _missing_authority() -> str:
    file, has = os.environ.get("SSL_CERT_FILE"), ""
    if file:
        has = "; what it names now " + ("does not have it" if os.access(file, os.R_OK) else "cannot be read")
    advice = "A proxy that inspects TLS has a certificate authority of its own"
    return f"{advice}: set SSL_CERT_FILE to a PEM file that contains it{has}"


def transient_cause(error: Exception) -> str:
    """Return why there was no response; names a proxy by host and port only, because its URL may hold a password.

    error: one for which `permanent_cause` returns None.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status} {error.message}"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"the proxy {error.host}:{error.port} cannot be reached: {_reason_of(error.os_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port} cannot be reached: {_reason_of(error.os_error)}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, aiohttp.ClientResponseError):  # its own text has several lines, and quotes the response
        return f"the response is no HTTP: {' '.join(error.message.split())}"
    return f"{type(error).__name__}: {error}"


def _reason_of(error: OSError) -> str:
    """Return the system's text for an OSError, whose own text asyncio replaces with its own."""
    if isinstance(error.errno, int) and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
