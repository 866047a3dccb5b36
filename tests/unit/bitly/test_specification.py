"""Requests are held against Bitly's own specification, and the verdicts on all answers that it allows."""

from datetime import UTC, datetime
from itertools import cycle, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from harvester.bitly.account_limits import (
    api_month,
    plan_limits_target,
    platform_limits_target,
    read_organization,
    read_plan_limits,
    read_platform_limit,
)
from harvester.bitly.bitlinks import parse
from harvester.bitly.exports import MOST_LINKS, ExportRequests, Span, export_name, span_of
from harvester.bitly.facets import FACETS, INT64_MAX
from harvester.bitly.query import GROUPS, UNITS, endpoint_of, path, query_for
from harvester.bitly.verdicts import Answer, Unreadable, classify
from tests.support import specification
from tests.support.random_bitly import encoded, meaning
from tests.support.specification import (
    FAULTS,
    HEADERS,
    bodies,
    body_schema,
    check_post,
    check_request,
    is_valid,
    route_schema,
    whole_bodies,
)

UNIT_COUNTS = (-1, 1, 2, 30, 2**31 - 1, 2**63)
SIZES = (1, 50, 1000, 2**31)
REFERENCES = ("2026-11-23T06:00:00Z", "1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "9999-12-31T23:59:59Z")
BITLINKS = [
    "bit.ly/3xYz",
    "es.pn/SuperBowl",
    "bit.ly/a-b_c~d.e",
    "bit.ly/%C3%A9",
    "bit.ly/🦡",
    "bücher.example/ß",
    "bit.ly/a%20b+c",
    "bit.ly/a&unit=month",
    "bit.ly/referrers",
    "bit.ly/a:b@c=d$e!f*g",
    "x.co/" + "é" * 300,
]
PARSED = [parse(text) for text in BITLINKS if text != "bit.ly/a%20b+c"]
FORCED = ["bit.ly/a b", "bit.ly/../../user", "bit.ly/a?b#c", "bit.ly/a%2Fb", "bit.ly/%", "bit.ly/a\\b"]
"""What no list can bring, because the parser refuses it: it would stay within its route all the same."""
A_FEW = settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=3000, derandomize=True, suppress_health_check=list(HealthCheck))


def target(bitlink: str, facet: str, unit: str = "day", units: int = -1, reference: str = "", size: int = 50) -> str:
    query = query_for(facet, unit, units, reference or REFERENCES[0], size)
    return f"{path(bitlink, FACETS[facet])}?{query.parameters}"


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facet", FACETS)
def test_each_facets_requests_are_those_of_the_specification(facet: str) -> None:
    for values in zip(UNITS * 2, cycle(UNIT_COUNTS), cycle(REFERENCES), cycle(SIZES), strict=False):
        check_request(target("bit.ly/x", facet, *values))


@pytest.mark.nightly
@pytest.mark.parametrize("facet", FACETS)
def test_every_request_is_one_of_the_specification(facet: str) -> None:
    for values in product(UNITS, UNIT_COUNTS, REFERENCES, SIZES):
        check_request(target("bit.ly/x", facet, *values))


@pytest.mark.parametrize("bitlink", [*PARSED, *FORCED], ids=range(len(PARSED) + len(FORCED)))
def test_no_bitlink_leaves_the_routes_of_the_specification(bitlink: str) -> None:
    for facet in FACETS:
        check_request(target(bitlink, facet))


@pytest.mark.parametrize("facet", FACETS)
def test_a_facet_has_the_parameters_that_the_specification_declares(facet: str) -> None:
    declared = specification.declared_parameters(endpoint_of(FACETS[facet]))
    assert declared.keys() == {"unit", "units", "unit_reference"} | ({"size"} if FACETS[facet].takes_size else set())


@pytest.mark.parametrize("facet", FACETS)
def test_the_request_for_a_facets_limits_is_one_of_the_specification(facet: str) -> None:
    check_request(platform_limits_target(FACETS[facet]))
    if facet not in specification.NEWER:
        assert endpoint_of(FACETS[facet]) in specification.document()["paths"]


@pytest.mark.parametrize("request_target", [GROUPS, plan_limits_target("Oa1bcd234eF"), plan_limits_target("O/é ?")])
def test_the_other_helper_requests_are_those_of_the_specification(request_target: str) -> None:
    check_request(request_target)


@pytest.mark.parametrize("count", [1, 2, MOST_LINKS])
@pytest.mark.parametrize("unit", UNITS)
def test_an_export_is_one_of_the_specification_with_the_routes_of_2026(unit: str, count: int) -> None:
    for units, reference in product(UNIT_COUNTS, REFERENCES):
        span = span_of(query_for("referrers", unit, units, reference, 50), datetime(2026, 11, 23, 6, tzinfo=UTC))
        if span is not None:
            name, requests = export_name("B/é ?", [PARSED[0]] * count), ExportRequests(span)
            path, query = requests.target(name)
            check_post(f"{path}?{query}", requests.body(name))


def test_an_export_that_is_not_of_the_specification_is_noticed() -> None:
    from openapi_core.exceptions import OpenAPIError  # noqa: PLC0415

    requests = ExportRequests(Span(1, 2))
    name = export_name("B", [PARSED[0]] * (MOST_LINKS + 1))
    with pytest.raises(OpenAPIError):
        check_post(requests.target(name)[0], requests.body(name))
    with pytest.raises(OpenAPIError):
        check_post("/groups/B/export", b"{}")


@pytest.mark.parametrize(
    "wrong",
    [
        "/bitlinks/bit.ly/x/referrer?unit=day&units=1",
        "/bitlinks/bit.ly/x/y/referrers?unit=day&units=1",
        "/bitlinks/bit.ly/x/referrers?unit=day",
        "/bitlinks/bit.ly/x/referrers?unit=days&units=1",
        "/bitlinks/bit.ly/x/referrers?unit=day&units=all",
        "/bitlinks/bit.ly/x/referrers?unit=day&units=1.5",
        "/bitlinks/bit.ly/x/referrers?unit=day&units=1&size=many",
        "/bitlinks/bit.ly/x/referrers?unit=day&units=1&unit=day",
        "/bitlinks/bit.ly/x/referrers?unit=day&units=1&reference=now",
        "/bitlinks/bit.ly/x/clicks?unit=day&units=1&size=50",
        "/bitlinks/bit.ly/x/engagements?unit=day&units=1&size=50",
        "/user/platform_limit",
        "/groups?organization=x",
    ],
)
def test_a_request_that_is_not_of_the_specification_is_noticed(wrong: str) -> None:
    from openapi_core.exceptions import OpenAPIError  # noqa: PLC0415 - a second that other tests need not wait for

    with pytest.raises((OpenAPIError, AssertionError)):
        check_request(wrong)


def test_a_request_without_a_token_is_noticed() -> None:
    with pytest.raises(Exception, match="Security"):
        check_request(GROUPS, headers={})
    check_request(GROUPS, HEADERS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_known_fault_of_the_specification_is_still_there(name: str) -> None:
    assert FAULTS[name].shown(), f"no longer true: {FAULTS[name].means}"


# --- answers ------------------------------------------------------------------------------------------------------


def check_verdict(facet: str, body: Any) -> None:
    """Whatever the specification allows is the metrics that it states, or unreadable."""
    found, expected = classify(200, {}, encoded(body), FACETS[facet]), meaning(facet, body)
    if expected is None:
        assert isinstance(found, Unreadable)
        return
    assert isinstance(found, Answer)
    assert found.metrics == expected
    assert found.clicks_listed == sum(metric["clicks"] or 0 for metric in expected)
    units = body.get("units")
    assert found.units_returned == (units if units is not None and abs(units) <= INT64_MAX else None)
    for name, value in found.totals.items():
        stated = body.get("other_metrics", {}).get(name, -1)
        assert value == (stated if 0 <= stated <= INT64_MAX else None)


@pytest.mark.parametrize("facet", FACETS)
def test_an_answer_that_the_specification_allows_gets_its_verdict(facet: str) -> None:
    A_FEW(given(bodies(body_schema(facet)))(lambda body: check_verdict(facet, body)))()


@pytest.mark.nightly
@pytest.mark.parametrize("facet", FACETS)
def test_any_answer_that_the_specification_allows_gets_its_verdict(facet: str) -> None:
    MANY(given(bodies(body_schema(facet)) | whole_bodies(FACETS[facet]))(lambda body: check_verdict(facet, body)))()


@pytest.mark.parametrize("facet", FACETS)
def test_a_whole_answer_has_its_metrics(facet: str) -> None:
    @A_FEW
    @given(whole_bodies(FACETS[facet]))
    def check(body: Any) -> None:
        assert is_valid(body, body_schema(facet))
        assert meaning(facet, body) is not None
        check_verdict(facet, body)

    check()


@A_FEW
@given(bodies(route_schema("/user/platform_limits")))
def test_any_limits_of_endpoints_are_read(body: Any) -> None:
    stated = {
        (method.get("limit"), method.get("count"))
        for entry in body.get("platform_limits", ())
        for method in entry.get("methods", ())
    }
    for facet in FACETS.values():
        found = read_platform_limit(encoded(body), facet)
        assert found is None or (found.limit, found.count) in stated


@A_FEW
@given(bodies(route_schema("/organizations/{organization_guid}/plan_limits")))
def test_any_limits_of_a_plan_are_read(body: Any) -> None:
    found = read_plan_limits(encoded(body))
    stated = [(each.get("limit"), each.get("count")) for each in body.get("plan_limits", ())]
    assert all((each.limit, each.count) in stated for each in found)
    assert api_month(found) in [None, *found]


@A_FEW
@given(bodies(route_schema("/groups")))
def test_any_groups_are_read(body: Any) -> None:
    organization = read_organization(encoded(body))
    assert organization in [None, *(group["organization_guid"] for group in body["groups"])]
    if organization is not None:
        check_request(plan_limits_target(organization))
