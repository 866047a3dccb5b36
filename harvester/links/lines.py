"""A list's bytes to lines: decompressed as their first bytes say, cut at line feeds, in bounded memory."""

import gzip
import io
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from harvester.errors import InputBroken

CHUNK = 64 * 1024
LINE_LIMIT = 64 * 1024
GROUP_LINES = 1000
"""Lines come in groups of at most so many."""
_WINDOW_LOG = 27
"""The largest window of a zstd frame, 128 MiB: what `zstd --ultra -22` makes, and `zstd -d` reads without a flag."""
_SHORT_READ = 1024
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # behind a byte from 0x50 to 0x5f: a frame that holds no data
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def line_groups(raw: io.BufferedReader, name: str) -> Iterator[list[bytes | None]]:
    """Yield a stream's lines in groups, without their line feeds; None stands for a line longer than LINE_LIMIT.

    What a pipe has brought is yielded at once, not held until a group is full.

    Raises:
        InputBroken: UTF-16, or zstd without its library. OSError, EOFError, zlib.error: it cannot be read further.
    """
    begun = False
    for lines in _split(_decompressed(raw, name)):
        if not begun and lines[0] is not None:
            lines[0] = lines[0].removeprefix(_UTF8_BOM)
        begun = True
        for start in range(0, len(lines), GROUP_LINES):
            yield lines[start : start + GROUP_LINES]


def _decompressed(raw: io.BufferedReader, name: str) -> io.BufferedIOBase:
    stream = _Begun(raw)
    if stream.begin.startswith(_GZIP_MAGIC):
        stream = _Begun(gzip.GzipFile(fileobj=cast("BinaryIO", stream)))
    elif stream.begin == _ZSTD_MAGIC or (stream.begin[1:] == _ZSTD_SKIPPABLE and stream.begin[0] >> 4 == 5):
        stream = _Begun(_Zstd(stream, _zstd(name)))
    if stream.begin[:2] in _UTF16_BOMS:
        raise InputBroken(f"{name}: UTF-16; write it as UTF-8 first: iconv -f UTF-16 -t UTF-8 {name}")
    return stream


class _Begun(io.BufferedIOBase):
    """A stream whose first bytes were looked at; a pipe may bring them one by one."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self.begin = raw.read(2)
        # No further than that where it is text: a pipe may bring a line feed, and then nothing for hours.
        if self.begin == _ZSTD_MAGIC[:2] or self.begin[1:] == _ZSTD_SKIPPABLE[:1]:
            self.begin += raw.read(2)
        self._raw = raw
        self._rest = self.begin

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Give what there is, first of all the first bytes."""
        rest, self._rest = self._rest, b""
        return rest or self._raw.read1(size)

    def read(self, size: int | None = -1) -> bytes:
        """Give size bytes, or fewer at the end; of many bytes, which a decompressor asks for, those that are there."""
        if size is None or size < 0 or size > _SHORT_READ:
            return self.read1(CHUNK if size is None or size < 0 else size)
        rest, self._rest = self._rest[:size], self._rest[size:]
        return rest + self._raw.read(size - len(rest))


def _zstd(name: str) -> Any:
    """Give the module that reads zstd: Python's own from 3.14 on, and before that its twin from PyPI."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - only zstd lists need it
        else:
            from backports import zstd  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputBroken(f"{name}: a zstd list needs a library: pip install 'bitly-harvester[zstd]'") from error
    return zstd


class _Zstd(io.BufferedIOBase):
    """What one zstd frame after the other holds.

    Not the library's own file object: that takes what it cannot read behind a frame for the end.
    """

    def __init__(self, raw: io.BufferedIOBase, zstd: Any) -> None:
        self._raw = raw
        self._zstd = zstd
        self._frame = self._new_frame()

    def _new_frame(self) -> Any:
        options = {self._zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return self._zstd.ZstdDecompressor(options=options)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Give size bytes, or fewer at the end."""
        assert size is not None
        assert size > 0
        found = b""
        while len(found) < size and (more := self.read1(size - len(found))):
            found += more
        return found

    def read1(self, size: int = -1) -> bytes:
        """Give what there is, at most size bytes; nothing at the end.

        Raises:
            EOFError: the last frame is torn. OSError: no zstd, damaged, or a frame whose window is too large.
        """
        while True:
            packed = b""
            if self._frame.eof:
                packed = self._frame.unused_data or self._raw.read1(CHUNK)
                if not packed:
                    return b""
                self._frame = self._new_frame()
            elif self._frame.needs_input:
                packed = self._raw.read1(CHUNK)
                if not packed:
                    raise EOFError("the zstd stream ends in the middle of a frame")
            try:
                found: bytes = self._frame.decompress(packed, max_length=size)
            except self._zstd.ZstdError as error:
                hint = "; pack it again without --long" if "memory" in str(error) else ""
                raise OSError(f"{error}{hint}") from error
            if found:
                return found


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
