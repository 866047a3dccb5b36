"""The rows of outputs as a table in DuckDB: a database of its own in a temporary folder, with bounded memory.

Each file is read once, by DuckDB itself, whatever its format. What is not a whole local file is copied beside the
database first: an object of a store, and the committed bytes of a file that may grow.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

from harvester.bitly.facets import FACETS, FieldKind
from harvester.errors import OutputError, as_output_error
from harvester.extras import import_duckdb
from harvester.rows.encode import Format
from harvester.rows.schema import GROUP_EXPORT, Shape
from harvester.storage.location import FAILURES
from harvester.storage.storage import LocalStorage, Storage
from harvester.sums.figures import Damage
from harvester.sums.sources import RowFile, Source

_MEMORY, _THREADS = "256MB", 2
"""What DuckDB may use. What does not fit is written beside the database."""
_ROW_BYTES, _LONG_ROW_BYTES = 16 * 1024 * 1024, 64 * 1024 * 1024
"""The longest row that is read at first, and at the second try: DuckDB takes several buffers of that size a thread."""
_CHUNK = 1024 * 1024
_FILE = "$FILE"
_TYPES = {FieldKind.TEXT: "VARCHAR", FieldKind.COUNT: "BIGINT", FieldKind.MOMENT: "TIMESTAMP"}
_COLUMNS = {
    "bitlink": "VARCHAR",
    "units": "BIGINT",
    "unit_reference": "VARCHAR",
    "period_start": "VARCHAR",
    "period_end": "VARCHAR",
    "fetched_at": "VARCHAR",
    "units_returned": "BIGINT",
    "unit_reference_returned": "VARCHAR",
    "clicks_listed": "BIGINT",
    "truncated": "BOOLEAN",
    "source": "VARCHAR",
    "carried": "MAP(VARCHAR, VARCHAR)",
}
"""What is read of a call's columns, with the types that NDJSON is read with."""
_MOMENTS = ("unit_reference", "period_start", "period_end", "fetched_at")
_FAILURE = {
    "kind": "VARCHAR", "status": "BIGINT", "message": "VARCHAR", "bitlink": "VARCHAR", "file": "VARCHAR",
    "line": "BIGINT", "text": "VARCHAR",
}  # fmt: skip


class _Damaged(Exception):
    """A file has something that is not a row, or less than it should."""


class _Target(NamedTuple):
    """A table that rows are added to. select: the query over a file. columns: what JSON is read as."""

    name: str
    select: str
    columns: dict[str, str]


class Database:
    """DuckDB in a temporary folder. missing: parts that the manifest lists and that are gone. damaged: files that are
    not as their manifest says. uncommitted: bytes that a growing file has behind the committed ones."""

    def __init__(self, connection: Any, duckdb: Any, folder: str) -> None:
        self.missing: list[str] = []
        self.damaged: list[Damage] = []
        self.uncommitted = 0
        self._connection = connection
        self._duckdb = duckdb
        self._folder = folder

    def fetch(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query.

        Raises:
            OutputError: there is not enough room for it.
        """
        try:
            return self._run(statement, values)
        except self._duckdb.Error as error:
            raise self._without_room(error) from error

    def _without_room(self, error: Exception) -> OutputError:
        reason = _first_line(error)
        return OutputError(f"the sums were not made: {reason}. TMPDIR may name a folder with more room")

    def _run(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(statement, list(values) or None).fetchall()
        return found

    def load_rows(self, facet: str, sources: Sequence[Source]) -> None:
        """Make the table `rows` of outputs of a facet: one for each call, or (flat) for each metric of a call.

        Its `source` is the output's place among the sources. metrics: a list, of one metric in the flat shape. A file
        with something that is not a row has none there.
        """
        self.fetch(
            "CREATE OR REPLACE TABLE rows (source INTEGER, call UUID, bitlink VARCHAR, unit_reference VARCHAR, "
            "period_start VARCHAR, period_end VARCHAR, fetched_at VARCHAR, clicks BIGINT, truncated BOOLEAN, "
            f"clipped BOOLEAN, idle BOOLEAN, carried MAP(VARCHAR, VARCHAR), metrics {metrics_type(facet)})"
        )
        for number, source in enumerate(sources):
            for file in source.files():
                self._insert(file, source, number)

    def load_failures(self, sources: Iterable[Source]) -> None:
        """Make the table `failures` of the files `_failures.ndjson`.

        A line that is no bitlink is there once, however many outputs were made of its list.
        """
        columns = ", ".join(f"{name} {kind}" for name, kind in _FAILURE.items())
        self.fetch(f"CREATE OR REPLACE TABLE failures ({columns})")
        for source in sources:
            if not source.has_failures:
                continue
            select = f"SELECT {', '.join(_FAILURE)} FROM {_FILE}"
            self._add(_Target("failures", select, _FAILURE), source, RowFile(FAILURES, Format.NDJSON))
        first = "SELECT min(rowid) FROM failures WHERE kind = 'invalid' GROUP BY file, line, text"
        self.fetch(f"DELETE FROM failures WHERE kind = 'invalid' AND rowid NOT IN ({first})")

    def _insert(self, file: RowFile, source: Source, number: int) -> None:
        if file.size == 0:  # a growing file of which nothing is committed yet
            with suppress(FileNotFoundError):
                self.uncommitted += os.path.getsize(source.rows.path(file.name))
            return
        shape = Shape(source.manifest.shape)
        try:
            select = _select(source.facet, shape, number, parquet=file.format is Format.PARQUET)
            self._add(_Target("rows", select, _json_columns(source.facet, shape)), source, file)
        except FileNotFoundError:
            self.missing.append(source.name_of(file.name))

    def _add(self, table: _Target, source: Source, file: RowFile) -> None:
        """Insert a file's rows into a table, and note if they are not those that it should have."""
        read, why = 0, ""
        try:
            with self._staged(source.beside if file.name == FAILURES else source.rows, file) as path:
                read = self._insert_into(table, path)
        except _Damaged as error:
            why = str(error)
        except PermissionError as error:
            why = f"it cannot be read: {error.strerror}"
        if not why and file.rows not in {None, read}:
            why = f"it has {read:,}"
        if why:
            self.damaged.append(Damage(source.name_of(file.name), source.asked, file.rows, read, why))

    def _insert_into(self, table: _Target, path: str) -> int:
        """Insert a file's rows, and return their number."""
        for most in (_ROW_BYTES, _LONG_ROW_BYTES):
            try:
                select = table.select.replace(_FILE, _reader(table.columns, path, most))
                found = self._run(f"INSERT INTO {table.name} {select}", [path])
                return int(found[0][0])
            except self._duckdb.OutOfMemoryException as error:
                raise self._without_room(error) from error
            except self._duckdb.Error as error:
                if "No space left" in str(error):
                    raise self._without_room(error) from error
                if most == _LONG_ROW_BYTES or "maximum_object_size" not in str(error):
                    raise _Damaged(_without_path(_first_line(error), path)) from error
        raise AssertionError("the second try returns or raises")

    @contextmanager
    def _staged(self, storage: Storage, file: RowFile) -> Iterator[str]:
        """Yield the path under which DuckDB reads a file. It is plain: DuckDB takes a `*` in a path for a pattern."""
        path = os.path.join(self._folder, f"rows.{file.format}")
        try:
            with closing(storage.open(file.name)) as stream:
                if isinstance(storage, LocalStorage) and self._is_whole(stream, file.size):
                    os.symlink(os.path.realpath(storage.path(file.name)), path)
                else:
                    _copy(stream, path, file.size)
            yield path
        finally:
            if os.path.lexists(path):
                os.unlink(path)

    def _is_whole(self, stream: BinaryIO, size: int | None) -> bool:
        """Return whether a local file has only what is to be read."""
        if size is None:
            return True
        more = os.fstat(stream.fileno()).st_size - size
        if more < 0:
            raise _Damaged(f"it has {-more:,} bytes less than the manifest says: it was truncated")
        self.uncommitted += more
        return more == 0


@contextmanager
def opened_database() -> Iterator[Database]:
    """Open an empty database, which is deleted in the end.

    Raises:
        UsageError: duckdb is not installed.
    """
    duckdb = import_duckdb("sums of rows need DuckDB")
    with as_output_error(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="harvester-report-") as folder:
        settings = {
            "memory_limit": _MEMORY,
            "threads": _THREADS,
            "temp_directory": folder,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,  # nothing is downloaded
            "autoload_known_extensions": False,
        }
        with duckdb.connect(os.path.join(folder, "rows.duckdb"), config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield Database(connection, duckdb, folder)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _without_path(text: str, path: str) -> str:
    """Return a message without the name under which a file was read."""
    for part in (f' in file "{path}"', f': "{path}"', f": {path}"):
        text = text.replace(part, "")
    return text.replace(path, "it")


def metrics_type(facet: str) -> str:
    """Return DuckDB's type of a facet's metrics."""
    return f"STRUCT({', '.join(f'{field.name} {_TYPES[field.kind]}' for field in FACETS[facet].fields)})[]"


def _json_columns(facet: str, shape: Shape) -> dict[str, str]:
    if shape is Shape.NESTED:
        return {"record_id": "UUID", **_COLUMNS, "metrics": metrics_type(facet)}
    return {"call_id": "UUID", **_COLUMNS, **{field.name: _TYPES[field.kind] for field in FACETS[facet].fields}}


def _reader(columns: dict[str, str], path: str, most: int) -> str:
    """Return the table function that reads a file, whose path is the statement's first value. most: bytes of a row."""
    if path.endswith(Format.PARQUET):
        return "read_parquet($1)"
    types = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    packed = {Format.NDJSON_GZ: "gzip", Format.NDJSON_ZST: "zstd"}
    compression = next((name for ending, name in packed.items() if path.endswith(ending)), "uncompressed")
    return (
        f"read_json($1, format = 'newline_delimited', compression = '{compression}', "
        f"maximum_object_size = {most}, columns = {{{types}}})"
    )


def _select(facet: str, shape: Shape, number: int, *, parquet: bool) -> str:
    """Return the query of the table `rows` over a file's columns; _FILE stands for the table function that reads it."""
    metrics, call = "metrics", "record_id"
    if shape is Shape.FLAT:
        names, call = [field.name for field in FACETS[facet].fields], "call_id"
        nothing = " AND ".join(f"{name} IS NULL" for name in names)
        metrics = f"CASE WHEN {nothing} THEN [] ELSE [struct_pack({', '.join(f'{n} := {n}' for n in names)})] END"
    text = "strftime({}::TIMESTAMP, '%Y-%m-%dT%H:%M:%SZ')" if parquet else "{}"
    reference, start, end, fetched = (text.format(name) for name in _MOMENTS)
    series = f"len({metrics}) = 0" if FACETS[facet].is_series else "false"
    idle = f"coalesce(source = '{GROUP_EXPORT}', false)"
    # The rules of rows.schema.is_clipped.
    clipped = (
        "coalesce(units_returned BETWEEN 0 AND units - 1, false) OR (period_start IS NOT NULL AND "
        f"(coalesce(unit_reference_returned NOT BETWEEN {start} AND {end}, false) OR {series}))"
    )
    return (
        f"SELECT {number}, {call}::UUID, bitlink, {reference}, {start}, {end}, {fetched}, clicks_listed, "
        f"truncated AND NOT {idle}, ({clipped}) AND NOT {idle}, {idle}, carried, {metrics}::{metrics_type(facet)} "
        f"FROM {_FILE}"
    )


def _copy(stream: BinaryIO, path: str, size: int | None) -> None:
    """Copy a stream, or its first bytes, to a new file."""
    with open(path, "xb") as target:
        if size is None:
            shutil.copyfileobj(stream, target, _CHUNK)
        while size and (data := stream.read(min(size, _CHUNK))):
            target.write(data)
            size -= len(data)
