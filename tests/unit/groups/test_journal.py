"""A listing's journal keeps every page that was read, through a torn last line."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.groups import Filters, GroupLink, NoLink, Page
from harvester.errors import OutputError, UsageError
from harvester.groups.journal import ListRequest, PageJournal, PartIntent, outputs_in, read_state
from tests.conftest import quick_folder

REQUEST = ListRequest(("G1", "G2"))


def link(name: str, group: str = "G1") -> GroupLink:
    return GroupLink(f"bit.ly/{name}", None, None, "ti\ntle", ["a"], None, True, [f"bit.ly/c{name}"], group)


def opened(path: Path, request: ListRequest = REQUEST) -> PageJournal:
    journal = PageJournal(str(path))
    journal.open(request, "id1", "2026-11-23T06:00:00Z")
    return journal


def filled(path: Path) -> PageJournal:
    journal = opened(path)
    journal.add_groups(["G1", "G2"])
    journal.add_page("G1", "", Page([link("a"), link("b")], [NoLink("x", "why")], 3, "next"))
    journal.add_page("G1", "next", Page([link("c")], [], 1, None))
    journal.add_page("G2", "", Page([], [], 0, None))
    journal.add_part(PartIntent("part-0", 3, 9, "sha"))
    journal.end("2026-11-23T07:00:00Z")
    return journal


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    written = filled(tmp_path / "pages")
    written.close()
    read = opened(tmp_path / "pages")
    assert read.state == written.state == read_state(str(tmp_path / "pages"))
    assert read.state.cursors == {"G1": None, "G2": None}
    assert (read.state.pages, read.state.links, read.state.bad, read.state.id) == (3, 3, 1, "id1")
    assert list(read.pages()) == [
        ([link("a"), link("b")], [NoLink("x", "why")]), ([link("c")], []), ([], []),
    ]  # fmt: skip
    read.close()


def test_a_journal_that_is_cut_at_any_byte_has_its_whole_lines(tmp_path: Path) -> None:
    path, cut = tmp_path / "pages", tmp_path / "cut"
    filled(path).close()
    content = path.read_bytes()
    for size in range(0, len(content) + 1, 7):
        cut.write_bytes(content[:size])
        journal = opened(cut)
        whole = max(content[:size].count(b"\n"), 1)
        assert cut.read_bytes().count(b"\n") == whole
        assert journal.state.pages == min(max(whole - 2, 0), 3)
        journal.add_page("G2", "later", Page([], [], 0, None))
        journal.close()
        found = read_state(str(cut))
        assert found is not None
        assert found.pages == journal.state.pages
        cut.unlink()


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    filled(path).close()
    content = bytearray(path.read_bytes())
    content[content.index(b"bit.ly/a")] ^= 1
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is damaged"):
        opened(path)


def test_another_request_is_refused_and_has_another_key(tmp_path: Path) -> None:
    filled(tmp_path / "pages").close()
    others = [ListRequest(("G1",)), ListRequest(()), ListRequest(("G1", "G2"), Filters("both"))]
    for other in others:
        with pytest.raises(UsageError, match="another choice of links"):
            opened(tmp_path / "pages", other)
    assert len({each.key for each in [REQUEST, *others]}) == 4


def test_a_link_in_place_of_the_journal_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "pages").symlink_to(tmp_path / "secret")
    with pytest.raises(OutputError):
        opened(tmp_path / "pages")
    assert (tmp_path / "secret").read_text() == "mine"


@given(st.data())
def test_a_journal_with_any_damage_is_read_or_is_an_error(data: st.DataObject) -> None:
    with quick_folder() as folder:
        path = folder / "pages"
        filled(path).close()
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        end = data.draw(st.none() | st.integers(0, len(content)))
        path.write_bytes(content[:end] + data.draw(st.binary(max_size=9)))
        for look in (lambda: read_state(str(path)), lambda: outputs_in(str(path))):
            with suppress(OutputError):
                look()
        try:
            journal = opened(path)
        except (OutputError, UsageError) as error:
            said = str(error)
        else:
            said = str(path)
            assert sum(len(links) for links, _ in journal.pages()) <= 3
            journal.close()
        assert str(path) in said
