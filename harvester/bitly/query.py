"""The request for one bitlink: Bitly's base URL, the path of a facet and its query parameters."""

import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from harvester.bitly.facets import FACETS, Facet, NotTheFacet
from harvester.bitly.periods import Period, period_options
from harvester.errors import UsageError

BASE_URL = "https://api-ssl.bitly.com/v4"
MAX_CONNECTIONS = 5
"""Connections that Bitly accepts at once from one IP address: https://dev.bitly.com/docs/getting-started/rate-limits."""

GROUPS = "/groups"
"""The route that lists the account's groups."""
_FAR = timedelta(days=31)
_FAR_BY_MONTHS = timedelta(days=62)
"""An answer whose unit_reference is farther from the requested one is for another time: Bitly repeats the request's."""

UNITS = ("minute", "hour", "day", "week", "month")


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


_NOTHING_TO_ENCODE = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+/[A-Za-z0-9_-]+")
"""Nearly every bitlink: quoting each half of it took 3 µs of each call."""


def path(bitlink: str, facet: Facet) -> str:
    """Return the path, below the base URL, of a facet of a bitlink.

    The slash between domain and back-half stays literal, as documented. Each half is percent-encoded by itself, so that
    no bitlink (`bit.ly/../../user`) can reach another route.
    """
    if _NOTHING_TO_ENCODE.fullmatch(bitlink):
        return f"/bitlinks/{bitlink}{facet.path}"
    domain, _, back_half = bitlink.partition("/")
    return f"/bitlinks/{quote(domain, safe='')}/{quote(back_half, safe='')}{facet.path}"


def endpoint_of(facet: Facet) -> str:
    """Return the path template by which Bitly names a facet's endpoint, such as `/bitlinks/{bitlink}/referrers`."""
    return "/bitlinks/{bitlink}" + facet.path
