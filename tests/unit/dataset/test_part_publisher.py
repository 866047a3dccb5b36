"""A part's bytes: every form gives the rows back, the same rows give the same bytes; and when a part ends."""

import errno
import gc
import hashlib
import io
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.dataset import dataset as stores
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import Journal, PartLimits, segment_path
from harvester.dataset.opening import open_dataset
from harvester.errors import OutputError, UsageError
from harvester.rows.call import CallState
from harvester.rows.decode import HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import (
    Format,
    HashingWriter,
    PartFormat,
    RequestedPartFormat,
    encoded_size,
    flattened,
    write_part,
)
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape, columns_of
from harvester.storage.folders import resolve
from tests.conftest import Served
from tests.crash.test_kill_at_every_operation import published
from tests.support.commands import ROOT, environment
from tests.support.committing import keep
from tests.support.in_process import harvest
from tests.support.output_checks import check_reconciled, manifest

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
MAKER = RowBuilder(QUERY, "9a0822b22f12")
MAKINGS = [PartFormat(form, shape, "referrers") for form in Format for shape in Shape]
FETCHED_AT = "2026-11-23T07:08:09Z"

# Often with what a flat record_id is made of: U+001F, which joins, and numbers.
VALUES = st.text(st.sampled_from("ab12\x1f") | st.characters(exclude_categories=["Cs"]), max_size=20)
METRICS = st.lists(st.fixed_dictionaries({"value": VALUES, "clicks": st.integers(0, 2**58)}), max_size=5)


def line(name: str, metrics: list[dict[str, Any]], units: int | None = 30, reference: str | None = None) -> bytes:
    bitlink = f"bit.ly/{name}"
    answer = Answer(metrics, sum(metric["clicks"] for metric in metrics), units, reference)
    return MAKER.row(bitlink, MAKER.key(bitlink), answer, FETCHED_AT) + b"\n"


NAMES = st.text("abc", min_size=1, max_size=3)
LINES = st.lists(
    st.builds(line, NAMES, METRICS, st.none() | st.integers(1, 9), st.none() | VALUES), min_size=1, max_size=6
)


def poured(rows: list[bytes], making: PartFormat) -> bytes:
    target = io.BytesIO()
    measured = HashingWriter(target)
    counts = write_part(rows, measured, making)
    data = target.getvalue()
    assert (measured.size, measured.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert counts.calls == len(rows)
    assert counts.rows == len(read_back(data, making))
    return data


def read_back(data: bytes, making: PartFormat) -> list[Any]:
    return [row for _, row in rows_of(HashingReader(io.BytesIO(data)), making)]


def expected(rows: list[bytes], shape: Shape) -> list[Any]:
    lines = rows if shape is Shape.NESTED else [flat for row in rows for flat in flattened(row)]
    return [orjson.loads(each) for each in lines]


# --- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("making", MAKINGS, ids="-".join)
@given(rows=LINES)
@settings(max_examples=40, deadline=None)
def test_every_format_and_shape_gives_the_rows_back_and_the_same_bytes_each_time(
    rows: list[bytes], making: PartFormat
) -> None:
    data = poured(rows, making)
    assert read_back(data, making) == expected(rows, making.shape)
    assert poured(rows, making) == data


@pytest.mark.parametrize("making", MAKINGS, ids="-".join)
def test_rows_of_megabytes_are_given_back(making: PartFormat) -> None:
    long = [{"value": f"https://{number}.example/" + "ü" * 200, "clicks": number} for number in range(10_000)]
    rows = [line("a", []), line("b", long), line("c", [{"value": "x" * 4_000_000, "clicks": 1}]), line("d", [])]
    assert read_back(poured(rows, making), making) == expected(rows, making.shape)


@pytest.mark.parametrize("making", MAKINGS, ids="-".join)
def test_a_link_without_referrers_has_a_row(making: PartFormat) -> None:
    (row,) = read_back(poured([line("none", [])], making), making)
    if making.shape is Shape.NESTED:
        assert row["metrics"] == []
    else:
        assert (row["value"], row["clicks"]) == (None, None)
    assert (row["bitlink"], row["clicks_listed"], row["truncated"]) == ("bit.ly/none", 0, False)
    assert list(row) == [column.name for column in columns_of(making.shape, making.facet)]


def test_parquet_is_written_in_row_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvester.rows.encode._BLOCK_BYTES", 1000)
    monkeypatch.setattr("harvester.rows.encode._GROUP_BYTES", 10_000)
    making, rows = (
        PartFormat(Format.PARQUET, Shape.NESTED, "referrers"),
        [line(str(number), []) for number in range(200)],
    )
    data = poured(rows, making)
    assert parquet.ParquetFile(io.BytesIO(data)).num_row_groups > 3
    assert read_back(data, making) == expected(rows, Shape.NESTED)


@pytest.mark.parametrize("making", MAKINGS, ids="-".join)
def test_nothing_is_written_any_more_once_writing_has_failed(making: PartFormat) -> None:
    """A compressor that nobody closed writes its end when it is collected: Python 3.13 prints how that fails."""

    class Full(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    disk = Full()
    with pytest.raises(OSError, match="No space left"):
        write_part([line("a", [])], HashingWriter(disk), making)
    gc.collect()
    assert disk.writes == 1


def test_a_flipped_bit_in_a_zstandard_part_is_seen() -> None:
    data = bytearray(poured([line("a", [])], PartFormat(Format.NDJSON_ZST, Shape.NESTED, "referrers")))
    data[-1] ^= 1  # of the checksum
    with pytest.raises(UnreadableFile, match="checksum"):
        read_back(bytes(data), PartFormat(Format.NDJSON_ZST, Shape.NESTED, "referrers"))


# --- flat record_ids -----------------------------------------------------------------------------------------------


def digest(*fields: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, fields)).encode()).hexdigest()[:32]


def test_a_flat_record_id_is_the_calls_with_the_number_and_the_value() -> None:
    call = ("bit.ly/x", "referrers", "day", -1, "2026-11-23T06:00:00Z")
    metrics = [{"value": value, "clicks": 1} for value in ("direct", "t.co", "direct", "direct")]
    found = [orjson.loads(flat) for flat in flattened(line("x", metrics))]
    assert [row["record_id"] for row in found] == [
        digest(*call, 1, "direct"),
        digest(*call, 1, "t.co"),
        digest(*call, 2, "direct"),
        digest(*call, 3, "direct"),
    ]
    assert {row["call_id"] for row in found} == {digest(*call), orjson.loads(line("x", metrics))["record_id"]}
    (empty,) = flattened(line("x", []))
    assert orjson.loads(empty)["call_id"] == digest(*call)
    assert orjson.loads(empty)["record_id"] == digest(*call, 0, "")


@given(METRICS)
@settings(max_examples=100, deadline=None)
def test_flat_record_ids_are_unique_and_differ_from_the_calls(metrics: list[dict[str, Any]]) -> None:
    row = line("x", metrics)
    found = [orjson.loads(flat) for flat in flattened(row)]
    assert len({flat["record_id"] for flat in found} | {orjson.loads(row)["record_id"]}) == len(found) + 1
    listed = [{"value": flat["value"], "clicks": flat["clicks"]} for flat in found]
    assert listed == (metrics or [{"value": None, "clicks": None}])


# --- what a dataset is begun with ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "module", "extra"), [("ndjson.zst", "backports", "zstd"), ("parquet", "pyarrow", "parquet")]
)
def test_a_missing_library_is_named_before_anything_is_created(
    tmp_path: Path, form: str, module: str, extra: str
) -> None:
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    hidden = f"sys.modules[{module!r}] = sys.modules['compression.zstd'] = None"
    command = f"import sys; {hidden}; from harvester.cli.main import main; main(sys.argv[1:])"
    arguments = ("run", "links.txt", "--out", "lake/out", "--format", form, "--base-url", "http://127.0.0.1:9/v4")
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        env={**environment(), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"--format {form} needs a library: pip install 'bitly-harvester[{extra}]'" in done.stderr
    assert not list(tmp_path.glob("lake/**/part-*"))
    assert not (tmp_path / "lake" / "out").exists()


@pytest.mark.parametrize("asked", [RequestedPartFormat(Format.NDJSON_GZ), RequestedPartFormat(shape=Shape.FLAT)])
def test_only_a_folder_has_parts_of_another_form(asked: RequestedPartFormat) -> None:
    with pytest.raises(UsageError, match="only a folder has parts"):
        asked.for_new("referrers", folder=False)


def test_what_is_not_asked_for_is_what_the_dataset_has() -> None:
    facts = {"format": "parquet", "shape": "flat"}
    assert RequestedPartFormat().for_begun(facts, "referrers", "out") == PartFormat(
        Format.PARQUET, Shape.FLAT, "referrers"
    )
    assert RequestedPartFormat(Format.PARQUET, Shape.FLAT).for_begun(facts, "referrers", "out") == PartFormat(
        Format.PARQUET, Shape.FLAT, "referrers"
    )
    with pytest.raises(UsageError, match="started with --format parquet --shape flat"):
        RequestedPartFormat(Format.NDJSON_GZ).for_begun(facts, "referrers", "out")


# --- the same folder published again -------------------------------------------------------------------------------


def settle(store: Dataset, *names: str, metrics: int = 1) -> None:
    for name in names:
        row = line(name, [{"value": "direct", "clicks": 1}] * metrics, 30)
        key = MAKER.key(f"bit.ly/{name}")
        store.record(key, CallState.ROW, row[:-1].replace(b"9a0822b22f12", store.run_id.encode()), None)


def dataset(out: Path, making: PartFormat, policy: PartLimits | None = None) -> Any:
    chosen = policy or PartLimits(1000, 1_000_000)
    return open_dataset(
        resolve(str(out)), QUERY, chosen, list[str]().append, asked=RequestedPartFormat(making.format, making.shape)
    )


def publish(out: Path, making: PartFormat) -> dict[str, bytes]:
    with dataset(out, making) as store:
        store.end_part()
        keep(store)
    return published(out)


def committed(out: Path, making: PartFormat) -> None:
    """Leave a dataset with a committed journal, and nothing published."""
    with dataset(out, making) as store:
        settle(store, *(f"link-{number}" for number in range(100)))
        keep(store)


@pytest.mark.parametrize("making", MAKINGS, ids="-".join)
def test_identical_journals_are_published_as_identical_parts(tmp_path: Path, making: PartFormat) -> None:
    committed(tmp_path / "one", making)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = publish(tmp_path / "one", making)
    assert publish(tmp_path / "two", making) == first
    assert len(first) == 1


@pytest.mark.parametrize("making", MAKINGS, ids="-".join)
@pytest.mark.parametrize("killed_at", ["intend", "create_from_file", "seal"])
def test_a_part_that_a_crash_interrupted_is_published_with_the_same_name_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, making: PartFormat, killed_at: str
) -> None:
    committed(tmp_path / "whole", making)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    whole = publish(tmp_path / "whole", making)
    owner = "storage.storage.LocalStorage" if killed_at == "create_from_file" else "dataset.ledger.Ledger"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"harvester.{owner}.{killed_at}", die)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "killed", making)
    seen = published(tmp_path / "killed")
    assert seen == (whole if killed_at == "seal" else {})
    assert publish(tmp_path / "killed", making) == whole
    assert not list((tmp_path / "killed").glob(".part-*"))


# --- when a part ends ----------------------------------------------------------------------------------------------


class Clock:
    """Stands before the time module, with a wall clock that goes where it is told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


BEGAN = 1_795_417_200.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(BEGAN)
    monkeypatch.setattr(stores, "time", clock)
    monkeypatch.setattr("harvester.dataset.journal.time", clock)
    return clock


def test_a_part_ends_when_its_first_row_is_old(tmp_path: Path, clock: Clock) -> None:
    making = PartFormat(Format.NDJSON_GZ, Shape.NESTED, "referrers")
    with dataset(tmp_path / "out", making, PartLimits(1000, 1_000_000, 3600.0)) as store:
        clock.now += 10_000  # without a row nothing grows old
        keep(store)
        settle(store, "a")
        clock.now += 3599
        settle(store, "b")
        keep(store)
        assert published(tmp_path / "out") == {}
        clock.now += 1
        keep(store)
        (part,) = published(tmp_path / "out").values()
        assert [row["bitlink"] for row in read_back(part, making)] == ["bit.ly/a", "bit.ly/b"]
        clock.now += 10_000
        keep(store)
        assert len(published(tmp_path / "out")) == 1


def test_failures_alone_do_not_grow_old(tmp_path: Path, clock: Clock) -> None:
    with dataset(tmp_path / "out", MAKINGS[0], PartLimits(1000, 1_000_000, 3600.0)) as store:
        failure = store.rows.failure("refused", bitlink="bit.ly/no", file="f", line=1, status=404)
        store.record(MAKER.key("bit.ly/no"), CallState.REFUSED, failure, None)
        clock.now += 10_000
        keep(store)
        settle(store, "a")
        clock.now += 3599
        keep(store)
        assert published(tmp_path / "out") == {}


def test_a_resumed_part_is_as_old_as_its_first_row(tmp_path: Path, clock: Clock) -> None:
    """Its moment is the one in the row, which is when it was fetched."""
    fetched = 1_795_417_689.0  # FETCHED_AT
    clock.now = fetched
    with dataset(tmp_path / "out", MAKINGS[0]) as store:
        settle(store, "a", "b")
        keep(store)
    policy = PartLimits(1000, 1_000_000, 3600.0)
    clock.now = fetched + 3599
    with dataset(tmp_path / "out", MAKINGS[0], policy) as store:
        keep(store)
        assert published(tmp_path / "out") == {}
        clock.now = fetched + 3600
        keep(store)
        assert len(published(tmp_path / "out")) == 1


@given(NAMES, METRICS, VALUES)
@settings(max_examples=100, deadline=None)
def test_what_a_row_adds_to_a_part_is_known_before_the_part_is_made(
    name: str, metrics: list[dict[str, Any]], reference: str
) -> None:
    row = line(name, [*metrics, {"value": '"clicks":"metrics":[', "clicks": 1}], 30, reference)
    assert encoded_size(row[:-1], Shape.NESTED) == (1, len(row))
    flat = list(flattened(row))
    rows, size = encoded_size(row[:-1], Shape.FLAT)
    assert rows == len(flat)
    assert abs(size - sum(map(len, flat))) < 40 + 4 * rows


def test_a_flat_part_ends_by_its_own_rows(tmp_path: Path) -> None:
    making, policy = PartFormat(Format.NDJSON, Shape.FLAT, "referrers"), PartLimits(20, 1_000_000)
    with dataset(tmp_path / "out", making, policy) as store:
        settle(store, "a", metrics=8)
        settle(store, "b", metrics=0)
        keep(store)
    with dataset(tmp_path / "out", making, policy) as store:  # what it has is counted again
        settle(store, "c", metrics=10)
        keep(store)
        assert published(tmp_path / "out") == {}
        settle(store, "d", metrics=1)
        settle(store, "e", metrics=1)
        keep(store)
        (part,) = published(tmp_path / "out").values()
    assert part.count(b"\n") == 20


def test_a_part_that_is_full_by_a_resumed_runs_measure_waits_for_no_further_row(tmp_path: Path) -> None:
    with dataset(tmp_path / "out", MAKINGS[0], PartLimits(1000, 1_000_000)) as store:
        settle(store, "a", "b", "c")
        keep(store)
    with dataset(tmp_path / "out", MAKINGS[0], PartLimits(3, 1_000_000)) as store:
        keep(store)
        assert len(published(tmp_path / "out")) == 1


def journal(folder: Path, first_row_at: float | None, rows: int = 0, size: int = 0) -> Journal:
    made = Journal(str(folder), 0, rows=rows, row_bytes=size, first_row_at=first_row_at)
    made.close()
    return made


@pytest.mark.parametrize(
    ("age", "old"), [(0.0, False), (59.9, False), (60.0, True), (1e9, True), (-0.1, True), (-1e6, True)]
)
def test_a_part_is_old_by_its_age_or_when_the_clock_was_set_back(tmp_path: Path, age: float, old: bool) -> None:
    assert PartLimits(10, 100, 60.0).old(journal(tmp_path, BEGAN), BEGAN + age) is old


def test_a_part_without_rows_or_without_a_limit_is_never_old(tmp_path: Path) -> None:
    assert not PartLimits(10, 100, 60.0).old(journal(tmp_path, None), BEGAN)
    assert not PartLimits(10, 100, math.inf).old(journal(tmp_path, BEGAN), BEGAN + 1e12)


@pytest.mark.parametrize(("rows", "size", "full"), [(9, 99, False), (10, 0, True), (1, 100, True), (11, 101, True)])
def test_a_part_is_full_by_rows_or_bytes(tmp_path: Path, rows: int, size: int, full: bool) -> None:
    assert PartLimits(10, 100).full(journal(tmp_path, BEGAN, rows, size)) is full


def test_a_journal_of_failures_alone_ends_when_it_is_long(tmp_path: Path) -> None:
    Path(segment_path(str(tmp_path), 0)).write_bytes(b"x" * 400)
    assert PartLimits(10, 100).full(journal(tmp_path, None))
    Path(segment_path(str(tmp_path), 0)).write_bytes(b"x" * 399)
    assert not PartLimits(10, 100).full(journal(tmp_path, None))


# --- a disk that is full -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["part_publisher.write_part", "journal.Journal.following"])
async def test_a_run_whose_parts_cannot_be_made_says_so_and_buys_nothing_twice(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Without room for a part, or for the journal that follows it."""
    served, names = serve(), [str(number) for number in range(30)]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(f"harvester.dataset.{broken}", full)
        with pytest.raises(OutputError, match="No space left"):
            await harvest(served.url, tmp_path, names, parts=PartLimits(10, 1_000_000))
    told = manifest(tmp_path / "out")
    assert told["stopped"]["reason"] == "output"
    assert "No space left" in told["stopped"]["message"]
    assert told["ended"]
    assert (await harvest(served.url, tmp_path, names, parts=PartLimits(10, 1_000_000))).complete
    check_reconciled(tmp_path / "out", {f"bit.ly/{name}" for name in names})
    assert served.sandbox.answered.total() == len(names)
