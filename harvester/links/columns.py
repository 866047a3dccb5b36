"""What all forms of a list have in common: their bounds, and records reduced to the column of the links.

Finding the column. `--column` gives its name, or its number in CSV and TSV. Without it the first of NAMES that the
header has is taken, in any case of letters. No column is chosen among several by its content: a column of URLs that are
not the bitlinks would cost a whole list's quota, so an unclear list is an error that names its columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harvester.errors import InputBroken

CHUNK = 64 * 1024
"""Bytes read at a time."""
LINE_LIMIT = 64 * 1024
"""Bytes of the longest valid line."""
GROUP_LINES = 1000
"""The largest number of lines in a group."""
NAMES = ("bitlink", "link", "short_url", "id")
"""Names of the column of links, tried in this order without `--column`. link and id are Bitly's own words."""
TOO_LONG = f"longer than {LINE_LIMIT // 1024} KiB"
_SHOWN_NAMES = 20
_SHOWN_NAME = 60
KEPT_TEXT = 2000
"""Characters of an invalid record that are reported."""


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
    record with something in the column.
    """

    column: str = ""
    last: int = 0
    headers: int = 0
    blank: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    values: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str | None) -> None:
        """Add what a record has in the column; None or spaces count as a blank line."""
        if text is None or not (text := text.strip()):
            self.blank += 1
        elif len(text) > LINE_LIMIT:
            self.bad.append(BadRecord(line, "", TOO_LONG))
        else:
            self.values.append((line, text))


def find_column(names: Sequence[str], column: str | None, file: str, hint: str = "") -> int:
    """Return the index of the named column, or by default of the first of NAMES that is there.

    An exact match precedes one that differs in the case of letters. hint: ends the error message.

    Raises:
        InputBroken: no such column, or several.
    """
    for name in (column,) if column is not None else NAMES:
        same = [index for index, each in enumerate(names) if each == name]
        same = same or [index for index, each in enumerate(names) if each.casefold() == name.casefold()]
        if len(same) == 1:
            return same[0]
        if same:
            raise InputBroken(f"{file}: {len(same)} columns are called {name}{hint}")
    looked_for = column if column is not None else " or ".join(NAMES)
    shown = ", ".join(name[:_SHOWN_NAME] for name in names[:_SHOWN_NAMES]) or "none"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    text = f"{file}: no column is called {looked_for}; there are: {shown}{more}. Say --column NAME{hint}"
    raise InputBroken(readable(text))


def readable(text: str) -> str:
    """Return a text with U+FFFD in place of surrogates, which stand for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode(errors="replace")
