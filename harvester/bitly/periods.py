"""Calendar periods, in UTC, as windows of Bitly's: which query asks for a day, and which bucket shows that it does.

A window consists of whole units, of which the newest contains `unit_reference`. So a period is asked for as one unit,
with its first instant as the reference. That is right whether Bitly rounds a reference down or to the nearest unit; a
window that ended at the reference would be the period before. A series (`clicks`) names its buckets and tells.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, NamedTuple

PERIOD_UNITS = ("day", "week", "month")


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
