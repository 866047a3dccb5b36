"""Where published files lie, as one who only reads needs it: their names, and a stream of each."""

import os
from typing import BinaryIO, Protocol


class Shelf(Protocol):
    """A flat set of files by name, in a folder or in an object store."""

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


class FolderShelf:
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
