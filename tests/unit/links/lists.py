"""Lists written for a test, and what reading them gives."""

import io
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from harvester.errors import InputBroken
from harvester.links import files
from harvester.links.batch import Batch
from harvester.links.columns import CHUNK
from harvester.links.files import Source, read, resolve_lists


def write(folder: Path, content: bytes, name: str = "links.txt") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def write_parquet(folder: Path, columns: Mapping[str, object]) -> str:
    path = str(folder / "links.parquet")
    parquet.write_table(pa.table(columns), path)
    return path


def read_list(path: str, column: str | None = None, list_format: str | None = None) -> Batch:
    return merged(read(resolve_lists([path], column, list_format)))


def merged(batches: Iterator[Batch]) -> Batch:
    """All batches as one."""
    whole = Batch()
    for batch in batches:
        whole.lines += batch.lines
        whole.blank += batch.blank
        whole.comments += batch.comments
        whole.headers += batch.headers
        whole.invalid += batch.invalid
        whole.links += batch.links
    return whole


def places(batch: Batch) -> list[tuple[str, int]]:
    return [(link.bitlink, link.line) for link in batch.links]


def reasons(batch: Batch) -> list[tuple[int, str]]:
    """Line and first word of the reason of each invalid line."""
    return [(line.line, line.reason.partition(" ")[0]) for line in batch.invalid]


def check_counts(batch: Batch) -> None:
    assert batch.lines == batch.blank + batch.comments + batch.headers + len(batch.invalid) + len(batch.links)


def read_until_broken(path: str) -> tuple[Batch, InputBroken]:
    """What came before the break, and the break."""
    seen: list[Batch] = []
    with pytest.raises(InputBroken) as broken:
        seen.extend(read(resolve_lists([path])))
    return merged(iter(seen)), broken.value


def peak_bytes(source: Source) -> int:
    """The most memory that reading a source takes, when no batch is kept."""
    tracemalloc.start()
    try:
        for _ in read([source]):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Dripping(io.RawIOBase):
    """A pipe that brings its pieces one by one, one for each read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = next(self._pieces, b"")
        buffer[: len(piece)] = piece
        return len(piece)


def read_pieces(pieces: Iterable[bytes], list_format: str = "lines", column: str | None = None) -> Batch:
    """What reading a pipe gives that brings a list in pieces of at most 64 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_open_raw", lambda _: io.BufferedReader(Dripping(pieces), CHUNK))
        return merged(read(resolve_lists(["-"], column, list_format)))


def by_bytes(content: bytes) -> list[bytes]:
    """A list byte by byte; what is long in larger pieces."""
    size = 1 if len(content) < 20_000 else 1000
    return [content[at : at + size] for at in range(0, len(content), size)]


def by_lines(content: bytes) -> list[bytes]:
    lines = content.splitlines(keepends=True)
    return [line[at : at + CHUNK] for line in lines for at in range(0, len(line), CHUNK)]
