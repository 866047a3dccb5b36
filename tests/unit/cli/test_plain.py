"""A plain command line is read as cyclopts reads it; every other is left to cyclopts."""

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harvester.cli.command_line.app import app, configure
from harvester.cli.command_line.plain import plain_call
from harvester.config import sources
from tests.support.remembered_signatures import remember_signatures

PLAIN = [
    "run links.txt --out lake",
    "run links.txt more.csv --out=lake/dt=2026-11-23 --quiet --plan growth --reserve 10%",
    "run --out lake links.txt --facet countries,devices --column 2 --units 30",
    "run links.txt -o lake --per-minute 0 --per-hour 0 --per-month 0 --log-format json --format parquet --shape flat",
    "run --group Ba1bc23dE4F --out lake --skip-idle --strict",
    "run LINKS --out DASH",
    "plan links.txt --out lake --json --offline",
    "plan links.txt --out 'lake/{dt}' --since 2026-11-01 --until 2026-11-07 --every day",
    "show bit.ly/x",
    "show bit.ly/x https://bit.ly/y --json --max-time 5s",
    "show --facet referrers bit.ly/x --size 10 --token-file ~/token --state-dir ~",
    "status lake",
    "status lake --json --facet countries,devices",
    "status --out lake --watch --every 5s",
    "status --json lake",
    "verify lake --allow-moved --work-dir work --day yesterday",
    "repair lake --apply --parts loaded",
    "groups",
    "groups --json --base-url http://127.0.0.1:1",
    "links --all --json --archived both --tags 'a b,c'",
    "links --group G --out lake --format parquet --log-format json",
]
FOR_CYCLOPTS = [
    "",
    "--version",
    "--help",
    "run --help",
    "run -h",
    "run links.txt --out lake --help-all",
    "--config my.toml run links.txt --out lake",
    "run links.txt --out lake --config my.toml",
    "run links.txt --out lake --out other",
    "run links.txt --out lake -o other",
    "run links.txt --out lake --facet countries --facet devices",
    "run links.txt --out lake --facet country",
    "run links.txt --out lake --format PARQUET",
    "run links.txt --out lake --plan huge",
    "run links.txt --out lake --units -1",
    "run links.txt --out lake --per-minute 0x10",
    "run links.txt --out lake --per-minute 1.0",
    "run links.txt --out lake --per-minute 007",
    "run links.txt --out lake --per-minute none",
    "run links.txt --out lake --plan null",
    "run links.txt --out lake --no-complete",
    "run links.txt --out lake --quiet=true",
    "run links.txt --out lake --quiett",
    "run links.txt --out lake --per_minute 5",
    "run links.txt --out=",
    "run links.txt --out ''",
    "run links.txt --out",
    "run links.txt -olake",
    "run links.txt -o=lake",
    "run links.txt --out --quiet",
    "run links.txt",
    "run -- links.txt --out lake",
    "run '' --out lake",
    "run links.txt --out lake --state-dir ~nobody-has-this-name/x",
    "show",
    "status",
    "status one two",
    "status one --out two",
    "sandbox --port 0",
    "config",
    "unknown",
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable and no file has a say, and signatures are read once."""
    remember_signatures()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    before = app.config
    yield
    app.config = before


def words_of(line: str) -> list[str]:
    return [sources.DASH if word == "DASH" else word for word in shlex.split(line)]


def by_cyclopts(words: list[str]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    configure(None)
    function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return function.__name__, bound.args, bound.kwargs


def plainly(words: list[str]) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    call = plain_call(words)
    if call is None:
        return None
    assert isinstance(call, partial)
    return call.func.__name__, call.args, call.keywords


def in_one(found: tuple[str, tuple[Any, ...], dict[str, Any]] | None) -> tuple[str, list[Any]] | None:
    """The arguments in the order of the parameters, however they are passed."""
    return found and (found[0], [*found[1], *found[2].values()])


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_command_line_is_read_as_cyclopts_reads_it(line: str) -> None:
    found = plainly(words_of(line))
    assert found is not None
    assert in_one(found) == in_one(by_cyclopts(words_of(line)))


@pytest.mark.parametrize("line", FOR_CYCLOPTS)
def test_every_other_is_left_to_cyclopts(line: str) -> None:
    assert plain_call(words_of(line)) is None


VARIABLES = [
    {"HARVESTER_BASE_URL": "http://127.0.0.1:1", "HARVESTER_RUN_PER_MINUTE": "7", "HARVESTER_PER_MINUTE": "8"},
    {"HARVESTER_PER_MINUTE": "8", "HARVESTER_RUN_PER_HOUR": "9", "HARVESTER_COLUMN": "url"},
    {"HARVESTER_UNITS": "-1", "HARVESTER_FACET": "countries,devices", "HARVESTER_OUT": "lake"},
    {"HARVESTER_PER_MINUTE": "", "HARVESTER_FORMAT": "parquet", "HARVESTER_CONFIG": ""},
    {"HARVESTER_PER_MONTH": "5", "HARVESTER_RUN_PLAN": "core"},
    {"HARVESTER_TOKEN_FILE": "a", "HARVESTER_RUN_TOKEN_COMMAND": "b"},
    {"HARVESTER_UNITS": "7", "HARVESTER_RUN_DAY": "yesterday"},
]


@pytest.mark.parametrize("variables", VARIABLES, ids=",".join)
@pytest.mark.parametrize("line", ["run a --out b", "run a --out b --plan free --token-file c --day today"])
def test_variables_count_as_they_do_for_cyclopts(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = plainly(words_of(line))
    used = sources.variables_used()
    assert found is not None
    assert in_one(found) == in_one(by_cyclopts(words_of(line)))
    assert used == sources.variables_used()


def test_the_output_of_status_may_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_OUT", "lake")
    assert in_one(plainly(["status"])) == in_one(by_cyclopts(["status"]))
    assert in_one(plainly(["status", "other"])) == in_one(by_cyclopts(["status", "other"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HARVESTER_PER_MINUT", "8"),
        ("HARVESTER_CONFIG", "my.toml"),
        ("HARVESTER_QUIET", "true"),
        ("HARVESTER_PER_MINUTE", "many"),
        ("HARVESTER_SANDBOX_PORT", "8080"),
    ],
)
def test_a_variable_that_is_not_plain_is_left_to_cyclopts(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert plain_call(["run", "links.txt", "--out", "lake"]) is None


@pytest.mark.parametrize("place", ["harvester.toml", "config/harvester/config.toml"])
def test_a_file_of_options_is_left_to_cyclopts(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("per_minute = 50\n")
    assert plain_call(["run", "links.txt", "--out", "lake"]) is None
