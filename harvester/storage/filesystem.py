"""The local file system: locks, durable writes, and scratch folders that end with their process."""

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
    """Make a folder that is deleted when the context ends. parent: None for the user's temporary folder.

    A process that is killed leaves its folder behind; the next call deletes it, since its lock is free.

    Raises:
        OutputError: no folder can be made there.
    """
    parent = parent or tempfile.gettempdir()
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
            raise OutputError(f"{parent}: {error.strerror}; give a --work-dir") from error
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


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder without waiting; False if another process holds a conflicting lock.

    The kernel releases the lock when the descriptor is closed, so also when the process is killed.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def inherit_folder_mode(path: str) -> None:
    """Copy the parent folder's permissions to a new file or folder: private in a private folder, shared in a shared."""
    mode = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
    with suppress(PermissionError):  # another user's process has made it a moment before
        os.chmod(path, mode if os.path.isdir(path) else mode & 0o666)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable: https://man7.org/linux/man-pages/man2/fsync.2.html."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def make_folder(path: str) -> None:
    """Make a folder and its missing parents, durably; nothing if it exists."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_folder(above)
    os.makedirs(path, exist_ok=True)
    sync_folder(above)


def atomic_replace(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file, or replace it, so that no reader and no crash ever leaves half of it.

    The order of syncs matters: were the content not synced before the rename, a power cut could leave the new name with
    an empty file; were the folder not synced after it, the old file could come back.
    """
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".{name}.tmp")
    with open(hidden, "wb", buffering=_CHUNK) as stream:
        stream.writelines(chunks)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(hidden, path)
    sync_folder(folder)


def sync_file(path: str) -> None:
    """Make a file's content durable."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def truncate_file(path: str, size: int) -> None:
    """Shorten a file to size bytes, durably.

    Raises:
        OutputError: the file is shorter, and would be extended with zeros.
    """
    with open(path, "r+b") as stream:
        if size > os.fstat(stream.fileno()).st_size:
            raise OutputError(f"{path} has fewer than {size} bytes: it was changed by another program")
        stream.truncate(size)
        os.fsync(stream.fileno())
