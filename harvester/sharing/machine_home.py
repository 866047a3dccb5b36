"""The home on this machine: a budget file, and kernel locks for the connections, in the state folder."""

import os
import time
from contextlib import suppress

from harvester.budget.database import BUSY_SECONDS, BudgetDatabase
from harvester.budget.limits import Account, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.errors import BudgetBusy
from harvester.events import RunObserver
from harvester.shutdown import ShutdownSignal
from harvester.storage.filesystem import lock_holder
from harvester.storage.folders import BUDGET_FILE, lock_folder
from harvester.transport.connection_slots import ConnectionSlots

_BUSY_POLL_SECONDS = 0.1
_SILENT_SECONDS = 1.0
"""A longer wait for the budget's file is told."""


class MachineHome:
    """A `Home` in the state folder, open from `open_machine_home` on."""

    def __init__(self, folder: str, database: BudgetDatabase) -> None:
        self.clock = database.clock
        self.database = database
        self._folder = folder

    def budget(
        self, account: Account, endpoint: str, requested: RequestedLimits, *, leads: bool = False
    ) -> MachineBudget:
        """As in `Home`. A commit waits for the disk unless the leading budget's limits let attempts go too fast."""
        budget = MachineBudget(self.database, account, endpoint, requested)
        if leads:
            self.database.sync_each_commit(not budget.high_rate)
        return budget

    def slots(self, server: str, most: int) -> ConnectionSlots:
        """As in `Home`."""
        return machine_slots(self._folder, server, most)

    def close(self) -> None:
        """As in `Home`."""
        self.database.close()


def machine_slots(folder: str, server: str, most: int) -> ConnectionSlots:
    """Return this process's share of the machine's connections. folder: of the state. most: as in ConnectionSlots."""
    return ConnectionSlots(lock_folder(folder, server), most)


async def open_machine_home(folder: str, observer: RunObserver, shutdown: ShutdownSignal) -> MachineHome:
    """Open the home in a state folder.

    While another process holds the budget's file, try again, say why after a second, and hear signals.

    Raises:
        RunStopping: the run is ending, and another process still holds the file. OutputError: it cannot be used.
    """
    path = os.path.join(folder, BUDGET_FILE)
    began, told = time.monotonic(), False
    while True:
        try:
            return MachineHome(folder, BudgetDatabase(path, busy_seconds=_BUSY_POLL_SECONDS))
        except BudgetBusy as error:
            waited = time.monotonic() - began
            if waited > BUSY_SECONDS:
                raise BudgetBusy(f"{error}{_holder_of(path)}") from error
            if waited > _SILENT_SECONDS and not told:
                observer.warn(f"waiting for {path}, which another process has locked{_holder_of(path)}")
                told = True
        await shutdown.sleep_unless_stopping(_BUSY_POLL_SECONDS)


def _holder_of(path: str) -> str:
    """Return the process that holds a SQLite file, in brackets, or nothing where the kernel does not say."""
    for name in (path, path + "-shm"):  # with a log the lock of a transaction is there
        with suppress(OSError):
            if process := lock_holder(os.stat(name), "POSIX"):
                return f" (process {process})"
    return ""
