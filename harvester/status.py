"""How far a run is and how it ended: what the manifest, the progress line and the exit code are made from."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from harvester.sources import Invalid
from harvester.stopping import Stop


@dataclass(slots=True)
class Counters:
    """Attempts of this run, and among them those that repeated one or were throttled.

    helper: requests beside them that asked for Bitly's own limits; the month counts them too.
    """

    total: int = 0
    retried: int = 0
    throttled: int = 0
    helper: int = 0


class Waiting(NamedTuple):
    """Why nothing is sent at present: the window that binds, what it may hold (0: not a number), until when (UTC)."""

    window: str
    limit: int
    until: datetime | None


@dataclass(slots=True)
class Listed:
    """The present list, line by line: lines = blank + comments + headers + invalid + duplicates + links."""

    lines: int = 0
    blank: int = 0
    comments: int = 0
    headers: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0


@dataclass(slots=True)
class Status:
    """How far a run is; what the progress line and the manifest are made from.

    asked: calls made in this run. known: links that needed none, left_failed: those among them that have failed too
    often. pending: calls taken up and without a verdict. waiting: the window that binds now. trouble: how the last
    attempt failed, if it did so in passing.
    """

    listed: Listed = field(default_factory=Listed)
    read_to_end: bool = False
    asked: int = 0
    rows: int = 0
    refused: int = 0
    failed: int = 0
    known: int = 0
    left_failed: int = 0
    pending: int = 0
    waiting: Waiting | None = None
    trouble: str | None = None
    attempts: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. complete: the whole list was read and every call in it is settled. stop: why it ended early."""

    complete: bool
    stop: Stop | None
    status: Status


class Watcher(Protocol):
    """Whom a harvest tells what a person may want to know."""

    def invalid(self, line: Invalid) -> None:
        """A line of the list is no bitlink."""

    def failure(self, line: bytes) -> None:
        """A call was refused or failed: its line of `_failures.ndjson`."""

    def warn(self, text: str) -> None:
        """Something is not as it should be."""

    def note(self, text: str) -> None:
        """Something that is as it should be, and takes a while."""

    def progress(self, status: Status) -> None:
        """Some time has passed."""
