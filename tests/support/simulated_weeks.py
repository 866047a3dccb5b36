"""A harvest of weeks, in virtual time: the real pool, client, breaker and budget against a simulated Bitly."""

import random
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harvester.bearer import Token
from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, endpoint_of
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.client.attempt import ClientContext
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.client.client import Client, ClientSettings
from harvester.client.limit_discovery import HELPERS, LimitDiscovery
from harvester.clock import next_month
from harvester.events import RunOutcome
from harvester.links import files as sources
from harvester.links.feed import FileFeed
from harvester.reporting.reporter import Reporter
from harvester.run.abort_rules import AbortRules
from harvester.run.committer import Heartbeat
from harvester.run.harvest import Harvest, HarvestOptions
from harvester.run.telemetry import Telemetry
from harvester.shutdown import ShutdownSignal, StopReason
from tests.support.simulated_bitly import MemoryStore, Promise, SimulatedBitly, World, pool_of
from tests.support.virtual_time import VirtualClock, run

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
BEGIN = datetime(2026, 11, 20, 13, 7, tzinfo=UTC)


@dataclass
class Weeks:
    """A harvest in virtual time, from its first run to the last."""

    folder: Path
    world: World
    wanted: RequestedLimits
    links: int
    seed: int = 1
    connections: int = 5
    begin: datetime = BEGIN
    promised: tuple[int, int] = (100, 1000)
    store: MemoryStore = field(default_factory=MemoryStore)
    stops: list[StopReason] = field(default_factory=list)
    active_seconds: float = 0.0
    others_meanwhile: int = 0

    def __post_init__(self) -> None:
        self.clock = VirtualClock(self.begin.timestamp())
        self.rng = random.Random(self.seed)
        random.seed(self.seed)  # tenacity's jitter
        minute, hour = self.promised
        promises = [Promise(limit, span) for limit, span in ((minute, 60.0), (hour, 3600.0)) if limit]
        self.bitly = SimulatedBitly(self.world, self.clock, self.rng, promises)
        self.list = self.folder / "links.txt"
        with self.list.open("w") as lines:
            lines.writelines(f"bit.ly/{number}\n" for number in range(self.links))

    def run(self) -> RunOutcome:
        """Run until every call is settled or has failed: after a spent month in the next one, else an hour later."""
        while True:
            self.bitly.let_others_ask()
            began, others = self.clock.boot_seconds(), self.bitly.others
            outcome = run(self.clock, self._invoke())
            self.active_seconds += self.clock.boot_seconds() - began
            self.others_meanwhile += self.bitly.others - others
            if outcome.stop is None:
                return outcome
            self.stops.append(outcome.stop.reason)
            assert len(self.stops) < 50, self.stops
            if outcome.stop.reason is StopReason.MONTH_SPENT:
                until = datetime.fromisoformat(outcome.stop.until or "")
                assert until == next_month(datetime.fromtimestamp(self.clock.wall(), UTC))
                self.clock.seconds += until.timestamp() - self.clock.wall() + self.rng.uniform(0, 3600)
            else:
                self.clock.seconds += 3600.0

    async def _invoke(self) -> RunOutcome:
        self.store.invocation += 1
        with closing(BudgetDatabase(str(self.folder / "budget.sqlite"), self.clock)) as book:
            book.sync_each_commit(False)
            account = Account("bitly:443", "token", "token")
            rng = random.Random(self.seed)
            budget = MachineBudget(book, account, endpoint_of(FACETS["referrers"]), self.wanted, rng)
            helpers = MachineBudget(book, account, HELPERS, RequestedLimits(per_month=self.wanted.per_month), rng)
            shutdown, breaker = ShutdownSignal(), CircuitBreaker(BreakerRules(), self.clock.boot_seconds, rng)
            client = Client(
                await pool_of(self.bitly, self.connections),
                ClientSettings("https://bitly/v4", self.connections, 5, 30.0),
                QUERY,
                ClientContext(Token(lambda: "token"), budget, breaker, shutdown, self.clock.boot_seconds),
            )
            inquiry = LimitDiscovery(client.sender, budget, helpers, "referrers", shutdown)
            rules = AbortRules(None, first_rows=self.store.invocation == 1)
            options = HarvestOptions(self.connections, commit_seconds=600.0, report_seconds=600.0, learn_seconds=60.0)
            store: Any = self.store
            observer = Reporter(quiet=True)
            heartbeat = Heartbeat(store, Telemetry(budget, store.invocation, ["list"]))
            harvest = Harvest(store, client, budget, inquiry, shutdown, rules, observer, options, heartbeat)
            return await harvest.run(FileFeed(sources.resolve_lists([str(self.list)])))

    @property
    def repeated(self) -> int:
        """Answers that were bought more than once."""
        return self.bitly.answered.total() - len(self.bitly.answered)

    def shared_utilisation(self) -> float:
        """What came, for us and for others, of what an hour allows, while there was a run."""
        passed = self.bitly.attempts - self.bitly.throttled + self.others_meanwhile
        return passed / (self.active_seconds / 3600 * self.world.per_hour)

    def report(self, name: str, utilisation: float | None = None) -> None:
        """Print what a person wants to know of it."""
        bitly = self.bitly
        used = f"utilisation {utilisation:.2%}, " if utilisation else ""
        throttled = f"throttled {bitly.throttled:,} of {bitly.attempts:,} ({bitly.throttled / bitly.attempts:.3%})"
        others = f"others' {bitly.others:,}, helper requests {bitly.helped:,}"
        stops = ", ".join(self.stops) or "no stop"
        days = bitly.seconds / 86400
        print(
            f"\n{name}: {self.links:,} links in {days:.1f} days, {used}{throttled}, repeated {self.repeated:,}, "
            f"{others}, {stops}"
        )
