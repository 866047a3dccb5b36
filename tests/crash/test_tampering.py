"""Other programs that remove, replace, cut or move what a run has open: it ends within a second and loses nothing."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.output_checks import check_reconciled, manifest

LINKS = [f"bit.ly/{'missing-' * (i % 25 == 7)}{i}" for i in range(250)]
"""The refusals stand apart: many in a row, or at the end, are doubted, which costs a call."""
FORMS = ["out", "results.ndjson"]
SECONDS = 1.0
"""A run notices at its next commit, half a second later at most."""


class Case:
    """A run of LINKS. private: the folder of its state."""

    def __init__(self, tmp_path: Path, served: Served, form: str, *options: str) -> None:
        self.out, self.served = tmp_path / form, served
        path = tmp_path / "links.txt"
        path.write_text("\n".join(LINKS))
        self.private = self.out / "_harvester" if form == "out" else self.out.with_name(form + ".harvester")
        self.command = ["run", str(path), "--out", str(self.out), "--base-url", served.url, *NO_LIMITS, *options]
        self.stderr = ""

    @property
    def sandbox(self) -> Sandbox:
        return self.served.sandbox

    @property
    def journal(self) -> Path:
        return next(self.private.glob("journal-*.journal"))

    @property
    def ledger(self) -> Path:
        return self.private / "ledger.sqlite"

    def disturbed(
        self, disturb: Callable[["Case"], object], answers: int = 60, wrapper: Sequence[str] = ()
    ) -> tuple[int, float]:
        """Disturb a run after some answers; return its exit code and how many seconds later it has ended."""
        process = start(*self.command, wrapper=wrapper)
        wait_for(self.sandbox, answers, process)
        disturb(self)
        begun = time.monotonic()
        _, err = process.communicate(timeout=30)
        self.stderr = err.decode()
        assert "Traceback" not in self.stderr, self.stderr
        return process.returncode, time.monotonic() - begun

    def finish(self, asked_again: int = 0) -> None:
        """Run the same command to its end, without delay: nothing is asked twice but what is allowed."""
        self.sandbox.options = replace(self.sandbox.options, latency_ms=0)
        done = harvester(*self.command)
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        check_reconciled(self.out, set(LINKS))
        assert self.sandbox.answered.total() == len(LINKS) + asked_again
        checked = harvester("verify", str(self.out))
        assert checked.returncode == 0, checked.stdout


def wait_for(sandbox: Sandbox, answers: int, process: "subprocess.Popen[bytes]") -> None:
    while sandbox.answered.total() < answers:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)


def overwrite(path: Path, source: Path) -> None:
    """What cp does: the file stays the same one."""
    with path.open("r+b") as stream:
        stream.truncate()
        stream.write(source.read_bytes())


def remove_all(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def replace_by_copy(path: Path) -> None:
    """Put an older copy under the name, as mv does; here it is a moment older."""
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    time.sleep(0.4)
    copy.replace(path)


CURED: dict[str, Callable[[Case], object]] = {
    "journal removed": lambda case: case.journal.unlink(),
    "journal rotated": lambda case: case.journal.rename(case.private / "journal-00000.journal.1"),
    "journal rotated, a new one created": lambda case: (
        case.journal.rename(case.private / "old"),
        (case.private / "journal-00000.journal").write_bytes(b""),
    ),
    "journal replaced by an older copy": lambda case: replace_by_copy(case.journal),
    "ledger removed": lambda case: case.ledger.unlink(),
    "ledger and its log removed": lambda case: remove_all(case.private.glob("ledger.sqlite*")),
    "the ledger's log removed": lambda case: (case.private / "ledger.sqlite-wal").unlink(),
    "ledger replaced by an older copy": lambda case: replace_by_copy(case.ledger),
    "attempts removed": lambda case: (case.private / "attempts").unlink(),
    "the folder removed": lambda case: shutil.rmtree(case.private),
    "everything in the folder removed": lambda case: remove_all(case.private.iterdir()),
}


BRIEFLY = {"journal rotated", "the folder removed"}
"""With a growing file the rest is tried at night: what differs is where its state lies."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "what"),
    [
        pytest.param(form, what, marks=() if form == "out" or what in BRIEFLY else pytest.mark.nightly)
        for form in FORMS
        for what in CURED
    ],
)
def test_what_is_removed_or_replaced_is_written_again_and_the_run_ends(
    tmp_path: Path, serve: Callable[..., Served], form: str, what: str
) -> None:
    case = Case(tmp_path, serve(latency_ms=40), form)
    code, seconds = case.disturbed(CURED[what])
    assert code == 8, case.stderr
    assert "run the same command again" in case.stderr
    assert seconds < SECONDS + 1.0, "the calls in flight, and a loaded machine"
    assert case.sandbox.answered.total() < len(LINKS)
    assert manifest(case.out)["stopped"]["reason"] == "output"
    case.finish()


def test_a_ledger_that_is_only_touched_ends_no_run(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """A backup program, or a file system that corrects a moment afterwards."""
    case = Case(tmp_path, serve(latency_ms=40), "out")
    with start(*case.command) as process:
        for answers in (40, 80, 120, 160, 200):
            wait_for(case.sandbox, answers, process)
            case.ledger.touch()
        process.communicate(timeout=30)
    assert process.returncode == 0
    case.finish()


@pytest.mark.parametrize("form", FORMS)
def test_parts_that_wait_to_be_made_are_written_again_too(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    case = Case(tmp_path, serve(latency_ms=40), form, "--part-rows", "25")
    assert case.disturbed(CURED["the folder removed"], 150)[0] == 8
    case.finish()


@pytest.mark.parametrize("form", FORMS)
def test_a_state_folder_that_is_moved_away_ends_the_run_and_carries_it_on_once_it_is_back(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    case = Case(tmp_path, serve(latency_ms=40), form)
    away = tmp_path / "away"
    code, seconds = case.disturbed(lambda case: case.private.rename(away))
    assert (code, seconds < SECONDS + 1.0) == (8, True), case.stderr
    assert f"(to {away})" in case.stderr
    assert "Move it back" in case.stderr
    meanwhile = harvester(*case.command)
    assert meanwhile.returncode in {2, 8}, "another run would buy everything once more"
    if case.private.exists():
        shutil.rmtree(case.private)
    away.rename(case.private)
    case.finish()


@pytest.mark.parametrize("form", FORMS)
def test_a_journal_that_is_cut_ends_the_run_and_costs_what_it_held(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    """What only the journal knew is lost; a growing file has its rows already, and the ledger the refusals."""
    case = Case(tmp_path, serve(latency_ms=40), form)
    code, seconds = case.disturbed(lambda case: os.truncate(case.journal, 0))
    assert (code, seconds < SECONDS + 1.0) == (8, True), case.stderr
    assert "was truncated or changed by another program" in case.stderr
    answered = case.sandbox.answered.total()
    done = harvester(*case.command)
    assert done.returncode == 0, done.stderr
    assert "committed calls are missing from the journal" in done.stderr
    check_reconciled(case.out, set(LINKS))
    assert case.sandbox.answered.total() - len(LINKS) <= answered


@pytest.mark.parametrize("form", FORMS)
def test_a_state_folder_without_rights_ends_the_run_and_costs_nothing(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    case = Case(tmp_path, serve(latency_ms=40), form)
    unprivileged = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    code, seconds = case.disturbed(lambda case: case.private.chmod(0), wrapper=unprivileged)
    case.private.chmod(0o755)
    assert (code, seconds < SECONDS + 1.0) == (8, True), case.stderr
    assert "Permission denied" in case.stderr
    case.finish()


@pytest.mark.slow
def test_a_state_folder_that_is_removed_is_written_again_and_the_month_is_not_forgotten(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    state = tmp_path / "state"
    case = Case(tmp_path, serve(latency_ms=40), "out", "--state-dir", str(state))
    code, _ = case.disturbed(lambda case: shutil.rmtree(state))
    assert code == 8, case.stderr
    assert "run the same command again" in case.stderr
    case.finish()
    with closing(sqlite3.connect(state / "budget.sqlite")) as budget:
        assert budget.execute("SELECT spent FROM months").fetchone() == (case.sandbox.answered.total(),)


def test_a_second_run_is_kept_out_whatever_is_removed(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """The folder itself is locked: there is no file of the lock's own."""
    case = Case(tmp_path, serve(latency_ms=40), "out")
    with start(*case.command) as process:
        wait_for(case.sandbox, 5, process)
        assert "lock" not in os.listdir(case.private)
        second = harvester(*case.command)
        assert second.returncode == 5
        assert f"another harvester works on {case.out} (process {process.pid})" in second.stderr
        process.communicate(timeout=60)
    assert process.returncode == 0
    check_reconciled(case.out, set(LINKS))
