"""The attempts in the budget file: an endpoint's in sliding windows, an account's by calendar month.

Sliding windows, exact at any rate: attempts are numbered, and a record holds the number of its first attempt and a
time. A record serves all attempts of one tenth of a second and carries the end of that tenth, so its attempts count a
little longer than they must, never shorter, and an hour has at most 36,000 records at any rate. The attempts in a
window are then the total minus the number that begins its oldest record, and the window has room again when the record
that holds the limit-th attempt from the end has left it: one indexed row each, however much was sent.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from harvester.budget.database import APART_SECONDS, DAY_SECONDS, BudgetDatabase
from harvester.budget.limits import COUNTED_SECONDS, HOUR, Account, MonthExhausted, PlanReport, RetryAfter
from harvester.budget.states import EndpointThrottle, ScopeState
from harvester.clock import from_epoch, month_of, next_month

_RECORDS_PER_SECOND = 10


class EndpointUsage:
    """A token's attempts at one endpoint, and its state, as last loaded.

    Every method runs inside the caller's transaction, after `load`. token: may be set; the next `load` follows it.
    total: attempts ever. last_at: the last record's time. Times: seconds since boot.
    """

    def __init__(self, database: BudgetDatabase, server: str, token: str, endpoint: str) -> None:
        self.state = ScopeState(EndpointThrottle())
        self.total = 0
        self.last_at = 0.0
        self.token = token
        self._server = server
        self._endpoint = endpoint
        self._database = database
        self._id = 0
        self._text = ""

    def load(self) -> bool:
        """Read what any process wrote last; True if the state has changed."""
        key = (self._server, self.token, self._endpoint)
        select = "SELECT id, total, last_at, state FROM scopes WHERE server = ? AND token = ? AND endpoint = ?"
        found = self._database.execute(select, *key).fetchone()
        if found is None:
            self._database.execute("INSERT INTO scopes (server, token, endpoint) VALUES (?, ?, ?)", *key)
            found = self._database.execute(select, *key).fetchone()
        self._id, self.total, self.last_at, text = found
        if text == self._text:
            return False
        self._text, self.state = text, ScopeState.parse(text)
        return True

    def save(self) -> None:
        """Write the state."""
        self._text = self.state.to_json()
        self._database.execute("UPDATE scopes SET state = ? WHERE id = ?", self._text, self._id)

    def add(self, attempts: int, now: float) -> None:
        """Count attempts made now."""
        at = math.ceil(now * _RECORDS_PER_SECOND) / _RECORDS_PER_SECOND
        if self.last_at < at:
            self._database.execute("INSERT INTO attempts VALUES (?, ?, ?)", self._id, self.total, at)
            horizon = now - COUNTED_SECONDS[HOUR]
            self._database.execute("DELETE FROM attempts WHERE scope = ? AND at <= ?", self._id, horizon)
            self.last_at = at
        self.total += attempts
        self._save_total()

    def remove(self, attempts: int, at: float) -> None:
        """Undo the count of attempts in the record of this time. A record that has left the hour stays forgotten."""
        # The attempts of a record count alike, so it does not matter which of its numbers was whose, nor who has
        # counted since: the later records move down by what is taken out here, and no gap is left.
        select = "SELECT first FROM attempts WHERE scope = ? AND at = ?"
        if (found := self._database.execute(select, self._id, at).fetchone()) is None:
            return
        select = "SELECT first FROM attempts WHERE scope = ? AND first > ? ORDER BY first"
        later = [first for (first,) in self._database.execute(select, self._id, found[0]).fetchall()]
        held = (later[0] if later else self.total) - found[0]
        attempts = min(attempts, held)
        if attempts == held:
            self._database.execute("DELETE FROM attempts WHERE scope = ? AND first = ?", self._id, found[0])
        for first in later:
            update = "UPDATE attempts SET first = ? WHERE scope = ? AND first = ?"
            self._database.execute(update, first - attempts, self._id, first)
        select = "SELECT coalesce(max(at), 0) FROM attempts WHERE scope = ?"
        self.last_at = self._database.execute(select, self._id).fetchone()[0]
        self.total -= attempts
        self._save_total()

    def move(self, at: float, now: float) -> float:
        """Move the count of one attempt from the record of this time to now, and return the time of its new record."""
        self.remove(1, at)
        self.add(1, now)
        return self.last_at

    def _save_total(self) -> None:
        update = "UPDATE scopes SET total = ?, last_at = ? WHERE id = ?"
        self._database.execute(update, self.total, self.last_at, self._id)

    # --- windows ---------------------------------------------------------------------------------------------------

    def used(self, window: str, now: float) -> int:
        """Return the number of attempts in a sliding window."""
        select = "SELECT first FROM attempts WHERE scope = ? AND at > ? ORDER BY at, first LIMIT 1"
        found = self._database.execute(select, self._id, now - COUNTED_SECONDS[window]).fetchone()
        return self.total - found[0] if found else 0

    def wait(self, window: str, limit: int, now: float) -> float:
        """Return the seconds until a window has room; 0.0 if it has."""
        if self.used(window, now) < limit:
            return 0.0
        # There is room once the attempt that is now the limit-th from the end has left.
        select = "SELECT at FROM attempts WHERE scope = ? AND first <= ? ORDER BY first DESC LIMIT 1"
        at = self._database.execute(select, self._id, self.total - limit).fetchone()[0]
        return float(at + COUNTED_SECONDS[window] - now)

    def records(self, now: float) -> list[tuple[float, int]]:
        """Return the records of the hour's window, oldest first: seconds until each leaves it, and its attempts."""
        horizon = now - COUNTED_SECONDS[HOUR]
        select = "SELECT first, at FROM attempts WHERE scope = ? AND at > ? ORDER BY first"
        rows = self._database.execute(select, self._id, horizon).fetchall()
        ends = [first for first, _ in rows[1:]] + [self.total]
        return [(at - horizon, end - first) for (first, at), end in zip(rows, ends, strict=False)]


LATEST_SECONDS = 60.0
"""The longest time between counting an attempt and sending it."""
_DATE_POLL_SECONDS = 0.2
"""The wait while another attempt asks for the server's date, which may begin a new month at any moment."""
_EDGE_SECONDS = 5.0
"""An attempt this close to a month's edge counts in both months."""
_TRUSTED_SECONDS = 86400.0
"""How long Bitly's reports of the month and the plan are trusted; a larger plan may be bought meanwhile."""
_TRUSTED_DATE_SECONDS = DAY_SECONDS
"""A Date header further than this from both of our clocks is taken for the server's mistake."""


class MonthlyQuota:
    """A `Month` in the budget's file: an account's attempts by calendar month, over all endpoints.

    utc: seconds since 1970 by the budget's calendar. Methods that take utc or months run inside the caller's
    transaction.
    """

    def __init__(self, database: BudgetDatabase, account: Account) -> None:
        self.account = account
        self.reported_spent = False
        self._database = database

    # --- attempts --------------------------------------------------------------------------------------------------

    def spend(self, months: Sequence[str], attempts: int) -> None:
        """Add attempts to these months; a negative number is subtracted."""
        insert = (
            "INSERT INTO months (server, account, month, spent) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (server, account, month) DO UPDATE SET spent = spent + excluded.spent"
        )
        for month in months:
            for name in self._names():
                self._database.execute(insert, self.account.server, name, month, attempts)

    def move(self, months: Sequence[str], now: float, limit: int) -> Sequence[str]:
        """Move the count of one attempt from these months to those of now (seconds since boot), and return them.

        Empty, and nothing moved, if one that has begun since is spent. limit: attempts a month, 0 for none.
        """
        present = months_at(self._database, now)
        if limit and any(self.spent(month) >= limit for month in present if month not in months):
            return []
        self.spend(months, -1)
        self.spend(present, 1)
        return present

    def spent(self, month: str) -> int:
        """Return the account's attempts in a calendar month, or the token's if those are more."""
        return max(spent for spent, _ in self._rows(month))

    def spent_near(self, utc: float) -> int:
        """Return the account's attempts in the month of this moment; near a month's edge, in the fuller of the two."""
        return max(self.spent(month) for month in months_near(utc))

    def ends_at(self, now: float) -> datetime | None:
        """Return the end of the month at `now` seconds since boot; None while our clocks disagree on the month."""
        return None if self._database.clocks_parted(now) else next_month(from_epoch(self._database.utc(now)))

    def why_blocked(self, limit: int, now: float) -> RetryAfter | MonthExhausted | None:
        """Return None if the month has room for an attempt at `now` seconds since boot, otherwise why not.

        limit: attempts a month, 0 for none.
        """
        refusal = self._refuse(limit, self._database.utc(now))
        if isinstance(refusal, MonthExhausted) and self._database.date_awaited(now):
            return RetryAfter(_DATE_POLL_SECONDS, "month", limit)
        return refusal

    def _refuse(self, limit: int, utc: float) -> RetryAfter | MonthExhausted | None:
        if self.reported_lately(utc):
            return MonthExhausted(next_month(from_epoch(utc)), reported=True)
        if not limit:
            return None
        if ahead := self._database.server_ahead:
            months = months_near(utc + ahead)
            if all(self.spent(month) >= limit for month in months):
                return MonthExhausted(next_month(from_epoch(utc + ahead)))
        full = [month for month in months_near(utc) if self.spent(month) >= limit]
        if not full:
            return None
        over = next_month(datetime.fromisoformat(f"{full[-1]}-01T00:00:00+00:00"))
        # Close to the edge it is only moments until attempts count in the next month alone.
        left = over.timestamp() + 2 * _EDGE_SECONDS - utc
        return RetryAfter(left, "month", limit) if left <= 4 * _EDGE_SECONDS else MonthExhausted(over)

    def _names(self) -> set[str]:
        # Counted under both, so that naming the account later does not make it seem to have spent less.
        return {self.account.name, self.account.token}

    def _rows(self, month: str) -> list[tuple[int, float | None]]:
        select = "SELECT spent, reported FROM months WHERE server = ? AND account = ? AND month = ?"
        rows = [self._database.execute(select, self.account.server, name, month).fetchone() for name in self._names()]
        return [row or (0, None) for row in rows]

    # --- Bitly's report --------------------------------------------------------------------------------------------

    def reported_lately(self, utc: float) -> bool:
        """Return whether Bitly reported within a day that the month is spent; sets reported_spent."""
        reported = max((at for _, at in self._rows(month_of(utc)) if at is not None), default=None)
        self.reported_spent = reported is not None
        return reported is not None and utc - reported < _TRUSTED_SECONDS

    def renew_report(self, utc: float) -> None:
        """Keep the month marked as spent for another day.

        Only the attempt being sent now checks whether that is still true.
        """
        self._set_reported(month_of(utc), utc)

    def ask_again(self, utc: float) -> None:
        """Trust the report no longer, because the attempt that was to check it was not sent."""
        if self.reported_lately(utc):
            self._set_reported(month_of(utc), utc - _TRUSTED_SECONDS)

    def mark_spent(self) -> None:
        """As in `Month`."""
        with self._database.transaction() as now:
            utc = self._database.utc(now)
            # A refusal just behind a month's edge was perhaps meant for the month before.
            self._set_reported(month_of(utc - LATEST_SECONDS), utc)
            self.reported_spent = True

    def note_plan(self, month: int, entries: Sequence[Any]) -> None:
        """As in `Month`."""
        with self._database.transaction() as now:
            self._database.keep(self._plan_name, [month, entries, self._database.utc(now)])

    def plan_report(self) -> PlanReport | None:
        """As in `Month`."""
        with self._database.transaction() as now:
            month, entries, at = self._database.kept(self._plan_name) or (0, [], -_TRUSTED_SECONDS)
            age = abs(self._database.utc(now) - at)  # the calendar may have been corrected since
            return PlanReport(int(month), list(entries), age) if age < _TRUSTED_SECONDS else None

    @property
    def _plan_name(self) -> str:
        return f"plan of {self.account.token} at {self.account.server}"

    def next_begins(self) -> datetime:
        """As in `Month`."""
        utc = self._database.utc(self._database.clock.boot_seconds()) + self._database.server_ahead
        return next_month(from_epoch(utc - LATEST_SECONDS))

    def clear_spent(self) -> None:
        """As in `Month`."""
        with self._database.transaction() as now:
            self._set_reported(month_of(self._database.utc(now)), None)
            self.reported_spent = False

    def _set_reported(self, month: str, utc: float | None) -> None:
        insert = (
            "INSERT INTO months (server, account, month, spent, reported) VALUES (?, ?, ?, 0, ?) "
            "ON CONFLICT (server, account, month) DO UPDATE SET reported = excluded.reported"
        )
        for name in self._names():
            self._database.execute(insert, self.account.server, name, month, utc)

    def see_date(self, date: datetime, *, sent_at: float | None = None, asked: bool = False) -> None:
        """As in `Month`."""
        database = self._database
        now, wall = database.clock.boot_seconds(), database.clock.wall()
        earliest, utc = date.timestamp(), database.utc(now)
        latest = earliest + 1.0 + (0.0 if sent_at is None else now - sent_at)
        nearest = min(max(utc, earliest), latest)
        parted = database.clocks_parted(now)
        unknown = all(abs(nearest - seconds) > _TRUSTED_DATE_SECONDS for seconds in (utc, wall))
        if unknown and not (asked and parted):
            if abs(nearest - utc - database.server_ahead) > _EDGE_SECONDS / 2:
                with database.transaction():
                    database.set_server_ahead(nearest - utc)
        elif parted or database.server_ahead or abs(nearest - utc) > _EDGE_SECONDS / 2:
            with database.transaction():
                counted, ahead = months_at(database, now) if asked else months_near(nearest), wall - nearest
                database.set_anchor(now, nearest, wall_ahead=ahead if abs(ahead) > APART_SECONDS else 0.0)
                # The request for a date that neither clock knew was perhaps not counted in its month.
                self.spend([month for month in months_near(nearest) if month not in counted], 1)

    def see_no_date(self) -> None:
        """As in `Month`."""
        with self._database.transaction() as now:
            self._database.note_no_date(now)


def months_at(database: BudgetDatabase, now: float) -> list[str]:
    """Return the months in which an attempt counts at `now` seconds since boot, within the caller's transaction.

    While something contradicts the calendar an attempt counts in the months of both, so that none is forgotten if the
    calendar proves wrong.
    """
    moments = database.contradictions(now)
    if not moments:
        return months_near(database.utc(now))
    return sorted({month for utc in (database.utc(now), *moments) for month in months_near(utc)})


def months_near(utc: float) -> list[str]:
    """Return the months in which an attempt at this moment counts: two near an edge, otherwise one."""
    # Bitly's clock decides in which month an attempt counts, and ours may differ from it by some seconds: a calendar
    # that is corrected by Date headers, which have whole seconds, is not exact. Close to the edge an attempt therefore
    # needs room in both months and counts in both. That costs a few attempts a month and never sends one too many.
    # Blocks of five seconds keep the answer in a cache; the edge is in the block, or in one beside it.
    return _months_of(int(utc // _EDGE_SECONDS))


@lru_cache(4)
def _months_of(block: int) -> list[str]:
    return sorted({month_of((block - 1) * _EDGE_SECONDS), month_of((block + 2) * _EDGE_SECONDS)})
