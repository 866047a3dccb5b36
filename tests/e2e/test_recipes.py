"""docs/loading.md and docs/orchestration.md, as far as they can be tried here: their statements and scripts are run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset
import pytest
import sqlglot

import harvester
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.cli.exit_codes import EXIT_CODES
from harvester.rows.column_types import Target
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape
from harvester.rows.schema_export import Rows, schema_for
from harvester.sandbox import metrics_for
from tests.conftest import Served
from tests.support.commands import ROOT, TOKEN, environment
from tests.support.scripted_bitly import scripted

LOADING = (ROOT / "docs" / "loading.md").read_text()
ORCHESTRATION = (ROOT / "docs" / "orchestration.md").read_text()
README = (ROOT / "README.md").read_text()
NAMES = [f"bit.ly/{i}" for i in range(12)]
DAY = "2026-11-23"


def section(page: str, name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- loading --------------------------------------------------------------------------------------------------------


async def harvested(served: Served, shape: Shape, form: Format) -> None:
    given: Any = {"token": TOKEN, "base_url": served.url, "per_minute": 0, "per_hour": 0, "per_month": 0}
    out = "lake/{facet}/dt={dt}"
    for day in (DAY, "2026-11-24"):
        links = [*NAMES, "bit.ly/missing"]
        await harvester.harvest(links, out=out, unit_reference=day, part_rows=5, shape=shape, format=form, **given)


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shape", list(Shape))
async def test_the_duckdb_recipe_loads_every_row_once_however_often_it_is_run(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, shape: Shape, form: Format
) -> None:
    monkeypatch.chdir(tmp_path)
    await harvested(serve(), shape, form)
    assert Path(f"lake/referrers/dt={DAY}/_failures.ndjson").stat().st_size > 0
    page = section(LOADING, "DuckDB")
    (merge,) = blocks(page, f"sql load {shape}")
    (busiest,) = blocks(page, f"sql {shape}")
    clicks: Counter[str] = Counter()
    for name, day in product(NAMES, (DAY, "2026-11-24")):
        answer = metrics_for(name, "referrers", unit_reference=day)
        clicks.update({each["value"]: each["clicks"] for each in answer["metrics"]})
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Rows(shape, form, "referrers")))
        for _ in range(2):
            database.execute(merge.replace(".ndjson.gz", f".{form}"))
            calls = database.execute("SELECT count(DISTINCT (bitlink, unit_reference)) FROM bitly_metrics").fetchall()
            assert calls == [(24,)]
            ranked = sorted(clicks.items(), key=lambda item: (-item[1], item[0]))[:10]
            assert database.execute(busiest).fetchall() == ranked


async def test_the_merge_takes_the_later_answer_of_a_call(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await harvested(serve(), Shape.NESTED, Format.NDJSON_GZ)
    (merge,) = blocks(section(LOADING, "DuckDB"), "sql load nested")
    changed = "SELECT count(*) FROM bitly_metrics WHERE clicks_listed = -1"
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Rows(Shape.NESTED, Format.NDJSON_GZ, "referrers")))
        for moment, left in (("2020-01-01", 0), ("2100-01-01", 24)):
            database.execute(merge)
            database.execute(f"UPDATE bitly_metrics SET fetched_at = '{moment}T00:00:00Z', clicks_listed = -1")
            database.execute(merge)
            assert database.execute(changed).fetchall() == [(left,)]


# --- loading again --------------------------------------------------------------------------------------------------

Metrics = dict[str, dict[str, int]]
"""The clicks by value of each link."""
Clicks = Counter[str]
FIRST: Metrics = {
    **{f"bit.ly/same{i}": {"direct": 10 + i, "https://t.co/": 1} for i in range(3)},
    "bit.ly/fewer": {"direct": 364_650, "https://t.co/": 7},
    "bit.ly/none": {"direct": 1_000_000, "2026": 1},
    "bit.ly/some": {},
    "bit.ly/failed": {"direct": 5},
}
SECOND: Metrics = {**FIRST, "bit.ly/fewer": {"https://t.co/": 6}, "bit.ly/none": {}, "bit.ly/some": {"new": 3}}
del SECOND["bit.ly/failed"]
"""A later harvest of the same list; the call of one link has failed, so its earlier answer stays."""


def clicks_of(*harvests: Metrics) -> tuple[int, Clicks]:
    """The calls of a table into which these harvests were loaded, and their clicks."""
    answers = {name: metrics for harvest in harvests for name, metrics in harvest.items()}
    total: Clicks = Counter()
    for metrics in answers.values():
        total.update(metrics)
    return len(answers), total


def publish(folder: Path, run_id: str, fetched_at: str, harvest: Metrics, made: PartFormat) -> None:
    """Write a harvest's part as a run does."""
    rows = RowBuilder(Query("referrers", "day", 1, f"{DAY}T00:00:00Z", 50), run_id)
    lines = []
    for name, clicks in harvest.items():
        metrics: list[Any] = [{"value": value, "clicks": count} for value, count in clicks.items()]
        answer = Answer(metrics, sum(clicks.values()), 1, None)
        lines.append(rows.row(name, rows.key(name), answer, fetched_at) + b"\n")
    folder = folder / "referrers" / f"dt={DAY}"
    folder.mkdir(parents=True)
    with (folder / f"part-{run_id}-00000.{made.format}").open("wb") as file:
        write_part(lines, HashingWriter(file), made)


@pytest.fixture
def two_harvests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Shape, Format], None]:
    """Writes the same day twice, into the folders lake and lake2."""
    monkeypatch.chdir(tmp_path)

    def publish_both(shape: Shape, form: Format) -> None:
        made = PartFormat(form, shape, "referrers")
        publish(tmp_path / "lake", "0b", f"{DAY}T06:00:00Z", FIRST, made)
        publish(tmp_path / "lake2", "0a", f"{DAY}T07:00:00Z", SECOND, made)

    return publish_both


def check(load: Callable[[str], None], loaded: Callable[[], tuple[int, Clicks]]) -> None:
    """Load the harvests in all orders. load: takes the folder's name, or a pattern of it. loaded: calls and clicks."""
    first, both = clicks_of(FIRST), clicks_of(FIRST, SECOND)
    for folder, expected in (("lake", first), ("lake", first), ("lake2", both), ("lake", both), ("lake2", both)):
        load(folder)
        assert loaded() == expected


def summed(shape: Shape, source: str = "bitly_metrics") -> str:
    """A query of DuckDB's for a table's calls and its clicks by value."""
    if shape is Shape.FLAT:
        return f"SELECT bitlink, value, clicks FROM {source}"
    metric = "unnest(if(len(metrics) = 0, [NULL], metrics))"
    return f"SELECT bitlink, metric.value, metric.clicks FROM (SELECT bitlink, {metric} AS metric FROM {source})"


def counted(rows: list[tuple[str, str | None, int | None]]) -> tuple[int, Clicks]:
    """The calls and the clicks by value of bitlink, value and clicks."""
    total: Clicks = Counter()
    for _, value, clicks in rows:
        if value is not None:
            total[value] += clicks or 0
    return len({row[0] for row in rows}), total


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shape", list(Shape))
def test_duckdb_keeps_the_newest_answer_of_each_call_and_nothing_stale(
    two_harvests: Callable[[Shape, Format], None], shape: Shape, form: Format
) -> None:
    two_harvests(shape, form)
    (statement,) = blocks(section(LOADING, "DuckDB"), f"sql load {shape}")
    statement = statement.replace(".ndjson.gz", f".{form}")
    for folders in (None, "lake*"):
        with duckdb.connect(config={"threads": 1}) as database:
            database.execute(schema_for(Target.DUCKDB, Rows(shape, form, "referrers")))

            def load(folder: str, database: duckdb.DuckDBPyConnection = database) -> None:
                database.execute(statement.replace("'lake/", f"'{folder}/"))

            def loaded(database: duckdb.DuckDBPyConnection = database) -> tuple[int, Clicks]:
                return counted(database.execute(summed(shape)).fetchall())

            if folders is None:
                check(load, loaded)
            else:  # both at once
                load(folders)
                assert loaded() == clicks_of(FIRST, SECOND)


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("name", ["BigQuery", "Snowflake", "ClickHouse"])
def test_the_statements_of_other_databases_do_the_same_when_duckdb_runs_them(
    two_harvests: Callable[[Shape, Format], None], name: str, shape: Shape
) -> None:
    """Parsed in their dialect and translated; the load into bitly_parts is ours."""
    two_harvests(shape, Format.NDJSON_GZ)
    (text,) = blocks(section(LOADING, name), "sql load flat")
    text = text.replace("call_id", "record_id") if shape is Shape.NESTED else text
    if name == "ClickHouse":
        text = "DELETE" + text.partition("DELETE")[2]
    statements = sqlglot.transpile(text, read=name.lower(), write="duckdb")
    metrics, parts = ("bitly.metrics", "bitly.parts") if name == "BigQuery" else ("bitly_metrics", "staged")
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute("CREATE SCHEMA bitly")
        database.execute(schema_for(Target.DUCKDB, Rows(shape, Format.NDJSON_GZ, "referrers")))
        database.execute(f"CREATE TABLE IF NOT EXISTS {metrics} AS FROM bitly_metrics")
        database.execute(f"CREATE TABLE {parts} AS FROM bitly_metrics")

        def load(folder: str) -> None:
            database.execute(f"DELETE FROM {parts}")
            database.execute(f"INSERT INTO {parts} FROM bitly_parts('{folder}/referrers/dt=*/part-*.ndjson.gz')")
            for statement in statements:
                database.execute(statement.replace("bitly_parts", "staged"))

        def loaded() -> tuple[int, Clicks]:
            return counted(database.execute(summed(shape, metrics)).fetchall())

        check(load, loaded)
        database.execute(f"DELETE FROM {metrics}")
        load("lake*")
        assert loaded() == clicks_of(FIRST, SECOND)


@pytest.mark.parametrize("shape", list(Shape))
def test_the_view_of_athena_has_the_newest_answer_of_each_call(
    two_harvests: Callable[[Shape, Format], None], shape: Shape
) -> None:
    two_harvests(shape, Format.NDJSON_GZ)
    (text,) = blocks(section(LOADING, "Athena"), "sql load flat")
    text = text.replace("call_id", "record_id") if shape is Shape.NESTED else text
    (view,) = sqlglot.transpile(text, read="athena", write="duckdb")
    with duckdb.connect(config={"threads": 1}) as database:
        database.execute(schema_for(Target.DUCKDB, Rows(shape, Format.NDJSON_GZ, "referrers")))
        database.execute("INSERT INTO bitly_metrics FROM bitly_parts('lake*/referrers/dt=*/part-*.ndjson.gz')")
        database.execute(view)
        assert counted(database.execute(summed(shape, "bitly_newest")).fetchall()) == clicks_of(FIRST, SECOND)


@pytest.fixture
def run_python(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs code of the page as a script beside the printed schema, and returns its names."""

    def run(code: str, target: Target, shape: Shape, names: dict[str, Any] | None = None) -> dict[str, Any]:
        printed = ModuleType("bitly_schema")
        exec(schema_for(target, Rows(shape, Format.NDJSON_GZ, "referrers")), vars(printed))
        monkeypatch.setitem(sys.modules, "bitly_schema", printed)
        names = {} if names is None else names
        exec(code.replace("call_id", "record_id") if shape is Shape.NESTED else code, names)
        return names

    return run


def read_from(code: str, folder: str, form: Format) -> str:
    """The page's code for another folder and format."""
    code = code.replace("lake/", f"{folder}/").replace(".ndjson.gz", f".{form}")
    return code.replace("scan_ndjson", "scan_parquet").replace("=lines", '="parquet"') if form == "parquet" else code


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("shape", list(Shape))
def test_the_polars_recipe_reads_the_newest_answer_of_each_call(
    two_harvests: Callable[[Shape, Format], None], run_python: Callable[..., Any], shape: Shape, form: Format
) -> None:
    two_harvests(shape, form)
    (code,) = blocks(section(LOADING, "Polars"), "python")
    if shape is Shape.NESTED:
        code = code.replace("rows.drop_nulls", 'rows.explode("metrics").unnest("metrics").drop_nulls')
    names = run_python(read_from(code, "lake*", form), Target.POLARS, shape)
    calls, clicks = clicks_of(FIRST, SECOND)
    assert names["rows"].collect()["bitlink"].n_unique() == calls
    assert dict(names["clicks"].rows()) == clicks


@pytest.mark.parametrize("form", [Format.NDJSON, Format.NDJSON_GZ, Format.PARQUET])
@pytest.mark.parametrize("shape", list(Shape))
def test_the_pandas_recipe_reads_the_newest_answer_of_each_call(
    two_harvests: Callable[[Shape, Format], None], run_python: Callable[..., Any], shape: Shape, form: Format
) -> None:
    two_harvests(shape, form)
    (code,) = blocks(section(LOADING, "pyarrow and pandas"), "python")
    names = run_python(read_from(code, "lake*", form), Target.PYARROW, shape)
    assert names["rows"].schema.equals(names["schema"])
    frame = names["frame"]
    if shape is Shape.NESTED:
        assert counted(of_nested(frame[["bitlink", "metrics"]].itertuples(index=False))) == clicks_of(FIRST, SECOND)
        return
    assert frame["clicks"].sum() == clicks_of(FIRST, SECOND)[1].total()
    assert str(frame["clicks"].dtype) == "int64[pyarrow]"
    assert frame["bitlink"].nunique() == len(FIRST)


def of_nested(rows: Iterable[tuple[str, Any]]) -> list[tuple[str, str | None, int | None]]:
    """Bitlink, value and clicks of bitlinks with their metrics."""
    nothing = [{"value": None, "clicks": None}]
    return [(link, each["value"], each["clicks"]) for link, metrics in rows for each in (list(metrics) or nothing)]


def in_arrow(table: Any) -> tuple[int, Clicks]:
    """The calls and clicks of an Arrow table of either shape."""
    rows = table.to_pylist()
    if rows and "metrics" in rows[0]:
        return counted(of_nested((row["bitlink"], row["metrics"]) for row in rows))
    return counted([(row["bitlink"], row["value"], row["clicks"]) for row in rows])


@pytest.mark.parametrize("shape", list(Shape))
def test_the_delta_recipe_keeps_nothing_stale(
    two_harvests: Callable[[Shape, Format], None], run_python: Callable[..., Any], shape: Shape
) -> None:
    from deltalake import DeltaTable  # noqa: PLC0415 - as below

    two_harvests(shape, Format.NDJSON_GZ)
    (arrow,) = blocks(section(LOADING, "pyarrow and pandas"), "python")
    replace, merge = blocks(section(LOADING, "Delta Lake"), "python")
    made = replace.partition("calls =")[0]
    for code in [replace, made + merge] if shape is Shape.NESTED else [replace]:
        shutil.rmtree("tables", ignore_errors=True)

        def load(folder: str, code: str = code) -> None:
            names = run_python(read_from(arrow, folder, Format.NDJSON_GZ), Target.PYARROW, shape)
            run_python(code, Target.PYARROW, shape, names)

        check(load, lambda: in_arrow(DeltaTable("tables/bitly_metrics").to_pyarrow_table()))


@pytest.mark.filterwarnings("ignore:Delete operation did not match any records")
@pytest.mark.parametrize("shape", list(Shape))
def test_the_iceberg_recipe_keeps_nothing_stale(
    two_harvests: Callable[[Shape, Format], None],
    run_python: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shape: Shape,
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog  # noqa: PLC0415 - 0.7 s, and every worker reads this file

    two_harvests(shape, Format.NDJSON_GZ)
    (arrow,) = blocks(section(LOADING, "pyarrow and pandas"), "python")
    (code,) = blocks(section(LOADING, "Iceberg"), "python")
    with SqlCatalog("default", uri="sqlite:///:memory:", warehouse=tmp_path.as_uri()) as catalog:
        monkeypatch.setattr("pyiceberg.catalog.load_catalog", lambda _: catalog)

        def load(folder: str) -> None:
            names = run_python(read_from(arrow, folder, Format.NDJSON_GZ), Target.PYARROW, shape)
            run_python(code, Target.PYARROW, shape, names)

        check(load, lambda: in_arrow(catalog.load_table("bitly.metrics").scan().to_arrow()))


# --- types ----------------------------------------------------------------------------------------------------------


def test_loaders_that_guess_types_do_what_the_page_says_and_the_printed_schemas_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_python: Callable[..., Any]
) -> None:
    import pandas as pd  # noqa: PLC0415 - as above

    monkeypatch.chdir(tmp_path)
    harvest: Metrics = {f"bit.ly/{i}": {} for i in range(30_000)} | {"bit.ly/last": {"direct": 7, "2026": 1}}
    publish(tmp_path / "lake", "0a", f"{DAY}T06:00:00Z", harvest, PartFormat(Format.NDJSON_GZ, Shape.FLAT, "referrers"))
    (part,) = Path("lake/referrers").glob("*/part-*")
    with duckdb.connect() as database:
        guess = database.execute(f"SELECT any_value(typeof(clicks)), sum(clicks) FROM '{part}'").fetchone()
        assert guess == ('"NULL"', None)
        database.execute(schema_for(Target.DUCKDB, Rows(Shape.FLAT, Format.NDJSON_GZ, "referrers")))
        assert database.execute(f"SELECT sum(clicks) FROM bitly_parts('{part}')").fetchone() == (8,)
    with pytest.raises(pl.exceptions.ComputeError):
        pl.scan_ndjson(part).select(pl.col("clicks").sum()).collect()
    with pytest.raises(pyarrow.ArrowInvalid):
        pyarrow.dataset.dataset(part, format="json").to_table()
    assert pd.read_json(part, lines=True)["clicks"].dtype == "float64"
    (code,) = blocks(section(LOADING, "Polars"), "python")
    assert dict(run_python(code, Target.POLARS, Shape.FLAT)["clicks"].rows()) == {"direct": 7, "2026": 1}
    (code,) = blocks(section(LOADING, "pyarrow and pandas"), "python")
    assert run_python(code, Target.PYARROW, Shape.FLAT)["frame"]["clicks"].sum() == 8


# --- the page -------------------------------------------------------------------------------------------------------


def test_every_target_of_the_schema_has_its_place_in_the_page() -> None:
    assert set(re.findall(r"harvester schema --for ([a-z-]+)", LOADING)) == {target.value for target in Target}


def test_every_format_and_shape_is_in_both_tables_of_formats() -> None:
    for page in (LOADING, README):
        rows = re.findall(r"^\| `([a-z0-9.]+)` \|", page, re.MULTILINE)
        assert {form.value for form in Format} <= set(rows)
        assert all(re.search(rf"`(--shape )?{shape}`", page) for shape in Shape)


def test_statements_for_snowflake_are_read_by_a_parser_of_its_dialect() -> None:
    (query,) = blocks(section(LOADING, "Snowflake"), "sql")
    (parsed,) = sqlglot.parse(query, read="snowflake")
    assert parsed is not None
    assert {table.name for table in parsed.find_all(sqlglot.exp.Table)} >= {"bitly_metrics"}


def test_what_was_not_tried_says_so() -> None:
    for name in ("BigQuery", "Snowflake", "Athena"):
        assert section(LOADING, name).lstrip().startswith("**Not tried here**")
    for name in ("DuckDB", "Polars", "pyarrow and pandas", "Delta Lake", "Iceberg", "ClickHouse", "Spark"):
        assert section(LOADING, name).lstrip().startswith("Tried")


def test_python_in_the_pages_compiles() -> None:
    found = [block for page in (LOADING, ORCHESTRATION) for block in blocks(page, "python")]
    assert len(found) == 7
    for block in found:
        compile(block, "page", "exec")


# --- orchestration --------------------------------------------------------------------------------------------------

FAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
read -r code < "$CODE"
[ "$code" = 0 ] && touch "$4/_SUCCESS"
exit "$code"
"""


class Cron:
    """The page's script, with a harvester that does nothing but end as it is told."""

    def __init__(self, folder: Path, day: str | None = DAY) -> None:
        (script,) = blocks(section(ORCHESTRATION, "cron"), "sh")
        self.lake, self._script, self._calls = folder / "lake", folder / "harvest.sh", folder / "calls"
        self._code, self._bin = folder / "code", folder / "bin"
        self._script.write_text(script)
        self._bin.mkdir()
        if day is not None:
            self.add("date", f"#!/bin/sh\necho {day}\n")

    def add(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def run(self, code: int | None = None, **env: str) -> int:
        if code is not None:
            self.add("harvester", FAKE)
            self._code.write_text(f"{code}\n")
        own = {"LAKE": str(self.lake), "CALLS": str(self._calls), "CODE": str(self._code), **env}
        path = f"{self._bin}:{os.environ['PATH']}"
        done = subprocess.run(["sh", self._script], env=environment({**own, "PATH": path}), check=False, timeout=60)
        return done.returncode

    def days(self) -> list[str]:
        """The days that harvester was called for, in their order."""
        return re.findall(r"--day (\S+)", self._calls.read_text()) if self._calls.exists() else []


@pytest.mark.parametrize("code", EXIT_CODES)
def test_the_cron_script_repeats_what_is_to_be_repeated_and_nothing_else(tmp_path: Path, code: int) -> None:
    cron = Cron(tmp_path)
    assert cron.run(code) == (0 if code in {0, 3, 9} else code)
    assert cron.run(code) == (code if code in {5, 7} else 0)
    assert cron.days() == [DAY] * (2 if code in {3, 5, 7, 9} else 1)
    assert (cron.lake / "_stopped").exists() == (code in {1, 2, 4, 6, 8})


def test_the_cron_script_goes_on_when_the_cause_is_mended(tmp_path: Path) -> None:
    cron = Cron(tmp_path)
    assert cron.run(6) == 6
    (cron.lake / "_stopped").unlink()
    assert cron.run(0) == 0
    assert cron.days() == [DAY, DAY]


def test_the_cron_script_carries_on_the_oldest_day_first_and_leaves_complete_ones(tmp_path: Path) -> None:
    cron = Cron(tmp_path)
    for day in ("2026-11-20", "2026-11-21", "2026-11-22"):
        (cron.lake / f"dt={day}").mkdir(parents=True)
    (cron.lake / "dt=2026-11-21" / "_SUCCESS").touch()
    assert cron.run(3) == 0
    assert cron.days() == ["2026-11-20", "2026-11-22", DAY]
    assert cron.run(7) == 7
    assert cron.days()[3:] == ["2026-11-20"]


def test_the_cron_script_goes_no_further_than_the_bound_that_was_set(tmp_path: Path) -> None:
    """Each later day would otherwise make as many calls again."""
    cron = Cron(tmp_path)
    (cron.lake / "dt=2026-11-20").mkdir(parents=True)
    for _ in range(2):
        assert cron.run(9) == 0
    assert cron.days() == ["2026-11-20"] * 2


def test_the_cron_script_works_with_harvester_itself(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, cron = serve(), Cron(tmp_path)
    cron.add("harvester", f'#!/bin/sh\nexec {sys.executable} -m harvester "$@"\n')
    (tmp_path / "links.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for _ in range(2):
        assert cron.run(HARVESTER_BASE_URL=served.url, LIST=str(tmp_path / "links.txt")) == 0
    assert (cron.lake / f"dt={DAY}" / "_SUCCESS").exists()
    assert served.sandbox.requests == Counter([NAMES[0], *NAMES])  # the first one's clicks show the window


def test_the_table_of_exit_codes_has_each_once() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", ORCHESTRATION, re.MULTILINE)
    assert sorted(int(code) for row in rows for code in row.split(",")) == sorted(EXIT_CODES)


class Failed(Exception):
    """Airflow's AirflowFailException: no more tries."""


class Repeated(Exception):
    """Airflow's AirflowException: the task is tried again."""


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The page's DAG, with just as much of Airflow as it uses."""
    found = SimpleNamespace(task=None, options={}, days=[])

    def task(**options: Any) -> Callable[[Any], Any]:
        def decorate(work: Any) -> Any:
            found.task, found.options = work, options
            return found.days.append

        return decorate

    sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.sdk.exceptions")
    vars(sdk).update(dag=lambda **_: lambda make: make, task=task)
    vars(exceptions).update(AirflowException=Repeated, AirflowFailException=Failed)
    for module in (ModuleType("airflow"), sdk, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (code,) = blocks(section(ORCHESTRATION, "Airflow"), "python")
    exec(compile(code, "dag.py", "exec"), {"__name__": "dag"})
    return found


def put_command(folder: Path, code: int, calls: int = 1) -> None:
    """Put a harvester there whose runs end with a code, and whose status has so many calls in the last run."""
    status = json.dumps({"invocation": {"calls": calls}})
    (folder / "harvester").write_text(
        f"#!/bin/sh\n[ $1 = status ] && echo '{status}' && exit\necho \"$@\" > '{folder}/words'\nexit {code}\n"
    )
    (folder / "harvester").chmod(0o755)


@pytest.mark.parametrize("code", EXIT_CODES)
def test_the_airflow_task_repeats_what_is_to_be_repeated_and_nothing_else(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    put_command(tmp_path, code)
    expected = {0: None, 3: Repeated, 5: Repeated, 7: Repeated}.get(code, Failed)
    assert dag.days == ["{{ macros.ds_add(ds, -1) }}"]
    if expected is None:
        dag.task(DAY)
    else:
        with pytest.raises(expected):
            dag.task(DAY)
    words = (tmp_path / "words").read_text().split()
    assert words[-3:] == ["--allow-empty", "--day", DAY]
    assert words[words.index("--out") + 1].endswith("{facet}/dt={dt}")


@pytest.mark.parametrize("others", [(), (5, 5, 5, 5), (7,) * 60, (5, 7, 3, 5, 3)])
def test_the_airflow_task_gives_up_what_failed_by_calls_and_not_by_tries(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: tuple[int, ...]
) -> None:
    """However often it was tried before, and with whatever end."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for code in (*others, 3):
        put_command(tmp_path, code, calls=1)
        with pytest.raises(Repeated):
            dag.task(DAY)
    put_command(tmp_path, 3, calls=0)
    with pytest.raises(Failed, match="_failures"):
        dag.task(DAY)


def test_the_airflow_task_stops_at_a_bound_and_says_how_to_go_on(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    put_command(tmp_path, 9)
    with pytest.raises(Failed, match="clear the task to go on"):
        dag.task(DAY)


def test_the_airflow_task_works_with_harvester_itself(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One link fails in each run: three of them ask for it, the fourth does not, and is the last."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    words = f'$(echo "$@" | sed "s,/srv/,{tmp_path}/,g")'
    (tmp_path / "harvester").write_text(f"#!/bin/sh\nexec {sys.executable} -m harvester {words}\n")
    (tmp_path / "harvester").chmod(0o755)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "links.txt").write_text("bit.ly/ok\nbit.ly/503\n")
    with scripted() as bitly:
        monkeypatch.setenv("HARVESTER_BASE_URL", bitly.url)
        monkeypatch.setenv("HARVESTER_ATTEMPTS", "1")
        for number in range(1, 4):
            with pytest.raises(Repeated, match="exit code 3"):
                dag.task(DAY)
            assert len(bitly.visits("503")) == number
        with pytest.raises(Failed, match="_failures"):
            dag.task(DAY)
        assert len(bitly.visits("503")) == 3


def test_a_day_without_links_is_done_in_the_recipes(
    dag: SimpleNamespace, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cron it does not keep the days after it from being harvested."""
    url, cron = serve().url, Cron(tmp_path)
    words = f'$(echo "$@" | sed "s,/srv/,{tmp_path}/,g")'
    cron.add("harvester", f"#!/bin/sh\nexec {sys.executable} -m harvester {words}\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "links.txt").touch()
    (cron.lake / "dt=2026-11-20").mkdir(parents=True)
    assert cron.run(HARVESTER_BASE_URL=url, LIST=str(tmp_path / "lists" / "links.txt")) == 0
    for day in ("2026-11-20", DAY):
        assert (cron.lake / f"dt={day}" / "_SUCCESS").exists()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HARVESTER_BASE_URL", url)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    dag.task(DAY)
    assert (tmp_path / "lake" / "referrers" / f"dt={DAY}" / "_SUCCESS").exists()


def test_the_airflow_tasks_tries_outlast_a_year(dag: SimpleNamespace) -> None:
    wait, waited = dag.options["retry_delay"], dag.options["retry_delay"] * 0
    for _ in range(dag.options["retries"]):
        waited += wait
        wait = min(wait * 2, dag.options["max_retry_delay"])
    assert waited.days > 365
    # Airflow doubles the wait with each try, as a float.
    assert wait.total_seconds() * 2.0 ** dag.options["retries"] < float("inf")


def test_the_airflow_task_ends_its_command_in_good_order(
    dag: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow ends a task by an exception in it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    os.mkfifo(tmp_path / "started")
    (tmp_path / "harvester").write_text(
        f"""#!{sys.executable}
import json, pathlib, signal, sys
def end(number, frame):
    pathlib.Path({str(tmp_path / "ended")!r}).write_text(json.dumps(number))
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
open({str(tmp_path / "started")!r}, "w").close()
signal.pause()
"""
    )
    (tmp_path / "harvester").chmod(0o755)

    class Ended(Exception):
        pass

    def wait(process: Any, timeout: float | None = None) -> int:
        if timeout is None:
            with (tmp_path / "started").open():
                raise Ended
        found: int = real_wait(process, timeout)
        return found

    real_wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(Ended):
        dag.task(DAY)
    assert json.loads((tmp_path / "ended").read_text()) == 15
