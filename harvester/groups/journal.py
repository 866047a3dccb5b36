"""The journal of a listing: one line for each page that was read, durable before the next page is requested.

A line is `crc32 json`. The first one says what is listed; the others are the groups of the account, pages, parts that
are about to be published, and the end. A torn last line is cut off: its page is asked for again.
"""

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from harvester.bitly.groups import Filters, GroupLink, NoLink, Page
from harvester.errors import OutputError, UsageError, as_output_error
from harvester.storage.appended_file import AppendedFile

_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ListRequest:
    """What is listed. groups: their guids; empty for all groups of the account."""

    groups: tuple[str, ...]
    filters: Filters = field(default_factory=Filters)

    def as_dict(self) -> dict[str, Any]:
        """Return what the journal and a manifest say of it."""
        filters = self.filters
        return {
            "groups": list(self.groups),
            "archived": filters.archived,
            "created_after": filters.created_after,
            "created_before": filters.created_before,
            "tags": list(filters.tags),
        }

    @property
    def key(self) -> str:
        """Eight hexadecimal digits by which the files of this request are told from those of another."""
        return f"{zlib.crc32(orjson.dumps(self.as_dict())):08x}"

    @property
    def words(self) -> str:
        """The option of `run` that asks for it."""
        return f"--group={','.join(self.groups)}" if self.groups else "--all-groups"


class PartIntent(NamedTuple):
    """A part that is about to be published."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class ListState:
    """What a journal says. groups: None until they are known. cursors: of each group that was begun, those of the pages
    to come, None once its last page was read. seen: the cursors of the pages of the group that is being read.

    id: made once for a journal. started, ended: UTC; ended is None until the last page was read. links: with those
    that stand in two pages. bad: entries that are no bitlinks.
    """

    id: str = ""
    started: str = ""
    ended: str | None = None
    groups: list[str] | None = None
    cursors: dict[str, str | None] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    pages: int = 0
    links: int = 0
    bad: int = 0
    parts: list[PartIntent] = field(default_factory=list)

    @property
    def words(self) -> str:
        """How much was read: `263 links in 3 pages`."""
        links, pages = "s" * (self.links != 1), "s" * (self.pages != 1)
        return f"{self.links:,} link{links} in {self.pages:,} page{pages}"

    def apply(self, content: Mapping[str, Any]) -> None:
        """Take a line's content in."""
        if "request" in content:
            self.id, self.started = content["id"], content["started"]
        elif "groups" in content:
            self.groups = content["groups"]
        elif "links" in content:
            if not content["cursor"]:
                self.seen.clear()
            self.seen.add(content["cursor"])
            self.cursors[content["group"]] = content["next"]
            self.pages += 1
            self.links += len(content["links"])
            self.bad += len(content["bad"])
        elif "part" in content:
            self.parts.append(PartIntent(**content["part"]))
        elif "ended" in content:
            self.ended = content["ended"]


def read_state(path: str) -> ListState | None:
    """Return what a journal says, up to its last whole line, without a lock; None if there is none.

    Raises:
        OutputError: it cannot be read.
    """
    state = ListState()
    with as_output_error(path):
        try:
            with open(path, "rb") as stream:
                for line in stream:
                    if (content := _decoded(line)) is None:
                        break
                    state.apply(content)
        except FileNotFoundError:
            return None
    return state


def outputs_in(path: str) -> list[str]:
    """Return the outputs that a journal was begun for; none if it is for one alone, or not there.

    Raises:
        OutputError: it cannot be read.
    """
    with as_output_error(path):
        try:
            with open(path, "rb") as stream:
                first = _decoded(stream.readline()) or {}
        except FileNotFoundError:
            return []
    return list(first.get("outputs", ()))


class PageJournal:
    """A listing's journal, held open; the caller holds the lock of its folder. Close it with `close`.

    state: of the lines so far.
    """

    def __init__(self, path: str) -> None:
        self.state = ListState()
        self._path = path
        self._file = AppendedFile(path, f"{path}.saved")

    def open(self, request: ListRequest, new_id: str, now: str, outputs: Sequence[str] = ()) -> None:
        """Open the journal, or begin it. new_id, now: for a new one. outputs: those that a new one is for, if several.

        Raises:
            UsageError: it was begun for another request. OutputError: it is damaged, or cannot be written.
        """
        with as_output_error(self._path):
            size = self._file.open()
            end, first = 0, None
            for line, position in self._lines():
                content = _decoded(line)
                if content is None:
                    if position < size:
                        raise OutputError(
                            f"{self._path} is damaged: restore a copy of it. If nothing of this output was published "
                            "yet it may also be removed; its pages are then requested again"
                        )
                    break
                first = first or content
                self.state.apply(content)
                end = position
            if end < size:
                self._file.truncate(end)
            if first is None:
                shared = {"outputs": [*outputs]} if outputs else {}
                self._append({"request": request.as_dict(), "id": new_id, "started": now, **shared})
            elif first.get("request") != request.as_dict():
                raise UsageError(
                    f"{os.path.dirname(self._path)} was started with another choice of links: it has "
                    f"{_shown(first.get('request'))}, requested {_shown(request.as_dict())}. Use another --out"
                )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add_groups(self, guids: list[str]) -> None:
        """Record the groups that are listed, durably. Raises OutputError."""
        self._append({"groups": guids})

    def add_page(self, guid: str, cursor: str, page: Page) -> None:
        """Record a page, durably. cursor: the page's own, empty for the first. Raises OutputError."""
        links, bad = [list(link[:-1]) for link in page.links], list(map(list, page.bad))
        self._append({"group": guid, "cursor": cursor, "next": page.following, "links": links, "bad": bad})

    def add_part(self, part: PartIntent) -> None:
        """Record a part that is about to be published, durably. Raises OutputError."""
        self._append({"part": part._asdict()})

    def end(self, now: str) -> None:
        """Record that the last page was read. Raises OutputError."""
        self._append({"ended": now})

    def pages(self) -> Iterator[tuple[list[GroupLink], list[NoLink]]]:
        """Yield the links of each page, and what is no bitlink in it."""
        for line, _ in self._lines():
            content = _decoded(line) or {}
            if "links" in content:
                links = [GroupLink._make([*fields, content["group"]]) for fields in content["links"]]
                yield links, [NoLink(*fields) for fields in content["bad"]]

    def _append(self, content: Mapping[str, Any]) -> None:
        text = orjson.dumps(content)
        with as_output_error(self._path):
            self._file.append(b"%08x %s\n" % (zlib.crc32(text), text))
            self._file.sync()
        self.state.apply(content)

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        """Yield the file's lines, each with its line feed if it has one, and the position behind it."""
        rest, start, position = b"", 0, 0
        while chunk := self._file.read(start, _CHUNK):
            start += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                position += len(line) + 1
                yield line + b"\n", position
        if rest:
            yield rest, position + len(rest)


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Return a line's content; None if it is torn or damaged."""
    crc, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text):
        return None
    content: dict[str, Any] = orjson.loads(text)
    return content


def _shown(request: Any) -> str:
    return orjson.dumps(request).decode()
