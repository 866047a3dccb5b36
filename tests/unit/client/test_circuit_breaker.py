"""The circuit breaker: nothing is sent while the server is out, but for one probe at a time."""

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


def breaker_at(clock: Ticking, streak: int = RULES.streak) -> CircuitBreaker:
    """A breaker without jitter."""
    return CircuitBreaker(BreakerRules(streak=streak, jitter=0.0), clock, random.Random(1))


def fail(breaker: CircuitBreaker, clock: Ticking, times: int, *, evidence: bool = True) -> None:
    """So many transient failures, of first attempts if they are evidence, a second each."""
    for _ in range(times):
        clock.seconds += 1.0
        breaker.record_failure(sent_at=clock() - 0.5, evidence=evidence)


def answer(breaker: CircuitBreaker, clock: Ticking, times: int) -> None:
    """So many first attempts that are answered, a second each."""
    for _ in range(times):
        clock.seconds += 1.0
        breaker.record_success(evidence=True)


def out(clock: Ticking) -> CircuitBreaker:
    """A breaker that an outage has opened."""
    breaker = breaker_at(clock)
    fail(breaker, clock, ENOUGH)
    assert breaker.is_open
    return breaker


def seconds_open(breaker: CircuitBreaker) -> float:
    refused = breaker.enter()
    assert refused is not None
    return refused.seconds


def probe(breaker: CircuitBreaker, clock: Ticking) -> float:
    """Wait until the breaker is half-open and send the probe; return when it was sent."""
    refused = breaker.wait_before_sending()
    clock.seconds += refused.seconds if refused else 0.0
    assert breaker.enter() is None
    return clock()


def fail_probe(breaker: CircuitBreaker, clock: Ticking) -> None:
    breaker.record_failure(sent_at=probe(breaker, clock), evidence=True)


# --- when an outage begins --------------------------------------------------------------------------------------------


def test_a_closed_breaker_lets_everyone_through() -> None:
    breaker = breaker_at(Ticking())
    assert [breaker.wait_before_sending(may_probe=fresh) for fresh in (True, False)] == [None] * 2
    assert [breaker.enter(may_probe=fresh) for fresh in (True, False)] == [None] * 2


@pytest.mark.parametrize(("times", "outage"), [(1, False), (17, False), (18, True), (25, True)])
def test_an_outage_is_18_calls_of_20_that_fail_at_their_first_attempt(times: int, outage: bool) -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    fail(breaker, clock, times)
    assert breaker.is_open is outage
    assert (breaker.enter() is None) is not outage


def test_two_answers_among_twenty_do_not_make_it_another_thing_than_an_outage() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    for _ in range(2):
        fail(breaker, clock, 8)
        answer(breaker, clock, 1)
    fail(breaker, clock, 1)
    assert not breaker.is_open
    fail(breaker, clock, 1)
    assert breaker.is_open


def test_three_answers_among_each_twenty_do() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    for _ in range(50):
        fail(breaker, clock, 5)
        answer(breaker, clock, 1)
    assert not breaker.is_open


def test_repeats_say_nothing_of_the_server_whether_they_fail_or_are_answered() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    for _ in range(17):
        fail(breaker, clock, 1)
        fail(breaker, clock, 5, evidence=False)
        breaker.record_success()
    assert not breaker.is_open
    fail(breaker, clock, 1)
    assert breaker.is_open


def test_failures_of_calls_that_have_failed_before_are_no_outage() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    fail(breaker, clock, 200, evidence=False)
    assert not breaker.is_open
    assert breaker.enter() is None


# --- probes -----------------------------------------------------------------------------------------------------------


def test_an_outages_probes_go_after_5_seconds_and_then_rarer_down_to_one_a_minute() -> None:
    clock = Ticking()
    breaker = out(clock)
    waits = []
    for _ in range(7):
        waits.append(seconds_open(breaker))
        fail_probe(breaker, clock)
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0])


def test_a_breaker_that_is_open_for_weeks_still_knows_how_long_to_wait() -> None:
    clock = Ticking()
    breaker = CircuitBreaker(BreakerRules(jitter=0.0, limit_seconds=30 * 86400.0), clock, random.Random(1))
    fail(breaker, clock, ENOUGH)
    for _ in range(1100):
        fail_probe(breaker, clock)
    assert seconds_open(breaker) == pytest.approx(60.0)


def test_a_wait_is_lengthened_by_the_jitter_and_never_shortened() -> None:
    waits = []
    for seed in range(50):
        clock = Ticking()
        breaker = CircuitBreaker(BreakerRules(), clock, random.Random(seed))
        fail(breaker, clock, ENOUGH)
        waits.append(seconds_open(breaker))
    assert all(5.0 <= wait <= 5.5 for wait in waits)
    assert len(set(waits)) > 40


def test_an_open_breaker_says_how_long_it_is_still_open_and_why() -> None:
    clock = Ticking()
    breaker = out(clock)
    clock.seconds += 3.0
    assert breaker.wait_before_sending() == breaker.enter() == RetryAfter(2.0, OUTAGE)


def test_late_failures_of_attempts_already_under_way_do_not_make_the_probes_rarer() -> None:
    clock = Ticking()
    breaker = out(clock)
    opens = clock() + seconds_open(breaker)
    for _ in range(4):
        breaker.record_failure(sent_at=clock() - 10.0, evidence=True)
    assert clock() + seconds_open(breaker) == pytest.approx(opens)
    assert breaker.probes_failed == 0


def test_one_fresh_call_probes_and_no_call_that_has_failed_before() -> None:
    clock = Ticking()
    breaker = out(clock)
    clock.seconds += 5.0
    assert breaker.enter(may_probe=False) == RetryAfter(RULES.poll_seconds, OUTAGE)
    assert breaker.enter(may_probe=True) is None
    assert breaker.enter(may_probe=True) == RetryAfter(RULES.poll_seconds, OUTAGE)


def test_to_look_whether_the_breaker_is_open_sends_no_probe() -> None:
    clock = Ticking()
    breaker = out(clock)
    clock.seconds += 5.0
    assert breaker.wait_before_sending() is None
    assert breaker.enter() is None
    assert breaker.wait_before_sending() == RetryAfter(RULES.poll_seconds, OUTAGE)


def test_a_probe_that_was_not_sent_after_all_lets_another_go() -> None:
    clock = Ticking()
    breaker = out(clock)
    sent_at = probe(breaker, clock)
    assert breaker.enter() is not None
    breaker.leave(sent_at=sent_at)
    assert breaker.enter() is None
    assert breaker.enter() is not None


def test_an_attempt_from_before_the_breaker_opened_does_not_free_the_probe() -> None:
    clock = Ticking()
    breaker = out(clock)
    probe(breaker, clock)
    breaker.leave(sent_at=clock() - 10.0)
    assert breaker.enter() is not None


def test_to_leave_a_closed_breaker_changes_nothing() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    breaker.leave(sent_at=clock())
    assert not breaker.is_open


def test_an_answer_to_any_attempt_ends_the_outage() -> None:
    clock = Ticking()
    breaker = out(clock)
    probe(breaker, clock)
    breaker.record_success()
    assert not breaker.is_open
    assert [breaker.enter(may_probe=fresh) for fresh in (True, False, True)] == [None] * 3


def test_an_outage_that_is_not_over_opens_it_again_with_the_next_failure() -> None:
    clock = Ticking()
    breaker = out(clock)
    probe(breaker, clock)
    breaker.record_success(evidence=True)
    fail(breaker, clock, 1)
    assert breaker.is_open


def test_the_next_outages_probes_begin_with_the_short_wait_again() -> None:
    clock = Ticking()
    breaker = out(clock)
    for _ in range(3):
        fail_probe(breaker, clock)
    breaker.record_success(evidence=True)
    fail(breaker, clock, 1)
    assert seconds_open(breaker) == pytest.approx(5.0)


# --- how long ---------------------------------------------------------------------------------------------------------


def test_an_outage_of_more_than_15_minutes_is_over_the_limit_until_an_answer() -> None:
    clock = Ticking()
    breaker = out(clock)
    began = clock()
    while clock() - began < 840:
        fail_probe(breaker, clock)
    clock.seconds = began + 2000.0
    assert not breaker.over_limit  # whoever waits for the hour's window learns nothing of the server
    fail_probe(breaker, clock)
    assert breaker.over_limit
    breaker.record_success(evidence=True)
    assert not breaker.over_limit


@pytest.mark.parametrize(("calm", "over"), [(299.0, True), (301.0, False)])
def test_an_outage_that_comes_back_within_five_minutes_is_the_same(calm: float, over: bool) -> None:
    clock = Ticking()
    breaker = out(clock)
    clock.seconds += 890.0
    breaker.record_success(evidence=True)
    clock.seconds += calm - 1.0
    fail(breaker, clock, 1)
    assert breaker.is_open
    assert breaker.over_limit is over


@pytest.mark.parametrize("limit", [3.0, 5.0, 10.0, 20.0, 60.0, 200.0])
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_an_outage_is_over_the_limit_at_the_limit(limit: float, jitter: float) -> None:
    clock = Ticking()
    breaker = CircuitBreaker(BreakerRules(limit_seconds=limit, jitter=jitter), clock, random.Random(1))
    fail(breaker, clock, ENOUGH)
    began = clock()
    while not breaker.over_limit:
        fail_probe(breaker, clock)
    assert clock() - began == pytest.approx(limit)
    assert breaker.wait_before_sending(may_probe=False) == RetryAfter(0.0, OUTAGE)  # and nobody waits any longer


def test_time_without_an_outage_is_never_over_the_limit() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    fail(breaker, clock, 17)
    clock.seconds += 10_000
    assert not breaker.over_limit


# --- known-good links: whose fault is it? -----------------------------------------------------------------------------


def test_every_third_probe_should_be_a_link_that_answered_before() -> None:
    clock = Ticking()
    breaker = out(clock)
    wanted = []
    for _ in range(7):
        wanted.append(breaker.wants_known_good)
        fail_probe(breaker, clock)
    assert wanted == [False, False, True, False, False, True, False]


def test_a_closed_breaker_wants_no_known_good_link() -> None:
    assert not breaker_at(Ticking()).wants_known_good


def test_a_suspicion_opens_it_at_once_for_a_known_good_link_that_may_go_at_once() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    breaker.suspect()
    assert breaker.is_open
    assert breaker.wants_known_good
    assert breaker.enter(may_probe=True) is None
    assert breaker.enter(may_probe=True) is not None


def test_a_suspicion_that_the_known_good_link_dispels_is_over() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    breaker.suspect()
    probe(breaker, clock)
    breaker.record_success(known_good=True)
    assert not breaker.is_open
    assert not breaker.wants_known_good
    assert breaker.probes_failed == 0


def test_where_a_few_were_answered_of_late_and_most_not_it_takes_two_known_good_links() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    fail(breaker, clock, 4)
    answer(breaker, clock, 1)
    breaker.suspect()
    probe(breaker, clock)
    breaker.record_success(known_good=True)
    assert breaker.is_open
    assert breaker.wants_known_good
    probe(breaker, clock)
    breaker.record_success(known_good=True)
    assert not breaker.is_open


def test_a_suspicion_whose_known_good_link_fails_is_an_outage_whose_probes_go_after_5_seconds() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    breaker.suspect()
    fail_probe(breaker, clock)
    assert breaker.is_open
    assert breaker.probes_failed == 1
    assert not breaker.wants_known_good
    assert seconds_open(breaker) == pytest.approx(5.0)


def test_a_doubt_in_an_outage_changes_nothing() -> None:
    clock = Ticking()
    breaker = out(clock)
    breaker.suspect()
    assert not breaker.wants_known_good
    assert seconds_open(breaker) == pytest.approx(5.0)


def test_an_outage_that_a_known_good_link_ended_was_the_links_fault_and_the_next_takes_twice_as_many() -> None:
    clock = Ticking()
    breaker = out(clock)
    probe(breaker, clock)
    breaker.record_success(known_good=True)
    fail(breaker, clock, 2 * ENOUGH - 1)
    assert not breaker.is_open
    fail(breaker, clock, 1)
    assert breaker.is_open


def test_a_fresh_answer_makes_18_of_20_enough_again() -> None:
    clock = Ticking()
    breaker = out(clock)
    probe(breaker, clock)
    breaker.record_success(known_good=True)
    answer(breaker, clock, 1)
    fail(breaker, clock, ENOUGH)
    assert breaker.is_open


def test_a_known_good_link_outside_of_an_outage_changes_nothing() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    breaker.record_success(known_good=True)
    fail(breaker, clock, ENOUGH)
    assert breaker.is_open


def test_a_call_is_to_blame_if_most_others_were_answered_and_one_since_it_first_failed() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    failed_at = clock()
    answer(breaker, clock, 4)
    assert not breaker.blames(failed_at)  # four say too little
    answer(breaker, clock, 1)
    assert breaker.blames(failed_at)
    assert not breaker.blames(clock())
    fail(breaker, clock, 6)
    assert not breaker.blames(failed_at)


def test_a_call_is_to_blame_for_a_minute_after_a_known_good_link_was_answered_that_ended_an_outage() -> None:
    clock = Ticking()
    breaker = out(clock)
    probe(breaker, clock)
    breaker.record_success(known_good=True)
    clock.seconds += 59.9
    assert breaker.blames(clock())
    clock.seconds += 0.1
    assert not breaker.blames(clock())


def test_a_throttled_answer_closes_the_breaker() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    fail(breaker, clock, ENOUGH)
    assert breaker.is_open
    breaker.throttled()
    assert not breaker.is_open
    assert breaker.enter() is None


def test_a_throttled_answer_is_no_word_that_others_were_answered() -> None:
    clock = Ticking()
    breaker = breaker_at(clock)
    answer(breaker, clock, 20)
    failed_at = clock()
    breaker.throttled()
    assert not breaker.blames(failed_at)
    fail(breaker, clock, ENOUGH)
    breaker.throttled()
    fail(breaker, clock, 1)
    assert breaker.is_open  # what failed before is not forgotten


def test_the_gate_knows_whether_anybody_was_ever_answered() -> None:
    breaker = breaker_at(Ticking())
    assert not breaker.ever_answered
    breaker.record_success()
    assert breaker.ever_answered


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
def test_an_open_breaker_has_one_probe_under_way_at_most_whatever(
    events: list[tuple[str, float, bool]],
) -> None:
    """A model: attempts that entered and were not answered; only the probe may have entered an open breaker."""
    clock = Ticking()
    breaker = breaker_at(clock, streak=6)
    under_way: list[float] = []
    open_since: float | None = None
    for event, seconds, flag in events:
        clock.seconds += seconds if event == "pass" else 0.001
        if event == "enter" and breaker.enter(may_probe=flag) is None:
            under_way.append(clock())
        elif event == "doubt":
            breaker.suspect()
        elif event in {"answered", "transient", "leave"} and under_way:
            sent_at = under_way.pop(0 if flag else -1)
            if event == "answered":
                breaker.record_success(
                    evidence=flag, known_good=breaker.wants_known_good and sent_at > (open_since or 0.0)
                )
            elif event == "transient":
                breaker.record_failure(sent_at=sent_at, evidence=flag)
            else:
                breaker.leave(sent_at=sent_at)
        if not breaker.is_open:
            open_since = None
        elif open_since is None:
            open_since = clock()
        if open_since is not None:
            assert sum(sent_at > open_since for sent_at in under_way) <= 1
