"""The publisher of `--out results.ndjson`: one growing file, which `tail -f` can follow."""

# ruff: noqa: D102 - the methods are described by dataset.Publisher

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import orjson

from harvester.dataset.journal import remove
from harvester.dataset.ledger import FileCheckpoint, Ledger
from harvester.dataset.manifest import PublishedPart
from harvester.dataset.part_publisher import UNCOMMITTED_LIMIT, rows_in
from harvester.errors import OutputError
from harvester.jsonlines import whole_lines
from harvester.storage.filesystem import sync_file, sync_folder, truncate_file
from harvester.storage.location import OutputLocation

_CHUNK = 1024 * 1024


class FilePublisher:
    """Appends committed rows to one file; what a follower may have read is never withdrawn or repeated.

    The ledger's checkpoint pairs a length of the file with the position in the journal up to which its rows are
    contained in that length. After a crash the file may be longer than the checkpoint: its further bytes are compared
    with the rows behind that position, and only the missing ones are appended. Bytes that are no such rows are an
    error, since another program wrote them.
    """

    uncommitted_limit = UNCOMMITTED_LIMIT

    def __init__(self, location: OutputLocation, ledger: Ledger) -> None:
        self._location = location
        self._ledger = ledger
        self._checkpoint = self._synced = ledger.checkpoint()
        self._ahead = 0  # bytes behind the checkpoint that are in the file already
        self._in_doubt = False

    def parts(self) -> list[PublishedPart]:
        """Return the one file, up to the last checkpoint; a growing file has no checksum."""
        name, rows = os.path.basename(self._location.name), self._checkpoint.rows
        return [PublishedPart(name, rows, calls=rows, bytes=self._checkpoint.bytes)]

    def checkpoint(self) -> FileCheckpoint | None:
        """Sync the file and return its checkpoint; None if it is unchanged, or the last append may have failed."""
        if self._in_doubt or self._checkpoint == self._synced:
            return None
        self._sync()
        return self._checkpoint

    def _sync(self) -> None:
        if os.path.exists(self._location.out):
            sync_file(self._location.out)
            if not self._synced.bytes:
                sync_folder(os.path.dirname(self._location.out))
        self._synced = self._checkpoint

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        if self._in_doubt:  # an earlier call failed half-way
            self.recover(lambda _: None, committed, lossy=False)
        self._in_doubt = True
        with open(self._location.out, "ab", buffering=_CHUNK) as stream:
            for segment in sorted(committed):
                self._append(stream, segment, committed[segment])
        self._in_doubt = False
        for segment in ended:
            if segment > self._ledger.ended():
                self._ledger.end_segment(segment, self.checkpoint())
                remove(self._location.private, segment)

    def _append(self, stream: BinaryIO, segment: int, end: int) -> None:
        checkpoint = self._checkpoint
        if segment < checkpoint.segment or segment <= self._ledger.ended():
            return
        start = checkpoint.place if segment == checkpoint.segment else 0
        size, rows = checkpoint.bytes, checkpoint.rows
        for line in rows_in(self._location, segment, start, end):
            stream.write(line[self._ahead :])
            self._ahead = max(self._ahead - len(line), 0)
            size += len(line)
            rows += 1
        self._checkpoint = FileCheckpoint(segment, end, size, rows)

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """Find which rows behind the checkpoint the file contains already, as the class describes."""
        self._checkpoint, self._ahead = self._ledger.checkpoint(), 0
        size = os.path.getsize(self._location.out) if os.path.exists(self._location.out) else 0
        if size < self._checkpoint.bytes:
            raise OutputError(
                f"{self._location.out} has {size} bytes and had {self._checkpoint.bytes}: somebody has cut it. Put the "
                "rows back, or keep them where they are and begin a new --out with the links that they lack"
            )
        if lossy:
            readable = sizes.get(self._checkpoint.segment, 0)
            self._checkpoint = self._checkpoint._replace(place=min(self._checkpoint.place, readable))
        end = self._compare_tail(sizes) if size else 0
        if lossy:
            self._accept_tail(end, size, sizes, warn)
        elif end < size:
            self._drop_zeros(end)

    def published_keys(self) -> Iterator[bytes]:
        """Yield the keys of all complete rows in the file."""
        for _, line in whole_lines(self._location.out, 0):
            yield bytes.fromhex(orjson.loads(line)["record_id"])

    def shorten_waits(self) -> None:
        pass  # a local file makes nobody wait

    leave = shorten_waits

    def _compare_tail(self, sizes: Mapping[int, int]) -> int:
        """Return the position in the file up to which it matches the rows behind the checkpoint."""
        end = self._checkpoint.bytes
        with open(self._location.out, "rb") as stream:
            stream.seek(end)
            for line in self._expected(sizes):
                found = stream.read(len(line)).rstrip(b"\0")
                if not line.startswith(found):
                    break
                end += len(found)
                if len(found) < len(line):
                    break
        self._ahead = end - self._checkpoint.bytes
        return end

    def _accept_tail(self, start: int, size: int, sizes: Mapping[int, int], warn: Callable[[str], None]) -> None:
        """Keep the complete rows from start on, whose journal lines are lost, and cut a torn last row off.

        The checkpoint is made durable at once, while the ledger still records that lines were lost.
        """
        if start < size:
            end = max((end for end, _ in whole_lines(self._location.out, start)), default=start)
            if end < size:
                warn(f"{self._location.out}: a torn last row was cut, its call is asked again")
                truncate_file(self._location.out, end)
            rows = self._checkpoint.rows + sum(1 for _ in whole_lines(self._location.out, self._checkpoint.bytes))
            segment, place = max(sizes.items(), default=(self._checkpoint.segment, 0))
            self._checkpoint, self._ahead = FileCheckpoint(segment, place, end, rows), 0
        self._sync()
        self._ledger.set_checkpoint(self._checkpoint)

    def _drop_zeros(self, end: int) -> None:
        """Cut off zero bytes, which a power cut can leave behind the last write; raise OutputError for other bytes."""
        with open(self._location.out, "rb") as stream:
            stream.seek(end)
            while chunk := stream.read(_CHUNK):
                if chunk.strip(b"\0"):
                    raise OutputError(
                        f"{self._location.out} was written to by another program, behind byte {end}: take that away "
                        f"(truncate --size={end} {self._location.out}), then run the same command again"
                    )
        truncate_file(self._location.out, end)

    def _expected(self, sizes: Mapping[int, int]) -> Iterator[bytes]:
        """Yield the journals' rows behind the checkpoint."""
        checkpoint = self._checkpoint
        for segment, size in sorted(sizes.items()):
            if segment >= checkpoint.segment:
                start = checkpoint.place if segment == checkpoint.segment else 0
                yield from rows_in(self._location, segment, start, size)
