"""The events of a run, its outcome, and the interface of their observer.

Names of events are stable (docs/logging.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias

from harvester.progress import InvalidLine, RunProgress
from harvester.shutdown import Stop

Field: TypeAlias = object
"""A value that JSON can hold, or a datetime."""


class Event(StrEnum):
    """The name of an event."""

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
    """Return an event's level: `info`, which --quiet leaves out, `warning` or `error`."""
    if event in _ERRORS:
        return "error"
    return "warning" if event in _WARNINGS else "info"


class EventMessage(NamedTuple):
    """An event with its text for a person and its fields for a program."""

    event: Event
    text: str
    fields: Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The end of a run. complete: the whole list was read and every call in it is settled. stop: why it ended early."""

    complete: bool
    stop: Stop | None
    status: RunProgress


class RunObserver(Protocol):
    """Receives the events of a run."""

    def invalid(self, line: InvalidLine) -> None:
        """Called with each line of the list that is no bitlink."""

    def failure(self, line: bytes) -> None:
        """Called with the `_failures.ndjson` line of each refused or failed call."""

    def warn(self, text: str) -> None:
        """Called with a warning."""

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        """Called with a fact worth knowing: text for a person, event and fields for a program."""

    def progress(self, status: RunProgress) -> None:
        """Called about every second with the progress."""
