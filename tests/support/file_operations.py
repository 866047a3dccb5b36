"""A layer between harvester and its files: each operation goes through an observer, which may count, fail or kill it.

Operations are the opens for writing, writes, fsyncs, renames, unlinks, truncations and new folders of journal, ledger,
dataset and state folder, and the commits of SQLite, whose own file operations cannot be seen from here.
"""

import io
import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from harvester.budget import database
from harvester.dataset import journal, opening, part_publisher, sidecars
from harvester.run import harvest
from harvester.storage import appended_file, filesystem, folders, sqlite, storage

T = TypeVar("T")
_KINDS = (("part", r"part-"), ("journal", r"journal-"), ("manifest", r"_manifest"), ("failures", r"_failures"),
          ("success", r"_SUCCESS"), ("claim", r"_claim"), ("growing", r"\.ndjson$"), ("ledger", r"ledger\.sqlite"),
          ("budget", r"budget\.sqlite"), ("attempts", r"attempts$"), ("lock", r"lock$"))  # fmt: skip


def kind_of(path: str) -> str:
    """What a path is, without its numbers."""
    name = os.path.basename(path.rstrip("/"))
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "folder")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. path: of the file or folder; of a rename, the target.

    source: what is renamed. data, offset: what is written where; offset also the size that a file is cut to.
    snapshot: the content of a database, once it is committed.
    """

    verb: str
    path: str
    source: str = ""
    data: bytes = b""
    offset: int = 0
    snapshot: Callable[[], bytes] | None = None

    @property
    def name(self) -> str:
        """What is done to what, such as `rename part`."""
        return f"{self.verb} {kind_of(self.path)}"


class Observer(Protocol):
    """Stands around each operation."""

    def around(self, operation: Operation, do: Callable[[], T]) -> T:
        """Do the operation, or not."""


def path_of(descriptor: int) -> str:
    """The present path of an open file."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


class ObservedOs:
    """Stands before the os module of a module under test."""

    def __init__(self, observer: Observer) -> None:
        self._around = observer.around

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR):
            return os.open(path, flags, mode)
        return self._around(Operation("open", str(path)), lambda: os.open(path, flags, mode))

    def write(self, descriptor: int, data: bytes) -> int:
        end = os.fstat(descriptor).st_size  # all that is written so is appended
        operation = Operation("write", path_of(descriptor), data=bytes(data), offset=end)
        return self._around(operation, lambda: os.write(descriptor, data))

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        operation = Operation("pwrite", path_of(descriptor), data=bytes(data), offset=offset)
        return self._around(operation, lambda: os.pwrite(descriptor, data, offset))

    def fsync(self, descriptor: int) -> None:
        self._around(Operation("fsync", path_of(descriptor)), lambda: os.fsync(descriptor))

    def ftruncate(self, descriptor: int, size: int) -> None:
        operation = Operation("truncate", path_of(descriptor), offset=size)
        self._around(operation, lambda: os.ftruncate(descriptor, size))

    def rename(self, source: str, target: str) -> None:
        self._around(Operation("rename", target, source=source), lambda: os.rename(source, target))

    def unlink(self, path: str) -> None:
        self._around(Operation("unlink", path), lambda: os.unlink(path))

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        self._around(Operation("mkdir", path), lambda: os.makedirs(path, mode, exist_ok))


class ObservedFile(io.FileIO):
    """A file whose writes and truncations are observed, one for each system call."""

    observer: Observer

    def write(self, data: Any) -> int:
        operation = Operation("write", str(self.name), data=bytes(data), offset=self.tell())
        return self.observer.around(operation, lambda: super(ObservedFile, self).write(data))

    def truncate(self, size: int | None = None) -> int:
        operation = Operation("truncate", str(self.name), offset=self.tell() if size is None else size)
        return self.observer.around(operation, lambda: super(ObservedFile, self).truncate(size))


class ObservedConnection(sqlite3.Connection):
    """A connection whose commits are observed."""

    observer: Observer
    path: str

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            operation = Operation("commit", self.path, snapshot=self.serialize)
            return self.observer.around(operation, lambda: super(ObservedConnection, self).execute(sql))
        return super().execute(sql, *parameters)


class ObservedSqlite:
    """Stands before the sqlite3 module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, path: str, **options: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(path, factory=ObservedConnection, **options)
        connection.path = path
        return connection


def put_in_place(observer: Observer, *, budget: bool = True) -> None:
    """Let the modules under test go through the observer. budget: False to leave the budget's commits out."""
    ObservedFile.observer = ObservedConnection.observer = observer

    def observed_open(path: str, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
        if mode not in {"wb", "xb", "ab", "r+b"}:
            return open(path, mode, buffering, **options)
        raw = observer.around(Operation("open", path), lambda: ObservedFile(path, mode))
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    for module in (journal, sidecars, filesystem, appended_file, storage, part_publisher, opening, folders, sqlite):
        vars(module)["os"] = ObservedOs(observer)
        vars(module)["open"] = observed_open
    for module in (sqlite, *([database] if budget else [])):
        vars(module)["sqlite3"] = ObservedSqlite()
    vars(harvest)["COMMIT_VERDICTS"] = 3  # so that a short list has several commits
