"""Calendar periods: their first and last instants, and which of them contain some days."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.periods import PERIOD_UNITS, Period, period_options, periods_between
from harvester.bitly.query import query_for_period

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
