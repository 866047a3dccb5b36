"""The home of many hosts: a Redis that they all reach.

What this machine must remember of it is kept in its own budget file.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from harvester.budget.budget import Budget
from harvester.budget.database import BUSY_SECONDS, BudgetDatabase
from harvester.budget.limits import COUNTED_SECONDS, HOUR, Account, RequestedLimits
from harvester.errors import BudgetBusy, BudgetUnreachable, OutputError
from harvester.events import RunObserver
from harvester.fleet.address import RedisAddress
from harvester.fleet.budget import RedisBudget
from harvester.fleet.connecting import RedisConnector
from harvester.fleet.memory import SharedMemory
from harvester.fleet.script import Keys
from harvester.fleet.server import RedisServer
from harvester.sharing.egress import EgressSlots
from harvester.shutdown import ShutdownSignal
from harvester.storage.folders import lock_folder
from harvester.threads import in_daemon
from harvester.transport.connection_slots import ConnectionSlots

_POLL_SECONDS = 0.5
_SILENT_SECONDS = 1.0
"""A longer wait for Redis is told."""


class RedisHome:
    """A `Home` in Redis, open from `open_redis_home` on.

    database: this machine's budget file, closed with the home. folder: of this machine's state.
    """

    def __init__(self, redis: RedisServer, address: RedisAddress, database: BudgetDatabase, folder: str) -> None:
        self.clock = redis.clock
        self.redis = redis
        self._address = address
        self._database = database
        self._folder = folder

    def budget(self, account: Account, endpoint: str, requested: RequestedLimits, *, leads: bool = False) -> Budget:  # noqa: ARG002
        """As in `Home`. What this machine knows of the account's month is told to Redis first."""
        self.redis.learn(_months_of(self._database, account))
        return RedisBudget(self.redis, account, endpoint, requested)

    def slots(self, server: str, most: int) -> ConnectionSlots:
        """As in `Home`: of the connections from this host's address."""
        keys = self.redis.keys.of_egress(server, self._address.egress)
        return EgressSlots(lock_folder(self._folder, server), most, self.redis, self._address.egress, keys)

    def close(self) -> None:
        """As in `Home`."""
        self.redis.close()
        self._database.close()


async def open_redis_home(
    address: RedisAddress, database: BudgetDatabase, folder: str, observer: RunObserver, shutdown: ShutdownSignal
) -> RedisHome:
    """Open the home in Redis; while it cannot be reached, try again, say why after a second, and hear signals.

    Raises:
        UsageError: Redis refuses us, has another version, or redis-py is not installed. BudgetUnreachable: it
        cannot be reached. RunStopping: the run is ending.
    """
    clock = database.clock
    memory = SharedMemory(clock.boot_seconds, COUNTED_SECONDS[HOUR])
    redis = RedisServer(RedisConnector(address), Keys(address.prefix), clock, memory, observer.warn)
    memory.keep = _keeper(database, memory, f"redis {address} {address.prefix}")
    began, told = time.monotonic(), False
    while True:
        try:
            await shutdown.unless_stopping(in_daemon(redis.connect))
        except BudgetBusy as error:
            waited = time.monotonic() - began
            if waited > BUSY_SECONDS:
                raise BudgetUnreachable(
                    f"the shared budget cannot be reached ({error}), and no attempt is made without it: run the same "
                    "command again when it can"
                ) from error
            if waited > _SILENT_SECONDS and not told:
                observer.warn(f"waiting for the shared budget ({error})")
                told = True
            await shutdown.sleep_unless_stopping(_POLL_SECONDS)
        else:
            redis.start()
            await shutdown.sleep_unless_stopping(redis.settling_seconds)  # or helper requests would be left out
            return RedisHome(redis, address, database, folder)


def _keeper(database: BudgetDatabase, memory: SharedMemory, name: str) -> Callable[[], None]:
    """Restore what a run of this machine has kept of a Redis within the hour, and return what keeps it again."""
    with suppress(OutputError), database.transaction() as now:
        generation, wall = database.kept(name) or ("", 0.0)
        # By this machine's own clock: if that was set back since, the attempts may be as recent as now.
        age = max(database.clock.wall() - wall, 0.0)
        if generation and age < COUNTED_SECONDS[HOUR]:
            memory.generation, memory.counted_at = generation, now - age

    def keep() -> None:
        if memory.counted_at is None:
            return
        with suppress(OutputError), database.unsynced(), database.transaction() as now:
            for field, spent in list(memory.months.items()):
                server, account, month = field.removeprefix(_SPENT).rsplit("|", 2)
                database.raise_month(server, account, month, spent)
            database.keep(name, [memory.generation, database.clock.wall() - (now - memory.counted_at)])

    return keep


_SPENT = "spent:"
"""The beginning of the fields in Redis that have a month's attempts."""


def _months_of(database: BudgetDatabase, account: Account) -> dict[str, int]:
    """Return what this machine knows of an account's months, by the field of Redis."""
    found: dict[str, int] = {}
    with suppress(OutputError), database.transaction():
        for name in {account.name, account.token}:
            for month, spent in database.months_of(account.server, name):
                found[f"{_SPENT}{account.server}|{name}|{month}"] = spent
    return found
