"""What follows a crash: ledger, journals and output are brought together again before anything new is done.

A journal longer than committed is read up to its first bad line: what stands before is settled and never asked again.
One shorter than committed has lost calls: they are unsettled. Damage inside what is committed is an error.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from harvester.dataset.file_publisher import AppendPublisher
from harvester.dataset.journal import Journal, path_of, read, remove, segments, truncate
from harvester.dataset.ledger import Entry, Ledger, State
from harvester.dataset.publisher import Publisher, damaged
from harvester.rows.encode import encoded_size
from harvester.rows.row import moment_fetched
from harvester.rows.schema import Shape
from harvester.storage.location import OutputLocation

_BATCH_RECORDS = 1000


@dataclass(frozen=True, slots=True)
class _Scan:
    """A journal file: its bytes, those before its first bad line, and those committed."""

    segment: int
    size: int
    good: int
    committed: int

    @property
    def lossy(self) -> bool:
        """True when committed lines are gone."""
        return self.good < self.committed


def recover(
    place: OutputLocation,
    ledger: Ledger,
    publisher: Publisher,
    warn: Callable[[str], None],
    invocation: int,
    shape: Shape,
) -> tuple[Journal, dict[int, int]]:
    """Recover a dataset; give the journal to go on with, and the bytes committed of it by its segment.

    invocation: the last one, to which recovered verdicts belong. shape: that of the parts.

    Raises:
        OutputError: something is damaged, or is not what was left there.
    """
    private = place.private
    for segment in segments(private):
        if segment <= ledger.ended():
            remove(private, segment)
    marks = ledger.journals()
    scans = [_scan(place, g, marks.get(g, 0)) for g in sorted(set(segments(private)) | set(marks))]
    # The output first: what it shows stays, so it says which of the lost calls are to be kept.
    publisher.recover(warn, {scan.segment: scan.good for scan in scans}, lossy=any(scan.lossy for scan in scans))
    ended = ledger.ended()  # a part may have been adopted just now
    for scan in scans:
        if scan.segment > ended:
            _settle(place, ledger, publisher, scan, invocation, warn)
    return _go_on(place, ledger, publisher, shape)


def _scan(place: OutputLocation, segment: int, committed: int) -> _Scan:
    path = path_of(place.private, segment)
    size = os.path.getsize(path) if os.path.exists(path) else 0
    good = 0
    for record in read(path, 0):
        good = record.end
    if good < committed <= size:
        raise damaged(path, good)
    return _Scan(segment, size, good, committed)


def _settle(
    place: OutputLocation,
    ledger: Ledger,
    publisher: Publisher,
    scan: _Scan,
    invocation: int,
    warn: Callable[[str], None],
) -> None:
    """Settle what a journal has behind its committed bytes, and cut what is torn."""
    segment, path = scan.segment, path_of(place.private, scan.segment)
    if scan.size and scan.size != scan.committed:
        truncate(place.private, segment, scan.good)
    if not scan.lossy:
        _replay(path, ledger, segment, scan.committed, invocation)
        return
    before = ledger.calls_of(segment)
    ledger.forget_calls(segment, publisher.published_keys() if isinstance(publisher, AppendPublisher) else iter(()))
    _replay(path, ledger, segment, 0, invocation)
    lost = before - ledger.calls_of(segment)
    warn(f"{lost} committed calls are not in the journal any more (a power failure?): they are asked for again")


def _go_on(place: OutputLocation, ledger: Ledger, publisher: Publisher, shape: Shape) -> tuple[Journal, dict[int, int]]:
    """Publish what the full journals have, and open the last one."""
    committed = ledger.journals()  # without those whose part was adopted just now
    *full, last = committed or [ledger.ended() + 1]
    publisher.publish(committed, full)
    rows, row_bytes, first_row_at = 0, 0, None
    for record in read(path_of(place.private, last), 0):
        if record.state == State.ROW:
            more = encoded_size(record.payload, shape)
            rows, row_bytes = rows + more.rows, row_bytes + more.bytes
            first_row_at = first_row_at or moment_fetched(record.payload)
    journal = Journal(place.private, last, rows=rows, row_bytes=row_bytes, first_row_at=first_row_at)
    return journal, {g: size for g, size in committed.items() if g == last}


def _replay(path: str, ledger: Ledger, segment: int, start: int, invocation: int) -> None:
    """Settle the journal's lines from start on, in batches; at least one, which commits the journal's length."""
    entries: list[Entry] = []
    end = start
    for record in read(path, start):
        end = record.end
        line = None if record.state == State.ROW else record.payload
        entries.append(Entry(record.key, State(record.state), line))
        if len(entries) >= _BATCH_RECORDS:
            ledger.commit(entries=[(segment, entries)], invocation=invocation, journals={segment: end})
            entries = []
    ledger.commit(entries=[(segment, entries)], invocation=invocation, journals={segment: end})
