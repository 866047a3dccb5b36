"""The history of a dataset's runs: what was sent and answered in each minute and by each run, and what runs waited for.

It is stored in the ledger and shown in the manifest. Minutes that lie back are added up to hours, then to longer times,
and of many runs the oldest are added up to one entry, so that the number of entries is bounded however long a dataset
is run. What a run did is counted by itself, because several runs may share a minute.
"""

import time
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
MOST_RUNS = 200
"""Runs that have an entry each. Those before them are one entry together."""
TIME, RUN = "time", "run"
"""Kinds of a StoredEntry."""


class Activity(NamedTuple):
    """What a run has done so far.

    attempts, throttled, retries: as AttemptCounts has them. answers: calls that were settled by an answer, with a row
    or refused. failed: calls that ended with neither. server_errors: attempts whose response was no answer.
    network_errors: those without a response. not_sent: those among the network errors that did not reach the server,
    and are no attempts.
    """

    attempts: int = 0
    answers: int = 0
    failed: int = 0
    throttled: int = 0
    server_errors: int = 0
    network_errors: int = 0
    not_sent: int = 0
    retries: int = 0


class StoredEntry(NamedTuple):
    """An entry as the ledger keeps it, in place of all of its kind from `start` to before `end`.

    They are seconds since 1970 of a time, and numbers of runs.
    """

    kind: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What all runs did from `start` (UTC) on, in `seconds` seconds: 60, or more where it lies back.

    Counts are those of Activity. waits: seconds in which nothing was sent, by the window of WaitReason. limits: those
    in force at the end, in attempts, by window; without those that are unlimited.
    """

    start: str
    seconds: int
    attempts: int = 0
    answers: int = 0
    failed: int = 0
    throttled: int = 0
    server_errors: int = 0
    network_errors: int = 0
    not_sent: int = 0
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
        return StoredEntry(TIME, start, start + self.seconds, orjson.dumps(self.to_json()).decode())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without counts that are 0."""
        always = {"start": self.start, "seconds": self.seconds}
        return always | {name: value for name in _COUNTED if (value := getattr(self, name))}


_COUNTED = tuple(name for name in HistoryEntry.__slots__ if name not in {"start", "seconds"})


@dataclass(frozen=True, slots=True)
class RunEntry:
    """What one run did; or, of many, the oldest together.

    number: the run's among the dataset's, or the last one's. runs: how many they are. started: UTC. until: the last
    moment that is known of it: its end, or the last commit of one that was killed. Counts are those of Activity.
    """

    number: int
    started: str
    until: str
    runs: int = 1
    attempts: int = 0
    answers: int = 0
    failed: int = 0
    throttled: int = 0
    server_errors: int = 0
    network_errors: int = 0
    not_sent: int = 0
    retries: int = 0

    @property
    def first(self) -> int:
        """The number of the first run that it counts."""
        return self.number - self.runs + 1

    @property
    def stored(self) -> StoredEntry:
        """The entry as the ledger keeps it."""
        return StoredEntry(RUN, self.first, self.number + 1, orjson.dumps(self.to_json()).decode())

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without counts that are 0, and without `runs` for one run."""
        always = {"number": self.number, "started": self.started, "until": self.until}
        return always | {name: value for name in _COUNTED_OF_RUN if (value := getattr(self, name)) != _LEFT_OUT[name]}


_COUNTED_OF_RUN = ("runs", *Activity._fields)
_LEFT_OUT = dict.fromkeys(Activity._fields, 0) | {"runs": 1}


def errors_in(entry: HistoryEntry | RunEntry) -> int:
    """Return how many attempts ended with an error: with a response that is no answer, or without a response."""
    return max(entry.server_errors + entry.network_errors - entry.not_sent, 0)


class Recorded(NamedTuple):
    """The history as a ledger or a manifest has it. unreadable: entries of another form."""

    times: tuple[HistoryEntry, ...] = ()
    runs: tuple[RunEntry, ...] = ()
    unreadable: int = 0


def recorded_in(rows: Iterable[tuple[object, ...]]) -> Recorded:
    """Return the history that rows of a ledger hold: kind, start, entry."""
    found = [(kind, _entry_in(str(kind), text)) for kind, _, text in rows]
    times = tuple(entry for _, entry in found if isinstance(entry, HistoryEntry))
    runs = tuple(entry for _, entry in found if isinstance(entry, RunEntry))
    return Recorded(times, runs, len(found) - len(times) - len(runs))


def begun_run(runs: Iterable[RunEntry], number: int) -> list[StoredEntry]:
    """Return what to store when a run begins: its entry, and those before it added up where they are too many.

    runs: earlier ones.
    """
    moment, before = iso_second(int(time.time())), whole_runs(runs)
    found = [RunEntry(number, moment, moment).stored]
    if (older := len(before) - (MOST_RUNS - 1)) > 1:
        found.insert(0, added_up_runs(before[:older]).stored)
    return found


def added_up_runs(entries: Sequence[RunEntry]) -> RunEntry:
    """Return one entry for the runs of several, by number."""
    counts = Activity(*(sum(getattr(entry, name) for entry in entries) for name in Activity._fields))
    started, until = min(entry.started for entry in entries), max(entry.until for entry in entries)
    number = entries[-1].number
    return RunEntry(number, started, until, number - entries[0].first + 1, *counts)


def whole_runs(entries: Iterable[RunEntry]) -> tuple[RunEntry, ...]:
    """Return entries by number that do not overlap: of several about a run the one of more runs, then the fuller."""
    by_number = {entry.number: entry for entry in sorted(entries, key=lambda e: (e.runs, e.attempts, e.until))}
    found = list[RunEntry]()
    for number in sorted(by_number, reverse=True):
        if not found or number < found[-1].first:
            found.append(by_number[number])
    return tuple(reversed(found))


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


def _entry_in(kind: str, text: Any) -> HistoryEntry | RunEntry | None:
    """Return the entry that a JSON text holds; None if it holds none, or one of a time that none of ours has."""
    with suppress(ValueError):
        if kind == RUN:
            run: RunEntry = from_json(RunEntry, orjson.loads(text))
            return run if is_run(run) else None
        entry: HistoryEntry = from_json(HistoryEntry, orjson.loads(text))
        if kind == TIME and entry.has_own_time:
            return entry
    return None


def is_run(entry: RunEntry) -> bool:
    """Return whether an entry's numbers and moments are those of a run."""
    with suppress(ValueError):
        moments = (seconds_since_1970(entry.started), seconds_since_1970(entry.until))
        return entry.runs > 0 and entry.first > 0 and tuple(map(iso_second, moments)) == (entry.started, entry.until)
    return False


def added_up(entries: Sequence[HistoryEntry], start: int, seconds: int) -> HistoryEntry:
    """Return one entry for several, the latest last. start: in seconds since 1970."""
    waits: dict[str, float] = {}
    for entry in entries:
        for window, waited in entry.waits.items():
            waits[window] = round(waits.get(window, 0.0) + waited, 3)
    if (waited := sum(waits.values())) > seconds:  # the clock was set back, and the time lived twice
        waits = {window: round(each * seconds / waited, 3) for window, each in waits.items()}
    counts = Activity(*(sum(getattr(entry, name) for entry in entries) for name in Activity._fields))
    return HistoryEntry(iso_second(start), seconds, *counts, waits, entries[-1].limits)


class History:
    """The entries of a dataset by time, which never overlap. For one thread.

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
