"""A folder's lock, and what other programs do to a SQLite file that is open."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harvester.errors import DatasetBusy, OutputError
from harvester.storage.sqlite import SqliteFile, install, rows_left
from harvester.storage.watch import FolderLock
from tests.support.users import NOBODY, as_somebody


def test_a_folder_is_locked_until_it_is_left(tmp_path: Path) -> None:
    with (
        FolderLock(str(tmp_path), "lake"),
        pytest.raises(DatasetBusy, match=rf"works on lake \(process {os.getpid()}\): wait"),
        FolderLock(str(tmp_path), "lake"),
    ):
        pass
    with FolderLock(str(tmp_path), "lake") as lock:
        assert lock.tampering() is None
        assert os.listdir(tmp_path) == []


def test_a_folder_that_is_removed_is_made_and_locked_again(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with FolderLock(str(folder), "lake") as lock:
        folder.rmdir()
        found = lock.tampering()
        assert found
        assert found.curable
        lock.restore()
        assert lock.tampering() is None
        with pytest.raises(DatasetBusy), FolderLock(str(folder), "lake"):
            pass


def test_a_folder_that_is_moved_stays_locked_and_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with FolderLock(str(folder), "lake") as lock:
        folder.rename(tmp_path / "away")
        found = lock.tampering()
        assert found
        assert not found.curable
        assert os.listdir(tmp_path / "away") == []
        with pytest.raises(DatasetBusy), FolderLock(str(tmp_path / "away"), "lake"):
            pass


def database(path: Path) -> SqliteFile:
    file = SqliteFile(str(path), "the ledger", "Mend it")
    with file.transaction():
        file.connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, text)")
    return file


def add(file: SqliteFile, count: int) -> None:
    with file.transaction():
        file.connection.executemany("INSERT INTO t (text) VALUES (?)", (("x" * 500,) for _ in range(count)))


def counted(file: SqliteFile) -> int:
    with file.guarded():
        return int(file.connection.execute("SELECT count(*) FROM t").fetchone()[0])


@pytest.mark.parametrize("commit", [False, True], ids=["at rest", "before the next transaction"])
@pytest.mark.parametrize(
    "disturb",
    [
        lambda path: path.unlink(),
        lambda path: path.with_name("db-wal").unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.rename(path.with_name("elsewhere")),
        lambda path: path.with_name("copy").replace(path),
    ],
    ids=["removed", "log removed", "emptied", "renamed", "replaced"],
)
def test_a_change_is_noticed_whenever_it_comes(tmp_path: Path, disturb: Callable[[Path], object], commit: bool) -> None:
    path = tmp_path / "db"
    with closing(database(path)) as file:
        add(file, 3000)
        shutil.copy(path, tmp_path / "copy")
        assert file.tampering(lambda: False) is None
        disturb(path)
        if commit:
            add(file, 1)
        assert file.tampering(lambda: False) is not None


def test_a_file_that_is_not_good_any_more_is_set_aside_and_stays_lost(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(database(path)) as file:
        add(file, 10)
        path.unlink()
        with pytest.raises(OutputError, match=r"kept beside it as \.aside\. Mend it"):
            file.restore(lambda: False)
        with pytest.raises(OutputError, match="Mend it"):
            counted(file)
        assert file.tampering(lambda: False) is None
    assert not path.exists()


def test_what_is_restored_is_complete_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(database(path)) as file:
        add(file, 100)
        path.write_bytes(b"another program's")  # its pages are in the log still
        file.restore(lambda: counted(file) == 100)
        add(file, 1)
        assert file.tampering(lambda: False) is None
    assert (tmp_path / "db.aside").exists()
    with closing(database(path)) as file:
        assert counted(file) == 101


def test_rows_on_both_sides_of_a_damaged_page_are_read(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(database(path)) as file:
        add(file, 1000)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2 // 4096 * 4096)
        stream.write(b"\xff" * 4096)
    found = {row[0] for row in rows_left(str(path), "t", ("id",))}
    assert 980 < len(found) < 1000
    assert {1, 1000} <= found
    assert list(rows_left(str(tmp_path / "none"), "t", ("id",))) == []
    assert sorted(os.listdir(tmp_path)) == ["db"]


def test_a_new_file_takes_the_place_of_another_with_its_log(tmp_path: Path) -> None:
    for name in ("db", "db-wal", "new"):
        (tmp_path / name).write_text(name)
    assert install(str(tmp_path / "db"), str(tmp_path / "new")) == str(tmp_path / "db.aside")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "db": "new",
        "db.aside": "db",
        "db.aside-wal": "db-wal",
    }


def test_a_link_that_is_planted_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "db"
    victim.touch()

    def planted_behind(checked: str) -> bool:
        path.symlink_to(victim)
        return False

    monkeypatch.setattr(os.path, "islink", planted_behind)
    with pytest.raises(OutputError, match="is a symbolic link, which is not followed"):
        database(path)
    assert victim.read_bytes() == b""
    assert not victim.with_name("victim-wal").exists()


def test_a_file_in_a_folder_whose_name_is_no_text_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"no-text-\xff")
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for path in (folder / "db", tmp_path / "link" / "db"):
        with closing(database(path)) as file:
            add(file, 1)


def owned_by_somebody(folder: Path) -> Path:
    """A ledger with a log that another user's process has left there, as a kill leaves it."""
    folder.chmod(0o755)
    killed = folder / "killed"
    killed.mkdir()
    with closing(database(folder / "db")) as file:
        add(file, 10)
        for ending in ("", "-wal", "-shm"):
            shutil.copy(folder / f"db{ending}", killed)
    for path in (killed, *killed.iterdir()):
        os.chown(path, *((NOBODY, NOBODY) if os.geteuid() == 0 else (-1, -1)))
    return killed / "db"


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_the_file_that_may_not_be_written_is_named(quick_path: Path, ending: str) -> None:
    path = owned_by_somebody(quick_path)
    closed = path.with_name(f"db{ending}")
    closed.chmod(0o444)
    refused = pytest.raises(OutputError, match=f"^{closed} cannot be written by this user: give it")
    with as_somebody(), refused, closing(SqliteFile(str(path), "the ledger", "Mend it")) as file:
        add(file, 1)
    closed.chmod(0o644)
    with as_somebody(), closing(database(path)) as file:
        assert counted(file) == 10


def test_a_log_is_never_left_out_when_a_folder_may_not_be_written(quick_path: Path) -> None:
    """A killed run's last commits are in the log alone, which SQLite cannot read there."""
    path = owned_by_somebody(quick_path)
    path.with_name("db-shm").unlink()
    path.parent.chmod(0o555)
    with as_somebody(), pytest.raises(OutputError):
        SqliteFile(str(path), "the ledger", "Mend it", read_only=True)
    path.parent.chmod(0o755)
    with as_somebody(), closing(database(path)):
        pass
    path.parent.chmod(0o555)
    with as_somebody(), closing(SqliteFile(str(path), "the ledger", "Mend it", read_only=True)) as file:
        assert counted(file) == 10
    path.parent.chmod(0o755)
