"""The bearer token while it is in use: never shown, and read from its source again when Bitly refuses it."""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress

from harvester.bitly.verdicts import Answer, Verdict
from harvester.errors import UsageError
from harvester.shutdown import ShutdownSignal
from harvester.threads import in_daemon

_SECRET = 20
"""A token of so many characters comes by chance in no answer."""


class Token:
    """The bearer token; it may be rotated while a run goes on.

    read: gives the token, and may block; raises UsageError where there is none. It is called at once.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._value = read()
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return "Token(…)"

    @property
    def header(self) -> str:
        """The Authorization header's value."""
        return f"Bearer {self._value}"

    @property
    def fingerprint(self) -> str:
        """A name for the token from which it cannot be told."""
        return fingerprint(self._value)

    def redact(self, text: str) -> str:
        """Give a text without the token in it."""
        return text.replace(self._value, "[token]")

    def has_to_hide(self, body: bytes, verdict: Verdict) -> bool:
        """Say whether a body must not be kept as it is: some servers show what they were sent.

        A sandbox's token may be a word like any other, which belongs into a good answer.
        """
        return self._value.encode() in body and (self._long or not isinstance(verdict, Answer))

    @property
    def _long(self) -> bool:
        return len(self._value) >= _SECRET

    def hidden_if_long(self, text: str) -> str:
        """Give a text without the token in it, unless the token may be a word like any other."""
        return self.redact(text) if self._long else text

    async def renewed(self, refused: str, shutdown: ShutdownSignal) -> bool:
        """Say whether there is another token now than the one whose header was refused.

        Raises:
            Stopping: the run ended while the source was being asked.
        """
        async with self._lock:
            if self.header == refused:
                with suppress(UsageError):  # what Bitly said of the old one is the better message
                    self._value = await shutdown.unless_stopping(in_daemon(self._read))
            return self.header != refused


def fingerprint(token: str) -> str:
    """Give the first 12 hex digits of a token's SHA-256: what state, logs and manifests call it."""
    return hashlib.sha256(token.encode()).hexdigest()[:12]
