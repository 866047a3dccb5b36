"""What a run tells, and when: a line now and then, bad lines, warnings, the end; a voice says it."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from harvester.events import Event, Field, InvalidLine, level
from harvester.progress import WAIT_REASONS, RunOutcome, RunProgress, WaitReason
from harvester.reporting.summary import counts, summary
from harvester.reporting.terminal import say

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
GROWTH = 1.25
"""Progress lines come every 10 s at first and every 5 minutes after an hour or so: six weeks must fit into a log."""
LONG_WAIT_SECONDS = 60.0
_SHOWN_INVALID = 20
_SHOWN_TEXT = 200
_STILL_SECONDS = 3


class EventSink(Protocol):
    """Says events to whoever listens."""

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:
        """Say an event. text: for a person, of any number of lines; fields: for a program."""

    def show(self, status: RunProgress) -> bool:
        """Show how far a run is, if that is done all the time; False where lines are wanted now and then."""

    def close(self) -> None:
        """Take away what is shown all the time; what is told after that stays below."""


class Plain:
    """Says events as lines of text."""

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:  # noqa: ARG002
        """Say the text, escaped."""
        if text:
            say(text)

    def show(self, status: RunProgress) -> bool:  # noqa: ARG002
        """Show nothing all the time."""
        return False

    def close(self) -> None:
        """Leave the lines where they are."""


class Reporter:
    """Tells a run on standard error. quiet: only warnings and bad lines. show_failures: their lines, too."""

    def __init__(self, *, quiet: bool = False, show_failures: bool = False) -> None:
        self._voice: EventSink = Plain()
        self._quiet = quiet
        self._show_failures = show_failures
        self._invalid = 0
        self._began = time.monotonic()
        self._interval = FIRST_SECONDS
        self._due = self._began + FIRST_SECONDS
        self._asking_since = self._began
        self._told_until = 0.0

    def speak(self, voice: EventSink) -> None:
        """Have all that comes said by another voice."""
        self._voice = voice

    def tell(self, event: Event, text: str, /, **fields: Field) -> None:
        """Say an event, unless it is a mere note and quiet is asked for."""
        if not self._quiet or level(event) != "info":
            self._voice.tell(event, text, fields)

    def invalid(self, line: InvalidLine) -> None:
        """Show the first bad lines; all of them are in `_failures.ndjson`."""
        self._invalid += 1
        if self._invalid <= _SHOWN_INVALID:
            text = line.text[:_SHOWN_TEXT].replace("\n", " ")
            said = f"{line.file}:{line.line}: not a bitlink: {line.reason}: {text}"
            self.tell(Event.LINE_INVALID, said, file=line.file, line=line.line, reason=line.reason, text=text)
        if self._invalid == _SHOWN_INVALID:
            self.tell(Event.LINES_SUPPRESSED, "further lines that are no bitlinks are only counted here")

    def failure(self, line: bytes) -> None:
        """Show the line where there is no `_failures.ndjson` to hold it."""
        if self._show_failures:
            fields = orjson.loads(line)
            self.tell(Event.CALL_FAILED, line.decode(), bitly_message=fields.pop("message"), **fields)

    def warn(self, text: str) -> None:
        """Show a warning."""
        self.tell(Event.WARNING, f"warning: {text}")

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        """Show it, unless quiet."""
        self.tell(event, text, **fields)

    def progress(self, status: RunProgress) -> None:
        """Show how far it is, if that was not done lately, and at once when a long wait begins."""
        if self._quiet or self._voice.show(status):
            return
        now = time.monotonic()
        if not status.attempts.total:
            self._asking_since = now  # a long list takes minutes to count
        if now < self._due and not self._long_wait_begins(status.waiting):
            return
        self._interval = min(self._interval * GROWTH, LONGEST_SECONDS)
        self._due = now + self._interval
        self.tell(Event.PROGRESS, status_line(status, now - self._asking_since), **progress_fields(status))

    def _long_wait_begins(self, waiting: WaitReason | None) -> bool:
        if waiting is None or waiting.until is None:
            return False
        left = (waiting.until - datetime.now(UTC)).total_seconds()
        told, self._told_until = self._told_until, max(self._told_until, waiting.until.timestamp())
        # Who waits asks again now and then, and the moment may move a little.
        return left > LONG_WAIT_SECONDS and waiting.until.timestamp() > told + LONG_WAIT_SECONDS

    def ended(self, outcome: RunOutcome, out: str, exit_code: int) -> None:
        """Give the summary, also to the quiet if the run was stopped."""
        self.close()
        seconds = time.monotonic() - self._began
        if not self._quiet or outcome.stop:
            fields = {**counts(outcome, out, seconds), "exit_code": exit_code}
            self._voice.tell(Event.RUN_ENDED, summary(outcome, out, seconds), fields)

    def close(self) -> None:
        """Take away what is shown all the time."""
        self._voice.close()


def status_line(status: RunProgress, seconds: float) -> str:
    """Give one line that says how far a run is after so many seconds of asking."""
    rate = status.attempts.total / seconds * 60 if seconds else 0.0
    line = (
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {status.rows:,} rows, {status.refused:,} refused, "
        f"{status.failed:,} failed, {status.attempts.total:,} attempts ({rate:,.0f}/min)"
    )
    if status.remaining:
        line += f"; {status.remaining:,} left{_end(status)}"
    line = f"{line}; waiting for {explained(status.waiting)}" if status.waiting else line
    return f"{line}; {trouble}" if (trouble := trouble_of(status)) else line


def _end(status: RunProgress) -> str:
    if status.spent:
        return f", the month is spent about {status.spent.astimezone():%Y-%m-%d %H:%M}"
    return f", until about {status.ends.astimezone():%Y-%m-%d %H:%M}" if status.ends else ""


def moves(status: RunProgress) -> bool:
    """Say whether calls were settled in the last seconds."""
    return any(list(status.per_second)[-_STILL_SECONDS:])


def trouble_of(status: RunProgress) -> str:
    """Say how attempts fail where nothing moves for that, and nobody waits for an outage's end yet; else nothing."""
    waits = status.waiting is not None and status.waiting.window != "pace"
    if waits or status.trouble is None or moves(status) or len(status.per_second) < _STILL_SECONDS:
        return ""
    return f"no good answer lately ({status.trouble[:_SHOWN_TEXT]}): asking again"


def explained(waiting: WaitReason) -> str:
    """Say which window binds, what it holds, and until when, in local time."""
    text = WAIT_REASONS.get(waiting.window, waiting.window)
    if waiting.limit:
        text += f" of {waiting.limit:,}"
    if waiting.why:
        text += f" ({waiting.why[:_SHOWN_TEXT]})"
    return f"{text}, until {clock(waiting.until)}" if waiting.until else text


def clock(moment: datetime) -> str:
    """Give a moment in local time, to the second; with its day if that is not today."""
    local = moment.astimezone()
    today = local.date() == datetime.now().astimezone().date()
    return f"{local:%H:%M:%S}" if today else f"{local:%Y-%m-%d %H:%M:%S}"


def progress_fields(status: RunProgress) -> dict[str, Any]:
    """Give for a program what a progress line says."""
    waiting, attempts = status.waiting, status.attempts
    return {
        "rows": status.rows,
        "refused": status.refused,
        "failed": status.failed,
        "pending": status.pending,
        "remaining": status.remaining,
        "attempts": attempts.total,
        "calls_last_minute": round(sum(status.per_second)),
        "ends": status.ends,
        "month_spent": status.spent,
        "trouble": trouble_of(status) or None,
        "waiting": {"window": waiting.window, "limit": waiting.limit or None, "until": waiting.until}
        if waiting
        else None,
    }
