"""`harvester schema`: one definition of the row, said in nine ways, which real rows and real parts fit."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
import sqlglot
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from pyarrow import dataset, parquet
from sqlglot import exp

import harvester
from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.progress import Carried
from harvester.rows.column_types import Target
from harvester.rows.encode import Format, HashingWriter, PartFormat, arrow_schema, flattened, write_part
from harvester.rows.row import SCHEMA_VERSION, RowBuilder
from harvester.rows.schema import Column, Kind, Shape, columns_of, metric_columns
from harvester.rows.schema_export import Rows, schema_for
from tests.conftest import Served
from tests.support.commands import ROOT, TOKEN
from tests.support.in_process import command

PUBLISHED = ROOT / "tests" / "published"
SHAPES = list(Shape)
FACET = "referrers"
EVERY = [(target, shape, form) for target in Target for shape in Shape for form in Format]


def described(columns: tuple[Column, ...]) -> list[dict[str, Any]]:
    return [{"name": each.name, "kind": each.kind.value, "nullable": each.nullable} for each in columns]


CHECKER = FormatChecker(formats=[])
CHECKER.checks("date-time", ValueError)(lambda text: text is None or isinstance(datetime.fromisoformat(text), datetime))


@cache
def validator(shape: Shape) -> Draft202012Validator:
    schema = json.loads(schema_for(Target.JSON_SCHEMA, Rows(shape, Format.NDJSON_GZ, FACET)))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=CHECKER)


CARRIED: Carried = {"campaign": "autumn", "channel": None}


def rows_of(answer: Answer, shape: Shape) -> list[dict[str, Any]]:
    made = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), "0a")
    row = made.row("bit.ly/a", made.key("bit.ly/a"), answer, "2026-11-23T06:00:01Z", CARRIED) + b"\n"
    return [json.loads(line) for line in (flattened(row) if shape is Shape.FLAT else [row])]


MANY = Answer([{"value": "direct", "clicks": 2**63 - 2}, {"value": "", "clicks": 1}], 2**63 - 1, 30, "2026-11-23")
NONE = Answer([], 0, None, None)


# --- version 1 ------------------------------------------------------------------------------------------------------


def described_rows() -> dict[str, Any]:
    return {
        facet: {
            **{shape.value: described(columns_of(shape, facet)) for shape in Shape},
            "metric": described(metric_columns(facet)),
        }
        for facet in FACETS
    }


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("row-*.json")), ids=lambda path: path.stem)
def test_what_was_published_once_stays_as_it_was(path: Path) -> None:
    now = described_rows()
    for facet, published in json.loads(path.read_text()).items():
        for part, before in published.items():
            names = {each["name"] for each in before}
            assert [each for each in now[facet][part] if each["name"] in names] == before


def test_this_version_is_held_as_it_is() -> None:
    """A new column is a new version: tests/published gets a file, and those before it stay."""
    assert json.loads((PUBLISHED / f"row-{SCHEMA_VERSION}.json").read_text()) == described_rows()


# --- what is printed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "shape", "form"), EVERY)
def test_every_target_has_every_column_in_the_rows_order(target: Target, shape: Shape, form: Format) -> None:
    printed, place = schema_for(target, Rows(shape, form, FACET)), -1
    for column in columns_of(shape, FACET):
        place = printed.index(column.name, place + 1)
        quote = "''" if target in {Target.SNOWFLAKE, Target.CLICKHOUSE} else "'"
        assert column.means.replace("'", quote) in printed


@pytest.mark.parametrize("target", sorted(set(Target) - {Target.BIGQUERY, Target.PYARROW}))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_format_changes_how_files_are_read_and_no_column(target: Target, shape: Shape) -> None:
    tables = {
        schema_for(target, Rows(shape, form, FACET)).partition("\n);")[0].partition("\n)\n")[0] for form in Format
    }
    tables = {table.partition("\n")[2] if table.startswith("--") else table for table in tables}
    assert len(tables) == 1


def test_the_schema_goes_to_standard_output_alone_and_is_a_whole_file(capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "schema", "--for", "json-schema", "--shape", "flat")
    assert (done.code, done.err) == (0, "")
    assert done.out == schema_for(Target.JSON_SCHEMA, Rows(Shape.FLAT, Format.NDJSON_GZ, FACET)) + "\n"
    assert json.loads(done.out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_schema_needs_no_token_and_a_target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", "")
    assert command(capsys, "schema", "--for", "duckdb").code == 0
    done = command(capsys, "schema")
    assert (done.code, done.out) == (2, "")
    assert "--for" in done.err
    wrong = command(capsys, "schema", "--for", "snowfalke")
    assert wrong.code == 2
    assert "did you mean snowflake?" in wrong.err


def test_shape_and_format_may_be_those_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text('shape = "flat"\nformat = "parquet"\n')
    done = command(capsys, "--config", str(tmp_path / "my.toml"), "schema", "--for", "athena")
    assert done.out == schema_for(Target.ATHENA, Rows(Shape.FLAT, Format.PARQUET, FACET)) + "\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes what is always full")
def test_a_schema_that_cannot_be_written_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        done = command(capsys, "schema", "--for", "duckdb")
    with suppress(OSError):
        full.close()
    assert (done.code, done.err) == (8, "harvester: standard output: No space left on device\n")


# --- JSON Schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("answer", [MANY, NONE])
def test_rows_are_valid_and_so_are_those_of_a_later_version(shape: Shape, answer: Answer) -> None:
    for row in rows_of(answer, shape):
        validator(shape).validate(row)
        validator(shape).validate({**row, "added_later": 1})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "column", columns_of(Shape.NESTED, FACET) + metric_columns(FACET), ids=lambda column: column.name
)
def test_a_row_without_a_key_or_with_another_type_is_not_valid(shape: Shape, column: Column) -> None:
    row = rows_of(MANY, shape)[0]
    if column.name not in row:
        column = columns_of(shape, FACET)[0]
    without = {name: value for name, value in row.items() if name != column.name}
    wrong: Any = 7 if column.kind is Kind.TEXT else "seven"
    for bad in (without, {**row, column.name: wrong}, {**row, column.name: {"key": 7}}):
        with pytest.raises(ValidationError):
            validator(shape).validate(bad)


def test_null_is_valid_only_where_a_column_may_be_null() -> None:
    for shape in SHAPES:
        for column in columns_of(shape, FACET):
            row = {**rows_of(MANY, shape)[0], column.name: None}
            assert validator(shape).is_valid(row) == column.nullable, column.name


@pytest.mark.parametrize("moment", ["2026-11-23T06:00:00", "2026-11-23T06:00:00+01:00", "2026-11-31T06:00:00Z", "Z"])
def test_a_moment_that_is_none_in_utc_is_not_valid(moment: str) -> None:
    row = rows_of(MANY, Shape.NESTED)[0]
    assert not validator(Shape.NESTED).is_valid({**row, "fetched_at": moment})


# --- real parts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers() -> list[str]:
    return [*(f"bit.ly/{i}" for i in range(12)), "bit.ly/missing"]


async def harvested(out: Path, served: Served, links: list[str], shape: Shape, form: Format) -> Path:
    given: Any = {"token": TOKEN, "base_url": served.url, "per_minute": 0, "per_hour": 0, "per_month": 0}
    await harvester.harvest(links, out=out, part_rows=5, shape=shape, format=form, **given)
    return out


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shape", SHAPES)
async def test_real_parts_load_into_duckdb_with_the_printed_table(
    tmp_path: Path, serve: Callable[..., Served], numbers: list[str], shape: Shape, form: Format
) -> None:
    out = await harvested(tmp_path / "dt=2026-11-23", serve(), numbers, shape, form)
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Rows(shape, form, FACET)))
        database.execute(f"INSERT INTO bitly_metrics FROM bitly_parts('{tmp_path}/dt=*/part-*.{form}')")
        loaded: pa.Table = database.sql("FROM bitly_metrics ORDER BY record_id").to_arrow_table()
    read = harvester.read(out).sort_by("record_id")
    assert loaded.column_names == read.column_names
    as_loaded = [pa.timestamp("us", "UTC") if pa.types.is_timestamp(kind) else kind for kind in read.schema.types]
    assert plain(loaded) == plain(read.cast(pa.schema(list(zip(read.column_names, as_loaded, strict=True)))))


def plain(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


async def test_published_rows_are_valid(tmp_path: Path, serve: Callable[..., Served], numbers: list[str]) -> None:
    for shape in SHAPES:
        out = await harvested(tmp_path / shape, serve(), numbers, shape, Format.NDJSON)
        lines = [line for path in out.glob("part-*") for line in path.read_text().splitlines()]
        assert len(lines) >= 12
        for line in lines:
            validator(shape).validate(json.loads(line))


@pytest.mark.parametrize("shape", SHAPES)
def test_parquet_has_the_types_of_the_printed_table(tmp_path: Path, shape: Shape) -> None:
    parquet.write_table(arrow_schema(shape, FACET).empty_table(), tmp_path / "part.parquet")
    with duckdb.connect() as database:
        database.execute(schema_for(Target.DUCKDB, Rows(shape, Format.PARQUET, FACET)))
        table = database.execute("SELECT column_name, column_type FROM (DESCRIBE bitly_metrics)").fetchall()
        part = f"SELECT column_name, column_type FROM (DESCRIBE FROM '{tmp_path}/part.parquet')"
        assert database.execute(part).fetchall() == table


def printed_schema(target: Target, shape: Shape, form: Format = Format.PARQUET) -> Any:
    """The schema that the printed Python makes."""
    names: dict[str, Any] = {}
    exec(schema_for(target, Rows(shape, form, FACET)), names)
    return names["schema"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_printed_python_makes_the_schema_of_parquet(shape: Shape) -> None:
    assert printed_schema(Target.PYARROW, shape).equals(arrow_schema(shape, FACET))
    assert (
        pl.Schema(printed_schema(Target.POLARS, shape)) == pl.DataFrame(arrow_schema(shape, FACET).empty_table()).schema
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_what_pyarrow_cannot_read_from_lines_is_a_comment_in_its_schema(tmp_path: Path, shape: Shape) -> None:
    columns = arrow_schema(shape, FACET)
    printed = printed_schema(Target.PYARROW, shape, Format.NDJSON)
    assert printed.equals(columns.remove(columns.get_field_index("carried")))
    (tmp_path / "part.ndjson").write_bytes(part_of(MANY, shape, Format.NDJSON))
    found = dataset.dataset(tmp_path / "part.ndjson", schema=printed, format="json").to_table()
    assert found.column_names == printed.names
    assert found.num_rows == 2 * len(rows_of(MANY, shape))


def part_of(answer: Answer, shape: Shape, form: Format) -> bytes:
    """The bytes of a part with two calls, of which the second carries nothing."""
    made = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), "0a")
    lines = [
        made.row(name, made.key(name), answer, "2026-11-23T06:00:01Z", carried) + b"\n"
        for name, carried in (("bit.ly/a", CARRIED), ("bit.ly/b", None))
    ]
    stream = io.BytesIO()
    write_part(lines, HashingWriter(stream), PartFormat(form, shape, FACET))
    return stream.getvalue()


@pytest.mark.parametrize("form", [Format.NDJSON, Format.PARQUET])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_rows_carry_is_loaded_as_a_map(tmp_path: Path, shape: Shape, form: Format) -> None:
    path = tmp_path / f"part-0a-00000.{form}"
    path.write_bytes(part_of(NONE, shape, form))
    expected = [("bit.ly/a", CARRIED), ("bit.ly/b", None)]
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Rows(shape, form, FACET)))
        query = f"SELECT bitlink, carried, carried['campaign'] FROM bitly_parts('{path}')"
        assert database.execute(query).fetchall() == [(*expected[0], "autumn"), (*expected[1], None)]
    schema = printed_schema(Target.POLARS, shape, form)
    scanned = (pl.scan_parquet if form is Format.PARQUET else pl.scan_ndjson)(path, schema=schema).collect()
    assert scanned.schema == pl.Schema(schema)
    assert scanned["carried"].to_arrow().to_pylist() == [[("campaign", "autumn"), ("channel", None)], None]
    if shape is Shape.NESTED:  # as is assumed where there is no manifest
        assert harvester.read(tmp_path)["carried"].to_pylist() == [[("campaign", "autumn"), ("channel", None)], None]


# --- what cannot be tried here --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("target", "statements"),
    [
        (Target.DUCKDB, [exp.Create, exp.Create]),
        (Target.SNOWFLAKE, [exp.Create, exp.Create, exp.Copy]),
        (Target.ATHENA, [exp.Create]),
        (Target.CLICKHOUSE, [exp.Create, exp.Create]),
    ],
)
def test_sql_is_read_by_a_parser_of_its_dialect(
    target: Target, statements: list[type], shape: Shape, form: Format
) -> None:
    parsed = sqlglot.parse(schema_for(target, Rows(shape, form, FACET)), read=target.value)
    assert [type(each) for each in parsed] == statements
    assert parsed[0] is not None
    table = parsed[0].find(exp.Schema)
    assert table is not None
    assert [column.name for column in table.expressions] == [column.name for column in columns_of(shape, FACET)]


def test_bigquery_has_a_repeated_record_of_metrics_and_says_what_may_be_null() -> None:
    fields = {
        each["name"]: each
        for each in json.loads(schema_for(Target.BIGQUERY, Rows(Shape.NESTED, Format.NDJSON_GZ, FACET)))
    }
    metrics = fields["metrics"]
    assert (metrics["type"], metrics["mode"]) == ("RECORD", "REPEATED")
    assert [(each["name"], each["type"], each["mode"]) for each in metrics["fields"]] == [
        ("value", "STRING", "REQUIRED"),
        ("clicks", "INTEGER", "REQUIRED"),
    ]
    assert (fields["fetched_at"]["type"], fields["fetched_at"]["mode"]) == ("TIMESTAMP", "REQUIRED")
    assert fields["units_returned"]["mode"] == "NULLABLE"


def test_bigquery_reads_a_map_from_json_as_json_and_from_parquet_as_pairs() -> None:
    def carried(form: Format) -> Any:
        fields = json.loads(schema_for(Target.BIGQUERY, Rows(Shape.FLAT, form, FACET)))
        return next(each for each in fields if each["name"] == "carried")

    assert (carried(Format.NDJSON)["type"], carried(Format.NDJSON)["mode"]) == ("JSON", "NULLABLE")
    (pairs,) = carried(Format.PARQUET)["fields"]
    assert (pairs["name"], pairs["mode"]) == ("key_value", "REPEATED")
    assert [(each["name"], each["mode"]) for each in pairs["fields"]] == [("key", "REQUIRED"), ("value", "NULLABLE")]


def test_spark_has_a_struct_type() -> None:
    struct = json.loads(schema_for(Target.SPARK, Rows(Shape.NESTED, Format.PARQUET, FACET)))
    fields = {each["name"]: each for each in struct["fields"]}
    assert struct["type"] == "struct"
    assert all(set(each) == {"name", "type", "nullable", "metadata"} for each in struct["fields"])
    assert fields["metrics"]["type"]["elementType"]["fields"][1]["type"] == "long"
    assert fields["unit_reference"]["type"] == "timestamp"
    assert fields["carried"]["type"]["valueType"] == "string"


def write_published() -> None:
    text = json.dumps(described_rows(), indent=1)
    (PUBLISHED / f"row-{SCHEMA_VERSION}.json").write_text(text + "\n")


if __name__ == "__main__":
    write_published()
