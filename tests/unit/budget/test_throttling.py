"""Throttled answers: until when nobody asks, who asks first, and how much may pass from then on."""

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aioresponses import aioresponses
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.verdicts import Answer
from harvester.budget import throttling as throttle
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import HOUR, MINUTE, SPANS, THROTTLED, Account, Limits, RequestedLimits, RetryAfter
from harvester.budget.machine import MachineBudget
from harvester.budget.states import EndpointThrottle
from harvester.budget.throttling import PROBE_SECONDS, hinted_seconds, pause_seconds
from harvester.clock import hint
from tests.conftest import quick_folder
from tests.support.virtual_time import VirtualClock
from tests.unit.budget.test_budget import ACCOUNT, NOON, Machine, Start, is_wait, starting, take_all, window
from tests.unit.client.test_client import OK as ANSWER
from tests.unit.client.test_client import THROTTLED as ANSWER_429
from tests.unit.client.test_client import Bitly, Entry, Unpaced, rigged

LIMITS = {MINUTE: 100, HOUR: 1000}


class Still(random.Random):
    """No jitter."""

    def random(self) -> float:
        return 0.0


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def start(quick_path: Path, machine: Machine) -> Iterator[Start]:
    with starting(quick_path / "budget.sqlite", machine, Still()) as start:
        yield start


def seconds_paused(budget: MachineBudget) -> float:
    refused = budget.try_acquire()
    assert isinstance(refused, RetryAfter)
    assert refused.window == THROTTLED
    return refused.seconds


def probe(budget: MachineBudget, machine: Machine) -> float:
    """Wait as told and send the probe; give when it was sent."""
    while refused := budget.try_acquire():
        assert isinstance(refused, RetryAfter)
        machine.seconds += refused.seconds
    return machine.seconds


# --- how long it is paused ------------------------------------------------------------------------------------------


def test_one_throttled_answer_closes_for_all_processes(start: Start, machine: Machine) -> None:
    budget, other = start(), start()
    budget.throttled(30.0, sent_at=machine.seconds)
    for each in (budget, other, start()):
        assert each.try_acquire() == RetryAfter(30.0, THROTTLED)
        assert each.room() == 0.0
    machine.seconds += 29.9
    assert is_wait(other.try_acquire(), 0.1, THROTTLED)


def test_other_endpoints_and_tokens_stay_open(start: Start, machine: Machine) -> None:
    start().throttled(30.0, sent_at=machine.seconds)
    assert start(endpoint="referrers").try_acquire() is None
    assert start(account=ACCOUNT._replace(token="token 2")).try_acquire() is None


@pytest.mark.parametrize(
    ("hint", "seconds"),
    [(17.0, 17.0), (NOON + timedelta(seconds=40), 40.0), (1e9, 3600.0), (NOON + timedelta(days=400), 3600.0)],
)
def test_a_hint_is_followed_up_to_an_hour(
    start: Start, machine: Machine, hint: float | datetime, seconds: float
) -> None:
    budget = start()
    budget.throttled(hint, sent_at=machine.seconds)
    assert seconds_paused(budget) == pytest.approx(seconds)


def test_a_hint_that_is_a_date_is_understood_by_the_calendar_and_not_by_a_wrong_wall_clock(
    start: Start, machine: Machine
) -> None:
    budget = start()
    machine.wrong = -5000.0
    budget.throttled(NOON + timedelta(seconds=40), sent_at=machine.seconds)
    assert seconds_paused(budget) == pytest.approx(40.0)


@pytest.mark.parametrize("hint", [None, 0.0, -5.0, NOON, NOON - timedelta(hours=1)])
def test_without_a_hint_an_early_probe_says_whether_it_is_closed_until_the_minutes_edge(
    start: Start, machine: Machine, hint: float | datetime | None
) -> None:
    budget = start()
    machine.seconds += 13.0
    budget.throttled(hint, sent_at=machine.seconds)
    assert seconds_paused(budget) == pytest.approx(1.5)
    budget.throttled(hint, sent_at=probe(budget, machine))
    assert seconds_paused(budget) == pytest.approx(45.5)


def test_an_early_probe_that_passes_teaches_nothing_and_where_a_limit_was_learned_there_is_none(
    start: Start, machine: Machine
) -> None:
    budget = start(100, 1000)
    assert take_all(budget, 92) == 92
    budget.throttled(None, sent_at=machine.seconds)
    budget.answered(sent_at=probe(budget, machine))
    assert budget.limits == Limits(100, 1000, 0)
    machine.seconds += 61.0
    assert take_all(budget, 50) == 50
    throttled_twice(budget, machine)
    assert budget.limits.per_minute == 49
    machine.seconds += 61.0
    assert take_all(budget, 1) == 1
    budget.throttled(None, sent_at=machine.seconds)
    assert seconds_paused(budget) > 1.5 * 1.1


@given(st.one_of(st.none(), st.floats(-1e12, 1e12), st.datetimes().map(lambda moment: moment.replace(tzinfo=UTC))))
def test_a_hinted_wait_is_never_negative_nor_longer_than_allowed(hint: float | datetime | None) -> None:
    assert 0.0 <= hinted_seconds(hint, NOON.timestamp(), 300.0) <= 300.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("{:.0f}", 90.0),
        ("{:.0f}000", 90.0),
        ("4102444799", 3600.0),
        ("1577836800", 60.0),
        ("99999999999", 3600.0),
        ("-90", 60.0),
        ("1.5.1", 60.0),
    ],
)
def test_a_moment_in_place_of_seconds_is_waited_for_and_one_far_away_is_capped(text: str, seconds: float) -> None:
    """A moment of long ago, and what is no hint, leave the wait until the minute's edge."""
    wall = NOON.timestamp()
    found = hint({"Retry-After": text.format(wall + 90.0)})
    assert pause_seconds(1, found, wall, Still()) == pytest.approx(seconds)


def test_throttled_again_and_again_it_waits_longer_but_not_past_the_hours_edge(start: Start, machine: Machine) -> None:
    budget = start()
    sent_at, waits = machine.seconds, []
    for _ in range(8):
        machine.seconds += 1.0
        budget.throttled(None, sent_at=sent_at)
        waits.append(seconds_paused(budget))
        sent_at = probe(budget, machine)
    # An early probe, and others at 12:01, :03, :07, :15, :31, at 13:00 instead of 13:03, and at 14:00.
    assert waits == pytest.approx([1.5, 56.5, 119, 239, 479, 959, 1739, 3599])


def test_a_hint_that_was_twice_too_short_is_not_believed_any_more(start: Start, machine: Machine) -> None:
    budget = start()
    sent_at, waits = machine.seconds, []
    for _ in range(4):
        budget.throttled(1.0, sent_at=sent_at)
        waits.append(seconds_paused(budget))
        sent_at = probe(budget, machine)
    assert waits == pytest.approx([1, 1, 238, 420 + 60])


@given(st.floats(0, 3599.9), st.integers(1, 2000), st.one_of(st.none(), st.floats(0.0, 1e4)), st.randoms())
def test_a_wait_ends_at_the_hours_edge_or_as_hinted_and_its_jitter_only_lengthens_it(
    into_the_hour: float, strikes: int, hint: float | None, rng: random.Random
) -> None:
    wall = NOON.timestamp() + into_the_hour
    least = pause_seconds(strikes, hint, wall, Still())
    assert 0 < least <= max(3600.0 - into_the_hour, hint or 0.0, 1.0) + 1e-6
    assert least <= pause_seconds(strikes, hint, wall, rng) <= 1.1 * least


def test_the_jitter_spreads_the_clients() -> None:
    waits = {pause_seconds(1, 100.0, NOON.timestamp(), random.Random(seed)) for seed in range(50)}
    assert len(waits) > 40


def test_a_closure_outlives_the_process_but_not_the_machines_boot(start: Start, machine: Machine) -> None:
    start().throttled(500.0, sent_at=machine.seconds)
    assert start().try_acquire() == RetryAfter(500.0, THROTTLED)
    machine.reboot()
    assert start().try_acquire() is None


# --- what says something, and what does not -------------------------------------------------------------------------


def test_late_throttled_answers_of_attempts_already_under_way_say_nothing_new(start: Start, machine: Machine) -> None:
    budget = start()
    sent_at = machine.seconds
    machine.seconds += 1.0
    budget.throttled(None, sent_at=sent_at)
    budget.throttled(None, sent_at=probe(budget, machine))
    opens = machine.seconds + seconds_paused(budget)
    for _ in range(4):
        machine.seconds += 1.0
        budget.throttled(None, sent_at=sent_at)
        assert machine.seconds + seconds_paused(budget) == pytest.approx(opens)
    second = probe(budget, machine)
    budget.throttled(None, sent_at=second)
    assert seconds_paused(budget) == pytest.approx(120.0)  # the strike behind the early probe's, not the sixth


async def test_several_throttled_answers_of_one_moment_are_one_strike() -> None:
    """An attempt is compared by when it was sent. It counts from the next tenth of a second on, which is later than
    the first of the answers, so that each of the others would seem to be one more strike."""
    all_sent = asyncio.Event()
    with aioresponses() as mocked:
        bitly = Bitly(mocked)
        async with rigged(wanted=RequestedLimits(100, 1000, 0)) as rig:
            rig.client.pace_by(Unpaced())
            rig.clock.seconds += 0.03

            async def throttled() -> Entry:
                if len(bitly.requests) == 5:
                    all_sent.set()
                await all_sent.wait()
                rig.clock.seconds += 0.01
                return ANSWER_429

            bitly.answers(*[throttled] * 5, *[ANSWER] * 5)
            fetching = [asyncio.create_task(rig.client.fetch(f"bit.ly/{number}")) for number in range(5)]
            rig.shutdown.end.clear()  # all pauses last
            while rig.client.sender.counters.throttled < 5:
                await asyncio.sleep(0)
            assert 0.0 < rig.budget.opens_in() <= 60.0  # a second strike would add a minute
            rig.shutdown.end.set()
            assert {type(verdict) for verdict in await asyncio.gather(*fetching)} == {Answer}


def test_a_late_good_answer_of_an_attempt_already_under_way_opens_nothing(start: Start, machine: Machine) -> None:
    """The attempt was sent before the limit was spent: its answer does not say that there is room again."""
    budget = start()
    sent_at = machine.seconds
    machine.seconds += 1.0
    budget.throttled(30.0, sent_at=sent_at)
    machine.seconds += 1.0
    budget.answered(sent_at=sent_at)
    assert is_wait(budget.try_acquire(), 29.0, THROTTLED)
    probe(budget, machine)
    budget.answered(sent_at=sent_at)
    assert budget.try_acquire() is not None


def test_an_answer_while_it_is_open_changes_nothing(start: Start, machine: Machine) -> None:
    budget = start(5)
    budget.answered(sent_at=machine.seconds)
    assert take_all(budget) == 5


# --- the probe ------------------------------------------------------------------------------------------------------


def test_exactly_one_probe_of_all_processes_goes_when_the_time_is_over(start: Start, machine: Machine) -> None:
    budgets = [start(), start(), start()]
    budgets[0].throttled(30.0, sent_at=machine.seconds)
    machine.seconds += 30.0
    assert budgets[1].try_acquire() is None
    for _ in range(10):
        for budget in (*budgets, start()):
            assert budget.try_acquire() == RetryAfter(pytest.approx(0.2), THROTTLED)  # type: ignore[arg-type]
        machine.seconds += 3.0


def test_a_probe_that_is_lost_with_its_process_is_replaced_by_one_other(start: Start, machine: Machine) -> None:
    start().throttled(30.0, sent_at=machine.seconds)
    machine.seconds += 30.0
    assert start().try_acquire() is None
    machine.seconds += PROBE_SECONDS - 0.1
    assert is_wait(start().try_acquire(), 0.1, THROTTLED)
    machine.seconds += 0.1
    assert start().try_acquire() is None
    assert start().try_acquire() is not None


def test_the_answer_of_a_probe_that_was_given_up_for_lost_opens_all_the_same(start: Start, machine: Machine) -> None:
    slow, other = start(100), start(100)
    slow.throttled(30.0, sent_at=machine.seconds)
    sent_at = probe(slow, machine)
    machine.seconds += PROBE_SECONDS
    assert other.try_acquire() is None
    slow.answered(sent_at=sent_at)
    assert other.try_acquire() is None


def test_a_probe_is_counted_and_must_find_room_in_the_windows(start: Start, machine: Machine) -> None:
    budget = start(1)
    assert budget.try_acquire() is None
    budget.throttled(5.0, sent_at=machine.seconds)
    machine.seconds += 5.0
    assert is_wait(budget.try_acquire(), 55.5, "minute")
    machine.seconds += 55.5
    assert budget.try_acquire() is None
    assert window(budget, "minute").used == 1


def test_a_probes_success_opens_for_all_processes_and_begins_the_waits_anew(start: Start, machine: Machine) -> None:
    budget, other = start(100, 1000), start(100, 1000)
    budget.throttled(None, sent_at=machine.seconds)
    for _ in range(2):
        budget.throttled(None, sent_at=probe(budget, machine))
    budget.answered(sent_at=probe(budget, machine))
    assert take_all(other, 4) == take_all(budget, 4) == 4
    other.throttled(None, sent_at=machine.seconds)
    assert seconds_paused(budget) == pytest.approx(60.0)


def test_a_probe_that_is_throttled_closes_again(start: Start, machine: Machine) -> None:
    budget = start()
    budget.throttled(5.0, sent_at=machine.seconds)
    sent_at = probe(budget, machine)
    machine.seconds += 1.0
    budget.throttled(7.0, sent_at=sent_at)
    assert is_wait(start().try_acquire(), 7.0, THROTTLED)


# --- what is learned ------------------------------------------------------------------------------------------------


def throttled_twice(budget: MachineBudget, machine: Machine, hint: float | None = None) -> None:
    """The latest attempt is throttled, and so is the probe; the next one passes."""
    budget.throttled(hint, sent_at=machine.seconds)
    budget.throttled(hint, sent_at=probe(budget, machine))
    budget.answered(sent_at=probe(budget, machine))


def taught(start: Start, machine: Machine, passed: int, strikes: int = 2, hint: float | None = None) -> MachineBudget:
    """A budget of 100 a minute and 1,000 an hour whose next attempt after so many was throttled, and then probes."""
    budget = start(100, 1000)
    assert take_all(budget, passed + 1) == passed + 1
    sent_at = machine.seconds
    for _ in range(strikes):
        budget.throttled(hint, sent_at=sent_at)
        sent_at = probe(budget, machine)
    budget.answered(sent_at=sent_at)
    return budget


def lower(
    state: EndpointThrottle, passed: int, total: int, limits: dict[str, int] | None = None, window: str = MINUTE
) -> None:
    """A throttled answer after so many, a probe that is throttled too, and one that passes."""
    limits = limits or {name: state.lowered(name, limit) for name, limit in LIMITS.items()}
    for _ in range(2):
        throttle.pause(state, now=0.0, seconds=1.0, passed={MINUTE: passed, HOUR: passed})
    throttle.begin_probe(state, 1.0)
    throttle.reopen(state, sent_at=1.0 if window == MINUTE else 1000.0, total=total, limits=limits)


@pytest.mark.parametrize(("per_minute", "per_hour"), [(60, 60), (0, 100)])
def test_an_hour_without_a_limit_is_not_lowered_below_what_a_minute_may_hold(
    start: Start, machine: Machine, per_minute: int, per_hour: int
) -> None:
    budget = start(per_minute, 0)
    sent_at = probe(budget, machine)
    for _ in range(4):
        budget.throttled(None, sent_at=sent_at)
        sent_at = probe(budget, machine)
    budget.answered(sent_at=sent_at)
    assert (budget.limits.per_minute, budget.limits.per_hour) == (per_minute, per_hour)


def filled(
    start: Start, machine: Machine, count: int, per_hour: int | None = None, reserve: float = 0.0
) -> MachineBudget:
    """A budget whose attempt after 60 was throttled; Bitly, which allows 1,000, counts so many; then a probe passes."""
    budget = start(None, per_hour, reserve=reserve)
    budget.record_reported(1000, 0)
    assert take_all(budget, 61) == 61
    budget.throttled(None, sent_at=machine.seconds)
    budget.record_reported(1000, count)
    budget.throttled(None, sent_at=probe(budget, machine))
    budget.answered(sent_at=probe(budget, machine))
    return budget


@pytest.mark.parametrize("reserve", [0.0, 0.1])
def test_if_bitly_says_that_its_hour_is_full_nothing_is_lowered(start: Start, machine: Machine, reserve: float) -> None:
    budget = filled(start, machine, 1000, reserve=reserve)
    assert budget.limits == Limits(round(100 * (1 - reserve)), round(1000 * (1 - reserve)), 0)


def test_if_bitly_says_that_its_hour_has_room_a_window_is_lowered(start: Start, machine: Machine) -> None:
    assert filled(start, machine, 600).limits == Limits(60, 1000, 0)


@pytest.mark.parametrize("per_hour", [0, 2000])
def test_who_asked_for_more_than_bitlys_hour_learns_that_it_is_full(
    start: Start, machine: Machine, per_hour: int
) -> None:
    assert filled(start, machine, 1000, per_hour).limits != Limits(100, per_hour, 0)


def test_that_the_hour_was_full_is_said_of_one_throttled_answer_only(start: Start, machine: Machine) -> None:
    budget = filled(start, machine, 1000)
    budget.record_reported(1000, 1000)  # while it is open it says nothing of what comes
    machine.seconds += 3700
    assert take_all(budget, 51) == 51
    throttled_twice(budget, machine)
    assert budget.limits == Limits(50, 1000, 0)


def test_a_full_hour_is_to_blame_before_a_minute_with_room_however_short_the_wait(
    start: Start, machine: Machine
) -> None:
    budget = start(100, 1000)
    for _ in range(9):
        assert take_all(budget, 100) == 100
        machine.seconds += 61
    assert take_all(budget, 31) == 31
    sent_at = machine.seconds
    budget.throttled(1.0, sent_at=sent_at)
    budget.answered(sent_at=probe(budget, machine))
    assert (budget.limits.per_minute, budget.limits.per_hour) == (100, 930)


@pytest.mark.parametrize(
    ("passed", "per_minute", "per_hour", "learned"),
    [
        ({MINUTE: 49, HOUR: 900}, 100, 1000, {HOUR: 900}),
        ({MINUTE: 50, HOUR: 900}, 100, 1000, {MINUTE: 50}),
        ({MINUTE: 49, HOUR: 899}, 100, 1000, {MINUTE: 49}),
        ({MINUTE: 49, HOUR: 900}, 100, 0, {MINUTE: 49}),
        ({HOUR: 900}, 100, 1000, {HOUR: 900}),
        ({MINUTE: 0, HOUR: 300}, 1, 1000, {HOUR: 300}),
    ],
    ids=range(6),
)
def test_near_its_end_the_hour_is_to_blame_if_the_minute_was_not_half_full(
    passed: dict[str, int], per_minute: int, per_hour: int, learned: dict[str, int]
) -> None:
    state = EndpointThrottle()
    for _ in range(2):
        throttle.pause(state, now=0.0, seconds=1.0, passed=passed)
    throttle.reopen(state, sent_at=1.0, total=1000, limits={MINUTE: per_minute, HOUR: per_hour})
    assert {name: each.limit for name, each in state.learned_limits.items()} == learned


def test_if_a_probe_passes_within_two_strikes_the_minute_holds_what_last_passed(start: Start, machine: Machine) -> None:
    budget = taught(start, machine, 40, strikes=2)
    assert (budget.limits.per_minute, budget.limits.per_hour) == (40, 1000)
    assert window(budget, "minute").source == "throttled"


@pytest.mark.parametrize(("per_minute", "per_hour"), [(100, 1000), (0, 1000), (0, 0), (1, 1000)])
def test_a_throttled_answer_whose_probe_passes_teaches_nothing_by_itself(
    start: Start, machine: Machine, per_minute: int, per_hour: int
) -> None:
    budget = start(per_minute, per_hour)
    before = budget.limits
    assert take_all(budget, 5) > 0
    budget.throttled(1.0, sent_at=machine.seconds)
    assert seconds_paused(budget) == pytest.approx(1.0, abs=0.01)  # it is waited out all the same
    budget.answered(sent_at=probe(budget, machine))
    assert budget.limits == before


@pytest.mark.parametrize(("first", "second", "limit"), [(20, 20, 20), (20, 38, 38), (20, 4, 20), (20, 42, 100)])
def test_a_second_one_confirms_it_unless_more_than_twice_as_many_have_passed_since(
    start: Start, machine: Machine, first: int, second: int, limit: int
) -> None:
    """And what passed before the first one counts: a window that slides lets little pass after a probe."""
    budget = start(100, 1000)
    for passed in (first, second):
        assert take_all(budget, passed) == passed
        budget.throttled(1.0, sent_at=machine.seconds)
        budget.answered(sent_at=probe(budget, machine))
    # The throttled one had not passed, but the probe between them had.
    assert budget.limits.per_minute == (limit - 1 if limit == first > second else limit)


def test_a_throttled_answer_just_below_the_limit_needs_no_second_one(start: Start, machine: Machine) -> None:
    budget = taught(start, machine, 91, strikes=1, hint=30.0)
    assert budget.limits.per_minute == 91


def test_else_it_is_the_hour_that_does(start: Start, machine: Machine) -> None:
    budget = start(0, 1000)
    assert take_all(budget, 601) == 601
    sent_at = machine.seconds
    for _ in range(4):
        budget.throttled(None, sent_at=sent_at)
        sent_at = probe(budget, machine)
    budget.answered(sent_at=sent_at)
    assert (budget.limits.per_minute, budget.limits.per_hour) == (0, 600)


def test_a_hint_of_more_than_two_minutes_means_the_hour(start: Start, machine: Machine) -> None:
    budget = start(0, 1000)
    assert take_all(budget, 601) == 601
    budget.throttled(900.0, sent_at=machine.seconds)
    budget.answered(sent_at=probe(budget, machine))
    assert (budget.limits.per_minute, budget.limits.per_hour) == (0, 600)


@pytest.mark.parametrize(
    ("limit", "passed", "kept"), [(100, 99, 99), (100, 100, 90), (100, 130, 90), (3, 3, 2), (1, 1, 1)]
)
def test_a_window_that_was_throttled_with_its_limit_passed_holds_a_tenth_less(
    limit: int, passed: int, kept: int
) -> None:
    """Bitly's windows begin at other moments than ours."""
    state = EndpointThrottle()
    lower(state, passed, total=1000, limits={MINUTE: 100, HOUR: limit}, window=HOUR)
    assert state.learned_limits[HOUR].limit == kept


def test_late_throttled_answers_had_not_passed(start: Start, machine: Machine) -> None:
    budget = start(100, 1000)
    assert take_all(budget, 40) == 40
    sent_at = machine.seconds
    machine.seconds += 0.1
    for _ in range(5):
        budget.throttled(None, sent_at=sent_at)
    budget.throttled(None, sent_at=probe(budget, machine))
    budget.answered(sent_at=probe(budget, machine))
    assert budget.limits.per_minute == 35


def test_what_passed_since_a_probe_reopened_a_window_is_what_counts_and_the_probe_with_it(
    start: Start, machine: Machine
) -> None:
    budget = start(0, 1000)
    for passed in (5, 200):
        assert take_all(budget, passed) == passed
        budget.throttled(900.0, sent_at=machine.seconds)
        budget.answered(sent_at=probe(budget, machine))
    assert budget.limits.per_hour == 200  # the probe and 199


def test_that_the_minute_was_reopened_says_nothing_of_what_passed_in_the_hour(start: Start, machine: Machine) -> None:
    budget = start(300, 1000)
    assert take_all(budget, 201) == 201
    throttled_twice(budget, machine)
    assert budget.limits.per_minute == 200
    machine.seconds += 60.0
    assert take_all(budget, 199) == 199
    sent_at = machine.seconds
    for _ in range(3):
        budget.throttled(None, sent_at=sent_at)
        sent_at = probe(budget, machine)
    budget.answered(sent_at=sent_at)
    assert budget.limits.per_hour == 401  # 200, two that had not passed, the probe and 198


def test_a_window_is_lowered_to_a_tenth_of_a_minute_or_a_quarter_of_an_hour_at_the_most(
    start: Start, machine: Machine
) -> None:
    """Whoever had just begun, before others' use throttled it, has learned next to nothing."""
    assert taught(start, machine, 0).limits.per_minute == 10
    machine.reboot()
    budget = start(0, 1000, endpoint="referrers")
    assert budget.try_acquire() is None
    budget.throttled(900.0, sent_at=machine.seconds)
    budget.answered(sent_at=probe(budget, machine))
    assert budget.limits.per_hour == 250


def test_a_window_that_was_lowered_before_is_at_most_halved(start: Start, machine: Machine) -> None:
    """One that slides, or refills, lets only little pass soon after a probe."""
    budget = taught(start, machine, 40)
    machine.seconds += 1.0
    assert take_all(budget, 3) == 3
    budget.throttled(1.0, sent_at=machine.seconds)
    budget.answered(sent_at=probe(budget, machine))
    assert budget.limits.per_minute == 20


def test_a_minute_that_holds_one_is_not_to_blame_any_more(start: Start, machine: Machine) -> None:
    budget = start(1, 1000)
    assert budget.try_acquire() is None
    throttled_twice(budget, machine, hint=1.0)
    assert (budget.limits.per_minute, budget.limits.per_hour) == (1, 250)


def test_what_was_learned_outlives_process_and_boot(start: Start, machine: Machine) -> None:
    taught(start, machine, 40)
    for boots in (0, 1):
        if boots:
            machine.reboot()
        budget = start(100, 1000)
        machine.seconds += 61.0
        assert budget.try_acquire() is None
        assert budget.limits.per_minute == 40


def test_where_there_was_no_limit_there_is_one_now(start: Start, machine: Machine) -> None:
    budget = start(0, 0)
    assert take_all(budget, 31) == 31
    throttled_twice(budget, machine, hint=1.0)
    assert 30 <= budget.limits.per_minute < 100
    assert budget.limits.per_hour == 0


# --- and forgotten --------------------------------------------------------------------------------------------------


def attempts_until_raised(state: EndpointThrottle, total: int, limits: dict[str, int] = LIMITS) -> int:
    """How many pass before a learned limit is raised or forgotten."""
    return next(
        more for more in range(10**6) if throttle.raise_learned_limits(state, total=total + more, limits=limits)
    )


def minute(state: EndpointThrottle) -> int:
    return state.lowered(MINUTE, LIMITS[MINUTE])


def test_a_learned_limit_is_raised_twofold_after_as_many_attempts_as_it_allows_until_it_is_the_windows() -> None:
    state = EndpointThrottle()
    lower(state, 30, total=1000)
    throttle.raise_learned_limits(state, total=1000, limits=LIMITS)
    total, limits, patience = 1000, [], []
    while MINUTE in state.learned_limits:
        more = attempts_until_raised(state, total)
        total += more
        patience.append(more)
        limits.append(minute(state))
    assert limits == [60, 100, 100]
    assert patience == [30, 60, 10 * 100]  # it is forgotten after ten times its patience


def test_each_time_it_is_too_much_the_step_is_halved_and_the_patience_doubled() -> None:
    state, total = EndpointThrottle(), 0
    steps, patience = [], []
    for _ in range(14):
        lower(state, 10, total)
        throttle.raise_learned_limits(state, total=total, limits=LIMITS)
        patience.append(attempts_until_raised(state, total))
        total += patience[-1]
        steps.append(minute(state))
    assert steps[:5] == [20, 15, 13, 12, 11]
    assert set(steps[5:]) == {11}  # by one at least
    assert patience[:4] == [10, 40, 80, 160]
    assert patience[-3:] == [5000, 5000, 5000]


def test_nothing_is_raised_while_it_is_paused() -> None:
    state = EndpointThrottle()
    lower(state, 30, total=0)
    throttle.raise_learned_limits(state, total=0, limits=LIMITS)
    throttle.pause(state, now=0.0, seconds=1.0, passed={})
    assert not throttle.raise_learned_limits(state, total=10**6, limits=LIMITS)


def test_a_window_without_a_limit_of_its_own_is_raised_for_ever() -> None:
    state, none = EndpointThrottle(), {MINUTE: 0, HOUR: 0}
    lower(state, 30, 0, none)
    total = 0
    for _ in range(8):
        total += attempts_until_raised(state, total, none)
    assert state.lowered(MINUTE, 0) == 30 * 2**8


def test_a_process_with_a_smaller_limit_does_not_forget_what_another_needs() -> None:
    state = EndpointThrottle()
    lower(state, 30, total=0)
    throttle.raise_learned_limits(state, total=0, limits=LIMITS)
    assert not throttle.raise_learned_limits(state, total=20, limits={MINUTE: 10, HOUR: 10})
    throttle.raise_learned_limits(state, total=30, limits={MINUTE: 10, HOUR: 10})
    assert minute(state) == 60


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1500), st.sampled_from([MINUTE, HOUR])), max_size=60),
    st.sampled_from([0, 1, 7, 100]),
    st.sampled_from([0, 1, 1000]),
)
def test_no_window_is_ever_lowered_to_nothing_nor_raised_beyond_its_own_limit(
    events: list[tuple[int, int, str]], per_minute: int, per_hour: int
) -> None:
    state, total, own = EndpointThrottle(), 0, {MINUTE: per_minute, HOUR: per_hour}
    for more, passed, blamed in events:
        total += more
        throttle.raise_learned_limits(state, total=total, limits=own)
        lower(state, passed, total, {name: state.lowered(name, limit) for name, limit in own.items()}, blamed)
        for name, learned in state.learned_limits.items():
            assert 1 <= state.lowered(name, own[name]) <= (own[name] or math.inf)
            assert 1.02 <= learned.step <= 2.0
            assert learned.patience <= max(5000, learned.limit)


# --- servers that allow less than is believed -----------------------------------------------------------------------


class FixedWindows:
    """Allows so many in each window; limits: by seconds. Windows begin at any moment: offset."""

    def __init__(self, limits: dict[float, int], offset: float) -> None:
        self._limits = limits
        self._offset = offset
        self._used: Counter[tuple[float, int]] = Counter()

    def passes(self, at: float) -> bool:
        windows = [(span, int((at + self._offset) // span)) for span in self._limits]
        if any(self._used[span, number] >= self._limits[span] for span, number in windows):
            return False
        self._used.update(windows)
        return True


class SlidingWindows:
    """Allows so many in each window, wherever it begins."""

    def __init__(self, limits: dict[float, int], offset: float) -> None:
        self._passed = {span: deque[float](maxlen=limit) for span, limit in limits.items()}

    def passes(self, at: float) -> bool:
        for span, passed in self._passed.items():
            if len(passed) == passed.maxlen and passed[0] > at - span:
                return False
        for passed in self._passed.values():
            passed.append(at)
        return True


class Buckets:
    """Allows so many at once, and then as many as flow in."""

    def __init__(self, limits: dict[float, int], offset: float) -> None:
        self._limits = limits
        self._levels = {span: float(limit) for span, limit in limits.items()}
        self._at = 0.0

    def passes(self, at: float) -> bool:
        for span, limit in self._limits.items():
            self._levels[span] = min(self._levels[span] + (at - self._at) * limit / span, float(limit))
        self._at = at
        if min(self._levels.values()) < 1.0:
            return False
        for span in self._limits:
            self._levels[span] -= 1.0
        return True


Server = FixedWindows | SlidingWindows | Buckets


class Outcome:
    """What came of many calls. throttled: per passed call. used: passed, of what server and client would allow."""

    def __init__(self, kind: type[Server], limits: dict[float, int], at_once: int, seed: int, calls: int) -> None:
        rng, clock = random.Random(seed), VirtualClock(NOON.timestamp())
        self._clock, self._at_once, self._rng = clock, at_once, rng
        self._server = kind(limits, rng.uniform(0.0, 3600.0))
        self._passed = self._throttled = 0
        clock.seconds += rng.uniform(0.0, 3600.0)
        began = clock.seconds
        with quick_folder() as folder, closing(BudgetDatabase(str(folder / "budget.sqlite"), clock)) as book:
            budget = MachineBudget(
                book, Account("server", "token", "acme"), "clicks", RequestedLimits(per_month=0), rng
            )
            while self._passed < calls:
                self._ask(budget)
        own = {span: LIMITS[name] for name, span in SPANS.items()}
        per_second = min(limit / span for span, limit in [*limits.items(), *own.items()])
        self.throttled = self._throttled / self._passed
        self.used = self._passed / per_second / (clock.seconds - began)

    def _ask(self, budget: MachineBudget) -> None:
        """Send so many at once, if they may go, and hear the answers a tenth of a second later."""
        sent_at, refused, sent = self._clock.seconds, None, 0
        while sent < self._at_once and (refused := budget.try_acquire()) is None:
            sent += 1
        arrivals = sorted(sent_at + self._rng.uniform(0.01, 0.09) for _ in range(sent))
        answers = [self._server.passes(at) for at in arrivals]
        self._rng.shuffle(answers)
        self._clock.seconds += 0.1 if sent else 0.0
        for passed in answers:
            if passed:
                budget.answered(sent_at=sent_at)
            else:
                budget.throttled(None, sent_at=sent_at)
        self._passed += sum(answers)
        self._throttled += len(answers) - sum(answers)
        wait = refused.seconds if isinstance(refused, RetryAfter) and not sent else 0.0
        pace = sent * 60.0 / budget.limits.per_minute
        self._clock.seconds = max(self._clock.seconds, sent_at + max(pace, wait))


UNKNOWN = [{60.0: 10}, {60.0: 50}, {3600.0: 600}]
CALLS = pytest.mark.parametrize("calls", [6_000, pytest.param(10_000, marks=pytest.mark.nightly)])
"""The suite sends so many that finding a limit may cost less than a hundredth of them."""


@CALLS
@pytest.mark.parametrize(
    ("limits", "at_once"),
    [
        # The suite sends one or five at once by turns; the nightly form both to each.
        pytest.param(limits, at_once, marks=() if at_once == (1, 5)[number % 2] else pytest.mark.nightly)
        for number, limits in enumerate(UNKNOWN)
        for at_once in (1, 5)
    ],
)
def test_a_limit_that_nobody_told_is_found_at_the_price_of_one_call_in_a_hundred(
    limits: dict[float, int], at_once: int, calls: int
) -> None:
    outcome = Outcome(FixedWindows, limits, at_once, seed=1, calls=calls)
    assert outcome.throttled <= 0.01
    assert outcome.used >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "seed", "at_once"),
    [
        # The suite tries one of the limits above once more, and both of them together; the nightly form all of them.
        pytest.param(
            limits,
            seed,
            at_once,
            marks=() if (number, seed, at_once) in {(1, 2, 1), (3, 2, 5)} else pytest.mark.nightly,
        )
        for number, limits in enumerate([*UNKNOWN, {60.0: 50, 3600.0: 600}])
        for seed in (2, 3)
        for at_once in (1, 5)
    ],
)
def test_so_it_is_however_its_windows_are_aligned(limits: dict[float, int], seed: int, at_once: int) -> None:
    outcome = Outcome(FixedWindows, limits, at_once, seed, calls=10_000)
    assert outcome.throttled <= 0.01
    assert outcome.used >= 0.9


@pytest.mark.slow
@CALLS
@pytest.mark.parametrize(
    ("kind", "limits", "at_once"),
    [
        # The suite tries each of the limits once, with either kind twice; the nightly form all of them.
        pytest.param(kind, limits, at_once, marks=() if (first, third) == divmod(second, 2) else pytest.mark.nightly)
        for first, kind in enumerate((SlidingWindows, Buckets))
        for second, limits in enumerate([*UNKNOWN, {60.0: 50, 3600.0: 600}])
        for third, at_once in enumerate((1, 5))
    ],
)
def test_a_server_of_another_kind_is_not_asked_too_much_either_and_still_used(
    kind: type[Server], limits: dict[float, int], at_once: int, calls: int
) -> None:
    outcome = Outcome(kind, limits, at_once, seed=1, calls=calls)
    assert outcome.throttled <= 0.01
    assert outcome.used >= 0.5
