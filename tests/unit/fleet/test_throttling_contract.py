"""What a throttled response does on one machine it does in Redis: the same tests, with the budget there."""

# ruff: noqa: F401, F811 - pytest collects what is imported
from collections.abc import Iterator

import pytest

from tests.support.fleets import starting_in_redis
from tests.support.redis_server import RedisProcess
from tests.unit.budget.test_budget import Machine, Start
from tests.unit.budget.test_throttling import (
    Still,
    machine,
    test_a_full_hour_is_to_blame_before_a_minute_with_room_however_short_the_wait,
    test_a_hint_is_followed_up_to_an_hour,
    test_a_hint_of_more_than_two_minutes_means_the_hour,
    test_a_hint_that_is_a_date_is_understood_by_the_calendar_and_not_by_a_wrong_wall_clock,
    test_a_hint_that_was_twice_too_short_is_not_believed_any_more,
    test_a_late_good_answer_of_an_attempt_already_under_way_opens_nothing,
    test_a_minute_that_holds_one_is_not_to_blame_any_more,
    test_a_probe_is_counted_and_must_find_room_in_the_windows,
    test_a_probe_that_is_lost_with_its_process_is_replaced_by_one_other,
    test_a_probe_that_is_throttled_closes_again,
    test_a_probes_success_opens_for_all_processes_and_begins_the_waits_anew,
    test_a_second_one_confirms_it_unless_more_than_twice_as_many_have_passed_since,
    test_a_throttled_answer_just_below_the_limit_needs_no_second_one,
    test_a_throttled_answer_whose_probe_passes_teaches_nothing_by_itself,
    test_a_window_is_lowered_to_a_tenth_of_a_minute_or_a_quarter_of_an_hour_at_the_most,
    test_a_window_that_was_lowered_before_is_at_most_halved,
    test_an_answer_while_it_is_open_changes_nothing,
    test_an_early_probe_that_passes_teaches_nothing_and_where_a_limit_was_learned_there_is_none,
    test_an_hour_without_a_limit_is_not_lowered_below_what_a_minute_may_hold,
    test_else_it_is_the_hour_that_does,
    test_exactly_one_probe_of_all_processes_goes_when_the_time_is_over,
    test_if_a_probe_passes_within_two_strikes_the_minute_holds_what_last_passed,
    test_if_bitly_says_that_its_hour_has_room_a_window_is_lowered,
    test_if_bitly_says_that_its_hour_is_full_nothing_is_lowered,
    test_late_throttled_answers_had_not_passed,
    test_late_throttled_answers_of_attempts_already_under_way_say_nothing_new,
    test_one_throttled_answer_closes_for_all_processes,
    test_other_endpoints_and_tokens_stay_open,
    test_that_the_hour_was_full_is_said_of_one_throttled_answer_only,
    test_that_the_minute_was_reopened_says_nothing_of_what_passed_in_the_hour,
    test_the_answer_of_a_probe_that_was_given_up_for_lost_opens_all_the_same,
    test_throttled_again_and_again_it_waits_longer_but_not_past_the_hours_edge,
    test_what_passed_since_a_probe_reopened_a_window_is_what_counts_and_the_probe_with_it,
    test_what_was_learned_outlives_process_and_boot,
    test_where_there_was_no_limit_there_is_one_now,
    test_who_asked_for_more_than_bitlys_hour_learns_that_it_is_full,
    test_without_a_hint_an_early_probe_says_whether_it_is_closed_until_the_minutes_edge,
)


@pytest.fixture
def start(redis_server: RedisProcess, machine: Machine) -> Iterator[Start]:
    with starting_in_redis(redis_server.url, machine, Still()) as start:
        yield start
