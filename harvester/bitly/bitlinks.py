"""The parser of bitlinks: a line of text becomes `domain/back-half`, or an error that says why it cannot.

The rules are Bitly's where it states them, and follow from what people paste where it does not. Parsing is idempotent:
a parsed bitlink parses to itself, so that the keys of calls do not depend on how a list writes its links.
"""

import json
import re
import unicodedata
from typing import NewType
from urllib.parse import quote

from harvester.errors import InvalidBitlink

Bitlink = NewType("Bitlink", str)
"""`domain/back-half`: the domain in lower case, the back-half as it was written."""

MAX_CHARACTERS = 2048
"""Longer names are invalid: the request line would exceed what servers accept."""

# Fast path: nearly every line of a real list has this form and needs none of the steps below.
_PLAIN = re.compile(
    r"(?:https?://)?(?![0-9.]+\.(?:bit\.ly|j\.mp)/)([a-z0-9]{1,60}(?:\.[a-z0-9]{1,60})?\.[a-z]{2,60})/([A-Za-z0-9_-]+)",
    re.ASCII,
)

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)+(?:[a-z]{{2,63}}|xn--[a-z0-9-]{{0,58}}[a-z0-9])", re.ASCII)
_NUMBERED = re.compile(r"([0-9.]+\.)(bit\.ly|j\.mp)")
"""One of Bitly's own domains behind a list's number, without the space that would tell the two apart."""
_ANOTHER = re.compile(r"[\s,;|]+(?:https?://)?[\w-]+(?:\.[\w-]+)+/\S", re.IGNORECASE)
"""A second link, behind a query or fragment."""
_BETWEEN = re.compile(r"(?:[\s,;|<>()\[\]{}\"'`\u200b、，；]|\\[nrt])+")
"""What separates links that stand in one line: spaces and ends of lines of any kind, marks, and escapes."""
_WITH_SCHEME = re.compile(r"https?://[^\s/.]+(?:\.[^\s/.]+)+/[^\s/]", re.IGNORECASE)
_LIKE_A_LINK = re.compile(r"\W*((?:[\w-]+\.)+[^\W\d_]{2,}/)[\w%]")
_MARKER = re.compile(r"(?:[•‣⁃∙·]\s*|[-+–—‐‑−◦▪▫●○■□►▶➤➢→]\s+|[(\[]?(?:\d{1,9}(?:\.\d{1,9})*|[A-Za-z])[.)\]]{1,2}\s+)+")
"""The marks in front of an entry of a bulleted or numbered list. Without the space a hyphen or a number may belong to
a domain."""
_SYMBOLS = re.compile(r"L.|M.|N.|So|Sk")
"""Unicode's categories of what a label of a domain is made of: letters, marks, digits, and emoji."""

_QUOTES = "\"'`´“”„‟‘’‚‛«»‹›「」『』＂＇❝❞〝〞"
_BRACKETS = "<>()[]{}＜＞（）【】《》〈〉〔〕［］"
_SPACES = "\ufeff \t\r\n\v\f\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000"
_AROUND = _QUOTES + _BRACKETS + _SPACES + "|*"
_BEHIND = _AROUND + ".!,;:+。！，；：、？؟؛۔।։‽–—•→"
"""What a sentence, or Bitly's preview page, puts behind a link; a link in front of it is whole."""
_CUT_OFF = ("…", "..", "‥", "⋯", "․")
"""A link in front of these was shortened for display: its rest is lost."""
_ENTITY = re.compile(r"&(?:\w+;)?\Z")
"""What pages write for a character; of a numbered one only the & is left, because # begins a fragment."""
_BLANK_ENTITIES = frozenset({"&nbsp;", "&ensp;", "&emsp;", "&thinsp;"})
# Remains of a list's own syntax inside a link. No back-half contains any of these, so a call would be wasted.
_NEVER = frozenset(_QUOTES + _BRACKETS + ",;|\\^…%")
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode's categories of what cannot be seen, or is no character."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffc\ufffd")
"""Characters that look like nothing, and the one that stands for lost text."""
_VARIATIONS = re.compile(r"[\x00-\x7f][\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""A selector of a letter's shape behind a letter that has only one; behind an emoji it is a part of it."""


def parse(text: str) -> Bitlink:
    """Return the bitlink that a line of text names.

    Removed: a list's bullet or number in front, spaces, quotes, brackets and a sentence's marks around it, `http://`
    and `https://` in any case, query, fragment, one trailing slash, the preview page's `+`. Percent-encoding is
    decoded: what an escape stands for decides. Only the domain is converted to lower case, because back-halves are
    case-sensitive (https://support.bitly.com/hc/en-us/articles/230898888). An international domain gets its ASCII form,
    so that both of its forms are one bitlink. Custom domains are kept.

    Raises:
        InvalidBitlink: the text cannot be `domain/back-half`; the message is the reason.
    """
    if len(text) <= MAX_CHARACTERS and (plain := _PLAIN.fullmatch(text)):
        return Bitlink(f"{plain[1]}/{plain[2]}")
    bare = _strip_decoration(_unescape(text))
    if len(bare) > MAX_CHARACTERS:
        raise InvalidBitlink(f"longer than {MAX_CHARACTERS} characters")
    if "\ufffd" in bare:
        raise InvalidBitlink("U+FFFD: part of the text was lost")
    domain, slash, back_half = bare.partition("/")
    if not slash:
        raise InvalidBitlink("no slash: a bitlink is domain/back-half")
    domain = _ascii_domain(domain)
    back_half = _strip_behind(back_half)
    _check_back_half(back_half)
    if not back_half.isascii() and len(quote(back_half)) > MAX_CHARACTERS:
        raise InvalidBitlink(f"longer than {MAX_CHARACTERS} characters as it is sent")
    return Bitlink(f"{domain}/{back_half}")


def bitlink(text: str) -> str:
    """Return the bitlink that a text names, as rows have it: `harvester.bitlink("https://bit.ly/x?utm=1")`.

    Raises:
        InvalidBitlink: it names none, which is a ValueError; the message is the reason.
    """
    if not isinstance(text, str):
        raise InvalidBitlink(f"must be text, not {type(text).__name__}")
    return parse(text)


def is_bitlink(text: str) -> bool:
    """Return True if a text names a bitlink."""
    try:
        parse(text)
    except InvalidBitlink:
        return False
    return True


def links_in(text: str, most: int = 3) -> int:
    """Return how many links, or JSON objects one behind the other, an invalid line seems to hold; `most` for more.

    A link is counted by its form alone: `domain/` and something behind it. What stands in a URL's query is no other
    link. Links that were joined without anything between them are told by their schemes, or by a domain that recurs.
    """
    if text.lstrip().startswith("{"):
        return _objects_in(text, most)
    found = 0
    for word in _BETWEEN.split(_unescape(text)):
        path = re.split("[?#]", word, maxsplit=1)[0]
        schemes = len(_WITH_SCHEME.findall(path))
        if not schemes and (like := _LIKE_A_LINK.match(path)):
            found += path.count(like[1])
        found += schemes
        if found >= most:
            return most
    return found


def _objects_in(text: str, most: int) -> int:
    found, at, decoder = 0, 0, json.JSONDecoder()
    while found < most and (at := text.find("{", at)) >= 0:
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        found += 1
    return found


def _strip_decoration(text: str) -> str:
    """Remove what people paste around a bitlink: quotes, brackets, scheme, query and fragment."""
    bare = text.strip(_AROUND)
    if not bare[:2].isalpha() and (marker := _MARKER.match(bare)):  # two letters begin a scheme or a domain
        bare = bare[marker.end() :].lstrip(_AROUND)
    if scheme := _SCHEME.match(bare):
        bare = bare[scheme.end() :]
    bare = re.split(r"\s#", bare, maxsplit=1)[0]  # a comment, which may name other links
    end = min((at for at in map(bare.find, "?#") if at >= 0), default=len(bare))
    if _ANOTHER.search(bare, end, end + MAX_CHARACTERS):
        raise InvalidBitlink("two links in one line")
    return bare[:end]


def _unescape(text: str) -> str:
    """Decode percent-encoded text once. Bytes that are not UTF-8 stay as they are, and make an invalid bitlink."""

    def decode(escapes: re.Match[str]) -> str:
        try:
            return bytes.fromhex(escapes[0].replace("%", "")).decode()
        except UnicodeDecodeError:
            return escapes[0]

    return _ESCAPES.sub(decode, text)


def _strip_behind(back_half: str) -> str:
    """Remove the marks behind a back-half, and one slash among them.

    Raises:
        InvalidBitlink: the marks say that the end of the link is missing.
    """
    # Servers resolve dot segments, so Bitly would see another route: https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4
    if back_half.rstrip("+/") in {".", ".."}:
        raise InvalidBitlink("a path, not a back-half")
    while entity := _ENTITY.search(back_half):
        if entity[0].lower() not in _BLANK_ENTITIES:
            raise InvalidBitlink(f"a character's HTML name behind it: {entity[0]}")
        back_half = back_half[: entity.start()]
    slashes = 1
    while True:
        if back_half.endswith(_CUT_OFF):
            raise InvalidBitlink("cut off: its end is missing")
        stripped = back_half.rstrip(_BEHIND)
        if slashes and stripped.endswith("/"):
            stripped, slashes = stripped[:-1], 0
        if stripped == back_half:
            return back_half
        back_half = stripped


def _ascii_domain(domain: str) -> str:
    """Return a domain in lower case and ASCII, as DNS has it (https://www.unicode.org/reports/tr46).

    Raises:
        InvalidBitlink: it is not a domain.
    """
    if not domain:
        raise InvalidBitlink("no domain before the slash")
    if ":" in domain or "@" in domain:
        raise InvalidBitlink("a port, a user name, or a scheme other than http(s)")
    domain = domain.lower() if domain.isascii() else _encode_domain(domain)
    if not _DOMAIN.fullmatch(domain):
        raise InvalidBitlink("the part before the slash is not a domain")
    if numbered := _NUMBERED.fullmatch(domain):
        raise InvalidBitlink(f"{domain} cannot be a Bitly domain; is {numbered[1]} the number of a list entry?")
    return domain


def _encode_domain(domain: str) -> str:
    import idna  # noqa: PLC0415 - its tables are large, and few lists need them

    try:
        return idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        pass
    # Emoji are no letters for IDNA, but there are domains of them, and browsers encode these in the same way.
    try:
        labels = idna.uts46_remap(domain, std3_rules=False).split(".")
    except idna.IDNAError:
        return ""
    if not all(_SYMBOLS.match(unicodedata.category(letter)) or letter in "-_" for label in labels for letter in label):
        return ""
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels)


def _check_back_half(back_half: str) -> None:
    if not back_half:
        raise InvalidBitlink("nothing after the slash")
    if "/" in back_half:
        raise InvalidBitlink("more than two segments: a bitlink is domain/back-half")
    for character in back_half:
        if character.isspace() or character in _BLANK or unicodedata.category(character) in _INVISIBLE:
            raise InvalidBitlink(f"a space, control or invisible character (U+{ord(character):04X}) inside")
        if character in _NEVER:
            raise InvalidBitlink(f"a bitlink cannot contain {character}")
    if found := _VARIATIONS.search(back_half):
        raise InvalidBitlink(f"a space, control or invisible character (U+{ord(found[0][1]):04X}) inside")
