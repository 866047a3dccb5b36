"""Parquet lists."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, cast

from harvester.errors import InputBroken
from harvester.extras import import_pyarrow
from harvester.links.lines import CHUNK
from harvester.links.tables import BadRecord, ColumnBatch, find_column

_GROUP_ROWS = 250
"""Rows in memory at a time; not more, because pyarrow holds each several times, however long it is."""
_ENCODED_ROWS = 16 * _GROUP_ROWS
"""So many of a dictionary column, whose rows are but numbers: pyarrow copies the dictionary for each batch."""
_KEPT_BYTES = 2000


def parquet_cells(raw: io.BufferedReader, wanted: str | None, file: str) -> Iterator[ColumnBatch]:
    """Yield what each row has in a column; a row's line is its number, from 1.

    A stream that cannot be sought in is first copied to an unnamed temporary file: Parquet begins at its end.

    Raises:
        InputBroken: pyarrow is not installed, or there is no such column with text. OSError: not Parquet, or damaged.
    """
    arrow = import_pyarrow(f"{file}: a Parquet list needs pyarrow", InputBroken)
    with _seekable(raw) as stream:
        try:
            opened = arrow.parquet.ParquetFile(stream, buffer_size=CHUNK, pre_buffer=False)
            schema = opened.schema_arrow
            name = schema.names[find_column(schema.names, wanted, file)]
            _check_text(arrow, schema.field(name), file)
            rows = _ENCODED_ROWS if arrow.types.is_dictionary(schema.field(name).type) else _GROUP_ROWS
            number = 0
            for batch in opened.iter_batches(rows, columns=[name], use_threads=False):
                for start in range(0, batch.num_rows, _GROUP_ROWS):
                    values = _octets(arrow, batch.column(name).slice(start, _GROUP_ROWS))
                    yield _taken(values, number)
                    number += len(values)
        except (arrow.ArrowException, UnicodeDecodeError) as error:  # a column's name may be no UTF-8
            raise OSError(str(error)) from error


def _seekable(raw: io.BufferedReader) -> io.BufferedReader:
    if raw.seekable():
        return raw
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - its caller closes it
    shutil.copyfileobj(raw, copy, CHUNK)
    copy.seek(0)
    return cast("io.BufferedReader", copy)


def _check_text(arrow: Any, column: Any, file: str) -> None:
    """Refuse a column that is not text; plain bytes are how Impala and Hive write text."""
    kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    if not any(getattr(arrow.types, test)(kind) for test in tests):
        raise InputBroken(f"{file}: column {column.name} holds {column.type}, not text. Say --column NAME")


def _octets(arrow: Any, column: Any) -> list[bytes | None]:
    """Give a column's values as bytes: Arrow itself does not check that a string is UTF-8."""
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return cast("list[bytes | None]", column.cast(arrow.large_binary()).to_pylist())


def _taken(values: list[bytes | None], before: int) -> ColumnBatch:
    cells = ColumnBatch(last=before + len(values))
    for number, value in enumerate(values, before + 1):
        try:
            cells.add(number, None if value is None else value.decode())
        except UnicodeDecodeError:
            cells.flaws.append(
                BadRecord(number, cast("bytes", value)[:_KEPT_BYTES].decode(errors="replace"), "not UTF-8")
            )
    return cells
