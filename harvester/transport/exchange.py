"""A request and its response, whatever sends the one and reads the other."""

from typing import NamedTuple, Protocol

from multidict import CIMultiDictProxy

from harvester.transport.body import Body

JSON_BODY = {"Content-Type": "application/json"}
"""The headers of a request that posts JSON."""


class Received(NamedTuple):
    """A response that was read. status: HTTP's status code."""

    status: int
    headers: CIMultiDictProxy[str]
    body: Body


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
