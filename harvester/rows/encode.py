"""A part's bytes, made of a journal's rows: in a format and a shape, and the same bytes each time."""

import gzip
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import orjson

from harvester.errors import UsageError
from harvester.rows.row import one_line
from harvester.rows.schema import COLUMNS, METRIC, Column, Kind, Shape

_GZIP_LEVEL = 6
_BLOCK_BYTES = 1024 * 1024
"""Compressors get so much at once: in such calls they let other threads run."""
_GROUP_BYTES = 32 * 1024 * 1024
"""NDJSON bytes of a Parquet row group, which lies in memory as tables until it is written."""
_SEPARATOR = "\x1f"
_FLAT_END = len(',"schema_version":1}\n')


class Format(StrEnum):
    """What a part is, and how its name ends."""

    NDJSON = "ndjson"
    GZIP = "ndjson.gz"
    ZSTD = "ndjson.zst"
    PARQUET = "parquet"


class PartFormat(NamedTuple):
    """How parts are made: it belongs to the dataset."""

    format: Format
    shape: Shape


_LINES = PartFormat(Format.NDJSON, Shape.NESTED)
"""What a growing file and standard output have, and what a dataset has that says nothing else of itself."""


class RequestedPartFormat(NamedTuple):
    """How parts are to be made, as far as that was said."""

    format: Format | None = None
    shape: Shape | None = None

    def for_new(self, *, folder: bool) -> PartFormat:
        """Give what a new dataset gets: gzipped NDJSON, which every loader takes, where nothing was said.

        Raises:
            UsageError: no folder, and yet another form than lines; or a library is missing.
        """
        if folder:
            making = PartFormat(self.format or Format.GZIP, self.shape or Shape.NESTED)
            check_available(making)
            return making
        if self.over(_LINES) != _LINES:
            raise UsageError(
                "only a folder has parts of another --format or --shape; a file and standard output get nested NDJSON"
            )
        return _LINES

    def for_begun(self, facts: Mapping[str, Any], out: str) -> PartFormat:
        """Give what a dataset was begun with. facts: the ledger's.

        Raises:
            UsageError: something else was asked for, or a library is missing.
        """
        has = PartFormat(Format(facts.get("format", _LINES.format)), Shape(facts.get("shape", _LINES.shape)))
        if self.over(has) != has:
            raise UsageError(
                f"{out} was begun with --format {has.format} --shape {has.shape}: leave them out, or name another --out"
            )
        check_available(has)
        return has

    def over(self, has: PartFormat) -> PartFormat:
        """Give a making with what was said in place of what it has."""
        return PartFormat(self.format or has.format, self.shape or has.shape)


class PartCounts(NamedTuple):
    """What was written: rows of the part, and the calls that they tell of."""

    rows: int
    calls: int


class HashingWriter(io.RawIOBase):
    """A stream that is measured while it is written: size in bytes, sha256."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._stream = stream
        self._given_up = False

    @property
    def sha256(self) -> str:
        """The bytes' checksum, in hexadecimal."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def tell(self) -> int:
        """Give how much was written."""
        return self.size

    def give_up(self) -> None:
        """Drop what else comes: a compressor that is not closed writes its end when it is collected."""
        self._given_up = True

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        view = memoryview(data).cast("B")
        if self._given_up:
            return view.nbytes
        self._stream.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes


class _Writer(Protocol):
    """Takes blocks of whole NDJSON lines."""

    def write(self, block: bytes) -> object: ...
    def close(self) -> None: ...


def write_part(rows: Iterable[bytes], target: HashingWriter, making: PartFormat) -> PartCounts:
    """Write rows, each with its line feed, as the part's format and shape want them.

    Deterministic for the same versions of the libraries: no moment and no name of a file goes into it.
    """
    try:
        writer = _WRITERS[making.format](target, making.shape)
        poured = _pour(rows, writer, making.shape)
        writer.close()
    except BaseException:
        target.give_up()
        raise
    return poured


def _pour(rows: Iterable[bytes], writer: _Writer, shape: Shape) -> PartCounts:
    poured, calls = 0, 0
    block: list[bytes] = []
    size = 0
    for row in rows:
        calls += 1
        for line in flattened(row) if shape is Shape.FLAT else (row,):
            poured += 1
            block.append(line)
            size += len(line)
        if size >= _BLOCK_BYTES:
            writer.write(b"".join(block))
            block, size = [], 0
    if block:
        writer.write(b"".join(block))
    return PartCounts(poured, calls)


def flattened(row: bytes) -> Iterator[bytes]:
    """Yield the flat lines of a nested row: one for each metric, or one with nulls where there is none.

    A flat record_id is made like the nested one, with two fields joined behind: how many times the value has come in
    the call, from 1, and the value; 0 and nothing where there is none. The number is first: a value may hold U+001F.
    """
    call = orjson.loads(row)
    metrics = call.pop("metrics") or [{"value": None, "clicks": None}]
    version = call.pop("schema_version")
    key = _SEPARATOR.join(str(call[name]) for name in ("bitlink", "facet", "unit", "units", "unit_reference"))
    seen: dict[str, int] = {}
    for metric in metrics:
        value = metric["value"]
        if value is None:
            behind = f"0{_SEPARATOR}"
        else:
            seen[value] = seen.get(value, 0) + 1
            behind = f"{seen[value]}{_SEPARATOR}{value}"
        call["record_id"] = hashlib.sha256(f"{key}{_SEPARATOR}{behind}".encode()).hexdigest()[:32]
        yield one_line(call | {"value": value, "clicks": metric["clicks"], "schema_version": version}) + b"\n"


class EncodedSize(NamedTuple):
    """Rows of a part, and their bytes as NDJSON."""

    rows: int
    bytes: int


def encoded_size(row: bytes, shape: Shape) -> EncodedSize:
    """Say how much a nested row, without its line feed, adds to a part of a shape; flat bytes to within a few a row."""
    if shape is Shape.NESTED:
        return EncodedSize(1, len(row) + 1)
    # Neither can stand in a value: a quotation mark is escaped there.
    before, metrics = row.index(b'"metrics":['), row.count(b'"clicks":')
    rows = max(metrics, 1)
    return EncodedSize(rows, rows * (before + _FLAT_END) + len(row) - before)


def check_available(making: PartFormat) -> None:
    """Make sure that the libraries a format needs are there.

    Raises:
        UsageError: they are not.
    """
    _WRITERS[making.format](HashingWriter(io.BytesIO()), making.shape).close()


class _Plain:
    def __init__(self, target: HashingWriter, shape: Shape) -> None:  # noqa: ARG002 - all writers are made alike
        self.write = target.write

    def close(self) -> None:
        """Nothing is held back."""


def _gzip(target: HashingWriter, shape: Shape) -> _Writer:  # noqa: ARG001
    # No moment and no name in the header: the same rows give the same bytes.
    return gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=cast("BinaryIO", target), mtime=0)


def _zstd(target: HashingWriter, shape: Shape) -> _Writer:  # noqa: ARG001
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - only this format needs it
        else:
            from backports import zstd  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            "ndjson.zst needs a library: pip install 'bitly-harvester[zstd]'", option="--format"
        ) from error
    # As gzip has one, and the zstd command writes one: a reader sees a flipped bit.
    checked: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    return cast("_Writer", zstd.ZstdFile(cast("BinaryIO", target), "wb", options=checked))


class _Parquet:
    """Row groups of about the same size, zstd; pyarrow reads the lines, outside of Python's lock."""

    def __init__(self, target: HashingWriter, shape: Shape) -> None:
        try:
            import pyarrow  # noqa: ICN001, PLC0415 - an extra
            from pyarrow import json, parquet  # noqa: PLC0415
        except ImportError as error:
            raise UsageError(
                "parquet needs a library: pip install 'bitly-harvester[parquet]'", option="--format"
            ) from error
        self._arrow, self._json = pyarrow, json
        self._schema = arrow_schema(shape)
        self._writer = parquet.ParquetWriter(target, self._schema, compression="zstd")
        self._group: list[Any] = []
        self._size = 0

    def write(self, block: bytes) -> None:
        """Take lines; a row group is written when enough have come."""
        table = self._json.read_json(
            self._arrow.BufferReader(block),  # unlike a file of Python's it is read without Python's lock
            # One block and one thread: chunks, and with them the bytes, do not depend on the machine.
            read_options=self._json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=self._json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="error"),
        )
        self._group.append(table.cast(self._schema))
        self._size += len(block)
        if self._size >= _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and the file's end."""
        if self._group:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        table = self._arrow.concat_tables(self._group)
        self._group, self._size = [], 0
        self._writer.write_table(table, row_group_size=table.num_rows)


def arrow_schema(shape: Shape) -> Any:
    """Give the columns as an Arrow schema; needs pyarrow."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    types = {
        Kind.TEXT: pa.string(),
        Kind.INTEGER: pa.int64(),
        Kind.BOOLEAN: pa.bool_(),
        Kind.MOMENT: pa.timestamp("ms", "UTC"),
    }

    def field(column: Column) -> Any:
        return pa.field(column.name, types[column.kind], nullable=column.nullable)

    metric = pa.struct([field(column) for column in METRIC])
    types[Kind.METRICS] = pa.list_(pa.field("element", metric, nullable=False))
    return pa.schema([field(column) for column in COLUMNS[shape]])


_WRITERS: dict[Format, Callable[[HashingWriter, Shape], _Writer]] = {
    Format.NDJSON: _Plain,
    Format.GZIP: _gzip,
    Format.ZSTD: _zstd,
    Format.PARQUET: _Parquet,
}
