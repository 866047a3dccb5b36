"""The text of a list: its bytes decompressed and turned into UTF-8, or an error that says what the file is instead.

The first bytes decide, because a name may say anything. A file that is no text (an archive, a spreadsheet, a page, a
Parquet file inside gzip) must not be read line by line: a few of its lines may look like bitlinks, and the run would
end well with most links missing. So it is refused before the first call, with what to do.

A list may be a pipe that stays silent for hours between two lines, or a few KiB that decompress to terabytes. Two rules
keep both harmless:

- Nothing waits for more than it needs. `read1` returns what one system call brings, so a line is there as soon as its
  line feed arrives. What a file is can be told by its first line or its first 512 bytes, whatever comes first; more
  than a line is waited for only if it has NUL bytes, which no list that somebody types has.
- A decompressor returns at most as many bytes as are asked for, whatever a frame claims to hold.
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from harvester.errors import InputBroken
from harvester.extras import import_zstd
from harvester.links.columns import AS_TEXT, CHUNK

_WINDOW_LOG = 27
"""The largest window of a zstd frame, 128 MiB: what `zstd --ultra -22` makes, and `zstd -d` reads without a flag."""
_XZ_MEMORY = 256 * 1024 * 1024
"""The most memory that xz may use: `xz -9` makes files that need 65 MiB."""
_MOST_LAYERS = 3
"""A file that is still compressed after so many decompressions is no list."""
_SHORT_READ = 1024
_SAMPLE = 1024
_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""The first bytes of a zstd frame without data."""
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_ZIP = b"PK\x03\x04"
_UNPACK = "unpack it first, and name the list in it"
_FOREIGN = {
    b"%PDF-": ("a PDF document", AS_TEXT),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Excel or Word document", "save it as CSV UTF-8"),
    b"{\\rtf": ("an RTF document", AS_TEXT),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("compressed by lz4", "unpack it first: lz4 -d"),
    b"\x1f\x9d": ("compressed by compress", "unpack it first: gunzip"),
    b"Obj\x01": ("an Avro file", AS_TEXT),
    b"ARROW1\0\0": ("an Arrow file", "write it as Parquet"),
    b"SQLite format 3\x00": ("an SQLite database", AS_TEXT),
}
"""The first bytes of files that are no lists: what they are, and what to do."""
_TAR = slice(257, 262)
"""Where a tar archive has `ustar`: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html."""
_TOLD_BY = (*_FOREIGN, _ZIP, _GZIP, _XZ, _ZSTD)
_TOLD_AFTER = 512
"""The most bytes that are waited for: the header of a tar archive."""
_IN_ZIP = {
    b"vnd.oasis.opendocument.spreadsheet": ("an OpenDocument spreadsheet", "save the sheet as CSV UTF-8"),
    b"vnd.oasis.opendocument": ("an OpenDocument file", AS_TEXT),
    b"word/document.xml": ("a Word document", AS_TEXT),
    b"ppt/presentation.xml": ("a PowerPoint file", AS_TEXT),
    b"xl/": ("an Excel workbook", "save the sheet as CSV UTF-8"),
    b"[Content_Types].xml": ("an Excel workbook or another document", "save it as CSV UTF-8"),
}
"""What the first names in a zip archive say of it, the clearer ones first."""
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BOM_TOLD_AFTER = 8
"""Bytes after which the marks of UTF-16 and UTF-32 can be told apart."""
_NARROW_LINK = re.compile(rb"[A-Za-z0-9-]\.[A-Za-z]{2,60}/[A-Za-z0-9_-]")
_NARROW_LINKS = 3
"""Bytes of Chinese text may look like one link in ASCII; hardly like three so close together."""
_SWAPPED = ("\ufffe", "\u0a00")
"""A byte order mark and a line feed of the other byte order; both are no characters."""
_RECENT = 1024


def decoded(stream: "PeekedStream", name: str) -> io.BufferedIOBase:
    """Return a stream of the list's text in UTF-8. name: the list's, for errors.

    Raises:
        InputBroken: the file is no text, or a library is missing.
        OSError, EOFError, zlib.error: it cannot be read or decompressed; reads of the stream raise them too.
    """
    for _ in range(_MOST_LAYERS):
        decompressed = _decompressed(stream, name)
        if decompressed is None:
            break
        stream = PeekedStream(decompressed)
    if encoding := _encoding_of(stream.head):
        stream = PeekedStream(_TranscodedStream(stream, encoding))
    if foreign := _foreign(stream):
        what, advice = foreign
        raise InputBroken(f"{name}: {what}, not a list; {advice}")
    return stream


def _decompressed(stream: "PeekedStream", name: str) -> io.BufferedIOBase | None:
    """Return the content of a compressed stream; None if it is not compressed."""
    head = stream.head
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=cast("BinaryIO", stream))
    if _BZIP2.match(head):
        return _FramedStream(stream, bz2.BZ2Decompressor, OSError)
    if head.startswith(_XZ):
        return _FramedStream(stream, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), lzma.LZMAError, padding=b"\0")
    if head.startswith(_ZSTD) or _ZSTD_SKIPPABLE.match(head):
        zstd = import_zstd(f"{name}: a zstd list needs a library", InputBroken)
        options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        return _FramedStream(stream, lambda: zstd.ZstdDecompressor(options=options), zstd.ZstdError)
    return None


def is_compressed(head: bytes) -> bool:
    """Return whether a file begins like one that `decoded` decompresses."""
    return head.startswith((_GZIP, _XZ, _ZSTD)) or bool(_BZIP2.match(head) or _ZSTD_SKIPPABLE.match(head))


def is_parquet(head: bytes) -> bool:
    """Return whether a file begins like Parquet. A domain may begin with PAR1; in text no control
    character follows."""
    return head[:4] == b"PAR1" and head[4:5] < b" "


def _is_telling(head: bytes) -> bool:
    """Return whether the bytes that have come of a file tell what it is.

    A file of another kind has its mark in its first bytes, before any line end; a tar archive, which may begin like
    text, has NUL bytes and its mark within 512 bytes.
    """
    if len(head) >= _TOLD_AFTER or is_compressed(head) or head.removeprefix(codecs.BOM_UTF8).startswith(_TOLD_BY):
        return True
    if head.startswith(tuple(_BOMS)):
        return len(head) >= _BOM_TOLD_AFTER
    if len(head) > len(b"PAR1") and is_parquet(head):
        return True
    return (b"\n" in head or b"\r" in head) and (b"\0" not in head or _encoding_of(head) is not None)


def _encoding_of(head: bytes) -> str | None:
    """Return the name of a wide encoding; None for UTF-8 and anything unknown."""
    if head.startswith(codecs.BOM_UTF32_LE) and head[6:8].strip(b"\0"):
        return "utf-16"  # its first character is NUL: no text in either
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding
    # Without a byte order mark: in ASCII text every second byte of UTF-16 is zero, and three of four of UTF-32.
    sample = head[:_SAMPLE]
    zeros = [sample[at::4].count(0) for at in range(4)]
    if len(sample) < 4 or sum(zeros) <= 0.4 * len(sample):
        return None
    most, few = 0.9 * (len(sample) // 2), 0.1 * (len(sample) // 4)
    if zeros[2] + zeros[3] > most and zeros[0] <= few:
        return "utf-32-le"
    if zeros[0] + zeros[1] > most and zeros[3] <= few:
        return "utf-32-be"
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if even < 0.1 * odd:
        return "utf-16-le"
    return "utf-16-be" if odd < 0.1 * even else None


def _foreign(stream: "PeekedStream") -> tuple[str, str] | None:
    """Name the kind of a file that is not text, with advice; None for text."""
    head = stream.head.removeprefix(codecs.BOM_UTF8)
    if is_compressed(head):
        return f"compressed more than {_MOST_LAYERS} times", "unpack it first"
    if head[_TAR] == b"ustar":
        return "a tar archive", "unpack it first (tar -xf), and name the lists in it"
    if head.startswith(_ZIP):
        head = stream.peek_on(CHUNK)
        foreign = (foreign for name, foreign in _IN_ZIP.items() if name in head)
        return next(foreign, ("a zip archive", "unpack it first: unzip -p FILE > links.csv"))
    for beginning, what in _FOREIGN.items():
        if head.startswith(beginning):
            return what
    if is_parquet(head):
        return "Parquet inside another format", "unpack it first"
    sample = head[:_SAMPLE]
    if _is_binary(sample):
        return "not text: it has NUL bytes", f"{AS_TEXT}; where NUL separates them: tr '\\0' '\\n'"
    return None


def _is_binary(sample: bytes) -> bool:
    """Return whether NUL bytes are more than a stray one in a cell: they separate what follows, or fill the file."""
    nuls = sample.count(0)
    return nuls > 0.1 * len(sample) or (nuls > 0 and b"\n" not in sample and b"\r" not in sample)


class PeekedStream(io.BufferedIOBase):
    """A stream that returns its bytes from the first one on, although `head` has been read from it."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self._raw = raw
        self.head = raw.read1(CHUNK)
        # A pipe may bring one byte now and the next in an hour, so nothing is waited for once a line is complete.
        while self.head and not _is_telling(self.head) and (more := raw.read1(CHUNK)):
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
    """Text of a wide encoding as UTF-8. What is no character becomes U+FFFD, which no link may have.

    Lists are joined with `cat`, also lists of different encodings. The second would then be one line of foreign signs,
    which hides thousands of links, so it is an error.
    """

    def __init__(self, raw: io.BufferedIOBase, encoding: str) -> None:
        self._raw = raw
        # Hardly any four bytes of another text are a character in UTF-32; the last may be cut off in either encoding.
        self._decoder = codecs.getincrementaldecoder(encoding)("strict" if "32" in encoding else "replace")
        self._encoding = encoding
        self._recent = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def read1(self, size: int = -1) -> bytes:  # noqa: ARG002 - a read is bounded anyway
        """Return the text of the bytes that one read brings; b"" at the end.

        Raises:
            OSError: text in another encoding begins.
        """
        while True:
            raw = self._raw.read1(CHUNK)
            text = self._text_of(raw)
            if text or not raw:
                return text.encode("utf-8", "replace")

    def _text_of(self, raw: bytes) -> str:
        recent = self._recent + raw
        self._recent = recent[-_RECENT:]
        if not raw:
            self._decoder.errors = "replace"
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError:
            text = _SWAPPED[0]
        if any(mark in text for mark in _SWAPPED) or len(_NARROW_LINK.findall(recent)) >= _NARROW_LINKS:
            raise OSError(
                f"it begins in {self._encoding.upper()} and continues in another encoding; write all of it in UTF-8"
            )
        return text
