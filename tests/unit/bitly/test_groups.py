"""A group's pages are requested as Bitly documents it, and read whatever a page lacks."""

import time
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.facets import NotTheFacet
from harvester.bitly.groups import (
    Filters,
    GroupLink,
    NoLink,
    ObjectRequests,
    PageRequests,
    page_name,
    read_default_group,
    read_groups,
    read_page,
)
from harvester.bitly.verdicts import Document, MonthSpent, Refused, Throttled, TokenRefused, Unreadable

LINK = {
    "id": "Bit.ly/Ab3",
    "link": "https://bit.ly/Ab3",
    "long_url": "https://example.com/",
    "title": "A page",
    "tags": ["email"],
    "created_at": "2026-11-23T06:00:00+0100",
    "archived": False,
    "custom_bitlinks": ["https://bit.ly/custom", "https://es.pn/SuperBowl"],
}


def page(*links: Any, **pagination: Any) -> dict[str, Any]:
    return {"links": list(links), "pagination": pagination}


# --- requests -------------------------------------------------------------------------------------------------------


def test_the_first_page_has_no_cursor_and_a_later_one_has_its_own() -> None:
    requests = PageRequests(Filters())
    path, query = requests.target(page_name("Ba1bc23dE4F", ""))
    assert path == "/groups/Ba1bc23dE4F/bitlinks"
    assert parse_qsl(query) == [("size", "100"), ("archived", "off")]
    path, query = requests.target(page_name("Ba1bc23dE4F", "a/b+c=&d"))
    assert path == "/groups/Ba1bc23dE4F/bitlinks"
    assert dict(parse_qsl(query))["search_after"] == "a/b+c=&d"


def test_filters_are_sent_by_the_specifications_names_and_a_tag_each() -> None:
    filters = Filters("both", created_after=1, created_before=2, tags=("a", "b c"))
    _, query = PageRequests(filters).target(page_name("G", ""))
    assert parse_qsl(query)[1:] == [
        ("archived", "both"), ("created_after", "1"), ("created_before", "2"), ("tags", "a"), ("tags", "b c"),
    ]  # fmt: skip


def test_a_guid_reaches_no_other_route() -> None:
    assert PageRequests(Filters()).target(page_name("../user?x", ""))[0] == "/groups/..%2Fuser%3Fx/bitlinks"


# --- pages ----------------------------------------------------------------------------------------------------------


def test_a_link_is_read_with_normal_names_and_a_moment_in_utc() -> None:
    found = read_page(page(LINK, next="https://…", search_after="x"))
    assert found.links == [
        GroupLink(
            "bit.ly/Ab3", "https://bit.ly/Ab3", "https://example.com/", "A page", ["email"], "2026-11-23T05:00:00Z",
            False, ["bit.ly/custom", "es.pn/SuperBowl"],
        )
    ]  # fmt: skip
    assert (found.bad, found.found, found.following) == ([], 1, "x")
    assert found.links[0].names() == ["bit.ly/Ab3", "bit.ly/custom", "es.pn/SuperBowl"]
    assert found.links[0].names(custom=False) == ["bit.ly/Ab3"]


@pytest.mark.parametrize(
    "pagination",
    [None, {}, {"next": "", "search_after": ""}, {"next": None, "search_after": None}, {"next": "https://x"},
     {"search_after": "x"}, {"next": "", "search_after": "x"}, {"next": "https://x", "search_after": 7}, [], "x"],
    ids=range(10),
)  # fmt: skip
def test_an_empty_or_missing_cursor_is_the_end(pagination: Any) -> None:
    assert read_page({"links": [], "pagination": pagination}).following is None
    assert read_page({"links": []}).following is None


def test_null_is_an_empty_list_where_there_is_a_pagination() -> None:
    assert read_page({"links": None, "pagination": {}}) == ([], [], 0, None)
    assert read_page({"pagination": {"next": ""}}).links == []


@pytest.mark.parametrize("body", [{}, {"links": None}, {"links": {}}, {"links": "x", "pagination": {}}], ids=range(4))
def test_what_has_no_list_of_links_is_no_page(body: dict[str, Any]) -> None:
    with pytest.raises(NotTheFacet):
        read_page(body)


def test_each_field_may_be_missing_null_or_of_another_type() -> None:
    kinds: tuple[Any, ...] = (None, 7, {})
    for wrong in kinds:
        for name in LINK:
            read_page(page(LINK | {name: wrong}))
    bare = read_page(page({"id": "bit.ly/a"})).links
    assert bare == [GroupLink("bit.ly/a", None, None, None, [], None, None, [])]
    assert read_page(page({"link": "https://bit.ly/a"})).links[0].id == "bit.ly/a"
    untitled = read_page(page(LINK | {"title": "", "long_url": ""})).links[0]
    assert (untitled.title, untitled.long_url) == ("", None)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-02-26T04:00:42+0000", "2020-02-26T04:00:42Z"),
        ("2020-02-26T04:00:42", "2020-02-26T04:00:42Z"),
        ("soon", None),
    ],
)
def test_a_links_moment_is_utc_wherever_the_machine_is(
    text: str, moment: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        assert read_page(page(LINK | {"created_at": text})).links[0].created_at == moment
    time.tzset()


def test_what_is_no_bitlink_is_reported_and_takes_nothing_else_with_it() -> None:
    odd = LINK | {"id": "bit.ly/a/b", "custom_bitlinks": ["nothing", None, 7, "https://bit.ly/custom"]}
    found = read_page(page("text", {"title": "no id"}, odd, LINK))
    assert [link.names() for link in found.links] == [["bit.ly/custom"], found.links[1].names()]
    assert found.links[0].long_url == "https://example.com/"
    assert [(bad.text, bool(bad.reason)) for bad in found.bad] == [
        ("text", True), ("", True), ("bit.ly/a/b", True), ("nothing", True), ("", True), ("7", True),
    ]  # fmt: skip
    assert found.bad[0] == NoLink("text", "an entry of the page that is not an object")
    assert found.bad[3].reason.startswith("no slash")


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_are_read_with_what_is_known_of_them() -> None:
    groups = [{"guid": "G1", "name": "one", "organization_guid": "O", "role": "org-admin", "is_active": True}]
    assert read_groups({"groups": [*groups, {"guid": "G2"}]}) == [
        ("G1", "one", "O", "org-admin", True, False), ("G2", "", None, None, None, False),
    ]  # fmt: skip
    assert read_groups({"groups": [{"guid": "G", "is_active": "yes"}]})[0].active is None
    for wrong, why in ((None, "list of groups"), ([], "list of groups"), ([{"name": "x"}], "guid"), (["G1"], "guid")):
        with pytest.raises(NotTheFacet, match=why):
            read_groups({"groups": wrong})
    assert (read_default_group({"default_group_guid": "G1"}), read_default_group({})) == ("G1", "")


def test_the_requests_of_a_route_name_it_and_read_its_object() -> None:
    requests = ObjectRequests("/groups", read_groups)
    assert (requests.endpoint, requests.target("/groups"), requests.body) == ("/groups", ("/groups", ""), None)
    good = requests.classify(200, {}, b'{"groups": [{"guid": "G"}]}', whole=True)
    assert isinstance(good, Document)
    assert [group.guid for group in good.content] == ["G"]
    assert isinstance(requests.classify(200, {}, b"{}", whole=True), Unreadable)
    assert isinstance(requests.classify(200, {}, b'{"groups": [{"guid": "G"}]}', whole=False), Unreadable)


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, '{"links":[],"pagination":{}}', Document),
        (200, "{}", Unreadable),
        (200, "[]", Unreadable),
        (200, "<html>", Unreadable),
        (200, '{"message":"RATE_LIMIT_EXCEEDED"}', Throttled),
        (429, '{"message":"MONTHLY_LIMIT_EXCEEDED"}', MonthSpent),
        (403, '{"message":"FORBIDDEN"}', TokenRefused),
        (403, '{"message":"FORBIDDEN","resource":"groups"}', Refused),
        (404, '{"message":"NOT_FOUND","resource":"groups"}', Refused),
    ],
    ids=range(9),
)
def test_an_answer_that_is_no_page_gets_the_verdict_of_a_call(status: int, body: str, kind: type) -> None:
    assert isinstance(PageRequests(Filters()).classify(status, {}, body.encode(), whole=True), kind)
    assert not isinstance(PageRequests(Filters()).classify(200, {}, b'{"links":[]}', whole=False), Document)


TEXTS = st.text(max_size=9) | st.sampled_from(["bit.ly/a", "2026-11-23T06:00:00+0100"])
KEYS = st.sampled_from([*LINK, "guid", "name"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=5),
    max_leaves=9,
)


@given(st.fixed_dictionaries({}, optional={"links": ANYTHING, "pagination": ANYTHING, "groups": ANYTHING}))
def test_any_json_is_a_page_and_groups_or_neither(body: dict[str, Any]) -> None:
    for read in (read_page, read_groups):
        with suppress(NotTheFacet):
            read(body)
    assert isinstance(read_default_group(body), str)


@given(st.lists(ANYTHING, max_size=5))
def test_every_entry_of_a_page_is_a_link_or_has_a_reason(entries: list[Any]) -> None:
    found = read_page(page(*entries))
    assert len(found.links) + len(found.bad) >= len(entries)
    assert all(each.reason for each in found.bad)
