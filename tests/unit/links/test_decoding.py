"""What a file is by its first bytes: text in a wide encoding, compressed, or no list at all."""

import bz2
import gzip
import io
import itertools
import lzma
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from harvester.errors import InputBroken
from harvester.links import files
from harvester.links.columns import CHUNK
from harvester.links.files import Source, read, resolve_lists
from tests.unit.links.lists import (
    Dripping,
    by_bytes,
    by_lines,
    places,
    read_list,
    read_pieces,
    read_until_broken,
    write,
    write_parquet,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("packed", [False, True])
def test_a_list_in_a_wide_encoding_is_read(tmp_path: Path, encoding: str, mark: str, packed: bool) -> None:
    content = (mark + "bit.ly/a\r\nbit.ly/b\n").encode(encoding)
    batch = read_list(write(tmp_path, gzip.compress(content) if packed else content))
    assert places(batch) == [("bit.ly/a", 1), ("bit.ly/b", 2)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_a_compressed_list_is_read_whatever_its_name(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = b"link,n\n" + b"".join(b"bit.ly/%d,1\n" % n for n in range(5000))
    for name, packed in [("links.csv", pack(content)), ("l.csv.gz", pack(gzip.compress(content)))]:
        assert len(read_list(write(tmp_path, packed, name)).links) == 5000


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_a_compressed_list_is_read_to_its_last_member_or_not_at_all(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(b"bit.ly/a\n") + pack(b"bit.ly/b\n")
    assert len(read_list(write(tmp_path, whole)).links) == 2
    for damaged in (whole[:-4], whole + b"rest of another file"):
        _, broken = read_until_broken(write(tmp_path, damaged))
        assert "cannot be read" in str(broken)


def tar(content: bytes) -> bytes:
    with io.BytesIO() as target:
        with tarfile.open(fileobj=target, mode="w") as archive:
            entry = tarfile.TarInfo("links.txt")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return target.getvalue()


def zipped(*names: str) -> bytes:
    with io.BytesIO() as target:
        with zipfile.ZipFile(target, "w") as archive:
            for name in names:
                archive.writestr(name, "application/vnd.oasis.opendocument.text" if name == "mimetype" else LINES)
        return target.getvalue()


WIDE = ("16-le", "16-be", "32-le", "32-be")
LINES = b"".join(b"bit.ly/%d\n" % n for n in range(20))
NO_LISTS = {
    "tar": (tar(LINES), "tar"),
    "tar in gzip": (gzip.compress(tar(LINES)), "tar"),
    "tar in zstd": (zstd.compress(tar(LINES)), "tar"),
    "tar in xz": (lzma.compress(tar(LINES)), "tar"),
    "zip": (zipped("links.txt"), "unzip"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook, not a list; save the sheet as CSV"),
    "docx": (zipped("[Content_Types].xml", "word/document.xml"), "a Word document, not a list; export"),
    "pptx": (zipped("[Content_Types].xml", "ppt/presentation.xml"), "a PowerPoint"),
    "ods": (zipped("mimetype").replace(b".text", b".spreadsheet"), "an OpenDocument spreadsheet, not a list; save"),
    "odt": (zipped("mimetype", "content.xml"), "an OpenDocument file, not a list; export"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + LINES, "CSV"),
    "pdf": (b"%PDF-1.7\n" + LINES, "PDF"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + LINES, "7-Zip"),
    "sqlite": (b"SQLite format 3\x00" + LINES, "SQLite"),
    "html": (b"\n<!DOCTYPE html>\n<html>" + LINES, "HTML"),
    "html behind a mark": (b"\xef\xbb\xbf<!DOCTYPE html>\n<html>" + LINES, "HTML"),
    "a table": (b"<table>\n<tr><td>bit.ly/a</td></tr>\n" + LINES, "HTML"),
    "a comment of html": (b"<!-- x -->\n<html>\n" + LINES, "HTML"),
    "pdf behind a mark": (b"\xef\xbb\xbf%PDF-1.7\n" + LINES, "PDF"),
    "gzip in gzip in gzip in gzip": (gzip.compress(gzip.compress(gzip.compress(gzip.compress(LINES)))), "unpack"),
    "Parquet in gzip": (gzip.compress(b"PAR1\x15\x04" + LINES), "unpack"),
    "arrow": (b"ARROW1\0\0" + LINES, "Parquet"),
    "a closing tag": (b"</li>\n" + LINES, "HTML"),
    "a tag alone in its line": (b"<html\nlang=en>\n" + LINES, "HTML"),
    "zeros": (bytes(4096), "NUL"),
    "separated by NUL": (LINES.replace(b"\n", b"\0"), "tr "),
    "array": (b'["bit.ly/a", "bit.ly/b"]', "jq"),
    "array over lines": (b'[\n  "bit.ly/a",\n  "bit.ly/b"\n]\n', "jq"),
    "array of objects": (b'[{"link": "bit.ly/a"},\n{"link": "bit.ly/b"}]', "jq"),
    "array behind blank lines": (b'\n\r\n \n[\n"bit.ly/a",\n"bit.ly/b"\n]\n', "jq"),
    "array behind comments": (b'# exported\n\n# today\n[\n"bit.ly/a",\n"bit.ly/b"\n]\n', "jq"),
    "array behind a mark": (b'\xef\xbb\xbf[\n"bit.ly/a",\n"bit.ly/b"\n]\n', "jq"),
    "array behind a mark and a comment": (b'\xef\xbb\xbf# x\n[\n"bit.ly/a"\n]\n', "jq"),
    "array of arrays": (b'[[\n"bit.ly/a"],\n["bit.ly/b"]]\n', "jq"),
    "array that begins with null": (b'[null,\n"bit.ly/a"]\n', "jq"),
    "array that begins with a number": (b'[-1.5, "bit.ly/a"]\n', "jq"),
    "empty array": (b"[]\n", "jq"),
    "long array": (b"[" + b'"bit.ly/a",' * 9000 + b"1]", "jq"),
    "html behind a comment": (b"# exported\n<html>\n" + LINES, "HTML"),
    "object behind a comment": (b'# exported\n{\n\n"links": [\n"bit.ly/a"\n]}\n', "jq"),
    "object over lines": (b'{\n  "links": [\n    {"link": "bit.ly/a"}\n  ]\n}\n', "jq"),
    "object over lines, compact": (b'{"links": [\n{"link": "bit.ly/a"},\n{"link": "bit.ly/b"}]}', "jq"),
    "long object": (b'{"links": [' + b'{"link": "bit.ly/a"},' * 5000 + b"{}]}", "jq"),
    "object": (b'{"links": [{"link": "bit.ly/a"}]}', "ndjson"),
}


@pytest.mark.parametrize("kind", NO_LISTS)
def test_a_file_that_is_no_list_of_lines_is_refused_with_advice(tmp_path: Path, kind: str) -> None:
    content, advice = NO_LISTS[kind]
    path = write(tmp_path, content)
    with pytest.raises(InputBroken, match=re.escape(path)) as refused:
        resolve_lists([path])
    assert advice in str(refused.value)
    with pytest.raises(InputBroken):  # as a pipe, which nobody can look into first
        list(read([Source("-", path)]))


@pytest.mark.parametrize("kind", NO_LISTS)
@pytest.mark.parametrize("pieces", [by_bytes, by_lines])
def test_it_is_refused_however_a_pipe_brings_it(kind: str, pieces: Callable[[bytes], list[bytes]]) -> None:
    content, advice = NO_LISTS[kind]
    with pytest.raises(InputBroken, match=r"^-: ") as refused:
        read_pieces(pieces(content))
    assert advice in str(refused.value)


@pytest.mark.parametrize("name", ["csv", "tsv"])
def test_a_page_that_a_pipe_brings_as_a_table_is_refused(name: str) -> None:
    with pytest.raises(InputBroken, match="HTML"):
        read_pieces(by_bytes(b"\n<table>\n<tr><td>link</td></tr>"), name)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfbit.ly/a\nbit.ly/b\n",
        *(("\ufeff" * mark + "bit.ly/a\r\nbit.ly/b\n").encode(f"utf-{kind}") for mark in (0, 1) for kind in WIDE),
        *(pack(b"bit.ly/a\nbit.ly/b") for pack in (gzip.compress, bz2.compress, lzma.compress, zstd.compress)),
        gzip.compress("\ufeffbit.ly/a\nbit.ly/b".encode("utf-16-le")),
        b"[bit.ly/a]\n[[https://bit.ly/b]]\n",
        b"<bit.ly/a>\n<https://bit.ly/b>\n",
        b"[1] bit.ly/a\n[2] bit.ly/b\n",
    ],
    ids=itertools.count(),  # gzip's header has the time, and the workers' names of a test must agree
)
def test_a_list_is_read_however_a_pipe_brings_it(content: bytes) -> None:
    for pieces in (by_bytes(content), by_lines(content), [content]):
        assert [link.bitlink for link in read_pieces(pieces).links] == ["bit.ly/a", "bit.ly/b"]


def test_parquet_that_a_pipe_brings_byte_by_byte_is_read_under_any_format(tmp_path: Path) -> None:
    content = Path(write_parquet(tmp_path, {"link": ["bit.ly/a"]})).read_bytes()
    for list_format in ("lines", "csv", "parquet"):
        assert len(read_pieces(by_bytes(content), list_format).links) == 1


@pytest.mark.parametrize("domain", ["BZhome.com", "PAR1.com", "ARROW1.com", "Obj.com", "PK.com"])
def test_a_domain_may_begin_like_the_mark_of_another_file(tmp_path: Path, domain: str) -> None:
    assert len(read_list(write(tmp_path, f"{domain}/a\n".encode())).links) == 1


def test_a_damaged_object_in_the_first_line_is_an_invalid_line(tmp_path: Path) -> None:
    for content in (b'{"bitlink":"bit.ly/a\nbit.ly/b\n', b"{\n# x\nbit.ly/b\n", b"{\n\n", b'{"bitlink":\n'):
        assert len(read_pieces(by_bytes(content)).invalid) == len(read_list(write(tmp_path, content)).invalid) == 1


def test_nothing_is_waited_for_once_a_line_is_there() -> None:
    """A person types a list; each line must be there before the next one is read."""
    for first in (b"\n", b"bit.ly/a\n", b"# x\n", b"{\n", "bit.ly/a\n".encode("utf-16")):
        brought = iter([first, b"bit.ly/late\n"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_open_raw", lambda _, pieces=brought: io.BufferedReader(Dripping(pieces)))
            assert next(read([Source("-", None)])).lines == 1
        assert next(brought) == b"bit.ly/late\n"


@pytest.mark.parametrize("first", ["utf-8", *(f"utf-{kind}" for kind in ("16", "32", "16-le", "16-be"))])
@pytest.mark.parametrize("second", ["utf-8", *(f"utf-{kind}" for kind in ("16", "32", "16-le", "16-be"))])
def test_lists_in_two_encodings_that_were_joined_lose_nothing_silently(tmp_path: Path, first: str, second: str) -> None:
    many = "".join(f"bit.ly/{n}\n" for n in range(500))
    content = "bit.ly/x\nbit.ly/y\n".encode(first) + many.encode(second)
    for pieces in ([content[at : at + CHUNK] for at in range(0, len(content), CHUNK)], by_bytes(content)):
        with suppress(InputBroken):
            batch = read_pieces(pieces)
            assert len(batch.links) + len(batch.invalid) >= 500


@pytest.mark.parametrize("second", [b"bit.ly/1\nbit.ly/2\nbit.ly/3\n", "bit.ly/1\n".encode("utf-16-be")])
def test_another_encoding_is_an_error_that_says_what_to_do(second: bytes) -> None:
    for name, start in (("lines", "bit.ly/x\n"), ("csv", "title,link\nx,bit.ly/x\n")):
        with pytest.raises(InputBroken, match=r"begins in UTF-16.*another encoding; write all of it in UTF-8"):
            read_pieces([start.encode("utf-16") + second], name)


def test_chinese_titles_in_utf_16_are_one_encoding(tmp_path: Path) -> None:
    titles = "".join(chr(n) for n in range(0x4E00, 0x9FFF)) * 3
    content = "title,link\n" + "".join(f"{titles[at : at + 50]},bit.ly/{at}\n" for at in range(0, len(titles), 50))
    batch = read_list(write(tmp_path, content.encode("utf-16"), "links.csv"))
    assert (len(batch.links), batch.invalid) == (content.count("\n") - 1, [])


def test_parquet_under_another_name_is_read_as_parquet(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    pyarrow.parquet.write_table(pa.table({"link": ["bit.ly/a"]}), path)
    assert [link.bitlink for link in read_list(str(path)).links] == ["bit.ly/a"]


@pytest.mark.parametrize("name", ["links.txt", "links.csv"])
def test_lines_that_end_with_a_carriage_return_alone_are_lines(tmp_path: Path, name: str) -> None:
    content = b"link\r" * name.endswith("csv") + b"".join(b"bit.ly/%d\r" % n for n in range(20_000))
    assert len(read_list(write(tmp_path, content, name)).links) == 20_000
    mixed = read_list(write(tmp_path, b"bit.ly/a\rbit.ly/b\r\nbit.ly/c\n"))
    assert places(mixed) == [("bit.ly/a", 1), ("bit.ly/b", 2), ("bit.ly/c", 3)]


def test_json_nested_deeply_or_with_a_long_number_is_read_or_invalid(tmp_path: Path) -> None:
    deep = b'{"bitlink":"bit.ly/b","n":' + b"[" * 1000 + b"]" * 1000 + b"}"
    assert len(read_list(write(tmp_path, deep + b"\nbit.ly/a\n")).links) == 2
    long = b'{"n":' + b"1" * 5000 + b"}"
    batch = read_list(write(tmp_path, long + b"\nbit.ly/a\n"))
    assert (len(batch.links), len(batch.invalid)) == (1, 1)


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("a.json", b"[1,\n2]", "jq -c '.[]' {path} > links.ndjson"),
        ("a.json.gz", b"[1,\n2]", "zcat {path} | jq -c '.[]' > links.ndjson"),
        ("a.json", b'{\n"link": "bit.ly/a"\n}\n{\n"link": "bit.ly/b"\n}\n', "jq -c . {path} > links.ndjson"),
    ],
    ids=["array", "packed", "objects"],
)
def test_the_advice_for_json_is_a_command_that_works(tmp_path: Path, name: str, text: bytes, advice: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(InputBroken) as refused:
        list(read(resolve_lists([str(path)])))
    assert advice.format(path=path) in str(refused.value)
