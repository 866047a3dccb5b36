"""Hosts that share a budget in Redis, under a clock that the tests move."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

from harvester.budget.limits import COUNTED_SECONDS, HOUR, Account, RequestedLimits
from harvester.clock import Clock
from harvester.fleet.address import parse_address
from harvester.fleet.budget import RedisBudget
from harvester.fleet.connecting import RedisConnector
from harvester.fleet.memory import SharedMemory
from harvester.fleet.script import Keys
from harvester.fleet.server import RedisServer
from tests.unit.budget.test_budget import ACCOUNT, Machine, Start

_PREFIXES = count()


def a_prefix() -> str:
    """Return a prefix that no other test uses."""
    return f"test-{next(_PREFIXES)}"


class Host:
    """A process on a host of its own. clock: the host's. time_ms: the time instead of Redis' own."""

    def __init__(
        self,
        url: str,
        prefix: str,
        clock: Clock,
        time_ms: Callable[[], float] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.told: list[str] = []
        self.memory = SharedMemory(clock.boot_seconds, COUNTED_SECONDS[HOUR])
        connector = RedisConnector(parse_address(url, prefix, "egress"))
        self.redis = RedisServer(connector, Keys(prefix), clock, self.memory, warn or self.told.append, time_ms)

    def budget(
        self, account: Account, endpoint: str, requested: RequestedLimits, rng: random.Random | None = None
    ) -> RedisBudget:
        return RedisBudget(self.redis, account, endpoint, requested, rng)

    def crash(self) -> None:
        """End without taking leave."""
        client = self.redis._client
        if client is not None:
            client.close()


def settled(host: Host, prefix: str) -> None:
    """Let a new Redis know that no other process has anything to tell."""
    client = host.redis._client
    client.hdel(Keys(prefix).common[0], "settle_until", "settle_for")


@contextmanager
def starting_in_redis(url: str, machine: Machine, rng: random.Random | None = None) -> Iterator[Start]:
    """Start processes, each on a host of its own: none takes leave before the end, as after a crash."""
    prefix, rng = a_prefix(), rng or random.Random(1)
    with ExitStack() as stack:

        def start(
            per_minute: int | None = 0,
            per_hour: int | None = 0,
            per_month: int | None = 0,
            *,
            reserve: float = 0.0,
            account: Account = ACCOUNT,
            endpoint: str = "clicks",
        ) -> RedisBudget:
            host = Host(url, prefix, machine, lambda: machine.true * 1000)
            host.redis.connect()
            settled(host, prefix)
            stack.callback(host.crash)
            return host.budget(account, endpoint, RequestedLimits(per_minute, per_hour, per_month, reserve), rng)

        yield start  # type: ignore[misc]  # a Budget, as a machine's is
