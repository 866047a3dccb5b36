"""Ten hosts with one budget, in virtual time over a month: never over, and nearly all of it used."""

from contextlib import closing
from datetime import UTC, datetime

import pytest

from harvester.budget.limits import RequestedLimits
from tests.support.redis_server import RedisProcess
from tests.support.simulated_fleet import SimulatedFleet

SHORT = RequestedLimits(10, 100, 400)
FULL = RequestedLimits(100, 1000, 25_000)


@pytest.mark.parametrize("limits", [SHORT, pytest.param(FULL, marks=pytest.mark.nightly)], ids=["short", "full"])
def test_ten_hosts_use_a_month_and_never_more(redis_server: RedisProcess, limits: RequestedLimits) -> None:
    begin, end = datetime(2026, 11, 30, 23, 30, tzinfo=UTC), datetime(2027, 1, 1, 0, 0, tzinfo=UTC)
    with closing(SimulatedFleet(redis_server.url, begin, limits)) as fleet:
        seen = fleet.run(end)
    assert seen.over == []
    assert seen.months["2026-12"] <= (limits.per_month or 0)
    assert seen.months["2026-12"] >= 0.98 * (limits.per_month or 0)
