"""The machine's connections to one server, shared by its live processes through kernel locks.

Bitly counts connections by IP address, so five processes with five connections each would be twenty too many. There
are two kinds of lock files, held with flock, which the kernel releases however a process ends. A process lock, one of
five, is held for the process's life: from the locks that are taken each process sees how many share the connections,
and its own lock's rank decides who gets the odd one. A slot is a lock held for each open connection.

Shares change as processes come and go, and no process is told: each looks twice a second, closes what exceeds its
share, and takes the slots that others have released. So a new process may have to wait for its first connection, but
at no moment are more open than Bitly allows.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from harvester.errors import ConnectionsBusy, OutputError
from harvester.storage.filesystem import inherit_folder_mode, try_lock

MOST_PROCESSES = 5
"""Processes that may share a machine's connections: Bitly's limit, because each needs at least one."""
_TRIES, _PAUSE_SECONDS = 20, 0.05
"""For a process lock: another process may hold one for a moment, to see whether it is taken."""


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

    async def join(self) -> None:
        """Take a process lock.

        Raises:
            ConnectionsBusy: all are taken.
        """
        with self._explained():
            os.makedirs(self._folder, exist_ok=True)
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS)
            if self._lock_process():
                return
        raise ConnectionsBusy(
            f"{MOST_PROCESSES} harvests already share this machine's {MOST_PROCESSES} connections to Bitly: run this "
            f"one when one of them has ended (their locks are in {self._folder})"
        )

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
                    return number
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
            name = error.filename or self._folder
            raise OutputError(f"{name}: {error.strerror}; give it back, or name another --state-dir") from error
