"""`harvester status`: the state of a run, from its manifest alone: no lock, no private file, no token."""

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from math import ceil
from typing import Any, NamedTuple

from harvester.bitly.query import period_options
from harvester.budget.limits import Limits
from harvester.clock import next_month
from harvester.config.options import QueryOptions
from harvester.config.placeholders import escape_braces
from harvester.dataset import manifest as manifests
from harvester.dataset.manifest import Command, Found, LimitedBy, Manifest, Stopped
from harvester.errors import UsageError
from harvester.shutdown import CONSEQUENCES, RESUMES, STOPPED, Consequence, StopReason


class RunState(StrEnum):
    """The state of a run, as far as its manifest shows it."""

    RUNNING = "running"
    STALE = "stale"
    CLOCK_SKEW = "clock_skew"
    STOPPED = "stopped"
    FAILURES = "failures"
    EMPTY = "empty"
    COMPLETE = "complete"


class NextStep(NamedTuple):
    """What to do next. command: None where no command helps. after: when to run it, UTC; None for now."""

    summary: str
    command: str | None = None
    after: datetime | None = None


SILENT_SECONDS = 180.0
"""A run writes its manifest every 10 s, in an object store every 60 s; after 180 s without one it is taken for dead."""
AHEAD_SECONDS = 60.0
"""Tolerated difference between two machines' clocks."""
ENDED = frozenset({RunState.STOPPED, RunState.FAILURES, RunState.EMPTY, RunState.COMPLETE})
_ENOUGH_CALLS = 100
"""Calls from which on the attempts per call are estimated from the output itself."""
_NAME = re.compile(r"HARVESTER_\w+\Z", re.ASCII)
_IN_PATHS = "/*?[{~"
"""Characters of paths, glob patterns and names with `{dt}` that no other word has."""
_MOST_HOURS = 50_000
"""Longer forecasts are not made: nobody plans for five years, and the simulation would take too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """The state of a run, derived from its manifest. All moments are UTC; now: when the manifest was read.

    ends: estimate of when every call of the list has a verdict, None without one. waiting_since: when the limit that
    blocks sending began to do so. parts: number of files, rows, bytes.
    command: the run's, for a shell; None where there is none. unset: variables that it had, whose values are not kept,
    and that this process has not.
    """

    out: str
    path: str
    manifest: Manifest
    now: datetime
    updated: datetime
    ended: datetime | None
    state: RunState
    ends: datetime | None
    waiting_until: datetime | None
    waiting_since: datetime | None
    parts: tuple[int, int, int]
    next: NextStep
    command: str | None
    unset: list[str]

    @property
    def age_seconds(self) -> float:
        """Age of the manifest; negative where the run's clock is ahead of this machine's."""
        return (self.now - self.updated).total_seconds()


def read_status(out: str, now: datetime | None = None) -> RunStatus:
    """Return the state of a run. out: its folder, its growing file, or the manifest itself.

    Raises:
        UsageError: there is no manifest, it cannot be read, or it is not one of a known form.
    """
    found = manifests.read(out)
    try:
        return _status_of(found, now or datetime.now(UTC))
    except (ValueError, OverflowError) as error:  # a text that is no moment, or a number beyond any date
        raise UsageError(f"{found.path}: not a harvester manifest ({error})") from error


class Unreadable(NamedTuple):
    """An output below a folder whose manifest cannot be read. message: why."""

    out: str
    message: str


def read_each(paths: list[str], now: datetime | None = None) -> Iterator[RunStatus | Unreadable]:
    """Yield the states of several runs. paths: of their manifests."""
    for path in paths:
        try:
            yield read_status(path, now)
        except UsageError as error:
            yield Unreadable(os.path.dirname(path), str(error))


def changes(out: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[RunStatus]:
    """Yield the state of a run every `seconds` until the run has ended. Raises as `read_status`."""
    while True:
        seen = read_status(out)
        yield seen
        if seen.state in ENDED:
            return
        sleep(seconds)


# --- from a manifest to a state ---------------------------------------------------------------------------------


def _status_of(found: Found, now: datetime) -> RunStatus:
    manifest, parts = found.content, found.content.parts
    updated, limited_by = _moment(manifest.updated), manifest.budget.limited_by
    state = _state(manifest, (now - updated).total_seconds())
    return RunStatus(
        out=found.out,
        path=found.path,
        manifest=manifest,
        now=now,
        updated=updated,
        ended=_optional_moment(manifest.ended),
        state=state,
        ends=_ends(manifest, updated, now) if state is RunState.RUNNING else None,
        waiting_until=_optional_moment(limited_by.until) if limited_by else None,
        waiting_since=_optional_moment(limited_by.since) if limited_by else None,
        parts=(len(parts), sum(part.rows for part in parts), sum(part.bytes for part in parts)),
        next=_next_step(found, state),
        command=command_of(found),
        unset=unset_variables(manifest),
    )


def _state(manifest: Manifest, age_seconds: float) -> RunState:
    if not manifest.ended:
        if age_seconds < -AHEAD_SECONDS:
            return RunState.CLOCK_SKEW
        return RunState.STALE if age_seconds > SILENT_SECONDS else RunState.RUNNING
    if manifest.complete:
        return RunState.COMPLETE
    if manifest.stopped:
        return RunState.STOPPED
    return RunState.EMPTY if manifest.list and not manifest.list.links else RunState.FAILURES


def _ends(manifest: Manifest, updated: datetime, now: datetime) -> datetime | None:
    """Estimate when the remaining calls end; None where that is unknown, as in an outage, or too far away.

    The manifest has the hour's use as one number: its attempts are taken to have been made evenly over that hour, so
    that 1/60 of them leaves the window each minute. Each call takes as many attempts as the calls before it.
    """
    windows = {window.window: window for window in manifest.budget.windows}
    limited_by = manifest.budget.limited_by
    if limited_by is not None and limited_by.window == "outage":
        return None
    if not manifest.remaining or windows.keys() != {"minute", "hour", "month"}:
        return None
    limits = Limits(*(windows[name].limit or 0 for name in ("minute", "hour", "month")))
    if limits.per_hour and manifest.remaining / limits.per_hour > _MOST_HOURS:
        return None
    made = manifest.dataset.settled + manifest.dataset.failed
    each = max(manifest.attempts.total / made, 1.0) if made >= _ENOUGH_CALLS else 1.0
    age = max((now - updated).total_seconds(), 0.0)
    used = windows["hour"].used
    minutes = [(60.0 * (i + 1) - age, used * (i + 1) // 60 - used * i // 60) for i in range(60)]
    month_is_new = next_month(updated) <= now
    from harvester.budget.forecast import Start, forecast  # noqa: PLC0415 - only a run that goes on has a forecast

    start = Start(
        now,
        minute_used=windows["minute"].used,
        leaving=[(seconds, count) for seconds, count in minutes if seconds > 0 and count],
        month_left=limits.per_month if month_is_new and limits.per_month else windows["month"].remaining,
    )
    ends = forecast(ceil(manifest.remaining * each), limits, start).ends
    until = _optional_moment(limited_by.until) if limited_by else None
    return None if ends and until and ends < until else ends


def _optional_moment(text: str | None) -> datetime | None:
    return _moment(text) if text else None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)


# --- the next step ------------------------------------------------------------------------------------------------

_SAME_COMMAND, _SAME_CALL = "the same command", "the same call from Python"


def _next_step(found: Found, state: RunState) -> NextStep:
    step = _step_after(found, state)
    if found.content.invocation.command is None:
        return step._replace(summary=step.summary.replace(_SAME_COMMAND, _SAME_CALL))
    return step


def _step_after(found: Found, state: RunState) -> NextStep:
    manifest, command = found.content, command_of(found)
    piped = "; pass it the same list on standard input" if "-" in manifest.invocation.lists else ""
    match state:
        case RunState.RUNNING:
            return NextStep(_while_running(manifest.budget.limited_by))
        case RunState.CLOCK_SKEW:
            return NextStep("look again in a minute: a live run writes its manifest once a minute")
        case RunState.STALE:
            return NextStep(f"{RESUMES}; if the run is still alive, it says so and sends nothing{piped}", command)
        case RunState.STOPPED:
            assert manifest.stopped is not None  # as `_state` has found
            return _after_stop(manifest.stopped, command, piped)
        case RunState.FAILURES if manifest.dataset.failed > manifest.given_up:
            again = "the same command makes the failed calls again (in three runs; after that only with --retry-failed)"
            return NextStep(f"{again}; _failures.ndjson says why they failed{piped}", command)
        case RunState.FAILURES:
            again = f"_failures.ndjson says why they failed; --retry-failed makes them once more{piped}"
            return NextStep(again, command and f"{command}{'' if _RETRY in command else f' {_RETRY}'}")
        case RunState.EMPTY:
            return NextStep("use a list that has bitlinks; --allow-empty accepts one that has none", command)
        case RunState.COMPLETE:
            return NextStep("nothing: every link has an answer")


_RETRY = "--retry-failed"


def _while_running(limited_by: LimitedBy | None) -> str:
    if limited_by is None or limited_by.since is None:
        return "nothing: the run continues"
    if limited_by.window == "outage":
        tried = "one attempt at a time tests whether the server answers again, at least once a minute"
        return f"{tried}; then the run continues, or after --outage-limit it stops and the same command resumes"
    if limited_by.window == "connections":
        return "nothing, if the other harvesters are wanted: the run continues when one of them ends"
    return "nothing: the run continues when that is over"


def _after_stop(stopped: Stopped, command: str | None, piped: str) -> NextStep:
    # A later version may write a reason that this one does not know.
    known = stopped.reason in set(StopReason)
    consequence = CONSEQUENCES[StopReason(stopped.reason)] if known else Consequence(STOPPED)
    if not consequence.same_command:
        return NextStep(consequence.next_step)
    return NextStep(consequence.next_step + piped, command, _optional_moment(stopped.until))


def command_of(found: Found) -> str | None:
    """Return the command that the run was begun with, for a shell; it goes to the command's folder if that is another.

    For a run from Python: the command with the same effect, or None if its links came from no file.
    """
    command = found.content.invocation.command
    if command is None:
        return _equivalent_of(found)
    return in_shell(command, from_elsewhere=command.cwd != _folder())


def in_shell(command: Command, *, from_elsewhere: bool = False) -> str:
    """Return a command for a shell: with the variables that it had, and from its own folder where it depends on that.

    from_elsewhere: go to its folder in any case.
    """
    kept = [(name, str(value)) for name, value in command.variables.items() if value is not None and _NAME.match(name)]
    text = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in kept), shlex.join(command.words)])
    if command.cwd is None or not (from_elsewhere or _depends_on_folder(command, [value for _, value in kept])):
        return text
    return f"cd {shlex.quote(command.cwd)} && {text}"


def _depends_on_folder(command: Command, values: list[str]) -> bool:
    """Return whether a command may name a relative path, or has read a file of options in its folder.

    Which words are paths is not known here: a word counts that looks like one, or is the name of a file there.
    """
    cwd = str(command.cwd)
    if any(os.path.dirname(path) == cwd for path in command.config):
        return True
    words = (word for text in (*command.words[1:], *values) for word in re.split(r"[=\s]", text))
    return any(
        word
        and not os.path.isabs(word)
        and "://" not in word
        and (not {*word}.isdisjoint(_IN_PATHS) or os.path.exists(os.path.join(cwd, word)))
        for word in words
    )


def unset_variables(manifest: Manifest) -> list[str]:
    """Return the variables whose values the manifest does not keep, and that this process has not."""
    command = manifest.invocation.command
    variables = command.variables if command else {}
    return [name for name, value in variables.items() if value is None and not os.environ.get(name)]


def _folder() -> str | None:
    try:
        return os.fsencode(os.getcwd()).decode(errors="backslashreplace")  # as the manifest has it
    except FileNotFoundError:
        return None


def _word(name: str) -> str:
    """Return a list's name as a word of the command. The links of groups go by the option that asks for them."""
    if name in {"-", "--all-groups"} or name.startswith("--group="):
        return name
    return f"./{name}" if name.startswith("-") else name


def _equivalent_of(found: Found) -> str | None:
    """Return the command that continues an output, as far as its manifest knows the options."""
    from harvester.links.feed import GIVEN  # noqa: PLC0415 - what a run from a command needs none of

    manifest = found.content
    if GIVEN in manifest.invocation.lists:
        return None
    lists = [_word(name) for name in manifest.invocation.lists]
    words = ["harvester", "run", *(lists or ["LINKS"]), "--out", escape_braces(found.out)]
    defaults, period = QueryOptions(), period_options(manifest.query)
    # unit_reference is pinned in the dataset: a command without it continues with the pinned one.
    named: dict[str, Any] = {**period} or {name: manifest.query.get(name) for name in ("unit", "units")}
    for name, value in {"facet": manifest.query.get("facet"), **named, "size": manifest.query.get("size")}.items():
        default = "referrers" if name == "facet" else getattr(defaults, name)
        if value is not None and value != default:
            words += [f"--{name}", str(value)]
    if account := manifest.budget.account_option:
        words += ["--account", account]
    if manifest.work_dir:
        words += ["--work-dir", escape_braces(manifest.work_dir)]
    return shlex.join(words)
