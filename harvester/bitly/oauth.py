"""Bitly's OAuth2 web flow as pure functions: the page to open, what its redirect says, what the exchange answers."""

import hmac
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit

import orjson

from harvester.bitly.query import BASE_URL
from harvester.errors import HarvesterError, UsageError

CALLBACK = "/callback"
_FIELDS = 20
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class App:
    """An OAuth app that is registered with Bitly."""

    client_id: str
    client_secret: str = field(repr=False)


class ForeignRedirect(HarvesterError):
    """A redirect that is not the answer to this login: it is refused, and the true one waited for."""


class Redirect:
    """The one redirect that a login waits for, known by its state."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._taken = False

    def __repr__(self) -> str:
        return "Redirect(…)"

    def code_in(self, query: str) -> str:
        """Give the code in a redirect's query, once.

        Raises:
            ForeignRedirect: the state is another, or the redirect has come before.
            UsageError: Bitly says no, so that nothing more will come.
        """
        try:
            fields = parse_qs(query, keep_blank_values=True, max_num_fields=_FIELDS)
        except ValueError as error:
            raise ForeignRedirect("it cannot be read") from error
        if not hmac.compare_digest(_only(fields, "state").encode(), self._state.encode()):
            raise ForeignRedirect("its state is not this login's")
        if self._taken:
            raise ForeignRedirect("it has come before")
        self._taken = True
        if "error" in fields:
            why = _word_in(fields, ()).strip() or "no reason is told"
            raise UsageError(f"no access was given ({why}): harvester login asks again")
        code = _only(fields, "code")
        if not re.fullmatch(r"[!-~]+", code) or len(code) > _LONGEST:
            raise UsageError("Bitly's redirect has no code in it: run harvester login again")
        return code


def authorize_url(base_url: str, client_id: str, redirect_uri: str, state: str) -> str:
    """Give the address of the page on which a person allows an app to use the account."""
    # Bitly's page is not on its API's host: https://dev.bitly.com/authentication.html
    origin = "https://bitly.com" if _origin(base_url) == _origin(BASE_URL) else _origin(base_url)
    fields = {"client_id": client_id, "redirect_uri": redirect_uri, "state": state}
    return f"{origin}/oauth/authorize?{urlencode(fields)}"


def exchange(base_url: str, app: App, code: str, redirect_uri: str) -> tuple[str, dict[str, str]]:
    """Give the address at which a code is exchanged for a token, and the form to send there."""
    form = {
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "code": code,
        "redirect_uri": redirect_uri,
    }
    return f"{_origin(base_url)}/oauth/access_token", form


def parse_token_response(status: int, body: bytes, hidden: tuple[str, ...]) -> str:
    """Give the token in the answer to an exchange. hidden: what no message may repeat.

    Raises:
        UsageError: there is none in it.
    """
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        raise UsageError(
            f"the exchange was answered with an HTML page ({status}), which Bitly does not do: check --base-url, "
            "HTTPS_PROXY and NO_PROXY"
        )
    fields = _fields_of(text)
    token = _only(fields, "access_token")
    if status == 200 and re.fullmatch(r"[!-~]+", token) and len(token) <= _LONGEST:
        return token
    raise UsageError(
        f"the exchange was refused ({status}{_word_in(fields, hidden)}): check the client's id, its secret and its "
        "redirect URI; a code is good once and for a short time, so run harvester login again"
    )


def _fields_of(text: str) -> dict[str, list[str]]:
    """Read a form (as the web flow is answered) or a JSON object (as the other flow is)."""
    try:
        if not text.startswith("{"):
            return parse_qs(text, max_num_fields=_FIELDS)
        found = orjson.loads(text)
    except ValueError:
        return {}
    return {name: [value] for name, value in found.items() if isinstance(value, str)}


def _word_in(fields: dict[str, list[str]], hidden: tuple[str, ...]) -> str:
    """Give an error's code, such as invalid_grant, and nothing that might be a secret."""
    for name in ("error", "message", "status_txt"):
        word = _only(fields, name)
        if re.fullmatch(r"[A-Za-z_]{3,60}", word) and not any(word in secret or secret in word for secret in hidden):
            return f" {word}"
    return ""


def _only(fields: dict[str, list[str]], name: str) -> str:
    """Give the value of a field that must stand there once; else nothing."""
    values = fields.get(name, [])
    return values[0] if len(values) == 1 else ""


def _origin(base_url: str) -> str:
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}"
