"""The ledger: a SQLite file with all that is known of a dataset: its query, its calls, its journals and its parts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from harvester.errors import OutputError
from harvester.history import Recorded, StoredEntry, begun_run, recorded_in
from harvester.rows.call import FAILED_STATE, GIVEN_UP_RUNS, REFUSED_STATE, CallState, Entry, Known, Shortfall, Totals
from harvester.storage.filesystem import Tampering
from harvester.storage.sqlite import KeyIndex, SqliteFile

_SCHEMA, _STATEMENTS = (Path(__file__).with_name(f"{name}.sql").read_text("utf-8") for name in ("ledger", "settle"))
_SETTLE, _SETTLE_REFRESHED = _STATEMENTS.split(";\n")
_VERSION, _PAGE_LINES = 6, 1000
_TABLES = ("calls", "by_key", "indexed", "failures", "invalid", "journals", "checkpoint", "parts", "history")
_STATES = {int(state): state for state in CallState}
_ID = "(SELECT id FROM places WHERE key = ?)"
_ADVICE = """It records which calls were paid for: restore a backup of it. Or keep this output as it is and start a \
new --out with the links that are missing from it"""

PINNED, ASKED = "pinned", "unit_reference"
"""The facts that others work by the query, and with the end of the window last asked for, if rows are refreshed."""
REFRESHING = "refreshing"
"""The fact of a dataset whose rows are refreshed: its table of calls has the columns _REFRESH_COLUMNS, too."""
_REFRESH_COLUMNS = ("asked_at", "clicks", "clicks_before")
_CALL = ("id", "key", "state", "failed_runs", "seen", "segment")
_SETTLED = (*_CALL, *Shortfall._fields, *_REFRESH_COLUMNS[:2], "most_runs")
UNANSWERED = "unanswered"
"""The fact with the number of refusals at the last run's end that no row had followed: the next run doubts them."""
MOST_UNANSWERED = 64


class FileCheckpoint(NamedTuple):
    """The growing file's length in bytes and rows, when it contained all rows of the journals before a position.

    segment, position: the journal, and the bytes before that position there.
    """

    segment: int = 0
    position: int = 0
    bytes: int = 0
    rows: int = 0


class Part(NamedTuple):
    """A part that is published, or about to be. rows: its own; calls: those that the rows are the results of.

    sealed: False between the intent and the confirmation that it is published.
    """

    number: int
    segment: int
    name: str
    rows: int
    bytes: int
    sha256: str
    calls: int
    sealed: bool


class Snapshot(NamedTuple):
    """A ledger's content at one moment, even while a run writes it; named as Ledger's methods."""

    facts: dict[str, str | int]
    totals: Totals
    parts: list[Part]
    journals: dict[int, int]
    checkpoint: FileCheckpoint


class Ledger:
    """An open ledger file, created if missing. read_only: for one that a run may have open. advice: what helps if it is
    damaged. expected: the totals of what was committed, by which a restored file is checked.

    For any thread; each waits for its turn. Every method may raise OutputError: the file is damaged, or the disk full.
    """

    def __init__(self, path: str, advice: str = "", *, read_only: bool = False) -> None:
        self.expected = Totals(0, 0, 0)
        self._path = path
        self._refreshing: bool | None = None
        self._file = SqliteFile(path, "the ledger", f"{advice}. {_ADVICE}".removeprefix(". "), read_only=read_only)
        self._index = KeyIndex(self._file, "calls")

    @property
    def fresh(self) -> bool:
        """True when the file is empty: it is new, or its creation was interrupted."""
        return self._number("SELECT count(*) FROM sqlite_master") == 0

    @property
    def unused(self) -> bool:
        """True when there has been no verdict and no part, and nobody else works by the query: the fact PINNED."""
        found = self._number("SELECT EXISTS (SELECT 1 FROM calls) OR EXISTS (SELECT 1 FROM parts)")
        return not found and PINNED not in self.facts()

    def create(self, facts: dict[str, str | int]) -> None:
        """Create the tables of a fresh ledger, and store the dataset's facts by name."""
        with self._file.transaction():
            for statement in _SCHEMA.split(";\n"):
                self._file.connection.execute(statement)
            self._set_facts({"schema": _VERSION, **facts})

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._file.close()

    def tampering(self) -> Tampering | None:
        """Return what another program has done to the file."""
        return self._file.tampering(self._holds)

    def _holds(self) -> bool:
        """Return True if the file, read anew, is whole and counts what is expected."""
        with suppress(OutputError), closing(Ledger(self._path, read_only=True)) as again:
            again.check()
            return again.totals() == self.expected
        return False

    def restore(self) -> None:
        """Write the file again from the open one, if that still counts what is expected.

        Raises:
            OutputError: it does not, so that its content is lost; raised for every further call too.
        """
        self._file.restore(lambda: self.totals() == self.expected)

    # --- facts -----------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, str | int]:
        """Return the dataset's facts by name."""
        return dict(self._rows("SELECT name, value FROM facts"))

    def replace_facts(self, facts: dict[str, str | int]) -> None:
        """Store facts in place of those that were stored before."""
        with self._file.transaction():
            self._set_facts(facts)

    @property
    def refreshing(self) -> bool:
        """True if the dataset's rows are refreshed, so that a call may have several."""
        if self._refreshing is None:
            self._refreshing = REFRESHING in self.facts()
        return self._refreshing

    def begin_refreshing(self, asked_at: int) -> None:
        """Have rows refreshed from now on. asked_at: the end of the window of all answers so far."""
        with self._file.transaction():
            for column in _REFRESH_COLUMNS:
                self._file.connection.execute(f"ALTER TABLE calls ADD COLUMN {column} INTEGER")
            self._file.connection.execute("UPDATE calls SET asked_at = ? WHERE state <> 2", (asked_at,))
            self._set_facts({REFRESHING: 1})
        self._refreshing = True

    def oldest_answer(self, seen: int) -> int | None:
        """Return the end of the oldest window that a link's newest row is for, in seconds since 1970; None without one.

        seen: the run that has listed the link. Reads the whole table.
        """
        rows = "(state = 0 OR (state = 2 AND clicks IS NOT NULL))"
        found: int | None = self._rows(f"SELECT min(asked_at) FROM calls WHERE seen = ? AND {rows}", seen)[0][0]  # noqa: S608
        return found

    def begin_invocation(self) -> int:
        """Return the number of this run of the command, note its start, and forget the last list's invalid lines."""
        with self._file.transaction():
            number = int(self.facts().get("invocation", 0)) + 1
            self._set_facts({"invocation": number})
            self._set_history(begun_run(self.history().runs, number))
            self._file.connection.execute("DELETE FROM invalid")
        return number

    def totals(self) -> Totals:
        """Count the calls. Reads the whole table, so it is called once a run."""
        what = ("state = 0", "state = 1", "state = 2", *Shortfall._fields)
        sums = ", ".join(f"coalesce(sum({each}), 0)" for each in what)
        return Totals(*self._rows(f"SELECT {sums} FROM calls")[0])  # noqa: S608 - ours

    def snapshot(self) -> Snapshot:
        """Return the ledger's content at one moment. Reads the whole table of calls."""
        with self._file.guarded():
            self._file.connection.execute("BEGIN")
            try:
                return Snapshot(self.facts(), self.totals(), self.parts(), self.journals(), self.checkpoint())
            finally:
                self._file.connection.execute("ROLLBACK")

    # --- calls -----------------------------------------------------------------------------------------------------

    def known(self, keys: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what is known of the calls with these keys, without those that are unknown."""
        found: dict[bytes, Known] = {}
        marks = len(Shortfall._fields)
        more = ", ".join(("", *Shortfall._fields, *_REFRESH_COLUMNS)) if self.refreshing else ""
        for _, key, state, failed_runs, seen, *last in self._index.rows(f", state, failed_runs, seen{more}", keys):
            found[key] = Known(_STATES[state], failed_runs, seen)
            if last:
                found[key] = Known(*found[key][:3], Shortfall(*map(bool, last[:marks])), *last[marks:])
        return found

    def commit(
        self,
        *,
        entries: Sequence[tuple[int, Sequence[Entry]]] = (),
        seen: Sequence[bytes] = (),
        invocation: int,
        invalid: Sequence[bytes] = (),
        journals: Mapping[int, int] | None = None,
        checkpoint: FileCheckpoint | None = None,
        counters: dict[str, int] | None = None,
        history: Iterable[StoredEntry] = (),
    ) -> None:
        """Make verdicts durable in one transaction; their journal lines must have been synced before.

        entries: by journal segment. seen: keys of known calls that the current list names. invalid: lines for
        `_failures.ndjson`. journals: bytes committed, by segment. checkpoint: the growing file's synced state.
        counters: added to the facts of these names. history: the latest last.
        """
        with self._index.transaction():
            for segment, verdicts in entries:
                self._settle(segment, verdicts, invocation)
            self._index.update(f"seen = {invocation:d}", seen)
            self._file.connection.executemany("INSERT INTO invalid (line) VALUES (?)", [(line,) for line in invalid])
            self._file.connection.executemany("INSERT OR REPLACE INTO journals VALUES (?, ?)", (journals or {}).items())
            self._set_checkpoint(checkpoint)
            add = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
            self._file.connection.executemany(add, (counters or {}).items())
            self._set_history(history)

    def _settle(self, segment: int, verdicts: Sequence[Entry], invocation: int) -> None:
        """Write the verdicts of one journal, by the rules in settle.sql."""
        refused = {entry.key for entry in verdicts if entry.state is REFUSED_STATE}  # one taken back was not tried
        last = {entry.key: entry for entry in verdicts}
        failed = {key for key, entry in last.items() if entry.state is FAILED_STATE} - refused
        ids = self._index.ids(list(last))
        # Plain integers, and no bytes: sqlite3 looks for an adapter of every value of another type.
        calls: list[Any] = [
            (ids[k], bytearray(k), int(e.state), int(k in failed), invocation, segment, *map(int, e.shortfall))
            for k, e in last.items()
        ]
        if self.refreshing:
            more = ((*c, e.asked_at, e.clicks, GIVEN_UP_RUNS) for c, e in zip(calls, last.values(), strict=True))
            calls = [dict(zip(_SETTLED, each, strict=True)) for each in more]
        self._file.connection.executemany(_SETTLE_REFRESHED if self.refreshing else _SETTLE, calls)
        if self._file.connection.execute("SELECT 1 FROM failures LIMIT 1").fetchone():
            self._file.connection.executemany(
                "DELETE FROM failures WHERE call = ? AND EXISTS "
                "(SELECT 1 FROM calls WHERE calls.id = failures.call AND segment = ?)",
                [(call, segment) for call in ids.values()],
            )
        self._file.connection.executemany(
            "INSERT INTO failures (call, line) SELECT id, ? FROM calls WHERE id = ? AND segment = ? AND state <> 0",
            [(e.line, ids[k], segment) for k, e in last.items() if e.line is not None],
        )

    def set_failed_runs(self, failed_runs: Iterable[tuple[bytes, int]]) -> None:
        """Set in how many runs calls have failed, by key; those that have not failed last stay as they are."""
        with self._index.transaction():
            update = f"UPDATE calls SET failed_runs = ? WHERE id = {_ID} AND state = 2"  # noqa: S608
            self._file.connection.executemany(update, ((count, key) for key, count in failed_runs))

    def take_back_failed_runs(self, keys: Iterable[bytes]) -> None:
        """Count one run less in which these calls have failed."""
        with self._index.transaction():
            update = f"UPDATE calls SET failed_runs = max(failed_runs - 1, 0) WHERE id = {_ID} AND state = 2"  # noqa: S608
            self._file.connection.executemany(update, ((key,) for key in keys))

    def last_refused(self, most: int) -> list[tuple[bytes, bytes]]:
        """Return key and line of the calls that were refused last."""
        select = "SELECT key, line FROM failures JOIN calls ON calls.id = call WHERE state = 1"
        return self._rows(f"{select} ORDER BY failures.id DESC LIMIT ?", most)

    def note_unanswered(self, refused: Iterable[bytes]) -> None:
        """Record the refusals that a killed run has ended with. refused: their keys, and of some that it took back."""
        standing = [key for key, known in self.known(list(refused)).items() if known.state is CallState.REFUSED]
        if len(standing) > int(self.facts().get(UNANSWERED, 0)):
            self.replace_facts({UNANSWERED: len(standing)})

    def calls_of(self, segment: int) -> int:
        """Count the calls whose last verdict is in this journal. Reads the whole table."""
        return self._number("SELECT count(*) FROM calls WHERE segment = ?", segment)

    def forget_calls(self, segment: int, kept: Iterable[bytes]) -> None:
        """Forget the calls whose last line was in this journal, except those kept, whose rows are published."""
        with self._index.transaction():
            self._file.connection.execute("CREATE TEMP TABLE kept (key BLOB PRIMARY KEY) WITHOUT ROWID")
            self._file.connection.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((key,) for key in kept))
            lost = "FROM calls WHERE segment = ? AND key NOT IN (SELECT key FROM kept)"
            self._file.connection.execute(f"DELETE FROM failures WHERE call IN (SELECT id {lost})", (segment,))  # noqa: S608
            self._index.forget(f"SELECT key {lost}", segment)
            self._file.connection.execute(f"DELETE {lost}", (segment,))
            self._file.connection.execute("DROP TABLE kept")

    def failure_lines(self) -> Iterator[bytes]:
        """Yield the lines of `_failures.ndjson`: calls in the order they ended, then the list's invalid lines."""
        # Page by page, so that other threads get their turn between, and the generator can be dropped half-way.
        for table in ("failures", "invalid"):
            select = f"SELECT id, line FROM {table} WHERE id > ? ORDER BY id LIMIT {_PAGE_LINES}"  # noqa: S608 - ours
            last = 0
            while page := self._rows(select, last):
                last = page[-1][0]
                yield from (line for _, line in page)

    def history(self) -> Recorded:
        """Return the history of the dataset's runs, by time and by number."""
        return recorded_in(self._rows("SELECT kind, start, entry FROM history ORDER BY kind, start"))

    # --- journals and parts ----------------------------------------------------------------------------------------

    def journals(self) -> dict[int, int]:
        """Return the bytes committed of each journal that is not all published, by segment."""
        return dict(self._rows("SELECT segment, committed FROM journals ORDER BY segment"))

    def end_segment(self, segment: int, checkpoint: FileCheckpoint | None = None) -> None:
        """Record that a journal is not needed any more: its rows are published, or it has none."""
        with self._file.transaction():
            self._end(segment)
            self._set_checkpoint(checkpoint)

    def checkpoint(self) -> FileCheckpoint:
        """Return the growing file's last checkpoint."""
        found = self._rows("SELECT segment, position, bytes, rows FROM checkpoint")
        return FileCheckpoint(*found[0]) if found else FileCheckpoint()

    def set_checkpoint(self, checkpoint: FileCheckpoint) -> None:
        """Store the growing file's checkpoint; the file must have been synced before."""
        with self._file.transaction():
            self._set_checkpoint(checkpoint)

    def parts(self) -> list[Part]:
        """Return all parts, by number."""
        rows = self._rows("SELECT number, segment, name, rows, bytes, sha256, calls, sealed FROM parts ORDER BY number")
        return [Part(*row)._replace(sealed=bool(row[-1])) for row in rows]

    def next_part(self) -> int:
        """Return the number of the next part."""
        return self._number("SELECT count(*) FROM parts")

    def intend(self, part: Part) -> None:
        """Record the intent to publish a part, with the size and digest of its file."""
        with self._file.transaction():
            self._file.connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, 0)", part[:-1])

    def withdraw(self, part: Part) -> None:
        """Forget an intent whose file was never published."""
        with self._file.transaction():
            self._file.connection.execute("DELETE FROM parts WHERE number = ? AND sealed = 0", (part.number,))

    def seal(self, part: Part) -> None:
        """Record that a part is published, so that its journal is not needed any more."""
        with self._file.transaction():
            self._file.connection.execute("UPDATE parts SET sealed = 1 WHERE number = ?", (part.number,))
            self._end(part.segment)

    def ended(self) -> int:
        """Return the last segment whose journal is not needed any more; -1 for none. They end in order."""
        return int(self.facts().get("ended", -1))

    # --- checks ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check the file's structure and version: calls on a damaged page would be made, and paid for, again."""
        if (found := self._rows("PRAGMA quick_check(1)")[0][0]) != "ok":
            raise self._file.damaged(found)
        self.check_version()
        for table in _TABLES:  # one that is gone is damage
            self._rows(f"SELECT 1 FROM {table} LIMIT 0")  # noqa: S608 - ours
        if not self._index.whole():
            raise self._file.damaged("its index lacks calls")

    def check_version(self) -> None:
        """Raise OutputError if the ledger is of another version."""
        version = self.facts().get("schema")
        if version != _VERSION:
            text = f"schema {version}, and this harvester supports {_VERSION}; use the one that made it"
            raise OutputError(f"{self._path}: {text}")

    def _rows(self, select: str, *parameters: Any) -> list[Any]:
        with self._file.guarded():
            return self._file.connection.execute(select, parameters).fetchall()

    def _number(self, select: str, *parameters: Any) -> int:
        return int(self._rows(select, *parameters)[0][0])

    def _end(self, segment: int) -> None:
        self._file.connection.execute("DELETE FROM journals WHERE segment = ?", (segment,))
        self._set_facts({"ended": segment})

    def _set_checkpoint(self, checkpoint: FileCheckpoint | None) -> None:
        if checkpoint is not None:
            self._file.connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (0, ?, ?, ?, ?)", checkpoint)

    def _set_history(self, entries: Iterable[StoredEntry]) -> None:
        for entry in entries:
            self._file.connection.execute("DELETE FROM history WHERE kind = ? AND start >= ? AND start < ?", entry[:3])
            self._file.connection.execute("INSERT INTO history VALUES (?, ?, ?)", (*entry[:2], entry.text))

    def _set_facts(self, values: dict[str, str | int]) -> None:
        self._file.connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", values.items())
