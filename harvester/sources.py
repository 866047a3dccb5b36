"""Lists of bitlinks in all their forms: files and standard input, streamed as batches with file and line.

Memory is bounded, however long the list or one of its lines is; of Parquet, by its pages.
"""

import glob
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import orjson

from harvester.bitlinks import Bitlink, parse
from harvester.columns import TOO_LONG, Cells, csv_cells, ndjson_cells, readable, tsv_cells
from harvester.errors import InputBroken, InvalidBitlink, UsageError
from harvester.lines import CHUNK, GROUP_LINES, LINE_LIMIT, line_groups
from harvester.parquet import parquet_cells

STDIN = "-"
BATCH_LINES = GROUP_LINES
"""Links are looked up in the ledger by the batch."""
_KEPT_TEXT = 2000
_COMPRESSED = (".gz", ".zst")


class Form(StrEnum):
    """What a list is; a compressed one is recognised as such whatever it is called."""

    LINES = "lines"
    CSV = "csv"
    TSV = "tsv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


_BY_ENDING = {
    ".csv": Form.CSV,
    ".tsv": Form.TSV,
    ".ndjson": Form.NDJSON,
    ".jsonl": Form.NDJSON,
    ".parquet": Form.PARQUET,
}


class Source(NamedTuple):
    """A list to read. name: what messages and failures call it. path: None for standard input. column: where its links
    stand, by name or number; None for where they mostly do.
    """

    name: str
    path: str | None
    form: Form = Form.LINES
    column: str | None = None

    @property
    def rereadable(self) -> bool:
        """True for a regular file, which can be read once for counting and once more for harvesting."""
        return self.path is not None and stat.S_ISREG(os.stat(self.path).st_mode)


class Link(NamedTuple):
    """A bitlink and where it stands."""

    bitlink: Bitlink
    file: str
    line: int


class Invalid(NamedTuple):
    """A line that is no bitlink: its text (cut at 2,000 characters), why, and where it stands."""

    text: str
    reason: str
    file: str
    line: int


@dataclass(slots=True)
class Batch:
    """Some consecutive lines of a list, taken apart: lines = blank + comments + headers + len(invalid) + len(links).

    A record of CSV over several lines counts as one. last: the number of the last line that was read.
    """

    last: int = 0
    lines: int = 0
    blank: int = 0
    comments: int = 0
    headers: int = 0
    invalid: list[Invalid] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def find(paths: Sequence[str], column: str | None = None, list_format: str | None = None) -> list[Source]:
    """Give the sources that paths and glob patterns name, each checked to be there and readable.

    column: where links stand in lists that have columns. list_format: what the lists are; by default what their names
    say.

    Raises:
        UsageError: none named, one that is missing, unreadable, a folder or without that column, a pattern that
        matches nothing, standard input named twice, no such format, or a column where no list has one.
    """
    if not paths:
        raise UsageError("no list of links was named: give a file, or - for standard input")
    if list(paths).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read only once")
    if list_format is not None and list_format not in list(Form):
        raise UsageError(f"--list-format {list_format}: one of {', '.join(Form)} was expected")
    sources = [_source(path, column, list_format) for word in paths for path in _matching(word)]
    if column is not None and all(source.form is Form.LINES for source in sources):
        raise UsageError(f"--column {column}: a list of lines has no columns; say what it is with --list-format")
    for source in sources:
        _check_begins(source)
    return sources


def read(sources: Iterable[Source]) -> Iterator[Batch]:
    """Yield every line of the sources in batches of at most BATCH_LINES; blocks while a pipe is silent.

    What a pipe has brought is yielded at once, not held until a batch is full.

    Raises:
        InputBroken: a source could not be read to its end; all lines before were yielded.
    """
    for source in sources:
        done = 0
        try:
            for batch in _batches(source):
                yield batch
                done = batch.last
        except (OSError, EOFError, zlib.error) as error:
            raise InputBroken(
                f"{source.name}: cannot be read past line {done}: {error}. "
                "What was harvested stays; mend the list and run the same command again"
            ) from error


def taken_apart(links: Sequence[object], name: str, first: int) -> Batch:
    """Take links apart that were given one by one, as if each were a line; first: the number of the first."""
    texts = [link if isinstance(link, str) else None for link in links]
    raw = [b"" if text is None else text.encode(errors="surrogatepass") for text in texts]
    batch = _take_apart([line if len(line) <= LINE_LIMIT else None for line in raw], name, first)
    for number, (link, text) in enumerate(zip(links, texts, strict=True), first):
        if text is None:
            batch.blank -= 1
            batch.invalid.append(Invalid("", f"a text was expected, not {type(link).__name__}", name, number))
    return batch


def spool(source: Source, path: str) -> Source:
    """Copy a source that can be read only once to a file, so that it can be read twice.

    Raises:
        OSError: the copy could not be written.
    """
    with open(path, "wb") as target, _open_raw(source) as stream:
        while chunk := stream.read1(CHUNK):
            target.write(chunk)
    return source._replace(path=path)


def _matching(word: str) -> list[str]:
    """Give the paths that a word of the command means: itself if it is there, or what matches it as a pattern."""
    if word == STDIN or os.path.lexists(word) or not glob.has_magic(word):
        return [word]
    found = sorted({path for path in glob.glob(word, recursive=True) if not os.path.isdir(path)})
    if not found:
        raise UsageError(f"{word}: no file matches")
    return found


def _source(path: str, column: str | None, list_format: str | None) -> Source:
    if path == STDIN:
        return Source(path, None, Form(list_format or Form.LINES), column)
    _check_readable(path)
    bare, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSED:
        bare, ending = os.path.splitext(bare)
    form = Form(list_format) if list_format is not None else _BY_ENDING.get(ending, Form.LINES)
    # A name that is no UTF-8 must still fit into JSON.
    return Source(os.fsencode(path).decode(errors="replace"), path, form, column)


def _check_begins(source: Source) -> None:
    """See that a list has its column and its library, so that the last of many lists is known to before a call."""
    if (source.form is not Form.LINES or source.name.endswith(".zst")) and source.rereadable:
        next(read([source]), None)


def _check_readable(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path}: a folder; name the lists in it")
    # Not by opening it: whoever writes into a named pipe would take that for its reader, and its end for the end.
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path}: Permission denied")


def _open_raw(source: Source) -> io.BufferedReader:
    if source.path is None:
        return open(0, "rb", closefd=False)
    return open(source.path, "rb")


def _batches(source: Source) -> Iterator[Batch]:
    with _open_raw(source) as raw:
        if source.form is not Form.LINES:
            batches = (_batch_of(cells, source.name) for cells in _cells(source, raw))
            yield from (batch for batch in batches if batch.lines)
            return
        last = 0
        for lines in line_groups(raw, source.name):
            batch = _take_apart(lines, source.name, last + 1)
            last = batch.last
            yield batch


def _cells(source: Source, raw: io.BufferedReader) -> Iterator[Cells]:
    if source.form is Form.PARQUET:
        return parquet_cells(raw, source.column, source.name)
    read_cells = {Form.CSV: csv_cells, Form.TSV: tsv_cells, Form.NDJSON: ndjson_cells}[source.form]
    return read_cells(line_groups(raw, source.name), source.column, source.name)


def _batch_of(cells: Cells, file: str) -> Batch:
    lines = cells.headers + cells.blank + len(cells.flaws) + len(cells.found)
    batch = Batch(last=cells.last, lines=lines, blank=cells.blank, headers=cells.headers)
    batch.invalid = [Invalid(flaw.text, flaw.reason, file, flaw.line) for flaw in cells.flaws]
    for number, text in cells.found:
        try:
            batch.links.append(Link(parse(text), file, number))
        except InvalidBitlink as why:
            shown = readable(text)
            reason = str(why) if shown == text else "not UTF-8"
            batch.invalid.append(Invalid(shown[:_KEPT_TEXT], reason, file, number))
    batch.invalid.sort(key=lambda each: each.line)
    return batch


def _take_apart(lines: Sequence[bytes | None], file: str, first: int) -> Batch:
    batch = Batch(last=first + len(lines) - 1, lines=len(lines))
    for number, raw in enumerate(lines, first):
        if raw is None:
            batch.invalid.append(Invalid("", TOO_LONG, file, number))
            continue
        text = raw.strip()
        if not text:
            batch.blank += 1
        elif text.startswith(b"#"):
            batch.comments += 1
        else:
            named = text.decode(errors="replace")
            try:
                named = _named(text)
                batch.links.append(Link(parse(named), file, number))
            except InvalidBitlink as why:
                batch.invalid.append(Invalid(named[:_KEPT_TEXT], str(why), file, number))
    return batch


def _named(text: bytes) -> str:
    """Give what a line names: itself, or what an object of `_failures.ndjson` holds, which is itself a list."""
    try:
        if not text.startswith(b"{"):
            return text.decode()
        record = orjson.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidBitlink("not UTF-8") from error
    except orjson.JSONDecodeError as error:
        raise InvalidBitlink("begins like a JSON object, and is none") from error
    named = record.get("bitlink") or record.get("text")
    if not isinstance(named, str):
        raise InvalidBitlink("a JSON object without a bitlink")
    return named
