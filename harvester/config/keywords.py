"""Options from Python: keyword arguments with the names of the options of `run`, and the types they may have."""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Literal, TypeAlias, TypedDict, get_origin

from harvester.config.options import RunOptions, nearest_of
from harvester.config.sources import excluded_by
from harvester.errors import UsageError
from harvester.parameters import alternatives, hints_in, made_of

AnyPath: TypeAlias = str | os.PathLike[str]
Duration: TypeAlias = str | float | timedelta
"""`90s`, `15m`, seconds, or a timedelta."""


class MetricsKeywords(TypedDict, total=False):
    """Options for one link: query, limits, access."""

    facet: str | Sequence[str]
    day: str | date | None
    partial: bool
    unit: str
    units: int
    unit_reference: str | datetime | None
    size: int
    max_size: int
    complete: bool
    connections: int
    plan: str | None
    per_minute: int | None
    per_hour: int | None
    per_month: int | None
    reserve: str
    account: str | None
    state_dir: AnyPath | None
    budget: str | None
    budget_password_file: AnyPath | None
    budget_password_command: str | None
    budget_prefix: str
    egress: str | None
    attempts: int
    timeout: Duration
    transport: str
    outage_limit: Duration
    max_time: Duration | None
    base_url: str
    token_file: AnyPath | None
    token_command: str | None
    token_store: AnyPath | None


class StreamKeywords(MetricsKeywords, total=False):
    """Options for rows that are not stored: also the list, when to stop, and the folder of the temporary state."""

    work_dir: AnyPath | None
    max_failures: str | int | None
    max_invalid: str | int | None
    max_calls: int | None
    strict: bool
    column: str | None
    carry: str | None
    list_format: str | None
    group: str | None
    all_groups: bool
    skip_idle: bool
    in_group: str | None
    shard: str | None


class DatasetKeywords(TypedDict, total=False):
    """Options for what is stored, and which calls are made again."""

    part_rows: int
    part_bytes: str | int
    part_age: Duration
    format: str | None
    shape: str | None
    retry_failed: bool
    retry_refused: bool
    allow_empty: bool
    metrics_file: AnyPath | None


class HarvestKeywords(StreamKeywords, DatasetKeywords, total=False):
    """Options for a harvest: also its output and its periods."""

    since: str | date | None
    until: str | date | None
    every: str
    refresh: Duration | None
    prefer: str | None


class SparkKeywords(MetricsKeywords, DatasetKeywords, total=False):
    """Options for the links of a DataFrame: also the cluster, the output, and when to stop."""

    work_dir: AnyPath | None
    tasks: int | None
    shared_dir: AnyPath | None
    max_failures: str | int | None
    max_invalid: str | int | None
    max_calls: int | None
    strict: bool


def run_options(
    given: Mapping[str, Any], allowed: type, out: str, configured: Mapping[str, Any] | None = None
) -> RunOptions:
    """Return the options of a run.

    given: by keyword. allowed: the TypedDict of the keywords that may occur. configured: values of the variables and
    the files, for the options that no keyword names.

    Raises:
        UsageError: an unknown keyword, or a value of the wrong type.
    """
    refuse_unknown(given, list(allowed.__annotations__))
    hints = hints_in(RunOptions)
    values = {name: _as(name, hints[name], value) for name, value in given.items()}
    excluded = {*given} | excluded_by(given)
    values |= {name: value for name, value in (configured or {}).items() if name not in excluded}
    return made_of(RunOptions, {**values, "out": out})


def refuse_unknown(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise UsageError for an unknown name, with the known name nearest to it."""
    for name in given:
        if name not in known:
            none = f"; the options are {', '.join(known)}"
            raise UsageError(f"unknown option {name}{nearest_of(name, known, none)}")


def path_text(name: str, value: object) -> str:
    """Return a path as text. Raises UsageError for a value that is neither a text nor a path object."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name}: must be a path, not {type(value).__name__}")
    return os.fsdecode(value)


def _as(name: str, hint: Any, value: object) -> object:
    """Return a value as the type that the option has on the command line. Raises UsageError."""
    # The choices of a Literal are checked later, with those of the command line.
    kinds = [str if get_origin(kind) in {Literal, tuple} else kind for kind in alternatives(hint)]
    if get_origin(hint) is tuple and isinstance(value, list | tuple) and value:
        return ",".join(str(_as(name, str, each)) for each in value)
    if value is None and type(None) in kinds:
        return None
    if bool in kinds:
        if isinstance(value, bool):
            return value
    elif int in kinds:
        if not isinstance(value, bool) and hasattr(value, "__index__"):
            return operator.index(value)
    elif (text := _as_text(value)) is not None:
        return text
    expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    raise UsageError(f"{name}: must be {expected}, not {type(value).__name__}")


def _as_text(value: object) -> str | None:
    if isinstance(value, date):  # also a datetime
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds():f}"
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None
