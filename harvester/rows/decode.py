"""The decoder of published files: their bytes become numbered rows again, hashed on the way, in bounded memory.

`harvester verify` reads with it, so it distrusts everything. A row that cannot be read is yielded as BadRow, so that
the rows after it are checked too; a file that cannot be read further (torn compression, a line without an end, foreign
columns) raises UnreadableFile. A line must mean the same to every loader: JSON that repeats a key is bad, because
loaders disagree on which of the two counts.

Compressed lines are decompressed as a stream. Parquet's index is at the end, so the stream, which may come from an
object store, is first copied to a temporary file and then read one row group after another.
"""

import gzip
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, cast

import orjson

from harvester.clock import from_epoch, utc_iso
from harvester.extras import import_pyarrow, import_zstd
from harvester.rows.encode import Format, PartFormat, arrow_schema
from harvester.rows.schema import Column, Kind, columns_of

_CHUNK = 1024 * 1024
_LINE_LIMIT = 64 * 1024 * 1024
"""The longest row in bytes: a response has at most 4 MiB, and JSON may write one byte as six."""
_BATCH_ROWS = 4096


class BadRow(str):
    """The reason why a row cannot be read; yielded in its place."""

    __slots__ = ()


class UnreadableFile(Exception):
    """A file cannot be read further; the message is the reason."""


class HashingReader:
    """A stream that counts and hashes the bytes read from it. size: bytes so far. limit: bytes after which it ends."""

    def __init__(self, stream: BinaryIO, limit: int | None = None) -> None:
        self.size = 0
        self._stream = stream
        self._limit = limit
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes read so far, in hexadecimal."""
        return self._digest.hexdigest()

    def read(self, size: int = _CHUNK) -> bytes:
        """Return at most size bytes; b"" at the end."""
        if self._limit is not None:
            size = min(size, self._limit - self.size)
        data = self._stream.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read to the end, so that size and sha256 cover the whole file."""
        while self.read():
            pass


def rows_of(stream: HashingReader, part_format: PartFormat) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file, numbered from 1; BadRow stands for one that cannot be read.

    Raises:
        UnreadableFile: the file cannot be read further. UsageError: a library is missing.
    """
    if part_format.format is Format.PARQUET:
        return enumerate(_parquet_rows(stream, part_format), 1)
    return lines_of(stream, part_format.format)


def lines_of(stream: HashingReader, format_: Format) -> Iterator[tuple[int, Any]]:
    """Yield the JSON values of a file of lines, numbered from 1; BadRow stands for one that cannot be read.

    Raises:
        UnreadableFile: the file cannot be read further. UsageError: a library is missing.
    """
    return enumerate(map(_parsed, _lines(stream, format_)), 1)


# --- NDJSON -------------------------------------------------------------------------------------------------------


def _parsed(line: bytes | BadRow) -> Any:
    """Return a line's JSON value; BadRow if it is not JSON, or if loaders may read it differently (a repeated key)."""
    if isinstance(line, BadRow):
        return line
    try:
        row = orjson.loads(line)
        # Fast path: harvester's own lines round-trip, and only others need the slower parser.
        if orjson.dumps(row) != line:
            json.loads(line, object_pairs_hook=_check_keys, parse_int=str)
    except orjson.JSONDecodeError as error:
        return BadRow(f"not JSON: {error}")
    except _RepeatedKey as error:
        return BadRow(f"duplicate key: {error}")
    except (orjson.JSONEncodeError, RecursionError):
        return BadRow("it is nested too deeply")
    return row


class _RepeatedKey(Exception):
    """An object has a key twice; the message is the key."""


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    """Raise _RepeatedKey if an object, given as its keys and values, has a key twice."""
    names = set[str]()
    for name, _ in pairs:
        if name in names:
            raise _RepeatedKey(name[:60])
        names.add(name)


def _lines(stream: HashingReader, format_: Format) -> Iterator[bytes | BadRow]:
    """Yield lines without their line feeds; a last line without one is torn, and bad."""
    text, errors = _decompressed(stream, format_)
    rest = b""
    try:
        while chunk := text.read(_CHUNK):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            yield from lines
            if len(rest) > _LINE_LIMIT:
                raise UnreadableFile(f"a line of more than {_LINE_LIMIT:,} bytes")
    except errors as error:
        raise UnreadableFile(f"cannot be read further: {error}") from error
    if rest:
        yield BadRow("incomplete: it has no line feed at its end")


def _decompressed(stream: HashingReader, format_: Format) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return the stream of a file's NDJSON, and the exceptions that reading it may raise."""
    match format_:
        case Format.NDJSON_GZ:
            return gzip.GzipFile(fileobj=cast("BinaryIO", stream)), (OSError, EOFError, zlib.error)
        case Format.NDJSON_ZST:
            zstd = import_zstd("parts in zstd need a library")
            return zstd.ZstdFile(cast("BinaryIO", stream)), (OSError, EOFError, zstd.ZstdError)
        case _:
            return stream, (OSError,)


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet_rows(stream: HashingReader, part_format: PartFormat) -> Iterator[dict[str, Any]]:
    """Yield the rows of one row group after another."""
    shape, facet = part_format.shape, part_format.facet
    arrow = import_pyarrow("parts in Parquet need a library")
    with ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile(prefix="harvester-"))
        shutil.copyfileobj(stream, copy, _CHUNK)
        copy.seek(0)
        try:
            file = stack.enter_context(arrow.parquet.ParquetFile(copy))
            if difference := _difference(file.schema_arrow, arrow_schema(shape, facet)):
                raise UnreadableFile(difference)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                for batch in table.to_batches(_BATCH_ROWS):
                    yield from _rows_in(batch, columns_of(shape, facet))
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UnreadableFile(f"cannot be read as Parquet: {error}") from error


def _difference(found: Any, expected: Any) -> str | None:
    """Return how a file's Arrow schema differs from the expected one, or None if it does not."""
    if found.names != expected.names:
        return f"its columns are {', '.join(found.names)}, expected {', '.join(expected.names)}"
    for ours, theirs in zip(expected, found, strict=True):
        if not ours.equals(theirs):
            return f"its column {ours.name} is {theirs.type}, expected {ours.type}, or differs in what may be null"
    return None


def _rows_in(batch: Any, columns: tuple[Column, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow batch as they stand in NDJSON."""
    names = [column.name for column in columns]
    values = [_values(batch.column(column.name), column.kind) for column in columns]
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


def _values(array: Any, kind: Kind) -> list[Any]:
    """Return the values of a column, one for each row."""
    if kind is Kind.MOMENT:
        return [None if moment is None else _moment_text(moment) for moment in array.cast("int64").to_pylist()]
    if kind is Kind.MAP:
        return [None if pairs is None else _map_of(pairs) for pairs in array.to_pylist()]
    if kind is not Kind.METRICS or array.null_count:
        plain: list[Any] = array.to_pylist()
        return plain
    entries = array.flatten()
    # Convert all metrics of the batch at once, then split them by list length: list by list is far slower.
    names = [field.name for field in entries.type]
    moments = {field.name for field in entries.type if str(field.type).startswith("timestamp")}
    values = [_values(entries.field(name), Kind.MOMENT if name in moments else Kind.TEXT) for name in names]
    metrics = (dict(zip(names, metric, strict=True)) for metric in zip(*values, strict=True))
    return [list(islice(metrics, count)) for count in array.value_lengths().to_pylist()]


def _map_of(pairs: list[tuple[str, str | None]]) -> Any:
    """Return a map as NDJSON has it; the pairs themselves, which are none, if a key is there twice."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else pairs


@lru_cache(1024)
def _moment_text(milliseconds: int) -> str:
    """Return a moment as NDJSON has it. With a fraction of a second, or out of range, it is another text: a bad row."""
    seconds, rest = divmod(milliseconds, 1000)
    try:
        text = utc_iso(from_epoch(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms since 1970"
    return f"{text[:-1]}.{rest:03}Z" if rest else text
