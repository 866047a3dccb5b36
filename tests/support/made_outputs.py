"""Makes outputs without a run: rows by the real encoders, and a manifest that counts them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from harvester.bitly.facets import FACETS, FieldKind, Metric
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.dataset.manifest import (
    BudgetReport,
    DatasetCounts,
    Invocation,
    Manifest,
    PublishedPart,
    Rate,
)
from harvester.progress import AttemptCounts
from harvester.rows.call import WHOLE, Shortfall
from harvester.rows.decode import HashingReader, rows_of
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape, shortfall_of

RUN_ID = "0a0b0c0d0e0f"
NOW = "2026-11-23T06:00:01Z"


@dataclass(frozen=True)
class Row:
    """What a row is made of. moment: its own unit_reference, where rows are refreshed."""

    bitlink: str
    metrics: Sequence[Metric]
    carried: Mapping[str, str | None] | None = None
    units_returned: int | None = None
    source: str | None = None
    moment: str | None = None
    fetched_at: str = NOW


def lines_of(query: Query, rows: Sequence[Row]) -> list[bytes]:
    """The rows as nested NDJSON, each with its line feed."""
    found = []
    for row in rows:
        maker = RowBuilder(replace(query, unit_reference=row.moment or query.unit_reference), RUN_ID)
        clicks = sum(metric.get("clicks") or 0 for metric in row.metrics)
        answer = Answer([*row.metrics], clicks, row.units_returned, None)
        line = maker.row(row.bitlink, maker.key(row.bitlink), answer, row.fetched_at, row.carried, row.source)
        found.append(line + b"\n")
    return found


def make_output(
    out: Path,
    query: Query,
    rows: Sequence[Row],
    /,
    form: tuple[Format, Shape] = (Format.NDJSON_GZ, Shape.NESTED),
    failures: Sequence[Mapping[str, Any]] = (),
    **changes: Any,
) -> Path:
    """Make a folder with a part, or (a name that ends in .ndjson) a growing file. changes: to the manifest."""
    growing = out.suffix == ".ndjson"
    beside = out.with_name(out.name + ".harvester") if growing else out
    beside.mkdir(parents=True)
    part_format = PartFormat(*form, query.facet)
    path = out if growing else out / f"part-{RUN_ID}-00000.{part_format.format}"
    with path.open("wb") as stream:
        writer = HashingWriter(stream)
        counts = write_part(lines_of(query, rows), writer, part_format)
    sha256 = None if growing else writer.sha256
    part = PublishedPart(path.name, counts.rows, counts.calls, writer.size, sha256)
    refused = sum(each["kind"] == "refused" for each in failures)
    failed = sum(each["kind"] == "failed" for each in failures)
    shortfalls = [shortfall(orjson.loads(line)) for line in lines_of(query, rows)]
    dataset = DatasetCounts(
        calls=len(rows) + refused + failed,
        rows=len(rows),
        refused=refused,
        failed=failed,
        pending=0,
        truncated=sum(each.truncated for each in shortfalls),
        clipped=sum(each.clipped for each in shortfalls),
        idle=sum(each.idle for each in shortfalls),
    )
    manifest = Manifest(
        schema_version=1,
        tool="harvester 0.1.0",
        run_id=RUN_ID,
        server="api-ssl.bitly.com",
        work_dir=None,
        query=query.as_dict(),
        format=part_format.format,
        shape=part_format.shape,
        started=NOW,
        updated=NOW,
        complete=True,
        stopped=None,
        input_read_to_end=True,
        list=None,
        ended=NOW,
        invocation=Invocation(1, NOW, None, (), len(rows), None, Rate(0, 0.0)),
        remaining=0,
        given_up=0,
        budget=BudgetReport("", "", None, ()),
        dataset=dataset,
        attempts=AttemptCounts(total=dataset.calls + 7, retried=4, throttled=3),
        parts=(part,),
    )
    (beside / "_manifest.json").write_bytes(orjson.dumps(replace(manifest, **changes).to_json()))
    (beside / "_failures.ndjson").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in failures))
    return out


def shortfall(row: Mapping[str, Any]) -> Shortfall:
    return shortfall_of(row) or WHOLE


def decoded(out: Path, facet: str, form: tuple[Format, Shape]) -> list[dict[str, Any]]:
    """Every published row of a folder, read with the decoder that `verify` uses."""
    found = []
    for part in sorted(out.glob("part-*")):
        with part.open("rb") as stream:
            found += [row for _, row in rows_of(HashingReader(stream), PartFormat(*form, facet))]
    return found


_NAMES = ("direct", "https://t.co/", "日本", "a,b", 'say "hi"', "\u202eevil", "<script>alert(1)</script>", "US", "")


def random_rows(facet: str, seed: int, links: int = 60) -> list[Row]:
    """Rows of a facet with any names, also empty, null and many; some links without clicks, some idle."""
    dice = random.Random(seed)
    found = []
    for number in range(links):
        carried = None if number % 3 else {"campaign": f"spring {number % 5}", "note": None}
        kind = dice.randrange(8)
        metrics = [] if kind == 0 else [_metric(facet, dice, place) for place in range(dice.randrange(1, 9))]
        source = "group_export" if kind == 0 and number % 2 else None
        found.append(Row(f"bit.ly/{number}", metrics, carried, dice.choice([None, 1, 30]), source))
    return found


def _metric(facet: str, dice: random.Random, place: int) -> Metric:
    metric: Metric = {}
    for field in FACETS[facet].fields:
        if field.kind is FieldKind.COUNT:
            metric[field.name] = dice.choice([0, 1, 9, 10, 99, 100, 1234])
        elif field.kind is FieldKind.MOMENT:
            metric[field.name] = f"2026-11-{1 + place:02d}T00:00:00Z"
        else:
            metric[field.name] = None if field.nullable and dice.random() < 0.2 else dice.choice(_NAMES)
    return metric
