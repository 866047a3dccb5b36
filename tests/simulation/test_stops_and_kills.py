"""Two processes on one budget that are stopped, killed and held up by their disk: no window holds one attempt more."""

from pathlib import Path

import pytest

from tests.support.stopped_processes import Storm


def seeds(short: int, nightly: int) -> pytest.MarkDecorator:
    """Run a storm with some seeds, and nightly with many."""
    many = [pytest.param(seed, marks=pytest.mark.nightly) for seed in range(short, nightly)]
    return pytest.mark.parametrize("seed", [*range(short), *many])


@seeds(4, 200)
@pytest.mark.parametrize(
    ("stops", "kills", "slow_disk"), [(0.0, 0.0, 0.2), (0.02, 0.0, 0.0), (0.01, 0.01, 0.05)], ids=str
)
def test_a_storm_of_stops_and_kills_sends_no_attempt_beyond_the_window(
    quick_path: Path, seed: int, stops: float, kills: float, slow_disk: float
) -> None:
    storm = Storm(quick_path, seed, stops=stops, kills=kills, slow_disk=slow_disk)
    most = storm.run(processes=2, seconds=1200.0)
    assert 20 <= most <= storm.limit
