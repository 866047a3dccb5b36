"""A call of a run, and those put aside until the list was read to its end (`--refresh`)."""

import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import orjson

from harvester.links.batch import Link
from harvester.rows.call import GIVEN_UP_RUNS, WHOLE, CallState, Known, Shortfall
from harvester.storage.scratch import RankedItems
from harvester.worklist.refresh import IDLE_TURN, Refresh, asked_at_of

_CALLS_A_TAKE = 1000
DUE = "due.sqlite"
"""A temporary file in the private folder: for the links that are due, until the list was read to its end."""


class Call(NamedTuple):
    """A bitlink to fetch. previous: its state in the ledger, None for a new one. failed_runs: as in Known.

    lacked: the shortfall of its last row, which this call's verdict follows. is_due: its last answer is old.
    """

    link: Link
    key: bytes
    previous: CallState | None
    failed_runs: int = 0
    lacked: Shortfall = WHOLE
    is_due: bool = False

    @property
    def is_last_try(self) -> bool:
        """True if the call is not made again without --retry-failed, should it fail now."""
        tried = self.previous is not CallState.REFUSED  # the ledger counts no failure behind a refusal
        return self.failed_runs + tried >= GIVEN_UP_RUNS


class DueCalls:
    """The links that are due, put aside in a file until the list was read to its end. folder: returns where it may be.

    With --prefer active there are two queues: of each IDLE_TURN calls one is for an idle link, while both have some.
    """

    def __init__(self, refresh: Refresh, folder: Callable[[], str]) -> None:
        self.waiting = 0
        self._refresh = refresh
        self._folder = folder
        self._items: RankedItems | None = None
        self._turn = Lock()
        self._closed = False

    def add(self, calls: Sequence[tuple[Call, Known]]) -> None:
        """Put calls aside. Raises OutputError if the file cannot be written."""
        items = [(int(self._refresh.is_idle(known)), asked_at_of(known), _packed(call)) for call, known in calls]
        with self._turn:
            if not self._closed:
                self._items = self._items or RankedItems(os.path.join(self._folder(), DUE))
                self._items.add(items)
                self.waiting += len(items)

    def take(self) -> list[Call]:
        """Return the next calls in their order, and forget them; none if there are no more."""
        with self._turn:
            if self._closed or self._items is None:
                return []
            idle = self._items.take(1, _CALLS_A_TAKE // IDLE_TURN)
            others = self._items.take(0, _CALLS_A_TAKE - len(idle))
            found, each = list[bytes](), IDLE_TURN - 1
            for turn in range(max(-(-len(others) // each), len(idle))):
                found += others[turn * each : (turn + 1) * each] + idle[turn : turn + 1]
            self.waiting -= len(found)
            return [_unpacked(item) for item in found]

    def close(self) -> None:
        """Delete the file."""
        with self._turn:
            self._closed = True
            if self._items is not None:
                self._items.close()
                self._items = None


def _packed(call: Call) -> bytes:
    link, previous = call.link, call.previous
    state = None if previous is None else int(previous)
    return orjson.dumps((call.key.hex(), state, call.failed_runs, tuple(call.lacked), tuple(link)))


def _unpacked(item: bytes) -> Call:
    key, previous, failed_runs, lacked, link = orjson.loads(item)
    return Call(Link(*link), bytes.fromhex(key), CallState(previous), failed_runs, Shortfall(*lacked), is_due=True)
