"""Bitly's breakdowns of a link's clicks, as a table: one entry for each facet that can be harvested.

All that other code needs to know of a facet is derived from its entry: the request (`query`), how an answer is read
(`verdicts`), the limits to ask for (`account_limits`), the columns of its rows in every format (`rows.schema`), the
choices of `--facet`, and the sandbox's routes.

CONTRIBUTING.md, "Add a facet", has the steps.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NamedTuple

INT64_MAX = 2**63 - 1
"""The largest count that a row can hold: loaders have 64-bit integers."""

Metric = dict[str, Any]
"""One entry of a breakdown, with the keys of its facet's fields, such as `{"value": "direct", "clicks": 2}`."""

FacetName = Literal[
    "referrers",
    "referrer_name",
    "referring_domains",
    "referrers_by_domains",
    "countries",
    "cities",
    "devices",
    "clicks",
    "clicks_summary",
    "engagements",
    "engagements_summary",
]


class NotTheFacet(ValueError):
    """A 200 without the facet's rows. Bitly's specification requires no field, so its schema would accept `{}`."""


class FieldKind(StrEnum):
    """The type of a metric's field. moment: UTC, `2026-11-23T00:00:00Z`."""

    TEXT = "text"
    COUNT = "count"
    MOMENT = "moment"


class MetricField(NamedTuple):
    """A field of each metric of a facet. source: its key in Bitly's answer, where that is another one."""

    name: str
    kind: FieldKind
    means: str
    nullable: bool = False
    source: str = ""


BODY_LIMIT = 4 * 1024 * 1024
"""Largest decoded response body that is read, in bytes; a facet's response has a few KiB."""

Read = Callable[[Mapping[str, Any]], list[Metric]]
"""The decoded JSON object of a 200 → the row's metrics; raises NotTheFacet."""


@dataclass(frozen=True, slots=True)
class Facet:
    """One of Bitly's breakdowns.

    path: below `/bitlinks/{bitlink}`. fields: of each metric, in order; one of them is `clicks`. read: see Read.
    takes_size: whether the route has the parameter `size`. also_named: what its answers may call it beside `name`.
    grouped_by: the field by which an answer nests its metrics, so that `size` may bind groups or their members.
    totals, totals_key: counts that an answer has beside its metrics, columns of the row; and the object they are in.
    """

    name: FacetName
    path: str
    fields: tuple[MetricField, ...]
    read: Read
    takes_size: bool = True
    also_named: str = ""
    grouped_by: str = ""
    totals: tuple[MetricField, ...] = ()
    totals_key: str = ""

    def metrics_in(self, body: Mapping[str, Any]) -> list[Metric]:
        """Return the row's metrics from the decoded JSON object of a 200.

        Raises:
            NotTheFacet: it does not have them, or says that it is another facet's.
        """
        named = body.get("facet")
        if (
            named != self.name
            and isinstance(named, str)
            and _singular(named) not in {"", _singular(self.name), _singular(self.also_named)}
        ):
            raise NotTheFacet("the answer names another facet")
        metrics = self.read(body)
        if not metrics and any(body.get(name) for name in _COMPLAINTS):
            raise NotTheFacet("an error in place of metrics")
        return metrics

    def totals_in(self, body: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the counts beside the metrics, by the names of the row's columns; None for one that is missing."""
        if not self.totals:
            return {}
        found = body.get(self.totals_key)
        counts = found if isinstance(found, Mapping) else {}
        return {field.name: counts[field.name] if _is_count(counts.get(field.name)) else None for field in self.totals}

    def is_truncated(self, groups: Iterable[str | None], metrics: int, size: int | None) -> bool:
        """Return whether an answer listed as much as was requested, so that there is probably more.

        groups: the metrics' values of `grouped_by`. metrics: their number. size: requested; None if the facet has none.
        For nested answers Bitly does not say whether `size` means groups, members of a group, or both together.
        """
        if size is None or not self.grouped_by:
            return metrics == size
        members = Counter(groups)
        return size in {metrics, len(members), *members.values()}

    def is_full(self, metrics: Sequence[Metric], size: int | None) -> bool:
        """Return whether metrics are as many as were requested, as `is_truncated` says."""
        if not (name := self.grouped_by):
            return len(metrics) == size
        return self.is_truncated([each[name] for each in metrics], len(metrics), size)

    def identity(self, metric: Mapping[str, Any]) -> str:
        """Return the text by which a metric differs from the others of its call: all that is no count.

        Fields are joined by U+001F; one that is null counts as empty.
        """
        return _SEPARATOR.join([metric[field.name] or "" for field in self.fields if field.kind is not FieldKind.COUNT])

    def label(self, metric: Mapping[str, Any]) -> str:
        """Return what a person calls a metric: its texts, or `total` if it has none."""
        return self.identity(metric).replace(_SEPARATOR, ", ") or ("total" if self._is_summary else "")

    @property
    def is_series(self) -> bool:
        """True if each metric is of one unit of the window, and names it."""
        return any(field.kind is FieldKind.MOMENT for field in self.fields)

    @property
    def _is_summary(self) -> bool:
        return all(field.kind is FieldKind.COUNT for field in self.fields)


_SEPARATOR = "\x1f"


def _singular(name: str) -> str:
    """Return a facet's name as it is compared: referrers_by_domains has called itself `referrers_by_domain`."""
    return name.strip().lower().removesuffix("s")


_ECHO = frozenset({"facet", "unit", "units", "unit_reference"})
"""What an answer repeats of its request."""
_COMPLAINTS = ("message", "error", "errors", "description")
"""Keys of Bitly's errors. A gateway may send one with status 200, beside metrics that are empty or null."""


def _is_empty(body: Mapping[str, Any], key: str) -> bool:
    """Return whether an answer has an empty list in the way of a Go server: as null, or left out.

    It is whole if it repeats its request. Where the key is missing, and anything else stands there, the list may have
    been renamed.
    """
    echoed = any(body.get(name) for name in _ECHO)  # a Go server's empty answer has the keys, too
    return echoed and (key in body or body.keys() | {"facet"} == _ECHO)  # a series does not name its facet


def _objects_in(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects.

    Raises:
        NotTheFacet: the answer does not have it.
    """
    items = body.get(key)
    if items is None and _is_empty(body, key):
        return []
    if not isinstance(items, list):
        raise NotTheFacet(f"no list of {key}")
    for item in items:
        if type(item) is not dict:
            raise NotTheFacet(f"an entry of {key} is not an object")
    return items


def _read_value_and_clicks(body: Mapping[str, Any]) -> list[Metric]:
    """Read `metrics[] {value, clicks}`, the shape that four facets share. It is `_list_of` with less work a metric."""
    items = _objects_in(body, "metrics")
    for item in items:
        if len(item) != 2 or next(iter(item)) != "value":
            break
        value, clicks = item["value"], item.get("clicks")
        if type(value) is not str or type(clicks) is not int or not 0 <= clicks <= INT64_MAX:  # as _metric has it
            break
    else:  # each is a metric as it is
        return items
    return [_metric(item, _VALUE_AND_CLICKS) for item in items]


def _list_of(key: str, fields: tuple[MetricField, ...], nested: str = "") -> Read:
    """Return the reader of a list of objects, one a metric. nested: an object within each that has further fields."""

    def read(body: Mapping[str, Any]) -> list[Metric]:
        return [_metric(item | _object_at(item, nested), fields) for item in _objects_in(body, key)]

    return read


def _single(fields: tuple[MetricField, ...], nested: str = "") -> Read:
    """Return the reader of a summary, whose one metric stands in the answer itself."""

    def read(body: Mapping[str, Any]) -> list[Metric]:
        return [_metric({**body, **_object_at(body, nested)}, fields)]

    return read


def _read_referrers_by_domain(body: Mapping[str, Any]) -> list[Metric]:
    """Read `referrers_by_domain[] {network, referrers[] {value, clicks}}`, one metric for each referrer.

    That is recorded. Bitly's specification has `{key, value}` for the same two.
    """
    metrics: list[Metric] = []
    for group in _objects_in(body, "referrers_by_domain"):
        if type(group.get("network")) is not str:
            raise NotTheFacet("a network is not a string")
        items = _objects_in(group, "referrers") if group.get("referrers") is not None else ()
        for item in items:
            specified = "key" in item and "clicks" not in item
            metric = _metric(item, _KEY_AND_VALUE if specified else _VALUE_AND_CLICKS)
            metrics.append({"network": group["network"], **metric})
    return metrics


def _object_at(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = item.get(key) if key else None
    return found if type(found) is dict else {}


def _metric(item: Mapping[str, Any], fields: tuple[MetricField, ...]) -> Metric:
    """Return an object's fields, checked.

    Raises:
        NotTheFacet: one is missing or of another type.
    """
    metric: Metric = {}
    for field in fields:
        value = item.get(field.source or field.name)
        if value is None and field.nullable:
            metric[field.name] = None
            continue
        if field.kind is FieldKind.COUNT:
            if not _is_count(value):
                raise NotTheFacet(f"{field.name} is not a count")
        elif type(value) is not str:
            raise NotTheFacet(f"a {field.name} is not a string")
        metric[field.name] = _moment(field.name, value) if field.kind is FieldKind.MOMENT else value
    return metric


def _is_count(value: object) -> bool:
    # type() and not isinstance(): true is an int. orjson reads an integer past 64 bits as a float.
    return type(value) is int and 0 <= value <= INT64_MAX


@lru_cache(4096)  # a series names the same buckets for every link
def _moment(name: str, text: str) -> str:
    """Return a moment of Bitly's, `2026-11-23T00:00:00+0000`, as rows have it, `2026-11-23T00:00:00Z`."""
    try:
        moment = datetime.fromisoformat(text)
        in_utc = moment.astimezone(UTC) if moment.tzinfo else moment
        return in_utc.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
    except (ValueError, OverflowError):
        raise NotTheFacet(f"a {name} is not a moment") from None


def _text(name: str, means: str, *, nullable: bool = False) -> MetricField:
    return MetricField(name, FieldKind.TEXT, means, nullable)


def _count(name: str, means: str, *, nullable: bool = False, source: str = "") -> MetricField:
    return MetricField(name, FieldKind.COUNT, means, nullable, source)


_CLICKS = _count("clicks", "clicks from there")
_VALUE_AND_CLICKS = (_text("value", "what the clicks came from"), _CLICKS)
_KEY_AND_VALUE = (_VALUE_AND_CLICKS[0]._replace(source="key"), _CLICKS._replace(source="value"))
_NETWORK = _text("network", "the referring domain, by which Bitly groups referrers")
# The specification requires none of a place's names.
_CITY = (
    _text("city", "the city's name", nullable=True),
    _text("subregion", "the part of the region it lies in", nullable=True),
    _text("region", "the state or province it lies in", nullable=True),
    _text("country", "the country's code", nullable=True),
    _CLICKS,
)
_OUTSIDE_CITIES = (
    _count("other_city_clicks", "clicks from cities that are not listed", nullable=True),
    _count("no_city_clicks", "clicks whose city is unknown", nullable=True),
)
_DEVICE = (_text("device_type", "the kind of device"), _CLICKS)
_BUCKET = MetricField("date", FieldKind.MOMENT, "beginning of the unit, UTC")
_CLICKS_THEN = (_BUCKET, _count("clicks", "clicks in that unit"))
_TOTAL_CLICKS = (_count("clicks", "clicks in the window", source="total_clicks"),)
_KINDS = (
    _count("clicks", "clicks among the engagements", nullable=True),
    _count("scans", "scans of QR codes among them", nullable=True),
    _count("lib_button_clicks", "clicks on buttons of a Bitly page among them", nullable=True),
)
_ENGAGEMENTS_THEN = (_BUCKET, _count("engagement_count", "engagements in that unit"), *_KINDS)
_TOTAL_ENGAGEMENTS = (_count("engagement_count", "engagements in the window", source="total_engagements"), *_KINDS)

FACETS: Mapping[str, Facet] = {
    facet.name: facet
    for facet in (
        Facet("referrers", "/referrers", _VALUE_AND_CLICKS, _read_value_and_clicks),
        # What its answers call it is not recorded. Bitly's specification lists the names, without referrer_name, and
        # with one that belongs to no other route here.
        Facet(
            "referrer_name",
            "/referrer_name",
            _VALUE_AND_CLICKS,
            _read_value_and_clicks,
            also_named="referring_networks",
        ),
        Facet("referring_domains", "/referring_domains", _VALUE_AND_CLICKS, _read_value_and_clicks),
        Facet(
            "referrers_by_domains",
            "/referrers_by_domains",
            (_NETWORK, *_VALUE_AND_CLICKS),
            _read_referrers_by_domain,
            grouped_by="network",
        ),
        Facet("countries", "/countries", _VALUE_AND_CLICKS, _read_value_and_clicks),
        Facet(
            "cities", "/cities", _CITY, _list_of("metrics", _CITY), totals=_OUTSIDE_CITIES, totals_key="other_metrics"
        ),
        Facet("devices", "/devices", _DEVICE, _list_of("metrics", _DEVICE)),
        Facet("clicks", "/clicks", _CLICKS_THEN, _list_of("link_clicks", _CLICKS_THEN), takes_size=False),
        Facet("clicks_summary", "/clicks/summary", _TOTAL_CLICKS, _single(_TOTAL_CLICKS), takes_size=False),
        Facet(
            "engagements",
            "/engagements",
            _ENGAGEMENTS_THEN,
            _list_of("engagements", _ENGAGEMENTS_THEN, nested="engagements"),
            takes_size=False,
        ),
        Facet(
            "engagements_summary",
            "/engagements/summary",
            _TOTAL_ENGAGEMENTS,
            _single(_TOTAL_ENGAGEMENTS, nested="engagements"),
            takes_size=False,
        ),
    )
}
