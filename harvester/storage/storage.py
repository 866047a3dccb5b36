"""One interface for the places where files are published: a local folder here, an object store in `object_store`."""

# ruff: noqa: D102 - the methods of a folder are described by the protocol

import os
from collections.abc import Iterable
from typing import BinaryIO, Protocol

from harvester.errors import OutputError
from harvester.storage.filesystem import atomic_replace, digest_of_file, sync_folder


class Storage(Protocol):
    """A flat set of named files in a folder, or of objects under a prefix.

    A file appears, is replaced and disappears as a whole: no reader ever sees half of one.
    moves_files: True where `create_from_file` takes the source away, so that a part which is neither there nor under
    its hidden name was published and has been moved on by a loader.

    Every method but `path` and `shorten_waits` blocks. A folder's failures come as OSError; an object store's as
    OutputError, once it has refused, or has been unavailable for longer than its patience.
    """

    moves_files: bool

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; the caller closes it. Raises FileNotFoundError where there is none."""

    def get(self, name: str) -> bytes | None:
        """Return the content of a small file; None where there is none."""

    def digest(self, name: str) -> tuple[int, str] | None:
        """Read a file and return its size in bytes and its SHA-256 in hexadecimal; None where there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file under a free name; return False, and change nothing, where the name is taken."""

    def create_from_file(self, name: str, source: str) -> bool:
        """Publish a local file, which was synced, under a free name; False, and nothing changed, where it is taken."""

    def replace(self, name: str, chunks: Iterable[bytes], *, patient: bool = True) -> None:
        """Write a file, or replace it. patient: False to fail at the first error of a store that is unavailable."""

    def delete(self, name: str) -> None:
        """Delete a file; nothing where there is none."""

    def path(self, name: str) -> str:
        """Return the file's path or URL, as people are shown it."""

    def shorten_waits(self) -> None:
        """Wait only a few seconds longer for a store that is unavailable: the run is ending."""


class LocalStorage:
    """The files of a local folder."""

    moves_files = True

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return sorted(os.listdir(self._folder))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, without blocking on a FIFO or device of that name."""
        descriptor = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return open(descriptor, "rb")
        except OSError as error:  # a folder; the error would name the descriptor
            os.close(descriptor)
            error.filename = self.path(name)
            raise

    def get(self, name: str) -> bytes | None:
        try:
            with self.open(name) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def digest(self, name: str) -> tuple[int, str] | None:
        """Raise OutputError where the name belongs to something else than a file."""
        path = self.path(name)
        if not os.path.lexists(path):
            return None
        if not os.path.isfile(path):
            raise OutputError(f"{path} is in the way of a part: move it away")
        return digest_of_file(path)

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        if os.path.lexists(path):
            return False
        atomic_replace(path, [data])
        return True

    def create_from_file(self, name: str, source: str) -> bool:
        """Move a file of the same file system to a free name, and make the name durable.

        Checking first and renaming then is safe: the name contains the dataset's random run_id, and its lock is held.
        link() and unlink() would need no check, but a crash between them leaves both names, and it could not be told
        afterwards whether a loader has taken the part already.
        """
        path = self.path(name)
        if os.path.lexists(path):
            return False
        os.rename(source, path)
        sync_folder(self._folder)
        return True

    def replace(self, name: str, chunks: Iterable[bytes], *, patient: bool = True) -> None:  # noqa: ARG002
        atomic_replace(self.path(name), chunks)

    def delete(self, name: str) -> None:
        if os.path.lexists(self.path(name)):
            os.unlink(self.path(name))
            sync_folder(self._folder)

    def path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def shorten_waits(self) -> None:
        pass  # a folder makes nobody wait
