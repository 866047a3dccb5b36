"""`harvester status`: how a run stands, from its manifest alone: no lock, no private file, no token."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, NamedTuple

from harvester import manifest
from harvester.advice import Next, State, command_for, next_step
from harvester.clocks import next_month
from harvester.errors import UsageError
from harvester.forecast import Start, forecast
from harvester.manifest import Found
from harvester.quota import Limits

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
class Glance:
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
    left: int | None
    rate: Rate | None
    ends: datetime | None
    waiting_until: datetime | None
    parts: tuple[int, int, int]
    next: Next

    @property
    def age_seconds(self) -> float:
        """How old the news is; negative where the run's clock is ahead of this machine's."""
        return (self.now - self.updated).total_seconds()


def look(out: str, now: datetime | None = None) -> Glance:
    """Read how a run stands. out: its folder, its growing file, or the manifest itself.

    Raises:
        UsageError: there is no manifest, it cannot be read, or it is none that is understood here.
    """
    found = manifest.read(out)
    try:
        return _glance(found, now or datetime.now(UTC))
    except (ValueError, OverflowError) as error:  # a moment or a number that is none
        raise UsageError(f"{found.path}: not a manifest of harvester's ({error})") from error


def changes(out: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Glance]:
    """Look again every so many seconds, until the run has ended. Raises as `look`."""
    while True:
        seen = look(out)
        yield seen
        if seen.state in ENDED:
            return
        sleep(seconds)


# --- what it says -----------------------------------------------------------------------------------------------


def _glance(found: Found, now: datetime) -> Glance:
    content = found.content
    updated, calls = _moment(content["updated"]), content["dataset"]
    ended, left = _ended(content, updated), content.get("left")
    state = _state(content, ended, (now - updated).total_seconds())
    until = (content["budget"]["binds"] or {}).get("until")
    parts = content["parts"]
    return Glance(
        out=found.out,
        path=found.path,
        manifest=content,
        now=now,
        updated=updated,
        ended=ended,
        state=state,
        calls={name: calls[name] for name in ("calls", "rows", "refused", "failed", "pending")},
        left=left,
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
            return State.UNCLEAR
        return State.SILENT if age_seconds > SILENT_SECONDS else State.RUNNING
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
        month_left=limits.per_month if begins_anew and limits.per_month else month["left"],
    )
    return forecast(ceil(left * each), limits, start).ends


def _next(out: str, content: Mapping[str, Any], state: State) -> Next:
    lists = content.get("invocation", {}).get("lists", [])
    budget, stopped = content["budget"], content["stopped"] or {}
    account = budget["account"] if budget["account"] != budget["token"] else None
    until = stopped.get("until")
    return next_step(
        state,
        command_for(out, lists, content["query"], account, content.get("work_dir")),
        reason=stopped.get("reason"),
        until=_moment(until) if until else None,
        asked_again=content["dataset"]["failed"] > content.get("left_failed", 0),
        input_piped="-" in lists,
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)
