"""A request and its response, whatever sends the one and reads the other; the body is unpacked here, up to a bound."""

import zlib
from typing import Any, NamedTuple, Protocol

import aiohttp
from multidict import CIMultiDictProxy

from harvester.bitly.facets import BODY_LIMIT

JSON_BODY = {"Content-Type": "application/json"}
"""The headers of a request that posts JSON."""
_READ_BYTES = 64 * 1024
_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP = b"\x1f\x8b"


class Body(NamedTuple):
    """A response's body, decoded. whole: False if there was more than BODY_LIMIT. flaw: why it could not be unpacked,
    or "". cut: that is because its end is missing.
    """

    content: bytes
    whole: bool = True
    flaw: str = ""
    cut: bool = False


class Received(NamedTuple):
    """A response that was read. status: HTTP's status code. The last four are its Body's."""

    status: int
    headers: CIMultiDictProxy[str]
    content: bytes
    whole: bool = True
    flaw: str = ""
    cut: bool = False


class Transport(Protocol):
    """Sends requests over one connection, which it opens when it needs it."""

    async def send(self, target: str, authorization: str, body: bytes | None = None) -> Received:
        """Send a request, and read its response.

        target: path and query, encoded. body: JSON to be posted; None for a GET request.

        Raises:
            aiohttp.ClientError: there was no whole response. ValueError: a character that no request may have.
        """

    async def close(self) -> None:
        """Close the connection."""


class Response(Protocol):
    """The head of a response, and its body as a stream, whatever has read the head."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The response's headers."""

    @property
    def content(self) -> aiohttp.StreamReader:
        """The body as a stream, still compressed."""

    @property
    def content_length(self) -> int | None:
        """The length in bytes that the head states; None without one."""

    async def read(self) -> bytes:
        """Return the whole body."""

    def close(self) -> None:
        """Close the connection: what is left of the body is not read."""


async def read_bounded(response: Response) -> Body:
    """Read a body of at most BODY_LIMIT bytes, decoded.

    aiohttp's own decoding is off: a few KiB of gzip can hold gigabytes.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    length = response.content_length
    plain = encoding in {"", "identity"}
    if plain and length is not None and length <= BODY_LIMIT:
        return Body(await response.read())
    if not plain and encoding not in _ENCODINGS:
        return _undecoded(response, f"Content-Encoding {encoding[:40]!r}, which was not requested")
    unpack = None if plain else _Unpacker(encoding)
    body, taken = bytearray(), 0
    async for chunk in response.content.iter_chunked(_READ_BYTES):
        taken += len(chunk)
        try:
            body += unpack(chunk, BODY_LIMIT + 1 - len(body)) if unpack else chunk[: BODY_LIMIT + 1 - len(body)]
        except (zlib.error, ValueError) as error:
            return _undecoded(response, f"{encoding}: {error}")
        if len(body) > BODY_LIMIT or taken > 2 * BODY_LIMIT:  # gzip may have any number of empty members
            response.close()  # what is left is not worth reading
            return Body(bytes(body[:BODY_LIMIT]), whole=False)
    if unpack and not unpack.complete:
        return Body(b"", flaw=f"{encoding}: its end is missing", cut=True)
    return Body(bytes(body))


def _undecoded(response: Response, flaw: str) -> Body:
    response.close()
    return Body(b"", flaw=flaw)


class _Unpacker:
    """Decodes a compressed body piece by piece.

    gzip: members one after another are one body (https://www.rfc-editor.org/rfc/rfc1952#page-5). deflate: with zlib's
    header, as it is meant, or without, as some servers send it. complete: the end of the last member was read.
    """

    def __init__(self, encoding: str) -> None:
        self._deflate = encoding == "deflate"
        self._begun = b""
        self._inflate: Any = None if self._deflate else zlib.decompressobj(wbits=31)

    @property
    def complete(self) -> bool:
        return self._inflate is not None and self._inflate.eof

    def __call__(self, chunk: bytes, room: int) -> bytes:
        """Decode a piece into at most room bytes. Raises zlib.error, or ValueError for what follows the last member."""
        if self._inflate is None:
            chunk = self._begun = self._begun + chunk
            if len(chunk) < 2:
                return b""
            # zlib's header: method 8, and a check sum by 31 (https://www.rfc-editor.org/rfc/rfc1950#page-5).
            is_zlib = chunk[0] & 15 == 8 and int.from_bytes(chunk[:2], "big") % 31 == 0
            self._inflate = zlib.decompressobj(wbits=15 if is_zlib else -15)
        found = bytearray()
        while chunk and len(found) < room:
            if self._inflate.eof:
                chunk = chunk.lstrip(b"\0")  # as gzip(1) does: some servers fill the last block up
                if not chunk:
                    break
                if self._deflate or not _GZIP.startswith(chunk[: len(_GZIP)]):
                    raise ValueError("something follows the compressed body")
                self._inflate = zlib.decompressobj(wbits=31)
            found += self._inflate.decompress(chunk, room - len(found))
            chunk = self._inflate.unused_data
        return bytes(found)
