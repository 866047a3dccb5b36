"""Parquet lists: each row yields the text in the column of the links. A row's line is its number, from 1.

A few KiB of Parquet may hold gigabytes: pages are compressed, and a value that is repeated through a dictionary, or as
the beginning of the one before it, is stored once. pyarrow has no bound for what it unpacks. So the headers of the
column's pages are read first, which say how large each page becomes, and a batch gets as many rows as may be unpacked
within `_BATCH_BYTES` if each value were as long as its page. A page that is too large by itself is refused.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from harvester.errors import InputBroken
from harvester.extras import import_pyarrow
from harvester.links.columns import (
    CARRIED_LIMIT,
    CHUNK,
    KEPT_TEXT,
    LINE_LIMIT,
    TOO_LONG,
    BadRecord,
    ColumnBatch,
    find_carried,
    find_column,
)

_GROUP_ROWS = 250
"""Rows of a column batch."""
_DICTIONARY_ROWS = 16 * _GROUP_ROWS
"""Rows of a dictionary-encoded column read at a time: they are only numbers, and pyarrow copies the dictionary for each
batch."""
_BATCH_BYTES = 32 * 1024 * 1024
"""The most that the rows read at a time may unpack to. pyarrow's buffers may be twice as large while they grow."""
_PAGE_BYTES = 32 * 1024 * 1024
"""The largest page, packed and unpacked. Most programs write pages of 1 MiB; some one for each row group."""
_REPEATING_PAGE_BYTES = 16 * 1024 * 1024
"""The largest page whose values can be repeated, because pyarrow copies these out of the page."""
_MOST_BYTES = 4
"""Bytes of the longest character in UTF-8."""
_LONG = "." * (CARRIED_LIMIT + 1)
_FOOTER_BYTES = 4 * 1024 * 1024
"""The largest footer. pyarrow needs up to 40 times as much for it; this one can list tens of thousands of groups."""
_HEADER_BYTES = 1024 * 1024
"""The largest page header. It may hold the least and the greatest value of the page."""


def read_parquet(
    raw: io.BufferedIOBase, column: str | None, file: str, carry: Sequence[str] = ()
) -> Iterator[ColumnBatch]:
    """Yield what each row has in a column. carry: the columns that rows carry, of any type that has texts.

    A stream that cannot seek is first copied to an unnamed temporary file, because Parquet's index is at the end.

    Raises:
        InputBroken: pyarrow is not installed, or there is no such column, or it is not text.
        OSError: not Parquet, or damaged, or a part of it is too large to be unpacked.
    """
    arrow = import_pyarrow(f"{file}: a Parquet list needs pyarrow", InputBroken)
    with _seekable(raw) as stream:
        _check_footer(stream)
        try:
            opened = arrow.parquet.ParquetFile(stream, buffer_size=CHUNK, pre_buffer=False)
            schema = opened.schema_arrow
            name = schema.names[find_column(schema.names, column, file)]
            _check_text(arrow, schema.field(name), file)
            carried_at = [(each, schema.names[at]) for each, at in find_carried(schema.names, carry, file)]
            for _, each in carried_at:
                _check_has_text(arrow, schema.field(each), file)
            columns = list(dict.fromkeys([name, *(each for _, each in carried_at)]))
            number = 0
            for group in range(opened.num_row_groups):
                metadata = opened.metadata.row_group(group)
                rows = min(
                    _pages_of(stream, metadata, _leaves(opened.schema, each)).rows_at_once(
                        _BATCH_BYTES // len(columns), is_dictionary=arrow.types.is_dictionary(schema.field(each).type)
                    )
                    for each in columns
                )
                for batch in opened.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    for start in range(0, batch.num_rows, _GROUP_ROWS):
                        part = batch.slice(start, _GROUP_ROWS)
                        carried = {each: _texts_in(arrow, part.column(at)) for each, at in carried_at}
                        yield _column_batch(arrow, part.column(name), number, name, carried)
                        number += part.num_rows
        except (arrow.ArrowException, UnicodeDecodeError) as error:  # the latter: a column's name is not UTF-8
            raise OSError(str(error)) from error


def _seekable(raw: io.BufferedIOBase) -> io.BufferedIOBase:
    if raw.seekable():
        return raw
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - its caller closes it
    shutil.copyfileobj(raw, copy, CHUNK)
    copy.seek(0)
    return cast("io.BufferedIOBase", copy)


def _check_footer(stream: io.BufferedIOBase) -> None:
    """Raise OSError if the footer, which is read whole, is too large."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - 8, 0))
    footer = int.from_bytes(stream.read(4), "little")
    stream.seek(0)
    if _FOOTER_BYTES < footer < size:  # a footer that is larger than the file is pyarrow's error
        raise OSError(
            f"its footer has {footer:,} bytes, and the limit is {_FOOTER_BYTES:,}; write fewer or larger row groups"
        )


def _check_text(arrow: Any, column: Any, file: str) -> None:
    """Raise InputBroken if a column is not text. Binary counts as text, because Impala and Hive write text so."""
    if not _is_text(arrow, column.type):
        raise InputBroken(f"{file}: column {column.name} has the type {column.type}, not text. Use --column NAME")


def _is_text(arrow: Any, kind: Any) -> bool:
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    return any(getattr(arrow.types, test)(kind) for test in tests)


def _check_has_text(arrow: Any, column: Any, file: str) -> None:
    """Raise InputBroken if the values of a column cannot be written as texts, such as lists."""
    if _is_text(arrow, column.type):
        return
    try:
        _texts_in(arrow, arrow.nulls(0, column.type))
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise InputBroken(f"{file}: column {column.name} holds {column.type}, which --carry does not take") from error


def _texts_in(arrow: Any, values: Any) -> list[str | None]:
    """Return the texts of an array: numbers, dates and truth values as Arrow writes them. What is not UTF-8 has
    surrogates, as in other lists, and one that is too long is another long text.
    """
    is_dictionary = arrow.types.is_dictionary(values.type)
    if not _is_text(arrow, values.type):
        decoded = values.dictionary_decode() if is_dictionary else values
        texts: list[str | None] = decoded.cast(arrow.string()).to_pylist()
        return texts
    buffers = [(each.value if is_dictionary else each).as_buffer() if each.is_valid else None for each in values]
    return [
        None
        if each is None
        else _LONG
        if each.size > len(_LONG) * _MOST_BYTES
        else each.to_pybytes().decode("utf-8", "surrogateescape")
        for each in buffers
    ]


def _column_batch(
    arrow: Any, values: Any, before: int, column: str, carried: Mapping[str, list[str | None]]
) -> ColumnBatch:
    """Return the batch of some rows. values: an Arrow array. before: the number of rows read earlier.

    carried: the texts of the columns to carry.
    """
    batch = ColumnBatch(column, last=before + len(values))
    is_dictionary = arrow.types.is_dictionary(values.type)
    for number, scalar in enumerate(values, before + 1):
        # Arrow does not check that a string is UTF-8, so its own decoding may fail; and a long value is not copied.
        buffer = (scalar.value if is_dictionary else scalar).as_buffer() if scalar.is_valid else None
        if buffer is None:
            batch.add(number, None)
        elif buffer.size > LINE_LIMIT:
            batch.bad.append(BadRecord(number, "", TOO_LONG))
        else:
            value = buffer.to_pybytes()
            try:
                row = number - before - 1
                batch.add(number, value.decode(), {name: texts[row] for name, texts in carried.items()} or None)
            except UnicodeDecodeError:
                batch.bad.append(BadRecord(number, value[:KEPT_TEXT].decode(errors="replace"), "not UTF-8"))
    return batch


# --- pages --------------------------------------------------------------------------------------------------------

_DICTIONARY_PAGE = 2
_DELTA_LENGTHS, _DELTA = 6, 7
"""Encodings of https://parquet.apache.org/docs/file-format/data-pages/encodings: lengths first, then all texts; and a
value as the length of what it has in common with the one before, and the rest."""
_ENTRY_BYTES, _LENGTH_BYTES = 16, 4
"""What pyarrow allocates for each value of a dictionary page, and of a page with lengths, beside the texts."""


class _Pages(NamedTuple):
    """The pages of a column in one row group, as far as they tell how much memory rows may need.

    number, largest: of the data pages; bytes unpacked. fewest: rows of a data page, the last one aside. dictionary: the
    bytes of the dictionary, 0 without one. shares: values of a page may share their beginnings.
    """

    number: int = 0
    largest: int = 0
    fewest: int = 0
    dictionary: int = 0
    shares: bool = False

    def rows_at_once(self, most_bytes: int, *, is_dictionary: bool) -> int:
        """Return how many rows may be read at a time, so that they unpack to at most so many bytes.

        is_dictionary: values are read as numbers in the dictionary.
        """
        rows = _DICTIONARY_ROWS if is_dictionary else _GROUP_ROWS
        while rows > 1 and self._unpacked(rows, is_dictionary=is_dictionary) > most_bytes:
            rows //= 2
        return rows

    def _unpacked(self, rows: int, *, is_dictionary: bool) -> int:
        """Return the most bytes that consecutive rows may have."""
        repeated = 0 if is_dictionary else rows * self.dictionary
        touched = rows if self.shares else min(rows, self.number, rows // max(self.fewest, 1) + 2)
        return max(repeated, touched * self.largest)


def _leaves(schema: Any, name: str) -> list[int]:
    """Return the numbers of all columns that pyarrow reads by a name: `a.b` may also be a part of `a`."""
    paths = [schema.column(number).path for number in range(len(schema))]
    return [number for number, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def _pages_of(stream: io.BufferedIOBase, group: Any, leaves: list[int]) -> _Pages:
    """Return the pages of columns in a row group.

    Raises:
        OSError: a page is too large, or its header is damaged.
    """
    pages, rows = _Pages(), 0
    for chunk in map(group.column, leaves):
        start = chunk.data_page_offset
        if chunk.dictionary_page_offset:
            start = min(start, chunk.dictionary_page_offset)
        end, left = start + chunk.total_compressed_size, chunk.num_values
        while left > 0 and start < end:
            header, length = _read_header(stream, start, end)
            start += length + header.packed
            if header.kind == _DICTIONARY_PAGE:
                pages = pages._replace(dictionary=max(pages.dictionary, header.unpacked))
                continue
            fewest = min(pages.fewest or rows, rows)  # counts complete pages only: the last page may hold fewer rows
            shares = pages.shares or header.encoding == _DELTA
            largest = max(pages.largest, header.unpacked)
            pages = pages._replace(number=pages.number + 1, largest=largest, fewest=fewest, shares=shares)
            rows = header.values
            left -= rows
    return pages


class _PageHeader(NamedTuple):
    """A page's header. packed: bytes in the file. unpacked: bytes in memory. values: rows of a data page."""

    kind: int
    packed: int
    unpacked: int
    values: int
    encoding: int


def _read_header(stream: io.BufferedIOBase, start: int, end: int) -> tuple[_PageHeader, int]:
    """Return the header of the page that begins at a position, and its length.

    Raises:
        OSError: the page is too large, or its header is damaged.
    """
    size = 256
    while True:
        stream.seek(start)
        data = stream.read(min(size, end - start))
        try:
            fields, length = _read_struct(data, 0)
            break
        except IndexError:
            if len(data) < size or size >= _HEADER_BYTES:
                raise OSError(f"the header of the page at byte {start} is damaged or too large") from None
            size *= 4
    header = _page_header(fields)
    if min(header) < 0:
        raise OSError(f"the header of the page at byte {start} is damaged")
    size = max(header.packed, header.unpacked)
    repeats = header.kind == _DICTIONARY_PAGE or header.encoding == _DELTA
    if size > (limit := _REPEATING_PAGE_BYTES if repeats else _PAGE_BYTES):
        raise OSError(f"a page of it has {size:,} bytes, and the limit is {limit:,}; write smaller pages or row groups")
    return header, length


def _page_header(fields: "_Fields") -> _PageHeader:
    """Return the header of https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift."""
    kind, unpacked, packed = (cast("int", fields.get((number, _I32), -1)) for number in (1, 2, 3))
    if kind == _DICTIONARY_PAGE:
        values, encoding = _numbers(fields, 7, 1, 2)
        return _PageHeader(kind, packed, unpacked + _ENTRY_BYTES * values, values, encoding)
    values, encoding = _numbers(fields, 5, 1, 2) if (5, _STRUCT) in fields else _numbers(fields, 8, 1, 4)
    if encoding in (_DELTA, _DELTA_LENGTHS):
        unpacked += _LENGTH_BYTES * values
    return _PageHeader(kind, packed, unpacked, values, encoding)


def _numbers(fields: "_Fields", struct: int, *numbers: int) -> Iterator[int]:
    inner = cast("_Fields", fields.get((struct, _STRUCT), {}))
    return (cast("int", inner.get((number, _I32), 0)) for number in numbers)


# --- Thrift's compact protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md -----

_Fields: TypeAlias = dict[tuple[int, int], object]
"""A struct's fields by number and type. One that has another type than expected is skipped by other readers, too."""
_BOOLEANS, _BYTE, _I32, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, 5, (4, 5, 6), 7, 8, 12
_DEEPEST = 8


def _read_struct(data: bytes, at: int, depth: int = 0) -> tuple[_Fields, int]:
    """Return a struct's fields and the position behind it. Raises IndexError if it goes on behind the data."""
    fields: _Fields = {}
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        fields[number, kind], at = _read_value(data, at, kind, depth)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int, depth: int) -> tuple[object, int]:
    """Return a field's value, None for one that nobody asks for, and the position behind it."""
    if kind in _BOOLEANS:  # the type is the value
        return None, at
    if kind == _BYTE:
        return None, at + 1
    if kind in _INTEGERS:
        return _read_integer(data, at)
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        size, at = _read_varint(data, at)
        return None, at + size
    if kind == _STRUCT and depth < _DEEPEST:
        return _read_struct(data, at, depth + 1)
    raise OSError("a page's header has a field of an unknown type")


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    """Return a number in zigzag encoding."""
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise OSError("a page's header has a number of more than 64 bits")
