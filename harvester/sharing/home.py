"""What opens a run's budgets and its share of the connections; `machine_home` does it with files of this machine."""

from typing import Protocol

from harvester.budget.budget import Budget
from harvester.budget.limits import Account, RequestedLimits
from harvester.clock import Clock
from harvester.transport.connection_slots import ConnectionSlots, Holders


class Elsewhere(Holders):
    """What keeps the connections from this process, where it is no process of this machine.

    text: in words. window: what is waited for, as in WaitReason.
    """

    text = ""
    window = "connections"

    @classmethod
    def named(cls, text: str, window: str) -> "Elsewhere":
        """Return what is described by these."""
        found = cls()
        found.text, found.window = text, window
        return found

    def __str__(self) -> str:
        return self.text


MACHINE = "machine"
"""The budget of this machine, where it has to be named: on a cluster whose tasks all run there."""


class Home(Protocol):
    """A place that is open and shared with other processes; `close` ends it, after its budgets were closed.

    clock: whose seconds since boot the budgets' times are.
    """

    clock: Clock

    def budget(self, account: Account, endpoint: str, requested: RequestedLimits, *, leads: bool = False) -> Budget:
        """Return the budget of an account at an endpoint. leads: its limits are the run's pace."""

    def slots(self, server: str, most: int) -> ConnectionSlots:
        """Return this process's share of the connections to a server, to be joined. most: as in ConnectionSlots."""

    def close(self) -> None:
        """Close the place; what was counted stays."""
