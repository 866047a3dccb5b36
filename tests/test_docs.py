"""The documents say what is so: options, exit codes, the help text, the example configuration."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester import __version__
from harvester.cli.exit_codes import BY_REASON, EXIT_CODES
from harvester.shutdown import StopReason
from tests.conftest import Served
from tests.support.commands import ROOT, environment, harvester

README = (ROOT / "README.md").read_text()
BEGIN, END = "<!-- help: begin -->", "<!-- help: end -->"


def help_text() -> str:
    done = harvester("run", "--help", env={"COLUMNS": "110", "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()


def test_the_readme_has_the_help_that_the_command_prints() -> None:
    """After a change: python -m tests.test_docs writes it anew."""
    shown = README.partition(BEGIN)[2].partition(END)[0].strip().removeprefix("```text").removesuffix("```").strip()
    assert shown == help_text()


def test_every_exit_code_is_in_the_readme() -> None:
    shown = dict(re.findall(r"^\| (\d) \| (.*) \|$", README, re.MULTILINE))
    assert {int(code): text.replace("`", "") for code, text in shown.items()} == EXIT_CODES


def test_every_reason_to_stop_has_an_exit_code() -> None:
    assert set(BY_REASON) == set(StopReason)


def test_the_changelog_knows_this_version_or_has_it_coming() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in changelog or "## [Unreleased]" in changelog


def examples() -> list[str]:
    """The README's commands that harvest, without their comments."""
    session = README.partition("## A session")[2].partition("**The list**")[0]
    return [line.partition("  #")[0].strip() for line in session.splitlines() if "harvester run" in line]


def test_there_are_examples() -> None:
    assert len(examples()) == 4


@pytest.mark.parametrize("example", examples())
def test_an_example_of_the_readme_runs(tmp_path: Path, serve: Callable[..., Served], example: str) -> None:
    served = serve()
    names = "".join(f"bit.ly/{i}\n" for i in range(30))
    (tmp_path / "links.txt").write_text(names)
    (tmp_path / "links.gz").write_bytes(gzip.compress(names.encode()))
    (tmp_path / "sandbox.toml").write_text(f'[run]\nbase_url = "{served.url}"\n')
    env = environment({"HARVESTER_CONFIG": str(tmp_path / "sandbox.toml")})
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    line = example.replace("http://127.0.0.1:8080/v4", served.url)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert served.sandbox.answered


def test_the_readmes_row_has_the_keys_of_a_row(tmp_path: Path, serve: Callable[..., Served]) -> None:
    shown = json.loads(README.partition("```json")[2].partition("```")[0])
    done = harvester("run", "-", "--out", "-", "--base-url", serve().url, stdin=b"bit.ly/3lU6hRt\n")
    assert done.returncode == 0, done.stderr
    assert list(shown) == list(json.loads(done.stdout))


def test_supervisors_repeat_what_is_to_be_repeated_and_nothing_else() -> None:
    """The unit and the job of the operations page stop at every exit code but 0 and 5."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (prevented,) = re.findall(r"^RestartPreventExitStatus=(.*)$", page, re.MULTILINE)
    (failed,) = re.findall(r"FailJob, .* values: \[(.*)\]", page)
    assert re.findall(r"^RestartForceExitStatus=(.*)$", page, re.MULTILINE) == ["5"]
    final = set(EXIT_CODES) - {0, 5}
    assert {int(code) for code in prevented.split()} == final
    assert {int(code) for code in failed.split(",")} == final


def test_the_operations_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"tests/[a-z_0-9/]+\.py", page))
    assert len(named) >= 5
    assert all((ROOT / name).is_file() for name in named)


def write_readme() -> None:
    before, _, rest = README.partition(BEGIN)
    after = rest.partition(END)[2]
    (ROOT / "README.md").write_text(f"{before}{BEGIN}\n```text\n{help_text()}\n```\n{END}{after}")


if __name__ == "__main__":
    write_readme()
