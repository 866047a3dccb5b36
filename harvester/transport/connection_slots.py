"""The machine's connections to one server, shared by its live processes through kernel locks.

Bitly counts connections by IP address, so five processes with five connections each would be twenty too many. There
are two kinds of lock files, held with flock, which the kernel releases however a process ends. A process lock, one of
five, is held for the process's life: from the locks that are taken each process sees how many share the connections,
and its own lock's rank decides who gets the odd one. A slot is a lock held for each open connection.

Shares change as processes come and go, and no process is told: each looks twice a second, closes what exceeds its
share, and takes the slots that others have released. So a new process may have to wait for its first connection, but
at no moment are more open than Bitly allows. A process that is stopped (SIGSTOP, Ctrl-Z) releases nothing, so each
writes its process id into its process lock, and the others say whom they wait for.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from harvester.errors import ConnectionsBusy, OutputError
from harvester.storage.filesystem import inherit_folder_mode, try_lock

MOST_PROCESSES = 5
"""Processes that may share a machine's connections: Bitly's limit, because each needs at least one."""
_TRIES, _PAUSE_SECONDS = 20, 0.05
"""For a process lock: another process may hold one for a moment, to see whether it is taken."""


_BLOCKED_SECONDS = 3.0


class Holders(NamedTuple):
    """Process ids of those that hold connections. stopped: those among them that are stopped."""

    processes: tuple[int, ...] = ()
    stopped: tuple[int, ...] = ()

    @property
    def stopped_in_words(self) -> str:
        """The stopped processes, and what to do; empty if there are none."""
        if not self.stopped:
            return ""
        numbers = " ".join(map(str, self.stopped))
        if len(self.stopped) == 1:
            return f"process {numbers} is suspended and keeps its connections: resume it (kill -CONT {numbers})"
        return f"processes {numbers} are suspended and keep their connections: resume them (kill -CONT {numbers})"

    def __str__(self) -> str:
        if self.stopped:
            return self.stopped_in_words
        return f"process {' '.join(map(str, self.processes))}" if self.processes else ""


def _process_in(path: str) -> int:
    """Return the process id in a process lock, 0 without one."""
    try:
        with open(path, "rb") as file:
            return int(file.read(16) or b"0")
    except (OSError, ValueError):
        return 0


def _is_stopped(process: int) -> bool:
    """Return whether a process is stopped by a signal, as far as the system says so (/proc/PID/stat, Linux)."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False


class ConnectionSlots:
    """This process's share of the machine's connections, from `join` to `leave`.

    join, share and grab may raise OutputError: the folder cannot be written, or was removed.

    folder: of this server's lock files. most: connections that this process would use if it were alone.
    """

    def __init__(self, folder: str, most: int) -> None:
        self._folder = folder
        self._most = most
        self._process = -1
        self._process_lock = -1
        self._held: dict[int, int] = {}
        self._empty_since: float | None = None

    async def join(self) -> None:
        """Register this process for a share of the connections; retries for about 1 s.

        Raises:
            ConnectionsBusy: MOST_PROCESSES already share them.
        """
        with self._explained():
            os.makedirs(self._folder, exist_ok=True)
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS)
            if self._lock_process():
                return
        raise ConnectionsBusy(
            f"{MOST_PROCESSES} harvests already share this machine's {MOST_PROCESSES} connections to Bitly: "
            f"run this command again when one has ended (their locks are in {self._folder}){self._stopped_in_words()}"
        )

    def _stopped_in_words(self) -> str:
        return f"; {stopped}" if (stopped := self.holders().stopped_in_words) else ""

    def holders(self) -> "Holders":
        """Return the other processes that share the connections, as far as they have written who they are."""
        numbers = [number for number in range(MOST_PROCESSES) if number != self._process and self._is_taken(number)]
        paths = [os.path.join(self._folder, f"process-{number}") for number in numbers]
        found = [process for path in paths if (process := _process_in(path))]
        return Holders(tuple(found), tuple(process for process in found if _is_stopped(process)))

    @property
    def blockers(self) -> "Holders":
        """The processes that have kept all connections from this one for a while, which hardly a live one does."""
        since = self._empty_since
        return Holders() if since is None or time.monotonic() - since < _BLOCKED_SECONDS else self.holders()

    @property
    def held(self) -> int:
        """How many slots this process holds."""
        return len(self._held)

    @property
    def share(self) -> int:
        """How many slots this process may hold now: live processes share them evenly, at least one each."""
        processes = [number for number in range(MOST_PROCESSES) if number == self._process or self._is_taken(number)]
        total, rank = max(self._most, MOST_PROCESSES), processes.index(self._process)
        return min(self._most, total // len(processes) + (rank < total % len(processes)))

    def grab(self) -> int | None:
        """Take a free slot and return its number; None while other processes have not released theirs."""
        for number in range(max(self._most, MOST_PROCESSES)):
            if number not in self._held:
                lock = self._lock(f"slot-{number}")
                if lock is not None:
                    self._held[number] = lock
                    self._empty_since = None
                    return number
        if not self._held:
            self._empty_since = self._empty_since or time.monotonic()
        return None

    def give_back(self, number: int) -> None:
        """Release a slot whose connection is closed."""
        os.close(self._held.pop(number))

    def leave(self) -> None:
        """Release all slots and the process lock."""
        for number in list(self._held):
            self.give_back(number)
        if self._process_lock >= 0:
            os.close(self._process_lock)
            self._process_lock = -1

    def _lock_process(self) -> bool:
        for number in range(MOST_PROCESSES):
            lock = self._lock(f"process-{number}")
            if lock is not None:
                self._process, self._process_lock = number, lock
                with suppress(OSError):  # only a message depends on it
                    os.pwrite(lock, b"%-11d\n" % os.getpid(), 0)
                return True
        return False

    def _is_taken(self, number: int) -> bool:
        lock = self._lock(f"process-{number}", shared=True)
        if lock is None:
            return True
        os.close(lock)
        return False

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another process was faster
            return os.open(path, flags)
        inherit_folder_mode(path, descriptor)
        return descriptor

    def _lock(self, name: str, *, shared: bool = False) -> int | None:
        with self._explained():
            descriptor = self._open(os.path.join(self._folder, name))
            if try_lock(descriptor, shared=shared):
                return descriptor
        os.close(descriptor)
        return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise OutputError(
                    f"{self._folder} was removed or moved away while it was in use: run the same command again, which "
                    "makes it anew, and keep other programs out of --state-dir"
                ) from error
            name = error.filename or self._folder
            raise OutputError(f"{name}: {error.strerror}; restore access to it, or use another --state-dir") from error
