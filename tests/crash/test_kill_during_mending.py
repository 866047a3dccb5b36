"""Killed at each operation while a damaged journal is mended: the damage costs its own calls, and no row is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.crash.test_kill_at_every_operation import LINES, LINKS, REFUSED, crashing
from tests.support.commands import NO_LIMITS
from tests.support.killed_forks import ANY
from tests.support.output_checks import check_reconciled

OPERATIONS = 24
"""Those of a run's beginning; what follows is tried by test_kill_at_every_operation.py."""


FORMS = ["out", "results.ndjson"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lines", [(2,), (1, 4)], ids=["a line", "two lines"])
@pytest.mark.parametrize("spread", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["spread", "all"])
def test_a_kill_while_a_journal_is_mended_loses_no_row(
    quick_path: Path, serve: Callable[..., Served], form: str, lines: tuple[int, ...], spread: bool
) -> None:
    """In short, the forms and kinds of damage take turns at every second operation."""
    served, folder, kept = serve(), quick_path / "now", quick_path / "kept"
    links = quick_path / "links.txt"
    links.write_text("\n".join(LINES) + "\n")
    folder.mkdir()
    command = ["run", str(links), "--out", str(folder / form), "--base-url", served.url, *NO_LIMITS]
    command += ["--connections", "1"]
    with crashing(quick_path) as crasher:
        assert crasher.run(command, "commit ledger", 6, "after")["killed"]
        # On a fast machine the sixth commit may fall between two segments: the fuller one is damaged.
        journal = max(folder.rglob("journal-*.journal"), key=lambda path: path.stat().st_size)
        held = journal.read_bytes().splitlines(keepends=True)
        assert len(held) > max(lines)
        for number in lines:
            held[number - 1] = held[number - 1][:50] + b"\0" + held[number - 1][51:]
        journal.write_bytes(b"".join(held))
        shutil.copytree(folder, kept)
        answered = served.sandbox.answered.copy()
        begin = (FORMS.index(form) + len(lines)) % 2 + 1
        for nth in range(begin, OPERATIONS + 1, 2) if spread else range(1, OPERATIONS + 1):
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            served.sandbox.answered.clear()
            served.sandbox.answered.update(answered)
            kills = 1 + crasher.run(command, ANY, nth, "after")["killed"]
            assert crasher.run(command)["code"] == 0
            check_reconciled(folder / form, {*LINKS, *REFUSED})
            repeated = served.sandbox.answered.total() - len(served.sandbox.answered)
            assert repeated <= kills + len(lines)
