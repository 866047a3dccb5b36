"""The local file system: locks, durable writes, and digests."""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

_CHUNK = 1024 * 1024


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder without waiting; False if another process holds a conflicting lock.

    The kernel releases the lock when the descriptor is closed, so also when the process is killed.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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


def make_folder(path: str, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, durably; nothing if it exists. mode: of the folder alone."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_folder(above)
    os.makedirs(path, mode, exist_ok=True)
    with suppress(PermissionError):  # a folder that may be searched and not read cannot be opened to be synced
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


def sync_file(descriptor: int) -> None:
    """Make an open file's content durable."""
    os.fsync(descriptor)


def truncate_file(path: str, size: int) -> None:
    """Shorten a file to size bytes, durably.

    Raises:
        OSError: the file is shorter, and would be extended with zeros.
    """
    with open(path, "r+b") as stream:
        if size > os.fstat(stream.fileno()).st_size:
            raise OSError(errno.EIO, f"fewer than {size} bytes: it was changed by another program", path)
        stream.truncate(size)
        os.fsync(stream.fileno())


def digest_of_file(path: str) -> tuple[int, str]:
    """Return a local file's size in bytes and its SHA-256 in hexadecimal."""
    with open(path, "rb") as stream:
        return digest_of(iter(lambda: stream.read(_CHUNK), b""))


def digest_of(chunks: Iterable[bytes]) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256, in hexadecimal, of what the chunks make up."""
    size, sha256 = 0, hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        sha256.update(chunk)
    return size, sha256.hexdigest()
