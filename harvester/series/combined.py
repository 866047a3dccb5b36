"""What the observer of a command is told of its runs: their progress as one, and what they all say only once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from itertools import zip_longest

from harvester.events import Event, Field, RunObserver
from harvester.progress import AttemptCounts, InvalidLine, RefreshCounts, RunProgress, WindowState

_ONCE = frozenset({Event.LIST_READING, Event.LIST_COUNTED, Event.BUDGET_DESCRIBED, Event.MONTH_SHORT})
"""Every run finds the same: they read one list, and have one month."""
_ADDED = (
    "started",
    "rows",
    "refused",
    "failed",
    "truncated",
    "clipped",
    "idle",
    "exports",
    "listing",
    "known",
    "given_up",
    "exhausted",
    "pending",
)


class CombinedObserver:
    """Passes the events of several runs on to one observer. datasets: how many runs there will be."""

    def __init__(self, observer: RunObserver, datasets: int) -> None:
        self._observer = observer
        self._datasets = datasets
        self._said: set[object] = set()
        self._runs: list[OneOfSeveral] = []

    def of_next(self) -> "OneOfSeveral":
        """Return the observer of the next run."""
        one = OneOfSeveral(self, self._observer, first=not self._runs)
        self._runs.append(one)
        return one

    def is_new(self, said: object) -> bool:
        """Return whether something was not said before, and remember it."""
        new = said not in self._said
        self._said.add(said)
        return new

    def status(self) -> RunProgress:
        """Return the progress of all runs as one."""
        return combined([one.status for one in self._runs], self._datasets - len(self._runs))

    def tell_progress(self) -> None:
        """Pass the progress on."""
        self._observer.progress(self.status())


class OneOfSeveral:
    """The RunObserver of one run. status: its latest progress. first: of all runs; it alone reports bad lines."""

    def __init__(self, combined: CombinedObserver, observer: RunObserver, *, first: bool) -> None:
        self.status = RunProgress()
        self._combined = combined
        self._observer = observer
        self._first = first

    def invalid(self, line: InvalidLine) -> None:
        """Pass a bad line on, once for the list."""
        if self._first:
            self._observer.invalid(line)

    def failure(self, line: bytes) -> None:
        """Pass a failure on."""
        self._observer.failure(line)

    def warn(self, text: str) -> None:
        """Pass a warning on, once."""
        if self._combined.is_new(text):
            self._observer.warn(text)

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        """Pass a note on, once; of what is the same for all runs the first."""
        if self._combined.is_new(event if event in _ONCE else text):
            self._observer.note(text, event, **fields)

    def progress(self, status: RunProgress) -> None:
        """Keep the progress, and pass that of all runs on."""
        self.status = status
        self._combined.tell_progress()


def combined(runs: Sequence[RunProgress], to_come: int = 0) -> RunProgress:
    """Return the progress of several runs over one list as one: calls are added up, the list is counted once.

    to_come: runs that have not begun; each is taken to need a call for every link.
    """
    first = runs[0] if runs else RunProgress()
    working = [run for run in runs if not run.read_to_end or run.pending]
    needed = [run.finished + run.outstanding if run.outstanding is not None else None for run in runs]
    known = [number for number in needed if number is not None]
    limits = [run.max_calls for run in runs if run.max_calls is not None]
    found = RunProgress(
        listed=first.listed,
        column=first.column,
        read_to_end=bool(runs) and all(run.read_to_end for run in runs) and not to_come,
        waiting=working[0].waiting if working and all(run.waiting for run in working) else None,
        trouble=working[0].trouble if working else None,
        attempts=_attempts(run.attempts for run in runs),
        not_sent=sum(run.not_sent for run in runs),
        outputs=len(runs) + to_come,
        to_make=sum(known) + to_come * first.listed.links if len(known) == len(needed) else None,
        max_calls=limits[0] if limits else None,
        windows=_windows(working or runs[-1:]),
        per_second=[sum(counts) for counts in _aligned(working)],
        ends=_latest([run.ends for run in working]) if not to_come else None,
        spent=min((run.spent for run in working if run.spent), default=None),
        refresh=None if to_come else _ages([run.ages for run in runs]),
        refused_by=sum((run.refused_by for run in runs), Counter[int | None]()),
        invalid_before=max((run.invalid_before for run in runs), default=0),
        spent_before=max((run.spent_before for run in runs), default=""),
    )
    for name in _ADDED:
        setattr(found, name, sum(getattr(run, name) for run in runs))
    return found


def _ages(found: Sequence[RefreshCounts | None]) -> RefreshCounts | None:
    """Return the answers of all runs by their age, None unless each run knows its own."""
    known = [each for each in found if each is not None and each.due is not None]
    if not known or len(known) < len(found):
        return None
    never, fresh, due = (sum(getattr(each, name) or 0 for each in known) for name in ("never", "fresh", "due"))
    oldest = min((each.oldest for each in known if each.oldest), default=None)
    return RefreshCounts(known[0].seconds, never, fresh, due, oldest)


def _attempts(counts: Iterable[AttemptCounts]) -> AttemptCounts:
    each = list(counts)
    return AttemptCounts(*(sum(getattr(one, field.name) for one in each) for field in fields(AttemptCounts)))


def _windows(runs: Sequence[RunProgress]) -> Sequence[WindowState]:
    """Return the windows of the endpoint that has used most of its own; the month is that of all."""
    return max((run.windows for run in runs if run.windows), key=lambda windows: windows[0].used, default=())


def _aligned(runs: Sequence[RunProgress]) -> list[tuple[float, ...]]:
    """Return the calls of each second, the latest last, of runs that may have begun at different times."""
    backwards = zip_longest(*(reversed(run.per_second) for run in runs), fillvalue=0.0)
    return list(backwards)[::-1]


def _latest(moments: Sequence[datetime | None]) -> datetime | None:
    known = [moment for moment in moments if moment is not None]
    return max(known) if known and len(known) == len(moments) else None
