"""A SQLite file that a power cut cannot damage, for several threads in turn, and an index whose keys are hashes."""

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count, pairwise
from typing import Any, NamedTuple
from urllib.parse import quote

from harvester.errors import OutputError
from harvester.storage.filesystem import Tampering, first_denied, set_aside, sync_folder, sync_path, try_remove

_DURABLE = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-4096", "temp_store=FILE")
_VARIABLES = 1024  # placeholders in one statement, a power of two; SQLite allows more
_REMEMBERED = 5000
MOST_RECENT = 50_000  # entries of an index that are kept in memory
_BOUNDS = (*(bytes([first]) for first in range(0, 256, 8)), b"\xff" * 17)  # the last one is longer than any key
_IN_MEMORY = (
    "PRAGMA temp.journal_mode=MEMORY",
    "PRAGMA temp.cache_size=-16384",
    "CREATE TEMP TABLE recent (key BLOB PRIMARY KEY, id INTEGER) WITHOUT ROWID",
    "CREATE TEMP TABLE reached AS SELECT last FROM indexed",
    "CREATE TEMP VIEW places AS SELECT key, id FROM main.by_key UNION ALL SELECT key, id FROM temp.recent",
)
_TOUCHES = 3  # changes of the file's moment alone that are looked into


class SqliteFile:
    """An open SQLite file; it is created if missing, unless read_only. advice: what to do when it is damaged.

    A commit is durable when it returns: WAL with synchronous=FULL, because NORMAL does not sync at a commit
    (https://www.sqlite.org/pragma.html#pragma_synchronous). SQLite's errors become ours here.
    """

    def __init__(
        self, path: str, name: str, advice: str, *, read_only: bool = False, pragmas: Sequence[str] = _DURABLE
    ) -> None:
        self._path, self._name, self._advice = path, name, advice
        self._pragmas, self._turn = pragmas, threading.RLock()
        self._lost: OutputError | None = None
        self._touched, self._doubted = 0, False
        with self.guarded():
            self.connection = _open_to_read(path) if read_only else _open_to_write(path, pragmas)
            self._left = None if read_only else _Files.at(path)

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self.connection.close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Hold the connection for this thread, and turn SQLite's errors into OutputError."""
        try:
            with self._turn:
                if self._lost is not None:
                    raise self._lost
                yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "no such" in str(error):
                raise self.damaged(str(error)) from error
            denied = code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")) and first_denied(_files_of(self._path))
            raise OutputError(denied or f"{self._path}: {error} ({code})") from error
        except UnicodeDecodeError as error:  # SQLite quotes in its messages what it could not read
            raise self.damaged(str(error)) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one transaction: all of it becomes durable, or nothing."""
        with self.guarded(), self._noted():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Note how a transaction leaves the files, and whether they were changed before it.

        What the folder's rights keep from being seen is reported by the next check.
        """
        with suppress(OSError):
            self._doubted = self._doubted or (self._left is not None and not _Files.at(self._path).same_as(self._left))
        try:
            yield
        finally:
            with suppress(OSError):
                if self._left is not None and (after := _Files.at(self._path)).follows(self._left):
                    self._left = after

    def tampering(self, whole: Callable[[], bool]) -> Tampering | None:
        """Return what another program has done to the file since the last transaction; None also while one goes on.

        whole: called if only the file's moment has changed, to tell whether its content still holds.
        """
        if self._lost is not None or self._left is None or not self._turn.acquire(blocking=False):
            return None
        try:
            now = _Files.at(self._path)
            if now.same_as(self._left) and not self._doubted:
                return None
            # A file system of its own mind about moments must neither end each run nor have the file read each time.
            if now.same_as(self._left, but_for_moment=True) and (self._touched >= _TOUCHES or whole()):
                self._touched += 1
                self._left, self._doubted = now, False
                return None
        finally:
            self._turn.release()
        return Tampering(self._path, "was removed, replaced or written to by another program")

    def restore(self, good: Callable[[], bool]) -> None:
        """Write the file again from the open one; what has its name is set aside.

        good: called with the new file open, to compare its content with what is known.

        Raises:
            OutputError: it is not good; raised for every further call too.
        """
        hidden = f"{self._path}.restored"
        with self._turn:
            try:
                copied = self._copy_to(hidden)
            except sqlite3.DatabaseError:
                copied = False
            aside = set_aside(self._path)
            ours = self._left.log if self._left else None
            if aside and ours and (log := _state_of(self._path + "-wal")) and log[:2] != ours[:2]:
                os.replace(self._path + "-wal", aside + "-wal")
            # Closing deletes the write-ahead log by its name, so it comes before a new one can be there.
            self.connection.close()
            for ending in ("-wal", "-shm"):
                try_remove(self._path + ending)
            if copied:
                os.replace(hidden, self._path)
                sync_folder(os.path.dirname(self._path))
                self.connection = _open_to_write(self._path, self._pragmas)
                self._left, self._doubted = _Files.at(self._path), False
                with suppress(OutputError):
                    if good():
                        return
                self.connection.close()
                set_aside(self._path)
            try_remove(hidden)
            self._lost = OutputError(
                f"{self._path}: another program has written to {self._name} while the run had it open; its content is "
                f"kept beside it as .aside. {self._advice}"
            )
            raise self._lost

    def _copy_to(self, path: str) -> bool:
        """Copy what the connection sees into a new file, durably; return whether it is whole."""
        try_remove(path)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666))
        copy = sqlite3.connect(path, isolation_level=None)
        try:
            self.connection.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE").fetchall()
            whole = bool(copy.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok")
        finally:
            copy.close()
        sync_path(path)
        return whole

    def damaged(self, reason: str) -> OutputError:
        """Return the error for a file that is damaged."""
        return OutputError(f"{self._path}: {self._name} is damaged ({reason}). {self._advice}")


class KeyIndex:
    """Finds a table's rows (id, key, …) by keys that are hashes, and is written in large batches. One for a file.

    Each new hash belongs on another page of a B-tree, so an index that is written with every commit writes a page of
    4 KiB, twice, for an entry of 25 bytes. Here the last rows are found by a table in memory. When it has MOST_RECENT
    entries they go into the index in the order of their keys: then each page that is written gets several. The table in
    memory is read from the rows behind the id in `indexed`, so a kill loses nothing. The view `places` (key, id) shows
    both to statements within `transaction`; an entry that is in both has the same id there.
    """

    def __init__(self, file: SqliteFile, table: str) -> None:
        self._file, self._table = file, table
        self._prepared: sqlite3.Connection | None = None
        self._found: dict[bytes, int | None] = {}  # what `rows` looked up; ids may be stale, so keys are compared

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as a transaction, with all rows before it in the view; first merge what is due."""
        self._merge()
        with self._file.guarded():
            self._catch_up()
            with self._file.transaction():
                yield

    def rows(self, columns: str, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return id, key and these columns of the rows with these keys; some rows may come twice."""
        found: list[tuple[Any, ...]] = []
        with self._file.guarded():
            self._catch_up()
            for start in range(0, len(keys), _VARIABLES):
                some = _padded(keys[start : start + _VARIABLES])
                which = f"places JOIN {self._table} USING (id, key) WHERE key IN ({','.join('?' * len(some))})"
                found += self._file.connection.execute(f"SELECT id, key{columns} FROM {which}", some)  # noqa: S608
            if len(self._found) > _REMEMBERED:
                self._found.clear()
            self._found.update(dict.fromkeys(keys) | {row[1]: row[0] for row in found})
        return found

    def ids(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Return an id for each of these distinct keys: that of its row, or a new one, in the order of the keys."""
        asked = [key for key in keys if self._found.get(key, 0) is not None]  # the others are known to have no row
        found = {key: row for row, key in self.rows("", asked)}
        for key in keys:
            self._found.pop(key, None)
        following = count(self._one("SELECT last FROM temp.reached") + 1)
        return {key: found.get(key) or next(following) for key in keys}

    def update(self, change: str, keys: Sequence[bytes]) -> None:
        """Change the rows with these keys, within a transaction. change: what follows SET."""
        if not self._found.keys() >= set(keys):
            self.rows("", keys)
        rows = sorted((row, key) for key in keys if (row := self._found[key]) is not None)
        self._file.connection.executemany(f"UPDATE {self._table} SET {change} WHERE id = ? AND key = ?", rows)  # noqa: S608

    def forget(self, keys: str, *parameters: Any) -> None:
        """Remove keys whose rows the same transaction deletes afterwards. keys: the statement that selects them."""
        self._found.clear()
        for entries in ("by_key", "temp.recent"):
            self._file.connection.execute(f"DELETE FROM {entries} WHERE key IN ({keys})", parameters)  # noqa: S608

    def _merge(self) -> None:
        """Move the entries in memory into the index, if there are MOST_RECENT of them.

        Each slice is a transaction, so the log stays short, and other threads get their turn. A kill between two leaves
        entries whose ids are behind `indexed`; the next merge writes them once more.
        """
        with self._file.guarded():
            self._catch_up()
            last = self._one("SELECT last FROM temp.reached")
            if last - self._one("SELECT last FROM indexed") < MOST_RECENT:
                return
        for low, high in pairwise(_BOUNDS):
            with self._file.transaction():
                entries = "SELECT key, id FROM temp.recent WHERE key >= ? AND key < ? AND id <= ? ORDER BY key"
                self._file.connection.execute(f"INSERT OR REPLACE INTO by_key {entries}", (low, high, last))
                if high == _BOUNDS[-1]:
                    self._file.connection.execute("UPDATE indexed SET last = ?", (last,))
                    self._file.connection.execute("DELETE FROM temp.recent WHERE id <= ?", (last,))

    def whole(self) -> bool:
        """Return True if the index has as many entries as it should have. Reads all of it."""
        indexed = "WHERE id <= (SELECT last FROM indexed)"
        counts = (f"(SELECT count(*) FROM {each} {indexed})" for each in ("by_key", self._table))  # noqa: S608 - ours
        return bool(self._one(f"SELECT sum(typeof(last) = 'integer') = 1 AND {' = '.join(counts)} FROM indexed"))  # noqa: S608

    def _catch_up(self) -> None:
        """Add the rows to the table in memory that it lacks: this process's last ones, or another's.

        The first call makes that table, so it must be outside of a transaction, which could take it back.
        """
        connection = self._file.connection
        if self._prepared is not connection:
            for statement in _IN_MEMORY:
                connection.execute(statement).fetchall()
            self._prepared = connection
        last, reached = self._one(f"SELECT max(id) FROM {self._table}") or 0, self._one("SELECT last FROM temp.reached")  # noqa: S608
        if last > reached:
            new = f"SELECT key, id FROM {self._table} WHERE id > ?"  # noqa: S608 - ours
            connection.execute(f"INSERT OR REPLACE INTO temp.recent {new}", (reached,))
            connection.execute("UPDATE temp.reached SET last = ?", (last,))

    def _one(self, select: str) -> Any:
        return self._file.connection.execute(select).fetchone()[0]


def _padded(keys: Sequence[bytes]) -> list[bytearray]:
    """Return keys with the last one repeated, up to a power of two: sqlite3 remembers 128 statements, and one with a
    thousand placeholders takes 100 kB. As bytearrays, since it looks for an adapter of each value that is bytes.
    """
    return [bytearray(key) for key in (*keys, *[keys[-1]] * ((1 << (len(keys) - 1).bit_length()) - len(keys)))]


def rows_left(path: str, table: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows that can be read of a table in a damaged file: from both ends, as far as the damage.

    columns: the first one is its key. A row may be yielded twice. Nothing is written beside the file; its write-ahead
    log is read, too.
    """
    select = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {columns[0]}"  # noqa: S608 - ours
    with tempfile.TemporaryDirectory(prefix="harvester-") as folder:
        copy = os.path.join(folder, "copy")
        for ending in ("", "-wal"):
            with suppress(OSError):
                shutil.copyfile(path + ending, copy + ending)
        for order in ("", " DESC"):
            try:
                with closing(sqlite3.connect(copy)) as db:
                    db.text_factory = lambda text: text.decode("utf-8", "replace")
                    yield from db.execute(select + order)
                    return
            except sqlite3.DatabaseError:
                continue


class _Files(NamedTuple):
    """The states of a SQLite file and of its write-ahead log: device, inode, size, and the file's last change.

    A checkpoint, which is part of a transaction, changes the file; the log is written to by every transaction and never
    shortened. Readers change neither.
    """

    file: tuple[int, ...] | None
    log: tuple[int, ...] | None

    @classmethod
    def at(cls, path: str) -> "_Files":
        return cls(_state_of(path), _state_of(path + "-wal"))

    def follows(self, before: "_Files") -> bool:
        """Return True if a transaction can have made this of what was before: the same files, none of them shorter."""
        pairs = [(self.file, before.file), *([(self.log, before.log)] if before.log else [])]
        return all(now and then and now[:2] == then[:2] and now[2] >= then[2] for now, then in pairs)

    def same_as(self, before: "_Files", *, but_for_moment: bool = False) -> bool:
        known = 3 if but_for_moment else 4
        if self.file is None or before.file is None or self.file[:known] != before.file[:known]:
            return False
        # A log that was not begun then may have been begun by a reader.
        return before.log is None or (self.log is not None and self.log[:3] == before.log[:3])


def _state_of(path: str) -> tuple[int, ...] | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        found = os.lstat(path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _files_of(path: str) -> tuple[str, ...]:
    return path, f"{path}-wal", f"{path}-shm"


def _open_to_write(path: str, pragmas: Sequence[str]) -> sqlite3.Connection:
    if not os.path.islink(path):
        with suppress(OSError):  # SQLite reports it better; by itself it would create the file with rw-r--r-- at most
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        db = _connected(path)
        if _is_named(db, path):
            return _prepared(db, *(f"PRAGMA {pragma}" for pragma in pragmas))
        db.close()
    raise OutputError(f"{path} is a symbolic link, which is not followed: put the file itself there")


def _is_named(db: sqlite3.Connection, path: str) -> bool:
    """Return False if SQLite followed a link in place of the file, which may be planted after any earlier check.

    SQLite resolves links when it connects, keeps the resolved name, and opens the file by it without following another
    link. Nothing has been read or written yet.
    """
    db.text_factory = bytes  # a path may be in no encoding
    opened, db.text_factory = db.execute("PRAGMA database_list").fetchone()[2], str
    folder, name = os.path.split(os.path.abspath(path))
    return bool(opened == os.fsencode(os.path.join(os.path.realpath(folder), name)))


def _open_to_read(path: str) -> sqlite3.Connection:
    """Open a file that a run may be writing; in a folder that is not writable, as its last run left it.

    Without writing there SQLite cannot read a log, which has the last commits of a run that was killed.
    """
    url, first = f"file:{quote(os.fsencode(path))}?mode=ro", "SELECT count(*) FROM sqlite_master"
    try:
        return _connected(url, first, uri=True)
    except sqlite3.OperationalError:
        if os.path.exists(log := path + "-wal") and os.path.getsize(log):
            raise
        return _connected(f"{url}&immutable=1", first, uri=True)


def _connected(path: str, *statements: str, uri: bool = False) -> sqlite3.Connection:
    """Open a file and run the statements; close it again if one of them fails."""
    # Autocommit mode: every transaction is written out, so that its extent can be seen.
    return _prepared(sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=uri), *statements)


def _prepared(db: sqlite3.Connection, *statements: str) -> sqlite3.Connection:
    """Run the statements; close the file if one of them fails."""
    try:
        for statement in statements:
            db.execute(statement).fetchall()
    except BaseException:
        db.close()
        raise
    return db
