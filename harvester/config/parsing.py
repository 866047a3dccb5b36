"""What options mean as typed values: everything is checked here before anything is opened."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from string import Formatter

from harvester.bitly.facets import FACETS
from harvester.bitly.query import UNITS, Query
from harvester.budget.limits import RequestedLimits
from harvester.clock import utc_iso
from harvester.config.options import LimitOptions, LogOptions, QueryOptions, RunOptions
from harvester.errors import UsageError
from harvester.shutdown import FailureLimit

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_SECONDS = 366 * 86400
_MOST = 2**31 - 1
_BUYS_AGAIN = ": by default it is the moment of the first run, and tomorrow's same command would buy the list again"


def query_of(options: QueryOptions) -> tuple[Query, bool]:
    """Give the query, and whether its unit_reference is merely this moment.

    Raises:
        UsageError: a value that Bitly does not know.
    """
    _one_of("--facet", options.facet, tuple(FACETS))
    _one_of("--unit", options.unit, UNITS)
    if options.units != -1:
        _at_least("--units", options.units, 1, "or -1 for all")
    _at_least("--size", options.size, 1)
    reference = datetime.now(UTC) if options.unit_reference is None else _moment(options.unit_reference)
    query = Query(options.facet, options.unit, options.units, utc_iso(reference), options.size)
    return query, options.unit_reference is None


def fill_output(options: RunOptions) -> RunOptions:
    """Give the options with the placeholders in --out and --work-dir filled in: `lake/{facet}/dt={dt}`.

    Once only: what it gives may have braces that stand for themselves.

    Raises:
        UsageError: a placeholder that is none, or {dt} without --unit-reference.
    """
    output, query = options.output, options.query
    out = path_of("--out", output.out, query.facet, query.unit_reference, because=_BUYS_AGAIN)
    work_dir = output.work_dir
    if work_dir is not None:
        work_dir = path_of("--work-dir", work_dir, query.facet, query.unit_reference, because=_BUYS_AGAIN)
    return replace(options, output=replace(output, out=out, work_dir=work_dir))


def path_of(name: str, path: str, facet: str, unit_reference: str | None, *, because: str = "") -> str:
    """Give the path that one with placeholders means, as `filled` does. Raises UsageError."""
    _one_of("--facet", facet, tuple(FACETS))
    day = None if unit_reference is None else _moment(unit_reference).date().isoformat()
    return fill_placeholders(path, {"dt": day, "facet": facet}, name=name, because=because)


def wanted_limits(options: LimitOptions) -> RequestedLimits:
    """Give the limits as they were asked for. Raises UsageError for negative ones, and for a reserve of everything."""
    for name in ("per_minute", "per_hour", "per_month"):
        if (value := getattr(options, name)) is not None:
            _at_least("--" + name.replace("_", "-"), value, 0, "0 means no limit")
    return RequestedLimits(options.per_minute, options.per_hour, options.per_month, _reserve_of(options.reserve))


def _reserve_of(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if not match or float(match[1]) >= 100:
        raise UsageError(f"{text}: a share such as 10% was expected, below 100%", option="--reserve")
    return float(match[1]) / 100


def account_of(options: LimitOptions) -> str | None:
    """Give the account's name. Raises UsageError for one that cannot be shown."""
    if options.account is not None and not re.fullmatch(r"[^\x00-\x20\x7f-\x9f]{1,100}", options.account):
        raise UsageError(": a name without spaces, of at most 100 characters, was expected", option="--account")
    return options.account


def failure_limit_of(text: str | None) -> FailureLimit | None:
    """Read --max-failures: `25`, or `5%`. Raises UsageError."""
    if text is None:
        return None
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if not value >= 0 or (percent and value > 100):  # not even a number is not >= 0
        raise UsageError(f"{text}: a count such as 25, or a share such as 5%, was expected", option="--max-failures")
    return FailureLimit(share=value / 100) if percent else FailureLimit(count=int(value))


def seconds_of(option: str, text: str) -> float:
    """Read a duration: `90`, `90s`, `15m`, `1h30m`, `2d`. Raises UsageError."""
    pieces = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in pieces)
    whole = "".join(number + unit for number, unit in pieces) == text.strip().lower()
    if not whole or not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(f"{text}: a time such as 90s, 15m or 6h was expected", option=option)
    return seconds


def bytes_of(option: str, text: str) -> int:
    """Read a size: `1048576`, `64MB`, `128MiB`. Raises UsageError."""
    match = re.fullmatch(r"(\d+)\s*([kmg]i?|)b?", text.strip().lower())
    if not match or not int(match[1]):
        raise UsageError(f"{text}: a size such as 64MB or 128MiB was expected", option=option)
    return int(match[1]) * _SIZES[match[2]]


def log_format_of(options: LogOptions) -> str:
    """Give the form of standard error: text or json. Raises UsageError for another."""
    _one_of("--log-format", options.log_format, ("text", "json"))
    return options.log_format


def check_counts(options: RunOptions) -> None:
    """Refuse counts below one. Raises UsageError."""
    _at_least("--connections", options.limits.connections, 1)
    _at_least("--attempts", options.limits.attempts, 1)
    _at_least("--part-rows", options.output.part_rows, 1)
    if options.stopping.max_calls is not None:
        _at_least("--max-calls", options.stopping.max_calls, 1)


# --- checks -------------------------------------------------------------------------------------------------------


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{value}: one of {', '.join(known)} was expected", option=option)


def _at_least(option: str, value: int, least: int, hint: str = "") -> None:
    if value > _MOST:
        raise UsageError(f"{value}: at most {_MOST} was expected", option=option)
    if value < least:
        raise UsageError(f"{value}: at least {least} was expected{f' ({hint})' if hint else ''}", option=option)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text}: a moment such as 2026-11-23T00:00:00Z was expected", option="--unit-reference"
        ) from error


_MEANINGS = {"dt": "the UTC day of --unit-reference", "facet": "--facet"}
_LEAST_ALIKE = 0.3
"""`{day}` is nearer to `{dt}` than to anything else that it could be."""


def fill_placeholders(path: str, values: Mapping[str, str | None], *, name: str, because: str = "") -> str:
    """Give a path with its placeholders filled in; doubled braces stand for themselves.

    values: of facet, and of dt, which is None where nobody has said the day. name: what the path is called in errors.
    because: why dt is not made up, for the error.

    Raises:
        UsageError: a placeholder that is none, one without a value, or a brace without its other half.
    """
    if "{" not in path and "}" not in path:
        return path
    try:
        pieces = list(Formatter().parse(path))
    except ValueError as error:
        raise UsageError(
            f"{path}: a brace without its other half; write {{{{ or }}}} for a brace", option=name
        ) from error
    return "".join(text + _value(path, piece, values, name, because) for text, *piece in pieces)


def escape_braces(path: str) -> str:
    """Give a path as it is to be written where placeholders are filled in."""
    return path.replace("{", "{{").replace("}", "}}")


def _value(path: str, piece: list[str | None], values: Mapping[str, str | None], name: str, because: str) -> str:
    """Give what stands for a placeholder: its name, and what Python's formats may have behind it."""
    field, form, conversion = piece
    if field is None:
        return ""
    shown = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
    if shown not in _MEANINGS:
        raise UsageError(f"{path}: {{{shown}}} is no placeholder; {_nearest(shown)}", option=name)
    if (value := values[field]) is None:
        today = datetime.now(UTC).date()
        raise UsageError(
            f"{path}: {{{shown}}} is {_MEANINGS[shown]}, which is not given{because}. "
            f"Today's would be --unit-reference {today}",
            option=name,
        )
    return value


def _nearest(shown: str) -> str:
    if nearest := get_close_matches(shown, _MEANINGS, 1, _LEAST_ALIKE):
        return f"did you mean {{{nearest[0]}}}, {_MEANINGS[nearest[0]]}? Write {{{{ and }}}} for braces"
    known = " and ".join(f"{{{each}}}, {meaning}" for each, meaning in _MEANINGS.items())
    return f"there are {known}. Write {{{{ and }}}} for braces"
