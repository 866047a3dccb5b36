"""Every facet in every format and shape: harvested, verified, loaded with the printed schema, and added up."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import duckdb
import pytest

import harvester
from harvester.bitly.facets import FACETS
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


def clicks_of(facet: str) -> int:
    """The clicks that the sandbox lists in a facet for all links."""
    bodies = (metrics_for(link, facet, SIZE, unit_reference=REFERENCE) for link in LINKS)
    return sum(metric["clicks"] for body in bodies for metric in FACETS[facet].metrics_in(body))


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
