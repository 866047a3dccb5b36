"""Lists of links: what a line is, which files are read, and what a broken one leaves behind."""

import gzip
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, example, given, reject
from hypothesis import strategies as st

from harvester.bitly.query import Query
from harvester.errors import InputBroken, UsageError
from harvester.links.batch import BATCH_LINES, Batch
from harvester.links.columns import CHUNK, LINE_LIMIT, ListFormat
from harvester.links.files import read, resolve_lists, spool
from harvester.rows.row import RowBuilder
from tests.unit.links.lists import merged, peak_bytes, places, read_list, read_until_broken, write, write_parquet

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


# --- lines --------------------------------------------------------------------------------------------------------


def test_each_link_comes_with_its_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"bit.ly/a\nhttps://Bit.ly/B\n")
    batch = read_list(path)
    assert places(batch) == [("bit.ly/a", 1), ("bit.ly/B", 2)]
    assert {link.file for link in batch.links} == {path}


def test_blank_lines_and_comments_are_counted_and_skipped(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"# mine\n\nbit.ly/a\n  \t\r\n  # indented\nbit.ly/b\n\n"))
    assert (batch.lines, batch.blank, batch.comments, batch.invalid) == (7, 3, 2, [])
    assert places(batch) == [("bit.ly/a", 3), ("bit.ly/b", 6)]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert places(read_list(write(tmp_path, b"\xef\xbb\xbfbit.ly/a\nbit.ly/b\n"))) == [("bit.ly/a", 1), ("bit.ly/b", 2)]


def test_a_comment_after_a_byte_order_mark_is_a_comment(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"\xef\xbb\xbf# mine\nbit.ly/b\n"))
    assert (batch.comments, places(batch)) == (1, [("bit.ly/b", 2)])


def test_each_files_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    paths = [write(tmp_path, b"\xef\xbb\xbfbit.ly/" + name, name.decode()) for name in (b"a", b"b")]
    batch = merged(read(resolve_lists(paths)))
    assert [(link.bitlink, link.file, link.line) for link in batch.links] == [
        ("bit.ly/a", paths[0], 1),
        ("bit.ly/b", paths[1], 1),
    ]


def test_lines_may_end_in_crlf(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/a\r\n\r\nbit.ly/b\r\n"))
    assert (batch.blank, places(batch)) == (1, [("bit.ly/a", 1), ("bit.ly/b", 3)])


def test_the_last_line_needs_no_line_feed(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/a\nbit.ly/b"))
    assert (batch.lines, places(batch)) == (2, [("bit.ly/a", 1), ("bit.ly/b", 2)])


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read_list(write(tmp_path, b"")) == Batch()


def test_what_is_no_bitlink_is_kept_with_its_text_reason_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"bit.ly/a\n nonsense \n")
    [invalid] = read_list(path).invalid
    assert (invalid.text, invalid.file, invalid.line) == ("nonsense", path, 2)
    assert "slash" in invalid.reason


def test_a_line_that_is_not_utf_8_is_one_invalid_line(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/\xff\nbit.ly/b\n"))
    assert [(line.text, line.reason) for line in batch.invalid] == [("bit.ly/\ufffd", "not UTF-8")]
    assert places(batch) == [("bit.ly/b", 2)]


@pytest.mark.parametrize("length", [LINE_LIMIT + 1, LINE_LIMIT + CHUNK, 3 * CHUNK, 3 * CHUNK + 1, 40 * CHUNK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_overlong_line_is_one_invalid_line_and_the_next_is_read(tmp_path: Path, length: int, end: bytes) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/a" + end + b"x" * length + end + b"bit.ly/b" + end))
    assert [(line.text, line.line) for line in batch.invalid] == [("", 2)]
    assert "64 KiB" in batch.invalid[0].reason
    assert places(batch) == [("bit.ly/a", 1), ("bit.ly/b", 3)]
    assert batch.lines == 3


@pytest.mark.parametrize("length", [LINE_LIMIT + 1, 2 * CHUNK, 5 * CHUNK])
def test_an_overlong_last_line_is_one_invalid_line(tmp_path: Path, length: int) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/a\n" + b"x" * length))
    assert (batch.lines, len(batch.invalid), places(batch)) == (2, 1, [("bit.ly/a", 1)])


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    link = b"https://bit.ly/a?"
    batch = read_list(write(tmp_path, link + b"x" * (LINE_LIMIT - len(link)) + b"\nbit.ly/b\n"))
    assert places(batch) == [("bit.ly/a", 1), ("bit.ly/b", 2)]


def test_two_overlong_lines_are_two(tmp_path: Path) -> None:
    long = b"x" * (2 * LINE_LIMIT)
    batch = read_list(write(tmp_path, long + b"\n" + long + b"\nbit.ly/c"))
    assert [line.line for line in batch.invalid] == [1, 2]
    assert places(batch) == [("bit.ly/c", 3)]


def test_the_text_kept_of_an_invalid_line_is_bounded(tmp_path: Path) -> None:
    [invalid] = read_list(write(tmp_path, b"y" * 60_000)).invalid
    assert invalid.text == "y" * 2000


# --- links that hide in one line ------------------------------------------------------------------------------------

MANY = [f"bit.ly/{n}" for n in range(3000)]


SEPARATORS = [",", ", ", ";", "|", " ", "\t", "\u2028", "\u2029", "\x85", "\x1e", "%0A"]


@pytest.mark.parametrize("between", SEPARATORS)
@pytest.mark.parametrize("links", [MANY, [f"https://{link}?utm=a&u=http://x.com/y" for link in MANY]])
@pytest.mark.parametrize("count", [3, 3000])
def test_a_line_that_hides_many_links_is_an_error_that_names_it(
    tmp_path: Path, between: str, links: list[str], count: int
) -> None:
    path = write(tmp_path, b"bit.ly/x\n\n" + between.join(links[:count]).encode() + b"\nbit.ly/y\n")
    overlong = len(between.join(links[:count]).encode()) > LINE_LIMIT
    with pytest.raises(InputBroken, match="a line longer than 64 KiB: 3 or" if overlong else "line 3: 3 or") as refused:
        read_list(path)
    assert path in str(refused.value)
    assert "one link, or one JSON object, a line" in str(refused.value)
    assert "--list-format csv" in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "".join(f'{{"bitlink":"{link}"}}' for link in MANY),
        ", ".join(f'{{"bitlink":"{link}"}}' for link in MANY[:3]),
        "\x1e".join(f'{{"link":"{link}"}}' for link in MANY[:3]),
        "[" + ",".join(f'"{link}"' for link in MANY) + "]",
        "".join(f"https://{link}" for link in MANY),
        "".join(MANY),
        '<a href="https://bit.ly/a">bit.ly/a</a><a href="https://bit.ly/b">bit.ly/b</a>',
        *(between.join(MANY[:3]) for between in ("、", "<br>", "\\n")),
    ],
)
def test_links_that_stand_in_one_line_without_a_separator_are_seen(tmp_path: Path, line: str) -> None:
    for name, first in {"links.txt": "bit.ly/x", "links.ndjson": '{"link":"bit.ly/x"}'}.items():
        with pytest.raises(InputBroken, match="or more links"):
            read_list(write(tmp_path, f"{first}\n{line}\n".encode(), name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", 'title,link\nx,bit.ly/a\nx,"bit.ly/b, bit.ly/c\nbit.ly/d"\n'),
        ("l.tsv", "title\tlink\nx\tbit.ly/a bit.ly/b bit.ly/c\n"),
        ("l.csv", "link\nbit.ly/a\nbit.ly/b,bit.ly/c,bit.ly/d\n"),
        ("l.csv", "bit.ly/a\nbit.ly/b,bit.ly/c,bit.ly/d\n"),
        ("l.csv", "link,title\nbit.ly/a,x\nbit.ly/b,bit.ly/c,bit.ly/d,bit.ly/e\n"),
        ("l.ndjson", '{"link":"bit.ly/a"}\n{"link":["bit.ly/b","bit.ly/c","bit.ly/d"]}\n'),
        ("l.ndjson", '{"link":"bit.ly/a"}\n["bit.ly/b","bit.ly/c","bit.ly/d"]\n'),
        ("l.ndjson", '{"link":"bit.ly/a"}\nbit.ly/b,bit.ly/c,bit.ly/d\n'),
        ("l.ndjson", '{"link":"bit.ly/a"}\n{"link":"bit.ly/b bit.ly/c bit.ly/d"}\n'),
    ],
)
def test_a_cell_that_hides_many_links_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InputBroken, match=r"line \d: 3 or more links") as broken:
        read_list(write(tmp_path, content.encode(), name))
    if not name.endswith("ndjson"):
        assert "--list-format" not in str(broken.value)  # it is read as a table already


@pytest.mark.parametrize(
    ("name", "header"), [("l.csv", "link"), ("l.csv", "n,link"), ("l.tsv", "link"), ("l.ndjson", "")]
)
def test_an_overlong_line_of_a_table_must_hide_no_links_either(tmp_path: Path, name: str, header: str) -> None:
    with pytest.raises(InputBroken, match="a line longer than 64 KiB: 3 or more links"):
        read_list(write(tmp_path, f"{header}\n{','.join(MANY * 3)}\n".encode(), name))
    page = '1,"' + "<a href='https://bit.ly/x'>x</a>" * 3000 + '",bit.ly/b'
    batch = read_list(write(tmp_path, f"n,page,link\n{page}\n2,,bit.ly/a\n".encode(), "links.csv"))
    assert (len(batch.links), len(batch.invalid)) == (1, 1)


def test_two_links_in_one_line_are_one_invalid_line_with_that_reason(tmp_path: Path) -> None:
    batch = read_list(write(tmp_path, b"bit.ly/a,bit.ly/b\nbit.ly/c https://bit.ly/d\nbit.ly/e\n"))
    assert {line.reason for line in batch.invalid} == {"two links in one line; write one a line"}
    assert places(batch) == [("bit.ly/e", 3)]
    table = read_list(write(tmp_path, b"n,link\n1,bit.ly/a bit.ly/b\n", "links.csv"))
    assert [line.reason for line in table.invalid] == ["two links in one cell; write one a record"]


@pytest.mark.parametrize(
    "line",
    [
        "https://example.com/a/b/c?x=http://d.com/e&y=http://f.com/g,https://h.com/i",
        "https://web.archive.org/web/2020/https://example.com/a/b",
        "see and/or 24/7, 1.5/2.5/3.5, 12.11/2026 x/y",
        '{"bitlink":"bit.ly/a","x":"https://a.com/b","y":"https://c.com/d","z":"https://e.com/f',
        '{"title":"{a}{b}{c}","x":"https://a.com/b https://a.com/c https://a.com/d"}',
        "example.com/a.html/b.html/c.html/d",
    ],
)
def test_a_line_with_one_long_address_or_a_damaged_object_is_only_invalid(tmp_path: Path, line: str) -> None:
    batch = read_list(write(tmp_path, f"bit.ly/a\n{line}\nbit.ly/b\n".encode()))
    assert (len(batch.links), len(batch.invalid)) == (2, 1)


def test_a_damaged_record_with_several_addresses_is_only_invalid(tmp_path: Path) -> None:
    record = b"bit.ly/b,a, b,https://a.com/b,https://c.com/d,https://e.com/f\n"
    batch = read_list(write(tmp_path, b"link,title,long_url,qr,page\nbit.ly/a,x,y,z,w\n" + record, "links.csv"))
    assert (len(batch.links), len(batch.invalid)) == (1, 1)


# --- failures as a list ---------------------------------------------------------------------------------------------


def test_the_lines_of_a_failures_file_are_a_list(tmp_path: Path) -> None:
    maker = RowBuilder(Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), "run")
    lines = [
        maker.failure("refused", file="x", line=1, bitlink="bit.ly/a", status=404, message="NOT_FOUND", attempts=1),
        maker.failure("failed", file="x", line=2, bitlink="bit.ly/É", attempts=5),
        maker.failure("invalid", file="x", line=3, text="nonsense"),
    ]
    batch = read_list(write(tmp_path, b"".join(line + b"\n" for line in lines), "_failures.ndjson"))
    assert places(batch) == [("bit.ly/a", 1), ("bit.ly/É", 2)]
    assert [(line.reason.partition(":")[0], line.line) for line in batch.invalid] == [("no slash", 3)]


@pytest.mark.parametrize(
    "line", ["{", "{}", '{"bitlink":null,"text":null}', '{"bitlink":5}', '{"bitlink":["bit.ly/a"]}', "{bit.ly/a}"]
)
def test_an_object_that_names_no_bitlink_is_an_invalid_line(tmp_path: Path, line: str) -> None:
    batch = read_list(write(tmp_path, line.encode() + b"\nbit.ly/b\n"))
    assert [found.text for found in batch.invalid] == [line]
    assert places(batch) == [("bit.ly/b", 2)]


# --- compressed -----------------------------------------------------------------------------------------------------


def test_a_gzipped_list_is_known_by_its_magic_not_by_its_name(tmp_path: Path) -> None:
    assert places(read_list(write(tmp_path, gzip.compress(b"bit.ly/a\nbit.ly/b\n"), "links.txt"))) == [
        ("bit.ly/a", 1),
        ("bit.ly/b", 2),
    ]
    assert places(read_list(write(tmp_path, b"bit.ly/a\n", "links.gz"))) == [("bit.ly/a", 1)]


def test_a_gzipped_list_may_have_several_members(tmp_path: Path) -> None:
    members = gzip.compress(b"bit.ly/a\nbit.l") + gzip.compress(b"") + gzip.compress(b"y/b\nbit.ly/c")
    assert places(read_list(write(tmp_path, members))) == [("bit.ly/a", 1), ("bit.ly/b", 2), ("bit.ly/c", 3)]


def test_a_gzipped_list_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    assert places(read_list(write(tmp_path, gzip.compress(b"\xef\xbb\xbfbit.ly/a")))) == [("bit.ly/a", 1)]


def test_a_cut_gzip_gives_what_came_before_and_names_file_and_line(tmp_path: Path) -> None:
    lines = b"".join(b"bit.ly/%d\n" % n for n in range(20_000))
    whole = gzip.compress(lines)
    path = write(tmp_path, whole[: len(whole) // 2])
    before, broken = read_until_broken(path)
    assert 1000 < before.lines < 20_000
    assert places(before) == [(f"bit.ly/{n}", n + 1) for n in range(before.lines)]
    assert path in str(broken)
    assert f"line {before.lines}" in str(broken)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[:5], id="cut in the header"),
        pytest.param(lambda whole: whole[:-4], id="cut in the trailer"),
        pytest.param(lambda whole: whole[:-8] + b"\0" * 8, id="wrong checksum"),
        pytest.param(lambda whole: whole + b"garbage", id="garbage behind it"),
        pytest.param(lambda whole: whole[:12] + b"\xff" * 40 + whole[52:], id="damaged"),
    ],
)
def test_a_damaged_gzip_is_an_explained_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = gzip.compress(b"".join(b"bit.ly/%d\n" % n for n in range(100)))
    path = write(tmp_path, damage(whole))
    _, broken = read_until_broken(path)
    assert path in str(broken)
    assert "line" in str(broken)


# --- sources --------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.txt")
    with pytest.raises(UsageError, match=r"missing\.txt"):
        resolve_lists([path])


def test_a_folder_is_a_usage_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the lists in it"):
        resolve_lists([str(tmp_path)])


def test_no_list_and_standard_input_twice_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="no list"):
        resolve_lists([])
    with pytest.raises(UsageError, match="only once"):
        resolve_lists(["-", "-"])


def test_a_dash_is_standard_input_which_cannot_be_read_twice() -> None:
    [source] = resolve_lists(["-"])
    assert (source.name, source.path, source.rereadable) == ("-", None, False)


def test_a_file_can_be_read_twice(tmp_path: Path) -> None:
    [source] = resolve_lists([write(tmp_path, b"bit.ly/a\n")])
    assert source.rereadable
    assert merged(read([source])) == merged(read([source]))
    copy = spool(source, str(tmp_path / "copy"))
    assert merged(read([copy])) == merged(read([source]))


def test_a_file_that_vanished_after_it_was_found_is_an_explained_error(tmp_path: Path) -> None:
    path = write(tmp_path, b"bit.ly/a\n")
    sources = resolve_lists([path])
    Path(path).unlink()
    with pytest.raises(InputBroken, match=r"links\.txt"):
        list(read(sources))


def test_a_file_name_that_is_no_utf_8_still_fits_into_json(tmp_path: Path) -> None:
    path = write(tmp_path, b"bit.ly/a\nnonsense\n", "l\udcffinks.txt")
    batch = read_list(path)
    json.dumps([batch.links[0].file, batch.invalid[0].file], ensure_ascii=False).encode()


# --- laws -----------------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.sampled_from(
        [
            *(
                b"\n",
                b"\r\n",
                b"\r",
                b"\n\n",
                b" ",
                b"\t",
                b"#",
                b"# c\n",
                b"{",
                b'{"bitlink":"bit.ly/o"}',
                b"}",
                b"\0",
            ),
            *(
                b"bit.ly/a",
                b"bit.ly/b\n",
                b"https://bit.ly/c\n",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\xc2\x85",
                b"\xe2\x80\xa8",
            ),
            *(b"x" * (LINE_LIMIT - 1), b"y" * LINE_LIMIT, b"z" * (LINE_LIMIT + 1)),
        ]
    ),
    st.binary(max_size=20),
)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.booleans())
@example(b"x" * CHUNK + b"\n", False)
@example(b"x" * (CHUNK - 1) + b"\n" + b"y" * CHUNK + b"\n\n", True)
def test_lines_and_counts_reconcile_for_any_bytes(content: bytes, packed: bool) -> None:
    assume(not content.startswith((b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))  # UTF-16, gzip, zstd
    assume(content[1:4] != b"\x2a\x4d\x18")  # a frame of zstd that holds no data
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), gzip.compress(content) if packed else content)
        try:
            batches = list(read(resolve_lists([path])))
        except InputBroken:  # it has become a file of another kind
            reject()
    for batch in batches:
        assert 0 < batch.lines <= BATCH_LINES
        assert batch.lines == batch.blank + batch.comments + len(batch.invalid) + len(batch.links)
    whole = merged(iter(batches))
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert whole.lines == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    numbers = [link.line for link in whole.links] + [line.line for line in whole.invalid]
    assert len(set(numbers)) == len(numbers)
    assert all(1 <= number <= whole.lines for number in numbers)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert {link.line for link in whole.links} <= {n for n, line in enumerate(lines, 1) if line.strip()}
    assert [line.line for line in whole.invalid if line.text == ""] == [
        n for n, line in enumerate(content.split(b"\n"), 1) if len(line) > LINE_LIMIT
    ]


def test_a_batch_is_given_before_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"".join(b"bit.ly/%d\n" % n for n in range(50_000)))
    batches = read(resolve_lists([path]))
    first = next(batches)
    assert len(first.links) <= BATCH_LINES
    with open(path, "r+b") as stream:  # what was not read yet is still the file's
        stream.seek(0, io.SEEK_END)
        stream.write(b"bit.ly/last\n")
    rest = merged(batches)
    assert rest.links[-1].bitlink == "bit.ly/last"
    assert first.lines + rest.lines == 50_001


def test_a_long_list_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    short = write(tmp_path, b"".join(b"bit.ly/%08d\n" % n for n in range(20_000)), "short")
    long = write(tmp_path, b"".join(b"bit.ly/%08d\n" % n for n in range(100_000)), "long")
    few, many = (peak_bytes(source) for source in resolve_lists([short, long]))
    assert many < 1.5 * few + 100_000
    assert many < 5_000_000


@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_line_takes_no_more_memory_than_a_few_chunks(tmp_path: Path, packed: bool) -> None:
    content = b"x" * (200 * CHUNK)
    [source] = resolve_lists([write(tmp_path, gzip.compress(content, 1) if packed else content)])
    assert peak_bytes(source) < 20 * CHUNK


# --- which format -------------------------------------------------------------------------------------------------


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
        assert places(read_list(write(tmp_path, pack(content), name))) == [("bit.ly/a", 2)]


def test_a_format_that_is_said_holds_for_every_list(tmp_path: Path) -> None:
    path = write(tmp_path, b"link\tn\nbit.ly/a\t1\n", "links.csv")
    assert places(read_list(path, list_format="tsv")) == [("bit.ly/a", 2)]
    assert places(read_list(write(tmp_path, b"# c\nbit.ly/a\n", "l.csv"), list_format="lines")) == [("bit.ly/a", 2)]
    assert [source.format for source in resolve_lists(["-", path], list_format="tsv")] == [
        ListFormat.TSV,
        ListFormat.TSV,
    ]
    with pytest.raises(UsageError, match="--list-format xml: must be one of lines, csv"):
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
    for number, source in enumerate(resolve_lists(each_form)):
        copy = spool(source, str(tmp_path / f"copy-{number}"))
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


def test_a_list_that_cannot_be_read_from_its_beginning_on_is_told_without_a_line_0(tmp_path: Path) -> None:
    _, broken = read_until_broken(write(tmp_path, "bit.ly/a\n".encode("utf-16") + b"bit.ly/b\n" * 100))
    assert "links.txt: cannot be read from line 1 on: " in str(broken)
