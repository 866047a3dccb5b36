"""Where published files lie, as one who only reads needs it: their names, and a stream of each."""

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, cast

from harvester.storage.object_store import ObjectStorage


class Storage(Protocol):
    """A flat set of files by name, in a folder or in an object store.

    Every method may raise OutputError: the store is out.
    """

    def names(self) -> list[str]:
        """Give the names of all files.

        Raises:
            OSError: they cannot be listed.
        """

    def open(self, name: str) -> BinaryIO:
        """Open a file to be read from its beginning; the caller closes it.

        Raises:
            FileNotFoundError: it is not there. OSError: it cannot be read.
        """

    def path(self, name: str) -> str:
        """Say what a person would call the file."""


class LocalStorage:
    """The files of a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Give the names of all files, sorted."""
        return sorted(os.listdir(self._folder))

    def open(self, name: str) -> BinaryIO:
        """Open a file; whatever else bears its name must not hold us up."""
        path = self.path(name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return open(descriptor, "rb")

    def path(self, name: str) -> str:
        """Give the file's path."""
        return os.path.join(self._folder, name)


class StoreShelf:
    """The objects under a prefix of an object store."""

    def __init__(self, objects: ObjectStorage) -> None:
        self._objects = objects

    def names(self) -> list[str]:
        """Give the names of all objects, sorted."""
        return sorted(each.name for each in self._objects.listing())

    def open(self, name: str) -> BinaryIO:
        """Open an object; its bytes come as they are read."""
        chunks = self._objects.chunks(name)
        if chunks is None:
            raise FileNotFoundError(self.path(name))
        return cast("BinaryIO", io.BufferedReader(_Chunks(chunks), 1024 * 1024))

    def path(self, name: str) -> str:
        """Give the object's address."""
        return f"{self._objects.url}/{name}"


class _Chunks(io.RawIOBase):
    """A stream of what an iterator gives."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Give what the next chunk has, or what is left of the last one."""
        while not self._rest and (chunk := next(self._chunks, None)) is not None:
            self._rest = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
