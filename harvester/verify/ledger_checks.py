"""Comparison of an output's manifest and failures with its ledger and journals; read-only, also during a run."""

import os
import stat
from collections.abc import Iterator
from itertools import zip_longest
from typing import BinaryIO

from harvester.dataset.journal import read, segment_path
from harvester.dataset.ledger import FileCheckpoint, Ledger, Part, Snapshot, State
from harvester.dataset.manifest import DatasetCounts, Manifest
from harvester.errors import OutputError
from harvester.storage.location import OutputKind, OutputLocation
from harvester.verify.findings import Findings

_PART = tuple(Part.__annotations__.values())
_LOOKS = 5
"""A run may publish a journal after the ledger was read and before the journal is: then both are read again."""


class LedgerCheck:
    """Compares an output's ledger and journals with what was published."""

    def __init__(self, location: OutputLocation, ledger: Ledger, found: Findings) -> None:
        self._location = location
        self._ledger = ledger
        self._found = found
        self._snapshot = self._look()
        self._in_journals = self._count()

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    @property
    def parts(self) -> dict[str, Part]:
        """Parts that are published or about to be, by name."""
        return {part.name: part for part in self._snapshot.parts}

    def begun_since(self, manifest: Manifest) -> bool:
        """Return True if a run has begun since the manifest was written."""
        return int(self._snapshot.meta.get("invocation", 0)) > manifest.invocation.number

    def reconcile(self, manifest: Manifest, name: str) -> None:
        """Compare manifest and ledger. name: the manifest's in messages."""
        meta, found = self._snapshot.meta, self._found
        if meta.get("run_id") != manifest.run_id:
            text = f"run_id is {manifest.run_id}, and the ledger's is {meta.get('run_id')}"
            if manifest.dataset.settled or manifest.dataset.failed:
                found.problem(name, None, text)
            else:  # the next run begins a dataset without calls anew, and replaces its manifest a moment later
                found.remarks.append(f"{name} is older than the ledger: {text}")
            return
        self._reconcile_rows()
        if self._location.in_parts:
            self._reconcile_parts(manifest, name)
        if found.ended:
            self._reconcile_counts(manifest.dataset, name)
        found.ledger = True

    def reconcile_failures(self, stream: BinaryIO, name: str) -> None:
        """Compare `_failures.ndjson` with the ledger, line by line; only when no run goes on."""
        lines = (line + b"\n" if type(line) is bytes else b"" for line in self._ledger.failure_lines())
        try:
            for number, (has, wanted) in enumerate(zip_longest(stream, lines), 1):
                if has != wanted:
                    self._found.problem(name, number, "not the line that the ledger has, or one of them has more")
                    return
        except OutputError as error:
            self._found.problem(self._location.ledger, None, str(error).removeprefix(f"{self._location.ledger}: "))

    def _reconcile_rows(self) -> None:
        """Check that every call with a row is counted once: in a part, in the growing file, or in a journal."""
        totals, journals = self._snapshot.totals, self._in_journals
        if journals is None:
            text = "a journal that the ledger counts on is gone or damaged inside what was committed"
            self._found.problem(self._location.private, None, text)
            return
        in_parts = self._location.in_parts
        published = sum(part.calls for part in self._snapshot.parts) if in_parts else self._snapshot.mark.rows
        if published + journals != totals.rows:
            text = f"{totals.rows} calls have a row; {published} are published and {journals} wait in journals"
            self._found.problem(self._location.ledger, None, text)

    def _reconcile_parts(self, manifest: Manifest, name: str) -> None:
        known = {part.name: part for part in self._snapshot.parts if part.sealed}
        listed = {entry.path: entry for entry in manifest.parts}
        for path, entry in listed.items():
            part = known.get(path)
            if part is None:
                self._found.problem(name, None, f"it lists {path}, which the ledger does not know as published")
                continue
            for key in ("rows", "calls", "bytes", "sha256"):
                if getattr(entry, key) != getattr(part, key):
                    text = f"{key} of {path} is {getattr(entry, key)}, and {getattr(part, key)} in the ledger"
                    self._found.problem(name, None, text)
        if missing := sorted(known.keys() - listed.keys()):
            text = f"it does not list {', '.join(missing)}, which the ledger knows as published"
            if self._found.ended:
                self._found.problem(name, None, text)
            else:
                self._found.remarks.append(f"{name} is older than the ledger: {text}")

    def _reconcile_counts(self, counts: DatasetCounts, name: str) -> None:
        totals = self._snapshot.totals
        for key, has in (("rows", totals.rows), ("refused", totals.refused), ("failed", totals.failed)):
            if getattr(counts, key) != has:
                self._found.problem(name, None, f"dataset.{key} is {getattr(counts, key)}, and {has} in the ledger")

    # --- rows in journals ------------------------------------------------------------------------------------------

    def _count(self) -> int | None:
        """Count the committed rows that are not published yet; None if a journal is damaged."""
        for _ in range(_LOOKS):
            extents = _extents(self._snapshot, self._location.kind)
            counts = [_rows_in(self._location.private, *extent) for extent in extents]
            if None not in counts:
                return sum(count for count in counts if count is not None)
            self._snapshot = self._look()
        return None

    def _look(self) -> Snapshot:
        """Read the ledger. SQLite accepts any type in any column, so the types are checked here."""
        found = self._ledger.snapshot()
        numbers = [found.meta.get("invocation", 0), *found.journals.values(), *found.mark]
        sound = all(type(number) is int and number >= 0 for number in numbers)
        if not sound or any(tuple(map(type, part)) != _PART for part in found.parts):
            raise OutputError(f"{self._location.ledger}: the ledger is damaged (a value that cannot be there)")
        return found


def _extents(snapshot: Snapshot, kind: OutputKind) -> Iterator[tuple[int, int, int]]:
    """Yield the journals' committed and unpublished bytes: segment, start, end."""
    meant = {part.segment for part in snapshot.parts}
    mark = snapshot.mark if kind is OutputKind.FILE else FileCheckpoint()
    for segment, end in snapshot.journals.items():
        if segment not in meant and segment >= mark.segment:
            yield segment, mark.place if segment == mark.segment else 0, end


def _rows_in(folder: str, segment: int, start: int, end: int) -> int | None:
    """Count a journal's rows between two offsets; None if it ends before `end`."""
    rows, at = 0, start
    for record in read(segment_path(folder, segment), start, end):
        rows += record.state == State.ROW
        at = record.end
    return rows if at >= end else None


def reconciler(location: OutputLocation | None, why: str, found: Findings) -> LedgerCheck | None:
    """Open an output's ledger for reading. Return None, with the reason in found, where that is impossible.

    why: the reason if location is None.

    Raises:
        OutputError: it is damaged.
    """
    if location is not None:
        why = _unreadable(location)
    if why or location is None:
        found.unchecked.append(f"the ledger: {why}")
        return None
    ledger = Ledger(location.ledger, read_only=True)
    try:
        if ledger.fresh:
            found.unchecked.append(f"the ledger: {location.ledger} is empty: its run has hardly begun")
            ledger.close()
            return None
        ledger.check()
        return LedgerCheck(location, ledger, found)
    except BaseException:
        ledger.close()
        raise


def _unreadable(location: OutputLocation) -> str:
    """Return why a ledger cannot be read; empty if it can. Raises OutputError if the file is no ledger."""
    path = location.ledger
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return f"there is none at {path}; name its folder, --work-dir, if it lies elsewhere"
    except PermissionError as error:
        return f"{path}: {error.strerror}; only its owner's verify reads it"
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    if not regular:
        raise OutputError(f"{path}: not a file")
    log = path + "-wal"
    # Without its write-ahead log SQLite would show an older state than the last commit.
    if os.path.exists(log) and os.path.getsize(log) and not os.access(log, os.R_OK | os.W_OK):
        return f"{log} cannot be written, which reading it takes; only its owner's verify reads it"
    return ""
