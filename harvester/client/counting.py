"""The budget as a run asks it: a busy file is waited for or done without, one that cannot be counted ends the run."""

from collections.abc import Callable
from typing import TypeVar

from harvester.budget.budget import Budget
from harvester.budget.limits import MonthExhausted, RetryAfter
from harvester.clock import utc_iso
from harvester.errors import BudgetBusy, OutputError, RunStopping
from harvester.shutdown import ShutdownSignal, Stop, StopReason

T = TypeVar("T")

BUSY_SECONDS = 0.5
"""After so long a busy file is asked again."""


class Counting:
    """Asks a budget for a run, and ends the run where the budget says so."""

    def __init__(self, budget: Budget, shutdown: ShutdownSignal) -> None:
        self._budget = budget
        self._shutdown = shutdown

    def take(self) -> RetryAfter | MonthExhausted | None:
        """Count an attempt and give None, or say why it may not go now; a busy file is a Wait."""
        try:
            return self.must(self._budget.try_acquire)
        except BudgetBusy:
            return RetryAfter(BUSY_SECONDS, "budget")

    def end(self, over: MonthExhausted) -> None:
        """End the run until the next month."""
        name, limit = self._budget.account.name, self._budget.limits.per_month
        spent = f"the {limit:,} attempts of the month (--per-month) are spent by account {name}; allow more, or wait"
        if over.told:
            spent = f"Bitly has said that the month of account {name} is spent; it is asked again once a day"
        self._shutdown.request(Stop(StopReason.MONTH_SPENT, spent, utc_iso(over.until)))

    def ask(self, ask: Callable[[], T]) -> T | None:
        """Ask the budget; None where its file is busy, and the answer has to do without.

        A budget that cannot be counted ends the run, because nothing may be sent uncounted.
        """
        try:
            return self.must(ask)
        except BudgetBusy:
            return None

    def must(self, ask: Callable[[], T]) -> T:
        """Ask the budget; where its file is busy, the answer has to be asked for again.

        Raises:
            BudgetBusy: another process holds the file. Stopping: it cannot be counted, which ends the run.
        """
        try:
            return ask()
        except BudgetBusy:
            raise
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
            raise RunStopping from error
