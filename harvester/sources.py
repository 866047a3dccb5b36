"""Lists of bitlinks: files and standard input, plain or gzipped, streamed as batches with file and line.

Memory is bounded by CHUNK and LINE_LIMIT, however long the list or one of its lines is.
"""

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

import orjson

from harvester.bitlinks import Bitlink, parse
from harvester.errors import InputBroken, InvalidBitlink, UsageError

STDIN = "-"
CHUNK = 64 * 1024
LINE_LIMIT = 64 * 1024
BATCH_LINES = 1000
"""Links are looked up in the ledger by the batch."""
_KEPT_TEXT = 2000
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Source(NamedTuple):
    """A list to read. name: what messages and failures call it. path: None for standard input."""

    name: str
    path: str | None

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
    """Some consecutive lines of a list, taken apart: lines = blank + comments + len(invalid) + len(links)."""

    lines: int = 0
    blank: int = 0
    comments: int = 0
    invalid: list[Invalid] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def find(paths: Sequence[str]) -> list[Source]:
    """Give the sources that paths name, each checked to be there and readable.

    Raises:
        UsageError: none named, one that is missing, unreadable or a folder, or standard input named twice.
    """
    if not paths:
        raise UsageError("no list of links was named: give a file, or - for standard input")
    if list(paths).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read only once")
    for path in paths:
        if path != STDIN:
            _check_readable(path)
    # A name that is no UTF-8 must still fit into JSON.
    return [Source(os.fsencode(path).decode(errors="replace"), None if path == STDIN else path) for path in paths]


def read(sources: Iterable[Source]) -> Iterator[Batch]:
    """Yield every line of the sources in batches of at most BATCH_LINES; blocks while a pipe is silent.

    What a pipe has brought is yielded at once, not held until a batch is full.

    Raises:
        InputBroken: a source could not be read to its end; all lines before were yielded.
    """
    for source in sources:
        number = 0
        for lines in _line_groups(source):
            yield _take_apart(lines, source.name, number + 1)
            number += len(lines)


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
    return Source(source.name, path)


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


class _Begun(io.BufferedIOBase):
    """A stream whose first two bytes were looked at; a pipe may bring them one by one."""

    def __init__(self, raw: io.BufferedReader | gzip.GzipFile) -> None:
        self.begin = raw.read(2)
        self._raw = raw
        self._rest = self.begin

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Give what there is, first of all the two bytes."""
        rest, self._rest = self._rest, b""
        return rest or self._raw.read1(size)

    def read(self, size: int | None = -1) -> bytes:
        """Give size bytes, or fewer at the end."""
        rest, self._rest = self._rest, b""
        return rest + self._raw.read(-1 if size is None or size < 0 else size - len(rest))


def _line_groups(source: Source) -> Iterator[list[bytes | None]]:
    """Yield a source's lines in groups; None stands for a line longer than LINE_LIMIT."""
    done = 0
    try:
        with _open_raw(source) as raw:
            stream = _Begun(raw)
            if stream.begin == _GZIP_MAGIC:
                stream = _Begun(gzip.GzipFile(fileobj=cast("BinaryIO", stream)))
            _refuse_utf16(stream.begin, source.name)
            for lines in _split(stream):
                if done == 0:
                    _drop_bom(lines)
                for start in range(0, len(lines), BATCH_LINES):
                    yield lines[start : start + BATCH_LINES]
                done += len(lines)
    except (OSError, EOFError, zlib.error) as error:
        raise InputBroken(
            f"{source.name}: cannot be read past line {done}: {error}. "
            "What was harvested stays; mend the list and run the same command again"
        ) from error


def _split(stream: io.BufferedIOBase) -> Iterator[list[bytes | None]]:
    """Yield the lines that each chunk completes, without their line feeds."""
    rest = b""
    overlong = False
    while chunk := stream.read1(CHUNK):
        lines: list[bytes | None] = list((rest + chunk).split(b"\n"))
        rest = cast("bytes", lines.pop())
        if overlong and lines:
            lines[0] = None
            overlong = False
        if overlong or len(rest) > LINE_LIMIT:
            rest, overlong = b"", True
        if lines:
            yield [line if line is None or len(line) <= LINE_LIMIT else None for line in lines]
    if overlong:
        yield [None]
    elif rest:
        yield [rest]


def _refuse_utf16(begin: bytes, name: str) -> None:
    if begin in _UTF16_BOMS:
        raise InputBroken(f"{name}: UTF-16; write it as UTF-8 first: iconv -f UTF-16 -t UTF-8 {name}")


def _drop_bom(lines: list[bytes | None]) -> None:
    if lines[0] is not None:
        lines[0] = lines[0].removeprefix(_UTF8_BOM)


def _take_apart(lines: Sequence[bytes | None], file: str, first: int) -> Batch:
    batch = Batch(lines=len(lines))
    for number, raw in enumerate(lines, first):
        if raw is None:
            batch.invalid.append(Invalid("", f"longer than {LINE_LIMIT // 1024} KiB", file, number))
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
