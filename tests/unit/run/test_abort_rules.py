"""When a run ends early: the rules that verdicts are held against."""

import pytest

from harvester.bitly.verdicts import (
    Answer,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    Refused,
    Throttled,
    TokenRefused,
    Transient,
    Unknown,
    Unreadable,
    Verdict,
)
from harvester.run.abort_rules import AbortRules, for_every_call
from harvester.shutdown import FailureLimit, Stop, StopReason

ROW = Answer([], 0, None, None)
NOT_FOUND = Refused(404, "NOT_FOUND")
NOT_YOURS = Refused(403, "FORBIDDEN")
NO_ROUTE = Refused(404, "404 page not found", no_route=True)
UNREADABLE = Unreadable(200, "not JSON", "<html>")
FAILED = Transient(503, "no message")
UNKNOWN = Unknown(418, "TEAPOT", "")


def seen(rules: AbortRules, *verdicts: Verdict) -> tuple[int, Stop] | None:
    """After how many of the verdicts the run should end, and why; None if it should go on."""
    for number, verdict in enumerate(verdicts, 1):
        if stop := rules.see(verdict):
            return number, stop
    return None


def reason_after(rules: AbortRules, *verdicts: Verdict) -> tuple[int, StopReason] | None:
    found = seen(rules, *verdicts)
    return (found[0], found[1].reason) if found else None


def first_rules(limit: FailureLimit | None = None) -> AbortRules:
    """The rules of a dataset that has no row yet."""
    return AbortRules(limit, first_rows=True)


# --- for every call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "reason", "advice"),
    [
        (MonthSpent(429, "MONTHLY_RATE_LIMIT_EXCEEDED"), StopReason.MONTH_SPENT, "month"),
        (TokenRefused(401, "UNAUTHORIZED"), StopReason.TOKEN_REFUSED, "--token-file"),
        (PlanRefused(402, "UPGRADE_REQUIRED"), StopReason.PLAN_REFUSED, "--facet"),
        (ParameterRefused(400, "INVALID_ARG_SIZE", "size"), StopReason.PARAMETER_REFUSED, "--size"),
        (
            ParameterRefused(400, "INVALID_ARG_UNIT_REFERENCE", "unit_reference"),
            StopReason.PARAMETER_REFUSED,
            "--unit-reference",
        ),
    ],
)
def test_what_every_call_would_get_stops_at_once_and_says_what_to_do(
    verdict: Verdict, reason: StopReason, advice: str
) -> None:
    for rules in (first_rules(), AbortRules(FailureLimit(share=1.0), first_rows=False)):
        found = seen(rules, ROW, verdict)
        assert found is not None
        assert (found[0], found[1].reason) == (2, reason)
        assert advice in found[1].message
        assert rules.failed == 0  # the call is left for the next run


@pytest.mark.parametrize(
    "verdict", [ROW, NOT_FOUND, NO_ROUTE, UNREADABLE, FAILED, UNKNOWN, Throttled(429, "RATE_LIMIT_EXCEEDED")]
)
def test_what_is_one_calls_own_does_not_stop_at_once(verdict: Verdict) -> None:
    assert for_every_call(verdict) is None


# --- all alike ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [NOT_FOUND, NOT_YOURS, Refused(410, "GONE")])
def test_the_first_50_calls_refused_alike_stop(verdict: Refused) -> None:
    assert reason_after(first_rules(), *[verdict] * 60) == (50, StopReason.ALL_REFUSED)


def test_the_first_50_calls_refused_for_whatever_reasons_stop() -> None:
    mixed: list[Verdict] = [NOT_YOURS, NOT_FOUND, Refused(410, "GONE"), NO_ROUTE]
    assert reason_after(first_rules(), *mixed * 20) == (50, StopReason.ALL_REFUSED)
    assert reason_after(first_rules(), NOT_YOURS, *[NOT_FOUND] * 500) == (50, StopReason.ALL_REFUSED)


def test_calls_that_failed_in_passing_do_not_hide_that_all_others_are_refused() -> None:
    mixed: list[Verdict] = [NOT_FOUND, UNKNOWN]
    assert reason_after(first_rules(), *mixed * 100) == (99, StopReason.ALL_REFUSED)


def test_one_row_in_between_clears_the_suspicion_for_good() -> None:
    assert reason_after(first_rules(), *[NOT_FOUND] * 49, ROW, *[NOT_FOUND] * 500) is None
    assert reason_after(first_rules(), ROW, *[NOT_FOUND] * 500) is None


def test_a_dataset_with_rows_has_shown_that_its_token_works() -> None:
    assert reason_after(AbortRules(None, first_rows=False), *[NOT_FOUND] * 500) is None


def test_a_dataset_with_rows_may_be_carried_on_at_a_wrong_base_url() -> None:
    assert reason_after(AbortRules(None, first_rows=False), *[NO_ROUTE] * 30) == (20, StopReason.NO_ROUTE)


def test_calls_that_failed_in_passing_are_not_refused_alike() -> None:
    assert reason_after(first_rules(), *[FAILED] * 500) is None
    assert reason_after(first_rules(), *[UNKNOWN] * 500) is None


def test_whoever_says_how_many_may_fail_is_believed() -> None:
    assert reason_after(first_rules(FailureLimit(share=1.0)), *[NOT_FOUND] * 500) is None


def test_a_wrong_base_url_is_nobodys_to_allow() -> None:
    assert reason_after(first_rules(FailureLimit(share=1.0)), *[NO_ROUTE] * 30) == (20, StopReason.NO_ROUTE)


def test_the_first_20_plain_404s_mean_a_wrong_base_url() -> None:
    found = seen(first_rules(), *[NO_ROUTE] * 30)
    assert found is not None
    assert (found[0], found[1].reason) == (20, StopReason.NO_ROUTE)
    assert "--base-url" in found[1].message


def test_plain_404s_that_name_their_path_mean_a_wrong_base_url_too() -> None:
    """Servers like to repeat the path: `Cannot GET /bitlinks/bit.ly/3/referrers`."""
    verdicts = [Refused(404, f"Cannot GET /bitlinks/bit.ly/{n}/referrers", no_route=True) for n in range(30)]
    assert reason_after(first_rules(), *verdicts) == (20, StopReason.NO_ROUTE)


def test_another_answer_among_the_first_means_that_the_route_exists() -> None:
    assert reason_after(first_rules(), ROW, *[NO_ROUTE] * 500) is None
    for other in (NOT_FOUND, FAILED):
        found = reason_after(first_rules(), other, *[NO_ROUTE] * 500)
        assert found is not None
        assert found[1] is StopReason.ALL_REFUSED


# --- too many failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "failed", "calls", "exceeded"),
    [
        (FailureLimit(count=25), 25, 25, False),
        (FailureLimit(count=25), 26, 26, True),
        (FailureLimit(count=0), 0, 1000, False),
        (FailureLimit(count=0), 1, 1, True),
        (FailureLimit(share=0.05), 99, 99, False),
        (FailureLimit(share=0.05), 5, 100, False),
        (FailureLimit(share=0.05), 6, 100, True),
        (FailureLimit(share=0.0), 1, 99, False),
        (FailureLimit(share=0.0), 1, 100, True),
        (FailureLimit(share=1.0), 1000, 1000, False),
        (FailureLimit(), 1000, 1000, False),
    ],
)
def test_a_limit_is_a_count_or_a_share_from_100_calls_on(
    limit: FailureLimit, failed: int, calls: int, exceeded: bool
) -> None:
    assert limit.exceeded(failed, calls) is exceeded


def test_refused_and_failed_calls_count_towards_the_limit() -> None:
    rules = first_rules(FailureLimit(count=3))
    found = seen(rules, NOT_FOUND, ROW, FAILED, UNKNOWN, UNREADABLE)
    assert found is not None
    assert (found[0], found[1].reason) == (5, StopReason.TOO_MANY_FAILURES)
    assert (rules.failed, rules.calls) == (4, 5)
    assert "4 of 5" in found[1].message


def test_a_share_is_of_the_calls_made_and_looked_at_from_the_hundredth_on() -> None:
    rules = first_rules(FailureLimit(share=0.05))
    assert reason_after(rules, *[NOT_FOUND] * 6, *[ROW] * 93) is None
    assert reason_after(rules, ROW) == (1, StopReason.TOO_MANY_FAILURES)


def test_without_a_limit_any_number_may_fail() -> None:
    assert reason_after(first_rules(), ROW, *[NOT_FOUND] * 500, *[FAILED] * 500, *[UNKNOWN] * 500) is None
