"""A group's export: one request says of up to 200 links whether they had any click in a time.

Bitly's reference has described `POST /groups/{group_guid}/exports` since 2026; the specification of November 2025 does
not have it. The answer holds a CSV as a data URI, with a line for each link: its clicks, its scans of QR codes, and the
clicks on buttons of Bitly pages. Neither the key of the URI nor the names of the columns are recorded. So the URI is
looked for, columns are found by their names, and a link has no clicks only if a line of its own states 0 in each of
them.
"""

import base64
import binascii
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from harvester.bitly.bitlinks import Bitlink, parse
from harvester.bitly.facets import FACETS, NotTheFacet
from harvester.bitly.query import GROUPS, Query
from harvester.bitly.verdicts import Verdict, classify_document
from harvester.errors import InvalidBitlink

EXPORTS_ENDPOINT = "/groups/{group_guid}/exports"
"""The path template by which Bitly names the endpoint."""
MOST_LINKS = 200
"""Links that one export takes."""
_TYPE = "link_engagements_batch"
_EARLIEST = int(datetime.fromisoformat("2008-01-01T00:00:00+00:00").timestamp())
"""Bitly has no older clicks. Not 0, which a Go server may take for a field that was left out."""
_LONGEST = {"minute": 60, "hour": 3600, "day": 86_400, "week": 7 * 86_400, "month": 31 * 86_400}
_ROUNDING = timedelta(days=1)
_LINK_NAMES = ("bitlink", "bitlink_id", "link", "short_link", "short_url", "id")
"""Names of the column of links, the likeliest first."""
_CLICKS = frozenset({"clicks", "link_clicks", "total_clicks"})
_ENDINGS = ("clicks", "scans")
_SEPARATOR = "\n"
_DEPTH = 4
_COUNT = re.compile(r"\d+")


class Span(NamedTuple):
    """The time of an export, in seconds since 1970."""

    first: int
    last: int


class Export(NamedTuple):
    """What an export states. active: links with clicks of any kind; idle: links without any.

    truncated: lines are missing. Of a truncated one nothing is known to be idle, because its last line may be cut too.
    """

    active: frozenset[Bitlink]
    idle: frozenset[Bitlink]
    truncated: bool = False


def lacks_in_export(facet: str) -> bool:
    """Return whether a facet counts something that an export does not state: it has clicks, and not engagements."""
    fields = FACETS[facet].fields
    return any(field.name == "engagement_count" for field in fields)


def span_of(query: Query, now: datetime) -> Span | None:
    """Return a time that contains a query's window as far as it is over; None if it has not begun. now: UTC.

    A link without clicks in it has none in the window. A period is the window itself, which a series has confirmed. Any
    other window may begin and end earlier or later than the reference says, because Bitly rounds that to a unit, in a
    way that is not documented: so two units and a day are added on both sides.
    """
    last = int(now.timestamp())  # a later end might be refused
    if query.period_start is not None and query.period_end is not None:
        first, end = _seconds(query.period_start), _seconds(query.period_end)
    else:
        reference, unit = _seconds(query.unit_reference), _LONGEST[query.unit]
        margin = 2 * unit + int(_ROUNDING.total_seconds())
        first, end = reference - query.units * unit - margin, reference + margin
        if query.units == -1:
            first = _EARLIEST
    span = Span(max(first, _EARLIEST), min(end, last))
    return span if span.first < span.last else None


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


class ExportRequests:
    """The requests of exports over one time. The name of one is `export_name`."""

    endpoint = EXPORTS_ENDPOINT

    def __init__(self, span: Span) -> None:
        self._span = span

    def target(self, name: str) -> tuple[str, str]:
        """Return the path; there is no query string."""
        return f"{GROUPS}/{name.partition(_SEPARATOR)[0]}/exports", ""

    def body(self, name: str) -> bytes:
        """Return the JSON that is posted."""
        links = name.split(_SEPARATOR)[1:]
        fields = {"export_type": _TYPE, "bitlinks": links, "unix_from": self._span.first, "unix_to": self._span.last}
        return orjson.dumps(fields)

    def classify(self, status: int, headers: Mapping[str, str], body: bytes, *, whole: bool) -> Verdict:
        """Return the verdict on a response; a good one is a Document of an Export."""
        return classify_document(status, headers, body, read_export, whole=whole)


def export_name(guid: str, links: Sequence[Bitlink]) -> str:
    """Return the name of the export of some links of a group, at most MOST_LINKS."""
    return _SEPARATOR.join([quote(guid, safe=""), *links])


def read_export(body: Mapping[str, Any]) -> Export:
    """Return what the decoded object of an export states.

    Raises:
        NotTheFacet: it has no CSV or several, no line for each of the rows that it counts, or columns that do not say
        what they are.
    """
    found = list(_data_uris(body, _DEPTH))
    if len(found) != 1:
        raise NotTheFacet(f"{len(found)} data URIs in place of one")
    holder, uri = found[0]
    lines = _lines_of(uri)
    count, truncated = _beside("row_count", holder, body), _beside("truncated", holder, body)
    stated = _stated(lines)
    if type(count) is int and count != len(lines) - 1 and not truncated:
        raise NotTheFacet(f"row_count is {count}, and {len(lines) - 1} rows are there")
    active = frozenset(link for link, clicks in stated.items() if clicks)
    if truncated:
        return Export(active, frozenset(), truncated=True)
    return Export(active, frozenset(link for link, clicks in stated.items() if clicks is False))


def _beside(name: str, holder: Mapping[str, Any], body: Mapping[str, Any]) -> object:
    return holder.get(name, body.get(name))


def _data_uris(value: object, depth: int) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the data URIs in a JSON value, each with the object that has it."""
    if isinstance(value, dict) and depth:
        for each in value.values():
            if isinstance(each, str) and each.startswith("data:"):
                yield value, each
            else:
                yield from _data_uris(each, depth - 1)
    elif isinstance(value, list) and depth:
        for each in value:
            yield from _data_uris(each, depth - 1)


def _lines_of(uri: str) -> list[list[str]]:
    """Return the records of the CSV in a data URI, the header among them."""
    head, comma, data = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise NotTheFacet("a data URI that is not base64")
    try:
        text = base64.b64decode(data, validate=True).decode("utf-8-sig")
        records = [record for record in csv.reader(io.StringIO(text, newline=""), strict=True) if record]
    except (binascii.Error, UnicodeDecodeError, csv.Error) as error:
        raise NotTheFacet(f"a CSV that cannot be read ({type(error).__name__})") from None
    if not records:
        raise NotTheFacet("a CSV without a header")
    return records


def _stated(records: Sequence[Sequence[str]]) -> dict[Bitlink, bool | None]:
    """Return for each link whether it had clicks of any kind; None if its lines do not say.

    Raises:
        NotTheFacet: the columns do not say what they are.
    """
    names = [re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") for name in records[0]]
    link_at = next((names.index(name) for name in _LINK_NAMES if name in names), None)
    counts = [at for at, name in enumerate(names) if name.endswith(_ENDINGS)]
    kinds = {names[at] for at in counts}
    buttons = any(name.endswith("button_clicks") for name in kinds)
    scans = any(name.endswith("scans") for name in kinds)
    if link_at is None or len(set(names)) < len(names) or not (kinds & _CLICKS and scans and buttons):
        raise NotTheFacet(f"columns {', '.join(names)[:100]} in place of a link, clicks, scans and button_clicks")
    found: dict[Bitlink, bool | None] = {}
    for record in records[1:]:
        if len(record) != len(names):
            continue
        try:
            link = parse(record[link_at])
        except InvalidBitlink:
            continue
        clicks = _any_in([record[at].strip() for at in counts])
        # In case of two lines for a link the one that says more against idle counts.
        if link not in found or clicks or (clicks is None and not found[link]):
            found[link] = clicks
    return found


def _any_in(counts: Sequence[str]) -> bool | None:
    """Return whether one of the counts is more than zero; None if they are not all numbers."""
    if not all(count.isascii() and _COUNT.fullmatch(count) for count in counts):
        return None
    return any(int(count) for count in counts)
