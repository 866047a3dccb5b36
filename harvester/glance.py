"""`harvester status`: how a run stands, from its manifest alone: no lock, no private file, no token."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, NamedTuple

import orjson

from harvester.advice import Next, State, command_for, next_step
from harvester.budget import Limits
from harvester.clocks import next_month
from harvester.errors import UsageError
from harvester.forecast import Start, forecast

MANIFEST = "_manifest.json"
NEWEST = 1
"""The newest form of the manifest that is understood here."""
SILENT_SECONDS = 180.0
"""A run writes its manifest once a minute; three that did not come are no delay any more."""
AHEAD_SECONDS = 60.0
"""Two machines' clocks may differ by so much without a word about it."""
ENDED = frozenset({State.STOPPED, State.FAILURES, State.EMPTY, State.COMPLETE})
_MOST_BYTES = 256 * 1024 * 1024
_BESIDE = ".harvester"
_GROWING_ENDINGS = (".ndjson", ".jsonl")
_ENOUGH_CALLS = 100
"""An output with so many calls shows how many attempts one takes."""


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
    path, out = _found(out)
    text = _read(path, out)
    try:
        manifest = orjson.loads(text)
        version = manifest["schema_version"]
        if version > NEWEST:
            raise UsageError(f"{path}: written by {manifest['tool']}, which is newer than this one: update harvester")
        return _glance(out, path, manifest, now or datetime.now(UTC))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UsageError(f"{path}: not a manifest of harvester's, or damaged") from error


def changes(out: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Glance]:
    """Look again every so many seconds, until the run has ended. Raises as `look`."""
    while True:
        seen = look(out)
        yield seen
        if seen.state in ENDED:
            return
        sleep(seconds)


# --- the manifest -------------------------------------------------------------------------------------------------


def _found(out: str) -> tuple[str, str]:
    """Give the manifest's path, and the output's."""
    if out == "-":
        raise UsageError("rows on standard output leave no manifest behind: name a folder or a file")
    out = os.path.abspath(out)
    if os.path.isdir(out):
        path = os.path.join(out, MANIFEST)
    elif os.path.basename(out) == MANIFEST:
        path = out
    else:
        path = os.path.join(out + _BESIDE, MANIFEST)
    folder = os.path.dirname(path)
    growing = folder.removesuffix(_BESIDE)
    return path, growing if folder != growing and growing.lower().endswith(_GROWING_ENDINGS) else folder


def _read(path: str, out: str) -> bytes:
    try:
        # Whatever else bears the name must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: not a file")
            return stream.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"nothing was begun at {out}: there is no {path}") from error
    except OSError as error:
        if error.errno == errno.ESTALE:  # replaced meanwhile, on a network file system
            return _read(path, out)
        raise UsageError(f"{path}: {error.strerror}") from error


def _glance(out: str, path: str, manifest: Mapping[str, Any], now: datetime) -> Glance:
    updated = _moment(manifest["updated"])
    calls = {name: int(manifest["dataset"][name]) for name in ("calls", "rows", "refused", "failed", "pending")}
    ended = _ended(manifest, updated)
    state = _state(manifest, ended, (now - updated).total_seconds())
    left = manifest.get("left")
    budget = manifest["budget"]
    binds = budget["binds"] or {}
    parts = manifest["parts"]
    ends = _ends(left, manifest, calls, updated, now) if left and state is State.RUNNING else None
    return Glance(
        out=out,
        path=path,
        manifest=manifest,
        now=now,
        updated=updated,
        ended=ended,
        state=state,
        calls=calls,
        left=None if left is None else int(left),
        rate=_rate(manifest.get("invocation")),
        ends=ends,
        waiting_until=_moment(binds["until"]) if binds.get("until") else None,
        parts=(len(parts), sum(int(part["rows"]) for part in parts), sum(int(part["bytes"]) for part in parts)),
        next=_next(out, manifest, state),
    )


def _ended(manifest: Mapping[str, Any], updated: datetime) -> datetime | None:
    if "ended" in manifest:
        return _moment(manifest["ended"]) if manifest["ended"] else None
    # Older manifests do not say when, but whether.
    return updated if manifest["complete"] or manifest["stopped"] else None


def _state(manifest: Mapping[str, Any], ended: datetime | None, age_seconds: float) -> State:
    if ended is None:
        if age_seconds < -AHEAD_SECONDS:
            return State.UNCLEAR
        return State.SILENT if age_seconds > SILENT_SECONDS else State.RUNNING
    if manifest["complete"]:
        return State.COMPLETE
    if manifest["stopped"]:
        return State.STOPPED
    return State.EMPTY if manifest["list"] and not manifest["list"]["links"] else State.FAILURES


def _rate(invocation: Mapping[str, Any] | None) -> Rate | None:
    if invocation is None:
        return None
    rate = Rate(int(invocation["rate"]["calls"]), float(invocation["rate"]["seconds"]))
    return rate if rate.seconds > 0 else None


def _ends(
    left: int, manifest: Mapping[str, Any], calls: Mapping[str, int], updated: datetime, now: datetime
) -> datetime | None:
    """Say when so many calls would end. What the hour holds is taken to have been made evenly."""
    windows = {window["window"]: window for window in manifest["budget"]["windows"]}
    if windows.keys() != {"minute", "hour", "month"}:
        return None
    limits = Limits(*(windows[name]["limit"] or 0 for name in ("minute", "hour", "month")))
    made = calls["rows"] + calls["refused"] + calls["failed"]
    each = max(manifest["attempts"]["total"] / made, 1.0) if made >= _ENOUGH_CALLS else 1.0
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


def _next(out: str, manifest: Mapping[str, Any], state: State) -> Next:
    lists = [str(name) for name in (manifest.get("invocation") or {}).get("lists", ())]
    budget, stopped = manifest["budget"], manifest["stopped"] or {}
    account = budget["account"] if budget["account"] != budget["token"] else None
    until = stopped.get("until")
    return next_step(
        state,
        command_for(out, lists, manifest["query"], account),
        reason=stopped.get("reason"),
        until=_moment(until) if until else None,
        asked_again=manifest["dataset"]["failed"] > manifest.get("left_failed", 0),
        input_piped="-" in lists,
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)
