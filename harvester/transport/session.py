"""Requests sent by an aiohttp session."""

import aiohttp
from yarl import URL

from harvester.transport.connection import SlotConnection
from harvester.transport.exchange import JSON_BODY, Received, read_bounded


class SessionTransport:
    """Sends requests by a session of one connection. origin: the server's, without a path."""

    def __init__(self, session: aiohttp.ClientSession, origin: URL, line: SlotConnection) -> None:
        self._session = session
        self._origin = str(origin).removesuffix("/")
        self._line = line

    async def send(self, target: str, authorization: str, body: bytes | None = None) -> Received:
        """Send a request, and read its response; as Transport has it."""
        url = URL(self._origin + target, encoded=True)
        # Not a header of the session, which would be quicker: aiohttp sends those to the proxy too, in the clear.
        headers = {"Authorization": authorization}
        self._line.kept = False
        if body is None:
            exchange = self._session.get(url, headers=headers, allow_redirects=False)
        else:
            exchange = self._session.post(url, data=body, headers={**headers, **JSON_BODY}, allow_redirects=False)
        async with exchange as response:
            received = Received(response.status, response.headers, *await read_bounded(response))
        stays_open = received.headers.get("Connection", "keep-alive").lower() == "keep-alive"
        self._line.kept = stays_open and received.whole and not received.flaw
        protocol = self._line.protocol
        self._line.sole = protocol is None or protocol.looks_sole(received.content)
        return received

    async def close(self) -> None:
        """Close the session with its connection."""
        await self._session.close()
