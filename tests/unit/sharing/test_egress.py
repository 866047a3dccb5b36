"""The five connections of an address, among hosts that share no disk: leased, renewed, and free after a kill."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harvester.errors import ConnectionsBusy
from harvester.fleet.server import LEASE_SECONDS
from harvester.sharing.egress import CLOSES_AFTER_SECONDS, EgressSlots
from tests.support.redis_server import RedisProcess
from tests.unit.fleet.test_faults import Redis

BITLY = "api.example:443"


class Hosts:
    """Hosts, each with a folder of its own. redis: what they share."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self._folder = folder

    async def join(self, name: str, egress: str = "office", most: int = 5) -> EgressSlots:
        """Start a process of a host, and let it join."""
        redis = self.redis.host().redis
        folder = str(self._folder / name)
        slots = EgressSlots(folder, most, redis, egress, redis.keys.of_egress(BITLY, egress))
        await slots.join()
        return slots

    def pass_time(self, seconds: float, *alive: EgressSlots) -> None:
        """Let time pass; those alive stay in contact."""
        for _ in range(int(seconds)):
            self.redis.seconds += 1.0
            for slots in alive:
                slots._redis.beat()


@pytest.fixture
def hosts(redis_server: RedisProcess, tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(Redis(redis_server, stack), tmp_path)


def fill(slots: EgressSlots) -> int:
    """Take what the share allows, as far as others have left it; return how many are held."""
    while slots.held < slots.share and slots.grab() is not None:
        pass
    return slots.held


async def test_hosts_behind_one_address_share_its_five_connections(hosts: Hosts) -> None:
    first = await hosts.join("one")
    assert fill(first) == 5
    second = await hosts.join("two")
    assert fill(second) == 0  # until the first has released some
    hosts.pass_time(1, first, second)
    assert (first.share, second.share) == (3, 2)
    for number in (3, 4):
        first.give_back(number)
    assert (fill(first), fill(second)) == (3, 2)
    leases = [slots._redis.held for slots in (first, second)]
    assert sorted(lease for held in leases for lease in held) == [0, 1, 2, 3, 4]


async def test_another_address_has_five_of_its_own(hosts: Hosts) -> None:
    office, factory = await hosts.join("one"), await hosts.join("two", "factory")
    assert (fill(office), fill(factory)) == (5, 5)


async def test_the_connections_of_a_killed_process_are_free_within_a_minute(hosts: Hosts) -> None:
    killed, other = await hosts.join("one"), await hosts.join("two")
    hosts.pass_time(1, killed, other)
    assert (fill(killed), fill(other)) == (3, 2)
    assert LEASE_SECONDS < 60
    hosts.pass_time(LEASE_SECONDS - 1, other)
    assert fill(other) == 2
    hosts.pass_time(1, other)
    assert fill(other) == 5


async def test_a_process_out_of_touch_closes_its_connections_before_others_may_have_them(hosts: Hosts) -> None:
    away, other = await hosts.join("one"), await hosts.join("two")
    hosts.pass_time(1, away, other)
    assert (fill(away), fill(other)) == (3, 2)
    hosts.pass_time(CLOSES_AFTER_SECONDS + 1, other)
    assert away.share == 0
    assert fill(other) == 2
    hosts.pass_time(LEASE_SECONDS, other)
    assert fill(other) == 5
    away._redis.beat()  # it is back, and learns that its leases are others' now
    other._redis.beat()
    assert away.share == 0
    for number in list(away._held):
        away.give_back(number)
    hosts.pass_time(1, away, other)
    assert (away.share, other.share) == (2, 3)
    other.give_back(0)
    other.give_back(1)
    assert (fill(away), fill(other)) == (2, 3)


async def test_a_process_that_ends_frees_its_connections_at_once(hosts: Hosts) -> None:
    first, second = await hosts.join("one"), await hosts.join("two")
    hosts.pass_time(1, first, second)
    assert (fill(first), fill(second)) == (3, 2)
    first.leave()
    first._redis.close()
    second._redis.beat()
    assert fill(second) == 5


async def test_a_sixth_process_of_an_address_is_refused_and_takes_nothing_from_the_others(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvester.sharing.egress._PAUSE_SECONDS", 0.0)
    five = [await hosts.join(str(number)) for number in range(5)]
    with pytest.raises(ConnectionsBusy, match=r"5 connections of the address office \(--egress\)"):
        await hosts.join("six")
    hosts.pass_time(1, *five)
    assert [fill(slots) for slots in five] == [1] * 5


async def test_who_keeps_the_connections_is_said(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvester.sharing.egress._BLOCKED_SECONDS", 0.0)
    first = await hosts.join("one")
    assert fill(first) == 5
    second = await hosts.join("two")
    assert str(second.blockers) == ""
    assert fill(second) == 0
    assert str(second.blockers) == "other hosts at the address office"
    second._redis._client = None
    assert "127.0.0.1" in str(second.blockers)


async def test_while_redis_is_away_nothing_new_is_leased(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = await hosts.join("one")
    client, slots._redis._client = slots._redis._client, None
    assert slots.grab() is None
    slots._redis._client = client
    number = slots.grab()
    assert number is not None
    slots._redis._client = None
    slots.give_back(number)  # its lease ends by itself
    slots._redis._client = client
    assert slots.held == 0
