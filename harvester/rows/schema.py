"""The columns of published rows, in both shapes, with their types and meanings: the single definition.

What a facet's rows have of their own comes from its entry in `bitly.facets`. Parquet's schema, the checks of `harvester
verify` and the DDL of each database are derived from the columns. The meanings are printed into schemas, so a change of
their wording changes the output of `harvester schema`.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from harvester.bitly.facets import FACETS, FieldKind, MetricField
from harvester.rows.call import IDLE, Shortfall

GROUP_EXPORT = "group_export"
"""The `source` of a row that no call was made for; all others have null."""
SEPARATOR = "\x1f"
"""Stands between the fields that a record_id is the hash of."""


class Kind(StrEnum):
    """The type of a column. metrics: a list of objects, one a metric. moment: UTC, written with a final Z in NDJSON.

    map: texts, or nulls, by names that the row's reader cannot know. texts: a list of texts.
    """

    TEXT = "text"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    MOMENT = "moment"
    METRICS = "metrics"
    MAP = "map"
    TEXTS = "texts"


class Shape(StrEnum):
    """nested: one row for each call, with a list of metrics. flat: one row for each metric of a call."""

    NESTED = "nested"
    FLAT = "flat"


class Column(NamedTuple):
    """A column, present in every row. means: its description. nullable: whether it may be null."""

    name: str
    kind: Kind
    means: str
    nullable: bool = False


_CALL = (
    Column("record_id", Kind.TEXT, "32 hexadecimal digits, unique over all rows: a key to merge by"),
    Column("run_id", Kind.TEXT, "the dataset's own id, which survives resumes"),
    Column("bitlink", Kind.TEXT, "domain/back-half"),
    Column("facet", Kind.TEXT, "Bitly's breakdown, such as referrers"),
    Column("unit", Kind.TEXT, "what units counts: minute, hour, day, week or month"),
    Column("units", Kind.INTEGER, "units requested, back from unit_reference; -1 for all"),
    Column("unit_reference", Kind.MOMENT, "end of the window, pinned for the dataset"),
    Column("period_start", Kind.MOMENT, "beginning of the calendar period; null if the window is none", nullable=True),
    Column("period_end", Kind.MOMENT, "its end, which it does not include", nullable=True),
    Column("size", Kind.INTEGER, "metrics requested at most; null for a facet that has no such limit", nullable=True),
    Column("fetched_at", Kind.MOMENT, "when the answer was read"),
    Column(
        "units_returned",
        Kind.INTEGER,
        "units that Bitly used; fewer than requested where the plan keeps less",
        nullable=True,
    ),
    Column("unit_reference_returned", Kind.TEXT, "end of the window as Bitly wrote it", nullable=True),
    Column("clicks_listed", Kind.INTEGER, "the sum of clicks over the call's metrics"),
    Column("truncated", Kind.BOOLEAN, "as many metrics as requested: the rest was probably cut off"),
    Column(
        "source",
        Kind.TEXT,
        "null for the link's own answer; group_export: its group's export states that it has no clicks",
        nullable=True,
    ),
)
_ROW_ID = _CALL[0]._replace(means="32 hexadecimal digits, unique over all rows")
_CALL_ID = Column("call_id", Kind.TEXT, "the call's key, the same in all its rows, which are replaced together")
_CARRIED = Column(
    "carried", Kind.MAP, "the columns of the list that --carry names, as texts; null without it", nullable=True
)
_METRICS = Column("metrics", Kind.METRICS, "the breakdown, in Bitly's order")
_VERSION = Column("schema_version", Kind.INTEGER, "2; columns are only ever added")
_KINDS = {FieldKind.TEXT: Kind.TEXT, FieldKind.COUNT: Kind.INTEGER, FieldKind.MOMENT: Kind.MOMENT}


@lru_cache
def columns_of(shape: Shape, facet: str) -> tuple[Column, ...]:
    """Return the columns of a facet's rows in a shape, in order."""
    totals = tuple(map(_column, FACETS[facet].totals))
    if shape is Shape.NESTED:
        return (*_CALL, *totals, _CARRIED, _METRICS, _VERSION)
    return (_ROW_ID, _CALL_ID, *_CALL[1:], *totals, _CARRIED, *map(_or_none, metric_columns(facet)), _VERSION)


@lru_cache
def metric_columns(facet: str) -> tuple[Column, ...]:
    """Return the fields of one metric of a facet: the keys of an item of the nested row's list."""
    return tuple(map(_column, FACETS[facet].fields))


def _column(field: MetricField) -> Column:
    return Column(field.name, _KINDS[field.kind], field.means, field.nullable)


def _or_none(column: Column) -> Column:
    """Return a metric's column for the flat shape, where it is null in the row of a link without metrics."""
    return column._replace(means=f"{column.means}; null for a link without any", nullable=True)


FAILURE: tuple[Column, ...] = (
    Column("bitlink", Kind.TEXT, "domain/back-half; null for a line that is not a bitlink", nullable=True),
    Column("text", Kind.TEXT, "the line that is not a bitlink; null for a bitlink", nullable=True),
    Column("facet", Kind.TEXT, "Bitly's breakdown, such as referrers"),
    Column("kind", Kind.TEXT, "refused, failed or invalid"),
    Column("status", Kind.INTEGER, "HTTP status; null without an answer", nullable=True),
    Column("message", Kind.TEXT, "Bitly's message, or the reason"),
    Column("attempts", Kind.INTEGER, "attempts that were made"),
    Column("file", Kind.TEXT, "the list in which it first appeared"),
    Column("line", Kind.INTEGER, "the line in that list"),
    Column("body", Kind.TEXT, "the beginning of an answer that could not be understood", nullable=True),
)
"""The keys of a line in `_failures.ndjson`, in order."""


def shortfall_of(row: Mapping[str, Any]) -> Shortfall:
    """Return what a row in either shape lacks."""
    is_empty = not row["metrics"] if "metrics" in row else row.get(_BUCKET) is None
    if row.get("source") == GROUP_EXPORT:
        return IDLE
    return Shortfall(row["truncated"], is_clipped(row, is_empty=is_empty))


_BUCKET = "date"
"""The column of a series that is null in the flat row of a link without metrics."""


def is_clipped(row: Mapping[str, Any], *, is_empty: bool) -> bool:
    """Return True if Bitly used fewer units than were requested, or other ones than the period's.

    row: its columns on the query and on what Bitly used, of which any may be null. is_empty: it has no metrics; in a
    series Bitly lists the units without clicks, too.
    """
    used, start = row["units_returned"], row.get("period_start")
    if used is not None and 0 <= used < row["units"]:
        return True
    if start is None:
        return False
    moment = row["unit_reference_returned"]
    elsewhere = moment is not None and not start <= moment <= str(row["period_end"])
    return elsewhere or (is_empty and FACETS[row["facet"]].is_series)
