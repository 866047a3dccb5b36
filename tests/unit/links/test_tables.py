"""Lists with columns: CSV, TSV and NDJSON."""

import csv
import io
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harvester.errors import InputBroken, UsageError
from harvester.links.batch import BATCH_LINES
from harvester.links.columns import CHUNK, LINE_LIMIT, BadRecord, ColumnBatch, ListFormat
from harvester.links.files import read, resolve_lists
from harvester.links.tables import read_csv
from tests.unit.links.lists import (
    check_counts,
    merged,
    places,
    read_list,
    reasons,
    write,
)

if sys.version_info >= (3, 14):
    pass
else:
    pass


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_a_csv_list_is_read_by_its_column_and_its_header_is_counted(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"title,bitlink\nA,bit.ly/a\nB,https://bit.ly/b\n", "links.csv"))
    assert (batch.lines, batch.headers, places(batch)) == (3, 1, [("bit.ly/a", 2), ("bit.ly/b", 3)])


def test_csv_may_quote_and_a_records_line_is_where_it_begins(tmp_path: Path) -> None:
    content = b'title,link\r\n"a ""title"", quoted","bit.ly/a"\r\n"over\r\n\r\nthree lines",bit.ly/b\r\nC,bit.ly/c\r\n'
    batch = read_list(write(tmp_path, content, "links.csv"))
    assert (batch.lines, places(batch)) == (4, [("bit.ly/a", 2), ("bit.ly/b", 3), ("bit.ly/c", 6)])


def test_csv_may_have_a_byte_order_mark_before_a_quoted_header(tmp_path: Path) -> None:
    assert places(read_list(write(tmp_path, b'\xef\xbb\xbf"link",n\nbit.ly/a,1\n', "l.csv"))) == [("bit.ly/a", 2)]


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
    batch = read_list(write(tmp_path, content.encode(), "links.csv"), column)
    assert (batch.headers, places(batch)) == (1, [("bit.ly/a", 2)])


@pytest.mark.parametrize("first", ["1;bit.ly/a;3,5", '1,bit.ly/a,"x;y;z;w"'])
def test_a_link_says_what_separates_cells_where_there_is_no_header(tmp_path: Path, first: str) -> None:
    batch = read_list(write(tmp_path, first.encode() + b"\n", "links.csv"), "2")
    assert (batch.headers, places(batch)) == (0, [("bit.ly/a", 1)])


def test_a_spreadsheets_own_line_and_its_empty_rows_are_no_records(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"sep=;\r\n;;\r\nA, B;link;x\r\n1;bit.ly/a;2\r\n", "links.csv"))
    assert (batch.lines, batch.headers, batch.blank, places(batch)) == (4, 2, 1, [("bit.ly/a", 4)])


def test_what_separates_cells_is_found_behind_a_thousand_empty_rows(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b";\n" * 3000 + b"id;link\n1;bit.ly/a\n", "links.csv"))
    assert (batch.blank, batch.headers, places(batch)) == (3000, 1, [("bit.ly/a", 3002)])


def test_empty_lines_and_cells_of_csv_are_blank(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"\nlink,n\nbit.ly/a,1\n\n,2\n  ,3\n  \n", "links.csv"))
    assert (batch.lines, batch.blank, batch.headers, places(batch)) == (7, 5, 1, [("bit.ly/a", 3)])


@pytest.mark.parametrize(("name", "tab"), [("links.csv", b","), ("links.csv", b";"), ("links.tsv", b"\t")])
def test_cells_that_a_spreadsheet_left_out_or_added_at_the_end_shift_nothing(
    tmp_path: Path, name: str, tab: bytes
) -> None:
    rows = [b"link,n,x", b"bit.ly/a", b"bit.ly/b,1", b"bit.ly/c,1,2", b"bit.ly/d,1,2,, ,", b",1", b"bit.ly/e,,"]
    batch = read_list(write(tmp_path, b"".join(row.replace(b",", tab) + b"\n" for row in rows), name))
    assert places(batch) == [("bit.ly/a", 2), ("bit.ly/b", 3), ("bit.ly/c", 4), ("bit.ly/d", 5), ("bit.ly/e", 7)]
    assert (batch.blank, batch.invalid) == (1, [])


def test_a_record_without_the_cell_of_the_link_is_blank(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"title,n,link\none,1\ntwo\nthree,3,bit.ly/a\n", "links.csv"))
    assert (batch.blank, places(batch), batch.invalid) == (2, [("bit.ly/a", 4)], [])


@pytest.mark.parametrize(("name", "tab"), [("links.csv", ","), ("links.tsv", "\t")])
def test_a_record_that_has_lost_a_cell_before_its_link_is_an_invalid_line(tmp_path: Path, name: str, tab: str) -> None:
    lines = ["date,name,link", "2026-11-23,x,bit.ly/a", "2026-11-24,https://bit.ly/b", "2026-11-25,y", "bit.ly/c"]
    batch = read_list(write(tmp_path, "\n".join([*lines, ""]).replace(",", tab).encode(), name))
    assert [link.bitlink for link in batch.links] == ["bit.ly/a"]
    assert [(line.line, line.reason) for line in batch.invalid] == [
        (3, "2 of 3 cells, and a link that is not in column link"),
        (5, "1 of 3 cells, and a link that is not in column link"),
    ]
    assert batch.blank == 1


def test_a_record_with_too_many_filled_cells_is_an_invalid_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"link,n\nbit.ly/a,1,2\nbit.ly/c,3\n", "links.csv")
    batch = read_list(path)
    assert [(line.text, line.file, line.line) for line in batch.invalid] == [("bit.ly/a,1,2", path, 2)]
    assert places(batch) == [("bit.ly/c", 3)]


@pytest.mark.parametrize(
    ("end", "links"), [(b"bit.ly/b", 1), (b"bit.ly/b\n", 2), (b"bit.ly/b\r", 2), (b"bit.ly/b,", 2), (b"bit.ly/b,2", 2)]
)
def test_a_link_that_the_end_of_the_file_may_have_cut_off_is_invalid(tmp_path: Path, end: bytes, links: int) -> None:
    batch = read_list(write(tmp_path, b"link,n\nbit.ly/a,1\n" + end, "links.csv"))
    assert (len(batch.links), len(batch.invalid)) == (links, 2 - links)


@pytest.mark.parametrize("head", ["\ufeff\ufefflink", '\ufeff"\ufefflink"', '"\ufefflink"'])
def test_byte_order_marks_in_the_header_are_no_part_of_a_name(tmp_path: Path, head: str) -> None:
    content = head.encode() + b",n\nbit.ly/a,1\n"
    assert places(read_list(write(tmp_path, content, "links.csv"))) == [("bit.ly/a", 2)]


def test_a_quotation_mark_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    content = b'link,n\n"bit.ly/a,1\n' + b"".join(b"bit.ly/%d,1\n" % n for n in range(20_000))
    batch = read_list(write(tmp_path, content, "links.csv"))
    assert reasons(batch) == [(2, "quotation")]
    assert places(batch) == [(f"bit.ly/{n}", n + 3) for n in range(20_000)]


def test_a_record_of_csv_that_cannot_be_read_costs_one_line(tmp_path: Path) -> None:
    long = b"x" * (LINE_LIMIT + 1)
    content = b'link,n\n"bit.ly/a"b,1\n"bit.ly"/b,2\n' + long + b'\n"' + long + b'\nbit.ly/c,3\nbit.ly/d,"\n'
    batch = read_list(write(tmp_path, content, "links.csv"))
    expected = [(2, "quotation"), (3, "quotation"), (4, "longer"), (5, "longer"), (7, "quotation")]
    assert (reasons(batch), places(batch)) == (expected, [("bit.ly/c", 6)])


def test_what_is_not_utf_8_or_nul_matters_in_the_links_column_alone(tmp_path: Path) -> None:
    content = b"title,link\nd\xe9j\xe0 \0 vu,bit.ly/a\nx,bit.ly/\xe9\ny,bit.ly/\0\nz\xff\n"
    batch = read_list(write(tmp_path, content, "links.csv"))
    assert places(batch) == [("bit.ly/a", 2)]
    assert [(line.text, line.reason.partition(" ")[0], line.line) for line in batch.invalid] == [
        ("bit.ly/\ufffd", "not", 3),
        ("bit.ly/\0", "a", 4),
    ]
    assert batch.blank == 1


def test_an_endless_quoted_cell_takes_no_more_memory_than_a_few_chunks(tmp_path: Path) -> None:
    path = write(tmp_path, b'link,n\n"' + b"xx xx xx\n" * (CHUNK // 2), "links.csv")
    [source] = resolve_lists([path])
    tracemalloc.start()
    try:
        for _ in read([source]):
            pass
        # Each line is a string of sixty bytes: all of them together would be 34 chunks.
        assert tracemalloc.get_traced_memory()[1] < 30 * CHUNK
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
    assert places(read_list(path)) == [(column, 2)]


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_column_may_be_named_or_numbered(tmp_path: Path, form: str) -> None:
    mark = "," if form == "csv" else "\t"
    path = write(tmp_path, f"link{mark}Mine\nbit.ly/a{mark}bit.ly/b\n".encode(), f"links.{form}")
    for column, link in {"Mine": "bit.ly/b", "mine": "bit.ly/b", "1": "bit.ly/a", "2": "bit.ly/b"}.items():
        batch = read_list(path, column)
        assert (batch.headers, places(batch)) == (1, [(link, 2)])


def test_with_a_number_a_first_line_with_a_slash_there_is_no_header(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"A,bit.ly/a\nB,bit.ly/b\n", "links.csv"), "2")
    assert (batch.headers, places(batch)) == (0, [("bit.ly/a", 1), ("bit.ly/b", 2)])


@pytest.mark.parametrize("name", ["links.csv", "links.tsv"])
def test_a_single_column_of_links_needs_no_header(tmp_path: Path, name: str) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/a\nbit.ly/b\n", name))
    assert (batch.headers, places(batch)) == (0, [("bit.ly/a", 1), ("bit.ly/b", 2)])


@pytest.mark.parametrize(
    ("name", "content", "column", "words"),
    [
        ("l.csv", b"A,bit.ly/a\n", None, ["found: A, bit.ly/a", "its number"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "lnk", ["no column is called lnk", "title, url"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "3", ["--column 3", "2 columns"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "0", ["--column 0", "2 columns, counted from 1"]),
        ("l.csv", b"title,url\nx,bit.ly/a\n", "9" * 5000, ["title, url"]),
        (
            "l.csv",
            b"link,link\nbit.ly/a,bit.ly/b\n",
            None,
            ["2 columns are called link. Use --column with", "from 1"],
        ),
        ("l.csv", b"a,Link,LINK\n1,bit.ly/a,bit.ly/b\n", None, ["2 columns are called link. Use --column"]),
        ("l.tsv", b"link\tlink\nbit.ly/a\tbit.ly/b\n", "link", ["2 columns are called link. Use --column"]),
        ("l.ndjson", b'{"Url":"bit.ly/a","URL":"bit.ly/b"}\n', "url", ["2 columns are called url. Rename one"]),
        ("l.csv", b"\xff,url\nx,bit.ly/a\n", "lnk", ["\ufffd, url"]),
        ("l.csv", ",".join(f"c{n}" for n in range(1, 3000)).encode(), None, ["c20 and 2979 more"]),
        ("l.tsv", b"title\turl\nx\tbit.ly/a\n", None, ["title, url"]),
        ("l.ndjson", b'{"title":"x","url":"bit.ly/a"}\n', None, ["title, url", "--column NAME"]),
        ("l.ndjson", b'{"title":"x","link":"bit.ly/a"}\n', "lnk", ["title, link"]),
        ("l.jsonl", b"{}", None, ["found: none"]),
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

    def together(
        groups: list[list[bytes | None]],
    ) -> tuple[int, int, list[BadRecord], list[Any]] | str:
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
        batch = read_list(write(Path(folder), text.getvalue().encode(), "links.csv"))
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
    batch = read_list(write(tmp_path, b'title\t"link"\n"open\tbit.ly/a\r\nshut"\t"bit.ly/b"\nx\ty\tz\n\n', "links.tsv"))
    assert (batch.headers, batch.blank, places(batch)) == (1, 1, [("bit.ly/a", 2), ("bit.ly/b", 3)])
    assert reasons(batch) == [(4, "3")]


# --- NDJSON -------------------------------------------------------------------------------------------------------


def test_an_ndjson_list_is_read_by_its_key(tmp_path: Path) -> None:
    content = b'{"id":"bit.ly/a","link":"https://bit.ly/A"}\r\n\n{"link":null}\n{"link":""}\n{"link":"bit.ly/b"}'
    batch = read_list(write(tmp_path, content, "links.jsonl"))
    assert (batch.lines, batch.blank, places(batch)) == (5, 3, [("bit.ly/A", 1), ("bit.ly/b", 5)])
    assert places(read_list(write(tmp_path, b'{"Mine":"bit.ly/c","link":"x"}\n', "l.ndjson"), "mine")) == [
        ("bit.ly/c", 1)
    ]


def test_a_line_of_ndjson_that_names_no_link_is_an_invalid_line(tmp_path: Path) -> None:
    content = b'{"link":"bit.ly/a"}\n{"x":1}\n{"link":5}\n[1]\n{\n{"link":"\xff"}\n' + b"x" * 70_000 + b"\nbit.ly/b\n"
    batch = read_list(write(tmp_path, content, "links.ndjson"))
    assert places(batch) == [("bit.ly/a", 1)]
    assert [line for line, _ in reasons(batch)] == [2, 3, 4, 5, 6, 7, 8]
    assert [batch.invalid[at].reason for at in (3, 4, 5)] == [
        "not JSON",
        "U+FFFD: part of the text was lost",
        "longer than 64 KiB",
    ]


@pytest.mark.parametrize(
    "other", [b'"x":NaN', b'"x":"\\ud800"', b'"x":-Infinity', b'"x":"\xff"', b'"bitlink":""', b'"bitlink":" "']
)
def test_what_stands_under_another_key_does_not_lose_the_link(tmp_path: Path, other: bytes) -> None:
    content = b'{"link":"bit.ly/a"}\n{' + other + b',"link":"bit.ly/b"}\n'
    assert places(read_list(write(tmp_path, content, "links.ndjson"))) == [("bit.ly/a", 1), ("bit.ly/b", 2)]


def test_a_json_string_is_a_link_unless_a_key_was_named(tmp_path: Path) -> None:
    path = write(tmp_path, b'"bit.ly/a"\n{"link":"bit.ly/b"}\n', "links.ndjson")
    assert places(read_list(path)) == [("bit.ly/a", 1), ("bit.ly/b", 2)]
    assert places(read_list(path, "link")) == [("bit.ly/b", 2)]
