"""Rows on standard output: a filter that resumes nothing, whose state lies in a temporary folder meanwhile."""

import os
import select
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harvester.dataset import rows_in
from harvester.errors import ConsumerGone, OutputError
from harvester.journal import remove
from harvester.ledger import Ledger
from harvester.places import Place

_STDOUT = 1
_POLL_MILLISECONDS = 200


class Stdout:
    """A publisher that writes committed rows to standard output. abandoned: a reader that takes none is given up."""

    def __init__(self, place: Place, ledger: Ledger) -> None:
        self._place = place
        self._ledger = ledger
        self._written: dict[int, int] = {}
        self.abandoned = False
        self._poll = select.poll()
        self._poll.register(_STDOUT, 0)

    def recover(self, warn: Callable[[str], None], sizes: Mapping[int, int], *, lossy: bool) -> None:
        """A filter begins anew each time."""

    def mark(self) -> None:
        """Raise ConsumerGone as soon as the reader has closed its end: each further call would be wasted."""
        if any(event & select.POLLERR for _, event in self._poll.poll(0)):
            raise ConsumerGone("standard output was closed")

    def parts(self) -> list[dict[str, Any]]:
        """Give nothing: rows on standard output are no parts."""
        return []

    def publish(self, committed: Mapping[int, int], ended: Sequence[int]) -> None:
        """Write the rows that were committed."""
        for generation, end in sorted(committed.items()):
            for line in rows_in(self._place, generation, self._written.get(generation, 0), end):
                self._write_all(line)
            self._written[generation] = end
        for generation in ended:
            self._ledger.end_generation(generation)
            remove(self._place.private, generation)
            self._written.pop(generation, None)

    def _write_all(self, data: bytes) -> None:
        """Write to standard output, for as long as its reader takes its time and the run is not to end.

        Raises:
            ConsumerGone: the reader has closed its end. OutputError: the run is to end, and it takes nothing.
        """
        ready = select.poll()
        ready.register(_STDOUT, select.POLLOUT)
        try:
            while data:
                if ready.poll(_POLL_MILLISECONDS):
                    data = data[os.write(_STDOUT, data[: select.PIPE_BUF]) :]
                elif self.abandoned:
                    raise OutputError("standard output takes no more rows: those that it did not take are lost")
        except BrokenPipeError as error:
            raise ConsumerGone("standard output was closed") from error
