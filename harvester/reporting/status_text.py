"""The state of a run as text for a person, as a line for a log, and as an object for a program."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import orjson

from harvester.clock import utc_iso, utc_text
from harvester.dataset.manifest import WindowUsage
from harvester.jsonlines import as_json
from harvester.progress import ages_in_words, counted, duration, idle_in_words, limit_in_words, shortfalls_in_words
from harvester.reporting.run_status import RunState, RunStatus, Unreadable
from harvester.reporting.terminal import escaped_lines, for_stdout, print_out

_STATES = {
    RunState.RUNNING: "it is running",
    RunState.STALE: "no update since {updated}: it was killed, cannot write, or its machine is down",
    RunState.CLOCK_SKEW: "its clock is ahead of this machine's, so the age of its manifest is unknown",
    RunState.STOPPED: "stopped before the end of the list",
    RunState.FAILURES: "finished, but some calls failed",
    RunState.EMPTY: "ended: there are no bitlinks in the list",
    RunState.COMPLETE: "complete: every link has an answer",
}
_UNREADABLE = "unreadable"
_PASSED_ON = (
    "tool", "run_id", "work_dir", "query", "started", "complete", "stopped", "input_read_to_end", "list", "invocation",
    "given_up", "attempts", "budget", "refresh",
)  # fmt: skip
"""Keys that the object takes from the manifest unchanged."""


def as_text(seen: RunStatus) -> str:
    """Return the lines for a person."""
    lines = [f"  {name:<11}{text}" for part in (_news, _calls, _budget, _end) for name, text in part(seen)]
    return "\n".join([f"{seen.out}: {_sentence(seen)}", *lines])


def as_line(seen: RunStatus) -> str:
    """Return one line for a log."""
    counts, per_hour = seen.manifest.dataset, seen.manifest.invocation.rate.per_hour
    line = (
        f"{utc_text(seen.updated)} {seen.state}: {counts.rows:,} rows, {counts.refused:,} refused, "
        f"{counts.failed:,} failed, {counts.pending:,} pending"
    )
    if counts.idle:
        line += f", {counts.idle:,} without a call"
    if counts.truncated:
        line += f", {counts.truncated:,} truncated"
    if counts.clipped:
        line += f", {counts.clipped:,} clipped"
    if per_hour is not None:
        line += f", {per_hour:,.0f} calls/h"
    waiting = _waiting(seen)
    return f"{line}; waiting for {waiting}" if waiting else line


def as_dict(seen: RunStatus) -> dict[str, Any]:
    """Return the object for a program; docs/status.md documents it. Moments are UTC as text, ages are seconds."""
    manifest, step = seen.manifest.to_json(), seen.next
    per_hour = seen.manifest.invocation.rate.per_hour
    files, rows, size = seen.parts
    return {
        "schema_version": 1,
        "out": seen.out,
        "manifest": seen.path,
        "state": seen.state,
        "summary": _sentence(seen),
        "now": utc_iso(seen.now),
        "updated": manifest["updated"],
        "age_seconds": round(seen.age_seconds, 1),
        "ended": utc_iso(seen.ended) if seen.ended else None,
        "done": seen.manifest.dataset.settled,
        "calls": manifest["dataset"],
        "remaining": manifest["remaining"],
        "calls_per_hour": None if per_hour is None else round(per_hour, 1),
        "ends": utc_iso(seen.ends) if seen.ends else None,
        "waiting_seconds": _seconds_to(seen.waiting_until, seen.now),
        "parts": {"files": files, "rows": rows, "bytes": size},
        "next": {
            "summary": step.summary,
            "command": step.command,
            "after": utc_iso(step.after) if step.after else None,
            "after_seconds": _seconds_to(step.after, seen.now),
        },
        **{name: manifest[name] for name in _PASSED_ON},
    }


def _sentence(seen: RunStatus) -> str:
    return _STATES[seen.state].format(updated=utc_text(seen.updated))


def _news(seen: RunStatus) -> Iterator[tuple[str, str]]:
    age, run = seen.age_seconds, seen.manifest.invocation
    old = f"{duration(age)} old" if age >= 0 else f"{duration(-age)} ahead of this machine's clock"
    yield "updated", f"{utc_text(seen.updated)}, {old}"
    yield "run", f"number {run.number}, started {utc_text(run.started)}, list: {', '.join(run.lists)}"
    if seen.ended:
        yield "ended", utc_text(seen.ended)


def _calls(seen: RunStatus) -> Iterator[tuple[str, str]]:
    counts, remaining, rate = seen.manifest.dataset, seen.manifest.remaining, seen.manifest.invocation.rate
    yield "done", f"{counts.settled:,} calls ({counts.rows:,} rows, {counts.refused:,} refused)"
    if counts.idle:
        yield "idle", idle_in_words(counts.rows, counts.idle)
    for number, text in enumerate(shortfalls_in_words(counts.rows, counts.truncated, counts.clipped)):
        yield "" if number else "truncated" if counts.truncated else "clipped", text
    if (ages := seen.manifest.refresh) is not None and ages.due is not None:
        yield "refresh", ages_in_words(ages, seen.now)
    yield "failed", f"{counts.failed:,}"
    yield "pending", f"{counts.pending:,}"
    if remaining is not None:
        end = f"; estimated end {utc_text(seen.ends)}" if seen.ends else ""
        yield "left", f"{remaining:,} calls of the list{end}"
    if rate.per_hour is not None:
        yield "rate", f"{rate.per_hour:,.0f} calls an hour ({rate.calls:,} in {duration(rate.seconds)})"


def _budget(seen: RunStatus) -> Iterator[tuple[str, str]]:
    budget = seen.manifest.budget
    if waiting := _waiting(seen):
        yield "waiting", f"for {waiting}"
    account = f", account {budget.account}" if budget.account_option is not None else ""
    yield "budget", f"token {budget.token}{account}"
    yield from (("", _window(window)) for window in budget.windows)


def _end(seen: RunStatus) -> Iterator[tuple[str, str]]:
    (files, rows, size), stopped, step = seen.parts, seen.manifest.stopped, seen.next
    command = seen.manifest.invocation.command
    yield "parts", f"{files:,} with {rows:,} rows, {size:,} bytes"
    if stopped:
        yield "stopped", stopped.message
    after = f"from {utc_text(step.after, round_up=True)} on ({_until(step.after, seen.now)}): " if step.after else ""
    yield "next", after + step.summary
    if text := step.command or (command and seen.command):
        yield "command", text
    if command and command.config:
        yield "options", f"from {', '.join(command.config)}"
    if seen.unset:
        yield "options", f"from variables that are not kept, and not set here: {', '.join(seen.unset)}"


def _window(window: WindowUsage) -> str:
    limit = f"of {window.limit:,} used" if window.limit else "used, no limit"
    until = f", until {utc_text(window.until, round_up=True)}" if window.until else ""
    return f"{window.window:<7}{window.used:,} {limit}{until}"


def _waiting(seen: RunStatus) -> str | None:
    """Return in words the limit that blocks sending; None when nothing does, or the run has ended."""
    limited_by, until = seen.manifest.budget.limited_by, seen.waiting_until
    if not limited_by or seen.ended:
        return None
    text = limit_in_words(limited_by.window, limited_by.limit)
    if limited_by.why:
        text += f" ({limited_by.why.removeprefix('no answer ')})"
    if seen.waiting_since:
        text += f", since {utc_text(seen.waiting_since)} ({duration(_seconds_between(seen.waiting_since, seen.now))})"
    if not until:
        return text
    if limited_by.window == "outage":
        return f"{text}, next attempt {_until(until, seen.now)}" if until > seen.now else text
    return f"{text}, until {utc_text(until, round_up=True)} ({_until(until, seen.now)})"


def _seconds_between(earlier: datetime, later: datetime) -> float:
    return max((later - earlier).total_seconds(), 0.0)


def _until(moment: datetime, now: datetime) -> str:
    seconds = (moment - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else "which has passed"


def _seconds_to(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else round((moment - now).total_seconds(), 1)


def print_status(seen: RunStatus, *, json: bool) -> None:
    """Print the state of a run; for a program with the history, which is too long for one line among many."""
    if not json:
        print_out(for_stdout(as_text(seen)))
        return
    told = seen.manifest
    more = {"runs": [run.to_json() for run in told.runs], "history": [entry.to_json() for entry in told.history]}
    print_out(as_json(as_dict(seen) | more, orjson.OPT_INDENT_2))


def print_table(states: Iterable[RunStatus | Unreadable], folder: str, *, json: bool) -> bool:
    """Print the states of the runs below a folder: a table for a person; for a program an object a line.

    Return whether all could be read.
    """
    if json:
        good = True
        for seen in states:
            good = good and isinstance(seen, RunStatus)
            print_out(as_json(as_dict(seen) if isinstance(seen, RunStatus) else _unreadable(seen)))
        return good
    shown = [*states]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [("STATE", "DONE", "FAILED", "LEFT", "UPDATED (UTC)", "OUTPUT"), *(_row(seen, folder) for seen in shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    # In a narrow terminal the last two columns stand below the others.
    narrow = width is not None and max(len(f"{left}  {right}") for left, right in lines) > width
    for left, right in lines:
        print_out(for_stdout(f"{left.rstrip()}\n  {right.strip()}") if narrow else f"{left}  {right}")
    counts = Counter(seen.state if isinstance(seen, RunStatus) else _UNREADABLE for seen in shown)
    found = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    print_out(for_stdout(f"{counted(len(shown), 'output')}: {found}"))
    return not counts[_UNREADABLE]


def _line(row: tuple[str, ...], widths: list[int]) -> tuple[str, str]:
    """Return the line of a row in two pieces: state and numbers, time and output."""
    state, *numbers, updated, out = row
    aligned = "  ".join(f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=False))
    return f"{state:<{widths[0]}}  {aligned}", f"{updated:<{widths[4]}}  {out}"


def _row(seen: RunStatus | Unreadable, folder: str) -> tuple[str, ...]:
    out = os.path.relpath(seen.out, folder)
    if isinstance(seen, Unreadable):
        return (_UNREADABLE, "", "", "", "", f"{out}: {seen.message}")
    manifest, state, why = seen.manifest, str(seen.state), ""
    if seen.state is RunState.STOPPED and manifest.stopped:
        why = manifest.stopped.reason.replace("_", " ")
    elif seen.state is RunState.RUNNING and seen.waiting_since and manifest.budget.limited_by:
        why = manifest.budget.limited_by.window
    counts, left = manifest.dataset, "?" if manifest.remaining is None else f"{manifest.remaining:,}"
    return (
        f"{state}: {why}" if why else state,
        f"{counts.settled:,}",
        f"{counts.failed:,}",
        left,
        f"{seen.updated:%Y-%m-%d %H:%M}",
        out,
    )


def _unreadable(seen: Unreadable) -> dict[str, Any]:
    return {"schema_version": 1, "out": seen.out, "state": _UNREADABLE, "summary": seen.message}


def follow(states: Iterator[RunStatus], *, json: bool) -> None:
    """Print each of the states: on a terminal in place, elsewhere one line at each change."""
    if not json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        _redraw(states)
        return
    last = None
    for seen in states:
        if (seen.manifest, seen.state) != last:
            print_out(as_json(as_dict(seen)) if json else as_line(seen))
        last = (seen.manifest, seen.state)


def _redraw(states: Iterator[RunStatus]) -> None:
    from rich.live import Live  # noqa: PLC0415 - a line for a log needs none of it
    from rich.text import Text  # noqa: PLC0415

    with Live(auto_refresh=False, vertical_overflow="visible") as live:
        for seen in states:
            live.update(Text(escaped_lines(for_stdout(as_text(seen)))), refresh=True)
