"""A budget file that another program removes, replaces or moves while it is open: its counts are written again.

The month must never be forgotten. What has lost its name stays there as long as it is open, with all its counts.
"""

import os
import sqlite3
import stat
from contextlib import closing, suppress

_ENDINGS = ("", "-wal", "-shm")
_SAVED = ".saved"


class FileWatch:
    """Compares the names of a budget's file and of its write-ahead log with what is open.

    SQLite deletes the log only when the last process closes the file, so another one under its name is another
    program's doing: from then on a process that opens the file would count in that one.
    """

    def __init__(self, path: str) -> None:
        """path: of a file that is open, and has its log by now."""
        self._path = path
        self._open = {ending: _identity(path + ending) for ending in _ENDINGS}

    def why_gone(self, db: sqlite3.Connection) -> str | None:
        """Return what another program has done to the file, and what to do; None if nothing.

        db: the open file, whose counts are written again where its name is free, or else beside it.
        """
        path = self._path
        if _identity(path) == self._open[""]:
            if _identity(path + "-wal") == self._open["-wal"]:
                return None
            with suppress(sqlite3.Error):
                db.execute("PRAGMA wal_checkpoint").fetchall()  # into the file, which is still there
            return (
                f"{path}-wal was removed or replaced by another program while it was in use. The run wrote its counts "
                f"to {path}: keep other programs out of that folder, then run the same command again"
            )
        moved_to = self._present_path()
        text = (
            f"{path} was {f'moved away (to {moved_to})' if moved_to else 'removed or replaced'} while it was in use. "
        )
        if self._write(db, path):
            return (
                f"{text}The run wrote it again with its counts: keep other programs out of that folder, then run the "
                "same command again"
            )
        if self._write(db, path + _SAVED):
            return (
                f"{text}Its counts are saved in {path}{_SAVED}: move away what has taken its place and mv "
                f"{path}{_SAVED} {path}, then run the same command again"
            )
        return (
            f"{text}Other runs no longer see its counts. Run the same command again; it uses the file that exists then"
        )

    def _write(self, db: sqlite3.Connection, path: str) -> bool:
        """Write the open file to a free name; return False if it is not free, or cannot be written."""
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            # Exclusive, because a process that begins now, or notices at the same moment, may make the file as well.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with suppress(OSError):
                os.fchmod(descriptor, stat.S_IMODE(os.stat(folder).st_mode) & 0o666)
            os.close(descriptor)
            for ending in _ENDINGS[1:]:  # they belong to the open file, and must not be taken for the new one's
                if (ours := self._open[ending]) is not None and _identity(path + ending) == ours:
                    os.unlink(path + ending)
            with closing(sqlite3.connect(path, isolation_level=None)) as copy:
                db.backup(copy)
        except (OSError, sqlite3.Error):
            return False
        return True

    def _present_path(self) -> str | None:
        """Return the name that the open file has now, where the system says so (Linux); None if it has none."""
        with suppress(OSError):
            for number in os.listdir("/proc/self/fd"):
                with suppress(OSError):
                    link = f"/proc/self/fd/{number}"
                    if _identity(link, by_link=True) == self._open[""]:
                        name = os.readlink(link)
                        return name if _identity(name) == self._open[""] else None
        return None


def _identity(path: str, *, by_link: bool = False) -> tuple[int, int] | None:
    """Return what tells a file from all others; None if there is none. by_link: follow a link to it."""
    try:
        found = os.stat(path, follow_symlinks=by_link)
    except OSError:
        return None
    return found.st_dev, found.st_ino
