"""`harvester verify`: check parts, rows, counts and failures of an output against manifest, schema and ledger."""

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from harvester.bitly.query import Query
from harvester.dataset import manifest as manifests
from harvester.dataset.manifest import Manifest, PublishedPart
from harvester.dataset.part_publisher import PART_NAME
from harvester.errors import OutputError, UsageError
from harvester.rows.decode import HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import Format, PartFormat
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape
from harvester.storage.location import MANIFEST, SUCCESS, is_url, normal
from harvester.storage.object_store import open_store
from harvester.storage.storage import LocalStorage, Storage
from harvester.verify.duplicates import DuplicateFinder
from harvester.verify.findings import Findings
from harvester.verify.ledger_checks import LedgerCheck, open_ledger
from harvester.verify.row_checks import Flat, Nested
from harvester.verify.sidecar_checks import check_failures, check_manifest, check_names, has_ended

_READ_TRIES, _REREAD_SECONDS = 20, 0.1
_COMPLETE = re.compile(rb'"complete":\s*true')
_LOCATED = 1000
"""Repeated keys that are located in the files; further ones are only counted."""


class Output(NamedTuple):
    """The places of an output's files. beside: its `_` files. rows: its parts or growing file. work_dir: --work-dir."""

    name: str
    beside: Storage
    rows: Storage
    growing: bool
    work_dir: str | None


def output_at(out: str, work_dir: str | None = None) -> Output:
    """Locate an output's files. out: its folder, its growing file, its store's URL, or its manifest.

    Raises:
        UsageError: rows on standard output cannot be verified; no such store, or its library is missing.
    """
    if is_url(out):
        out = normal(out.removesuffix("/" + MANIFEST))
        store = open_store(out)
        return Output(out, store, store, growing=False, work_dir=work_dir)
    path, out = manifests.locate(out)
    folder = os.path.dirname(path)
    growing = folder != out
    return Output(out, LocalStorage(folder), LocalStorage(os.path.dirname(out) if growing else out), growing, work_dir)


def verify(output: Output, *, allow_moved: bool = False) -> Findings:
    """Check everything of an output that can be read. allow_moved: a loader may have taken published parts away.

    Raises:
        UsageError: there is nothing to verify, or a library is missing. OutputError: the output cannot be read.
    """
    found = Findings(output.name, allow_moved=allow_moved)
    try:
        _verify(output, found)
    except OSError as error:
        raise OutputError(f"{error.filename or output.name}: {error.strerror or error}") from error
    return found


def _verify(output: Output, found: Findings) -> None:
    names, text = _read_consistently(output)
    path = output.beside.path(MANIFEST)
    try:
        manifest = manifests.parse(text, path)
    except manifests.NewerForm:
        raise
    except UsageError as error:
        found.problem(path, None, f"{error}; nothing else was checked")
        return
    found.run_id, found.complete = manifest.run_id, manifest.complete
    with ExitStack() as stack:
        ledger = open_ledger(output.name, output.work_dir, found, stack)
        if found.not_checked and manifest.work_dir:
            found.not_checked[-1] += f" (the manifest's run had --work-dir {manifest.work_dir})"
        found.ended = has_ended(manifest) and not (ledger and ledger.begun_since(manifest))
        check_names(manifest, names, output.beside, found)
        if query := check_manifest(manifest, path, found):
            files = list(_files(output, manifest, names, ledger, found))
            found.published_rows = sum(file.rows for file in files if file.calls)
            _Rows(output, manifest, query, found).check(files)
            check_failures(output.beside, manifest, names, ledger, found)
        if ledger:
            ledger.reconcile(manifest, path, growing=output.growing)


def _read_consistently(output: Output) -> tuple[list[str], bytes]:
    """Return the names beside the rows and the manifest's bytes, read until both are of the same moment."""
    path = output.beside.path(MANIFEST)
    try:
        text = _text_of(output.beside)
        for _ in range(_READ_TRIES):
            names = output.beside.names()
            before, text = text, _text_of(output.beside)
            # At a run's end _SUCCESS is written a moment after the manifest.
            if text == before and (SUCCESS in names or not _COMPLETE.search(text)):
                break
            time.sleep(_REREAD_SECONDS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"nothing to verify at {output.name}: {path} does not exist. A run writes it in its first moments: run the "
            "same command again, or name the --out of another"
        ) from error
    return names, text


def _text_of(shelf: Storage) -> bytes:
    with closing(shelf.open(MANIFEST)) as stream:
        return stream.read()


# --- the rows -----------------------------------------------------------------------------------------------------


def _files(
    output: Output, manifest: Manifest, names: list[str], ledger: LedgerCheck | None, found: Findings
) -> Iterator[PublishedPart]:
    """Yield the files of rows to read; report files that manifest and ledger do not know."""
    path, listed = output.beside.path(MANIFEST), {part.path: part for part in manifest.parts}
    for name, part in listed.items():
        match = PART_NAME.fullmatch(name)
        ours = name == os.path.basename(output.name) if output.growing else match and match["run_id"] == manifest.run_id
        if not ours:
            found.problem(path, None, f"it lists {name!r:.80}, which is not a part name of this run")
            continue
        if not output.growing and part.sha256 is None:
            found.problem(path, None, f"it has no sha256 of {name}")
        if _format_of(name) != manifest.format:
            found.problem(path, None, f"it lists {name}, but its format is {manifest.format}")
        yield part
    if output.growing:
        return
    newer = ledger.parts if ledger else {}
    for name in names:
        if name in listed or name.startswith(("_", ".")):
            continue
        if name in newer and PART_NAME.fullmatch(name):
            yield newer[name]
        else:
            _report_unknown(name, output.rows.path(name), found, known=ledger is not None)
    sealed = ledger.sealed_parts if ledger else {}
    yield from (part for name, part in sealed.items() if name not in listed and name not in names)


def _format_of(name: str) -> Format:
    match = PART_NAME.fullmatch(name)
    return Format(match["format"]) if match else Format.NDJSON


def _report_unknown(name: str, path: str, found: Findings, *, known: bool) -> None:
    """Report a file that neither manifest nor ledger lists; a loader of `part-*` or of the folder would load it."""
    if not name.startswith("part-") or not name.endswith(tuple(Format)):
        found.remarks.append(f"{path} is not a harvester file; a loader must not take it for a part")
    elif found.ended or known:
        text = "listed in neither manifest nor ledger: a copy, a part of another output, or one of a lost ledger"
        found.problem(path, None, text)
    else:
        found.remarks.append(f"{path} is newer than the manifest, and was not read: verify again in a minute")


class _Rows:
    """Reads each file of rows once; and a second time to locate repeated keys."""

    def __init__(self, output: Output, manifest: Manifest, query: Query, found: Findings) -> None:
        self._row_storage = output.rows
        self._sidecar_storage = output.beside
        self._growing = output.growing
        self._manifest = manifest
        self._query = query
        self._shape = Shape(manifest.shape)
        self._refreshing = manifest.refresh is not None
        self._found = found
        self._keys = DuplicateFinder()
        self._calls = DuplicateFinder()
        self._fetched: list[str] = []

    def check(self, files: list[PublishedPart]) -> None:
        """Check every file, and that no record_id and no call stands in two rows."""
        record_id = RowBuilder(self._query, self._manifest.run_id).record_id
        with closing(self._keys), closing(self._calls):
            for file in files:
                self._check_file(file)
            self._compare_shortfalls()
            text = "its record_id is already in {first}"
            self._report_repeated(files, self._keys, lambda row: bytes.fromhex(row["record_id"]), text)
            text = "the call of this row is already in {first}"
            self._report_repeated(
                files, self._calls, lambda row: record_id(row["bitlink"], row["unit_reference"]), text, grouped=True
            )
        started, updated = self._manifest.started, self._manifest.updated
        # While a run goes on, parts may be newer than the manifest.
        latest = max(self._fetched, default="") if self._found.ended else ""
        if self._fetched and not (started <= min(self._fetched) and latest <= updated):
            text = f"rows were fetched from {min(self._fetched)} to {max(self._fetched)}, not all of them between the "
            self._found.remarks.append(f"{text}manifest's started and updated: a clock was set")

    def _check_file(self, file: PublishedPart) -> None:
        path = self._row_storage.path(file.path)
        try:
            stream = self._row_storage.open(file.path)
        except FileNotFoundError:
            self._report_gone(file, path)
            return
        except OSError as error:
            self._found.problem(path, None, f"cannot be opened: {error.strerror or error}")
            return
        with closing(stream):
            has = self._read(stream, file, path)
        if has:
            self._compare(has, file, path)

    def _report_gone(self, file: PublishedPart, path: str) -> None:
        if self._growing:
            if file.bytes:
                self._found.problem(path, None, f"missing, with {file.rows:,} rows; restore it")
            return
        if not file.calls:  # its calls were made again: repair --ask-again
            self._found.remarks.append(f"{path} was lost, and the calls of its rows were made again")
            return
        self._found.moved_away.append(path)
        if not self._found.allow_moved:
            text = (
                f"missing, with {file.rows:,} rows; restore it, use --allow-moved if a loader has taken it, or fetch "
                f"its links again (`harvester repair {shlex.quote(self._found.out)} --ask-again` says at what cost)"
            )
            self._found.problem(path, None, text)

    def _read(self, stream: BinaryIO, file: PublishedPart, path: str) -> PublishedPart | None:
        """Check a file's rows. Return what it has, or None if it cannot be read to its end."""
        check, hashed = self._check_of(path), self._hashed(stream, file)
        number, check_row, add = 0, check.check_row, self._keys.add
        try:
            for number, row in rows_of(hashed, self._part_format(file.path)):
                key = check_row(number, row)
                if key is not None:
                    add(key)
            check.end()
            hashed.drain()
        except UnreadableFile as error:
            self._found.problem(path, number + 1, str(error))
            try:
                hashed.drain()
            except OSError:
                return None
        except OSError as error:
            self._found.problem(path, number + 1, f"cannot be read further: {error.strerror or error}")
            return None
        if self._growing and stream.read(1):
            self._found.remarks.append(f"{path} continues after byte {file.bytes}: those rows are not committed yet")
        self._fetched += filter(None, (check.earliest, check.latest))
        self._found.truncated += check.truncated
        self._found.clipped += check.clipped
        self._found.idle += check.idle
        return PublishedPart(file.path, number, check.calls, hashed.size, hashed.sha256)

    def _check_of(self, path: str) -> Nested | Flat:
        report = partial(self._found.problem, path)
        if self._shape is Shape.NESTED:
            return Nested(self._query, self._manifest.run_id, report, refreshing=self._refreshing)
        return Flat(self._query, self._manifest.run_id, report, self._calls.add, refreshing=self._refreshing)

    def _part_format(self, path: str) -> PartFormat:
        return PartFormat(_format_of(path), self._shape, self._query.facet)

    def _hashed(self, stream: BinaryIO, file: PublishedPart) -> HashingReader:
        return HashingReader(stream, file.bytes if self._growing else None)

    def _compare(self, has: PublishedPart, file: PublishedPart, path: str) -> None:
        """Compare what a file has with its counts in manifest or ledger."""
        found = self._found
        found.parts += 1
        found.rows += has.rows
        found.calls += has.calls
        found.bytes += has.bytes
        if has.bytes != file.bytes:
            found.problem(path, None, f"{has.bytes} bytes, but {file.bytes} in the manifest")
        elif file.sha256 is not None and has.sha256 != file.sha256:
            found.problem(path, None, f"its sha256 is {has.sha256}, but {file.sha256} in the manifest")
        if (has.rows, has.calls) != (file.rows, file.calls):
            text = f"{has.rows} rows of {has.calls} calls, but {file.rows} of {file.calls} in the manifest"
            found.problem(path, None, text)

    def _compare_shortfalls(self) -> None:
        """Compare the rows' shortfalls with the manifest's; exactly if every row was read."""
        found, counts = self._found, self._manifest.dataset
        for name in ("truncated", "clipped", "idle") if found.ended else ():
            has, said = getattr(found, name), getattr(counts, name)
            # A refreshed row is counted no more: among those read there may be more that lack something.
            if (has > said and not counts.refreshed) or (has < said and found.calls == counts.rows + counts.refreshed):
                path = self._sidecar_storage.path(MANIFEST)
                found.problem(path, None, f"dataset.{name} is {said}, but {has} of the rows are")

    # --- repeated keys ---------------------------------------------------------------------------------------------

    def _report_repeated(
        self,
        files: list[PublishedPart],
        keys: DuplicateFinder,
        key_of: Callable[[Any], bytes],
        text: str,
        *,
        grouped: bool = False,
    ) -> None:
        """Report each row whose key an earlier row has, by reading the files again.

        grouped: rows that follow each other may have the same key.
        """
        some, count = keys.repeated(_LOCATED)
        if not some:
            return
        repeated, first, reported = set(some), dict[bytes, str](), set[bytes]()
        for file in files:
            path, last = self._row_storage.path(file.path), b""
            for number, key in self._again(file, key_of):
                if key in repeated and not (grouped and key == last):
                    if key in first:
                        reported.add(key)
                        self._found.problem(path, number, text.format(first=first[key]))
                    first.setdefault(key, f"{path}:{number}")
                last = key
        if count > len(reported):  # very many; or a file has changed since it was read
            text = f"{count - len(reported):,} more keys of rows are duplicates"
            self._found.problem(self._row_storage.path(""), None, text)

    def _again(self, file: PublishedPart, key_of: Callable[[Any], bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the numbers and keys of a file's rows once more, as far as it can be read and they have one."""
        with suppress(OSError, UnreadableFile), closing(self._row_storage.open(file.path)) as stream:
            for number, row in rows_of(self._hashed(stream, file), self._part_format(file.path)):
                with suppress(TypeError, KeyError, ValueError, AttributeError):
                    yield number, key_of(row)
