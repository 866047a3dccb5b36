"""One growing file of rows, which `tail -f` can follow: made of committed journal lines, as `dataset` makes parts."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import orjson

from harvester.dataset.journal import remove
from harvester.dataset.ledger import FileCheckpoint, Ledger
from harvester.dataset.publisher import rows_in
from harvester.errors import OutputError
from harvester.jsonlines import whole_lines
from harvester.storage.filesystem import sync_file, sync_folder, truncate_file
from harvester.storage.location import OutputLocation

_CHUNK = 1024 * 1024


class AppendPublisher:
    """Appends committed rows to one file, which `tail -f` can follow: what it has shown stays.

    The ledger's mark says how long the file was when all before a place of the journal was in it. After a crash the
    bytes behind the mark are compared with the rows behind that place, and what is missing is appended.
    """

    def __init__(self, place: OutputLocation, ledger: Ledger) -> None:
        self._place = place
        self._ledger = ledger
        self._mark = self._synced = ledger.mark()
        self._ahead = 0  # bytes of the rows behind the mark that are in the file already
        self._in_doubt = False

    def parts(self) -> list[dict[str, Any]]:
        """Give the one file, up to the last mark; a growing file has no checksum."""
        name = os.path.basename(self._place.name)
        rows, size = self._mark.rows, self._mark.bytes
        return [{"path": name, "rows": rows, "calls": rows, "bytes": size, "sha256": None}]

    def mark(self) -> FileCheckpoint | None:
        """Sync the file and give its state, if it has changed, and if the last append is known to have ended well."""
        if self._in_doubt or self._mark == self._synced:
            return None
        self._sync()
        return self._mark

    def _sync(self) -> None:
        if os.path.exists(self._place.out):
            sync_file(self._place.out)
            if not self._synced.bytes:
                sync_folder(os.path.dirname(self._place.out))
        self._synced = self._mark

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Append the rows that were committed."""
        if self._in_doubt:  # an append failed half-way
            self.recover(lambda _: None, committed, lossy=False)
        self._in_doubt = True
        with open(self._place.out, "ab", buffering=_CHUNK) as stream:
            for segment in sorted(committed):
                self._append(stream, segment, committed[segment])
        self._in_doubt = False
        for segment in ended:
            if segment > self._ledger.ended():
                self._ledger.end_segment(segment, self.mark())
                remove(self._place.private, segment)

    def _append(self, stream: BinaryIO, segment: int, end: int) -> None:
        mark = self._mark
        if segment < mark.segment or segment <= self._ledger.ended():
            return
        start = mark.place if segment == mark.segment else 0
        size, rows = mark.bytes, mark.rows
        for line in rows_in(self._place, segment, start, end):
            stream.write(line[self._ahead :])
            self._ahead = max(self._ahead - len(line), 0)
            size += len(line)
            rows += 1
        self._mark = FileCheckpoint(segment, end, size, rows)

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """Bring the file and the journals together again, as the class says."""
        self._mark, self._ahead = self._ledger.mark(), 0
        size = os.path.getsize(self._place.out) if os.path.exists(self._place.out) else 0
        if size < self._mark.bytes:
            raise OutputError(
                f"{self._place.out} has {size} bytes and had {self._mark.bytes}: somebody has cut it. Put the rows "
                "back, or keep them where they are and begin a new --out with the links that they lack"
            )
        if lossy:
            self._mark = self._mark._replace(place=min(self._mark.place, sizes.get(self._mark.segment, 0)))
        end = self._compare_tail(sizes)
        if lossy:
            self._accept_tail(end, size, sizes, warn)
        elif end < size:
            self._drop_zeros(end, size)

    def published_keys(self) -> Iterator[bytes]:
        """Yield the keys of all whole rows in the file."""
        for _, line in whole_lines(self._place.out, 0):
            yield bytes.fromhex(orjson.loads(line)["record_id"])

    def _compare_tail(self, sizes: Mapping[int, int]) -> int:
        """Find how far the rows behind the mark are in the file already; give the place where that ends."""
        end = self._mark.bytes
        if not os.path.exists(self._place.out):
            return end
        with open(self._place.out, "rb") as stream:
            stream.seek(end)
            for line in self._expected(sizes):
                found = stream.read(len(line)).rstrip(b"\0")
                if not line.startswith(found):
                    break
                end += len(found)
                if len(found) < len(line):
                    break
        self._ahead = end - self._mark.bytes
        return end

    def _accept_tail(self, start: int, size: int, sizes: Mapping[int, int], warn: Callable[[str], None]) -> None:
        """Keep the whole rows from start on, whose journal lines are gone; cut a torn last one.

        The mark is made durable at once, while the ledger still says that lines are gone.
        """
        if start < size:
            end = max((end for end, _ in whole_lines(self._place.out, start)), default=start)
            if end < size:
                warn(f"{self._place.out}: a torn last row was cut, its call is asked again")
                truncate_file(self._place.out, end)
            rows = self._mark.rows + sum(1 for _ in whole_lines(self._place.out, self._mark.bytes))
            segment, place = max(sizes.items(), default=(self._mark.segment, 0))
            self._mark, self._ahead = FileCheckpoint(segment, place, end, rows), 0
        self._sync()
        self._ledger.set_mark(self._mark)

    def _drop_zeros(self, end: int, size: int) -> None:
        """Cut what a power failure may leave: a file longer than what was written to it; refuse anything else."""
        with open(self._place.out, "rb") as stream:
            stream.seek(end)
            while chunk := stream.read(_CHUNK):
                if chunk.strip(b"\0"):
                    raise OutputError(
                        f"{self._place.out} was written to by another program, behind byte {end}: take that away "
                        f"(truncate --size={end} {self._place.out}), then run the same command again"
                    )
        assert end < size
        truncate_file(self._place.out, end)

    def _expected(self, sizes: Mapping[int, int]) -> Iterator[bytes]:
        """Yield the journals' rows behind the mark."""
        mark = self._mark
        for segment, size in sorted(sizes.items()):
            if segment >= mark.segment:
                start = mark.place if segment == mark.segment else 0
                yield from rows_in(self._place, segment, start, size)
