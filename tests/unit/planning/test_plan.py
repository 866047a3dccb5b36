"""The limits of facets that go side by side, as those of one; what exports may save; and what --refresh comes to."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from harvester.budget.forecast import Start
from harvester.budget.limits import Limits
from harvester.planning.plan import Endpoint, PlannedExports, exports_for, together
from harvester.planning.planner import _attempts_for, _refresh_plan
from harvester.worklist.list_count import ListCount
from harvester.worklist.refresh import RequestedRefresh


@pytest.mark.parametrize(
    ("attempts", "limits", "per_minute", "per_hour"),
    [
        ([300], [(100, 1000)], 100, 1000),
        ([300, 300, 300], [(100, 1000)] * 3, 300, 3000),
        ([300, 300], [(100, 1000), (200, 4000)], 200, 2000),  # the slower one decides
        ([300, 100], [(100, 1000), (100, 1000)], 133, 1333),  # the one with most to do decides
        ([300, 300], [(0, 0), (100, 1000)], 200, 2000),
        ([300, 300], [(0, 0), (0, 0)], 0, 0),
        ([0, 0], [(100, 1000), (100, 1000)], 200, 2000),
        ([0, 300], [(100, 1000), (100, 1000)], 100, 1000),
        ([1, 1], [(1, 1), (1000, 1000)], 2, 2),
    ],
    ids=str,
)
def test_facets_side_by_side_take_as_long_as_the_slowest(
    attempts: list[int], limits: list[tuple[int, int]], per_minute: int, per_hour: int
) -> None:
    endpoints = {str(n): Endpoint(Limits(*each, 5000), []) for n, each in enumerate(limits)}
    asked = {str(n): each for n, each in enumerate(attempts)}
    assert together(asked, endpoints) == Limits(per_minute, per_hour, 5000)


def test_links_that_have_clicks_need_no_export_and_are_asked_for_whatever_the_others_have() -> None:
    assert exports_for(401, 500, 99, None) == PlannedExports(3, 102, 503, None)
    assert exports_for(401, 500, 99, 0.1) == PlannedExports(3, 102, 503, 3 + 99 + 41)
    assert exports_for(0, 99, 99, 0.1) == PlannedExports(0, 99, 99, 99)


@pytest.mark.parametrize(
    ("rows", "idle", "clicked", "calls", "found"),
    [
        (0, 0, 0, 1000, PlannedExports(5, 5, 1005, None)),
        (1802, 1800, 200, 2000, PlannedExports(10, 10 + 198, 2010, 10 + 198 + 181)),  # two of 200 have had their call
        (2000, 1800, 200, 1000, PlannedExports(5, 5, 1005, 5 + 100)),
        (2000, 1000, 0, 1000, PlannedExports(5, 5, 1005, 5 + 500)),  # no export was believed for those with a call
        (1800, 1800, 200, 150, PlannedExports(0, 150, 150, 150)),  # the list is shorter now
    ],
    ids=["new", "before the calls", "after them", "without exports", "shorter list"],
)
def test_a_plan_takes_its_share_of_idle_links_from_the_exports_and_not_from_the_rows(
    rows: int, idle: int, clicked: int, calls: int, found: PlannedExports
) -> None:
    job: Any = SimpleNamespace(max_calls=None, skip_idle=True)
    snapshot: Any = SimpleNamespace(calls=rows, idle=idle)
    expected = found.most if found.expected is None else found.expected
    assert _attempts_for(job, calls, 1.0, snapshot, clicked) == (found.least, expected, found)


@pytest.mark.parametrize(
    ("active", "never", "requests", "kept"),
    [(None, 20_000, 200_000, False), (0.1, 2_100, 21_000, True), (1.0, 20_100, 201_000, False)],
    ids=["a call for each", "one in ten is active", "all are active"],
)
def test_with_exports_a_month_covers_more_links(active: float | None, never: int, requests: int, kept: bool) -> None:
    limits, found = Limits(0, 0, 25_000), ListCount(links=200_000, never=20_000)
    start = Start(datetime(2026, 11, 1, tzinfo=UTC), month_left=25_000, connections=5)
    job: Any = SimpleNamespace(refresh=RequestedRefresh(30 * 86_400.0, prefer_active=True))
    plan = _refresh_plan(job, found, 1.0, active, limits, start)
    assert plan is not None
    assert (plan.never, plan.steady.requests, plan.steady.kept) == (never, requests, kept)
    assert plan.idle_days == 90
