"""The clicks of the sandbox's links: single events, of which each facet and each window is a sum.

A link's events of a day depend on its name and the day alone. So the days of a window add up to the window, and each
breakdown of a window has the same total, as at Bitly.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from harvester.bitly.facets import FACETS, Metric
from harvester.clock import as_utc

_REFERRERS = (
    # A referrer, the name that Bitly gives it, and its domain.
    ("direct", "Direct", "direct"),
    ("https://t.co/", "X (Formerly Twitter)", "t.co"),
    ("https://www.google.com/", "Google", "google.com"),
    ("https://www.facebook.com/", "Facebook", "facebook.com"),
    ("https://m.facebook.com/", "Facebook", "facebook.com"),
    ("https://www.linkedin.com/", "LinkedIn", "linkedin.com"),
    ("https://news.ycombinator.com/", "Hacker News", "ycombinator.com"),
    ("https://stackoverflow.com/", "Stack Overflow", "stackoverflow.com"),
    ("Bitly QR Code", "Bitly QR Code", "Bitly QR Code"),
)
_PLACES = (
    # City, subregion, region, country; the city of some clicks is unknown.
    ("New York", "New York County", "New York", "US"),
    ("San Francisco", "San Francisco County", "California", "US"),
    ("Berlin", "Berlin", "Berlin", "DE"),
    ("Mumbai", "Mumbai Suburban", "Maharashtra", "IN"),
    ("São Paulo", "São Paulo", "São Paulo", "BR"),
    ("Tokyo", "Tokyo", "Tokyo", "JP"),
    ("Paris", "Paris", "Île-de-France", "FR"),
    ("Nairobi", "Nairobi", "Nairobi", "KE"),
    (None, None, None, "GB"),
)
_DEVICES = ("Mobile", "Desktop", "Tablet", "Other")
HISTORY = 30
"""The most units that a window can have, whatever the request says."""
_MOST_DAYS = 92
"""The days of history that are kept: fewer units of a week or a month fit into them."""
IDLE = "idle"
"""Links whose back-half begins with it have no clicks."""


class Click(NamedTuple):
    """A number of clicks that came alike. at: their minute, UTC. The others: places in the tables above."""

    at: datetime
    clicks: int
    referrer: int
    place: int
    device: int


class Window(NamedTuple):
    """The time span of a request. start, end: UTC, the end not included. units: those used of the units requested."""

    start: datetime
    end: datetime
    units: int


def window_of(unit: str, units: int, reference: datetime) -> Window:
    """Return the window of a request: whole units in UTC, of which the newest contains the reference."""
    newest = _start_of(unit, as_utc(reference))
    count = HISTORY if units == -1 else min(units, HISTORY)
    start, used = newest, 1
    while used < count and (newest - (earlier := _before(unit, start))).days < _MOST_DAYS:
        start, used = earlier, used + 1
    return Window(start, _after(unit, newest), used)


def _start_of(unit: str, moment: datetime) -> datetime:
    start = moment.replace(second=0, microsecond=0)
    if unit != "minute":
        start = start.replace(minute=0)
    if unit not in {"minute", "hour"}:
        start = start.replace(hour=0)
    if unit == "week":
        start -= timedelta(days=start.weekday())
    return start.replace(day=1) if unit == "month" else start


_LENGTHS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(1), "week": timedelta(7)}


def _before(unit: str, start: datetime) -> datetime:
    return _start_of(unit, start - timedelta(1)) if unit == "month" else start - _LENGTHS[unit]


def _after(unit: str, start: datetime) -> datetime:
    return _start_of(unit, start + timedelta(32)) if unit == "month" else start + _LENGTHS[unit]


@lru_cache(100_000)
def clicks_on(bitlink: str, day: date) -> tuple[Click, ...]:
    """Return a link's clicks of a day."""
    back_half = bitlink.partition("/")[2]
    link = hashlib.sha256(bitlink.encode()).digest()
    if back_half.startswith(IDLE) or link[0] % 10 == 0:
        return ()
    draw = hashlib.sha256(f"{bitlink} {day}".encode()).digest()
    popular = 2 ** (link[1] % 8)  # a few links have nearly all clicks
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return tuple(
        Click(
            begin + timedelta(minutes=int.from_bytes(draw[i : i + 2]) % 1440),
            1 + draw[i + 2] * popular // 64,
            min(draw[i + 3], draw[i + 4]) % len(_REFERRERS),
            min(draw[i + 5], draw[i + 6]) % len(_PLACES),
            draw[i + 7] % len(_DEVICES),
        )
        for i in range(1, 1 + 8 * (draw[0] % 4), 8)
    )


def clicks_in(bitlink: str, window: Window) -> list[Click]:
    """Return a link's clicks of a window."""
    days = range((window.end - window.start - timedelta(microseconds=1)).days + 2)
    first = window.start.date()
    clicks = (click for day in days for click in clicks_on(bitlink, first + timedelta(day)))
    return [click for click in clicks if window.start <= click.at < window.end]


def counts_between(bitlink: str, first: datetime, last: datetime) -> dict[str, int]:
    """Return a link's clicks and scans of a time, as an export counts them.

    The sandbox's clicks do not know the present: today has all of its own in the morning already, and a week has those
    of its last days. An export can only be asked for until now, so one that ends now counts what is to come, too.
    """
    if last > datetime.now(UTC) - timedelta(1):
        last += timedelta(31)
    window = Window(max(first, last - timedelta(_MOST_DAYS + 62)), last, 1)
    kinds = _engagements(clicks_in(bitlink, window))
    return {"clicks": kinds["clicks"], "scans": kinds["scans"], "button_clicks": kinds["lib_button_clicks"]}


def metrics_for(
    bitlink: str, facet: str, size: int | None = 50, unit: str = "day", units: int = -1, unit_reference: str = ""
) -> dict[str, Any]:
    """Return the sandbox's response body for a request, a function of the arguments alone.

    unit_reference: by default the first instant of 2026.
    """
    reference = datetime.fromisoformat(unit_reference or "2026-01-01T00:00:00+00:00")
    window = window_of(unit, units, reference)
    clicks = clicks_in(bitlink, window)
    echo: dict[str, Any] = {
        "unit_reference": unit_reference or "2026-01-01T00:00:00+0000",
        "units": window.units,
        "unit": unit,
    }
    if not FACETS[facet].takes_size:
        return _series_or_summary(facet, clicks, window, unit) | echo
    if facet == "referrers_by_domains":
        # Recorded so, against the specification: another name, and the reference in seconds.
        recorded = {"facet": "referrers_by_domain", "unit_reference": int(as_utc(reference).timestamp())}
        return {"referrers_by_domain": _by_domain(clicks, size)} | echo | recorded
    # The specification's list of names has no `referrer_name`.
    return _breakdown(facet, clicks, size) | echo | {"facet": _NAMES.get(facet, facet)}


_NAMES = {"referrer_name": "referring_networks"}


def _breakdown(facet: str, clicks: Iterable[Click], size: int | None) -> dict[str, Any]:
    counts: Counter[Any] = Counter()
    for click in clicks:
        counts[_key(facet, click)] += click.clicks
    unknown = counts.pop(None, 0)
    listed = _busiest(counts, size)
    body: dict[str, Any] = {"metrics": [_entry(facet, key) | {"clicks": number} for key, number in listed]}
    if facet == "cities":
        other = counts.total() - sum(number for _, number in listed)
        body["other_metrics"] = {"other_city_clicks": other, "no_city_clicks": unknown}
    return body


def _key(facet: str, click: Click) -> Any:
    """Return what a click is counted by in a facet; None for a click from no known city."""
    referrer, name, domain = _REFERRERS[click.referrer]
    place = _PLACES[click.place]
    match facet:
        case "cities":
            return place if place[0] else None
        case "countries":
            return place[3]
        case "devices":
            return _DEVICES[click.device]
        case "referrer_name":
            return name
        case "referring_domains":
            return domain
        case "referrers":
            return referrer
        case _:
            raise ValueError(f"{facet}: the sandbox does not count by this facet")


def _entry(facet: str, key: Any) -> Metric:
    if facet == "cities":
        return dict(zip(("city", "subregion", "region", "country"), key, strict=True))
    return {"device_type" if facet == "devices" else "value": key}


def _busiest(counts: Counter[Any], size: int | None) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]


def _by_domain(clicks: Iterable[Click], size: int | None) -> list[dict[str, Any]]:
    domains: dict[str, Counter[str]] = {}
    for click in clicks:
        referrer, _, domain = _REFERRERS[click.referrer]
        domains.setdefault(domain, Counter())[referrer] += click.clicks
    totals = Counter({domain: counts.total() for domain, counts in domains.items()})
    return [
        {
            "network": domain,
            "referrers": [{"value": value, "clicks": number} for value, number in _busiest(domains[domain], size)],
        }
        for domain, _ in _busiest(totals, size)
    ]


def _series_or_summary(facet: str, clicks: list[Click], window: Window, unit: str) -> dict[str, Any]:
    if facet == "clicks_summary":
        return {"total_clicks": sum(click.clicks for click in clicks)}
    if facet == "engagements_summary":
        kinds = _engagements(clicks)
        return {"total_engagements": sum(kinds.values()), "engagements": kinds}
    buckets: dict[datetime, list[Click]] = {}
    start = window.start
    while start < window.end:
        buckets[start] = []
        start = _after(unit, start)
    for click in clicks:
        buckets[_start_of(unit, click.at)].append(click)
    newest_first = [(f"{start:%Y-%m-%dT%H:%M:%S}+0000", buckets[start]) for start in sorted(buckets, reverse=True)]
    if facet == "clicks":
        return {"link_clicks": [{"date": day, "clicks": sum(c.clicks for c in found)} for day, found in newest_first]}
    kinds_then = [(day, _engagements(found)) for day, found in newest_first]
    return {
        "engagements": [
            {"date": day, "engagement_count": sum(kinds.values()), "engagements": kinds} for day, kinds in kinds_then
        ]
    }


def _engagements(clicks: Iterable[Click]) -> dict[str, int]:
    """Return the engagements of clicks: the clicks, and scans of a QR code on top of some."""
    clicks = list(clicks)
    scans = sum(click.clicks // 5 for click in clicks if click.device == 0)
    return {"clicks": sum(click.clicks for click in clicks), "scans": scans, "lib_button_clicks": 0}
