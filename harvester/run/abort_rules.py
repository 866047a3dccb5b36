"""When a run's verdicts make going on a waste of calls, and why it then stops."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from harvester.bitly.verdicts import (
    Answer,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    Refused,
    TokenRefused,
    Unknown,
    Verdict,
    reason,
)
from harvester.clock import next_month
from harvester.links.batch import Link
from harvester.progress import ListCounts
from harvester.shutdown import FailureLimit, Stop, StopReason, month_spent, token_refused

MANY_REFUSED = 50
"""If this many calls are refused before the first row, for whatever reasons, the fault is not the links'. A verdict for
every call that was found to be a link's own is one of them, and is Unknown."""
MANY_INVALID = 20
"""More invalid lines than this, if they are more than half of the list, are no success."""
NO_ROUTE = 20
"""If this many first calls all get a plain-text 404, the base URL is wrong."""


def _by_wall_clock() -> datetime:
    return next_month(datetime.now(UTC))


def too_many_invalid(invalid: int, lines: int, limit: FailureLimit | None) -> bool:
    """Return whether a list that was read to its end is mostly no list of bitlinks.

    lines: those that are neither blank nor comments. limit: `--max-invalid`; None for MANY_INVALID and half of the
    lines.
    """
    if limit is not None:
        return limit.exceeded(invalid, lines, final=True)
    return invalid > MANY_INVALID and 2 * invalid > lines


class WindowGuard(Protocol):
    """Makes sure that Bitly's window is the period that a run asks for, before anything is published."""

    async def confirm(self, bitlinks: Sequence[str]) -> None:
        """Called before the first call, with the first bitlinks of the list. Raises RunStopping on a mismatch."""

    def accepts(self, answer: Answer, link: Link) -> bool:
        """Return whether an answer covers the period, as far as it tells; else the run is asked to stop."""


class AbortRules:
    """Decides from the verdicts of one run whether further calls would be wasted. Holds counts, does no I/O.

    Some verdicts end a run alone (a spent month, a refused token: `for_every_call`). The others do so by their number:
    calls refused before the first row, more failures than --max-failures. That a server answers nothing good any more,
    or refuses links that it has answered, is the client's to notice.

    first_rows: True if the dataset has no row yet; one with rows has shown that its query and token work. next_begins:
    as in budget.Month.
    """

    def __init__(
        self,
        failure_limit: FailureLimit | None,
        *,
        first_rows: bool,
        next_begins: Callable[[], datetime] = _by_wall_clock,
    ) -> None:
        self._next_begins = next_begins
        self._limit = failure_limit
        self._first_rows = first_rows
        self._refused = self._no_route = 0
        self.calls = 0
        self.failed = 0
        self._rows = 0

    def see(self, verdict: Verdict) -> Stop | None:
        """Count a call's last verdict; return the reason to stop if the run should end."""
        if isinstance(verdict, Answer):
            self.calls += 1
            self._rows += 1
            return None if self._limit is None else self._too_many()
        if stop := for_every_call(verdict, self._next_begins):
            return stop
        self.calls += 1
        self.failed += 1
        return self._all_refused(verdict) or self._too_many()

    def _all_refused(self, verdict: Verdict) -> Stop | None:
        if self._rows or not (isinstance(verdict, Refused) or _was_for_every_call(verdict)):
            return None
        self._refused += 1
        self._no_route += isinstance(verdict, Refused) and verdict.no_route
        if self._no_route == self.calls >= NO_ROUTE:
            return Stop(
                StopReason.NO_ROUTE,
                f"the first {self.calls} calls were all answered 404 in plain text: the server does not know the "
                "path. Check --base-url (Bitly's ends in /v4)",
            )
        if self._refused >= MANY_REFUSED and self._first_rows and self._limit is None:
            return Stop(
                StopReason.ALL_REFUSED,
                f"{self._refused} calls were refused before any had a row (lately: {reason(verdict)}). Check that the "
                "links belong to the token's account; to continue anyway, use --max-failures 100%. None is marked as "
                "refused",
            )
        return None

    def at_end(self) -> Stop | None:
        """Check the share of failures at the end of the list, even if the list was shorter than SHARE_FLOOR."""
        if self._limit is None or not self._limit.exceeded(self.failed, max(self.calls, 1), final=True):
            return None
        return self._stop_for_failures()

    def _too_many(self) -> Stop | None:
        if self._limit is None or not self._limit.exceeded(self.failed, self.calls):
            return None
        return self._stop_for_failures()

    def _stop_for_failures(self) -> Stop:
        return Stop(
            StopReason.TOO_MANY_FAILURES,
            f"{self.failed} of {self.calls} calls were refused or failed, more than --max-failures allows. "
            "_failures.ndjson lists them with the reasons",
        )


def nobody_answered(refused: int) -> str:
    """Return the warning at the end of a list whose new links were all refused, if no link was ever answered."""
    return (
        f"no link was ever answered, only refused ({refused:,}). The cause may be the links, the token or the "
        "server, so they count as failed and the next runs try them again. _failures.ndjson has the answers; check "
        "that the links belong to the token's account"
    )


def stop_for_invalid(listed: ListCounts, limit: FailureLimit | None) -> Stop | None:
    """Return the stop for a list that was read to its end and is mostly no list of bitlinks. limit: --max-invalid."""
    lines = listed.links + listed.duplicates + listed.invalid
    if not listed.links or not too_many_invalid(listed.invalid, lines, limit):
        return None
    return Stop(
        StopReason.TOO_MANY_INVALID,
        f"{listed.invalid:,} of {lines:,} lines are not bitlinks, more than --max-invalid allows; _failures.ndjson "
        "lists them with the reasons. Repeating the command changes nothing: fix the list (is it the right file, "
        "and the right column?), or accept its invalid lines with --max-invalid 100%",
    )


def for_every_call(verdict: Verdict, next_begins: Callable[[], datetime] = _by_wall_clock) -> Stop | None:
    """Return the stop for a verdict that every further call would get too; None for any other."""
    match verdict:
        case MonthSpent():
            return month_spent(reason(verdict), next_begins())
        case TokenRefused():
            return token_refused(reason(verdict))
        case PlanRefused():
            return Stop(
                StopReason.PLAN_REFUSED,
                f"the account's plan lacks this facet ({reason(verdict)}). Choose another --facet, or upgrade the plan",
            )
        case ParameterRefused():
            option = "--" + verdict.field.replace("_", "-")
            return Stop(
                StopReason.PARAMETER_REFUSED,
                f"Bitly refused {option} ({reason(verdict)}): every call would fail. Correct it, with a new --out",
            )
        case _:
            return None


def _was_for_every_call(verdict: Verdict) -> bool:
    """Return whether a refused token, or a spent month, was found to be the word on one link alone."""
    return isinstance(verdict, Unknown) and verdict.status in {400, 401, 403, 429} and not verdict.body
