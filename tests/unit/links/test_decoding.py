"""What a file is by its first bytes: text in a wide encoding, compressed, or no list at all."""

import bz2
import gzip
import io
import lzma
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from harvester.errors import InputBroken
from harvester.links.files import Source, read, resolve_lists
from tests.unit.links.lists import places, read_list, read_until_broken, write

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
        assert "cannot be read past line" in str(broken)


def tar(content: bytes) -> bytes:
    with io.BytesIO() as target:
        with tarfile.open(fileobj=target, mode="w") as archive:
            entry = tarfile.TarInfo("links.txt")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return target.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    with io.BytesIO() as target:
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr(name, content)
        return target.getvalue()


LINES = b"".join(b"bit.ly/%d\n" % n for n in range(20))
NO_LISTS = {
    "tar": (tar(LINES), "tar"),
    "tar in gzip": (gzip.compress(tar(LINES)), "tar"),
    "tar in zstd": (zstd.compress(tar(LINES)), "tar"),
    "tar in xz": (lzma.compress(tar(LINES)), "tar"),
    "zip": (zipped("links.txt", LINES), "unzip"),
    "xlsx": (zipped("[Content_Types].xml", LINES), "CSV"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + LINES, "CSV"),
    "pdf": (b"%PDF-1.7\n" + LINES, "PDF"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + LINES, "7-Zip"),
    "sqlite": (b"SQLite format 3\x00" + LINES, "SQLite"),
    "html": (b"\n<!DOCTYPE html>\n<html>" + LINES, "HTML"),
    "html behind a mark": (b"\xef\xbb\xbf<!DOCTYPE html>\n<html>" + LINES, "HTML"),
    "a table": (b"<table>\n<tr><td>bit.ly/a</td></tr>\n" + LINES, "HTML"),
    "a comment of html": (b"<!-- x -->\n<html>\n" + LINES, "HTML"),
    "pdf behind a mark": (b"\xef\xbb\xbf%PDF-1.7\n" + LINES, "PDF"),
    "zeros": (bytes(4096), "NUL"),
    "separated by NUL": (LINES.replace(b"\n", b"\0"), "tr "),
    "array": (b'["bit.ly/a", "bit.ly/b"]', "jq"),
    "array over lines": (b'[\n  "bit.ly/a",\n  "bit.ly/b"\n]\n', "jq"),
    "array of objects": (b'[{"link": "bit.ly/a"},\n{"link": "bit.ly/b"}]', "jq"),
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
