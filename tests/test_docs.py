"""The documents say what is so: options, exit codes, help texts, reasons, keys, links between pages."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harvester import __version__
from harvester.cli.exit_codes import BY_REASON, EXIT_CODES
from harvester.progress import WAIT_REASONS
from harvester.reporting.run_status import State
from harvester.rows.schema import COLUMNS, FAILURE, METRIC, Shape
from harvester.shutdown import StopReason
from tests.conftest import Served
from tests.support.commands import ROOT, environment, harvester

README = (ROOT / "README.md").read_text()
CLI = ROOT / "docs" / "cli.md"
OUTPUT = (ROOT / "docs" / "output.md").read_text()
STATUS = (ROOT / "docs" / "status.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = "run plan show status verify config login logout schema demo sandbox".split()
HEAD = """# The command line

`harvester COMMAND --help` for every command, as it is printed. This page is generated: `python -m tests.test_docs` writes it.
Every option may also stand in a TOML file ([config.example.toml](../config.example.toml)) or in a variable
(`HARVESTER_PER_MONTH`, or `HARVESTER_RUN_PER_MONTH` for one command). Precedence: command line, environment, config file.
"""


def help_text(*words: str) -> str:
    done = harvester(*words, "--help", env={"COLUMNS": "110", "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()


def section(command: str) -> str:
    return f"\n## harvester {command}\n\n```text\n{help_text(command)}\n```\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_command_line_has_the_help_that_the_command_prints(command: str) -> None:
    """After a change: python -m tests.test_docs writes it anew."""
    assert section(command) in CLI.read_text()


def test_the_page_of_the_command_line_has_every_command_once() -> None:
    listed = re.findall(r"^│ ([a-z]+)  ", help_text(), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert re.findall(r"^## harvester (\w+)$", CLI.read_text(), re.MULTILINE) == COMMANDS


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_exit_code_is_in_the_readme() -> None:
    shown = dict(re.findall(r"^\| (\d) \| (.*) \|$", README, re.MULTILINE))
    assert {int(code): text.replace("`", "") for code, text in shown.items()} == EXIT_CODES


def test_every_reason_to_stop_has_an_exit_code() -> None:
    assert set(BY_REASON) == set(StopReason)


def test_every_reason_to_stop_is_documented_with_its_exit_code() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d) \|$", STATUS, re.MULTILINE))
    assert {reason: int(code) for reason, code in shown.items()} == {str(each): BY_REASON[each] for each in StopReason}


def test_every_state_is_documented() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| [^|]* \|$", STATUS, re.MULTILINE)) == {str(each) for each in State}


def test_every_thing_that_a_run_waits_for_is_documented() -> None:
    assert {word for word in WAIT_REASONS if f"`{word}`" not in OUTPUT} == set()


def test_every_column_and_every_key_of_a_failure_is_documented() -> None:
    names = [column.name for column in (*COLUMNS[Shape.NESTED], *COLUMNS[Shape.FLAT], *METRIC, *FAILURE)]
    assert {name for name in names if f"`{name}`" not in OUTPUT} == set()


def keys(value: Any) -> Iterator[str]:
    """The keys of an object and of the objects in it."""
    if isinstance(value, dict):
        yield from value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(each)


def test_every_key_of_a_manifest_is_documented(tmp_path: Path, serve: Callable[..., Served]) -> None:
    links = "".join(f"bit.ly/{i}\n" for i in range(3))
    for most in ("1", "9"):  # a run that was stopped, and one that was not
        words = ("run", "-", "--out", "out", "--max-calls", most, "--base-url", serve().url)
        assert harvester(*words, stdin=links.encode(), cwd=tmp_path).returncode == (5 if most == "1" else 0)
        manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
        assert {key for key in keys(manifest) if f"`{key}`" not in OUTPUT} == set()


def test_the_glossary_is_in_order_and_says_each_word_in_one_sentence() -> None:
    entries = re.findall(r"^\*\*(.+?)\*\*: (.+)$", GLOSSARY, re.MULTILINE)
    words = [word for word, _ in entries]
    assert words == sorted(set(words), key=str.lower)
    assert not [word for word, text in entries if not text.endswith(".") or re.search(r"[.!?] [A-Z]", text)]


def test_the_glossary_has_the_words_of_the_output() -> None:
    words = set(re.findall(r"^\*\*(.+?)\*\*: ", GLOSSARY, re.MULTILINE))
    known = {"attempt", "bitlink", "budget", "call", "circuit breaker", "failed", "journal", "ledger", "manifest", "part"}
    assert known | {"facet", "query", "refused", "row", "settled", "slot", "verdict", "window"} <= words


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#?)([^)]*)\)", page.read_text()):
            found = (page.parent / target).resolve() if target else page
            assert found.exists(), f"{page}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name}" not in index} == set()


def test_the_changelog_knows_this_version_or_has_it_coming() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in changelog or "## [Unreleased]" in changelog


def examples() -> list[str]:
    """The README's commands that harvest, without their comments."""
    blocks = "\n".join(README.split("```")[1::2])
    return [line.partition("  #")[0].strip() for line in blocks.splitlines() if "harvester run" in line]


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


if __name__ == "__main__":
    CLI.write_text(HEAD + "".join(map(section, COMMANDS)))
