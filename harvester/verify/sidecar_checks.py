"""The files beside the rows: is what manifest, `_failures.ndjson` and `_SUCCESS` say consistent?"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from harvester.bitly.facets import FACETS
from harvester.bitly.query import UNITS
from harvester.dataset.manifest import Manifest
from harvester.dataset.publisher import FAILURES, SUCCESS
from harvester.rows.decode import HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import Format
from harvester.rows.schema import FAILURE, Shape
from harvester.storage.storage import Storage
from harvester.verify.findings import Findings
from harvester.verify.ledger_checks import LedgerCheck
from harvester.verify.row_checks import ObjectShape, is_moment

_SILENT_SECONDS = 180.0
"""A run writes its manifest once a minute; one that has not for so long was killed."""
_HALF = re.compile(r"\.part-.*\.tmp")
_KINDS = ("refused", "failed", "invalid")
_FAILURE = ObjectShape(FAILURE)


def has_ended(manifest: Manifest) -> bool:
    """True for a manifest that was written at a run's end, whatever has begun since."""
    return manifest.complete or manifest.stopped is not None or manifest.ended is not None


def check_manifest(manifest: Manifest, path: str, found: Findings) -> bool:
    """Check what a manifest says by itself; False if rows cannot be held against it."""
    problems = list(_inconsistencies(manifest))
    query = _query_misfit(manifest)
    for text in [*problems, *([query] if query else [])]:
        found.problem(path, None, text)
    rows, told = manifest.dataset.rows, _calls_told(manifest)
    if has_ended(manifest) and not manifest.complete and told < rows:
        found.remarks.append(f"{path}: {rows - told} of its {rows} calls with a row are not published yet")
    return query is None


def _query_misfit(manifest: Manifest) -> str | None:
    query = manifest.query
    for key in ("facet", "unit", "unit_reference"):
        if not isinstance(query.get(key), str):
            return f"query.{key} {'is not as expected' if key in query else 'is missing'}"
    units, size = query.get("units"), query.get("size")
    if type(units) is not int or (units < 1 and units != -1) or type(size) is not int or size < 1:
        return "query.units is neither -1 nor a count from 1 on, or query.size is no count from 1 on"
    if query["facet"] not in FACETS or query["unit"] not in UNITS or not is_moment(query["unit_reference"]):
        return "query has a facet, a unit or a unit_reference that there is not"
    if manifest.shape not in list(Shape):
        return "shape is neither nested nor flat"
    return None


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """Yield what does not add up inside a manifest."""
    counts, listed = manifest.dataset, manifest.list
    if counts.calls != counts.rows + counts.refused + counts.failed + counts.pending:
        yield "dataset.calls is not rows + refused + failed + pending"
    keys = ("blank", "comments", "headers", "invalid", "duplicates", "links")
    if listed and listed.lines != sum(getattr(listed, key) for key in keys):
        yield f"list.lines is not {' + '.join(keys)}"
    if not (is_moment(manifest.started) and is_moment(manifest.updated)):
        yield "started or updated is no moment in UTC, such as 2026-11-23T06:00:00Z"
    if manifest.complete and (manifest.stopped or not manifest.input_read_to_end or counts.pending):
        yield "complete, and yet stopped, with calls pending, or with a list that was not read to its end"
    calls = _calls_told(manifest)
    if calls > counts.rows or (manifest.complete and calls != counts.rows):
        yield f"its parts tell of {calls} calls, and dataset.rows is {counts.rows}"
    for name, times in Counter(part.path for part in manifest.parts).items():
        if times > 1:
            yield f"it lists {name} {times} times"


def _calls_told(manifest: Manifest) -> int:
    """Count the calls that the parts tell of."""
    return sum(part.calls for part in manifest.parts)


def check_names(manifest: Manifest, names: list[str], shelf: Storage, found: Findings) -> None:
    """Is _SUCCESS there exactly when it should be? Is something there that no run has left there in good order?"""
    path = shelf.path(SUCCESS)
    if found.ended and manifest.complete and SUCCESS not in names:
        found.problem(path, None, "it is not there, and the manifest says complete: run the same command again")
    if found.ended and not manifest.complete and SUCCESS in names:
        found.problem(path, None, "it is there, and the manifest does not say complete")
    if has_ended(manifest) or _age_seconds(manifest) > _SILENT_SECONDS:
        for name in filter(_HALF.fullmatch, names):
            text = f"{shelf.path(name)} was left over by a run that was killed; the next run clears it away"
            found.remarks.append(text)


def _age_seconds(manifest: Manifest) -> float:
    if not is_moment(manifest.updated):
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(manifest.updated)).total_seconds()


def check_failures(
    shelf: Storage, manifest: Manifest, names: list[str], ledger: LedgerCheck | None, found: Findings
) -> None:
    """Are the lines of `_failures.ndjson` well formed, and as many as the manifest counts?"""
    path = shelf.path(FAILURES)
    if FAILURES not in names:
        if found.ended:
            found.problem(path, None, "it is not there, though a run has ended: run the same command again")
        return
    kinds: Counter[str] = Counter()
    with closing(shelf.open(FAILURES)) as stream:
        for number, line in _lines_of(stream, path, found):
            found.failures += 1
            if misfit := _failure_misfit(line, manifest.query["facet"]):
                found.problem(path, number, misfit)
            else:
                kinds[line["kind"]] += 1
    if not found.ended:
        return
    counts = {"refused": manifest.dataset.refused, "failed": manifest.dataset.failed}
    if manifest.list:
        counts["invalid"] = manifest.list.invalid
    for kind, count in counts.items():
        if kinds[kind] != count:
            found.problem(path, None, f"{kinds[kind]} lines are {kind}, and {count} in the manifest")
    if ledger:
        with closing(shelf.open(FAILURES)) as stream:
            ledger.reconcile_failures(stream, path)


def _lines_of(stream: Any, path: str, found: Findings) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for number, line in rows_of(HashingReader(stream), Format.NDJSON, Shape.NESTED):
            yield number, line
    except UnreadableFile as error:
        found.problem(path, number + 1, str(error))


def _failure_misfit(line: Any, facet: str) -> str | None:
    if misfit := _FAILURE.misfit(line):
        return misfit
    if line["kind"] not in _KINDS:
        return f"kind is {line['kind']!r:.60}, and none of {', '.join(_KINDS)}"
    if (line["bitlink"] is None) != (line["kind"] == "invalid"):
        return "a bitlink belongs in every line but those of kind invalid"
    if line["facet"] != facet:
        return f"facet is {line['facet']!r:.60}, and {facet} in the manifest"
    return None
