"""The journal: one line for each verdict, appended as soon as it is known, so that a kill costs no answer. Beside it
the count of attempts, written before each is sent, so that a kill leaves none uncounted.

A line is `crc32 key kind payload`: eight hexadecimal digits over what follows, the call's key in hexadecimal, the
ledger's state as one digit, and the row's or failure's JSON as it will be published. A torn tail is the end of the
journal; a bad line before that is damage.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple
from zlib import crc32

from harvester.errors import OutputError
from harvester.progress import AttemptCounts
from harvester.storage.filesystem import sync_folder

_NAME = re.compile(r"journal-(\d{5,})\.log")
_PREFIX = 8 + 1 + 32 + 1 + 1 + 1
_READ_BYTES = 1024 * 1024
_ATTEMPTS = "attempts"
_COUNTS = b"%020d %020d %020d %020d\n"
_COUNTED = re.compile(rb"(\d{20}) (\d{20}) (\d{20}) (\d{20})\n")


class Record(NamedTuple):
    """A journal's line. state: as ledger.CallState. payload: the JSON. end: the position behind the line, in bytes."""

    key: bytes
    state: int
    payload: bytes
    end: int


def segment_path(folder: str, segment: int) -> str:
    """Return the path of a segment's journal file."""
    return os.path.join(folder, f"journal-{segment:05d}.log")


def segments(folder: str) -> list[int]:
    """Return the segments that have a journal file, oldest first."""
    return sorted(int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name)))


def encode(key: bytes, state: int, payload: bytes) -> bytes:
    """Return the line of a verdict."""
    rest = b"%s %d %s" % (key.hex().encode(), state, payload)
    return b"%08x %s\n" % (crc32(rest), rest)


def _decode(line: bytes, end: int) -> Record | None:
    """Parse a line; None for one that is torn or damaged."""
    if len(line) < _PREFIX or not line.endswith(b"\n"):
        return None
    try:
        if int(line[:8], 16) != crc32(memoryview(line)[9:-1]):
            return None
        return Record(bytes.fromhex(line[9:41].decode()), int(line[42:43]), line[_PREFIX:-1], end)
    except ValueError:
        return None


def read(path: str, start: int, end: int | None = None) -> Iterator[Record]:
    """Yield the lines between two byte positions, up to the first bad one. start: the beginning of a line.

    A missing file reads as an empty one.
    """
    try:
        stream = open(path, "rb", buffering=_READ_BYTES)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with stream:
        stream.seek(start)
        position = start
        for line in stream:
            position += len(line)
            record = _decode(line, position) if end is None or position <= end else None
            if record is None:
                return
            yield record


def remove(folder: str, segment: int) -> None:
    """Delete a segment's journal file; nothing if it is gone."""
    with suppress(FileNotFoundError):
        os.unlink(segment_path(folder, segment))


class Journal:
    """A journal file open for appending. append is for the event loop's thread, sync and close for any.

    rows, row_bytes: rows of a part made of it, and their bytes as NDJSON. size: the file's bytes.
    first_row_at: when its first row was appended, seconds since 1970; None without rows.
    """

    def __init__(
        self, folder: str, segment: int, *, rows: int = 0, row_bytes: int = 0, first_row_at: float | None = None
    ) -> None:
        self.segment = segment
        self.rows = rows
        self.row_bytes = row_bytes
        self.first_row_at = first_row_at
        self._path = segment_path(folder, segment)
        self._folder = folder
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        self.size = os.fstat(self._descriptor).st_size
        self._synced = self.size
        self._named = self.size > 0

    def append(self, key: bytes, state: int, payload: bytes, rows: int = 0, row_bytes: int = 0) -> None:
        """Append a verdict's line with one unbuffered write. rows, row_bytes: what it adds to a part.

        Raises:
            OutputError: the line was not written completely; a torn one is truncated away.
        """
        line = encode(key, state, payload)
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error
        if written < len(line):
            os.ftruncate(self._descriptor, self.size)
            raise OutputError(f"{self._path}: no space left for a line of {len(line)} bytes")
        self.size += written
        if rows:
            if self.first_row_at is None:
                self.first_row_at = time.time()
            self.rows += rows
            self.row_bytes += row_bytes

    def sync(self, size: int) -> None:
        """Make the first size bytes durable, and the file's name before them."""
        if not self._named:
            sync_folder(self._folder)
            self._named = True
        if size > self._synced:
            os.fsync(self._descriptor)
            self._synced = size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class AttemptFile:
    """The attempts of all runs of a dataset, in one line that is replaced in place before each attempt is sent.

    The ledger adds them up with its commits, so it knows nothing of those between its last commit and a kill. The file
    outlives a kill, but not always a power cut, as it is never synced: after a crash the larger count is the true one.
    Its line is shorter than a sector, so it is written whole.
    """

    def __init__(self, folder: str, before: AttemptCounts) -> None:
        """Open the file in the private state, creating it if missing. before: the attempts of earlier runs."""
        self._path = os.path.join(folder, _ATTEMPTS)
        self._before = before
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, run: AttemptCounts) -> None:
        """Replace the line. run: the attempts of the present run, with the one to be sent.

        Raises:
            OutputError: it cannot be written, so that the attempt must not be sent.
        """
        before = self._before
        line = _COUNTS % (
            before.total + run.total,
            before.retried + run.retried,
            before.throttled + run.throttled,
            before.helper + run.helper,
        )
        try:
            written = os.pwrite(self._descriptor, line, 0)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from error
        if written < len(line):
            raise OutputError(f"{self._path}: no space left for a line of {len(line)} bytes")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_attempts(folder: str) -> AttemptCounts:
    """Return the counts in an AttemptFile's file; zeros if it is missing, or was never written whole."""
    with suppress(FileNotFoundError), open(os.path.join(folder, _ATTEMPTS), "rb") as stream:
        if found := _COUNTED.fullmatch(stream.read()):
            return AttemptCounts(*map(int, found.groups()))
    return AttemptCounts()
