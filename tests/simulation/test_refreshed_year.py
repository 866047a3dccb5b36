"""A list larger than the month, refreshed day after day, in virtual time: whose turn it is, and how old answers become.

The year is marked nightly; the short form has the same assertions.
"""

from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harvester.bearer import Token
from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, endpoint_of
from harvester.budget.database import BudgetDatabase
from harvester.budget.forecast import steady_state
from harvester.budget.limits import Account, Limits, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.client.attempt import ClientContext
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.client.client import Client, ClientSettings
from harvester.client.limit_discovery import HELPERS, LimitDiscovery
from harvester.clock import utc_iso
from harvester.dataset.journal import PartLimits
from harvester.dataset.opening import open_dataset
from harvester.events import RunOutcome
from harvester.links import files as sources
from harvester.links.feed import FileFeed
from harvester.progress import RefreshCounts
from harvester.reporting.reporter import Reporter
from harvester.run.abort_rules import AbortRules
from harvester.run.committer import Heartbeat
from harvester.run.harvest import Harvest, HarvestOptions
from harvester.run.telemetry import Telemetry
from harvester.shutdown import ShutdownSignal, StopReason
from harvester.storage.folders import resolve
from harvester.storage.location import OutputLocation
from harvester.verify.verify import output_at, verify
from harvester.worklist.refresh import Refresh
from tests.support.output_checks import rows
from tests.support.simulated_bitly import World, pool_of
from tests.support.simulated_weeks import Weeks
from tests.support.virtual_time import THREADED, at_once, run

REFRESH_DAYS = 30
BEGIN = datetime(2026, 1, 1, 6, tzinfo=UTC)


class Year(Weeks):
    """A dataset whose rows are refreshed: a run on each of the days, at the same hour."""

    def on(self, day: int) -> RunOutcome:
        moment = BEGIN + timedelta(days=day)
        self.clock.seconds += moment.timestamp() - self.clock.wall()
        return run(self.clock, self._run_once(utc_iso(moment)))

    async def _run_once(self, reference: str) -> RunOutcome:
        location: OutputLocation = resolve(str(self.folder / "out"), None)
        query = Query("referrers", "day", -1, reference, 50)
        with (
            closing(BudgetDatabase(str(self.folder / "budget.sqlite"), self.clock)) as book,
            open_dataset(location, query, PartLimits(10**6, 2**27), print, server="bitly", refreshing=True) as dataset,
        ):
            book.sync_each_commit(False)
            account = Account("bitly:443", "token", "token")
            budget = MachineBudget(book, account, endpoint_of(FACETS["referrers"]), self.wanted, self.rng)
            helpers = MachineBudget(book, account, HELPERS, RequestedLimits(per_month=self.wanted.per_month), self.rng)
            shutdown, breaker = ShutdownSignal(), CircuitBreaker(BreakerRules(), self.clock.boot_seconds, self.rng)
            client = Client(
                await pool_of(self.bitly, self.connections),
                ClientSettings("https://bitly/v4", self.connections, 5, 30.0),
                dataset.rows.query,
                ClientContext(Token(lambda: "token"), budget, breaker, shutdown, self.clock.boot_seconds),
            )
            refresh = Refresh(REFRESH_DAYS * 86400, int(self.clock.wall()))
            options = HarvestOptions(
                self.connections, refresh=refresh, commit_seconds=600.0, report_seconds=600.0, learn_seconds=1e9
            )
            inquiry = LimitDiscovery(client.sender, budget, helpers, "referrers", shutdown)
            telemetry = Telemetry(budget, dataset.invocation, ["list"])
            telemetry.progress.refresh = RefreshCounts(refresh.seconds)
            heartbeat = Heartbeat(dataset, telemetry)
            rules = AbortRules(None, first_rows=dataset.totals.rows == 0)
            observer: Any = Reporter(quiet=True)
            harvest = Harvest(dataset, client, budget, inquiry, shutdown, rules, observer, options, heartbeat)
            return await harvest.run(FileFeed(sources.resolve_lists([str(self.list)])))


@pytest.fixture(autouse=True)
def threadless(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in THREADED:
        monkeypatch.setattr(module, "in_daemon", at_once)


@pytest.mark.parametrize(
    ("links", "per_month", "moments"),
    [
        (100, 30, [(datetime(2026, month, 1, 6, tzinfo=UTC) - BEGIN).days for month in range(1, 13)]),
        pytest.param(2000, 300, list(range(366)), marks=pytest.mark.nightly),
    ],
    ids=["short", "year"],
)
def test_all_are_asked_once_before_any_twice_and_answers_become_as_old_as_the_plan_says(
    quick_path: Path, links: int, per_month: int, moments: list[int]
) -> None:
    world = World(per_minute=0, per_hour=0, errors=0.0, tells=False)
    wanted = RequestedLimits(per_minute=0, per_hour=0, per_month=per_month)
    year = Year(quick_path, world, wanted, links, begin=BEGIN, promised=(0, 0))
    asked: Counter[str] = Counter()
    for day in moments:
        outcome = year.on(day)
        stop = outcome.stop
        assert stop is None or stop.reason is StopReason.MONTH_SPENT
        fresh = year.bitly.answered - asked
        asked = Counter(year.bitly.answered)
        if max(asked.values()) > 1:
            assert len(asked) == links, "a link was asked twice before all were asked once"
        assert max(fresh.values(), default=0) <= 1
    last: dict[str, datetime] = {}
    oldest, published = 0.0, sorted(rows(quick_path / "out"), key=lambda row: row["unit_reference"])
    by_day: dict[str, list[str]] = {}
    for row in published:
        by_day.setdefault(row["unit_reference"], []).append(row["bitlink"])
    for day in moments:
        now = BEGIN + timedelta(days=day)
        if len(last) == links:
            oldest = max(oldest, max((now - moment).total_seconds() for moment in last.values()) / 86400)
        last |= dict.fromkeys(by_day.get(utc_iso(now), ()), now)
    said = steady_state(links, Limits(0, 0, per_month), REFRESH_DAYS).oldest_days
    print(f"\n{links:,} links, {per_month:,} a month: oldest answer {oldest:.1f} days, {said:.1f} planned")
    assert abs(oldest - said) <= 0.05 * said
    assert len(published) == sum(asked.values())
    assert verify(output_at(str(quick_path / "out"))).problems == []
