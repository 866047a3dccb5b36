"""What surrounds a run on a server: PID 1, users without a home, locales, umasks, supervisors with little patience."""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest

from tests.conftest import Served, quick_folder
from tests.support.commands import NO_LIMITS, ROOT, STATE_DIR, TOKEN, harvester, start
from tests.support.output_checks import check_reconciled, failures, rows
from tests.support.scripted_bitly import Scripted, scripted

LINKS = [f"bit.ly/{i}" for i in range(300)]
SUPERVISOR_SECONDS = 10
"""Between SIGTERM and SIGKILL, as Docker has it; Kubernetes gives 30 s, systemd 90."""
OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
OWN_MOUNTS = ("unshare", "--mount")
NO_NAME = ("setpriv", "--reuid", "54321", "--clear-groups")
"""A user that no passwd file knows, as containers have them."""

Serve = Callable[..., Served]


@cache
def possible(*wrapper: str) -> bool:
    """Say whether this machine and user may wrap a command so."""
    try:
        return subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def needs(*wrapper: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not possible(*wrapper), reason=f"this machine does not allow `{shlex.join(wrapper)}`")


AS_PID_1 = pytest.param(OWN_PIDS, id="PID 1", marks=needs(*OWN_PIDS))
AS_ANY_PID = pytest.param((), id="any PID")


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("\n".join(LINKS))
    return str(path)


@pytest.fixture
def short_list(tmp_path: Path) -> str:
    path = tmp_path / "short.txt"
    path.write_text("\n".join(LINKS[:30]))
    return str(path)


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


def command_for(links: str, out: Path, url: str, *more: str, limits: tuple[str, ...] = NO_LIMITS) -> list[str]:
    return ["run", links, "--out", str(out), "--base-url", url, *limits, *more]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not happened():
        assert process.poll() is None
        time.sleep(0.002)


def itself(process: subprocess.Popen[bytes], wrapper: tuple[str, ...]) -> psutil.Process:
    """Find the command behind its wrapper."""
    outer = psutil.Process(process.pid)
    return outer.children()[0] if wrapper == OWN_PIDS else outer


def supervised_end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """End a process as a supervisor does, and give its exit code; -9 if it had to be killed."""
    process.send_signal(number)
    try:
        process.communicate(timeout=SUPERVISOR_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


def end_for_good(processes: list[psutil.Process]) -> None:
    """Kill what a command has started and may have left."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


# --- PID 1 --------------------------------------------------------------------------------------------------------


@needs(*OWN_PIDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_pid_1_obeys_signals_commits_and_carries_on(
    tmp_path: Path, links: str, serve: Serve, number: signal.Signals
) -> None:
    """The kernel drops a signal to PID 1 that has no handler."""
    served, out = serve(latency_ms=20), tmp_path / "out"
    command = command_for(links, out, served.url)
    with start(*command, wrapper=OWN_PIDS) as process:
        wait_until(lambda: served.sandbox.answered.total() >= 20, process)
        itself(process, OWN_PIDS).send_signal(number)
        assert process.wait(timeout=SUPERVISOR_SECONDS) == 5
    assert len(rows(out)) == served.sandbox.answered.total() < len(LINKS)
    assert harvester(*command).returncode == 0
    check_reconciled(out, set(LINKS))
    assert served.sandbox.requests.total() == len(LINKS)


@pytest.mark.parametrize("wrapper", [AS_PID_1, AS_ANY_PID])
@pytest.mark.parametrize(
    ("verb", "number"),
    [
        *(("run", number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)),
        ("plan", signal.SIGTERM),
        *(pytest.param("plan", number, marks=pytest.mark.nightly) for number in (signal.SIGHUP, signal.SIGINT)),
    ],
)
def test_a_signal_ends_a_command_that_waits_for_its_token(
    tmp_path: Path, links: str, wrapper: tuple[str, ...], number: signal.Signals, verb: str
) -> None:
    begun = tmp_path / "begun"
    # The pause lets Popen return first: a signal within it would leave a warning about a process that still runs.
    waiting = f"sh -c 'sleep 0.1; touch {begun}; exec sleep 3600'"
    arguments = (verb, links, "--out", str(tmp_path / "out"), "--token-command", waiting)
    with start(*arguments, wrapper=wrapper) as process:
        wait_until(begun.exists, process)
        harvesting = itself(process, wrapper)
        asked = harvesting.children()
        harvesting.send_signal(number)
        assert process.wait(timeout=SUPERVISOR_SECONDS) == 128 + number
        end_for_good(asked)
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrapper", [AS_PID_1, AS_ANY_PID])
def test_a_token_command_leaves_no_zombie(tmp_path: Path, links: str, serve: Serve, wrapper: tuple[str, ...]) -> None:
    served = serve(latency_ms=20)
    command = command_for(links, tmp_path / "out", served.url, "--token-command", f"echo {TOKEN}")
    with start(*command, wrapper=wrapper) as process:
        wait_until(lambda: served.sandbox.answered.total() >= 5, process)
        harvesting = itself(process, wrapper)
        assert harvesting.children() == []
        harvesting.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SUPERVISOR_SECONDS) == 5


# --- homes --------------------------------------------------------------------------------------------------------


def check_the_budget_is_kept_in_the_output(done: subprocess.CompletedProcess[str], out: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert "cannot contain the budget" in done.stderr
    assert "--state-dir" in done.stderr
    assert (out / "_harvester" / "budget.sqlite").exists()


def test_a_home_that_cannot_be_created_is_not_needed(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file").write_text("")
    out, env = tmp_path / "out", {"HOME": str(tmp_path / "file" / "home"), STATE_DIR: "", "XDG_STATE_HOME": ""}
    command = command_for("-", out, serve().url)
    check_the_budget_is_kept_in_the_output(harvester(*command, env=env, stdin=b"bit.ly/a\n"), out)
    again = harvester(*command, env=env, stdin=b"bit.ly/a\nbit.ly/b\n")
    assert "no limit a month (1 used)" in again.stderr


@needs(*OWN_MOUNTS)
def test_a_read_only_home_is_not_written_to(tmp_path: Path, serve: Serve) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    wrapper = (*OWN_MOUNTS, "sh", "-c", 'mount -t tmpfs -o ro none "$HOME" && exec "$@"', "sh")
    env = {"HOME": str(home), STATE_DIR: "", "XDG_STATE_HOME": ""}
    done = harvester(*command_for("-", out, serve().url), env=env, stdin=b"bit.ly/a\n", wrapper=wrapper)
    check_the_budget_is_kept_in_the_output(done, out)
    assert list(home.iterdir()) == []


@needs(*OWN_MOUNTS)
def test_a_month_that_is_spent_is_not_spent_again_because_its_count_cannot_be_written(
    tmp_path: Path, links: str, serve: Serve
) -> None:
    home, served = tmp_path / "home", serve()
    home.mkdir()
    env = {"HOME": str(home), STATE_DIR: "", "XDG_STATE_HOME": ""}
    month = ("--per-month", "40", "--per-minute", "0", "--per-hour", "0")
    done = harvester(*command_for(links, tmp_path / "out", served.url, limits=month), env=env)
    assert done.returncode == 7, done.stderr
    spent = served.sandbox.requests.total()
    wrapper = (*OWN_MOUNTS, "sh", "-ec", 'mount --bind "$HOME" "$HOME"; mount -o remount,bind,ro "$HOME"; "$@"', "sh")
    for name in ("again", "and-again.ndjson", "-"):
        out = Path(name) if name == "-" else tmp_path / name
        done = harvester(*command_for(links, out, served.url, limits=month), env=env, wrapper=wrapper)
        assert done.returncode == 8, done.stderr
        assert "has the counts of this month" in done.stderr
    assert served.sandbox.requests.total() == spent


@needs(*OWN_MOUNTS)
def test_a_read_only_machine_needs_the_output_and_its_state_alone(tmp_path: Path, links: str, serve: Serve) -> None:
    """As in a container with a read-only root and two volumes."""
    out, work, state = volumes = [str(tmp_path / name) for name in ("out", "work", "state")]
    for volume in volumes:
        os.mkdir(volume)
    mounting = 'for i in "$1" "$2" "$3"; do mount --bind "$i" "$i"; done; mount -o remount,bind,ro /; shift 3; "$@"'
    wrapper = (*OWN_MOUNTS, "sh", "-ec", mounting, "sh", *volumes)
    options = ("--work-dir", work, "--state-dir", state)
    done = harvester(*command_for(links, Path(out), serve().url, *options), wrapper=wrapper)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert len(rows(Path(out))) == len(LINKS)


@needs(*NO_NAME, sys.executable, "-c", "import harvester.run.job")
def test_a_user_without_name_and_home_can_run_it(links: str, serve: Serve) -> None:
    with quick_folder() as folder:
        folder.chmod(0o777)
        out = folder / "out"
        wrapper = ("env", "-i", f"BITLY_TOKEN={TOKEN}", f"PYTHONPATH={ROOT}", *NO_NAME)
        command = command_for("-", out, serve().url)
        done = harvester(*command, stdin=b"bit.ly/a\n", wrapper=wrapper, cwd=folder)
        check_the_budget_is_kept_in_the_output(done, out)
        assert "this user has no home folder" in done.stderr
        assert os.listdir(folder) == ["out"]


# --- locale and umask ---------------------------------------------------------------------------------------------

LOCALES = [
    (),
    ("LC_ALL=C",),
    ("LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"),
    ("LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0", "PYTHONIOENCODING=latin-1"),
]


@pytest.mark.parametrize(
    ("form", "locale"),
    [
        pytest.param(form, locale, id=f"{form}-{' '.join(locale) or 'none'}", marks=marks)
        for form, nightly in (("out", {0, 1}), ("-", {2}))
        for number, locale in enumerate(LOCALES)
        for marks in [pytest.mark.nightly if number in nightly else ()]
    ],
)
def test_lists_rows_failures_and_messages_are_utf_8_whatever_the_locale(
    tmp_path: Path, serve: Serve, form: str, locale: tuple[str, ...]
) -> None:
    links, out = tmp_path / "links.txt", tmp_path / "out"
    links.write_text("bit.ly/größe\nkein Link, nö\n", encoding="utf-8")
    wrapper = ("env", "-i", f"BITLY_TOKEN={TOKEN}", f"{STATE_DIR}={os.environ[STATE_DIR]}", "PYTHONWARNINGS=error")
    command = ["run", str(links), "--out", "-" if form == "-" else str(out), "--base-url", serve().url, *NO_LIMITS]
    done = harvester(*command, wrapper=(*wrapper, *locale))
    assert done.returncode == 0, done.stderr
    assert "kein Link, nö" in done.stderr
    published = json.loads(done.stdout) if form == "-" else rows(out)[0]
    assert published["bitlink"] == "bit.ly/größe"
    if form != "-":
        assert [line["text"] for line in failures(out)] == ["kein Link, nö"]


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
@pytest.mark.parametrize("form", ["out", "out.ndjson"])
def test_the_umask_decides_on_the_modes_of_everything_in_the_output(
    tmp_path: Path, short_list: str, serve: Serve, form: str, umask: int
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    command = command_for(short_list, here / form, serve().url, "--part-rows", "10")
    assert harvester(*command, umask=umask).returncode == 0
    modes = {str(path.relative_to(here)): stat.S_IMODE(path.stat().st_mode) for path in here.rglob("*")}
    assert {Path(name).name for name in modes} >= {"_manifest.json", "_failures.ndjson", "_SUCCESS", "ledger.sqlite"}
    expected = {name: (0o777 if (here / name).is_dir() else 0o666) & ~umask for name in modes}
    assert modes == expected


# --- signals and supervisors --------------------------------------------------------------------------------------


THREE_AN_HOUR = ("--per-minute", "0", "--per-hour", "3", "--per-month", "0")
STANDSTILLS: dict[str, tuple[list[str], tuple[str, ...], int]] = {
    "a server that never answers": (["silentx1-then-ok"] * 5, NO_LIMITS, 5),
    "an hour's window": (["ok"] * 8, THREE_AN_HOUR, 3),
    "a server that throttles": (["429-barex1-then-ok", *["ok"] * 7], NO_LIMITS, 1),
    "a server that is out": (["503x1-then-ok"] * 20, NO_LIMITS, 20),
}
"""By name: the links' behaviours, the limits, and how many requests it takes."""


@pytest.mark.parametrize("standstill", list(STANDSTILLS))
def test_a_stalled_run_ends_within_a_supervisors_ten_seconds(tmp_path: Path, bitly: Scripted, standstill: str) -> None:
    behaviours, limits, requests = STANDSTILLS[standstill]
    names = [f"{behaviour}--{number}" for number, behaviour in enumerate(behaviours)]
    out, links = tmp_path / "out", tmp_path / "links.txt"
    links.write_text("".join(f"bit.ly/{name}\n" for name in names))
    with start(*command_for(str(links), out, bitly.url, limits=limits)) as process:
        wait_until(lambda: len(bitly.requests) >= requests, process)
        assert supervised_end(process) == 5
    assert failures(out) == []
    asked, kept = len(bitly.requests), [row["bitlink"].removeprefix("bit.ly/") for row in rows(out)]
    visits = [len(bitly.visits(name)) for name in kept]
    env = {STATE_DIR: str(tmp_path / "another state, for what throttled is closed for a minute")}
    done = harvester(*command_for(str(links), out, bitly.url), env=env)
    assert done.returncode == 0, done.stderr
    assert {row["bitlink"] for row in rows(out)} == {f"bit.ly/{name}" for name in names}
    assert len(bitly.requests) >= asked + len(names) - len(kept)
    assert [len(bitly.visits(name)) for name in kept] == visits  # what is answered is not asked again


def test_a_run_with_a_hanging_token_command_ends_within_a_supervisors_ten_seconds(
    tmp_path: Path, bitly: Scripted
) -> None:
    """It is asked again after a refusal, while the run goes on."""
    asked, again, links = tmp_path / "asked", tmp_path / "again", tmp_path / "links.txt"
    links.write_text("bit.ly/ok\nbit.ly/401x1-then-ok\n")
    hanging = f"test -e {asked} && touch {again} && exec sleep 3600; touch {asked}; echo {TOKEN}"
    command = command_for(str(links), tmp_path / "out", bitly.url)
    with start(*command, "--token-command", f"sh -c '{hanging}'") as process:
        wait_until(again.exists, process)
        (hanging_still,) = psutil.Process(process.pid).children()
        assert supervised_end(process) == 5
        hanging_still.wait(SUPERVISOR_SECONDS)
    assert harvester(*command).returncode == 0
    assert len(rows(tmp_path / "out")) == 2


def test_a_run_with_a_hanging_resolver_ends_within_a_supervisors_ten_seconds(tmp_path: Path, links: str) -> None:
    """As far as that can be had here: a getaddrinfo that returns in an hour."""
    asked = tmp_path / "asked"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, socket, time\n"
        "def hang(*arguments, **more):\n"
        f"    pathlib.Path({str(asked)!r}).touch()\n"
        "    time.sleep(3600)\n"
        "socket.getaddrinfo = hang\n"
    )
    command = command_for(links, tmp_path / "out", "https://api.example/v4")
    with start(*command, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}) as process:
        wait_until(asked.exists, process)
        assert supervised_end(process) == 5
    assert failures(tmp_path / "out") == []


def test_a_strict_run_that_checks_its_list_ends_within_a_supervisors_ten_seconds(tmp_path: Path, serve: Serve) -> None:
    path, served = tmp_path / "many.txt", serve()
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(400_000)))
    with start(*command_for(str(path), tmp_path / "out", served.url, "--strict")) as process:
        wait_until((tmp_path / "out" / "_harvester" / "scratch.sqlite").exists, process)
        assert supervised_end(process) == 5
    assert served.sandbox.requests.total() == 0


def test_a_strict_run_that_waits_for_its_list_ends_within_a_supervisors_ten_seconds(
    tmp_path: Path, serve: Serve
) -> None:
    command = command_for("-", tmp_path / "out", serve().url, "--strict")
    with start(*command, stdin=subprocess.PIPE) as process:
        wait_until((tmp_path / "out" / "_harvester" / "spool-0").exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SUPERVISOR_SECONDS) == 5


@pytest.mark.parametrize(
    ("wrapper", "number"),
    [
        (("nohup",), signal.SIGHUP),
        (("sh", "-c", 'trap "" INT; exec "$@"', "sh"), signal.SIGINT),
        (("sh", "-c", 'trap "" TERM; exec "$@"', "sh"), signal.SIGTERM),
    ],
    ids=["nohup", "INT", "TERM"],
)
def test_a_signal_that_was_ignored_before_stays_ignored(
    tmp_path: Path, links: str, serve: Serve, wrapper: tuple[str, ...], number: signal.Signals
) -> None:
    """As nohup and shells in the background leave them."""
    served, out = serve(latency_ms=20), tmp_path / "out"
    with start(*command_for(links, out, served.url), wrapper=wrapper) as process:
        wait_until(lambda: served.sandbox.answered.total() >= 20, process)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(rows(out)) == len(LINKS)


# --- streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closing", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_file_of_the_dataset_takes_the_place_of_a_closed_stream(
    tmp_path: Path, short_list: str, serve: Serve, closing: str
) -> None:
    out = tmp_path / "out"
    wrapper = ("sh", "-c", f'exec "$@" {closing}', "sh")
    assert harvester(*command_for(short_list, out, serve().url), wrapper=wrapper).returncode == 0
    check_reconciled(out, set(LINKS[:30]))


def test_a_closed_standard_input_is_an_empty_list(tmp_path: Path, serve: Serve) -> None:
    wrapper = ("sh", "-c", 'exec "$@" <&-', "sh")
    done = harvester(*command_for("-", tmp_path / "out", serve().url), wrapper=wrapper)
    assert done.returncode == 2
    assert "there are no links" in done.stderr
