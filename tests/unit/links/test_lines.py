"""Lines of zstd lists, and lines that a pipe brings one by one."""

import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester.links.columns import CHUNK
from harvester.links.files import read, resolve_lists
from tests.unit.links.lists import peak_bytes, places, read_list, read_until_broken, reasons, write

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


# --- zstd ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["links.txt", "links.zst", "links"])
def test_a_zstd_list_is_known_by_its_magic_not_by_its_name(tmp_path: Path, name: str) -> None:
    assert places(read_list(write(tmp_path, zstd.compress(b"bit.ly/a\nbit.ly/b\n"), name))) == [
        ("bit.ly/a", 1),
        ("bit.ly/b", 2),
    ]


def test_what_is_called_zst_and_is_none_is_lines(tmp_path: Path) -> None:
    assert places(read_list(write(tmp_path, b"bit.ly/a\n", "links.zst"))) == [("bit.ly/a", 1)]


def test_a_zstd_list_may_have_several_frames_and_some_without_data(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18\x02\0\0\0zz"
    frames = [skipped, zstd.compress(b"bit.ly/a\nbit."), zstd.compress(b""), skipped, zstd.compress(b"ly/b\nbit.ly/c")]
    assert places(read_list(write(tmp_path, b"".join(frames)))) == [("bit.ly/a", 1), ("bit.ly/b", 2), ("bit.ly/c", 3)]


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
    assert "cannot be read" in str(broken)


def test_a_zstd_frame_with_a_huge_window_is_refused_with_advice(tmp_path: Path) -> None:
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
    path = write(tmp_path, packer.compress(b"bit.ly/a\n" * 1000) + packer.flush())
    before, broken = read_until_broken(path)
    assert before.lines == 0
    assert "--long" in str(broken)


def test_a_zstd_bomb_of_a_line_takes_no_more_memory_than_a_few_chunks(tmp_path: Path) -> None:
    path = write(tmp_path, zstd.compress(b"x" * (200 * CHUNK) + b"\nbit.ly/a\n"))
    batch = read_list(path)
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
