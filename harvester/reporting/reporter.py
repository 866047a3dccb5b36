"""The observer of the command: decides which events people and programs see, and when; an EventSink writes them."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from harvester.clock import utc_text
from harvester.events import Event, Field, RunOutcome, level
from harvester.misplaced import misplaced
from harvester.progress import InvalidLine, RunProgress, WaitReason, counted, duration, limit_in_words
from harvester.reporting.summary import counts, summary
from harvester.reporting.terminal import say
from harvester.shutdown import StopReason

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
GROWTH = 1.25
"""Progress lines: every 10 s at first, every 5 minutes after about an hour, so that six weeks fit into a log."""
LONG_WAIT_SECONDS = 60.0
_SHOWN_INVALID = 20
_SHOWN_TEXT = 200
_STILL_SECONDS = 3


class EventSink(Protocol):
    """Where events are written: lines of text, JSON lines, or the live display.

    for_programs: True if each of the first bad lines is an event of its own; people get one line on all of them.
    """

    for_programs: bool

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:
        """Write an event. text: for a person, any number of lines; fields: for a program."""

    def show(self, status: RunProgress) -> bool:
        """Draw the progress. Return False where there is no live display, and progress lines are needed."""

    def close(self) -> None:
        """Remove the live display; later events are written as lines."""


class Plain:
    """An EventSink that writes lines of text to standard error."""

    for_programs = False

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:  # noqa: ARG002
        """Write the text, escaped."""
        if text:
            say(text)

    def show(self, status: RunProgress) -> bool:  # noqa: ARG002
        """Return False: there is no live display."""
        return False

    def close(self) -> None:
        """Do nothing: lines stay."""


class Reporter:
    """The RunObserver of the command.

    quiet: only warnings, errors and the number of bad lines; what earlier runs of the same output have reported is not
    repeated. show_failures: each failure's line and each of the first bad ones, where no file lists them.
    """

    def __init__(self, *, quiet: bool = False, show_failures: bool = False) -> None:
        self._sink: EventSink = Plain()
        self._quiet = quiet
        self._show_failures = show_failures
        self._invalid = self._invalid_reported = 0
        self._example = ""
        self._began = time.monotonic()
        self._interval = FIRST_SECONDS
        self._due = self._began + FIRST_SECONDS
        self._asking_since = self._began
        self._told_until = 0.0

    def write_to(self, sink: EventSink) -> None:
        """Write all later events to another sink."""
        self._sink = sink

    def tell(self, event: Event, text: str, /, **fields: Field) -> None:
        """Write an event; with quiet only warnings and errors."""
        if not self._quiet or level(event) != "info":
            self._write(event, text, fields)

    def _write(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:
        """Write an event without the tokens that may stand in it, such as one given as a list's path."""
        shown = {name: _without_tokens(value) for name, value in fields.items()}
        self._sink.tell(event, misplaced.hidden_in_message(text), shown)

    def invalid(self, line: InvalidLine) -> None:
        """Count a bad line of the list; the first is the example in the one line that people get of all of them."""
        self._invalid += 1
        if self._invalid > _SHOWN_INVALID:
            return
        text = line.text[:_SHOWN_TEXT].replace("\n", " ")
        self._example = self._example or f'{line.file}:{line.line}: "{text}" ({line.reason})'
        if not (self._show_failures or self._sink.for_programs):
            return
        self._invalid_reported = self._invalid
        message = f"{line.file}:{line.line}: not a bitlink: {line.reason}: {text}"
        self.tell(Event.LINE_INVALID, message, file=line.file, line=line.line, reason=line.reason, text=text)
        if self._invalid == _SHOWN_INVALID:
            self.tell(Event.LINES_SUPPRESSED, "more invalid lines follow; they are only counted here")

    def _report_invalid(self, so_far: str = "") -> None:
        """Write one line on the bad lines until now, unless there is one; the summary has their final number."""
        if self._invalid and not self._invalid_reported:
            self._invalid_reported = self._invalid
            number = counted(self._invalid, "line is not a bitlink", f"lines{so_far} are not bitlinks, such as")
            where = "" if self._invalid == 1 else "; _failures.ndjson lists them"
            self.tell(Event.LINE_INVALID, f"{number}: {self._example}{where}")

    def failure(self, line: bytes) -> None:
        """Write the failure, where there is no `_failures.ndjson` to hold it."""
        if self._show_failures:
            fields = orjson.loads(line)
            self.tell(Event.CALL_FAILED, line.decode(), bitly_message=fields.pop("message"), **fields)

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.tell(Event.WARNING, f"warning: {text}")

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        """Write a note, unless quiet."""
        self.tell(event, text, **fields)

    def progress(self, status: RunProgress) -> None:
        """Draw the progress, or write a line of it: when one is due, and at once when a long wait begins."""
        if self._quiet:
            return
        self._report_invalid(" so far")
        if self._sink.show(status):
            return
        now = time.monotonic()
        if not status.attempts.total:
            self._asking_since = now  # counting a long list takes minutes, which are no time of asking
        if now < self._due and not self._long_wait_begins(status.waiting):
            return
        self._interval = min(self._interval * GROWTH, LONGEST_SECONDS)
        self._due = now + self._interval
        self.tell(Event.PROGRESS, status_line(status, now - self._asking_since), **progress_fields(status))

    def _long_wait_begins(self, waiting: WaitReason | None) -> bool:
        if waiting is None or waiting.until is None:
            return False
        told, self._told_until = self._told_until, max(self._told_until, waiting.until.timestamp())
        # The budget is asked again during a wait, and its answer may move by some seconds: that is the same wait.
        return seconds_until(waiting.until) > LONG_WAIT_SECONDS and waiting.until.timestamp() > told + LONG_WAIT_SECONDS

    def ended(
        self,
        outcome: RunOutcome,
        out: str,
        exit_code: int,
        command: str = "",
        details: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write the summary; with quiet only that of a run that was stopped, and of each spent month once.

        A run that has reached its user's own limit was not stopped in this sense.

        command: the one that was run. details: as in `summary`.
        """
        status, stop = outcome.status, outcome.stop
        if self._quiet and not _has_more_invalid(status):
            self._invalid_reported = self._invalid
        self.close()
        seconds = time.monotonic() - self._began
        own = stop is not None and stop.reason in {StopReason.MAX_TIME, StopReason.MAX_CALLS}
        spent = stop is not None and stop.reason is StopReason.MONTH_SPENT and stop.until == status.spent_before
        if not self._quiet or (stop and not own and not spent):
            fields = {**counts(outcome, out, seconds), "exit_code": exit_code}
            self._write(Event.RUN_ENDED, summary(outcome, out, seconds, command, details), fields)

    def close(self) -> None:
        """Write what is still to be said of bad lines, and remove the live display."""
        self._report_invalid()
        self._sink.close()


def _has_more_invalid(status: RunProgress) -> bool:
    """Return whether the list has bad lines that earlier runs of this output have not reported."""
    found, before = status.listed.invalid, status.invalid_before
    # A list that was not read to its end has more of them than were counted.
    return found > before or (0 < found < before and status.read_to_end)


def status_line(status: RunProgress, seconds: float) -> str:
    """Return a progress line. seconds: time since the first attempt."""
    sent = status.attempts.total - status.connecting
    rate = sent / seconds * 60 if seconds else 0.0
    line = (
        f"{utc_text(datetime.now(UTC))} {status.rows:,} rows, {status.refused:,} refused, "
        f"{status.failed:,} failed, {sent:,} requests ({rate:,.0f}/min)"
    )
    if status.idle:
        line += f"; {status.idle:,} rows without a call (--skip-idle)"
    if status.truncated:
        line += f"; {status.truncated:,} rows truncated (--size)"
    if status.clipped:
        line += f"; {status.clipped:,} rows clipped (--units)"
    if status.remaining:
        line += f"; {status.remaining:,} left{_end(status)}"
    line = f"{line}; waiting for {wait_in_words(status.waiting)}" if status.waiting else line
    return f"{line}; {trouble}" if (trouble := trouble_of(status)) else line


def _end(status: RunProgress) -> str:
    if status.spent:
        return f", the month's calls are used up about {utc_text(status.spent)}"
    return f", until about {utc_text(ends)}" if (ends := status.likely_end) else ""


def moves(status: RunProgress) -> bool:
    """Return True if a call was finished in the last seconds."""
    return any(status.per_second[-_STILL_SECONDS:])


def trouble_of(status: RunProgress) -> str:
    """Return how attempts fail, if that is why no call was finished lately and no wait is announced; else nothing."""
    waits = status.waiting is not None and status.waiting.window != "pace"
    if waits or status.trouble is None or moves(status) or len(status.per_second) < _STILL_SECONDS:
        return ""
    return f"no good answer lately: {status.trouble[:_SHOWN_TEXT].removeprefix('no answer ')}; retrying"


def wait_in_words(waiting: WaitReason) -> str:
    """Return the limit that blocks sending in words, and for how long; a wait of more than a minute with its end."""
    text = limit_in_words(waiting.window, waiting.limit)
    if waiting.why:
        text += f" ({waiting.why[:_SHOWN_TEXT]})"
    if waiting.until is None:
        return text
    left = max(seconds_until(waiting.until), 0.0)
    return f"{text}, {duration(left)}" if left < LONG_WAIT_SECONDS else f"{text}, {_time_until(waiting.until)}"


def _time_until(moment: datetime) -> str:
    minutes = round(seconds_until(moment) / 60)
    return f"until {utc_text(moment, round_up=True)} (in {duration(minutes * 60)})"


def seconds_until(moment: datetime) -> float:
    """Return the seconds from now to a moment; negative when it is over."""
    return (moment - datetime.now(UTC)).total_seconds()


def progress_fields(status: RunProgress) -> dict[str, Any]:
    """Return the numbers of a progress line, for a program."""
    waiting, attempts = status.waiting, status.attempts
    return {
        "rows": status.rows,
        "refused": status.refused,
        "failed": status.failed,
        "truncated": status.truncated,
        "clipped": status.clipped,
        "idle": status.idle,
        "pending": status.pending,
        "remaining": status.remaining,
        "attempts": attempts.total,
        "calls_last_minute": round(sum(status.per_second)),
        "ends": status.likely_end,
        "month_spent": status.spent,
        "trouble": trouble_of(status) or None,
        "waiting": {"window": waiting.window, "limit": waiting.limit or None, "until": waiting.until}
        if waiting
        else None,
    }


def _without_tokens(value: Field) -> Field:
    if isinstance(value, str):
        return misplaced.hidden_in_message(value)
    if isinstance(value, list):
        return [_without_tokens(each) for each in value]
    return value
