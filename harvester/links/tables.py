"""CSV, TSV and NDJSON: lines to what stands in one column, each with the line where its record begins."""

import csv
import io
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import orjson

from harvester.errors import InputBroken
from harvester.links.lines import CHUNK, GROUP_LINES, LINE_LIMIT

NAMES = ("bitlink", "link", "short_url", "id")
"""Where links stand if nobody says it: the first of these that is there. link and id are Bitly's own words."""
TOO_LONG = f"longer than {LINE_LIMIT // 1024} KiB"
_FAILURE_NAMES = (*NAMES, "text")
"""A line of `_failures.ndjson` that is no bitlink has its text there."""
_NUMBER = re.compile(r"[0-9]{1,9}")
_DELIMITERS = (",", ";", "\t", "|")
"""What may stand between the cells of CSV; a semicolon is what Excel writes where the comma is in numbers."""
_HINT = re.compile(r"sep=([,;\t|])\s*", re.IGNORECASE)
"""A line that Excel understands, and some programs write for it."""
_EMPTY = ' "\r\n' + "".join(_DELIMITERS)
_SHOWN_NAMES = 20
_SHOWN_NAME = 60
_KEPT_TEXT = 2000


class BadRecord(NamedTuple):
    """A record without a link that could be read. text: the record, or the beginning of it."""

    line: int
    text: str
    reason: str


@dataclass(slots=True)
class ColumnBatch:
    """Some consecutive records, taken apart. found: line and text of what is neither empty nor flawed. last: the last
    line that was read.
    """

    last: int = 0
    headers: int = 0
    blank: int = 0
    flaws: list[BadRecord] = field(default_factory=list)
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str | None) -> None:
        """Add what a record has in its column."""
        if text is None or not (text := text.strip()):
            self.blank += 1
        elif len(text) > LINE_LIMIT:
            self.flaws.append(BadRecord(line, "", TOO_LONG))
        else:
            self.found.append((line, text))


def find_column(names: Sequence[str], wanted: str | None, file: str, hint: str = "") -> int:
    """Give the index of the column that is wanted, or else of the one that is called as links are; in any case of
    letters, unless one is spelt exactly so.

    Raises:
        InputBroken: there is none, or more than one.
    """
    for name in (wanted,) if wanted is not None else NAMES:
        same = [index for index, each in enumerate(names) if each == name]
        same = same or [index for index, each in enumerate(names) if each.casefold() == name.casefold()]
        if len(same) == 1:
            return same[0]
        if same:
            raise InputBroken(f"{file}: {len(same)} columns are called {name}{hint}")
    looked_for = wanted if wanted is not None else " or ".join(NAMES)
    shown = ", ".join(name[:_SHOWN_NAME] for name in names[:_SHOWN_NAMES]) or "none"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    text = f"{file}: no column is called {looked_for}; there are: {shown}{more}. Say --column NAME{hint}"
    raise InputBroken(readable(text))


def readable(text: str) -> str:
    """Give a text that was decoded with surrogates for what is not UTF-8 as one that every writer takes."""
    return text.encode("utf-8", "surrogateescape").decode(errors="replace")


# --- NDJSON -------------------------------------------------------------------------------------------------------

_NOTHING = object()


def ndjson_cells(groups: Iterable[list[bytes | None]], wanted: str | None, file: str) -> Iterator[ColumnBatch]:
    """Yield what each line's object has under a key. Without one also a line that is a JSON string is a link.

    Raises:
        InputBroken: the first object has no such key.
    """
    keys: Sequence[str] | None = None
    last = 0
    for group in groups:
        cells = ColumnBatch(last=last + len(group))
        for number, line in enumerate(group, last + 1):
            if line is None:
                cells.flaws.append(BadRecord(number, "", TOO_LONG))
            elif not line.strip():
                cells.blank += 1
            else:
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError:
                    cells.flaws.append(_flaw_of(number, line, "not JSON"))
                    continue
                if keys is None and isinstance(record, dict):
                    keys = _keys(record, wanted, file)
                _add_record(cells, number, line, record, keys or (), strings=wanted is None)
        last = cells.last
        yield cells


def _keys(record: dict[str, object], wanted: str | None, file: str) -> Sequence[str]:
    """Give the keys to look under, by the first object."""
    keys = (wanted,) if wanted is not None else _FAILURE_NAMES
    names = list(record)
    return keys if any(key in record for key in keys) else (names[find_column(names, wanted, file)],)


def _add_record(
    cells: ColumnBatch, number: int, line: bytes, record: object, keys: Sequence[str], *, strings: bool
) -> None:
    """Add what a line names: the first of its object's keys that has something, or itself if it is a string."""
    value: object = _NOTHING
    if isinstance(record, dict):
        held = [record[key] for key in keys if key in record]
        value = next((each for each in held if each is not None), None if held else _NOTHING)
    elif strings:
        value = record
    if value is None or isinstance(value, str):
        cells.add(number, value)
    else:
        cells.flaws.append(_flaw_of(number, line, "no JSON object with text where the link should be"))


def _flaw_of(number: int, line: bytes, reason: str) -> BadRecord:
    text = line.strip().decode("utf-8", "surrogateescape")
    return BadRecord(number, readable(text)[:_KEPT_TEXT], reason if readable(text) == text else "not UTF-8")


# --- CSV and TSV --------------------------------------------------------------------------------------------------


def tsv_cells(groups: Iterable[list[bytes | None]], wanted: str | None, file: str) -> Iterator[ColumnBatch]:
    """Yield what each line has in a column. wanted and the header: as for CSV.

    No quoting: a line is a record, and a quotation mark is one. Most programs write TSV so, and where one does quote,
    a record that is not what it seems has another number of columns.

    Raises:
        InputBroken: there is no such column.
    """
    table = _Table(wanted, file)
    last = 0
    for group in groups:
        cells = ColumnBatch(last=last + len(group))
        for number, line in enumerate(_texts(group), last + 1):
            if line is None:
                cells.flaws.append(BadRecord(number, "", TOO_LONG))
            else:
                table.add(cells, number, line.rstrip("\r\n").split("\t"), line)
        last = cells.last
        yield cells


def csv_cells(groups: Iterable[list[bytes | None]], wanted: str | None, file: str) -> Iterator[ColumnBatch]:
    """Yield what each record has in a column. wanted: its name in the first record, or its number from 1.

    The first record is the header; but not if the column was named by number and what stands there has a slash, nor if
    it has only one column and a slash there. Its line says what separates cells: that with which the column is there.

    Raises:
        InputBroken: there is no such column.
    """
    records = _Records(_Table(wanted, file), wanted)
    for group in groups:
        yield from records.take(_texts(group))
    yield from records.take([], final=True)


def _texts(group: list[bytes | None]) -> list[str | None]:
    # What is not UTF-8 in another column does no harm; in this one it makes an invalid link.
    return [None if line is None else line.decode("utf-8", "surrogateescape") + "\n" for line in group]


class _Table:
    """Records to cells: the first says which column, and how many there are."""

    def __init__(self, wanted: str | None, file: str) -> None:
        self._wanted = wanted
        self._file = file
        self._index = 0
        self._width = 0

    def add(self, cells: ColumnBatch, number: int, record: list[str], line: str) -> None:
        """Add a record. number and line: where it begins, and the text there."""
        if len(record) == self._width > 1:
            cells.add(number, record[self._index])
        elif not record or (len(record) == 1 and not record[0].strip()):
            cells.blank += 1
        elif not self._width and not any(cell.strip(_EMPTY) for cell in record):
            cells.blank += 1  # a spreadsheet's empty row
        elif (not self._width and _HINT.fullmatch(line)) or (not self._width and self._begins_with_header(record)):
            cells.headers += 1
        elif len(record) == self._width:
            cells.add(number, record[self._index])
        else:
            counts = f"not {self._width} columns, as the first line has, but {len(record)}"
            cells.flaws.append(BadRecord(number, readable(line.strip())[:_KEPT_TEXT], counts))

    def _begins_with_header(self, record: list[str]) -> bool:
        """Find the column in the first record; say whether that is a header."""
        wanted, header = self._wanted, True
        if wanted is not None and _NUMBER.fullmatch(wanted):
            if not 0 < int(wanted) <= len(record):
                raise InputBroken(f"{self._file}: --column {wanted}: the first line has {len(record)} columns")
            self._index = int(wanted) - 1
            header = "/" not in record[self._index]
        elif wanted is None and len(record) == 1 and "/" in record[0]:
            header = False
        else:
            names = [name.strip(' \t"') for name in record]
            self._index = find_column(names, wanted, self._file, ", or its number, from 1")
        self._width = len(record)
        return header


class _Records:
    """Lines of CSV to records. One over several lines waits until its last line is there.

    A record that cannot be read costs only its first line: the next line may begin the next record.
    """

    def __init__(self, table: _Table, wanted: str | None) -> None:
        self._table = table
        self._wanted = wanted
        self._delimiter: str | None = None
        self._waiting: list[str | None] = []
        self._number = 1

    def take(self, group: list[str | None], *, final: bool = False) -> Iterator[ColumnBatch]:
        """Take some more lines, and give the records that end in them. final: there are no more."""
        lines = self._waiting + group
        if self._delimiter is None and (first := next((each for each in lines if each and each.strip(_EMPTY)), None)):
            self._delimiter = _delimiter_in(first, self._wanted)
        start = 0
        while start < len(lines):
            cells = ColumnBatch()
            end, broken = self._read(cells, lines, start)
            if broken and (final or end + broken < len(lines) or not _may_go_on(lines[end:])):
                self._add_broken(cells, self._number + end - start, lines[end])
                end, broken = end + 1, 0
            self._number += end - start
            cells.last = self._number - 1
            start = end
            yield cells
            if broken:
                break
        self._waiting = lines[start:]

    def _read(self, cells: ColumnBatch, lines: list[str | None], start: int) -> tuple[int, int]:
        """Read whole records, some GROUP_LINES lines of them; give where they end, and how many lines were read of one
        that cannot be read.
        """
        # A line that is too long stands there as None, which the reader takes for an error, as it should.
        reader = csv.reader(cast("list[str]", lines[start:]), delimiter=self._delimiter or ",", strict=True)
        end = start
        try:
            for record in reader:
                begin, end = end, start + reader.line_num
                if end - begin > 1 and _size(lines[begin:end]) > LINE_LIMIT:
                    return begin, end - begin
                self._table.add(cells, self._number + begin - start, record, lines[begin] or "")
                if end - start >= GROUP_LINES:
                    break
        except csv.Error:
            return end, max(1, start + reader.line_num - end)
        return end, 0

    def _add_broken(self, cells: ColumnBatch, number: int, line: str | None) -> None:
        if line is None:
            cells.flaws.append(BadRecord(number, "", TOO_LONG))
        else:
            reason = "quotation marks that do not match, or a carriage return inside"
            cells.flaws.append(BadRecord(number, readable(line.strip())[:_KEPT_TEXT], reason))


def _delimiter_in(line: str, wanted: str | None) -> str:
    """Give what separates the cells of a first line: that with which the column is there, a comma if in doubt."""
    if hint := _HINT.fullmatch(line):
        return hint[1]

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            record = next(csv.reader([line], delimiter=delimiter))
        except csv.Error:
            return 0, 0
        found = _found_in(record, wanted)
        return found, 0 if found else len(record)  # what is found nowhere is best explained by all names

    return max(_DELIMITERS, key=fit)


def _found_in(record: list[str], wanted: str | None) -> int:
    """Say how surely a column is in a first record: 0 for not at all, 2 for a link in the column of that number."""
    if wanted is None or not _NUMBER.fullmatch(wanted):
        looked_for = {name.casefold() for name in ((wanted,) if wanted is not None else NAMES)}
        return int(any(name.strip(' \t"').casefold() in looked_for for name in record))
    cell = record[int(wanted) - 1] if 0 < int(wanted) <= len(record) else ""
    if not cell.strip() or any(delimiter in cell for delimiter in _DELIMITERS):
        return 0
    return 2 if "/" in cell else 1


def _may_go_on(lines: list[str | None]) -> bool:
    """Say whether lines that hold no whole record may be the beginning of one."""
    return None not in lines and _size(lines) <= LINE_LIMIT


def _size(lines: list[str | None]) -> int:
    return sum(len(line) for line in lines if line is not None)


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
    arrow, parquet = _arrow(file)
    with _seekable(raw) as stream:
        try:
            opened = parquet.ParquetFile(stream, buffer_size=CHUNK, pre_buffer=False)
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


def _arrow(file: str) -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415, ICN001 - an extra, and slow to import
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise InputBroken(f"{file}: a Parquet list needs pyarrow: pip install 'bitly-harvester[parquet]'") from error
    return pyarrow, parquet


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
