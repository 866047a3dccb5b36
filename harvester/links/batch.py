"""links.batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from harvester.bitly.bitlinks import Bitlink, parse
from harvester.errors import InvalidBitlink
from harvester.events import InvalidLine
from harvester.links.lines import GROUP_LINES, LINE_LIMIT
from harvester.links.tables import TOO_LONG, ColumnBatch, readable

BATCH_LINES = GROUP_LINES
"""Links are looked up in the ledger by the batch."""
_KEPT_TEXT = 2000


class Link(NamedTuple):
    """A bitlink and where it stands."""

    bitlink: Bitlink
    file: str
    line: int


@dataclass(slots=True)
class Batch:
    """Some consecutive lines of a list, taken apart: lines = blank + comments + headers + len(invalid) + len(links).

    A record of CSV over several lines counts as one. last: the number of the last line that was read.
    """

    last: int = 0
    lines: int = 0
    blank: int = 0
    comments: int = 0
    headers: int = 0
    invalid: list[InvalidLine] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def batch_of_links(links: Sequence[object], name: str, first: int) -> Batch:
    """Take links apart that were given one by one, as if each were a line; first: the number of the first."""
    texts = [link if isinstance(link, str) else None for link in links]
    raw = [b"" if text is None else text.encode(errors="surrogatepass") for text in texts]
    batch = _take_apart([line if len(line) <= LINE_LIMIT else None for line in raw], name, first)
    for number, (link, text) in enumerate(zip(links, texts, strict=True), first):
        if text is None:
            batch.blank -= 1
            batch.invalid.append(InvalidLine("", f"a text was expected, not {type(link).__name__}", name, number))
    return batch


def _batch_of(cells: ColumnBatch, file: str) -> Batch:
    lines = cells.headers + cells.blank + len(cells.flaws) + len(cells.found)
    batch = Batch(last=cells.last, lines=lines, blank=cells.blank, headers=cells.headers)
    batch.invalid = [InvalidLine(flaw.text, flaw.reason, file, flaw.line) for flaw in cells.flaws]
    for number, text in cells.found:
        try:
            batch.links.append(Link(parse(text), file, number))
        except InvalidBitlink as why:
            shown = readable(text)
            reason = str(why) if shown == text else "not UTF-8"
            batch.invalid.append(InvalidLine(shown[:_KEPT_TEXT], reason, file, number))
    batch.invalid.sort(key=lambda each: each.line)
    return batch


def _take_apart(lines: Sequence[bytes | None], file: str, first: int) -> Batch:
    batch = Batch(last=first + len(lines) - 1, lines=len(lines))
    for number, raw in enumerate(lines, first):
        if raw is None:
            batch.invalid.append(InvalidLine("", TOO_LONG, file, number))
            continue
        text = raw.strip()
        if not text:
            batch.blank += 1
        elif text.startswith(b"#"):
            batch.comments += 1
        else:
            named = text.decode(errors="replace")
            try:
                named = _named(text)
                batch.links.append(Link(parse(named), file, number))
            except InvalidBitlink as why:
                batch.invalid.append(InvalidLine(named[:_KEPT_TEXT], str(why), file, number))
    return batch


def _named(text: bytes) -> str:
    """Give what a line names: itself, or what an object of `_failures.ndjson` holds, which is itself a list."""
    try:
        if not text.startswith(b"{"):
            return text.decode()
        record = orjson.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidBitlink("not UTF-8") from error
    except orjson.JSONDecodeError as error:
        raise InvalidBitlink("begins like a JSON object, and is none") from error
    named = record.get("bitlink") or record.get("text")
    if not isinstance(named, str):
        raise InvalidBitlink("a JSON object without a bitlink")
    return named
