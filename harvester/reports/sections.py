"""What the report says of what was harvested, section by section: its sentences, pictures and tables."""

from collections.abc import Mapping, Sequence

from harvester.progress import counted, idle_in_words, shortfalls_in_words
from harvester.reports import charts
from harvester.reports.charts import Bar, Point
from harvester.reports.section import Fact, Figure, Section, bounded_list
from harvester.reports.tables import (
    VALUES,
    breakdown_table,
    damage_text,
    facets_table,
    failures_table,
    links_table,
    moment_text,
    name_of,
    periods_table,
    printable,
    share,
    shortfall_note,
    span_text,
    spread_table,
)
from harvester.sums.figures import FacetSums, Sums
from harvester.sums.sources import Source

_MOST_BARS = 12
_NO_ROWS = "No row was read."
_MOST_OTHERS = 2
"""The bar of all others is left out if it is more than so many times the longest: it would dwarf those with a name."""


def harvest_sections(sources: Sequence[Source], sums: Sums) -> list[Section]:
    """Return the sections about what was harvested, in their order."""
    found = [_overview(sources, sums)]
    found += [_breakdown(each) for each in sums.facets if each.breakdown is not None]
    if dated := [each for each in (sums.main, *sums.facets) if each is not None and each.periods]:
        found.append(_periods(dated[0]))
    if sums.main is not None and sums.main.links:
        found += [_links(sums.main), _spread(sums.main)]
    return [*found, _shortfalls(sources, sums)]


def _damage_notices(sums: Sums) -> list[str]:
    """Return what is wrong with files, and what finds out more: a sentence for each, and for all what is missing."""
    if not sums.damaged:
        return []
    lost = sum(max(each.rows - each.read, 0) for each in sums.damaged if each.rows)
    files = counted(len(sums.damaged), "file is", "files are")
    total = sum(each.rows for each in sums.facets) + lost
    first = f"{files} damaged. These sums lack {lost:,} of {total:,} rows." if lost else f"{files} damaged."
    return [first, *bounded_list([damage_text(each) for each in sums.damaged])]


# --- what came ------------------------------------------------------------------------------------------------------


def _overview(sources: Sequence[Source], sums: Sums) -> Section:
    main, counts = sums.main, [source.manifest.dataset for source in sources]
    links, clicks, without = (main.links, main.clicks, main.without_clicks) if main else (0, 0, 0)
    waiting = sum(source.unpublished for source in sources)
    note = f"{counted(waiting, 'answer')} not in the parts yet" if waiting else ""
    facts = [
        Fact("Links", f"{links:,}", note),
        Fact("Clicks", f"{clicks:,}", note),
        Fact("Links without clicks", share(without, links)),
        Fact("Rows", f"{sum(each.rows for each in sums.facets):,}", note),
        Fact("Refused calls", f"{sum(each.refused for each in counts):,}"),
        Fact("Failed calls", f"{sum(each.failed for each in counts):,}"),
    ]
    sentences = []
    if main is not None and len(sums.facets) > 1:
        sentences.append(
            f"Links and clicks are those of the facet {main.facet}. Facets are never added up, because each "
            "breaks down the same clicks."
        )
    if pending := sum(each.pending for each in counts):
        sentences.append(f"{counted(pending, 'call')} {'is' if pending == 1 else 'are'} still to be made.")
    if any(each.truncated or each.clipped for each in sums.facets):
        sentences.append("Some rows are truncated or clipped, so there were more clicks than these; see below.")
    tables = [facets_table(sums.facets)] if len(sums.facets) > 1 else []
    notices = _damage_notices(sums)
    return Section("What was harvested", sentences, facts, tables=tables, notices=notices)


def _breakdown(sums: FacetSums) -> Section:
    found, by = sums.breakdown, VALUES[sums.facet][1]
    assert found is not None
    title = f"Clicks by {by}"
    if not found.lines:
        return Section(title, [f"No row of the facet {sums.facet} lists any." if sums.rows else _NO_ROWS])
    bars = [Bar(name_of(each), each.clicks, f"{each.clicks:,}") for each in found.lines[:_MOST_BARS]]
    listed = sum(each.value for each in bars)
    first = found.lines[0]
    caption = (
        f"{name_of(first)} has most, {share(first.clicks, found.clicks)} of {counted(found.clicks, 'click')}; "
        f"there {'is' if found.names == 1 else 'are'} {counted(found.names, 'name')} in all."
    )
    if (rest := found.names - len(bars)) > 0:
        others = found.clicks - listed
        caption += f" {rest:,} others have {counted(others, 'click')} ({share(others, found.clicks)})."
        if others <= _MOST_OTHERS * first.clicks:
            bars.append(Bar("others", others, f"{others:,}", rest=True))
    figure = Figure(charts.bars(title, caption, bars), caption)
    return Section(title, figures=[figure], tables=[breakdown_table(sums.facet, found)], note=shortfall_note(sums))


def _periods(sums: FacetSums) -> Section:
    title = f"Clicks a {sums.unit}"
    points = [Point(each.start, each.clicks) for each in sums.periods]
    most = max(sums.periods, key=lambda each: each.clicks)
    caption = (
        f"{counted(len(points), str(sums.unit))} from {moment_text(sums.periods[0].start)} to "
        f"{moment_text(sums.periods[-1].start)} (UTC), by the facet {sums.facet}; most clicks, {most.clicks:,}, on "
        f"{moment_text(most.start)}."
    )
    if len(points) == 1:  # a picture would be one bar
        return Section(title, [caption], tables=[periods_table(sums)], note=shortfall_note(sums))
    picture = charts.over_time(title, caption, points, str(sums.unit))
    return Section(title, figures=[Figure(picture, caption)], tables=[periods_table(sums)], note=shortfall_note(sums))


def _links(sums: FacetSums) -> Section:
    title, first = "Links with most clicks", sums.busiest[0]
    bars = [Bar(printable(each.bitlink), each.clicks, f"{each.clicks:,}") for each in sums.busiest[:_MOST_BARS]]
    caption = (
        f"{printable(first.bitlink)} has most, {counted(first.clicks, 'click')} "
        f"({share(first.clicks, sums.clicks)}), counted by the facet {sums.facet}."
    )
    figure = Figure(charts.bars(title, caption, bars), caption)
    return Section(title, figures=[figure], tables=[links_table(sums)], note=shortfall_note(sums))


def _spread(sums: FacetSums) -> Section:
    title = "How clicks spread over links"
    sentences = [
        f"The busiest {each.share * 100:g} % of links ({each.links:,}) have {share(each.clicks, sums.clicks)} of all."
        for each in sums.shares
    ]
    points = []
    for each in sums.spread:
        points.append(Point(span_text(each.least), each.links / sums.links, "share of links"))
        points.append(Point(span_text(each.least), each.clicks / sums.clicks if sums.clicks else 0, "share of clicks"))
    caption = "For links with so many clicks: their share of all links, and the share of all clicks that they have."
    picture = charts.pairs(title, caption, points, ("share of links", "share of clicks"))
    figure = Figure(picture, caption)
    return Section(title, sentences, figures=[figure], tables=[spread_table(sums)], note=shortfall_note(sums))


def _shortfalls(sources: Sequence[Source], sums: Sums) -> Section:
    rows, truncated, clipped, idle = (
        sum(getattr(each, name) for each in sums.facets) for name in ("rows", "truncated", "clipped", "idle")
    )
    sentences = [f"{text}." for text in shortfalls_in_words(rows, truncated, clipped)]
    if idle:
        sentences.append(f"{idle_in_words(rows, idle)}.")
    if not sentences:
        sentences.append("No row is truncated or clipped." if rows else _NO_ROWS)
    unlisted = [source for source in sources if source.without_row and not source.has_failures]
    if unlisted:
        sentences.append(f"{counted(len(unlisted), 'output')} without a list of failures: their reasons are not known.")
    if not sums.failures and unlisted:
        return Section("What is missing", sentences)
    if not sums.failures:
        whole = all(source.manifest.complete for source in sources)
        none = "No call failed or was refused, and every line is a link." if whole else "No failure is known so far."
        return Section("What is missing", [*sentences, none])
    sentences.append(_failures_text(sums.without_row))
    return Section("What is missing", sentences, tables=[failures_table(sums.failures)])


def _failures_text(numbers: Mapping[str, int]) -> str:
    texts = {
        "refused": ("call that Bitly refused for good", "calls that Bitly refused for good"),
        "failed": ("call that failed and can be repeated", "calls that failed and can be repeated"),
        "invalid": ("line that is no bitlink", "lines that are no bitlinks"),
    }
    return f"Without a row: {', '.join(counted(numbers[kind], *texts[kind]) for kind in texts if kind in numbers)}."
