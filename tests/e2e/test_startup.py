"""What a command imports before it does anything: benchmarks/startup.py measures what that costs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.support.commands import environment

_NETWORK = {"aiohttp", "aiohappyeyeballs", "aiosignal", "frozenlist", "multidict", "propcache", "yarl"}
_REQUESTS = _NETWORK | {"asyncio", "aiolimiter", "tenacity", "obstore", "prometheus_client", "psutil", "platformdirs"}
_COMMANDS = {f"harvester.cli.{name}" for name in ("account", "demo", "first_steps", "harvesting", "login", "outputs")}
_READERS = {"cyclopts", "attr", "tomllib", "pydantic", "docstring_parser", "difflib"}
_DRAWING = {"rich", "structlog"}


def imported(*words: str, variables: dict[str, str] | None = None, folder: Path) -> set[str]:
    """Run a command that must succeed, and return the modules that its process has imported."""
    code = (
        "import sys\nfrom harvester.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('modules', *sys.modules)\n"
    )
    env = environment({"HOME": str(folder), "XDG_CONFIG_HOME": "", **(variables or {})})
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_version_needs_nearly_nothing(tmp_path: Path) -> None:
    found = imported("--version", folder=tmp_path)
    others = {"dataclasses", "inspect", "orjson", "datetime", "harvester.config", "harvester.cli.exit_codes"}
    assert not found & (_REQUESTS | _COMMANDS | _READERS | _DRAWING | others)


def test_help_needs_neither_network_nor_a_command(tmp_path: Path) -> None:
    assert not imported("--help", folder=tmp_path) & (_REQUESTS | _COMMANDS | {"sqlite3", "tomllib"})


@pytest.fixture
def done(serve: Callable[..., Served], tmp_path: Path) -> str:
    """A server's URL; in tmp_path are `one.txt`, a list of one link, and its finished output `out`."""
    url = serve().url
    (tmp_path / "one.txt").write_text("bit.ly/x\n")
    found = imported("run", "one.txt", "--out", "out", variables={"HARVESTER_BASE_URL": url}, folder=tmp_path)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert not found & (_READERS - {"attr"} | _DRAWING | {"tenacity", "platformdirs", "obstore", "prometheus_client"})
    return url


@pytest.mark.parametrize("given", ["nothing", "a variable"])
def test_an_output_is_looked_at_without_network_or_parser(done: str, tmp_path: Path, given: str) -> None:
    variables = {} if given == "nothing" else {"HARVESTER_BASE_URL": done, "HARVESTER_PER_MINUTE": "50"}
    none = _REQUESTS | _READERS | _DRAWING
    assert not imported("status", "out", variables=variables, folder=tmp_path) & (none | {"sqlite3", "email.utils"})
    assert not imported("verify", "out", variables=variables, folder=tmp_path) & none


def test_with_a_file_of_options_an_output_is_looked_at_without_network(done: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("per_minute = 50\n")
    found = imported("status", "out", variables={"HARVESTER_CONFIG": "my.toml"}, folder=tmp_path)
    assert not found & (_NETWORK | {"aiolimiter", "tenacity", "psutil", "platformdirs", "prometheus_client"})
    assert "cyclopts" in found


def test_a_link_is_shown_without_parser_or_drawing(done: str, tmp_path: Path) -> None:
    found = imported("show", "bit.ly/x", variables={"HARVESTER_BASE_URL": done}, folder=tmp_path)
    assert not found & (_READERS - {"attr"} | _DRAWING | {"tenacity", "platformdirs", "obstore"})
