"""The sandbox's groups and their bitlinks, a function of the options alone: the routes of groups, with paging.

A share of the links, by default one in ten, may have clicks. The others have none: their back-halves, and those of
their custom bitlinks, begin with `idle`. Some have custom bitlinks, some are archived, and some have tags. The newest
comes first, and each is an hour older than the one before.
"""

import asyncio
import base64
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal

from aiohttp import web

from harvester.bitly.exports import EXPORTS_ENDPOINT, MOST_LINKS
from harvester.sandbox.clicks import IDLE, counts_between

ORGANIZATION = "Osandbox"
LARGE, SMALL = "Gsandbox", "Gsmall"
_SMALL_LINKS = 7
_MOST_SIZE = 100
_NEWEST = datetime(2026, 11, 1, tzinfo=UTC)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TAGS = ("email", "social", "print")
ExportFault = Literal["none", "missing", "truncated", "columns", "402", "403", "403-token", "404", "400", "503", "{}"]
"""What may be wrong with exports: links are left out, the end is cut off, columns have other names, or another answer
comes.
"""
_FAULTS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "402": (402, {"message": "UPGRADE_REQUIRED", "resource": "groups"}),
    "403": (403, {"message": "FORBIDDEN", "resource": "groups"}),
    "403-token": (403, {"message": "FORBIDDEN"}),
    "404": (404, {"message": "NOT_FOUND", "resource": "groups"}),
    "400": (400, {"message": "INVALID_ARG_UNIX_FROM", "resource": "groups"}),
    "503": (503, {"message": "TEMPORARILY_UNAVAILABLE"}),
    "{}": (200, {}),
}
_NOT_EXPORTED = ("missing", "gone", "foreign")
_SWITCH = {"on": (True,), "off": (False,), "both": (True, False)}
"""What a link may be under a filter such as `archived`."""


def group_of(guid: str) -> dict[str, Any]:
    """Return a group, with the fields that the specification requires."""
    return {
        "guid": guid,
        "organization_guid": ORGANIZATION,
        "name": "sandbox" if guid == LARGE else "small",
        "created": "2026-01-01T00:00:00+0000",
        "modified": "2026-01-01T00:00:00+0000",
        "is_active": True,
        "role": "org-admin",
        "bsds": [],
    }


def link_of(guid: str, number: int, active: float = 0.1) -> dict[str, Any]:
    """Return a bitlink of a group. number: its place, from 0 for the newest. active: the share that may have clicks."""
    seed = hashlib.sha256(f"{guid} {number}".encode()).digest()
    thousandths = round(1000 * active)
    idle = "" if number * thousandths % 1000 < thousandths else IDLE
    back_half = idle + "".join(_DIGITS[byte % len(_DIGITS)] for byte in seed[:7])
    custom_count = (number % 7 == 3) + (number % 21 == 3)
    customs = [f"https://bit.ly/{idle}custom-{guid}-{number}-{i}" for i in range(custom_count)]
    return {
        "created_at": f"{_NEWEST - timedelta(hours=number):%Y-%m-%dT%H:%M:%S}+0000",
        "id": f"bit.ly/{back_half}",
        "link": f"https://bit.ly/{back_half}",
        "custom_bitlinks": customs,
        "long_url": f"https://example.com/page/{number}?utm_source=sandbox",
        "title": f"Page {number}" if number % 5 else "",
        "archived": number % 8 == 5,
        "created_by": "sandbox",
        "client_id": "sandbox",
        "tags": [tag for rank, tag in enumerate(_TAGS) if seed[8] >> rank & 1],
        "launchpad_ids": [],
        "deeplinks": [],
        "campaign_ids": [],
        "references": {"group": f"https://api-ssl.bitly.com/v4/groups/{guid}"},
    }


class Groups:
    """The routes of groups. links: in the large group. reject: returns the response to a request over a limit.

    delay_seconds: the time that an answer takes. errors: the share of answers that are 503. active: the share of links
    that may have clicks. exports: what is wrong with each export, see ExportFault. exported: the links of each, in
    order.
    """

    def __init__(
        self,
        links: int,
        reject: Callable[[web.Request, str], web.Response | None],
        *,
        delay_seconds: float,
        errors: float,
        active: float = 0.1,
        exports: "ExportFault" = "none",
    ) -> None:
        self.links = {LARGE: links, SMALL: min(links, _SMALL_LINKS)}
        self.exported: list[list[str]] = []
        self._active = active
        self._fault = exports
        self._reject = reject
        self._delay_seconds = delay_seconds
        self._errors = errors
        self._attempts: Counter[str] = Counter()

    def add_to(self, router: web.UrlDispatcher, base: str) -> None:
        """Add the routes below a base path."""
        router.add_get(f"{base}/user", self._user)
        router.add_get(f"{base}/groups", self._groups)
        router.add_get(f"{base}/groups/{{guid}}", self._group)
        router.add_get(f"{base}/groups/{{guid}}/bitlinks", self._bitlinks)
        router.add_post(f"{base}/groups/{{guid}}/exports", self._exports)

    async def _user(self, request: web.Request) -> web.Response:
        moment = "2026-01-01T00:00:00+0000"
        user = {"login": "sandbox", "name": "sandbox", "is_active": True, "created": moment, "modified": moment}
        more = {"is_sso_user": False, "emails": [], "is_2fa_enabled": False, "default_group_guid": LARGE}
        return self._reject(request, "/user") or web.json_response(user | more)

    async def _groups(self, request: web.Request) -> web.Response:
        found = {"groups": [group_of(guid) for guid in self.links]}
        return self._reject(request, "/groups") or web.json_response(found)

    async def _group(self, request: web.Request) -> web.Response:
        if refusal := self._reject(request, "/groups/{group_guid}"):
            return refusal
        guid = request.match_info["guid"]
        return web.json_response(group_of(guid)) if guid in self.links else _not_found()

    async def _bitlinks(self, request: web.Request) -> web.Response:
        if refusal := self._reject(request, "/groups/{group_guid}/bitlinks"):
            return refusal
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        self._attempts[request.path_qs] += 1
        seed = hashlib.sha256(f"{request.path_qs}#{self._attempts[request.path_qs]}".encode()).digest()
        if int.from_bytes(seed[:4]) < self._errors * 2**32:
            return web.json_response({"message": "TEMPORARILY_UNAVAILABLE"}, status=503)
        guid = request.match_info["guid"]
        if guid not in self.links:
            return _not_found()
        if field := _invalid_field(request.query):
            message = {"message": f"INVALID_ARG_{field.upper()}", "resource": "bitlinks"}
            return web.json_response(message, status=400)
        return web.json_response(self._page(request, guid))

    async def _exports(self, request: web.Request) -> web.Response:
        if refusal := self._reject(request, EXPORTS_ENDPOINT):
            return refusal
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        asked = await request.json()
        self._attempts[request.path] += 1
        seed = hashlib.sha256(f"{request.path}#{self._attempts[request.path]}".encode()).digest()
        if int.from_bytes(seed[:4]) < self._errors * 2**32:
            return web.json_response({"message": "TEMPORARILY_UNAVAILABLE"}, status=503)
        if request.match_info["guid"] not in self.links:
            return _not_found()
        if field := _invalid_in_export(asked):
            return web.json_response({"message": f"INVALID_ARG_{field.upper()}", "resource": "groups"}, status=400)
        self.exported.append(asked["bitlinks"])
        if self._fault in _FAULTS:
            status, body = _FAULTS[self._fault]
            return web.json_response(body, status=status)
        return web.json_response(self._export(asked))

    def _export(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer with a CSV; links that other routes refuse are not in it."""
        links: list[str] = [link for link in asked["bitlinks"] if not link.partition("/")[2].startswith(_NOT_EXPORTED)]
        if self._fault == "missing":
            links = links[::2]
        elif self._fault == "truncated":
            links = links[: len(links) // 2]
        times = (datetime.fromtimestamp(asked[name], UTC) for name in ("unix_from", "unix_to"))
        span = tuple(times)
        lines = ["bitlink,clicks,scans,button_clicks"]
        for link in links:
            counts = counts_between(link, *span)
            lines.append(",".join([f"https://{link}", *map(str, counts.values())]))
        if self._fault == "columns":
            lines[0] = "bitlink,total,other,more"
        text = base64.b64encode("\r\n".join([*lines, ""]).encode()).decode()
        truncated = self._fault == "truncated"
        return {"data": f"data:text/csv;base64,{text}", "row_count": len(links), "truncated": truncated}

    def _page(self, request: web.Request, guid: str) -> dict[str, Any]:
        size = int(request.query.get("size", "50"))
        after = request.query.get("search_after", "")
        first = int(after.removeprefix("after"), 36) if after else 0
        found = self._matching(guid, first, request.query.getall("tags", []), request.query)
        links = list(islice(found, size))
        more = next(found, None) if len(links) == size else None
        token = f"after{_base36(links[-1][0] + 1)}" if more else ""
        query = {**request.query, "search_after": token}
        following = str(request.url.with_query(query)) if more else ""
        pagination = {"next": following, "search_after": token, "size": size}
        return {"links": [link for _, link in links], "pagination": pagination}

    def _matching(
        self, guid: str, first: int, tags: list[str], query: Mapping[str, str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the links that a request's filters let through, with their places."""
        archived, custom = _SWITCH[query.get("archived", "off")], _SWITCH[query.get("custom_bitlink", "both")]
        after, before = float(query.get("created_after", "-inf")), float(query.get("created_before", "inf"))
        for number in range(first, self.links[guid]):
            link = link_of(guid, number, self._active)
            created = (_NEWEST - timedelta(hours=number)).timestamp()
            tagged = not tags or not set(tags).isdisjoint(link["tags"])
            switched = link["archived"] in archived and bool(link["custom_bitlinks"]) in custom
            if tagged and switched and after < created < before:
                yield number, link


def _invalid_field(query: Mapping[str, str]) -> str | None:
    """Return the first parameter whose value Bitly would reject."""
    after = query.get("search_after", "")
    size = query.get("size", "50")
    checks = {
        "size": size.isascii() and size.isdigit() and 0 < int(size) <= _MOST_SIZE,
        "search_after": not after or (after.startswith("after") and after.isascii() and after.isalnum()),
        "archived": query.get("archived", "off") in _SWITCH,
        "custom_bitlink": query.get("custom_bitlink", "both") in _SWITCH,
        "created_after": query.get("created_after", "0").isdigit(),
        "created_before": query.get("created_before", "0").isdigit(),
    }
    return next((field for field, valid in checks.items() if not valid), None)


def _invalid_in_export(asked: Any) -> str | None:
    """Return the first field of an export's request that Bitly would reject."""
    if not isinstance(asked, dict):
        return "export_type"
    links, first, last = (asked.get(name) for name in ("bitlinks", "unix_from", "unix_to"))
    checks = {
        "export_type": asked.get("export_type") == "link_engagements_batch",
        "bitlinks": isinstance(links, list) and 0 < len(links) <= MOST_LINKS and all(isinstance(x, str) for x in links),
        "unix_from": type(first) is int and first > 0,
        "unix_to": type(last) is int and type(first) is int and first < last <= time.time() + 1,
    }
    return next((field for field, valid in checks.items() if not valid), None)


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = _DIGITS[rest] + digits
    return digits or "0"


def _not_found() -> web.Response:
    body = {"message": "NOT_FOUND", "resource": "groups", "description": "What you are looking for cannot be found."}
    return web.json_response(body, status=404)
