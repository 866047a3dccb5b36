"""bitly.facets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_INT64_MAX = 2**63 - 1

Metric = dict[str, Any]


class NotTheFacet(ValueError):
    """A 200 without the facet's rows: the specification requires no field, so its schema would let `{}` pass."""


def _value_and_clicks(body: Mapping[str, Any]) -> list[Metric]:
    """Read `metrics[] {value, clicks}`, the shape that four facets share."""
    items = body.get("metrics")
    if not isinstance(items, list):
        raise NotTheFacet("no list of metrics")
    metrics = []
    for item in items:
        if type(item) is not dict:
            raise NotTheFacet("an entry of metrics is not an object")
        value, clicks = item.get("value"), item.get("clicks")
        if type(value) is not str:
            raise NotTheFacet("a value is not a string")
        # type() and not isinstance(): true is an int. Past 64 bits orjson reads a float.
        if type(clicks) is not int or not 0 <= clicks <= _INT64_MAX:
            raise NotTheFacet("clicks is not a count")
        metrics.append({"value": value, "clicks": clicks})
    return metrics


@dataclass(frozen=True, slots=True)
class Facet:
    """One of Bitly's break-downs: where it is asked for, and how its rows are read.

    read: a decoded 200's object to the row's metrics; raises NotTheFacet.
    """

    name: str
    path: str
    read: Callable[[Mapping[str, Any]], list[Metric]]
    takes_size: bool = True


FACETS: Mapping[str, Facet] = {
    facet.name: facet
    for facet in (
        Facet("referrers", "/referrers", _value_and_clicks),
        Facet("referrer_name", "/referrer_name", _value_and_clicks),
        Facet("referring_domains", "/referring_domains", _value_and_clicks),
        Facet("countries", "/countries", _value_and_clicks),
    )
}
