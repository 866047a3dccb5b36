"""The command from outside: what it takes, what it says, how it ends."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.output_checks import check_reconciled, failures, manifest, rows


def write_list(folder: Path, *lines: str) -> str:
    path = folder / "links.txt"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_a_list_becomes_rows_refusals_and_a_success(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    links = write_list(
        tmp_path, "# mine", "", "https://bit.ly/a", "bit.ly/b", "bit.ly/a", "nonsense", "bit.ly/missing-c"
    )
    out = tmp_path / "out"
    done = harvester("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f'1 line is not a bitlink: {links}:6: "nonsense"' in done.stderr
    check_reconciled(out, {"bit.ly/a", "bit.ly/b", "bit.ly/missing-c"})
    assert (out / "_SUCCESS").exists()
    assert served.sandbox.requests.total() == 3
    listed = manifest(out)["list"]
    assert listed == {
        "lines": 7,
        "blank": 1,
        "comments": 1,
        "headers": 0,
        "invalid": 1,
        "duplicates": 1,
        "links": 3,
        "differing": 0,
    }
    assert [line["kind"] for line in failures(out)] == ["refused", "invalid"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("command", ["plan", "show", "config", "login", "logout"])
def test_a_summary_that_cannot_be_printed_is_reported_and_is_not_a_bug(
    tmp_path: Path, serve: Callable[..., Served], command: str
) -> None:
    words = {
        "plan": (write_list(tmp_path, "bit.ly/a"), "--out", str(tmp_path / "out"), "--offline"),
        "show": ("bit.ly/a", "--json"),
        "login": ("--with-token",),
    }
    (tmp_path / "token").write_text("t0ken")
    env = {"HARVESTER_BASE_URL": serve().url, "BITLY_TOKEN": "" if command == "login" else "t0ken"}
    with open("/dev/full", "wb") as full, (tmp_path / "token").open("rb") as token:
        process = start(command, *words.get(command, ()), env=env, stdin=token, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 8
    assert err.decode().endswith("harvester: standard output: No space left on device\n")


def test_the_same_command_again_asks_nothing(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    links = write_list(tmp_path, "bit.ly/a", "bit.ly/b")
    command = ("run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    assert harvester(*command).returncode == 0
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    again = harvester(*command)
    assert again.returncode == 0, again.stderr
    assert served.sandbox.requests.total() == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == before


def test_a_filter_writes_rows_to_stdout_and_nothing_else(serve: Callable[..., Served]) -> None:
    served = serve()
    done = harvester(
        "run", "-", "--out", "-", "--base-url", served.url, *NO_LIMITS, stdin=b"bit.ly/a\nbit.ly/missing-b\nbit.ly/c\n"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["bitlink"] for line in done.stdout.splitlines()) == ["bit.ly/a", "bit.ly/c"]
    assert '"kind":"refused"' in done.stderr


def test_the_growing_file_holds_every_row(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    links = write_list(tmp_path, *(f"bit.ly/{i}" for i in range(50)))
    out = tmp_path / "results.ndjson"
    done = harvester("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert done.returncode == 0, done.stderr
    assert len(rows(out)) == 50
    check_reconciled(out, {f"bit.ly/{i}" for i in range(50)})


def test_a_named_pipe_is_a_list_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, pipe = serve(), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"seq -f bit.ly/%g 300 > {pipe}"])
    done = harvester("run", str(pipe), "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    assert writer.wait(timeout=10) == 0
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "out")) == 300
