"""`harvester init`: the file that it writes, the questions that it asks, and what it never writes."""

import json
import os
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from harvester.cli import first_steps
from harvester.cli.command_line.app import app
from harvester.config.files import File
from harvester.config.starter import INTERVALS, PLANS, TOKEN_PLACES, Answers, next_steps, out_for, starter_text
from harvester.errors import UsageError
from tests.support.in_process import Said, command

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def answers(**changes: Any) -> Answers:
    given = {"token": "login", "token_source": None, "plan": "growth", "out": "lake", "every": "once", **changes}
    return Answers(**given)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "configuration" / "harvester"


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Type lines at a terminal."""
    waiting = iter(lines)

    def answer(prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(first_steps, "_has_terminal", lambda: True)


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", TOKEN_PLACES)
@pytest.mark.parametrize("every", INTERVALS)
def test_the_file_is_one_that_harvester_reads(tmp_path: Path, token: str, every: str) -> None:
    source = {"file": "~/token", "command": "pass show bitly"}.get(token)
    text = starter_text(answers(token=token, token_source=source, every=every, out="s3://bucket/lake"))
    (tmp_path / "config.toml").write_text(text)
    File(str(tmp_path / "config.toml"), app)
    content = tomllib.loads(text)
    assert content["plan"] == "growth"
    assert content["out"] == ("s3://bucket/lake" if every == "once" else "s3://bucket/lake/dt={dt}")
    assert content["work_dir"].startswith("~/")
    assert content.get("token_file", content.get("token_command")) == source
    assert all(line.startswith("# ") or " = " in line or not line for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("out", "every", "expected"),
    [
        ("lake", "once", "lake"),
        ("lake/", "day", "lake/dt={dt}"),
        ("lake/{facet}/{dt}", "week", "lake/{facet}/{dt}"),
        ("rows.ndjson", "month", "rows-{dt}.ndjson"),
    ],
)
def test_each_interval_has_an_output_of_its_own(out: str, every: Any, expected: str) -> None:
    assert out_for(out, every) == expected


@pytest.mark.parametrize("out", ["-", " ", "lake/{day}"])
def test_an_output_that_no_run_takes_is_refused(out: str) -> None:
    with pytest.raises(UsageError, match="--out"):
        out_for(out, "once")


def test_the_first_command_names_a_period_that_is_over() -> None:
    today = date(2026, 3, 1)
    shown = {each: next_steps(answers(every=each), "f", found=True, today=today) for each in INTERVALS}
    assert "harvester run links.txt\n" in f"{shown['once']}\n"
    assert "harvester run links.txt --day 2026-02-28" in shown["day"]
    assert "harvester run links.txt --since 2026-02-22 --until 2026-02-22" in shown["week"]
    assert "harvester run links.txt --since 2026-02-28 --until 2026-02-28" in shown["month"]
    assert "harvester --config f run links.txt" in next_steps(answers(), "f", found=False, today=today)


# --- the command ------------------------------------------------------------------------------------------------------


def test_init_asks_four_questions_and_writes_a_private_file(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "", "gold", "growth", "", "day")
    said = command(capsys, "init")
    assert said.code == 0, said.err
    assert said.err.count("?") == 4
    assert "one of free, core, growth, premium, please" in said.err
    content = tomllib.loads((home / "config.toml").read_text())
    assert content == {"plan": "growth", "out": "lake/dt={dt}"}
    assert (home / "config.toml").stat().st_mode & 0o777 == 0o600
    assert "harvester login --with-token" in said.out
    assert "harvester run links.txt --day 20" in said.out


def test_init_overwrites_nothing_and_asks_nothing_before_it_says_so(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir(parents=True)
    (home / "config.toml").write_text("size = 7")
    said = command(capsys, "init", "--plan", "free")
    assert (said.code, said.out) == (2, "")
    assert f"{home}/config.toml exists, and is not overwritten" in said.err
    assert (home / "config.toml").read_text() == "size = 7"


def test_without_a_terminal_options_and_defaults_answer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = command(capsys, "init", "--file", "harvester.toml", "--plan", "core", "--token-command", "pass show bitly")
    assert said.code == 0, said.err
    content = tomllib.loads(Path("harvester.toml").read_text())
    assert content == {"plan": "core", "out": "lake", "token_command": "pass show bitly"}
    assert "harvester run links.txt" in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--plan is missing, and without a terminal harvester cannot ask: one of free, core, growth, premium"),
        (("--plan", "free", "--token", "file"), "--token-file is missing, and without a terminal harvester cannot ask"),
        (("--plan", "free", "--token", "vault"), "--token: must be one of login, variable, file, command"),
        (("--plan", "free", "--token-file", "a", "--token-command", "b"), "use one of them"),
    ],
)
def test_without_a_terminal_a_missing_answer_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    said = command(capsys, "init", *words)
    assert said.code == 2
    assert message in said.err
    assert not home.exists()


@pytest.mark.parametrize("option", ["--token", "--token-file", "--token-command", "--out"])
def test_a_token_in_place_of_an_answer_is_neither_written_nor_repeated(
    home: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    said: Said = command(capsys, "init", "--plan", "free", option, f"echo {TOKEN}" if "command" in option else TOKEN)
    assert said.code == 2
    assert "a token is never written into a config file" in said.err
    assert TOKEN not in said.out + said.err
    assert not home.exists()


def test_a_token_that_is_typed_is_not_written(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, TOKEN)
    said = command(capsys, "init")
    assert said.code == 2
    assert TOKEN not in said.out + said.err
    assert not home.exists()


def test_an_end_of_input_writes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "login")
    assert "--plan has no answer; nothing was written" in command(capsys, "init").err
    assert not os.path.lexists(home)


def test_every_plan_is_offered() -> None:
    assert PLANS == ("free", "core", "growth", "premium")


def test_answers_are_taken_in_any_case_and_a_token_in_the_variable_is_offered(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", "x")
    typed(monkeypatch, "", "Growth", "lake", "DAY")
    said = command(capsys, "init")
    assert said.code == 0
    text = (home / "config.toml").read_text()
    assert tomllib.loads(text)["plan"] == "growth"
    assert "the variable BITLY_TOKEN" in text
    assert "export BITLY_TOKEN" not in said.out
    assert "harvester run links.txt --day yesterday --quiet   # each day, in a crontab" in said.out


@pytest.mark.parametrize("every", ["day", "week", "month"])
def test_the_first_command_plans_a_whole_period(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", "x")
    Path("links.txt").write_text("bit.ly/a\n")
    said = command(
        capsys, "init", "--plan", "core", "--token", "variable", "--every", every, "--file", "harvester.toml"
    )
    (words,) = (line.split("#")[0].split() for line in said.out.splitlines() if " plan " in line)
    planned = command(capsys, *words[1:], "--offline", "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["calls"] == 1
