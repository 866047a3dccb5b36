"""The index of a table by keys that are hashes: found wherever an entry is, and written seldom."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from harvester.storage import sqlite
from harvester.storage.sqlite import KeyIndex, SqliteFile

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, key BLOB, mark INTEGER DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS by_key (key BLOB PRIMARY KEY, id INTEGER) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS indexed AS SELECT 0 AS last",
)


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[tuple[SqliteFile, KeyIndex]]:
    with closing(SqliteFile(str(path), "the ledger", "Mend it", read_only=read_only)) as file:
        if not read_only:
            for statement in SCHEMA:
                file.connection.execute(statement)
        yield file, KeyIndex(file, "t")


def keys(*numbers: int) -> list[bytes]:
    return [sha256(b"%d" % number).digest()[:16] for number in numbers]


def add(file: SqliteFile, index: KeyIndex, some: Sequence[bytes]) -> None:
    with index.transaction():
        rows = [(found, key) for key, found in index.ids(some).items()]
        file.connection.executemany("INSERT INTO t (id, key) VALUES (?, ?) ON CONFLICT (id) DO NOTHING", rows)


def found(index: KeyIndex, some: Sequence[bytes]) -> dict[bytes, int]:
    return {key: row for row, key in index.rows("", some)}


def indexed(file: SqliteFile) -> int:
    return int(file.connection.execute("SELECT last FROM indexed").fetchone()[0])


def test_a_row_is_found_whether_its_entry_is_in_memory_or_in_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "MOST_RECENT", 10)
    path, every = tmp_path / "t.sqlite", keys(*range(34))
    with opened(path) as (file, index):
        for start in range(0, 34, 3):
            add(file, index, keys(*range(max(start - 1, 0), min(start + 3, 34))))
        assert indexed(file) == 24
        assert found(index, [*every, *keys(99)]) == {key: number for number, key in enumerate(every, 1)}
        assert index.whole()
    with opened(path) as (_, index):
        assert found(index, every) == {key: number for number, key in enumerate(every, 1)}


def test_a_reader_finds_what_is_added_and_merged_while_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.sqlite"
    with opened(path) as (file, index):
        add(file, index, keys(1, 2))
        with opened(path, read_only=True) as (_, reader):
            assert set(found(reader, keys(1, 2, 3))) == set(keys(1, 2))
            add(file, index, keys(3))
            assert set(found(reader, keys(1, 2, 3))) == set(keys(1, 2, 3))
            monkeypatch.setattr(sqlite, "MOST_RECENT", 1)
            add(file, index, keys(4))
            assert indexed(file) == 3
            assert found(reader, keys(1, 2, 3, 4)) == found(index, keys(1, 2, 3, 4))


def test_what_a_transaction_takes_back_is_not_found(tmp_path: Path) -> None:
    with opened(tmp_path / "t.sqlite") as (file, index):
        add(file, index, keys(1))

        def fail() -> None:
            with index.transaction():
                file.connection.execute("INSERT INTO t (id, key) VALUES (2, ?)", keys(2))
                assert index.ids(keys(2, 3)) == dict(zip(keys(2, 3), (2, 3), strict=True))
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert found(index, keys(1, 2)) == {keys(1)[0]: 1}
        add(file, index, keys(3))
        assert found(index, keys(2, 3)) == {keys(3)[0]: 2}


def test_keys_that_were_looked_for_get_ids_of_their_own_each_time_in_one_transaction(tmp_path: Path) -> None:
    with opened(tmp_path / "t.sqlite") as (file, index):
        assert found(index, keys(1, 2, 3)) == {}
        with index.transaction():
            for some in (keys(1, 2), keys(3), keys(2)):
                rows = [(found, key) for key, found in index.ids(some).items()]
                file.connection.executemany("INSERT INTO t (id, key) VALUES (?, ?) ON CONFLICT (id) DO NOTHING", rows)
        assert found(index, keys(1, 2, 3)) == dict(zip(keys(1, 2, 3), (1, 2, 3), strict=True))


@pytest.mark.parametrize("most", [2, 100], ids=["in the index", "in memory"])
def test_a_key_that_is_forgotten_can_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(sqlite, "MOST_RECENT", most)
    path = tmp_path / "t.sqlite"
    with opened(path) as (file, index):
        add(file, index, keys(1, 2, 3))
        for _ in range(2):
            with index.transaction():
                index.forget("SELECT key FROM t WHERE id > ?", 1)
                file.connection.execute("DELETE FROM t WHERE id > 1")
            assert set(found(index, keys(1, 2, 3))) == set(keys(1))
            add(file, index, keys(3, 2))
            with index.transaction():
                index.update("mark = mark + 1", keys(1, 2, 3, 4))
            assert set(found(index, keys(1, 2, 3))) == set(keys(1, 2, 3))
            assert index.whole()
    with opened(path) as (_, index):
        assert set(found(index, keys(1, 2, 3))) == set(keys(1, 2, 3))
        marks = {key: mark for _, key, mark in index.rows(", mark", keys(1, 2, 3))}
        assert marks == dict(zip(keys(1, 2, 3), (2, 1, 1), strict=True))


def test_a_kill_in_the_middle_of_a_merge_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy is what a kill leaves after a transaction, the slices of a merge among them."""
    monkeypatch.setattr(sqlite, "MOST_RECENT", 50)
    path, copies, transaction = tmp_path / "t.sqlite", list[Path](), SqliteFile.transaction

    @contextmanager
    def copied(file: SqliteFile) -> Iterator[None]:
        with transaction(file):
            yield
        copies.append(tmp_path / f"copy-{len(copies)}.sqlite")
        for ending in ("", "-wal"):
            shutil.copyfile(f"{path}{ending}", f"{copies[-1]}{ending}")

    with opened(path) as (file, index):
        add(file, index, keys(*range(40)))
        add(file, index, keys(*range(40, 90)))
        with monkeypatch.context() as patched:
            patched.setattr(SqliteFile, "transaction", copied)
            add(file, index, keys(90))
    assert len(copies) > 10
    some = keys(*range(90))
    states = set()
    for copy in (*copies[::4], copies[-1]):
        with opened(copy) as (file, index):
            states.add(indexed(file))
            assert index.whole()
            assert found(index, some) == {key: number for number, key in enumerate(some, 1)}
            add(file, index, keys(90))
            assert indexed(file) == 90
            assert index.whole()
            assert found(index, keys(*range(91))) == {key: n for n, key in enumerate(keys(*range(91)), 1)}
    assert states == {0, 90}


def test_a_commit_writes_few_bytes_for_each_row(tmp_path: Path) -> None:
    """An index that is written with each commit takes more than 400 bytes a row here, and 8,000 over a million rows."""
    path = tmp_path / "t.sqlite"
    with opened(path) as (file, index):
        for start in range(0, 10_000, 1000):
            add(file, index, keys(*range(start, start + 1000)))
        assert (tmp_path / "t.sqlite-wal").stat().st_size < 100 * 10_000
