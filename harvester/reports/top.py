"""`harvester top`: the busiest names, links or periods, as a table for a terminal and as JSON."""

import io
import shutil
import sys
from typing import Any, NamedTuple

from harvester.config.placeholders import layout_patterns
from harvester.errors import UsageError
from harvester.reports.tables import Table, breakdown_table, links_table, periods_table
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
_PIPE_WIDTH = 160


class Top(NamedTuple):
    """What has most clicks. by: the value of --by. left_out: what is not in the sums."""

    by: str
    sums: FacetSums
    left_out: tuple[str, ...]


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
        raise UsageError(f"{out} has no facet {facet}; it has {', '.join(sorted(found))}", option="--by")
    sums = sums_of(sources, facets=[facet], lines=lines)
    (of_facet,) = sums.facets
    if by == "day" and not of_facet.periods:
        raise UsageError(f"{out} has no days: its rows are totals", option="--by")
    return Top(by, of_facet, sums.left_out)


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
    return {**about, "lines": _lines(found), "left_out": list(found.left_out)}


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
    """Return the table that is printed, as wide as the terminal."""
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.text import Text  # noqa: PLC0415

    table = _table(found)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
    written = io.StringIO()
    console = Console(width=width, color_system=None, highlight=False, file=written)
    console.print(_drawn(table), Text(table.rest), sep="\n")
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).rstrip()


def _table(found: Top) -> Table:
    if found.by == "link":
        return links_table(found.sums)
    if found.by == "day" or found.sums.breakdown is None:
        return periods_table(found.sums)
    return breakdown_table(found.sums.facet, found.sums.breakdown)


def _drawn(table: Table) -> Any:
    from rich import box  # noqa: PLC0415
    from rich.table import Table as Drawn  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns:
        drawn.add_column(Text(column.title), justify="right" if column.number else "left", overflow="fold")
    for line in table.lines:
        drawn.add_row(*map(Text, line))
    return drawn
