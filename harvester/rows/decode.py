"""A published file's bytes back to rows, with their line numbers, in bounded memory; hashed on the way."""

import gzip
import hashlib
import io
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO, cast

import orjson

from harvester.errors import UsageError
from harvester.rows.encode import Format, arrow_schema
from harvester.rows.schema import COLUMNS, Kind, Shape

_CHUNK = 1024 * 1024
_LINE_LIMIT = 64 * 1024 * 1024
"""An answer has 4 MiB at most, and JSON may write a byte as six."""
_BATCH_ROWS = 4096
_EPOCH_MILLISECONDS = 1000


class BadRow(str):
    """Stands for a row that cannot be read; it is the reason."""

    __slots__ = ()


class UnreadableFile(Exception):
    """From here on nothing can be read of a file; the text is the reason."""


class HashingReader(io.RawIOBase):
    """A stream that is measured while it is read: size in bytes, sha256. most: where it is taken to end."""

    def __init__(self, stream: BinaryIO, most: int | None = None) -> None:
        self.size = 0
        self._stream = stream
        self._most = most
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of what was read, in hexadecimal."""
        return self._digest.hexdigest()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Give at most size bytes."""
        wanted = _CHUNK if size is None or size < 0 else size
        if self._most is not None:
            wanted = min(wanted, self._most - self.size)
        data = self._stream.read(wanted)
        self._digest.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read what is left, to measure it."""
        while self.read(_CHUNK):
            pass


def rows_of(stream: HashingReader, form: Format, shape: Shape) -> Iterator[tuple[int, Any]]:
    """Yield a file's rows with their numbers from 1; a line that is none comes as Bad.

    Raises:
        Broken: nothing more can be read. UsageError: a library is missing.
    """
    if form is Format.PARQUET:
        return _parquet_rows(stream, shape)
    return enumerate(_parsed(_lines(stream, form)), 1)


# --- lines --------------------------------------------------------------------------------------------------------


def _parsed(lines: Iterator[bytes | BadRow]) -> Iterator[Any]:
    for line in lines:
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield BadRow(f"not JSON: {error}")
        else:
            yield _flaw_of(line, row) or row


def _flaw_of(line: bytes, row: Any) -> BadRow | None:
    """Say what loaders do not agree upon in a line that is JSON, if it has that: an object's key twice."""
    try:
        # Lines are written so, and only one that was not is worth a slower look.
        if orjson.dumps(row) == line:
            return None
        json.loads(line, object_pairs_hook=_once, parse_int=str)
    except _Twice as error:
        return BadRow(f"{error} is there twice")
    except (orjson.JSONEncodeError, RecursionError):
        return BadRow("lists or objects lie too deep in it")
    return None


class _Twice(Exception):
    """An object's key is there twice; the text is the key."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = set[str]()
    for name, _ in pairs:
        if name in names:
            raise _Twice(name[:60])
        names.add(name)


def _lines(stream: HashingReader, form: Format) -> Iterator[bytes | BadRow]:
    """Yield lines without their line feeds; one that has none is torn."""
    unpacked, errors = _unpacked(stream, form)
    rest = b""
    try:
        while chunk := unpacked.read(_CHUNK):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            yield from lines
            if len(rest) > _LINE_LIMIT:
                raise UnreadableFile(f"a line of more than {_LINE_LIMIT:,} bytes")
    except errors as error:
        raise UnreadableFile(f"cannot be read further: {error}") from error
    if rest:
        yield BadRow("torn: it has no line feed at its end")


def _unpacked(stream: HashingReader, form: Format) -> tuple[Any, tuple[type[Exception], ...]]:
    """Give the NDJSON in a file, and the errors that reading it may raise."""
    match form:
        case Format.GZIP:
            return gzip.GzipFile(fileobj=cast("BinaryIO", stream)), (OSError, EOFError, zlib.error)
        case Format.ZSTD:
            zstd = _zstd()
            return zstd.ZstdFile(cast("BinaryIO", stream)), (OSError, EOFError, zstd.ZstdError)
        case _:
            return stream, (OSError,)


def _zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - only this format needs it
        else:
            from backports import zstd  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("parts in zstd need a library: pip install 'bitly-harvester[zstd]'") from error
    return zstd


# --- parquet ------------------------------------------------------------------------------------------------------


def _parquet_rows(stream: HashingReader, shape: Shape) -> Iterator[tuple[int, Any]]:
    """Read one row group after the other; from a copy, because Parquet is read from its end."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise UsageError("parts in Parquet need a library: pip install 'bitly-harvester[parquet]'") from error
    number = 0
    with ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile(prefix="harvester-"))
        shutil.copyfileobj(stream, copy, _CHUNK)
        copy.seek(0)
        try:
            file = stack.enter_context(parquet.ParquetFile(copy))
            if misfit := _misfit(file.schema_arrow, arrow_schema(shape)):
                raise UnreadableFile(misfit)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                for batch in table.to_batches(_BATCH_ROWS):
                    for row in _rows_in(batch, shape):
                        number += 1
                        yield number, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UnreadableFile(f"cannot be read as Parquet: {error}") from error


def _misfit(has: Any, wanted: Any) -> str | None:
    """Say which column is not as it should be."""
    if has.names != wanted.names:
        return f"its columns are {', '.join(has.names)}, and not {', '.join(wanted.names)}"
    for mine, theirs in zip(wanted, has, strict=True):
        if not mine.equals(theirs):
            return f"its column {mine.name} is {theirs.type}, and not {mine.type}, or differs in what may be null"
    return None


def _rows_in(batch: Any, shape: Shape) -> Iterator[dict[str, Any]]:
    names = [column.name for column in COLUMNS[shape]]
    values = [_values(batch.column(column.name), column.kind) for column in COLUMNS[shape]]
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


def _values(array: Any, kind: Kind) -> list[Any]:
    """Give a column's values as NDJSON would have them."""
    if kind is Kind.MOMENT:
        return [None if moment is None else _moment_text(moment) for moment in array.cast("int64").to_pylist()]
    if kind is not Kind.METRICS or array.null_count:
        found: list[Any] = array.to_pylist()
        return found
    pairs = array.flatten()
    listed = zip(pairs.field("value").to_pylist(), pairs.field("clicks").to_pylist(), strict=True)
    metrics = [{"value": value, "clicks": clicks} for value, clicks in listed]
    lists, place = [], 0
    for count in array.value_lengths().to_pylist():
        lists.append(metrics[place : place + count])
        place += count
    return lists


@lru_cache(1024)
def _moment_text(milliseconds: int) -> str:
    """Write a moment as NDJSON does; one between two seconds, or beyond all calendars, in another way."""
    seconds, rest = divmod(milliseconds, _EPOCH_MILLISECONDS)
    try:
        text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:19]
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms since 1970"
    return f"{text}.{rest:03}Z" if rest else f"{text}Z"
