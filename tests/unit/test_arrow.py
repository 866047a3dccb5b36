"""What was published, read as an Arrow table."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

import harvester
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.rows.encode import Format
from harvester.rows.row import RowBuilder
from tests.conftest import Served
from tests.support.commands import ROOT, TOKEN, environment
from tests.support.output_checks import expected_metrics, rows

QUERY = ("facet", "size", "unit", "units", "unit_reference")
NAMES = [f"bit.ly/{i}" for i in range(60)]


async def harvested(out: Path, served: Served, **options: Any) -> Path:
    given: Any = {"token": TOKEN, "base_url": served.url, "per_minute": 0, "per_hour": 0, "per_month": 0, **options}
    await harvester.harvest(NAMES, out=out, **given)
    return out


def with_moments(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its moments as Arrow gives them."""
    return row | {name: datetime.fromisoformat(row[name]) for name in ("unit_reference", "fetched_at")}


@pytest.mark.parametrize("name", ["out", "out.ndjson", "OUT.JSONL"])
async def test_a_table_has_every_row_as_it_is_published(
    tmp_path: Path, serve: Callable[..., Served], name: str
) -> None:
    out = await harvested(tmp_path / name, serve(), part_rows=25)
    table = harvester.read(out)
    assert table.to_pylist() == [with_moments(row) for row in rows(out)]
    assert table.num_rows == 60
    assert harvester.read(str(out)) == table


def test_the_columns_are_those_of_a_row_in_its_order(tmp_path: Path) -> None:
    made = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), "0a")
    answer = Answer([{"value": "direct", "clicks": 2}], 2, 30, "2026-11-23T06:00:00Z")
    (tmp_path / "part-0a-00000.ndjson").write_bytes(
        made.row("bit.ly/a", bytes(16), answer, "2026-11-23T06:00:01Z") + b"\n"
    )
    table = harvester.read(tmp_path)
    assert table.column_names == list(orjson.loads((tmp_path / "part-0a-00000.ndjson").read_bytes()))
    metric = table.schema.field("metrics").type.value_type
    assert [(field.name, field.type) for field in metric] == [("value", pa.string()), ("clicks", pa.int64())]
    assert table.schema.field("fetched_at").type == pa.timestamp("ms", "UTC")
    assert table.schema.field("truncated").type == pa.bool_()


def line(**changes: Any) -> bytes:
    row = {
        "record_id": "00", "run_id": "0a", "bitlink": "bit.ly/a", "facet": "referrers", "unit": "day", "units": -1,
        "unit_reference": "2026-11-23T06:00:00Z", "size": 50, "fetched_at": "2026-11-23T06:00:01Z",
        "units_returned": None, "unit_reference_returned": None, "clicks_listed": 0, "truncated": False, "metrics": [],
        "schema_version": 1,
    }  # fmt: skip
    return orjson.dumps({**row, **changes}) + b"\n"


def test_rows_without_metrics_have_the_same_schema(tmp_path: Path) -> None:
    (tmp_path / "part-0a-00000.ndjson").write_bytes(line() * 3)
    (tmp_path / "part-0a-00001.ndjson").write_bytes(
        line(metrics=[{"value": "d", "clicks": 2**63 - 1}], units_returned=30)
    )
    table = harvester.read(tmp_path)
    assert table["metrics"].to_pylist() == [[], [], [], [{"value": "d", "clicks": 2**63 - 1}]]
    assert table["units_returned"].to_pylist() == [None, None, None, 30]


@pytest.mark.parametrize("name", ["out", "out.ndjson"])
async def test_an_output_without_rows_is_an_empty_table(
    tmp_path: Path, serve: Callable[..., Served], name: str
) -> None:
    given: Any = {"token": TOKEN, "base_url": serve().url}
    await harvester.harvest(["bit.ly/missing"], out=tmp_path / name, **given)
    table = harvester.read(tmp_path / name)
    assert table.num_rows == 0
    assert table.schema == harvester.read(await harvested(tmp_path / "full", serve())).schema


def test_compressed_parts_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "part-0a-00000.ndjson.gz").write_bytes(gzip.compress(line(bitlink="bit.ly/gz"), mtime=0))
    (tmp_path / "part-0a-00001.ndjson.zst").write_bytes(pa.compress(line(bitlink="bit.ly/zst"), "zstd", asbytes=True))
    (tmp_path / "part-0a-00002.ndjson").write_bytes(line(bitlink="bit.ly/plain"))
    found = harvester.read(tmp_path)["bitlink"].to_pylist()
    assert found == ["bit.ly/gz", "bit.ly/zst", "bit.ly/plain"]


def test_only_what_is_published_is_read(tmp_path: Path) -> None:
    (tmp_path / "part-0a-00000.ndjson").write_bytes(line())
    for name in (".part-0a-00001.tmp", "_failures.ndjson", "part-0a-00000.ndjson.bak", "copy-of-part.ndjson"):
        (tmp_path / name).write_bytes(b"no row")
    assert harvester.read(tmp_path).num_rows == 1


async def test_a_growing_file_is_read_up_to_what_the_manifest_says(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    out = await harvested(tmp_path / "out.ndjson", serve())
    with out.open("ab") as stream:
        stream.write(b'{"torn')
    assert harvester.read(out).num_rows == 60
    os.truncate(out, 100)
    with pytest.raises(harvester.OutputError, match="it was truncated"):
        harvester.read(out)
    out.unlink()
    with pytest.raises(harvester.OutputError, match="is missing"):
        harvester.read(out)


def test_a_row_of_megabytes_is_read(tmp_path: Path) -> None:
    metrics = [{"value": f"https://{i}.example/" + "x" * 100, "clicks": i} for i in range(60_000)]
    (tmp_path / "part-0a-00000.ndjson").write_bytes(line(metrics=metrics) + line())
    assert [len(found) for found in harvester.read(tmp_path, columns=["metrics"])["metrics"].to_pylist()] == [60_000, 0]


async def test_some_columns_are_enough(tmp_path: Path, serve: Callable[..., Served]) -> None:
    out = await harvested(tmp_path / "out", serve())
    query = harvester.read(out, columns=["bitlink", *QUERY]).to_pylist()
    table = harvester.read(out, columns=["bitlink", "metrics"])
    assert table.column_names == ["bitlink", "metrics"]
    assert {row["bitlink"]: row["metrics"] for row in table.to_pylist()} == {
        row["bitlink"]: expected_metrics(row) for row in query
    }
    with pytest.raises(harvester.UsageError, match="unknown column clickz; the columns are record_id"):
        harvester.read(out, columns=["clickz"])


async def test_a_data_frame_is_made_of_it(tmp_path: Path, serve: Callable[..., Served]) -> None:
    frame = harvester.read(await harvested(tmp_path / "out", serve())).to_pandas()
    metrics = frame.explode("metrics").dropna(subset="metrics")["metrics"]
    clicks = sum(metric["clicks"] for metric in metrics)
    assert clicks == frame["clicks_listed"].sum() > 0


def test_a_folder_that_harvester_has_not_written_is_refused(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.ndjson"):
        with pytest.raises(harvester.UsageError):
            harvester.read(out)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"parts": [{}]}', '{"parts": 5}'])
def test_a_damaged_manifest_is_an_error_that_says_what_to_do(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "rows.ndjson.harvester").mkdir()
    (tmp_path / "rows.ndjson.harvester/_manifest.json").write_text(manifest)
    with pytest.raises(harvester.OutputError, match="run the harvest again"):
        harvester.read(tmp_path / "rows.ndjson")


@pytest.mark.parametrize("out", [None, 5])
def test_a_value_that_is_not_a_path_is_refused(out: Any) -> None:
    with pytest.raises(harvester.UsageError, match="must be a path"):
        harvester.read(out)


def test_columns_that_are_not_a_list_are_explained(tmp_path: Path) -> None:
    with pytest.raises(harvester.UsageError, match=r'such as \["bitlink"\]'):
        harvester.read(tmp_path, columns="bitlink")


async def test_each_flat_row_has_the_key_of_its_call(tmp_path: Path, serve: Callable[..., Served]) -> None:
    nested = await harvested(tmp_path / "nested", serve(), unit_reference="2026-11-23")
    calls = {row["bitlink"]: row["record_id"] for row in harvester.read(nested).to_pylist()}
    for form in Format:
        flat = harvester.read(
            await harvested(tmp_path / form.name, serve(), unit_reference="2026-11-23", shape="flat", format=form)
        )
        assert {row["bitlink"]: row["call_id"] for row in flat.to_pylist()} == calls


def test_a_damaged_part_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "part-0a-00000.ndjson").write_bytes(line() + b'{"bitlink": 5}\n')
    with pytest.raises(harvester.OutputError, match="not a row"):
        harvester.read(tmp_path)


def test_a_damaged_compressed_part_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "part-0a-00000.ndjson.gz").write_bytes(gzip.compress(line() * 1000)[:-30])
    with pytest.raises(harvester.OutputError):
        harvester.read(tmp_path)


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['pyarrow'] = None; import harvester; harvester.read(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert "UsageError: harvester.read needs pyarrow: pip install 'bitly-harvester[arrow]'" in done.stderr
