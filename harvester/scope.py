"""A token at an endpoint in the budget's file: its attempts, what its windows hold of them, and its state."""

import math

from harvester.book import LATE_SECONDS, SPANS, Book, State
from harvester.throttle import HOUR, Throttle

_PER_SECOND = 10
"""Attempts of one tenth of a second share a record, which has the time of its end: a file stays small at any rate."""


class Scope:
    """A scope as it was last loaded; all but `open_for` runs within the caller's transaction, behind `load`.

    total: attempts ever. last_at: the time of the last record. Times: elapsed seconds.
    """

    def __init__(self, book: Book, server: str, token: str, endpoint: str) -> None:
        self.state = State(Throttle())
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
