"""Checks of a row against the schema: keys, types, ranges, sums, the query, and the keys computed again."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from itertools import product
from operator import itemgetter
from types import NoneType
from typing import Any

from harvester.bitly.exports import lacks_in_export
from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query
from harvester.rows.decode import BadRow
from harvester.rows.row import SCHEMA_VERSION, RowBuilder
from harvester.rows.schema import (
    GROUP_EXPORT,
    Column,
    Kind,
    Shape,
    columns_of,
    metric_columns,
    shortfall_of,
)

Found = Callable[[int, str], None]
"""Called with a row's number and what is wrong with it."""
INT64_MAX = 2**63 - 1
_SEPARATOR = "\x1f"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_TYPES: dict[Kind, type] = {
    Kind.TEXT: str,
    Kind.INTEGER: int,
    Kind.BOOLEAN: bool,
    Kind.MOMENT: str,
    Kind.METRICS: list,
    Kind.MAP: dict,
}
_CARRIED_TYPES = {str, NoneType}
_NAMES = tuple(field.name for field in fields(Query) if field.name != "size")
_PINNED = ("run_id", *_NAMES)
_IDS = frozenset({"record_id", "call_id"})


def is_moment(text: Any) -> bool:
    """Return True for a moment in UTC as rows have it: `2026-11-23T06:00:00Z`."""
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


class ObjectShape:
    """The keys of one kind of object, in their order, and the type of each."""

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self._columns = columns
        self._names = tuple(column.name for column in columns)
        # All valid combinations of types in one set: one look-up for each of a million rows, instead of one per key.
        self._fitting = frozenset(product(*(_types_of(column) for column in columns)))

    def misfit(self, row: Any) -> str | None:
        """Return what is wrong with an object's keys and types; None if nothing is."""
        if type(row) is dict and tuple(row) == self._names and tuple(map(type, row.values())) in self._fitting:
            return None
        return self._explain(row)

    def _explain(self, row: Any) -> str:
        if isinstance(row, BadRow):
            return str(row)
        if type(row) is not dict:
            return "not a JSON object"
        for name in self._names:
            if name not in row:
                return f"{name} is missing"
        for name in row:
            if name not in self._names:
                return f"{name} is not a key of a row"
        for column in self._columns:
            if type(row[column.name]) not in _types_of(column):
                null = ", or null" if column.nullable else ""
                return f"{column.name} is not {column.kind}{null}"
        return "its keys are not in order"


def _types_of(column: Column) -> tuple[type, ...]:
    own = _TYPES[column.kind]
    return (own, NoneType) if column.nullable else (own,)


class _Common:
    """The checks that both shapes share: the query, the run, and when a row was fetched.

    refreshing: each run of the dataset asked for a window of its own, so only the other fields of the query are pinned.
    calls: those whose rows were seen. truncated, clipped: calls whose rows lack something. idle: links
    that were not asked for. earliest, latest: of the rows' fetched_at; empty without rows.
    """

    def __init__(self, shape: Shape, query: Query, run_id: str, found: Found, *, refreshing: bool) -> None:
        self.calls = self.truncated = self.clipped = self.idle = 0
        self.earliest = self.latest = ""
        self._found = found
        self._shape = ObjectShape(columns_of(shape, query.facet))
        self._metric = ObjectShape(metric_columns(query.facet))
        self._facet = FACETS[query.facet]
        self._counts = tuple(column.name for column in metric_columns(query.facet) if column.kind is Kind.INTEGER)
        self._moments = tuple(column.name for column in metric_columns(query.facet) if column.kind is Kind.MOMENT)
        self._totals = tuple(field.name for field in self._facet.totals)
        self._size = query.size
        self._rows = RowBuilder(query, run_id)
        self._refreshing = refreshing
        self._pinned_names = tuple(name for name in _PINNED if not (refreshing and name == "unit_reference"))
        self._pinned_of = itemgetter(*self._pinned_names)
        self._pinned = tuple(run_id if name == "run_id" else getattr(query, name) for name in self._pinned_names)
        self._fetched_at = ""

    def _count_shortfall(self, row: Mapping[str, Any]) -> None:
        truncated, clipped, idle = shortfall_of(row)
        self.truncated += truncated
        self.clipped += clipped
        self.idle += idle

    def _misfit(self, row: Any) -> str | None:
        """Return what is wrong with the keys that both shapes have; None if nothing is."""
        if misfit := self._shape.misfit(row) or self._misfit_of_window(row):
            return misfit
        if self._pinned_of(row) != self._pinned:
            for name, actual, expected in zip(self._pinned_names, self._pinned_of(row), self._pinned, strict=True):
                if actual != expected:
                    return f"{name} is {actual!r:.60}, but {expected!r:.60} in the manifest"
        # Where an answer had as many metrics as the query's size, a second request may have asked for more.
        if (size := row["size"]) != self._size and (size is None or self._size is None or size < self._size):
            return f"size is {size!r:.60}, and {self._size!r:.60} in the manifest"
        # A run that was resumed after an update has rows of both versions.
        if not 1 <= row["schema_version"] <= SCHEMA_VERSION:
            return f"schema_version is {row['schema_version']}, but this harvester knows up to {SCHEMA_VERSION}"
        if row["fetched_at"] != self._fetched_at:
            if not is_moment(row["fetched_at"]):
                return "fetched_at is not a UTC time such as 2026-11-23T06:00:00Z"
            self._fetched_at = row["fetched_at"]
            self.earliest = min(self.earliest or self._fetched_at, self._fetched_at)
            self.latest = max(self.latest, self._fetched_at)
        if row["carried"] is not None and not {*map(type, row["carried"].values())} <= _CARRIED_TYPES:
            return "a value of carried is not text, or null"
        return self._misfit_of_numbers(row) or (self._misfit_of_idle(row) if row["source"] is not None else None)

    def _misfit_of_numbers(self, row: Mapping[str, Any]) -> str | None:
        units = row["units_returned"]
        if units is not None and not -INT64_MAX <= units <= INT64_MAX:
            return "units_returned has more than 64 bits"
        for name in ("clicks_listed", *self._totals):
            if row[name] is not None and not 0 <= row[name] <= INT64_MAX:
                return f"{name} is not a count"
        return None

    def _misfit_of_idle(self, row: Mapping[str, Any]) -> str | None:
        """Return what is wrong with a row that no call was made for; None if it states no clicks, and nothing else."""
        if row["source"] != GROUP_EXPORT:
            return f"source is {row['source']!r:.60}, and not null or {GROUP_EXPORT}"
        if lacks_in_export(self._facet.name):
            return f"source is {GROUP_EXPORT}, which does not state {self._facet.name}"
        counts = [row[name] for name in ("clicks_listed", *self._totals)]
        if any(counts) or None in counts or row["units_returned"] is not None:
            return f"source is {GROUP_EXPORT}, and the row states more than that there are no clicks"
        return None

    def _misfit_of_window(self, row: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the window that a run asked for where rows are refreshed."""
        if self._refreshing and not is_moment(row["unit_reference"]):
            return "unit_reference is not a UTC time such as 2026-11-23T06:00:00Z"
        return None

    def _key_of(self, row: Mapping[str, Any]) -> bytes:
        """Return the 16 bytes of the key of a row's call."""
        if self._refreshing:
            return self._rows.record_id(row["bitlink"], row["unit_reference"])
        return self._rows.key(row["bitlink"])

    def _misfit_of_metric(self, metric: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the values of a metric, whose types are right; None if nothing is."""
        for name in self._counts:
            if metric[name] is not None and not 0 <= metric[name] <= INT64_MAX:
                return f"{name} is not a count"
        for name in self._moments:
            if not is_moment(metric[name]):
                return f"{name} is not a UTC time such as 2026-11-23T00:00:00Z"
        return None

    def _group_of(self, metric: Mapping[str, Any]) -> str | None:
        return metric[self._facet.grouped_by] if self._facet.grouped_by else None

    def _misfit_of_sums(self, row: Mapping[str, Any], clicks: int, groups: list[str | None]) -> str | None:
        """Return how the sums of a call differ from its metrics. groups: of each metric, see Facet.grouped_by."""
        if row["source"] == GROUP_EXPORT and groups:
            return f"source is {GROUP_EXPORT}, and {len(groups)} metrics are there"
        if row["clicks_listed"] != clicks:
            return f"clicks_listed is {row['clicks_listed']}, but its metrics add up to {clicks}"
        if row["truncated"] is not self._facet.is_truncated(groups, len(groups), row["size"]):
            return f"truncated is {str(row['truncated']).lower()}, but {len(groups)} of {row['size']} metrics are there"
        return None


class Nested(_Common):
    """Checks the rows of one file, each of which is a call."""

    def __init__(self, query: Query, run_id: str, found: Found, *, refreshing: bool = False) -> None:
        super().__init__(Shape.NESTED, query, run_id, found, refreshing=refreshing)

    def check_row(self, number: int, row: Any) -> bytes | None:
        """Check a row. Return the 16 bytes of its record_id, or None if something is wrong with it."""
        self.calls += 1
        misfit = self._misfit(row) or self._misfit_of_metrics(row, row["metrics"])
        if not misfit:
            key = self._key_of(row)
            if key.hex() == row["record_id"]:
                self._count_shortfall(row)
                return key
            misfit = "record_id is not that of its call"
        self._found(number, misfit)
        return None

    def _misfit_of_metrics(self, row: dict[str, Any], metrics: list[Any]) -> str | None:
        clicked = 0
        for metric in metrics:
            if misfit := self._metric.misfit(metric):
                return f"an entry of metrics: {misfit}"
            if misfit := self._misfit_of_metric(metric):
                return f"an entry of metrics: {misfit}"
            clicked += metric["clicks"] or 0
        return self._misfit_of_sums(row, clicked, [self._group_of(metric) for metric in metrics])

    def end(self) -> None:
        """Do nothing: each row is checked on its own."""


class Flat(_Common):
    """Checks the rows of one file: a call's metrics, or its one row of nulls. A call's rows follow each other.

    call: called with the key of each call.
    """

    def __init__(
        self, query: Query, run_id: str, found: Found, call: Callable[[bytes], None], *, refreshing: bool = False
    ) -> None:
        super().__init__(Shape.FLAT, query, run_id, found, refreshing=refreshing)
        self._names = tuple(column.name for column in metric_columns(query.facet))
        # The keys that are the same in all rows of a call.
        self._shared = tuple(
            column.name for column in columns_of(Shape.FLAT, query.facet) if column.name not in _IDS.union(self._names)
        )
        self._call_of = itemgetter(*self._shared)
        self._call = call
        self._window = (query.facet, query.unit, str(query.units))
        self._last = 0
        # The state of one call is set by `_begin`; the first row of the file already calls it.
        self._now: tuple[Any, ...] | None = None

    def check_row(self, number: int, row: Any) -> bytes | None:
        """Check a row. Return the 16 bytes of its record_id, or None if something is wrong with it."""
        misfit = self._misfit(row) or self._misfit_within_call(number, row)
        if not misfit:
            key = self._key(row)
            if row["call_id"] != self._call_id:
                misfit = "call_id is not that of its call"
            elif key.hex() == row["record_id"]:
                return key
            else:
                misfit = "record_id is not that of its call and metric"
        self._found(number, misfit)
        return None

    def _misfit_within_call(self, number: int, row: dict[str, Any]) -> str | None:
        misfit = None
        if (call := self._call_of(row)) != self._now:
            misfit = self._misfit_of_call(row)
            if not misfit:
                self.end()
                self._begin(call, row)
        self._last = number
        return self._misfit_of_entry(row) or misfit

    def _misfit_of_call(self, row: dict[str, Any]) -> str | None:
        """Return how a row differs from the first row of its call; None if it begins another call."""
        if self._now is None or row["bitlink"] != self._first["bitlink"]:
            return None
        if row["unit_reference"] != self._first["unit_reference"]:
            return None  # the link's next answer
        other = next(name for name in self._shared if row[name] != self._first[name])
        return f"{other} is not that of its call's first row"

    def _begin(self, call: tuple[Any, ...], row: dict[str, Any]) -> None:
        self.calls += 1
        self._now, self._first = call, row
        self._clicks = 0
        self._groups: list[str | None] = []
        self._no_metrics = False
        self._seen: dict[str, int] = {}
        self._begun = hashlib.sha256(
            _SEPARATOR.join((row["bitlink"], *self._window, row["unit_reference"], "")).encode()
        )
        key = self._key_of(row)
        self._call_id = key.hex()
        self._call(key)
        self._count_shortfall(row)

    def _misfit_of_entry(self, row: dict[str, Any]) -> str | None:
        """Check a row's metric, or that it is the one row of a call without any."""
        self._empty = all(row[name] is None for name in self._names)
        if self._empty:
            if self._no_metrics or self._groups:
                return f"{' and '.join(self._names)} are all null only in the one row of a call without metrics"
            self._no_metrics = True
            return None
        if self._no_metrics:
            return "a metric follows the row that says that its call has none"
        if misfit := self._metric.misfit({name: row[name] for name in self._names}):
            return misfit
        self._groups.append(self._group_of(row))
        self._clicks += row["clicks"] or 0
        return self._misfit_of_metric(row)

    def _key(self, row: dict[str, Any]) -> bytes:
        times, identity = 0, ""
        if not self._empty:
            identity = self._facet.identity(row)
            times = self._seen[identity] = self._seen.get(identity, 0) + 1
        digest = self._begun.copy()
        digest.update(f"{times}{_SEPARATOR}{identity}".encode())
        return digest.digest()[:16]

    def end(self) -> None:
        """End the current call: check the sums over its rows."""
        if self._now is not None:
            misfit = self._misfit_of_sums(self._first, self._clicks, self._groups)
            if misfit:
                self._found(self._last, f"up to here, for {self._first['bitlink']}: {misfit}")
        self._now = None
