"""A model of a disk that loses power: from a run's operations, what may be left of its files after any of them.

What was synced is there: a file's content after its fsync, a folder's names after the folder's. Everything else may be
there or not, a name without its content and the other way round, because a file system writes them when it likes:
https://www.usenix.org/conference/osdi14/technical-sessions/presentation/pillai. A commit of SQLite's is durable with
its names, since it syncs both; what SQLite's own files look like in between is SQLite's to test.
"""

import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.support.file_operations import Operation

_BLOCK = 128
"""Bytes that are written together; fewer than on a disk, as the tests' rows are few."""


class Loss(StrEnum):
    """What becomes of a file's bytes that were not synced."""

    KEPT = "kept"
    DROPPED = "dropped"
    TORN = "torn"
    """In their order, up to any byte."""
    ZEROS = "zeros"
    """The file has its length, and no content."""
    HOLES = "holes"
    """Any of the blocks that were written, and zeros for the others."""


@dataclass
class File:
    """A file's content as a program sees it, as it was last synced, and the writes since: offset and data."""

    now: bytes = b""
    durable: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        self.now = _written(self.now, offset, data)
        self.writes.append((offset, data))

    def truncate(self, size: int) -> None:
        # Cutting is not what these runs rest on: taken as done at once, in the order of the operations.
        self.now, self.durable = self.now[:size], self.durable[:size]
        self.writes = [(offset, data[: size - offset]) for offset, data in self.writes if offset < size]

    def sync(self) -> None:
        self.durable = self.now
        self.writes = []

    def after(self, loss: Loss, rng: random.Random) -> bytes:
        """The content after a power cut. Bytes that replace others are old or new, never zeros."""
        if loss is Loss.KEPT:
            return self.now
        content = self.durable
        if loss is Loss.TORN and self.writes:
            whole = rng.randrange(len(self.writes))
            for offset, data in self.writes[:whole]:
                content = _written(content, offset, data)
            offset, data = self.writes[whole]
            content = _written(content, offset, data[: rng.randrange(len(data) + 1)])
        if loss in {Loss.ZEROS, Loss.HOLES}:
            content = content.ljust(len(self.now), b"\0")
        if loss is Loss.HOLES:
            for offset, data in self.writes:
                for start in range(0, len(data), _BLOCK):
                    if rng.random() < 0.5:
                        content = _written(content, offset + start, data[start : start + _BLOCK])
        return content


@dataclass
class Folder:
    """A folder's names as a program sees them, as they were last synced, and the changes since: name to what it is."""

    now: "dict[str, File | Folder]" = field(default_factory=dict)
    durable: "dict[str, File | Folder]" = field(default_factory=dict)
    changes: "list[dict[str, File | Folder | None]]" = field(default_factory=list)

    def change(self, names: "dict[str, File | Folder | None]") -> None:
        """Change names, all of them or, after a power cut, none."""
        self.now = _renamed(self.now, names)
        self.changes.append(names)

    def sync(self) -> None:
        self.durable = dict(self.now)
        self.changes = []

    def after(self, loss: Loss, rng: random.Random) -> "dict[str, File | Folder]":
        """The names after a power cut: the changes that were not synced are lost, kept, or some of them are kept."""
        share = {Loss.KEPT: 1.0, Loss.DROPPED: 0.0}.get(loss, rng.choice((0.0, 0.5, 1.0)))
        names = dict(self.durable)
        for change in self.changes:
            if rng.random() < share:
                names = _renamed(names, change)
        return names


class Disk:
    """A folder of the real disk, modelled. The folder itself exists and is durable, with what it holds at first."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._top = Folder()
        for path in sorted(self._root.rglob("*")):
            folder = self._folder(path.parent)
            content = b"" if path.is_dir() else path.read_bytes()
            folder.now[path.name] = Folder() if path.is_dir() else File(content, content)
            folder.sync()

    def do(self, operations: Iterable[Operation]) -> None:
        """Let operations take place."""
        for operation in operations:
            path = Path(operation.path)
            if path == self._root:
                self._top.sync()
            elif path.is_relative_to(self._root):
                if operation.verb == "mkdir":
                    self._make_parents(path.parent)
                self._do(operation, path, self._folder(path.parent))

    def lose_power(self, loss: Loss, seed: object) -> None:
        """Replace what is in the real folder with what a power cut has left."""
        rng = random.Random(f"{seed}")
        shutil.rmtree(self._root)
        self._root.mkdir()
        self._leave(self._top, self._root, loss, rng)

    def _do(self, operation: Operation, path: Path, folder: Folder) -> None:
        found = folder.now.get(path.name)
        match operation.verb:
            case "open":
                if found is None:
                    folder.change({path.name: File()})
            case "mkdir":
                if found is None:
                    folder.change({path.name: Folder()})
            case "rename":
                source = os.path.basename(operation.source)
                folder.change({path.name: folder.now[source], source: None})
            case "unlink":
                folder.change({path.name: None})
            case "commit":
                # Under another name in use by now, the ledger would be lost: all of a database's names are synced.
                file = found if isinstance(found, File) else File()
                file.now = file.durable = operation.data
                folder.now[path.name] = folder.durable[path.name] = file
                for log in (f"{path.name}-wal", f"{path.name}-shm"):  # an earlier run's, if that was killed
                    folder.now.pop(log, None)
                    folder.durable.pop(log, None)
            case "fsync":
                assert found is not None, operation.name
                found.sync()
            case "write" | "pwrite":
                assert isinstance(found, File), operation.name
                found.write(operation.offset, operation.data)
            case "truncate":
                assert isinstance(found, File), operation.name
                found.truncate(operation.offset)

    def _make_parents(self, path: Path) -> None:
        """As `makedirs` does, which syncs none of them."""
        folder = self._top
        for name in path.relative_to(self._root).parts:
            if name not in folder.now:
                folder.change({name: Folder()})
            below = folder.now[name]
            assert isinstance(below, Folder)
            folder = below

    def _folder(self, path: Path) -> Folder:
        folder = self._top
        for name in path.relative_to(self._root).parts:
            below = folder.now[name]
            assert isinstance(below, Folder)
            folder = below
        return folder

    def _leave(self, folder: Folder, path: Path, loss: Loss, rng: random.Random) -> None:
        for name, found in sorted(folder.after(loss, rng).items()):
            if isinstance(found, Folder):
                (path / name).mkdir()
                self._leave(found, path / name, loss, rng)
            else:
                (path / name).write_bytes(found.after(loss, rng))


def _written(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def _renamed(
    names: "dict[str, File | Folder]", change: "dict[str, File | Folder | None]"
) -> "dict[str, File | Folder]":
    return {name: found for name, found in {**names, **change}.items() if found is not None}
