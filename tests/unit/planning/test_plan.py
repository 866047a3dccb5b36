"""The limits of facets that go side by side, as those of one."""

import pytest

from harvester.budget.limits import Limits
from harvester.planning.plan import Endpoint, together


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
