"""What a list would cost: counted before the first call, in memory that does not grow with the list."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harvester.ledger import Known, Ledger, State
from harvester.policy import wanted_again
from harvester.rows import RowMaker
from harvester.sources import Invalid, Source, read


@dataclass(slots=True)
class Survey:
    """A list's lines taken apart. links: distinct bitlinks; settled: those with a row or a refusal; calls: those that
    need a call.
    """

    lines: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0
    settled: int = 0
    calls: int = 0


def survey(
    ledger: Ledger,
    rows: RowMaker,
    sources: Sequence[Source],
    *,
    folder: str,
    retry_failed: bool,
    retry_refused: bool,
    invalid: Callable[[Invalid], None],
    check: Callable[[int], None],
) -> Survey:
    """Read the sources through, and count.

    folder: for a scratch file. invalid: called with each bad line. check: called at each batch with the lines so far;
    it raises to give the survey up. Blocks.

    Raises:
        InputBroken: a source cannot be read.
    """
    found = Survey()

    def keys() -> Iterator[list[bytes]]:
        for batch in read(sources):
            found.lines += batch.lines
            check(found.lines)
            found.invalid += len(batch.invalid)
            found.duplicates += len(batch.links)
            for bad in batch.invalid:
                invalid(bad)
            yield [rows.key(link.bitlink) for link in batch.links]

    def count(known: Known | None) -> None:
        found.links += 1
        again = known is None or wanted_again(known, retry_failed=retry_failed, retry_refused=retry_refused)
        found.calls += again
        found.settled += known is not None and not again and known.state is not State.FAILED

    ledger.count_distinct(keys(), count, os.path.join(folder, "scratch.sqlite"))
    found.duplicates -= found.links
    return found
