"""The publisher of rows that go straight to a reader: standard output, or a Python iteration.

Nothing is kept and nothing resumed; the private state lies in a temporary folder.
"""

# ruff: noqa: D102 - the methods are described by dataset.Publisher and RowSink

import os
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from harvester.dataset.journal import remove
from harvester.dataset.ledger import Ledger
from harvester.dataset.manifest import PublishedPart
from harvester.dataset.part_publisher import UNCOMMITTED_LIMIT, rows_in
from harvester.errors import OutputError, ReaderClosed
from harvester.storage.location import OutputLocation
from harvester.threads import QueueClosed, ThreadToLoopQueue

_STDOUT = 1
_POLL_MILLISECONDS = 200


class RowSink(Protocol):
    """A reader of rows, which are written to it as soon as they are committed.

    uncommitted_limit: verdicts that may wait for a slow reader before calls pause. awaits_reader: True while the reader
    takes nothing. check and write are called by the
    committing thread, shorten_waits and leave by the event loop.
    """

    uncommitted_limit: int
    awaits_reader: bool

    def check(self) -> None:
        """Raise ReaderClosed if the reader has left: each further call would be wasted."""

    def write(self, line: bytes) -> None:
        """Write a row with its line feed; blocks while the reader is slow.

        Raises:
            ReaderClosed: the reader has left. OutputError: the run is ending, and the reader accepts nothing.
        """

    def shorten_waits(self) -> None:
        """Stop waiting for a reader that accepts nothing: the run is ending."""

    def leave(self) -> None:
        """Stop waiting for any reader: the run is given up."""


class StreamPublisher:
    """Writes committed rows to a sink."""

    def __init__(self, location: OutputLocation, ledger: Ledger, sink: RowSink) -> None:
        self.uncommitted_limit = sink.uncommitted_limit
        self.shorten_waits = sink.shorten_waits
        self.leave = sink.leave
        self._sink = sink
        self._location = location
        self._ledger = ledger
        self._written: dict[int, int] = {}
        self._lost: OutputError | None = None

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        pass  # each run begins anew

    def checkpoint(self) -> None:
        self._sink.check()

    def parts(self) -> list[PublishedPart]:
        return []

    def close(self) -> None:
        pass  # the sink is its maker's

    def published_keys(self) -> Iterable[bytes]:
        return ()

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Write the committed rows; after a failed write no more, as the reader may have received half a row.

        Raises:
            OutputError: this write failed, or an earlier one.
        """
        if self._lost:
            raise self._lost
        try:
            self._write(committed)
        except OutputError as error:
            self._lost = error
            raise
        for segment in ended:
            self._ledger.end_segment(segment)
            remove(self._location.private, segment)
            self._written.pop(segment, None)

    def _write(self, committed: Mapping[int, int]) -> None:
        for segment, end in sorted(committed.items()):
            for line in rows_in(self._location, segment, self._written.get(segment, 0), end):
                self._sink.write(line)
            self._written[segment] = end


class StdoutSink:
    """Standard output as a sink."""

    uncommitted_limit = UNCOMMITTED_LIMIT

    def __init__(self) -> None:
        self.awaits_reader = False
        self._abandoned = False
        self._poll = select.poll()
        self._poll.register(_STDOUT, 0)

    def check(self) -> None:
        if any(event & select.POLLERR for _, event in self._poll.poll(0)):
            raise ReaderClosed("standard output was closed")

    def write(self, line: bytes) -> None:
        ready = select.poll()
        ready.register(_STDOUT, select.POLLOUT)
        try:
            while line:
                if ready.poll(_POLL_MILLISECONDS):
                    self.awaits_reader = False
                    line = line[os.write(_STDOUT, line[: select.PIPE_BUF]) :]
                elif self._abandoned:
                    raise OutputError("standard output accepts no more rows: those that were not written are lost")
                else:
                    self.awaits_reader = True
        except BrokenPipeError as error:
            raise ReaderClosed("standard output was closed") from error

    def shorten_waits(self) -> None:
        self._abandoned = True

    leave = shorten_waits


class QueueSink:
    """A sink that is read in the event loop.

    The reader may take any time: a few hundred verdicts wait for it, and no further calls are made meanwhile.
    """

    uncommitted_limit = 100
    awaits_reader = False
    """A program that reads in its own time needs no reason for the wait."""

    def __init__(self) -> None:
        self.channel: ThreadToLoopQueue[bytes] = ThreadToLoopQueue(self.uncommitted_limit)

    def check(self) -> None:
        if self.channel.closed:
            raise ReaderClosed("the reader has stopped taking rows")

    def write(self, line: bytes) -> None:
        try:
            self.channel.put(line)
        except QueueClosed as error:
            raise ReaderClosed("the reader has stopped taking rows") from error

    def shorten_waits(self) -> None:
        pass  # a reader in the same process is waited for

    def leave(self) -> None:
        self.channel.close()
