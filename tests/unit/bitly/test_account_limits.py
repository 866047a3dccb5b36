"""Limits that Bitly reports: what is read of them, and which of a plan's is the month of API requests."""

import json
from typing import Any

import pytest

from harvester.bitly.account_limits import (
    PlanLimit,
    PlatformLimit,
    api_month,
    plan_limits_target,
    platform_limits_target,
    read_organization,
    read_plan_limits,
    read_platform_limit,
)
from harvester.bitly.facets import FACETS

COUNTRIES = FACETS["countries"]
MOST = 2**31 - 1


def test_the_routes_are_those_of_bitlys_reference() -> None:
    assert platform_limits_target(COUNTRIES) == "/user/platform_limits?path=%2Fbitlinks%2F%7Bbitlink%7D%2Fcountries"
    assert plan_limits_target("O/1") == "/organizations/O%2F1/plan_limits"


def endpoint(facet: str, *methods: dict[str, Any], below: str = "") -> dict[str, Any]:
    return {"endpoint": f"{below}/bitlinks/{{bitlink}}/{facet}", "methods": list(methods)}


def method(limit: Any, count: Any, name: str = "GET") -> dict[str, Any]:
    return {"name": name, "limit": limit, "count": count}


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([endpoint("countries", method(100, 3), below="/v4")], PlatformLimit(100, 3)),
        ([endpoint("countries", method(MOST, MOST))], PlatformLimit(MOST, MOST)),
        ([endpoint("cities", method(9, 9)), endpoint("countries", method(1, 0))], PlatformLimit(1, 0)),
        ([endpoint("countries", method(5, 0, "POST"), method(7, 1))], PlatformLimit(7, 1)),
        ([endpoint("countries", method(0, 0))], None),
        ([endpoint("countries", method(MOST + 1, 0))], None),
        ([endpoint("countries", method(5, -1))], None),
        ([endpoint("countries", method(True, 0))], None),
        ([endpoint("countries", method(5, None))], None),
        ([endpoint("cities", method(5, 0))], None),
        (["countries", {"endpoint": "/bitlinks/{bitlink}/countries", "methods": {}}], None),
        ({"0": endpoint("countries", method(5, 0))}, None),
    ],
    ids=range(12),
)
def test_an_endpoints_limit_is_that_of_its_get(entries: Any, found: PlatformLimit | None) -> None:
    assert read_platform_limit(json.dumps({"platform_limits": entries}).encode(), COUNTRIES) == found


def test_a_plans_limits_are_read_without_malformed_entries() -> None:
    entries = [
        {"name": "n" * 300, "description": "d" * 300, "limit": 5, "count": 1},
        {"name": "links", "limit": 0, "count": 0},
        {"name": None, "limit": 5, "count": 1},
        {"name": "qr", "limit": "5", "count": 1},
        {"name": "qr", "limit": 5},
        "links",
    ]
    assert read_plan_limits(json.dumps({"plan_limits": entries}).encode()) == [
        PlanLimit("n" * 200, "d" * 200, 5, 1),
        PlanLimit("links", "", 0, 0),
    ]
    assert read_plan_limits(b"{}") == read_plan_limits(b"<html>") == []


def test_the_organization_is_that_of_the_first_group_that_names_one() -> None:
    groups: list[Any] = [
        {"guid": "G"},
        {"organization_guid": ""},
        {"organization_guid": "O1"},
        {"organization_guid": "O2"},
    ]
    assert read_organization(json.dumps({"groups": groups}).encode()) == "O1"
    assert read_organization(json.dumps({"groups": groups[:2]}).encode()) is None


@pytest.mark.parametrize(
    ("name", "description", "limit", "found"),
    [
        ("api_requests", "", 5000, True),
        ("requests", "API calls per month", 5000, True),
        ("apiary", "bees", 5000, False),
        ("links", "Links a month", 5000, False),
        ("api_requests", "", 0, False),
    ],
)
def test_the_months_api_requests_are_recognised_by_their_name(
    name: str, description: str, limit: int, found: bool
) -> None:
    limits = [PlanLimit("qr_codes", "QR codes", 7, 0), PlanLimit(name, description, limit, 1)]
    assert api_month(limits) == (limits[1] if found else None)
