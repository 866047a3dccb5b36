"""The text of a list: its bytes decompressed and turned into UTF-8, or an error that says what the file is instead.

The first bytes decide, because a name may say anything. A file that is no text (an archive, a spreadsheet, a page, a
Parquet file inside gzip) must not be read line by line: a few of its lines may look like bitlinks, and the run would
end well with most links missing. So it is refused before the first call, with what to do.

A list may be a pipe that stays silent for hours between two lines, or a few KiB that decompress to terabytes. Two rules
keep both harmless:

- Nothing waits for more than it needs. `read1` returns what one system call brings, so a line is there as soon as its
  line feed arrives; more is waited for only while the first bytes may still turn out to be those of a known file.
- A decompressor returns at most as many bytes as are asked for, whatever a frame claims to hold.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from harvester.errors import InputBroken
from harvester.extras import import_zstd
from harvester.links.columns import CHUNK, LINE_LIMIT

_WINDOW_LOG = 27
"""The largest window of a zstd frame, 128 MiB: what `zstd --ultra -22` makes, and `zstd -d` reads without a flag."""
_XZ_MEMORY = 256 * 1024 * 1024
"""The most memory that xz may use: `xz -9` makes files that need 65 MiB."""
_MOST_LAYERS = 3
"""A file that is still compressed after so many decompressions is no list."""
_SHORT_READ = 1024
_SAMPLE = 1024
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f: a frame that holds no data
_ZIP = b"PK\x03\x04"
_AS_TEXT = "export the links as text or CSV"
_UNPACK = "unpack it first, and name the list in it"
_FOREIGN = {
    b"%PDF-": ("a PDF document", _AS_TEXT),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Excel or Word document", "save it as CSV UTF-8"),
    b"{\\rtf": ("an RTF document", _AS_TEXT),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("compressed by lz4", "unpack it first: lz4 -d"),
    b"\x1f\x9d": ("compressed by compress", "unpack it first: gunzip"),
    b"Obj\x01": ("an Avro file", _AS_TEXT),
    b"ARROW1": ("an Arrow file", "write it as Parquet"),
    b"SQLite format 3\x00": ("an SQLite database", _AS_TEXT),
}
"""The first bytes of files that are no lists: what they are, and what to do."""
_TAR = slice(257, 262)
"""Where a tar archive has `ustar`: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html."""
_BEGINNINGS = (*_FOREIGN, _ZIP, _BZIP2, _XZ, _ZSTD)
_MARKUP = re.compile(rb"\s*<(?:!--|(?:!doctype|\?xml|[a-z][a-z0-9]*)[\s>])", re.IGNORECASE)
"""A page's first tag. `<https://bit.ly/x>`, as mail programs write a link, is none."""
_ARRAY = re.compile(rb"\s*\[\s*(?:[\"{\[\]]|$)")
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decoded(raw: io.BufferedReader, name: str, *, may_be_json: bool = False) -> io.BufferedIOBase:
    """Return a stream of the list's text in UTF-8. name: the list's, for errors.

    may_be_json: True where lines may be JSON; an array, or one object over several lines, is then refused.

    Raises:
        InputBroken: the file is no text, or a library is missing.
        OSError, EOFError, zlib.error: it cannot be read or decompressed; reads of the stream raise them too.
    """
    stream = _PeekedStream(raw)
    for _ in range(_MOST_LAYERS):
        decompressed = _decompressed(stream, name)
        if decompressed is None:
            break
        stream = _PeekedStream(decompressed)
    if encoding := _encoding_of(stream.head):
        stream = _PeekedStream(_TranscodedStream(stream, encoding))
    if foreign := _foreign(stream):
        what, advice = foreign
        raise InputBroken(f"{name}: {what}, not a list; {advice}")
    if may_be_json:
        _refuse_json(stream, name)
    return stream


def _decompressed(stream: "_PeekedStream", name: str) -> io.BufferedIOBase | None:
    """Return the content of a compressed stream; None if it is not compressed."""
    head = stream.head
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=cast("BinaryIO", stream))
    if head.startswith(_BZIP2):
        return _FramedStream(stream, bz2.BZ2Decompressor, OSError)
    if head.startswith(_XZ):
        return _FramedStream(stream, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), lzma.LZMAError, padding=b"\0")
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        zstd = import_zstd(f"{name}: a zstd list needs a library", InputBroken)
        options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return _FramedStream(stream, lambda: zstd.ZstdDecompressor(options=options), zstd.ZstdError)
    return None


def is_parquet(head: bytes) -> bool:
    """Return whether a file begins like Parquet. A domain may begin with PAR1, but no text goes on like this."""
    return head[:4] == b"PAR1" and head[4:5] < b" "


def _encoding_of(head: bytes) -> str | None:
    """Return the name of a wide encoding; None for UTF-8 and anything unknown."""
    if head.startswith(codecs.BOM_UTF32_LE) and len(head) % 4:
        return "utf-16"  # its first character is NUL: no text in either
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding
    # Without a byte order mark: in ASCII text every second byte of UTF-16 is zero.
    sample = head[:_SAMPLE]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if len(sample) >= 4 and even + odd > 0.4 * len(sample):
        if even < 0.1 * odd:
            return "utf-16-le"
        if odd < 0.1 * even:
            return "utf-16-be"
    return None


def _foreign(stream: "_PeekedStream") -> tuple[str, str] | None:
    """Return what a file is that is no text, and what to do; None for text."""
    head = stream.head
    if b"\0" in head[:_SAMPLE]:
        head = stream.peek_on(_TAR.stop)
    head = head.removeprefix(codecs.BOM_UTF8)
    if head[_TAR] == b"ustar":
        return "a tar archive", "unpack it first (tar -xf), and name the lists in it"
    if head.startswith(_ZIP):
        if b"[Content_Types].xml" in head or b"xl/" in head:
            return "an Excel workbook", "save the sheet as CSV UTF-8"
        return "a zip archive", "unpack it first: unzip -p FILE > links.csv"
    for beginning, foreign in _FOREIGN.items():
        if head.startswith(beginning):
            return foreign
    if is_parquet(head):
        return "Parquet inside another format", "unpack it first"
    if _MARKUP.match(head):
        return "a page of HTML or XML", _AS_TEXT
    if _is_binary(head[:_SAMPLE]):
        return "no text, for it has NUL bytes", f"{_AS_TEXT}; where NUL separates them: tr '\\0' '\\n'"
    return None


def _is_binary(sample: bytes) -> bool:
    """Return whether NUL bytes are more than a stray one in a cell: they separate what follows, or fill the file."""
    nuls = sample.count(0)
    return nuls > 0.1 * len(sample) or (nuls > 0 and b"\n" not in sample and b"\r" not in sample)


def _refuse_json(stream: "_PeekedStream", name: str) -> None:
    """Raise InputBroken for a JSON array, or an object that goes on behind its first line."""
    head = stream.head.removeprefix(codecs.BOM_UTF8)
    while head.startswith(b"{") and b"\n" not in head and len(head) < LINE_LIMIT:
        more = stream.peek_on(len(stream.head) + 1).removeprefix(codecs.BOM_UTF8)
        if more == head:
            break
        head = more
    if _ARRAY.match(head):
        raise InputBroken(
            f"{name}: a JSON array, not a list of lines; write an entry a line first: jq -c '.[]' {name} > links.ndjson"
        )
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    if not lines or not lines[0].startswith(b"{"):
        return
    if (len(lines) == 1 and len(head) >= LINE_LIMIT) or (len(lines) > 1 and _goes_on(lines[0], lines[1])):
        raise InputBroken(
            f"{name}: one JSON object, not a list of lines; write an entry a line first, such as jq -c '.links[]' "
            f"{name} > links.ndjson"
        )


def _goes_on(first: bytes, second: bytes) -> bool:
    """Return whether a line is the beginning of a JSON value that a second line continues, rather than damaged."""
    text = ""
    for line in (first, second):
        text += line.decode(errors="replace")
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            if error.pos < len(text):
                return False
        except (ValueError, RecursionError):  # a number too long, or nested too deeply
            return False
        else:
            return line is second
    return True


class _PeekedStream(io.BufferedIOBase):
    """A stream that returns its bytes from the first one on, although `head` has been read from it."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self._raw = raw
        self.head = raw.read1(CHUNK)
        # A pipe may bring one byte now and the next in an hour. More is waited for only while no line can be complete.
        while self.head and any(len(self.head) < len(each) and each.startswith(self.head) for each in _BEGINNINGS):
            if not (more := raw.read1(CHUNK)):
                break
            self.head += more
        self._unread = self.head

    def peek_on(self, size: int) -> bytes:
        """Read on until the head has `size` bytes, or the stream ends, and return it; before any other read."""
        while len(self.head) < size and (more := self._raw.read1(CHUNK)):
            self.head += more
        self._unread = self.head
        return self.head

    def readable(self) -> bool:
        """Return True."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Return the bytes that one read brings, the head first; b"" at the end."""
        if not self._unread:
            return self._raw.read1(size)
        end = len(self._unread) if size < 0 else size
        head, self._unread = self._unread[:end], self._unread[end:]
        return head

    def read(self, size: int | None = -1) -> bytes:
        """Return size bytes, or fewer at the end.

        A decompressor asks for many bytes at once. It gets those that are available, or it would hold a pipe's lines
        back; only short reads, of headers, are completed.
        """
        if size is None or size < 0 or size > _SHORT_READ:
            return self.read1(CHUNK if size is None or size < 0 else size)
        head, self._unread = self._unread[:size], self._unread[size:]
        return head + self._raw.read(size - len(head))


class _FramedStream(io.BufferedIOBase):
    """The content of consecutive compressed frames (bzip2, xz, zstd).

    The libraries' own file objects are not used, because they take unreadable bytes after a frame for the end of the
    file, and half a list would pass for a whole one. new_frame: makes a decompressor. error: what it raises for damaged
    input. padding: bytes that may stand between frames.
    """

    def __init__(
        self, raw: io.BufferedIOBase, new_frame: Callable[[], Any], error: type[Exception], padding: bytes = b""
    ) -> None:
        self._raw = raw
        self._new_frame = new_frame
        self._error = error
        self._padding = padding
        self._frame = new_frame()

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
            EOFError: the last frame is incomplete. OSError: damaged, or a frame that needs too much memory.
        """
        while True:
            compressed = b""
            if self._frame.eof:
                compressed = (self._frame.unused_data or self._raw.read1(CHUNK)).lstrip(self._padding)
                if not compressed:
                    return b""
                self._frame = self._new_frame()
            elif self._frame.needs_input:
                compressed = self._raw.read1(CHUNK)
                if not compressed:
                    raise EOFError("the compressed stream ends in the middle of a frame")
            try:
                content: bytes = self._frame.decompress(compressed, max_length=size)
            except self._error as error:
                hint = "; pack it again without --long" if "memory" in str(error).lower() else ""
                raise OSError(f"{error}{hint}") from error
            if content:
                return content


class _TranscodedStream(io.BufferedIOBase):
    """Text of a wide encoding as UTF-8. What is no character becomes U+FFFD, which no link may have."""

    def __init__(self, raw: io.BufferedIOBase, encoding: str) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def readable(self) -> bool:
        """Return True."""
        return True

    def read1(self, size: int = -1) -> bytes:  # noqa: ARG002 - a read is bounded anyway
        """Return the text of the bytes that one read brings; b"" at the end."""
        while True:
            raw = self._raw.read1(CHUNK)
            text = self._decoder.decode(raw, final=not raw).encode("utf-8", "replace")
            if text or not raw:
                return text
