"""The names of all that a run tells: stable, so that programs may rely upon them (docs/logging.md)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias

from harvester.progress import RunProgress

Field: TypeAlias = object
"""What JSON has, and moments."""


class Event(StrEnum):
    """What has happened."""

    RUN_STARTED = "run.started"
    LIST_READING = "list.reading"
    LIST_COUNTED = "list.counted"
    MONTH_SHORT = "month.short"
    BUDGET_DESCRIBED = "budget.described"
    LIMITS_REPORTED = "limits.reported"
    LIMITS_UNAVAILABLE = "limits.unavailable"
    LINE_INVALID = "line.invalid"
    LINES_SUPPRESSED = "line.suppressed"
    CALL_FAILED = "call.failed"
    PROGRESS = "progress"
    NOTE = "note"
    WARNING = "warning"
    RUN_STOPPING = "run.stopping"
    RUN_ENDED = "run.ended"
    RUN_REFUSED = "run.refused"
    RUN_CRASHED = "run.crashed"


_WARNINGS = {Event.LINE_INVALID, Event.LINES_SUPPRESSED, Event.CALL_FAILED, Event.WARNING, Event.RUN_STOPPING}
_ERRORS = {Event.RUN_REFUSED, Event.RUN_CRASHED}


def level(event: Event) -> str:
    """Say how much an event matters: `info`, which --quiet leaves out, `warning` or `error`."""
    if event in _ERRORS:
        return "error"
    return "warning" if event in _WARNINGS else "info"


class EventMessage(NamedTuple):
    """An event with its text for a person and its fields for a program."""

    event: Event
    text: str
    fields: Mapping[str, Field]


class InvalidLine(NamedTuple):
    """A line that is no bitlink: its text (cut at 2,000 characters), why, and where it stands."""

    text: str
    reason: str
    file: str
    line: int


class RunObserver(Protocol):
    """Whom a harvest tells what a person may want to know."""

    def invalid(self, line: InvalidLine) -> None:
        """A line of the list is no bitlink."""

    def failure(self, line: bytes) -> None:
        """A call was refused or failed: its line of `_failures.ndjson`."""

    def warn(self, text: str) -> None:
        """Something is not as it should be."""

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        """Something that is as it should be, and takes a while: in words, and for programs as an event with fields."""

    def progress(self, status: RunProgress) -> None:
        """Some time has passed."""
