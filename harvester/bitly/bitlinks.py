"""The parser of bitlinks: a line of text becomes `domain/back-half`, or an error that says why it cannot.

The rules are Bitly's where it states them, and follow from what people paste where it does not. Parsing is idempotent:
a parsed bitlink parses to itself, so that the keys of calls do not depend on how a list writes its links.
"""

import re
import unicodedata
from typing import NewType

from harvester.errors import InvalidBitlink

Bitlink = NewType("Bitlink", str)
"""`domain/back-half`: the domain in lower case, the back-half as it was written."""

MAX_CHARACTERS = 2048
"""Longer names are invalid: the request line would exceed what servers accept."""

# Fast path: nearly every line of a real list has this form and needs none of the steps below.
_PLAIN = re.compile(r"(?:https?://)?([a-z0-9-]+(?:\.[a-z0-9-]+)+)/([A-Za-z0-9_-]+)", re.ASCII)

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_NOT_ASCII_ESCAPES = re.compile(r"(?:%[89A-Fa-f][0-9A-Fa-f])+")
_DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)+")

_QUOTES = "\"'`“”‘’«»"
# Remains of a list's own syntax in pasted text. No back-half contains any of these, so a call would be wasted.
_NEVER = frozenset(_QUOTES + "<>()[]{},;|\\^")
_AROUND = _QUOTES + "\ufeff" + " \t\r\n\v\f\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000"


def parse(text: str) -> Bitlink:
    """Return the bitlink that a line of text names.

    Removed: surrounding spaces and quotes, `http://` and `https://` in any case, query, fragment, one trailing slash,
    the preview page's `+`. Only the domain is converted to lower case, because back-halves are case-sensitive
    (https://support.bitly.com/hc/en-us/articles/230898888). Custom domains are kept.

    Raises:
        InvalidBitlink: the text cannot be `domain/back-half`; the message is the reason.
    """
    plain = _PLAIN.fullmatch(text)
    bare = text if plain else _strip_decoration(text)
    if len(bare) > MAX_CHARACTERS:
        raise InvalidBitlink(f"longer than {MAX_CHARACTERS} characters")
    if plain:
        return Bitlink(f"{plain[1]}/{plain[2]}")
    domain, slash, back_half = bare.partition("/")
    if not slash:
        raise InvalidBitlink("no slash: a bitlink is domain/back-half")
    domain = domain.lower()
    back_half = _unescape(back_half.removesuffix("/").rstrip("+"))
    _check_domain(domain)
    _check_back_half(back_half)
    return Bitlink(f"{domain}/{back_half}")


def is_bitlink(text: str) -> bool:
    """Return True if a text names a bitlink."""
    try:
        parse(text)
    except InvalidBitlink:
        return False
    return True


def _strip_decoration(text: str) -> str:
    """Remove what people paste around a bitlink: quotes, scheme, query and fragment."""
    bare = text.strip(_AROUND)
    if scheme := _SCHEME.match(bare):
        bare = bare[scheme.end() :]
    return bare.partition("#")[0].partition("?")[0]


def _unescape(back_half: str) -> str:
    """Decode a browser's percent-encoding of non-ASCII characters; an escaped slash or dot stays escaped."""

    def decode(escapes: re.Match[str]) -> str:
        octets = bytes.fromhex(escapes[0].replace("%", ""))
        try:
            return octets.decode()
        except UnicodeDecodeError:
            return escapes[0]

    return _NOT_ASCII_ESCAPES.sub(decode, back_half)


def _check_domain(domain: str) -> None:
    if not domain:
        raise InvalidBitlink("no domain before the slash")
    if ":" in domain or "@" in domain:
        raise InvalidBitlink("a scheme, port or user name where a domain was expected")
    if not _DOMAIN.fullmatch(domain):
        raise InvalidBitlink("the part before the slash is not a domain")


def _check_back_half(back_half: str) -> None:
    if not back_half:
        raise InvalidBitlink("nothing after the slash")
    if "/" in back_half:
        raise InvalidBitlink("more than two segments: a bitlink is domain/back-half")
    # Servers resolve dot segments, so Bitly would see another route: https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4
    if back_half in {".", ".."}:
        raise InvalidBitlink("a path, not a back-half")
    for character in back_half:
        if character.isspace() or unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            raise InvalidBitlink(f"a space or control character (U+{ord(character):04X}) inside")
        if character in _NEVER:
            raise InvalidBitlink(f"{character} is in no bitlink")
