"""The connections of an address that many hosts share, leased from Redis.

Hosts behind one NAT have one IP address, whose connections Bitly counts together. Beside the kernel locks, by which the
processes of a machine share, each connection is leased under the address's name. A process in contact keeps its leases.
One that has been out of touch for a while closes its connections, and only later are its leases free for others, so
that an attempt under way has ended by then.
"""

import asyncio
import time
from contextlib import suppress

from harvester.errors import BudgetBusy, ConnectionsBusy, OutputError
from harvester.fleet.server import RedisServer
from harvester.sharing.home import Elsewhere
from harvester.transport.connection_slots import MOST_PROCESSES, ConnectionSlots, Holders

CLOSES_AFTER_SECONDS = 15.0
"""Out of touch for this long, a process closes its connections: LEASE_SECONDS less the time limit of an attempt."""
_TRIES, _PAUSE_SECONDS = 20, 0.1
_BLOCKED_SECONDS = 3.0


class EgressSlots(ConnectionSlots):
    """This process's share of the connections from an address, from `join` to `leave`.

    Raises, beside what ConnectionSlots does:
        BudgetBusy: Redis is out of reach while joining. ConnectionsBusy: MOST_PROCESSES share the address already.

    egress: the address's name. keys: of its connections in Redis.
    """

    def __init__(self, folder: str, most: int, redis: RedisServer, egress: str, keys: list[str]) -> None:
        super().__init__(folder, most)
        self._redis = redis
        self._egress = egress
        self._keys = keys
        self._leases: dict[int, int] = {}

    async def join(self) -> None:
        """Register this process for a share of the machine's connections, and of the address's."""
        await super().join()
        self._redis.egress_keys = self._keys
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS)
            with suppress(BudgetBusy):  # then there are none to share until Redis is back
                self._redis.beat()
            if self._rank < MOST_PROCESSES:
                return
        with suppress(BudgetBusy):
            self._redis.call("leave", self._keys)
        self._redis.egress_keys = []
        raise ConnectionsBusy(
            f"{MOST_PROCESSES} harvests already share the {MOST_PROCESSES} connections of the address {self._egress} "
            "(--egress): run this command again when one has ended"
        )

    @property
    def share(self) -> int:
        """How many slots this process may hold now; none once Redis has been out of reach for a while."""
        self._redis.tell()
        if self._redis.silent_seconds > CLOSES_AFTER_SECONDS:
            return 0
        processes, total, rank = len(self._redis.live), max(self._most, MOST_PROCESSES), self._rank
        own = total // processes + (rank < total % processes) if rank < processes else 0
        lost = sum(lease not in self._redis.held for lease in self._leases.values())
        return max(min(super().share, own) - lost, 0)

    def grab(self) -> int | None:
        """Take a free slot and lease a connection for it; None while others have not released theirs."""
        empty_since = self._empty_since
        if (number := super().grab()) is None:
            return None
        try:
            lease = self._redis.call("lease", self._keys, {"most": max(self._most, MOST_PROCESSES)}).get("number")
        except OutputError:
            lease = None
        if lease is None:
            super().give_back(number)
            if not self._held:
                self._empty_since = empty_since or time.monotonic()
            return None
        self._leases[number] = lease
        self._redis.held |= {lease}
        return number

    def give_back(self, number: int) -> None:
        """Release a slot whose connection is closed, and its lease."""
        lease = self._leases.pop(number)
        self._redis.held -= {lease}
        try:
            self._redis.call("release", self._keys, {"number": lease})
        except BudgetBusy:  # it ends by itself
            pass
        finally:
            super().give_back(number)

    def leave(self) -> None:
        """Release everything, and count no more among those that share the address."""
        super().leave()
        self._redis.egress_keys = []
        with suppress(BudgetBusy):  # it ends by itself
            self._redis.call("leave", self._keys)

    @property
    def blockers(self) -> Holders:
        """Who has kept all connections from this process for a while."""
        if self._redis.silent_seconds > CLOSES_AFTER_SECONDS:
            return Elsewhere.named(self._redis.why_away or self._redis.name, "redis")
        since = self._empty_since
        if since is None or time.monotonic() - since < _BLOCKED_SECONDS:
            return Holders()
        if (found := self.holders()).processes:
            return found
        return Elsewhere.named(f"other hosts at the address {self._egress}", "connections")

    @property
    def _rank(self) -> int:
        """This process's place among those of the address, in the order in which they joined."""
        processes = self._redis.live
        return processes.index(self._redis.process) if self._redis.process in processes else len(processes)
