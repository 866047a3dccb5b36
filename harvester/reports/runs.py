"""How runs went: their state, what they sent and got, their limits, and their minutes, from the manifests alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from harvester.dataset.manifest import Manifest, WindowUsage
from harvester.history import HistoryEntry, RunEntry, errors_in
from harvester.reports.charts import Point
from harvester.sums.sources import Source

SERIES = ("answers", "throttled", "errors", "other")
"""What attempts came to, in the order of the picture. other: an answer that ended no call, because it was truncated and
requested again for more, or because it was doubted.
"""
OUTAGE = "outage"
"""The name of a wait for a server that does not answer."""
MINUTES = {"minute": 1, "hour": 60}
"""The windows whose limits stand in the picture, and their minutes."""
_MOST_POINTS = 240
"""Moments of a picture; a longer history is averaged."""


class Costs(NamedTuple):
    """Attempts for metrics of all runs, and what they came to. wasted: those that settled no call."""

    attempts: int
    answers: int
    retried: int
    throttled: int
    helper: int

    @property
    def wasted(self) -> int:
        """Attempts that brought no row and no refusal."""
        return max(self.attempts - self.answers, 0)


class Month(NamedTuple):
    """The month of an account. limit: None without one. until: its end. spent: when the limit will be reached, or None
    where that is not before the end, or not known. All moments are UTC."""

    account: str
    used: int
    limit: int | None
    until: datetime | None
    spent: datetime | None


class RunSum(NamedTuple):
    """One run of an output, or of many the oldest together. first, number: of the first and of the last of them.

    ended: the last moment that is known of it.
    """

    output: str
    first: int
    number: int
    started: datetime
    ended: datetime
    attempts: int
    answers: int
    failed: int
    throttled: int
    retries: int
    errors: int


class Span(NamedTuple):
    """A time from a moment to another: UTC, `2026-11-22T00:00:00+00:00`."""

    start: str
    end: str


@dataclass(frozen=True, slots=True)
class History:
    """What runs recorded, by the minute and (what lies back) by longer times. seconds: of a point of the picture.

    outages: seconds of each point in which the server did not answer, by its moment, where there were any. ceilings:
    the limits in force, in attempts a minute, by window: where each begins and changes, and in the end.
    """

    points: tuple[Point, ...]
    seconds: int
    waits: dict[str, float]
    outages: dict[str, float]
    limits: dict[str, int]
    ceilings: tuple[Point, ...]

    @property
    def shaded(self) -> tuple[Span, ...]:
        """The times with an outage."""
        found = list[Span]()
        for moment in self.outages:
            end = (datetime.fromisoformat(moment) + timedelta(seconds=self.seconds)).isoformat()
            if found and found[-1].end == moment:
                moment = found.pop().start  # noqa: PLW2901
            found.append(Span(moment, end))
        return tuple(found)


def costs_of(sources: Iterable[Source]) -> Costs:
    """Return what all runs of outputs have sent, and what it came to."""
    total: Counter[str] = Counter()
    for source in sources:
        counts, attempts = source.manifest.dataset, source.manifest.attempts
        # No call was made for an idle row. An answer that a newer one has followed was one, too.
        total["answers"] += counts.rows + counts.refused + counts.refreshed - counts.idle
        for name in ("total", "retried", "throttled", "helper"):
            total[name] += getattr(attempts, name)
    return Costs(total["total"], total["answers"], total["retried"], total["throttled"], total["helper"])


def state_of(manifest: Manifest) -> str:
    """Return the state of an output's last run, in words."""
    if manifest.complete:
        return "complete"
    if manifest.stopped is not None:
        return f"stopped: {manifest.stopped.message}"
    if manifest.ended is not None:
        if manifest.dataset.pending:
            return "ended, with calls left"
        return "ended, some calls failed" if manifest.dataset.failed else "ended, the list was not read to its end"
    return "running, or interrupted"


def months_of(sources: Iterable[Source]) -> tuple[Month, ...]:
    """Return the month of each account, as the manifest that was written last has it."""
    newest: dict[str, Manifest] = {}
    for manifest in sorted((source.manifest for source in sources), key=lambda each: each.updated):
        newest[manifest.budget.account] = manifest
    found = []
    for account, manifest in newest.items():
        found += [_month(account, manifest, window) for window in manifest.budget.windows if window.window == "month"]
    return tuple(found)


def _month(account: str, manifest: Manifest, window: WindowUsage) -> Month:
    until = _moment(window.until)
    spent, pace = None, manifest.invocation.rate.per_hour
    enough = window.remaining is not None and manifest.remaining is not None and manifest.remaining <= window.remaining
    if manifest.ended is None and window.remaining is not None and pace and not enough:
        spent = _utc(manifest.updated) + timedelta(hours=window.remaining / pace)
    return Month(account, window.used, window.limit, until, spent if spent and until and spent < until else None)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else _utc(text)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# --- by the minute ------------------------------------------------------------------------------------------------


def history_of(sources: Sequence[Source]) -> History | None:
    """Return what runs recorded; None where none recorded anything. Outputs that ran side by side are added up."""
    entries = [entry for source in sources for entry in source.manifest.history]
    if not entries:
        return None
    entries.sort(key=lambda each: each.start)
    seconds = _step(entries)
    limits: dict[str, int] = {}
    waits: Counter[str] = Counter()
    for entry in entries:
        limits |= entry.limits
        waits.update(entry.waits)
    points = tuple(_points(sources, seconds))
    outages = _outages(entries, seconds)
    return History(points, seconds, dict(waits), outages, limits, tuple(_ceilings(entries, points[-1].moment)))


def _step(entries: Sequence[HistoryEntry]) -> int:
    """Return the seconds of a point: as many whole minutes as bound the number of points."""
    first = min(_utc(each.start) for each in entries)
    last = max(_utc(each.start) + timedelta(seconds=each.seconds) for each in entries)
    return 60 * max(-(-int((last - first).total_seconds()) // (60 * _MOST_POINTS)), 1)


def _points(sources: Sequence[Source], seconds: int) -> list[Point]:
    """Return attempts a minute by what they came to; moments between without an attempt are there with 0.

    An entry may be longer than a point, or lie across two: it is taken to be even in its time.
    """
    sums: defaultdict[tuple[int, str], float] = defaultdict(float)
    for source in sources:
        history = source.manifest.history
        for entry, outcomes in zip(history, _outcomes(history), strict=True):
            for place, part in _parts(entry, seconds):
                for name, number in zip(SERIES, outcomes, strict=True):
                    sums[place, name] += number * part
    places = [place for place, _ in sums]
    return [
        Point(_moment_of(place, seconds), sums[place, name] * 60 / seconds, name)
        for place in range(min(places), max(places) + 2)  # the last one ends the area
        for name in SERIES
    ]


def _outages(entries: Sequence[HistoryEntry], seconds: int) -> dict[str, float]:
    """Return the seconds of an outage by the moment of each point that has any; those of several outputs added up."""
    sums: defaultdict[int, float] = defaultdict(float)
    for entry in entries:
        if waited := entry.waits.get(OUTAGE):
            for place, part in _parts(entry, seconds):
                sums[place] += waited * part
    return {_moment_of(place, seconds): min(sums[place], seconds) for place in sorted(sums)}


def _moment_of(place: int, seconds: int) -> str:
    return datetime.fromtimestamp(place * seconds, UTC).isoformat()


def _ceilings(entries: Sequence[HistoryEntry], end: str) -> Iterator[Point]:
    """Yield each limit where it begins and where it changes, and as it is in the end."""
    current: dict[str, float] = {}
    for entry in entries:
        for window, minutes in MINUTES.items():
            limit = entry.limits.get(window)
            if limit is not None and current.get(window) != limit / minutes:
                current[window] = limit / minutes
                yield Point(_utc(entry.start).isoformat(), current[window], window)
    yield from (Point(end, limit, window) for window, limit in current.items())


def _parts(entry: HistoryEntry, seconds: int) -> Iterator[tuple[int, float]]:
    """Yield the points that an entry's time lies in, and the share of it that lies in each."""
    start = int(_utc(entry.start).timestamp())
    end = start + entry.seconds
    for place in range(start // seconds, (end - 1) // seconds + 1):
        within = min(end, (place + 1) * seconds) - max(start, place * seconds)
        yield place, within / (end - start)


def _outcomes(history: Sequence[HistoryEntry]) -> list[tuple[int, int, int, int]]:
    """Return what the attempts of each entry came to, in the order of SERIES.

    An attempt is counted when it is sent, and its outcome when that is known. So an entry may have a few outcomes more
    than attempts: these were sent in the entry before.
    """
    known = [(entry.answers, entry.throttled, errors_in(entry)) for entry in history]
    others = [entry.attempts - sum(each) for entry, each in zip(history, known, strict=True)]
    for place in range(len(others) - 1, 0, -1):
        if others[place] < 0:
            others[place - 1] += others[place]
    return [(*each, max(other, 0)) for each, other in zip(known, others, strict=True)]


def runs_of(sources: Iterable[Source]) -> tuple[RunSum, ...]:
    """Return the runs of all outputs, by their start."""
    found = [_run(source.name, run) for source in sources for run in source.manifest.runs]
    return tuple(sorted(found, key=lambda each: (each.started, each.output, each.number)))


def _run(output: str, run: RunEntry) -> RunSum:
    counts = (run.attempts, run.answers, run.failed, run.throttled, run.retries, errors_in(run))
    return RunSum(output, run.first, run.number, _utc(run.started), _utc(run.until), *counts)
