"""What a status is told of its end: by the budget's rules, and by the server's speed where nothing of ours binds."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from harvester.budget.database import BudgetDatabase
from harvester.budget.forecast import ANSWER_SECONDS, Forecast, Start, forecast
from harvester.budget.limits import Account, Limits, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.errors import OutputError
from harvester.progress import RunProgress, WaitReason
from harvester.run import telemetry as outlook
from harvester.run.telemetry import EtaEstimator


class Time:
    """Stands before the time module."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds

    def thread_time(self) -> float:
        return 0.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(outlook, "time", fake)
    return fake


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Start]]:
    """The forecasts that were made: of how many attempts, from where."""
    made: list[tuple[int, Start]] = []

    def noting(attempts: int, limits: Limits, start: Start) -> Forecast:
        made.append((attempts, start))
        return forecast(attempts, limits, start)

    monkeypatch.setattr("harvester.run.telemetry.forecast", noting)
    return made


@pytest.fixture
def book(tmp_path: Path) -> Iterator[BudgetDatabase]:
    with closing(BudgetDatabase(str(tmp_path / "budget.sqlite"))) as opened:
        yield opened


def budget(book: BudgetDatabase, *limits: int) -> MachineBudget:
    return MachineBudget(book, Account("a:1", "t", "t"), "e", RequestedLimits(*limits))


async def test_the_end_follows_from_the_hours_limit(book: BudgetDatabase) -> None:
    status, ours = RunProgress(to_make=2500), budget(book, 0, 1000, 0)
    await EtaEstimator(ours, 5).update(status)
    assert status.ends is not None
    assert timedelta(hours=2) < status.ends - ours.at(0) < timedelta(hours=2.2)
    assert status.spent is None


async def test_a_month_that_does_not_last_is_told(book: BudgetDatabase) -> None:
    status = RunProgress(to_make=2500)
    await EtaEstimator(budget(book, 0, 1000, 1500), 5).update(status)
    assert status.spent is not None
    assert status.ends is not None
    assert status.spent < status.ends


async def test_without_a_count_nothing_is_said_of_the_end(book: BudgetDatabase, asked: list[tuple[int, Start]]) -> None:
    status = RunProgress(rows=5)
    await EtaEstimator(budget(book, 0, 1000, 0), 5).update(status)
    assert status.ends is None
    assert asked == []
    assert [state.window for state in status.windows] == ["minute", "hour", "month"]


async def test_a_forecast_is_made_now_and_then_and_at_once_when_limits_change(
    book: BudgetDatabase, time: Time, asked: list[tuple[int, Start]]
) -> None:
    status, ours = RunProgress(to_make=2500), budget(book)
    ahead = EtaEstimator(ours, 5)
    time.seconds += 60
    for _ in range(10):
        await ahead.update(status)
        time.seconds += 0.9
    assert len(asked) == 1
    ours.observe(3000, 0)
    await ahead.update(status)
    assert len(asked) == 2
    time.seconds += 11
    await ahead.update(status)
    assert len(asked) == 3


async def test_repeats_so_far_are_expected_to_go_on(book: BudgetDatabase, asked: list[tuple[int, Start]]) -> None:
    status = RunProgress(to_make=300, rows=100)
    status.attempts.total = 150
    await EtaEstimator(budget(book, 0, 0, 0), 5).update(status)
    assert asked[0][0] == 300


async def test_where_nothing_binds_the_end_follows_the_servers_own_speed(
    book: BudgetDatabase, time: Time, asked: list[tuple[int, Start]]
) -> None:
    status = RunProgress(to_make=100_000)
    ahead = EtaEstimator(budget(book, 0, 0, 0), 5)
    for _ in range(12):
        await ahead.update(status)
        time.seconds += 1.0
        status.rows += 2
    assert asked[-1][1].answer_seconds == pytest.approx(2.5)


async def test_waits_of_our_own_say_nothing_of_the_servers_speed(
    book: BudgetDatabase, time: Time, asked: list[tuple[int, Start]]
) -> None:
    status = RunProgress(to_make=100_000, waiting=WaitReason("pace", 100, None))
    ahead = EtaEstimator(budget(book, 0, 0, 0), 5)
    for _ in range(12):
        await ahead.update(status)
        time.seconds += 1.0
        status.rows += 2
    assert asked[-1][1].answer_seconds == ANSWER_SECONDS


async def test_a_budget_that_cannot_be_read_leaves_the_status_as_it_was(
    book: BudgetDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, ours = RunProgress(to_make=2500), budget(book, 0, 1000, 0)
    ahead = EtaEstimator(ours, 5)
    await ahead.update(status)
    before = status.windows

    def broken() -> None:
        raise OutputError("the file is gone")

    monkeypatch.setattr(ours, "windows", broken)
    await ahead.update(status)
    ahead.finish(status)
    assert status.windows is before
