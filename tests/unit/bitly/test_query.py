"""The request for a bitlink: its path, which no bitlink can leave, and its parameters; and calendar periods."""

import json
import re
from dataclasses import replace
from datetime import date, timedelta
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.bitlinks import parse
from harvester.bitly.facets import FACETS, NotTheFacet
from harvester.bitly.query import (
    PERIOD_UNITS,
    Period,
    Query,
    check_echo,
    host_of,
    larger,
    path,
    period_options,
    periods_between,
    query_for_period,
    refuse_another,
    refuse_another_server,
)
from harvester.bitly.requests import FacetRequests
from harvester.bitly.verdicts import Answer, Unreadable
from harvester.errors import InvalidBitlink, UsageError

REFERRERS = FACETS["referrers"]


@pytest.mark.parametrize(
    ("bitlink", "expected"),
    [
        ("bit.ly/3xYz", "/bitlinks/bit.ly/3xYz/referrers"),
        ("es.pn/SuperBowl", "/bitlinks/es.pn/SuperBowl/referrers"),
        ("bit.ly/a-b_c~d.e", "/bitlinks/bit.ly/a-b_c~d.e/referrers"),
        ("bit.ly/é", "/bitlinks/bit.ly/%C3%A9/referrers"),
        ("bit.ly/🦡", "/bitlinks/bit.ly/%F0%9F%A6%A1/referrers"),
        ("bücher.example/x", "/bitlinks/b%C3%BCcher.example/x/referrers"),
        ("bit.ly/a+b:c", "/bitlinks/bit.ly/a%2Bb%3Ac/referrers"),
        ("bit.ly/a%2Fb", "/bitlinks/bit.ly/a%252Fb/referrers"),
        ("bit.ly/a?b#c&d=e", "/bitlinks/bit.ly/a%3Fb%23c%26d%3De/referrers"),
        ("bit.ly/../../user", "/bitlinks/bit.ly/..%2F..%2Fuser/referrers"),
        ("bit.ly/a\\b", "/bitlinks/bit.ly/a%5Cb/referrers"),
    ],
)
def test_the_slash_between_the_halves_is_literal_and_the_rest_is_encoded(bitlink: str, expected: str) -> None:
    assert path(bitlink, REFERRERS) == expected


@pytest.mark.parametrize("name", FACETS)
def test_a_facets_path_ends_in_its_name(name: str) -> None:
    ending = name.replace("_summary", "/summary")
    assert path("bit.ly/x", FACETS[name]) == f"/bitlinks/bit.ly/x/{ending}"


@pytest.mark.parametrize(
    "text", ["bit.ly/../../user", "bit.ly/..", "bit.ly/.", "../user", "./x", "bit.ly/../", "/user"]
)
def test_a_name_with_dot_segments_is_not_a_bitlink(text: str) -> None:
    with pytest.raises(InvalidBitlink):
        parse(text)


@given(
    st.lists(
        st.sampled_from(
            ["bit.ly", "/", "..", ".", "%2F", "%2e", "%", "?", "#", "\\", "é", "%C2%AF", "a", "+", ";", "@"]
        ),
        max_size=10,
    ).map("".join)
)
def test_no_bitlink_reaches_another_route(text: str) -> None:
    try:
        bitlink = parse("bit.ly/" + text)
    except InvalidBitlink:
        return
    whole = path(bitlink, REFERRERS)
    segments = whole.split("/")
    assert segments[:3] == ["", "bitlinks", "bit.ly"]
    assert segments[4:] == ["referrers"]
    assert segments[3] not in {"", ".", ".."}
    assert re.fullmatch(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+", segments[3])
    assert unquote(segments[3]) == bitlink.partition("/")[2]


def test_the_parameters_encode_plus_and_colon() -> None:
    query = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
    assert query.parameters == "unit=day&units=-1&unit_reference=2026-11-23T06%3A00%3A00%2B0000&size=50"


@given(st.sampled_from(["minute", "hour", "day", "week", "month"]), st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_parameters_say_what_the_query_says(unit: str, units: int, size: int) -> None:
    query = Query("countries", unit, units, "2026-01-02T03:04:05Z", size)
    assert dict(parse_qsl(query.parameters)) == {
        "unit": unit,
        "units": str(units),
        "unit_reference": "2026-01-02T03:04:05+0000",
        "size": str(size),
    }
    assert query.as_dict() == {
        "facet": "countries",
        "unit": unit,
        "units": units,
        "unit_reference": "2026-01-02T03:04:05Z",
        "size": size,
        "period_start": None,
        "period_end": None,
    }


QUERY = Query("referrers", "day", 7, "2026-11-23T06:00:00Z", 50)


def test_a_larger_query_asks_for_more_metrics_or_is_none() -> None:
    assert larger(QUERY, 51) == replace(QUERY, size=51)
    assert larger(QUERY, 50) is larger(QUERY, None) is larger(replace(QUERY, size=None), 51) is None


def test_an_output_goes_on_with_its_own_query_and_server_alone() -> None:
    refuse_another("out", QUERY, QUERY)
    with pytest.raises(UsageError, match=r"out was started .*\n  existing   .*--size 50\n  requested  .*--size 51\n"):
        refuse_another("out", QUERY, replace(QUERY, size=51))
    assert host_of("https://api.example:8443/v4") == "api.example"
    assert not host_of("nonsense")
    refuse_another_server("out", "a.example", "a.example")
    with pytest.raises(UsageError, match=r"out was started against a\.example, and --base-url names b\.example"):
        refuse_another_server("out", "a.example", "b.example")


@pytest.mark.parametrize(
    ("unit", "reference", "query"),
    [
        ("day", "2026-11-23T06:00:00Z", QUERY),
        (" DAYS ", "2026-10-23T06:00:00Z", QUERY),
        ("", "2026-12-24T06:00:00Z", QUERY),
        (7, None, QUERY),
        ("day", "1970-01-01T00:00:00Z", QUERY),
        ("day", "no moment", QUERY),
        ("day", "2020-11-23T06:00:00", QUERY),
        ("month", "2026-09-22T06:00:00Z", replace(QUERY, unit="month")),
    ],
)
def test_an_answer_that_repeats_the_request_nearly_is_its_answer(unit: object, reference: str, query: Query) -> None:
    check_echo(query, unit, reference)


@pytest.mark.parametrize(
    ("unit", "reference", "query"),
    [
        ("week", "2026-11-23T06:00:00Z", QUERY),
        ("da", None, QUERY),
        ("day", "2026-10-23T05:59:59Z", QUERY),
        ("day", "2026-12-24T06:00:01Z", QUERY),
        ("day", "1971-01-01T00:00:00Z", QUERY),
        ("month", "2026-09-22T05:59:59Z", replace(QUERY, unit="month")),
    ],
)
def test_an_answer_for_another_unit_or_time_is_none(unit: object, reference: str, query: Query) -> None:
    with pytest.raises(NotTheFacet):
        check_echo(query, unit, reference)


def test_the_requests_of_a_query_name_their_endpoint_and_check_what_an_answer_repeats() -> None:
    requests = FacetRequests(replace(QUERY, facet="countries"))
    assert requests.endpoint == "/bitlinks/{bitlink}/countries"
    assert requests.target("bit.ly/x") == ("/bitlinks/bit.ly/x/countries", QUERY.parameters)
    for unit, kind in (("day", Answer), ("week", Unreadable)):
        body = json.dumps({"metrics": [{"value": "DE", "clicks": 1}], "unit": unit}).encode()
        assert isinstance(requests.classify(200, {}, body, whole=True), kind)


# --- calendar periods ---------------------------------------------------------------------------------------------

DAYS = st.dates(date(2000, 1, 1), date(2100, 1, 1))


@pytest.mark.parametrize(
    ("unit", "first", "end"),
    [
        ("day", date(2026, 11, 30), "2026-12-01T00:00:00Z"),
        ("week", date(2026, 12, 28), "2027-01-04T00:00:00Z"),
        ("month", date(2028, 2, 1), "2028-03-01T00:00:00Z"),
        ("month", date(2026, 12, 1), "2027-01-01T00:00:00Z"),
    ],
)
def test_a_period_ends_where_the_next_begins(unit: str, first: date, end: str) -> None:
    period = Period(unit, first)
    assert (period.start, period.end) == (f"{first}T00:00:00Z", end)


@given(st.sampled_from(PERIOD_UNITS), DAYS, st.integers(0, 400))
def test_periods_have_no_gap_and_contain_every_day_named(unit: str, since: date, length: int) -> None:
    until = since + timedelta(length)
    found = periods_between(unit, since, until)
    assert found[0].first <= since < found[0].next_first
    assert found[-1].first <= until < found[-1].next_first
    assert [each.next_first for each in found[:-1]] == [each.first for each in found[1:]]


@pytest.mark.parametrize(
    ("unit", "since", "until", "firsts"),
    [
        ("day", date(2026, 2, 28), date(2026, 3, 1), [date(2026, 2, 28), date(2026, 3, 1)]),
        ("week", date(2026, 11, 22), date(2026, 11, 23), [date(2026, 11, 16), date(2026, 11, 23)]),
        ("week", date(2026, 11, 23), date(2026, 11, 29), [date(2026, 11, 23)]),
        ("month", date(2026, 12, 31), date(2027, 1, 1), [date(2026, 12, 1), date(2027, 1, 1)]),
        ("day", date(2026, 3, 2), date(2026, 3, 1), []),
    ],
)
def test_a_week_begins_on_a_monday_and_a_month_on_its_first(
    unit: str, since: date, until: date, firsts: list[date]
) -> None:
    assert [period.first for period in periods_between(unit, since, until)] == firsts


@pytest.mark.parametrize(("unit", "text"), [("day", "the day 2026-11-02"), ("week", "the week from 2026-11-02")])
def test_a_period_is_told_by_its_first_day(unit: str, text: str) -> None:
    assert str(Period(unit, date(2026, 11, 2))) == text


def test_the_query_of_a_period_asks_for_one_unit_at_its_first_instant() -> None:
    query = query_for_period("referrers", Period("week", date(2026, 11, 23)), 50)
    begins, ends = "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"
    assert query == Query("referrers", "week", 1, begins, 50, period_start=begins, period_end=ends)
    assert query_for_period("clicks", Period("week", date(2026, 11, 23)), 50).size is None


def test_the_options_of_a_query_ask_for_its_window_again() -> None:
    query = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
    assert query.as_options() == (
        "--facet referrers --unit day --units -1 --unit-reference 2026-11-23T06:00:00Z --size 50"
    )
    assert replace(query, facet="clicks", size=None).as_options().endswith("Z")


def test_the_options_of_a_query_ask_for_its_period_again() -> None:
    day, week = (query_for_period("clicks", Period(unit, date(2026, 11, 2)), 50) for unit in ("day", "week"))
    assert day.as_options() == "--facet clicks --day 2026-11-02"
    assert week.as_options() == "--facet clicks --since 2026-11-02 --until 2026-11-02 --every week"
    assert period_options({"period_start": None, "unit": "day"}) == {}
