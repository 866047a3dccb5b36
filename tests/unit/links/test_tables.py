"""Lists that are more than lines: zstd, CSV, TSV, NDJSON, Parquet, and the patterns that name them."""

import csv
import gzip
import io
import os
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from harvester.errors import InputBroken, UsageError
from harvester.links.batch import BATCH_LINES, Batch
from harvester.links.files import ListFormat, read, resolve_lists, spool
from harvester.links.lines import CHUNK, LINE_LIMIT
from harvester.links.tables import BadRecord, ColumnBatch, read_csv
from tests.unit.links.test_files import merged, peak_bytes, places, read_until_broken, write

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def taken(path: str, column: str | None = None, list_format: str | None = None) -> Batch:
    return merged(read(resolve_lists([path], column, list_format)))


def reasons(batch: Batch) -> list[tuple[int, str]]:
    """Line and first word of the reason of each invalid line."""
    return [(line.line, line.reason.partition(" ")[0]) for line in batch.invalid]


def write_parquet(folder: Path, columns: Mapping[str, object]) -> str:
    path = str(folder / "links.parquet")
    parquet.write_table(pa.table(columns), path)
    return path


def check_counts(batch: Batch) -> None:
    assert batch.lines == batch.blank + batch.comments + batch.headers + len(batch.invalid) + len(batch.links)


# --- zstd ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["links.txt", "links.zst", "links"])
def test_a_zstd_list_is_known_by_its_magic_not_by_its_name(tmp_path: Path, name: str) -> None:
    assert places(taken(write(tmp_path, zstd.compress(b"bit.ly/a\nbit.ly/b\n"), name))) == [
        ("bit.ly/a", 1),
        ("bit.ly/b", 2),
    ]


def test_what_is_called_zst_and_is_none_is_lines(tmp_path: Path) -> None:
    assert places(taken(write(tmp_path, b"bit.ly/a\n", "links.zst"))) == [("bit.ly/a", 1)]


def test_a_zstd_list_may_have_several_frames_and_some_without_data(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18\x02\0\0\0zz"
    frames = [skipped, zstd.compress(b"bit.ly/a\nbit."), zstd.compress(b""), skipped, zstd.compress(b"ly/b\nbit.ly/c")]
    assert places(taken(write(tmp_path, b"".join(frames)))) == [("bit.ly/a", 1), ("bit.ly/b", 2), ("bit.ly/c", 3)]


def test_a_torn_zstd_frame_gives_what_came_before_and_names_file_and_line(tmp_path: Path) -> None:
    content = b"".join(b"bit.ly/%d\n" % (n * 2654435761 % 2**32) for n in range(100_000))
    whole = zstd.compress(content)
    path = write(tmp_path, whole[: len(whole) // 2])
    before, broken = read_until_broken(path)
    assert 1000 < before.lines < 100_000
    assert path in str(broken)
    assert f"line {before.lines}" in str(broken)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[:5], id="cut in the header"),
        pytest.param(lambda whole: whole[:-1], id="cut at the end"),
        pytest.param(lambda whole: whole + b"garbage", id="garbage behind it"),
        pytest.param(lambda whole: whole + whole[:6], id="second frame cut"),
        pytest.param(lambda whole: whole[:20] + b"\xff" * 40 + whole[60:], id="damaged"),
    ],
)
def test_a_damaged_zstd_list_is_an_explained_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = zstd.compress(b"".join(b"bit.ly/%d\n" % (n * 2654435761 % 2**32) for n in range(100)))
    path = write(tmp_path, damage(whole))
    _, broken = read_until_broken(path)
    assert path in str(broken)
    assert "past line" in str(broken)


def test_a_zstd_frame_with_a_huge_window_is_refused_with_advice(tmp_path: Path) -> None:
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
    path = write(tmp_path, packer.compress(b"bit.ly/a\n" * 1000) + packer.flush())
    before, broken = read_until_broken(path)
    assert before.lines == 0
    assert "--long" in str(broken)


def test_a_zstd_list_in_utf_16_is_refused_with_advice(tmp_path: Path) -> None:
    _, broken = read_until_broken(write(tmp_path, zstd.compress("bit.ly/a\n".encode("utf-16"))))
    assert "iconv" in str(broken)


def test_a_zstd_bomb_of_a_line_takes_no_more_memory_than_a_few_chunks(tmp_path: Path) -> None:
    path = write(tmp_path, zstd.compress(b"x" * (200 * CHUNK) + b"\nbit.ly/a\n"))
    batch = taken(path)
    assert (reasons(batch), places(batch)) == ([(1, "longer")], [("bit.ly/a", 2)])
    [source] = resolve_lists([path])
    assert peak_bytes(source) < 20 * CHUNK


# --- pipes --------------------------------------------------------------------------------------------------------


def zstd_flushed(content: bytes) -> bytes:
    packer = zstd.ZstdCompressor()
    return packer.compress(content, packer.FLUSH_BLOCK)


def gzip_flushed(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize("packed", [bytes, zstd_flushed, gzip_flushed])
@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("lines", b"bit.ly/a\n"),
        ("csv", b'title,link\n"two\nlines",bit.ly/a\n"not yet'),
        ("tsv", b"title\tlink\nx\tbit.ly/a\n"),
        ("ndjson", b'{"link": "bit.ly/a"}\n'),
    ],
)
def test_what_a_pipe_has_brought_is_given_at_once(form: str, content: bytes, packed: Callable[[bytes], bytes]) -> None:
    end, begin = os.pipe()
    try:
        os.write(begin, packed(content))
        links = (
            link.bitlink for batch in read(resolve_lists([f"/dev/fd/{end}"], list_format=form)) for link in batch.links
        )
        assert next(links) == "bit.ly/a"  # it would wait for ever: the pipe stays open
    finally:
        os.close(begin)
        os.close(end)


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_a_csv_list_is_read_by_its_column_and_its_header_is_counted(tmp_path: Path) -> None:
    batch = taken(write(tmp_path, b"title,bitlink\nA,bit.ly/a\nB,https://bit.ly/b\n", "links.csv"))
    assert (batch.lines, batch.headers, places(batch)) == (3, 1, [("bit.ly/a", 2), ("bit.ly/b", 3)])


def test_csv_may_quote_and_a_records_line_is_where_it_begins(tmp_path: Path) -> None:
    content = b'title,link\r\n"a ""title"", quoted","bit.ly/a"\r\n"over\r\n\r\nthree lines",bit.ly/b\r\nC,bit.ly/c\r\n'
    batch = taken(write(tmp_path, content, "links.csv"))
    assert (batch.lines, places(batch)) == (4, [("bit.ly/a", 2), ("bit.ly/b", 3), ("bit.ly/c", 6)])


def test_csv_may_have_a_byte_order_mark_before_a_quoted_header(tmp_path: Path) -> None:
    assert places(taken(write(tmp_path, b'\xef\xbb\xbf"link",n\nbit.ly/a,1\n', "l.csv"))) == [("bit.ly/a", 2)]


@pytest.mark.parametrize(
    ("content", "column"),
    [
        ("id;link;share\n1;bit.ly/a;3,5\n", None),
        ("\ufeffid;link;share\r\n1;bit.ly/a;3,5\r\n", "link"),
        ('Name, first;link\n"Doe; J";bit.ly/a\n', None),
        ("id\tlink\n1\tbit.ly/a\n", "2"),
        ("id|link\n1|bit.ly/a\n", None),
        ('link,"a;b;c;d"\nbit.ly/a,1\n', "1"),
        ('"a;link;b",link\n1,bit.ly/a\n', None),
    ],
)
def test_the_first_line_of_csv_says_what_separates_cells(tmp_path: Path, content: str, column: str | None) -> None:
    batch = taken(write(tmp_path, content.encode(), "links.csv"), column)
    assert (batch.headers, places(batch)) == (1, [("bit.ly/a", 2)])


@pytest.mark.parametrize("first", ["1;bit.ly/a;3,5", '1,bit.ly/a,"x;y;z;w"'])
def test_a_link_says_what_separates_cells_where_there_is_no_header(tmp_path: Path, first: str) -> None:
    batch = taken(write(tmp_path, first.encode() + b"\n", "links.csv"), "2")
    assert (batch.headers, places(batch)) == (0, [("bit.ly/a", 1)])


def test_a_spreadsheets_own_line_and_its_empty_rows_are_no_records(tmp_path: Path) -> None:
    batch = taken(write(tmp_path, b"sep=;\r\n;;\r\nA, B;link;x\r\n1;bit.ly/a;2\r\n", "links.csv"))
    assert (batch.lines, batch.headers, batch.blank, places(batch)) == (4, 2, 1, [("bit.ly/a", 4)])


def test_what_separates_cells_is_found_behind_a_thousand_empty_rows(tmp_path: Path) -> None:
    batch = taken(write(tmp_path, b";\n" * 3000 + b"id;link\n1;bit.ly/a\n", "links.csv"))
    assert (batch.blank, batch.headers, places(batch)) == (3000, 1, [("bit.ly/a", 3002)])


def test_empty_lines_and_cells_of_csv_are_blank(tmp_path: Path) -> None:
    batch = taken(write(tmp_path, b"\nlink,n\nbit.ly/a,1\n\n,2\n  ,3\n  \n", "links.csv"))
    assert (batch.lines, batch.blank, batch.headers, places(batch)) == (7, 5, 1, [("bit.ly/a", 3)])


def test_a_ragged_record_of_csv_is_an_invalid_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"link,n\nbit.ly/a,1,2\nbit.ly/b\nbit.ly/c,3\n", "links.csv")
    batch = taken(path)
    assert [(line.text, line.file, line.line) for line in batch.invalid] == [
        ("bit.ly/a,1,2", path, 2),
        ("bit.ly/b", path, 3),
    ]
    assert places(batch) == [("bit.ly/c", 4)]


def test_a_quotation_mark_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    content = b'link,n\n"bit.ly/a,1\n' + b"".join(b"bit.ly/%d,1\n" % n for n in range(20_000))
    batch = taken(write(tmp_path, content, "links.csv"))
    assert reasons(batch) == [(2, "quotation")]
    assert places(batch) == [(f"bit.ly/{n}", n + 3) for n in range(20_000)]


def test_a_record_of_csv_that_cannot_be_read_costs_one_line(tmp_path: Path) -> None:
    long = b"x" * (LINE_LIMIT + 1)
    content = b'link,n\n"bit.ly/a"b,1\nbit\r.ly/b,2\n' + long + b'\n"' + long + b'\nbit.ly/c,3\nbit.ly/d,"\n'
    batch = taken(write(tmp_path, content, "links.csv"))
    expected = [(2, "quotation"), (3, "quotation"), (4, "longer"), (5, "longer"), (7, "quotation")]
    assert (reasons(batch), places(batch)) == (expected, [("bit.ly/c", 6)])


def test_what_is_not_utf_8_or_nul_matters_in_the_links_column_alone(tmp_path: Path) -> None:
    content = b"title,link\nd\xe9j\xe0 \0 vu,bit.ly/a\nx,bit.ly/\xe9\ny,bit.ly/\0\nz\xff\n"
    batch = taken(write(tmp_path, content, "links.csv"))
    assert places(batch) == [("bit.ly/a", 2)]
    assert [(line.text, line.reason.partition(" ")[0], line.line) for line in batch.invalid] == [
        ("bit.ly/\ufffd", "not", 3),
        ("bit.ly/\0", "a", 4),
        ("z\ufffd", "not", 5),
    ]


def test_an_endless_quoted_cell_takes_no_more_memory_than_a_few_chunks(tmp_path: Path) -> None:
    path = write(tmp_path, b'link,n\n"' + b"xx xx xx\n" * CHUNK, "links.csv")
    [source] = resolve_lists([path])
    tracemalloc.start()
    try:
        for _ in read([source]):
            pass
        assert tracemalloc.get_traced_memory()[1] < 150 * CHUNK  # lines of two bytes are strings of sixty
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("id,short_url,link,bitlink", "bit.ly/4"),
        ("id,short_url,Link,other", "bit.ly/3"),
        ("id,SHORT_URL,a,b", "bit.ly/2"),
        ('a,b,c," ID "', "bit.ly/4"),
    ],
)
def test_without_a_column_the_one_called_as_links_are_is_taken(tmp_path: Path, header: str, column: str) -> None:
    path = write(tmp_path, f"{header}\nbit.ly/1,bit.ly/2,bit.ly/3,bit.ly/4\n".encode(), "links.csv")
    assert places(taken(path)) == [(column, 2)]


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_column_may_be_named_or_numbered(tmp_path: Path, form: str) -> None:
    mark = "," if form == "csv" else "\t"
    path = write(tmp_path, f"link{mark}Mine\nbit.ly/a{mark}bit.ly/b\n".encode(), f"links.{form}")
    for column, link in {"Mine": "bit.ly/b", "mine": "bit.ly/b", "1": "bit.ly/a", "2": "bit.ly/b"}.items():
        batch = taken(path, column)
        assert (batch.headers, places(batch)) == (1, [(link, 2)])


def test_with_a_number_a_first_line_with_a_slash_there_is_no_header(tmp_path: Path) -> None:
    batch = taken(write(tmp_path, b"A,bit.ly/a\nB,bit.ly/b\n", "links.csv"), "2")
    assert (batch.headers, places(batch)) == (0, [("bit.ly/a", 1), ("bit.ly/b", 2)])


@pytest.mark.parametrize("name", ["links.csv", "links.tsv"])
def test_a_single_column_of_links_needs_no_header(tmp_path: Path, name: str) -> None:
    batch = taken(write(tmp_path, b"bit.ly/a\nbit.ly/b\n", name))
    assert (batch.headers, places(batch)) == (0, [("bit.ly/a", 1), ("bit.ly/b", 2)])


@pytest.mark.parametrize(
    ("name", "content", "column", "words"),
    [
        ("l.csv", b"A,bit.ly/a\n", None, ["there are: A, bit.ly/a", "its number"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "lnk", ["no column is called lnk", "title, url"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "3", ["--column 3", "2 columns"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "0", ["--column 0"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "9" * 5000, ["title, url"]),
        ("l.csv", b"link,link\nbit.ly/a,bit.ly/b\n", None, ["2 columns are called link"]),
        ("l.csv", b"\xff,url\nx,bit.ly/a\n", "lnk", ["\ufffd, url"]),
        ("l.csv", ",".join(f"c{n}" for n in range(1, 3000)).encode(), None, ["c20 and 2979 more"]),
        ("l.tsv", b"title\turl\nx\tbit.ly/a\n", None, ["title, url"]),
        ("l.ndjson", b'{"title":"x","url":"bit.ly/a"}\n', None, ["title, url", "--column NAME"]),
        ("l.ndjson", b'{"title":"x","link":"bit.ly/a"}\n', "lnk", ["title, link"]),
        ("l.jsonl", b"{}", None, ["there are: none"]),
        ("l.txt", b"bit.ly/a\n", "link", ["no columns", "--list-format"]),
    ],
)
def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(
    tmp_path: Path, name: str, content: bytes, column: str | None, words: list[str]
) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(UsageError) as wrong:
        resolve_lists([path], column)  # before anything is asked
    assert all(word in str(wrong.value) for word in words), wrong.value
    str(wrong.value).encode()


CSV_PIECES = st.lists(
    st.sampled_from(
        [
            '"',
            '""',
            ",",
            ";",
            "sep=;\n",
            "\n",
            "\r\n",
            "\r",
            "x",
            "bit.ly/a",
            "link",
            " ",
            "é",
            '"a\nb"',
            "\0",
            "bit.ly/b\n",
        ]
    )
)


@given(CSV_PIECES.map("".join), st.integers(1, 9), st.sampled_from(["1", None]))
@example('link,x\n"a\n\nb",c\n"bit.ly/a', 1, None)
@example('1,"\n' * 40, 7, "1")
def test_records_do_not_depend_on_how_lines_arrive(content: str, size: int, column: str | None) -> None:
    lines: list[bytes | None] = [line.encode() for line in content.split("\n")]

    def together(groups: list[list[bytes | None]]) -> tuple[int, int, list[BadRecord], list[tuple[int, str]]] | str:
        whole: list[ColumnBatch] = []
        try:
            whole.extend(read_csv(groups, column, "f"))
        except InputBroken as error:
            return str(error)
        flaws = [flaw for cells in whole for flaw in cells.bad]
        found = [cell for cells in whole for cell in cells.values]
        return sum(cells.headers for cells in whole), sum(cells.blank for cells in whole), flaws, found

    assert together([lines]) == together([lines[start : start + size] for start in range(0, len(lines), size)])


TITLES = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=9)  # the writer does not quote it


@given(
    st.lists(st.tuples(TITLES, st.integers(0, 9**6)), max_size=30),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(",;\t|"),
)
def test_what_a_csv_writer_wrote_is_read(rows: list[tuple[str, int]], end: str, delimiter: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, delimiter=delimiter)
    writer.writerow(["title", "link"])
    writer.writerows([title, f"bit.ly/{number}"] for title, number in rows)
    with tempfile.TemporaryDirectory() as folder:
        batch = taken(write(Path(folder), text.getvalue().encode(), "links.csv"))
    assert [link.bitlink for link in batch.links] == [f"bit.ly/{number}" for _, number in rows]
    assert batch.lines == len(rows) + 1


@given(st.lists(st.one_of(CSV_PIECES.map("".join).map(str.encode), st.binary(max_size=9)), max_size=9).map(b"".join))
@example(b'"' + b"\n" * 3000)
def test_counts_reconcile_for_any_bytes_in_any_form(content: bytes) -> None:
    for form in (ListFormat.CSV, ListFormat.TSV, ListFormat.NDJSON, ListFormat.LINES):
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), content)
            try:
                batches = list(read(resolve_lists([path], None if form is ListFormat.LINES else "1", form)))
            except InputBroken:
                continue
        for batch in batches:
            assert 0 < batch.lines <= BATCH_LINES
            check_counts(batch)
        whole = merged(iter(batches))
        numbers = [link.line for link in whole.links] + [line.line for line in whole.invalid]
        assert len(set(numbers)) == len(numbers)


# --- TSV ----------------------------------------------------------------------------------------------------------


def test_a_quotation_mark_in_tsv_is_one(tmp_path: Path) -> None:
    batch = taken(write(tmp_path, b'title\t"link"\n"open\tbit.ly/a\r\nshut"\t"bit.ly/b"\nx\ty\tz\n\n', "links.tsv"))
    assert (batch.headers, batch.blank, places(batch)) == (1, 1, [("bit.ly/a", 2), ("bit.ly/b", 3)])
    assert reasons(batch) == [(4, "not")]


# --- NDJSON -------------------------------------------------------------------------------------------------------


def test_an_ndjson_list_is_read_by_its_key(tmp_path: Path) -> None:
    content = b'{"id":"bit.ly/a","link":"https://bit.ly/A"}\r\n\n{"link":null}\n{"link":""}\n{"link":"bit.ly/b"}'
    batch = taken(write(tmp_path, content, "links.jsonl"))
    assert (batch.lines, batch.blank, places(batch)) == (5, 3, [("bit.ly/A", 1), ("bit.ly/b", 5)])
    assert places(taken(write(tmp_path, b'{"Mine":"bit.ly/c","link":"x"}\n', "l.ndjson"), "mine")) == [("bit.ly/c", 1)]


def test_a_line_of_ndjson_that_names_no_link_is_an_invalid_line(tmp_path: Path) -> None:
    content = b'{"link":"bit.ly/a"}\n{"x":1}\n{"link":5}\n[1]\n{\n{"link":"\xff"}\n' + b"x" * 70_000 + b"\nbit.ly/b\n"
    batch = taken(write(tmp_path, content, "links.ndjson"))
    assert places(batch) == [("bit.ly/a", 1)]
    assert [line for line, _ in reasons(batch)] == [2, 3, 4, 5, 6, 7, 8]
    assert [batch.invalid[at].reason for at in (3, 4, 5)] == ["not JSON", "not UTF-8", "longer than 64 KiB"]


def test_a_json_string_is_a_link_unless_a_key_was_named(tmp_path: Path) -> None:
    path = write(tmp_path, b'"bit.ly/a"\n{"link":"bit.ly/b"}\n', "links.ndjson")
    assert places(taken(path)) == [("bit.ly/a", 1), ("bit.ly/b", 2)]
    assert places(taken(path, "link")) == [("bit.ly/b", 2)]


# --- Parquet ------------------------------------------------------------------------------------------------------


def test_a_parquet_list_is_read_by_its_column_and_a_line_is_a_row(tmp_path: Path) -> None:
    columns = {"n": [1, 2, 3, 4], "link": ["bit.ly/a", None, " ", "nonsense"], "a.b": ["bit.ly/d"] * 4}
    path = write_parquet(tmp_path, columns)
    batch = taken(path)
    assert (batch.lines, batch.headers, batch.blank, places(batch)) == (4, 0, 2, [("bit.ly/a", 1)])
    assert [(line.text, line.file, line.line) for line in batch.invalid] == [("nonsense", path, 4)]
    assert len(taken(path, "a.b").links) == 4


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
    assert places(taken(path)) == [("bit.ly/a", 1), ("bit.ly/é", 3)]


def test_rows_of_an_encoded_column_are_numbered_over_batches_and_groups(tmp_path: Path) -> None:
    texts = [None if n % 7 == 0 else f"bit.ly/{n % 5000}" for n in range(12_345)]
    path = str(tmp_path / "links.parquet")
    parquet.write_table(pa.table({"link": pa.array(texts).dictionary_encode()}), path, row_group_size=5000)
    batch = taken(path)
    assert (batch.lines, batch.blank) == (12_345, 1764)
    assert places(batch) == [(text, number) for number, text in enumerate(texts, 1) if text]


def test_bytes_of_parquet_that_are_no_text_are_an_invalid_line(tmp_path: Path) -> None:
    batch = taken(write_parquet(tmp_path, {"link": [b"bit.ly/\xff", b"bit.ly/a", b"x" * (LINE_LIMIT + 1)]}))
    assert (reasons(batch), places(batch)) == ([(1, "not"), (3, "longer")], [("bit.ly/a", 2)])


@pytest.mark.parametrize("values", [[1, 2], [[b"bit.ly/a"]], [{"link": "bit.ly/a"}]])
def test_a_column_of_parquet_that_is_not_text_is_refused(tmp_path: Path, values: list[object]) -> None:
    with pytest.raises(UsageError, match=r"column link holds .*, not text"):
        resolve_lists([write_parquet(tmp_path, {"link": values})])


def test_a_column_that_is_not_in_parquet_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, {"title": ["x"], "url": ["bit.ly/a"]})
    with pytest.raises(UsageError, match="there are: title, url"):
        resolve_lists([path])
    with pytest.raises(UsageError, match="no column is called 2"):
        resolve_lists([path], "2")


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"bit.ly/a\n", lambda w: w[:-9], lambda w: w[:30] + w[40:]]
)
def test_a_damaged_parquet_file_is_an_explained_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = Path(write_parquet(tmp_path, {"link": ["bit.ly/a"]})).read_bytes()
    with pytest.raises(InputBroken, match=r"bad\.parquet: cannot be read past line 0"):
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
        assert places(taken(f"/dev/fd/{end}", list_format="parquet")) == [("bit.ly/a", 1)]
    finally:
        os.close(end)


# --- which form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("l.csv", ListFormat.CSV),
        ("L.CSV", ListFormat.CSV),
        ("l.csv.gz", ListFormat.CSV),
        ("l.tsv.zst", ListFormat.TSV),
        ("l.ndjson.gz", ListFormat.NDJSON),
        ("l.jsonl", ListFormat.NDJSON),
        ("csv", ListFormat.LINES),
        ("l.csv.bak", ListFormat.LINES),
        ("l.txt.gz", ListFormat.LINES),
    ],
)
def test_a_lists_form_follows_from_its_name(tmp_path: Path, name: str, form: ListFormat) -> None:
    [source] = resolve_lists([write(tmp_path, b"", name)])
    assert source.format is form


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_tables_may_be_compressed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    for name, content in {"l.csv": b"link,n\nbit.ly/a,1\n", "l.tsv": b"link\tn\nbit.ly/a\t1\n"}.items():
        assert places(taken(write(tmp_path, pack(content), name))) == [("bit.ly/a", 2)]


def test_a_format_that_is_said_holds_for_every_list(tmp_path: Path) -> None:
    path = write(tmp_path, b"link\tn\nbit.ly/a\t1\n", "links.csv")
    assert places(taken(path, list_format="tsv")) == [("bit.ly/a", 2)]
    assert places(taken(write(tmp_path, b"# c\nbit.ly/a\n", "l.csv"), list_format="lines")) == [("bit.ly/a", 2)]
    assert [source.format for source in resolve_lists(["-", path], list_format="tsv")] == [
        ListFormat.TSV,
        ListFormat.TSV,
    ]
    with pytest.raises(UsageError, match="--list-format xml: one of lines, csv"):
        resolve_lists([path], list_format="xml")


@pytest.fixture
def each_form(tmp_path: Path) -> list[str]:
    """A list of each form, with the same two links."""
    return [
        write(tmp_path, b"bit.ly/a\nbit.ly/b\n", "links.txt"),
        write(tmp_path, b"link,n\nbit.ly/a,1\nbit.ly/b,2\n", "links.csv"),
        write(tmp_path, b"n\tlink\n1\tbit.ly/a\n2\tbit.ly/b\n", "links.tsv"),
        write(tmp_path, zstd.compress(b'{"link":"bit.ly/a"}\n{"link":"bit.ly/b"}\n'), "links.ndjson.zst"),
        write_parquet(tmp_path, {"link": ["bit.ly/a", "bit.ly/b"]}),
    ]


def test_a_list_of_any_form_can_be_read_twice_and_copied(tmp_path: Path, each_form: list[str]) -> None:
    for source in resolve_lists(each_form):
        copy = spool(source, str(tmp_path / "copy"))
        assert source.rereadable
        assert [link.bitlink for link in merged(read([copy])).links] == ["bit.ly/a", "bit.ly/b"]
        assert merged(read([copy])) == merged(read([source])) == merged(read([source]))


def test_a_long_table_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    def table(lines: int) -> bytes:
        return b"title,link\n" + b"".join(b'"x, y",bit.ly/%08d\n' % n for n in range(lines))

    short, long = write(tmp_path, table(10_000), "short.csv"), write(tmp_path, table(40_000), "long.csv")
    few, many = (peak_bytes(source) for source in resolve_lists([short, long]))
    assert many < 1.5 * few + 100_000


# --- patterns -----------------------------------------------------------------------------------------------------


def test_a_pattern_stands_for_the_files_that_match_sorted_and_no_folders(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er.txt").mkdir(parents=True)
    paths = [write(tmp_path, b"bit.ly/a\n", name) for name in ("b.txt", "a.txt", "deep/c.txt", "deep/er.txt/d.txt")]
    paths.sort()
    assert [source.path for source in resolve_lists([f"{tmp_path}/*.txt"])] == [
        str(tmp_path / n) for n in ("a.txt", "b.txt")
    ]
    assert [source.path for source in resolve_lists([f"{tmp_path}/**/*.txt"])] == paths
    assert [source.path for source in resolve_lists([f"{tmp_path}/**/**"])] == paths


def test_a_pattern_that_nothing_matches_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for pattern in ("*.csv", "fold*"):
        with pytest.raises(UsageError, match="no file matches"):
            resolve_lists([f"{tmp_path}/{pattern}"])


def test_a_file_whose_name_is_a_pattern_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path, b"bit.ly/a\n", "[a]*.txt")
    write(tmp_path, b"bit.ly/b\n", "ab.txt")
    assert [source.path for source in resolve_lists([path])] == [path]
