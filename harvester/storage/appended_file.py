"""A file that only ever grows, held open and watched, so that another program's hand on it is noticed at once."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from harvester.errors import OutputError
from harvester.storage.filesystem import atomic_replace, sync_file, sync_folder

_CHUNK = 1024 * 1024
_SAMPLE = 4096
"""Bytes at either end that are compared when the file was written to and has the size that it should have."""


class AppendedFile:
    """A file that this process alone may write, and only append to.

    The file is held open, so that its inode cannot be given to another file meanwhile. Before each append the path is
    compared with it: the same inode, and the size that this process has left. A file that was moved, removed, replaced,
    cut or written to gets no further byte, because rows would land where nobody looks for them.

    size: the bytes that the file must have. changed: why nothing is appended any more; None while all is well.
    """

    def __init__(self, path: str, saved_as: str) -> None:
        """Open nothing yet. saved_as: where the content goes if the file is removed while it is open."""
        self.size = 0
        self.changed: OutputError | None = None
        self._path = path
        self._saved_as = saved_as
        self._descriptor = -1
        self._named = False
        self._modified = 0
        self._first = self._last = b""

    def open(self) -> int:
        """Open the file, or look at the open one anew, and return its size; 0 if there is none.

        Raises:
            OutputError: it was changed since it was opened.
        """
        if self.changed:
            raise self.changed
        if self._descriptor < 0:
            try:
                self._open(0)
            except FileNotFoundError:
                return 0
        elif not self._is_in_place():
            raise self._refuse(self._taken_away())
        self._accept_present_state()
        return self.size

    def check(self) -> None:
        """Compare the path with the open file; create it if there is none, and none with content was there.

        Raises:
            OutputError: another program has changed it.
        """
        if self.changed:
            raise self.changed
        if self._descriptor < 0 or (not self.size and not self._is_in_place()):
            self._open(os.O_CREAT)
        elif not self._is_in_place():
            raise self._refuse(self._taken_away())
        self._check_content()

    def append(self, data: bytes | bytearray) -> None:
        """Append bytes, unless the file was changed.

        Raises:
            OutputError: another program has changed it, before the append or meanwhile. OSError: the disk is full.
        """
        if not data:
            return
        self.check()
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            self.size += written
            rest = rest[written:]
        self._first = (self._first + data[:_SAMPLE])[:_SAMPLE]
        self._last = (self._last + data[-_SAMPLE:])[-_SAMPLE:]
        # A program that cut or appended between the check and the write has left another size.
        self._check_size()
        self._modified = os.fstat(self._descriptor).st_mtime_ns

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the open file; fewer at its end."""
        return os.pread(self._descriptor, length, start) if self._descriptor >= 0 else b""

    def line_before(self, end: int) -> bytes:
        """Return the line that ends at a position behind a line feed."""
        start, data = end, b""
        while start and b"\n" not in data[:-1]:
            start = max(0, start - max(_SAMPLE, len(data)))
            data = self.read(start, end - start)
        return data[data.rfind(b"\n", 0, -1) + 1 :]

    def truncate(self, size: int) -> None:
        """Shorten the file, durably."""
        os.ftruncate(self._descriptor, size)
        self.sync()
        self._accept_present_state()

    def sync(self) -> None:
        """Make the content durable, wherever the file is by now, and the file's name."""
        if self._descriptor < 0:
            return
        sync_file(self._descriptor)
        if not self._named:
            with suppress(FileNotFoundError):  # the folder was renamed, which the next check reports
                sync_folder(os.path.dirname(self._path))
            self._named = True

    def close(self) -> None:
        """Close the file; nothing if it is not open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, create: int) -> None:
        self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | create
        self._descriptor = os.open(self._path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OutputError(f"{self._path} is not a file: move it away")
        self._named = False
        self._modified = os.fstat(self._descriptor).st_mtime_ns

    def _accept_present_state(self) -> None:
        found = os.fstat(self._descriptor)
        self.size, self._modified = found.st_size, found.st_mtime_ns
        self._first, self._last = self._samples()

    def _samples(self) -> tuple[bytes, bytes]:
        return self.read(0, min(_SAMPLE, self.size)), self.read(max(0, self.size - _SAMPLE), _SAMPLE)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _check_content(self) -> None:
        self._check_size()
        modified = os.fstat(self._descriptor).st_mtime_ns
        # `touch` changes the time alone, and `cp OTHER FILE` can leave the inode and even the size.
        if modified != self._modified:
            if self._samples() != (self._first, self._last):
                raise self._refuse(
                    f"{self._path} was overwritten by another program while it was being written. Put the rows back, "
                    "then run the same command again"
                )
            self._modified = modified

    def _check_size(self) -> None:
        found = os.fstat(self._descriptor).st_size
        if found < self.size:
            raise self._refuse(
                f"{self._path} has {found} bytes, expected {self.size}: it was truncated while it was being written. "
                "If it was copied before (as logrotate's copytruncate does), put the copy back in its place; then run "
                "the same command again"
            )
        if found > self.size:
            raise self._refuse(
                f"{self._path} has {found} bytes, expected {self.size}: another program has written to it. Run the "
                "same command again: it says where the other program's bytes begin"
            )

    def _refuse(self, reason: str) -> OutputError:
        self.changed = OutputError(reason)
        return self.changed

    def _taken_away(self) -> str:
        """Return where the file is now, and what to do; a file that has no name any more is saved first."""
        if os.fstat(self._descriptor).st_nlink:
            now = self._present_path()
            return (
                f"{self._path} was moved away{f', to {now},' if now else ''} while it was being written. Move it back, "
                "or, if its whole folder was renamed, name its new path as --out; then run the same command again"
            )
        try:
            atomic_replace(self._saved_as, self._chunks())
        except OSError as error:
            return (
                f"{self._path} was removed while it was being written, and its rows could not be saved "
                f"({error.strerror}). Put it back, if there is a copy; then run the same command again"
            )
        return (
            f"{self._path} was removed while it was being written. Its {self.size} bytes are saved: move them back (mv "
            f"{self._saved_as} {self._path}), then run the same command again"
        )

    def _present_path(self) -> str | None:
        with suppress(OSError):  # only Linux tells it
            path = os.readlink(f"/proc/self/fd/{self._descriptor}")
            return path if os.path.exists(path) else None
        return None

    def _chunks(self) -> Iterator[bytes]:
        position = 0
        while chunk := self.read(position, _CHUNK):
            position += len(chunk)
            yield chunk
