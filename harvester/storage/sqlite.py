"""A SQLite file that a power cut cannot damage, used by several threads in turn; SQLite's errors become ours here."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from harvester.errors import OutputError


class SqliteFile:
    """An open SQLite file; it is created if missing, unless read_only. advice: what to do when it is damaged.

    A commit is durable when it returns: WAL with synchronous=FULL, because NORMAL does not sync at a commit
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """

    def __init__(self, path: str, name: str, advice: str, *, read_only: bool = False) -> None:
        self._path = path
        self._name = name
        self._advice = advice
        self._turn = threading.RLock()
        with self.guarded():
            self.connection = _open_to_read(path) if read_only else _open_to_write(path)

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self.connection.close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Hold the connection for this thread, and turn SQLite's errors into OutputError."""
        try:
            with self._turn:
                yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "no such" in str(error):
                raise self.damaged(str(error)) from error
            raise OutputError(f"{self._path}: {error} ({code})") from error
        except UnicodeDecodeError as error:  # SQLite quotes in its messages what it could not read
            raise self.damaged(str(error)) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one transaction: all of it becomes durable, or nothing."""
        with self.guarded():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def damaged(self, reason: str) -> OutputError:
        """Return the error for a file that is damaged."""
        return OutputError(f"{self._path}: {self._name} is damaged ({reason}). {self._advice}")


def _open_to_write(path: str) -> sqlite3.Connection:
    with suppress(OSError):  # SQLite reports it better; by itself it would create the file with rw-r--r-- at most
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))
    pragmas = ("journal_mode=WAL", "synchronous=FULL", "cache_size=-4096", "temp_store=FILE")
    return _connected(path, *(f"PRAGMA {pragma}" for pragma in pragmas))


def _open_to_read(path: str) -> sqlite3.Connection:
    """Open a file that a run may be writing; in a folder that is not writable, as its last run left it."""
    url, first = f"file:{quote(os.fsencode(path))}?mode=ro", "SELECT count(*) FROM sqlite_master"
    try:
        return _connected(url, first, uri=True)
    except sqlite3.OperationalError:
        return _connected(f"{url}&immutable=1", first, uri=True)


def _connected(path: str, *statements: str, uri: bool = False) -> sqlite3.Connection:
    """Open a file and run the statements; close it again if one of them fails."""
    # Autocommit mode: every transaction is written out, so that its extent can be seen.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, uri=uri)
    try:
        for statement in statements:
            db.execute(statement).fetchall()
    except BaseException:
        db.close()
        raise
    return db
