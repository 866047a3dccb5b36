"""Limits in words: the option that sets a month, and what a person is told of one that is spent."""

from datetime import UTC, datetime

import pytest

from harvester.budget.limits import MonthExhausted, option_for

NEXT = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("per_month", "option"),
    [(1000, "--plan free"), (50_000, "--plan premium"), (999, "--per-month 999"), (0, "--per-month 0")],
)
def test_a_months_limit_is_set_by_the_plans_name_where_there_is_one(per_month: int, option: str) -> None:
    assert option_for(per_month) == option


@pytest.mark.parametrize(
    ("plan", "ending"),
    [
        (None, "if your plan has more, set --plan or --per-month (`harvester plan` asks Bitly)"),
        (1000, "if your plan has more, set --plan or --per-month (`harvester plan` asks Bitly)"),
        (5000, "Bitly reports 5,000 a month for its plan: use --plan core"),
        (1001, "Bitly reports 1,001 a month for its plan: use --per-month 1001"),
    ],
)
def test_a_spent_month_names_the_option_that_allows_more(plan: int | None, ending: str) -> None:
    told = MonthExhausted(NEXT).describe("acme", 1000, plan)
    assert told == f"account acme has used its 1,000 calls for this month; {ending}"


def test_a_month_that_bitly_reports_as_spent_is_told_by_its_word() -> None:
    told = MonthExhausted(NEXT, reported=True).describe("acme", 1000, 5000)
    assert told.startswith("Bitly reported that account acme has no calls left this month")
