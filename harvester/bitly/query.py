"""The request for one bitlink: Bitly's base URL, the path of a facet, its query parameters; and calendar periods.

Periods are in UTC: which query asks for a day, and which bucket of an answer shows that it does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from harvester.bitly.facets import FACETS, Facet, NotTheFacet
from harvester.errors import UsageError

BASE_URL = "https://api-ssl.bitly.com/v4"
MAX_CONNECTIONS = 5
"""Connections that Bitly accepts at once from one IP address: https://dev.bitly.com/docs/getting-started/rate-limits."""

GROUPS = "/groups"
"""The route that lists the account's groups."""
_FAR = timedelta(days=31)
_FAR_BY_MONTHS = timedelta(days=62)
"""An answer whose unit_reference is farther from the requested one is for another time: Bitly repeats the request's."""

PERIOD_UNITS = ("day", "week", "month")
UNITS = ("minute", "hour", "day", "week", "month")

# --- calendar periods ---------------------------------------------------------------------------------------------

# A window consists of whole units, of which the newest contains `unit_reference`. So a period is asked for as one unit,
# with its first instant as the reference. That is right whether Bitly rounds a reference down or to the nearest unit; a
# window that ended at the reference would be the period before. A series (`clicks`) names its buckets and tells.


class Period(NamedTuple):
    """A day, a week that begins on a Monday, or a month."""

    unit: str
    first: date

    @property
    def next_first(self) -> date:
        """The first day that does not belong to it."""
        if self.unit == "month":
            return (self.first + timedelta(31)).replace(day=1)
        return self.first + timedelta(7 if self.unit == "week" else 1)

    @property
    def start(self) -> str:
        """Its first instant, which is also the `unit_reference` that asks for it: `2026-11-22T00:00:00Z`."""
        return _instant(self.first)

    @property
    def end(self) -> str:
        """Its end, which does not belong to it, written like `start`."""
        return _instant(self.next_first)

    def __str__(self) -> str:
        return f"the {self.unit} {'' if self.unit == 'day' else 'from '}{self.first.isoformat()}"


def _instant(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"


def periods_between(unit: str, since: date, until: date) -> list[Period]:
    """Return the periods that contain the days from since to until, both included, the oldest first.

    Raises:
        OverflowError: the calendar ends before one of them does.
    """
    first = since
    if unit == "week":
        first -= timedelta(since.weekday())
    elif unit == "month":
        first = since.replace(day=1)
    found = []
    while first <= until:
        found.append(Period(unit, first))
        first = found[-1].next_first
    return found


def period_options(query: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that ask for a query's period, by name; empty if its window is none. query: its fields."""
    if not query.get("period_start"):
        return {}
    day = str(query["period_start"])[:10]
    return {"day": day} if query["unit"] == "day" else {"since": day, "until": day, "every": str(query["unit"])}


# --- queries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """The facet and the window requested for every bitlink; fixed when a dataset begins.

    units: length of the window in `unit`s; -1 for all that the plan keeps. unit_reference: the end of the window, UTC,
    `2026-11-23T06:00:00Z`. size: the largest number of metrics that one response lists; None for a facet that has no
    such parameter. Bitly's own default is 50. period_start, period_end: of the calendar period that the window is, the
    end not included, written like unit_reference; None for any other window. They are not sent to Bitly.
    """

    facet: str
    unit: str
    units: int
    unit_reference: str
    size: int | None
    period_start: str | None = None
    period_end: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    def as_options(self) -> str:
        """Return the options of the command that ask for it."""
        window: dict[str, Any] = period_options(self.as_dict())
        if not window:
            window = {"unit": self.unit, "units": self.units, "unit-reference": self.unit_reference}
        sized = {} if self.size is None else {"size": self.size}
        named = {"facet": self.facet, **window, **sized}
        return " ".join(f"--{name} {value}" for name, value in named.items())

    @property
    def parameters(self) -> str:
        """The query string of the request, without the question mark."""
        reference = self.unit_reference.removesuffix("Z") + "+0000"  # as Bitly's own responses write it
        fields: dict[str, Any] = {"unit": self.unit, "units": self.units, "unit_reference": reference}
        if self.size is not None:
            fields["size"] = self.size
        return urlencode(fields)


def query_for(facet: str, unit: str, units: int, unit_reference: str, size: int) -> Query:
    """Return the query of a facet; its size is None if the facet has no such parameter."""
    return Query(facet, unit, units, unit_reference, size if FACETS[facet].takes_size else None)


def query_for_period(facet: str, period: Period, size: int) -> Query:
    """Return the query of a facet for a calendar period."""
    query = query_for(facet, period.unit, 1, period.start, size)
    return replace(query, period_start=period.start, period_end=period.end)


def larger(query: Query, size: int | None) -> Query | None:
    """Return a query that asks for more metrics; None if size is no more than its own, or the facet has none."""
    return replace(query, size=size) if query.size is not None and size is not None and size > query.size else None


def host_of(base_url: str) -> str:
    """Return the host of a base URL, without the port: the server whose rows an output has."""
    return urlsplit(base_url).hostname or ""


def refuse_another(out: str, begun: Query, asked: Query) -> None:
    """Raise UsageError if an output was begun with another query than it is asked to go on with."""
    if begun != asked:
        raise UsageError(
            f"{out} was started with another query:\n  existing   {begun.as_options()}\n"
            f"  requested  {asked.as_options()}\n"
            "Use another --out for the new query, or the existing options"
        )


def refuse_another_server(out: str, begun: str, asked: str) -> None:
    """Raise UsageError if an output was begun against another host than it is asked to go on with."""
    if begun != asked:
        raise UsageError(
            f"{out} was started against {begun}, and --base-url names {asked}: rows of two servers do not belong in "
            "one output; use another --out"
        )


def check_echo(asked: Query, unit: object, reference: str | None) -> None:
    """Raise NotTheFacet if an answer says that it is for another unit or time than was asked."""
    if unit != asked.unit and isinstance(unit, str) and unit.strip().lower() not in {"", asked.unit, f"{asked.unit}s"}:
        raise NotTheFacet("the answer is for another unit")
    if reference is not None and _is_far(reference, asked.unit_reference, asked.unit):
        raise NotTheFacet("the answer is for another time")


@lru_cache(16)
def _is_far(returned: str, asked: str, unit: str) -> bool:
    try:
        moment, wanted = datetime.fromisoformat(returned), datetime.fromisoformat(asked)
        # 1970, or the year 1, is the zero of a field that was not filled in.
        return moment.year > 1970 and abs(moment - wanted) > (_FAR_BY_MONTHS if unit == "month" else _FAR)
    except (ValueError, TypeError):  # a text that is no moment, or one without its zone
        return False


_UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~"
"""What quoting leaves as it is. Nearly every bitlink consists of it."""


def path(bitlink: str, facet: Facet) -> str:
    """Return the path, below the base URL, of a facet of a bitlink.

    The slash between domain and back-half stays literal, as documented. Each half is percent-encoded by itself, so that
    no bitlink (`bit.ly/../../user`) can reach another route.
    """
    domain, _, back_half = bitlink.partition("/")
    if domain.strip(_UNRESERVED) or back_half.strip(_UNRESERVED):
        domain, back_half = quote(domain, safe=""), quote(back_half, safe="")
    return f"/bitlinks/{domain}/{back_half}{facet.path}"


def endpoint_of(facet: Facet) -> str:
    """Return the path template by which Bitly names a facet's endpoint, such as `/bitlinks/{bitlink}/referrers`."""
    return "/bitlinks/{bitlink}" + facet.path
