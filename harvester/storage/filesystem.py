"""Folders that are kept no longer than their process lives: what a killed process has left is swept by the next."""

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from harvester.errors import OutputError

_CHUNK = 1024 * 1024

_PREFIX = "harvester-scratch-"
_NAME = re.compile(re.escape(_PREFIX) + r"\w{8}", re.ASCII)


@contextmanager
def scratch_folder(parent: str | None) -> Iterator[str]:
    """Make a folder for as long as it is used. parent: where, None for the user's temporary folder.

    Raises:
        OutputError: none can be made there.
    """
    parent = parent or tempfile.gettempdir()
    _sweep(parent)
    path, lock = _made(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _close(lock)


def _made(parent: str) -> tuple[str, int | None]:
    """Make a folder and lock it; again, if a sweep has taken it before it was locked."""
    while True:
        try:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        except OSError as error:
            raise OutputError(f"{parent}: {error.strerror}; give a --work-dir") from error
        try:
            lock = _locked(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:  # such as a network file system: nobody can lock there, so nobody sweeps
            return path, None
        if os.path.isdir(path):
            return path, lock
        _close(lock)


def _sweep(parent: str) -> None:
    """Remove what this user's killed processes have left."""
    try:
        with os.scandir(parent) as entries:
            found = [entry.path for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        try:
            lock = _locked(path)
        except OSError:  # in use, or gone, or somebody else's
            continue
        if os.fstat(lock).st_uid == os.getuid():
            shutil.rmtree(path, ignore_errors=True)
        _close(lock)


def _locked(path: str) -> int:
    """Lock the folder itself, which the system's own sweeps of temporary files honour too.

    Raises:
        BlockingIOError: a live process has it. OSError: it is no folder, or cannot be opened or locked.
    """
    # https://www.freedesktop.org/software/systemd/man/latest/tmpfiles.d.html ("take an exclusive file lock")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def inherit_folder_mode(path: str) -> None:
    """Give a new file or folder the permissions of the folder that it lies in: private there, shared where that is."""
    mode = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
    with suppress(PermissionError):  # somebody else's, who made it a moment before
        os.chmod(path, mode if os.path.isdir(path) else mode & 0o666)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable: https://man7.org/linux/man-pages/man2/fsync.2.html."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some mounted file systems have no such thing
            raise
    finally:
        os.close(descriptor)


def make_folder(path: str) -> None:
    """Make a folder and those above it that are missing, durably; fine if it is there."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_folder(above)
    os.makedirs(path, exist_ok=True)
    sync_folder(above)


# --- the files beside the rows ------------------------------------------------------------------------------------


def atomic_replace(path: str, chunks: Iterable[bytes]) -> None:
    """Put a file in place of another, so that no reader ever sees half of it."""
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".{name}.tmp")
    with open(hidden, "wb", buffering=_CHUNK) as stream:
        stream.writelines(chunks)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(hidden, path)
    sync_folder(folder)


# --- any file -----------------------------------------------------------------------------------------------------


def sync_file(path: str) -> None:
    """Make what was written to a file durable."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def truncate_file(path: str, size: int) -> None:
    """Take away what a file has behind so many bytes, durably."""
    with open(path, "r+b") as stream:
        stream.truncate(size)
        os.fsync(stream.fileno())
