"""What the report says of how the runs went: what was sent, what it came to, what was waited for, and each run."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from harvester.progress import WAIT_REASONS, counted, duration
from harvester.reports import charts, runs
from harvester.reports.charts import Bar, Point
from harvester.reports.section import Fact, Figure, Section, bounded_list
from harvester.reports.tables import LONGEST_REASON, Column, Table, printable, share
from harvester.sums.sources import Source

_OTHER = (
    "Errors are requests without a response, and responses that are no answer. Other requests were answered and ended "
    "no call: the answer was truncated and requested again for more, or it was doubted, or its run was killed first."
)
_REQUESTS = (
    "A request is one attempt, which counts against Bitly's limits. An answer is a row, or a refusal for good: it "
    "settles the call. Requests that settled none were throttled or failed, or the call was made again after them: the "
    "answer was truncated, and the link was asked for more, or the answer was doubted."
)
_MOST_ABOVE = 3
"""A limit that is more than so many times what was sent is not drawn: little would be seen of the rest."""


def run_sections(sources: Sequence[Source]) -> Iterator[Section]:
    """Yield the sections about the runs of outputs."""
    costs = runs.costs_of(sources)
    part = share(costs.wasted, costs.attempts).replace(" ", "\N{NO-BREAK SPACE}")
    facts = [
        Fact("Requests sent", f"{costs.attempts:,}"),
        Fact("Answers", f"{costs.answers:,}"),
        Fact("Settled no call", f"{costs.wasted:,} ({part})"),
        Fact("Repeated", f"{costs.retried:,}"),
        Fact("Throttled", f"{costs.throttled:,}"),
        Fact("For limits and groups", f"{costs.helper:,}"),
    ]
    sentences = [_REQUESTS]
    months = [_month_text(each) for each in runs.months_of(sources)]
    sentences += bounded_list(months)
    found = runs.runs_of(sources)
    if found and (lost := costs.attempts - sum(run.attempts for run in found)) > 0:
        requests = counted(lost, "request is", "requests are")
        sentences.append(f"{requests} in no minute and no run below: a killed run has not stored its last half second.")
    yield Section("How the run went", sentences, facts, tables=[_outputs_table(sources)])
    if history := runs.history_of(sources):
        yield _pace(history)
        if history.waits:
            yield _waits(history)
    if found:
        yield Section("Runs, one after another", tables=[_runs_table(found)])


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
        Column("State"),
        Column("Last heard of (UTC)", short=True),
        *(Column(name, number=True) for name in ("Rows", "Refused", "Failed", "Left", "Requests")),
    )
    lines = []
    for source in sources[:1000]:
        manifest, counts = source.manifest, source.manifest.dataset
        texts = (printable(source.name), printable(runs.state_of(manifest), LONGEST_REASON))
        numbers = (counts.rows, counts.refused, counts.failed, counts.pending, manifest.attempts.total)
        heard = (manifest.ended or manifest.updated)[:16].replace("T", " ")
        lines.append((*texts, heard, *(f"{number:,}" for number in numbers)))
    rest = f"{len(sources) - 1000:,} more outputs are not listed." if len(sources) > 1000 else ""
    return Table("Outputs", columns, tuple(lines), rest)


def _pace(history: runs.History) -> Section:
    title = "Requests a minute"
    most = max(_sums(history.points), default=0.0)
    ceilings = [point for point in history.ceilings if point.value <= _MOST_ABOVE * most]
    drawn = dict.fromkeys(point.series for point in ceilings)
    over = "in each minute" if history.seconds == 60 else f"averaged over {duration(history.seconds)}"
    caption = f"What requests came to, {over}; at most {most:,.0f} a minute. Times are UTC."
    if drawn:
        lines = " and ".join(f"the {name}'s limit" for name in drawn)
        caption += f" Broken {'line' if len(drawn) == 1 else 'lines'}: {lines}, by the minute."
    said = [
        f"{history.limits[name]:,} a{'n' * (name == 'hour')} {name}" for name in runs.MINUTES if name in history.limits
    ]
    if history.outages:
        caption += f" Shaded: the server did not answer (an outage), {duration(history.waits[runs.OUTAGE])} in all."
    sentences = [f"Limits in the end: {', '.join(said)}."] if said else []
    if any(point.value for point in history.points if point.series == "other"):
        sentences.append(_OTHER)
    if len(history.points) <= 2 * len(runs.SERIES):  # one moment and its end: a picture would be one bar
        return Section(title, [caption, *sentences], tables=[_points_table(history)])
    names = [name for name in runs.SERIES if any(point.value for point in history.points if point.series == name)]
    points = [point for point in history.points if point.series in names]
    overlay = charts.Overlay(ceilings, history.shaded)
    picture = charts.stacked(title, caption, points, runs.SERIES, overlay, "requests a minute")
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
    columns = [Column("From (UTC)", short=True), *(Column(name.capitalize(), number=True) for name in runs.SERIES)]
    if history.outages:
        columns.append(Column("Outage, seconds", number=True))
        for moment, values in found.items():
            values.append(f"{history.outages.get(moment, 0):,.0f}")
    lines = [(moment[:16].replace("T", " "), *values) for moment, values in found.items()]
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
    titles = ("Requests", "Answers", "Failed", "Throttled", "Repeated", "Errors")
    several = len({each.output for each in found}) > 1
    columns = (
        *((Column("Output"),) if several else ()),
        Column("Run", number=True),
        Column("From (UTC)", short=True),
        Column("To (UTC)", short=True),
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
