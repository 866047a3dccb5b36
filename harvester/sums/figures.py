"""The sums of what was harvested: by name, by period, by link, and of what has no row."""

from dataclasses import dataclass
from typing import NamedTuple


class Named(NamedTuple):
    """What clicks came from: its fields, such as network and referrer, of which any may be null; and its clicks."""

    names: tuple[str | None, ...]
    clicks: int


class Breakdown(NamedTuple):
    """Clicks by name. fields: what a name consists of. lines: the busiest. names, clicks: of all, also of the rest."""

    fields: tuple[str, ...]
    lines: tuple[Named, ...]
    names: int
    clicks: int


class PeriodSum(NamedTuple):
    """The clicks of a period, or of a unit of a series. start: its first day or moment. links: with a row for it."""

    start: str
    links: int
    clicks: int


class LinkSum(NamedTuple):
    """A link's clicks over all periods. carried: the columns that its list had for it, of its newest row."""

    bitlink: str
    clicks: int
    carried: dict[str, str | None]


class SpreadClass(NamedTuple):
    """The links with at least `least` clicks, and less than ten times as many; with none, if it is 0."""

    least: int
    links: int
    clicks: int


class ShareSum(NamedTuple):
    """The clicks of the busiest links. share: of all links, which are so many."""

    share: float
    links: int
    clicks: int


class FailureSum(NamedTuple):
    """Calls without a row, or lines that are no links, for one reason. example: one of the bitlinks."""

    kind: str
    status: int | None
    message: str
    number: int
    example: str | None


class Damage(NamedTuple):
    """A file that cannot be read as its manifest says. name: as people read it. output: the output's, as it is typed.

    rows: how many it should have, by the manifest; None for the list of failures. read: those of them in the sums.
    """

    name: str
    output: str
    rows: int | None
    read: int
    why: str


@dataclass(frozen=True, slots=True)
class FacetSums:
    """The sums of a facet. unit: of its periods; None where the window is all of the past, or a number of units.

    outputs: those that count. rows: calls with a row that counts. older: rows that a newer one of the same link and
    period has followed. links, without_clicks: different ones, and those among them without clicks. truncated, clipped,
    idle: rows with each shortfall. breakdown: None where metrics have no name. periods,
    period_count: the newest, of periods or of a series, and the number of all.
    """

    facet: str
    unit: str | None
    outputs: tuple[str, ...]
    rows: int
    older: int
    links: int
    without_clicks: int
    clicks: int
    truncated: int
    clipped: int
    idle: int
    breakdown: Breakdown | None
    periods: tuple[PeriodSum, ...]
    period_count: int
    busiest: tuple[LinkSum, ...]
    spread: tuple[SpreadClass, ...]
    shares: tuple[ShareSum, ...]


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of all facets, by facet; those of what has no row; and what was left out of either.

    main_facet: the one that links are shown by. without_row: numbers of all failures, by kind. damaged: files whose
    rows are missing from the sums, or wrong.
    """

    main_facet: str
    facets: tuple[FacetSums, ...]
    failures: tuple[FailureSum, ...]
    without_row: dict[str, int]
    left_out: tuple[str, ...]
    damaged: tuple[Damage, ...] = ()

    @property
    def main(self) -> FacetSums | None:
        """The facet that links are shown by."""
        return next((each for each in self.facets if each.facet == self.main_facet), None)
