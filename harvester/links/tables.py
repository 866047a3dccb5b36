"""Lists with columns, as text: CSV, TSV and NDJSON. Each record yields the text in the column of the links.

The dialect of CSV. The separator is the one with which the header has the wanted column, a comma if in doubt; Excel's
`sep=;` line decides where it stands. Quoting is strict, as in RFC 4180, so a record may stretch over several lines, and
whether it is complete or damaged is known only when its later lines have come. `_CsvRecords` therefore keeps unfinished
lines and parses them again with the next ones, up to LINE_LIMIT characters. Beyond that, or at the end, only the first
of them is reported as invalid, because the next one may begin a good record: an unmatched quotation mark costs one
line, not the rest of the list.

A record's line is the one on which it begins. Text that is not UTF-8 is carried as surrogates: it does no harm in other
columns, and makes an invalid line of a link, or of a value to carry.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from harvester.bitly.bitlinks import links_in
from harvester.errors import InputBroken, UsageError
from harvester.jsonlines import lenient_json, object_with_numbers_as_written
from harvester.links.columns import (
    CROWDED,
    GROUP_LINES,
    KEPT_TEXT,
    LINE_LIMIT,
    NAMES,
    TOO_LONG,
    BadRecord,
    ColumnBatch,
    Unended,
    find_carried,
    find_column,
    readable,
    refuse_crowded,
)
from harvester.progress import Carried

_FAILURE_NAMES = (*NAMES, "text")
"""A line of `_failures.ndjson` about an invalid line has its text under `text`."""
_NUMBER = re.compile(r"[0-9]{1,9}")
_DELIMITERS = (",", ";", "\t", "|")
"""The separators of CSV; Excel writes semicolons where numbers have decimal commas."""
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])\s*", re.IGNORECASE)
"""A first line that Excel reads as the separator's declaration, and some programs write for it."""
_EMPTY = ' "\r\n' + "".join(_DELIMITERS)


# --- NDJSON -------------------------------------------------------------------------------------------------------

_ABSENT = object()


def read_ndjson(
    groups: Iterable[list[bytes | None]], column: str | None, file: str, carry: Sequence[str] = ()
) -> Iterator[ColumnBatch]:
    """Yield what each line's object has under a key. Without `column`, a line that is a JSON string is a link, too.

    carry: the keys whose values rows carry.

    Raises:
        InputBroken: the first object has no such key.
    """
    keys: Sequence[str] | None = None
    carried_keys = {name: name for name in carry}
    last = 0
    for group in groups:
        batch = ColumnBatch(last=last + len(group))
        for number, line in enumerate(group, last + 1):
            if line is None:
                batch.bad.append(BadRecord(number, "", TOO_LONG))
            elif not line.strip():
                batch.blank += 1
            else:
                try:
                    record = lenient_json(line)
                except ValueError:
                    refuse_crowded(links_in(line.decode(errors="replace")), f"{file}: line {number}")
                    batch.bad.append(_bad_record(number, line, "not JSON"))
                    continue
                if keys is None and isinstance(record, dict):
                    keys = _keys(record, column, file)
                    names = list(record)
                    carried_keys = {name: names[index] for name, index in find_carried(names, carry, file)}
                value = _value_in(record, keys or (), strings=column is None)
                if value is None or isinstance(value, str):
                    batch.add(number, value, _carried_in(record, line, carried_keys) if carry else None)
                else:
                    if isinstance(value, list):
                        refuse_crowded(links_in(str(value)), f"{file}: line {number}")
                    batch.bad.append(_bad_record(number, line, "not a JSON object with text for the link"))
        last, batch.column = batch.last, " or ".join(keys or ())
        yield batch


def _keys(record: dict[str, object], column: str | None, file: str) -> Sequence[str]:
    """Return the keys under which links stand, judged by the first object."""
    keys = (column,) if column is not None else _FAILURE_NAMES
    names = list(record)
    return keys if any(key in record for key in keys) else (names[find_column(names, column, file)],)


def _value_in(record: object, keys: Sequence[str], *, strings: bool) -> object:
    """Return a JSON line's link: the first value under keys that says anything, or the line's value if it is a string
    (strings: where that is a link) or a list; None for a blank line; _ABSENT without such a key."""
    if isinstance(record, dict):
        present = [record[key] for key in keys if key in record]
        said = (each for each in present if each is not None and not _is_blank(each))
        return next(said, None if present else _ABSENT)
    return record if strings or isinstance(record, list) else _ABSENT


def _carried_in(record: object, line: bytes, keys: Mapping[str, str]) -> Carried:
    """Return what an object has under keys, as texts. keys: by the names that rows have for them."""
    values = {name: record.get(key) if isinstance(record, dict) else None for name, key in keys.items()}
    if all(value is None or isinstance(value, str) for value in values.values()):
        return values
    as_written = object_with_numbers_as_written(line)
    return {name: _text_of(value, as_written.get(keys[name])) for name, value in values.items()}


def _text_of(value: object, as_written: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return as_written if isinstance(as_written, str) else json.dumps(value, ensure_ascii=False)


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _bad_record(number: int, line: bytes, reason: str) -> BadRecord:
    text = line.strip().decode("utf-8", "surrogateescape")
    return BadRecord(number, readable(text)[:KEPT_TEXT], reason if readable(text) == text else "not UTF-8")


# --- CSV and TSV --------------------------------------------------------------------------------------------------


def read_tsv(
    groups: Iterable[list[bytes | None]], column: str | None, file: str, carry: Sequence[str] = ()
) -> Iterator[ColumnBatch]:
    """Yield what each line has in a column. The columns and the header are found as in CSV.

    There is no quoting: a line is a record, and a quotation mark is text, as most programs write TSV. Where one does
    quote, a cell with a tab or line feed in it makes a record with another number of columns, which is reported.

    Raises:
        InputBroken: no such column.
    """
    table = _Table(column, file, carry)
    last = 0
    for group in groups:
        batch = ColumnBatch(last=last + len(group))
        for number, line in enumerate(_decoded(group), last + 1):
            if line is None:
                batch.bad.append(BadRecord(number, "", TOO_LONG))
            else:
                table.add(batch, number, line.rstrip("\r\n").split("\t"), line)
        last, batch.column = batch.last, table.column
        yield batch


def read_csv(
    groups: Iterable[list[bytes | None]], column: str | None, file: str, carry: Sequence[str] = ()
) -> Iterator[ColumnBatch]:
    """Yield what each record has in a column. column: its name in the header, or its number from 1.

    carry: the columns that rows carry, by their names in the header, or by their numbers where there is none.

    The first record is the header, with two exceptions, in which it is data: the column is given by number and the
    cell there has a slash; or the list has a single column and the cell has a slash.

    Raises:
        InputBroken: no such column.
    """
    records = _CsvRecords(_Table(column, file, carry), column)
    for group in groups:
        yield from records.take(_decoded(group))
    yield from records.take([], final=True)


def columns_in(carry: str) -> tuple[str, ...]:
    """Return the names in --carry, which are written like a line of CSV. Raises UsageError."""
    try:
        names = [name.strip() for name in next(csv.reader([carry], skipinitialspace=True, strict=True), [])]
    except csv.Error as error:
        raise UsageError(f"{carry}: quotation marks that do not match", option="--carry") from error
    if not names or not all(names):
        raise UsageError(f"{carry}: must be names of columns, such as campaign,channel", option="--carry")
    if len({*names}) < len(names):
        raise UsageError(f"{carry}: a column is named twice", option="--carry")
    return tuple(names)


def _decoded(group: list[bytes | None]) -> list[str | None]:
    return [
        None if line is None else line.decode("utf-8", "surrogateescape") + "\n" * (not isinstance(line, Unended))
        for line in group
    ]


class _Table:
    """The state of a table while it is read: the column, its index, those to carry, and the width of the records.

    All come from the first record that is not blank. Spreadsheets leave out empty cells at the end of a row, and some
    programs add them, so a record may be shorter, or longer by empty cells. One with more cells than that has a
    separator in a text without quotes: which cell has the link cannot be known.
    """

    def __init__(self, column: str | None, file: str, carry: Sequence[str] = ()) -> None:
        self._column = column
        self._file = file
        self._carry = carry
        self._carried_at: list[tuple[str, int]] = []
        self.column = ""
        self._index = 0
        self._width = 0

    def add(self, batch: ColumnBatch, number: int, record: list[str], line: str) -> None:
        """Add a record to a batch. number, line: those on which it begins."""
        if len(record) == self._width > 1:
            batch.add(number, record[self._index], self._carried(record) if self._carry else None)
        elif self._width and len(record) > 1 and not any(cell.strip() for cell in record[self._width :]):
            self._add_ragged(batch, number, record, line)
        elif not record or (len(record) == 1 and not record[0].strip()):
            batch.blank += 1
        elif not self._width and not any(cell.strip(_EMPTY) for cell in record):
            batch.blank += 1  # a spreadsheet's empty row
        elif not self._width and (_SEPARATOR_LINE.fullmatch(line) or self._begins_with_header(record)):
            batch.headers += 1
        elif len(record) <= self._width:
            self._add_ragged(batch, number, record, line)
        else:
            most = self._width + CROWDED - 1  # each cell of a good record may be a link
            if links_in(line, most) == most:
                refuse_crowded(most, f"{self._file}: line {number}", in_table=True)
            reason = f"{len(record)} columns, but the first line has {self._width}"
            batch.bad.append(BadRecord(number, readable(line.strip())[:KEPT_TEXT], reason))

    def _add_ragged(self, batch: ColumnBatch, number: int, record: list[str], line: str) -> None:
        """Add a record that lacks cells at its end, or has more of them."""
        cut_off = len(record) < self._width and self._index == len(record) - 1 and not line.endswith("\n")
        if cut_off:
            reason = "the list ends within this record, so its link may be cut off"
            batch.bad.append(BadRecord(number, readable(line.strip())[:KEPT_TEXT], reason))
        elif self._index < len(record):
            batch.add(number, record[self._index], self._carried(record) if self._carry else None)
        elif any(map(links_in, record)):
            # Spreadsheets leave out cells at the end alone: this one has lost a cell in front of its link.
            reason = f"{len(record)} of {self._width} cells, and a link that is not in column {self.column}"
            batch.bad.append(BadRecord(number, readable(line.strip())[:KEPT_TEXT], reason))
        else:
            batch.blank += 1

    def _carried(self, record: list[str]) -> Carried:
        """Return what a record has in the columns to carry; an empty cell, or one that is missing, is null."""
        return {name: record[at] or None if at < len(record) else None for name, at in self._carried_at}

    def _begins_with_header(self, record: list[str]) -> bool:
        """Find the column in the first record; return True if that is a header."""
        column, header = self._column, True
        names = [_name_in(cell) for cell in record]
        if column is not None and _NUMBER.fullmatch(column):
            if not 0 < int(column) <= len(record):
                raise InputBroken(
                    f"{self._file}: --column {column}: the first line has {len(record)} columns, counted from 1"
                )
            self._index, self.column = int(column) - 1, column
            header = "/" not in record[self._index]
        elif column is None and len(record) == 1 and "/" in record[0]:
            header = False
        else:
            self._index = find_column(names, column, self._file, ", or its number, from 1")
            self.column = names[self._index]
        numbers = [str(number) for number in range(1, len(record) + 1)]
        self._carried_at = find_carried(names if header else numbers, self._carry, self._file)
        self._width = len(record)
        return header


class _CsvRecords:
    """Parses lines into records of CSV, and keeps the lines of an unfinished record until its last one has come."""

    def __init__(self, table: _Table, column: str | None) -> None:
        self._table = table
        self._column = column
        self._delimiter: str | None = None
        self._unfinished: list[str | None] = []
        self._number = 1  # of the first unfinished line

    def take(self, group: list[str | None], *, final: bool = False) -> Iterator[ColumnBatch]:
        """Add lines, and yield the records that end in them. final: no more lines follow."""
        lines = self._unfinished + group
        if self._delimiter is None and (first := next((each for each in lines if each and each.strip(_EMPTY)), None)):
            self._delimiter = _delimiter_in(first, self._column)
        start = 0
        while start < len(lines):
            batch = ColumnBatch()
            end, unread = self._read(batch, lines, start)
            # A record that failed before the last line is damaged; one that failed at it may only be unfinished.
            if unread and (final or end + unread < len(lines) or not _may_continue(lines[end:])):
                self._add_bad_line(batch, self._number + end - start, lines[end])
                end, unread = end + 1, 0
            self._number += end - start
            batch.last, batch.column = self._number - 1, self._table.column
            start = end
            yield batch
            if unread:
                break
        self._unfinished = lines[start:]

    def _read(self, batch: ColumnBatch, lines: list[str | None], start: int) -> tuple[int, int]:
        """Read complete records of about GROUP_LINES lines.

        Return the index behind them, and the number of lines of the next record if that could not be read, else 0.
        """
        # A line that is too long is None, for which the reader raises csv.Error, as it should.
        reader = csv.reader(cast("list[str]", lines[start:]), delimiter=self._delimiter or ",", strict=True)
        end = start
        try:
            for record in reader:
                begin, end = end, start + reader.line_num
                if end - begin > 1 and _size(lines[begin:end]) > LINE_LIMIT:
                    return begin, end - begin
                self._table.add(batch, self._number + begin - start, record, lines[begin] or "")
                if end - start >= GROUP_LINES:
                    break
        except csv.Error:
            return end, max(1, start + reader.line_num - end)
        return end, 0

    def _add_bad_line(self, batch: ColumnBatch, number: int, line: str | None) -> None:
        if line is None:
            batch.bad.append(BadRecord(number, "", TOO_LONG))
        else:
            reason = "quotation marks that do not match"
            batch.bad.append(BadRecord(number, readable(line.strip())[:KEPT_TEXT], reason))


def _delimiter_in(line: str, column: str | None) -> str:
    """Return the separator of a table by its first line: the one with which the column is found, else a comma."""
    if declared := _SEPARATOR_LINE.fullmatch(line):
        return declared[1]

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            record = next(csv.reader([line], delimiter=delimiter))
        except csv.Error:
            return 0, 0
        score = _match_score(record, column)
        return score, 0 if score else len(record)  # if none fits, the error shall list as many names as possible

    return max(_DELIMITERS, key=fit)


def _match_score(record: list[str], column: str | None) -> int:
    """Return how well a first record has the column: 0 not at all, 2 a link in the column of that number, 1 else."""
    if column is None or not _NUMBER.fullmatch(column):
        looked_for = {name.casefold() for name in ((column,) if column is not None else NAMES)}
        return int(any(_name_in(cell).casefold() in looked_for for cell in record))
    cell = record[int(column) - 1] if 0 < int(column) <= len(record) else ""
    if not cell.strip() or any(delimiter in cell for delimiter in _DELIMITERS):
        return 0
    return 2 if "/" in cell else 1


def _name_in(cell: str) -> str:
    """Return a column's name without what programs leave around it: quotes, spaces, byte order marks."""
    return cell.strip(' \t"\ufeff')


def _may_continue(lines: list[str | None]) -> bool:
    """Return True if these lines may be the beginning of one valid record."""
    return None not in lines and _size(lines) <= LINE_LIMIT


def _size(lines: list[str | None]) -> int:
    return sum(len(line) for line in lines if line is not None)
