"""When calls would end: held against harvests in virtual time, and against what anybody would expect."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.budget.forecast import (
    ANSWER_SECONDS,
    DAYS_PER_MONTH,
    Start,
    SteadyState,
    beginning,
    forecast,
    steady_state,
    suggestions_for,
)
from harvester.budget.limits import Limits, RequestedLimits
from tests.support.simulated_bitly import World
from tests.support.simulated_weeks import BEGIN, Weeks
from tests.support.virtual_time import THREADED, at_once
from tests.unit.budget.test_budget import Machine, starting, take_all

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
USUAL = Limits(100, 1000, 0)


def seconds(attempts: int, limits: Limits, start: Start | None = None) -> float:
    ends = forecast(attempts, limits, start or Start(NOON)).ends
    assert ends is not None
    return (ends - NOON).total_seconds()


def test_nothing_ends_at_once() -> None:
    assert seconds(0, USUAL) == 0


def test_what_fits_into_the_room_left_goes_as_fast_as_bitly_answers() -> None:
    assert seconds(100, USUAL) == pytest.approx(100 * ANSWER_SECONDS / 5)
    assert seconds(100, USUAL, Start(NOON, minute_used=1)) > 60


@pytest.mark.parametrize("links", [2_500, pytest.param(12_000, marks=pytest.mark.nightly)])
def test_it_ends_when_a_harvest_in_virtual_time_does(
    quick_path: Path, links: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in THREADED:
        monkeypatch.setattr(module, "in_daemon", at_once)
    weeks = Weeks(quick_path, World(errors=0.0), RequestedLimits(per_month=0), links)
    assert weeks.run().complete
    ends = forecast(links, USUAL, Start(BEGIN)).ends
    assert ends is not None
    assert (ends - BEGIN).total_seconds() == pytest.approx(weeks.bitly.seconds, rel=0.01)


def test_what_was_used_before_is_waited_for() -> None:
    start = Start(NOON, leaving=[(1800.0, 600), (2400.0, 400)])
    assert seconds(600, USUAL, start) == pytest.approx(1800 + 600 * 0.605, abs=1)
    assert seconds(601, USUAL, start) == pytest.approx(2400, abs=2)


def test_a_month_that_is_spent_is_a_pause_until_the_next() -> None:
    found = forecast(2500, replace(USUAL, per_month=1000), Start(NOON, month_left=400))
    assert found.this_month == 400
    assert [pause.strftime("%Y-%m") for pause in found.pauses] == ["2026-11", "2026-12", "2027-01"]
    assert found.ends is not None
    assert found.ends.strftime("%Y-%m-%d %H") == "2027-02-01 00"


def test_a_month_that_bitly_reports_as_spent_is_a_pause_also_without_a_limit() -> None:
    found = forecast(10, replace(USUAL, per_month=0), Start(NOON, month_left=0))
    assert found.pauses == (NOON,)
    assert found.ends is not None
    assert found.ends.strftime("%Y-%m-%d %H") == "2026-12-01 00"


def test_a_months_end_gives_new_calls_to_a_run_that_is_under_way() -> None:
    late = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)
    found = forecast(1500, replace(USUAL, per_month=1000), Start(late, month_left=1000))
    assert found.pauses == (found.pauses[0],)
    assert found.ends is not None
    assert found.ends.strftime("%Y-%m-%d %H") == "2026-12-01 00"


@pytest.mark.parametrize(
    ("attempts", "month_left"),
    [(10**4, 1), pytest.param(10**7, None, marks=pytest.mark.nightly)],
    ids=["month", "hour"],
)
def test_what_nobody_will_live_to_see_has_no_end(attempts: int, month_left: int | None) -> None:
    assert forecast(attempts, Limits(1, 1, 1), Start(NOON, month_left=month_left)).ends is None


def test_shorter_names_plans_the_reserve_and_wider_windows_but_only_what_helps() -> None:
    limits, whole = Limits(90, 900, 4500), Limits(100, 1000, 5000)
    options = [each.option for each in suggestions_for(100_000, limits, limits, whole, Start(NOON, month_left=4500))]
    assert options == ["--reserve 0%", "--plan core", "--plan growth", "--plan premium"]
    options = [each.option for each in suggestions_for(2_000, USUAL, USUAL, USUAL, Start(NOON))]
    assert options == ["--per-hour 2000 --per-minute 200"]
    assert suggestions_for(10, USUAL, USUAL, USUAL, Start(NOON)) == []


def test_shorter_says_what_the_end_of_throttling_would_bring() -> None:
    learned = Limits(100, 250, 0)
    assert suggestions_for(2_000, learned, USUAL, USUAL, Start(NOON))[0].option == "patience"


def test_a_forecast_begins_with_what_the_windows_hold(quick_path: Path) -> None:
    machine = Machine()
    with starting(quick_path / "budget.sqlite", machine) as start:
        budget = start(100, 1000, 5000)
        assert take_all(budget, 30) == 30
        machine.seconds += 120
        assert take_all(budget, 7) == 7
        begun = beginning(budget, budget.windows(), 3)
        begins = NOON + timedelta(seconds=120)
        leaving = [(59 * 60.0, 30), (61 * 60.0, 7)]  # up to a minute late
        assert begun == Start(begins, minute_used=7, leaving=leaving, month_left=4963, connections=3)
        budget.throttled(50.0, sent_at=machine.seconds)
        assert beginning(budget, budget.windows(), 3).now >= begins + timedelta(seconds=50)


A_MONTH_OF_HOURS = 730_485
"""What 1,000 an hour come to in the average month."""


@pytest.mark.parametrize(
    ("requests", "limits", "refresh_days", "expected"),
    [
        (10**9, Limits(100, 0, 0), 7.0, SteadyState(10**9, None, 7.0, kept=True)),
        (1000, USUAL, 7.0, SteadyState(1000, A_MONTH_OF_HOURS, 7.0, kept=True)),
        (2 * A_MONTH_OF_HOURS, USUAL, 7.0, SteadyState(2 * A_MONTH_OF_HOURS, A_MONTH_OF_HOURS, 60.87375, kept=False)),
        (1000, Limits(100, 1000, 1000), DAYS_PER_MONTH, SteadyState(1000, 1000, DAYS_PER_MONTH, kept=True)),
        (1001, Limits(100, 1000, 1000), DAYS_PER_MONTH, SteadyState(1001, 1000, 60.87375, kept=False)),
        (2500, Limits(0, 0, 1000), 1.0, SteadyState(2500, 1000, 91.310625, kept=False)),
        (A_MONTH_OF_HOURS, Limits(0, 1000, 10**6), 7.0,
         SteadyState(A_MONTH_OF_HOURS, A_MONTH_OF_HOURS, DAYS_PER_MONTH, kept=False)),
    ],
    ids=range(7),
)  # fmt: skip
def test_the_oldest_answer_is_as_old_as_its_turn_takes(
    requests: int, limits: Limits, refresh_days: float, expected: SteadyState
) -> None:
    """A month's calls go when it begins, so with a month's limit the age is a whole number of months."""
    found = steady_state(requests, limits, refresh_days)
    assert found == replace(expected, oldest_days=found.oldest_days)
    assert found.oldest_days == pytest.approx(expected.oldest_days)


LIMITS = st.builds(
    Limits,
    st.sampled_from([0, 1, 10, 100, 600]),
    st.sampled_from([0, 5, 100, 1000]),
    st.sampled_from([0, 50, 1000, 25_000]),
)


@given(st.integers(1, 3000), st.integers(0, 3000), LIMITS)
def test_more_attempts_never_end_sooner(attempts: int, more: int, limits: Limits) -> None:
    few = forecast(attempts, limits, Start(NOON, month_left=limits.per_month or None)).ends
    many = forecast(attempts + more, limits, Start(NOON, month_left=limits.per_month or None)).ends
    if few is None:
        assert many is None
    elif many is not None:
        assert many >= few - timedelta(seconds=1)


@given(st.integers(1, 3000), LIMITS)
def test_no_window_is_forecast_to_hold_more_than_its_limit(attempts: int, limits: Limits) -> None:
    found = forecast(attempts, limits, Start(NOON, month_left=limits.per_month or None))
    if found.ends is None or found.pauses:
        return
    hours = (found.ends - NOON).total_seconds() / 3600
    if limits.per_hour:
        assert attempts <= limits.per_hour * (hours + 1)
    if limits.per_minute:
        assert attempts <= limits.per_minute * (hours * 60 + 1) + 1
