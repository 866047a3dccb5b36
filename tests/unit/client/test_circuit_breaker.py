"""The gate: nothing is sent while the server is out, but for one probe at a time."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.budget.limits import RetryAfter
from harvester.client.circuit_breaker import OUTAGE, BreakerRules, CircuitBreaker

RULES = BreakerRules(jitter=0.0)
ENOUGH = 18
"""Nine tenths of the last twenty."""


class Ticking:
    """Elapsed seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def gate_at(clock: Ticking, streak: int = RULES.streak) -> CircuitBreaker:
    """A gate without jitter."""
    return CircuitBreaker(BreakerRules(streak=streak, jitter=0.0), clock, random.Random(1))


def fail(gate: CircuitBreaker, clock: Ticking, times: int, *, evidence: bool = True) -> None:
    """So many transient failures, of first attempts if they are evidence, a second each."""
    for _ in range(times):
        clock.seconds += 1.0
        gate.record_failure(sent_at=clock() - 0.5, evidence=evidence)


def answer(gate: CircuitBreaker, clock: Ticking, times: int) -> None:
    """So many first attempts that are answered, a second each."""
    for _ in range(times):
        clock.seconds += 1.0
        gate.record_success(evidence=True)


def out(clock: Ticking) -> CircuitBreaker:
    """A gate in an outage."""
    gate = gate_at(clock)
    fail(gate, clock, ENOUGH)
    assert gate.outage
    return gate


def seconds_closed(gate: CircuitBreaker) -> float:
    refused = gate.enter()
    assert refused is not None
    return refused.seconds


def probe(gate: CircuitBreaker, clock: Ticking) -> float:
    """Wait until the gate's time is over and send the probe; give when it was sent."""
    refused = gate.closed()
    clock.seconds += refused.seconds if refused else 0.0
    assert gate.enter() is None
    return clock()


def fail_probe(gate: CircuitBreaker, clock: Ticking) -> None:
    gate.record_failure(sent_at=probe(gate, clock), evidence=True)


# --- when an outage begins --------------------------------------------------------------------------------------------


def test_an_open_gate_lets_everyone_through() -> None:
    gate = gate_at(Ticking())
    assert [gate.closed(fresh=fresh) for fresh in (True, False)] == [None] * 2
    assert [gate.enter(fresh=fresh) for fresh in (True, False)] == [None] * 2


@pytest.mark.parametrize(("times", "outage"), [(1, False), (17, False), (18, True), (25, True)])
def test_an_outage_is_18_calls_of_20_that_fail_at_their_first_attempt(times: int, outage: bool) -> None:
    clock = Ticking()
    gate = gate_at(clock)
    fail(gate, clock, times)
    assert gate.outage is outage
    assert (gate.enter() is None) is not outage


def test_two_answers_among_twenty_do_not_make_it_another_thing_than_an_outage() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    for _ in range(2):
        fail(gate, clock, 8)
        answer(gate, clock, 1)
    fail(gate, clock, 1)
    assert not gate.outage
    fail(gate, clock, 1)
    assert gate.outage


def test_three_answers_among_each_twenty_do() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    for _ in range(50):
        fail(gate, clock, 5)
        answer(gate, clock, 1)
    assert not gate.outage


def test_repeats_say_nothing_of_the_server_whether_they_fail_or_are_answered() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    for _ in range(17):
        fail(gate, clock, 1)
        fail(gate, clock, 5, evidence=False)
        gate.record_success()
    assert not gate.outage
    fail(gate, clock, 1)
    assert gate.outage


def test_failures_of_calls_that_have_failed_before_are_no_outage() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    fail(gate, clock, 200, evidence=False)
    assert not gate.outage
    assert gate.enter() is None


# --- probes -----------------------------------------------------------------------------------------------------------


def test_an_outages_probes_go_after_5_seconds_and_then_rarer_down_to_one_a_minute() -> None:
    clock = Ticking()
    gate = out(clock)
    waits = []
    for _ in range(7):
        waits.append(seconds_closed(gate))
        fail_probe(gate, clock)
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0])


def test_a_gate_that_is_closed_for_weeks_still_knows_how_long_to_wait() -> None:
    clock = Ticking()
    gate = out(clock)
    for _ in range(1100):
        fail_probe(gate, clock)
    assert seconds_closed(gate) == pytest.approx(60.0)


def test_a_wait_is_lengthened_by_the_jitter_and_never_shortened() -> None:
    waits = []
    for seed in range(50):
        clock = Ticking()
        gate = CircuitBreaker(BreakerRules(), clock, random.Random(seed))
        fail(gate, clock, ENOUGH)
        waits.append(seconds_closed(gate))
    assert all(5.0 <= wait <= 5.5 for wait in waits)
    assert len(set(waits)) > 40


def test_a_closed_gate_says_how_long_it_is_still_closed_and_why() -> None:
    clock = Ticking()
    gate = out(clock)
    clock.seconds += 3.0
    assert gate.closed() == gate.enter() == RetryAfter(2.0, OUTAGE)


def test_late_failures_of_attempts_already_under_way_do_not_make_the_probes_rarer() -> None:
    clock = Ticking()
    gate = out(clock)
    opens = clock() + seconds_closed(gate)
    for _ in range(4):
        gate.record_failure(sent_at=clock() - 10.0, evidence=True)
    assert clock() + seconds_closed(gate) == pytest.approx(opens)
    assert gate.probes_failed == 0


def test_one_fresh_call_probes_and_no_call_that_has_failed_before() -> None:
    clock = Ticking()
    gate = out(clock)
    clock.seconds += 5.0
    assert gate.enter(fresh=False) == RetryAfter(RULES.poll_seconds, OUTAGE)
    assert gate.enter(fresh=True) is None
    assert gate.enter(fresh=True) == RetryAfter(RULES.poll_seconds, OUTAGE)


def test_to_look_whether_the_gate_is_closed_sends_no_probe() -> None:
    clock = Ticking()
    gate = out(clock)
    clock.seconds += 5.0
    assert gate.closed() is None
    assert gate.enter() is None
    assert gate.closed() == RetryAfter(RULES.poll_seconds, OUTAGE)


def test_a_probe_that_was_not_sent_after_all_lets_another_go() -> None:
    clock = Ticking()
    gate = out(clock)
    sent_at = probe(gate, clock)
    assert gate.enter() is not None
    gate.leave(sent_at=sent_at)
    assert gate.enter() is None
    assert gate.enter() is not None


def test_an_attempt_from_before_the_gate_closed_does_not_free_the_probe() -> None:
    clock = Ticking()
    gate = out(clock)
    probe(gate, clock)
    gate.leave(sent_at=clock() - 10.0)
    assert gate.enter() is not None


def test_to_leave_an_open_gate_changes_nothing() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    gate.leave(sent_at=clock())
    assert not gate.outage


def test_an_answer_to_any_attempt_ends_the_outage() -> None:
    clock = Ticking()
    gate = out(clock)
    probe(gate, clock)
    gate.record_success()
    assert not gate.outage
    assert [gate.enter(fresh=fresh) for fresh in (True, False, True)] == [None] * 3


def test_an_outage_that_is_not_over_closes_again_with_the_next_failure() -> None:
    clock = Ticking()
    gate = out(clock)
    probe(gate, clock)
    gate.record_success(evidence=True)
    fail(gate, clock, 1)
    assert gate.outage


def test_the_next_outages_probes_begin_with_the_short_wait_again() -> None:
    clock = Ticking()
    gate = out(clock)
    for _ in range(3):
        fail_probe(gate, clock)
    gate.record_success(evidence=True)
    fail(gate, clock, 1)
    assert seconds_closed(gate) == pytest.approx(5.0)


# --- how long ---------------------------------------------------------------------------------------------------------


def test_an_outage_of_more_than_15_minutes_is_over_the_limit_until_an_answer() -> None:
    clock = Ticking()
    gate = out(clock)
    began = clock()
    while clock() - began < 840:
        fail_probe(gate, clock)
    clock.seconds = began + 2000.0
    assert not gate.over_limit  # whoever waits for the hour's window learns nothing of the server
    fail_probe(gate, clock)
    assert gate.over_limit
    gate.record_success(evidence=True)
    assert not gate.over_limit


@pytest.mark.parametrize(("calm", "over"), [(299.0, True), (301.0, False)])
def test_an_outage_that_comes_back_within_five_minutes_is_the_same(calm: float, over: bool) -> None:
    clock = Ticking()
    gate = out(clock)
    clock.seconds += 890.0
    gate.record_success(evidence=True)
    clock.seconds += calm - 1.0
    fail(gate, clock, 1)
    assert gate.outage
    assert gate.over_limit is over


def test_time_without_an_outage_is_never_over_the_limit() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    fail(gate, clock, 17)
    clock.seconds += 10_000
    assert not gate.over_limit


# --- witnesses: whose fault is it? ------------------------------------------------------------------------------------


def test_every_third_probe_should_be_a_link_that_answered_before() -> None:
    clock = Ticking()
    gate = out(clock)
    wanted = []
    for _ in range(7):
        wanted.append(gate.wants_witness)
        fail_probe(gate, clock)
    assert wanted == [False, False, True, False, False, True, False]


def test_an_open_gate_wants_no_witness() -> None:
    assert not gate_at(Ticking()).wants_witness


def test_a_doubt_closes_at_once_for_a_witness_that_may_go_at_once() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    gate.doubt()
    assert gate.outage
    assert gate.wants_witness
    assert gate.enter(fresh=True) is None
    assert gate.enter(fresh=True) is not None


def test_a_doubt_that_the_witness_dispels_is_over() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    gate.doubt()
    probe(gate, clock)
    gate.record_success(witness=True)
    assert not gate.outage
    assert not gate.wants_witness
    assert gate.probes_failed == 0


def test_where_a_few_were_answered_of_late_and_most_not_it_takes_two_witnesses() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    fail(gate, clock, 4)
    answer(gate, clock, 1)
    gate.doubt()
    probe(gate, clock)
    gate.record_success(witness=True)
    assert gate.outage
    assert gate.wants_witness
    probe(gate, clock)
    gate.record_success(witness=True)
    assert not gate.outage


def test_a_doubt_whose_witness_fails_is_an_outage_whose_probes_go_after_5_seconds() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    gate.doubt()
    fail_probe(gate, clock)
    assert gate.outage
    assert gate.probes_failed == 1
    assert not gate.wants_witness
    assert seconds_closed(gate) == pytest.approx(5.0)


def test_a_doubt_in_an_outage_changes_nothing() -> None:
    clock = Ticking()
    gate = out(clock)
    gate.doubt()
    assert not gate.wants_witness
    assert seconds_closed(gate) == pytest.approx(5.0)


def test_an_outage_that_a_witness_ended_was_the_links_fault_and_the_next_takes_twice_as_many() -> None:
    clock = Ticking()
    gate = out(clock)
    probe(gate, clock)
    gate.record_success(witness=True)
    fail(gate, clock, 2 * ENOUGH - 1)
    assert not gate.outage
    fail(gate, clock, 1)
    assert gate.outage


def test_a_fresh_answer_makes_18_of_20_enough_again() -> None:
    clock = Ticking()
    gate = out(clock)
    probe(gate, clock)
    gate.record_success(witness=True)
    answer(gate, clock, 1)
    fail(gate, clock, ENOUGH)
    assert gate.outage


def test_a_witness_outside_of_an_outage_changes_nothing() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    gate.record_success(witness=True)
    fail(gate, clock, ENOUGH)
    assert gate.outage


def test_a_call_is_to_blame_if_most_others_were_answered_and_one_since_it_first_failed() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    failed_at = clock()
    answer(gate, clock, 4)
    assert not gate.blames(failed_at)  # four say too little
    answer(gate, clock, 1)
    assert gate.blames(failed_at)
    assert not gate.blames(clock())
    fail(gate, clock, 6)
    assert not gate.blames(failed_at)


def test_a_call_is_to_blame_for_a_minute_after_a_witness_was_answered_that_ended_an_outage() -> None:
    clock = Ticking()
    gate = out(clock)
    probe(gate, clock)
    gate.record_success(witness=True)
    clock.seconds += 59.9
    assert gate.blames(clock())
    clock.seconds += 0.1
    assert not gate.blames(clock())


def test_a_throttled_answer_opens_the_gate() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    fail(gate, clock, ENOUGH)
    assert gate.outage
    gate.throttled()
    assert not gate.outage
    assert gate.enter() is None


def test_a_throttled_answer_is_no_word_that_others_were_answered() -> None:
    clock = Ticking()
    gate = gate_at(clock)
    answer(gate, clock, 20)
    failed_at = clock()
    gate.throttled()
    assert not gate.blames(failed_at)
    fail(gate, clock, ENOUGH)
    gate.throttled()
    fail(gate, clock, 1)
    assert gate.outage  # what failed before is not forgotten


def test_the_gate_knows_whether_anybody_was_ever_answered() -> None:
    gate = gate_at(Ticking())
    assert not gate.ever_answered
    gate.record_success()
    assert gate.ever_answered


# --- whatever happens -------------------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["pass", *["enter"] * 8, *["transient"] * 3, "answered", "leave", "doubt"]),
        st.floats(0.0, 30.0),
        st.booleans(),
    ),
    min_size=20,
    max_size=80,
)


@given(EVENTS)
def test_a_closed_gate_has_at_most_one_probe_under_way_whatever_happens(events: list[tuple[str, float, bool]]) -> None:
    """A model: attempts that entered and were not answered; only the probe may have entered a closed gate."""
    clock = Ticking()
    gate = gate_at(clock, streak=6)
    under_way: list[float] = []
    closed_since: float | None = None
    for event, seconds, flag in events:
        clock.seconds += seconds if event == "pass" else 0.001
        if event == "enter" and gate.enter(fresh=flag) is None:
            under_way.append(clock())
        elif event == "doubt":
            gate.doubt()
        elif event in {"answered", "transient", "leave"} and under_way:
            sent_at = under_way.pop(0 if flag else -1)
            if event == "answered":
                gate.record_success(evidence=flag, witness=gate.wants_witness and sent_at > (closed_since or 0.0))
            elif event == "transient":
                gate.record_failure(sent_at=sent_at, evidence=flag)
            else:
                gate.leave(sent_at=sent_at)
        if not gate.outage:
            closed_since = None
        elif closed_since is None:
            closed_since = clock()
        if closed_since is not None:
            assert sum(sent_at > closed_since for sent_at in under_way) <= 1
