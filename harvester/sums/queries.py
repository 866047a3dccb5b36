"""The queries that add up the rows of outputs.

Of a link and a period the newest row counts. Periods are added up; windows that are no period are totals, so of those
the newest counts. Facets are never added up, because each breaks down the same clicks.
"""

from collections import Counter
from collections.abc import Sequence

from harvester.bitly.facets import FACETS, FieldKind
from harvester.progress import counted
from harvester.storage.location import FAILURES
from harvester.sums.figures import (
    Breakdown,
    FacetSums,
    FailureSum,
    LinkSum,
    Named,
    PeriodSum,
    ShareSum,
    SpreadClass,
    Sums,
)
from harvester.sums.rows_table import Database, opened_database
from harvester.sums.sources import Source, Sources

MOST_LINES = 1000
"""The most lines of one table."""
SHARES = (0.01, 0.1, 0.5)
"""The busiest links, as shares of all, whose clicks are added up."""
_CUT = "map_from_entries(list_transform(map_entries(carried), lambda e: {{'key': e.key, 'value': left(e.value, {})}}))"
"""Carried values, cut before they are collected: a thousand links may have megabytes of them."""
_BY_PREFERENCE = (
    "clicks_summary",
    "clicks",
    "engagements_summary",
    "engagements",
    "devices",
    "countries",
    "referring_domains",
    "referrer_name",
    "referrers",
    "referrers_by_domains",
    "cities",
)
"""Facets by how well the sum over a link's metrics is the link's clicks: those that cannot be truncated come first."""


def main_facet_of(sources: Sequence[Source]) -> str:
    """Return the facet that links are shown by: of those with most rows, the one that lists their clicks best."""
    rows: Counter[str] = Counter()
    for source in sources:
        rows[source.facet] += source.manifest.dataset.rows
    return max(rows, key=lambda facet: (rows[facet], -_BY_PREFERENCE.index(facet)))


def sums_of(
    sources: Sources, *, facets: Sequence[str] = (), lines: int = MOST_LINES, carried: int | None = None
) -> Sums:
    """Return the sums of outputs. facets: those to add up, by default all. lines: the most of each table.

    carried: the most characters of a carried value; None for all.

    Files that cannot be read as their manifests say are in `damaged`, and the rest is added up.

    Raises:
        UsageError: duckdb is not installed. OutputError: a store cannot be read, or there is too little room.
    """
    left_out = list(sources.left_out)
    with opened_database() as database:
        wanted = [name for name in FACETS if not facets or name in facets]
        by_facet = {name: [each for each in sources.found if each.facet == name] for name in wanted}
        chosen = {name: _of_one_window(group, left_out) for name, group in by_facet.items() if group}
        database.load_failures(each for group in chosen.values() for each in group)
        failures = _failures(database)
        without_row = dict(database.fetch("SELECT kind, count(*) FROM failures GROUP BY kind"))
        found = [_FacetQueries(database, name, group, lines, carried).sums() for name, group in chosen.items()]
        left_out += _unread(database, [source for group in chosen.values() for source in group])
        damaged = (*sources.damaged, *database.damaged)
    return Sums(main_facet_of(sources.found), tuple(found), failures, without_row, tuple(left_out), damaged)


def _unread(database: Database, sources: Sequence[Source]) -> list[str]:
    notes = []
    if waiting := sum(source.unpublished for source in sources):
        rows = counted(waiting, "row is", "rows are")
        notes.append(
            f"{rows} not in the parts yet, and not added up: a run ends by publishing all; repeat a killed one"
        )
    if newer := sum(source.newer_parts() for source in sources if not source.growing):
        notes.append(f"{counted(newer, 'part is', 'parts are')} newer than the manifest, and not added up yet")
    if unlisted := [source for source in sources if source.without_row and not source.has_failures]:
        calls = counted(sum(source.without_row for source in unlisted), "link or line", "links and lines")
        notes.append(f"no reasons for {calls} without a row: {unlisted[0].name_of(FAILURES)} is gone")
    if database.missing:
        files = counted(len(database.missing), "part is", "parts are")
        notes.append(f"{files} gone, and not added up: a loader may have taken them ({database.missing[0]})")
    if database.uncommitted:
        size = counted(database.uncommitted, "byte")
        notes.append(f"{size} at the end of a growing file are not committed yet, and not added up")
    return notes


def _of_one_window(sources: list[Source], left_out: list[str]) -> list[Source]:
    """Return the outputs of a facet whose windows are of the most frequent kind; say which others are left out."""
    kinds = Counter(map(_kind, sources))
    if len(kinds) < 2:
        return sources
    kind = max(kinds, key=lambda each: (kinds[each], each))
    left_out.extend(
        f"{source.name} is left out: its window ({_kind(source)}) is another than {kind}; its clicks would count twice"
        for source in sources
        if _kind(source) != kind
    )
    return [source for source in sources if _kind(source) == kind]


def _kind(source: Source) -> str:
    query = source.manifest.query
    return (
        f"one {query['unit']}" if query.get("period_start") else f"{query['units']} × {query['unit']}, up to a moment"
    )


def _failures(database: Database) -> tuple[FailureSum, ...]:
    found = database.fetch(
        "SELECT kind, status, message, count(*) AS number, min(coalesce(bitlink, text)) FROM failures "
        f"GROUP BY kind, status, message ORDER BY number DESC, kind, status, message LIMIT {MOST_LINES}"
    )
    return tuple(FailureSum(*each) for each in found)


class _FacetQueries:
    """The queries over one facet's rows."""

    def __init__(
        self, database: Database, facet: str, sources: list[Source], lines: int, carried: int | None = None
    ) -> None:
        self._database = database
        self._facet = FACETS[facet]
        self._sources = sources
        self._lines = lines
        self._carried = "carried" if carried is None else _CUT.format(carried)
        windows = Counter((str(each.manifest.query.get("period_start"))) for each in sources)
        self._has_older = any(each.is_refreshed for each in sources) or max(windows.values()) > 1
        database.load_rows(facet, sources)
        self._make_calls()
        database.fetch(
            "CREATE OR REPLACE TABLE links AS SELECT bitlink, sum(clicks) AS clicks FROM calls GROUP BY bitlink"
        )

    def _make_calls(self) -> None:
        """Make the table `calls`: a row for each call that counts."""
        every = (
            "SELECT source, call, bitlink, unit_reference, period_start, fetched_at, clicks, truncated, clipped, idle, "
            "carried FROM rows"
        )
        if any(each.manifest.shape == "flat" for each in self._sources):  # all rows of a call have the same columns
            every += " QUALIFY row_number() OVER (PARTITION BY source, call) = 1"
        newest = (
            " QUALIFY row_number() OVER (PARTITION BY bitlink, period_start ORDER BY unit_reference DESC, "
            "fetched_at DESC, source DESC) = 1"
        )
        self._database.fetch(
            f"CREATE OR REPLACE TABLE calls AS SELECT * FROM ({every}){newest if self._has_older else ''}"
        )

    def sums(self) -> FacetSums:
        """Return all sums of the facet."""
        rows, truncated, clipped, idle = self._one(
            "SELECT count(*), count(*) FILTER (truncated), count(*) FILTER (clipped), count(*) FILTER (idle) FROM calls"
        )
        every = self._one("SELECT count(DISTINCT (source, call)) FROM rows")[0] if self._has_older else rows
        links, without, clicks = self._one("SELECT count(*), count(*) FILTER (clicks = 0), sum(clicks) FROM links")
        query, (periods, period_count) = self._sources[0].manifest.query, self._periods()
        return FacetSums(
            facet=self._facet.name,
            unit=str(query["unit"]) if query.get("period_start") or self._facet.is_series else None,
            outputs=tuple(each.name for each in self._sources),
            rows=rows,
            older=every - rows,
            links=links,
            without_clicks=without,
            clicks=clicks,
            truncated=truncated,
            clipped=clipped,
            idle=idle,
            breakdown=self._breakdown(),
            periods=periods,
            period_count=period_count,
            busiest=self._busiest(),
            spread=self._spread(),
            shares=self._shares(links),
        )

    def _one(self, statement: str) -> list[int]:
        """Return the only row of a query of numbers; a sum over nothing is 0."""
        return [number or 0 for number in self._database.fetch(statement)[0]]

    @property
    def _counted_rows(self) -> str:
        """The rows whose metrics count."""
        return "rows SEMI JOIN calls USING (source, call)" if self._has_older else "rows"

    def _breakdown(self) -> Breakdown | None:
        fields = tuple(field.name for field in self._facet.fields if field.kind is FieldKind.TEXT)
        if not fields:
            return None
        names, listed = ", ".join(f"metric.{name}" for name in fields), ", ".join(fields)
        self._database.fetch(
            f"CREATE OR REPLACE TABLE names AS SELECT {names}, coalesce(sum(metric.clicks), 0) AS clicks "
            f"FROM (SELECT unnest(metrics) AS metric FROM {self._counted_rows}) GROUP BY {names}"
        )
        count, clicks = self._one("SELECT count(*), sum(clicks) FROM names")
        found = self._database.fetch(
            f"SELECT {listed}, clicks FROM names ORDER BY clicks DESC, {listed} LIMIT {self._lines}"
        )
        return Breakdown(fields, tuple(Named(tuple(each[:-1]), each[-1]) for each in found), count, clicks)

    def _periods(self) -> tuple[tuple[PeriodSum, ...], int]:
        """Return the newest periods in their order, and the number of all. A series has units in place of periods."""
        source = "SELECT period_start AS start, bitlink, clicks FROM calls WHERE period_start IS NOT NULL"
        if self._facet.is_series:
            source = (
                "SELECT strftime(metric.date, '%Y-%m-%dT%H:%M:%SZ') AS start, bitlink, metric.clicks AS clicks "
                f"FROM (SELECT bitlink, unnest(metrics) AS metric FROM {self._counted_rows})"
            )
        self._database.fetch(
            "CREATE OR REPLACE TABLE periods AS SELECT start, count(DISTINCT bitlink) AS links, "
            f"coalesce(sum(clicks), 0) AS clicks FROM ({source}) GROUP BY start"
        )
        found = self._database.fetch(f"SELECT * FROM periods ORDER BY start DESC LIMIT {self._lines}")
        return tuple(PeriodSum(*each) for each in reversed(found)), self._one("SELECT count(*) FROM periods")[0]

    def _busiest(self) -> tuple[LinkSum, ...]:
        found = self._database.fetch(
            f"WITH busiest AS (SELECT * FROM links ORDER BY clicks DESC, bitlink LIMIT {self._lines}) "
            "SELECT busiest.bitlink, any_value(busiest.clicks) AS sum, "
            f"arg_max({self._carried}, unit_reference || fetched_at) FROM busiest JOIN calls USING (bitlink) "
            "GROUP BY busiest.bitlink ORDER BY sum DESC, busiest.bitlink"
        )
        return tuple(LinkSum(bitlink, clicks, carried or {}) for bitlink, clicks, carried in found)

    def _spread(self) -> tuple[SpreadClass, ...]:
        # By their digits: a logarithm is not exact for powers of ten.
        found = self._database.fetch(
            "SELECT CASE clicks WHEN 0 THEN 0 ELSE ('1' || repeat('0', length(clicks::VARCHAR) - 1))::HUGEINT END "
            "AS least, count(*), sum(clicks) FROM links GROUP BY least ORDER BY least"
        )
        return tuple(SpreadClass(*each) for each in found)

    def _shares(self, links: int) -> tuple[ShareSum, ...]:
        """Return the clicks of the busiest links; a share that is less than one link is left out."""
        numbers = {share: int(links * share) for share in SHARES}
        sums = ", ".join(f"sum(clicks) FILTER (place <= {number})" for number in numbers.values())
        found = self._one(
            f"SELECT {sums} FROM (SELECT clicks, row_number() OVER (ORDER BY clicks DESC) AS place FROM links)"
        )
        shares = zip(numbers.items(), found, strict=True)
        return tuple(ShareSum(share, number, clicks) for (share, number), clicks in shares if number)
