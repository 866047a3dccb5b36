"""The lines of a list: a byte stream, decompressed if need be and split at line feeds, in bounded memory.

A list may be a pipe that stays silent for hours between two lines, a file of 100 GB, one line without an end, or a few
KiB that decompress to terabytes. Three rules keep all of these harmless:

- Nothing waits for more than it needs. `read1` returns what one system call brings, so a line is yielded as soon as its
  line feed arrives; only the two to four bytes that identify a compression are waited for.
- Nothing is kept beyond a chunk and an incomplete line. A line over LINE_LIMIT is dropped as it arrives and yielded as
  None, so that line numbers stay right.
- A decompressor returns at most as many bytes as are asked for, whatever a frame claims to hold.
"""

import gzip
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from harvester.errors import InputBroken
from harvester.extras import import_zstd
from harvester.links.columns import CHUNK, GROUP_LINES, LINE_LIMIT

_WINDOW_LOG = 27
"""The largest window of a zstd frame, 128 MiB: what `zstd --ultra -22` makes, and `zstd -d` reads without a flag."""
_SHORT_READ = 1024
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f: a frame that holds no data
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def line_groups(raw: io.BufferedReader, name: str) -> Iterator[list[bytes | None]]:
    """Yield a stream's lines in groups, without line feeds; None stands for a line over LINE_LIMIT.

    The lines that a pipe has brought are yielded at once, not held until a group is full. name: the list's, for errors.

    Raises:
        InputBroken: the list is UTF-16, or zstd without the library for it.
        OSError, EOFError, zlib.error: the rest cannot be read or decompressed.
    """
    first = True
    for lines in _split(_decompressed(raw, name)):
        if first and lines[0] is not None:
            lines[0] = lines[0].removeprefix(_UTF8_BOM)
        first = False
        for start in range(0, len(lines), GROUP_LINES):
            yield lines[start : start + GROUP_LINES]


def _decompressed(raw: io.BufferedReader, name: str) -> io.BufferedIOBase:
    """Return a stream of the list's text. Its first bytes decide, because a name may say anything."""
    stream = _PeekedStream(raw)
    if stream.head.startswith(_GZIP_MAGIC):
        stream = _PeekedStream(gzip.GzipFile(fileobj=cast("BinaryIO", stream)))
    elif stream.head == _ZSTD_MAGIC or (stream.head[1:] == _ZSTD_SKIPPABLE and stream.head[0] >> 4 == 5):
        zstd = import_zstd(f"{name}: a zstd list needs a library", InputBroken)
        stream = _PeekedStream(_ZstdStream(stream, zstd))
    if stream.head[:2] in _UTF16_BOMS:
        raise InputBroken(f"{name}: UTF-16; write it as UTF-8 first: iconv -f UTF-16 -t UTF-8 {name}")
    return stream


class _PeekedStream(io.BufferedIOBase):
    """A stream that returns its bytes from the first one on, although `head` has been read from it."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self.head = raw.read(2)
        # Two more only where they can matter: a pipe may bring a line feed now, and the next byte in an hour.
        if self.head == _ZSTD_MAGIC[:2] or self.head[1:] == _ZSTD_SKIPPABLE[:1]:
            self.head += raw.read(2)
        self._raw = raw
        self._unread = self.head

    def readable(self) -> bool:
        """Return True."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Return the bytes that one read brings, the head first; b"" at the end."""
        head, self._unread = self._unread, b""
        return head or self._raw.read1(size)

    def read(self, size: int | None = -1) -> bytes:
        """Return size bytes, or fewer at the end.

        A decompressor asks for many bytes at once. It gets those that are available, or it would hold a pipe's lines
        back; only short reads, of headers, are completed.
        """
        if size is None or size < 0 or size > _SHORT_READ:
            return self.read1(CHUNK if size is None or size < 0 else size)
        head, self._unread = self._unread[:size], self._unread[size:]
        return head + self._raw.read(size - len(head))


class _ZstdStream(io.BufferedIOBase):
    """The content of consecutive zstd frames.

    The library's own ZstdFile is not used, because it takes unreadable bytes after a frame for the end of the file, and
    half a list would pass for a whole one.
    """

    def __init__(self, raw: io.BufferedIOBase, zstd: Any) -> None:
        self._raw = raw
        self._zstd = zstd
        self._frame = self._new_frame()

    def _new_frame(self) -> Any:
        options = {self._zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return self._zstd.ZstdDecompressor(options=options)

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return size bytes, or fewer at the end.

        Raises:
            io.UnsupportedOperation: no size, which would mean the whole list in memory.
        """
        if size is None or size < 0:
            raise io.UnsupportedOperation("a list is read in bounded pieces only")
        content = b""
        while len(content) < size and (piece := self.read1(size - len(content))):
            content += piece
        return content

    def read1(self, size: int = -1) -> bytes:
        """Return the available bytes, at most size; b"" at the end.

        Raises:
            EOFError: the last frame is incomplete. OSError: not zstd, damaged, or a frame with too large a window.
        """
        while True:
            compressed = b""
            if self._frame.eof:
                compressed = self._frame.unused_data or self._raw.read1(CHUNK)
                if not compressed:
                    return b""
                self._frame = self._new_frame()
            elif self._frame.needs_input:
                compressed = self._raw.read1(CHUNK)
                if not compressed:
                    raise EOFError("the zstd stream ends in the middle of a frame")
            try:
                content: bytes = self._frame.decompress(compressed, max_length=size)
            except self._zstd.ZstdError as error:
                hint = "; pack it again without --long" if "memory" in str(error) else ""
                raise OSError(f"{error}{hint}") from error
            if content:
                return content


def _split(stream: io.BufferedIOBase) -> Iterator[list[bytes | None]]:
    """Yield the lines that each chunk completes, without line feeds; None for one over LINE_LIMIT.

    rest: the beginning of a line whose end has not come. overlong: that line is over the limit already, so its bytes
    are dropped until its line feed comes.
    """
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
