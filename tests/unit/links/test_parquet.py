"""Parquet lists."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from harvester.errors import InputBroken, UsageError
from harvester.links.columns import LINE_LIMIT
from harvester.links.files import resolve_lists
from tests.unit.links.lists import places, read_list, read_until_broken, reasons, write, write_parquet

if sys.version_info >= (3, 14):
    pass
else:
    pass


# --- Parquet ------------------------------------------------------------------------------------------------------


def test_a_parquet_list_is_read_by_its_column_and_a_line_is_a_row(tmp_path: Path) -> None:
    columns = {"n": [1, 2, 3, 4], "link": ["bit.ly/a", None, " ", "nonsense"], "a.b": ["bit.ly/d"] * 4}
    path = write_parquet(tmp_path, columns)
    batch = read_list(path)
    assert (batch.lines, batch.headers, batch.blank, places(batch)) == (4, 0, 2, [("bit.ly/a", 1)])
    assert [(line.text, line.file, line.line) for line in batch.invalid] == [("nonsense", path, 4)]
    assert len(read_list(path, "a.b").links) == 4


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_any_kind_of_text_in_parquet_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = write_parquet(tmp_path, {"link": pa.array(["bit.ly/a", None, "bit.ly/é"]).cast(kind)})
    assert places(read_list(path)) == [("bit.ly/a", 1), ("bit.ly/é", 3)]


def test_rows_of_an_encoded_column_are_numbered_over_batches_and_groups(tmp_path: Path) -> None:
    texts = [None if n % 7 == 0 else f"bit.ly/{n % 5000}" for n in range(12_345)]
    path = str(tmp_path / "links.parquet")
    parquet.write_table(pa.table({"link": pa.array(texts).dictionary_encode()}), path, row_group_size=5000)
    batch = read_list(path)
    assert (batch.lines, batch.blank) == (12_345, 1764)
    assert places(batch) == [(text, number) for number, text in enumerate(texts, 1) if text]


def test_bytes_of_parquet_that_are_no_text_are_an_invalid_line(tmp_path: Path) -> None:
    batch = read_list(write_parquet(tmp_path, {"link": [b"bit.ly/\xff", b"bit.ly/a", b"x" * (LINE_LIMIT + 1)]}))
    assert (reasons(batch), places(batch)) == ([(1, "not"), (3, "longer")], [("bit.ly/a", 2)])


@pytest.mark.parametrize("values", [[1, 2], [[b"bit.ly/a"]], [{"link": "bit.ly/a"}]])
def test_a_column_of_parquet_that_is_not_text_is_refused(tmp_path: Path, values: list[object]) -> None:
    with pytest.raises(UsageError, match=r"column link has the type .*, not text"):
        resolve_lists([write_parquet(tmp_path, {"link": values})])


def test_a_column_that_is_not_in_parquet_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, {"title": ["x"], "url": ["bit.ly/a"]})
    with pytest.raises(UsageError, match="found: title, url"):
        resolve_lists([path])
    with pytest.raises(UsageError, match="no column is called 2"):
        resolve_lists([path], "2")


@pytest.mark.parametrize(
    ("content", "advice"),
    [(b"bit.ly/a\n", "--list-format (lines, csv"), (b"", "--list-format"), (b"\x1f\x8b\x08\0", "unpack it first")],
)
def test_a_file_that_is_called_parquet_and_is_none_says_what_to_do(tmp_path: Path, content: bytes, advice: str) -> None:
    with pytest.raises(InputBroken, match=r"links\.parquet: ") as refused:
        resolve_lists([write(tmp_path, content, "links.parquet")])
    assert advice in str(refused.value)
    assert len(read_list(write(tmp_path, b"bit.ly/a\n", "links.parquet"), list_format="lines").links) == 1


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"bit.ly/a\n", lambda w: w[:-9], lambda w: w[:30] + w[40:]]
)
def test_a_damaged_parquet_file_is_an_explained_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = Path(write_parquet(tmp_path, {"link": ["bit.ly/a"]})).read_bytes()
    with pytest.raises(InputBroken, match=r"bad\.parquet: cannot be read from line 1 on"):
        resolve_lists([write(tmp_path, damage(whole), "bad.parquet")])


def test_parquet_that_breaks_off_gives_what_came_before(tmp_path: Path) -> None:
    path = str(tmp_path / "links.parquet")
    table = pa.table({"link": [f"bit.ly/{n}" for n in range(5000)]})
    parquet.write_table(table, path, row_group_size=1000, compression="none", use_dictionary=False)
    start = parquet.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff" * 16)
    before, broken = read_until_broken(path)
    assert places(before) == [(f"bit.ly/{n}", n + 1) for n in range(3000)]
    assert "past line 3000" in str(broken)


def test_parquet_from_a_pipe_is_read_through_a_copy(tmp_path: Path) -> None:
    whole = Path(write_parquet(tmp_path, {"link": ["bit.ly/a"]})).read_bytes()
    end, begin = os.pipe()
    try:
        os.write(begin, whole)
        os.close(begin)
        assert places(read_list(f"/dev/fd/{end}", list_format="parquet")) == [("bit.ly/a", 1)]
    finally:
        os.close(end)


# --- lists that unpack to gigabytes -------------------------------------------------------------------------------

_MIB = 1 << 20
_PEAK_GROWTH = """
import sys
from harvester.errors import InputBroken
from harvester.links.files import resolve_lists, read

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    before, lines, said = peak(), 0, ""
    try:
        lines = sum(batch.lines for batch in read(resolve_lists([path])))
    except InputBroken as error:
        said = str(error)
print(peak() - before, lines, said)
"""
"""Reads two lists, and prints how much more memory the second needed than everything before."""
_DELTA = {"use_dictionary": False, "column_encoding": {"link": "DELTA_BYTE_ARRAY"}}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("value", "count", "how", "refused"),
    [
        pytest.param(20 * _MIB, 12, {}, True, id="a dictionary of large values"),
        pytest.param(_MIB, 250, {"write_batch_size": 1}, False, id="a dictionary of one value"),
        pytest.param(_MIB, 250, {"use_dictionary": False, "write_batch_size": 1}, False, id="many pages in a batch"),
        pytest.param(9 * _MIB, 25, {"use_dictionary": False, "write_batch_size": 25}, True, id="a large page"),
        pytest.param(_MIB, 250, _DELTA, False, id="values that begin alike"),
    ],
)
def test_what_a_small_parquet_list_unpacks_to_is_bounded(
    tmp_path: Path, value: int, count: int, how: dict[str, Any], refused: bool
) -> None:
    one = write_parquet(tmp_path, {"link": ["bit.ly/a"]})
    bomb = tmp_path / "bomb.parquet"
    table = pa.table({"link": pa.array(["x" * value] * count)})
    parquet.write_table(table, bomb, compression="zstd", write_statistics=False, **how)
    assert bomb.stat().st_size < 100_000
    command = [sys.executable, "-c", _PEAK_GROWTH, one, str(bomb)]
    growth, lines, said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split(" ", 2)
    assert int(growth) < 150 * 10**6
    assert (int(lines), "a page of it has" in said) == ((0, True) if refused else (count, False))


def test_long_values_of_a_dictionary_are_invalid_lines(tmp_path: Path) -> None:
    texts = pa.array(["x" * _MIB, "bit.ly/a", None, "x" * _MIB]).dictionary_encode()
    batch = read_list(write_parquet(tmp_path, {"link": texts}))
    assert (reasons(batch), places(batch), batch.blank) == ([(1, "longer"), (4, "longer")], [("bit.ly/a", 2)], 1)


def test_a_parquet_list_with_a_huge_footer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.parquet"
    parquet.write_table(pa.table({"link": ["bit.ly/a"]}).replace_schema_metadata({"": "x" * 5 * _MIB}), path)
    with pytest.raises(InputBroken, match="its footer has"):
        resolve_lists([str(path)])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_page_headers_with_statistics_are_read(tmp_path: Path, version: str) -> None:
    path = tmp_path / "links.parquet"
    texts = [f"bit.ly/{'x' * 30_000}{n}" for n in range(50)]
    how = {"data_page_version": version, "use_dictionary": False, "write_batch_size": 1, "data_page_size": 1000}
    parquet.write_table(pa.table({"link": texts, "n": range(50)}), path, write_page_index=True, **how)
    assert len(read_list(str(path)).invalid) == 50  # longer than a bitlink
    parquet.write_table(pa.table({"link": [f"bit.ly/{n}" for n in range(5000)]}), path, **how)
    assert len(read_list(str(path)).links) == 5000


def test_a_page_header_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, {"link": ["bit.ly/a"]})
    content = bytearray(Path(path).read_bytes())
    content[4:24] = b"\xff" * 20
    Path(path).write_bytes(content)
    with pytest.raises(InputBroken, match="cannot be read from line 1 on"):
        resolve_lists([path])
