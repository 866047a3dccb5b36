"""A Bitly whose answers a test draws, what each of them means, and a server for them on loopback.

The meaning is written down anew here, from what Bitly documents and what was recorded, so that it can contradict the
code.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

INT64 = range(2**63)
Item = Mapping[str, Any]


class Meaningless(Exception):
    """An answer without the facet's metrics."""


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise Meaningless
    return value


def count(value: Any) -> int:
    if type(value) is not int or value not in INT64:  # a range is searched, number by number, for anything else
        raise Meaningless
    return value


def moment(value: Any) -> str:
    try:
        found = datetime.fromisoformat(text(value))
        return f"{found.astimezone(UTC) if found.tzinfo else found:%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):
        raise Meaningless from None


def _pair(item: Item) -> Item:
    return {"value": text(item.get("value")), "clicks": count(item.get("clicks"))}


def _city(item: Item) -> Item:
    names = {name: item.get(name) for name in ("city", "subregion", "region", "country")}
    return {**names, "clicks": count(item.get("clicks"))}


def _device(item: Item) -> Item:
    return {"device_type": text(item.get("device_type")), "clicks": count(item.get("clicks"))}


def _then(item: Item) -> Item:
    return {"date": moment(item.get("date")), "clicks": count(item.get("clicks"))}


def _engagements(item: Item, total: str) -> Item:
    kinds = item.get("engagements", {})
    found = {name: count(kinds[name]) if name in kinds else None for name in ("clicks", "scans", "lib_button_clicks")}
    return {"engagement_count": count(item.get(total)), **found}


def _engagements_then(item: Item) -> Item:
    return {"date": moment(item.get("date")), **_engagements(item, "engagement_count")}


def _referrer(item: Item) -> Item:
    """Read `{key, value}`, the specification's shape."""
    return {"value": text(item.get("key")), "clicks": count(item.get("value"))}


LISTS: dict[str, tuple[str, Callable[[Item], Item]]] = {
    "referrers": ("metrics", _pair),
    "referrer_name": ("metrics", _pair),
    "referring_domains": ("metrics", _pair),
    "countries": ("metrics", _pair),
    "cities": ("metrics", _city),
    "devices": ("metrics", _device),
    "referrers_by_domains": ("referrers_by_domain", _referrer),
    "clicks": ("link_clicks", _then),
    "engagements": ("engagements", _engagements_then),
}
OTHER_NAMES = {"referrer_name": "referring_networks"}
_ECHO = {"unit", "units", "unit_reference"}


def meaning(facet: str, body: Item) -> list[Item] | None:
    """The metrics of an answer that the specification allows; None if it is not the facet's, or not whole."""
    try:
        if body.get("facet", facet) not in {facet, OTHER_NAMES.get(facet)}:
            return None
        metrics = _metrics(facet, body)
    except Meaningless:
        return None
    return metrics if sum(metric["clicks"] or 0 for metric in metrics) in INT64 else None


def _metrics(facet: str, body: Item) -> list[Item]:
    if facet == "clicks_summary":
        return [{"clicks": count(body.get("total_clicks"))}]
    if facet == "engagements_summary":
        return [_engagements(body, "total_engagements")]
    key, read = LISTS[facet]
    if key not in body:
        # Go leaves an empty list out. It is one only in an answer that repeats its whole request, and has no more.
        if body.keys() - {"facet"} == _ECHO and any(body.values()):
            return []
        raise Meaningless
    if facet != "referrers_by_domains":
        return [read(item) for item in body[key]]
    groups = [(text(group.get("network")), group.get("referrers", [])) for group in body[key]]
    return [{"network": network, **read(item)} for network, referrers in groups for item in referrers]


# --- the server ---------------------------------------------------------------------------------------------------


@dataclass
class RandomBitly:
    """Answers each link, and each helper route, with a body of the test's. seen: targets below `/v4`, and headers."""

    links: dict[str, bytes] = field(default_factory=dict)
    helpers: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    url: str = ""

    def answer(self, facet_bodies: list[Any]) -> list[str]:
        """Answer other links than before, with these bodies; return their back-halves."""
        self.links = {f"x{number}": encoded(body) for number, body in enumerate(facet_bodies)}
        return list(self.links)

    async def handle(self, request: web.Request) -> web.Response:
        target = request.raw_path.removeprefix("/v4")
        self.seen.append((target, dict(request.headers)))
        parts = request.path.split("/")
        body = self.links[parts[4]] if parts[2] == "bitlinks" else self.helpers[parts[-1]]
        return web.Response(body=body, content_type="application/json")


def encoded(body: Any) -> bytes:
    """A body as JSON, with integers of any size."""
    return json.dumps(body, ensure_ascii=False).encode()


@asynccontextmanager
async def serving_random(bitly: RandomBitly) -> AsyncIterator[RandomBitly]:
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", bitly.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        bitly.url = f"http://{host}:{port}/v4"
        yield bitly
    finally:
        await runner.cleanup()
