"""Batches of links: consecutive lines of a list, each sorted into links, invalid lines, blanks and comments."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeGuard

from harvester.bitly.bitlinks import Bitlink, links_in, parse
from harvester.errors import InvalidBitlink, UsageError
from harvester.jsonlines import lenient_json
from harvester.links.columns import (
    GROUP_LINES,
    KEPT_TEXT,
    LINE_LIMIT,
    TOO_LONG,
    ColumnBatch,
    flaw_in,
    readable,
    refuse_crowded,
)
from harvester.progress import Carried, InvalidLine

_SHARD = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")
BATCH_LINES = GROUP_LINES
"""The largest number of lines in a batch, whose links are looked up in the ledger with one query."""


class Link(NamedTuple):
    """A bitlink, the file and line that name it, the text there, and what its row has of the list's other columns."""

    bitlink: Bitlink
    file: str
    line: int
    text: str = ""
    carried: Carried = None


@dataclass(slots=True)
class Batch:
    """Consecutive lines of a list: lines = blank + comments + headers + len(invalid) + len(links).

    A CSV record over several lines counts as one. column: of a table, for messages. last: the number of the last line.
    """

    column: str = ""
    last: int = 0
    lines: int = 0
    blank: int = 0
    comments: int = 0
    headers: int = 0
    invalid: list[InvalidLine] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    @property
    def carries(self) -> bool:
        """True if the row of one of the links has something of the list's other columns."""
        return any(link.carried is not None for link in self.links)


class Feed(Protocol):
    """A list as a run reads it."""

    async def next(self) -> Batch | None:
        """Return the next batch of links; None at the list's end.

        Raises:
            InputBroken: the list cannot be read to its end.
        """


def shard_of(text: str, shards: int) -> int:
    """Return the number, from 1 to `shards`, of the shard of a text: the same on every machine and in every version.

    Links are given as rows have them in `bitlink`. Outputs were divided by this hash: another would make calls again.
    """
    return 1 + int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest()) % shards


class Shard(NamedTuple):
    """A part of a list: number `number`, from 1 on, of `shards`."""

    number: int
    shards: int

    def has(self, text: str) -> bool:
        """Return whether a text belongs to this shard."""
        return shard_of(text, self.shards) == self.number


def parse_shard(text: str) -> Shard:
    """Parse `3/8`, the third of eight shards. Raises UsageError."""
    match = _SHARD.fullmatch(text.strip())
    if not match or int(match[1]) > int(match[2]):
        raise UsageError(f"{text}: must be a shard such as 3/8, the third of eight", option="--shard")
    return Shard(int(match[1]), int(match[2]))


def batch_of_shard(batch: Batch, shard: Shard | None) -> Batch:
    """Return what a batch has of a shard: its links and invalid lines, each of which belongs to one shard.

    Lines of other shards are not counted, so that a shard is a list of its own. shard: None for the whole.
    """
    if shard is None:
        return batch
    links = [link for link in batch.links if shard.has(link.bitlink)]
    invalid = [line for line in batch.invalid if shard.has(line.text)]
    lines = batch.lines - len(batch.links) + len(links) - len(batch.invalid) + len(invalid)
    return replace(batch, lines=lines, links=links, invalid=invalid)


def batch_of_links(links: Sequence[object], name: str, first: int) -> Batch:
    """Return the batch of links from Python, each treated as a line. name: the file. first: the first link's number.

    links: texts, or pairs of a text and a mapping, which becomes what the link's row carries.
    """
    pairs = {number: each for number, each in enumerate(links, first) if _is_pair(each)}
    links = [each[0] if _is_pair(each) else each for each in links]
    texts = [link if isinstance(link, str) else None for link in links]
    raw = [b"" if text is None else text.encode(errors="surrogatepass") for text in texts]
    batch = batch_of_lines([line if len(line) <= LINE_LIMIT else None for line in raw], name, first)
    for number, (link, text) in enumerate(zip(links, texts, strict=True), first):
        if text is None:
            batch.blank -= 1  # it was encoded as an empty line
            batch.invalid.append(InvalidLine("", f"must be text, not {type(link).__name__}", name, number))
    return _with_carried(batch, pairs) if pairs else batch


def _is_pair(link: object) -> TypeGuard[tuple[object, Mapping[object, object]]]:
    return isinstance(link, tuple) and len(link) == 2 and isinstance(link[1], Mapping)


def _with_carried(batch: Batch, pairs: Mapping[int, tuple[object, Mapping[object, object]]]) -> Batch:
    """Return a batch whose links carry the mappings of their pairs. pairs: by the links' numbers."""
    links, batch.links = batch.links, []
    for link in links:
        if link.line not in pairs:
            batch.links.append(link)
            continue
        carried = {str(name): _text_of(value) for name, value in pairs[link.line][1].items()}
        if flaw := _flaw_in_names(carried) or flaw_in(carried):
            batch.invalid.append(InvalidLine(link.bitlink, flaw, link.file, link.line))
        else:
            batch.links.append(link._replace(carried=carried))
    batch.invalid.sort(key=lambda each: each.line)
    return batch


def _flaw_in_names(carried: Mapping[str, object]) -> str | None:
    return flaw_in({f"the name of value {at}": name for at, name in enumerate(carried, 1)})


def _text_of(value: object) -> str | None:
    """Return a value from Python as rows carry it: as Python writes it, but a truth value as JSON does."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def batch_of_column(records: ColumnBatch, file: str) -> Batch:
    """Return the batch of some records of a table, with its invalid lines in their order.

    Raises:
        InputBroken: a cell holds many links.
    """
    lines = records.headers + records.blank + len(records.bad) + len(records.values)
    batch = Batch(records.column, last=records.last, lines=lines, blank=records.blank, headers=records.headers)
    batch.invalid = [InvalidLine(bad.text, bad.reason, file, bad.line) for bad in records.bad]
    for number, text, carried in records.values:
        try:
            batch.links.append(Link(parse(text), file, number, text, carried))
        except InvalidBitlink as error:
            shown = readable(text)
            reason = str(error) if shown == text else "not UTF-8"
            if (links := links_in(text)) > 1:
                refuse_crowded(links, f"{file}: line {number}", in_table=True)
                reason = "two links in one cell; write one a record"
            batch.invalid.append(InvalidLine(shown[:KEPT_TEXT], reason, file, number))
    batch.invalid.sort(key=lambda each: each.line)
    return batch


def batch_of_lines(lines: Sequence[bytes | None], file: str, first: int) -> Batch:
    """Return the batch of some lines; None stands for one that is too long. first: the first line's number.

    Raises:
        InputBroken: a line holds many links.
    """
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
            link = text.decode(errors="replace")
            try:
                link = _link_in(text)
                batch.links.append(Link(parse(link), file, number, link))
            except InvalidBitlink as error:
                reason = str(error)
                if (links := links_in(link)) > 1:
                    refuse_crowded(links, f"{file}: line {number}")
                    reason = "two links in one line; write one a line"
                batch.invalid.append(InvalidLine(link[:KEPT_TEXT], reason, file, number))
    return batch


def _link_in(text: bytes) -> str:
    """Return the text of a line's link: the line itself, or the link in an object of `_failures.ndjson`."""
    if not text.startswith(b"{"):
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise InvalidBitlink("not UTF-8") from error
    try:
        record = lenient_json(text)
    except ValueError as error:
        raise InvalidBitlink("begins like a JSON object, but is not one") from error
    link = record.get("bitlink") or record.get("text")
    if not isinstance(link, str):
        raise InvalidBitlink("a JSON object without a bitlink")
    return link
