"""A fake Bitly on loopback for trials, demos and tests: the metrics routes, the limits, the errors and the login.

`groups` has the routes of groups.

Responses depend on the link's name and the window alone. Back-halves that begin with `missing`, `gone` or `foreign` get
404, 410 and 403; all others get metrics. The token `revoked` is rejected, every other one accepted.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

from harvester.bitly.account_limits import PLATFORM_LIMITS, plan_limits_target
from harvester.bitly.facets import FACETS, Facet
from harvester.bitly.query import MAX_CONNECTIONS, UNITS, endpoint_of
from harvester.sandbox.clicks import metrics_for
from harvester.sandbox.groups import ORGANIZATION, ExportFault, Groups

_REFUSALS = {
    "missing": (404, "NOT_FOUND", "What you are looking for cannot be found."),
    "gone": (410, "GONE", "This resource was deleted."),
    "foreign": (403, "FORBIDDEN", "You are forbidden."),
}
"""Back-halves by their beginning: status, message and description of the response."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
CLIENT_SECRETS = {"sandbox": "sandbox-secret", "denied": "denied-secret"}
"""OAuth apps by client_id; a login of `denied` ends without access."""
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?/[!-~]*")


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """The sandbox's limits (0: none) and its behaviour.

    errors: the share of responses that are 500 or 503. links: bitlinks in the larger of its groups. active: the share
    of a group's links that may have clicks. exports: what is wrong with exports of groups.
    """

    connections: int = MAX_CONNECTIONS
    per_minute: int = 100
    per_hour: int = 1000
    per_month: int = 5000
    latency_ms: float = 80.0
    errors: float = 0.01
    links: int = 300
    active: float = 0.1
    exports: ExportFault = "none"


class Sandbox:
    """The fake server and its counts.

    requests: attempts by bitlink. answered: responses by bitlink that settle its call (metrics, 403, 404, 410). helped:
    requests by path of the routes that report limits. throttled: requests over a limit. too_many_connections: requests
    beyond the allowed connections. at_once: requests in progress now. exported: the links of each export.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.requests: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.helped: Counter[str] = Counter()
        self.consent = Consent()
        self.throttled = 0
        self.too_many_connections = 0
        self.at_once = 0
        self.exported: list[list[str]] = []
        self._began = time.monotonic()
        self._used: Counter[tuple[tuple[str, ...], int]] = Counter()

    def app(self) -> web.Application:
        """Return the aiohttp application: the login's routes at the root, all others below /v4."""
        app = web.Application()
        self.consent.add_to(app.router)
        for facet in FACETS.values():
            for bitlink in ("{domain}/{back_half}", "{bitlink}"):  # the second for a slash that is written as %2F
                app.router.add_get(f"/v4/bitlinks/{bitlink}{facet.path}", self._handler(facet))
        app.router.add_get("/v4" + PLATFORM_LIMITS, self._platform_limits)
        groups = Groups(
            self.options.links,
            self._reject_helper,
            delay_seconds=self.options.latency_ms / 1000,
            errors=self.options.errors,
            active=self.options.active,
            exports=self.options.exports,
        )
        self.exported = groups.exported
        groups.add_to(app.router, "/v4")
        app.router.add_get("/v4" + plan_limits_target(ORGANIZATION), self._plan_limits)
        app.router.add_route("*", "/{path:.*}", _no_route)
        return app

    def _handler(self, facet: Facet) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            self.at_once += 1
            try:
                return await self._answer(request, facet)
            finally:
                self.at_once -= 1

        return handle

    async def _answer(self, request: web.Request, facet: Facet) -> web.Response:
        bitlink = request.match_info.get("bitlink") or "{domain}/{back_half}".format(**request.match_info)
        domain, _, back_half = bitlink.partition("/")
        if not domain or not back_half:
            return await _no_route(request)
        self.requests[bitlink] += 1
        if refusal := self._reject(request, endpoint_of(facet)):
            return refusal
        if field := _invalid_field(request.query):
            return _invalid_argument(field)
        if self.options.latency_ms:
            await asyncio.sleep(self.options.latency_ms / 1000)
        if self._fails(bitlink):
            status, message = (500, "INTERNAL_ERROR") if len(bitlink) % 2 else (503, "TEMPORARILY_UNAVAILABLE")
            return _json(status, {"message": message})
        self.answered[bitlink] += 1
        for prefix, (status, message, description) in _REFUSALS.items():
            if back_half.startswith(prefix):
                return _json(status, {"message": message, "resource": "bitlinks", "description": description})
        size = int(request.query.get("size", "50"))
        return _json(200, metrics_for(bitlink, facet.name, size, **_window_of(request.query)))

    def _reject(self, request: web.Request, endpoint: str) -> web.Response | None:
        """Return the response to a request with a bad token or over a limit, else None."""
        authorization = request.headers.get("Authorization", "")
        if not authorization.startswith("Bearer "):
            return _json(401, {"message": "UNAUTHORIZED"})
        if authorization == "Bearer revoked":
            return _json(403, {"message": "FORBIDDEN"})
        if self.at_once > self.options.connections:
            self.too_many_connections += 1
            return _json(429, {"message": "RATE_LIMIT_EXCEEDED", "description": "too many connections at once"})
        if message := self._over_a_limit(authorization, endpoint):
            self.throttled += 1
            return _json(429, {"message": message})
        return None

    def _over_a_limit(self, token: str, endpoint: str) -> str | None:
        """Count a request in its fixed windows, or return the message of the first one that is full.

        As at Bitly, minute and hour belong to a token at an endpoint, the month to the account: all tokens share it.
        """
        options, since = self.options, time.monotonic() - self._began
        month = datetime.now(UTC).month
        windows = (
            (("minute", token, endpoint), int(since // 60), options.per_minute, "RATE_LIMIT_EXCEEDED"),
            (("hour", token, endpoint), int(since // 3600), options.per_hour, "RATE_LIMIT_EXCEEDED"),
            (("month",), month, options.per_month, "MONTHLY_LIMIT_EXCEEDED"),
        )
        for name, index, limit, message in windows:
            if limit and self._used[name, index] >= limit:
                return message
        for name, index, _, _ in windows:
            self._used[name, index] += 1
        return None

    def _fails(self, bitlink: str) -> bool:
        """Return True if this attempt fails, which depends on the link's name and the attempt's number alone."""
        seed = hashlib.sha256(f"{bitlink}#{self.requests[bitlink]}".encode()).digest()
        return int.from_bytes(seed[:4]) < self.options.errors * 2**32

    # --- helper routes ---------------------------------------------------------------------------------------------

    async def _platform_limits(self, request: web.Request) -> web.Response:
        """Report limit and count of the hour, as Bitly does; an empty list without an hourly limit."""
        if refusal := self._reject_helper(request, PLATFORM_LIMITS):
            return refusal
        endpoint, hour = request.query.get("path", ""), int((time.monotonic() - self._began) // 3600)
        known = endpoint in {endpoint_of(facet) for facet in FACETS.values()}
        if not known or not self.options.per_hour:
            return _json(200, {"platform_limits": []})
        window = ("hour", request.headers["Authorization"], endpoint)
        method = {"name": "GET", "limit": self.options.per_hour, "count": self._used[window, hour]}
        return _json(200, {"platform_limits": [{"endpoint": endpoint, "methods": [method]}]})

    async def _plan_limits(self, request: web.Request) -> web.Response:
        limit = {
            "name": "api_requests",
            "description": "API requests",
            "limit": self.options.per_month,
            "count": self._used[("month",), datetime.now(UTC).month],
        }
        return self._reject_helper(request, request.path.removeprefix("/v4")) or _json(
            200, {"organization_guid": ORGANIZATION, "plan_limits": [limit] if self.options.per_month else []}
        )

    def _reject_helper(self, request: web.Request, endpoint: str) -> web.Response | None:
        self.helped[request.path.removeprefix("/v4")] += 1
        return self._reject(request, endpoint)


def _window_of(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the window of a valid request, by the names of metrics_for."""
    reference = query.get("unit_reference") or f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}+0000"
    return {"unit": query.get("unit", "day"), "units": int(query.get("units", "-1")), "unit_reference": reference}


def _invalid_field(query: Mapping[str, str]) -> str | None:
    """Return the first parameter whose value Bitly would reject; parameters that are missing have defaults."""
    units = query.get("units", "-1")
    checks = {
        "unit": query.get("unit", "day") in UNITS,
        "units": bool(_INTEGER.fullmatch(units)) and (int(units) == -1 or int(units) > 0),
        "unit_reference": "unit_reference" not in query or _is_moment(query["unit_reference"]),
        "size": bool(_INTEGER.fullmatch(size := query.get("size", "50"))) and int(size) >= 0,
    }
    return next((field for field, valid in checks.items() if not valid), None)


def _is_moment(text: str) -> bool:
    """Return whether a text is ISO 8601; with a space, as of a `+` that was not encoded, it is not."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return " " not in text


def _invalid_argument(field: str) -> web.Response:
    errors = [{"field": field, "error_code": "invalid"}]
    return _json(400, {"message": f"INVALID_ARG_{field.upper()}", "resource": "bitlinks", "errors": errors})


async def _no_route(_: web.Request) -> web.Response:
    return web.Response(status=404, text="404 page not found")


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


@asynccontextmanager
async def serving(sandbox: Sandbox, port: int = 0) -> AsyncIterator[str]:
    """Serve the sandbox on 127.0.0.1 and yield its base URL; port 0 takes a free one.

    Raises:
        OSError: the port is in use.
    """
    runner = web.AppRunner(sandbox.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v4"
    finally:
        await runner.cleanup()


class Consent:
    """The login. tokens: all that were issued, in order."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        # Codes that were not exchanged yet, with the client_id and the redirect_uri that the exchange must repeat.
        self._codes: dict[str, tuple[str, str]] = {}

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the login's routes, which are at the server's root and not below /v4."""
        router.add_get("/oauth/authorize", self._authorize)
        router.add_post("/oauth/access_token", self._exchange)

    async def _authorize(self, request: web.Request) -> web.Response:
        """Redirect the browser at once, as Bitly's page does after a click."""
        client_id, redirect_uri = request.query.get("client_id", ""), request.query.get("redirect_uri", "")
        if client_id not in CLIENT_SECRETS:
            return web.Response(status=400, text="unknown client_id")
        if not _LOOPBACK.fullmatch(redirect_uri):
            return web.Response(status=400, text="redirect_uri: the sandbox knows this machine only")
        fields = {"state": request.query.get("state", "")}
        if client_id == "denied":
            fields["error"] = "access_denied"
        else:
            fields["code"] = secrets.token_hex(20)
            self._codes[fields["code"]] = client_id, redirect_uri
        return web.Response(status=302, headers={"Location": f"{redirect_uri}?{urlencode(fields)}"})

    async def _exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        client_id, secret, code, redirect_uri = (
            str(form.get(name, "")) for name in ("client_id", "client_secret", "code", "redirect_uri")
        )
        if CLIENT_SECRETS.get(client_id) != secret:
            return _json(400, {"message": "INVALID_CLIENT"})
        if self._codes.pop(code, None) != (client_id, redirect_uri):
            return _json(400, {"message": "INVALID_CODE"})
        self.tokens.append(secrets.token_hex(20))
        answer = {"access_token": self.tokens[-1], "login": "sandbox", "apiKey": "R_sandbox"}
        return web.Response(text=urlencode(answer), content_type="application/x-www-form-urlencoded")
