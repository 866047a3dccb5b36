"""The encoder of parts: NDJSON rows from a journal become the bytes of a file in a format and a shape.

The bytes are deterministic: the same rows, in the same order and with the same library versions, give the same file.
After a crash a part may have to be made again from its journal, and an upload whose response was lost is recognised by
its digest; both need the same bytes. Whatever could differ from one time to the next is therefore fixed: gzip's header
has neither time nor file name, compressors get blocks whose limits depend on the rows alone, and Parquet's rows are
parsed by one thread in one block, because pyarrow's chunks would else depend on the machine's cores.
"""

import gzip
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import orjson

from harvester.bitly.facets import FACETS
from harvester.errors import UsageError
from harvester.extras import import_pyarrow, import_zstd
from harvester.jsonlines import one_line
from harvester.progress import Carried
from harvester.rows.schema import SEPARATOR, Column, Kind, Shape, columns_of, metric_columns

_GZIP_LEVEL = 3
"""Half the CPU of zlib's default, 6, for an eighth more bytes."""
_BLOCK_BYTES = 1024 * 1024
"""NDJSON bytes given to a compressor at once. It releases Python's lock meanwhile, so the event loop goes on."""
_GROUP_BYTES = 32 * 1024 * 1024
"""NDJSON bytes of a Parquet row group, which is held in memory until it is written. A number of rows would be no bound:
a row has from none to thousands of metrics."""
_NESTED = Shape.NESTED
_CARRIED = "carried"
_CARRIED_OBJECT, _CARRIED_NULL = b',"carried":{', b',"carried":null'
_CARRIES = re.compile(re.escape(_CARRIED_OBJECT))
_OBJECT_END = re.compile(rb'(?:[^"}]|"(?:[^"\\]|\\.)*")*}')
_FLAT_EXTRA = len(',"call_id":"","schema_version":2}\n') + 32
"""NDJSON bytes of a flat row beside what it has of the nested one."""


class Format(StrEnum):
    """The file format of parts; the value is the ending of their names."""

    NDJSON = "ndjson"
    NDJSON_GZ = "ndjson.gz"
    NDJSON_ZST = "ndjson.zst"
    PARQUET = "parquet"


class PartFormat(NamedTuple):
    """What a dataset's parts look like, fixed when it begins: format, shape, and the facet that has the columns."""

    format: Format
    shape: Shape
    facet: str


class RequestedPartFormat(NamedTuple):
    """The options `--format` and `--shape`; None where one was not given."""

    format: Format | None = None
    shape: Shape | None = None

    def for_new(self, facet: str, *, folder: bool) -> PartFormat:
        """Return the part format of a new dataset. The default is gzipped NDJSON, which every loader reads.

        folder: whether the output consists of parts. A growing file and standard output get lines of nested NDJSON.

        Raises:
            UsageError: another format than lines for an output without parts; or a library is missing.
        """
        lines = PartFormat(Format.NDJSON, Shape.NESTED, facet)
        chosen = self._applied_to(lines._replace(format=Format.NDJSON_GZ) if folder else lines)
        if not folder and chosen != lines:
            raise UsageError(
                "only a folder has parts of another --format or --shape; a file and standard output get nested NDJSON"
            )
        _check_available(chosen)
        return chosen

    def for_begun(self, facts: Mapping[str, Any], facet: str, out: str) -> PartFormat:
        """Return the part format of an existing dataset. facts: the ledger's. facet: its query's.

        Raises:
            UsageError: the options name another one, or a library is missing.
        """
        existing = PartFormat(Format(facts["format"]), Shape(facts["shape"]), facet)
        if self._applied_to(existing) != existing:
            raise UsageError(
                f"{out} was started with --format {existing.format} --shape {existing.shape}: "
                "leave them out, or use another --out"
            )
        _check_available(existing)
        return existing

    def _applied_to(self, default: PartFormat) -> PartFormat:
        return default._replace(format=self.format or default.format, shape=self.shape or default.shape)


class PartCounts(NamedTuple):
    """The rows written to a part, and the calls they belong to; a call has several rows in the flat shape."""

    rows: int
    calls: int


class HashingWriter(io.RawIOBase):
    """A stream that counts and hashes the bytes written to it. size: bytes so far."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._stream = stream
        self._discarding = False

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.size

    def discard_rest(self) -> None:
        """Ignore later writes: a compressor that was not closed writes its trailer when it is garbage-collected."""
        self._discarding = True

    def write(self, data: Any) -> int:
        """Write bytes to the underlying stream."""
        view = memoryview(data).cast("B")
        if not self._discarding:
            self._stream.write(view)
            self._digest.update(view)
            self.size += view.nbytes
        return view.nbytes


class _Writer(Protocol):
    """The encoder of one format. write takes a block of whole NDJSON lines."""

    def write(self, block: bytes) -> object: ...
    def close(self) -> None: ...


def write_part(rows: Iterable[bytes], target: HashingWriter, part_format: PartFormat) -> PartCounts:
    """Write a part. rows: nested rows, each with its line feed."""
    try:
        writer = _WRITERS[part_format.format](target, part_format)
        counts = _write_blocks(rows, writer, part_format.shape)
        writer.close()
    except BaseException:
        target.discard_rest()
        raise
    return counts


def _write_blocks(rows: Iterable[bytes], writer: _Writer, shape: Shape) -> PartCounts:
    calls = written = size = 0
    block: list[bytes] = []

    def flat_lines() -> Iterator[bytes]:
        nonlocal calls
        for row in rows:
            calls += 1
            yield from flattened(row)

    for line in rows if shape is _NESTED else flat_lines():
        block.append(line)
        size += len(line)
        # Within a row, too: in the flat shape an answer of 4 MB becomes lines of 60 MB.
        if size >= _BLOCK_BYTES:
            writer.write(b"".join(block))
            written += len(block)
            block, size = [], 0
    if block:
        writer.write(b"".join(block))
        written += len(block)
    return PartCounts(written, calls or written)


def flattened(row: bytes) -> Iterator[bytes]:
    """Yield the flat lines of a nested row: one for each metric, or one with nulls if there are no metrics.

    call_id is the nested record_id. A flat record_id hashes the fields of the nested one and two more: the occurrence
    of the metric's identity within the call, from 1, and that identity; without metrics, 0 and an empty text. The
    occurrence is first because a value may contain U+001F.
    """
    call = orjson.loads(row)
    facet = FACETS[call["facet"]]
    call = {"record_id": None, "call_id": call.pop("record_id")} | call
    metrics = call.pop("metrics")
    version = {"schema_version": call.pop("schema_version")}
    key = SEPARATOR.join(str(call[name]) for name in ("bitlink", "facet", "unit", "units", "unit_reference"))
    if not metrics:
        call["record_id"] = _hashed(key, 0, "")
        yield one_line(call | dict.fromkeys(field.name for field in facet.fields) | version) + b"\n"
    seen: dict[str, int] = {}
    for metric in metrics:
        identity = facet.identity(metric)
        times = seen[identity] = seen.get(identity, 0) + 1
        call["record_id"] = _hashed(key, times, identity)
        yield one_line(call | metric | version) + b"\n"


def _hashed(key: str, times: int, identity: str) -> str:
    return hashlib.sha256(f"{key}{SEPARATOR}{times}{SEPARATOR}{identity}".encode()).hexdigest()[:32]


class EncodedSize(NamedTuple):
    """The number of rows, and their size as NDJSON in bytes."""

    rows: int
    bytes: int


def encoded_size(row: bytes, shape: Shape) -> EncodedSize:
    """Return what a nested row, given without its line feed, adds to a part; flat bytes to within a few a row."""
    if shape is _NESTED:
        return EncodedSize(1, len(row) + 1)
    # Neither text can occur in a value, where quotation marks are escaped, and no carried value is a list.
    before = row.index(b'"metrics":[')
    metrics = row.count(b'"clicks":', before)  # a carried column may have that name, too
    rows = max(metrics, 1)
    return EncodedSize(rows, rows * (before + _FLAT_EXTRA) + len(row) - before)


def _check_available(part_format: PartFormat) -> None:
    """Raise UsageError if a library that the format needs is not installed."""
    _WRITERS[part_format.format](HashingWriter(io.BytesIO()), part_format).close()


def _plain(target: HashingWriter, _: PartFormat) -> _Writer:
    return target  # closing it leaves the stream below it open


def _gzip(target: HashingWriter, _: PartFormat) -> _Writer:
    return gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=cast("BinaryIO", target), mtime=0)


def _zstd(target: HashingWriter, _: PartFormat) -> _Writer:
    zstd = import_zstd("ndjson.zst needs a library", option="--format")
    # Readers detect a flipped bit, as in gzip and in what the zstd command writes.
    checked: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    return cast("_Writer", zstd.ZstdFile(cast("BinaryIO", target), "wb", options=checked))


class _Parquet:
    """Parquet with zstd and row groups of about _GROUP_BYTES. pyarrow parses the lines without Python's lock."""

    def __init__(self, target: HashingWriter, part_format: PartFormat) -> None:
        self._arrow = import_pyarrow("parquet needs a library", option="--format")
        self._schema = arrow_schema(part_format.shape, part_format.facet)
        self._writer = self._arrow.parquet.ParquetWriter(target, self._schema, compression="zstd")
        self._group: list[Any] = []
        self._size = 0

    def write(self, block: bytes) -> None:
        """Parse lines, and write a row group once _GROUP_BYTES are reached."""
        options = self._arrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        self._group.append(table_of(self._arrow, block, self._schema, options))
        self._size += len(block)
        if self._size >= _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._group:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        table = self._arrow.concat_tables(self._group)
        self._group, self._size = [], 0
        self._writer.write_table(table, row_group_size=table.num_rows)


def table_of(arrow: Any, lines: Any, schema: Any, options: Any, *, later_columns: bool = False) -> Any:
    """Return lines of NDJSON as a pyarrow.Table. schema: from `arrow_schema`. options: pyarrow's, for reading.

    lines: bytes or a pyarrow.Buffer, which are parsed without Python's lock. later_columns: ignore keys that the schema
    lacks, instead of raising ArrowInvalid.
    """
    # pyarrow reads no map from JSON. Where rows carry something, their objects are taken out and parsed here.
    place = schema.get_field_index(_CARRIED)
    field, found = schema.field(place), None
    if _CARRIES.search(lines):
        taken = [_without_carried(line) for line in bytes(lines).splitlines(keepends=True)]
        lines = b"".join(line for line, _ in taken)
        found = arrow.array([carried and list(carried.items()) for _, carried in taken], field.type)
    unexpected = "ignore" if later_columns else "error"
    parsed = schema.set(place, arrow.field(_CARRIED, arrow.null()))
    table = arrow.json.read_json(
        arrow.BufferReader(lines),
        read_options=options,
        parse_options=arrow.json.ParseOptions(explicit_schema=parsed, unexpected_field_behavior=unexpected),
    )
    carried = arrow.nulls(table.num_rows, field.type) if found is None else found
    return table.set_column(place, field, carried).cast(schema)  # the cast sets which columns are never null


def _without_carried(line: bytes) -> tuple[bytes, Carried]:
    """Return a row with null in place of what it carries, and that."""
    before, begun, rest = line.partition(_CARRIED_OBJECT)
    if not begun:
        return line, None
    # An object of texts and nulls ends with the first brace outside of a text, behind which comes the next column.
    end = _OBJECT_END.match(rest)
    if end is None:
        return line, None  # no row of harvester's, which is pyarrow's error
    return b"".join((before, _CARRIED_NULL, rest[end.end() :])), orjson.loads(b"{" + end[0])


def arrow_schema(shape: Shape, facet: str) -> Any:
    """Return the columns of a facet's rows in a shape as a pyarrow.Schema.

    Raises:
        UsageError: pyarrow is not installed.
    """
    return arrow_schema_of(columns_of(shape, facet), metric_columns(facet))


def arrow_schema_of(columns: tuple[Column, ...], metrics: tuple[Column, ...]) -> Any:
    """Return columns as a pyarrow.Schema. metrics: the columns of a metric. Raises as `arrow_schema`."""
    arrow = import_pyarrow("the schema in Arrow's types needs pyarrow")
    types = {
        Kind.TEXT: arrow.string(),
        Kind.INTEGER: arrow.int64(),
        Kind.BOOLEAN: arrow.bool_(),
        Kind.MOMENT: arrow.timestamp("ms", "UTC"),
    }

    def field(column: Column) -> Any:
        return arrow.field(column.name, types[column.kind], nullable=column.nullable)

    metric = arrow.struct([field(column) for column in metrics])
    types[Kind.MAP] = arrow.map_(arrow.string(), arrow.string())
    types[Kind.METRICS] = arrow.list_(arrow.field("element", metric, nullable=False))
    types[Kind.TEXTS] = arrow.list_(arrow.field("element", arrow.string(), nullable=False))
    return arrow.schema([field(column) for column in columns])


_WRITERS: dict[Format, Callable[[HashingWriter, PartFormat], _Writer]] = {
    Format.NDJSON: _plain,
    Format.NDJSON_GZ: _gzip,
    Format.NDJSON_ZST: _zstd,
    Format.PARQUET: _Parquet,
}
