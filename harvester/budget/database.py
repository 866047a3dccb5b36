"""The budget's file: one for all runs of a machine, its clocks, and what is kept of each token.

Times in it are elapsed seconds of one boot; whoever opens it in another boot moves them there.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import orjson

from harvester.budget.throttling import HOUR, MINUTE, AdaptiveLimit, LearnedLimit, ReportedLimits
from harvester.clock import Clock
from harvester.errors import BudgetBusy, OutputError

LATE_SECONDS = 0.5
"""An attempt leaves its window this much late: the network may hold one request back and not the next."""
SPANS = {MINUTE: 60.0, HOUR: 3600.0}
_MONTHS_KEPT = 14
_MOVED_SECONDS = 60.0
"""Two machines' wall clocks may differ by so much, when a state folder is carried from one to the other."""
_BUSY_SECONDS = 10.0
"""So long a process waits for the file when it opens it; later, in the event loop, it is _LOOP_BUSY_SECONDS."""
_LOOP_BUSY_SECONDS = 0.5
_BUSY_PAUSE_SECONDS = 0.01

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- A token at an endpoint. total: attempts ever; last_at: the time of the last record; state: throttling and limits.
CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, server TEXT, token TEXT, endpoint TEXT,
    total INTEGER NOT NULL DEFAULT 0, last_at REAL NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT '{}',
    UNIQUE (server, token, endpoint));
-- Attempts number first and on were made at this time, in elapsed seconds, up to the next record's first.
CREATE TABLE IF NOT EXISTS attempts (scope INTEGER, first INTEGER, at REAL, PRIMARY KEY (scope, first)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS attempts_at ON attempts (scope, at);
-- Attempts of a token, and of an account, by month. told: when Bitly said that the month is spent, by the calendar.
CREATE TABLE IF NOT EXISTS months (server TEXT, account TEXT, month TEXT, spent INTEGER,
    told REAL, PRIMARY KEY (server, account, month)) WITHOUT ROWID;
"""
_VERSION = 1
"""The tables' form, as `PRAGMA user_version` says it; 0: a file that is new, or older than the numbering."""
_ADDED = (("months", "told", "REAL"),)
"""Columns that a file of version 0 may lack: table, column, type."""


@dataclass(slots=True)
class State:
    """A scope's state, as it is kept in the file."""

    throttle: AdaptiveLimit
    said: ReportedLimits | None = None

    @classmethod
    def read(cls, text: str) -> "State":
        """Read what `text` wrote."""
        stored = orjson.loads(text)
        throttle = stored.get("throttle") or {}
        ceilings = {window: LearnedLimit(**ceiling) for window, ceiling in throttle.pop("ceilings", {}).items()}
        said = stored.get("said")
        return cls(
            AdaptiveLimit(**_known(AdaptiveLimit, throttle), ceilings=ceilings),
            ReportedLimits(**_known(ReportedLimits, said)) if said else None,
        )

    def text(self) -> str:
        """Write it as JSON."""
        return orjson.dumps(asdict(self)).decode()

    def after_reboot(self) -> "State":
        """Give what of it still holds when its times mean nothing any more."""
        told = self.said is not None and self.said.limit is not None  # else it may be asked once more
        said = replace(self.said, asked_at=0.0) if self.said and told else None
        return State(AdaptiveLimit(ceilings=self.throttle.ceilings), said)


def _known(kind: type[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what another version of harvester has noted beside."""
    return {each.name: stored[each.name] for each in fields(kind) if each.name in stored}


def _columns(file: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in file.execute(f"PRAGMA table_info({table})")}


class BudgetDatabase:
    """The open budget file; made if it was not there, ended by close.

    Every method may raise OutputError: the file is damaged, or cannot be written.
    """

    def __init__(self, path: str, clock: Clock | None = None) -> None:
        self.path = path
        self.clock = clock or Clock()
        self._anchor_elapsed = self._anchor_wall = 0.0
        self._version = -1
        with self.explained():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
            try:
                self._share()
                self._make_tables()
                with self.transaction():
                    self._begin()
                self._inode: int | None = os.stat(path).st_ino
                self._db.execute(f"PRAGMA busy_timeout = {_LOOP_BUSY_SECONDS * 1000:.0f}")
            except BaseException:
                self._db.close()
                raise

    def _share(self) -> None:
        # Everywhere else SQLite waits by itself for others; whoever changes a new file's mode it only tells "locked".
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_BUSY_PAUSE_SECONDS)

    def _make_tables(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise OutputError(
                f"{self.path}: of version {version}, and this harvester knows {_VERSION}: update it (pip install "
                "--upgrade bitly-harvester). Or name another --state-dir, where counting begins anew"
            )
        if version == _VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._add_columns()
            self._db.execute("DELETE FROM meta WHERE name = 'schema'")
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _add_columns(self) -> None:
        """Bring an older file's tables to this form: what was counted stays.

        Raises:
            OutputError: they lack something else.
        """
        for table, column, kind in _ADDED:
            if column not in _columns(self._db, table):
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(_SCHEMA)
            for table in ("meta", "scopes", "attempts", "months"):
                if missing := _columns(model, table) - _columns(self._db, table):
                    raise OutputError(
                        f"{self.path}: {table} has no {', '.join(sorted(missing))}: no budget of harvester's, or of a "
                        "version too old to be taken over. Move it away (counting begins anew; then give --per-month "
                        "only what is left of this month), or name another --state-dir"
                    )

    def close(self) -> None:
        """Close the file; what was counted stays."""
        self._db.close()

    def set_fast(self, *, fast: bool) -> None:
        """Say whether a count may go without being synced: then a power cut, though no kill, may forget the last."""
        with self.explained():
            self._db.execute(f"PRAGMA synchronous={'NORMAL' if fast else 'FULL'}")

    def utc(self, now: float) -> float:
        """Give the calendar's seconds since 1970 at elapsed seconds now: the wall clock's steps do not move it."""
        return self._anchor_wall + now - self._anchor_elapsed

    def check_present(self) -> None:
        """Make sure that the path still names the open file: otherwise others count in another one."""
        try:
            found = os.stat(self.path).st_ino
        except OSError:
            found = None
        if found != self._inode:
            raise OutputError(
                f"{self.path} was taken away or replaced while it was in use: what is counted in it is lost to others. "
                "Run the same command again; it begins with the file that is there then"
            )

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute a statement, within `explained`."""
        return self._db.execute(statement, parameters)

    @contextmanager
    def transaction(self) -> Iterator[float]:
        """Hold the file alone; gives the elapsed seconds at which it was got."""
        with self.explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._look_at_anchor()
                yield self.clock.boot_seconds()
                self._db.execute("COMMIT")  # it may be here that a full disk is noticed
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, and those by which damage shows that SQLite does not see."""
        try:
            yield
        except (sqlite3.Error, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise BudgetBusy(
                    f"{self.path} is held by another process for longer than it should be: see which one (lsof), and "
                    "run this again"
                ) from error
            raise OutputError(
                f"{self.path}: {error}. The budget is counted there before each attempt; mend it, or name another "
                "--state-dir (if it is damaged: move it away, and the month's count begins anew)"
            ) from error

    # --- clocks ----------------------------------------------------------------------------------------------------

    def set_date(self, seen: float, now: float) -> None:
        """Set the calendar right by a date that the server gave; seen: seconds since 1970."""
        with self.transaction():
            self._set_anchor(now, seen)

    def _look_at_anchor(self) -> None:
        # Another process may have set it; data_version changes when one has written.
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            meta = self._meta()
            if "anchor_wall" in meta:
                self._anchor_elapsed, self._anchor_wall = meta["anchor_elapsed"], meta["anchor_wall"]

    def _meta(self) -> dict[str, Any]:
        return dict(self._db.execute("SELECT name, value FROM meta"))

    def _begin(self) -> None:
        """Make the file's times this boot's."""
        meta, now = self._meta(), self.clock.boot_seconds()
        newest = self._db.execute("SELECT max(last_at) FROM scopes").fetchone()[0] or 0.0
        if meta.get("boot") != self.clock.boot or newest > now + 1.0 or meta["anchor_elapsed"] > now + 1.0:
            self._move_times(meta, now)
            # Time has not gone back since the last attempt, whatever the wall clock says now.
            latest = newest - meta["anchor_elapsed"] + meta["anchor_wall"] if "anchor_wall" in meta else 0.0
            self._set_anchor(now, max(self.clock.wall(), latest))
        elif not self.clock.boot:  # perhaps another boot, which has been up for longer than the last
            self._set_anchor(now, max(self.clock.wall(), self.utc(now)))
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (self.clock.boot,))
        horizon = now - SPANS[HOUR] - LATE_SECONDS
        self._db.execute("DELETE FROM attempts WHERE at <= ?", (horizon,))
        # The newest are kept, whatever the calendar says: it may be wrong until the first answer.
        delete = "DELETE FROM months WHERE month NOT IN (SELECT DISTINCT month FROM months ORDER BY month DESC LIMIT ?)"
        self._db.execute(delete, (_MONTHS_KEPT,))

    def _set_anchor(self, now: float, wall: float) -> None:
        self._anchor_elapsed, self._anchor_wall = now, wall
        values = (("anchor_elapsed", now), ("anchor_wall", wall))
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

    def _move_times(self, meta: dict[str, Any], now: float) -> None:
        """Move the times of an earlier boot into this one's, as late as they can have been.

        An attempt of this machine's is at least as old as this boot. What another machine has counted, before the
        folder was carried here, is as old as the wall clocks say. The younger of the two is taken.
        """
        for scope, last_at, state in self._db.execute("SELECT id, last_at, state FROM scopes").fetchall():
            horizon = last_at - SPANS[HOUR] - LATE_SECONDS
            rows = self._db.execute("SELECT first, at FROM attempts WHERE scope = ?", (scope,)).fetchall()
            for first, at in rows:
                if at <= horizon:
                    self._db.execute("DELETE FROM attempts WHERE scope = ? AND first = ?", (scope, first))
                    continue
                wall = meta["anchor_wall"] + at - meta["anchor_elapsed"]
                age = max(min(now, self.clock.wall() - wall - _MOVED_SECONDS), 0.0)
                update = "UPDATE attempts SET at = ? WHERE scope = ? AND first = ?"
                self._db.execute(update, (now - age, scope, first))
            moved = State.read(state).after_reboot().text()
            update = (
                "UPDATE scopes SET state = ?, last_at = (SELECT coalesce(max(at), 0) FROM attempts WHERE scope = id)"
            )
            self._db.execute(update + " WHERE id = ?", (moved, scope))
