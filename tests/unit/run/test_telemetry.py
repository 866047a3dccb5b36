"""What a status is told of its end: by the budget's rules, and by the server's speed where nothing of ours binds."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harvester.bitly.verdicts import Transient
from harvester.budget.database import BudgetDatabase
from harvester.budget.forecast import ANSWER_SECONDS, Forecast, Start, forecast
from harvester.budget.limits import Account, Limits, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.client.pacer import HintedPauses
from harvester.errors import OutputError
from harvester.progress import AttemptCounts, RunProgress, WaitReason
from harvester.run import telemetry as outlook
from harvester.run.telemetry import EtaEstimator
from harvester.transport.connection_slots import Holders
from tests.support.in_process import Listener


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
    ours.record_reported(3000, 0)
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


class Stub:
    """A sender that does nothing."""

    def __init__(self) -> None:
        self.counters = AttemptCounts()
        self.waiting: WaitReason | None = None
        self.trouble: str | None = None
        self.not_sent = self.server_errors = self.network_errors = 0
        self.in_flight: list[Any] = []
        self.pauses = HintedPauses()
        self.pool: Any = SimpleNamespace(slots=SimpleNamespace(blockers=Holders((12,), (12,))))


class Told(Listener):
    """Notes why nothing is sent, from the second report on, and ends after a number of reports."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self.reports = reports
        self.windows: list[str | None] = []

    def progress(self, status: RunProgress) -> None:
        self.windows.append(status.waiting.window if status.waiting else None)
        if len(self.windows) == self.reports:
            del self.windows[0]
            raise asyncio.CancelledError


async def reported(
    book: BudgetDatabase, sender: Stub, awaits_reader: Callable[[], bool] = lambda: False, **progress: Any
) -> Told:
    """What an observer is told in some seconds in which nothing happens."""
    outlook_of = outlook.Telemetry(budget(book), 1, [], None, awaits_reader)
    outlook_of.begin(sender, 5, to_make=None, max_calls=None)
    for name, value in progress.items():
        setattr(outlook_of.progress, name, value)
    told = Told(6)
    with suppress(asyncio.CancelledError):
        await outlook_of.keep_observer_informed(told, 0.0)
    return told


async def test_a_list_that_brings_no_line_is_waited_for(book: BudgetDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook.Minute, "seconds", lambda _: [0.0] * 3)
    told = await reported(book, Stub())
    assert set(told.windows) == {"list"}
    assert set((await reported(book, Stub(), read_to_end=True)).windows) == {None}
    assert set((await reported(book, Stub(), pending=1)).windows) == {None}


async def test_a_reader_that_takes_no_rows_is_waited_for(book: BudgetDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook.Minute, "seconds", lambda _: [0.0] * 3)
    for progress in ({}, {"pending": 5}, {"read_to_end": True}):
        assert set((await reported(book, Stub(), lambda: True, **progress)).windows) == {"reader"}


async def test_a_pause_of_the_last_calls_is_waited_for(book: BudgetDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook.Minute, "seconds", lambda _: [0.0] * 3)
    sender = Stub()
    sender.pauses.seconds(Transient(503, "", 200.0), 1.0)
    assert set((await reported(book, sender, pending=1)).windows) == {"retry_after"}
    monkeypatch.setattr(outlook.Minute, "seconds", lambda _: [1.0] * 3)
    assert set((await reported(book, sender, pending=1)).windows) == {None}


async def test_a_stopped_process_that_holds_the_connections_is_warned_of_once(book: BudgetDatabase) -> None:
    sender = Stub()
    sender.waiting = WaitReason("connections", 0, None)
    told = await reported(book, sender)
    assert set(told.windows) == {"connections"}
    (warning,) = told.said
    assert "process 12 is suspended" in warning


async def test_what_begins_to_block_is_reported_once_with_its_beginning(book: BudgetDatabase) -> None:
    sender = Stub()
    telemetry = outlook.Telemetry(budget(book), 1, [])
    telemetry.begin(sender, 5, to_make=None, max_calls=None)
    assert not telemetry.begins_to_block
    sender.waiting = WaitReason("pace", 100, None)
    assert not telemetry.begins_to_block
    limited_by = telemetry.report(None).budget.limited_by
    assert limited_by is not None
    assert (limited_by.window, limited_by.since) == ("pace", None)
    sender.waiting = WaitReason("hour", 1000, None)
    assert telemetry.begins_to_block
    limited_by = telemetry.report(None).budget.limited_by
    assert limited_by is not None
    assert limited_by.since is not None
    assert not telemetry.begins_to_block
    sender.waiting = None
    assert telemetry.report(None).budget.limited_by is None


async def test_an_outage_goes_on_while_an_attempt_tests_the_server(book: BudgetDatabase) -> None:
    sender = Stub()
    telemetry = outlook.Telemetry(budget(book), 1, [])
    telemetry.begin(sender, 5, to_make=None, max_calls=None)
    sender.waiting = WaitReason("outage", 0, datetime.now(UTC), "it does not answer" + "!" * 1000)
    first = telemetry.report(None).budget.limited_by
    assert first is not None
    assert str(first.why).startswith("it does not answer!")
    assert len(str(first.why)) == 200
    sender.waiting = None
    assert telemetry.report(None).budget.limited_by == replace(first, until=None)
    telemetry.progress.rows += 1
    assert telemetry.report(None).budget.limited_by is None
