"""What a list would cost: counted before the first call, in memory that does not grow with the list."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harvester.harvest import wanted_again
from harvester.ledger import Known
from harvester.sources import Invalid, Source, read
from harvester.store import Store


@dataclass(slots=True)
class Survey:
    """A list's lines taken apart. links: distinct bitlinks; calls: those among them that need a call."""

    lines: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0
    calls: int = 0


def survey(
    store: Store,
    sources: Sequence[Source],
    *,
    retry_failed: bool,
    retry_refused: bool,
    invalid: Callable[[Invalid], None],
    check: Callable[[int], None],
) -> Survey:
    """Read the sources through, and count.

    invalid: called with each bad line. check: called at each batch with the lines so far; it raises to give the survey
    up. Blocks.

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
            yield [store.rows.key(link.bitlink) for link in batch.links]

    def count(known: Known | None) -> None:
        found.links += 1
        again = known is None or wanted_again(known, retry_failed=retry_failed, retry_refused=retry_refused)
        found.calls += again

    store.ledger.count_distinct(keys(), count)
    found.duplicates -= found.links
    return found
