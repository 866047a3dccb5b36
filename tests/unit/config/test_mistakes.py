"""Mistakes on the command line: what is said, and which words lead to help and version."""

import re
from pathlib import Path

import pytest

from harvester._version import __version__
from harvester.config.options import COMMON, RunOptions
from harvester.parameters import names_in
from tests.support.in_process import command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run links.txt", "--out is missing: where the rows are written, such as --out lake (a folder) or --out "),
        ("plan links.txt", "--out is missing: where the rows are written, such as --out lake (a folder) or --out "),
        ("run links.txt --out", "--out needs a value; see harvester run --help-all"),
        ("run l --out a --out b", "--out was given twice; it takes one value"),
        ("run", "LINKS is missing, as in: harvester run links.txt --out lake/dt=2026-11-23; see harvester run --help"),
        ("verify", "name the output: harvester verify lake/dt=2026-11-23; see harvester verify --help"),
        (
            "schema",
            "--for is missing, as in: harvester schema --for json-schema > row.json; see harvester schema --help",
        ),
        ("run l --out a --per-mnth 3", "unknown option --per-mnth; did you mean --per-month? See harvester run --help"),
        ("status lake --zzz", "unknown option --zzz; see harvester status --help"),
        ("verify lake --jsn=1", "unknown option --jsn; did you mean --json? See harvester verify --help"),
        ("rnu links.txt", 'unknown command "rnu"; did you mean run? See harvester --help'),
        ("help rnu", 'unknown command "rnu"; did you mean run? See harvester --help'),
        ("whatever", 'unknown command "whatever"; see harvester --help'),
        ("run l --out a --units many", "--units many: must be a whole number"),
        ("schema --for duckdbb", "did you mean duckdb?"),
        ("run l --out a --plan gold", "--plan gold: must be one of free, core, growth, premium"),
        ("logout now", "now is one argument too many; see harvester logout --help"),
        ("run bit.ly/abc --out x", "For the metrics of this link: harvester show bit.ly/abc; for many links, write"),
        ("run https://bit.ly/abc?x=1 --out x", "For the metrics of this link: harvester show bit.ly/abc; for many"),
        ("run nothing.txt --out x", "nothing.txt: No such file or directory"),
    ],
)
def test_a_mistake_is_said_with_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITLY_TOKEN", "t0ken")
    done = command(capsys, *line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("harvester: ")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["-V", "version", "--version"])
def test_the_version_is_found_under_each_of_its_names(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert command(capsys, line)[:2] == (0, f"{__version__}\n")


@pytest.mark.parametrize("line", ["help", "--help", "-h"])
def test_the_help_is_found_under_each_of_its_names(capsys: pytest.CaptureFixture[str], line: str) -> None:
    said = command(capsys, line)
    assert said.code == 0
    assert "Usage: harvester COMMAND" in said.out


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "help", "status").out == command(capsys, "status", "--help").out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_help_of_run_has_eighteen_options_in_six_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    short, whole = command(capsys, "run", "--help").out, command(capsys, "run", "--help-all").out
    groups = ["Arguments", "Query", "Output", "Limits", "Stopping", "Authentication", "Logging", "Configuration"]
    for text, shown in ((short, groups), (whole, [*groups[:-1], "Cluster", groups[-1]])):
        assert re.findall(r"^╭─ (\w+) ", text, re.MULTILINE) == shown
        assert "default: False" not in text
        assert "default: True" not in text
        assert max(map(len, text.splitlines())) <= columns or columns < 78  # the examples do not wrap
    pattern = r"^│ (?:\*  |   )?(--[a-z-]+)"
    common = {f"--{name.replace('_', '-')}" for name in COMMON} | {"--config"}
    assert {*re.findall(pattern, short, re.MULTILINE)} == common
    assert len(re.findall(pattern, short, re.MULTILINE)) == 15
    every = {f"--{name.replace('_', '-')}" for name in names_in(RunOptions)} | {"--config"}
    assert {*re.findall(pattern, whole, re.MULTILINE)} == every


@pytest.mark.parametrize("name", ["login", "sandbox", "status", "config"])
def test_other_commands_show_all_their_options(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert command(capsys, name, "--help").out == command(capsys, name, "--help-all").out


def test_o_is_out(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'out = "lake"' in command(capsys, "config", "run", "-o", "lake").out
