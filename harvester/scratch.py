"""Folders that are kept no longer than their process lives: what a killed process has left is swept by the next."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from harvester.errors import OutputError

_PREFIX = "harvester-scratch-"
_NAME = re.compile(re.escape(_PREFIX) + r"\w{8}", re.ASCII)


@contextmanager
def folder(parent: str | None) -> Iterator[str]:
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
