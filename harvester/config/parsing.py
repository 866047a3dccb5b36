"""Options as typed values. Everything is checked here, in one pass, before anything is opened.

The options arrive as the texts and numbers of the command line, of variables, of a file or of Python's keywords. What
leaves has units: seconds, bytes, shares. An error names the option, and what was expected.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar, get_args

from harvester.bitly.exports import lacks_in_export
from harvester.bitly.facets import FACETS
from harvester.bitly.query import (
    PERIOD_UNITS,
    UNITS,
    Period,
    Query,
    periods_between,
    query_for,
    query_for_period,
)
from harvester.budget.limits import PLAN_MONTHS, RequestedLimits
from harvester.clock import utc_iso
from harvester.config.base_url import checked_base_url
from harvester.config.options import LimitOptions, QueryOptions, RunOptions, TransportName
from harvester.errors import UsageError
from harvester.misplaced import looks_like_token
from harvester.parameters import by_name
from harvester.shutdown import FailureLimit

T = TypeVar("T")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_ACCOUNT = re.compile(r"[^\x00-\x20\x7f-\x9f]{1,100}")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SIZE = re.compile(r"(\d{1,18})\s*([kmg]i?|)b?")
_GUID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_SECONDS = 366 * 86400
_LEAST_REFRESH_SECONDS = 3600
_MAX_COUNT = 2**31 - 1
_CLOCK_DIFFERENCE = timedelta(minutes=1)
_DAYS_AGO = {"today": 0, "yesterday": 1}
_MOST_PERIODS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedOptions:
    """The options of a run whose values are not what was written, by who takes them.

    Dataset: query; pin_reference, True where nobody chose its unit_reference; part_bytes; part_age_seconds.
    Budget: limits; account, None for a month of the token's own. Client: base_url, timeout_seconds,
    outage_limit_seconds. Run: failure_limit and max_time_seconds, None for no such limit; invalid_limit,
    None for the default; refresh_seconds, None without --refresh; prefer_active.
    """

    query: Query
    pin_reference: bool
    part_bytes: int
    part_age_seconds: float
    limits: RequestedLimits
    account: str | None
    base_url: str
    timeout_seconds: float
    outage_limit_seconds: float
    failure_limit: FailureLimit | None
    invalid_limit: FailureLimit | None
    max_time_seconds: float | None
    refresh_seconds: float | None
    prefer_active: bool


def typed(options: RunOptions) -> TypedOptions:
    """Return the options of a run as typed values. Raises UsageError for the first that is wrong or out of range."""
    refuse_tokens(options)
    query, pin_reference = query_of(options.query)
    check_counts(options)
    check_skip_idle(options)
    output, limits, stopping = options.output, options.limits, options.stopping
    return TypedOptions(
        query=query,
        pin_reference=pin_reference,
        part_bytes=bytes_of("--part-bytes", output.part_bytes),
        part_age_seconds=seconds_of("--part-age", output.part_age),
        limits=requested_limits(limits),
        account=account_of(limits),
        base_url=checked_base_url(options.access.base_url),
        timeout_seconds=seconds_of("--timeout", limits.timeout),
        outage_limit_seconds=seconds_of("--outage-limit", limits.outage_limit),
        failure_limit=failure_limit_of("--max-failures", stopping.max_failures),
        invalid_limit=failure_limit_of("--max-invalid", options.list.max_invalid),
        max_time_seconds=seconds_of("--max-time", stopping.max_time) if stopping.max_time else None,
        refresh_seconds=refresh_seconds_of(options),
        prefer_active=options.list.prefer == "active",
    )


def refuse_tokens(options: RunOptions) -> None:
    """Refuse a token that stands where an option expects something else: a folder of its name would show it.

    The options of secrets say by themselves what they expect.

    Raises:
        UsageError: a value looks like one, and nothing has that name.
    """
    for name, value in by_name(options).items():
        if name.endswith(("token_file", "token_command", "password_file", "password_command")):
            continue
        for text in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
            if looks_like_token(str(text)) and not os.path.lexists(text):
                raise UsageError(
                    "looks like a token, which no option takes: set BITLY_TOKEN, or store it with `harvester login "
                    "--with-token`. If it is a path, write ./ before it",
                    option=f"--{name.replace('_', '-')}",
                )


def refresh_seconds_of(options: RunOptions) -> float | None:
    """Return the age at which an answer is asked for again, in seconds; None without --refresh.

    Raises:
        UsageError: a shorter age than an hour, a window that does not move on, or an output that keeps nothing.
    """
    text, query = options.list.refresh, options.query
    if options.list.prefer is not None:
        check_choice("--prefer", options.list.prefer, ("active",))
    if text is None:
        if options.list.prefer is not None:
            raise UsageError(": needs --refresh, whose order it changes", option="--prefer")
        return None
    seconds = seconds_of("--refresh", text)
    if seconds < _LEAST_REFRESH_SECONDS:
        raise UsageError(f"{text}: must be an hour or more", option="--refresh")
    if query.day is not None or query.since is not None or query.unit_reference is not None:
        named = "--day" if query.day is not None else "--since" if query.since is not None else "--unit-reference"
        raise UsageError(
            f": {named} ends the window at a fixed moment, so a later answer would say the same. With --refresh each "
            f"run asks for the window up to its own beginning: leave {named} out, or --refresh",
            option="--refresh",
        )
    if options.output.out == "-":
        raise UsageError(": rows on standard output are not remembered; name a folder or a file", option="--refresh")
    return seconds


def query_of(options: QueryOptions) -> tuple[Query, bool]:
    """Return the query, and True if its unit_reference is the present moment because none was chosen.

    Raises UsageError for a value that Bitly does not know.
    """
    facet, period = only_one("--facet", facets_of(options)), only_one("--since", periods_of(options) or [None])
    check_choice("--unit", options.unit, UNITS)
    if options.units != -1:
        _check_range("--units", options.units, 1, "or -1 for all")
    _check_range("--size", options.size, 1)
    _check_range("--max-size", options.max_size, 1)
    if period is not None:
        return query_for_period(facet, period, options.size), False
    reference = datetime.now(UTC) if options.unit_reference is None else _moment(options.unit_reference)
    query = query_for(facet, options.unit, options.units, utc_iso(reference), options.size)
    return query, options.unit_reference is None


def facets_of(options: QueryOptions) -> tuple[str, ...]:
    """Return the facets. Raises UsageError for one that there is not."""
    for facet in options.facet:
        check_choice("--facet", facet, tuple(FACETS))
    return options.facet


def only_one(option: str, values: Sequence[T]) -> T:
    """Return the only value. Raises UsageError if there are several."""
    if len(values) > 1:
        raise UsageError(": one is expected here, not several", option=option)
    return values[0]


def periods_of(options: QueryOptions, now: datetime | None = None) -> list[Period]:
    """Return the periods that --day or --since names, the oldest first; none without these options.

    now: UTC, by default the present moment.

    Raises:
        UsageError: no day, options that exclude each other, a period that has not begun, or one that is not over,
        without --partial.
    """
    now = now or datetime.now(UTC)
    check_choice("--every", options.every, PERIOD_UNITS)
    if options.since is None and options.every != "day":
        raise UsageError(f"{options.every}: needs --since, the first day", option="--every")
    if options.day is None and options.since is None:
        if options.until is not None:
            raise UsageError(": needs --since, the first day", option="--until")
        return []
    named = "--since" if options.day is None else "--day"
    if named == "--day" and (options.since is not None or options.until is not None):
        raise UsageError(": --since and --until name several days; use either", option="--day")
    if (options.unit, options.units, options.unit_reference) != ("day", -1, None):
        raise UsageError(": is a window by itself; leave out --unit, --units and --unit-reference", option=named)
    since = day_of(named, options.day or options.since or "", now)
    until = since if options.day else day_of("--until", options.until or "yesterday", now)
    if until < since and options.until is None:
        raise UsageError(f"{since}: is after {until}, the last day without --until (yesterday)", option="--since")
    if until < since:
        raise UsageError(f"{until}: is before --since {since}", option="--until")
    try:
        found = periods_between("day" if options.day else options.every, since, until)
        last, newest = found[-1].end, named if options.day else "--until"
    except OverflowError as error:
        raise UsageError(f"{until}: must be a day before the year 9999", option=named) from error
    if len(found) > _MOST_PERIODS:
        raise UsageError(f"{since}: {len(found):,} periods are more than {_MOST_PERIODS:,}", option="--since")
    if found[-1].start > utc_iso(now):
        raise UsageError(f"{until}: {found[-1]} has not begun, so that it has no clicks yet", option=newest)
    if last > utc_iso(now) and not options.partial:
        raise UsageError(
            f"{until}: {found[-1]} is over at {last}, and until then its numbers change: wait for its end, or accept "
            "them as they are with --partial",
            option=newest,
        )
    return found


def day_of(option: str, text: str, now: datetime | None = None) -> date:
    """Parse a UTC day: `2026-11-22`, `yesterday` or `today`. Raises UsageError."""
    today = (now or datetime.now(UTC)).date()
    written = text.strip().lower()
    if written in _DAYS_AGO:
        return today - timedelta(_DAYS_AGO[written])
    try:
        return date.fromisoformat(written)
    except ValueError as error:
        raise UsageError(f"{text}: must be a day such as 2026-11-22, or yesterday", option=option) from error


def future_reference(query: Query) -> str | None:
    """Return a warning if a query's window is not over, by more than two machines' clocks may differ."""
    if query.period_end is not None:
        if datetime.fromisoformat(query.period_end) <= datetime.now(UTC):
            return None
        return (
            f"the period ends at {query.period_end}: its numbers will change, and no later run of this output fetches "
            "them again (--partial)"
        )
    if datetime.fromisoformat(query.unit_reference) <= datetime.now(UTC) + _CLOCK_DIFFERENCE:
        return None
    return (
        f"--unit-reference {query.unit_reference} is in the future: the window is not over, so its numbers will "
        "change, and no later run of this output fetches them again"
    )


def requested_limits(options: LimitOptions) -> RequestedLimits:
    """Return the limits that were asked for; --per-month goes before --plan.

    Raises:
        UsageError: an unknown plan, a negative limit, or a reserve of 100 % or more.
    """
    if options.plan is not None:
        check_choice("--plan", options.plan, tuple(PLAN_MONTHS))
    check_choice("--transport", options.transport, get_args(TransportName))
    for name in ("per_minute", "per_hour", "per_month"):
        if (value := getattr(options, name)) is not None:
            _check_range("--" + name.replace("_", "-"), value, 0, "0 means no limit")
    per_month = PLAN_MONTHS[options.plan] if options.per_month is None and options.plan else options.per_month
    return RequestedLimits(options.per_minute, options.per_hour, per_month, _reserve_of(options.reserve))


def _reserve_of(text: str) -> float:
    match = _SHARE.fullmatch(text.strip())
    if not match or float(match[1]) >= 100:
        raise UsageError(f"{text}: must be a share below 100%, such as 10%", option="--reserve")
    return float(match[1]) / 100


def account_of(options: LimitOptions) -> str | None:
    """Return the account's name, or None. Raises UsageError for spaces and control characters."""
    if options.account is not None and not _ACCOUNT.fullmatch(options.account):
        raise UsageError(": must be a name without spaces, of at most 100 characters", option="--account")
    return options.account


def failure_limit_of(option: str, text: str | None) -> FailureLimit | None:
    """Parse a limit: `25`, or `5%`. Raises UsageError."""
    if text is None:
        return None
    digits, is_share = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(digits) if is_share else int(digits)
    except ValueError:
        value = -1
    if not value >= 0 or (is_share and value > 100):  # `not >=` refuses NaN too
        raise UsageError(f"{text}: must be a count such as 25, or a share such as 5%", option=option)
    return FailureLimit(share=value / 100) if is_share else FailureLimit(count=int(value))


def seconds_of(option: str, text: str) -> float:
    """Parse a duration: `90`, `90s`, `15m`, `1h30m`, `2d`. Raises UsageError."""
    pieces = _TIMES.findall(text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in pieces)
    whole = "".join(number + unit for number, unit in pieces) == text.strip().lower()
    if not whole or not 0 < seconds <= _MAX_SECONDS:
        raise UsageError(f"{text}: must be a time such as 90s, 15m or 6h", option=option)
    return seconds


def bytes_of(option: str, text: str) -> int:
    """Parse a size: `1048576`, `64MB`, `128MiB`. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip().lower())
    if not match or not int(match[1]):
        raise UsageError(f"{text}: must be a size such as 64MB or 128MiB", option=option)
    return int(match[1]) * _SIZES[match[2]]


def check_counts(options: RunOptions) -> None:
    """Raise UsageError for a count below one."""
    _check_range("--connections", options.limits.connections, 1)
    _check_range("--attempts", options.limits.attempts, 1)
    _check_range("--part-rows", options.output.part_rows, 1)
    if options.stopping.max_calls is not None:
        _check_range("--max-calls", options.stopping.max_calls, 1)


# --- checks -------------------------------------------------------------------------------------------------------


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UsageError for a value that is not among those known."""
    if value not in known:
        raise UsageError(f"{value}: must be one of {', '.join(known)}", option=option)


def _check_range(option: str, value: int, least: int, hint: str = "") -> None:
    if value > _MAX_COUNT:
        raise UsageError(f"{value}: must be at most {_MAX_COUNT}", option=option)
    if value < least:
        raise UsageError(f"{value}: must be at least {least}{f' ({hint})' if hint else ''}", option=option)


def groups_of(group: str | None, *, all_groups: bool) -> tuple[str, ...] | None:
    """Return the guids of the groups whose links are asked for; empty for all groups, None if none are asked for.

    Raises:
        UsageError: both were given, or a guid is empty or has a space or a slash.
    """
    if group is None:
        return () if all_groups else None
    if all_groups:
        raise UsageError(f"{group}: name groups, or all of them, not both", option="--group")
    guids = tuple(dict.fromkeys(guid.strip() for guid in group.split(",")))
    if not all(_GUID.fullmatch(guid) for guid in guids):
        raise UsageError(f"{group}: must be a guid such as Ba1bc23dE4F", option="--group")
    return guids


def check_skip_idle(options: RunOptions) -> None:
    """Raise UsageError if links are to be skipped whose group or count nobody states."""
    chosen, in_group = options.list, options.list.in_group
    of_groups = groups_of(chosen.group, all_groups=chosen.all_groups) is not None
    if in_group is not None:
        if of_groups:
            raise UsageError(f"{in_group}: is for a list; --group names the group by itself", option="--in-group")
        if not _GUID.fullmatch(in_group):
            raise UsageError(f"{in_group}: must be one guid such as Ba1bc23dE4F", option="--in-group")
        if not chosen.skip_idle:
            raise UsageError(f"{in_group}: is only for --skip-idle", option="--in-group")
    elif chosen.skip_idle and not of_groups:
        raise UsageError(
            ": asks the group of the links: name it with --in-group GUID, or harvest a --group", option="--skip-idle"
        )
    for facet in options.query.facet if chosen.skip_idle else ():
        if facet in FACETS and lacks_in_export(facet):
            raise UsageError(
                f": an export states clicks, scans and button clicks, and not the {facet} of a link; leave it out for "
                "this facet",
                option="--skip-idle",
            )


def moment_of(option: str, text: str) -> datetime:
    """Parse a moment, which is UTC unless it has an offset. Raises UsageError."""
    try:
        return _moment(text)
    except UsageError as error:
        raise UsageError(f"{text}: must be a moment such as 2026-11-23T00:00:00Z", option=option) from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text}: must be a moment such as 2026-11-23T00:00:00Z", option="--unit-reference") from error
