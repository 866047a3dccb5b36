"""Which of some links had clicks: asked of their groups, 200 links with one request, and kept for later runs.

Whatever is no clear statement leaves a link to be asked for: a missing line, an answer that is cut off or cannot be
read, a refusal. A run is warned once of each of these, and a group that refuses is not asked again in it.
"""

import asyncio
import os
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple, TypeAlias

import orjson

from harvester.bitly.bitlinks import Bitlink
from harvester.bitly.exports import MOST_LINKS, Export, Span, export_name
from harvester.bitly.verdicts import Document, NoAnswer, Transient, Verdict, reason
from harvester.errors import as_output_error

ACTIVE_LINKS = "active-links"
"""The file of the private state with the links that exports have stated clicks of, one a line."""
_REMEMBERED = 50_000
"""Links of earlier runs that are kept in memory: more than a run reads ahead."""
_FAILURES = 2
"""As many exports without an answer, one after another, and no further one is tried in the run."""
_MOST_SHARED = 256
"""Exports that are kept for other runs: of some 50,000 links, which take about 8 MB."""

Asks: TypeAlias = Callable[[str], Awaitable[Verdict]]
"""Asks for an export by its name and returns the verdict. Raises RunStopping."""


class NamedLink(NamedTuple):
    """A bitlink, and the number of its line in the list."""

    bitlink: Bitlink
    line: int


class ActiveLinks:
    """The links that exports of one window have stated clicks of.

    They are asked for later than the export was, so a kill would have them exported again: that is what the file is
    for. It is a hint that costs a request if it is lost, so it is never synced, and its lines are not checked.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, ACTIVE_LINKS)
        self._before = frozenset(deque(read_active_links(folder), maxlen=_REMEMBERED))

    def __contains__(self, bitlink: str) -> bool:
        """Return whether an earlier run has learned of clicks, as far back as is remembered."""
        return bitlink in self._before

    def add(self, bitlinks: Iterable[str]) -> None:
        """Keep links for later runs. Raises OutputError."""
        if lines := "".join(f"{bitlink}\n" for bitlink in bitlinks):
            with as_output_error(self._path):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(self._path, flags, 0o666), "ab") as stream:
                    stream.write(lines.encode())


def read_active_links(folder: str) -> Iterator[str]:
    """Yield the links that exports have stated clicks of, in the order in which they were learned. folder: the private
    state of an output; without such a file there are none.
    """
    path = os.path.join(folder, ACTIVE_LINKS)
    if not os.path.exists(path):
        return
    with as_output_error(path), open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield line[:-1]


class SharedExports:
    """The last exports of a command, so that facets that go side by side ask once for the clicks of the same links."""

    def __init__(self) -> None:
        self._last: dict[bytes, Document] = {}
        self._turn = asyncio.Lock()

    async def verdict_on(self, name: str, span: Span, ask: Asks) -> Verdict:
        """Return the verdict on an export of a time that is over, which another run may have asked for.

        Raises:
            RunStopping: the run is ending.
        """
        key = sha256(f"{span} {name}".encode()).digest()
        async with self._turn:  # the others wait for the first one's answer
            if (found := self._last.get(key)) is not None:
                return found
            verdict = await ask(name)
            if isinstance(verdict, Document):
                self._last[key] = verdict
                if len(self._last) > _MOST_SHARED:
                    del self._last[next(iter(self._last))]
            return verdict


class GroupsOfLines:
    """The groups of a list that was made of several groups' links, by the numbers of its lines.

    path: the list, NDJSON with the key `group`; a line without it has its predecessor's.
    """

    def __init__(self, path: str) -> None:
        self._firsts, self._guids = list[int](), list[str]()
        with as_output_error(path), open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                guid = orjson.loads(line).get("group")
                if guid and (not self._guids or guid != self._guids[-1]):
                    self._firsts.append(number)
                    self._guids.append(guid)

    def __call__(self, line: int) -> str | None:
        """Return the guid of a line's group; None if it is not known."""
        at = bisect_right(self._firsts, line)
        return self._guids[at - 1] if at else None


class LinkActivity:
    """Asks groups for exports of their links.

    group_of: returns the guid of a line's group. active: of this window. warn: called with what keeps links from being
    skipped.
    """

    def __init__(
        self,
        group_of: Callable[[int], str | None],
        active: ActiveLinks,
        warn: Callable[[str], None],
    ) -> None:
        self._group_of = group_of
        self._active = active
        self._warn = warn
        self._warned: set[str] = set()
        self._given_up: set[str] = set()
        self._unanswered = 0

    async def idle_among(self, links: Sequence[NamedLink], ask: Asks) -> AsyncIterator[frozenset[Bitlink]]:
        """Yield, after each export, those of the links that it states to have no clicks.

        Raises:
            RunStopping: the run is ending. OutputError: what was learned cannot be kept.
        """
        by_group: dict[str, list[Bitlink]] = {}
        for link in links:
            guid = None if link.bitlink in self._active else self._group_of(link.line)
            if guid is not None:
                by_group.setdefault(guid, []).append(link.bitlink)
        for guid, asked in by_group.items():
            for start in range(0, len(asked), MOST_LINKS):
                some = asked[start : start + MOST_LINKS]
                if len(some) < 2 or guid in self._given_up or self._unanswered >= _FAILURES:
                    break  # the export of one link costs as much as its call
                verdict = await ask(export_name(guid, some))
                if isinstance(verdict, Document):
                    yield self._idle_in(verdict.content, guid, some)
                elif not self._goes_on(guid, verdict):
                    return

    def _idle_in(self, export: Export, guid: str, links: Sequence[Bitlink]) -> frozenset[Bitlink]:
        self._unanswered = 0
        known = frozenset(links)
        self._active.add(sorted(export.active & known))
        if export.truncated:
            self._warn_once("truncated", f"an export of group {guid} was cut off: its links are asked for")
        elif missing := len(known - export.active - export.idle):
            self._warn_once(
                "missing",
                f"an export of group {guid} says nothing of {missing:,} of {len(links):,} links (do they belong to "
                "another group?): such links are asked for",
            )
        return export.idle & known

    def _goes_on(self, guid: str, verdict: Verdict) -> bool:
        """Take in that an export was not given; return whether the others of this batch should be asked for."""
        why = "not answered" if isinstance(verdict, NoAnswer) else "refused"
        text = f"an export of group {guid} was {why} ({reason(verdict)}): its links are asked for, clicked or not"
        self._warn_once("refused", text)
        if isinstance(verdict, Transient):
            self._unanswered += 1
            return False
        self._given_up.add(guid)
        return True

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(text)
