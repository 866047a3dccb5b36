"""A request and its response, whatever sends the one and reads the other."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

import aiohttp
from multidict import CIMultiDictProxy

JSON_BODY = {"Content-Type": "application/json"}
"""The headers of a request that posts JSON."""


class Response(Protocol):
    """What is used of a response, whatever has sent the request."""

    @property
    def status(self) -> int:
        """HTTP's status code."""

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


Exchange: TypeAlias = AbstractAsyncContextManager[Response]
"""A request that is sent when the context is entered, and whose response is read inside it."""


class Transport(Protocol):
    """Sends requests over one connection, which it opens when it needs it."""

    def request(self, target: str, authorization: str, body: bytes | None = None) -> Exchange:
        """Return a request to be sent.

        target: path and query, encoded. body: JSON to be posted; None for a GET request.
        """

    async def close(self) -> None:
        """Close the connection."""
