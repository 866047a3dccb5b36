"""Tables of sums, as a report and a terminal show them: their columns, and cells as text."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from typing import NamedTuple

from harvester.progress import counted
from harvester.sums.figures import Breakdown, Damage, FacetSums, FailureSum, Named

LONGEST_TEXT = 96
"""Characters of a name that are shown."""
LONGEST_CARRIED = 48
"""Characters of a carried value that are shown."""
LONGEST_REASON = 300
"""Characters of the reason why a run has stopped, which ends with what to do."""
_MOST_CARRIED = 6
"""Carried columns that are shown."""
_FIELDS = {
    "network": "Domain",
    "city": "City",
    "subregion": "Part of the region",
    "region": "Region",
    "country": "Country",
    "device_type": "Device",
}
VALUES = {
    "referrers": ("Referrer", "referrer"),
    "referrer_name": ("Referrer", "name of the referrer"),
    "referring_domains": ("Domain", "referring domain"),
    "referrers_by_domains": ("Referrer", "domain and referrer"),
    "countries": ("Country", "country"),
    "cities": ("City", "city"),
    "devices": ("Device", "device"),
    "clicks": ("", "clicks over time"),
    "clicks_summary": ("", "clicks in total"),
    "engagements": ("", "engagements over time"),
    "engagements_summary": ("", "engagements in total"),
}
"""Facet to the heading of its values' column, and to what its clicks are broken down by."""


UNKNOWN = "unknown"
"""What stands for a name that Bitly has not given."""


class Column(NamedTuple):
    """A column. number: its cells are numbers, aligned to the right and sorted by their amount.

    short: its texts are not broken into lines.
    """

    title: str
    number: bool = False
    short: bool = False

    @property
    def kind(self) -> str:
        """The class that it has in the report's style sheet."""
        return "n" if self.number else "s" if self.short else ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table. lines: cells as text, a foreign one made printable. rest: what was left out, as a sentence."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]
    rest: str = ""


def printable(text: str | None, most: int = LONGEST_TEXT) -> str:
    """Return a foreign text so that it can be shown: cut, and with an escape for each character that is not printable.

    Those include line feeds, and marks that would turn the direction of the text around it.
    """
    if text is None:
        return UNKNOWN
    if not text.strip():
        return "(blank)" if text else "(empty)"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def share(part: float, whole: float) -> str:
    """Return a share in per cent: `12.3 %`; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def name_of(named: Named) -> str:
    """Return what a person calls a value, in one text."""
    names = named.names if len(named.names) < 3 else (named.names[0], named.names[-1])  # of a place: city and country
    told = [name for name in names if name and name.strip()]
    return printable(", ".join(told)) if told else printable(names[-1])


def shortfall_note(found: FacetSums) -> str:
    """Return that sums are too low because rows lack clicks; empty if none does."""
    lacking = {"truncated": found.truncated, "clipped": found.clipped}
    told = [f"{number:,} {'is' if number == 1 else 'are'} {what}" for what, number in lacking.items() if number]
    if not told:
        return ""
    rows = counted(found.rows, "row")
    return f"Of {rows} of the facet {found.facet}, {' and '.join(told)}: there were more clicks than are shown here."


def damage_text(found: Damage) -> str:
    """Return what is wrong with a file, and the command that finds out more."""
    should = f" should have {counted(found.rows, 'row')}, and" if found.rows is not None else ""
    read = f"; {found.read:,} of them are in the sums" if found.read else ""
    why = printable(found.why, LONGEST_REASON).rstrip(".")
    command = f"harvester verify {shlex.quote(found.output)}"
    return f"{found.name}{should} cannot be read as it is: {why}{read}. `{command}` says what is wrong."


def breakdown_table(facet: str, found: Breakdown) -> Table:
    """Return the busiest names of a facet."""
    value, by = VALUES[facet]
    fields = [Column(value if field == "value" else _FIELDS[field]) for field in found.fields]
    lines = tuple(
        (*map(printable, each.names), f"{each.clicks:,}", share(each.clicks, found.clicks)) for each in found.lines
    )
    columns = (*fields, Column("Clicks", number=True), Column("Share", number=True))
    return Table(f"Clicks by {by}", columns, lines, _rest(found))


def _rest(found: Breakdown) -> str:
    more = found.names - len(found.lines)
    if more <= 0:
        return ""
    clicks = found.clicks - sum(each.clicks for each in found.lines)
    return f"{counted(more, 'more name')}, with {counted(clicks, 'click')} in all, {_is(more)} not listed."


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def links_table(found: FacetSums) -> Table:
    """Return the links with most clicks, with the columns that their list had for them."""
    names = list(dict.fromkeys(name for link in found.busiest for name in link.carried))
    carried = names[:_MOST_CARRIED]
    lines = tuple(
        (
            printable(link.bitlink),
            f"{link.clicks:,}",
            share(link.clicks, found.clicks),
            *("" if (text := link.carried.get(name)) is None else printable(text, LONGEST_CARRIED) for name in carried),
        )
        for link in found.busiest
    )
    columns = (Column("Link"), Column("Clicks", number=True), Column("Share", number=True))
    more = found.links - len(found.busiest)
    rest = [f"{counted(more, 'more link')} {_is(more)} not listed."] if more > 0 else []
    if hidden := len(names) - len(carried):
        rest.append(f"{counted(hidden, 'more carried column')} {_is(hidden)} not shown.")
    if any(len(text or "") > LONGEST_CARRIED for link in found.busiest for text in link.carried.values()):
        rest.append(
            f"Values of carried columns are shortened to {LONGEST_CARRIED} characters; the rows have all of them."
        )
    own = (Column(printable(name, 32)) for name in carried)
    return Table("Links with most clicks", (*columns, *own), lines, " ".join(rest))


def periods_table(found: FacetSums) -> Table:
    """Return the clicks of each period, the newest last."""
    columns = (
        Column(f"{str(found.unit).capitalize()} (UTC)", short=True),
        Column("Links", number=True),
        Column("Clicks", number=True),
    )
    lines = tuple((moment_text(each.start), f"{each.links:,}", f"{each.clicks:,}") for each in found.periods)
    older = found.period_count - len(found.periods)
    rest = f"{counted(older, f'earlier {found.unit}')} {_is(older)} not listed." if older > 0 else ""
    return Table(f"Clicks a {found.unit}", columns, lines, rest)


def moment_text(moment: str) -> str:
    """Return a moment of rows, `2026-11-22T00:00:00Z`, as people read it; without its time if that is midnight."""
    day, _, time = moment.removesuffix("Z").partition("T")
    return day if time in {"", "00:00:00"} else f"{day} {time.removesuffix(':00')}"


def spread_table(found: FacetSums) -> Table:
    """Return how clicks spread over links: for each size of a link's clicks how many links, and their clicks."""
    columns = ("Clicks of a link", "Links", "Share of links", "Clicks", "Share of clicks")
    lines = tuple(
        (
            span_text(each.least),
            f"{each.links:,}",
            share(each.links, found.links),
            f"{each.clicks:,}",
            share(each.clicks, found.clicks),
        )
        for each in found.spread
    )
    return Table(
        "Links by their clicks",
        (Column(columns[0], short=True), *(Column(name, number=True) for name in columns[1:])),
        lines,
    )


def span_text(least: int) -> str:
    """Return the clicks of links in one class: `10–99`."""
    return str(least) if least == 0 else f"{least:,}–{least * 10 - 1:,}"


def failures_table(failures: Sequence[FailureSum]) -> Table:
    """Return why calls have no row, and lines no link."""
    columns = (
        Column("What", short=True),
        Column("HTTP status", number=True),
        Column("Reason"),
        Column("Number", number=True),
        Column("Example"),
    )
    lines = tuple(
        (
            printable(each.kind),
            "–" if each.status is None else str(each.status),
            printable(each.message),
            f"{each.number:,}",
            "" if each.example is None else printable(each.example),
        )
        for each in failures
    )
    return Table("Links and lines without a row, by reason", columns, lines)


_NUMBERS: dict[str, Callable[[FacetSums], int]] = {
    "Outputs": lambda each: len(each.outputs),
    "Rows": lambda each: each.rows,
    "Links": lambda each: each.links,
    "Without clicks": lambda each: each.without_clicks,
    "Clicks": lambda each: each.clicks,
    "Truncated": lambda each: each.truncated,
    "Clipped": lambda each: each.clipped,
    "Without a call": lambda each: each.idle,
    "Older rows": lambda each: each.older,
}
_ALWAYS = 5
"""Columns of those that are shown also where all is 0."""


def facets_table(facets: Sequence[FacetSums]) -> Table:
    """Return the sums of each facet, a line each."""
    shown = {
        title: number
        for place, (title, number) in enumerate(_NUMBERS.items())
        if place < _ALWAYS or any(map(number, facets))
    }
    lines = tuple((each.facet, *(f"{number(each):,}" for number in shown.values())) for each in facets)
    return Table(
        "Sums by facet", (Column("Facet", short=True), *(Column(title, number=True) for title in shown)), lines
    )


# --- bounds -----------------------------------------------------------------------------------------------------------

_MOST_BYTES = 256 * 1024
"""Of one table in a report."""
_CELL_BYTES = 38
"""What a cell takes beside its text, at most."""


def fitted(tables: Sequence[Table], most: int) -> list[Table]:
    """Return tables without their last lines where they are too long. most: bytes of all, in HTML.

    A table that needs less than its share leaves the rest to the others.
    """
    sizes = [sum(map(_size, table.lines)) for table in tables]
    allowed, left = [0] * len(tables), most
    for done, place in enumerate(sorted(range(len(tables)), key=sizes.__getitem__)):
        allowed[place] = min(sizes[place], left // (len(tables) - done), _MOST_BYTES)
        left -= allowed[place]
    return [_cut(table, size) for table, size in zip(tables, allowed, strict=True)]


def _size(line: Sequence[str]) -> int:
    return sum(len(escape(text).encode()) + _CELL_BYTES for text in line)


def _cut(table: Table, most: int) -> Table:
    """Return a table of the first lines that take at most so many bytes."""
    sizes = accumulate(map(_size, table.lines))
    lines = sum(size <= most for size in sizes)
    if left := len(table.lines) - lines:
        text = f"{counted(left, 'more line')} {_is(left)} left out to keep this file small."
        return replace(table, lines=table.lines[:lines], rest=f"{table.rest} {text}".strip())
    return table
