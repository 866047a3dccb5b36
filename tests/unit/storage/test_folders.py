"""Where the state of a machine's runs is kept, and when it may be kept somewhere else."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import psutil
import pytest

from harvester.errors import OutputError, UsageError
from harvester.storage.folders import check_unused, lock_folder, resolve, state_folder
from tests.support.users import NOBODY, as_somebody

IMPORTED = (platformdirs, psutil)
"""By the functions themselves, when somebody may not be allowed to read them."""


@pytest.fixture
def home(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of a user who is not root."""
    quick_path.chmod(0o755)
    home = quick_path / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    yield home
    for folder in (home, home / ".local", home / ".local" / "state", home / ".local" / "state" / "harvester"):
        if folder.exists():
            folder.chmod(0o755)


def state_of(home: Path) -> Path:
    return home / ".local" / "state" / "harvester"


def found(asked: str | None = None) -> tuple[str, list[str]]:
    """Where the state is kept, and the warnings."""
    warnings: list[str] = []
    with as_somebody():
        return state_folder(asked, "private", warnings.append), warnings


def closed(mode: int, *path: str) -> Callable[[Path], None]:
    return lambda home: home.joinpath(*path).chmod(mode)


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(home: Path) -> None:
        (state_of(home) / "budget.sqlite").unlink()
        make(state_of(home) / "budget.sqlite")

    return replace


def test_the_budget_lies_in_the_users_state_folder(home: Path) -> None:
    assert found() == (str(state_of(home)), [])
    assert (state_of(home) / "budget.sqlite").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        closed(0o555, ".local", "state", "harvester"),
        closed(0o000, ".local", "state", "harvester"),
        closed(0o000, ".local"),
        replaced(Path.mkdir),
        replaced(os.mkfifo),
        replaced(lambda path: path.symlink_to("/nowhere/at/all")),
    ],
    ids=["read-only folder", "closed folder", "closed parent", "a folder", "a pipe", "a link to nowhere"],
)
def test_a_budget_that_is_there_and_cannot_be_written_is_refused(home: Path, spoil: Callable[[Path], None]) -> None:
    found()
    spoil(home)
    with pytest.raises(OutputError, match=r"has the counts of this month.*--state-dir"):
        found()


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
def test_a_folder_in_the_place_of_what_sqlite_keeps_beside_the_budget_is_named(home: Path, ending: str) -> None:
    found()
    taken = state_of(home) / f"budget.sqlite{ending}"
    taken.mkdir()
    with pytest.raises(OutputError, match=rf"^{taken} cannot be written \(it is not a file\).*: move it away\."):
        found()


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_the_one_of_the_budgets_files_that_may_not_be_written_is_named(home: Path, ending: str) -> None:
    """SQLite gives those beside it the rights that it had, so they may lack what has been given back to it."""
    found()
    closed = state_of(home) / f"budget.sqlite{ending}"
    closed.touch()
    closed.chmod(0o444)
    with pytest.raises(OutputError, match=rf"^{closed} cannot be written \(Permission denied\)"):
        found()


def test_a_budget_on_a_network_file_system_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found()
    monkeypatch.setattr("harvester.storage.folders._NETWORK", frozenset({"tmpfs", "overlay", "ext4", "xfs", "btrfs"}))
    with pytest.raises(OutputError, match="a network file system"):
        found()


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_state_folder_without_a_budget_that_cannot_be_written_is_replaced(home: Path, mode: int) -> None:
    (home / ".local" / "state").mkdir(parents=True)
    closed(mode, ".local" if mode else "")(home)
    folder, warnings = found()
    assert folder == "private"
    assert len(warnings) == 1


@pytest.mark.parametrize("exists", [False, True])
def test_a_state_dir_that_was_named_and_cannot_be_written_is_refused(home: Path, exists: bool) -> None:
    if exists:
        (home / "state").mkdir()
    home.chmod(0o555)
    with pytest.raises(OutputError, match="cannot contain the budget"):
        found(str(home / "state"))


def test_locks_that_cannot_be_made_are_refused(home: Path) -> None:
    home.chmod(0o555)
    with as_somebody(), pytest.raises(OutputError, match="connections"):
        lock_folder(str(home), "api.example:443")


# --- what is there already ------------------------------------------------------------------------------------------


def test_parts_of_another_program_are_named_as_what_they_are(quick_path: Path) -> None:
    for number in range(3):
        (quick_path / f"part-0000{number}-3f2a-c000.snappy.parquet").touch()
    said = f"{quick_path} has files of another program, .*part-00000-3f2a-c000.snappy.parquet and 2 more.*another --out"
    with pytest.raises(UsageError, match=said):
        check_unused(resolve(str(quick_path)))


def test_a_part_of_harvesters_shows_that_the_ledger_is_lost(quick_path: Path) -> None:
    (quick_path / "part-9a0822b22f12-00000.ndjson.gz").touch()
    with pytest.raises(OutputError, match="was started before, and its ledger"):
        check_unused(resolve(str(quick_path)))


@pytest.mark.parametrize("asked", [None, "another"])
def test_a_work_dir_that_was_forgotten_is_named(quick_path: Path, asked: str | None) -> None:
    work_dir = quick_path / "my state"
    (quick_path / "_manifest.json").write_text(json.dumps({"work_dir": str(work_dir)}))
    with pytest.raises(OutputError, match=f"was started with --work-dir '{work_dir}', where its ledger is: add --work"):
        check_unused(resolve(str(quick_path), asked))
    with pytest.raises(OutputError, match=r"its ledger .* is missing"):
        check_unused(resolve(str(quick_path), str(work_dir)))
