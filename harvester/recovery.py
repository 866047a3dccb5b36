"""What follows a crash: ledger, journals and output are brought together again before anything new is done.

A journal longer than committed is read up to its first bad line: what stands before is settled and never asked again.
One shorter than committed has lost calls: they are unsettled. Damage inside what is committed is an error.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from harvester.dataset import Growing, Publisher, damaged
from harvester.journal import Journal, generations, path_of, read, remove, truncate
from harvester.ledger import Entry, Ledger, State
from harvester.places import Place

_BATCH_RECORDS = 1000


@dataclass(frozen=True, slots=True)
class _Tail:
    """What became of a journal: whether committed lines are gone, and how many calls were forgotten with them."""

    lossy: bool
    forgotten: int


def recover(
    place: Place, ledger: Ledger, publisher: Publisher, warn: Callable[[str], None], invocation: int
) -> tuple[Journal, dict[int, int]]:
    """Recover a dataset; give the journal to go on with, and the bytes committed of it by its generation.

    invocation: the last one, to which recovered verdicts belong.

    Raises:
        OutputError: something is damaged, or is not what was left there.
    """
    private = place.private
    for generation in generations(private):
        if generation <= ledger.ended():
            remove(private, generation)
    marks = ledger.journals()
    live = sorted(set(generations(private)) | set(marks))
    tails = [_settle_tail(place, ledger, publisher, g, marks.get(g, 0), invocation) for g in live]
    lossy = any(tail.lossy for tail in tails)
    if lossy:
        lost = sum(tail.forgotten for tail in tails)
        warn(f"{lost} committed calls are not in the journal any more (a power failure?): they are asked for again")
    publisher.recover(warn, lossy=lossy)
    return _go_on(place, ledger, publisher)


def _go_on(place: Place, ledger: Ledger, publisher: Publisher) -> tuple[Journal, dict[int, int]]:
    """Publish what the full journals have, and open the last one."""
    committed = ledger.journals()  # without those whose part was adopted just now
    *full, last = committed or [ledger.ended() + 1]
    publisher.publish(committed, full)
    rows = sum(record.state == State.ROW for record in read(path_of(place.private, last), 0))
    return Journal(place.private, last, rows=rows), {g: size for g, size in committed.items() if g == last}


def _settle_tail(
    place: Place, ledger: Ledger, publisher: Publisher, generation: int, committed: int, invocation: int
) -> _Tail:
    """Settle what a journal has behind its committed bytes, and cut what is torn."""
    path = path_of(place.private, generation)
    size = os.path.getsize(path) if os.path.exists(path) else 0
    good, count = 0, 0
    for record in read(path, 0):
        good, count = record.end, count + 1
    if good < committed <= size:
        raise damaged(path, good)
    lossy, forgotten = good < committed, 0
    if lossy:
        # What the growing file shows stays settled, whatever became of the journal.
        kept = publisher.published_keys() if isinstance(publisher, Growing) else iter(())
        forgotten = max(ledger.unsettle(generation, kept) - count, 0)
    if size != committed and size:
        truncate(place.private, generation, good)
    _replay(path, ledger, generation, 0 if lossy else committed, invocation)
    return _Tail(lossy, forgotten)


def _replay(path: str, ledger: Ledger, generation: int, start: int, invocation: int) -> None:
    """Settle the journal's lines from start on, in batches; at least one, which commits the journal's length."""
    entries: list[Entry] = []
    end = start
    for record in read(path, start):
        end = record.end
        line = None if record.state == State.ROW else record.payload
        entries.append(Entry(record.key, State(record.state), line))
        if len(entries) >= _BATCH_RECORDS:
            ledger.commit(entries=[(generation, entries)], invocation=invocation, journals={generation: end})
            entries = []
    ledger.commit(entries=[(generation, entries)], invocation=invocation, journals={generation: end})
