"""`harvester verify`: check parts, rows, counts and failures of an output against manifest, schema and ledger."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from harvester.dataset import manifest as manifests
from harvester.dataset.manifest import Manifest
from harvester.dataset.publisher import PART_NAME
from harvester.errors import OutputError, UsageError
from harvester.rows.decode import BadRow, HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import Format
from harvester.rows.schema import Shape
from harvester.storage.folders import resolve
from harvester.storage.location import GROWING_ENDINGS, MANIFEST, SUCCESS, OutputLocation, is_url, normal
from harvester.storage.object_store import open_store
from harvester.storage.storage import LocalStorage, Storage
from harvester.verify.duplicates import DuplicateFinder
from harvester.verify.findings import Findings
from harvester.verify.ledger_checks import LedgerCheck, reconciler
from harvester.verify.row_checks import Check, call_key, check_for
from harvester.verify.sidecar_checks import check_failures, check_manifest, check_names, has_ended

_LOOKS, _LOOK_SECONDS = 20, 0.1
_COMPLETE = re.compile(rb'"complete":\s*true')
_LOCATED = 1000
"""Repeated keys that are located in the files; further ones are only counted."""


class Output(NamedTuple):
    """The places of an output's files. beside: its `_` files. rows: its parts or growing file.

    location: of the private state; None where it is unknown, with the reason in why.
    """

    name: str
    beside: Storage
    rows: Storage
    growing: bool
    location: OutputLocation | None
    why: str = ""


class _File(NamedTuple):
    """A file of rows with its counts in manifest or ledger. sha256: None for a growing file."""

    name: str
    format: Format
    rows: int
    calls: int
    bytes: int
    sha256: str | None


class _Repeated(NamedTuple):
    """Keys that must be unique: how a row's key is computed, and the message for a repeated one."""

    keys: DuplicateFinder
    of: Callable[[Mapping[str, Any]], bytes]
    text: str


def output_at(out: str, work_dir: str | None = None) -> Output:
    """Locate an output's files. out: its folder, its growing file, its store's URL, or its manifest.

    Raises:
        UsageError: rows on standard output cannot be verified; no such store, or its library is missing.
    """
    if is_url(out):
        out = normal(out.removesuffix("/" + MANIFEST))
        shelf = open_store(out)
        return Output(out, shelf, shelf, False, *_location_of(out, work_dir))
    path, out = manifests.locate(out)
    growing = out.lower().endswith(GROWING_ENDINGS) and not os.path.isdir(out)
    beside = LocalStorage(os.path.dirname(path))
    rows = LocalStorage(os.path.dirname(out)) if growing else beside
    return Output(out, beside, rows, growing, *_location_of(out, work_dir))


def _location_of(out: str, work_dir: str | None) -> tuple[OutputLocation | None, str]:
    try:
        return resolve(out, work_dir), ""
    except UsageError as error:  # a store without its work dir, or a file system where no run can have its state
        return None, str(error)


def verify(output: Output) -> Findings:
    """Check everything of an output that can be read.

    Raises:
        UsageError: there is nothing to verify, or a library is missing. OutputError: the output cannot be read.
    """
    found = Findings(output.name)
    try:
        _verify(output, found)
    except OSError as error:
        raise OutputError(f"{error.filename or output.name}: {error.strerror or error}") from error
    return found


def _verify(output: Output, found: Findings) -> None:
    with ExitStack() as stack:
        names, text = _look(output)
        path = output.beside.path(MANIFEST)
        try:
            manifest = manifests.parse(text, path)
        except manifests.NewerForm:
            raise
        except UsageError as error:
            found.problem(path, None, f"{str(error).removeprefix(f'{path}: ')}; nothing else was checked")
            return
        found.run_id, found.complete = manifest.run_id, manifest.complete
        ledger = _ledger_of(output, found, stack)
        if ledger is None and found.unchecked and manifest.work_dir:
            found.unchecked[-1] += f" (the manifest's run had --work-dir {manifest.work_dir})"
        found.ended = has_ended(manifest) and not (ledger and ledger.begun_since(manifest))
        check_names(manifest, names, output.beside, found)
        if check_manifest(manifest, path, found):
            files = list(_files(output, manifest, names, ledger, found))
            _Rows(output, manifest, found).check(files)
            check_failures(output.beside, manifest, names, ledger, found)
        if ledger:
            ledger.reconcile(manifest, path)


def _look(output: Output) -> tuple[list[str], bytes]:
    """Return the names beside the rows and the manifest's bytes, read until both are of the same moment."""
    path = output.beside.path(MANIFEST)
    try:
        text = _text_of(output.beside)
        for _ in range(_LOOKS):
            names = output.beside.names()
            before, text = text, _text_of(output.beside)
            # At a run's end _SUCCESS is written a moment after the manifest.
            if text == before and (SUCCESS in names or not _COMPLETE.search(text)):
                break
            time.sleep(_LOOK_SECONDS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"nothing to verify at {output.name}: there is no {path}") from error
    return names, text


def _text_of(shelf: Storage) -> bytes:
    with closing(shelf.open(MANIFEST)) as stream:
        return stream.read()


def _ledger_of(output: Output, found: Findings, stack: ExitStack) -> LedgerCheck | None:
    try:
        ledger = reconciler(output.location, output.why, found)
    except OutputError as error:
        path = output.location.ledger if output.location else output.name
        found.problem(path, None, str(error).removeprefix(f"{path}: "))
        return None
    if ledger:
        stack.callback(ledger.close)
    return ledger


# --- the rows -----------------------------------------------------------------------------------------------------


def _files(
    output: Output, manifest: Manifest, names: list[str], ledger: LedgerCheck | None, found: Findings
) -> Iterator[_File]:
    """Yield the files of rows to read; report files that manifest and ledger do not know."""
    path, listed = output.beside.path(MANIFEST), {part.path: part for part in manifest.parts}
    for name, part in listed.items():
        match = PART_NAME.fullmatch(name)
        ours = name == os.path.basename(output.name) if output.growing else match and match["run_id"] == manifest.run_id
        if not ours:
            found.problem(path, None, f"it lists {name!r:.80}, which is no name of a part of this run")
            continue
        if not output.growing and part.sha256 is None:
            found.problem(path, None, f"it has no sha256 of {name}")
        form = Format(match["format"]) if match and not output.growing else Format.NDJSON
        if form != manifest.format:
            found.problem(path, None, f"it lists {name}, and its format is {manifest.format}")
        yield _File(name, form, part.rows, part.calls, part.bytes, part.sha256)
    if output.growing:
        return
    newer = ledger.parts if ledger else {}
    for name in names:
        if name not in listed and not name.startswith(("_", ".")):
            match = PART_NAME.fullmatch(name)
            if match and name in newer:
                more = newer[name]
                yield _File(name, Format(match["format"]), more.rows, more.calls, more.bytes, more.sha256)
            else:
                _report_unknown(name, output.rows.path(name), found, known=ledger is not None)


def _report_unknown(name: str, path: str, found: Findings, *, known: bool) -> None:
    """Report a file that neither manifest nor ledger lists; a loader of `part-*` or of the folder would load it."""
    if not name.startswith("part-") or not name.endswith(tuple(Format)):
        found.remarks.append(f"{path} is none of harvester's; a loader must not take it for a part")
    elif found.ended or known:
        text = "neither manifest nor ledger know it: a copy, a part of another output, or a lost ledger's"
        found.problem(path, None, text)
    else:
        found.remarks.append(f"{path} is newer than the manifest, and was not read: verify again in a minute")


class _Rows:
    """Reads each file of rows once; and a second time to locate repeated keys."""

    def __init__(self, output: Output, manifest: Manifest, found: Findings) -> None:
        self._shelf = output.rows
        self._growing = output.growing
        self._manifest = manifest
        self._shape = Shape(manifest.shape)
        self._found = found
        self._fetched: list[str] = []

    def check(self, files: list[_File]) -> None:
        """Check every file, and that no record_id and no call stands in two rows."""
        with closing(DuplicateFinder()) as keys, closing(DuplicateFinder()) as calls:
            for file in files:
                self._check_file(file, keys, calls)
            for repeated in (
                _Repeated(keys, _record_id, "its record_id stands in {first} already"),
                _Repeated(calls, self._call_key, "the call of this row is told of in {first} already"),
            ):
                self._report_repeated(files, repeated)
        started, updated = self._manifest.started, self._manifest.updated
        # While a run goes on, parts may be newer than the manifest.
        latest = max(self._fetched, default="") if self._found.ended else ""
        if self._fetched and not (started <= min(self._fetched) and latest <= updated):
            text = f"rows were fetched from {min(self._fetched)} to {max(self._fetched)}, not all of them between the "
            self._found.remarks.append(f"{text}manifest's started and updated: a clock was set")

    def _check_file(self, file: _File, keys: DuplicateFinder, calls: DuplicateFinder) -> None:
        path, found = self._shelf.path(file.name), self._found
        try:
            stream = self._shelf.open(file.name)
        except FileNotFoundError:
            self._report_gone(file, path)
            return
        except OSError as error:
            found.problem(path, None, f"cannot be opened: {error.strerror or error}")
            return
        check = check_for(
            self._shape,
            self._manifest.query,
            self._manifest.run_id,
            lambda number, text: found.problem(path, number, text),
            calls.add,
        )
        with closing(stream):
            hashed = HashingReader(stream, file.bytes if self._growing else None)
            rows = self._read(hashed, file, path, check, keys)
            if rows is not None and self._growing and stream.read(1):
                found.remarks.append(f"{path} goes on behind byte {file.bytes}: what is there is not yet certain")
        if rows is not None:
            self._compare(file, path, hashed, rows, check)

    def _report_gone(self, file: _File, path: str) -> None:
        if not self._growing:
            self._found.moved_away.append(path)
        elif file.bytes:
            self._found.problem(path, None, "it is gone; its rows are settled, so put it back")

    def _read(self, hashed: HashingReader, file: _File, path: str, check: Check, keys: DuplicateFinder) -> int | None:
        """Check a file's rows. Return their number, or None if the file cannot be read to its end."""
        number, look, add = 0, check.look, keys.add
        try:
            for number, row in rows_of(hashed, file.format, self._shape):
                key = look(number, row)
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
        return number

    def _compare(self, file: _File, path: str, hashed: HashingReader, rows: int, check: Check) -> None:
        """Compare what was read with the counts in manifest or ledger."""
        found = self._found
        found.parts += 1
        found.rows += rows
        found.calls += check.calls
        found.bytes += hashed.size
        self._fetched += check.fetched
        if hashed.size != file.bytes:
            found.problem(path, None, f"{hashed.size} bytes, and {file.bytes} in the manifest")
        elif file.sha256 is not None and hashed.sha256 != file.sha256:
            found.problem(path, None, f"its sha256 is {hashed.sha256}, and {file.sha256} in the manifest")
        if (rows, check.calls) != (file.rows, file.calls):
            text = f"{rows} rows of {check.calls} calls, and {file.rows} of {file.calls} in the manifest"
            found.problem(path, None, text)

    # --- repeated keys ---------------------------------------------------------------------------------------------

    def _report_repeated(self, files: list[_File], repeated: _Repeated) -> None:
        """Report each row whose key an earlier row has, by reading the files again."""
        some, count = repeated.keys.repeated(_LOCATED)
        if not some:
            return
        repeated_keys, first, reported = set(some), dict[bytes, str](), set[bytes]()
        for file in files:
            path, last = self._shelf.path(file.name), b""
            for number, row in self._again(file):
                key = repeated.of(row)
                if key in repeated_keys and key != (last if repeated.of != _record_id else None):
                    if key in first:
                        reported.add(key)
                        self._found.problem(path, number, repeated.text.format(first=first[key]))
                    first.setdefault(key, f"{path}:{number}")
                last = key
        if count > len(reported):  # very many; or a file has changed since it was read
            text = f"{count - len(reported):,} more of the rows' keys are there twice"
            self._found.problem(self._shelf.path(""), None, text)

    def _again(self, file: _File) -> Iterator[tuple[int, Any]]:
        try:
            with closing(self._shelf.open(file.name)) as stream:
                rows = rows_of(HashingReader(stream, file.bytes if self._growing else None), file.format, self._shape)
                yield from ((number, row) for number, row in rows if not isinstance(row, BadRow))
        except (OSError, UnreadableFile):
            return

    def _call_key(self, row: Any) -> bytes:
        try:
            return call_key(row["bitlink"], self._manifest.query)
        except (TypeError, KeyError):
            return b""


def _record_id(row: Any) -> bytes:
    try:
        return bytes.fromhex(row["record_id"])
    except (TypeError, KeyError, ValueError):
        return b""
