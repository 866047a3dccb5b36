"""Tokens that stand by mistake where something else was expected, such as a list's path: no message shows them."""

import re
from collections.abc import Iterable

_SECRET = 20
"""A token in use that is shorter, as a sandbox's, may be an ordinary word."""
_BITLYS = re.compile(r"[0-9A-Fa-f]{40}")
"""A token as Bitly makes them; a commit of git looks the same."""
_STANDING_ALONE = re.compile(rf"(?<![\w/.-]){_BITLYS.pattern}(?![\w/-])")
"""Such a token that is no part of a path, where it is more likely to be a commit."""


def looks_like_token(text: str) -> bool:
    """Return whether a text is nothing but a token as Bitly makes them."""
    return _BITLYS.fullmatch(text) is not None


class MisplacedTokens:
    """The tokens of this process that may stand where they do not belong, on its command line or in a list."""

    def __init__(self) -> None:
        self._given: tuple[str, ...] = ()

    def begin(self, words: Iterable[str], token: str) -> None:
        """Note what looks like a token in the words of a command line. token: BITLY_TOKEN's value, or empty."""
        values = (word.rpartition("=")[2] for word in words)
        secret = [token] if len(token) >= _SECRET else []
        self._given = (*secret, *filter(looks_like_token, values))

    def hidden(self, text: str) -> str:
        """Return a text with these tokens replaced."""
        for token in self._given:
            text = text.replace(token, "[token]")
        return text

    def hidden_in_message(self, text: str) -> str:
        """Return a message with these tokens replaced, and with everything else that seems to be a token."""
        return _STANDING_ALONE.sub("[token]", self.hidden(text))


misplaced = MisplacedTokens()
