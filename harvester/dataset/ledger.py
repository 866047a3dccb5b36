"""The ledger: SQLite's memory of a dataset. Which query it is, which calls are known, which parts exist.

Durable before anything depends on it: WAL with synchronous=FULL, because NORMAL does not sync a commit
(https://www.sqlite.org/pragma.html#pragma_synchronous). One connection, which threads use in turn.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import quote

from harvester.errors import OutputError

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- A call: key is the record_id's 16 bytes, tries the invocations it failed in, seen the last invocation whose list
-- named it, segment the journal that holds its last line.
CREATE TABLE calls (key BLOB PRIMARY KEY, state INTEGER, tries INTEGER, seen INTEGER, segment INTEGER) WITHOUT ROWID;
CREATE TABLE failures (id INTEGER PRIMARY KEY, key BLOB UNIQUE, line BLOB);
CREATE TABLE invalid (id INTEGER PRIMARY KEY, line BLOB);
-- A journal file that is not yet all published, and how many of its bytes are committed.
CREATE TABLE journals (segment INTEGER PRIMARY KEY, committed INTEGER);
-- The growing file: it had these bytes and rows when all before this place of the journal was in it.
CREATE TABLE mark (id INTEGER PRIMARY KEY CHECK (id = 0), segment INTEGER, place INTEGER, bytes INTEGER,
                   rows INTEGER);
CREATE TABLE parts (number INTEGER PRIMARY KEY, segment INTEGER UNIQUE, name TEXT, rows INTEGER, bytes INTEGER,
                    sha256 TEXT, calls INTEGER, sealed INTEGER);
"""
_VERSION = 2
_PARTS = "SELECT number, segment, name, rows, bytes, sha256, calls, sealed FROM parts"
_VARIABLES = 1000
_PAGE_LINES = 1000


class State(IntEnum):
    """What is known of a call."""

    ROW = 0
    REFUSED = 1
    FAILED = 2


class Known(NamedTuple):
    """What the ledger has on a call. tries: invocations it failed in. seen: the last invocation that listed it."""

    state: State
    tries: int
    seen: int


class Entry(NamedTuple):
    """A call's verdict, to be committed. line: its failure, None for a row."""

    key: bytes
    state: State
    line: bytes | None


class FileCheckpoint(NamedTuple):
    """The growing file's state: bytes and rows when all before place, in the journal of that segment, was in it."""

    segment: int = 0
    place: int = 0
    bytes: int = 0
    rows: int = 0


class Part(NamedTuple):
    """A published file, or one about to be. rows: its own; calls: those that they tell of.

    sealed: False between the intent and its confirmation.
    """

    number: int
    segment: int
    name: str
    rows: int
    bytes: int
    sha256: str
    calls: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """The dataset's calls by what became of them."""

    rows: int
    refused: int
    failed: int


class Snapshot(NamedTuple):
    """What a ledger says at one moment, even while a run writes it; the names are those of Ledger's methods."""

    meta: dict[str, str | int]
    totals: Totals
    parts: list[Part]
    journals: dict[int, int]
    mark: FileCheckpoint


class Ledger:
    """An open ledger file, made if it was not there; ended by close. read_only: a run may have it open meanwhile.

    For any thread: one waits while another is at work.

    Every method may raise OutputError: the file is damaged, or its disk full.
    """

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._turn = threading.RLock()
        with self._explained():
            if read_only:
                self._db = _opened_to_read(path)
                if not self.fresh and self.meta().get("schema") == 1:
                    self._db.execute("CREATE TEMP VIEW parts AS SELECT *, rows AS calls FROM main.parts")
                return
            with suppress(OSError):  # SQLite says why; by itself it would give the file no more than rw-r--r--
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))
            # Autocommit: transactions are written out below, so that their extent is seen.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-4096", "temp_store=FILE"):
                    self._db.execute(f"PRAGMA {pragma}")
            except BaseException:
                self._db.close()
                raise

    @property
    def fresh(self) -> bool:
        """True when the file holds nothing: it was not there, or its making was cut short."""
        with self._explained():
            return bool(self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)

    @property
    def unused(self) -> bool:
        """True when no call was ever settled or failed, and no part was ever meant."""
        with self._explained():
            found = self._db.execute("SELECT EXISTS (SELECT 1 FROM calls) OR EXISTS (SELECT 1 FROM parts)")
            return not found.fetchone()[0]

    def create(self, meta: dict[str, str | int]) -> None:
        """Lay out a fresh ledger, with the dataset's fixed facts."""
        with self._transaction():
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._set_meta({"schema": _VERSION, **meta})

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()

    # --- facts -----------------------------------------------------------------------------------------------------

    def meta(self) -> dict[str, str | int]:
        """Give the dataset's facts by name."""
        with self._explained():
            return dict(self._db.execute("SELECT name, value FROM meta"))

    def repin(self, meta: dict[str, str | int]) -> None:
        """Begin a dataset anew that has no call: a run that was refused before its first one pins nothing."""
        with self._transaction():
            self._set_meta(meta)

    def begin_invocation(self) -> int:
        """Count this run of the command on the dataset, forget the last list's invalid lines, give the number."""
        with self._transaction():
            number = int(self.meta().get("invocation", 0)) + 1
            self._set_meta({"invocation": number})
            self._db.execute("DELETE FROM invalid")
        return number

    def totals(self) -> Totals:
        """Count the calls by state: reads the whole table, so once a run."""
        with self._explained():
            counts = dict(self._db.execute("SELECT state, count(*) FROM calls GROUP BY state"))
        return Totals(*(counts.get(state, 0) for state in (State.ROW, State.REFUSED, State.FAILED)))

    def snapshot(self) -> Snapshot:
        """Give what the ledger says at this moment: reads the whole table of calls."""
        with self._explained():
            self._db.execute("BEGIN")
            try:
                return Snapshot(self.meta(), self.totals(), self.parts(), self.journals(), self.mark())
            finally:
                self._db.execute("ROLLBACK")

    # --- calls -----------------------------------------------------------------------------------------------------

    def known(self, keys: Sequence[bytes]) -> dict[bytes, Known]:
        """Give what is known of those of keys that are known at all."""
        found: dict[bytes, Known] = {}
        with self._explained():
            for start in range(0, len(keys), _VARIABLES):
                some = keys[start : start + _VARIABLES]
                marks = ",".join("?" * len(some))
                select = f"SELECT key, state, tries, seen FROM calls WHERE key IN ({marks})"  # noqa: S608 - marks
                for key, state, tries, seen in self._db.execute(select, some):
                    found[key] = Known(State(state), tries, seen)
        return found

    def count_distinct(
        self, batches: Iterable[Sequence[bytes]], callback: Callable[[Known | None], None], scratch: str
    ) -> None:
        """Call back once for every distinct key of the batches, with what is known of it.

        scratch: where the keys lie meanwhile, so that memory does not grow with them.
        """
        with self._explained():
            self._db.execute("ATTACH DATABASE ? AS scratch", (scratch,))
            try:
                self._db.execute("PRAGMA scratch.journal_mode=OFF")
                self._db.execute("PRAGMA scratch.synchronous=OFF")
                self._db.execute("DROP TABLE IF EXISTS scratch.listed")
                self._db.execute("CREATE TABLE scratch.listed (key BLOB PRIMARY KEY) WITHOUT ROWID")
                for keys in batches:
                    for known in self._first_seen(keys):
                        callback(known)
            finally:
                self._db.execute("DETACH DATABASE scratch")
                with suppress(OSError):
                    os.unlink(scratch)

    def _first_seen(self, keys: Sequence[bytes]) -> list[Known | None]:
        distinct = sorted(set(keys))
        known = self.known(distinct)
        insert = "INSERT OR IGNORE INTO scratch.listed VALUES (?)"
        self._db.execute("BEGIN")
        first = [key for key in distinct if self._db.execute(insert, (key,)).rowcount]
        self._db.execute("COMMIT")
        return [known.get(key) for key in first]

    def commit(
        self,
        *,
        entries: Sequence[tuple[int, Sequence[Entry]]] = (),
        seen: Sequence[bytes] = (),
        invocation: int,
        invalid: Sequence[bytes] = (),
        journals: Mapping[int, int] | None = None,
        mark: FileCheckpoint | None = None,
        counters: dict[str, int] | None = None,
    ) -> None:
        """Make verdicts durable, in one transaction; their journal lines were synced before.

        entries: by journal segment. seen: calls known before that the present list names. journals: bytes committed
        by segment. mark: how far the growing file is synced. counters: added to meta.
        """
        with self._transaction():
            for segment, verdicts in entries:
                self._settle(segment, verdicts, invocation)
            if seen:
                update = "UPDATE calls SET seen = ? WHERE key = ?"
                self._db.executemany(update, [(invocation, key) for key in sorted(seen)])
            self._db.executemany("INSERT INTO invalid (line) VALUES (?)", [(line,) for line in invalid])
            self._db.executemany("INSERT OR REPLACE INTO journals VALUES (?, ?)", (journals or {}).items())
            if mark is not None:
                self._db.execute("INSERT OR REPLACE INTO mark VALUES (0, ?, ?, ?, ?)", mark)
            for name, more in (counters or {}).items():
                self._add_meta(name, more)

    def _settle(self, segment: int, verdicts: Sequence[Entry], invocation: int) -> None:
        """Write verdicts of one journal. A row is final, and a newer journal's verdict stands before an older one's:
        both matter only when a damaged journal is read again.
        """
        last = {entry.key: entry for entry in verdicts}
        self._db.executemany(
            "INSERT INTO calls VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET state = excluded.state, "
            "tries = calls.tries + excluded.tries, seen = excluded.seen, segment = excluded.segment "
            "WHERE calls.state <> 0 AND calls.segment <= excluded.segment",
            # In the key's order neighbours share pages, which halves the pages written.
            sorted((e.key, int(e.state), int(e.state is State.FAILED), invocation, segment) for e in last.values()),
        )
        if self._db.execute("SELECT 1 FROM failures LIMIT 1").fetchone():
            self._db.executemany(
                "DELETE FROM failures WHERE key = ? AND EXISTS "
                "(SELECT 1 FROM calls WHERE calls.key = failures.key AND segment = ?)",
                [(key, segment) for key in last],
            )
        self._db.executemany(
            "INSERT INTO failures (key, line) SELECT key, ? FROM calls WHERE key = ? AND segment = ? AND state <> 0",
            [(e.line, e.key, segment) for e in last.values() if e.line is not None],
        )

    def calls_of(self, segment: int) -> int:
        """Count the calls whose last verdict is in this journal: reads the whole table."""
        with self._explained():
            select = "SELECT count(*) FROM calls WHERE segment = ?"
            return int(self._db.execute(select, (segment,)).fetchone()[0])

    def forget_calls(self, segment: int, kept: Iterable[bytes]) -> None:
        """Forget the calls whose last line was in this journal, but for those kept, whose rows are published."""
        with self._transaction():
            self._db.execute("CREATE TEMP TABLE kept (key BLOB PRIMARY KEY) WITHOUT ROWID")
            self._db.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((key,) for key in kept))
            lost = "FROM calls WHERE segment = ? AND key NOT IN (SELECT key FROM kept)"
            self._db.execute(f"DELETE FROM failures WHERE key IN (SELECT key {lost})", (segment,))  # noqa: S608
            self._db.execute(f"DELETE {lost}", (segment,))
            self._db.execute("DROP TABLE kept")

    def failure_lines(self) -> Iterator[bytes]:
        """Yield the lines of `_failures.ndjson`: calls in the order they ended, then the present list's bad lines.

        Between them other threads have their turn: who asks may stop half-way, and another thread drop what is left.
        """
        for table in ("failures", "invalid"):
            select = f"SELECT id, line FROM {table} WHERE id > ? ORDER BY id LIMIT {_PAGE_LINES}"  # noqa: S608 - ours
            last = 0
            while page := self._page(select, last):
                last = page[-1][0]
                yield from (line for _, line in page)

    def _page(self, select: str, after: int) -> list[tuple[int, bytes]]:
        with self._explained():
            return self._db.execute(select, (after,)).fetchall()

    # --- journals and parts ----------------------------------------------------------------------------------------

    def journals(self) -> dict[int, int]:
        """Give the bytes committed of each journal that is not all published, by segment."""
        with self._explained():
            return dict(self._db.execute("SELECT segment, committed FROM journals ORDER BY segment"))

    def end_segment(self, segment: int, mark: FileCheckpoint | None = None) -> None:
        """Take note that everything in a journal is published, or belongs in no part."""
        with self._transaction():
            self._end(segment)
            if mark is not None:
                self._db.execute("INSERT OR REPLACE INTO mark VALUES (0, ?, ?, ?, ?)", mark)

    def mark(self) -> FileCheckpoint:
        """Give the growing file's last synced state."""
        with self._explained():
            found = self._db.execute("SELECT segment, place, bytes, rows FROM mark").fetchone()
        return FileCheckpoint(*found) if found else FileCheckpoint()

    def set_mark(self, mark: FileCheckpoint) -> None:
        """Take note of the growing file's state, which was synced before."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO mark VALUES (0, ?, ?, ?, ?)", mark)

    def parts(self) -> list[Part]:
        """Give the parts, in the order of their numbers."""
        with self._explained():
            rows = self._db.execute(f"{_PARTS} ORDER BY number")
            return [Part(*row)._replace(sealed=bool(row[-1])) for row in rows]

    def next_part(self) -> int:
        """Give the number of the next part."""
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM parts").fetchone()[0])

    def unsealed(self) -> list[Part]:
        """Give the parts that have an intent, and no seal yet."""
        with self._explained():
            return [Part(*row)._replace(sealed=False) for row in self._db.execute(f"{_PARTS} WHERE sealed = 0")]

    def intend(self, part: Part) -> None:
        """Write down the part that is about to be published, with what its file holds."""
        with self._transaction():
            columns = "number, segment, name, rows, bytes, sha256, calls"
            self._db.execute(f"INSERT INTO parts ({columns}, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, 0)", part[:-1])  # noqa: S608

    def withdraw(self, part: Part) -> None:
        """Forget an intent whose file was never published."""
        with self._transaction():
            self._db.execute("DELETE FROM parts WHERE number = ? AND sealed = 0", (part.number,))

    def seal(self, part: Part) -> None:
        """Write down that the part is published, so that its journal is of no more use."""
        with self._transaction():
            self._db.execute("UPDATE parts SET sealed = 1 WHERE number = ?", (part.number,))
            self._end(part.segment)

    def ended(self) -> int:
        """Give the last segment whose journal is of no more use; -1 for none. They end in order."""
        return int(self.meta().get("ended", -1))

    # --- the connection --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check the file's structure and version: a page lost unnoticed would buy its calls again."""
        with self._explained():
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise OutputError(self._damage(found))
        version = self.meta().get("schema")
        if version == 1:
            if not self._read_only:
                self._take_over()
        elif version != _VERSION:
            raise OutputError(
                f"{self._path}: schema {version}, and this harvester writes {_VERSION}; use the version that began it"
            )

    def _take_over(self) -> None:
        """Bring a ledger of version 1 up: its parts had a row for each call."""
        with self._transaction():
            self._db.execute("ALTER TABLE parts ADD COLUMN calls INTEGER")
            self._db.execute("UPDATE parts SET calls = rows")
            self._set_meta({"schema": _VERSION})

    def _end(self, segment: int) -> None:
        self._db.execute("DELETE FROM journals WHERE segment = ?", (segment,))
        self._set_meta({"ended": segment})

    def _set_meta(self, values: dict[str, str | int]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _add_meta(self, name: str, more: int) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, more),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, while no other thread is at work: this is the only place to see them."""
        try:
            with self._turn:
                yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "no such" in str(error):
                raise OutputError(self._damage(str(error))) from error
            raise OutputError(f"{self._path}: {error} ({code})") from error
        except UnicodeDecodeError as error:  # SQLite quotes in its messages what it could not read
            raise OutputError(self._damage(str(error))) from error

    def _damage(self, what: str) -> str:
        return (
            f"{self._path}: the ledger is damaged ({what}). Without it nobody knows which calls were paid for. Put a "
            "backup of it back, or keep this output as it is and begin a new --out with the links that it lacks"
        )


def _opened_to_read(path: str) -> sqlite3.Connection:
    """Open a file that a run may be writing; where its folder cannot be written, as it was when that run ended."""
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        db = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?{mode}", isolation_level=None, check_same_thread=False, uri=True
        )
        try:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return db
        except sqlite3.OperationalError:
            db.close()
            if "immutable" in mode:
                raise
        except BaseException:
            db.close()
            raise
    raise AssertionError("unreachable")


FAILED_INVOCATIONS = 3
"""After failing in so many invocations a call is left alone, unless it is asked for."""


def should_retry(known: Known, *, retry_failed: bool, retry_refused: bool) -> bool:
    """Say whether a call that the ledger knows is to be made again."""
    if known.state is State.FAILED:
        return retry_failed or known.tries < FAILED_INVOCATIONS
    return known.state is State.REFUSED and retry_refused
