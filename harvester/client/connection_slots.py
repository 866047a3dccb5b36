"""The machine's connections to one server, shared by its live processes through kernel locks.

Bitly counts connections by IP address, so five harvesters with five connections each would be twenty too many. A seat
is a lock that a process holds for its life; a slot is a lock that it holds for each connection. Both end with the
process, however it ends.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from harvester.errors import ConnectionsBusy, OutputError
from harvester.storage.filesystem import inherit_folder_mode, try_lock

SEATS = 5
"""Processes that may share a machine's connections: Bitly's limit, as each needs one at least."""
_SEAT_TRIES = 20
_SEAT_PAUSE_SECONDS = 0.05


class ConnectionSlots:
    """This process's part of the machine's connections; ended by leave.

    join, share and grab may raise OutputError: the folder cannot be written, or somebody has taken it away.

    folder: where the locks of this server lie. most: connections that this process would use, if it were alone.
    """

    def __init__(self, folder: str, most: int) -> None:
        self._folder = folder
        self._most = most
        self._seat = -1
        self._seat_lock = -1
        self._held: dict[int, int] = {}

    async def join(self) -> None:
        """Take a seat.

        Raises:
            ConnectionsBusy: all are taken.
        """
        with self._explained():
            os.makedirs(self._folder, exist_ok=True)
        for attempt in range(_SEAT_TRIES):
            if attempt:
                await asyncio.sleep(_SEAT_PAUSE_SECONDS)  # another process may just be looking who is there
            if self._take_a_seat():
                return
        raise ConnectionsBusy(
            f"{SEATS} harvests already share this machine's {SEATS} connections to Bitly: run this one when "
            f"one of them has ended (their locks are in {self._folder})"
        )

    @property
    def held(self) -> int:
        """How many slots this process holds."""
        return len(self._held)

    @property
    def share(self) -> int:
        """How many slots this process may hold now: the seats taken share them, one at least each."""
        seats = [number for number in range(SEATS) if number == self._seat or self._is_taken(number)]
        total, rank = max(self._most, SEATS), seats.index(self._seat)
        return min(self._most, total // len(seats) + (rank < total % len(seats)))

    def grab(self) -> int | None:
        """Take a free slot; None when there is none, because others have not given theirs back yet."""
        for number in range(max(self._most, SEATS)):
            if number not in self._held:
                lock = self._lock(f"slot-{number}")
                if lock is not None:
                    self._held[number] = lock
                    return number
        return None

    def give_back(self, number: int) -> None:
        """Give a slot back whose connection is closed."""
        os.close(self._held.pop(number))

    def leave(self) -> None:
        """Give everything back."""
        for number in list(self._held):
            self.give_back(number)
        if self._seat_lock >= 0:
            os.close(self._seat_lock)
            self._seat_lock = -1

    def _take_a_seat(self) -> bool:
        for number in range(SEATS):
            lock = self._lock(f"seat-{number}")
            if lock is not None:
                self._seat, self._seat_lock = number, lock
                return True
        return False

    def _is_taken(self, number: int) -> bool:
        lock = self._lock(f"seat-{number}", shared=True)
        if lock is None:
            return True
        os.close(lock)
        return False

    def _open(self, path: str) -> int:
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        inherit_folder_mode(path)
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
