"""The journal: one line for each verdict, appended as soon as it is known, so that a kill costs no answer.

A line is `crc32 key kind payload`: eight hexadecimal digits over what follows, the call's key in hexadecimal, the
ledger's state as one digit, and the row's or failure's JSON as it will be published. A torn tail is the end of the
journal. A bad line before that is damage: `mend` overwrites it with spaces, so that every other line keeps its place,
and the ledger and the growing file's checkpoint still point to where they did.
"""

import math
import os
import re
import time
from binascii import hexlify, unhexlify
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from harvester.errors import OutputError
from harvester.rows.call import CallState
from harvester.storage.filesystem import Tampering, leads_to, restore_file, sync_folder

# No `.log`: log rotation and clean-up scripts take what ends like that for theirs.
_NAME = re.compile(r"journal-(\d{5,})\.journal")
_PREFIX = 8 + 1 + 32 + 1 + 1 + 1
_BEGINNING = re.compile(rb"[0-9a-f]{8} [0-9a-f]{32} \d ")
_STATE, _ROW = slice(42, 43), b"0"
RECENT_FAILURES = "recent-failures"
VOID, HELD = 9, 8
"""States of lines that are no verdict: a line of spaces, which stands where a damaged one was; and a row that is held
until its call has another verdict. It was paid for, so if there is none, because the process was killed, recovery makes
it the call's row."""
_READ_BYTES = 1024 * 1024


class Record(NamedTuple):
    """A journal's line. state: as CallState, or VOID or HELD. payload: the JSON. end: the position behind the line."""

    key: bytes
    state: int
    payload: bytes
    end: int


def segment_path(folder: str, segment: int) -> str:
    """Return the path of a segment's journal file."""
    return os.path.join(folder, f"journal-{segment:05d}.journal")


def segments(folder: str) -> list[int]:
    """Return the segments that have a journal file, oldest first."""
    return sorted(int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name)))


def encode(key: bytes, state: int, payload: bytes) -> bytes:
    """Return the line of a verdict."""
    rest = b"%s %d %s" % (hexlify(key), state, payload)
    return b"%08x %s\n" % (crc32(rest), rest)


def decode(line: bytes, end: int) -> Record | None:
    """Parse a line with its line feed; None for one that is torn or damaged. end: the position behind it."""
    if not line.endswith(b"\n"):
        return None
    if line.isspace():
        return Record(b"", VOID, b"", end)
    try:
        if len(line) < _PREFIX or int(line[:8], 16) != crc32(memoryview(line)[9:-1]):
            return None
        return Record(unhexlify(line[9:41]), int(line[_STATE]), line[_PREFIX:-1], end)
    except ValueError:
        return None


def read(path: str, start: int, end: int | None = None) -> Iterator[Record]:
    """Yield the lines between two byte positions, up to the first bad one. start: the beginning of a line.

    A missing file reads as an empty one.
    """
    with suppress(FileNotFoundError), open(path, "rb", buffering=_READ_BYTES) as stream:
        stream.seek(start)
        for line in stream:
            start += len(line)
            record = decode(line, start) if end is None or start <= end else None
            if record is None:
                return
            yield record


def read_rows(path: str, start: int, end: int | None = None) -> Generator[bytes, None, int]:
    """As `read`, with less work: yield rows with their line feeds; return the position behind the last good line."""
    with suppress(FileNotFoundError), open(path, "rb", buffering=_READ_BYTES) as stream:
        stream.seek(start)
        for line in stream:
            if end is not None and start + len(line) > end:
                break
            if line[_STATE] == _ROW and line[:8] == b"%08x" % crc32(line[9:-1]) and line.endswith(b"\n"):
                yield line[_PREFIX:]
            elif (record := decode(line, 0)) is None:
                break
            elif record.state == CallState.ROW:
                yield record.payload + b"\n"
            start += len(line)
    return start


# --- damage -------------------------------------------------------------------------------------------------------


class Gap(NamedTuple):
    """Bytes before a good line that are no good line themselves. line: the number of the first bad one, from 1."""

    start: int
    end: int
    line: int


@dataclass(slots=True)
class Survey:
    """What a journal file holds. size: its bytes. end: those before what follows the last good line, if anything.

    gaps: damage before `end`. unended: the positions of line feeds that were overwritten behind lines that are whole.
    aligned: True if a line ends, or a gap does, at the committed length.
    """

    size: int
    end: int = 0
    gaps: list[Gap] = field(default_factory=list)
    unended: list[int] = field(default_factory=list)
    aligned: bool = True


def survey(path: str, committed: int = 0) -> Survey:
    """Look at every line of a journal file, also at those behind a bad one. A missing file is an empty one.

    committed: the length that the ledger knows.
    """
    try:
        stream = open(path, "rb", buffering=_READ_BYTES)  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return Survey(0)
    with stream:
        found = Survey(os.fstat(stream.fileno()).st_size)
        ends, position, bad_line = committed == 0, 0, 0
        for number, line in enumerate(stream, 1):
            for start, end in _good_lines(line):
                if position + start > found.end:
                    found.gaps.append(Gap(found.end, position + start, bad_line or number))
                    ends = ends or position + start == committed
                if line[end - 1 : end] != b"\n":
                    found.unended.append(position + end - 1)
                found.end, bad_line = position + end, 0
                ends = ends or found.end == committed
            position += len(line)
            if found.end < position:
                bad_line = bad_line or number
    found.aligned = ends
    return found


def _good_lines(line: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of the good lines in what reads as one: several if a line feed between them was damaged."""
    if decode(line, 0) is not None:
        yield 0, len(line)
        return
    starts = [match.start() for match in _BEGINNING.finditer(line)]
    for start, following in pairwise([*starts, len(line)]):
        end = _end_of_good_line(line, start, following)
        if end is not None:
            yield start, end


def _end_of_good_line(line: bytes, start: int, following: int) -> int | None:
    """Return the position behind a good line, whatever its line feed is now; None if it is not good.

    Its JSON is an object, so it ends with a brace. following: where the next line seems to begin.
    """
    expected, crc, position = int(line[start : start + 8], 16), 0, start + 9
    while (brace := line.find(b"}", position, following)) >= 0:
        crc, position = crc32(line[position : brace + 1], crc), brace + 1
        if crc == expected and position < len(line):
            return position + 1
    return None


def good_lines(path: str) -> Iterator[tuple[int, Record]]:
    """Yield the good lines of a journal file with the positions of their first bytes, also those behind a bad one."""
    position = 0
    with open(path, "rb", buffering=_READ_BYTES) as stream:
        for line in stream:
            for start, end in _good_lines(line):
                record = decode(line[start : end - 1] + b"\n", position + end)
                if record is not None:
                    yield position + start, record
            position += len(line)


def mend(path: str, found: Survey, committed: int = 0) -> list[int]:
    """Fill a journal's damage with spaces, durably; return the numbers of the lines that are lost.

    Damage behind the last good line is filled as far as it was committed; what follows is a torn tail.
    """
    gaps = list(found.gaps)
    if found.end < committed <= found.size:
        with open(path, "rb") as stream:
            number = 1 + sum(chunk.count(b"\n") for chunk in _chunks(stream.read, found.end))
        gaps.append(Gap(found.end, committed, number))
        found.end = committed
    if not gaps and not found.unended:
        return []
    with open(path, "r+b") as stream:
        for position in found.unended:
            stream.seek(position)
            stream.write(b"\n")
        for gap in gaps:
            stream.seek(gap.start)
            stream.write(b" " * (gap.end - gap.start - 1) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return [gap.line for gap in gaps]


def _chunks(read_bytes: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size and (chunk := read_bytes(min(size, _READ_BYTES))):
        size -= len(chunk)
        yield chunk


def remove(folder: str, segment: int) -> None:
    """Delete a segment's journal file; nothing if it is gone.

    Its failures are in no part. Until `_failures.ndjson` has them too, they are kept for `harvester repair`.
    """
    if failures := list(_failures_in(path := segment_path(folder, segment))):
        with suppress(OSError), open(os.path.join(folder, RECENT_FAILURES), "ab") as stream:  # the ledger has them
            stream.writelines(failures)
    with suppress(FileNotFoundError):
        os.unlink(path)


def held_rows(folder: str) -> dict[bytes, bytes]:
    """Return the rows in a folder's journals that were held, and that no verdict has followed; by their calls' keys."""
    held: dict[bytes, bytes] = {}
    for segment in segments(folder):
        for record in read(segment_path(folder, segment), 0):
            held.pop(record.key, None)
            if record.state == HELD:
                held[record.key] = record.payload
    return held


def _failures_in(path: str) -> Iterator[bytes]:
    """Yield a journal file's good lines that are no rows. Nearly all are rows, so those are not decoded."""
    with suppress(FileNotFoundError), open(path, "rb", buffering=_READ_BYTES) as stream:
        for line in stream:
            if line[_STATE] != _ROW and (record := decode(line, 0)) is not None and record.state not in (VOID, HELD):
                yield line


def forget_failures(folder: str) -> None:
    """Delete the kept failures: `_failures.ndjson` has just been written."""
    if os.path.exists(path := os.path.join(folder, RECENT_FAILURES)):
        with suppress(OSError):
            os.unlink(path)


class Journal:
    """A journal file open for appending. append is for the event loop's thread, sync and close for any.

    rows, row_bytes: rows of a part made of it, and their bytes as NDJSON. size: the file's bytes.
    first_row_at: when its first row was appended, seconds since 1970; None without rows. copy_to: is given each line
    too, once it is written.
    """

    copy_to: Callable[[bytes], None] | None = None

    def __init__(
        self, folder: str, segment: int, *, rows: int = 0, row_bytes: int = 0, first_row_at: float | None = None
    ) -> None:
        self.segment = segment
        self.rows, self.row_bytes, self.first_row_at = rows, row_bytes, first_row_at
        self._folder, self._path = folder, segment_path(folder, segment)
        # Read as well, because the descriptor is all that is left of a file that another program has removed.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        self.size = os.fstat(self._descriptor).st_size
        self._synced, self._named = self.size, False
        self._held: dict[bytes, bytes] = {}

    def following(self) -> "Journal":
        """Open the journal of the next segment. The rows held are written there too: this one will be deleted.

        Raises:
            OutputError: it cannot be written. OSError: it cannot be opened.
        """
        journal = Journal(self._folder, self.segment + 1)
        journal.copy_to = self.copy_to
        try:
            for key, row in self._held.items():
                journal.hold(key, row)
        except OutputError:
            journal.close()
            raise
        return journal

    def hold(self, key: bytes, row: bytes) -> None:
        """Append a row that is no last verdict yet, but will be published if nothing follows it. Raises as `append`."""
        self.append(key, HELD, row)
        self._held[key] = row

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
        if self.copy_to is not None:
            self.copy_to(line)
        if self._held:
            self._held.pop(key, None)
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

    def tampering(self) -> Tampering | None:
        """Return what another program has done to the file. For the event loop's thread."""
        size = os.fstat(self._descriptor).st_size
        if size != self.size:
            text = f"was truncated or changed by another program (it has {size} bytes, expected {self.size})"
            then = "Run the same command again; it repeats the calls whose answers were lost"
            return Tampering(self._path, text, False, then)
        if not leads_to(self._path, self._descriptor):
            return Tampering(self._path, "was removed or replaced by another program")
        return None

    def restore(self) -> None:
        """Write the file again from the open descriptor. For the event loop's thread, which appends to it."""
        restore_file(self._path, self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def append_rows(folder: str, segment: int, rows: Mapping[bytes, bytes]) -> int:
    """Append rows, by their calls' keys, to a journal, durably; return where the first begins. Raises as `append`."""
    with closing(Journal(folder, segment)) as journal:
        start = journal.size
        for key, row in rows.items():
            journal.append(key, CallState.ROW, row)
        journal.sync(journal.size)
    return start


@dataclass(frozen=True, slots=True)
class PartLimits:
    """When a part is full: its rows, their bytes as NDJSON, or seconds since its first row, whichever comes first.

    At the speed of a rate-limited API a limit in bytes alone would keep a part open for weeks.
    """

    rows: int
    bytes: int
    seconds: float = math.inf

    def full(self, journal: Journal) -> bool:
        """True when this journal should become a part, or when failures alone have made it long."""
        return journal.rows >= self.rows or journal.row_bytes >= self.bytes or journal.size >= 4 * self.bytes

    def old(self, journal: Journal, now: float) -> bool:
        """True when the journal's first row is older than `seconds`. now: seconds since 1970, by the wall clock."""
        begun = journal.first_row_at
        # A negative age means that the clock was set back, which must not keep a part open for longer.
        return begun is not None and not 0 <= now - begun < self.seconds
