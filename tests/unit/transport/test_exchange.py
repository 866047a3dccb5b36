"""Packed bodies that arrive in any pieces, whole or not."""

import gzip
import zlib
from collections.abc import AsyncIterator

from hypothesis import example, given
from hypothesis import strategies as st

from harvester.transport.exchange import Body, read_bounded

PACKED = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw deflate": lambda data: zlib.compress(data, wbits=-15),
}


class Pieces:
    """A response whose body arrives in these pieces."""

    def __init__(self, pieces: list[bytes], encoding: str) -> None:
        self.headers = {"Content-Encoding": encoding}
        self.content_length = None
        self.content = self
        self.closed = False
        self._pieces = pieces

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    def close(self) -> None:
        self.closed = True


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.binary(max_size=300), st.sampled_from([*PACKED]), st.lists(st.integers(0, 300), max_size=4))
async def test_a_packed_body_is_whole_however_it_arrives(data: bytes, how: str, cuts: list[int]) -> None:
    response = Pieces(pieces_of(PACKED[how](data), cuts), how.removeprefix("raw "))
    body = await read_bounded(response)  # type: ignore[arg-type]
    assert body == Body(data)


@given(st.binary(max_size=300), st.sampled_from([*PACKED]), st.lists(st.integers(0, 300), max_size=4), st.data())
async def test_a_cut_body_is_known_to_be_cut(data: bytes, how: str, cuts: list[int], drawn: st.DataObject) -> None:
    packed = PACKED[how](data)
    packed = packed[: drawn.draw(st.integers(0, len(packed) - 1))]
    body = await read_bounded(Pieces(pieces_of(packed, cuts), how.removeprefix("raw ")))  # type: ignore[arg-type]
    assert body.cut
    assert body.flaw


@given(st.lists(st.binary(max_size=60), max_size=5), st.sampled_from(["gzip", "deflate", "x-gzip", "br", "identity"]))
@example([gzip.compress(b"{}"), b"\0\0", gzip.compress(b"")], "gzip")
async def test_any_bytes_are_a_body_or_have_a_flaw(pieces: list[bytes], encoding: str) -> None:
    body = await read_bounded(Pieces(pieces, encoding))  # type: ignore[arg-type]
    assert body.flaw or body.whole
