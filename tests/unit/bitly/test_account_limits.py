"""Limits that Bitly reports: which of a plan's is the month of API requests."""

import pytest

from harvester.bitly.account_limits import PlanLimit, api_month


@pytest.mark.parametrize(
    ("name", "description", "limit", "found"),
    [
        ("api_requests", "", 5000, True),
        ("requests", "API calls per month", 5000, True),
        ("apiary", "bees", 5000, False),
        ("links", "Links a month", 5000, False),
        ("api_requests", "", 0, False),
    ],
)
def test_the_months_api_requests_are_recognised_by_their_name(
    name: str, description: str, limit: int, found: bool
) -> None:
    limits = [PlanLimit("qr_codes", "QR codes", 7, 0), PlanLimit(name, description, limit, 1)]
    assert api_month(limits) == (limits[1] if found else None)
