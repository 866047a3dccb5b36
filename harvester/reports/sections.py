"""What the report says, section by section: its sentences, pictures and tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from harvester.progress import WAIT_REASONS, counted, duration, idle_in_words, shortfalls_in_words
from harvester.reports import charts, runs
from harvester.reports.charts import Bar, Picture, Point
from harvester.reports.tables import (
    LONGEST_REASON,
    VALUES,
    Column,
    Table,
    breakdown_table,
    facets_table,
    failures_table,
    links_table,
    moment_text,
    name_of,
    periods_table,
    printable,
    share,
    span_text,
    spread_table,
)
from harvester.sums.figures import FacetSums, Sums
from harvester.sums.sources import Source

_MOST_BARS = 12
_OTHER = (
    "Errors are requests without a response, and responses that are no answer. Other requests were answered and ended "
    "no call: the answer was truncated and requested again for more, or it was doubted."
)
_MOST_ABOVE = 3
"""A limit that is more than so many times what was sent is not drawn: little would be seen of the rest."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and what it shows, in a sentence."""

    picture: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report below its heading. facts: short texts with their numbers, shown large."""

    title: str
    sentences: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def sections_of(sources: Sequence[Source], sums: Sums) -> list[Section]:
    """Return the sections of the report, in their order."""
    found = [_overview(sources, sums)]
    found += [_breakdown(each) for each in sums.facets if each.breakdown is not None]
    if dated := [each for each in (sums.main, *sums.facets) if each is not None and each.periods]:
        found.append(_periods(dated[0]))
    if sums.main is not None and sums.main.links:
        found += [_links(sums.main), _spread(sums.main)]
    found.append(_shortfalls(sources, sums))
    found += _runs(sources)
    if sums.left_out:
        sentences = [f"{text}." for text in sums.left_out]
        found.append(Section("What is not in these sums", sentences))
    return found


# --- what came ------------------------------------------------------------------------------------------------------


def _overview(sources: Sequence[Source], sums: Sums) -> Section:
    main, counts = sums.main, [source.manifest.dataset for source in sources]
    links, clicks, without = (main.links, main.clicks, main.without_clicks) if main else (0, 0, 0)
    facts = [
        ("Links", f"{links:,}"),
        ("Clicks", f"{clicks:,}"),
        ("Links without clicks", share(without, links)),
        ("Rows", f"{sum(each.rows for each in sums.facets):,}"),
        ("Refused calls", f"{sum(each.refused for each in counts):,}"),
        ("Failed calls", f"{sum(each.failed for each in counts):,}"),
    ]
    sentences = []
    if main is not None and len(sums.facets) > 1:
        sentences.append(
            f"Links and clicks are those of the facet {main.facet}. Facets are never added up, because each "
            "breaks down the same clicks."
        )
    if pending := sum(each.pending for each in counts):
        sentences.append(f"{counted(pending, 'call')} {'is' if pending == 1 else 'are'} still to be made.")
    if waiting := sum(map(runs.unpublished, sources)):
        text = f"{counted(waiting, 'row')} not published yet, and so not in this report: a run ends by publishing all."
        sentences.append(text)
    if any(each.truncated or each.clipped for each in sums.facets):
        sentences.append("Some rows are truncated or clipped, so there were more clicks than these; see below.")
    tables = [facets_table(sums.facets)] if len(sums.facets) > 1 else []
    return Section("What was harvested", sentences, facts, tables=tables)


def _breakdown(sums: FacetSums) -> Section:
    found, by = sums.breakdown, VALUES[sums.facet][1]
    assert found is not None
    title = f"Clicks by {by}"
    if not found.lines:
        return Section(title, [f"No row of the facet {sums.facet} lists any."])
    bars = [Bar(name_of(each), each.clicks, f"{each.clicks:,}") for each in found.lines[:_MOST_BARS]]
    listed = sum(each.value for each in bars)
    if (rest := found.names - len(bars)) > 0:
        others = found.clicks - listed
        bars.append(Bar(f"{rest:,} others", others, f"{others:,}", rest=True))
    first = found.lines[0]
    caption = (
        f"{name_of(first)} has most, {share(first.clicks, found.clicks)} of {counted(found.clicks, 'click')}; "
        f"there {'is' if found.names == 1 else 'are'} {counted(found.names, 'name')} in all."
    )
    figure = Figure(charts.bars(title, caption, bars), caption)
    return Section(title, figures=[figure], tables=[breakdown_table(sums.facet, found)])


def _periods(sums: FacetSums) -> Section:
    title = f"Clicks a {sums.unit}"
    points = [Point(each.start, each.clicks) for each in sums.periods]
    most = max(sums.periods, key=lambda each: each.clicks)
    caption = (
        f"{counted(len(points), str(sums.unit))} from {moment_text(sums.periods[0].start)} to "
        f"{moment_text(sums.periods[-1].start)} (UTC), by the facet {sums.facet}; most clicks, {most.clicks:,}, on "
        f"{moment_text(most.start)}."
    )
    picture = charts.over_time(title, caption, points, str(sums.unit))
    return Section(title, figures=[Figure(picture, caption)], tables=[periods_table(sums)])


def _links(sums: FacetSums) -> Section:
    title, first = "Links with most clicks", sums.busiest[0]
    bars = [Bar(printable(each.bitlink), each.clicks, f"{each.clicks:,}") for each in sums.busiest[:_MOST_BARS]]
    caption = (
        f"{printable(first.bitlink)} has most, {counted(first.clicks, 'click')} "
        f"({share(first.clicks, sums.clicks)}), counted by the facet {sums.facet}."
    )
    return Section(title, figures=[Figure(charts.bars(title, caption, bars), caption)], tables=[links_table(sums)])


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
    return Section(title, sentences, figures=[Figure(picture, caption)], tables=[spread_table(sums)])


def _shortfalls(sources: Sequence[Source], sums: Sums) -> Section:
    rows, truncated, clipped, idle = (
        sum(getattr(each, name) for each in sums.facets) for name in ("rows", "truncated", "clipped", "idle")
    )
    sentences = [f"{text}." for text in shortfalls_in_words(rows, truncated, clipped)]
    if idle:
        sentences.append(f"{idle_in_words(rows, idle)}.")
    if not sentences:
        sentences.append("No row is truncated or clipped.")
    unlisted = [source for source in sources if not source.has_failures and _without_row(source)]
    if unlisted:
        sentences.append(f"{counted(len(unlisted), 'output')} without a list of failures: their reasons are not known.")
    if not sums.failures:
        whole = all(source.manifest.input_read_to_end for source in sources)
        none = "No call failed or was refused, and every line is a link." if whole else "No failure is known so far."
        return Section("What is missing", [*sentences, none])
    sentences.append(_failures_text(sums.without_row))
    return Section("What is missing", sentences, tables=[failures_table(sums.failures)])


def _without_row(source: Source) -> bool:
    return source.manifest.dataset.refused + source.manifest.dataset.failed > 0


def _failures_text(numbers: Mapping[str, int]) -> str:
    texts = {
        "refused": ("call that Bitly refused for good", "calls that Bitly refused for good"),
        "failed": ("call that failed and can be repeated", "calls that failed and can be repeated"),
        "invalid": ("line that is no bitlink", "lines that are no bitlinks"),
    }
    return f"Without a row: {', '.join(counted(numbers[kind], *texts[kind]) for kind in texts if kind in numbers)}."


# --- how it went ----------------------------------------------------------------------------------------------------


def _runs(sources: Sequence[Source]) -> Iterator[Section]:
    costs = runs.costs_of(sources)
    facts = [
        ("Requests sent", f"{costs.attempts:,}"),
        ("Answers", f"{costs.answers:,}"),
        ("Without an answer", f"{costs.wasted:,} ({share(costs.wasted, costs.attempts)})"),
        ("Repeated", f"{costs.retried:,}"),
        ("Throttled", f"{costs.throttled:,}"),
        ("For limits and groups", f"{costs.helper:,}"),
    ]
    sentences = [
        "A request is one attempt, which counts against Bitly's limits. An answer is a row, or a refusal for good.",
        "Without an answer are also first answers that were truncated, for which the link was asked once more.",
    ]
    sentences += [_month_text(each) for each in runs.months_of(sources)]
    yield Section("How the run went", sentences, facts, tables=[_outputs_table(sources)])
    if history := runs.history_of(sources):
        yield _pace(history)
        if history.waits:
            yield _waits(history)
    if found := runs.runs_of(sources):
        told = "A run that was killed ends here with what it stored last, half a second earlier at most."
        yield Section("Runs, one after another", [told], tables=[_runs_table(found)])


def _month_text(month: runs.Month) -> str:
    name = printable(month.account)
    if month.limit is None:
        return f"Account {name}: {month.used:,} requests this month, without a limit."
    until = f"; a new month begins {_time(month.until)}" if month.until else ""
    used = f"{month.used:,} of {month.limit:,} requests of the month ({share(month.used, month.limit)})"
    text = f"Account {name}: {used} used{until}."
    if month.spent is not None:
        text += f" At the latest pace they will be spent on {_time(month.spent)}."
    return text


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _outputs_table(sources: Sequence[Source]) -> Table:
    columns = (
        Column("Output"),
        Column("Facet"),
        Column("State"),
        Column("Run", number=True),
        Column("Begun (UTC)"),
        Column("Last heard of (UTC)"),
        *(Column(name, number=True) for name in ("Rows", "Refused", "Failed", "Left", "Requests")),
    )
    lines = []
    for source in sources[:1000]:
        manifest, counts = source.manifest, source.manifest.dataset
        run = f"{manifest.invocation.number:,}"
        texts = (printable(source.name), source.facet, printable(runs.state_of(manifest), LONGEST_REASON), run)
        numbers = (counts.rows, counts.refused, counts.failed, counts.pending, manifest.attempts.total)
        times = (moment_text(manifest.started), moment_text(manifest.ended or manifest.updated))
        lines.append((*texts, *times, *(f"{number:,}" for number in numbers)))
    rest = f"{len(sources) - 1000:,} more outputs are not listed." if len(sources) > 1000 else ""
    return Table("Outputs", columns, tuple(lines), rest)


def _pace(history: runs.History) -> Section:
    title = "Requests a minute"
    most = max(_sums(history.points), default=0.0)
    ceilings = [point for point in history.ceilings if point.value <= _MOST_ABOVE * most]
    drawn = dict.fromkeys(point.series for point in ceilings)
    caption = f"What requests came to, averaged over {duration(history.seconds)}; at most {most:,.0f} a minute, in UTC."
    if drawn:
        lines = " and ".join(f"the {name}'s limit" for name in drawn)
        caption += f" Broken {'line' if len(drawn) == 1 else 'lines'}: {lines}, by the minute."
    said = [
        f"{history.limits[name]:,} a{'n' * (name == 'hour')} {name}" for name in runs.MINUTES if name in history.limits
    ]
    if history.outages:
        caption += f" Shaded: the server did not answer (an outage), {duration(history.waits[runs.OUTAGE])} in all."
    sentences = [f"Limits in the end: {', '.join(said)}."] if said else []
    names = [name for name in runs.SERIES if any(point.value for point in history.points if point.series == name)]
    sentences += [_OTHER] if "other" in names else []
    points = [point for point in history.points if point.series in names]
    overlay = charts.Overlay(ceilings, history.shaded)
    picture = charts.stacked(title, caption, points, names, overlay, "requests a minute")
    return Section(title, sentences, figures=[Figure(picture, caption)], tables=[_points_table(history)])


def _sums(points: Sequence[Point]) -> list[float]:
    found: dict[str, float] = {}
    for point in points:
        found[point.moment] = found.get(point.moment, 0.0) + point.value
    return list(found.values())


def _points_table(history: runs.History) -> Table:
    found: dict[str, list[str]] = {}
    for point in history.points:
        found.setdefault(point.moment, []).append(_rate(point.value))
    columns = [Column("From (UTC)"), *(Column(name.capitalize(), number=True) for name in runs.SERIES)]
    if history.outages:
        columns.append(Column("Outage, seconds", number=True))
        for moment, values in found.items():
            values.append(f"{history.outages.get(moment, 0):,.0f}")
    lines = [(moment_text(moment.removesuffix("+00:00")), *values) for moment, values in found.items()]
    return Table("Requests a minute, by what they came to", tuple(columns), tuple(lines[:-1]))


def _rate(value: float) -> str:
    """Return requests a minute, with a fraction where there is one."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _waits(history: runs.History) -> Section:
    title, waits = "What runs waited for", sorted(history.waits.items(), key=lambda each: -each[1])
    names = [WAIT_REASONS.get(name, printable(name)) for name, _ in waits]
    bars = [Bar(name, round(seconds), duration(seconds)) for name, (_, seconds) in zip(names, waits, strict=True)]
    caption = f"{duration(sum(history.waits.values()))} in all, most of it for {names[0]}."
    columns = (Column("Waited for"), Column("Seconds", number=True))
    lines = tuple((name, f"{seconds:,.0f}") for name, (_, seconds) in zip(names, waits, strict=True))
    table = Table("Seconds by what runs waited for", columns, lines)
    return Section(title, figures=[Figure(charts.bars(title, caption, bars), caption)], tables=[table])


def _runs_table(found: Sequence[runs.RunSum]) -> Table:
    titles = ("Requests", "Answers", "Failed calls", "Throttled", "Repeated", "Errors")
    several = len({each.output for each in found}) > 1
    columns = (
        *((Column("Output"),) if several else ()),
        Column("Run", number=True),
        Column("From (UTC)"),
        Column("To (UTC)"),
        *(Column(title, number=True) for title in titles),
    )
    lines = tuple(
        (
            *((printable(each.output),) if several else ()),
            f"{each.number:,}" if each.first == each.number else f"{each.first:,}–{each.number:,}",
            f"{each.started:%Y-%m-%d %H:%M}",
            f"{each.ended:%Y-%m-%d %H:%M}",
            *(f"{number:,}" for number in each[5:]),
        )
        for each in found[-1000:]
    )
    older = len(found) - len(lines)
    return Table("Runs by their start", columns, lines, f"{older:,} earlier runs are not listed." if older else "")
