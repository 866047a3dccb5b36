"""How well are Bitly's limits used, and how often passed? Harvests of weeks in virtual time, against a simulated Bitly.

usage: python -m benchmarks.quota [--weeks 6] [--folder /dev/shm]

The harvests are those of tests/simulation/test_six_weeks.py: the real connection slots, client, circuit breaker and
budget. Also prints what counting an attempt costs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import said
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, RequestedLimits
from harvester.budget.machine import MachineBudget
from tests.support.simulated_bitly import World
from tests.support.simulated_weeks import Weeks
from tests.support.virtual_time import THREADED, at_once

NO_MONTH = 0
HOURS_A_WEEK = 168
TAKES = 5000


class Case(NamedTuple):
    """A harvest. used: what came of what is allowed, where that is promised; least: the promise."""

    name: str
    weeks: Callable[[Path], Weeks]
    used: Callable[[Weeks], float] | None = None
    least: float = 0.0
    most_throttled: float = 0.01


def _hour(folder: Path) -> Weeks:
    return Weeks(folder, World(), RequestedLimits(per_month=NO_MONTH), 50_000)


def _minute(folder: Path) -> Weeks:
    world, wanted = World(per_hour=0), RequestedLimits(per_minute=100, per_hour=0, per_month=NO_MONTH)
    return Weeks(folder, world, wanted, 20_000, promised=(100, 0))


def _unknown(per_minute: int, per_hour: int) -> Callable[[Path], Weeks]:
    world = World(per_minute=per_minute, per_hour=per_hour, tells=False)
    return lambda folder: Weeks(folder, world, RequestedLimits(per_month=NO_MONTH), 10_000)


def _shared(folder: Path) -> Weeks:
    world = World(others_per_hour=300, others_busy=lambda seconds: seconds // 3600 % 3 == 0)
    return Weeks(folder, world, RequestedLimits(per_month=NO_MONTH), 30_000, seed=2)


def _outage(folder: Path) -> Weeks:
    world = World(per_hour=0, outages=[(1500.0, 2100.0)], errors=0.0)
    return Weeks(folder, world, RequestedLimits(per_hour=0, per_month=NO_MONTH), 5_000, promised=(100, 0))


def cases() -> list[Case]:
    """Give the harvests whose figures are promised."""
    return [
        Case("1,000 an hour", _hour, lambda weeks: weeks.bitly.utilisation(1000, 3600.0), 0.995),
        Case("100 a minute", _minute, lambda weeks: weeks.bitly.utilisation(100, 60.0), 0.985),
        Case("unknown: 10 a minute", _unknown(10, 0)),
        Case("unknown: 50 a minute", _unknown(50, 0)),
        Case("unknown: 600 an hour", _unknown(0, 600)),
        Case("1,000 an hour with others", _shared, Weeks.shared_utilisation, 0.99),
        Case("ten minutes out", _outage),
    ]


def six_weeks(weeks: int) -> Case:
    """Give the long one: 1,000 an hour, with others on the token, outages and months' ends."""
    from tests.simulation.test_six_weeks import shared_world  # noqa: PLC0415 - it imports pytest

    def made(folder: Path) -> Weeks:
        return Weeks(folder, shared_world(), RequestedLimits(per_month=400_000), weeks * HOURS_A_WEEK * 1000)

    return Case(f"{weeks} weeks", made, Weeks.shared_utilisation, 0.98)


def measure(case: Case, folder: Path) -> bool:
    """Run a harvest and print its figures; True when its promises hold."""
    with tempfile.TemporaryDirectory(prefix="harvester-quota-", dir=folder) as place:
        weeks = case.weeks(Path(place))
        outcome = weeks.run()
    used = case.used(weeks) if case.used else None
    weeks.report(case.name, used)
    bitly = weeks.bitly
    held = (used or 1.0) >= case.least and bitly.throttled <= case.most_throttled * bitly.attempts
    held = held and outcome.status.failed == 0 and bitly.attempts_while_out < 60 * max(len(weeks.world.outages), 1)
    print(
        f"  calls while the server was out: {bitly.attempts_while_out:,}; {said(holds=held)}",
        flush=True,
    )
    return held


def take_cost(folder: Path, wanted: RequestedLimits) -> float:
    """Give the µs of CPU that counting an attempt takes, without the disk's part."""
    with (
        tempfile.TemporaryDirectory(prefix="harvester-quota-", dir=folder) as place,
        closing(BudgetDatabase(f"{place}/budget.sqlite")) as book,
    ):
        book.sync_each_commit(False)
        budget = MachineBudget(book, Account("bitly:443", "token", "account"), "endpoint", wanted)
        began = time.process_time()
        for _ in range(TAKES):
            assert budget.try_acquire() is None
        return (time.process_time() - began) / TAKES * 1e6


def main() -> int:
    """Measure; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="Utilisation and throttled share of harvests in virtual time.")
    parser.add_argument("--weeks", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where lists and budgets lie meanwhile")
    options = parser.parse_args()
    for module in THREADED:
        vars(module)["in_daemon"] = at_once
    for name, wanted in (("with limits", RequestedLimits(10**6, 10**8, 10**9)), ("without", RequestedLimits(0, 0, 0))):
        print(f"counting an attempt {name}: {take_cost(options.folder, wanted):.1f} µs of CPU")
    held = [measure(case, options.folder) for case in [*cases(), six_weeks(options.weeks)]]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
