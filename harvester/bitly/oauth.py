"""Bitly's OAuth 2 authorization code flow as pure functions: authorization URL, redirect, and token request.

https://dev.bitly.com/authentication.html. A redirect comes from a browser, so it may be forged, repeated or another
login's; a token response may repeat the secrets that were sent. Neither may get a secret into a message.
"""

import hmac
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

import orjson

from harvester.bitly.query import BASE_URL
from harvester.errors import HarvesterError, UsageError

CALLBACK = "/callback"
_MAX_FIELDS = 20
_SECRET = re.compile(r"[!-~]{1,4096}")
"""A code or a token."""


@dataclass(frozen=True, slots=True)
class App:
    """An OAuth app that is registered with Bitly."""

    client_id: str
    client_secret: str = field(repr=False)


class ForeignRedirect(HarvesterError):
    """A redirect that does not belong to this login. It is rejected, and the login goes on waiting."""


class Redirect:
    """The single redirect that a login accepts, recognised by its `state` parameter."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._received = False

    def code_in(self, query: str) -> str:
        """Return the authorization code in the query of a redirect; works once.

        Raises:
            ForeignRedirect: another login's state, or a repeated redirect.
            UsageError: the person or Bitly denied access, so no other redirect will follow.
        """
        try:
            fields = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
        except ValueError as error:
            raise ForeignRedirect("it cannot be read") from error
        if not hmac.compare_digest(_only(fields, "state").encode(), self._state.encode()):
            raise ForeignRedirect("its state belongs to another login")
        if self._received:
            raise ForeignRedirect("it was received before")
        self._received = True
        if "error" in fields:
            why = _error_code(fields, ()).strip() or "no reason given"
            raise UsageError(f"access was not granted ({why}): run harvester login again")
        code = _only(fields, "code")
        if not _SECRET.fullmatch(code):
            raise UsageError("Bitly's redirect has no code in it: run harvester login again")
        return code


def authorize_url(base_url: str, client_id: str, redirect_uri: str, state: str) -> str:
    """Return the URL of the page on which a person lets an app use the account."""
    # Bitly's page is not on its API's host: https://dev.bitly.com/authentication.html
    origin = "https://bitly.com" if _origin(base_url) == _origin(BASE_URL) else _origin(base_url)
    fields = {"client_id": client_id, "redirect_uri": redirect_uri, "state": state}
    return f"{origin}/oauth/authorize?{urlencode(fields)}"


def exchange(base_url: str, app: App, code: str, redirect_uri: str) -> tuple[str, dict[str, str]]:
    """Return the URL and the form of the request that exchanges a code for a token."""
    form = {
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "code": code,
        "redirect_uri": redirect_uri,
    }
    return f"{_origin(base_url)}/oauth/access_token", form


def parse_token_response(status: int, body: bytes, hidden: tuple[str, ...]) -> str:
    """Return the token in the response to the exchange. hidden: secrets that no message may repeat.

    Raises:
        UsageError: the response has no token.
    """
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        raise UsageError(
            f"the exchange was answered with an HTML page ({status}), which Bitly does not do: check --base-url, "
            "HTTPS_PROXY and NO_PROXY"
        )
    fields = _parse_fields(text)
    token = _only(fields, "access_token")
    if status == 200 and _SECRET.fullmatch(token):
        return token
    raise UsageError(
        f"the exchange was refused ({status}{_error_code(fields, hidden)}): check the client's id, its secret and its "
        "redirect URI; a code works once and expires soon, so run harvester login again"
    )


def _parse_fields(text: str) -> dict[str, list[str]]:
    """Parse a form, as Bitly answers this flow, or a JSON object, as it answers others."""
    try:
        if not text.startswith("{"):
            return parse_qs(text, max_num_fields=_MAX_FIELDS)
        record = orjson.loads(text)
    except ValueError:
        return {}
    return {name: [value] for name, value in record.items() if isinstance(value, str)}


def _error_code(fields: dict[str, list[str]], hidden: tuple[str, ...]) -> str:
    """Return the error's code, such as ` invalid_grant`, or nothing where it might be a secret."""
    for name in ("error", "message", "status_txt"):
        code = _only(fields, name)
        if re.fullmatch(r"[A-Za-z_]{3,60}", code) and not any(code in secret or secret in code for secret in hidden):
            return f" {code}"
    return ""


def _only(fields: dict[str, list[str]], name: str) -> str:
    """Return the value of a field that occurs exactly once, or an empty text."""
    values = fields.get(name, [])
    return values[0] if len(values) == 1 else ""


def _origin(base_url: str) -> str:
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}"
