"""The budget's SQLite file, shared by all processes of a machine: its schema, transactions, and calendar.

Two clocks. Windows are kept in seconds since boot, which no step of the wall clock moves; when the file is opened in
another boot, its times are moved into that one. Months need a calendar: an anchor pairs one moment since boot with
one of the wall clock, and from there the calendar advances by boot seconds. It is read from the wall clock once a
boot, and corrected by the dates of Bitly's responses. So setting the clock neither opens a window nor starts a month.

A virtual machine that was paused has lost seconds since boot, and a wall clock may be wrong at boot and right later:
then the two clocks part, and the calendar may stand in a month that is over. A month that is spent is doubted if they
have parted, by more than a day or into different months, since the calendar was last known to be right: one request
then goes for its date.
A date of Bitly's that neither clock knows does not set the calendar, because it may be a mistake. As long as anything
contradicts the calendar, attempts count in the months of both, so that no month is spent twice.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from harvester.budget.limits import COUNTED_SECONDS, HOUR
from harvester.budget.removal import FileWatch
from harvester.budget.states import ScopeState
from harvester.clock import Clock, month_of
from harvester.errors import BudgetBusy, OutputError

_MONTHS_KEPT = 14
_MOVED_SECONDS = 60.0
"""How far the wall clocks of two machines may differ when a state folder is carried from one to the other."""
BUSY_SECONDS = 10.0
"""The longest wait for another process's transaction while the file is being opened."""
_LOOP_BUSY_SECONDS = 0.5
"""The longest wait once the file is open; short, because it blocks the event loop."""
_BUSY_PAUSE_SECONDS = 0.01
DAY_SECONDS = 86400.0
"""Wall clock and calendar that differ by more than this contradict each other."""
APART_SECONDS = 300.0
"""So do those that differ by more than this and are in different months: clocks drift, but not so far."""
_ANSWER_SECONDS = 35.0
"""A request for the date without a response after this time counts as lost, together with its process."""
_ASK_AGAIN_SECONDS = 3600.0
"""The least time after a request for the date that brought none."""
_CHECK_SECONDS = 1.0
"""The time between two checks that the path still names the open file."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- A token at an endpoint. total: attempts ever; last_at: the time of the last record; state: throttling and limits.
CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, server TEXT, token TEXT, endpoint TEXT,
    total INTEGER NOT NULL DEFAULT 0, last_at REAL NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT '{}',
    UNIQUE (server, token, endpoint));
-- Attempts number first and on were made at this time, in elapsed seconds, up to the next record's first.
CREATE TABLE IF NOT EXISTS attempts (scope INTEGER, first INTEGER, at REAL, PRIMARY KEY (scope, first)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_at ON attempts (scope, at);
-- Attempts of a token, and of an account, by month. reported: when Bitly said that the month is spent (calendar).
CREATE TABLE IF NOT EXISTS months (server TEXT, account TEXT, month TEXT, spent INTEGER,
    reported REAL, PRIMARY KEY (server, account, month)) WITHOUT ROWID;
"""
_DAMAGED = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})
_VERSION = 1
"""The schema's version, kept as `PRAGMA user_version`; 0 in a new file."""


class BudgetDatabase:
    """The open budget file, created if it does not exist; `close` ends it.

    Every method may raise OutputError: the file is damaged, or cannot be written. BudgetBusy: another process holds it.

    server_ahead: seconds that the server's date is ahead of the calendar, if neither of our clocks knows that date.
    """

    def __init__(self, path: str, clock: Clock | None = None, busy_seconds: float | None = None) -> None:
        """Open the file. busy_seconds: how long this thread waits for another process; None for BUSY_SECONDS."""
        self.path = path
        self._busy_seconds = BUSY_SECONDS if busy_seconds is None else busy_seconds
        self.clock = clock or Clock()
        self._anchor_elapsed = self._anchor_wall = self._wall_ahead = 0.0
        self.server_ahead = 0.0
        self._date_asked_at: float | None = None
        self._entered = False
        self._synced = True
        self._data_version = -1
        self._check_due = 0.0
        self._gone: str | None = None
        with self.explained():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=self._busy_seconds)
            try:
                self._refuse_link()
                self._enable_wal()
                self._create_schema()
                with self.transaction():
                    self._enter_boot()
                self._entered = True
                self._watch = FileWatch(path)
                self._db.execute(f"PRAGMA busy_timeout = {_LOOP_BUSY_SECONDS * 1000:.0f}")
            except BaseException:
                self._db.close()
                raise

    def _refuse_link(self) -> None:
        """Raise OutputError if SQLite followed a link in place of the file: each check before may be outrun.

        SQLite has the resolved name, and has opened no file yet by following another link.
        """
        self._db.text_factory = bytes  # a path may be in no encoding
        opened = self.execute("PRAGMA database_list").fetchone()[2]
        self._db.text_factory = str
        folder, name = os.path.split(os.path.abspath(self.path))
        if opened != os.fsencode(os.path.join(os.path.realpath(folder), name)):
            raise OutputError(f"{self.path} is a symbolic link, which is not followed: put the file itself there")

    def _enable_wal(self) -> None:
        # SQLite's busy timeout does not cover a change of journal mode: two processes that create the file at the
        # same moment would get "locked" at once.
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_BUSY_PAUSE_SECONDS)

    def _create_schema(self) -> None:
        """Create the tables of a new file.

        Raises:
            OutputError: the file is of another version, or is no budget at all; it is left as it is.
        """
        if self._version() == _VERSION:
            return
        with self._exclusive():
            if self._version() != _VERSION:  # no other process has created them meanwhile
                self._require_new()
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _require_new(self) -> None:
        version = self._version()
        if version > _VERSION:
            raise OutputError(
                f"{self.path}: has version {version}, but this harvester supports {_VERSION}: update it (pip install "
                "--upgrade bitly-harvester). Or use another --state-dir, where counting starts from zero"
            )
        if version or self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise OutputError(
                f"{self.path}: not a harvester budget, or one of another version ({version}). Move it away (counting "
                "starts from zero; then set --per-month to what is left of this month), or use another --state-dir"
            )

    def close(self) -> None:
        """Close the file; what was counted stays, also if its name was removed since the last check."""
        if not self._gone:
            self._watch.why_gone(self._db)
        self._db.close()

    def sync_each_commit(self, enabled: bool) -> None:
        """Choose whether a commit waits for the disk; if not, a power cut, though no kill, may lose the last ones."""
        self._synced = enabled
        self._synchronous(enabled)

    def _synchronous(self, enabled: bool) -> None:
        with self.explained():
            self._db.execute(f"PRAGMA synchronous={'FULL' if enabled else 'NORMAL'}")

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """Let the block's transactions commit without waiting for the disk."""
        self._synchronous(False)
        try:
            yield
        finally:
            self._synchronous(self._synced)

    def utc(self, now: float) -> float:
        """Return the calendar's time (seconds since 1970) at `now` seconds since boot."""
        return self._anchor_wall + now - self._anchor_elapsed

    def check_present(self) -> None:
        """Raise OutputError if the path no longer names the open file: other processes would count in another one.

        Its counts are written again. Checks at most once in _CHECK_SECONDS.
        """
        now = self.clock.boot_seconds()
        if now >= self._check_due:
            self._check_due = now + _CHECK_SECONDS
            self._gone = self._gone or self._watch.why_gone(self._db)
        if self._gone:
            raise OutputError(self._gone)

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute a statement. Call only inside `transaction`."""
        return self._db.execute(statement, parameters)

    @contextmanager
    def transaction(self) -> Iterator[float]:
        """Open a write transaction, which excludes all other processes; yields the seconds since boot."""
        with self.explained(), self._exclusive():
            self._refresh_anchor()
            yield self.clock.boot_seconds()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")  # it may be here that a full disk is noticed
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours; Python's too, which damaged values cause that SQLite has not noticed."""
        try:
            yield
        except (sqlite3.Error, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise BudgetBusy(
                    f"{self.path} has been locked by another process for too long: find out which (lsof), and "
                    "run the same command again"
                ) from error
            damaged = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT") in _DAMAGED
            cure = "Restore a backup of it, or move it away" if damaged else "Fix that, and run the same command again"
            raise OutputError(
                f"{self.path}: {error}. Each attempt is counted there before it is sent. {cure}. A new file, as in "
                "another --state-dir, counts from zero: set --per-month to what is left of the month then"
            ) from error

    def keep(self, name: str, value: Any) -> None:
        """Store a value as JSON by its name, inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, orjson.dumps(value)))

    def kept(self, name: str) -> Any:
        """Return the value that is stored by a name, inside a transaction; None if there is none."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return orjson.loads(found[0]) if found else None

    def months_of(self, server: str, account: str) -> list[tuple[str, int]]:
        """Return the months of an account with its attempts, inside a transaction."""
        select = "SELECT month, spent FROM months WHERE server = ? AND account = ?"
        return self._db.execute(select, (server, account)).fetchall()

    def raise_month(self, server: str, account: str, month: str, spent: int) -> None:
        """Record, inside a transaction, that an account has made this many attempts in a month, or more."""
        insert = (
            "INSERT INTO months (server, account, month, spent) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (server, account, month) DO UPDATE SET spent = max(spent, excluded.spent)"
        )
        self._db.execute(insert, (server, account, month, spent))

    # --- clocks ----------------------------------------------------------------------------------------------------

    def _refresh_anchor(self) -> None:
        # Another process may have set it; SQLite changes data_version whenever another connection has committed.
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self._data_version = version
            meta = self._meta()
            if self._entered and meta.get("boot") != self.clock.boot:
                raise OutputError(
                    f"{self.path} was used meanwhile by a program whose clock since boot differs from this one's, on "
                    "another machine or in another time namespace. Give each a --state-dir and a share of the limits"
                )
            if "anchor_wall" in meta:
                self._anchor_elapsed, self._anchor_wall = meta["anchor_elapsed"], meta["anchor_wall"]
            self._wall_ahead, self._date_asked_at = meta.get("wall_ahead", 0.0), meta.get("date_asked_at")
            self.server_ahead = meta.get("server_ahead", 0.0)

    def _meta(self) -> dict[str, Any]:
        return dict(self._db.execute("SELECT name, value FROM meta"))

    def _enter_boot(self) -> None:
        """Move the file's times into this boot if they are of another, and forget what no window or month needs."""
        meta, now = self._meta(), self.clock.boot_seconds()
        newest = self._db.execute("SELECT max(last_at) FROM scopes").fetchone()[0] or 0.0
        if meta.get("boot") != self.clock.boot or newest > now + 1.0 or meta["anchor_elapsed"] > now + 1.0:
            self._move_times(meta, now)
            # The last attempt lies in the past, whatever the wall clock says now.
            latest = newest - meta["anchor_elapsed"] + meta["anchor_wall"] if "anchor_wall" in meta else 0.0
            self.set_anchor(now, max(self.clock.wall(), latest))
        elif not self.clock.boot and self.clock.wall() > self.utc(now):
            # A boot without a name: it may be another one, which has been up for longer.
            self.set_anchor(now, self.clock.wall())
        if meta.get("boot") != self.clock.boot:  # in most cases nothing is written here, and nothing synced
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (self.clock.boot,))
        self._db.execute("DELETE FROM attempts WHERE at <= ?", (now - COUNTED_SECONDS[HOUR],))
        # The newest by name, not by the calendar, which may be wrong until the first response. A statement that finds
        # them itself takes five times as long, and a file is opened for a single link, too.
        months = sorted({month for (month,) in self._db.execute("SELECT month FROM months")}, reverse=True)
        for month in months[_MONTHS_KEPT:]:
            self._db.execute("DELETE FROM months WHERE month = ?", (month,))

    def set_anchor(self, now: float, wall: float, *, wall_ahead: float = 0.0) -> None:
        """Set the calendar, inside a transaction: it was `wall` (seconds since 1970) at `now` seconds since boot.

        wall_ahead: how far the wall clock is known to be ahead of it.
        """
        self._anchor_elapsed, self._anchor_wall, self._wall_ahead = now, wall, wall_ahead
        values = (("anchor_elapsed", now), ("anchor_wall", wall), ("wall_ahead", wall_ahead))
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
        self.set_server_ahead(0.0)
        self.note_date_asked(None)

    def set_server_ahead(self, seconds: float) -> None:
        """Record, inside a transaction, how far a date that neither of our clocks knows is ahead of the calendar."""
        self.server_ahead = seconds
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('server_ahead', ?)", (seconds,))

    def contradictions(self, now: float) -> list[float]:
        """Return the moments, in seconds since 1970, that it is now by what contradicts the calendar; mostly none."""
        moments = [self.clock.wall()] if self.clocks_parted(now) else []
        return [*moments, self.utc(now) + self.server_ahead] if self.server_ahead else moments

    def clocks_parted(self, now: float) -> bool:
        """Return whether wall clock and calendar contradict each other as they did not when it was last right."""
        utc = self.utc(now)
        wall = self.clock.wall() - self._wall_ahead
        apart = abs(wall - utc)
        return apart > DAY_SECONDS or (apart > APART_SECONDS and month_of(wall) != month_of(utc))

    def date_awaited(self, now: float) -> bool:
        """Return whether a process has asked for the server's date and may still get it."""
        asked_at = self._date_asked_at
        return asked_at is not None and 0.0 <= now - asked_at < _ANSWER_SECONDS and self.clocks_parted(now)

    def date_wanted(self, now: float) -> bool:
        """Return whether to ask for the server's date, because the calendar may be wrong."""
        asked_at = self._date_asked_at
        asked = asked_at is not None and 0.0 <= now - asked_at < _ASK_AGAIN_SECONDS
        return not asked and self.clocks_parted(now)

    def note_date_asked(self, at: float | None) -> None:
        """Record, inside a transaction, that the server is asked for its date; None: it was not asked after all."""
        self._date_asked_at = at
        self._db.execute("DELETE FROM meta WHERE name = 'date_asked_at'")
        if at is not None:
            self._db.execute("INSERT INTO meta VALUES ('date_asked_at', ?)", (at,))

    def note_no_date(self, now: float) -> None:
        """Record, inside a transaction, that the response brought no date: nobody waits for it any longer."""
        self.note_date_asked(now - _ANSWER_SECONDS)

    def _move_times(self, meta: dict[str, Any], now: float) -> None:
        """Convert the times of an earlier boot into this one's, as late as they can have been.

        An attempt of this machine is at least as old as this boot. An attempt that another machine counted, before the
        folder was carried here, is as old as the wall clocks say. The younger of the two ages is taken, so that no
        window opens early.
        """
        for scope, last_at, state in self._db.execute("SELECT id, last_at, state FROM scopes").fetchall():
            horizon = last_at - COUNTED_SECONDS[HOUR]
            self._db.execute("DELETE FROM attempts WHERE scope = ? AND at <= ?", (scope, horizon))
            for first, at in self._db.execute("SELECT first, at FROM attempts WHERE scope = ?", (scope,)).fetchall():
                wall = meta["anchor_wall"] + at - meta["anchor_elapsed"]
                age = max(min(now, self.clock.wall() - wall - _MOVED_SECONDS), 0.0)
                update = "UPDATE attempts SET at = ? WHERE scope = ? AND first = ?"
                self._db.execute(update, (now - age, scope, first))
            moved = ScopeState.parse(state).after_reboot().to_json()
            update = (
                "UPDATE scopes SET state = ?, last_at = (SELECT coalesce(max(at), 0) FROM attempts WHERE scope = id)"
            )
            self._db.execute(update + " WHERE id = ?", (moved, scope))
