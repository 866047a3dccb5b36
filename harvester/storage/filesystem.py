"""The local file system: locks, durable writes, open files that have lost their name, and digests."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO, NamedTuple

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


def lock_holder(found: os.stat_result, kind: str, mode: str = "WRITE") -> int | None:
    """Return a process that has locked a file or folder; None where the kernel does not say.

    kind: FLOCK, or POSIX as SQLite's are. mode: WRITE or READ. It is read from the kernel's list, because closing a
    file that was opened to ask for its POSIX locks would release those that this process has on it.
    """
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    # https://man7.org/linux/man-pages/man5/proc_locks.5.html; a process of another container has no number here.
    with suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if match := re.fullmatch(rf"\d+: {kind} +\w+ +{mode} +([1-9]\d*) {place} .*\s*", line):
                return int(match[1])
    return None


def inherit_folder_mode(path: str, descriptor: int | None = None) -> None:
    """Copy the parent folder's permissions to a new file or folder: private in a private folder, shared in a shared.

    descriptor: of the open file, whose name may lead elsewhere by now.
    """
    mode = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
    with suppress(PermissionError):  # another user's process has made it a moment before
        os.chmod(path if descriptor is None else descriptor, mode if os.path.isdir(path) else mode & 0o666)


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


def make_folder(path: str, mode: int = 0o777) -> list[str]:
    """Make a folder and its missing parents, durably; return those that were made, from the top. mode: of the last."""
    missing: list[str] = []
    above = path
    while not _is_folder(above):
        missing.append(above)
        above = os.path.dirname(above)
    made: list[str] = []
    try:
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process has made it a moment before
                os.makedirs(folder, mode if folder == path else 0o777)
                made.append(folder)
            with suppress(PermissionError):  # a folder that may be searched and not read cannot be opened to be synced
                sync_folder(os.path.dirname(folder))
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: list[str]) -> None:
    """Remove those of the folders that are empty, the last first."""
    for folder in reversed(folders):
        with suppress(OSError):
            os.rmdir(folder)


def _is_folder(path: str) -> bool:
    """Return True for a folder, and False for a name that is free.

    Raises:
        OSError: it is something else, or cannot be looked at.
    """
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return True
    except FileNotFoundError:
        if not os.path.islink(path):
            return False
    what = "a symbolic link to no folder" if os.path.islink(path) else "not a folder"
    raise NotADirectoryError(errno.ENOTDIR, f"it is {what}: move it away", path)


def kind_of(mode: int) -> str:
    """Return what has a mode, for a message."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def first_denied(paths: Iterable[str]) -> str | None:
    """Return an error for the first of some files that this user may not read and write; None if all may be."""
    for path in paths:
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            return f"{path} cannot be written by this user: give it the rights, then run the same command again"
    return None


def try_remove(path: str) -> None:
    """Delete a file; nothing happens if that fails."""
    with suppress(OSError):
        os.unlink(path)


def open_new(path: str) -> BinaryIO:
    """Create a temporary file of harvester's own to write to; what a killed run left under its name is deleted first.

    Another user who may write to the folder may have planted a link under the name, to a file of this user's. Exclusive
    creation follows no link: https://man7.org/linux/man-pages/man2/open.2.html (O_EXCL).
    """
    try:
        return open(path, "xb", buffering=_CHUNK)
    except FileExistsError:
        os.unlink(path)
        return open(path, "xb", buffering=_CHUNK)


def atomic_replace(path: str, chunks: Iterable[bytes]) -> None:
    """Write a file, or replace it, so that no reader and no crash ever leaves half of it.

    The order of syncs matters: were the content not synced before the rename, a power cut could leave the new name with
    an empty file; were the folder not synced after it, the old file could come back.
    """
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".{name}.tmp")
    with open_new(hidden) as stream:
        stream.writelines(chunks)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(hidden, path)
    sync_folder(folder)


def link_or_copy(source: str, target: str) -> None:
    """Add a second name, durably, to a file that nothing writes to any more; replaces a file of that name.

    Where the name cannot be a hard link, as on another file system, it is a copy.
    """
    folder, name = os.path.split(target)
    hidden = os.path.join(folder, f".{name}.tmp")
    with suppress(FileNotFoundError):
        os.unlink(hidden)
    try:
        os.link(source, hidden)
    except OSError:
        with open(source, "rb") as stream:
            atomic_replace(target, iter(lambda: stream.read(_CHUNK), b""))
        return
    os.rename(hidden, target)
    sync_folder(folder)


def unshare(path: str) -> None:
    """Copy a file that has several names (hard links) to an inode of its own, durably.

    The other names keep the old one.

    Raises:
        OSError: it cannot be copied, or is a symbolic link by now.
    """
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".{name}.tmp")
    with (
        open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as shared,
        open_new(hidden) as own,
    ):
        os.fchmod(own.fileno(), stat.S_IMODE(os.fstat(shared.fileno()).st_mode))
        shutil.copyfileobj(shared, own, _CHUNK)
        own.flush()
        os.fsync(own.fileno())
    os.rename(hidden, path)
    sync_folder(folder)


def least_free_bytes(folders: Iterable[str], unless_gone: str) -> int:
    """Return the free bytes on the disks of some folders, of that which has least.

    unless_gone: a folder without which the others are not looked at, because its loss is reported elsewhere.
    """
    if not os.path.isdir(unless_gone):
        return sys.maxsize
    return min(shutil.disk_usage(folder).free for folder in folders)


def sync_file(descriptor: int) -> None:
    """Make an open file's content durable."""
    os.fsync(descriptor)


def sync_path(path: str) -> None:
    """Make a file's content durable."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


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


class Tampering(NamedTuple):
    """What another program has done to an open file or folder. curable: True if it can be undone without a loss.

    otherwise: what to do if it is not curable, as a sentence.
    """

    path: str
    text: str
    curable: bool = True
    otherwise: str = ""


def leads_to(path: str, descriptor: int, *, by_link: bool = False) -> bool:
    """Return True if a path is the name of an open file or folder; False if it is free, or another one's.

    by_link: True if a symbolic link to it will do.

    Raises:
        OSError: the path cannot be looked at.
    """
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=by_link), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def set_aside(path: str) -> str | None:
    """Move what has a name to a free one beside it, and return that; None if the name was free."""
    if not os.path.lexists(path):
        return None
    beside, number = f"{path}.aside", 1
    while os.path.lexists(beside):
        number += 1
        beside = f"{path}.aside-{number}"
    os.rename(path, beside)
    return beside


def install(path: str, new: str) -> str | None:
    """Replace a SQLite file by a closed and whole one; set the old one aside with its log, and return its new name."""
    sync_path(new)
    aside = set_aside(path)
    for ending in ("-wal", "-shm"):
        if aside is None:
            with suppress(OSError):
                os.unlink(path + ending)
        elif os.path.lexists(path + ending):
            os.replace(path + ending, aside + ending)
    os.replace(new, path)
    sync_folder(os.path.dirname(path))
    return aside


def restore_file(path: str, descriptor: int) -> None:
    """Write an open file's bytes under its name again, durably, and let the descriptor stand for the new file.

    For the thread that writes to the descriptor. What has taken the name meanwhile is set aside.
    """
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".{name}.tmp")
    with suppress(FileNotFoundError):
        os.unlink(hidden)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    flags |= fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    restored = os.open(hidden, flags, stat.S_IMODE(os.fstat(descriptor).st_mode))
    try:
        position = 0
        while chunk := os.pread(descriptor, _CHUNK, position):
            position += _written(restored, chunk)
        os.fsync(restored)
        set_aside(path)
        os.rename(hidden, path)
        sync_folder(folder)
        os.dup2(restored, descriptor, inheritable=False)
    finally:
        os.close(restored)


def _written(descriptor: int, data: bytes) -> int:
    written = 0
    while written < len(data):
        written += os.write(descriptor, data[written:])
    return written


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


def mounts() -> list[tuple[str, str]]:
    """Return the mount points of this machine, and what file system each has, in the order of mounting."""
    with suppress(OSError), open("/proc/self/mounts", "rb") as lines:  # where Linux has them; psutil is slow to import
        return [(_unescaped(point), os.fsdecode(kind)) for _, point, kind, *_ in map(bytes.split, lines)]
    import psutil  # noqa: PLC0415

    return [(each.mountpoint, each.fstype) for each in psutil.disk_partitions(all=True)]


def _unescaped(point: bytes) -> str:
    """Return a mount point with the characters that https://man7.org/linux/man-pages/man5/fstab.5.html has escaped."""
    for code in (b"040", b"011", b"012", b"134"):
        point = point.replace(b"\\" + code, bytes([int(code, 8)]))
    return os.fsdecode(point)
