"""A token at an endpoint in the budget's file: its attempts, what its windows hold of them, and its state."""

import math
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from harvester.budget.database import LATE_SECONDS, SPANS, BudgetDatabase, State
from harvester.budget.limits import Account, MonthExhausted, RetryAfter
from harvester.budget.throttling import HOUR, AdaptiveLimit
from harvester.clock import from_epoch, month_of, next_month

_PER_SECOND = 10
"""Attempts of one tenth of a second share a record, which has the time of its end: a file stays small at any rate."""


class EndpointUsage:
    """A scope as it was last loaded; all but `open_for` runs within the caller's transaction, behind `load`.

    total: attempts ever. last_at: the time of the last record. Times: elapsed seconds.
    """

    def __init__(self, book: BudgetDatabase, server: str, token: str, endpoint: str) -> None:
        self.state = State(AdaptiveLimit())
        self.total = 0
        self.last_at = 0.0
        self.server = server
        self.endpoint = endpoint
        self._book = book
        self._text = ""
        self.open_for(token)

    def open_for(self, token: str) -> None:
        """Make it a token's scope, new or known; what was loaded stays until the next load."""
        key = (self.server, token, self.endpoint)
        with self._book.transaction():
            self._book.execute("INSERT OR IGNORE INTO scopes (server, token, endpoint) VALUES (?, ?, ?)", *key)
            select = "SELECT id FROM scopes WHERE server = ? AND token = ? AND endpoint = ?"
            self._id = int(self._book.execute(select, *key).fetchone()[0])

    def load(self) -> bool:
        """Read what any process has last written of this scope; True when its state is another."""
        select = "SELECT total, last_at, state FROM scopes WHERE id = ?"
        self.total, self.last_at, text = self._book.execute(select, self._id).fetchone()
        if text == self._text:
            return False
        self._text, self.state = text, State.read(text)
        return True

    def save(self) -> None:
        """Write the state."""
        self._text = self.state.text()
        self._book.execute("UPDATE scopes SET state = ? WHERE id = ?", self._text, self._id)

    def add(self, attempts: int, now: float) -> None:
        """Count attempts made now."""
        at = math.ceil(now * _PER_SECOND) / _PER_SECOND
        if self.last_at < at:
            self._book.execute("INSERT INTO attempts VALUES (?, ?, ?)", self._id, self.total, at)
            horizon = now - SPANS[HOUR] - LATE_SECONDS
            self._book.execute("DELETE FROM attempts WHERE scope = ? AND at <= ?", self._id, horizon)
            self.last_at = at
        self.total += attempts
        update = "UPDATE scopes SET total = ?, last_at = ? WHERE id = ?"
        self._book.execute(update, self.total, self.last_at, self._id)

    def take_back(self, attempts: int) -> None:
        """Undo the count of the last attempts."""
        self.total -= attempts
        self._book.execute("UPDATE scopes SET total = ? WHERE id = ?", self.total, self._id)

    # --- windows ---------------------------------------------------------------------------------------------------

    def used(self, window: str, now: float) -> int:
        """Count the attempts in a sliding window."""
        horizon = now - SPANS[window] - LATE_SECONDS
        select = "SELECT first FROM attempts WHERE scope = ? AND at > ? ORDER BY at, first LIMIT 1"
        found = self._book.execute(select, self._id, horizon).fetchone()
        return self.total - found[0] if found else 0

    def wait(self, window: str, limit: int, now: float) -> float:
        """Give the seconds until a window has room: 0.0 when it has."""
        if self.used(window, now) < limit:
            return 0.0
        # There is room when the attempt that is now the limit-th before the next has left.
        select = "SELECT at FROM attempts WHERE scope = ? AND first <= ? ORDER BY first DESC LIMIT 1"
        at = self._book.execute(select, self._id, self.total - limit).fetchone()[0]
        return float(at + SPANS[window] + LATE_SECONDS - now)

    def records(self, now: float) -> list[tuple[float, int]]:
        """Give the records of the hour's window, in order: seconds until each leaves, and how many attempts it has."""
        horizon = now - SPANS[HOUR] - LATE_SECONDS
        select = "SELECT first, at FROM attempts WHERE scope = ? AND at > ? ORDER BY first"
        rows = self._book.execute(select, self._id, horizon).fetchall()
        ends = [first for first, _ in rows[1:]] + [self.total] * bool(rows)
        return [(at - horizon, end - first) for (first, at), end in zip(rows, ends, strict=True)]


LATEST_SECONDS = 60.0
"""An attempt is not made later than so after it was counted."""
_EDGE_SECONDS = 5.0
"""An attempt so near to a month's edge counts on both sides of it: Bitly's clock need not be ours."""
_BELIEVED_SECONDS = 86400.0
"""Bitly's word that the month is spent is believed for so long: a plan may be bought."""
_BELIEVED_DATE_SECONDS = 86400.0


class MonthlyQuota:
    """An account's months; several may share a Book.

    told_before: True while Bitly's last word is that the month is spent, and an attempt goes all the same. utc: seconds
    since 1970, by the budget's calendar. What takes utc or months runs within the caller's transaction.
    """

    def __init__(self, book: BudgetDatabase, account: Account) -> None:
        self.account = account
        self.told_before = False
        self._book = book

    # --- what is spent ---------------------------------------------------------------------------------------------

    def spend(self, months: Sequence[str], attempts: int) -> None:
        """Count attempts in months; fewer than none are taken back."""
        insert = (
            "INSERT INTO months (server, account, month, spent) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (server, account, month) DO UPDATE SET spent = spent + excluded.spent"
        )
        for month in months:
            for name in self._names():
                self._book.execute(insert, self.account.server, name, month, attempts)

    def spent(self, month: str) -> int:
        """Count the account's attempts in a calendar month, or the token's if that has more."""
        return max(spent for spent, _ in self._rows(month))

    def spent_near(self, utc: float) -> int:
        """Count the account's attempts in the month that an attempt would count in, the fuller one near an edge."""
        return max(self.spent(month) for month in months_near(utc))

    def refuse(self, limit: int, utc: float) -> RetryAfter | MonthExhausted | None:
        """Give None if an attempt has room in its months, and otherwise why not. limit: a month's; 0 for none."""
        if self.told_lately(utc):
            return MonthExhausted(next_month(from_epoch(utc)), told=True)
        if not limit:
            return None
        full = [month for month in months_near(utc) if self.spent(month) >= limit]
        if not full:
            return None
        over = next_month(datetime.fromisoformat(f"{full[-1]}-01T00:00:00+00:00"))
        # Near the edge it is only moments until the next month's calls count there alone.
        left = over.timestamp() + 2 * _EDGE_SECONDS - utc
        return RetryAfter(left, "month", limit) if left <= 4 * _EDGE_SECONDS else MonthExhausted(over)

    def _names(self) -> set[str]:
        """Give whom an attempt is counted for: an account that is given a name later has not spent less."""
        return {self.account.name, self.account.token}

    def _rows(self, month: str) -> list[tuple[int, float | None]]:
        select = "SELECT spent, told FROM months WHERE server = ? AND account = ? AND month = ?"
        rows = [self._book.execute(select, self.account.server, name, month).fetchone() for name in self._names()]
        return [row or (0, None) for row in rows]

    # --- what Bitly says -------------------------------------------------------------------------------------------

    def told_lately(self, utc: float) -> bool:
        """Say whether Bitly's word that the month is spent is still believed; keeps whether it was ever given."""
        told = max((told for _, told in self._rows(month_of(utc)) if told is not None), default=None)
        self.told_before = told is not None
        return told is not None and utc - told < _BELIEVED_SECONDS

    def renew_told(self, utc: float) -> None:
        """Believe Bitly's word anew: an attempt goes to ask, and others wait for what it hears."""
        update = "UPDATE months SET told = ? WHERE server = ? AND account = ? AND month = ?"
        for name in self._names():
            self._book.execute(update, utc, self.account.server, name, month_of(utc))

    def mark_spent(self) -> None:
        """Take note that Bitly says the month is spent: nobody asks again before a day has passed, or the month."""
        self._tell(told=True)

    def clear_spent(self) -> None:
        """Take note that an attempt passed in a month of which Bitly had said that it was spent: it was not, or a plan
        was bought since.
        """
        self._tell(told=False)

    def _tell(self, *, told: bool) -> None:
        with self._book.transaction() as now:
            utc = self._book.utc(now)
            # A refusal that came just behind a month's edge was perhaps meant for the month before.
            month = month_of(utc - LATEST_SECONDS if told else utc)
            insert = (
                "INSERT INTO months (server, account, month, spent, told) VALUES (?, ?, ?, 0, ?) "
                "ON CONFLICT (server, account, month) DO UPDATE SET told = excluded.told"
            )
            for name in self._names():
                self._book.execute(insert, self.account.server, name, month, utc if told else None)
            self.told_before = told

    def see_date(self, date: datetime, *, sent_at: float | None = None) -> None:
        """Set the calendar right by the date of a server's answer, which has whole seconds and was under way.

        sent_at: when its attempt was sent, elapsed seconds: the date is of a moment since then. None: just now.
        """
        now = self._book.clock.boot_seconds()
        earliest, utc = date.timestamp(), self._book.utc(now)
        latest = earliest + 1.0 + (0.0 if sent_at is None else now - sent_at)
        nearest = min(max(utc, earliest), latest)
        trusted = (utc, self._book.clock.wall())
        if all(abs(nearest - seconds) > _BELIEVED_DATE_SECONDS for seconds in trusted):
            return  # neither of our clocks knows of such a day: a server's mistake
        if abs(nearest - utc) > _EDGE_SECONDS / 2:
            self._book.set_date(nearest, now)


def months_near(utc: float) -> list[str]:
    """Name the months in which an attempt at this moment counts: two near an edge."""
    return _months_of(int(utc // _EDGE_SECONDS))


@lru_cache(4)
def _months_of(block: int) -> list[str]:
    return sorted({month_of((block - 1) * _EDGE_SECONDS), month_of((block + 2) * _EDGE_SECONDS)})
