"""bitly.query."""

import re
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, urlencode

from harvester.bitly.facets import FACETS, Facet

BASE_URL = "https://api-ssl.bitly.com/v4"
MAX_CONNECTIONS = 5
"""At once, from one IP address: https://dev.bitly.com/docs/getting-started/rate-limits."""

UNITS = ("minute", "hour", "day", "week", "month")


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of every bitlink: pinned for a dataset.

    units: -1 means all that the plan keeps. unit_reference: the end of the window, UTC, `2026-11-23T06:00:00Z`.
    size: the most rows that one answer lists; Bitly's own default is 50.
    """

    facet: str
    unit: str
    units: int
    unit_reference: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Give the query's five settings by name."""
        return asdict(self)

    @property
    def parameters(self) -> str:
        """The request's query string, without the question mark."""
        reference = self.unit_reference.removesuffix("Z") + "+0000"  # the form of Bitly's own answers
        pairs: list[tuple[str, Any]] = [
            ("unit", self.unit),
            ("units", self.units),
            ("unit_reference", reference),
        ]
        if FACETS[self.facet].takes_size:
            pairs.append(("size", self.size))
        return urlencode(pairs)


_NOTHING_TO_ENCODE = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+/[A-Za-z0-9_-]+")


def path(bitlink: str, facet: Facet) -> str:
    """Give the path below the base URL for a bitlink's facet.

    The slash between the two halves stays literal (documented); each half is encoded by itself, so that no bitlink
    can reach another route.
    """
    if _NOTHING_TO_ENCODE.fullmatch(bitlink):
        return f"/bitlinks/{bitlink}{facet.path}"
    domain, _, back_half = bitlink.partition("/")
    return f"/bitlinks/{quote(domain, safe='')}/{quote(back_half, safe='')}{facet.path}"


def endpoint_of(facet: Facet) -> str:
    """Give Bitly's name for a facet's endpoint: the path's template, literally."""
    return "/bitlinks/{bitlink}" + facet.path
