"""Requests sent by an aiohttp session."""

import aiohttp
from yarl import URL

from harvester.transport.exchange import JSON_BODY, Exchange


class SessionTransport:
    """Sends requests by a session of one connection. origin: the server's, without a path."""

    def __init__(self, session: aiohttp.ClientSession, origin: URL) -> None:
        self._session = session
        self._origin = origin

    def request(self, target: str, authorization: str, body: bytes | None = None) -> Exchange:
        """Return a request to be sent; as Transport has it."""
        url = self._origin.join(URL(target, encoded=True))
        # Not a header of the session, which would be quicker: aiohttp sends those to the proxy too, in the clear.
        headers = {"Authorization": authorization}
        if body is None:
            return self._session.get(url, headers=headers, allow_redirects=False)
        return self._session.post(url, data=body, headers={**headers, **JSON_BODY}, allow_redirects=False)

    async def close(self) -> None:
        """Close the session with its connection."""
        await self._session.close()
