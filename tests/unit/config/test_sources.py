"""Where an option's value comes from: flag, variable, file, default; and what a file may hold."""

import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harvester.bearer import fingerprint
from harvester.cli.command_line.app import app
from harvester.config import sources as configuration
from harvester.config.files import File
from harvester.config.options import facets_in
from harvester.config.sources import DASH, Setting, commands_of, effective, options_of, takes_shared
from harvester.errors import UsageError
from tests.support.commands import ROOT, harvester

EXAMPLE = ROOT / "config.example.toml"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITLY_TOKEN", raising=False)
    monkeypatch.delenv("HARVESTER_STATE_DIR", raising=False)
    monkeypatch.setattr(app, "config", (configuration.from_variables,))


def written(folder: Path, text: str) -> str:
    path = folder / "my.toml"
    path.write_text(text)
    return str(path)


def setting(words: str, name: str, *, file: str | None = None) -> tuple[Any, str]:
    """A command's effective value and its source."""
    sources = (configuration.from_variables, *(() if file is None else (File(file, app),)))
    app.config = sources
    found = {each.name: (each.value, each.source) for each in effective(app, words.split())}
    return found[name]


# --- precedence -----------------------------------------------------------------------------------------------------


def test_flag_then_variable_then_file_then_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "per_hour = 3")
    assert setting("run", "per_hour") == (None, "default")
    assert setting("run", "per_hour", file=file) == (3, file)
    monkeypatch.setenv("HARVESTER_PER_HOUR", "2")
    assert setting("run", "per_hour", file=file) == (2, "HARVESTER_PER_HOUR")
    assert setting("run --per-hour 1", "per_hour", file=file) == (1, "command line")


def test_a_commands_own_variable_goes_before_that_of_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_PER_HOUR", "2")
    monkeypatch.setenv("HARVESTER_RUN_PER_HOUR", "1")
    assert setting("run", "per_hour") == (1, "HARVESTER_RUN_PER_HOUR")
    assert setting("plan", "per_hour") == (2, "HARVESTER_PER_HOUR")


def test_a_commands_own_table_goes_before_what_is_for_all_commands(tmp_path: Path) -> None:
    file = written(tmp_path, "per_hour = 2\n[run]\nper_hour = 1")
    assert setting("run", "per_hour", file=file) == (1, f"{file} [run]")
    assert setting("plan", "per_hour", file=file) == (2, file)


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_PER_HOUR", "")
    assert setting("run", "per_hour") == (None, "default")


def test_a_flag_may_be_a_variable_or_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting("run", "strict", file=written(tmp_path, "strict = true"))[0] is True
    monkeypatch.setenv("HARVESTER_STRICT", "no")
    assert setting("run", "strict", file=written(tmp_path, "strict = true"))[0] is False


def test_the_sandbox_takes_only_what_is_meant_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_PER_HOUR", "7")
    file = written(tmp_path, "per_minute = 5\n[sandbox]\nport = 9000")
    assert setting("sandbox", "per_minute", file=file) == (100, "default")
    assert setting("sandbox", "per_hour", file=file) == (1000, "default")
    assert setting("sandbox", "port", file=file) == (9000, f"{file} [sandbox]")
    monkeypatch.setenv("HARVESTER_SANDBOX_PORT", "9001")
    assert setting("sandbox", "port", file=file) == (9001, "HARVESTER_SANDBOX_PORT")


def test_the_first_source_that_says_where_the_token_is_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 'token_file = "in-the-file"')
    assert setting("run --token-command pass", "token_file", file=file) == (None, "default")
    monkeypatch.setenv("BITLY_TOKEN", "x")
    assert setting("run", "token_file", file=file) == (None, "default")
    assert setting("run --token-file mine", "token_file", file=file) == ("mine", "command line")


def test_of_two_ways_to_the_token_that_for_one_command_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 'token_command = "pass"\n[run]\ntoken_file = "mine"')
    assert setting("run", "token_command", file=file) == (None, "default")
    assert setting("run", "token_file", file=file) == ("mine", f"{file} [run]")
    monkeypatch.setenv("HARVESTER_RUN_TOKEN_COMMAND", "own")
    monkeypatch.setenv("HARVESTER_TOKEN_FILE", "shared")
    assert setting("run", "token_file", file=file) == (None, "default")
    assert setting("run", "token_command", file=file) == ("own", "HARVESTER_RUN_TOKEN_COMMAND")


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per_minut = 3", "per_minut is not an option; did you mean per_minute?"),
        ("[run]\nper-minute = 3", "[run] per-minute is not an option; did you mean per_minute?"),
        ("[rum]\nper_minute = 3", "[rum] is not a command; did you mean run?"),
        ("zzz = 3", "zzz is not an option; `harvester config` lists the valid ones"),
        ("latency_ms = 3", "latency_ms is not an option"),
        ("run = 3", "run = 3: must be a table, [run]"),
        ('per_minute = "3"', 'per_minute = "3": must be a whole number'),
        ("[run]\nper_minute = true", "[run] per_minute = true: must be a whole number"),
        ("per_minute = 3.5", "per_minute = 3.5: must be a whole number"),
        ("timeout = 30", "timeout = 30: must be text in quotes"),
        ("unit_reference = 2026-11-23T00:00:00Z", "unit_reference = 2026-11-23 00:00:00+00:00: must be text in quotes"),
        ("quiet = 1", "quiet = 1: must be true or false"),
        ('out = ["a", "b"]', "out = ['a', 'b']: must be text in quotes"),
        ('[sandbox]\nerrors = "many"', '[sandbox] errors = "many": must be a number'),
        ("per_minute == 3", "Invalid value (at line 1, column 13)"),
    ],
)
def test_a_file_is_refused_with_key_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        File(path, app)
    assert re.match(rf"{re.escape(path)}(:\d+)?: ", str(refused.value))


def test_a_mistake_in_another_commands_table_is_refused_too(tmp_path: Path) -> None:
    done = harvester("plan", "links.txt", "--out", "out", "--config", written(tmp_path, "[run]\nsise = 3"))
    assert done.returncode == 2
    assert "[run] sise is not an option; did you mean size?" in done.stderr


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config .*nothing: No such file or directory"):
        File(str(tmp_path / "nothing"), app)
    (tmp_path / "latin").write_bytes(b'account = "\xe9"')
    with pytest.raises(UsageError, match="latin: not UTF-8"):
        File(str(tmp_path / "latin"), app)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["size = 7", "# a comment", "[run]", ""])
def test_a_byte_order_mark_at_the_files_start_is_accepted(tmp_path: Path, first: str, line_end: str) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(f"\ufeff{first}{line_end}reserve = '7%'{line_end}".encode())
    done = harvester("--config", str(path), "config", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reserve"]["value"] == "7%"


def test_a_file_with_nothing_but_a_mark_is_empty(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xef\xbb\xbf")
    File(str(tmp_path / "my.toml"), app)


@pytest.mark.parametrize(
    ("encoding", "mark", "name"),
    [
        ("utf-16-le", "\ufeff", "UTF-16"),
        ("utf-16-be", "\ufeff", "UTF-16"),
        ("utf-32-le", "\ufeff", "UTF-32"),
        ("utf-32-be", "\ufeff", "UTF-32"),
        ("utf-16-le", "", "UTF-16 or UTF-32"),
        ("utf-16-be", "", "UTF-16 or UTF-32"),
        ("utf-32-be", "", "UTF-16 or UTF-32"),
    ],
)
def test_a_file_in_a_wide_encoding_is_said_to_be_so(tmp_path: Path, encoding: str, mark: str, name: str) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(f"{mark}size = 7\r\n".encode(encoding))
    with pytest.raises(UsageError) as refused:
        File(str(path), app)
    assert str(refused.value) == f"{path}: {name}; save it as UTF-8, which TOML requires"


def test_a_mark_elsewhere_in_the_file_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2, column 1"):
        File(written(tmp_path, "size = 7\n\ufeffreserve = '7%'\n"), app)


def test_a_variable_of_another_type_is_refused_by_its_name() -> None:
    done = harvester("run", "links.txt", "--out", "out", env={"HARVESTER_PER_HOUR": "many"})
    assert done.returncode == 2
    assert done.stderr == "harvester: HARVESTER_PER_HOUR many: must be a whole number\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('reserve = "x"', "1: reserve x: must be a share below 100%, such as 10%"),
        ('[run]\nmax_time = "x"', "2: [run] max_time x: must be a time such as 90s, 15m or 6h"),
        ("size = 0", "1: size 0: must be at least 1"),
        ('token_file = "nowhere"', "1: token_file nowhere: No such file or directory"),
    ],
)
def test_a_value_that_means_nothing_is_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    links = tmp_path / "links.txt"
    links.write_text("bit.ly/a\n")
    words = ("--config", path, "run", str(links), "--out", str(tmp_path / "out"))
    done = harvester(*words, env={"BITLY_TOKEN": "" if "token" in text else "t0ken"})
    assert (done.returncode, done.stderr) == (2, f"harvester: {path}:{message}\n")


def test_a_value_that_means_nothing_is_refused_with_its_variable_or_its_flag() -> None:
    words = ("run", "links.txt", "--out", "out")
    env = {"HARVESTER_TIMEOUT": "x", "HARVESTER_RUN_SIZE": "0"}
    assert harvester(*words, env=env).stderr.startswith("harvester: HARVESTER_RUN_SIZE 0: must be at least 1")
    assert harvester(*words, "--size", "0", env=env).stderr.startswith("harvester: --size 0: must be at least 1")


def test_a_configuration_that_is_not_there_is_refused_by_the_variable_that_names_it() -> None:
    done = harvester("config", env={"HARVESTER_CONFIG": "/nowhere"})
    assert (done.returncode, done.stderr) == (2, "harvester: HARVESTER_CONFIG /nowhere: No such file or directory\n")
    assert harvester("config", env={"HARVESTER_CONFIG": ""}).returncode == 0
    assert harvester("--config", "", "config").returncode == 2


def test_an_error_stays_short_whatever_the_file_holds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"zzz… is not an option") as refused:
        File(written(tmp_path, f"{'z' * 100_000} = 3"), app)
    assert len(str(refused.value)) < 500
    with pytest.raises(UsageError, match="nested too deeply"):
        File(written(tmp_path, "a = " + "[" * 100_000), app)
    done = harvester("--config", written(tmp_path, f'reserve = "{"x" * 100_000}"'), "run", "links.txt", "--out", "out")
    assert done.returncode == 2
    assert len(done.stderr) < 5000


def test_an_option_of_config_that_is_wrong_is_one_line() -> None:
    done = harvester("config", env={"HARVESTER_STRICT": "off"})
    assert (done.returncode, done.stderr) == (2, "harvester: HARVESTER_STRICT off: must be true or false\n")
    done = harvester("config", "run", "--no-strict")
    assert (done.returncode, done.stderr) == (
        2,
        "harvester: unknown option --no-strict; did you mean --strict? See harvester run --help-all\n",
    )


def test_a_misspelt_variable_is_warned_of() -> None:
    done = harvester("run", "nowhere.txt", "--out", "out", env={"HARVESTER_PER_HOURS": "3", "HARVESTER_UNRELATED": "x"})
    assert "warning: unknown variable HARVESTER_PER_HOURS; did you mean HARVESTER_PER_HOUR?" in done.stderr
    assert "UNRELATED" not in done.stderr


def test_a_misspelt_option_and_command_name_the_nearest() -> None:
    done = harvester("run", "x", "--out", "y", "--per-minut", "3")
    shown = "harvester: unknown option --per-minut; did you mean --per-minute? See harvester run --help-all\n"
    assert (done.returncode, done.stderr) == (2, shown)
    done = harvester("paln", "x")
    shown = 'harvester: unknown command "paln"; did you mean plan? See harvester --help\n'
    assert (done.returncode, done.stderr) == (2, shown)


# --- the example ----------------------------------------------------------------------------------------------------


def uncommented() -> str:
    return re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)


def test_the_example_loads_as_it_is_and_with_everything_in_it() -> None:
    File(str(EXAMPLE), app)


def test_the_example_loads_with_everything_uncommented(tmp_path: Path) -> None:
    File(written(tmp_path, uncommented()), app)


COMMANDS = {name: options_of(command) for name, command in commands_of(app).items()}


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, options in COMMANDS.items() for o in options])
def test_every_option_of_every_command_is_in_the_example_and_explained(command: str, option: str) -> None:
    content = tomllib.loads(uncommented())
    assert option in content.get(command, {}) or (command not in {"sandbox", "demo"} and option in content)
    lines = [line for line in EXAMPLE.read_text().splitlines() if re.match(rf"(# )?{option} = ", line)]
    assert all("  # " in line for line in lines) or option == "base_url"


def test_what_is_not_commented_out_in_the_example_is_the_default() -> None:
    content = tomllib.loads(EXAMPLE.read_text())
    shared = {name: value for name, value in content.items() if not isinstance(value, dict)}
    for command, options in COMMANDS.items():
        own = {name: value for name, value in shared.items() if takes_shared(command, name)} | content.get(command, {})
        for name in options.keys() & own.keys():
            assert options[name].field_info.default in (own[name], (own[name],)), (command, name)


@pytest.mark.parametrize(
    ("text", "facets"),
    [
        ('facet = "devices"', ("devices",)),
        ('facet = "referrers, devices"', ("referrers", "devices")),
        ('facet = ["referrers", "devices", "referrers"]', ("referrers", "devices")),
    ],
)
def test_a_file_has_facets_as_a_list_or_with_commas(tmp_path: Path, text: str, facets: tuple[str, ...]) -> None:
    file = written(tmp_path, text)
    assert facets_in(setting("run", "facet", file=file)[0]) == facets
    assert setting("run --facet cities --facet clicks", "facet", file=file)[0] == ("cities", "clicks")
    # The schema is one facet's.
    assert setting("schema --for duckdb", "facet", file=file)[0] == ("devices" if len(facets) == 1 else "referrers")


@pytest.mark.parametrize("text", ['facet = "referrers,device"', 'facet = ["device"]', "facet = []", "facet = [1]"])
def test_a_file_with_another_facet_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="must be one of referrers"):
        File(written(tmp_path, text), app)


@pytest.mark.parametrize(
    ("words", "text", "left_out"),
    [
        ("run --day 2026-11-02", 'units = 7\nunit = "week"\nunit_reference = "2026-11-01"', ["unit", "units"]),
        ("run --units 7", 'day = "yesterday"', ["day"]),
        ("run --unit week", 'since = "2026-11-02"\nuntil = "2026-11-03"', ["since", "until"]),
    ],
    ids=["day", "units", "unit"],
)
def test_a_period_and_a_window_exclude_each_other(tmp_path: Path, words: str, text: str, left_out: list[str]) -> None:
    for name in left_out:
        assert setting(words, name, file=written(tmp_path, text))[1] == "default"


def test_every_of_run_is_none_of_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a calendar period for the one, and a time for the other."""
    (tmp_path / "own.toml").write_text('every = "week"\n')
    for env in ({"HARVESTER_CONFIG": str(tmp_path / "own.toml")}, {"HARVESTER_EVERY": "week"}):
        shown = {name: harvester("config", name, "--json", env=env).stdout for name in ("run", "status")}
        assert [json.loads(text)["every"]["value"] for text in shown.values()] == ["week", "5s"]


# --- help -----------------------------------------------------------------------------------------------------------

EVERY = {name: app[name] for name in app.resolved_commands() if not name.startswith("-")}


def examples(command: str) -> list[list[str]]:
    """The words of a command's examples."""
    lines = [line.strip() for line in (EVERY[command].help_epilogue or "").splitlines()[1:] if line.startswith("  ")]
    told = [re.split(r"\s{2,}", line)[0].partition("harvester ")[2].partition(" | ")[0] for line in lines]
    words = [shlex.split(words.partition(" > ")[0]) for words in told if words]
    return [[DASH if word == "-" else word for word in each] for each in words]


@pytest.mark.parametrize("command", EVERY)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = harvester(command, "--help")
    assert done.returncode == 0
    assert f"Usage: harvester {command}" in done.stdout
    assert "Examples:" in done.stdout
    assert examples(command)
    assert all(len(line) <= 78 for line in (EVERY[command].help_epilogue or "").splitlines())


@pytest.mark.parametrize("words", [words for command in EVERY for words in examples(command)], ids=" ".join)
def test_the_examples_name_options_that_there_are(words: list[str]) -> None:
    words = words[2:] if words[0] == "--config" else [word for word in words if word not in {"--example", "--help-all"}]
    app.config = (configuration.from_variables,)
    if words[0] == "init":  # has no settings
        app.parse_known_args(words)
        return
    assert effective(app, words[1:] or ["run"] if words[0] == "config" else words) is not None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_installs_with_one_command(shell: str, tmp_path: Path) -> None:
    done = harvester("--install-completion", "--shell", shell, env={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    scripts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and "harvester" in path.name]
    assert scripts
    assert "per-minute" in scripts[0]


# --- harvester config -----------------------------------------------------------------------------------------------


def test_config_prints_a_file_that_has_the_same_effect(tmp_path: Path) -> None:
    words = ("run", "--per-hour", "7", "--account", 'a"\\\x7f\U0001f600', "--strict", "--out", "here")
    first = harvester("config", *words, env={"HARVESTER_SIZE": "9"})
    assert first.returncode == 0, first.stderr
    again = harvester("--config", written(tmp_path, first.stdout), "config", "run", "--json")
    shown = {name: each["value"] for name, each in json.loads(again.stdout).items()}
    before = json.loads(harvester("config", *words, "--json", env={"HARVESTER_SIZE": "9"}).stdout)
    assert shown == {name: each["value"] for name, each in before.items()}
    assert (shown["per_hour"], shown["size"], shown["strict"]) == (7, 9, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_config_prints_of_a_command_is_taken_back(tmp_path: Path, command: str) -> None:
    app.config = (configuration.from_variables,)
    before = effective(app, [command])
    table = "" if command == "run" else command
    app.config = (File(written(tmp_path, configuration.as_toml(before, None, table)), app),)
    assert [each[:2] for each in effective(app, [command])] == [each[:2] for each in before]


def test_config_prints_the_options_of_other_commands_than_run_in_their_table() -> None:
    assert harvester("config", "sandbox").stdout.partition("not there\n[sandbox]\n")[2].startswith("port = 8080")


def test_a_path_that_is_no_utf8_is_shown_and_leaves_a_file_that_loads(tmp_path: Path) -> None:
    path = os.fsdecode(b"o\xff")
    shown = harvester("config", "run", "--out", path)
    assert shown.returncode == 0, shown.stderr
    assert "out" not in tomllib.loads(shown.stdout)
    found = json.loads(harvester("config", "run", "--out", path, "--json").stdout)
    assert found["out"] == {"value": "o\ufffd", "source": "command line"}


def test_config_names_each_source(tmp_path: Path) -> None:
    file = written(tmp_path, "[run]\nsize = 3")
    done = harvester("config", "--per-hour", "7", "--config", file, env={"HARVESTER_UNITS": "2"})
    lines = dict(re.findall(r"^#? ?(\w+).*?  # (.*)$", done.stdout, re.MULTILINE))
    assert lines["per_hour"] == "command line"
    assert lines["units"] == "HARVESTER_UNITS"
    assert lines["size"] == f"{file} [run]"
    assert lines["facet"] == "default"


def test_config_shows_the_token_as_its_fingerprint() -> None:
    token = "0123456789abcdef0123456789abcdef01234567"
    done = harvester("config", "--token-command", f"echo {token}")
    assert f"# token {fingerprint(token)}" in done.stdout
    assert done.stdout.rstrip().endswith("# --token-command")
    assert token not in done.stdout + done.stderr
    assert token not in harvester("config", "--json", "--token-command", f"echo {token}").stdout


def test_config_says_that_there_is_no_token_and_goes_on() -> None:
    done = harvester("config", "plan", env={"BITLY_TOKEN": ""})
    assert done.returncode == 0
    assert "# no token" in done.stdout


def test_config_of_a_command_without_a_token_has_none() -> None:
    found = json.loads(harvester("config", "sandbox", "--json").stdout)
    assert found["port"] == {"value": 8080, "source": "default"}
    assert "token" not in found


def test_config_refuses_what_is_no_command_or_no_option() -> None:
    done = harvester("config", "rum")
    assert (done.returncode, done.stderr) == (2, "harvester: unknown command rum; did you mean run?\n")
    assert harvester("config", "run", "--sise", "3").returncode == 2


def test_a_setting_is_written_as_toml() -> None:
    shown = configuration.as_toml([Setting("a", "b\n", "default"), Setting("c", None, "default")], None)
    assert tomllib.loads(shown) == {"a": "b\n"}
