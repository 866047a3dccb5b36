"""The list that is made of a listing's journal: a line for each bitlink, with what its row may carry."""

from pathlib import Path

import orjson

from harvester.bitly.groups import GroupLink, NoLink, Page
from harvester.groups.journal import ListRequest, PageJournal
from harvester.groups.spool import CARRIED, COLUMN, spooled
from harvester.links.batch import Batch
from harvester.links.columns import LINE_LIMIT, ListFormat
from harvester.links.files import Source, read

REQUEST = ListRequest(("G",))


async def batch_of(folder: Path, page: Page, *carry: str) -> Batch:
    """Return what a run reads of a page."""

    async def complete(journal: PageJournal, _: ListRequest) -> None:
        journal.add_groups(["G"])
        journal.add_page("G", "", page)
        journal.end("2026-11-23T07:00:00Z")

    found = await spooled(str(folder), REQUEST, complete)
    lines = Path(found.path).read_bytes().splitlines()
    assert {tuple(orjson.loads(line)) for line in lines} == {(COLUMN, *CARRIED)}
    assert max(map(len, lines)) <= LINE_LIMIT
    (batch,) = read([Source("G", found.path, ListFormat.NDJSON, COLUMN, carry)])
    return batch


def link(name: str, title: str | None = "t", tags: tuple[str, ...] = ()) -> GroupLink:
    return GroupLink(f"bit.ly/{name}", None, None, title, [*tags], None, None, [f"bit.ly/c{name}"], "G")


async def test_a_custom_bitlink_carries_what_its_link_has(tmp_path: Path) -> None:
    page = Page([link("a", None, ("x", "y"))], [NoLink("", "why")], 2, None)
    batch = await batch_of(tmp_path, page, "id", "title", "tags")
    carried = {"id": "bit.ly/a", "title": None, "tags": '["x", "y"]'}
    assert [(each.bitlink, each.carried) for each in batch.links] == [("bit.ly/a", carried), ("bit.ly/ca", carried)]
    assert len(batch.invalid) == 1


async def test_a_value_that_is_too_long_is_refused_and_never_cut(tmp_path: Path) -> None:
    links = [link("a", "x" * 40_000), link("b", "b", ("é" * 50,) * 400), link("c", "x" * 1001)]
    batch = await batch_of(tmp_path, Page(links, [], 3, None), "title", "tags")
    assert batch.links == []
    named = [bad.reason.partition(" has more than")[0] for bad in batch.invalid]
    assert named == ["title", "title", "tags", "tags", "title", "title"]
    assert len((await batch_of(tmp_path, Page([], [], 0, None), "group")).links) == 6, "the list was made before"


async def test_a_first_entry_that_is_no_bitlink_hides_no_column(tmp_path: Path) -> None:
    batch = await batch_of(tmp_path, Page([], [NoLink("nothing", "why")], 1, None), "title")
    assert (batch.links, [bad.text for bad in batch.invalid]) == ([], ["nothing"])
