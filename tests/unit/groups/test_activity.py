"""What is kept of exports, and whose group exports a link."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from harvester.bitly.bitlinks import Bitlink, parse
from harvester.bitly.exports import MOST_LINKS, Export, Span
from harvester.bitly.verdicts import Document, PlanRefused, Transient, Verdict
from harvester.groups.activity import (
    _MOST_SHARED,
    ACTIVE_LINKS,
    ActiveLinks,
    GroupsOfLines,
    LinkActivity,
    NamedLink,
    SharedExports,
    read_active_links,
)


def test_active_links_are_kept_for_later_runs_and_a_torn_line_is_none(tmp_path: Path) -> None:
    assert list(read_active_links(str(tmp_path))) == []
    kept = ActiveLinks(str(tmp_path))
    kept.add([])
    assert not (tmp_path / ACTIVE_LINKS).exists()
    kept.add(["bit.ly/a", "bücher.example/ß"])
    kept.add(["bit.ly/b"])
    assert "bit.ly/a" not in kept  # this run's own, which are being asked for
    path = tmp_path / ACTIVE_LINKS
    path.write_bytes(path.read_bytes() + b"bit.ly/to")
    again = ActiveLinks(str(tmp_path))
    assert list(read_active_links(str(tmp_path))) == ["bit.ly/a", "bücher.example/ß", "bit.ly/b"]
    assert ("bit.ly/a" in again, "bit.ly/to" in again) == (True, False)


def test_a_line_belongs_to_the_group_that_was_named_last(tmp_path: Path) -> None:
    path = tmp_path / "list"
    lines = [
        {"bitlink": "a", "group": "A"},
        {"bitlink": "b"},
        {"bitlink": "c", "group": "A"},
        {"bitlink": "d", "group": "B"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    group_of = GroupsOfLines(str(path))
    assert [group_of(line) for line in range(6)] == [None, "A", "A", "A", "B", "B"]


def named(count: int) -> list[NamedLink]:
    return [NamedLink(parse(f"bit.ly/x{number}"), number) for number in range(count)]


async def idle_of(
    folder: Path, links: Sequence[NamedLink], answer: Callable[[Sequence[str]], Verdict], group: str | None = "G"
) -> tuple[set[Bitlink], list[int], list[str]]:
    """What is idle, how many links each export had, and what was warned of."""
    asked, warnings = list[int](), list[str]()

    async def ask(name: str) -> Verdict:
        _, *names = name.split("\n")
        asked.append(len(names))
        return answer(names)

    activity = LinkActivity(lambda _: group, ActiveLinks(str(folder)), warnings.append)
    idle = {link async for found in activity.idle_among(links, ask) for link in found}
    return idle, asked, warnings


def document(export: Export) -> Document:
    return Document(metrics=[], clicks_listed=0, units_returned=None, unit_reference_returned=None, content=export)


async def test_links_are_exported_as_many_at_once_as_bitly_takes_and_one_alone_not_at_all(tmp_path: Path) -> None:
    def all_idle(names: Sequence[str]) -> Verdict:
        return document(Export(frozenset(), frozenset(map(parse, names))))

    links = named(2 * MOST_LINKS + 1)
    assert await idle_of(tmp_path, links, all_idle) == ({link.bitlink for link in links[:-1]}, [200, 200], [])
    assert await idle_of(tmp_path, links, all_idle, group=None) == (set(), [], [])


async def test_a_link_that_was_not_asked_for_is_not_idle_and_an_active_one_is_kept(tmp_path: Path) -> None:
    links = named(3)
    export = Export(
        frozenset({links[1].bitlink, parse("bit.ly/other")}), frozenset({links[0].bitlink, parse("bit.ly/z")})
    )
    idle, _, warnings = await idle_of(tmp_path, links, lambda _: document(export))
    assert idle == {links[0].bitlink}
    assert list(read_active_links(str(tmp_path))) == [links[1].bitlink]
    assert len(warnings) == 1
    assert "says nothing of 1 of 3 links" in warnings[0]
    _, asked, _ = await idle_of(tmp_path, links, lambda _: document(export))
    assert asked == [2]


async def test_a_group_that_refuses_is_not_asked_again_and_one_that_does_not_answer_later(tmp_path: Path) -> None:
    links = named(5 * MOST_LINKS)
    refused = await idle_of(tmp_path, links, lambda _: PlanRefused(402, "UPGRADE_REQUIRED"))
    silent = await idle_of(tmp_path, links, lambda _: Transient(503, "x"))
    assert (refused[:2], silent[:2]) == ((set(), [200]), (set(), [200]))
    assert (len(refused[2]), len(silent[2])) == (1, 1)


class Exports:
    """Answers by name, after others had their turn; counts who has asked."""

    def __init__(self, *answers: Verdict) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    async def ask(self, name: str) -> Verdict:
        self.asked.append(name)
        await asyncio.sleep(0)
        return self._answers.pop(0) if self._answers else document(Export(frozenset(), frozenset()))


async def test_runs_that_need_the_same_export_at_once_ask_for_it_once() -> None:
    shared, bitly, day = SharedExports(), Exports(), Span(0, 86_400)
    found = await asyncio.gather(*(shared.verdict_on(name, day, bitly.ask) for name in "aabba"))
    assert bitly.asked == ["a", "b"]
    assert (found[0] is found[1] is found[4], found[2] is found[3]) == (True, True)
    await shared.verdict_on("a", Span(86_400, 172_800), bitly.ask)
    assert bitly.asked == ["a", "b", "a"]


async def test_an_export_that_was_not_given_is_asked_for_by_each_run() -> None:
    shared, bitly, day = SharedExports(), Exports(Transient(503, "busy"), PlanRefused(402, "no")), Span(0, 86_400)
    verdicts = [await shared.verdict_on("a", day, bitly.ask) for _ in range(4)]
    assert [type(verdict) for verdict in verdicts] == [Transient, PlanRefused, Document, Document]
    assert len(bitly.asked) == 3


async def test_only_the_last_exports_are_kept() -> None:
    shared, bitly, day = SharedExports(), Exports(), Span(0, 86_400)
    for number in [*range(_MOST_SHARED + 1), 1]:
        await shared.verdict_on(str(number), day, bitly.ask)
    assert len(bitly.asked) == _MOST_SHARED + 1
    await shared.verdict_on("0", day, bitly.ask)
    assert bitly.asked[-1] == "0"
