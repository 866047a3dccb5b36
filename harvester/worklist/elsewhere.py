"""Calls that the workers of a run do not make, because their rows come from elsewhere: from an export, or a cluster."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harvester.dataset.dataset import Dataset
from harvester.events import RunObserver
from harvester.progress import AttemptCounts, RunProgress
from harvester.shutdown import ShutdownSignal
from harvester.worklist.calls import Call


class CallSource(Protocol):
    """What of a worklist is used here."""

    progress: RunProgress

    async def read(self) -> list[Call] | None:
        """As `Worklist.read`."""

    def add(self, calls: list[Call]) -> None:
        """As `Worklist.add`."""

    def count_pending(self, calls: Sequence[Call]) -> None:
        """As `Worklist.count_pending`."""


class Elsewhere(Protocol):
    """Settles calls of a list without the run's workers: by an export of their group, or on other machines."""

    async def settle(self, calls: list[Call], worklist: CallSource) -> list[Call]:
        """Settle calls, or take them on, and return those that are left for the workers.

        worklist: may be read further, and counts the calls taken on.

        Raises:
            RunStopping: the run is ending. OutputError: a row could not be recorded. InputBroken: the list cannot be
            read further; the worklist has the calls before.
        """

    async def finish(self) -> None:
        """Settle all calls taken on; called at the end of the list. Raises RunStopping and OutputError."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The run whose calls a cluster makes.

    counters: of its attempts. leave: releases its share of the machine's connections. wait_for_disk: returns once the
    dataset takes more verdicts. in_thread: runs a function in the thread that may use the ledger. count_verdict: called
    for each call with the time of its verdict, in seconds since 1970.
    """

    dataset: Dataset
    progress: RunProgress
    counters: AttemptCounts
    shutdown: ShutdownSignal
    observer: RunObserver
    leave: Callable[[], Awaitable[None]]
    wait_for_disk: Callable[[], Awaitable[None]]
    in_thread: Callable[..., Awaitable[Any]]
    count_verdict: Callable[[float], None]


class Cluster(Protocol):
    """Other processes that make a run's calls, on this machine or on others."""

    async def adopt(self, dataset: Dataset, shutdown: ShutdownSignal, observer: RunObserver) -> None:
        """Settle in a dataset that was just opened what earlier runs' processes have left. Raises OutputError."""

    def begin(self, bound: Bound) -> Elsewhere:
        """Return what hands this run's calls to the processes."""

    async def clean(self) -> None:
        """Delete what is committed to the dataset by now. Raises OutputError."""


@dataclass(frozen=True, slots=True)
class JournalCopy:
    """Another dataset's answers, which a run fetches. run_id: that dataset's. append: is given each journal line."""

    run_id: str
    append: Callable[[bytes], None]
