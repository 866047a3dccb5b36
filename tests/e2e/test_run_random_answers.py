"""Runs and lookups against a server that answers whatever Bitly's specification allows, with every field optional."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harvester.bitly.facets import FACETS
from harvester.bitly.query import endpoint_of, query_for
from harvester.budget.limits import RequestedLimits
from harvester.client import client
from harvester.client.pacer import Backoff
from harvester.shutdown import OK
from tests.conftest import quick_folder
from tests.support.commands import NO_LIMITS, STATE_DIR, TOKEN
from tests.support.in_process import command, harvest
from tests.support.output_checks import failures, rows
from tests.support.random_bitly import RandomBitly, encoded, meaning, serving_random
from tests.support.servers import in_thread
from tests.support.specification import bodies, body_schema, check_request, is_valid, route_schema, whole_bodies

REFERENCE = "2026-11-23T06:00:00Z"
ONE = settings(max_examples=1, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(ONE, max_examples=40)


@pytest.fixture(scope="module")
def bitly() -> Iterator[RandomBitly]:
    with in_thread(serving_random(RandomBitly())) as served:
        yield served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that cannot be read is asked for again, at once."""
    monkeypatch.setattr(client, "Backoff", lambda seconds, pauses: Backoff(0.001, pauses))
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)


def answers(facet: str) -> st.SearchStrategy[list[Any]]:
    """Answers for some links, not all the same, which is what Hypothesis tries first.

    At least half are whole: a server that answers nothing good is an outage.
    """
    whole, anything = whole_bodies(FACETS[facet]), bodies(body_schema(facet))
    pairs = st.lists(st.tuples(whole, anything), min_size=6, max_size=6)
    return pairs.map(lambda drawn: [echoing(body) for pair in drawn for body in pair]).filter(
        lambda drawn: len({encoded(body) for body in drawn}) > 6
    )


def echoing(body: Any) -> Any:
    """A body whose unit and moment are those of the request, where it has any: another window's answer is no answer."""
    requested = {"unit": "day", "unit_reference": "2026-11-23T06:00:00+0000"}
    return {**body, **{name: requested[name] for name in requested if body.get(name)}}


def limits_of_endpoints(facet: str) -> st.SearchStrategy[Any]:
    """Bodies of `/user/platform_limits`, some of this facet's endpoint. None of them has a run wait for an hour."""
    numbers = st.sampled_from([-1, 0, 1000, 2**31 - 1, 2**31, 2**63, 10**30])
    method = {
        "name": st.sampled_from(["GET", "POST", ""]),
        "limit": numbers,
        "count": numbers.filter(lambda n: n != 1000),
    }
    entry = {
        "endpoint": st.sampled_from([endpoint_of(FACETS[facet]), "/v4" + endpoint_of(FACETS[facet]), "/groups", ""]),
        "methods": st.lists(st.fixed_dictionaries({}, optional=method), max_size=3),
    }
    entries = st.lists(st.fixed_dictionaries({}, optional=entry), max_size=3)
    return st.fixed_dictionaries({}, optional={"platform_limits": entries})


def check_rows(facet: str, drawn: list[Any], found: list[dict[str, Any]]) -> list[str]:
    """Each link has the row that its answer means, or none; return the bitlinks that have none."""
    expected = {f"bit.ly/x{number}": meaning(facet, body) for number, body in enumerate(drawn)}
    assert {row["bitlink"]: row["metrics"] for row in found} == {
        link: metrics for link, metrics in expected.items() if metrics is not None
    }
    assert len({row["bitlink"] for row in found}) == len(found)
    return [link for link, metrics in expected.items() if metrics is None]


def check_requests(bitly: RandomBitly) -> None:
    """All that was sent since the last look is what the specification allows."""
    for target, headers in dict(bitly.seen).items():
        check_request(target, headers)
        assert headers["Accept"] == "application/json"
    bitly.seen.clear()


def check_run(bitly: RandomBitly, capsys: Any, facet: str, drawn: list[Any]) -> None:
    names = bitly.answer(drawn)
    with quick_folder() as folder:
        query = query_for(facet, "day", -1, REFERENCE, 50)
        outcome = asyncio.run(asyncio.wait_for(harvest(bitly.url, folder, names, query=query), 30))
        out = folder / "out"
        without = check_rows(facet, drawn, rows(out))
        assert outcome.complete is not bool(without)
        assert sorted(each["bitlink"] for each in failures(out)) == sorted(without)
        assert {each["kind"] for each in failures(out)} <= {"failed"}
        assert command(capsys, "verify", str(out)).code == OK
    check_requests(bitly)


def check_show(bitly: RandomBitly, capsys: Any, facet: str, drawn: list[Any]) -> None:
    links = [f"bit.ly/{name}" for name in bitly.answer(drawn)]
    window = ("--unit-reference", REFERENCE)
    asked = ("show", *links, "--facet", facet, *window, "--base-url", bitly.url, *NO_LIMITS)
    shown = command(capsys, *asked, "--json")
    without = check_rows(facet, drawn, [json.loads(line) for line in shown.out.splitlines()])
    assert (shown.code == OK) is not bool(without)
    said = [line for line in shown.err.splitlines() if not line.startswith("no good answer yet: ")]  # on a slow machine
    assert sorted(line.partition(": failed (200 ")[0] for line in said) == sorted(without)
    table = command(capsys, *asked)
    assert table.code == shown.code
    assert all(link in table.out for link in links if link not in without)
    check_requests(bitly)


def check_helpers(
    bitly: RandomBitly, capsys: Any, monkeypatch: pytest.MonkeyPatch, facet: str, endpoints: Any, groups: Any, plan: Any
) -> None:
    """A run that asks for its limits is complete, and a plan has those limits of the account that are stated."""
    assert is_valid(endpoints, route_schema("/user/platform_limits"))
    bitly.helpers = {"platform_limits": encoded(endpoints), "groups": encoded(groups), "plan_limits": encoded(plan)}
    names = bitly.answer([{"metrics": [], "unit": "day"}] * 3)
    with quick_folder() as folder:
        query = query_for(facet, "day", -1, REFERENCE, 50)
        running = harvest(bitly.url, folder, names, query=query, limits=RequestedLimits())
        assert asyncio.run(asyncio.wait_for(running, 30)).complete
        monkeypatch.setenv(STATE_DIR, str(folder / "of-plan"))
        lists, out = str(folder / "links.txt"), str(folder / "planned")
        planned = command(capsys, "plan", lists, "--out", out, "--facet", facet, "--base-url", bitly.url, "--json")
        assert planned.code == OK
    known = any(group["organization_guid"] for group in groups["groups"])
    stated = [
        {"description": "", **each}
        for each in (plan.get("plan_limits", ()) if known else ())
        if {"name", "limit", "count"} <= each.keys() and {each["limit"], each["count"]} <= set(range(100)) | {2**31 - 1}
    ]
    assert json.loads(planned.out)["plan_limits"] == stated
    assert {urlsplit(target).path for target, _ in bitly.seen} >= {"/user/platform_limits", "/groups"}
    check_requests(bitly)


@pytest.mark.parametrize("facet", FACETS)
def test_a_run_and_a_lookup_survive_what_the_specification_allows(bitly: RandomBitly, capsys: Any, facet: str) -> None:
    @ONE
    @given(answers(facet))
    def survive(drawn: list[Any]) -> None:
        check_run(bitly, capsys, facet, drawn)
        check_show(bitly, capsys, facet, drawn)

    survive()


@pytest.mark.nightly
@pytest.mark.parametrize("facet", FACETS)
def test_a_run_and_a_lookup_survive_all_that_the_specification_allows(
    bitly: RandomBitly, capsys: Any, facet: str
) -> None:
    @MANY
    @given(answers(facet))
    def survive(drawn: list[Any]) -> None:
        check_run(bitly, capsys, facet, drawn)
        check_show(bitly, capsys, facet, drawn)

    survive()


HELPERS = st.tuples(
    limits_of_endpoints("countries"),
    bodies(route_schema("/groups")),
    bodies(route_schema("/organizations/{organization_guid}/plan_limits")),
)


def test_the_helper_routes_may_answer_what_the_specification_allows(
    bitly: RandomBitly, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @settings(ONE, max_examples=4)
    @given(HELPERS)
    def survive(drawn: tuple[Any, Any, Any]) -> None:
        check_helpers(bitly, capsys, monkeypatch, "countries", *drawn)

    survive()


@pytest.mark.nightly
def test_the_helper_routes_may_answer_all_that_the_specification_allows(
    bitly: RandomBitly, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @MANY
    @given(HELPERS)
    def survive(drawn: tuple[Any, Any, Any]) -> None:
        check_helpers(bitly, capsys, monkeypatch, "countries", *drawn)

    survive()
