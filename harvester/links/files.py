"""Lists of bitlinks in all their forms: files and standard input, streamed as batches with file and line.

Memory is bounded, however long the list or one of its lines is; of Parquet, by its pages.
"""

import glob
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from harvester.errors import InputBroken, UsageError
from harvester.links.batch import Batch, _batch_of, _take_apart
from harvester.links.lines import CHUNK, line_groups
from harvester.links.tables import ColumnBatch, csv_cells, ndjson_cells, parquet_cells, tsv_cells

STDIN = "-"
_COMPRESSED = (".gz", ".zst")


class ListFormat(StrEnum):
    """What a list is; a compressed one is recognised as such whatever it is called."""

    LINES = "lines"
    CSV = "csv"
    TSV = "tsv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


_BY_ENDING = {
    ".csv": ListFormat.CSV,
    ".tsv": ListFormat.TSV,
    ".ndjson": ListFormat.NDJSON,
    ".jsonl": ListFormat.NDJSON,
    ".parquet": ListFormat.PARQUET,
}


class Source(NamedTuple):
    """A list to read. name: what messages and failures call it. path: None for standard input. column: where its links
    stand, by name or number; None for where they mostly do.
    """

    name: str
    path: str | None
    form: ListFormat = ListFormat.LINES
    column: str | None = None

    @property
    def rereadable(self) -> bool:
        """True for a regular file, which can be read once for counting and once more for harvesting."""
        return self.path is not None and stat.S_ISREG(os.stat(self.path).st_mode)


def resolve_lists(paths: Sequence[str], column: str | None = None, list_format: str | None = None) -> list[Source]:
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
    if list_format is not None and list_format not in list(ListFormat):
        raise UsageError(f"{list_format}: one of {', '.join(ListFormat)} was expected", option="--list-format")
    sources = [_source(path, column, list_format) for word in paths for path in _matching(word)]
    if column is not None and all(source.form is ListFormat.LINES for source in sources):
        raise UsageError(
            f"{column}: a list of lines has no columns; say what it is with --list-format", option="--column"
        )
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
        return Source(path, None, ListFormat(list_format or ListFormat.LINES), column)
    _check_readable(path)
    bare, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSED:
        bare, ending = os.path.splitext(bare)
    form = ListFormat(list_format) if list_format is not None else _BY_ENDING.get(ending, ListFormat.LINES)
    # A name that is no UTF-8 must still fit into JSON.
    return Source(os.fsencode(path).decode(errors="replace"), path, form, column)


def _check_begins(source: Source) -> None:
    """See that a list has its column and its library, so that the last of many lists is known to before a call."""
    if (source.form is not ListFormat.LINES or source.name.endswith(".zst")) and source.rereadable:
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
        if source.form is not ListFormat.LINES:
            batches = (_batch_of(cells, source.name) for cells in _cells(source, raw))
            yield from (batch for batch in batches if batch.lines)
            return
        last = 0
        for lines in line_groups(raw, source.name):
            batch = _take_apart(lines, source.name, last + 1)
            last = batch.last
            yield batch


def _cells(source: Source, raw: io.BufferedReader) -> Iterator[ColumnBatch]:
    if source.form is ListFormat.PARQUET:
        return parquet_cells(raw, source.column, source.name)
    read_cells = {ListFormat.CSV: csv_cells, ListFormat.TSV: tsv_cells, ListFormat.NDJSON: ndjson_cells}[source.form]
    return read_cells(line_groups(raw, source.name), source.column, source.name)
