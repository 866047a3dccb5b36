"""Scratch folders, which end with their process."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from harvester.errors import OutputError
from harvester.storage.filesystem import try_lock

_PREFIX = "harvester-scratch-"
_NAME = re.compile(re.escape(_PREFIX) + r"\w{8}", re.ASCII)


@contextmanager
def scratch_folder(parent: str | None) -> Iterator[str]:
    """Make a folder that is deleted when the context ends. parent: None for the user's temporary folder.

    A process that is killed leaves its folder behind; the next call deletes it, since its lock is free.

    Raises:
        OutputError: no folder can be made there.
    """
    try:
        parent = parent or tempfile.gettempdir()
    except OSError as error:
        raise OutputError("cannot create a temporary folder: name a writable one (TMPDIR)") from error
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
            raise OutputError(f"{parent}: {error.strerror}; use a --work-dir") from error
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


def _close(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
