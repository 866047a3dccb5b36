"""Runs of several hosts that share a budget and an address in Redis: `--budget redis://…`."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from harvester.bearer import fingerprint
from harvester.clock import Clock
from harvester.errors import UsageError
from harvester.extras import import_redis
from harvester.fleet.script import Keys
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, STATE_DIR, TOKEN, harvester, start
from tests.support.fleets import Host, a_prefix, settled
from tests.support.output_checks import rows
from tests.support.redis_server import RedisProcess, running_redis

FREE = ("--per-minute", "0", "--per-hour", "0")


class Fleet:
    """Hosts with a state folder each, and the Redis that they share. prefix: of its keys."""

    def __init__(self, folder: Path, bitly: str, server: RedisProcess) -> None:
        self.prefix = a_prefix()
        self.server = server
        self._folder = folder
        self._bitly = bitly
        host = Host(server.url, self.prefix, Clock())
        with closing(host.redis):
            host.redis.connect()  # or the first run would wait for others to report what they know
            settled(host, self.prefix)

    def command(self, host: str, links: int, *options: str, url: str | None = None) -> list[str]:
        """The command of a host's run, with a list of so many links that no other host has."""
        self._folder.joinpath(f"{host}.txt").write_text("".join(f"bit.ly/{host}{i}\n" for i in range(links)))
        shared = ["--budget", url or self.server.url, "--budget-prefix", self.prefix, "--egress", host]
        fixed = ["--out", str(self.out(host)), "--base-url", self._bitly, "--state-dir", str(self._folder / host)]
        return ["run", str(self._folder / f"{host}.txt"), *fixed, *shared, *options]

    def out(self, host: str) -> Path:
        return self._folder / f"{host}-out"

    def spent(self) -> int:
        """The attempts of the token's month, as Redis has them."""
        with self.server.client() as client:
            (spent,) = [int(value) for name, value in client.hgetall(Keys(self.prefix).common[0]).items() if ME in name]
        return spent


ME = fingerprint(TOKEN)


@pytest.fixture
def fleet(tmp_path: Path, serve: Callable[..., Served], redis_server: RedisProcess) -> Fleet:
    return Fleet(tmp_path, serve().url, redis_server)


def test_the_month_of_two_hosts_is_one(fleet: Fleet) -> None:
    first = harvester(*fleet.command("one", 6, *FREE, "--per-month", "10"))
    assert first.returncode == 0, first.stderr
    second = harvester(*fleet.command("two", 6, *FREE, "--per-month", "10"))
    assert second.returncode == 7, second.stderr
    assert fleet.spent() == 10
    assert len(rows(fleet.out("two"))) < 5


def test_plan_and_show_work_with_what_all_hosts_have_used(fleet: Fleet) -> None:
    assert harvester(*fleet.command("one", 6, *NO_LIMITS)).returncode == 0
    _, links, *options = fleet.command("two", 3, *FREE, "--per-month", "100")
    planned = harvester("plan", links, *options, "--offline")
    assert planned.returncode == 0, planned.stderr
    assert "the 6 calls made this month" in planned.stdout
    del options[options.index("--out") : options.index("--out") + 2]
    shown = harvester("show", "bit.ly/other", *options)
    assert shown.returncode == 0, shown.stderr
    assert fleet.spent() == 7
    status = harvester("status", str(fleet.out("one")))
    assert "month  6 used" in status.stdout


def test_facets_side_by_side_share_the_connections_of_their_address(fleet: Fleet) -> None:
    command = fleet.command("both", 8, *NO_LIMITS, "--facet", "countries,referrers")
    command[command.index("--out") + 1] += "/{facet}"
    done = harvester(*command)
    assert done.returncode == 0, done.stderr


def test_a_password_comes_from_a_file_or_a_command_and_is_shown_nowhere(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret # of Redis\nnotes\n")
    secret.chmod(0o600)
    with running_redis("--requirepass", "s3cret # of Redis") as server:
        client = server.client(password="s3cret # of Redis")
        client.hset(Keys("harvester").common[0], mapping={"version": "1", "generation": "g", "run": "r"})
        (tmp_path / "list.txt").write_text("bit.ly/a\n")
        fixed = ["run", str(tmp_path / "list.txt"), "--base-url", serve().url, "--budget", server.url, *NO_LIMITS]
        state = {STATE_DIR: str(tmp_path / "state")}
        by_file = harvester(*fixed, "--out", str(tmp_path / "a"), "--budget-password-file", str(secret), env=state)
        assert by_file.returncode == 0, by_file.stderr
        command = f"head -n 1 {secret}"
        printed = harvester(*fixed, "--out", str(tmp_path / "b"), "--budget-password-command", command, env=state)
        assert printed.returncode == 0, printed.stderr
        wrong = harvester(*fixed, "--out", str(tmp_path / "c"), env={**state, "HARVESTER_BUDGET_PASSWORD": "wr0ng"})
        assert wrong.returncode == 2
        assert "it refuses the user or the password: check --budget-password-file" in wrong.stderr
        none = harvester(*fixed, "--out", str(tmp_path / "d"), env=state)
        assert none.returncode == 2, none.stderr
        client.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != secret)
    told = "".join(done.stdout + done.stderr for done in (by_file, printed, wrong, none)).encode()
    assert b"s3cret" not in kept + told
    assert b"wr0ng" not in kept + told


def test_a_password_in_the_url_is_refused_and_shown_nowhere(fleet: Fleet, tmp_path: Path) -> None:
    done = harvester(*fleet.command("one", 1, url="redis://app:hunter2@127.0.0.1:6379/0"))
    assert done.returncode == 2
    assert "--budget has a password" in done.stderr
    shown = harvester("config", "--for", "run", env={"HARVESTER_BUDGET": "redis://app:hunter2@127.0.0.1/0"})
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in kept + (done.stdout + done.stderr + shown.stdout + shown.stderr).encode()


def test_keys_of_another_version_are_refused_and_left_as_they_are(fleet: Fleet) -> None:
    with fleet.server.client() as client:
        meta = Keys(fleet.prefix).common[0]
        client.hset(meta, "version", "2")
        before = client.hgetall(meta)
        done = harvester(*fleet.command("one", 1, *NO_LIMITS))
        assert done.returncode == 2
        assert "has a budget of version 2 under the prefix" in done.stderr
        assert "another --budget-prefix" in done.stderr
        assert client.hgetall(meta) == before


def test_a_redis_that_is_not_there_ends_the_command_before_anything_is_sent(fleet: Fleet) -> None:
    done = harvester(*fleet.command("one", 1, url="redis://127.0.0.1:1/0"))
    assert done.returncode == 5
    assert "warning: waiting for the shared budget (redis://127.0.0.1:1/0: connection refused)" in done.stderr
    assert "the shared budget cannot be reached" in done.stderr


def test_a_run_waits_for_a_redis_that_has_gone_and_goes_on_when_it_is_back(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    with running_redis("--appendonly", "yes") as server:
        fleet = Fleet(tmp_path, serve(latency_ms=20).url, server)
        run = start(*fleet.command("one", 300, *NO_LIMITS))
        _wait_for_a_count(fleet)
        server.kill()
        waiting = _told(run, "the shared budget is out of reach")
        server.start()
        _, told = run.communicate(timeout=60)
        assert run.returncode == 0, waiting + told.decode()
        assert "the shared budget is back" in told.decode()
        assert len(rows(fleet.out("one"))) == 300
        assert fleet.spent() >= 300


def test_a_signal_ends_a_run_that_waits_for_redis(tmp_path: Path, serve: Callable[..., Served]) -> None:
    with running_redis() as server:
        fleet = Fleet(tmp_path, serve(latency_ms=20).url, server)
        run = start(*fleet.command("one", 2000, *NO_LIMITS))
        _wait_for_a_count(fleet)
        server.kill()
        _told(run, "the shared budget is out of reach")
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
        assert run.returncode == 5


def _wait_for_a_count(fleet: Fleet) -> None:
    while True:
        with suppress(ValueError):
            if fleet.spent():
                return
        time.sleep(0.02)


def _told(run: subprocess.Popen[bytes], what: str) -> str:
    """Read what a run tells until it tells this."""
    told = ""
    assert run.stderr is not None
    while what not in told:
        line = run.stderr.readline()
        assert line, told
        told += line.decode()
    return told


def test_without_the_package_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UsageError, match=r"pip install 'bitly-harvester\[redis\]'"):
        import_redis("--budget redis://cache")
