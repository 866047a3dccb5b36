"""Every facet in every format and shape: harvested, verified, loaded with the printed schema, compared and added up."""

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pytest

import harvester
from harvester.bitly.facets import FACETS, FieldKind
from harvester.rows.column_types import Target
from harvester.rows.encode import Format
from harvester.rows.schema import Shape
from harvester.rows.schema_export import Rows, schema_for
from harvester.sandbox import metrics_for
from harvester.shutdown import OK
from tests.conftest import Served
from tests.support.commands import TOKEN
from tests.support.in_process import command
from tests.support.output_checks import expected_metrics, rows

LINKS = [f"bit.ly/{i}" for i in range(9)]
SIZE, REFERENCE = 4, "2026-11-23T06:00:00Z"
SOME = {(Format.NDJSON_GZ, Shape.NESTED), (Format.PARQUET, Shape.FLAT)}
COMBINATIONS = [
    pytest.param(*combination, marks=() if combination[1:] in SOME else pytest.mark.nightly)
    for combination in product(FACETS, Format, Shape)
]
SUMS = {
    Shape.NESTED: "SELECT count(DISTINCT bitlink), sum(list_sum([m.clicks FOR m IN metrics])) FROM bitly_metrics",
    Shape.FLAT: "SELECT count(DISTINCT bitlink), sum(clicks) FROM bitly_metrics",
}


TOTALS = "SELECT DISTINCT bitlink, {totals} FROM bitly_metrics ORDER BY bitlink"
UTC_TEXT = "strftime(m.{name} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%SZ')"


def answers_of(facet: str) -> dict[str, Any]:
    """The sandbox's answers by link."""
    return {link: metrics_for(link, facet, SIZE, unit_reference=REFERENCE) for link in LINKS}


def clicks_of(facet: str) -> int:
    """The clicks that the sandbox lists in a facet for all links."""
    found = (FACETS[facet].metrics_in(body) for body in answers_of(facet).values())
    return sum(metric["clicks"] for metrics in found for metric in metrics)


def entries_of(facet: str) -> list[tuple[Any, ...]]:
    """Each link's metrics with the values of all fields."""
    found = ((link, FACETS[facet].metrics_in(body)) for link, body in answers_of(facet).items())
    return [
        (link, *(metric[field.name] for field in FACETS[facet].fields)) for link, metrics in found for metric in metrics
    ]


def entries_in(facet: str, shape: Shape) -> str:
    """The statement that selects the same of a table."""
    fields = [
        UTC_TEXT.format(name=field.name) if field.kind is FieldKind.MOMENT else f"m.{field.name}"
        for field in FACETS[facet].fields
    ]
    if shape is Shape.FLAT:
        return f"SELECT bitlink, {', '.join(fields)} FROM bitly_metrics AS m WHERE m.clicks IS NOT NULL"
    return f"SELECT bitlink, {', '.join(fields)} FROM (SELECT bitlink, unnest(metrics) AS m FROM bitly_metrics)"


@pytest.mark.parametrize(("facet", "form", "shape"), COMBINATIONS)
async def test_each_facet_is_harvested_verified_and_loaded(
    tmp_path: Path, serve: Callable[..., Served], capsys: Any, facet: str, form: Format, shape: Shape
) -> None:
    out = tmp_path / facet
    options: Any = {"base_url": serve().url, "per_minute": 0, "per_hour": 0, "per_month": 0, "token": TOKEN}
    query: Any = {"facet": facet, "size": SIZE, "complete": False, "unit_reference": REFERENCE}
    found = await harvester.harvest(LINKS, out=out, format=form.value, shape=shape.value, **query, **options)
    assert found["complete"]
    assert command(capsys, "verify", str(out)).code == OK
    if shape is Shape.NESTED and form in {Format.NDJSON, Format.NDJSON_GZ}:
        assert all(row["metrics"] == expected_metrics(row) for row in rows(out))
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Rows(shape, form, facet)))
        database.execute(f"INSERT INTO bitly_metrics BY NAME FROM bitly_parts('{out}/part-*.{form}')")
        assert database.execute(SUMS[shape]).fetchall() == [(len(LINKS), clicks_of(facet))]
        assert Counter(database.execute(entries_in(facet, shape)).fetchall()) == Counter(entries_of(facet))
        if names := [field.name for field in FACETS[facet].totals]:
            totals = [(link, *FACETS[facet].totals_in(body).values()) for link, body in answers_of(facet).items()]
            assert database.execute(TOTALS.format(totals=", ".join(names))).fetchall() == sorted(totals)
