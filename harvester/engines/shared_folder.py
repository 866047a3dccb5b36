"""The folder that the driver and the tasks of a cluster share: a file system that all mount, or an object store.

Files have flat names. A log is appended to: on a file system line by line, so that a kill loses nothing; in an object
store, which knows no appending, as objects of some lines each.
"""

# ruff: noqa: D102 - the methods are described by the protocols

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from harvester.errors import OutputError, as_output_error
from harvester.storage.filesystem import atomic_replace
from harvester.storage.object_store import ObjectStorage, open_store

LINES_PER_OBJECT = 100
"""Lines of a log in one object: this many answers a killed task may lose in an object store."""
OBJECT_SECONDS = 5.0
"""A line waits no longer for its object."""
_SEQUENCE = 6


class Log(Protocol):
    """A log that one task appends to."""

    def append(self, line: bytes) -> None:
        """Append a line with its line feed. Raises OutputError if an earlier one, or this, cannot be written."""

    def close(self) -> None:
        """Write what waits, and close. Raises OutputError."""


class SharedFolder(Protocol):
    """A flat set of files that driver and tasks see. All methods block, and raise OutputError."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted. A log in objects has one name for each of them."""

    def get(self, name: str, start: int = 0) -> bytes:
        """Return a file's bytes from a position on; empty where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it as a whole."""

    def delete(self, name: str) -> None:
        """Delete a file; nothing where there is none."""

    def log(self, name: str) -> Log:
        """Begin a log. Called in the event loop that appends to it."""


class MountedFolder:
    """A folder of a file system that all machines mount at the same path."""

    def __init__(self, path: str) -> None:
        self.path = path
        with as_output_error(path):
            os.makedirs(path, exist_ok=True)

    def names(self) -> list[str]:
        with as_output_error(self.path):
            return sorted(os.listdir(self.path))

    def get(self, name: str, start: int = 0) -> bytes:
        try:
            with open(os.path.join(self.path, name), "rb") as stream:
                stream.seek(start)
                return stream.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise OutputError(f"{self.path}/{name}: {error.strerror}") from error

    def put(self, name: str, data: bytes) -> None:
        with as_output_error(self.path):
            atomic_replace(os.path.join(self.path, name), [data])

    def delete(self, name: str) -> None:
        with as_output_error(self.path):
            if os.path.lexists(path := os.path.join(self.path, name)):
                os.unlink(path)

    def log(self, name: str) -> Log:
        return _FileLog(os.path.join(self.path, name))


class _FileLog:
    def __init__(self, path: str) -> None:
        self._path = path
        with as_output_error(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def append(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error
        if written < len(line):
            raise OutputError(f"{self._path}: no space left for a line of {len(line)} bytes")

    def close(self) -> None:
        with as_output_error(self._path):
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)


class StoreFolder:
    """A prefix of an object store."""

    def __init__(self, url: str) -> None:
        self._store: ObjectStorage = open_store(url)

    def names(self) -> list[str]:
        return self._store.names()

    def get(self, name: str, start: int = 0) -> bytes:
        return (self._store.get(name) or b"")[start:]

    def put(self, name: str, data: bytes) -> None:
        self._store.replace(name, [data])

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def log(self, name: str) -> Log:
        return _ObjectLog(self._store, name)


class _ObjectLog:
    """Objects `NAME.000001` and so on, put by a thread; one that waits is put when the next is full, or old."""

    def __init__(self, store: ObjectStorage, name: str) -> None:
        self._store, self._name = store, name
        self._lines: list[bytes] = []
        self._number = 0
        self._thread = ThreadPoolExecutor(1, "harvester-answers")
        self._putting: Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def append(self, line: bytes) -> None:
        self._lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(OBJECT_SECONDS, self._put)
        if len(self._lines) >= LINES_PER_OBJECT:
            self._put()

    def close(self) -> None:
        self._put()
        self._thread.shutdown()
        self._raise_failed()

    def _put(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._raise_failed()  # and wait: the answers that a kill costs are bounded
        if self._lines:
            self._number += 1
            name, lines = f"{self._name}.{self._number:0{_SEQUENCE}d}", self._lines
            self._lines = []
            self._putting = self._thread.submit(self._store.replace, name, lines)

    def _raise_failed(self) -> None:
        putting, self._putting = self._putting, None
        if putting is not None:
            putting.result()


def open_shared(place: str) -> SharedFolder:
    """Open the shared folder at an absolute path or a URL of an object store. Raises OutputError, UsageError."""
    return StoreFolder(place) if "://" in place else MountedFolder(place)


def log_of(name: str) -> str:
    """Return the name of the log that a file belongs to: its own, or that of an object without its number."""
    before, _, number = name.rpartition(".")
    return before if len(number) == _SEQUENCE and number.isdecimal() else name


def whole_lines_of(data: bytes) -> Iterator[bytes]:
    """Yield the lines of a log with their line feeds, without a torn last one."""
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line
