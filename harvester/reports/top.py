"""`harvester top`: the busiest names, links or periods, as a table for a terminal and as JSON."""

import io
import shutil
import sys
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from harvester.config.placeholders import layout_patterns
from harvester.errors import UsageError
from harvester.reports.tables import Table, breakdown_table, damage_text, links_table, periods_table, shortfall_note
from harvester.sums.figures import FacetSums
from harvester.sums.queries import main_facet_of, sums_of
from harvester.sums.sources import Source, sources_at

_FACETS = {
    "referrer": "referrers",
    "domain": "referring_domains",
    "referrer-name": "referrer_name",
    "domain-and-referrer": "referrers_by_domains",
    "country": "countries",
    "device": "devices",
    "city": "cities",
}
"""The value of --by to the facet that has it; the first that was harvested is the default."""


class Top(NamedTuple):
    """What has most clicks. by: the value of --by. left_out, damaged: what is not in the sums, as sentences."""

    by: str
    sums: FacetSums
    left_out: tuple[str, ...]
    damaged: tuple[str, ...]


def top_of(out: str, by: str | None, lines: int) -> Top:
    """Return what has most clicks in outputs; of days, the newest. lines: the most of them.

    Raises:
        UsageError: nothing of that kind was harvested, or a library is missing. OutputError: an output cannot be read.
    """
    if lines < 1:
        raise UsageError("must be at least 1", option="--lines")
    sources = sources_at(out, layout_patterns("OUT", out))
    found = {source.facet for source in sources.found}
    by = by or next((name for name, facet in _FACETS.items() if facet in found), "link")
    facet = _FACETS.get(by) or _facet_of(by, sources.found)
    if facet not in found:
        raise UsageError(f"{by}: {out} has no facet {facet}; {_instead(found)}", option="--by")
    sums = sums_of(sources, facets=[facet], lines=lines)
    (of_facet,) = sums.facets
    if by == "day" and not of_facet.periods:
        totals = "its rows are totals up to a moment; `run --since` with a new --out harvests days"
        raise UsageError(f"{by}: {out} has no days: {totals}; {_instead(found)}", option="--by")
    return Top(by, of_facet, sums.left_out, tuple(map(damage_text, sums.damaged)))


def _instead(facets: Collection[str]) -> str:
    """Return the values of --by for what was harvested."""
    found = [name for name, facet in _FACETS.items() if facet in facets]
    return f"--by {', '.join([*found, 'link'])} can be printed"


def _facet_of(by: str, sources: tuple[Source, ...]) -> str:
    """Return the facet to count links or days by."""
    main = main_facet_of(sources)
    series = [name for name in ("clicks", "engagements") if any(source.facet == name for source in sources)]
    dated = any(source.facet == main and source.manifest.query.get("period_start") for source in sources)
    return series[0] if by == "day" and series and not dated else main


def as_dict(found: Top) -> dict[str, Any]:
    """Return the JSON object that --json prints."""
    sums = found.sums
    about = {"by": found.by, "facet": sums.facet, "links": sums.links, "clicks": sums.clicks}
    lacking = {"rows": sums.rows, "truncated": sums.truncated, "clipped": sums.clipped}
    return {
        **about,
        **lacking,
        "lines": _lines(found),
        "left_out": list(found.left_out),
        "damaged": list(found.damaged),
    }


def _lines(found: Top) -> list[dict[str, Any]]:
    sums = found.sums
    if found.by == "link":
        return [
            {"bitlink": each.bitlink, "clicks": each.clicks, "carried": each.carried or None} for each in sums.busiest
        ]
    if found.by == "day" or sums.breakdown is None:
        return [each._asdict() for each in sums.periods]
    fields = sums.breakdown.fields
    return [{**dict(zip(fields, each.names, strict=True)), "clicks": each.clicks} for each in sums.breakdown.lines]


def as_text(found: Top) -> str:
    """Return the table that is printed. A terminal gets as many columns as it is wide; no name is broken into lines."""
    from rich.console import Console  # noqa: PLC0415 - slow to import

    table = _table(found)
    widths = _widths(table)
    shown = len(widths)
    if sys.stdout.isatty():
        shown = _fitting(table, widths, shutil.get_terminal_size().columns)
    written = io.StringIO()
    wide = sum(widths[:shown]) + _GAP * shown
    Console(width=wide, color_system=None, highlight=False, file=written).print(_drawn(table, shown))
    hidden = [column.title for column in table.columns[shown:]]
    notes = [
        table.rest,
        f"Not shown on this terminal: {', '.join(hidden)}." if hidden else "",
        shortfall_note(found.sums),
    ]
    return "\n".join([line.rstrip() for line in written.getvalue().splitlines()] + [note for note in notes if note])


_GAP = 3
"""Cells between two columns."""


def _widths(table: Table) -> list[int]:
    """Return how many cells of a terminal each column needs."""
    from rich.cells import cell_len  # noqa: PLC0415

    cells = zip(*([column.title for column in table.columns], *table.lines), strict=True)
    return [max(map(cell_len, each)) for each in cells]


def _fitting(table: Table, widths: Sequence[int], wide: int) -> int:
    """Return how many columns are shown: all up to the clicks, and those behind them that have room."""
    shown = next(place for place, column in enumerate(table.columns, 1) if column.title == "Clicks")
    while shown < len(widths) and sum(widths[: shown + 1]) + _GAP * shown <= wide:
        shown += 1
    return shown


def _table(found: Top) -> Table:
    if found.by == "link":
        return links_table(found.sums)
    if found.by == "day" or found.sums.breakdown is None:
        return periods_table(found.sums)
    return breakdown_table(found.sums.facet, found.sums.breakdown)


def _drawn(table: Table, shown: int) -> Any:
    """Return the first columns of a table, as rich draws it."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table as Drawn  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns[:shown]:
        drawn.add_column(Text(column.title), justify="right" if column.number else "left", no_wrap=True)
    for line in table.lines:
        drawn.add_row(*map(Text, line[:shown]))
    return drawn
