"""The groups of an account and their bitlinks: what to request, below the base URL, and what comes back.

A group's bitlinks come in pages, the newest first: https://dev.bitly.com/api-reference/#getBitlinksByGroup. Each page
names the cursor of the next, `search_after`; an empty or missing one is the end. Bitly's specification requires no
field of a page or of a link, so each may be missing, or null as Go servers write it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

from harvester.bitly.bitlinks import parse
from harvester.bitly.facets import NotTheFacet
from harvester.bitly.query import GROUPS
from harvester.bitly.verdicts import Verdict, classify_document
from harvester.clock import utc_iso
from harvester.errors import InvalidBitlink

USER = "/user"
LINKS_ENDPOINT = "/groups/{group_guid}/bitlinks"
"""The path template by which Bitly names the endpoint of a group's bitlinks."""
PAGE_SIZE = 100
"""Links in a page: the most that Bitly returns, whatever is asked for."""
ArchivedName = Literal["off", "on", "both"]
_MOST_TEXT = 2000


class Group(NamedTuple):
    """A group of the account. role: the token's user's in it. active: None if Bitly does not say."""

    guid: str
    name: str
    organization: str | None
    role: str | None
    active: bool | None
    default: bool = False


@dataclass(frozen=True, slots=True)
class Filters:
    """Which of a group's links are listed. created_after, created_before: seconds since 1970; None for no bound."""

    archived: str = "off"
    created_after: int | None = None
    created_before: int | None = None
    tags: tuple[str, ...] = ()

    def parameters(self) -> list[tuple[str, object]]:
        """Return the query parameters; without a created_ parameter that has no value."""
        moments = [("created_after", self.created_after), ("created_before", self.created_before)]
        given = [(name, value) for name, value in moments if value is not None]
        return [("archived", self.archived), *given, *(("tags", tag) for tag in self.tags)]


class NoLink(NamedTuple):
    """Something in a page that is no bitlink: its text (cut at 2,000 characters), and why."""

    text: str
    reason: str


class GroupLink(NamedTuple):
    """A bitlink of a group. id, custom_bitlinks: as `domain/back-half`, which is how rows name them.

    Bitly counts a custom bitlink apart from the link that it was made for. created_at: UTC, `2026-11-23T06:00:00Z`.
    group: its guid; a page does not name it.
    """

    id: str
    link: str | None
    long_url: str | None
    title: str | None
    tags: list[str]
    created_at: str | None
    archived: bool | None
    custom_bitlinks: list[str]
    group: str = ""

    def names(self, *, custom: bool = True) -> list[str]:
        """Return the bitlinks that are counted apart, each once."""
        return list(dict.fromkeys([self.id, *(self.custom_bitlinks if custom else ())]))


class Page(NamedTuple):
    """A page of links. found: entries in it, of any kind. following: the cursor of the next page, None at the end."""

    links: list[GroupLink]
    bad: list[NoLink]
    found: int
    following: str | None


class ObjectRequests:
    """The requests of a route that answers one JSON object. The name is the path; read: as for `classify_document`."""

    body = None

    def __init__(self, endpoint: str, read: Callable[[Mapping[str, Any]], object]) -> None:
        self.endpoint = endpoint
        self._read = read

    def target(self, name: str) -> tuple[str, str]:
        """Return the path, without a query string."""
        return name, ""

    def classify(self, status: int, headers: Mapping[str, str], body: bytes, *, whole: bool) -> Verdict:
        """Return the verdict on a response; a good one is a Document."""
        return classify_document(status, headers, body, self._read, whole=whole)


class PageRequests:
    """The requests of the pages of groups. The name of a page is `page_name`."""

    body = None
    endpoint = LINKS_ENDPOINT

    def __init__(self, filters: Filters) -> None:
        self._parameters = filters.parameters()

    def target(self, name: str) -> tuple[str, str]:
        """Return path and query string for a page."""
        guid, _, cursor = name.partition("/")
        query = [("size", PAGE_SIZE), *self._parameters, *([("search_after", cursor)] if cursor else [])]
        return f"{GROUPS}/{guid}/bitlinks", urlencode(query)

    def classify(self, status: int, headers: Mapping[str, str], body: bytes, *, whole: bool) -> Verdict:
        """Return the verdict on a response; a good one is a Document of a Page."""
        return classify_document(status, headers, body, read_page, whole=whole)


def page_name(guid: str, cursor: str) -> str:
    """Return the name of a group's page. cursor: the page's, empty for the first one."""
    return f"{quote(guid, safe='')}/{cursor}"


def read_groups(body: Mapping[str, Any]) -> list[Group]:
    """Return the groups in the decoded object of `/groups`.

    Raises:
        NotTheFacet: it has none, or one without a guid.
    """
    groups = body.get("groups")
    if not isinstance(groups, list) or not groups:
        raise NotTheFacet("no list of groups")
    return [_group(entry) for entry in groups]


def _group(entry: object) -> Group:
    if not isinstance(entry, dict) or not _text(entry, "guid"):
        raise NotTheFacet("a group without a guid")
    active = entry.get("is_active")
    return Group(
        guid=entry["guid"],
        name=_text(entry, "name") or "",
        organization=_text(entry, "organization_guid"),
        role=_text(entry, "role"),
        active=active if isinstance(active, bool) else None,
    )


def read_default_group(body: Mapping[str, Any]) -> str:
    """Return the guid of the default group in the decoded object of `/user`, or an empty text."""
    return _text(body, "default_group_guid") or ""


def read_page(body: Mapping[str, Any]) -> Page:
    """Return the page in the decoded object of a group's bitlinks.

    Raises:
        NotTheFacet: it is no page: without a list of links and without a pagination.
    """
    entries, pagination = body.get("links"), body.get("pagination")
    if entries is None and isinstance(pagination, dict):  # a Go server's empty list
        entries = []
    if not isinstance(entries, list):
        raise NotTheFacet("no list of links")
    bad = list[NoLink]()
    links = [link for entry in entries if (link := _link(entry, bad)) is not None]
    return Page(links, bad, len(entries), _following(pagination))


def _following(pagination: object) -> str | None:
    """Return the cursor of the next page; None at the end, which Bitly shows by an empty or missing one."""
    if not isinstance(pagination, dict) or pagination.get("next") in ("", None):
        return None
    return _text(pagination, "search_after") or None


def _link(entry: object, bad: list[NoLink]) -> GroupLink | None:
    """Return the link of a page's entry; None if it has no name. bad: gets what is no bitlink in it."""
    if not isinstance(entry, dict):
        bad.append(NoLink(str(entry)[:_MOST_TEXT], "an entry of the page that is not an object"))
        return None
    written, customs = entry.get("id") or entry.get("link"), entry.get("custom_bitlinks")
    ids = list(_bitlinks([written], bad))
    others = list(dict.fromkeys(_bitlinks(customs if isinstance(customs, list) else [], bad)))
    if not ids and not others:
        return None
    archived = entry.get("archived")
    return GroupLink(
        id=(ids or others)[0],
        link=_text(entry, "link"),
        long_url=_text(entry, "long_url"),
        title=_text(entry, "title"),
        tags=_texts(entry, "tags"),
        created_at=_moment(_text(entry, "created_at")),
        archived=archived if isinstance(archived, bool) else None,
        custom_bitlinks=others,
    )


def _bitlinks(values: list[object], bad: list[NoLink]) -> Iterator[str]:
    for value in values:
        if not isinstance(value, str):
            bad.append(NoLink("" if value is None else str(value)[:_MOST_TEXT], "a link without a name"))
            continue
        try:
            yield parse(value)
        except InvalidBitlink as why:
            bad.append(NoLink(value[:_MOST_TEXT], str(why)))


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    return value if isinstance(value, str) and (value or name == "title") else None


def _texts(entry: Mapping[str, Any], name: str) -> list[str]:
    values = entry.get(name)
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _moment(text: str | None) -> str | None:
    """Return a moment of Bitly's, such as `2020-02-26T04:00:42+0000`, in UTC; None if it is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return utc_iso(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
