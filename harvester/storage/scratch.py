"""Scratch folders, which end with their process, and temporary SQLite files."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from harvester.errors import OutputError
from harvester.storage.filesystem import try_lock, try_remove
from harvester.storage.sqlite import SqliteFile

_PREFIX = "harvester-scratch-"
_ADVICE = "It is a temporary file: run the same command again, which begins a new one"
# A large cache would be filled and of no use: keys are hashes, so the next one is on any page of the file.
_PRAGMAS = ("journal_mode=OFF", "synchronous=OFF", "cache_size=-512", "locking_mode=EXCLUSIVE")
MOST_IN_MEMORY = 20_000
_NAME = re.compile(re.escape(_PREFIX) + r"\w{8}", re.ASCII)


@contextmanager
def scratch_folder(parent: str | None) -> Iterator[str]:
    """Make a folder that is deleted when the context ends. parent: None for the user's temporary folder.

    A process that is killed leaves its folder behind; the next call deletes it, since its lock is free.

    Raises:
        OutputError: no folder can be made there.
    """
    try:
        parent = parent or tempfile.gettempdir()
    except OSError as error:
        raise OutputError("cannot create a temporary folder: name a writable one (TMPDIR)") from error
    _sweep(parent)
    path, lock = _make_locked(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _close(lock)


def _make_locked(parent: str) -> tuple[str, int | None]:
    """Make a folder and lock it; repeat if another process has swept it before it was locked."""
    while True:
        try:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        except OSError as error:
            raise OutputError(f"{parent}: {error.strerror}; use a --work-dir") from error
        try:
            lock = _lock_folder(path)
        except FileNotFoundError:
            continue
        except OSError:  # such as a network file system, where nobody can lock, and so nobody sweeps
            return path, None
        if lock is not None and os.path.isdir(path):
            return path, lock
        _close(lock)


def _sweep(parent: str) -> None:
    """Delete the folders that this user's killed processes have left."""
    try:
        with os.scandir(parent) as entries:
            found = [entry.path for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        try:
            lock = _lock_folder(path)
        except OSError:  # deleted meanwhile, or another user's
            continue
        if lock is not None and os.fstat(lock).st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)
        _close(lock)


def _lock_folder(path: str) -> int | None:
    """Lock the folder itself, which the system's own sweeps of temporary files respect; None if it is locked.

    Raises:
        OSError: it is no folder, or cannot be opened or locked.
    """
    # https://www.freedesktop.org/software/systemd/man/latest/tmpfiles.d.html ("take an exclusive file lock")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    locked = False
    try:
        locked = try_lock(descriptor)
    finally:
        if not locked:
            os.close(descriptor)
    return descriptor if locked else None


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


class DistinctKeys:
    """The distinct keys of a list in a temporary file, so that memory does not grow with the list; a context manager.

    The first MOST_IN_MEMORY are kept in memory, which takes a tenth of the time. A key may have a digest, that of what
    the list says of it first.

    The file has no journal, so a kill may leave it malformed under its name: it is deleted before it is created.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._few: set[bytes] | None = set()

    def __enter__(self) -> "DistinctKeys":
        try_remove(self._path)
        self._file = SqliteFile(self._path, "the count of the list", _ADVICE, pragmas=_PRAGMAS)
        with self._file.transaction():
            self._file.connection.execute("CREATE TABLE listed (key BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        try_remove(self._path)

    def add(self, keys: Sequence[bytes]) -> list[bytes]:
        """Add keys, and return those that were not there before.

        Raises:
            OutputError: the temporary file cannot be written.
        """
        insert = "INSERT OR IGNORE INTO listed (key) VALUES (?)"
        if self._few is not None:
            new = [key for key in dict.fromkeys(keys) if key not in self._few]
            self._few.update(new)
            if len(self._few) > MOST_IN_MEMORY:
                with self._file.transaction():
                    self._file.connection.executemany(insert, ((key,) for key in self._few))
                self._few = None
            return new
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
        try_remove(path)
        self._file = SqliteFile(path, "the links that are due", _ADVICE, pragmas=_PRAGMAS)
        self._number = 0
        with self._file.transaction():
            self._file.connection.execute(
                "CREATE TABLE items (queue INTEGER, rank INTEGER, number INTEGER, item BLOB, "
                "PRIMARY KEY (queue, rank, number)) WITHOUT ROWID"
            )

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
        try_remove(self._path)

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
