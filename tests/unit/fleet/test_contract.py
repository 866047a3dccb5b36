"""What a budget guarantees on one machine holds in Redis: the same tests, with the budget there.

A fixture of the same name gives them budgets in Redis instead of a file's. Left out are those of the file itself, and
of a machine's clocks: what counts here is Redis' clock alone.
"""

# ruff: noqa: F401, F811 - pytest collects what is imported
from collections.abc import Iterator
from datetime import datetime
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fleets import starting_in_redis
from tests.support.redis_server import RedisProcess
from tests.unit.budget.test_budget import (
    BEGINNINGS,
    EVENTS,
    LIMITS,
    Machine,
    machine,
    play,
    test_a_count_that_makes_no_sense_shows_no_others_and_the_limit_is_kept,
    test_a_lower_limit_counts_what_was_sent_under_the_higher,
    test_a_month_is_an_accounts_over_all_endpoints_and_tokens,
    test_a_month_without_windows_is_given_out_to_the_last_attempt,
    test_a_refused_attempt_counts_nowhere,
    test_a_report_that_the_month_is_spent_holds_until_bitlys_next_month,
    test_a_runs_beginning_is_a_reason_to_ask_bitly_but_not_twice_in_300_seconds,
    test_a_second_or_two_are_no_reason_to_set_the_calendar,
    test_a_spent_month_comes_before_a_full_window,
    test_a_spent_month_says_when_the_next_begins_and_then_counts_from_zero,
    test_after_a_day_one_attempt_asks_whether_the_month_is_still_spent,
    test_after_a_throttled_answer_bitly_is_asked_again_without_the_100_attempts,
    test_after_december_comes_january,
    test_an_account_that_is_given_a_name_later_has_not_spent_less,
    test_an_answer_shows_that_bitlys_month_is_not_spent_any_more,
    test_an_attempt_of_a_token_that_was_rotated_since_is_given_back_to_that_token,
    test_an_attempt_that_never_left_counts_nowhere_whoever_has_counted_since,
    test_an_attempt_that_went_late_again_moves_again,
    test_an_attempt_that_went_late_holds_its_place_from_then_on,
    test_an_attempt_that_went_late_into_a_month_that_is_spent_is_not_sent,
    test_an_attempt_whose_place_others_may_have_taken_is_not_sent,
    test_an_attempt_within_5_seconds_of_a_months_edge_counts_on_both_sides,
    test_another_account_is_not_spent_because_this_is,
    test_at_an_edge_with_both_months_spent_it_is_the_later_that_is_over,
    test_attempts_leave_the_hours_window_by_the_minute,
    test_attempts_that_went_late_together_are_each_counted_once,
    test_attempts_that_were_counted_at_once_go_at_once_or_not_at_all,
    test_attempts_under_way_are_not_taken_for_others,
    test_bitly_is_asked_again_after_300_seconds_and_100_attempts,
    test_bitly_is_not_asked_where_its_word_would_change_nothing,
    test_endpoints_and_tokens_have_windows_of_their_own,
    test_if_bitly_does_not_tell_it_is_not_asked_for_a_day,
    test_if_the_question_did_not_reach_bitly_it_is_asked_again_after_300_seconds,
    test_near_its_edge_a_spent_month_costs_seconds_and_is_not_over,
    test_one_process_asks_bitly_for_all,
    test_others_use_counts_in_our_windows,
    test_room_says_how_many_may_go_at_once,
    test_the_attempt_of_the_day_that_was_not_sent_is_made_up_for,
    test_the_longer_wait_is_given_with_its_windows_name_and_limit,
    test_the_moment_of_a_wait_is_the_calendars,
    test_the_next_month_is_not_spent_because_bitly_said_so_of_this,
    test_what_bitly_reports_of_a_plan_is_known_to_all_processes_for_a_day,
    test_what_was_counted_and_not_sent_is_given_back_to_windows_too,
    test_when_bitly_says_that_the_month_is_spent_nobody_asks_again_for_a_day,
    test_when_bitlys_count_begins_anew_so_does_ours,
    test_where_limits_are_far_many_attempts_are_counted_at_once,
    test_while_a_throttled_answer_holds_bitly_is_asked_once_after_60_seconds,
    test_whoever_waits_as_long_as_told_gets_through_and_no_later_than_need_be,
    test_windows_tell_of_a_month_that_bitly_calls_spent,
    test_windows_tell_what_each_holds_and_until_when,
    test_windows_tell_where_their_limits_come_from,
    test_with_another_token_other_windows_count_and_the_same_month,
    test_zero_means_no_limit_and_every_attempt_is_counted,
)
from tests.unit.budget.test_budget import Start as StartOfFile


@pytest.fixture
def start(redis_server: RedisProcess, machine: Machine) -> Iterator[StartOfFile]:
    with starting_in_redis(redis_server.url, machine) as start:
        yield start


@pytest.mark.parametrize("examples", [4, pytest.param(1500, marks=pytest.mark.nightly)])
def test_no_window_and_no_month_ever_holds_more_than_its_limit_whatever_happens(
    redis_server: RedisProcess, examples: int
) -> None:
    """Hosts, crashes, reboots, steps of their wall clocks, slow connections and answers, throttling, other limits."""

    def check(
        begin: datetime, limits: tuple[int | None, int | None, int], events: list[tuple[str, dict[str, object]]]
    ) -> None:
        play(begin, limits, events, partial(starting_in_redis, redis_server.url))

    searched = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    searched(given(st.sampled_from(BEGINNINGS), LIMITS, EVENTS)(check))()
