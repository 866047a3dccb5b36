"""The names of all that a run tells: stable, so that programs may rely upon them (docs/logging.md)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeAlias

Field: TypeAlias = object
"""What JSON has, and moments."""


class Event(StrEnum):
    """What has happened."""

    RUN_STARTED = "run.started"
    LIST_READING = "list.reading"
    LIST_COUNTED = "list.counted"
    MONTH_SHORT = "month.short"
    BUDGET_DESCRIBED = "budget.described"
    LIMITS_TOLD = "limits.told"
    LIMITS_UNTOLD = "limits.untold"
    LINE_INVALID = "line.invalid"
    LINES_HUSHED = "line.hushed"
    CALL_FAILED = "call.failed"
    PROGRESS = "progress"
    NOTE = "note"
    WARNING = "warning"
    RUN_STOPPING = "run.stopping"
    RUN_ENDED = "run.ended"
    RUN_REFUSED = "run.refused"
    RUN_CRASHED = "run.crashed"


_WARNINGS = {Event.LINE_INVALID, Event.LINES_HUSHED, Event.CALL_FAILED, Event.WARNING, Event.RUN_STOPPING}
_ERRORS = {Event.RUN_REFUSED, Event.RUN_CRASHED}


def level(event: Event) -> str:
    """Say how much an event matters: `info`, which --quiet leaves out, `warning` or `error`."""
    if event in _ERRORS:
        return "error"
    return "warning" if event in _WARNINGS else "info"


class Told(NamedTuple):
    """An event with its text for a person and its fields for a program."""

    event: Event
    text: str
    fields: Mapping[str, Field]
