"""Bitly's breakdowns of a link's clicks, as a table: one entry for each facet that can be harvested.

All that other code needs to know of a facet is derived from its entry: the request (`query`), how an answer is read
(`verdicts`), the limits to ask for (`account_limits`), the choices of `--facet`, and the sandbox's routes.

CONTRIBUTING.md, "Add a facet", has the steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

INT64_MAX = 2**63 - 1
"""The largest count that a row can hold: loaders have 64-bit integers."""

Metric = dict[str, Any]
"""One entry of a breakdown: `{"value": str, "clicks": int}`."""

FacetName = Literal["referrers", "referrer_name", "referring_domains", "countries"]


class NotTheFacet(ValueError):
    """A 200 without the facet's rows. Bitly's specification requires no field, so its schema would accept `{}`."""


@dataclass(frozen=True, slots=True)
class Facet:
    """One of Bitly's breakdowns.

    path: below `/bitlinks/{bitlink}`. read: the decoded JSON object of a 200 → the row's metrics; raises NotTheFacet.
    takes_size: whether the route has the parameter `size`. also_named: what its answers may call it beside `name`.
    """

    name: FacetName
    path: str
    read: Callable[[Mapping[str, Any]], list[Metric]]
    takes_size: bool = True
    also_named: str = ""

    def metrics_in(self, body: Mapping[str, Any]) -> list[Metric]:
        """Return the row's metrics from the decoded JSON object of a 200.

        Raises:
            NotTheFacet: it does not have them, or says that it is another facet's.
        """
        named = body.get("facet")
        if (
            named != self.name
            and isinstance(named, str)
            and _singular(named) not in {_singular(self.name), _singular(self.also_named)}
        ):
            raise NotTheFacet("the answer names another facet")
        metrics = self.read(body)
        if not metrics and any(body.get(name) for name in _COMPLAINTS):
            raise NotTheFacet("an error in place of metrics")
        return metrics


def _singular(name: str) -> str:
    """Return a facet's name as it is compared: referrers_by_domains has called itself `referrers_by_domain`."""
    return name.strip().lower().removesuffix("s")


_ECHO = frozenset({"facet", "unit", "units", "unit_reference"})
"""What an answer repeats of its request."""
_COMPLAINTS = ("message", "error", "errors", "description")
"""Keys of Bitly's errors. A gateway may send one with status 200, beside metrics that are empty or null."""


def _is_empty(body: Mapping[str, Any]) -> bool:
    """Return whether an answer has an empty list of metrics in the way of a Go server: as null, or left out.

    It is whole if it repeats its request. Where the key is missing, and anything else stands there, the list may have
    been renamed.
    """
    echoed = any(body.get(name) for name in _ECHO)  # a Go server's empty answer has the keys, too
    return echoed and ("metrics" in body or body.keys() == _ECHO)


def _read_value_and_clicks(body: Mapping[str, Any]) -> list[Metric]:
    """Read `metrics[] {value, clicks}`, the shape that four facets share."""
    items = body.get("metrics")
    if items is None and _is_empty(body):
        return []
    if not isinstance(items, list):
        raise NotTheFacet("no list of metrics")
    metrics = []
    for item in items:
        if type(item) is not dict:
            raise NotTheFacet("an entry of metrics is not an object")
        value, clicks = item.get("value"), item.get("clicks")
        if type(value) is not str:
            raise NotTheFacet("a value is not a string")
        # type() and not isinstance(): true is an int. orjson reads an integer past 64 bits as a float.
        if type(clicks) is not int or not 0 <= clicks <= INT64_MAX:
            raise NotTheFacet("clicks is not a count")
        metrics.append({"value": value, "clicks": clicks})
    return metrics


FACETS: Mapping[str, Facet] = {
    facet.name: facet
    for facet in (
        Facet("referrers", "/referrers", _read_value_and_clicks),
        # What its answers call it is not recorded. Bitly's specification lists the names, without referrer_name, and
        # with one that belongs to no other route here.
        Facet("referrer_name", "/referrer_name", _read_value_and_clicks, also_named="referring_networks"),
        Facet("referring_domains", "/referring_domains", _read_value_and_clicks),
        Facet("countries", "/countries", _read_value_and_clicks),
    )
}
