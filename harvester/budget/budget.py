"""What a budget answers: may the next attempt be sent, how full the windows are, what Bitly said of its limits.

The protocols say what the client and the run rely on; `budget.machine` keeps them in a file of this machine. An attempt
is counted before it is sent, so a kill at any moment can only leave too much counted. Nothing here sleeps or knows
asyncio.

Every method may raise OutputError; all but `try_acquire` also BudgetBusy. Where a response is reported to the budget
the caller may drop either, because the next `try_acquire` meets the same file before anything is sent. Properties are
as of the last attempt or read of the file. Times called sent_at are seconds since boot.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from harvester.budget.limits import Account, Counted, Limits, MonthExhausted, PlanReport, RetryAfter
from harvester.progress import WindowState


class Month(Protocol):
    """An account's calendar month. reported_spent: Bitly last reported it as spent, even if attempts are sent again."""

    reported_spent: bool

    def mark_spent(self) -> None:
        """Record that Bitly reports the month as spent: no attempt is sent for a day, or until the month ends."""

    def clear_spent(self) -> None:
        """Forget that Bitly reported the month as spent, because an attempt has been answered since."""

    def see_date(self, date: datetime, *, sent_at: float | None = None, asked: bool = False) -> None:
        """Correct the calendar by a response's Date header, which has whole seconds and took some time to arrive.

        sent_at: when the request was sent; the date is of a moment since then. None: just now. asked: the request was
        sent because our clocks contradict each other, so the date may be one that neither of them knows.
        """

    def next_begins(self) -> datetime:
        """Return when a month that Bitly has just reported as spent is over, by calendar and Bitly's last date."""

    def see_no_date(self) -> None:
        """Record that the response to such a request had no date."""

    def note_plan(self, month: int, entries: Sequence[Any]) -> None:
        """Record what Bitly reports for the account's plan: its calls a month, 0 if there are none, and all limits.

        entries: values of JSON.
        """

    def plan_report(self) -> PlanReport | None:
        """Return what `note_plan` recorded within a day; None if that is longer ago."""


class Budget(Protocol):
    """Decides whether a token's next attempt at one endpoint may be sent, by its windows and its account's month."""

    @property
    def month(self) -> Month:
        """The account's month."""

    @property
    def account(self) -> Account:
        """The account and token that attempts are counted for now."""

    @property
    def limits(self) -> Limits:
        """The limits in force: requested, reported by Bitly, or learned."""

    @property
    def own_limits(self) -> Limits:
        """The limits without what throttled responses have taught: requested, or reported by Bitly."""

    @property
    def reported_per_hour(self) -> int | None:
        """The hourly limit that Bitly last reported; None if it has reported none."""

    @property
    def paused(self) -> bool:
        """True from a throttled response until a probe has passed."""

    @property
    def wants_known_good(self) -> bool:
        """True while paused if the next probe should be a known-good link: those before it were throttled at once."""

    def use_token(self, fingerprint: str) -> None:
        """Count for another token of the same account from the next attempt on. Raises nothing."""

    def close(self) -> None:
        """Undo the count of attempts that were counted in advance and will not be sent."""

    # --- attempts --------------------------------------------------------------------------------------------------

    def try_acquire(self) -> RetryAfter | MonthExhausted | None:
        """Count an attempt and return None if it may be sent now; otherwise count nothing and return why not.

        Raises:
            OutputError: nothing can be counted, so that nothing may be sent. A busy budget is a RetryAfter.
        """

    def try_ask_date(self) -> bool:
        """Count a helper request for the server's date, and return True, if a spent month may be over.

        For when `try_acquire` has returned MonthExhausted. It may be over if the wall clock and the calendar contradict
        each other; the request then goes although the month is spent. Only one process gets True.
        """

    @property
    def counted(self) -> Counted:
        """Where an attempt was counted last, for the two methods below."""

    def give_back(self, attempt: Counted) -> None:
        """Undo the count of an attempt of which not one byte was sent."""

    def sent_late(self, attempt: Counted) -> Counted | None:
        """Move the count of an attempt to now, in the windows and the month, and return where it is counted now.

        None: it must not be sent, because others may have taken its place, or the month that has begun since is spent.
        """

    def throttled(self, hint: float | datetime | None, *, sent_at: float, bitlink: str = "") -> None:
        """Record a throttled response to an attempt sent at sent_at, which pauses the endpoint for all processes.

        bitlink: whose attempt it was, for `unlearn`.
        """

    def unlearn(self, bitlink: str) -> None:
        """Restore the limits learned before the pause that this bitlink began: it alone is throttled."""

    def answered(self, *, sent_at: float) -> None:
        """Record a response that was not throttled; if it was the probe's, the endpoint's pause ends."""

    # --- Bitly's report --------------------------------------------------------------------------------------------

    def ask_due(self, *, begin: bool = False) -> bool:
        """Return whether to ask Bitly for its limits now, and record that it is asked: only one process gets True.

        begin: True at the start of a run, to learn what was used since the last one.
        """

    def not_answered(self) -> None:
        """Record that the request for the limits did not reach Bitly: it may be repeated before long."""

    def record_reported(self, limit: int, count: int | None) -> int:
        """Record Bitly's hourly limit and count, and return how many attempts of other clients they reveal.

        Those are counted in our windows, as if they had been made now. count: None if it makes no sense.
        """

    # --- state -----------------------------------------------------------------------------------------------------

    def room(self) -> float:
        """Return the number of attempts that may be sent now; infinite without limits."""

    def windows(self) -> list[WindowState]:
        """Return the state of minute, hour and month, in this order."""

    def hour_releases(self) -> list[tuple[float, int]]:
        """Return pairs, in order: seconds from now (whole minutes), and attempts that leave the hour's window then."""

    def opens_in(self) -> float:
        """Return the seconds until the endpoint's pause ends; 0.0 if there is none."""

    def at(self, seconds: float) -> datetime:
        """Return the moment in `seconds` from now, by the budget's calendar."""
