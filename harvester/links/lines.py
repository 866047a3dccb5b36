"""The lines of a list: a byte stream split at its line ends, in bounded memory.

A line ends with LF, CR LF or CR alone, as old spreadsheets on the Mac write it. Nothing is kept beyond a chunk and an
incomplete line. A line over LINE_LIMIT is dropped as it arrives and yielded as None, so that line numbers stay right.
"""

import codecs
import io
from collections.abc import Callable, Iterator
from typing import cast

from harvester.links.columns import CHUNK, GROUP_LINES, LINE_LIMIT, Unended


def line_groups(
    stream: io.BufferedIOBase, see_overlong: Callable[[bytes], None] | None = None
) -> Iterator[list[bytes | None]]:
    """Yield a stream's lines in groups, without their ends; None stands for a line over LINE_LIMIT.

    The lines that a pipe has brought are yielded at once, not held until a group is full. see_overlong: called with the
    first LINE_LIMIT bytes of such a line, before its group is yielded. Raises what the stream and see_overlong do.
    """

    def dropped(line: bytes) -> bytes | None:
        if see_overlong is not None:
            see_overlong(line[:LINE_LIMIT])
        return None

    first = True
    for lines in _split(stream, dropped):
        while first and lines[0] is not None and lines[0].startswith(codecs.BOM_UTF8):
            lines[0] = type(lines[0])(lines[0].removeprefix(codecs.BOM_UTF8))
        first = False
        for start in range(0, len(lines), GROUP_LINES):
            yield lines[start : start + GROUP_LINES]


def _split(stream: io.BufferedIOBase, dropped: Callable[[bytes], bytes | None]) -> Iterator[list[bytes | None]]:
    """Yield the lines that each chunk completes, without their ends; what `dropped` returns for one over LINE_LIMIT.

    rest: the beginning of a line whose end has not come. overlong: that line is over the limit already, so its bytes
    are dropped until its end comes.
    """
    rest = b""
    overlong = False
    while chunk := stream.read1(CHUNK):
        if b"\r" in chunk or rest.endswith(b"\r"):
            chunk, rest = rest + chunk, b""
            held = chunk.endswith(b"\r")  # perhaps the first half of CR LF
            chunk = chunk[: len(chunk) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r" * held
        lines: list[bytes | None] = list((rest + chunk).split(b"\n"))
        rest = cast("bytes", lines.pop())
        if overlong and lines:
            lines[0] = None
            overlong = False
        if overlong or len(rest) > LINE_LIMIT + 1:
            if not overlong:
                dropped(rest)
            rest, overlong = b"\r" * rest.endswith(b"\r"), True
        if lines:
            yield [line if line is None or len(line) <= LINE_LIMIT else dropped(line) for line in lines]
    line = rest.removesuffix(b"\r")
    if overlong:
        yield [None]
    elif len(line) > LINE_LIMIT:
        yield [dropped(line)]
    elif rest:
        yield [line if rest.endswith(b"\r") else Unended(line)]
