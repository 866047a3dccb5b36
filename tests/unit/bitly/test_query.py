"""The request for a bitlink: its path, which no bitlink can leave, and its parameters; and calendar periods."""

import re
from datetime import date, timedelta
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.bitlinks import parse
from harvester.bitly.facets import FACETS
from harvester.bitly.query import (
    PERIOD_UNITS,
    Period,
    Query,
    path,
    period_options,
    periods_between,
    query_for_period,
)
from harvester.errors import InvalidBitlink

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


def test_the_options_of_a_query_ask_for_its_period_again() -> None:
    day, week = (query_for_period("clicks", Period(unit, date(2026, 11, 2)), 50) for unit in ("day", "week"))
    assert day.as_options() == "--facet clicks --day 2026-11-02"
    assert week.as_options() == "--facet clicks --since 2026-11-02 --until 2026-11-02 --every week"
    assert period_options({"period_start": None, "unit": "day"}) == {}
