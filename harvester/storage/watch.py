"""What other programs do to the files that a run has open, and the lock that keeps a second run out of their folder.

A journal that is removed stays there as long as it is open, so a run would go on for hours and lose all its answers
when it ends. Whoever has such a file open compares it with its name at each commit; what is gone is written again from
the open descriptor.
"""

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Protocol

from harvester.errors import DatasetBusy, OutputError, as_output_error
from harvester.storage.filesystem import Tampering, kind_of, leads_to, lock_holder, make_folder, try_lock, unshare
from harvester.storage.location import OutputLocation, is_own_link

_PROBE = ".harvester-probe"
_STATE = re.compile(r"ledger\.sqlite(-wal|-shm)?|journal-\d+\.journal|attempts|active-links")
_SQLITE_SHARED = (510, 0x40000000 + 2)
"""Length and place of the bytes that SQLite locks as long as it has a file open with a log."""


class Watched(Protocol):
    """Something open that other programs must leave alone."""

    def tampering(self) -> Tampering | None:
        """Return what another program has done to it."""

    def restore(self) -> None:
        """Undo it, from what is still open."""


class StateWatch:
    """Checks that the files of a private folder are still those that are open, and that it is the locked folder.

    spoiled: the error that ends the run where something was lost; None while nothing is.
    """

    def __init__(self, folder: str, lock: "FolderLock | None") -> None:
        """lock: None for a folder that no second run could find."""
        self.spoiled: OutputError | None = None
        self._folder = folder
        self._lock = lock

    def check(self, files: Iterable[Watched]) -> None:
        """Restore what was removed or replaced. It costs a dozen system calls, at each commit.

        files: in the order in which they are restored.

        Raises:
            OutputError: something was restored: the run must end, so that its user learns of it. OSError: the folder
            cannot be looked at, or not be written.
        """
        restored = None
        for watched in chain([self._lock] if self._lock else [], files):
            if self.spoiled is not None:
                return
            found = watched.tampering()
            if found is None:
                continue
            if found.curable:
                watched.restore()
                restored = found
            else:
                self.spoiled = _error(found, found.otherwise)
        if restored is not None and self.spoiled is None:
            raise _error(
                restored,
                "The run wrote it again from what it had open, and no answer is lost: keep other programs out of "
                f"{self._folder}, then run the same command again",
            )

    def cause_of(self, error: OutputError, check: Callable[[], None]) -> OutputError:
        """Return what another program has done to the folder, if anything, or else the error itself.

        A file that is removed is missed by whatever comes first, which does not know why. check: calls `check`.
        """
        try:
            check()
            self.raise_spoiled()
        except OutputError as found:
            return found
        return error

    def raise_spoiled(self) -> None:
        """Raise the error of what was lost, if something was."""
        if self.spoiled is not None:
            raise self.spoiled


def _error(found: Tampering, then: str) -> OutputError:
    """Return the error that ends the run. then: what has been done about it, and what to do next."""
    return OutputError(f"{found.path} {found.text} while the run had it open. {then}")


class FolderLock:
    """The kernel's lock on a folder itself, which has no file that could be removed; a context manager.

    The kernel releases it when the process ends, however it ends. A folder that was renamed stays locked.
    """

    def __init__(self, folder: str, name: str) -> None:
        """folder: what is locked. name: the output, for the message."""
        self._folder = folder
        self._name = name

    def __enter__(self) -> "FolderLock":
        """Lock the folder.

        Raises:
            DatasetBusy: another process has locked it. OSError: it cannot be opened.
        """
        self._descriptor = self._open()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if try_lock(descriptor):
            return descriptor
        process = lock_holder(os.fstat(descriptor), "FLOCK")
        os.close(descriptor)
        raise DatasetBusy(
            f"another harvester works on {self._name}{f' (process {process})' if process else ''}: wait until it has "
            "ended, or name another --out"
        )

    def tampering(self) -> Tampering | None:
        """Return what another program has done to the folder."""
        if leads_to(self._folder, self._descriptor, by_link=True):  # its user may have named a link to it
            return None
        if self._is_removed():
            return Tampering(self._folder, "was removed by another program")
        text = f"was moved away by another program{self._moved_to()}"
        return Tampering(self._folder, text, False, "Move it back, then run the same command again")

    def _is_removed(self) -> bool:
        """Return True if nothing can be made in the open folder any more; the count of its links differs by system."""
        try:
            os.mkdir(_PROBE, dir_fd=self._descriptor)
            os.rmdir(_PROBE, dir_fd=self._descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def restore(self) -> None:
        """Make the folder again, and lock it.

        Raises:
            OSError: it cannot be made. DatasetBusy: another process has made it, and locked it.
        """
        make_folder(self._folder)
        descriptor = self._open()
        os.dup2(descriptor, self._descriptor, inheritable=False)
        os.close(descriptor)

    def _moved_to(self) -> str:
        with suppress(OSError):
            return f" (to {os.readlink(f'/proc/self/fd/{self._descriptor}')})"
        return ""


def check_state(location: OutputLocation, warn: Callable[[str], None]) -> None:
    """Check that the state's files are files of their own: a link may lead to any file of this user's.

    A file that has a second name, as backups by `cp -al` give it, is copied away from it: two runs could write to it by
    two names (https://www.sqlite.org/howtocorrupt.html#multiple_links), and the backup must not change either.

    Raises:
        OutputError: one of them is something else, or the state's folder is a link that another user has made.
        DatasetBusy: another process has the ledger open by its second name.
    """
    folder = location.private
    if os.path.islink(folder) and not is_own_link(folder):
        raise OutputError(f"{folder} is a symbolic link of another user: remove it")
    shared: list[str] = []
    with as_output_error(folder), os.scandir(folder) as entries:
        for entry in entries:
            if not _STATE.fullmatch(entry.name):
                continue
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise _stranger(location, entry.path, found.st_mode)
            if found.st_nlink > 1:
                shared.append(entry.path)
    with as_output_error(folder):
        if location.ledger in shared:
            _refuse_open_ledger(location.ledger)
        for path in sorted(shared):
            unshare(path)
            warn(f"{path} had a second name (a hard link, as cp -al makes them): it is a separate file now")


def check_kinds(location: OutputLocation) -> None:
    """Check before reading that what has the name of one of the state's files is a file, by a link or not.

    Where a folder has the name of the ledger's log, SQLite may show the ledger without its last commits.

    Raises:
        OutputError: one of them is something else.
    """
    with suppress(OSError), os.scandir(location.private) as entries:  # what cannot be looked at is not read either
        for entry in entries:
            if _STATE.fullmatch(entry.name) and os.path.exists(entry.path) and not entry.is_file():
                raise _stranger(location, entry.path, entry.stat().st_mode)


def _stranger(location: OutputLocation, path: str, mode: int) -> OutputError:
    """Return the error for what stands where one of the state's files belongs."""
    name = os.path.basename(path)
    then = "Move it away, then run the same command again"
    if name in {"ledger.sqlite", "ledger.sqlite-wal"}:
        then = f"Move it away and put the file back. If the file is lost, {location.repair_advice}"
    elif name.startswith("journal-"):
        then = (
            "Move it away and put the file back, then run the same command again. Without the file, its calls are made "
            "again unless their rows are published"
        )
    return OutputError(f"{path} is {kind_of(mode)} where a file of harvester's belongs. {then}")


def _refuse_open_ledger(path: str) -> None:
    """Raise DatasetBusy if another process has a ledger open, which has locked it as SQLite does with a log."""
    with open(path, "r+b") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, *_SQLITE_SHARED)
        except (BlockingIOError, PermissionError):
            process = lock_holder(os.fstat(stream.fileno()), "POSIX", "READ")
            raise DatasetBusy(
                f"{f'process {process}' if process else 'another process'} has {path} open by a second name (a hard "
                "link): wait until it has ended"
            ) from None
