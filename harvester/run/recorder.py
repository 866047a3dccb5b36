"""Records the history of a run: it gets the counts each second and at each commit, and adds what was done since."""

import operator
import time
from collections.abc import Callable
from typing import Protocol

from harvester.budget.limits import Limits
from harvester.clock import iso_second
from harvester.history import Activity, History, HistoryEntry, Recorded, RunEntry, StoredEntry, whole_runs
from harvester.progress import AttemptCounts, RunProgress

_NOTHING = Activity()


class Sent(Protocol):
    """What is counted of a sender of attempts.

    server_errors, network_errors: transient failures with a response, and without one. not_sent: attempts that did not
    reach the server, which `counters` has not.
    """

    counters: AttemptCounts
    server_errors: int
    network_errors: int
    not_sent: int


def activity(progress: RunProgress, sender: Sent, connecting: int) -> Activity:
    """Return what a run has done so far. connecting: attempts that may still turn out not to have been sent."""
    attempts = sender.counters
    return Activity(
        attempts=attempts.total - connecting,
        answers=progress.rows - progress.idle + progress.refused,
        failed=progress.failed,
        throttled=attempts.throttled,
        server_errors=sender.server_errors,
        network_errors=sender.network_errors,
        not_sent=min(sender.not_sent, sender.network_errors),  # one that was cancelled is no error
        retries=attempts.retried,
    )


class Recorder:
    """Adds to a dataset's history what one run does. For the event loop's thread.

    kept: what earlier runs have left. invocation: this run's number. wall: seconds since 1970. clock: seconds that no
    step of the wall clock moves.
    """

    def __init__(
        self,
        kept: Recorded,
        invocation: int,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = History(kept.times)
        self._before = tuple(run for run in whole_runs(kept.runs) if run.number < invocation)
        self._invocation, self._started = invocation, int(wall())
        self._wall, self._clock = wall, clock
        self._seen = self._recorded = _NOTHING
        self._seen_at = clock()
        self._limits: tuple[Limits | None, dict[str, int]] = (None, {})

    @property
    def entries(self) -> tuple[HistoryEntry, ...]:
        """The whole history, by time."""
        return self._history.entries

    @property
    def runs(self) -> tuple[RunEntry, ...]:
        """All runs, by number; the present one until now."""
        return (*self._before, self._run())

    def _run(self) -> RunEntry:
        until = max(int(self._wall()), self._started)  # the clock may have been set back
        return RunEntry(self._invocation, iso_second(self._started), iso_second(until), 1, *self._recorded)

    def see(self, done: Activity, waiting: str | None, limits: Limits) -> None:
        """Record what was done, and the time since the last call if nothing was sent in it.

        waiting: the name of what keeps the run from sending; None if nothing does.
        """
        now, idle = self._clock(), done.attempts == self._seen.attempts
        waits = {waiting: round(now - self._seen_at, 3)} if waiting and idle and now > self._seen_at else {}
        self._seen, self._seen_at = done, now
        self._add(done, waits, limits)

    def take_changed(self, done: Activity, limits: Limits) -> list[StoredEntry]:
        """Record what was done, and return the entries that have changed since the last call, for a commit."""
        self._add(done, {}, limits)
        return [*self._history.take_changed(), self._run().stored]

    def _add(self, done: Activity, waits: dict[str, float], limits: Limits) -> None:
        # A count may go back: a refusal that turns out to be the server's own, an attempt that did not reach it. The
        # history then waits until the count is there again, because what was recorded stays.
        recorded = Activity(*map(max, done, self._recorded))
        if recorded == self._recorded and not waits:
            return
        more = Activity(*map(operator.sub, recorded, self._recorded))
        self._recorded = recorded
        self._history.add(self._wall(), HistoryEntry("", 0, *more, waits, self._by_window(limits)))

    def _by_window(self, limits: Limits) -> dict[str, int]:
        if self._limits[0] != limits:
            windows = {"minute": limits.per_minute, "hour": limits.per_hour, "month": limits.per_month}
            self._limits = limits, {window: limit for window, limit in windows.items() if limit}
        return self._limits[1]
