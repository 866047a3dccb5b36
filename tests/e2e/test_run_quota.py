"""What the budget remembers: across runs, outputs, processes, kills and months, and what Bitly says of it."""

import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harvester.bearer import fingerprint
from harvester.clock import month_of, next_month
from tests.conftest import Served
from tests.e2e.test_run_against_a_hostile_server import many
from tests.support.commands import NO_LIMITS, STATE_DIR, TOKEN, harvester, start
from tests.support.output_checks import failures, manifest, rows
from tests.support.scripted_bitly import Scripted, scripted

FREE = ("--per-minute", "0", "--per-hour", "0")
ME = fingerprint(TOKEN)
Serve = Callable[..., Served]


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


class Machine:
    """A state folder and the runs that share it; every list and output has a name."""

    def __init__(self, folder: Path, url: str) -> None:
        self.state = folder / "state"
        self._folder = folder
        self._url = url

    def out(self, name: str) -> Path:
        return self._folder / name

    def write(self, name: str, links: int | Sequence[str]) -> None:
        """Write a list: of back-halves, or of so many links that no other list has."""
        back_halves = [f"{name}-{i}" for i in range(links)] if isinstance(links, int) else links
        self._list(name).write_text("".join(f"bit.ly/{back_half}\n" for back_half in back_halves))

    def command(self, name: str, *options: str) -> list[str]:
        fixed = ["--out", str(self.out(name)), "--base-url", self._url, "--state-dir", str(self.state)]
        return ["run", str(self._list(name)), *fixed, *options]

    def run(
        self, name: str, links: int | Sequence[str], *options: str, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Write a list and harvest it."""
        self.write(name, links)
        return harvester(*self.command(name, *options), **more)

    def spent(self, account: str = ME) -> int:
        """What the file says of an account's months, all together."""
        with closing(self._database()) as db:
            select = "SELECT coalesce(sum(spent), 0) FROM months WHERE account = ?"
            return int(db.execute(select, (account,)).fetchone()[0])

    def let_a_month_pass(self) -> None:
        """Make the month's count an earlier month's."""
        with closing(self._database()) as db, db:
            db.execute("UPDATE months SET month = ?", (f"{datetime.now(UTC).year - 1}-12",))

    def suspend(self, days: float) -> None:
        """Make the calendar miss some days, as after a pause of a virtual machine, and all that was spent lie before.

        The month is then the one that it was before the pause.
        """
        with closing(self._database()) as db, db:
            db.execute("UPDATE meta SET value = value - ? WHERE name = 'anchor_wall'", (days * 86400.0,))
            db.execute("UPDATE months SET month = ?", (month_of(time.time() - days * 86400.0),))

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.state / "budget.sqlite")

    def _list(self, name: str) -> Path:
        return self._folder / f"{name}.txt"


def windows(out: Path) -> dict[str, dict[str, Any]]:
    return {window["window"]: window for window in manifest(out)["budget"]["windows"]}


def kept(out: Path) -> dict[str, tuple[int | None, str]]:
    """The windows' limits and their sources."""
    return {name: (window["limit"], window["source"]) for name, window in windows(out).items()}


# --- the month ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_month_is_kept_across_runs_and_outputs_and_ends_a_run_with_all_committed(
    tmp_path: Path, serve: Serve
) -> None:
    served = serve()
    machine = Machine(tmp_path, served.url)
    month = (*FREE, "--per-month", "30")
    assert machine.run("first", 20, *month).returncode == 0
    second = machine.run("second", 20, *month)
    assert second.returncode == 7, second.stderr
    assert "this month's calls are enough for 10 of 20 links (20 of 30 are used)" in second.stderr
    assert served.sandbox.requests.total() == machine.spent() == 30
    out, until = machine.out("second"), next_month(datetime.now(UTC)).strftime("%Y-%m-%dT00:00:00Z")
    stopped = manifest(out)["stopped"]
    assert (stopped["reason"], stopped["until"]) == ("month_spent", until)
    assert f"{until[:10]} 00:00 UTC" in second.stderr
    assert len(rows(out)) == 10 == sum(part["rows"] for part in manifest(out)["parts"])
    assert windows(out)["month"] == {
        "window": "month", "limit": 30, "used": 30, "remaining": 0, "until": until, "source": "asked",
    }  # fmt: skip
    # At once, for a new output too: nothing is asked any more.
    for name in ("second", "third"):
        again = machine.run(name, 20, *month)
        assert again.returncode == 7, again.stderr
        assert f"{until[:10]} 00:00 UTC" in again.stderr
    assert served.sandbox.requests.total() == 30
    machine.let_a_month_pass()
    assert harvester(*machine.command("second", *month)).returncode == 0
    assert served.sandbox.requests.total() == 40
    assert len(rows(out)) == 20


def test_a_month_that_ended_while_the_machine_was_suspended_is_over(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    machine = Machine(tmp_path, served.url)
    month = (*FREE, "--per-month", "30")
    assert machine.run("first", 40, *month).returncode == 7
    machine.suspend(40)
    second = machine.run("second", 40, *month)
    assert second.returncode == 7, second.stderr
    assert "covers 0" not in second.stderr
    assert "Bitly's date decides whether it is enough for the 40 calls" in second.stderr
    assert manifest(machine.out("second"))["stopped"]["until"] == next_month(datetime.now(UTC)).strftime(
        "%Y-%m-%dT00:00:00Z"
    )
    assert len(rows(machine.out("second"))) == 29  # and one request for the date
    assert manifest(machine.out("second"))["budget"]["windows"][-1]["used"] == 30
    assert machine.run("third", 5, *month).returncode == 7
    assert served.sandbox.requests.total() == 30 + 29


@pytest.mark.slow
def test_each_token_has_a_month_of_its_own_and_those_of_an_account_share_one(tmp_path: Path, serve: Serve) -> None:
    machine, month = Machine(tmp_path, serve().url), (*FREE, "--per-month", "10")
    other, third = {"BITLY_TOKEN": "e" * 40}, {"BITLY_TOKEN": "f" * 40}
    assert machine.run("mine", 6, *month, "--account", "team").returncode == 0
    shared = machine.run("shared", 6, *month, "--account", "team", env=other)
    assert shared.returncode == 7, shared.stderr
    assert "this month's calls are enough for 4 of 6 links" in shared.stderr
    assert manifest(machine.out("shared"))["budget"]["account"] == "team"
    assert machine.run("anothers", 10, *month, env=third).returncode == 0
    accounts = {"team": 10, ME: 6, fingerprint("e" * 40): 4, fingerprint("f" * 40): 10}
    assert {name: machine.spent(name) for name in accounts} == accounts


def test_a_new_name_brings_no_new_month(tmp_path: Path, serve: Serve) -> None:
    machine, month = Machine(tmp_path, serve().url), (*FREE, "--per-month", "10")
    assert machine.run("first", 10, *month).returncode == 0
    renamed = machine.run("second", 1, *month, "--account", "team")
    assert renamed.returncode == 7, renamed.stderr
    assert machine.spent("team") == 0


def test_a_reserve_is_left_to_others(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    machine = Machine(tmp_path, served.url)
    limits = ("--per-minute", "100", "--per-hour", "1000", "--per-month", "10", "--reserve", "10%")
    done = machine.run("out", 12, *limits)
    assert done.returncode == 7, done.stderr
    assert served.sandbox.requests.total() + served.sandbox.helped.total() == 9
    assert kept(machine.out("out")) == {"minute": (90, "asked"), "hour": (900, "asked"), "month": (9, "asked")}


@pytest.mark.slow
@pytest.mark.parametrize("per_hour", ["0", "1000000"], ids=["without windows", "far from its limits"])
def test_no_kill_makes_the_count_less_than_what_was_sent(tmp_path: Path, serve: Serve, per_hour: str) -> None:
    """Two processes at a time, because what one has counted another must not forget."""
    served, rng, kills = serve(latency_ms=10), random.Random(per_hour), 4
    machine = Machine(tmp_path, served.url)
    for name in ("a", "b"):
        machine.write(name, 3000)
    limits = ("--per-minute", "0", "--per-hour", per_hour, "--per-month", "100000")
    commands = [machine.command(name, *limits) for name in ("a", "b")]
    for _ in range(kills):
        goal = served.sandbox.requests.total() + rng.randint(20, 120)
        processes = [start(*command) for command in commands]
        while served.sandbox.requests.total() < goal:
            assert all(process.poll() is None for process in processes)
            threading.Event().wait(0.001)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        while served.sandbox.at_once:
            threading.Event().wait(0.001)
        assert machine.spent() >= served.sandbox.requests.total()
    assert served.sandbox.too_many_connections == 0
    assert machine.spent() <= served.sandbox.requests.total() + 2 * kills * 64  # what is left of a lease each


# --- minute and hour ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "limits"),
    [("minute", ("--per-minute", "20", "--per-hour", "0")), ("hour", ("--per-minute", "0", "--per-hour", "20"))],
)
def test_a_window_is_kept_across_a_restart(tmp_path: Path, serve: Serve, window: str, limits: tuple[str, ...]) -> None:
    served = serve()
    machine = Machine(tmp_path, served.url)
    options = (*limits, "--per-month", "0", "--connections", "1")
    assert machine.run("first", 20, *options).returncode == 0
    second = machine.run("second", 5, *options, "--max-time", "2s")
    assert second.returncode == 9, second.stderr
    assert served.sandbox.requests.total() == 20
    budget = manifest(machine.out("second"))["budget"]
    assert (budget["limited_by"]["window"], budget["limited_by"]["limit"]) == (window, 20)
    assert datetime.now(UTC) < datetime.fromisoformat(budget["limited_by"]["until"])
    assert windows(machine.out("second"))[window]["remaining"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"per_minute": 60, "per_hour": 0}, {"per_minute": 0, "per_hour": 60}])
def test_two_processes_together_keep_a_servers_limit(tmp_path: Path, serve: Serve, limit: dict[str, int]) -> None:
    served = serve(**limit)
    machine = Machine(tmp_path, served.url)
    allowed = [word for name, value in limit.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    limits = (*allowed, "--per-month", "0", "--max-time", "3s")
    for name in ("a", "b"):
        machine.write(name, 50)
    processes = [start(*machine.command(name, *limits)) for name in ("a", "b")]
    errors = [process.communicate(timeout=30)[1] for process in processes]
    assert {process.returncode for process in processes} <= {0, 9}, errors
    assert served.sandbox.throttled == 0
    assert 10 < served.sandbox.requests.total() <= 60


# --- what Bitly says of its limits ----------------------------------------------------------------------------------


def test_bitlys_own_limits_replace_the_defaults(tmp_path: Path, serve: Serve) -> None:
    served = serve(per_hour=3000)
    machine = Machine(tmp_path, served.url)
    done = machine.run("out", 4)
    assert done.returncode == 0, done.stderr
    assert (
        "Bitly allows 3,000 calls an hour for this endpoint and counts 0; limiting to 300 a minute and 3,000 an hour"
        in done.stderr
    )
    assert kept(machine.out("out")) == {"minute": (300, "bitly"), "hour": (3000, "bitly"), "month": (1000, "default")}
    assert served.sandbox.helped.total() == 1
    assert manifest(machine.out("out"))["attempts"] == {"total": 4, "retried": 0, "throttled": 0, "helper": 1}
    assert machine.spent() == 5


def test_requested_limits_take_precedence(tmp_path: Path, serve: Serve) -> None:
    served = serve(per_hour=3000)
    machine = Machine(tmp_path, served.url)
    done = machine.run("out", 4, "--per-minute", "500", "--per-hour", "40")
    assert done.returncode == 0, done.stderr
    assert "keeping" not in done.stderr
    assert kept(machine.out("out")) == {"minute": (500, "asked"), "hour": (40, "asked"), "month": (1000, "default")}


def test_bitly_is_not_asked_for_limits_that_would_change_nothing(tmp_path: Path, serve: Serve) -> None:
    served = serve(per_hour=50)
    machine = Machine(tmp_path, served.url)
    assert machine.run("out", 4, *NO_LIMITS).returncode == 0
    assert served.sandbox.helped.total() == 0
    # Nor where nothing is to be called.
    assert machine.run("out", 4).returncode == 0
    assert served.sandbox.helped.total() == 0
    assert served.sandbox.requests.total() == 4


def test_a_second_run_within_five_minutes_remembers_what_bitly_said(tmp_path: Path, serve: Serve) -> None:
    served = serve(per_hour=3000)
    machine = Machine(tmp_path, served.url)
    assert machine.run("first", 2).returncode == 0
    assert machine.run("second", 2).returncode == 0
    assert served.sandbox.helped.total() == 1
    assert kept(machine.out("second"))["hour"] == (3000, "bitly")


def test_what_others_have_used_of_the_same_token_is_counted(tmp_path: Path, serve: Serve) -> None:
    served = serve(per_hour=50)
    machine = Machine(tmp_path, served.url)
    for i in range(20):
        url = f"{served.url}/bitlinks/bit.ly/other-{i}/referrers"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})):
            pass
    done = machine.run("out", 4, "--per-minute", "100")
    assert done.returncode == 0, done.stderr
    assert "counts 20 (20 of them not in this budget)" in done.stderr
    assert windows(machine.out("out"))["hour"]["used"] == 24


@pytest.mark.parametrize(
    ("helper", "came"),
    [
        ("404-plain", "HTTP 404"),
        ("500-for-ever", "HTTP 500"),
        ("html", "its answer has none"),
        ("empty-object", "its answer has none"),
        ("hangup", "no answer"),
        ("bomb", "no answer"),
    ],
)
def test_whatever_bitly_answers_instead_of_limits_the_defaults_apply(
    bitly: Scripted, tmp_path: Path, helper: str, came: str
) -> None:
    bitly.helper = helper
    machine = Machine(tmp_path, bitly.url)
    done = machine.run("out", ["ok--1", "ok--2"])
    assert done.returncode == 0, done.stderr
    assert f"Bitly gave no limits ({came}); using 100 a minute and 1,000 an hour" in done.stderr
    assert len(bitly.helped) == 1
    assert kept(machine.out("out"))["hour"] == (1000, "default")


@pytest.mark.parametrize("helper", ["429-month", "429-monthly"])
def test_a_spent_month_reported_by_a_helper_route_ends_the_run(bitly: Scripted, tmp_path: Path, helper: str) -> None:
    bitly.helper = helper
    done = Machine(tmp_path, bitly.url).run("out", ["ok--1", "ok--2"])
    assert done.returncode == 7, done.stderr
    assert bitly.requests == []


# --- where the budget is kept ---------------------------------------------------------------------------------------


def test_the_budget_lies_in_the_users_state_folder_unless_told_otherwise(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    links = tmp_path / "links.txt"
    links.write_text("bit.ly/a\n")
    command = ("run", str(links), "--base-url", served.url, *NO_LIMITS)
    env = {STATE_DIR: str(tmp_path / "named")}
    assert harvester(*command, "--out", str(tmp_path / "1"), env=env).returncode == 0
    assert (tmp_path / "named" / "budget.sqlite").exists()
    said = ("--out", str(tmp_path / "2"), "--state-dir", str(tmp_path / "said"))
    assert harvester(*command, *said, env=env).returncode == 0
    assert (tmp_path / "said" / "budget.sqlite").exists()
    env = {STATE_DIR: "", "XDG_STATE_HOME": str(tmp_path / "xdg"), "HOME": str(tmp_path)}
    assert harvester(*command, "--out", str(tmp_path / "3"), env=env).returncode == 0
    assert list(tmp_path.rglob("harvester/budget.sqlite"))


def test_an_emptied_budget_is_no_new_month_without_a_word(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    state, url = tmp_path / "state", serve().url
    command = ("run", str(tmp_path / "links.txt"), "--base-url", url, "--state-dir", str(state), "--out")
    assert "was empty" not in harvester(*command, str(tmp_path / "one")).stderr
    budget = state / "budget.sqlite"
    budget.write_bytes(b"")
    os.utime(budget, (0, 0))
    done = harvester(*command, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert f"{budget} was empty" in done.stderr


@pytest.mark.parametrize("form", ["out", "out.ndjson", "-"])
def test_a_users_state_folder_that_cannot_be_written_is_warned_about_and_replaced(
    tmp_path: Path, serve: Serve, form: str
) -> None:
    (tmp_path / "file").write_text("")
    out = form if form == "-" else str(tmp_path / form)
    command = ("run", "-", "--out", out, "--base-url", serve().url, *NO_LIMITS)
    env = {STATE_DIR: "", "XDG_STATE_HOME": str(tmp_path / "file" / "state")}
    done = harvester(*command, env=env, stdin=b"bit.ly/a\n")
    assert done.returncode == 0, done.stderr
    assert "cannot contain the budget" in done.stderr
    assert "--state-dir" in done.stderr
    if form != "-":
        assert len(list(tmp_path.rglob("budget.sqlite"))) == 1


@pytest.mark.parametrize("form", ["out", "out.ndjson", "-"])
def test_a_state_dir_that_cannot_be_written_is_refused(tmp_path: Path, serve: Serve, form: str) -> None:
    """Kept with each output, the month would be spent again for each."""
    (tmp_path / "file").write_text("")
    served, out = serve(), form if form == "-" else str(tmp_path / form)
    command = ("run", "-", "--out", out, "--base-url", served.url, *NO_LIMITS)
    done = harvester(*command, "--state-dir", str(tmp_path / "file" / "state"), stdin=b"bit.ly/a\n")
    assert done.returncode == 8, done.stderr
    assert "cannot contain the budget" in done.stderr
    assert "Traceback" not in done.stderr
    assert served.sandbox.requests.total() == 0
    assert list(tmp_path.rglob("budget.sqlite")) == []


@pytest.mark.parametrize("damage", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_damaged_budget_ends_with_8_and_says_what_to_do(tmp_path: Path, serve: Serve, damage: bytes) -> None:
    served = serve()
    machine = Machine(tmp_path, served.url)
    machine.state.mkdir()
    (machine.state / "budget.sqlite").write_bytes(damage)
    done = machine.run("out", 3, *NO_LIMITS)
    assert done.returncode == 8, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{machine.state}/budget.sqlite" in done.stderr
    assert "move it away" in done.stderr
    assert served.sandbox.requests.total() == 0
    (machine.state / "budget.sqlite").unlink()
    assert machine.run("out", 3, *NO_LIMITS).returncode == 0


def test_a_budget_that_is_damaged_meanwhile_stops_the_run_with_8(tmp_path: Path, serve: Serve) -> None:
    """Nothing may be sent uncounted."""
    served = serve(latency_ms=20)
    machine = Machine(tmp_path, served.url)
    machine.write("out", 2000)
    with start(*machine.command("out", "--per-minute", "0", "--per-hour", "1000000", "--per-month", "0")) as process:
        while served.sandbox.requests.total() < 20:
            assert process.poll() is None
            threading.Event().wait(0.005)
        with closing(sqlite3.connect(machine.state / "budget.sqlite")) as db, db:
            db.execute("DROP TABLE months")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 8, err
    assert b"Traceback" not in err
    assert b"budget.sqlite" in err
    assert len(rows(machine.out("out"))) == served.sandbox.requests.total() < 2000


def test_the_token_is_in_no_file(tmp_path: Path, serve: Serve) -> None:
    served = serve(per_hour=50, per_minute=3)
    machine = Machine(tmp_path, served.url)
    done = machine.run("out", 4, "--per-minute", "0", "--account", "me", "--max-time", "2s")
    assert done.returncode == 9, done.stderr
    assert served.sandbox.throttled > 0
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"budget.sqlite", "process-0", "slot-0"} <= {Path(path).name for path in written}
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert [name for name, data in {**written, **said}.items() if TOKEN.encode() in data.lower()] == []
    assert not machine.state.stat().st_mode & 0o077


# --- what every call would be answered --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "code", "reason"),
    [
        ("401", 6, "token_refused"),
        ("403-bare", 6, "token_refused"),
        ("402", 6, "plan_refused"),
        ("400-unit", 2, "parameter_refused"),
        ("429-month", 7, "month_spent"),
    ],
)
def test_an_answer_that_every_call_would_get_costs_only_the_calls_in_flight(
    bitly: Scripted, tmp_path: Path, behaviour: str, code: int, reason: str
) -> None:
    machine = Machine(tmp_path, bitly.url)
    bitly.everyone = lambda: behaviour if len(bitly.requests) > 10 else None
    done = machine.run("out", many("ok", 100), *NO_LIMITS)
    assert done.returncode == code, done.stderr
    assert manifest(machine.out("out"))["stopped"]["reason"] == reason
    assert len(bitly.requests) <= 10 + 5 + 1  # and a link that was answered before
    assert failures(machine.out("out")) == []


def test_a_server_that_knows_no_route_makes_no_link_refused(bitly: Scripted, tmp_path: Path) -> None:
    """However many may fail: a wrong base URL is nobody's to allow."""
    machine, names = Machine(tmp_path, bitly.url), many("404-plain-x1-then-ok", 60)
    done = machine.run("out", names, *NO_LIMITS, "--max-failures", "100%")
    assert done.returncode == 2, done.stderr
    assert "--base-url" in done.stderr
    assert 20 <= len(bitly.requests) <= 25
    failed = failures(machine.out("out"))
    assert {line["kind"] for line in failed} == {"failed"}
    # At the right server they are asked again; what it does not know there is the links' own.
    again = machine.run("out", [*many("ok", 5), *names], *NO_LIMITS, "--max-failures", "100%")
    assert again.returncode == 0, again.stderr
    counts = manifest(machine.out("out"))["dataset"]
    assert (counts["rows"], counts["refused"]) == (5 + len(failed), 60 - len(failed))
