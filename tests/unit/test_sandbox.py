"""The sandbox answers as Bitly does: routes, names, required fields, limits by token and endpoint, wrong arguments."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from harvester.bitly.account_limits import PLATFORM_LIMITS
from harvester.bitly.exports import read_export
from harvester.bitly.facets import FACETS
from harvester.bitly.query import GROUPS, endpoint_of
from harvester.bitly.verdicts import Answer, ParameterRefused, Refused, classify
from harvester.sandbox import Sandbox, SandboxOptions, metrics_for, serving
from harvester.sandbox.groups import LARGE, link_of

FREE: dict[str, Any] = {"per_minute": 0, "per_hour": 0, "per_month": 0, "latency_ms": 0, "errors": 0.0}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Server:
    """A sandbox that is being served, and requests to it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session

    async def get(self, target: str, token: str = "any") -> tuple[int, Any]:
        """Return status and body of a response; the body as text if it is not JSON. target: sent as it is."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.get(URL(self._url + target, encoded=True), headers=headers) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text())


def classified(status: int, body: Any, facet: str = "referrers") -> Any:
    return classify(status, {"Content-Type": "application/json"}, json.dumps(body).encode(), FACETS[facet])


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["per_minute", "per_hour"])
async def test_each_token_has_its_own_window_at_each_endpoint(session: aiohttp.ClientSession, limit: str) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE | {limit: 1}))) as url:
        server = Server(url, session)
        for token in ("one", "other"):
            for facet in FACETS.values():
                assert (await server.get(f"/bitlinks/bit.ly/a{facet.path}", token))[0] == 200
                status, body = await server.get(f"/bitlinks/bit.ly/b{facet.path}", token)
                assert (status, body["message"]) == (429, "RATE_LIMIT_EXCEEDED")
            assert (await server.get(GROUPS, token))[0] == 200
            assert (await server.get(GROUPS, token))[0] == 429


async def test_one_month_is_shared_by_all_tokens_and_endpoints(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE | {"per_month": 3}))) as url:
        server = Server(url, session)
        assert (await server.get("/bitlinks/bit.ly/a/referrers", "one"))[0] == 200
        assert (await server.get("/bitlinks/bit.ly/a/countries", "other"))[0] == 200
        assert (await server.get(GROUPS, "third"))[0] == 200
        status, body = await server.get("/bitlinks/bit.ly/b/referrers", "fourth")
        assert (status, body["message"]) == (429, "MONTHLY_LIMIT_EXCEEDED")


async def test_the_reported_count_is_that_of_the_token_at_the_endpoint(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE | {"per_hour": 9}))) as url:
        server = Server(url, session)
        for facet, token in (("referrers", "one"), ("referrers", "one"), ("countries", "one"), ("referrers", "other")):
            await server.get(f"/bitlinks/bit.ly/a/{facet}", token)
        for facet, token, count in (("referrers", "one", 2), ("countries", "one", 1), ("countries", "other", 0)):
            endpoint = endpoint_of(FACETS[facet])
            _, body = await server.get(f"{PLATFORM_LIMITS}?path={endpoint}", token)
            assert body["platform_limits"][0]["methods"] == [{"name": "GET", "limit": 9, "count": count}]


# --- what is answered -----------------------------------------------------------------------------------------------

NAMES = {
    "referrers": "referrers",
    "referrer_name": "referring_networks",
    "referring_domains": "referring_domains",
    "referrers_by_domains": "referrers_by_domain",
    "countries": "countries",
    "cities": "cities",
    "devices": "devices",
}
"""Facet to the name in responses, which is one of the specification's. Series and summaries have none."""


@pytest.mark.parametrize("facet", FACETS)
async def test_a_facet_has_the_specifications_name_and_is_read_as_an_answer(
    session: aiohttp.ClientSession, facet: str
) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        status, body = await Server(url, session).get(f"/bitlinks/bit.ly/a{FACETS[facet].path}")
    assert body.get("facet") == NAMES.get(facet)
    assert isinstance(classified(status, body, facet), Answer)


async def test_the_window_is_the_requested_one_as_far_as_the_history_reaches(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        server, target = Server(url, session), "/bitlinks/bit.ly/a/referrers"
        _, body = await server.get(target)
        assert (body["unit"], body["units"]) == ("day", 30)
        for unit, units, used in (("day", "-1", 30), ("day", "7", 7), ("day", "60", 30), ("week", "-1", 14)):
            moment = "2026-11-23T00:00:00%2B0000"
            _, body = await server.get(f"{target}?unit={unit}&units={units}&unit_reference={moment}&size=3")
            assert (body["unit"], body["units"]) == (unit, used)
            assert body["unit_reference"] == "2026-11-23T00:00:00+0000"
            assert len(body["metrics"]) <= 3


def totals(facet: str, **window: Any) -> dict[str, int]:
    """The clicks of some links in a window, as a facet's answers add up to them."""
    found = {}
    for link in (f"bit.ly/{i}" for i in range(40)):
        body = metrics_for(link, facet, 1000, **window)
        metrics = FACETS[facet].metrics_in(body)
        unknown = body.get("other_metrics", {}).get("no_city_clicks", 0)
        found[link] = sum(metric["clicks"] for metric in metrics) + unknown
    return found


@pytest.mark.parametrize("facet", FACETS)
def test_days_add_up_to_their_window_and_facets_have_one_total(facet: str) -> None:
    days = [totals(facet, units=1, unit_reference=f"2026-11-{day:02}T00:00:00+0000") for day in range(4, 14)]
    whole = totals("clicks_summary", units=10, unit_reference="2026-11-13T12:00:00+0000")
    assert {link: sum(day[link] for day in days) for link in whole} == whole
    assert 0 < sum(1 for clicks in whole.values() if not clicks) < 20


def test_a_series_names_its_units_the_newest_first() -> None:
    body = metrics_for("bit.ly/a", "clicks", units=3, unit_reference="2026-11-13T12:00:00+0000")
    days = [f"2026-11-{day}T00:00:00+0000" for day in (13, 12, 11)]
    assert [bucket["date"] for bucket in body["link_clicks"]] == days


async def test_a_group_has_every_field_that_the_specification_requires(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        _, body = await Server(url, session).get(GROUPS)
    kinds = {
        "guid": str, "organization_guid": str, "name": str, "created": str, "modified": str, "is_active": bool,
        "role": str, "bsds": list,
    }  # fmt: skip
    assert [{name: type(value) for name, value in group.items()} for group in body["groups"]] == [kinds, kinds]


# --- wrong arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("size", value) for value in ("x", "-1", "", "1.5", "1_000", "%205", "0x10", "9" * 30, "%D9%A3", "1e3")),
        *(("units", value) for value in ("x", "0", "-2", "", "1.5", "all")),
        *(("unit", value) for value in ("year", "", "DAY", "days")),
        *(("unit_reference", value) for value in ("x", "", "today", "1700000000", "2026-13-01", "2026-02-30")),
        # A + that was not encoded is a space.
        ("unit_reference", "2026-11-23T00:00:00+0000"),
    ],
)
async def test_a_wrong_argument_is_a_400_that_names_it(session: aiohttp.ClientSession, field: str, value: str) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        status, body = await Server(url, session).get(f"/bitlinks/bit.ly/a/countries?{field}={value}")
    assert (status, body["message"]) == (400, f"INVALID_ARG_{field.upper()}")
    assert classified(status, body) == ParameterRefused(400, body["message"], field)
    sample = json.loads(Path(f"tests/samples/400-arg-{field.replace('_', '-')}.json").read_text())
    assert body == json.loads(sample["body"])


@pytest.mark.parametrize(
    "arguments",
    [
        "size=0", "size=50", "size=1000", "units=-1", "units=1", "unit=minute", "unit=month",
        "unit_reference=2026-11-23", "unit_reference=2026-11-23T06:00:00Z",
        "unit_reference=2026-11-23T06:00:00%2B0530", "unknown=x",
    ],
)  # fmt: skip
async def test_a_right_argument_is_answered(session: aiohttp.ClientSession, arguments: str) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        assert (await Server(url, session).get(f"/bitlinks/bit.ly/a/countries?{arguments}"))[0] == 200


async def test_a_bad_token_is_reported_before_a_wrong_argument(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        assert (await Server(url, session).get("/bitlinks/bit.ly/a/countries?size=x", "revoked"))[0] == 403


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bitlink", ["bit.ly/abc", "bit.ly%2Fabc", "bit.ly%2fabc"])
async def test_the_slash_of_a_bitlink_may_be_encoded(session: aiohttp.ClientSession, bitlink: str) -> None:
    sandbox = Sandbox(SandboxOptions(**FREE))
    async with serving(sandbox) as url:
        server, window = Server(url, session), "unit=day&units=30&unit_reference=2026-11-23T06:00:00%2B0000"
        for facet in FACETS.values():
            assert await server.get(f"/bitlinks/{bitlink}{facet.path}?{window}") == await server.get(
                f"/bitlinks/bit.ly/abc{facet.path}?{window}"
            )
    assert set(sandbox.requests) == {"bit.ly/abc"}


async def test_a_refused_link_is_refused_in_either_form(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        for bitlink in ("bit.ly/missing", "bit.ly%2Fmissing"):
            verdict = classified(*await Server(url, session).get(f"/bitlinks/{bitlink}/referrers"))
            assert isinstance(verdict, Refused)
            assert not verdict.no_route


@pytest.mark.parametrize("path", ["abc", "bit.ly%2F", "%2Fabc", "bit.ly/abc/def"])
async def test_what_is_no_bitlink_has_no_route(session: aiohttp.ClientSession, path: str) -> None:
    sandbox = Sandbox(SandboxOptions(**FREE))
    async with serving(sandbox) as url:
        status, body = await Server(url, session).get(f"/bitlinks/{path}/referrers")
    assert (status, body) == (404, "404 page not found")
    assert not sandbox.requests


# --- groups ---------------------------------------------------------------------------------------------------------


async def pages(server: Server, query: str, guid: str = "Gsandbox") -> list[list[dict[str, Any]]]:
    """Follow the pages of a group to their end."""
    found, after = [], ""
    while True:
        status, body = await server.get(f"/groups/{guid}/bitlinks?{query}{after}")
        assert status == 200, body
        found.append(body["links"])
        if not body["pagination"]["next"]:
            assert body["pagination"]["search_after"] == ""
            return found
        after = f"&search_after={body['pagination']['search_after']}"


async def test_a_groups_links_come_in_pages_newest_first_and_each_once(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE, links=230))) as url:
        server = Server(url, session)
        found = await pages(server, "size=100&archived=both")
        assert [len(page) for page in found] == [100, 100, 30]
        links = [link for page in found for link in page]
        assert len({link["id"] for link in links}) == 230
        assert [link["created_at"] for link in links] == sorted((each["created_at"] for each in links), reverse=True)
        assert found == await pages(server, "size=100&archived=both")
        assert len((await pages(server, "archived=both"))[0]) == 50
        fifties = [link for page in await pages(server, "archived=both&size=50") for link in page]
        assert fifties == links


def test_nine_in_ten_links_of_a_group_have_no_clicks_under_any_of_their_names() -> None:
    clicked = set()
    for number in range(100):
        link = link_of("Gsandbox", number)
        for url in (link["link"], *link["custom_bitlinks"]):
            body = metrics_for(url.removeprefix("https://"), "clicks_summary")
            clicked |= {number} if body["total_clicks"] else set()
    assert clicked
    assert clicked <= set(range(0, 100, 10))


async def test_the_filters_of_a_groups_links_let_through_what_they_name(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE, links=90))) as url:
        server = Server(url, session)
        every, off, on = [
            [link for page in await pages(server, f"size=100&archived={word}") for link in page]
            for word in ("both", "off", "on")
        ]
        assert off == [link for page in await pages(server, "size=100") for link in page]
        assert {link["archived"] for link in on} == {True}
        assert len(on) + len(off) == len(every)
        tagged = (await pages(server, "size=100&archived=both&tags=email&tags=print"))[0]
        assert tagged == [link for link in every if {"email", "print"} & set(link["tags"])]
        custom = (await pages(server, "size=100&archived=both&custom_bitlink=on"))[0]
        assert custom == [link for link in every if link["custom_bitlinks"]]
        moment = int(datetime.fromisoformat(every[9]["created_at"]).timestamp())
        assert (await pages(server, f"size=100&archived=both&created_after={moment}"))[0] == every[:9]
        assert (await pages(server, f"size=100&archived=both&created_before={moment}"))[0] == every[10:]


@pytest.mark.parametrize("argument", ["size=101", "size=0", "search_after=x", "archived=maybe", "created_after=today"])
async def test_a_wrong_argument_for_a_groups_links_is_a_400(session: aiohttp.ClientSession, argument: str) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        status, body = await Server(url, session).get(f"/groups/Gsandbox/bitlinks?{argument}")
    assert (status, body["message"]) == (400, f"INVALID_ARG_{argument.partition('=')[0].upper()}")


async def test_a_group_that_is_none_is_not_found(session: aiohttp.ClientSession) -> None:
    async with serving(Sandbox(SandboxOptions(**FREE))) as url:
        server = Server(url, session)
        assert (await server.get("/groups/Gsmall"))[1]["guid"] == "Gsmall"
        for path in ("/groups/Gnone", "/groups/Gnone/bitlinks"):
            assert (await server.get(path))[0] == 404


# --- exports ------------------------------------------------------------------------------------------------------


async def exported(**options: Any) -> tuple[int, Any, list[str]]:
    """The status and content of an export of a group's first links, and these."""
    links = [link_of(LARGE, number, options.get("active", 0.1))["id"] for number in range(40)]
    now = int(datetime.now(UTC).timestamp())
    asked = {"export_type": "link_engagements_batch", "bitlinks": links, "unix_from": now - 5 * 86_400, "unix_to": now}
    async with serving(Sandbox(SandboxOptions(**FREE, **options))) as url, aiohttp.ClientSession() as session:
        headers = {"Authorization": "Bearer t"}
        async with session.post(f"{url}/groups/{LARGE}/exports", json=asked, headers=headers) as response:
            body = await response.json()
            return response.status, read_export(body) if response.status == 200 and body else body, links


async def test_an_export_says_of_each_link_what_its_metrics_say() -> None:
    status, found, links = await exported(active=0.5)
    assert status == 200
    assert found.active | found.idle == set(links)
    assert len(found.idle) >= 20
    reference = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}+0000"
    for link in found.idle:
        assert metrics_for(link, "referrers", 50, "day", 5, reference)["metrics"] == []
    assert any(metrics_for(link, "referrers", 50, "day", 5, reference)["metrics"] for link in found.active)


@pytest.mark.parametrize("fault", ["402", "403", "404", "400", "503"])
async def test_an_export_may_be_refused(fault: str) -> None:
    assert (await exported(exports=fault))[0] == int(fault)


async def test_an_export_may_lack_links() -> None:
    _, missing, links = await exported(exports="missing")
    assert missing.active | missing.idle == set(links[::2])
    _, truncated, _ = await exported(exports="truncated")
    assert truncated.truncated
    assert not truncated.idle
