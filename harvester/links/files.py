"""Lists in files and on standard input: which ones the arguments name, and their content as a stream of batches.

Memory is bounded, however long a list or a line is, and whatever it unpacks to.
"""

import glob
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from harvester.bitly.bitlinks import links_in, parse
from harvester.errors import InputBroken, InvalidBitlink, UsageError
from harvester.links.batch import Batch, Shard, batch_of_column, batch_of_lines, batch_of_shard
from harvester.links.beginning import CheckedText
from harvester.links.columns import CHUNK, TOO_LONG, ColumnBatch, ListFormat, refuse_crowded
from harvester.links.decoding import PeekedStream, decoded, is_compressed, is_parquet
from harvester.links.lines import line_groups
from harvester.links.tables import columns_in, read_csv, read_ndjson, read_tsv

STDIN = "-"
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


_BY_ENDING = {
    ".csv": ListFormat.CSV,
    ".tsv": ListFormat.TSV,
    ".ndjson": ListFormat.NDJSON,
    ".jsonl": ListFormat.NDJSON,
    ".parquet": ListFormat.PARQUET,
}


class Source(NamedTuple):
    """A list to read.

    name: its name in messages and failures. path: None for standard input. column: the column of its links, by name or
    number; None for the usual names. carry: the columns that rows carry. shard: the part of it to read, None for all.
    """

    name: str
    path: str | None
    format: ListFormat = ListFormat.LINES
    column: str | None = None
    carry: tuple[str, ...] = ()
    shard: Shard | None = None

    @property
    def rereadable(self) -> bool:
        """True for a regular file, which can be read twice: to count its links and to harvest them."""
        return self.path is not None and stat.S_ISREG(os.stat(self.path).st_mode)


def resolve_lists(
    paths: Sequence[str], column: str | None = None, list_format: str | None = None, carry: str | None = None
) -> list[Source]:
    """Return the lists that paths and glob patterns name, each checked to exist and to be readable.

    column: the column of links in lists that have columns. list_format: the format of all lists; by default the one of
    each file's ending. carry: the columns that rows carry, separated by commas.

    Raises:
        UsageError: no list, a list that is missing, unreadable or a folder, a pattern without a match, standard input
        named twice, an unknown format, or a column although no list has columns.
        InputBroken: a list lacks a column.
    """
    if not paths:
        raise UsageError("no list of links was named: name a file, or - for standard input")
    if list(paths).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read only once")
    if list_format is not None and list_format not in list(ListFormat):
        raise UsageError(f"{list_format}: must be one of {', '.join(ListFormat)}", option="--list-format")
    sources = [_source(path, column, list_format) for argument in paths for path in _matches(argument)]
    if column is not None and all(source.format is ListFormat.LINES for source in sources):
        raise UsageError(
            f"{column}: a list of lines has no columns; name its format with --list-format", option="--column"
        )
    if carry is not None:
        sources = [source._replace(carry=columns_in(carry)) for source in sources]
    for source in sources:
        if source.path is None:
            _check_has_columns(source)
        _check_beginning(source)
    return sources


def _check_has_columns(source: Source) -> None:
    """Raise UsageError for columns to carry although a list of lines has none."""
    if source.carry and source.format is ListFormat.LINES:
        raise UsageError(
            f"{source.name}: a list of lines has no columns; say what it is with --list-format", option="--carry"
        )


def read(sources: Iterable[Source]) -> Iterator[Batch]:
    """Yield every line of the sources in batches of at most BATCH_LINES; blocks while a pipe is silent.

    The lines that a pipe has brought are yielded at once, not held until a batch is full.

    Raises:
        InputBroken: a source could not be read to its end; the batches before have been yielded.
    """
    for source in sources:
        last = 0
        try:
            for batch in _batches(source):
                yield batch_of_shard(batch, source.shard)
                last = batch.last
        except (OSError, EOFError, zlib.error) as error:
            place = f"past line {last}" if last else "from line 1 on"
            raise InputBroken(
                f"{source.name}: cannot be read {place}: {error}. "
                "The rows so far are kept; fix the list and run the same command again"
            ) from error


def spool(source: Source, path: str) -> Source:
    """Copy a source to a file and return that one as a source, so that a pipe can be read twice.

    Raises:
        OSError: the source cannot be read, or the copy not written.
    """
    with open(path, "xb") as target, _open_raw(source) as stream:
        while chunk := stream.read1(CHUNK):
            target.write(chunk)
    return source._replace(path=path)


def _matches(argument: str) -> list[str]:
    """Return an argument itself if a file of that name exists, else the files that match it as a glob pattern.

    A shell expands `~` outside quotes only, and patterns are quoted.
    """
    if not os.path.lexists(argument):
        argument = os.path.expanduser(argument)
    if argument == STDIN or os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument]
    paths = sorted({path for path in glob.glob(argument, recursive=True) if not os.path.isdir(path)})
    if not paths:
        _refuse_bitlink(argument)
        raise UsageError(f"{argument}: no file matches")
    return paths


def _refuse_bitlink(path: str) -> None:
    """Raise UsageError if what should be a list, and is no file, is a bitlink."""
    with suppress(InvalidBitlink):
        link = parse(path)
        raise UsageError(
            f"{path}: no such file. For the metrics of this link: harvester show {link}; for many links, "
            "write them into a file, one a line"
        )


def _source(path: str, column: str | None, list_format: str | None) -> Source:
    if path == STDIN:
        return Source(path, None, ListFormat(list_format or ListFormat.LINES), column)
    _check_readable(path)
    stem, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSED:
        _, ending = os.path.splitext(stem)
    format_ = ListFormat(list_format) if list_format is not None else _BY_ENDING.get(ending, ListFormat.LINES)
    # A name that is not UTF-8 must still fit into JSON.
    return Source(os.fsencode(path).decode(errors="replace"), path, format_, column)


def _check_beginning(source: Source) -> None:
    """Read the first batch of a list: it may be no list, lack the column, or need a library.

    Otherwise the last of many lists could turn out to be unreadable after weeks of calls.
    """
    if source.rereadable:
        next(read([source]), None)


def _check_readable(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        _refuse_bitlink(path)
        raise UsageError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path}: a folder; name the lists in it")
    # Not checked by opening it: the writer of a named pipe would take that for its reader, and the close for its end.
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path}: Permission denied")


def _open_raw(source: Source) -> io.BufferedReader:
    if source.path is None:
        return open(0, "rb", closefd=False)
    return open(source.path, "rb")


def _batches(source: Source) -> Iterator[Batch]:
    with _open_raw(source) as raw:
        stream = PeekedStream(raw)
        if is_parquet(stream.head):
            source = source._replace(format=ListFormat.PARQUET)
        _check_has_columns(source)
        if source.format is not ListFormat.LINES:
            batches = (batch_of_column(records, source.name) for records in _records(source, raw, stream))
            yield from (batch for batch in batches if batch.lines)
            return
        last = 0
        for lines in _lines_of(source, stream):
            batch = batch_of_lines(lines, source.name, last + 1)
            last = batch.last
            yield batch


def _records(source: Source, raw: io.BufferedReader, stream: PeekedStream) -> Iterator[ColumnBatch]:
    if source.format is ListFormat.PARQUET:
        from harvester.links.parquet import read_parquet  # noqa: PLC0415 - few lists are Parquet

        _check_parquet(stream.head)
        return read_parquet(raw if raw.seekable() else stream, source.column, source.name, source.carry)
    read_table = {ListFormat.CSV: read_csv, ListFormat.TSV: read_tsv, ListFormat.NDJSON: read_ndjson}[source.format]
    return read_table(_lines_of(source, stream), source.column, source.name, source.carry)


def _lines_of(source: Source, stream: PeekedStream) -> Iterator[list[bytes | None]]:
    """Return the lines of a list that is text, in groups. One that is too long must hide no links either."""

    is_table = source.format in (ListFormat.CSV, ListFormat.TSV)

    def see_overlong(beginning: bytes) -> None:
        if not is_table or b'"' not in beginning:  # a long text, such as a page, has many links and stands in quotes
            place = f"{source.name}: a line {TOO_LONG}"
            refuse_crowded(links_in(beginning.decode(errors="replace")), place, in_table=is_table)

    return line_groups(CheckedText(decoded(stream, source.name), source.name, source.format), see_overlong)


def _check_parquet(head: bytes) -> None:
    """Raise OSError, with what to do, if a file that is called Parquet is something else."""
    if is_compressed(head):
        raise OSError("compressed, but Parquet compresses by itself; unpack it first")
    if not head.startswith(b"PAR"):
        others = ", ".join(each for each in ListFormat if each is not ListFormat.PARQUET)
        raise OSError(f"not a Parquet file; name its format with --list-format ({others})")
