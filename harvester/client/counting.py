"""The count of an attempt: made before it is sent, moved to when it goes, and undone if not one byte of it went."""

from collections.abc import Callable
from contextlib import suppress

import aiohttp

from harvester.budget.budget import Budget
from harvester.budget.limits import Counted, MonthExhausted, RetryAfter
from harvester.errors import OutputError, RunStopping
from harvester.progress import AttemptCounts
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.transport.connection import SlotConnection

_RECOUNT_AFTER_SECONDS = 0.2
"""If an attempt goes later than this after its count, too little of the budget's safety margin of 0.5 s is left for the
network."""
_MOST_MOVES = 5
"""How often an attempt's count is moved to now before it is given back. A move takes less than a millisecond, so only a
machine that stands still again and again needs more than one."""


class _TooLate(aiohttp.ClientError):
    """An attempt could not be sent in the window in which it is counted, nor be counted in another."""


class CountedAttempt:
    """An attempt that a budget has just counted, to be sent over a connection. clock: seconds since boot.

    counted: where it counts; None once that was given back. sent_at: when it was sent, in seconds since boot.
    """

    __slots__ = ("_budget", "_clock", "counted", "sent_at")

    def __init__(self, line: SlotConnection, budget: Budget, clock: Callable[[], float]) -> None:
        self.counted: Counted | None = budget.counted
        self.sent_at = clock()  # until it is known; not the time of the count, which is rounded up
        self._budget = budget
        self._clock = clock
        line.unsent, line.ready = False, self.count_when_sent

    def count_when_sent(self) -> None:
        """Note the time, right before the attempt is sent, and move the count to it if it goes late.

        Raises:
            aiohttp.ClientError: it must not be sent.
        """
        # The windows are the server's: whatever has held an attempt up, be it the connection, the disk under the
        # budget's commit, or a process that stood still. From here to the write nothing waits.
        self.sent_at = now = self._clock()
        if self.counted is not None and now - self.counted.at > _RECOUNT_AFTER_SECONDS:
            self._move_count(self.counted)

    def _move_count(self, counted: Counted) -> None:
        # The time of the count, not of its commit, is what the windows go by. Moving the count may be held up, too, so
        # the clock is read again after it.
        moves = 0
        while (late := self.sent_at - counted.at) > _RECOUNT_AFTER_SECONDS:
            try:
                moved = self._budget.sent_late(counted) if moves < _MOST_MOVES else None
            except OutputError as error:  # the next attempt meets it and reports it
                raise _TooLate("not sent: its count could not be moved to the time of sending") from error
            if moved is None:
                raise _TooLate(f"not sent, because it was due {late:.0f} s ago")
            self.counted = counted = moved
            self.sent_at, moves = self._clock(), moves + 1

    def give_back(self) -> bool:
        """Undo the count of an attempt of which not one byte was sent; return False if it was undone before."""
        if self.counted is None:
            return False
        counted, self.counted = self.counted, None
        with suppress(OutputError):  # then it stays counted
            self._budget.give_back(counted)
        return True


class AttemptCounter:
    """Counts attempts in their budget and in the dataset's record, and ends the run if that cannot be done.

    clock, record_attempts: as in ClientContext.
    """

    def __init__(
        self,
        shutdown: ShutdownSignal,
        clock: Callable[[], float],
        record_attempts: Callable[[AttemptCounts], None],
    ) -> None:
        self._shutdown = shutdown
        self._clock = clock
        self._record_attempts = record_attempts

    def acquire(self, line: SlotConnection, budget: Budget) -> CountedAttempt | RetryAfter | MonthExhausted:
        """Count an attempt and return it, its connection prepared; or return why it may not go now.

        Raises:
            RunStopping: it cannot be counted.
        """
        try:
            refusal = budget.try_acquire()
        except OutputError as error:
            raise self._nothing_uncounted(error) from error
        if refusal is not None:
            return refusal
        return CountedAttempt(line, budget, self._clock)

    def may_ask_date(self, helpers: Budget) -> bool:
        """Return whether a request for the server's date was counted and may go. Raises RunStopping."""
        try:
            return helpers.try_ask_date()
        except OutputError as error:
            raise self._nothing_uncounted(error) from error

    def begin(self, line: SlotConnection, budget: Budget) -> CountedAttempt:
        """Prepare a connection for the attempt that a budget has just counted."""
        return CountedAttempt(line, budget, self._clock)

    def record(self, counters: AttemptCounts) -> None:
        """Record the attempt that is about to be sent. Raises RunStopping."""
        try:
            self._record_attempts(counters)
        except OutputError as error:
            raise self._nothing_uncounted(error) from error

    def record_fewer(self, counters: AttemptCounts) -> None:
        """Record that an attempt was not sent after all."""
        with suppress(OutputError):  # then one too many is recorded until the next attempt
            self._record_attempts(counters)

    def _nothing_uncounted(self, error: OutputError) -> RunStopping:
        """End the run, because an attempt cannot be counted."""
        self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
        return RunStopping()
