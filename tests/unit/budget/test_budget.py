"""Windows and month, in a file that processes, crashes and boots share, under clocks that the tests move."""

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import (
    DEFAULTS,
    SPANS,
    Account,
    Counted,
    Limits,
    MonthExhausted,
    PlanReport,
    RequestedLimits,
    RetryAfter,
)
from harvester.budget.machine import MachineBudget
from harvester.budget.states import (
    ASK_AFTER_REFUSAL_SECONDS,
    ASK_ATTEMPTS,
    ASK_PAUSED_SECONDS,
    ASK_SECONDS,
)
from harvester.clock import from_epoch, month_of
from harvester.errors import BudgetBusy, OutputError
from harvester.progress import WindowState
from tests.conftest import quick_folder
from tests.support.commands import ROOT, environment
from tests.support.virtual_time import VirtualClock

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
JANUARY = datetime(2027, 1, 1, tzinfo=UTC)
ACCOUNT = Account("api.example:443", "token 1", "acme")
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)

Start = Callable[..., MachineBudget]


class Machine(VirtualClock):
    """A machine's clocks: true time passes when it is told to, wall and boot may lie about it. Begins with both right.

    wrong: by how many seconds the wall clock is fast.
    """

    def __init__(self, begin: datetime = NOON) -> None:
        super().__init__(begin.timestamp())
        self.boot = "boot 0"
        self.wrong = 0.0
        self._booted = begin.timestamp() - self.seconds
        self._boots = 0

    @property
    def true(self) -> float:
        """True seconds since 1970."""
        return self._booted + self.seconds

    @property
    def date(self) -> datetime:
        """What a right server would say now: whole seconds."""
        return from_epoch(math.floor(self.true))

    def wall(self) -> float:
        return self.true + self.wrong

    def go(self, moment: datetime) -> None:
        """Let time pass until this moment."""
        self.seconds = moment.timestamp() - self._booted

    def pause(self, time: timedelta) -> None:
        """Be suspended, as a virtual machine is: the seconds since boot stand still, and the wall clock is set anew."""
        self._booted += time.total_seconds()

    def reboot(self, uptime: float = 20.0, *, off: float = 30.0, wrong: float = 0.0) -> None:
        """Be off for so long, and then up for so long, with a wall clock that is so fast."""
        began = self.true + off
        self._booted, self.seconds, self.wrong = began, uptime, wrong
        self._boots += 1
        self.boot = f"boot {self._boots}" if self.boot else ""


@pytest.fixture
def machine() -> Machine:
    return Machine()


@contextmanager
def starting(path: Path, machine: Machine, rng: random.Random | None = None) -> Iterator[Start]:
    """Start processes: each opens the file of its own, and none closes it before the end, as after a crash."""
    rng = rng or random.Random(1)
    with ExitStack() as stack:

        def start(
            per_minute: int | None = 0,
            per_hour: int | None = 0,
            per_month: int | None = 0,
            *,
            reserve: float = 0.0,
            account: Account = ACCOUNT,
            endpoint: str = "clicks",
        ) -> MachineBudget:
            book = stack.enter_context(closing(BudgetDatabase(str(path), machine)))
            return MachineBudget(
                book, account, endpoint, RequestedLimits(per_minute, per_hour, per_month, reserve), rng
            )

        yield start


@pytest.fixture
def start(quick_path: Path, machine: Machine) -> Iterator[Start]:
    with starting(quick_path / "budget.sqlite", machine) as start:
        yield start


def is_wait(answer: object, seconds: float, window: str) -> bool:
    """Whether an answer says to wait so long, but for rounding, and because of that."""
    return isinstance(answer, RetryAfter) and answer.window == window and answer.seconds == pytest.approx(seconds)


def take_all(budget: MachineBudget, most: int = 10_000) -> int:
    """Take until it is refused; give how many were granted."""
    return next((granted for granted in range(most) if budget.try_acquire() is not None), most)


def window(budget: MachineBudget, name: str) -> WindowState:
    return next(state for state in budget.windows() if state.window == name)


def spent(budget: MachineBudget) -> int:
    """What the month has been charged, at the end of a process."""
    budget.close()
    return window(budget, "month").used


# --- what is wanted -------------------------------------------------------------------------------------------------


def test_without_a_word_bitlys_example_and_its_free_plans_month_are_kept() -> None:
    assert RequestedLimits().limits() == DEFAULTS == Limits(100, 1000, 1000)


def test_bitlys_word_replaces_the_defaults_and_its_minute_is_a_tenth_of_the_hour() -> None:
    assert RequestedLimits().limits(reported_per_hour=5000) == Limits(500, 5000, 1000)
    assert RequestedLimits().limits(reported_per_hour=7) == Limits(1, 7, 1000)


def test_what_was_asked_for_is_kept_whatever_bitly_says() -> None:
    assert RequestedLimits(30, 400, 50).limits(reported_per_hour=5000) == Limits(30, 400, 50)
    assert RequestedLimits(0, 0, 0).limits(reported_per_hour=5000) == Limits(0, 0, 0)


@pytest.mark.parametrize(
    ("reserve", "kept"), [(0.0, (100, 1000, 10)), (0.25, (75, 750, 7)), (0.999, (1, 1, 1)), (1.0, (1, 1, 1))]
)
def test_a_reserve_is_left_to_others_but_one_attempt_is_kept(reserve: float, kept: tuple[int, int, int]) -> None:
    assert RequestedLimits(None, None, 10, reserve).limits() == Limits(*kept)


def test_a_reserve_makes_no_limit_where_there_is_none() -> None:
    assert RequestedLimits(0, 0, 0, 0.5).limits() == Limits(0, 0, 0)


@pytest.mark.parametrize(
    ("per_minute", "per_hour", "needs_report"), [(None, None, True), (None, 0, True), (50, 100, True), (50, 0, False)]
)
def test_bitly_is_asked_only_where_its_word_would_change_anything(
    per_minute: int | None, per_hour: int | None, needs_report: bool
) -> None:
    assert RequestedLimits(per_minute, per_hour).needs_report is needs_report


# --- windows --------------------------------------------------------------------------------------------------------


def test_the_longer_wait_is_given_with_its_windows_name_and_limit(start: Start, machine: Machine) -> None:
    budget = start(2, 3)
    assert budget.try_acquire() is None
    machine.seconds += 10
    assert budget.try_acquire() is None
    assert budget.try_acquire() == RetryAfter(pytest.approx(50.5), "minute", 2)  # type: ignore[arg-type]
    machine.seconds += 60
    assert budget.try_acquire() is None
    assert budget.try_acquire() == RetryAfter(pytest.approx(3530.5), "hour", 3)  # type: ignore[arg-type]


def test_a_refused_attempt_counts_nowhere(start: Start, machine: Machine) -> None:
    budget = start(1, 2)
    assert budget.try_acquire() is None
    assert all(isinstance(budget.try_acquire(), RetryAfter) for _ in range(100))
    assert spent(budget) == 1
    machine.seconds += 61
    assert budget.try_acquire() is None


def test_room_says_how_many_may_go_at_once(start: Start, machine: Machine) -> None:
    budget = start(3, 4, 5)
    assert budget.room() == 3
    assert take_all(budget) == 3
    assert budget.room() == 0
    machine.seconds += 61
    assert budget.room() == 1
    machine.seconds += 3600
    assert take_all(budget) == 2
    assert budget.room() == 0  # of the month
    assert start().room() == math.inf


@pytest.mark.parametrize("step", [-2 * DAY, -60 * MINUTE, 60 * MINUTE, 2 * DAY])
def test_a_step_of_the_wall_clock_opens_no_window(start: Start, machine: Machine, step: timedelta) -> None:
    assert start(1, 1).try_acquire() is None
    machine.wrong = step.total_seconds()
    for budget in (start(1), start(0, 1)):
        assert isinstance(budget.try_acquire(), RetryAfter)


def test_endpoints_and_tokens_have_windows_of_their_own(start: Start) -> None:
    assert start(1, 1).try_acquire() is None
    assert isinstance(start(1, 1).try_acquire(), RetryAfter)
    assert start(1, 1, endpoint="referrers").try_acquire() is None
    assert start(1, 1, account=ACCOUNT._replace(token="token 2")).try_acquire() is None
    assert start(1, 1, account=ACCOUNT._replace(server="localhost:8080")).try_acquire() is None
    assert isinstance(start(1, 1, account=ACCOUNT._replace(name="another")).try_acquire(), RetryAfter)


def test_with_another_token_other_windows_count_and_the_same_month(start: Start) -> None:
    budget = start(1, 0, 2)
    assert budget.try_acquire() is None
    budget.use_token("token 2")
    assert budget.account == ACCOUNT._replace(token="token 2")
    assert budget.try_acquire() is None
    assert isinstance(budget.try_acquire(), MonthExhausted)


def test_a_lower_limit_counts_what_was_sent_under_the_higher(start: Start) -> None:
    assert take_all(start(5)) == 5
    assert is_wait(start(2).try_acquire(), 60.5, "minute")
    assert take_all(start(7)) == 2


def test_an_attempt_that_went_late_holds_its_place_from_then_on(start: Start, machine: Machine) -> None:
    budget = start(2)
    assert [budget.try_acquire(), budget.try_acquire()] == [None, None]
    first = budget.counted
    machine.seconds += 5
    budget.sent_late(first)
    assert window(budget, "minute").used == spent(budget) == 2
    assert is_wait(budget.try_acquire(), 55.5, "minute")
    machine.seconds += 55.5
    assert budget.try_acquire() is None
    assert is_wait(budget.try_acquire(), 5.0, "minute")


def test_an_attempt_that_went_late_again_moves_again(start: Start, machine: Machine) -> None:
    budget = start(2)
    assert budget.try_acquire() is None
    attempt = budget.counted
    for _ in range(3):
        machine.seconds += 50.0
        moved = budget.sent_late(attempt)
        assert moved is not None
        assert machine.seconds <= moved.at < machine.seconds + 0.1
        attempt = moved
    assert window(budget, "minute").used == spent(budget) == 1
    assert is_wait(take_all(budget) and budget.try_acquire(), 60.5, "minute")


def test_an_attempt_whose_place_others_may_have_taken_is_not_sent(start: Start, machine: Machine) -> None:
    budget = start(1)
    assert budget.try_acquire() is None
    attempt = budget.counted
    machine.seconds += 60.5
    assert start(1).try_acquire() is None
    assert budget.sent_late(attempt) is None
    assert window(budget, "minute").used == 1


def test_attempts_that_went_late_together_are_each_counted_once(start: Start, machine: Machine) -> None:
    """Five connections are made at once, and each is ready later than the last."""
    budget, other = start(100), start(100)
    counted = []
    for _ in range(5):
        assert budget.try_acquire() is None
        counted.append(budget.counted)
        assert other.try_acquire() is None
        machine.seconds += 0.04
    for attempt in counted:
        machine.seconds += 0.25
        budget.sent_late(attempt)
    assert window(other, "minute").used == window(other, "hour").used == spent(other) == 10
    machine.seconds += 60.4
    assert window(other, "minute").used == 1


def test_an_attempt_that_never_left_counts_nowhere_whoever_has_counted_since(start: Start, machine: Machine) -> None:
    budget, other = start(100), start(100)
    assert budget.try_acquire() is None
    attempt = budget.counted
    assert [other.try_acquire() for _ in range(3)] == [None] * 3
    machine.seconds += 9.0
    assert [other.try_acquire() for _ in range(3)] == [None] * 3
    budget.give_back(attempt)
    assert [state.used for state in other.windows()] == [6, 6, 6]
    machine.seconds += 60.5 - 9.0
    assert [state.used for state in other.windows()] == [3, 6, 6]
    machine.seconds += 9.0
    assert window(other, "minute").used == 0


def test_an_attempt_of_a_token_that_was_rotated_since_is_given_back_to_that_token(start: Start) -> None:
    budget, old = start(100), start(100)
    assert budget.try_acquire() is None
    attempt = budget.counted
    budget.use_token("token 2")
    assert budget.try_acquire() is None
    budget.give_back(attempt)
    assert [state.used for state in old.windows()] == [0, 0, 1]
    assert [state.used for state in budget.windows()] == [1, 1, 1]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "take", "take", "back", "late", "pass"]),
            st.integers(0, 30),
            st.sampled_from([0.0, 0.03, 0.1, 0.7, 30.0, 61.0]),
        ),
        max_size=60,
    ),
    st.sampled_from([0, 1000]),
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_given_back_and_what_goes_late_is_counted_as_if_it_had_always_been_so(
    events: list[tuple[str, int, float]], per_minute: int
) -> None:
    """Two processes count, in any order; the windows hold what was sent in them, each attempt at its last time."""
    machine = Machine()
    with quick_folder() as folder, starting(folder / "budget.sqlite", machine) as start:
        budgets = [start(per_minute), start(100_000)]
        waiting: list[tuple[MachineBudget, Counted]] = []
        times: list[float] = []
        for event, number, seconds in events:
            if event == "pass":
                machine.seconds += seconds
            elif event == "take":
                budget = budgets[number % 2]
                assert budget.try_acquire() is None
                waiting.append((budget, budget.counted))
            elif waiting:
                budget, attempt = waiting.pop(number % len(waiting))
                if event == "back" or budget.sent_late(attempt) is None:
                    assert event == "back" or machine.seconds - attempt.at > 60.0
                    budget.give_back(attempt)
                else:
                    times.append(math.ceil(machine.seconds * 10) / 10)
            for each in budgets:  # what is left of leases is given back
                each.close()
            made = times + [attempt.at for _, attempt in waiting]
            for name, span in SPANS.items():
                assert window(budgets[1], name).used == sum(at > machine.seconds - span - 0.5 for at in made)
            assert window(budgets[1], "month").used == len(made)


def test_a_file_stays_small_at_any_rate(start: Start, machine: Machine, quick_path: Path) -> None:
    budget = start(0, 100_000)
    for _ in range(5000):
        assert budget.try_acquire() is None
        machine.seconds += 0.001
    budget.close()  # gives back what is left of a lease
    assert window(budget, "hour").used == 5000
    with closing(sqlite3.connect(quick_path / "budget.sqlite")) as file:
        assert file.execute("SELECT count(*) FROM attempts").fetchone()[0] <= 51


# --- the guarantee --------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """An attempt on its way. number: in the order of counting. arrived: true time. limits: those it was taken under."""

    number: int
    arrived: float
    limits: Limits


JITTERS = st.sampled_from([0.0, 0.25, 0.5])
PROCESSES = st.integers(0, 2)
WALL_STEPS = st.sampled_from([-40 * 86400.0, -3000.0, 70.0, 5000.0, 40 * 86400.0])


class World:
    """One machine with processes that start, crash and send; what arrives is held against the limits.

    A window may begin at any moment, and the way takes up to half a second, for one attempt and not for the next.
    """

    def __init__(self, begin: datetime, starting_on: Callable[[Machine], AbstractContextManager[Start]]) -> None:
        self.machine = Machine(begin)
        self._stack = ExitStack()
        self._start = self._stack.enter_context(starting_on(self.machine))
        self._endpoints: dict[int, str] = {}
        self._processes: dict[int, MachineBudget] = {}
        self._taken = 0
        self._windows: dict[tuple[str, str], list[Sent]] = {}
        self._months: dict[str, list[Sent]] = {}
        self._boot = ""
        self._month_known = True

    def close(self) -> None:
        """Let the processes go."""
        self._stack.close()

    def start(self, process: int, limits: tuple[int | None, int | None, int], token: str, endpoint: str) -> None:
        """A process starts; one that had this number has crashed.

        A boot's first one reads the wall clock: if that is wrong then, only a server's dates can mend the month.
        """
        if self._boot != self.machine.boot:
            self._boot = self.machine.boot
            self._month_known = self._month_known and self.machine.wrong == 0.0
        account = ACCOUNT._replace(token=token)
        self._processes[process] = self._start(*limits, account=account, endpoint=endpoint)
        self._endpoints[id(self._processes[process])] = endpoint

    def pass_time(self, seconds: float) -> None:
        self.machine.seconds += seconds

    def step_wall(self, seconds: float) -> None:
        self.machine.wrong += seconds

    def reboot(self, uptime: float, off: float) -> None:
        self._processes.clear()
        self.machine.reboot(uptime, off=off)

    def reboot_with_a_wrong_clock(self, uptime: float, seconds: float) -> None:
        """The windows' guarantee holds even then."""
        self._processes.clear()
        self.machine.reboot(uptime, wrong=seconds)

    def send(self, process: int, jitters: Sequence[float], gap: float = 0.0) -> None:
        if budget := self._processes.get(process):
            for jitter in jitters:
                if budget.try_acquire() is None:
                    self._taken += 1
                    self._arrives(budget, Sent(self._taken, self.machine.true + jitter, budget.limits))
                self.machine.seconds += gap

    def wait_as_told_and_send(self, process: int, jitters: Sequence[float]) -> None:
        for jitter in jitters if process in self._processes else ():
            refused = self._processes[process].room() or self._processes[process].try_acquire()
            if isinstance(refused, RetryAfter):
                self.machine.seconds += refused.seconds
            self.send(process, [jitter])

    def send_late(self, process: int, other: int, late: float, times: int, jitter: float, never_sent: bool) -> None:
        """It is counted, but its connection takes so long, or is never made; meanwhile another process sends."""
        budget = self._processes.get(process)
        if budget is None or budget.try_acquire() is not None:
            return
        self._taken += 1
        number, limits, attempt = self._taken, budget.limits, budget.counted
        self.machine.seconds += late / 2
        self.send(other, [0.0] * times)
        self.machine.seconds += late / 2
        if never_sent or budget.sent_late(attempt) is None:
            budget.give_back(attempt)
        else:
            self._arrives(budget, Sent(number, self.machine.true + jitter, limits))

    def throttled(self, process: int, hint: float | None) -> None:
        if budget := self._processes.get(process):
            budget.throttled(hint, sent_at=self.machine.seconds)

    def answered(self, process: int) -> None:
        if budget := self._processes.get(process):
            budget.answered(sent_at=self.machine.seconds)

    def see_date(self, process: int, there: float, back: float) -> None:
        """A slow answer has a date of its way."""
        if budget := self._processes.get(process):
            sent_at = self.machine.seconds
            self.machine.seconds += there
            date = self.machine.date
            self.machine.seconds += back
            budget.month.see_date(date, sent_at=sent_at)

    def record_reported(self, process: int, limit: int, count: int) -> None:
        budget = self._processes.get(process)
        if budget and budget.ask_due():
            budget.record_reported(limit, count)

    def _arrives(self, budget: MachineBudget, new: Sent) -> None:
        for name in SPANS:
            asked = budget.requested.limits(reported_per_hour=10**6).of(name)
            assert 0 < new.limits.of(name) <= asked or not asked
        scope = self._windows.setdefault((budget.account.token, self._endpoints[id(budget)]), [])
        scope.append(new)
        for name, span in SPANS.items():
            near = [sent for sent in scope if abs(sent.arrived - new.arrived) < span]
            for begin in (sent.arrived for sent in near if sent.arrived <= new.arrived):
                held = [sent for sent in near if begin <= sent.arrived < begin + span - 1e-5]
                limit = max(held).limits.of(name)  # whoever was counted last knew of all the others
                assert len(held) <= limit or not limit, name
        month = self._months.setdefault(month_of(new.arrived), [])
        month.append(new)
        limit = max(month).limits.per_month
        assert len(month) <= limit or not limit or not self._month_known, "month"


LIMITS = st.tuples(
    st.sampled_from([0, 1, 2, 2, 5, None]),
    st.sampled_from([0, 0, 3, 8, 20, None]),
    st.sampled_from([0, 0, 0, 1, 5, 30]),
)
ARGUMENTS: dict[str, dict[str, st.SearchStrategy[object]]] = {
    "pass_time": {
        "seconds": st.one_of(
            st.floats(0.0, 90.0),
            st.sampled_from([0.03, 5.0, 59.4, 59.999, 60.0, 60.5, 3599.9, 3600.0, 3600.5, 5000.0]),
        )
    },
    "start": {
        "process": PROCESSES,
        "limits": LIMITS,
        "token": st.sampled_from(["token 1"] * 4 + ["token 2"]),
        "endpoint": st.sampled_from(["clicks"] * 4 + ["referrers"]),
    },
    "step_wall": {"seconds": WALL_STEPS},
    "reboot": {
        "uptime": st.sampled_from([0.05, 3.0, 40.0, 1000.0, 1100.0, 4000.0]),
        "off": st.sampled_from([0.0, 0.5, 30.0]),
    },
    "reboot_with_a_wrong_clock": {"uptime": st.sampled_from([3.0, 500.0]), "seconds": WALL_STEPS},
    "send": {
        "process": PROCESSES,
        "jitters": st.lists(JITTERS, min_size=1, max_size=8),
        "gap": st.sampled_from([0.0, 0.03, 0.5]),
    },
    "wait_as_told_and_send": {"process": PROCESSES, "jitters": st.lists(JITTERS, min_size=1, max_size=4)},
    "send_late": {
        "process": PROCESSES,
        "other": PROCESSES,
        "late": st.floats(0.2, 30.0),
        "times": st.integers(0, 5),
        "jitter": JITTERS,
        "never_sent": st.booleans(),
    },
    "throttled": {"process": PROCESSES, "hint": st.sampled_from([None, 1.0, 400.0])},
    "answered": {"process": PROCESSES},
    "see_date": {"process": PROCESSES, "there": st.floats(0.0, 20.0), "back": st.floats(0.0, 20.0)},
    "record_reported": {"process": PROCESSES, "limit": st.integers(1, 30), "count": st.integers(0, 30)},
}
OFTEN = {
    "send": 16,
    "wait_as_told_and_send": 24,
    "pass_time": 8,
    "start": 6,
    "send_late": 4,
    "see_date": 2,
    "reboot": 2,
}
EVENTS = st.lists(
    st.sampled_from([*ARGUMENTS, *Counter(OFTEN).elements()]).flatmap(
        lambda name: st.tuples(st.just(name), st.fixed_dictionaries(ARGUMENTS[name]))
    ),
    min_size=30,
    max_size=80,
)
BEGINNINGS = [NOON, DECEMBER - 10 * SECOND, DECEMBER - 90 * MINUTE, JANUARY - 40 * SECOND]


@pytest.mark.parametrize("examples", [50, pytest.param(1500, marks=pytest.mark.nightly)])
def test_no_window_and_no_month_ever_holds_more_than_its_limit_whatever_happens(examples: int) -> None:
    """Processes, crashes, reboots, steps of the wall clock, slow connections and answers, throttling, other limits."""
    searched = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    searched(given(st.sampled_from(BEGINNINGS), LIMITS, EVENTS)(check_a_world))()


def check_a_world(
    begin: datetime, limits: tuple[int | None, int | None, int], events: list[tuple[str, dict[str, object]]]
) -> None:
    with quick_folder() as folder:
        play(begin, limits, events, partial(starting, folder / "budget.sqlite"))


def play(
    begin: datetime,
    limits: tuple[int | None, int | None, int],
    events: list[tuple[str, dict[str, object]]],
    starting_on: Callable[[Machine], AbstractContextManager[Start]],
) -> None:
    with closing(World(begin, starting_on)) as world:
        world.start(0, limits, ACCOUNT.token, "clicks")
        for name, arguments in events:
            getattr(world, name)(**arguments)


# --- and no time is lost --------------------------------------------------------------------------------------------


def served(machine: Machine, budget: MachineBudget, seconds: float, pace: float) -> int:
    """How much of an endless demand is served in so long, if one comes after the other at this pace."""
    until, granted = machine.seconds + seconds, 0
    while machine.seconds < until:
        refused = budget.try_acquire()
        granted += refused is None
        machine.seconds += max(pace, refused.seconds if isinstance(refused, RetryAfter) else 0.0)
    return granted


@pytest.mark.parametrize(("limit", "minutes"), [(100, 60), (137, 40), (1000, 6)])
@pytest.mark.parametrize("paced", [False, True])
def test_an_endless_demand_gets_985_of_1000_that_a_minute_allows(
    start: Start, machine: Machine, limit: int, minutes: int, paced: bool
) -> None:
    granted = served(machine, start(limit), minutes * 60.0, 60.0 / limit if paced else 0.0)
    assert granted >= 0.985 * limit * minutes


def test_a_paced_demand_gets_995_of_1000_that_an_hour_allows(start: Start, machine: Machine) -> None:
    assert served(machine, start(100, 1000), 10 * 3600.0, 0.6) >= 0.995 * 10 * 1000


@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.lists(st.one_of(st.just(0.0), st.floats(0.0, 2.0), st.floats(0.0, 90.0), st.just(3600.5)), max_size=40),
)
def test_whoever_waits_as_long_as_told_gets_through_and_no_later_than_need_be(
    per_minute: int, per_hour: int, gaps: list[float]
) -> None:
    machine = Machine()
    taken: list[float] = []
    with quick_folder() as folder, starting(folder / "budget.sqlite", machine) as start:
        budget = start(per_minute, per_hour)
        for gap in gaps:
            machine.seconds += gap
            leaves = [
                taken[-limit] + span + 0.5
                for limit, span in ((per_minute, 60.0), (per_hour, 3600.0))
                if len(taken) >= limit
            ]
            left = max([0.0, *leaves]) - machine.seconds
            refused = budget.try_acquire()
            if refused is None:
                assert left <= 1e-6
            else:
                assert isinstance(refused, RetryAfter)
                assert left - 1e-6 <= refused.seconds <= left + 0.2
                machine.seconds += refused.seconds + 1e-6
                assert budget.try_acquire() is None
            taken.append(machine.seconds)


# --- the month ------------------------------------------------------------------------------------------------------


def test_a_spent_month_says_when_the_next_begins_and_then_counts_from_zero(start: Start, machine: Machine) -> None:
    budget = start(0, 0, 2)
    assert take_all(budget) == 2
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    assert window(budget, "month").used == 2
    machine.go(DECEMBER + MINUTE)
    assert take_all(budget) == 2
    assert budget.try_acquire() == MonthExhausted(JANUARY)


def test_after_december_comes_january(start: Start, machine: Machine) -> None:
    machine.go(JANUARY - MINUTE)
    assert take_all(start(0, 0, 1)) == 1
    machine.go(JANUARY + MINUTE)
    assert take_all(start(0, 0, 1)) == 1
    assert start(0, 0, 1).try_acquire() == MonthExhausted(datetime(2027, 2, 1, tzinfo=UTC))


def test_a_spent_month_comes_before_a_full_window(start: Start) -> None:
    budget = start(1, 1, 1)
    assert budget.try_acquire() is None
    assert isinstance(budget.try_acquire(), MonthExhausted)


def test_a_month_is_an_accounts_over_all_endpoints_and_tokens(start: Start) -> None:
    assert start(0, 0, 2, endpoint="clicks").try_acquire() is None
    assert start(0, 0, 2, endpoint="referrers", account=ACCOUNT._replace(token="token 2")).try_acquire() is None
    assert isinstance(start(0, 0, 2).try_acquire(), MonthExhausted)
    assert start(0, 0, 2, account=Account(ACCOUNT.server, "token 3", "another")).try_acquire() is None
    assert start(0, 0, 2, account=ACCOUNT._replace(server="localhost:8080")).try_acquire() is None


def test_an_account_that_is_given_a_name_later_has_not_spent_less(start: Start) -> None:
    assert take_all(start(0, 0, 3, account=ACCOUNT._replace(name=ACCOUNT.token))) == 3
    assert isinstance(start(0, 0, 3).try_acquire(), MonthExhausted)


@pytest.mark.parametrize(
    ("seconds", "november", "december"), [(-20.0, 1, 0), (-5.0, 1, 1), (0.0, 1, 1), (4.9, 1, 1), (5.0, 0, 1)]
)
def test_an_attempt_within_5_seconds_of_a_months_edge_counts_on_both_sides(
    start: Start, machine: Machine, seconds: float, november: int, december: int
) -> None:
    machine.go(DECEMBER + seconds * SECOND)
    assert start(100).try_acquire() is None
    budget = start(0, 0, 1)
    machine.go(DECEMBER - 20 * SECOND)
    assert (budget.room() == 0) is bool(november)
    machine.go(DECEMBER + 20 * SECOND)
    assert (budget.room() == 0) is bool(december)


@pytest.mark.parametrize("seconds", [-9.0, -1.0, 0.0, 4.9])
def test_near_its_edge_a_spent_month_costs_seconds_and_is_not_over(
    start: Start, machine: Machine, seconds: float
) -> None:
    budget = start(0, 0, 1)
    assert budget.try_acquire() is None
    machine.go(DECEMBER + seconds * SECOND)
    refused = budget.try_acquire()
    assert isinstance(refused, RetryAfter)
    assert (refused.window, refused.limit) == ("month", 1)
    assert refused.seconds <= 20.0
    machine.seconds += refused.seconds
    assert budget.try_acquire() is None
    assert budget.try_acquire() == MonthExhausted(JANUARY)


def test_at_an_edge_with_both_months_spent_it_is_the_later_that_is_over(start: Start, machine: Machine) -> None:
    machine.go(DECEMBER - SECOND)
    budget = start(0, 0, 1)
    assert budget.try_acquire() is None
    assert budget.try_acquire() == MonthExhausted(JANUARY)


def test_an_attempt_that_went_late_counts_in_the_month_that_has_begun_since(
    start: Start, machine: Machine, quick_path: Path
) -> None:
    machine.go(DECEMBER - 15 * SECOND)
    budget = start(100, 0, 5)
    assert budget.try_acquire() is None
    attempt = budget.counted
    machine.go(DECEMBER + 10 * SECOND)
    assert window(budget, "month").used == 0
    budget.sent_late(attempt)
    assert window(budget, "month").used == 1
    with closing(sqlite3.connect(quick_path / "budget.sqlite")) as file:
        assert set(file.execute("SELECT month, spent FROM months")) == {("2026-11", 0), ("2026-12", 1)}


def test_an_attempt_that_went_late_into_a_month_that_is_spent_is_not_sent(start: Start, machine: Machine) -> None:
    machine.go(DECEMBER - 15 * SECOND)
    budget = start(100, 0, 5)
    assert budget.try_acquire() is None
    attempt = budget.counted
    machine.go(DECEMBER + 10 * SECOND)
    assert take_all(start(100, 0, 5)) == 5
    assert budget.sent_late(attempt) is None
    assert window(budget, "month").used == 5


@given(st.lists(st.tuples(st.integers(-100, 100), st.booleans()), max_size=40), st.integers(1, 4))
def test_no_steps_of_the_wall_clock_give_a_months_calls_out_twice(steps: list[tuple[int, bool]], limit: int) -> None:
    machine = Machine()
    with quick_folder() as folder, starting(folder / "budget.sqlite", machine) as start:
        budget, granted = start(0, 0, limit), 0
        for days, again in steps:
            machine.wrong += days * 86400.0
            budget = start(0, 0, limit) if again else budget
            granted += take_all(budget)
        assert granted <= limit


# --- Bitly's word on the month ---------------------------------------------------------------------------------------


def test_when_bitly_says_that_the_month_is_spent_nobody_asks_again_for_a_day(start: Start, machine: Machine) -> None:
    budget, other = start(100, 0, 50), start(100, endpoint="referrers")
    assert take_all(budget, 3) == 3
    budget.month.mark_spent()
    for each in (budget, other, start()):
        assert each.try_acquire() == MonthExhausted(DECEMBER, reported=True)
    machine.seconds += 86400.0 - 1.0
    assert start().try_acquire() == MonthExhausted(DECEMBER, reported=True)


def test_after_a_day_one_attempt_asks_whether_the_month_is_still_spent(start: Start, machine: Machine) -> None:
    budget, other = start(), start()
    budget.month.mark_spent()
    machine.seconds += 86400.0
    assert budget.try_acquire() is None
    assert budget.month.reported_spent
    assert other.try_acquire() == budget.try_acquire() == MonthExhausted(DECEMBER, reported=True)
    budget.month.clear_spent()
    assert take_all(other, 10) == take_all(budget, 10) == 10
    assert not budget.month.reported_spent


def test_the_attempt_of_the_day_that_was_not_sent_is_made_up_for(start: Start, machine: Machine) -> None:
    budget, other = start(), start()
    budget.month.mark_spent()
    machine.seconds += 86400.0
    assert budget.try_acquire() is None
    budget.give_back(budget.counted)
    assert other.try_acquire() is None
    assert budget.try_acquire() == MonthExhausted(DECEMBER, reported=True)


def test_the_next_month_is_not_spent_because_bitly_said_so_of_this(start: Start, machine: Machine) -> None:
    budget = start()
    budget.month.mark_spent()
    machine.go(DECEMBER + MINUTE)
    assert budget.try_acquire() is None


def test_a_refusal_just_behind_a_months_edge_is_the_old_months(start: Start, machine: Machine) -> None:
    machine.go(DECEMBER + 2 * SECOND)
    budget = start()
    budget.month.mark_spent()
    assert budget.try_acquire() is None


def test_an_answer_shows_that_bitlys_month_is_not_spent_any_more(start: Start) -> None:
    first, second = start(), start()
    first.month.mark_spent()
    assert first.month.reported_spent
    second.month.clear_spent()
    assert not second.month.reported_spent
    assert first.try_acquire() is None
    assert not first.counted.asks_month


def test_what_bitly_reports_of_a_plan_is_known_to_all_processes_for_a_day(start: Start, machine: Machine) -> None:
    first, second = start(), start()
    assert first.month.plan_report() is None
    first.month.note_plan(5000, [{"name": "api_requests"}])
    machine.seconds += DAY.total_seconds() - 1
    assert second.month.plan_report() == PlanReport(5000, [{"name": "api_requests"}], DAY.total_seconds() - 1)
    assert start(account=ACCOUNT._replace(token="token 2")).month.plan_report() is None
    assert start(account=ACCOUNT._replace(server="other:443")).month.plan_report() is None
    first.month.note_plan(1000, [])
    assert second.month.plan_report() == PlanReport(1000, [], 0.0)
    machine.seconds += DAY.total_seconds()
    assert second.month.plan_report() is None


def test_another_account_is_not_spent_because_this_is(start: Start) -> None:
    start().month.mark_spent()
    assert start(account=Account(ACCOUNT.server, "token 2", "another")).try_acquire() is None
    assert isinstance(start(account=ACCOUNT._replace(token="token 2")).try_acquire(), MonthExhausted)


def test_windows_tell_of_a_month_that_bitly_calls_spent(start: Start) -> None:
    budget = start(0, 0, 50)
    assert take_all(budget, 3) == 3
    budget.month.mark_spent()
    month = window(budget, "month")
    assert (month.limit, month.used, month.remaining) == (3, 3, 0)
    assert (month.source, month.until) == ("bitly", DECEMBER)
    month = window(start(0, 0, 2), "month")
    assert (month.limit, month.used, month.remaining) == (2, 3, 0)
    nothing_sent = start(account=ACCOUNT._replace(name="other", token="token 2"))
    nothing_sent.month.mark_spent()
    month = window(nothing_sent, "month")
    assert (month.limit, month.used, month.remaining) == (1, 1, 0)


# --- old months -----------------------------------------------------------------------------------------------------


def test_old_months_are_forgotten_and_the_last_year_is_kept(start: Start, machine: Machine, quick_path: Path) -> None:
    for number in range(30):
        assert start(1).try_acquire() is None
        machine.go(NOON + (number + 1) * 31 * DAY)
    start()
    with closing(sqlite3.connect(quick_path / "budget.sqlite")) as file:
        months = [month for (month,) in file.execute("SELECT DISTINCT month FROM months ORDER BY month")]
    assert 12 <= len(months) <= 15
    assert months[-1] == month_of((NOON + 29 * 31 * DAY).timestamp())


# --- the calendar ---------------------------------------------------------------------------------------------------


def test_a_servers_date_sets_a_slow_calendar_right_for_all_processes(start: Start, machine: Machine) -> None:
    machine.wrong = -20 * 86400.0
    other, budget = start(0, 0, 1), start(0, 0, 1)
    assert budget.try_acquire() is None
    machine.go(DECEMBER + MINUTE)
    machine.wrong = 0.0
    assert other.try_acquire() == MonthExhausted(DECEMBER)
    budget.month.see_date(machine.date)
    assert other.try_acquire() is None
    assert other.try_acquire() == budget.try_acquire() == start(0, 0, 1).try_acquire() == MonthExhausted(JANUARY)


def test_a_servers_date_sets_a_fast_calendar_right(start: Start, machine: Machine) -> None:
    assert start(1, 0, 1).try_acquire() is None
    machine.reboot(wrong=20 * 86400.0)
    budget = start(0, 0, 1)
    assert budget.try_acquire() is None  # the hole: a machine that booted with a wrong clock
    machine.wrong = 0.0
    budget.month.see_date(machine.date)
    assert budget.try_acquire() == MonthExhausted(DECEMBER)


def test_a_calendar_that_was_years_ahead_has_not_made_the_present_month_forgotten(
    start: Start, machine: Machine
) -> None:
    assert start(1, 0, 1).try_acquire() is None
    machine.reboot(wrong=3000 * 86400.0)
    budget = start(0, 0, 1)
    machine.wrong = 0.0
    budget.month.see_date(machine.date)
    assert budget.try_acquire() == MonthExhausted(DECEMBER)


@pytest.mark.parametrize("days", [-400.0, -1.1, 1.1, 400.0])
def test_a_date_of_which_neither_calendar_nor_wall_clock_know_is_a_servers_mistake(
    start: Start, machine: Machine, days: float
) -> None:
    budget = start()
    budget.month.see_date(NOON + days * DAY)
    assert budget.at(0.0) == NOON
    machine.wrong = days * 86400.0
    budget.month.see_date(NOON + days * DAY)
    assert abs(budget.at(0.0) - NOON - days * DAY) <= SECOND


@pytest.mark.parametrize("seconds", [-2.0, 0.0, 2.0])
def test_a_second_or_two_are_no_reason_to_set_the_calendar(start: Start, machine: Machine, seconds: float) -> None:
    budget = start()
    before = budget.at(0.0)
    budget.month.see_date(before + seconds * SECOND)
    assert budget.at(0.0) == before


def test_the_date_of_a_slow_answer_does_not_set_the_calendar_back(start: Start, machine: Machine) -> None:
    machine.go(DECEMBER - 5 * SECOND)
    budget = start(0, 0, 1)
    sent_at, date = machine.seconds, machine.date
    machine.seconds += 25.0
    budget.month.see_date(date, sent_at=sent_at)
    assert budget.at(0.0) == from_epoch(machine.true)


def test_a_slow_answers_date_corrects_by_what_is_certain(start: Start, machine: Machine) -> None:
    budget = start()
    sent_at = machine.seconds
    machine.seconds += 25.0
    now = from_epoch(machine.true)
    budget.month.see_date(now + 100 * SECOND, sent_at=sent_at)
    assert budget.at(0.0) == now + 100 * SECOND
    budget.month.see_date(now - 100 * SECOND, sent_at=sent_at)
    assert budget.at(0.0) == now - 74 * SECOND


def test_what_a_server_said_of_the_date_outlives_the_process(start: Start) -> None:
    start().month.see_date(NOON + 60 * MINUTE)
    assert start().at(0.0) == NOON + 60 * MINUTE


def test_after_a_reboot_the_calendar_is_the_wall_clocks_again(start: Start, machine: Machine) -> None:
    machine.wrong = -3600.0
    assert start(1).try_acquire() is None
    machine.reboot()
    assert start().at(0.0) == from_epoch(machine.true)


def test_after_a_reboot_with_a_slow_clock_time_has_not_gone_back_since_the_last_attempt(
    start: Start, machine: Machine
) -> None:
    machine.go(DECEMBER + DAY)
    assert start(0, 0, 1).try_acquire() is None
    machine.reboot(wrong=-10 * 86400.0)
    assert start(0, 0, 1).try_acquire() == MonthExhausted(JANUARY)


# --- clocks that contradict each other --------------------------------------------------------------------------------


def paused_into_december(start: Start, machine: Machine, limit: int = 3) -> MachineBudget:
    """A budget whose month is spent, on a machine that was then suspended over the month's edge."""
    budget = start(0, 0, limit)
    assert take_all(budget) == limit
    machine.pause(10 * DAY)
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    return budget


def test_a_month_that_ended_while_the_machine_was_suspended_is_over_once_the_server_has_said_so(
    start: Start, machine: Machine
) -> None:
    budget = paused_into_december(start, machine)
    assert budget.try_ask_date()
    machine.seconds += 1.0
    budget.month.see_date(machine.date, asked=True)
    assert budget.at(0.0) == from_epoch(machine.true)
    assert take_all(budget) == 2  # and the request for the date
    assert budget.try_acquire() == start(0, 0, 3).try_acquire() == MonthExhausted(JANUARY)
    assert not budget.try_ask_date()


def test_while_the_clocks_disagree_on_the_month_its_end_is_not_known(start: Start, machine: Machine) -> None:
    budget = paused_into_december(start, machine)
    assert window(budget, "month").until is None
    budget.month.see_date(machine.date)
    assert window(budget, "month").until == JANUARY


def test_one_process_asks_for_the_date_and_the_others_wait_for_it(start: Start, machine: Machine) -> None:
    budget = paused_into_december(start, machine)
    others = [start(0, 0, 3), start(0, 0, 3, endpoint="referrers")]
    assert budget.try_ask_date()
    for other in others:
        assert not other.try_ask_date()
        assert is_wait(other.try_acquire(), 0.2, "month")
    machine.seconds += 1.0
    budget.month.see_date(machine.date, asked=True)
    assert [other.try_acquire() for other in others] == [None, None]


def test_a_wall_clock_that_was_set_wrong_costs_one_request_and_begins_no_month(start: Start, machine: Machine) -> None:
    budget = start(0, 0, 3)
    assert take_all(budget) == 3
    machine.wrong = 20 * 86400.0
    assert budget.try_ask_date()
    budget.month.see_date(machine.date, asked=True)
    assert abs(budget.at(0.0) - machine.date) <= SECOND
    for _ in range(30):
        machine.seconds += 3600.0
        for process in (budget, start(0, 0, 3)):
            assert process.try_acquire() == MonthExhausted(DECEMBER)
            assert not process.try_ask_date()


@pytest.mark.parametrize("hours", [-23, -1, 0, 1, 23])
def test_clocks_that_differ_by_less_than_a_day_are_no_reason_to_ask_within_a_month(
    start: Start, machine: Machine, hours: int
) -> None:
    budget = start(0, 0, 3)
    assert take_all(budget) == 3
    machine.wrong = hours * 3600.0
    assert not budget.try_ask_date()


@pytest.mark.parametrize(("pause", "asks"), [(12.0, True), (7.0, True), (5.9, False)])
def test_a_machine_that_was_suspended_for_hours_over_a_months_edge_asks(
    start: Start, machine: Machine, pause: float, asks: bool
) -> None:
    machine.go(DECEMBER - timedelta(hours=6))
    budget = start(0, 0, 3)
    assert take_all(budget) == 3
    machine.pause(timedelta(hours=pause))
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    assert budget.try_ask_date() is asks
    if asks:
        budget.month.see_date(machine.date, asked=True)
        assert take_all(budget) == 2


def test_a_wall_clock_that_is_hours_fast_at_a_months_end_costs_one_request(start: Start, machine: Machine) -> None:
    machine.go(DECEMBER - timedelta(hours=3))
    assert take_all(start(0, 0, 3)) == 3
    machine.wrong = 5 * 3600.0
    asked = 0
    for _ in range(150):
        budget = start(0, 0, 3)
        assert budget.try_acquire() == MonthExhausted(DECEMBER)
        if budget.try_ask_date():
            asked += 1
            budget.month.see_date(machine.date, asked=True)
        machine.seconds += 60.0
    assert asked == 1


def test_a_date_that_neither_clock_knows_is_taken_if_it_was_asked_for(start: Start, machine: Machine) -> None:
    """The wall clock was wrong at boot, and set to another wrong time later."""
    assert take_all(start(1)) == 1
    machine.reboot(off=20 * 86400.0, wrong=-60 * 86400.0)  # the last attempt's time is the calendar's
    budget = start(0, 0, 1)
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    machine.wrong = 90 * 86400.0
    assert budget.try_ask_date()
    budget.month.see_date(machine.date, asked=True)
    assert abs(budget.at(0.0) - machine.date) <= SECOND
    assert budget.try_acquire() == MonthExhausted(JANUARY)  # the request was this month's only one


def test_a_wall_clock_that_was_behind_at_boot_and_is_right_later_is_followed(start: Start, machine: Machine) -> None:
    assert take_all(start(0, 0, 3)) == 3
    machine.reboot(off=20 * 86400.0, wrong=-300 * 86400.0)
    budget = start(0, 0, 3)
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    machine.wrong = 0.0
    assert budget.try_ask_date()
    budget.month.see_date(machine.date, asked=True)
    assert take_all(budget) == 2


def test_a_request_for_the_date_without_a_response_is_not_repeated_for_an_hour(start: Start, machine: Machine) -> None:
    budget = paused_into_december(start, machine)
    assert budget.try_ask_date()
    machine.seconds += 34.0
    assert isinstance(budget.try_acquire(), RetryAfter)
    machine.seconds += 2.0
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    assert not budget.try_ask_date()
    machine.seconds += 3600.0
    assert budget.try_ask_date()


def test_after_a_response_without_a_date_nobody_waits_for_it(start: Start, machine: Machine) -> None:
    budget = paused_into_december(start, machine)
    assert budget.try_ask_date()
    budget.month.see_no_date()
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    assert not budget.try_ask_date()


def test_a_request_for_the_date_that_was_not_sent_is_made_up_for(start: Start, machine: Machine) -> None:
    budget = paused_into_december(start, machine)
    assert budget.try_ask_date()
    budget.give_back(budget.counted)
    assert spent(budget) == 3
    assert budget.try_acquire() == MonthExhausted(DECEMBER)
    assert start(0, 0, 3).try_ask_date()


def test_a_request_for_the_date_keeps_to_the_windows(start: Start, machine: Machine) -> None:
    budget = start(3, 0, 3)
    assert take_all(budget) == 3
    machine.pause(10 * DAY)
    assert not budget.try_ask_date()
    machine.seconds += 61.0
    assert budget.try_ask_date()


def test_what_is_sent_before_the_server_says_that_a_month_has_begun_counts_in_it(
    start: Start, machine: Machine
) -> None:
    budget = start(100, 0, 5)
    assert take_all(budget, 4) == 4
    machine.pause(10 * DAY)
    assert budget.try_acquire() is None
    budget.month.see_date(machine.date)
    assert take_all(budget) == 4


def test_a_date_that_neither_clock_knows_gives_no_month_out_twice(start: Start, machine: Machine) -> None:
    """A machine that booted with a clock that is a month fast, and stays so."""
    assert take_all(start(0, 0, 3)) == 3
    machine.reboot(wrong=31 * 86400.0)
    budget = start(0, 0, 3)
    assert budget.try_acquire() is None  # the hole: nothing is known before the first response
    budget.month.see_date(machine.date)
    for process in (budget, start(0, 0, 3)):
        assert process.try_acquire() == MonthExhausted(DECEMBER)
        assert not process.try_ask_date()
    machine.go(DECEMBER + MINUTE)
    assert take_all(budget) == 2


def test_a_servers_mistake_is_forgotten_with_its_next_date(start: Start, machine: Machine) -> None:
    budget = start(100, 0, 3)
    assert budget.try_acquire() is None
    budget.month.see_date(NOON - 40 * DAY)
    assert take_all(budget, 2) == 2
    budget.month.see_date(machine.date)
    machine.go(DECEMBER + MINUTE)
    assert take_all(budget) == 3


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pause"), st.floats(0.0, 40.0)),
            st.tuples(st.just("wrong"), st.floats(-40.0, 40.0)),
            st.tuples(st.just("pass"), st.floats(0.0, 20.0)),
            st.tuples(st.just("reboot"), st.floats(0.0, 20.0)),
        ),
        max_size=12,
    ),
    st.integers(5, 20),
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_clocks_do_no_month_is_given_out_twice_and_none_is_missed(
    events: list[tuple[str, float]], limit: int
) -> None:
    """Each time a process tries all it may, one at a time, and sees each response's date.

    Beyond a month's limit go at most the requests that ask for the date, and one after a boot with a wrong clock. One
    that asks may be missed later, in the month of which a clock wrongly spoke; so may those that count there too.
    """
    machine, sent, beyond, elsewhere, asked = Machine(), Counter[str](), Counter[str](), Counter[str](), 0
    with quick_folder() as folder, starting(folder / "budget.sqlite", machine) as start:
        for event, days in [("pass", 0.0), *events]:
            if event == "pause":
                machine.pause(days * DAY)
            elif event == "wrong":
                machine.wrong = days * 86400.0
            elif event == "pass":
                machine.seconds += days * 86400.0
            else:
                machine.reboot(off=days * 86400.0, wrong=machine.wrong)
                beyond[month_of(machine.true)] += 1
            budget, month = start(0, 0, limit), month_of(machine.true)
            for _ in range(3 * limit):
                if (refused := budget.try_acquire()) is None:
                    sent[month] += 1
                    elsewhere.update({month_of(machine.wall()), month_of(budget.at(0.0).timestamp())} - {month})
                elif isinstance(refused, MonthExhausted) and budget.try_ask_date():
                    sent[month] += 1
                    beyond[month] += 1
                    asked += 1
                elif isinstance(refused, RetryAfter):
                    machine.seconds += refused.seconds
                    continue
                else:
                    break
                machine.seconds += 0.3
                budget.month.see_date(machine.date, sent_at=machine.seconds - 0.2, asked=refused is not None)
            assert all(sent[month] <= limit + beyond[month] for month in sent)
            behind = machine.true - budget.at(0.0).timestamp()
            assert (
                sent[month] >= limit - asked - elsewhere[month]
                or abs(machine.wrong) > 86400.0
                or 1.0 < abs(behind) <= 300.0
            )


# --- boots ----------------------------------------------------------------------------------------------------------


def test_after_a_reboot_the_last_attempts_are_as_old_as_the_boot(start: Start, machine: Machine) -> None:
    assert start(1).try_acquire() is None
    machine.reboot(uptime=20.0, off=2000.0)
    assert is_wait(start(1).try_acquire(), 40.5, "minute")
    machine.seconds += 40.5
    assert start(1).try_acquire() is None


@pytest.mark.parametrize("wrong", [-30 * 86400.0, 30 * 86400.0])
def test_after_a_reboot_with_a_wrong_clock_no_window_opens_early(start: Start, machine: Machine, wrong: float) -> None:
    assert start(1).try_acquire() is None
    machine.reboot(uptime=20.0, off=0.0, wrong=wrong)
    assert not is_wait(start(1).try_acquire(), 0.0, "minute")
    machine.seconds += 39.9
    assert isinstance(start(1).try_acquire(), RetryAfter)


def test_a_folder_that_is_carried_to_another_machine_is_as_old_as_the_wall_clocks_say_less_a_minute(
    start: Start, machine: Machine
) -> None:
    assert start(0, 1).try_acquire() is None
    machine.seconds += 1800.0
    machine.boot, machine.seconds, machine._booted = "another", 1e6, machine.true - 1e6
    assert is_wait(start(0, 1).try_acquire(), 3600.5 - 1740.0, "hour")


def test_a_reboot_is_seen_by_the_time_alone_where_boots_have_no_names(start: Start, machine: Machine) -> None:
    machine.boot = ""
    machine.seconds += 50.0
    assert start(1, 0, 1).try_acquire() is None
    machine.reboot(uptime=20.0, off=20 * 86400.0)
    budget = start(1, 0, 1)
    assert budget.at(0.0) == from_epoch(machine.true)
    assert is_wait(budget.try_acquire(), 40.5, "minute")


def test_where_boots_have_no_names_the_calendar_follows_a_wall_clock_that_is_ahead(
    start: Start, machine: Machine
) -> None:
    """The machine may have been off, and now be up for longer than it was the last time."""
    machine.boot = ""
    assert take_all(start(0, 0, 1)) == 1
    machine.reboot(uptime=5000.0, off=20 * 86400.0)
    assert take_all(start(0, 0, 1)) == 1
    machine.wrong = -30 * 86400.0
    assert take_all(start(0, 0, 1)) == 0


# --- where no window is to be held ----------------------------------------------------------------------------------


WITHIN_A_TENTH = 0.01
"""What is counted at once goes until the tenth of a second is over; at its edge each attempt is counted by itself."""


def test_zero_means_no_limit_and_every_attempt_is_counted(start: Start, machine: Machine) -> None:
    budget = start()
    for _ in range(5000):
        assert budget.try_acquire() is None
        machine.seconds += 0.001
    assert spent(budget) == 5000


def test_a_crash_costs_a_month_without_windows_at_most_what_a_tenth_of_a_second_may_send(
    start: Start, machine: Machine
) -> None:
    machine.seconds += WITHIN_A_TENTH
    assert take_all(start(), 100) == 100
    assert 100 < window(start(), "month").used < 164


def test_what_was_counted_and_not_sent_is_given_back_to_windows_too(start: Start, machine: Machine) -> None:
    machine.seconds += WITHIN_A_TENTH
    budget, other = start(), start(1000)
    assert take_all(budget, 100) == 100
    assert window(other, "minute").used > 100
    budget.close()
    assert window(other, "minute").used == 100
    assert take_all(budget, 100) == 100
    assert window(other, "minute").used > 200
    machine.seconds += 0.2
    assert other.try_acquire() is None  # it has counted behind what may still be given back
    budget.close()
    assert window(other, "minute").used == 201


@pytest.mark.parametrize(("per_minute", "most"), [(0, 15), (10**6, 15), (1000, 500)])
def test_where_limits_are_far_many_attempts_are_counted_at_once(
    start: Start, machine: Machine, monkeypatch: pytest.MonkeyPatch, per_minute: int, most: int
) -> None:
    """Counting one by one would double what an attempt costs."""
    machine.seconds += WITHIN_A_TENTH
    budget, counted, count = start(per_minute), [], MachineBudget._count

    def counting(budget: MachineBudget, now: float) -> object:
        counted.append(now)
        return count(budget, now)

    monkeypatch.setattr(MachineBudget, "_count", counting)
    assert take_all(budget, 500) == 500
    assert len(counted) <= most
    assert window(budget, "minute").used == 500


def test_attempts_that_were_counted_at_once_go_at_once_or_not_at_all(start: Start, machine: Machine) -> None:
    machine.seconds += WITHIN_A_TENTH
    budget = start()
    assert take_all(budget, 100) == 100
    assert window(start(), "month").used > 100
    machine.go(DECEMBER + MINUTE)
    machine.seconds += WITHIN_A_TENTH
    assert take_all(budget, 100) == 100
    assert spent(budget) == 100
    assert take_all(budget, 100) == 100
    machine.seconds += 0.11
    start().throttled(5.0, sent_at=machine.seconds)
    assert isinstance(budget.try_acquire(), RetryAfter)


def test_a_month_without_windows_is_given_out_to_the_last_attempt(start: Start, machine: Machine) -> None:
    budgets = [start(0, 0, 1000), start(0, 0, 1000)]
    granted = 0
    while any(budget.try_acquire() is None for budget in budgets):
        granted += 1
        machine.seconds += 0.01
    assert granted == 1000
    assert spent(budgets[0]) == spent(budgets[1]) == 1000


def test_where_nothing_limits_attempts_their_counts_need_not_be_synced_one_by_one(start: Start) -> None:
    assert start(0, 0, 10).high_rate
    assert start(1200, 72_000).high_rate
    assert not start(100, 0).high_rate
    assert not start(0, 1000).high_rate


@pytest.mark.parametrize(
    ("limit", "per_minute", "synced"), [(1000, None, True), (10**6, None, False), (10**6, 100, True)]
)
def test_counts_are_synced_one_by_one_unless_bitlys_limit_lets_them_go_too_fast(
    machine: Machine, quick_path: Path, limit: int, per_minute: int | None, synced: bool
) -> None:
    """A power cut must not forget attempts; at 20 a second and more syncing each would hold them back."""
    with closing(BudgetDatabase(str(quick_path / "budget.sqlite"), machine)) as database:
        budget = MachineBudget(database, ACCOUNT, "clicks", RequestedLimits(per_minute, None, 0))
        assert budget.ask_due()
        budget.record_reported(limit, 0)
        for _ in range(2):
            assert (database.execute("PRAGMA synchronous").fetchone()[0] == 2) is synced
            with database.unsynced():
                assert database.execute("PRAGMA synchronous").fetchone()[0] == 1


# --- what Bitly says ------------------------------------------------------------------------------------------------


def asked(start: Start, limit: int = 500, count: int = 0) -> MachineBudget:
    """A budget for which Bitly has been asked, and has answered."""
    budget = start(None, None)
    assert budget.ask_due()
    budget.record_reported(limit, count)
    return budget


def test_one_process_asks_bitly_for_all(start: Start) -> None:
    assert [start(None).ask_due() for _ in range(3)] == [True, False, False]
    assert start(None, endpoint="referrers").ask_due()


def test_bitly_is_not_asked_where_its_word_would_change_nothing(start: Start) -> None:
    assert not start(100, 0).ask_due()


def test_bitlys_limits_are_kept_by_all_processes_and_through_restart_and_reboot(start: Start, machine: Machine) -> None:
    other = start(None, None)
    asked(start, limit=500)
    for budget in (other, start(None, None)):
        assert take_all(budget, 1) == 1
        assert budget.limits == Limits(50, 500, 0)
    machine.reboot()
    assert take_all(budget := start(None, None), 1) == 1
    assert budget.limits == Limits(50, 500, 0)
    assert budget.reported_per_hour == 500


def test_bitly_is_asked_again_after_300_seconds_and_100_attempts(start: Start, machine: Machine) -> None:
    budget = asked(start, 100_000)
    assert take_all(budget, ASK_ATTEMPTS) == ASK_ATTEMPTS
    machine.seconds += ASK_SECONDS - 1
    assert not budget.ask_due()
    machine.seconds += 1
    assert budget.ask_due()
    budget.record_reported(100_000, 0)
    assert take_all(budget, ASK_ATTEMPTS - 1) == ASK_ATTEMPTS - 1
    machine.seconds += 10 * ASK_SECONDS
    assert not budget.ask_due()
    assert budget.try_acquire() is None
    assert budget.ask_due()


def test_after_a_throttled_answer_bitly_is_asked_again_without_the_100_attempts(start: Start, machine: Machine) -> None:
    budget = asked(start)
    machine.seconds += 1
    budget.throttled(10.0, sent_at=machine.seconds)
    machine.seconds += 12
    assert budget.try_acquire() is None
    budget.answered(sent_at=machine.seconds)
    machine.seconds += ASK_SECONDS - 14
    assert not budget.ask_due()
    machine.seconds += 1
    assert budget.ask_due()


def test_while_a_throttled_answer_holds_bitly_is_asked_once_after_60_seconds(start: Start, machine: Machine) -> None:
    budget = asked(start)
    machine.seconds += 1
    budget.throttled(1000.0, sent_at=machine.seconds)
    machine.seconds += ASK_PAUSED_SECONDS - 2
    assert not budget.ask_due()
    machine.seconds += 1
    assert [budget.ask_due(), start(None, None).ask_due()] == [True, False]
    machine.seconds += ASK_SECONDS
    assert not budget.ask_due()


def test_a_runs_beginning_is_a_reason_to_ask_bitly_but_not_twice_in_300_seconds(start: Start, machine: Machine) -> None:
    budget = asked(start)
    machine.seconds += ASK_SECONDS - 1
    assert not budget.ask_due(begin=True)
    machine.seconds += 1
    assert not budget.ask_due()
    assert budget.ask_due(begin=True)
    assert not budget.ask_due(begin=True)


def test_if_bitly_does_not_tell_it_is_not_asked_for_a_day(start: Start, machine: Machine) -> None:
    budget = start(None)
    assert budget.ask_due()
    machine.seconds += ASK_AFTER_REFUSAL_SECONDS - 1
    assert take_all(budget, ASK_ATTEMPTS) == ASK_ATTEMPTS
    assert not budget.ask_due()
    machine.seconds += 1
    assert budget.ask_due()


def test_if_the_question_did_not_reach_bitly_it_is_asked_again_after_300_seconds(
    start: Start, machine: Machine
) -> None:
    budget = start(None)
    assert budget.ask_due()
    budget.not_answered()
    machine.seconds += ASK_SECONDS - 1
    assert not start(None).ask_due()
    machine.seconds += 1
    assert start(None).ask_due()


def test_after_a_reboot_a_refusal_is_forgotten_and_a_limit_is_not(start: Start, machine: Machine) -> None:
    assert start(None).ask_due()
    asked(lambda *wanted: start(*wanted, endpoint="referrers"))
    machine.reboot()
    assert start(None).ask_due()
    assert not start(None, endpoint="referrers").ask_due()


def test_others_use_counts_in_our_windows(start: Start, machine: Machine) -> None:
    budget = start(0, None)
    assert take_all(budget, 10) == 10
    assert budget.ask_due()
    assert budget.record_reported(1000, 300) == 290
    assert window(budget, "hour").used == 300
    assert take_all(budget, 50) == 50
    assert budget.record_reported(1000, 370) == 20
    assert window(budget, "hour").used == 370
    assert budget.record_reported(1000, 370) == 0
    assert spent(budget) == 60


def test_a_count_that_makes_no_sense_shows_no_others_and_the_limit_is_kept(start: Start) -> None:
    budget = start(None, None)
    assert budget.record_reported(500, None) == 0
    assert budget.limits == Limits(50, 500, 0)
    assert budget.record_reported(500, 30) == 30


def test_attempts_under_way_are_not_taken_for_others(start: Start) -> None:
    budget = start(0, None)
    assert take_all(budget, 10) == 10
    assert budget.record_reported(1000, 5) == 0
    assert take_all(budget, 10) == 10
    assert budget.record_reported(1000, 20) == 0


def test_when_bitlys_count_begins_anew_so_does_ours(start: Start, machine: Machine) -> None:
    budget = start(0, None)
    assert take_all(budget, 200) == 200
    assert budget.record_reported(1000, 200) == 0
    machine.seconds += 1800  # Bitly's hour has ended, ours has not
    assert take_all(budget, 10) == 10
    assert budget.record_reported(1000, 10) == 0
    assert budget.record_reported(1000, 60) == 45  # five may have been under way


@given(
    st.floats(0.0, 3600.0),
    st.lists(
        st.tuples(st.floats(0.0, 1500.0), st.integers(0, 30), st.integers(0, 30), st.integers(0, 5), st.booleans()),
        max_size=30,
    ),
)
def test_no_more_others_are_found_than_there_are(
    offset: float, events: list[tuple[float, int, int, int, bool]]
) -> None:
    """Bitly counts fixed hours of unknown alignment, and up to five of our attempts are always under way."""
    machine, counts, others, found = Machine(), Counter[int](), 0, 0
    with quick_folder() as folder, starting(folder / "budget.sqlite", machine) as start:
        budget = start(0, None)
        budget.record_reported(10**6, 0)
        for seconds, mine, theirs, under_way, ask in events:
            machine.seconds += seconds
            hour = int((machine.true + offset) // 3600)
            assert take_all(budget, mine) == mine
            counts[hour] += mine + theirs
            others += theirs
            if ask:
                found += budget.record_reported(10**6, max(counts[hour] - min(under_way, mine), 0))
                assert found <= others


# --- telling --------------------------------------------------------------------------------------------------------


def test_windows_tell_what_each_holds_and_until_when(start: Start, machine: Machine) -> None:
    budget = start(2, 10, 100)
    assert take_all(budget) == 2
    machine.seconds += 10
    minute, hour, month = budget.windows()
    assert (minute.window, minute.limit, minute.used, minute.remaining) == ("minute", 2, 2, 0)
    assert minute.until == NOON + 60.5 * SECOND
    assert hour == WindowState("hour", 10, 2, None, "asked")
    assert hour.remaining == 8
    assert month == WindowState("month", 100, 2, DECEMBER, "asked")
    assert [state.remaining for state in start(0, 0, 0).windows()] == [None] * 3


def test_windows_tell_where_their_limits_come_from(start: Start, machine: Machine) -> None:
    def sources(budget: MachineBudget) -> list[str]:
        return [state.source for state in budget.windows()]

    assert sources(start(None, None, None)) == ["default"] * 3
    assert sources(start(5, 6, 7)) == ["asked"] * 3
    asked(start, 100_000)
    assert sources(start(None, 6, None)) == ["bitly", "asked", "default"]
    budget = start(None, 6, None)
    assert take_all(budget, 4) == 4
    for _ in range(2):
        budget.throttled(1.0, sent_at=machine.seconds)
        machine.seconds += 2.0
        assert budget.try_acquire() is None
    budget.answered(sent_at=machine.seconds)
    assert sources(budget) == ["throttled", "asked", "default"]


def test_a_budget_tells_its_limits_without_what_throttled_answers_taught(start: Start, machine: Machine) -> None:
    budget = start(100, 1000)
    assert take_all(budget, 5) == 5
    budget.throttled(7.0, sent_at=machine.seconds)
    assert 7.0 <= budget.opens_in() <= 7.7
    machine.seconds += 8.0
    assert budget.opens_in() == 0.0
    assert budget.paused
    assert budget.try_acquire() is None
    budget.answered(sent_at=machine.seconds)
    assert not budget.paused
    assert budget.opens_in() == 0.0
    assert budget.limits.per_minute == 100
    budget.throttled(7.0, sent_at=machine.seconds)
    machine.seconds += 8.0
    assert budget.try_acquire() is None
    budget.answered(sent_at=machine.seconds)
    assert budget.limits.per_minute < 100
    assert budget.own_limits == Limits(100, 1000, 0)


def test_the_moment_of_a_wait_is_the_calendars(start: Start, machine: Machine) -> None:
    budget = start()
    machine.wrong = 1e6
    machine.seconds += 7.0
    assert budget.at(3.0) == NOON + 10 * SECOND


def test_attempts_leave_the_hours_window_by_the_minute(start: Start, machine: Machine) -> None:
    budget = start(100)
    assert budget.hour_releases() == []
    assert take_all(budget, 3) == 3
    machine.seconds += 600.0
    assert take_all(budget, 2) == 2
    assert budget.hour_releases() == [(3060.0, 3), (3660.0, 2)]


# --- the file -------------------------------------------------------------------------------------------------------


def used(path: Path) -> bytes:
    """A whole file that has been in use."""
    machine = Machine()
    with starting(path, machine) as start:
        budget = start(50, None, 1000)
        for _ in range(200):
            budget.try_acquire()
            machine.seconds += 1.3
        budget.ask_due()
        budget.record_reported(500, 20)
        budget.throttled(3.0, sent_at=machine.seconds)
    return path.read_bytes()


def use(path: Path) -> None:
    machine = Machine()
    with starting(path, machine) as start:
        budget = start(50, None, 1000)
        for _ in range(5):
            budget.try_acquire()
            machine.seconds += 1.0
            budget.answered(sent_at=machine.seconds)
        budget.windows()
        budget.ask_due()
        budget.record_reported(500, 40)
        budget.throttled(None, sent_at=machine.seconds)


def explains(error: pytest.ExceptionInfo[OutputError], path: Path) -> bool:
    return str(error.value).startswith(f"{path}: ") and "--state-dir" in str(error.value)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_file_that_is_no_budget_is_refused_with_what_to_do(quick_path: Path, content: bytes) -> None:
    path = quick_path / "budget.sqlite"
    path.write_bytes(content)
    with pytest.raises(OutputError) as error:
        use(path)
    assert explains(error, path)
    assert path.read_bytes() == content


def test_an_empty_file_is_a_new_one(quick_path: Path) -> None:
    (quick_path / "budget.sqlite").touch()
    use(quick_path / "budget.sqlite")


def test_a_truncated_file_is_refused_with_what_to_do(quick_path: Path) -> None:
    path = quick_path / "budget.sqlite"
    path.write_bytes(used(path)[:9000])
    with pytest.raises(OutputError) as error:
        use(path)
    assert explains(error, path)


def test_damage_anywhere_is_no_other_error_than_that_the_file_is_damaged(quick_path: Path) -> None:
    path, rng = quick_path / "budget.sqlite", random.Random(7)
    whole, refused = used(path), 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 3:
            for _ in range(20):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        else:
            page = 4096 * rng.randrange(len(damaged) // 4096)
            damaged[page : page + 4096] = rng.randbytes(4096)
        path.write_bytes(damaged)
        try:
            use(path)
        except OutputError:
            refused += 1
        for left in quick_path.glob("budget.sqlite-*"):
            left.unlink()
    assert refused > 100


def test_what_was_learned_is_read_from_a_file_that_knows_less_of_throttling(quick_path: Path, start: Start) -> None:
    budget = start(100, 1000)
    budget.windows()
    learned = {"opens_at": None, "learned_limits": {"minute": {"limit": 60, "since": 0, "patience": 60}}}
    with closing(sqlite3.connect(quick_path / "budget.sqlite")) as file, file:
        file.execute("UPDATE scopes SET state = ?", (json.dumps({"throttle": learned, "reported": None}),))
    assert budget.try_acquire() is None
    assert budget.limits == Limits(60, 1000, 0)


def tables_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as file:
        return [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(quick_path: Path) -> None:
    path = quick_path / "budget.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.executescript("CREATE TABLE other (name TEXT); PRAGMA user_version = 2;")
    with pytest.raises(OutputError, match="has version 2, but this harvester supports 1: update it") as error:
        use(path)
    assert explains(error, path)
    assert tables_in(path) == ["other"]


def test_a_file_with_tables_that_are_not_ours_is_refused_and_left_as_it_is(quick_path: Path) -> None:
    path = quick_path / "budget.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.executescript("CREATE TABLE months (month TEXT, spent INTEGER)")
    with pytest.raises(OutputError, match=r"not a harvester budget.*Move it away") as error:
        use(path)
    assert explains(error, path)
    assert tables_in(path) == ["months"]


@contextmanager
def as_somebody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_cannot_be_written_is_refused_with_what_to_do(quick_path: Path, exists: bool) -> None:
    path = quick_path / "budget.sqlite"
    if exists:
        used(path)
        path.chmod(0o444)
    quick_path.chmod(0o555)
    with as_somebody(), pytest.raises(OutputError) as error:
        use(path)
    quick_path.chmod(0o755)
    assert explains(error, path)


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_a_file_of_another_user_is_refused_with_what_to_do(quick_path: Path, mode: int) -> None:
    path = quick_path / "budget.sqlite"
    before = used(path)
    path.chmod(mode)
    quick_path.chmod(0o777)
    with as_somebody(), pytest.raises(OutputError) as error:
        use(path)
    assert explains(error, path)
    assert path.read_bytes() == before


def test_a_link_in_place_of_the_file_is_not_followed_however_late_it_was_planted(quick_path: Path) -> None:
    victim, path = quick_path / "victim", quick_path / "budget.sqlite"
    victim.touch()
    path.symlink_to(victim)
    with pytest.raises(OutputError, match="is a symbolic link, which is not followed"):
        use(path)
    assert victim.read_bytes() == b""


def test_a_report_that_the_month_is_spent_holds_until_bitlys_next_month(machine: Machine, start: Start) -> None:
    machine.wrong = 300 * DAY.total_seconds()
    budget = start()
    budget.month.see_date(machine.date)
    assert budget.month.next_begins() == DECEMBER
    machine.go(DECEMBER + SECOND)  # the refusal was sent in November
    assert budget.month.next_begins() == DECEMBER
    machine.go(DECEMBER + 5 * MINUTE)
    assert budget.month.next_begins() == JANUARY
    budget.month.see_date(JANUARY + 40 * DAY)  # neither clock knows it
    assert budget.month.next_begins() == datetime(2027, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize("mode", ["BEGIN EXCLUSIVE", "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT"])
def test_a_file_that_another_program_holds_is_refused_with_what_to_do(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = quick_path / "budget.sqlite"
    used(path)
    monkeypatch.setattr("harvester.budget.database.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript(mode)
        with pytest.raises(BudgetBusy, match="locked by another process"):
            use(path)
    use(path)


def emptied(folder: Path) -> None:
    for path in [*folder.iterdir()]:
        path.unlink()


def by_another(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"another program's")


def by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        (Path.unlink, " was removed or replaced while it was in use. The run wrote it again with its counts: keep"),
        (
            lambda path: emptied(path.parent),
            " was removed or replaced while it was in use. The run wrote it again with its counts",
        ),
        (
            lambda path: shutil.rmtree(path.parent),
            " was removed or replaced while it was in use. The run wrote it again",
        ),
        (lambda path: path.with_name("budget.sqlite-wal").unlink(), "-wal was removed or replaced by another program"),
    ],
    ids=["the file", "all files", "the folder", "the log"],
)
@pytest.mark.parametrize("noticed", [True, False], ids=["in use", "at the end"])
def test_a_file_that_was_removed_is_written_again_with_its_counts(
    quick_path: Path, machine: Machine, remove: Callable[[Path], object], says: str, noticed: bool
) -> None:
    path = quick_path / "state" / "budget.sqlite"
    path.parent.mkdir()
    limits = RequestedLimits(0, 0, 10)
    database = BudgetDatabase(str(path), machine)
    with closing(database):
        budget = MachineBudget(database, ACCOUNT, "clicks", limits)
        assert [budget.try_acquire() for _ in range(7)] == [None] * 7
        remove(path)
        if noticed:
            machine.seconds += 1.0
            for _ in range(2):
                with pytest.raises(OutputError, match=re.escape(f"{path}{says}")):
                    budget.try_acquire()
        budget.close()
    with closing(BudgetDatabase(str(path), machine)) as again:
        budget = MachineBudget(again, ACCOUNT, "clicks", limits)
        assert [budget.try_acquire() for _ in range(3)] == [None] * 3
        assert isinstance(budget.try_acquire(), MonthExhausted)


@pytest.mark.parametrize("replace", [by_another, by_a_folder], ids=["another file", "a folder"])
def test_the_counts_of_a_file_that_was_replaced_are_saved_beside_it(
    start: Start, machine: Machine, quick_path: Path, replace: Callable[[Path], None]
) -> None:
    path, saved = quick_path / "budget.sqlite", quick_path / "budget.sqlite.saved"
    budget = start(100)
    assert budget.try_acquire() is None
    replace(path)
    machine.seconds += 1.0
    with pytest.raises(OutputError, match=rf"removed or replaced .* saved in {saved}: .* mv {saved} {path},"):
        budget.try_acquire()
    with closing(sqlite3.connect(saved)) as file:
        assert {spent for (spent,) in file.execute("SELECT spent FROM months")} == {1}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_moved_away_is_noticed_within_a_second(
    start: Start, machine: Machine, quick_path: Path, replaced: bool
) -> None:
    budget = start(100)
    assert budget.try_acquire() is None
    (quick_path / "budget.sqlite").rename(quick_path / "elsewhere")
    if replaced:
        start(100)
    machine.seconds += 1.0
    says = f"budget.sqlite was moved away (to {quick_path}/elsewhere) while it was in use."
    with pytest.raises(OutputError, match=re.escape(says)):
        budget.try_acquire()
    if not replaced:  # else the log was begun anew by the other, because it stayed where it was
        with closing(sqlite3.connect(quick_path / "budget.sqlite")) as file:
            assert {spent for (spent,) in file.execute("SELECT spent FROM months")} == {1}


def test_a_folder_in_the_files_place_is_refused_with_what_to_do(quick_path: Path) -> None:
    with pytest.raises(OutputError) as error:
        use(quick_path)
    assert explains(error, quick_path)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file may grow beyond the present size of the budget's log."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(path.name + "-wal").stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("per_minute", [0, 100])
def test_what_cannot_be_counted_may_not_go_and_afterwards_all_is_as_before(
    start: Start, machine: Machine, quick_path: Path, per_minute: int
) -> None:
    budget = start(per_minute)
    assert take_all(budget, 3) == 3
    machine.seconds += 1.0
    with full_disk(quick_path / "budget.sqlite"):
        for _ in range(5):
            with pytest.raises(OutputError, match=r"full|I/O"):
                budget.try_acquire()
    assert budget.try_acquire() is None
    assert spent(budget) == 4


# --- real processes -------------------------------------------------------------------------------------------------

HAMMER = """
import os, sys, time
from harvester.budget.database import BudgetDatabase
from harvester.budget.machine import MachineBudget
from harvester.budget.limits import Account, RequestedLimits

folder, files, seconds, *limits = sys.argv[1:]
print("ready", flush=True)
begin = float(sys.stdin.readline())
for number in range(int(files)):
    while time.time() < begin + number * float(seconds):
        pass
    while time.time() < begin + (number + 1) * float(seconds):
        book = BudgetDatabase(f"{folder}/{number}.sqlite")
        budget = MachineBudget(book, Account("server", "token", "acme"), "clicks", RequestedLimits(*map(int, limits)))
        for _ in range(20):
            if budget.try_acquire() is None:
                os.write(1, b".")
        budget.close()
        book.close()
"""


OTHER_TIME = ("unshare", "--user", "--map-root-user", "--time", "--boottime", "100000")
"""A container whose seconds since boot are its own."""
DIFFERENT_TIMES = subprocess.run([*OTHER_TIME, "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def hammering(
    folder: Path, processes: int, *arguments: object, wrapper: Sequence[str] = (), ahead_seconds: float = 0.0
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that begin at the same moment to open a new file, take, close it, and so on.

    wrapper: of the first of them. ahead_seconds: how much earlier that one begins.
    """
    command = [sys.executable, "-c", HAMMER, str(folder), *map(str, arguments)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        hammers = [
            stack.enter_context(
                subprocess.Popen(
                    [*(() if number else wrapper), *command],
                    stdin=pipe,
                    stdout=pipe,
                    stderr=pipe,
                    cwd=ROOT,
                    env=environment(),
                )
            )
            for number in range(processes)
        ]
        for hammer in hammers:
            assert hammer.stdin
            assert hammer.stdout
            assert hammer.stdout.readline() == b"ready\n"
        begin = time.time() + 0.1
        for hammer in hammers:
            assert hammer.stdin
            hammer.stdin.write(f"{begin + (ahead_seconds if hammer is not hammers[0] else 0.0)}\n".encode())
            hammer.stdin.flush()
        yield hammers


def granted_by(hammer: subprocess.Popen[bytes]) -> int:
    """Wait for its end, and give how many attempts it was granted."""
    out, err = hammer.communicate(timeout=60)
    assert err == b""
    return out.count(b".")


def counted(path: Path) -> tuple[int, int]:
    """What the hour and the month of a hammered file hold; it can still be used."""
    with closing(BudgetDatabase(str(path))) as book:
        budget = MachineBudget(book, Account("server", "token", "acme"), "clicks", RequestedLimits(0, 0, 0))
        _, hour, month = budget.windows()
        assert budget.try_acquire() is None
        return hour.used, month.used


def test_processes_that_hammer_one_file_get_together_what_is_allowed_and_no_error(quick_path: Path) -> None:
    with hammering(quick_path, 3, 1, 1.0, 200, 0, 0) as hammers:
        granted = sum(granted_by(hammer) for hammer in hammers)
    assert granted == 200
    assert all(hammer.returncode == 0 for hammer in hammers)
    assert counted(quick_path / "0.sqlite") == (200, 200)


@pytest.mark.skipif(not DIFFERENT_TIMES, reason="this machine does not allow time namespaces")
def test_processes_whose_seconds_since_boot_differ_get_together_what_is_allowed(quick_path: Path) -> None:
    # SQLite's lock is not fair: of three that begin together, one now and then gets no turn at all.
    with hammering(quick_path, 3, 1, 1.0, 1000, 0, 0, wrapper=OTHER_TIME, ahead_seconds=0.05) as hammers:
        granted = [granted_by(hammer) for hammer in hammers]
    assert sum(granted) == 1000
    assert granted[0] > 0
    assert counted(quick_path / "0.sqlite") == (1000, 1000)


def test_a_process_whose_clock_cannot_be_compared_is_noticed(start: Start, machine: Machine, quick_path: Path) -> None:
    """A container in a time namespace of its own, of which nothing can be read."""
    other = Machine()
    other.boot, other.seconds, other._booted = "boot 0 time:[1]", 1e5, machine.true - 1e5
    budget = start(5)
    assert take_all(budget, 3) == 3
    with starting(quick_path / "budget.sqlite", other) as start_other:
        assert take_all(start_other(5)) == 2
        with pytest.raises(OutputError, match="another time namespace"):
            budget.try_acquire()
    assert isinstance(start(5).try_acquire(), RetryAfter)


def test_a_file_that_another_process_is_just_making_is_waited_for(quick_path: Path) -> None:
    path = quick_path / "budget.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.1, lambda: other.execute("COMMIT"))
        release.start()
        BudgetDatabase(str(path)).close()
        release.join()


def test_processes_may_make_the_file_at_the_same_moment(quick_path: Path) -> None:
    with hammering(quick_path, 4, 30, 0.03, 10, 0, 0) as hammers:
        granted = sum(granted_by(hammer) for hammer in hammers)
    assert all(hammer.returncode == 0 for hammer in hammers)
    files = list(quick_path.glob("*.sqlite"))
    assert granted == 10 * len(files) == sum(counted(path)[0] for path in files)


@pytest.mark.parametrize("per_minute", [0, 1_000_000])
def test_a_killed_process_leaves_a_usable_file_and_no_granted_attempt_is_forgotten(
    quick_path: Path, per_minute: int
) -> None:
    with hammering(quick_path, 3, 1, 1.0, per_minute, 0, 0) as hammers:
        seen = 0
        for hammer in hammers[:2]:
            assert hammer.stdout
            for _ in range(20):  # it is at work; communicate would not find what a buffered read leaves behind
                seen += len(os.read(hammer.stdout.fileno(), 1))
            hammer.send_signal(signal.SIGKILL)
        granted = seen + sum(granted_by(hammer) for hammer in hammers)
    assert [hammer.returncode for hammer in hammers] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    hour, month = counted(quick_path / "0.sqlite")
    assert granted > 100
    assert hour >= granted
    assert month >= granted
    assert month <= granted + 2 * 64  # each kill may have left a lease, and come between the counting and the telling
