"""What all forms of a list have in common: their bounds, and records reduced to the column of the links.

Finding the column. `--column` gives its name, or its number in CSV and TSV. Without it the first of NAMES that the
header has is taken, in any case of letters. No column is chosen among several by its content: a column of URLs that are
not the bitlinks would cost a whole list's quota, so an unclear list is an error that names its columns. `--carry` names
further columns, whose texts go with the link into its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from harvester.errors import InputBroken
from harvester.progress import Carried

CHUNK = 64 * 1024
"""Bytes read at a time."""
LINE_LIMIT = 64 * 1024
"""Bytes of the longest valid line."""
GROUP_LINES = 1000
"""The largest number of lines in a group."""
NAMES = ("bitlink", "link", "short_url", "id")
"""Names of the column of links, tried in this order without `--column`. link and id are Bitly's own words."""
TOO_LONG = f"longer than {LINE_LIMIT // 1024} KiB"
AS_TEXT = "export the links as text or CSV"
"""What to do with a file of another kind."""
_SHOWN_NAMES = 20
_SHOWN_NAME = 60
CROWDED = 3
"""As many links in one line are no slip, but a list in another format."""
KEPT_TEXT = 2000
"""Characters of an invalid record that are reported."""
CARRIED_LIMIT = 1000
"""Characters of the longest value that a row carries. Rows have it in memory, in the journal and in each flat line."""


class ListFormat(StrEnum):
    """The format of a list. Compression is not part of it: that is recognised by the first bytes."""

    LINES = "lines"
    CSV = "csv"
    TSV = "tsv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


class Unended(bytes):
    """The last line of a list that does not end with a line end: it may have been cut off."""

    __slots__ = ()


class BadRecord(NamedTuple):
    """A record without a readable link. text: the beginning of the record."""

    line: int
    text: str
    reason: str


@dataclass(slots=True)
class ColumnBatch:
    """Consecutive records of a list, reduced to the column of the links.

    column: the one that was chosen, for messages. last: number of the last line read. values: line and text of each
    record with something in the column, and what it has in the columns to carry.
    """

    column: str = ""
    last: int = 0
    headers: int = 0
    blank: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    values: list[tuple[int, str, Carried]] = field(default_factory=list)

    def add(self, line: int, text: str | None, carried: Carried = None) -> None:
        """Add what a record has in the column; None or spaces count as a blank line.

        carried: from the columns to carry; a value that rows cannot have makes the record bad.
        """
        if text is None or not (text := text.strip()):
            self.blank += 1
        elif len(text) > LINE_LIMIT:
            self.bad.append(BadRecord(line, "", TOO_LONG))
        elif carried and (flaw := flaw_in(carried)):
            self.bad.append(BadRecord(line, readable(text)[:KEPT_TEXT], flaw))
        else:
            self.values.append((line, text, carried))


def find_column(names: Sequence[str], column: str | None, file: str, hint: str = "") -> int:
    """Return the index of the named column, or by default of the first of NAMES that is there.

    An exact match precedes one that differs in the case of letters. hint: ends the error message.

    Raises:
        InputBroken: no such column, or several.
    """
    way = f"Use --column with the number of one{hint.removeprefix(', or its number')}" if hint else "Rename one"
    for name in (column,) if column is not None else NAMES:
        if (index := _index_of(names, name, file, way)) is not None:
            return index
    raise _no_column(names, column if column is not None else " or ".join(NAMES), file, f"Use --column NAME{hint}")


def find_carried(names: Sequence[str], carry: Sequence[str], file: str) -> list[tuple[str, int]]:
    """Return the columns to carry: the name that rows have for each, and its index.

    Raises:
        InputBroken: no column has one of the names, or several have.
    """
    found = []
    for name in carry:
        index = _index_of(names, name, file, "Rename one")
        if index is None:
            raise _no_column(names, name, file, "--carry names columns of the list")
        found.append((name, index))
    return found


def _index_of(names: Sequence[str], name: str, file: str, way: str) -> int | None:
    """Return the index of a name, None if it is not there. way: out of several of that name, for the error."""
    same = [index for index, each in enumerate(names) if each == name]
    same = same or [index for index, each in enumerate(names) if each.casefold() == name.casefold()]
    if len(same) > 1:
        raise InputBroken(readable(f"{file}: {len(same)} columns are called {name}. {way}"))
    return same[0] if same else None


def _no_column(names: Sequence[str], looked_for: str, file: str, advice: str) -> InputBroken:
    shown = ", ".join(name[:_SHOWN_NAME] for name in names[:_SHOWN_NAMES]) or "none"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return InputBroken(readable(f"{file}: no column is called {looked_for}; found: {shown}{more}. {advice}"))


def flaw_in(carried: Mapping[str, str | None]) -> str | None:
    """Return why a row cannot have these values; None if it can."""
    for name, value in carried.items():
        if value is None or (value.isascii() and len(value) <= CARRIED_LIMIT):
            continue
        if len(value) > CARRIED_LIMIT:
            return f"{readable(name)} has more than {CARRIED_LIMIT:,} characters, too many to be carried"
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{readable(name)}, which is to be carried, is not UTF-8"
    return None


def refuse_crowded(links: int, place: str, *, in_table: bool = False) -> None:
    """Raise InputBroken if an invalid line or cell holds CROWDED links or more. place: file and line, for the message.
    in_table: the list is read as a table already.

    Each invalid line counts as one, so a line that hides a thousand links would let a run with two rows be a success.
    """
    if links >= CROWDED:
        advice = ", or one JSON object, a line, or say --list-format csv or tsv, and --column, if it is a table"
        if in_table:
            advice = " a record"
        raise InputBroken(
            f"{place}: {CROWDED} or more links in one place, none of which would be fetched; write one link{advice}"
        )


def readable(text: str) -> str:
    """Return a text with U+FFFD in place of surrogates, which stand for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode(errors="replace")
