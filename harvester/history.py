"""The history of a dataset's runs: what was sent and answered in each minute, and what kept the runs from sending.

It is stored in the ledger and shown in the manifest. Entries that lie back are added up to hours, then to longer times,
so that their number is bounded however long a dataset is run.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from harvester.clock import iso_second, seconds_since_1970
from harvester.jsonlines import from_json

MINUTE_SECONDS, HOUR_SECONDS, DAY_SECONDS = 60, 3600, 86400
_MONTH_SECONDS = 30 * DAY_SECONDS
_LEVELS = (
    (DAY_SECONDS, HOUR_SECONDS),
    (14 * DAY_SECONDS, DAY_SECONDS),
    (92 * DAY_SECONDS, _MONTH_SECONDS),
)
"""Entries this many seconds away from the present are added up to entries of so many seconds. Each length is a multiple
of the one before, and an entry begins at a multiple of its length since 1970: so they nest.
"""
_LENGTHS = (MINUTE_SECONDS, *(length for _, length in _LEVELS))


class Activity(NamedTuple):
    """What a run has done so far, by the names of HistoryEntry."""

    attempts: int = 0
    answers: int = 0
    failed: int = 0
    throttled: int = 0
    server_errors: int = 0
    network_errors: int = 0
    retries: int = 0


class StoredEntry(NamedTuple):
    """An entry as the ledger keeps it, in place of all whose start is in its time. start, end: seconds since 1970."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What was done from `start` (UTC) on, in `seconds` seconds: 60, or more where it lies back.

    invocation: the last run that did something then. attempts, throttled, retries: as AttemptCounts has them. answers:
    calls that were settled by an answer, with a row or refused. failed: calls that ended with neither. server_errors:
    attempts whose response was no answer. network_errors: those without a response, also if they did not reach the
    server and are no attempts. waits: seconds in which nothing was sent, by the window of WaitReason. limits: those in
    force at the end, in attempts, by window; without those that are unlimited.
    """

    invocation: int
    start: str
    seconds: int
    attempts: int = 0
    answers: int = 0
    failed: int = 0
    throttled: int = 0
    server_errors: int = 0
    network_errors: int = 0
    retries: int = 0
    waits: dict[str, float] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def has_own_time(self) -> bool:
        """True for a time of one of the lengths in which entries are added up, at its place."""
        with suppress(ValueError):
            start = seconds_since_1970(self.start)
            return self.seconds in _LENGTHS and start % self.seconds == 0 and self.start == iso_second(start)
        return False

    @property
    def stored(self) -> StoredEntry:
        """The entry as the ledger keeps it."""
        start = seconds_since_1970(self.start)
        return StoredEntry(start, start + self.seconds, orjson.dumps(self.to_json()).decode())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without counts that are 0."""
        always = {"invocation": self.invocation, "start": self.start, "seconds": self.seconds}
        return always | {name: value for name in _COUNTED if (value := getattr(self, name))}


_COUNTED = tuple(name for name in HistoryEntry.__slots__ if name not in {"invocation", "start", "seconds"})


def history_to_json(entries: Iterable[HistoryEntry]) -> list[dict[str, Any]]:
    """Return entries, by time, as JSON objects. Limits are left out where they are those of the entry before."""
    found, limits = [], dict[str, int]()
    for entry in entries:
        content = {name: value for name, value in entry.to_json().items() if name != "limits"}
        if entry.limits != limits:
            content["limits"] = limits = entry.limits
        found.append(content)
    return found


def with_limits(history: Any) -> None:
    """Put back the limits that `history_to_json` has left out. history: any JSON value."""
    limits: Any = {}
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict):
            limits = entry.setdefault("limits", limits)


def entry_in(text: str | bytes) -> HistoryEntry | None:
    """Return the entry that a JSON text holds; None if it holds none, or one of a time that none of ours has."""
    with suppress(ValueError):
        entry: HistoryEntry = from_json(HistoryEntry, orjson.loads(text))
        if entry.has_own_time:
            return entry
    return None


def added_up(entries: Sequence[HistoryEntry], start: int, seconds: int) -> HistoryEntry:
    """Return one entry for several, the latest last. start: in seconds since 1970."""
    waits: dict[str, float] = {}
    for entry in entries:
        for window, waited in entry.waits.items():
            waits[window] = round(waits.get(window, 0.0) + waited, 3)
    if (waited := sum(waits.values())) > seconds:  # the clock was set back, and the time lived twice
        waits = {window: round(each * seconds / waited, 3) for window, each in waits.items()}
    counts = Activity(*(sum(getattr(entry, name) for entry in entries) for name in Activity._fields))
    invocation = max(entry.invocation for entry in entries)
    return HistoryEntry(invocation, iso_second(start), seconds, *counts, waits, entries[-1].limits)


class History:
    """The entries of a dataset's runs by time, which never overlap. For one thread.

    entries: where some overlap, the longer ones count, and of equally long ones those with more attempts.

    There are 1,500 minutes, 340 hours and 80 days at most, and then 12 entries a year. A clock that is set moves what
    follows to the time that it shows: it is added to what stands there. Times far ahead of the present are added up as
    those far behind it, so that a clock that was wrong for a while leaves few entries.
    """

    def __init__(self, entries: Iterable[HistoryEntry] = ()) -> None:
        found = {seconds_since_1970(entry.start): entry for entry in sorted(entries, key=_weight)}
        self._entries: dict[int, HistoryEntry] = {}
        self._changed: set[int] = set()
        self._hour = -1
        end = 0
        for start in sorted(found):
            if start >= end:
                self._entries[start] = found[start]
                end = start + found[start].seconds

    @property
    def entries(self) -> tuple[HistoryEntry, ...]:
        """All entries, by time."""
        return tuple(self._entries[start] for start in sorted(self._entries))

    def add(self, now: float, done: HistoryEntry) -> None:
        """Add what was just done to the entry of the present minute. now: in seconds since 1970."""
        minute = int(now) // MINUTE_SECONDS * MINUTE_SECONDS
        start = self._covering(minute)
        before = [self._entries[start]] if start in self._entries else []
        length = before[0].seconds if before else MINUTE_SECONDS
        self._entries[start] = added_up([*before, done], start, length)
        self._changed.add(start)
        if int(now) // HOUR_SECONDS != self._hour:
            self._hour = int(now) // HOUR_SECONDS
            self._condense(int(now))

    def take_changed(self) -> list[StoredEntry]:
        """Return the entries that have changed since the last call, for the ledger."""
        changed, self._changed = sorted(self._changed), set()
        return [self._entries[start].stored for start in changed]

    def _covering(self, minute: int) -> int:
        """Return the start of the entry that a minute belongs to; its own if there is none."""
        for length in _LENGTHS:
            entry = self._entries.get(start := minute - minute % length)
            if entry is not None and start + entry.seconds > minute:
                return start
        return minute

    def _condense(self, now: int) -> None:
        """Add up the entries that are far enough from the present."""
        for distance, length in _LEVELS:
            due = defaultdict[int, list[int]](list)
            for start, entry in self._entries.items():
                longer = start - start % length
                away = longer + length <= now - distance or longer >= now + distance
                if away and entry.seconds < length:
                    due[longer].append(start)
            for longer, starts in due.items():
                several = [self._entries.pop(start) for start in sorted(starts)]
                self._entries[longer] = added_up(several, longer, length)
                self._changed.difference_update(starts)
                self._changed.add(longer)


def _weight(entry: HistoryEntry) -> tuple[float, ...]:
    return entry.seconds, entry.attempts, entry.answers, sum(entry.waits.values())
