"""The sandbox's OAuth2 routes: a page that allows at once, and the exchange of its codes for tokens.

The app `sandbox` is registered, with the secret `sandbox-secret`; so is `denied`, to which nobody gives access.
"""

import re
import secrets
from base64 import b64decode
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

CLIENT_SECRETS = {"sandbox": "sandbox-secret", "denied": "denied-secret"}
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/[!-~]*")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a code was given for; the exchange must say the same."""

    client_id: str
    redirect_uri: str


class Consent:
    """Who was given access. codes: those not yet exchanged. tokens: those given, in their order."""

    def __init__(self) -> None:
        self.codes: dict[str, Grant] = {}
        self.tokens: list[str] = []

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes, which are at the server's root and not below /v4."""
        router.add_get("/oauth/authorize", self._authorize)
        router.add_post("/oauth/access_token", self._exchange)

    async def _authorize(self, request: web.Request) -> web.Response:
        """Send the browser back at once, as Bitly's page does when a person has clicked."""
        grant = Grant(request.query.get("client_id", ""), request.query.get("redirect_uri", ""))
        if grant.client_id not in CLIENT_SECRETS:
            return web.Response(status=400, text="unknown client_id")
        if not _LOOPBACK.fullmatch(grant.redirect_uri):
            return web.Response(status=400, text="redirect_uri: the sandbox knows this machine only")
        fields = {"state": request.query.get("state", "")}
        if grant.client_id == "denied":
            fields["error"] = "access_denied"
        else:
            fields["code"] = secrets.token_hex(20)
            self.codes[fields["code"]] = grant
        return web.Response(status=302, headers={"Location": f"{grant.redirect_uri}?{urlencode(fields)}"})

    async def _exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("grant_type") == "password":
            return self._by_password(request, {name: str(value) for name, value in form.items()})
        given = {name: str(form.get(name, "")) for name in ("client_id", "client_secret", "code", "redirect_uri")}
        if not _is_registered(given["client_id"], given["client_secret"]):
            return _refused("INVALID_CLIENT")
        if self.codes.pop(given["code"], None) != Grant(given["client_id"], given["redirect_uri"]):
            return _refused("INVALID_CODE")
        fields = {"access_token": self._new_token(), "login": "sandbox", "apiKey": "R_sandbox"}
        return web.Response(text=urlencode(fields), content_type="application/x-www-form-urlencoded")

    def _by_password(self, request: web.Request, form: dict[str, str]) -> web.Response:
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        try:
            client_id, _, client_secret = b64decode(sent, validate=True).decode().partition(":")
        except ValueError:
            return _refused("INVALID_CLIENT")
        if scheme != "Basic" or not _is_registered(client_id, client_secret):
            return _refused("INVALID_CLIENT")
        if not form.get("username") or form.get("password") in {None, "", "wrong"}:
            return _refused("INVALID_LOGIN")
        return _json(200, {"access_token": self._new_token()})

    def _new_token(self) -> str:
        self.tokens.append(secrets.token_hex(20))
        return self.tokens[-1]


def _is_registered(client_id: str, client_secret: str) -> bool:
    return client_id in CLIENT_SECRETS and CLIENT_SECRETS[client_id] == client_secret


def _refused(message: str) -> web.Response:
    return _json(400, {"message": message})


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
