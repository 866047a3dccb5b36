"""`harvester status`: how a run stands, from its manifest alone: no lock, no private file, no token."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Any, NamedTuple

from harvester.budget.forecast import Start, forecast
from harvester.budget.limits import Limits
from harvester.clock import next_month
from harvester.config.options import QueryOptions
from harvester.config.parsing import escape_braces
from harvester.dataset import manifest
from harvester.dataset.manifest import Found
from harvester.errors import UsageError
from harvester.shutdown import StopReason


class State(StrEnum):
    """How a run stands, as far as its manifest tells."""

    RUNNING = "running"
    STALE = "stale"
    CLOCK_SKEW = "clock_skew"
    STOPPED = "stopped"
    FAILURES = "failures"
    EMPTY = "empty"
    COMPLETE = "complete"


class NextStep(NamedTuple):
    """What to do. command: None where no command helps. after: UTC, None for now."""

    summary: str
    command: str | None = None
    after: datetime | None = None


_CARRIES_ON = "the same command carries on, with the options it was begun with"
_BY_REASON: dict[StopReason, str] = {
    StopReason.SIGNAL: _CARRIES_ON,
    StopReason.MAX_TIME: _CARRIES_ON,
    StopReason.MAX_CALLS: _CARRIES_ON,
    StopReason.OUTAGE: f"when Bitly answers again, {_CARRIES_ON}",
    StopReason.THROTTLED: f"in an hour or so, {_CARRIES_ON}",
    StopReason.MONTH_SPENT: _CARRIES_ON,
    StopReason.TOKEN_REFUSED: f"set BITLY_TOKEN, --token-file or --token-command to a token that Bitly takes; then "
    f"{_CARRIES_ON}",
    StopReason.PLAN_REFUSED: "name another --facet with another --out; or when the plan has been changed, "
    f"{_CARRIES_ON}",
    StopReason.PARAMETER_REFUSED: "correct the option that Bitly refused, and name another --out with it",
    StopReason.CONNECTION_REFUSED: f"mend the way to Bitly (certificate, proxy); then {_CARRIES_ON}",
    StopReason.NO_ROUTE: f"correct --base-url; then {_CARRIES_ON}",
    StopReason.TOO_MANY_FAILURES: f"see in _failures.ndjson why; then {_CARRIES_ON}, or with a larger --max-failures",
    StopReason.ALL_REFUSED: "make sure that the links belong to the token's account; then the same command carries on, "
    "or with --max-failures 100% if they do",
    StopReason.UNREADABLE: f"see in _failures.ndjson what answered instead of Bitly; then {_CARRIES_ON}",
    StopReason.OUTPUT: f"mend what the message names; then {_CARRIES_ON}",
    StopReason.CONSUMER_GONE: _CARRIES_ON,
    StopReason.INPUT: f"mend the list; then {_CARRIES_ON}",
    StopReason.NOT_BEGUN: f"do what the message says; then {_CARRIES_ON}",
}
_NO_COMMAND = {StopReason.PARAMETER_REFUSED}


def command_for(
    out: str, lists: Sequence[str], query: Mapping[str, Any], account: str | None, work_dir: str | None
) -> str:
    """Write the command that carries an output on, as far as its manifest knows it.

    lists: as they were named; empty where that is not known. query: the options that belong to the output. account:
    as --account named it, or None. work_dir: so too.
    """
    words = ["harvester", "run", *(_as_argument(name) for name in lists or ("LINKS",)), "--out", escape_braces(out)]
    for option in fields(QueryOptions):
        value = query.get(option.name, option.default)
        # The moment is kept with the output; whoever does not name it gets the one that is kept.
        if option.name != "unit_reference" and value != option.default:
            words += [f"--{option.name.replace('_', '-')}", str(value)]
    words += ["--account", account] if account else []
    return shlex.join(words + (["--work-dir", escape_braces(work_dir)] if work_dir else []))


def _as_argument(name: str) -> str:
    return f"./{name}" if name.startswith("-") and name != "-" else name


def next_step(
    state: State, command: str, *, reason: str | None, until: datetime | None, asked_again: bool, input_piped: bool
) -> NextStep:
    """Say what to do next.

    command: carries the output on. reason, until: of a run that stopped. asked_again: some calls have failed, and the
    same command asks for them. input_piped: a list came on standard input.
    """
    piped = "; give it the same list on standard input" if input_piped else ""
    match state:
        case State.RUNNING:
            return NextStep("nothing: it goes on by itself")
        case State.CLOCK_SKEW:
            return NextStep("look again in a minute: a run that goes on writes its manifest once a minute")
        case State.STALE:
            return NextStep(f"{_CARRIES_ON}; if the run goes on after all, it says so and asks nothing{piped}", command)
        case State.STOPPED:
            return _after_stop(command, reason, until, piped)
        case State.FAILURES if asked_again:
            return NextStep(
                "the same command asks again for what failed (in three runs; then only with --retry-failed); "
                f"_failures.ndjson says why it did{piped}",
                command,
            )
        case State.FAILURES:
            says = f"_failures.ndjson says why they failed; --retry-failed asks for them once more{piped}"
            return NextStep(says, f"{command} --retry-failed")
        case State.EMPTY:
            return NextStep("give it a list that has bitlinks", command)
        case State.COMPLETE:
            return NextStep("nothing: every call is settled")


def _after_stop(command: str, reason: str | None, until: datetime | None, piped: str) -> NextStep:
    known = StopReason(reason) if reason in set(StopReason) else None
    if known in _NO_COMMAND:
        return NextStep(_BY_REASON[known])
    return NextStep((_CARRIES_ON if known is None else _BY_REASON[known]) + piped, command, until)


SILENT_SECONDS = 180.0
"""A run writes its manifest once a minute; three that did not come are no delay any more."""
AHEAD_SECONDS = 60.0
"""Two machines' clocks may differ by so much without a word about it."""
ENDED = frozenset({State.STOPPED, State.FAILURES, State.EMPTY, State.COMPLETE})
_ENOUGH_CALLS = 100
"""An output with so many calls shows how many attempts one takes."""
_MOST_HOURS = 50_000
"""Nobody plans for five years, and a look must not take long."""


class Rate(NamedTuple):
    """Verdicts, and the seconds in which they came: an hour at most, before the manifest was written."""

    calls: int
    seconds: float

    @property
    def per_hour(self) -> float:
        """The same as calls an hour."""
        return self.calls * 3600 / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as its manifest tells it. manifest: as it was read. now: when; all moments are UTC.

    calls: of the output by what became of them. left: calls of the list without a verdict, None if that is not known.
    ends: when they would have one, as things are. parts: how many files, rows and bytes.
    """

    out: str
    path: str
    manifest: Mapping[str, Any]
    now: datetime
    updated: datetime
    ended: datetime | None
    state: State
    calls: Mapping[str, int]
    remaining: int | None
    rate: Rate | None
    ends: datetime | None
    waiting_until: datetime | None
    parts: tuple[int, int, int]
    next: NextStep

    @property
    def age_seconds(self) -> float:
        """How old the news is; negative where the run's clock is ahead of this machine's."""
        return (self.now - self.updated).total_seconds()


def look(out: str, now: datetime | None = None) -> RunStatus:
    """Read how a run stands. out: its folder, its growing file, or the manifest itself.

    Raises:
        UsageError: there is no manifest, it cannot be read, or it is none that is understood here.
    """
    found = manifest.read(out)
    try:
        return _glance(found, now or datetime.now(UTC))
    except (ValueError, OverflowError) as error:  # a moment or a number that is none
        raise UsageError(f"{found.path}: not a manifest of harvester's ({error})") from error


def changes(out: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[RunStatus]:
    """Look again every so many seconds, until the run has ended. Raises as `look`."""
    while True:
        seen = look(out)
        yield seen
        if seen.state in ENDED:
            return
        sleep(seconds)


# --- what it says -----------------------------------------------------------------------------------------------


def _glance(found: Found, now: datetime) -> RunStatus:
    content = found.content
    updated, calls = _moment(content["updated"]), content["dataset"]
    ended, left = _ended(content, updated), content.get("remaining")
    state = _state(content, ended, (now - updated).total_seconds())
    until = (content["budget"]["limited_by"] or {}).get("until")
    parts = content["parts"]
    return RunStatus(
        out=found.out,
        path=found.path,
        manifest=content,
        now=now,
        updated=updated,
        ended=ended,
        state=state,
        calls={name: calls[name] for name in ("calls", "rows", "refused", "failed", "pending")},
        remaining=left,
        rate=_rate(content.get("invocation")),
        ends=_ends(left, content, updated, now) if left and state is State.RUNNING else None,
        waiting_until=_moment(until) if until else None,
        parts=(len(parts), sum(part["rows"] for part in parts), sum(part["bytes"] for part in parts)),
        next=_next(found.out, content, state),
    )


def _ended(content: Mapping[str, Any], updated: datetime) -> datetime | None:
    if "ended" in content:
        return _moment(content["ended"]) if content["ended"] else None
    # Older manifests do not say when, but whether.
    return updated if content["complete"] or content["stopped"] else None


def _state(content: Mapping[str, Any], ended: datetime | None, age_seconds: float) -> State:
    if ended is None:
        if age_seconds < -AHEAD_SECONDS:
            return State.CLOCK_SKEW
        return State.STALE if age_seconds > SILENT_SECONDS else State.RUNNING
    if content["complete"]:
        return State.COMPLETE
    if content["stopped"]:
        return State.STOPPED
    return State.EMPTY if content["list"] and not content["list"]["links"] else State.FAILURES


def _rate(invocation: Mapping[str, Any] | None) -> Rate | None:
    if invocation is None:
        return None
    rate = Rate(invocation["rate"]["calls"], invocation["rate"]["seconds"])
    return rate if rate.seconds > 0 else None


def _ends(left: int, content: Mapping[str, Any], updated: datetime, now: datetime) -> datetime | None:
    """Say when so many calls would end. What the hour holds is taken to have been made evenly."""
    windows = {window["window"]: window for window in content["budget"]["windows"]}
    if windows.keys() != {"minute", "hour", "month"}:
        return None
    limits = Limits(*(windows[name]["limit"] or 0 for name in ("minute", "hour", "month")))
    if limits.per_hour and left / limits.per_hour > _MOST_HOURS:
        return None
    calls = content["dataset"]
    made = calls["rows"] + calls["refused"] + calls["failed"]
    each = max(content["attempts"]["total"] / made, 1.0) if made >= _ENOUGH_CALLS else 1.0
    age = timedelta(seconds=max((now - updated).total_seconds(), 0.0))
    used = windows["hour"]["used"]
    minutes = [(60.0 * (i + 1) - age.total_seconds(), used * (i + 1) // 60 - used * i // 60) for i in range(60)]
    month = windows["month"]
    begins_anew = next_month(updated) <= now
    start = Start(
        now,
        minute_used=windows["minute"]["used"],
        leaving=[(seconds, count) for seconds, count in minutes if seconds > 0 and count],
        month_left=limits.per_month if begins_anew and limits.per_month else month["remaining"],
    )
    return forecast(ceil(left * each), limits, start).ends


def _next(out: str, content: Mapping[str, Any], state: State) -> NextStep:
    lists = content.get("invocation", {}).get("lists", [])
    budget, stopped = content["budget"], content["stopped"] or {}
    account = budget["account"] if budget["account"] != budget["token"] else None
    until = stopped.get("until")
    return next_step(
        state,
        command_for(out, lists, content["query"], account, content.get("work_dir")),
        reason=stopped.get("reason"),
        until=_moment(until) if until else None,
        asked_again=content["dataset"]["failed"] > content.get("given_up", 0),
        input_piped="-" in lists,
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)
