"""Encoding parts."""

import io

import orjson

from harvester.rows.encode import _BLOCK_BYTES, Format, HashingWriter, PartFormat, write_part
from harvester.rows.schema import Shape


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
