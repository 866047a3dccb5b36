"""Files of options that are found by themselves: which are read, which value counts, what is not taken from them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harvester
from harvester.api import _configured as configured
from harvester.cli.command_line.app import app
from harvester.config.files import PROJECT_FILE, files_read, paths_read, user_file
from harvester.errors import UsageError
from tests.conftest import quick_folder
from tests.support.in_process import command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's file; the working folder is another."""
    folder = tmp_path / "configuration" / "harvester"
    folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent))
    monkeypatch.delenv("BITLY_TOKEN", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def user(home: Path, text: str) -> str:
    (home / "config.toml").write_text(text)
    return str(home / "config.toml")


def project(text: str) -> Path:
    path = Path("harvester.toml")
    path.write_text(text)
    path.chmod(0o644)
    Path().absolute().chmod(0o755)
    return path


def settings(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    said = command(capsys, *words, "config", "run", "--json")
    assert said.code == 0, said.err
    return {name: (each["value"], each["source"]) for name, each in json.loads(said.out).items()}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    said = command(capsys, *words)
    assert said.code == 2, said
    return said.err


# --- which files ----------------------------------------------------------------------------------------------------


def test_both_files_are_read_and_the_working_folders_decides_key_by_key(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = user(home, 'size = 7\nper_hour = 7\n[run]\nreserve = "7%"')
    project("per_hour = 8\nreserve = '8%'")
    found = settings(capsys)
    assert found["size"] == (7, path)
    assert found["per_hour"] == (8, PROJECT_FILE)
    assert found["reserve"] == ("8%", PROJECT_FILE)


def test_a_named_file_is_the_only_one(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    user(home, "size = 7")
    project("units = 8")
    Path("other.toml").write_text("per_hour = 9")
    monkeypatch.setenv("HARVESTER_CONFIG", "other.toml")
    for words in ((), ("--config", "other.toml")):
        found = settings(capsys, *words)
        assert (found["size"][0], found["units"][0]) == (50, -1)
        assert found["per_hour"] == (9, "other.toml")
    assert settings(capsys, "--config", os.devnull)["per_hour"] == (None, "default")


def test_config_says_which_files_are_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = user(home, "size = 7")
    assert command(capsys, "config").out.startswith(f"# {path}: read\n# ./harvester.toml: not there\n")
    project("size = 8")
    assert command(capsys, "config").out.startswith(f"# ./harvester.toml: read\n# {path}: read\n")
    Path("other.toml").write_text("size = 9")
    said = command(capsys, "--config", "other.toml", "config")
    assert said.out.startswith("# other.toml: read\n")
    assert "not there" not in said.out


def test_the_users_file_is_below_dot_config_unless_xdg_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unset)
        assert user_file() == "/home/me/.config/harvester/config.toml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/me")
    assert user_file() == "/etc/me/harvester/config.toml"


def test_a_folder_that_cannot_be_entered_has_no_file(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "nothing" / "here"))
    assert paths_read(None) == []


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_wrong_key_in_a_file_that_was_found_is_refused_with_file_and_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = user(home, "\n\n[run]\nper_mnth = 3")
    wrong = f"harvester: {path}:4: [run] per_mnth is not an option; did you mean per_month?\n"
    assert refused(capsys, "status", "lake") == wrong
    user(home, "")
    project("# mine\nsize = 'x'")
    assert refused(capsys, "config") == 'harvester: ./harvester.toml:2: size = "x": must be a whole number\n'


def test_a_value_that_means_nothing_names_the_line_of_the_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = user(home, "\nsize = 0")
    Path("links.txt").write_text("bit.ly/a\n")
    assert refused(capsys, "run", "links.txt", "--out", "x") == f"harvester: {path}:2: size 0: must be at least 1\n"


@pytest.mark.parametrize("key", ["token", "bitly_token", "access_token"])
def test_a_token_in_the_file_is_told_where_tokens_go_and_not_repeated(
    home: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    path = user(home, f'{key} = "0123456789abcdef"')
    said = refused(capsys, "config")
    assert said.startswith(f"harvester: {path}:1: {key}: do not put a token in this file")
    assert "harvester login --with-token" in said
    assert "BITLY_TOKEN" in said
    assert "0123456789abcdef" not in said


# --- the plan -------------------------------------------------------------------------------------------------------


def test_plan_may_be_a_key_and_a_table(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user(home, 'plan = "growth"')
    assert settings(capsys)["plan"][0] == "growth"
    user(home, '[plan]\noffline = true\n[run]\nplan = "core"')
    assert settings(capsys)["plan"][0] == "core"
    user(home, 'plan = "growth"\n[plan]\noffline = true')
    assert "exclude each other: write plan in [run]" in refused(capsys, "config")
    user(home, 'plan = "gold"')
    assert 'plan = "gold": must be one of free, core, growth, premium' in refused(capsys, "config")


def test_of_plan_and_month_the_source_of_higher_precedence_counts(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    user(home, "per_month = 7")
    monkeypatch.setenv("HARVESTER_PLAN", "growth")
    found = settings(capsys)
    assert (found["plan"][0], found["per_month"][0]) == ("growth", None)


# --- what others could have written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["token_command", "token_file", "base_url", "token_store"])
@pytest.mark.parametrize("table", ["", "[run]\n"])
def test_a_file_that_others_can_write_decides_nothing_about_the_token(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str, table: str
) -> None:
    monkeypatch.delenv("HARVESTER_TOKEN_STORE")
    path = project(f'{table}{key} = "./planted"')
    assert settings(capsys)[key][0] == "./planted"
    path.chmod(0o664)
    said = refused(capsys, "run", "links.txt", "--out", "x")
    assert f"{key} is not taken from this file, because others can write it (chmod go-w ./harvester.toml)" in said
    assert f"Move it to {home}/config.toml, or name this file with --config" in said
    path.chmod(0o644)
    Path().absolute().chmod(0o777)
    assert "because others can write to its folder" in refused(capsys, "config")
    assert settings(capsys, "--config", "harvester.toml")[key][0] == "./planted"


def test_a_file_of_another_user_decides_nothing_about_the_token(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project('token_command = "touch planted"')
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    if os.getuid() == 0:  # root's files are trusted
        os.chown("harvester.toml", 1234, 1234)
    assert "because it belongs to another user" in refused(capsys, "config")
    monkeypatch.undo()


def test_a_file_that_others_can_write_may_hold_other_options(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project("size = 8").chmod(0o666)
    assert settings(capsys)["size"] == (8, PROJECT_FILE)


# --- from Python ----------------------------------------------------------------------------------------------------


def test_python_takes_variables_and_files_as_the_command_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user(home, 'plan = "growth"\nsize = 7\n[run]\nunits = 2')
    project('units = 1\nreserve = "5%"')
    monkeypatch.setenv("HARVESTER_RUN_RESERVE", "10%")
    found = {name: value for name, value in configured().items() if name not in {"state_dir", "token_store"}}
    assert found == {"plan": "growth", "size": 7, "units": 1, "reserve": "10%"}
    Path("other.toml").write_text("size = 9")
    monkeypatch.setenv("HARVESTER_CONFIG", "other.toml")
    assert configured()["size"] == 9
    assert "units" not in configured()


async def test_from_python_a_wrong_file_is_a_usage_error_with_its_line(home: Path) -> None:
    path = user(home, "sise = 7")
    with pytest.raises(harvester.UsageError, match=re.escape(f"{path}:1: sise is not an option")):
        await harvester.metrics("bit.ly/a", token="x")


async def test_from_python_a_wrong_variable_is_a_usage_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_SIZE", "many")
    with pytest.raises(harvester.UsageError, match="HARVESTER_SIZE many: must be a whole number"):
        await harvester.metrics("bit.ly/a", token="x")


async def test_a_token_from_python_goes_before_the_files_and_a_keyword_before_all(home: Path, serve: Any) -> None:
    served = serve()
    user(home, f'token_command = "false"\nper_month = 1\nbase_url = "{served.url}"\nunits = 3')
    row = await harvester.metrics("bit.ly/a", token="0123456789abcdef", plan="growth", units=2)
    assert row["units"] == 2


# --- any file -------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["size", "plan", "facet", "per_hour", "reserve", "out", "access_token", "run", "é", "a.b"])
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9) | st.sampled_from(["free", "7%"]),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=2),
    max_leaves=4,
)


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.dictionaries(KEYS, VALUES, max_size=4).map(
        lambda table: "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in table.items()).encode()
    )
)
def test_a_file_of_any_bytes_is_read_or_refused_by_its_name(content: bytes) -> None:
    with quick_folder() as folder:
        path = folder / "any.toml"
        path.write_bytes(content)
        try:
            said = [file.path for file in files_read(str(path), app)]
        except UsageError as error:
            said = [str(error)[: len(str(path))]]
        assert said == [str(path)]
