"""The summary at the end of a run: its results, their cost and the next step, for a person and for a program."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from harvester.clock import utc_text
from harvester.events import RunOutcome
from harvester.progress import (
    RunProgress,
    WindowState,
    ages_in_words,
    counted,
    duration,
    idle_in_words,
    shortfalls_in_words,
)
from harvester.reporting.terminal import FAILURE_MARK, SUCCESS_MARK
from harvester.shutdown import CONSEQUENCES, OK, StopReason

_FEW_SECONDS = 1.0
_MOST_REASONS = 6


def summary(
    outcome: RunOutcome, out: str, seconds: float, command: str = "", details: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the lines that end a run: the results, their cost, and what to do next.

    seconds: the run's duration. command: the one that was run, printed where it is to be run again. details: further
    lines of a command with several outputs: what each is about, and its text.
    """
    lines, before = [f"{_mark(outcome)} {_headline(outcome, seconds)}"], ""
    for name, text in _facts(outcome, out, seconds, command, details):
        lines.append(f"  {name if name != before else '':<10}{text}")
        before = name
    return "\n".join(lines)


def _mark(outcome: RunOutcome) -> str:
    stop = outcome.stop
    good = outcome.complete or (stop is not None and CONSEQUENCES[stop.reason].exit_code == OK)
    return SUCCESS_MARK if good else FAILURE_MARK


def _facts(
    outcome: RunOutcome, out: str, seconds: float, command: str, details: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Yield the lines below the first one: what each is about, and its text."""
    yield from _results(outcome.status)
    yield from details
    yield from _cost(outcome.status, seconds)
    if out != "-":
        yield "output", out
    yield from (("next", text) for text in _next(outcome, out))
    if command and out != "-" and (flag := _repeated_with(outcome)) is not None:
        yield "command", command if not flag or flag in command.split() else f"{command} {flag}"


def _repeated_with(outcome: RunOutcome) -> str | None:
    """Return the option that the same command needs to get further, which may be empty; None if it is not repeated."""
    stop, status = outcome.stop, outcome.status
    if stop:
        ends = stop.reason is StopReason.CONSUMER_GONE or not CONSEQUENCES[stop.reason].same_command
        return None if ends else ""
    if status.failed > status.exhausted:
        return ""
    return "--retry-failed" if status.failed or status.given_up else None


def _headline(outcome: RunOutcome, seconds: float) -> str:
    status = outcome.status
    if outcome.stop and outcome.stop.reason is StopReason.NOT_BEGUN:
        return "stopped by the error above"
    if outcome.stop:
        return f"stopped: {outcome.stop.message}"
    if not status.listed.links:
        return "nothing to do: the list has no links"
    if not status.finished and not status.given_up:
        return f"nothing to do: {'no link is due' if status.refresh else 'every link has an answer already'}"
    if outcome.complete:
        return f"finished in {duration(seconds)}: every link has an answer"
    return f"finished in {duration(seconds)}, but {_failed(status.failed + status.given_up)}"


def _failed(number: int) -> str:
    return f"{counted(number, 'link has', 'links have')} failed"


def _results(status: RunProgress) -> Iterator[tuple[str, str]]:
    listed, so_far = status.listed, "" if status.read_to_end else " so far"
    if status.finished:
        yield "results", f"{counted(status.rows, 'row')}, {status.refused:,} refused, {status.failed:,} failed"
    if reasons := refusals_in_words(status):
        yield "refused", reasons
    if status.idle:
        yield "results", idle_in_words(status.rows, status.idle)
    for text in shortfalls_in_words(status.rows, status.truncated, status.clipped):
        yield "results", text
    if listed.lines:
        links, repeated = counted(listed.links, "link"), f"{listed.duplicates:,} repeated"
        wrong = counted(listed.invalid, "line is not a bitlink", "lines are not bitlinks")
        yield "list", f"{counted(listed.lines, 'line')}{so_far}: {links}, {repeated}; {wrong}"
    if listed.differing:
        have = counted(listed.differing, "repeated line has", "repeated lines have")
        yield "list", f"{have} other --carry values than the first line of the link, which counts"
    if status.known:
        done, links = status.known - status.given_up, counted(listed.links, "link")
        if status.outputs > 1:
            links = counted(listed.links * status.outputs, "call")
        failed = f", {status.given_up:,} had failed in three runs" if status.given_up else ""
        yield "list", f"{done:,} of {links} {'was' if done == 1 else 'were'} already done{failed}"
    if (ages := status.ages) is not None and ages.due is not None:
        yield "refresh", ages_in_words(ages, datetime.now(UTC))


def refusals_in_words(status: RunProgress) -> str:
    """Return this run's refusals by HTTP status, the most frequent first: `404 ×12, 410 ×1`."""
    found = [(code, count) for code, count in status.refused_by.most_common() if count > 0]
    shown = [f"{code or 'no status'} ×{count:,}" for code, count in found[:_MOST_REASONS]]
    rest = sum(count for _, count in found[_MOST_REASONS:])
    return ", ".join([*shown, f"others ×{rest:,}"] if rest else shown)


def _cost(status: RunProgress, seconds: float) -> Iterator[tuple[str, str]]:
    attempts, month = status.attempts, _month(status)
    if attempts.total or attempts.helper:
        yield "requests", "; ".join(_requests(status))
    if status.not_sent:
        more = " more" if attempts.total else ""
        yield "requests", f"{status.not_sent:,}{more} did not reach the server, and cost nothing"
    if status.finished:
        speed = f", {status.finished / seconds:,.1f} links/s" if seconds >= _FEW_SECONDS else ""
        yield "time", f"{duration(seconds)}{speed}"
    if month and month.remaining is not None:
        until = f"; a new month begins {utc_text(month.until)}" if month.until else ""
        yield "month", f"{month.remaining:,} of {month.limit:,} requests left{until}"


def _requests(status: RunProgress) -> Iterator[str]:
    """Yield what was sent: requests for links, how many of them were retries, and the helper requests by purpose."""
    attempts = status.attempts
    if attempts.total:
        again = counted(attempts.retried, "was a retry", "were retries")
        limited = f", {attempts.throttled:,} rejected by Bitly's rate limit" if attempts.throttled else ""
        yield f"{attempts.total:,} for links, of which {again}{limited}"
    if status.exports:
        yield counted(status.exports, "export of a group's clicks", "exports of a group's clicks")
    if status.listing:
        yield f"{status.listing:,} to list a group's links"
    if others := attempts.helper - status.exports - status.listing:
        yield f"{others:,} to ask Bitly for its limits"


def _month(status: RunProgress) -> WindowState | None:
    return status.windows[-1] if status.windows else None


def _next(outcome: RunOutcome, out: str) -> Iterator[str]:
    stop, status = outcome.stop, outcome.status
    if stop and stop.reason is StopReason.CONSUMER_GONE:
        return
    if stop and out == "-":
        yield "the same command starts over; with a folder or a file as --out it would resume"
    elif stop and (stop.reason is StopReason.NOT_BEGUN or not CONSEQUENCES[stop.reason].same_command):
        yield f"nothing was lost; {CONSEQUENCES[stop.reason].next_step}"
    elif stop and stop.until:
        yield f"nothing was lost; run the same command again from {utc_text(stop.until, round_up=True)}"
    elif stop and not CONSEQUENCES[stop.reason].repeating_helps:
        yield "nothing was lost; fix this first, the same command alone will fail again"
    elif stop and stop.reason is StopReason.NOT_BEGUN:
        yield "do what the message says; then the same command resumes"
    elif stop:
        yield "nothing was lost; the same command resumes"
    elif out == "-":
        return
    elif again := status.failed - status.exhausted:
        yield f"{_failed(again)}: see _failures.ndjson; the same command tries again"
    if given_up := status.given_up + status.exhausted:
        yield f"{_failed(given_up)} in three runs: only --retry-failed tries again"
    if status.refused and not stop and out != "-":
        yield "_failures.ndjson lists the refused links, with Bitly's message"


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
        "idle": status.idle,
        "pending": status.pending,
        "lines": status.listed.lines,
        "links": status.listed.links,
        "duplicates": status.listed.duplicates,
        "differing": status.listed.differing,
        "invalid": status.listed.invalid,
        "known": status.known,
        "given_up": status.given_up + status.exhausted,
        "read_to_end": status.read_to_end,
        "attempts": status.attempts.total,
        "retried": status.attempts.retried,
        "throttled": status.attempts.throttled,
        "helper_requests": status.attempts.helper,
        "exports": status.exports,
        "refresh": asdict(status.ages) if status.ages else None,
        "month_left": month.remaining if month else None,
    }
