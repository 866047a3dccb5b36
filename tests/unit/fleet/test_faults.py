"""A Redis that fails: attempts wait and say so, nothing is sent uncounted, and what it has forgotten is known again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trustme

from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, MonthExhausted, RequestedLimits, RetryAfter
from harvester.clock import from_epoch
from harvester.errors import BudgetBusy, OutputError, UsageError
from harvester.fleet import server as server_module
from harvester.fleet.budget import REDIS, RedisBudget
from harvester.fleet.script import Keys
from harvester.sharing.redis_home import _keeper, _months_of
from tests.support.fleets import Host, a_prefix, settled
from tests.support.redis_server import RedisProcess, free_port, running_redis
from tests.support.virtual_time import VirtualClock

ACCOUNT = Account("api.example:443", "token", "acme")
WIDE = RequestedLimits(1000, 10_000, 100_000)
NARROW = RequestedLimits(5, 0, 0)


class Redis:
    """A Redis of a test's own, at a time that passes when it is told to, and hosts. seconds: of Redis' clock."""

    def __init__(self, process: RedisProcess, stack: ExitStack, url: str | None = None) -> None:
        self.process = process
        self._url = url or process.url
        self.seconds = 1_800_000_000.0
        self.prefix = a_prefix()
        self.hosts: list[Host] = []
        self._stack = stack

    def host(self, *, wrong: float = 0.0, new: bool = True) -> Host:
        """Start a host, whose clock is so wrong. new: Redis need not wait for what others know."""
        clock = Apart(self, wrong)
        host = Host(self._url, self.prefix, clock, lambda: self.seconds * 1000)
        host.redis.connect()
        if new:
            settled(host, self.prefix)
        self._stack.callback(host.crash)
        self.hosts.append(host)
        return host

    def budget(self, requested: RequestedLimits = WIDE, *, wrong: float = 0.0) -> tuple[RedisBudget, Host]:
        host = self.host(wrong=wrong)
        return host.budget(ACCOUNT, "clicks", requested), host

    def kill(self) -> None:
        self.process.kill()

    def start(self) -> None:
        self.process.start()

    def back(self) -> None:
        """Let the hosts' threads connect again."""
        for host in self.hosts:
            host.redis.connect()


class Apart(VirtualClock):
    """A host's clock: it goes as Redis' does, and shows another time."""

    def __init__(self, redis: Redis, wrong: float) -> None:
        super().__init__(redis.seconds + wrong)
        self._redis, self._wrong = redis, wrong

    def boot_seconds(self) -> float:
        return self._redis.seconds + self._wrong - 1_700_000_000.0


@pytest.fixture
def own() -> Iterator[Callable[..., Redis]]:
    """Start a Redis of the test's own. options: words of its command line."""
    with ExitStack() as stack:
        yield lambda *options: Redis(stack.enter_context(running_redis(*options)), stack)


@pytest.fixture
def shared(redis_server: RedisProcess) -> Iterator[Redis]:
    with ExitStack() as stack:
        yield Redis(redis_server, stack)


def take(budget: RedisBudget, most: int = 1000) -> int:
    """Take what goes at once."""
    for number in range(most):
        if budget.try_acquire() is not None:
            return number
    return most


def waits_for_redis(budget: RedisBudget) -> bool:
    answer = budget.try_acquire()
    return isinstance(answer, RetryAfter) and answer.window == REDIS


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_clocks_of_hosts_that_are_minutes_apart_change_nothing(shared: Redis) -> None:
    slow, fast = (shared.budget(NARROW, wrong=wrong)[0] for wrong in (-300.0, 600.0))
    assert (take(slow, 3), take(fast)) == (3, 2)
    for budget in (slow, fast):
        answer = budget.try_acquire()
        assert isinstance(answer, RetryAfter)
        assert (answer.window, round(answer.seconds, 1)) == ("minute", 60.5)
    shared.seconds += 60.4
    assert (take(slow), take(fast)) == (0, 0)
    shared.seconds += 0.2
    assert (take(fast, 4), take(slow)) == (4, 1)


def test_the_months_edge_is_that_of_redis_and_of_bitlys_dates(shared: Redis) -> None:
    shared.seconds = 1_798_761_600.0 - 60.0  # the last minute of 2026
    budget, _ = shared.budget(RequestedLimits(0, 0, 3), wrong=-86400.0 * 40)
    assert take(budget) == 3
    assert isinstance(budget.try_acquire(), MonthExhausted)
    budget.month.see_date(from_epoch(shared.seconds + 90))  # Bitly is ahead
    assert take(budget) == 3
    assert [state.used for state in budget.windows()][2] == 3


# --- out of reach -----------------------------------------------------------------------------------------------------


def test_without_redis_attempts_wait_and_say_so_once(own: Callable[..., Redis]) -> None:
    redis = own()
    budget, host = redis.budget()
    assert take(budget, 5) == 5
    before = budget.windows()
    redis.kill()
    redis.seconds += 1.0  # a lease is over
    assert all(waits_for_redis(budget) for _ in range(5))
    assert [text.split(" (")[0] for text in host.told] == ["the shared budget is out of reach"]
    assert budget.windows() == before
    with pytest.raises(BudgetBusy, match=r"closed by server|refused|reset"):
        budget.room()


@pytest.mark.parametrize("persistence", ["yes", "no"])
def test_a_redis_that_was_killed_gives_nothing_out_twice(own: Callable[..., Redis], persistence: str) -> None:
    redis = own("--appendonly", persistence, "--appendfsync", "always")
    limits = RequestedLimits(50, 0, 80)
    budget, host = redis.budget(limits)
    other, _ = redis.budget(limits)
    assert (take(budget, 20), take(other, 20)) == (20, 20)
    redis.seconds += 1.0
    redis.kill()
    assert waits_for_redis(budget)
    redis.start()
    redis.back()
    assert budget.windows()[2].used == 40  # the month is known again
    redis.seconds += 6.0
    assert take(budget) == (10 if persistence == "yes" else 0)
    assert any("has lost its counts" in text for text in host.told) == (persistence == "no")
    assert any("is back" in text for text in host.told)
    redis.seconds += 61.0
    assert take(budget) == (30 if persistence == "yes" else 40)


def test_an_emptied_redis_counts_each_window_as_full_and_knows_the_month(own: Callable[..., Redis]) -> None:
    redis = own()
    limits = RequestedLimits(50, 100, 1000)
    budget, host = redis.budget(limits)
    other, _ = redis.budget(limits)
    assert (take(budget, 20), take(other, 3)) == (20, 3)
    redis.seconds += 1.0
    with redis.process.client() as client:
        client.flushall()
    assert waits_for_redis(other)  # until others have said what they know
    redis.seconds += 6.0
    for each in (budget, other):
        answer = each.try_acquire()
        assert isinstance(answer, RetryAfter)
        assert answer.window == "hour"
    assert [(state.used, state.limit) for state in budget.windows()] == [(50, 50), (100, 100), (23, 1000)]
    redis.seconds += 3601.0
    assert take(budget) == 50
    assert any("has lost its counts" in text for text in host.told)


def test_what_redis_forgot_of_its_last_second_is_counted_as_made_now(own: Callable[..., Redis]) -> None:
    redis = own("--appendonly", "yes", "--appendfsync", "always")
    budget, _ = redis.budget(NARROW)
    other, _ = redis.budget(NARROW)
    assert take(budget, 2) == 2
    with redis.process.client() as client:  # what follows is lost
        client.config_set("appendonly", "no")
    assert take(other, 2) == 2
    redis.seconds += 30.0
    redis.kill()
    redis.start()
    redis.back()
    assert take(budget) == 1
    redis.seconds += 31.0  # the first two are a minute old
    assert take(budget) == 2
    redis.seconds += 28.0
    assert take(budget) == 0  # those that were forgotten count from the restart on
    redis.seconds += 3.0
    assert take(budget) > 0


def test_after_a_restart_a_process_that_was_alive_and_is_silent_closes_the_windows(own: Callable[..., Redis]) -> None:
    redis = own("--appendonly", "yes", "--appendfsync", "always")
    budget, _ = redis.budget(NARROW)
    _, gone = redis.budget(NARROW)
    assert take(budget, 1) == 1
    gone.redis.beat()
    redis.process.stop()
    redis.start()
    redis.hosts.remove(gone)
    redis.back()
    assert waits_for_redis(budget)
    redis.seconds += 5.1
    answer = budget.try_acquire()
    assert isinstance(answer, RetryAfter)
    assert answer.window == "minute"
    assert 55.0 < answer.seconds < 61.0


def test_after_a_restart_nobody_waits_for_a_process_that_had_ended_before(own: Callable[..., Redis]) -> None:
    redis = own("--appendonly", "yes", "--appendfsync", "always")
    _, gone = redis.budget(NARROW)
    gone.redis.beat()
    redis.seconds += 10.0
    budget, _ = redis.budget(NARROW)
    redis.process.stop()
    redis.start()
    redis.hosts.remove(gone)
    redis.back()
    assert take(budget) == 5


def test_after_a_restart_nobody_waits_for_what_no_window_holds_any_more(own: Callable[..., Redis]) -> None:
    redis = own("--appendonly", "yes", "--appendfsync", "always")
    killed, gone = redis.budget(NARROW)
    assert take(killed, 2) == 2  # and it was the last for hours
    redis.process.stop()
    redis.start()
    redis.hosts.remove(gone)
    redis.seconds += 3700.0
    assert take(redis.host(new=False).budget(ACCOUNT, "clicks", NARROW)) == 5


def test_a_redis_that_stands_still_holds_the_loop_for_half_a_second_once(own: Callable[..., Redis]) -> None:
    redis = own()
    budget, host = redis.budget(NARROW)
    redis.process.pause()
    try:
        assert waits_for_redis(budget)
        assert "it has not answered in time" in host.told[0]
        assert waits_for_redis(budget)  # at once
    finally:
        redis.process.resume()
    redis.back()
    # The call without an answer may have been counted, and it was.
    assert budget.windows()[0].used == 1
    assert take(budget) == 4


def test_a_full_redis_lets_attempts_wait(own: Callable[..., Redis]) -> None:
    redis = own()
    budget, host = redis.budget()
    with redis.process.client() as client:
        client.config_set("maxmemory", "1")
        assert waits_for_redis(budget)
        assert "its memory is full" in host.told[0]
        client.config_set("maxmemory", "0")
    redis.back()
    assert take(budget, 5) == 5


def test_a_replica_lets_attempts_wait_until_it_is_the_primary_again(own: Callable[..., Redis]) -> None:
    redis = own()
    budget, host = redis.budget()
    with redis.process.client() as client:
        client.replicaof("127.0.0.1", 1)
        assert waits_for_redis(budget)
        assert "it is a replica" in host.told[0]
        client.replicaof("NO", "ONE")
    redis.back()
    assert take(budget, 5) == 5


def test_a_node_of_a_cluster_is_refused(own: Callable[..., Redis]) -> None:
    redis = own("--cluster-enabled", "yes")
    with pytest.raises((UsageError, BudgetBusy), match="a node of a cluster"):
        redis.host()


def test_redis_over_tls_is_trusted_by_the_systems_certificates_or_those_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    authority.cert_pem.write_to_path(tmp_path / "authority")
    files = ("--tls-cert-file", "certificate", "--tls-key-file", "key", "--tls-ca-cert-file", "authority")
    words = [str(tmp_path / each) if index % 2 else each for index, each in enumerate(files)]
    port = free_port()
    with running_redis("--tls-port", str(port), "--tls-auth-clients", "no", *words) as process, ExitStack() as stack:
        redis = Redis(process, stack, f"rediss://127.0.0.1:{port}/0")
        with pytest.raises(BudgetBusy, match="certificate verify failed"):
            redis.host()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
        assert take(redis.budget(NARROW)[0]) == 5


def test_a_password_that_was_changed_lets_attempts_wait(own: Callable[..., Redis]) -> None:
    redis = own()
    budget, host = redis.budget()
    with redis.process.client() as client:
        client.config_set("requirepass", "new")
        client.client_kill_filter(_type="normal", skipme=True)
    assert waits_for_redis(budget)
    with pytest.raises(BudgetBusy, match="refuses the user or the password"):
        host.redis.connect()
    assert "new" not in "".join(host.told)


def test_a_script_that_redis_has_forgotten_is_sent_again(shared: Redis) -> None:
    budget, _ = shared.budget()
    with shared.process.client() as client:
        client.script_flush()
    assert take(budget, 3) == 3


def test_keys_that_a_newer_version_has_taken_over_end_the_run(shared: Redis) -> None:
    budget, _ = shared.budget(NARROW)
    with shared.process.client() as client:
        client.hset(Keys(shared.prefix).common[0], "version", "2")
    with pytest.raises(OutputError, match="has a budget of version 2") as error:
        budget.try_acquire()
    assert not isinstance(error.value, BudgetBusy)


def test_keys_that_were_evicted_close_the_windows(shared: Redis) -> None:
    budget, _ = shared.budget(NARROW)
    assert take(budget, 2) == 2
    keys = Keys(shared.prefix).of_endpoint(ACCOUNT.server, ACCOUNT.token, "clicks")
    for lost in ([keys[0]], keys[1:]):
        shared.seconds += 120.0
        assert take(budget, 1) == 1
        with shared.process.client() as client:
            client.delete(*lost)
        assert take(budget) == 0
        shared.seconds += 61.0
        assert take(budget, 3) == 3


# --- the thread -------------------------------------------------------------------------------------------------------


def test_the_thread_connects_again_by_itself(own: Callable[..., Redis], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BEAT_SECONDS", 0.02)
    redis = own()
    budget, host = redis.budget()
    with closing(host.redis):
        host.redis.start()
        assert any(thread.name == "harvester-redis" for thread in threading.enumerate())
        redis.process.restart()
        while waits_for_redis(budget):  # it is new, so that all are waited for
            redis.seconds += 0.5
        assert take(budget, 3) in {0, 3}


def test_what_a_machine_knows_of_the_month_outlives_its_processes(shared: Redis, tmp_path: Path) -> None:
    with closing(BudgetDatabase(str(tmp_path / "budget.sqlite"))) as database:
        budget, host = shared.budget()
        host.memory.keep = _keeper(database, host.memory, "redis here")
        assert take(budget, 7) == 7
        shared.seconds += 1.0
        budget.close()
        host.memory.keep()
        known = _months_of(database, ACCOUNT)
        assert set(known.values()) == {budget.windows()[2].used}
        with shared.process.client() as client:
            client.delete(*client.keys(f"*{shared.prefix}*"))
        again = shared.host()
        again.redis.learn(known)
        assert again.budget(ACCOUNT, "clicks", WIDE).windows()[2].used == 7
