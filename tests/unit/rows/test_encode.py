"""Encoding parts."""

import io
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.progress import Carried
from harvester.rows.decode import HashingReader, rows_of
from harvester.rows.encode import (
    _BLOCK_BYTES,
    Format,
    HashingWriter,
    PartFormat,
    encoded_size,
    write_part,
)
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape

MADE = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), "0a")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.text('"{}\\\\,:[] a\u2028', max_size=8)
CARRIED = st.none() | st.dictionaries(TEXTS, st.none() | TEXTS, max_size=3)


class _Sizes(io.BytesIO):
    """Remembers how much was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, data: object) -> int:
        self.sizes.append(memoryview(data).nbytes)  # type: ignore[arg-type]
        return super().write(data)  # type: ignore[arg-type]


def test_the_flat_lines_of_one_long_answer_are_encoded_in_bounded_blocks() -> None:
    named = {"record_id": "0" * 32, "bitlink": "bit.ly/a", "facet": "referrers", "unit": "day", "units": -1}
    metrics = [{"value": str(number), "clicks": 1} for number in range(20_000)]
    row = {**named, "unit_reference": "2026-11-23T06:00:00Z", "metrics": metrics, "schema_version": 1}
    stream = _Sizes()
    counts = write_part(
        [orjson.dumps(row) + b"\n"], HashingWriter(stream), PartFormat(Format.NDJSON, Shape.FLAT, "referrers")
    )
    assert (counts.rows, counts.calls) == (20_000, 1)
    longest_line = max(map(len, stream.getvalue().splitlines(keepends=True)))
    assert len(stream.sizes) > 1
    assert max(stream.sizes) < _BLOCK_BYTES + longest_line


def row_with(carried: Carried, metrics: list[Any]) -> bytes:
    clicks = sum(metric["clicks"] for metric in metrics)
    return MADE.row("bit.ly/a", bytes(16), Answer(metrics, clicks, None, None), "2026-11-23T06:00:01Z", carried) + b"\n"


def read_back(lines: list[bytes], made: PartFormat) -> list[Any]:
    stream = io.BytesIO()
    write_part(lines, HashingWriter(stream), made)
    stream.seek(0)
    return [row for _, row in rows_of(HashingReader(stream), made)]


@given(st.lists(CARRIED, min_size=1, max_size=3))
@example([{"metrics": 'x},"metrics":[', '},"metrics":[': "}", "carried": '{"'}, None])
@example([{"a": "\\"}, {'"\\': None}, {}])
def test_parquet_has_what_rows_carry_whatever_it_looks_like(carried: list[Carried]) -> None:
    lines = [row_with(each, [{"value": "d", "clicks": 1}, {"value": "e", "clicks": 2}]) for each in carried]
    for shape in Shape:
        plain, parquet = (PartFormat(form, shape, "referrers") for form in (Format.NDJSON, Format.PARQUET))
        assert read_back(lines, parquet) == read_back(lines, plain)


@pytest.mark.parametrize("carried", [None, {}, {"clicks": "1", "metrics": "2", "value": None}])
def test_the_size_of_flat_rows_knows_what_they_carry(carried: Carried) -> None:
    line = row_with(carried, [{"value": "direct", "clicks": 1}] * 3)
    stream = io.BytesIO()
    counts = write_part([line], HashingWriter(stream), PartFormat(Format.NDJSON, Shape.FLAT, "referrers"))
    expected = encoded_size(line[:-1], Shape.FLAT)
    assert counts.rows == expected.rows == 3
    assert abs(expected.bytes - len(stream.getvalue())) < 60 * counts.rows
