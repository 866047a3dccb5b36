"""Reading parts that are damaged, or none at all: what can be read is read, all else has a reason."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.rows.decode import BadRow, HashingReader, UnreadableFile, rows_of
from harvester.rows.encode import Format, HashingWriter, PartFormat, write_part
from harvester.rows.row import RowBuilder
from harvester.rows.schema import Shape

FORMS = [PartFormat(format_, shape, "referrers") for format_ in Format for shape in Shape]
IDS = [f"{form.format}-{form.shape}" for form in FORMS]
_ROWS = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), "0a")


def part(form: PartFormat) -> bytes:
    stream = io.BytesIO()
    metrics = [{"value": "direct", "clicks": 2}, {"value": "é\u2028", "clicks": 1}]
    answers = [Answer(metrics[: number % 3], number % 3, None, None) for number in range(20)]
    lines = [
        _ROWS.row(f"bit.ly/{number}", bytes(16), answer, "2026-11-23T06:00:01Z", None)
        for number, answer in enumerate(answers)
    ]
    write_part([line + b"\n" for line in lines], HashingWriter(stream), form)
    return stream.getvalue()


def check(content: bytes, form: PartFormat) -> None:
    """Read a file up to where it cannot be read further. Each row that is bad has a reason, and so has the end."""
    reasons: list[str] = []
    try:
        for expected, (number, row) in enumerate(rows_of(HashingReader(io.BytesIO(content)), form), 1):
            assert number == expected
            reasons += [row] if isinstance(row, BadRow) else []
    except UnreadableFile as error:
        reasons.append(str(error))
    assert all(reasons)


@pytest.mark.parametrize("form", FORMS, ids=IDS)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_rows_or_have_a_reason(form: PartFormat, content: bytes) -> None:
    check(content, form)


@pytest.mark.parametrize("form", FORMS, ids=IDS)
@given(data=st.data())
def test_a_damaged_part_is_read_up_to_a_reason(form: PartFormat, data: st.DataObject) -> None:
    content = bytearray(part(form))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.none() | st.integers(0, len(content)))
    check(bytes(content[:end]), form)
