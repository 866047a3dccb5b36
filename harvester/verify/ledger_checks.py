"""Comparison of an output's manifest and failures with its ledger and journals; read-only, also during a run."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import fields
from itertools import zip_longest
from typing import BinaryIO

from harvester.dataset.journal import read, segment_path
from harvester.dataset.ledger import Ledger, Part, Snapshot
from harvester.dataset.manifest import DatasetCounts, Manifest, PublishedPart
from harvester.errors import OutputError, UsageError
from harvester.rows.call import CallState
from harvester.storage.folders import resolve
from harvester.storage.location import OutputLocation
from harvester.storage.watch import check_kinds
from harvester.verify.findings import Findings

_PART = tuple(Part.__annotations__.values())
_READ_TRIES = 5
"""A run may publish a journal after the ledger was read and before the journal is: then both are read again."""


class LedgerCheck:
    """Compares an output's ledger and journals with what was published."""

    def __init__(self, location: OutputLocation, ledger: Ledger, found: Findings) -> None:
        self._location = location
        self._ledger = ledger
        self._found = found
        self._snapshot = self._take_snapshot()
        self._in_journals = self._count()

    @property
    def parts(self) -> dict[str, PublishedPart]:
        """Parts that are published or about to be, by name."""
        return _by_name(self._snapshot.parts)

    @property
    def sealed_parts(self) -> dict[str, PublishedPart]:
        """Parts that are published, by name."""
        return _by_name(part for part in self._snapshot.parts if part.sealed)

    def begun_since(self, manifest: Manifest) -> bool:
        """Return True if a run has begun since the manifest was written."""
        return int(self._snapshot.facts.get("invocation", 0)) > manifest.invocation.number

    def reconcile(self, manifest: Manifest, name: str, *, growing: bool) -> None:
        """Compare manifest and ledger. name: the manifest's in messages. growing: the output has no parts."""
        facts, found = self._snapshot.facts, self._found
        if facts.get("run_id") != manifest.run_id:
            text = f"run_id is {manifest.run_id}, but the ledger's is {facts.get('run_id')}"
            # A run begins a dataset without calls anew, and replaces its manifest a moment later.
            self._report_older(name, text, wrong=bool(manifest.dataset.settled or manifest.dataset.failed))
            return
        self._reconcile_rows(manifest.dataset.refreshed if found.ended else None)
        if not growing:
            self._reconcile_parts(manifest, name)
        if found.ended:
            self._reconcile_counts(manifest.dataset, name)
        if unreadable := self._ledger.history().unreadable:
            found.remarks.append(f"the ledger's history of the runs has {unreadable} entries that cannot be read")
        found.ledger_checked = True

    def reconcile_failures(self, stream: BinaryIO, name: str) -> None:
        """Compare `_failures.ndjson` with the ledger, line by line; only when no run goes on."""
        lines = (line + b"\n" if type(line) is bytes else b"" for line in self._ledger.failure_lines())
        try:
            for number, (has, wanted) in enumerate(zip_longest(stream, lines), 1):
                if has != wanted:
                    self._found.problem(name, number, "differs from the ledger, or one of them has more lines")
                    return
        except OutputError as error:
            self._found.problem(self._location.ledger, None, str(error))

    def _reconcile_rows(self, refreshed: int | None) -> None:
        """Check that every call with a row is counted once: in a part, in the growing file, or in a journal.

        refreshed: the rows that a newer verdict has followed, None while a run goes on.
        """
        totals, journals = self._snapshot.totals, self._in_journals
        if journals is None:
            text = "a journal that the ledger refers to is missing, or damaged within what was committed"
            self._found.problem(self._location.private, None, text)
            return
        # Parts or a growing file: the other one is empty in every ledger.
        published = sum(part.calls for part in self._snapshot.parts) + self._snapshot.checkpoint.rows
        has, more = published + journals, refreshed or 0
        if self._ledger.refreshing and refreshed is None:
            more = max(has - totals.rows, 0)
        if has != totals.rows + more:
            text = f"{totals.rows + more} calls have a row; {published} are published and {journals} wait in journals"
            self._found.problem(self._location.ledger, None, text)

    def _reconcile_parts(self, manifest: Manifest, name: str) -> None:
        known = self.sealed_parts
        listed = {entry.path: entry for entry in manifest.parts}
        for path, entry in listed.items():
            if path not in known:
                self._found.problem(name, None, f"it lists {path}, which the ledger does not know as published")
                continue
            for key in (field.name for field in fields(PublishedPart)):
                has, wanted = getattr(entry, key), getattr(known[path], key)
                if has != wanted:
                    self._found.problem(name, None, f"{key} of {path} is {has}, but {wanted} in the ledger")
        if missing := sorted(known.keys() - listed.keys()):
            text = f"it does not list {', '.join(missing)}, which the ledger knows as published"
            self._report_older(name, text, wrong=self._found.ended)

    def _reconcile_counts(self, counts: DatasetCounts, name: str) -> None:
        for key, has in self._snapshot.totals._asdict().items():
            if getattr(counts, key) != has:
                self._found.problem(name, None, f"dataset.{key} is {getattr(counts, key)}, but {has} in the ledger")

    def _report_older(self, name: str, text: str, *, wrong: bool) -> None:
        """Report how the manifest differs from a ledger that may be newer. wrong: it cannot be newer."""
        if wrong:
            self._found.problem(name, None, text)
        else:
            self._found.remarks.append(f"{name} is older than the ledger: {text}")

    # --- rows in journals ------------------------------------------------------------------------------------------

    def _count(self) -> int | None:
        """Count the committed rows that are not published yet; None if a journal is damaged."""
        for _ in range(_READ_TRIES):
            counts = [_rows_in(self._location.private, *extent) for extent in _extents(self._snapshot)]
            if None not in counts:
                return sum(filter(None, counts))
            self._snapshot = self._take_snapshot()
        return None

    def _take_snapshot(self) -> Snapshot:
        """Read the ledger. SQLite accepts any type in any column, so the types are checked here."""
        found = self._ledger.snapshot()
        numbers = [found.facts.get("invocation", 0), *found.journals.values(), *found.checkpoint]
        sound = all(type(number) is int and number >= 0 for number in numbers)
        if not sound or any(tuple(map(type, part)) != _PART for part in found.parts):
            raise OutputError(f"{self._location.ledger}: the ledger is damaged (a value that cannot be there)")
        return found


def _by_name(parts: Iterable[Part]) -> dict[str, PublishedPart]:
    return {part.name: PublishedPart(part.name, part.rows, part.calls, part.bytes, part.sha256) for part in parts}


def _extents(snapshot: Snapshot) -> Iterator[tuple[int, int, int]]:
    """Yield the journals' committed and unpublished bytes: segment, start, end."""
    meant = {part.segment for part in snapshot.parts}
    checkpoint = snapshot.checkpoint  # at the very beginning where there is no growing file
    for segment, end in snapshot.journals.items():
        if segment not in meant and segment >= checkpoint.segment:
            yield segment, checkpoint.position if segment == checkpoint.segment else 0, end


def _rows_in(folder: str, segment: int, start: int, end: int) -> int | None:
    """Count a journal's rows between two offsets; None if it ends before `end`."""
    rows, at = 0, start
    for record in read(segment_path(folder, segment), start, end):
        rows += record.state == CallState.ROW
        at = record.end
    return rows if at >= end else None


def open_ledger(out: str, work_dir: str | None, found: Findings, stack: ExitStack) -> LedgerCheck | None:
    """Open an output's ledger for reading, until the stack ends. Return None where it cannot be read, as found says."""
    try:
        location = resolve(out, work_dir)
    except UsageError as error:  # a store without its work dir, or a file system where no run can have its state
        found.not_checked.append(f"the ledger: {error}")
        return None
    try:
        check_kinds(location)
        why = _unreadable(location.ledger)
        if not why:
            ledger = stack.enter_context(closing(Ledger(location.ledger, read_only=True)))
            if not ledger.fresh:
                ledger.check()
                return LedgerCheck(location, ledger, found)
            why = f"{location.ledger} is empty: its run has only just started"
        found.not_checked.append(f"the ledger: {why}")
    except OutputError as error:
        found.problem(location.ledger, None, str(error))
    return None


def _unreadable(path: str) -> str:
    """Return why a ledger cannot be read; empty if it can. Raises OutputError if the file is no ledger."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} does not exist; if its folder is elsewhere, name it with --work-dir"
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
        return f"{log} cannot be written, which reading it requires; run verify as its owner"
    return ""
