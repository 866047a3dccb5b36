"""Which links of a list are asked for again, and in which order (`--refresh`). Pure.

A dataset keeps one key for a link, whatever window it asks for, and the ledger keeps with it the end of the window of
the last answer: `asked_at`. Each run asks for the window up to its own beginning. So a refreshed answer is another call
in the sense of its record_id, has a row of its own, and the age of an answer is the age of its window's end.

A run has one pass over the list, and one moment from which ages count: its own beginning. A link without an answer is
asked for as soon as it is read. A link that is due is put aside, and those put aside follow when the list has been read
to its end, the oldest answer first. What the list does not name is never asked for. As a run answers a link with its
own beginning as `asked_at`, it asks for each link once, and no link twice before all were asked for once.
"""

from dataclasses import dataclass
from typing import Protocol

from harvester.clock import seconds_since_1970
from harvester.rows.call import GIVEN_UP_RUNS, CallState, Known

IDLE_AGES = 3
"""With --prefer active, an idle link is due when its answer is so many times as old as another's."""
IDLE_TURN = 5
"""With --prefer active, so many calls to a turn: the last of them is for an idle link, so that none waits forever."""


@dataclass(frozen=True, slots=True)
class RequestedRefresh:
    """What --refresh and --prefer ask for. seconds: the age at which an answer is due."""

    seconds: float
    prefer_active: bool = False


@dataclass(frozen=True, slots=True)
class Refresh:
    """The rules of one run. seconds: the age at which an answer is due. now: the run's beginning, since 1970.

    prefer_active: links that are clicked come before idle ones. cumulative: the window is all of the past.
    """

    seconds: float
    now: int
    prefer_active: bool = False
    cumulative: bool = True
    retry_failed: bool = False
    retry_refused: bool = False

    def is_idle(self, known: Known) -> bool:
        """True for a link that others are preferred to: its last row has no clicks or, of all the past, no new ones."""
        if not self.prefer_active or known.state is not CallState.ROW or known.clicks is None:
            return False
        return not known.clicks or (self.cumulative and known.clicks == known.clicks_before)

    def is_due(self, known: Known) -> bool:
        """True for a link that has had an answer, or was given up, and is to be asked for in this run."""
        age = self.now - asked_at_of(known)
        if known.state is CallState.ROW:
            return age >= self.seconds * (IDLE_AGES if self.is_idle(known) else 1)
        if known.state is CallState.REFUSED:
            return self.retry_refused and age >= self.seconds
        return self.retry_failed or known.failed_runs < GIVEN_UP_RUNS or age >= self.seconds


def was_answered(known: Known) -> bool:
    """True for a link that had an answer, or was given up: one that is refreshed, and not asked for the first time."""
    return known.asked_at is not None or known.state is not CallState.FAILED


def asked_at_of(known: Known) -> int:
    """Return the end of the window of the last answer; 0 for one of a dataset that was never refreshed."""
    return known.asked_at or 0


def has_row(known: Known) -> bool:
    """True for a link with a published row, even if its last call failed."""
    return known.state is CallState.ROW or (known.state is CallState.FAILED and known.clicks is not None)


class RefreshSettings(Protocol):
    """What a run's settings say of refreshing: requested is None without --refresh."""

    @property
    def refresh(self) -> RequestedRefresh | None:
        """The request."""

    @property
    def retry_failed(self) -> bool:
        """Also calls that failed too often are made again."""

    @property
    def retry_refused(self) -> bool:
        """Refused calls are made again."""


def refresh_of(settings: RefreshSettings, unit_reference: str, units: int) -> Refresh | None:
    """Return the rules of a run, None without --refresh. unit_reference, units: of the window that it asks for."""
    requested = settings.refresh
    if requested is None:
        return None
    return Refresh(
        requested.seconds,
        seconds_since_1970(unit_reference),
        requested.prefer_active,
        cumulative=units == -1,
        retry_failed=settings.retry_failed,
        retry_refused=settings.retry_refused,
    )
