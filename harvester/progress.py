"""What a person sees of a run on standard error: a status line now and then, bad lines, warnings, the summary."""

import time
from datetime import UTC, datetime

from harvester.sources import Invalid
from harvester.status import Outcome, Status, Waiting
from harvester.terminal import say

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
GROWTH = 1.25
"""Progress lines come every 10 s at first and every 5 minutes after an hour or so: six weeks must fit into a log."""
LONG_WAIT_SECONDS = 60.0
_SHOWN_INVALID = 20
_SHOWN_TEXT = 200
_WINDOWS = {
    "pace": "the minute's pace",
    "minute": "the minute's limit",
    "hour": "the hour's limit",
    "month": "the month's edge",
    "throttled": "Bitly, which throttles",
    "outage": "the server, which is out",
    "budget": "the budget's file, which another process holds",
    "connections": "a connection: other harvesters of this machine use all",
}


class StderrWatcher:
    """Tells a run on standard error. quiet: only warnings and bad lines. show_failures: their lines, too."""

    def __init__(self, *, quiet: bool = False, show_failures: bool = False) -> None:
        self._quiet = quiet
        self._show_failures = show_failures
        self._invalid = 0
        self._began = time.monotonic()
        self._interval = FIRST_SECONDS
        self._due = self._began + FIRST_SECONDS
        self._told_until = 0.0

    def invalid(self, line: Invalid) -> None:
        """Show the first bad lines; all of them are in `_failures.ndjson`."""
        self._invalid += 1
        if self._invalid <= _SHOWN_INVALID:
            text = line.text[:_SHOWN_TEXT].replace("\n", " ")
            say(f"{line.file}:{line.line}: not a bitlink: {line.reason}: {text}")
        if self._invalid == _SHOWN_INVALID:
            say("further lines that are no bitlinks are only counted here")

    def failure(self, line: bytes) -> None:
        """Show the line where there is no `_failures.ndjson` to hold it."""
        if self._show_failures:
            say(line.decode())

    def warn(self, text: str) -> None:
        """Show a warning."""
        say(f"warning: {text}")

    def note(self, text: str) -> None:
        """Show it, unless quiet."""
        if not self._quiet:
            say(text)

    def progress(self, status: Status) -> None:
        """Show how far it is, if that was not done lately, and at once when a long wait begins."""
        now = time.monotonic()
        if self._quiet or (now < self._due and not self._long_wait_begins(status.waiting)):
            return
        self._interval = min(self._interval * GROWTH, LONGEST_SECONDS)
        self._due = now + self._interval
        say(status_line(status, now - self._began))

    def _long_wait_begins(self, waiting: Waiting | None) -> bool:
        if waiting is None or waiting.until is None:
            return False
        left = (waiting.until - datetime.now(UTC)).total_seconds()
        told, self._told_until = self._told_until, max(self._told_until, waiting.until.timestamp())
        # Who waits asks again now and then, and the moment may move a little.
        return left > LONG_WAIT_SECONDS and waiting.until.timestamp() > told + LONG_WAIT_SECONDS


def status_line(status: Status, seconds: float) -> str:
    """Give one line that says how far a run is after so many seconds."""
    rate = status.attempts.total / seconds * 60 if seconds else 0.0
    line = (
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {status.rows:,} rows, {status.refused:,} refused, "
        f"{status.failed:,} failed, {status.attempts.total:,} attempts ({rate:,.0f}/min)"
    )
    return f"{line}; waiting for {explained(status.waiting)}" if status.waiting else line


def explained(waiting: Waiting) -> str:
    """Say which window binds, what it holds, and until when, in local time."""
    text = _WINDOWS.get(waiting.window, waiting.window)
    if waiting.limit:
        text += f" of {waiting.limit:,}"
    return f"{text}, until {waiting.until.astimezone():%H:%M:%S}" if waiting.until else text


def summary(outcome: Outcome, out: str, seconds: float) -> str:
    """Give the lines that end a run: what came of the list, and what to do next."""
    status, listed = outcome.status, outcome.status.listed
    attempts, so_far = status.attempts, "" if status.read_to_end else " so far"
    came = f"{status.rows:,} rows, {status.refused:,} refused, {status.failed:,} failed"
    cost = f"{attempts.total:,} attempts ({attempts.retried:,} repeated, {attempts.throttled:,} throttled)"
    read = f"{listed.links:,} links, {listed.duplicates:,} duplicates, {listed.invalid:,} invalid"
    lines = [
        f"{came} from {cost} in {seconds:,.1f} s",
        f"{listed.lines:,} lines{so_far}: {read}; {status.known:,} were known before",
    ]
    if outcome.stop:
        lines.append(f"stopped: {outcome.stop.message}")
        if outcome.stop.until:
            lines.append(f"nothing was lost; run the same command again from {outcome.stop.until} on")
        else:
            lines.append("nothing was lost; the same command carries on")
    elif status.failed or status.left_failed:
        failed = status.failed + status.left_failed
        lines.append(f"{failed:,} calls failed: see _failures.ndjson; the same command tries them again")
    if out != "-":
        lines.append(f"in {out}")
    return "\n".join(lines)
