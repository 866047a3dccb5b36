"""Checks of the files beside the rows: manifest, `_failures.ndjson` and `_SUCCESS` must agree."""

import re
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from harvester.bitly.facets import FACETS
from harvester.bitly.query import UNITS, Query
from harvester.dataset.manifest import DatasetCounts, Manifest
from harvester.dataset.sidecars import MOST_INVALID_LINES
from harvester.progress import ListCounts
from harvester.rows.decode import HashingReader, UnreadableFile, lines_of
from harvester.rows.encode import Format
from harvester.rows.schema import FAILURE, Shape
from harvester.storage.location import FAILURES, SUCCESS
from harvester.storage.storage import Storage
from harvester.verify.findings import Findings
from harvester.verify.ledger_checks import LedgerCheck
from harvester.verify.row_checks import ObjectShape, is_moment

_SILENT_SECONDS = 180.0
"""A run writes its manifest every 60 s; after three intervals without one it was killed."""
_UNFINISHED_PART = re.compile(r"\.part-.*\.tmp")
_KINDS = ("refused", "failed", "invalid")
_FAILURE = ObjectShape(FAILURE)


def has_ended(manifest: Manifest) -> bool:
    """Return True for a manifest of a run's end, even if another run has begun since."""
    return manifest.complete or manifest.stopped is not None or manifest.ended is not None


def check_manifest(manifest: Manifest, path: str, found: Findings) -> Query | None:
    """Check a manifest by itself. Return its query; None if it is damaged, so that rows cannot be compared with it."""
    for text in _inconsistencies(manifest):
        found.problem(path, None, text)
    if misfit := _query_misfit(manifest):
        found.problem(path, None, misfit)
    rows, published = manifest.dataset.rows + manifest.dataset.refreshed, _calls_in_parts(manifest)
    if has_ended(manifest) and not manifest.complete and published < rows:
        found.remarks.append(f"{path}: {rows - published} of its {rows} calls with a row are not published yet")
    return None if misfit else Query(**{field.name: manifest.query[field.name] for field in fields(Query)})


def _query_misfit(manifest: Manifest) -> str | None:
    query = manifest.query
    for key in ("facet", "unit", "unit_reference"):
        if not isinstance(query.get(key), str):
            return f"query.{key} {'is not as expected' if key in query else 'is missing'}"
    units, size = query.get("units"), query.get("size")
    facet = FACETS.get(query["facet"])
    sized = type(size) is int and size >= 1 if facet is None or facet.takes_size else size is None
    if type(units) is not int or (units < 1 and units != -1) or not sized:
        return "query.units is neither -1 nor a count from 1 on, or query.size is not what the facet takes"
    if facet is None or query["unit"] not in UNITS or not is_moment(query["unit_reference"]):
        return "query has a facet, a unit or a unit_reference that does not exist"
    if any(query.get(end) is not None and not is_moment(query[end]) for end in ("period_start", "period_end")):
        return "query.period_start or query.period_end is neither null nor a moment"
    if manifest.shape not in list(Shape):
        return "shape is neither nested nor flat"
    return None


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """Yield contradictions within a manifest."""
    counts = manifest.dataset
    yield from _misfit_of_sum("dataset", counts, but={"truncated", "clipped", "idle", "refreshed"})
    if max(counts.truncated, counts.clipped, counts.idle) > counts.rows:
        yield "dataset.truncated, dataset.clipped or dataset.idle is more than dataset.rows"
    if manifest.list:
        yield from _misfit_of_sum("list", manifest.list, but={"differing"})
        if manifest.list.differing > manifest.list.duplicates:
            yield "list.differing is more than list.duplicates"
    if not (is_moment(manifest.started) and is_moment(manifest.updated)):
        yield "started or updated is not a UTC time such as 2026-11-23T06:00:00Z"
    if manifest.complete and (manifest.stopped or not manifest.input_read_to_end or counts.pending):
        yield "complete, but also stopped, with calls pending, or with a list that was not read to its end"
    calls, rows = _calls_in_parts(manifest), counts.rows + counts.refreshed
    if calls > rows or (manifest.complete and calls != rows):
        named = "dataset.rows and dataset.refreshed are" if counts.refreshed else "dataset.rows is"
        yield f"its parts have {calls} calls, but {named} {rows}"
    if counts.refreshed and manifest.refresh is None:
        yield "dataset.refreshed is not 0, but refresh is null"
    for name, times in Counter(part.path for part in manifest.parts).items():
        if times > 1:
            yield f"it lists {name} {times} times"


def _misfit_of_sum(name: str, counts: DatasetCounts | ListCounts, but: Container[str] = ()) -> Iterator[str]:
    """Check that the first field is the sum of the others, except those named in `but`."""
    whole, *parts = (field.name for field in fields(counts) if field.name not in but)
    if getattr(counts, whole) != sum(getattr(counts, part) for part in parts):
        yield f"{name}.{whole} is not {' + '.join(parts)}"


def _calls_in_parts(manifest: Manifest) -> int:
    """Return the number of calls whose rows are in the parts."""
    return sum(part.calls for part in manifest.parts)


def check_names(manifest: Manifest, names: list[str], shelf: Storage, found: Findings) -> None:
    """Check that _SUCCESS is there exactly when the list is complete, and report temporary files of killed runs."""
    path = shelf.path(SUCCESS)
    if found.ended and manifest.complete and SUCCESS not in names:
        found.problem(path, None, "missing, but the manifest says complete: run the same command again")
    if found.ended and not manifest.complete and SUCCESS in names:
        found.problem(path, None, "it exists, but the manifest does not say complete")
    if has_ended(manifest) or _age_seconds(manifest) > _SILENT_SECONDS:
        for name in filter(_UNFINISHED_PART.fullmatch, names):
            text = f"{shelf.path(name)} was left over by a run that was killed; the next run removes it"
            found.remarks.append(text)


def _age_seconds(manifest: Manifest) -> float:
    if not is_moment(manifest.updated):
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(manifest.updated)).total_seconds()


def check_failures(
    shelf: Storage, manifest: Manifest, names: list[str], ledger: LedgerCheck | None, found: Findings
) -> None:
    """Check that the lines of `_failures.ndjson` are well formed, and as many as the manifest counts."""
    path = shelf.path(FAILURES)
    if FAILURES not in names:
        if found.ended:
            found.problem(path, None, "missing: run the same command again")
        return
    kinds: Counter[str] = Counter()
    with closing(shelf.open(FAILURES)) as stream:
        try:
            for number, line in lines_of(HashingReader(stream), Format.NDJSON):
                found.failures = number
                if misfit := _failure_misfit(line, manifest.query["facet"]):
                    found.problem(path, number, misfit)
                else:
                    kinds[line["kind"]] += 1
        except UnreadableFile as error:
            found.problem(path, found.failures + 1, str(error))
    if not found.ended:
        return
    counts = {"refused": manifest.dataset.refused, "failed": manifest.dataset.failed}
    if manifest.list:
        counts["invalid"] = min(manifest.list.invalid, MOST_INVALID_LINES)
    for kind, count in counts.items():
        if kinds[kind] != count:
            found.problem(path, None, f"{kinds[kind]} lines are {kind}, but {count} in the manifest")
    if ledger:
        with closing(shelf.open(FAILURES)) as stream:
            ledger.reconcile_failures(stream, path)


def _failure_misfit(line: Any, facet: str) -> str | None:
    if misfit := _FAILURE.misfit(line):
        return misfit
    if line["kind"] not in _KINDS:
        return f"kind is {line['kind']!r:.60}, not one of {', '.join(_KINDS)}"
    if (line["bitlink"] is None) != (line["kind"] == "invalid"):
        return "a bitlink belongs in every line but those of kind invalid"
    if line["facet"] != facet:
        return f"facet is {line['facet']!r:.60}, but {facet} in the manifest"
    return None
