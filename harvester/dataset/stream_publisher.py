"""Rows that go straight to a reader: standard output, or who iterates over them. Nothing is kept, nothing resumed.

The private state lies in a temporary folder meanwhile.
"""

import os
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from harvester.dataset.journal import remove
from harvester.dataset.ledger import Ledger
from harvester.dataset.publisher import rows_in
from harvester.errors import OutputError, ReaderClosed
from harvester.storage.location import OutputLocation
from harvester.threads import ReaderGone, ThreadToLoopQueue

_STDOUT = 1
_POLL_MILLISECONDS = 200


class RowSink(Protocol):
    """A reader of rows, to whom they are written as soon as they are committed.

    most_waiting: verdicts that may wait for a slow reader before no further call is made. check and write belong to
    the thread that commits, hurry and leave to the event loop.
    """

    most_waiting: int

    def check(self) -> None:
        """Raise ReaderClosed as soon as the reader has left: each further call would be wasted."""

    def write(self, line: bytes) -> None:
        """Write a row with its line feed; blocks while the reader takes its time.

        Raises:
            ReaderClosed: the reader has left. OutputError: the run is to end, and it takes nothing.
        """

    def hurry(self) -> None:
        """The run is to end: a reader that takes nothing is not waited for much longer."""

    def leave(self) -> None:
        """The run is given up: nobody is waited for any more."""


class StreamPublisher:
    """A publisher that writes committed rows to a sink."""

    def __init__(self, place: OutputLocation, ledger: Ledger, sink: RowSink) -> None:
        self.sink = sink
        self._place = place
        self._ledger = ledger
        self._written: dict[int, int] = {}
        self._lost: OutputError | None = None

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """A filter begins anew each time."""

    def mark(self) -> None:
        """Raise ReaderClosed as soon as the reader has left."""
        self.sink.check()

    def parts(self) -> list[dict[str, Any]]:
        """Give nothing: what flows makes no parts."""
        return []

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Write the rows that were committed; none any more once the reader has not taken one: it may have half of it.

        Raises:
            OutputError: it has not.
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
            remove(self._place.private, segment)
            self._written.pop(segment, None)

    def _write(self, committed: Mapping[int, int]) -> None:
        for segment, end in sorted(committed.items()):
            for line in rows_in(self._place, segment, self._written.get(segment, 0), end):
                self.sink.write(line)
            self._written[segment] = end


class StdoutSink:
    """Standard output as a sink."""

    most_waiting = 10_000

    def __init__(self) -> None:
        self._abandoned = False
        self._poll = select.poll()
        self._poll.register(_STDOUT, 0)

    def check(self) -> None:
        """Raise ReaderClosed as soon as the reader has closed its end."""
        if any(event & select.POLLERR for _, event in self._poll.poll(0)):
            raise ReaderClosed("standard output was closed")

    def write(self, line: bytes) -> None:
        """Write to standard output, for as long as its reader takes its time and the run is not to end."""
        ready = select.poll()
        ready.register(_STDOUT, select.POLLOUT)
        try:
            while line:
                if ready.poll(_POLL_MILLISECONDS):
                    line = line[os.write(_STDOUT, line[: select.PIPE_BUF]) :]
                elif self._abandoned:
                    raise OutputError("standard output takes no more rows: those that it did not take are lost")
        except BrokenPipeError as error:
            raise ReaderClosed("standard output was closed") from error

    def hurry(self) -> None:
        """Give up a reader that takes none."""
        self._abandoned = True

    leave = hurry


class QueueSink:
    """A sink that is read in the event loop.

    The reader may take as long as it likes: a few hundred verdicts wait, and no further call is made meanwhile.
    """

    most_waiting = 100

    def __init__(self) -> None:
        self.channel: ThreadToLoopQueue[bytes] = ThreadToLoopQueue(self.most_waiting)

    def check(self) -> None:
        """Raise ReaderClosed when nobody reads any more."""
        if self.channel.closed:
            raise ReaderClosed("nobody takes rows any more")

    def write(self, line: bytes) -> None:
        """Hand a row over; raises ReaderClosed when nobody reads any more."""
        try:
            self.channel.put(line)
        except ReaderGone as error:
            raise ReaderClosed("nobody takes rows any more") from error

    def hurry(self) -> None:
        """Nothing: a consumer in the same process is waited for."""

    def leave(self) -> None:
        """Wait for nobody."""
        self.channel.close()
