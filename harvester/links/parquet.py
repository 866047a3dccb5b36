"""Parquet lists: each row yields the text in the column of the links. A row's line is its number, from 1."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, cast

from harvester.errors import InputBroken
from harvester.extras import import_pyarrow
from harvester.links.columns import CHUNK, KEPT_TEXT, BadRecord, ColumnBatch, find_column

_GROUP_ROWS = 250
"""Rows converted at a time. pyarrow and Python hold several copies of each value, however long it is."""
_DICTIONARY_ROWS = 16 * _GROUP_ROWS
"""Rows of a dictionary-encoded column read at a time: they are only numbers, and pyarrow copies the dictionary for each
batch."""


def read_parquet(raw: io.BufferedIOBase, column: str | None, file: str) -> Iterator[ColumnBatch]:
    """Yield what each row has in a column.

    A stream that cannot seek is first copied to an unnamed temporary file, because Parquet's index is at the end.

    Raises:
        InputBroken: pyarrow is not installed, or there is no such column, or it is not text.
        OSError: not Parquet, or damaged.
    """
    arrow = import_pyarrow(f"{file}: a Parquet list needs pyarrow", InputBroken)
    with _seekable(raw) as stream:
        try:
            opened = arrow.parquet.ParquetFile(stream, buffer_size=CHUNK, pre_buffer=False)
            schema = opened.schema_arrow
            name = schema.names[find_column(schema.names, column, file)]
            _check_text(arrow, schema.field(name), file)
            rows = _DICTIONARY_ROWS if arrow.types.is_dictionary(schema.field(name).type) else _GROUP_ROWS
            number = 0
            for batch in opened.iter_batches(rows, columns=[name], use_threads=False):
                for start in range(0, batch.num_rows, _GROUP_ROWS):
                    values = _as_bytes(arrow, batch.column(name).slice(start, _GROUP_ROWS))
                    yield _column_batch(values, number, name)
                    number += len(values)
        except (arrow.ArrowException, UnicodeDecodeError) as error:  # the latter: a column's name is not UTF-8
            raise OSError(str(error)) from error


def _seekable(raw: io.BufferedIOBase) -> io.BufferedIOBase:
    if raw.seekable():
        return raw
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - its caller closes it
    shutil.copyfileobj(raw, copy, CHUNK)
    copy.seek(0)
    return cast("io.BufferedIOBase", copy)


def _check_text(arrow: Any, column: Any, file: str) -> None:
    """Raise InputBroken if a column is not text. Binary counts as text, because Impala and Hive write text so."""
    kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    if not any(getattr(arrow.types, test)(kind) for test in tests):
        raise InputBroken(f"{file}: column {column.name} holds {column.type}, not text. Say --column NAME")


def _as_bytes(arrow: Any, column: Any) -> list[bytes | None]:
    """Return a column's values as bytes: Arrow does not check that a string is UTF-8, so its own decoding may fail."""
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return cast("list[bytes | None]", column.cast(arrow.large_binary()).to_pylist())


def _column_batch(values: list[bytes | None], before: int, column: str) -> ColumnBatch:
    """Return the batch of some rows. before: the number of rows read earlier."""
    batch = ColumnBatch(column, last=before + len(values))
    for number, value in enumerate(values, before + 1):
        try:
            batch.add(number, None if value is None else value.decode())
        except UnicodeDecodeError:
            text = cast("bytes", value)[:KEPT_TEXT].decode(errors="replace")
            batch.bad.append(BadRecord(number, text, "not UTF-8"))
    return batch
