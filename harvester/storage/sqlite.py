"""A SQLite file that a power cut cannot damage, used by several threads in turn; SQLite's errors become ours here.

Beside it a temporary one, for the distinct keys of a list.
"""

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

from harvester.errors import OutputError
from harvester.storage.filesystem import Tampering, first_denied, set_aside, sync_folder, sync_path

_DURABLE = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-4096", "temp_store=FILE")
_TOUCHES = 3
"""After so many changes of the file's moment alone they are not looked into any more."""
_ADVICE_ON_TEMPORARY = "It is a temporary file: run the same command again, which begins a new one"
_TEMPORARY = ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4096", "locking_mode=EXCLUSIVE")


class SqliteFile:
    """An open SQLite file; it is created if missing, unless read_only. advice: what to do when it is damaged.

    A commit is durable when it returns: WAL with synchronous=FULL, because NORMAL does not sync at a commit
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """

    def __init__(
        self, path: str, name: str, advice: str, *, read_only: bool = False, pragmas: Sequence[str] = _DURABLE
    ) -> None:
        self._path = path
        self._name = name
        self._advice = advice
        self._pragmas = pragmas
        self._turn = threading.RLock()
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
                _delete(self._path + ending)
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
            _delete(hidden)
            self._lost = OutputError(
                f"{self._path}: another program has written to {self._name} while the run had it open; its content is "
                f"kept beside it as .aside. {self._advice}"
            )
            raise self._lost

    def _copy_to(self, path: str) -> bool:
        """Copy what the connection sees into a new file, durably; return whether it is whole."""
        _delete(path)
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
                    db.text_factory = _lenient
                    yield from db.execute(select + order)
                    return
            except sqlite3.DatabaseError:
                continue


def _lenient(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def install(path: str, new: str) -> str | None:
    """Replace a file by a closed and whole one; set the old one aside with its log, and return its new name."""
    sync_path(new)
    aside = set_aside(path)
    for ending in ("-wal", "-shm"):
        if aside is None:
            _delete(path + ending)
        elif os.path.lexists(path + ending):
            os.replace(path + ending, aside + ending)
    os.replace(new, path)
    sync_folder(os.path.dirname(path))
    return aside


class DistinctKeys:
    """The distinct keys of a list in a temporary file, so that memory does not grow with the list; a context manager.

    A key may have a digest, that of what the list says of it first.

    The file has no journal, so a kill may leave it malformed under its name: it is deleted before it is created.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> "DistinctKeys":
        _delete(self._path)
        self._file = SqliteFile(self._path, "the count of the list", _ADVICE_ON_TEMPORARY, pragmas=_TEMPORARY)
        with self._file.transaction():
            self._file.connection.execute("CREATE TABLE listed (key BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        _delete(self._path)

    def add(self, keys: Sequence[bytes]) -> list[bytes]:
        """Add keys, and return those that were not there before.

        Raises:
            OutputError: the temporary file cannot be written.
        """
        insert = "INSERT OR IGNORE INTO listed (key) VALUES (?)"
        with self._file.transaction():
            return [key for key in keys if self._file.connection.execute(insert, (key,)).rowcount]

    def add_with_digests(self, digests: Sequence[tuple[bytes, bytes]]) -> int:
        """Add keys with their digests, and return how many were there before with another digest, which they keep.

        Raises:
            OutputError: the temporary file cannot be written.
        """
        differing, connection = 0, self._file.connection
        with self._file.transaction():
            for key, digest in digests:
                if not connection.execute("INSERT OR IGNORE INTO listed VALUES (?, ?)", (key, digest)).rowcount:
                    first = connection.execute("SELECT digest FROM listed WHERE key = ?", (key,)).fetchone()
                    differing += first[0] != digest
        return differing


class RankedItems:
    """Items in a temporary file, to be taken by rank and then in the order in which they came.

    Its memory does not grow with them. The file is deleted before it is created, as that of DistinctKeys.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        _delete(path)
        self._file = SqliteFile(path, "the links that are due", _ADVICE_ON_TEMPORARY, pragmas=_TEMPORARY)
        self._number = 0
        with self._file.transaction():
            self._file.connection.execute(
                "CREATE TABLE items (queue INTEGER, rank INTEGER, number INTEGER, item BLOB, "
                "PRIMARY KEY (queue, rank, number)) WITHOUT ROWID"
            )

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
        _delete(self._path)

    def add(self, items: Sequence[tuple[int, int, bytes]]) -> None:
        """Add items, each with its queue and rank.

        Raises:
            OutputError: the temporary file cannot be written.
        """
        numbered = [(queue, rank, self._number + n, item) for n, (queue, rank, item) in enumerate(items)]
        self._number += len(items)
        with self._file.transaction():
            self._file.connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", numbered)

    def take(self, queue: int, most: int) -> list[bytes]:
        """Remove the first items of a queue and return them."""
        select = "SELECT rank, number, item FROM items WHERE queue = ? ORDER BY rank, number LIMIT ?"
        with self._file.transaction():
            found = self._file.connection.execute(select, (queue, most)).fetchall()
            delete = "DELETE FROM items WHERE queue = ? AND rank = ? AND number = ?"
            self._file.connection.executemany(delete, [(queue, rank, number) for rank, number, _ in found])
        return [item for *_, item in found]


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
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _files_of(path: str) -> tuple[str, str, str]:
    return path, f"{path}-wal", f"{path}-shm"


def _delete(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


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
    opened = db.execute("PRAGMA database_list").fetchone()[2]
    db.text_factory = str
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
