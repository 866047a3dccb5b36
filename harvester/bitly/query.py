"""The request for one bitlink: Bitly's base URL, the path of a facet and its query parameters."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

from harvester.bitly.facets import FACETS, Facet

BASE_URL = "https://api-ssl.bitly.com/v4"
MAX_CONNECTIONS = 5
"""Connections that Bitly accepts at once from one IP address: https://dev.bitly.com/docs/getting-started/rate-limits."""

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
        named = {"facet": self.facet, "unit": self.unit, "units": self.units, "unit-reference": self.unit_reference}
        sized = {} if self.size is None else {"size": self.size}
        return " ".join(f"--{name} {value}" for name, value in (named | sized).items())

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


def larger(query: Query, size: int | None) -> Query | None:
    """Return a query that asks for more metrics; None if size is no more than its own, or the facet has none."""
    return replace(query, size=size) if query.size is not None and size is not None and size > query.size else None


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
