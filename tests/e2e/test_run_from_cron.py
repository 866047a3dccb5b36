"""What cron's mail has: --quiet tells what is new and nothing else, and --on-end tells somebody of the end."""

import json
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.in_process import Said, command

A_MONTH = ("--per-minute", "0", "--per-hour", "0", "--per-month", "2")


@pytest.fixture
def run(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    monkeypatch.setenv("HARVESTER_STATE_DIR", str(tmp_path / "state"))
    served = serve()

    def call(*options: str, lines: str = "bit.ly/a\nbit.ly/b\n", out: str = str(tmp_path / "out")) -> Said:
        (tmp_path / "links.txt").write_text(lines)
        words = ("run", str(tmp_path / "links.txt"), "--out", out, "--base-url", served.url)
        return command(capsys, *words, *(options if "--per-month" in options else (*NO_LIMITS, *options)))

    return call


# --- quiet ----------------------------------------------------------------------------------------------------------


def test_bad_lines_are_one_line_and_told_again_only_when_their_number_has_changed(
    run: Callable[..., Said], tmp_path: Path
) -> None:
    two = "bit.ly/a\nbit.ly/b\nnonsense\nmore of it\n"
    first = run("--quiet", lines=two)
    assert first.code == 0
    (line,) = first.err.splitlines()
    assert line.startswith(f'2 lines are not bitlinks, such as: {tmp_path}/links.txt:3: "nonsense" (')
    assert run("--quiet", lines=two).err == ""
    assert run("--quiet", lines=two + "and more\n").err.startswith("3 lines are not bitlinks")
    assert run("--quiet", lines="bit.ly/a\nnonsense\n").err.startswith("1 line is not a bitlink")
    assert run("--quiet").err == ""


def test_bad_lines_that_a_run_without_quiet_has_told_are_known(run: Callable[..., Said]) -> None:
    lines = "bit.ly/a\nnonsense\n"
    assert "1 line is not a bitlink" in run(lines=lines).err
    assert run("--quiet", lines=lines).err == ""
    assert "1 line is not a bitlink" in run(lines=lines).err


def test_a_spent_month_is_told_once(run: Callable[..., Said]) -> None:
    lines = "bit.ly/a\nbit.ly/b\nbit.ly/c\n"
    first = run("--quiet", *A_MONTH, lines=lines)
    assert first.code == 7
    assert first.err.startswith("✗ stopped: ")
    again = run("--quiet", *A_MONTH, lines=lines)
    assert (again.code, again.err) == (7, "")
    assert run(*A_MONTH, lines=lines).err.count("✗ stopped: ") == 1


def test_nothing_to_do_says_nothing(run: Callable[..., Said]) -> None:
    assert run().err.startswith("limits of account")
    assert run("--quiet") == (0, "", "")


def test_an_error_is_told_each_time(run: Callable[..., Said]) -> None:
    for _ in range(2):
        said = run("--quiet", "--strict", lines="bit.ly/a\nnonsense\n")
        assert said.code == 2
        assert "(--strict): no request was sent" in said.err


# --- the command at the end -------------------------------------------------------------------------------------------


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a script.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return shlex.quote(str(path))


def test_the_command_at_the_end_has_the_manifest_and_the_exit_code_and_no_token(
    run: Callable[..., Said], tmp_path: Path
) -> None:
    done = script(tmp_path, f'(echo "$HARVESTER_EXIT_CODE $1"; cat "$HARVESTER_MANIFEST"; env) > {tmp_path}/seen')
    assert run("--on-end", f"{done} 'two words'").code == 0
    first, _, rest = (tmp_path / "seen").read_text().partition("\n")
    assert first == "0 two words"
    assert json.JSONDecoder().raw_decode(rest)[0]["complete"]
    assert TOKEN not in rest


def test_it_is_run_for_a_run_that_was_refused_and_for_one_that_leaves_no_manifest(
    run: Callable[..., Said], tmp_path: Path
) -> None:
    done = script(tmp_path, f'echo "$HARVESTER_EXIT_CODE [$HARVESTER_MANIFEST]" >> {tmp_path}/seen')
    assert run("--on-end", done, "--strict", lines="nonsense\n").code == 2
    assert run("--on-end", done, out="-").code == 0
    assert (tmp_path / "seen").read_text() == f"2 [{tmp_path}/out/_manifest.json]\n0 []\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 3", "a script.sh failed (exit code 3)"),
        ("kill -9 $$", "a script.sh failed (signal 9)"),
        (None, "--on-end /no/such/command: No such file or directory"),
    ],
    ids=["exit code", "signal", "missing"],
)
def test_its_failure_is_said_and_changes_no_exit_code(
    run: Callable[..., Said], tmp_path: Path, text: str | None, said: str
) -> None:
    done = run("--on-end", script(tmp_path, text) if text else "/no/such/command", "--quiet")
    assert done.code == 0
    assert said in done.err


def test_a_command_at_the_end_that_needs_a_shell_is_told_of(run: Callable[..., Said]) -> None:
    assert "--on-end true. It runs without a shell" in run("--on-end", "true $X | cat", "--quiet").err


def test_it_is_ended_with_all_its_processes_when_it_takes_too_long(
    run: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvester.cli.exit_codes._END_SECONDS", 0.3)
    done = run("--on-end", script(tmp_path, "sleep 60 & sleep 60"), "--quiet")
    assert done.code == 0
    assert "a script.sh was killed: it took longer than 0.3 s" in done.err


@pytest.mark.parametrize(
    ("value", "said"), [("'open", "no closing quotation"), (" ", "must name a command")], ids=["quote", "empty"]
)
def test_a_command_that_cannot_be_read_is_refused_before_anything_is_sent(
    run: Callable[..., Said], tmp_path: Path, value: str, said: str
) -> None:
    done = run("--on-end", value)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()
