"""The bearer token in use: never shown, and read again from its source when Bitly refuses it."""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress

from harvester.errors import UsageError
from harvester.shutdown import ShutdownSignal
from harvester.threads import in_daemon

_SECRET = 20
"""A token this long does not occur in a response by chance."""


class Token:
    """The bearer token; it may be rotated during a run.

    read: returns the token and may block; raises UsageError if there is none. Called at once. header: the value of the
    Authorization header.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._set(read())
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return "Token(…)"

    def _set(self, value: str) -> None:
        self._value, self._bytes = value, value.encode()
        self.header = f"Bearer {value}"

    @property
    def fingerprint(self) -> str:
        """A name for the token that does not reveal it."""
        return fingerprint(self._value)

    def redact(self, text: str) -> str:
        """Return a text with the token replaced."""
        return text.replace(self._value, "[token]")

    def has_to_hide(self, body: bytes, *, good: bool) -> bool:
        """Return whether a body shows the token, as some servers echo their requests.

        good: it is an answer, in which a sandbox's token may stand, because that may be an ordinary word.
        """
        return self._bytes in body and (self._long or not good)

    @property
    def _long(self) -> bool:
        return len(self._value) >= _SECRET

    def is_in(self, text: str) -> bool:
        """Return whether a text shows the token, unless the token is so short that it may be an ordinary word."""
        return self._long and self._value in text

    def hidden_if_long(self, text: str) -> str:
        """Return a text with the token replaced, unless the token is so short that it may be an ordinary word."""
        return self.redact(text) if self._long else text

    async def renewed(self, refused: str, shutdown: ShutdownSignal) -> bool:
        """Read the token again if its header is still the refused one; return whether there is another now.

        Raises:
            RunStopping: the run ended while the source was read.
        """
        async with self._lock:
            if self.header == refused:
                with suppress(UsageError):  # Bitly's message about the old one is more useful
                    self._set(await shutdown.unless_stopping(in_daemon(self._read)))
            return self.header != refused


def fingerprint(token: str) -> str:
    """Return the first 12 hex digits of a token's SHA-256: its name in state, logs and manifests."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]
