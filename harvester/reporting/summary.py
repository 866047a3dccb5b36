"""The summary at the end of a run: its results, their cost and the next step, for a person and for a program."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from harvester.events import RunOutcome
from harvester.progress import RunProgress, WindowState, duration, shortfalls_in_words
from harvester.shutdown import CONSEQUENCES, StopReason

_FEW_SECONDS = 1.0


def summary(outcome: RunOutcome, out: str, seconds: float, command: str = "") -> str:
    """Return the lines that end a run: the results, their cost, and what to do next.

    seconds: the run's duration. command: the one that was run, printed where it is to be run again.
    """
    lines, before = [_headline(outcome, seconds)], ""
    for name, text in _facts(outcome, out, seconds, command):
        lines.append(f"  {name if name != before else '':<8}{text}")
        before = name
    return "\n".join(lines)


def _facts(outcome: RunOutcome, out: str, seconds: float, command: str) -> Iterator[tuple[str, str]]:
    """Yield the lines below the first one: what each is about, and its text."""
    yield from _results(outcome.status)
    yield from _cost(outcome.status, seconds)
    if out != "-":
        yield "in", out
    yield from (("next", text) for text in _next(outcome, out))
    repeated = outcome.stop.reason is not StopReason.CONSUMER_GONE if outcome.stop else outcome.status.failed
    if command and repeated and out != "-":
        yield "command", command


def _headline(outcome: RunOutcome, seconds: float) -> str:
    status = outcome.status
    if outcome.stop:
        return f"stopped: {outcome.stop.message}"
    if not status.listed.links:
        return "nothing to do: the list has no links"
    if not status.finished and not status.given_up:
        return "nothing to do: everything was known, no call was made"
    if outcome.complete:
        return f"done in {duration(seconds)}: every call is settled"
    return f"done in {duration(seconds)}, but {_failed(status.failed + status.given_up)}"


def _failed(number: int) -> str:
    return f"{counted(number, 'call has', 'calls have')} failed"


def _results(status: RunProgress) -> Iterator[tuple[str, str]]:
    listed, so_far = status.listed, "" if status.read_to_end else " so far"
    if status.finished:
        yield "result", f"{counted(status.rows, 'row')}, {status.refused:,} refused, {status.failed:,} failed"
    for text in shortfalls_in_words(status.rows, status.truncated, status.clipped):
        yield "result", text
    if listed.lines:
        links, duplicates = counted(listed.links, "link"), counted(listed.duplicates, "duplicate")
        yield "list", f"{counted(listed.lines, 'line')}{so_far}: {links}, {duplicates}, {listed.invalid:,} invalid"
    if status.known:
        yield "list", f"{counted(status.known, 'link was', 'links were')} already known"


def _cost(status: RunProgress, seconds: float) -> Iterator[tuple[str, str]]:
    attempts, month = status.attempts, _month(status)
    if attempts.total or attempts.helper:
        extra = f"{attempts.retried:,} retried, {attempts.throttled:,} throttled"
        helper = f", and {counted(attempts.helper, 'helper request')}" if attempts.helper else ""
        yield "cost", f"{counted(attempts.total, 'attempt')} ({extra}){helper}"
    if status.not_sent:
        more = " more" if attempts.total else ""
        yield "cost", f"{counted(status.not_sent, 'attempt')}{more} did not reach the server, and cost nothing"
    if status.finished:
        speed = f", {status.finished / seconds:,.1f} calls/s" if seconds >= _FEW_SECONDS else ""
        yield "time", f"{duration(seconds)}{speed}"
    if month and month.remaining is not None:
        until = f"; a new one begins {month.until:%Y-%m-%d %H:%M} UTC" if month.until else ""
        yield "month", f"{month.remaining:,} of {month.limit:,} attempts left{until}"


def _month(status: RunProgress) -> WindowState | None:
    return status.windows[-1] if status.windows else None


def _next(outcome: RunOutcome, out: str) -> Iterator[str]:
    stop, status = outcome.stop, outcome.status
    if stop and stop.reason is StopReason.CONSUMER_GONE:
        return
    if stop and out == "-":
        yield "the same command starts over: with a folder or a file as --out it would carry on"
    elif stop and stop.until:
        yield f"nothing was lost; run the same command again from {stop.until} on"
    elif stop and not CONSEQUENCES[stop.reason].repeating_helps:
        yield "nothing was lost; fix that first: repeating the command alone will not help"
    elif stop:
        yield "nothing was lost; the same command carries on"
    elif out == "-":
        return
    elif status.failed:
        yield f"{_failed(status.failed)}: see _failures.ndjson; the same command tries again"
    if status.given_up:
        yield f"{_failed(status.given_up)} in three runs: --retry-failed tries again"
    if status.refused and not stop and out != "-":
        yield "_failures.ndjson says which were refused, and why"


def counts(outcome: RunOutcome, out: str, seconds: float) -> dict[str, Any]:
    """Return the numbers of the summary, for a program."""
    status, stop, month = outcome.status, outcome.stop, _month(outcome.status)
    return {
        "complete": outcome.complete,
        "reason": stop.reason.value if stop else None,
        "until": datetime.fromisoformat(stop.until) if stop and stop.until else None,
        "out": out,
        "seconds": round(seconds, 3),
        "rows": status.rows,
        "refused": status.refused,
        "failed": status.failed,
        "truncated": status.truncated,
        "clipped": status.clipped,
        "pending": status.pending,
        "lines": status.listed.lines,
        "links": status.listed.links,
        "duplicates": status.listed.duplicates,
        "invalid": status.listed.invalid,
        "known": status.known,
        "given_up": status.given_up,
        "read_to_end": status.read_to_end,
        "attempts": status.attempts.total,
        "retried": status.attempts.retried,
        "throttled": status.attempts.throttled,
        "helper_requests": status.attempts.helper,
        "month_left": month.remaining if month else None,
    }


def counted(number: int, one: str, more: str | None = None) -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"
