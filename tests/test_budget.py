"""Windows, the month and the gate, under a clock that the tests move."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.budget import (
    OUTAGE,
    THROTTLED,
    Budget,
    Gate,
    GateRules,
    Limits,
    MonthOver,
    Wait,
    hinted_seconds,
    next_month,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    """Seconds that pass only when they are told to; wall says what a clock on the wall shows meanwhile."""

    def __init__(self, wall: datetime = NOON) -> None:
        self.seconds = 1000.0
        self.wall_offset = wall.timestamp() - self.seconds

    def __call__(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.seconds + self.wall_offset

    def today(self) -> datetime:
        return datetime.fromtimestamp(self.wall(), UTC)

    def set_wall(self, moment: datetime) -> None:
        """A step of the wall clock: no time passes."""
        self.wall_offset = moment.timestamp() - self.seconds


def is_wait(answer: object, seconds: float, window: str) -> bool:
    """Whether an answer says to wait so long, but for rounding, and because of that."""
    return isinstance(answer, Wait) and answer.window == window and answer.seconds == pytest.approx(seconds)


# --- windows --------------------------------------------------------------------------------------------------------


def busiest(times: list[float], span: float) -> int:
    """The most of these times that lie within any half-open window of this span."""
    times = sorted(times)
    return max((sum(start <= other < start + span for other in times[i:]) for i, start in enumerate(times)), default=0)


SCHEDULES = st.lists(
    st.one_of(
        st.just(0.0),
        st.floats(0.0, 2.0),
        st.floats(0.0, 90.0),
        st.sampled_from([59.0, 59.999, 60.0, 60.5, 3600.0, 3600.5, 5000.0]),
    ),
    max_size=60,
)


@given(st.integers(1, 6), st.integers(1, 25), SCHEDULES, st.randoms(use_true_random=False))
def test_no_sliding_window_holds_more_than_its_limit_under_any_schedule_and_jitter(
    per_minute: int, per_hour: int, gaps: list[float], rng: random.Random
) -> None:
    """The network may hold an attempt back by up to half a second, and not the next."""
    clock = Clock()
    budget = Budget(Limits(per_minute, per_hour, 0), clock, clock.today)
    arrived = []
    for gap in gaps:
        clock.seconds += gap
        if budget.take() is None:
            arrived.append(clock.seconds + rng.choice([0.0, 0.5, rng.uniform(0.0, 0.5)]))
    rounding = 1e-6
    assert busiest(arrived, 60.0 - rounding) <= per_minute
    assert busiest(arrived, 3600.0 - rounding) <= per_hour


@given(st.integers(1, 5), st.integers(1, 12), SCHEDULES)
def test_whoever_waits_as_long_as_told_gets_through_and_not_a_second_late(
    per_minute: int, per_hour: int, gaps: list[float]
) -> None:
    clock = Clock()
    budget = Budget(Limits(per_minute, per_hour, 0), clock, clock.today)
    for gap in gaps:
        clock.seconds += gap
        began = clock.seconds
        for _ in range(3):
            answer = budget.take()
            if answer is None:
                break
            assert isinstance(answer, Wait)
            assert 0 < answer.seconds < 3600.501
            clock.seconds += answer.seconds + 1e-9
        assert answer is None
        assert clock.seconds - began <= 3600.6


def test_the_longer_wait_is_given_with_its_windows_name() -> None:
    clock = Clock()
    budget = Budget(Limits(2, 3, 0), clock, clock.today)
    assert budget.take() is None
    clock.seconds += 10
    assert budget.take() is None
    assert is_wait(budget.take(), 50.5, "minute")
    clock.seconds += 60
    assert budget.take() is None
    assert is_wait(budget.take(), 3530.5, "hour")


def test_a_refused_attempt_counts_nowhere() -> None:
    clock = Clock()
    budget = Budget(Limits(1, 2, 0), clock, clock.today)
    assert budget.take() is None
    for _ in range(100):
        assert isinstance(budget.take(), Wait)
    assert budget.spent_this_month == 1
    clock.seconds += 61
    assert budget.take() is None


def test_room_says_how_many_may_go_at_once() -> None:
    clock = Clock()
    budget = Budget(Limits(3, 4, 0), clock, clock.today)
    assert budget.room() == 3
    while budget.take() is None:
        pass
    assert budget.room() == 0
    clock.seconds += 61
    assert budget.room() == 1


def test_zero_means_no_limit() -> None:
    clock = Clock()
    budget = Budget(Limits(0, 0, 0), clock, clock.today)
    assert all(budget.take() is None for _ in range(5000))
    assert budget.room() == float("inf")
    assert budget.spent_this_month == 5000


@pytest.mark.parametrize("step", [timedelta(days=-2), timedelta(hours=-1), timedelta(hours=1), timedelta(days=2)])
def test_a_step_of_the_wall_clock_opens_no_window(step: timedelta) -> None:
    clock = Clock()
    budget = Budget(Limits(1, 1, 0), clock, clock.today)
    assert budget.take() is None
    clock.set_wall(NOON + step)
    assert isinstance(budget.take(), Wait)


# --- the month ------------------------------------------------------------------------------------------------------


def test_a_spent_month_says_when_the_next_begins() -> None:
    clock = Clock()
    budget = Budget(Limits(0, 0, 2), clock, clock.today)
    assert (budget.take(), budget.take()) == (None, None)
    assert budget.take() == MonthOver(datetime(2026, 12, 1, tzinfo=UTC))
    assert budget.spent_this_month == 2


def test_a_spent_month_comes_before_a_full_window() -> None:
    clock = Clock()
    budget = Budget(Limits(1, 1, 1), clock, clock.today)
    assert budget.take() is None
    assert isinstance(budget.take(), MonthOver)


def test_a_new_month_counts_from_zero() -> None:
    clock = Clock(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    budget = Budget(Limits(0, 0, 1), clock, clock.today)
    assert budget.take() is None
    assert budget.take() == MonthOver(datetime(2027, 1, 1, tzinfo=UTC))
    clock.seconds += 1
    assert budget.take() is None
    assert budget.take() == MonthOver(datetime(2027, 2, 1, tzinfo=UTC))


def test_a_month_is_utcs() -> None:
    clock = Clock(datetime(2026, 11, 30, 23, 59, tzinfo=UTC))
    budget = Budget(Limits(0, 0, 1), clock, clock.today)
    assert budget.take() is None
    assert isinstance(budget.take(), MonthOver)


@given(st.lists(st.one_of(st.integers(-100, 100).map(float), st.just(0.0)), max_size=40), st.integers(1, 4))
def test_no_steps_of_the_wall_clock_give_a_months_calls_out_twice(days: list[float], limit: int) -> None:
    clock = Clock()
    budget = Budget(Limits(0, 0, limit), clock, clock.today)
    moment = latest = NOON
    sent: dict[tuple[int, int], int] = {}
    for step in days:
        moment += timedelta(days=step)
        latest = max(latest, moment)
        clock.set_wall(moment)
        while budget.take() is None:
            counted = (latest.year, latest.month)  # the furthest month that the clock has shown
            sent[counted] = sent.get(counted, 0) + 1
    assert all(number <= limit for number in sent.values())


def test_a_spent_month_ends_when_its_calls_are_given_out_again_even_if_the_clock_was_set_back() -> None:
    clock = Clock()
    budget = Budget(Limits(0, 0, 1), clock, clock.today)
    assert budget.take() is None
    clock.set_wall(datetime(2026, 10, 31, tzinfo=UTC))
    over = budget.take()
    assert isinstance(over, MonthOver)
    clock.set_wall(over.until)
    assert budget.take() is None


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2028, 2, 29, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime.fromisoformat("2026-12-01T01:00:00+02:00"), datetime(2026, 12, 1, tzinfo=UTC)),
    ],
)
def test_the_next_month_begins_on_its_first_in_utc(moment: datetime, expected: datetime) -> None:
    assert next_month(moment) == expected


# --- the gate: throttled --------------------------------------------------------------------------------------------


def gate_at(clock: Clock, **rules: float) -> Gate:
    """A gate without jitter, unless the rules say otherwise."""
    return Gate(GateRules(**{"jitter": 0.0, **rules}), clock, clock.wall, random.Random(1))  # type: ignore[arg-type]


def seconds_closed(gate: Gate) -> float:
    refused = gate.enter()
    assert refused is not None
    return refused.seconds


def probe(gate: Gate, clock: Clock) -> float:
    """Wait until the gate's time is over and send the probe; give when it was sent."""
    clock.seconds += seconds_closed(gate)
    assert gate.enter() is None
    return clock.seconds


def test_an_open_gate_lets_everyone_through() -> None:
    gate = gate_at(Clock())
    assert [gate.enter() for _ in range(10)] == [None] * 10


def test_one_throttled_answer_closes_for_everyone() -> None:
    clock = Clock()
    gate = gate_at(clock)
    gate.throttled(30.0, sent_at=clock())
    for fresh in (True, False):
        assert gate.enter(fresh=fresh) == Wait(30.0, THROTTLED)
    clock.seconds += 29.9
    assert is_wait(gate.enter(), 0.1, THROTTLED)


@pytest.mark.parametrize(
    ("hint", "seconds"),
    [
        (17.0, 17.0),
        (NOON + timedelta(seconds=40), 40.0),
        (1e9, 3600.0),
        (NOON + timedelta(days=400), 3600.0),
    ],
)
def test_a_hint_is_followed_up_to_an_hour(hint: float | datetime, seconds: float) -> None:
    clock = Clock()
    gate = gate_at(clock)
    gate.throttled(hint, sent_at=clock())
    assert seconds_closed(gate) == pytest.approx(seconds)


@pytest.mark.parametrize("hint", [None, 0.0, -5.0, NOON, NOON - timedelta(hours=1)])
def test_without_a_hint_to_come_the_gate_opens_at_the_minutes_edge(hint: float | datetime | None) -> None:
    clock = Clock(NOON + timedelta(seconds=13))
    gate = gate_at(clock)
    gate.throttled(hint, sent_at=clock())
    assert seconds_closed(gate) == pytest.approx(47.0, abs=0.01)


@given(st.one_of(st.none(), st.floats(-1e12, 1e12), st.datetimes().map(lambda moment: moment.replace(tzinfo=UTC))))
def test_a_hinted_wait_is_never_negative_nor_longer_than_allowed(hint: float | datetime | None) -> None:
    assert 0.0 <= hinted_seconds(hint, NOON.timestamp(), 300.0) <= 300.0


def test_throttled_again_and_again_it_waits_longer_but_not_past_the_hours_edge() -> None:
    clock = Clock(NOON)
    gate = gate_at(clock)
    sent_at = clock()
    waits = []
    for _ in range(7):
        clock.seconds += 1.0
        gate.throttled(None, sent_at=sent_at)
        waits.append(seconds_closed(gate))
        sent_at = probe(gate, clock)
    # Probes went at 12:01, :03, :07, :15, :31, at 13:00 instead of 13:03, and at 14:00.
    assert waits == pytest.approx([59, 119, 239, 479, 959, 1739, 3599], abs=0.01)


@given(st.floats(0, 3600), st.integers(1, 30))
def test_a_wait_without_a_hint_ends_at_the_latest_at_the_hours_edge(into_the_hour: float, strikes: int) -> None:
    clock = Clock(NOON + timedelta(seconds=into_the_hour))
    gate = gate_at(clock)
    sent_at = clock()
    for _ in range(strikes):
        to_the_hour = 3600.0 - clock.wall() % 3600.0
        gate.throttled(None, sent_at=sent_at)
        assert 0 < seconds_closed(gate) <= max(to_the_hour, 1.0) + 0.001
        sent_at = probe(gate, clock)


def test_a_gate_that_is_throttled_for_weeks_still_knows_how_long_to_wait() -> None:
    clock = Clock()
    gate = gate_at(clock)
    sent_at = clock()
    for _ in range(1100):
        gate.throttled(1.0, sent_at=sent_at)
        sent_at = probe(gate, clock)
    gate.throttled(None, sent_at=sent_at)
    assert 0 < seconds_closed(gate) <= 3600.0


def test_a_wait_is_lengthened_by_the_jitter_and_never_shortened() -> None:
    waits = []
    for seed in range(50):
        clock = Clock()
        gate = Gate(GateRules(jitter=0.1), clock, clock.wall, random.Random(seed))
        gate.throttled(100.0, sent_at=clock())
        waits.append(seconds_closed(gate))
    assert all(100.0 <= wait <= 110.0 for wait in waits)
    assert len(set(waits)) > 40


def test_late_throttled_answers_of_attempts_already_under_way_say_nothing_new() -> None:
    clock = Clock(NOON)
    gate = gate_at(clock)
    sent_at = clock()
    clock.seconds += 1.0
    gate.throttled(None, sent_at=sent_at)
    opens = clock() + seconds_closed(gate)
    for _ in range(4):
        clock.seconds += 1.0
        gate.throttled(None, sent_at=sent_at)
        assert clock() + seconds_closed(gate) == pytest.approx(opens)
    second = probe(gate, clock)
    gate.throttled(None, sent_at=second)
    assert seconds_closed(gate) == pytest.approx(120.0, abs=0.01)  # the second strike, not the sixth


def test_a_late_good_answer_of_an_attempt_already_under_way_opens_nothing() -> None:
    """The attempt was sent before the limit was spent: its answer does not say that there is room again."""
    clock = Clock()
    gate = gate_at(clock)
    clock.seconds += 1.0
    gate.throttled(30.0, sent_at=clock() - 1.0)
    clock.seconds += 1.0
    gate.answered(sent_at=clock())
    assert is_wait(gate.enter(), 29.0, THROTTLED)


def test_exactly_one_probe_goes_when_the_time_is_over() -> None:
    clock = Clock()
    gate = gate_at(clock)
    gate.throttled(30.0, sent_at=clock())
    clock.seconds += 30.0
    assert gate.enter() is None
    for _ in range(5):
        assert gate.enter() == Wait(GateRules().poll_seconds, THROTTLED)
        clock.seconds += 100.0


def test_a_probes_success_opens_for_everyone_and_forgets() -> None:
    clock = Clock(NOON)
    gate = gate_at(clock)
    for _ in range(3):
        gate.throttled(None, sent_at=clock())
        probe(gate, clock)
    gate.answered(sent_at=clock())
    assert [gate.enter() for _ in range(5)] == [None] * 5
    clock.set_wall(NOON)
    gate.throttled(None, sent_at=clock())
    assert seconds_closed(gate) == pytest.approx(60.0, abs=0.01)


def test_a_probe_that_is_throttled_closes_again() -> None:
    clock = Clock()
    gate = gate_at(clock)
    gate.throttled(5.0, sent_at=clock())
    sent_at = probe(gate, clock)
    clock.seconds += 1.0
    gate.throttled(7.0, sent_at=sent_at)
    assert gate.enter() == Wait(7.0, THROTTLED)


def test_a_probe_that_was_not_sent_after_all_lets_another_go() -> None:
    clock = Clock()
    gate = gate_at(clock)
    gate.throttled(5.0, sent_at=clock())
    sent_at = probe(gate, clock)
    assert gate.enter() is not None
    gate.leave(sent_at=sent_at)
    assert gate.enter() is None
    assert gate.enter() is not None


def test_an_attempt_from_before_the_gate_closed_does_not_free_the_probe() -> None:
    clock = Clock()
    gate = gate_at(clock)
    before = clock()
    clock.seconds += 1.0
    gate.throttled(5.0, sent_at=before)
    probe(gate, clock)
    gate.leave(sent_at=before)
    assert gate.enter() is not None


def test_a_throttled_probe_that_fails_in_passing_does_not_hold_the_gate_closed() -> None:
    clock = Clock()
    gate = gate_at(clock)
    gate.throttled(5.0, sent_at=clock())
    gate.transient(sent_at=probe(gate, clock), evidence=True)
    assert gate.enter() is None


# --- the gate: outages ----------------------------------------------------------------------------------------------


def fail(gate: Gate, clock: Clock, times: int, *, evidence: bool = True) -> None:
    """So many transient failures of first attempts, a second each."""
    for _ in range(times):
        clock.seconds += 1.0
        gate.transient(sent_at=clock() - 0.5, evidence=evidence)


@pytest.mark.parametrize(("times", "outage"), [(1, False), (19, False), (20, True), (21, True)])
def test_an_outage_is_20_calls_in_a_row_that_fail_at_their_first_attempt(times: int, outage: bool) -> None:
    clock = Clock()
    gate = gate_at(clock)
    fail(gate, clock, times)
    assert gate.outage is outage
    assert (gate.enter() is None) is not outage


def test_repeats_that_fail_again_do_not_add_to_the_row() -> None:
    clock = Clock()
    gate = gate_at(clock)
    for _ in range(19):
        fail(gate, clock, 1)
        fail(gate, clock, 5, evidence=False)
    assert not gate.outage
    fail(gate, clock, 1)
    assert gate.outage


def test_an_answer_in_between_begins_the_row_anew() -> None:
    clock = Clock()
    gate = gate_at(clock)
    for _ in range(10):
        fail(gate, clock, 19)
        gate.answered(sent_at=clock())
    assert not gate.outage


def test_failures_of_calls_that_have_failed_before_are_no_outage() -> None:
    clock = Clock()
    gate = gate_at(clock)
    fail(gate, clock, 200, evidence=False)
    assert not gate.outage
    assert gate.enter() is None


def out(clock: Clock) -> Gate:
    """A gate in an outage."""
    gate = gate_at(clock)
    fail(gate, clock, 20)
    assert gate.outage
    return gate


def test_an_outages_probes_go_after_5_seconds_and_then_rarer_down_to_one_a_minute() -> None:
    clock = Clock()
    gate = out(clock)
    waits = []
    for _ in range(7):
        waits.append(seconds_closed(gate))
        gate.transient(sent_at=probe(gate, clock), evidence=True)
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0])


def test_late_failures_of_attempts_already_under_way_do_not_make_the_probes_rarer() -> None:
    clock = Clock()
    gate = out(clock)
    opens = clock() + seconds_closed(gate)
    for _ in range(4):
        gate.transient(sent_at=clock() - 10.0, evidence=True)
    assert clock() + seconds_closed(gate) == pytest.approx(opens)


def test_in_an_outage_one_fresh_call_probes_and_no_call_that_has_failed_before() -> None:
    clock = Clock()
    gate = out(clock)
    clock.seconds += 5.0
    assert gate.enter(fresh=False) == Wait(GateRules().poll_seconds, OUTAGE)
    assert gate.enter(fresh=True) is None
    assert gate.enter(fresh=True) == Wait(GateRules().poll_seconds, OUTAGE)


def test_an_answer_ends_the_outage() -> None:
    clock = Clock()
    gate = out(clock)
    probe(gate, clock)
    gate.answered(sent_at=clock())
    assert not gate.outage
    assert [gate.enter(fresh=fresh) for fresh in (True, False, True)] == [None] * 3
    fail(gate, clock, 19)
    assert not gate.outage


def test_a_throttled_probe_is_an_answer_too() -> None:
    clock = Clock()
    gate = out(clock)
    sent_at = probe(gate, clock)
    clock.seconds += 1.0
    gate.throttled(30.0, sent_at=sent_at)
    assert not gate.outage
    assert gate.enter() == Wait(30.0, THROTTLED)


def test_an_outage_of_more_than_15_minutes_is_over_the_limit() -> None:
    clock = Clock()
    gate = out(clock)
    began = clock()
    assert not gate.over_limit
    while clock() - began < 880:
        gate.transient(sent_at=probe(gate, clock), evidence=True)
    assert not gate.over_limit or clock() - began > 900
    clock.seconds = began + 900.0
    assert not gate.over_limit
    clock.seconds += 0.1
    assert gate.over_limit
    gate.answered(sent_at=clock())
    assert not gate.over_limit


def test_time_without_an_outage_is_never_over_the_limit() -> None:
    clock = Clock()
    gate = gate_at(clock)
    fail(gate, clock, 19)
    clock.seconds += 10_000
    assert not gate.over_limit


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["pass", "enter", "answered", "throttled", "transient", "leave"]),
        st.floats(0.0, 30.0),
        st.booleans(),
    ),
    max_size=120,
)


@given(EVENTS)
def test_a_closed_gate_has_at_most_one_probe_under_way_whatever_happens(events: list[tuple[str, float, bool]]) -> None:
    """A model: attempts that entered and were not answered; only the probe may have entered a closed gate."""
    clock = Clock()
    gate = gate_at(clock, streak=3)
    under_way: list[float] = []
    closed_since: float | None = None
    for event, seconds, flag in events:
        clock.seconds += seconds if event == "pass" else 0.001
        if event == "enter":
            if gate.enter(fresh=flag) is None:
                under_way.append(clock())
                if closed_since is not None:
                    assert sum(sent_at >= closed_since for sent_at in under_way) == 1
            continue
        if event == "pass" or not under_way:
            continue
        sent_at = under_way.pop(0 if flag else -1)
        answers: dict[str, Callable[[], None]] = {
            "answered": lambda sent_at=sent_at: gate.answered(sent_at=sent_at),  # type: ignore[misc]
            "throttled": lambda sent_at=sent_at: gate.throttled(None, sent_at=sent_at),  # type: ignore[misc]
            "transient": lambda sent_at=sent_at: gate.transient(sent_at=sent_at, evidence=True),  # type: ignore[misc]
            "leave": lambda sent_at=sent_at: gate.leave(sent_at=sent_at),  # type: ignore[misc]
        }
        answers[event]()
        if event == "throttled" and (closed_since is None or sent_at >= closed_since):
            closed_since = clock()
        elif event in {"answered", "transient"}:
            closed_since = None  # it may be open now
