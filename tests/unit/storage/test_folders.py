"""Where the state of a machine's runs is kept, and when it may be kept somewhere else."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil
import pytest

from harvester.errors import OutputError
from harvester.storage.folders import lock_folder, state_folder

NOBODY = 65534
IMPORTED = (platformdirs, psutil)
"""By the functions themselves, when somebody may not be allowed to read them."""


@contextmanager
def as_somebody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


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
    with pytest.raises(OutputError, match=r"holds what was spent of this month.*--state-dir"):
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
    with pytest.raises(OutputError, match="cannot hold the budget"):
        found(str(home / "state"))


def test_locks_that_cannot_be_made_are_refused(home: Path) -> None:
    home.chmod(0o555)
    with as_somebody(), pytest.raises(OutputError, match="connections"):
        lock_folder(str(home), "api.example:443")
