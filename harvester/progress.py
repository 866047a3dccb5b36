"""How far a run is and how it ended: what the manifest, the progress line and the exit code are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from harvester.shutdown import Stop


class WindowState(NamedTuple):
    """What a window holds. until: when there is room again, or when the month ends; None with room to spare.

    source: where the limit comes from: `asked`, `default`, `bitly` or `throttled`.
    """

    window: str
    limit: int
    used: int
    until: datetime | None
    source: str

    @property
    def remaining(self) -> int | None:
        """How many attempts may still go; None without a limit."""
        return max(self.limit - self.used, 0) if self.limit else None


@dataclass(slots=True)
class AttemptCounts:
    """Attempts of this run, and among them those that repeated one or were throttled.

    helper: requests beside them that asked for Bitly's own limits; the month counts them too.
    """

    total: int = 0
    retried: int = 0
    throttled: int = 0
    helper: int = 0


class WaitReason(NamedTuple):
    """Why nothing is sent at present: the window that binds, what it may hold (0: not a number), until when (UTC).

    why: what an outage looked like lately.
    """

    window: str
    limit: int
    until: datetime | None
    why: str = ""


@dataclass(slots=True)
class ListCounts:
    """The present list, line by line: lines = blank + comments + headers + invalid + duplicates + links."""

    lines: int = 0
    blank: int = 0
    comments: int = 0
    headers: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0


WAIT_REASONS = {
    "pace": "the minute's pace",
    "minute": "the minute's limit",
    "hour": "the hour's limit",
    "month": "the month's edge",
    "throttled": "Bitly, which throttles",
    "outage": "the server, which is out",
    "budget": "the budget's file, which another process holds",
    "connections": "a connection: other harvesters of this machine use all",
}
"""What binds, by the name that it has in `Waiting` and in the manifest."""


@dataclass(slots=True)
class RunProgress:
    """How far a run is; what the progress line and the manifest are made from.

    asked: calls made in this run. known: links that needed none, given_up: those among them that have failed too
    often. pending: calls taken up and without a verdict. waiting: the window that binds now. trouble: how the last
    attempt failed, if it did so in passing.

    to_make: calls of this run, None where the list was not counted before. most: calls it may make at most.
    windows: what the budget holds. per_second: calls settled in each of the last seconds, at most 60, the latest last.
    ends: when all would be settled, as far as that can be known; spent: when the month will be spent before that.
    """

    listed: ListCounts = field(default_factory=ListCounts)
    read_to_end: bool = False
    asked: int = 0
    rows: int = 0
    refused: int = 0
    failed: int = 0
    known: int = 0
    given_up: int = 0
    pending: int = 0
    waiting: WaitReason | None = None
    trouble: str | None = None
    attempts: AttemptCounts = field(default_factory=AttemptCounts)
    to_make: int | None = None
    most: int | None = None
    windows: Sequence[WindowState] = ()
    per_second: Sequence[float] = ()
    ends: datetime | None = None
    spent: datetime | None = None

    @property
    def settled(self) -> int:
        """Calls of this run that have their verdict."""
        return self.rows + self.refused + self.failed

    @property
    def outstanding(self) -> int | None:
        """Calls that the list still needs; None while that is not known."""
        if self.read_to_end:
            return self.pending
        return None if self.to_make is None else max(self.to_make - self.settled, self.pending)

    @property
    def remaining(self) -> int | None:
        """Calls that this run has still to make; None while that is not known."""
        left = self.outstanding
        return left if left is None or self.most is None else min(left, max(self.most - self.settled, 0))


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended. complete: the whole list was read and every call in it is settled. stop: why it ended early."""

    complete: bool
    stop: Stop | None
    status: RunProgress
