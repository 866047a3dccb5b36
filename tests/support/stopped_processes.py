"""Processes that share one budget in virtual time, and are stopped, killed and held up by their disk at any step.

Each process is a thread, and one of them runs at a time: the one whose turn is the earliest. So a seed gives the same
run again, whatever the machine does.
"""

import asyncio
import random
import selectors
import sqlite3
import threading
from bisect import insort
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from harvester.bearer import Token
from harvester.bitly.query import Query
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.client.attempt import AttemptSender, ClientContext
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.errors import BudgetBusy
from harvester.shutdown import ShutdownSignal
from harvester.transport.pool import Pool, Slot
from tests.support.simulated_bitly import ROW, AllSlots, Answer, slot_over
from tests.support.virtual_time import ROUND_SECONDS, VirtualClock

BEGIN = 1_795_780_000.0
JITTER_SECONDS = 0.25
"""The longest way of a request: what the budget's margin of 0.5 s leaves to the network."""
STOP_SECONDS = (0.3, 0.65, 1.0, 5.0, 40.0, 59.8, 61.0, 75.0)
QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)


class Killed(BaseException):
    """The process is no more."""


class Process:
    """A thread's place in the order of turns."""

    def __init__(self, storm: "Storm") -> None:
        self.turn_at = storm.clock.seconds
        self.turn = threading.Semaphore(0)
        self.alive = True


class Storm:
    """A machine's weather: how often a step is the last one of its process, or is followed by a stop.

    slow_disk: how often a synced commit is held up.
    """

    def __init__(
        self, folder: Path, seed: int, *, limit: int = 30, stops: float, kills: float = 0.0, slow_disk: float = 0.0
    ) -> None:
        self.clock = VirtualClock(BEGIN)
        self.rng = random.Random(seed)
        self.limit = limit
        self.arrivals: list[float] = []
        self.path = str(folder / "budget.sqlite")
        self.errors: list[BaseException] = []
        self._stops, self._kills, self._slow_disk = stops, kills, slow_disk
        self._processes: list[Process] = []
        self._local = threading.local()
        self._over = threading.Event()
        BudgetDatabase(self.path, self.clock).close()

    def run(self, processes: int, seconds: float) -> int:
        """Let processes harvest for some time, and return the most that arrived within any 60 seconds."""
        end = self.clock.seconds + seconds
        self._processes = [Process(self) for _ in range(processes)]
        threads = [threading.Thread(target=self._live, args=(process, end)) for process in self._processes]
        for thread in threads:
            thread.start()
        self._processes[0].turn.release()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors
        first, most = 0, 0
        for last, at in enumerate(self.arrivals):
            while self.arrivals[first] <= at - 60.0:
                first += 1
            most = max(most, last - first + 1)
        return most

    def _live(self, process: Process, end: float) -> None:
        self._local.process = process
        process.turn.acquire()
        try:
            while self.clock.seconds < end:
                process.alive = True
                try:
                    self._harvest(end)
                except (Killed, BudgetBusy):  # it is started anew
                    process.alive = True
                    self.pause(self.rng.uniform(0.0, 5.0))
        except BaseException as error:
            self.errors.append(error)
        finally:
            self._processes.remove(process)
            self._hand_on()

    def _hand_on(self) -> Process | None:
        following = min(self._processes, key=lambda process: process.turn_at, default=None)
        if following is not None:
            self.clock.seconds = max(self.clock.seconds, following.turn_at)
            following.turn.release()
        return following

    def pause(self, seconds: float) -> None:
        """Let other processes run for some seconds; none of them may be left."""
        process: Process = self._local.process
        process.turn_at = self.clock.seconds + seconds + ROUND_SECONDS
        self._hand_on()
        process.turn.acquire()

    def step(self, *_: object) -> None:
        """Pass from one step of a process to the next."""
        process: Process = self._local.process
        if not process.alive:
            raise Killed
        chance = self.rng.random()
        if chance < self._kills:
            process.alive = False
            raise Killed
        if chance < self._kills + self._stops:
            self.pause(self.rng.choice(STOP_SECONDS))

    def sync(self) -> None:
        """Wait for the disk."""
        if self.rng.random() < self._slow_disk:
            self.pause(self.rng.uniform(0.3, 3.0))

    def arrive(self) -> None:
        """A request was sent, and is on its way."""
        if not self._local.process.alive:
            raise Killed
        insort(self.arrivals, self.clock.seconds + self.rng.random() * JITTER_SECONDS)

    def _harvest(self, end: float) -> None:
        with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
            runner.run(self._requests(end))

    async def _requests(self, end: float) -> None:
        with closing(_Database(self)) as database:
            account = Account("bitly:443", "token", "token")
            budget = MachineBudget(database, account, "clicks", RequestedLimits(self.limit, 0, 0), self.rng)
            breaker = CircuitBreaker(BreakerRules(), self.clock.boot_seconds, self.rng)
            token, clock = Token(lambda: "token"), self.clock.boot_seconds
            context = ClientContext(token, budget, breaker, ShutdownSignal(), clock, self.step)
            pool = Pool(AllSlots(2), self._slot)
            await pool.rebalance()
            sender = AttemptSender(pool, QUERY, context, base_url="https://bitly/v4", timeout_seconds=30.0)

            async def work() -> None:
                while self.clock.seconds < end:
                    await sender.send("bit.ly/a", "Bearer token", may_probe=True, evidence=False)

            await asyncio.gather(work(), work())

    def _slot(self, number: int) -> Slot:
        session: Any = _Session(self)
        session.slot = slot_over(number, session)
        slot: Slot = session.slot
        return slot


class _Connection:
    """A SQLite connection whose process may be stopped or killed at each step of a transaction."""

    def __init__(self, db: sqlite3.Connection, storm: Storm) -> None:
        self._db = db
        self._storm = storm
        self._synced = True
        self._patience = 10.0
        self.close = db.close
        self.executemany = db.executemany
        db.execute("PRAGMA busy_timeout = 0")

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        step: Callable[[], None] = self._storm.step
        if statement.startswith("PRAGMA busy_timeout"):
            self._patience = float(statement.split("=")[1]) / 1000
            return self._db.execute("SELECT 1")
        if statement.startswith("PRAGMA synchronous"):
            self._synced = "FULL" in statement
        elif statement.startswith("BEGIN"):
            step()
            self._begin(statement)
            step()
            return self._db.execute("SELECT 1")
        elif statement == "COMMIT":
            step()
            if self._synced:
                self._storm.sync()
            done = self._db.execute(statement)
            step()
            return done
        return self._db.execute(statement, *parameters)

    def _begin(self, statement: str) -> None:
        waited = 0.0
        while True:
            try:
                self._db.execute(statement)
            except sqlite3.OperationalError:
                if waited > self._patience:
                    raise
                self._storm.pause(0.05)
                waited += 0.05
            else:
                return


class _Database(BudgetDatabase):
    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        super().__init__(storm.path, storm.clock)

    def _enable_wal(self) -> None:
        super()._enable_wal()
        self._db: Any = _Connection(self._db, self._storm)


class _Session:
    """Stands where aiohttp's session does, and treats its slot's connection as ours does."""

    slot: Slot

    def __init__(self, storm: Storm) -> None:
        self._storm = storm

    def get(self, *_: object, **__: object) -> "_Session":
        return self

    async def __aenter__(self) -> Answer:
        line, storm = self.slot.line, self._storm
        line.unsent = True
        if storm.rng.random() < 0.1:
            await asyncio.sleep(storm.rng.choice([0.15, 0.5, 3.0]))
        storm.step()
        line.ready()
        line.unsent = False
        storm.arrive()
        await asyncio.sleep(0.05)
        return Answer(200, ROW, {})

    async def __aexit__(self, *_: object) -> None:
        return None


class _Turns(selectors.DefaultSelector):
    """Does not wait for its timeout, but lets other processes run."""

    storm: Storm

    def select(self, timeout: float | None = None) -> Any:
        if events := super().select(0):
            return events
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        if timeout > 0:
            self.storm.pause(timeout)
        else:  # timers are sometimes set for a moment that rounding puts at now
            self.storm.clock.seconds += ROUND_SECONDS
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, storm: Storm) -> None:
        selector = _Turns()
        selector.storm = storm
        self._storm = storm
        super().__init__(selector)
        self.set_exception_handler(lambda *_: None)  # what a killed process leaves behind

    def time(self) -> float:
        return self._storm.clock.seconds
