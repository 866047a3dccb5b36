"""A harvest of weeks, in virtual time: the real pool, client, gate and budget against a simulated Bitly."""

import random
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, endpoint
from harvester.budget.budget import Budget
from harvester.budget.database import Book
from harvester.budget.limits import Account, Wanted
from harvester.client.attempt import Means
from harvester.client.circuit_breaker import Gate, GateRules
from harvester.client.client import Client, Settings
from harvester.client.limit_discovery import HELPERS, Inquiry
from harvester.client.token import Token
from harvester.clock import next_month
from harvester.links import files as sources
from harvester.progress import Outcome
from harvester.reporting.reporter import StderrWatcher
from harvester.run.abort_rules import Rules
from harvester.run.harvest import Harvest, Options
from harvester.shutdown import Reason, Stopper
from tests.simulated import MemoryStore, Promise, SimulatedBitly, World, pool_of
from tests.virtual import VirtualClock, run

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
BEGIN = datetime(2026, 11, 20, 13, 7, tzinfo=UTC)


@dataclass
class Weeks:
    """A harvest in virtual time, from its first run to the last."""

    folder: Path
    world: World
    wanted: Wanted
    links: int
    seed: int = 1
    connections: int = 5
    begin: datetime = BEGIN
    promised: tuple[int, int] = (100, 1000)
    store: MemoryStore = field(default_factory=MemoryStore)
    stops: list[Reason] = field(default_factory=list)
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

    def run(self) -> Outcome:
        """Run until every call is settled or has failed: after a spent month in the next one, else an hour later."""
        while True:
            self.bitly.let_others_ask()
            began, others = self.clock.elapsed(), self.bitly.others
            outcome = run(self.clock, self._invoke())
            self.active_seconds += self.clock.elapsed() - began
            self.others_meanwhile += self.bitly.others - others
            if outcome.stop is None:
                return outcome
            self.stops.append(outcome.stop.reason)
            assert len(self.stops) < 50, self.stops
            if outcome.stop.reason is Reason.MONTH_SPENT:
                until = datetime.fromisoformat(outcome.stop.until or "")
                assert until == next_month(datetime.fromtimestamp(self.clock.wall(), UTC))
                self.clock.seconds += until.timestamp() - self.clock.wall() + self.rng.uniform(0, 3600)
            else:
                self.clock.seconds += 3600.0

    async def _invoke(self) -> Outcome:
        self.store.invocation += 1
        with closing(Book(str(self.folder / "budget.sqlite"), self.clock)) as book:
            book.set_fast(fast=True)
            account = Account("bitly:443", "token", "token")
            rng = random.Random(self.seed)
            budget = Budget(book, account, endpoint(FACETS["referrers"]), self.wanted, rng)
            helpers = Budget(book, account, HELPERS, Wanted(per_month=self.wanted.per_month), rng)
            stopper, gate = Stopper(), Gate(GateRules(), self.clock.elapsed, rng)
            client = Client(
                await pool_of(self.bitly, self.connections),
                Settings("https://bitly/v4", self.connections, 5, 30.0),
                QUERY,
                Means(Token(lambda: "token"), budget, gate, stopper, self.clock.elapsed),
            )
            inquiry = Inquiry(client, budget, helpers, "referrers", stopper)
            rules = Rules(None, first_rows=self.store.invocation == 1)
            options = Options(self.connections, commit_seconds=600.0, tell_seconds=600.0, learn_seconds=60.0)
            store: Any = self.store
            watcher = StderrWatcher(quiet=True)
            harvest = Harvest(store, client, budget, inquiry, stopper, rules, watcher, options)
            return await harvest.run(sources.find([str(self.list)]))

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
        others = f"others' {bitly.others:,}, helper calls {bitly.helped:,}"
        stops = ", ".join(self.stops) or "no stop"
        days = bitly.seconds / 86400
        print(
            f"\n{name}: {self.links:,} links in {days:.1f} days, {used}{throttled}, repeated {self.repeated:,}, "
            f"{others}, {stops}"
        )
