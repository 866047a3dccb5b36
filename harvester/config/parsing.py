"""Options as typed values. Everything is checked here, in one pass, before anything is opened.

The options arrive as the texts and numbers of the command line, of variables, of a file or of Python's keywords. What
leaves has units: seconds, bytes, shares. An error names the option, and what was expected.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from string import Formatter
from urllib.parse import urlsplit

from harvester.bitly.facets import FACETS
from harvester.bitly.query import BASE_URL, UNITS, Query, query_for
from harvester.budget.limits import PLAN_MONTHS, RequestedLimits
from harvester.clock import utc_iso
from harvester.config.options import LimitOptions, QueryOptions, RunOptions, home_expanded
from harvester.errors import UsageError
from harvester.shutdown import FailureLimit

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_ACCOUNT = re.compile(r"[^\x00-\x20\x7f-\x9f]{1,100}")
_TIMES = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SIZE = re.compile(r"(\d{1,18})\s*([kmg]i?|)b?")
_GUID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_VISIBLE = re.compile(r"[!-~]+")
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_SECONDS = 366 * 86400
_MAX_COUNT = 2**31 - 1
_CLOCK_DIFFERENCE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedOptions:
    """The options of a run whose values are not what was written, by who takes them.

    Dataset: query; pin_reference, True where nobody chose its unit_reference; part_bytes; part_age_seconds.
    Budget: limits; account, None for a month of the token's own. Client: base_url, timeout_seconds,
    outage_limit_seconds. Run: failure_limit and max_time_seconds, None for no such limit; invalid_limit,
    None for the default.
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


def typed(options: RunOptions) -> TypedOptions:
    """Return the options of a run as typed values. Raises UsageError for the first that is wrong or out of range."""
    query, pin_reference = query_of(options.query)
    check_counts(options)
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
    )


def query_of(options: QueryOptions) -> tuple[Query, bool]:
    """Return the query, and True if its unit_reference is the present moment because none was chosen.

    Raises UsageError for a value that Bitly does not know.
    """
    check_choice("--facet", options.facet, tuple(FACETS))
    check_choice("--unit", options.unit, UNITS)
    if options.units != -1:
        _check_range("--units", options.units, 1, "or -1 for all")
    _check_range("--size", options.size, 1)
    _check_range("--max-size", options.max_size, 1)
    reference = datetime.now(UTC) if options.unit_reference is None else _moment(options.unit_reference)
    query = query_for(options.facet, options.unit, options.units, utc_iso(reference), options.size)
    return query, options.unit_reference is None


def future_reference(query: Query) -> str | None:
    """Return a warning if a query's unit_reference is in the future, by more than two machines' clocks may differ."""
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


def checked_base_url(url: str) -> str:
    """Return the base URL without slashes at its end, if the token may be sent there: by HTTPS, or to this machine.

    Raises:
        UsageError: it is no URL, has a user name, query or fragment, or would carry the token unencrypted.
    """
    if set(url) & set("@?#"):
        raise UsageError(": it may not have a user name, query or fragment", option="--base-url")
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
        if host and not _is_plain(host):
            host.encode("idna").decode("idna")  # as the request will
    except ValueError:  # an invalid port, address or name
        host = None
    if not host or parts.scheme not in {"http", "https"} or not _VISIBLE.fullmatch(url):
        raise UsageError(f"{url}: must be a URL such as {BASE_URL}", option="--base-url")
    if parts.scheme == "http" and not _is_loopback(host):
        raise UsageError(f"{url}: the token would travel unencrypted; use https", option="--base-url")
    return url.rstrip("/")


def _is_plain(host: str) -> bool:
    """Return whether a host needs no look at its encoding, which takes a millisecond to import."""
    labels = host.split(".")
    plain = all(0 < len(each) < 64 and each.replace("-", "").isalnum() for each in labels)
    return plain and host.isascii() and "xn--" not in host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


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


# --- placeholders ---------------------------------------------------------------------------------------------------

_MEANINGS = {"dt": "the UTC day of --unit-reference", "facet": "--facet"}
_MIN_SIMILARITY = 0.3
"""Low enough for `{day}` to be answered with `{dt}`."""
_NO_DEFAULT_DAY = (
    ": by default it is the moment of the first run, and tomorrow the same command would pay for the list again"
)


def fill_output(options: RunOptions) -> RunOptions:
    """Return the options with the placeholders in --out and --work-dir filled in: `lake/{facet}/dt={dt}`.

    To be called once: the filled path may contain braces, which a second call would read as placeholders.

    Raises:
        UsageError: an unknown placeholder, or {dt} without --unit-reference.
    """

    def filled(option: str, path: str) -> str:
        query = options.query
        return filled_path(option, path, query.facet, query.unit_reference, because=_NO_DEFAULT_DAY)

    output = options.output
    out = filled("--out", output.out)
    work_dir = None if output.work_dir is None else filled("--work-dir", output.work_dir)
    return replace(options, output=replace(output, out=out, work_dir=work_dir))


def filled_path(name: str, path: str, facet: str, unit_reference: str | None, *, because: str = "") -> str:
    """Return a path with `~` expanded, and its placeholders filled in; `{{` and `}}` stand for braces.

    name: what the path is called in errors. facet, unit_reference: what {facet} and {dt} stand for. because: why the
    day has no default, for the error.

    Raises:
        UsageError: an unknown facet, placeholder or home folder, {dt} without a moment, or an unbalanced brace.
    """
    path = home_expanded(path, name)
    check_choice("--facet", facet, tuple(FACETS))
    day = None if unit_reference is None else _moment(unit_reference).date().isoformat()
    values = {"dt": day, "facet": facet}
    try:
        pieces = list(Formatter().parse(path))
    except ValueError as error:
        raise UsageError(f"{path}: an unmatched brace; write {{{{ or }}}} for a brace", option=name) from error
    filled = ""
    for text, field, form, conversion in pieces:
        filled += text
        if field is None:
            continue
        placeholder = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        if placeholder not in values:
            raise UsageError(f"{path}: {{{placeholder}}} is not a placeholder; {_nearest(placeholder)}", option=name)
        value = values[placeholder]
        if value is None:
            raise UsageError(
                f"{path}: {{{placeholder}}} is {_MEANINGS[placeholder]}, which is not set{because}. "
                f"Today's would be --unit-reference {datetime.now(UTC).date()}",
                option=name,
            )
        filled += value
    return filled


def _nearest(shown: str) -> str:
    if nearest := get_close_matches(shown, _MEANINGS, 1, _MIN_SIMILARITY):
        return f"did you mean {{{nearest[0]}}}, {_MEANINGS[nearest[0]]}? Write {{{{ and }}}} for braces"
    known = " and ".join(f"{{{each}}}, {meaning}" for each, meaning in _MEANINGS.items())
    return f"there are {known}. Write {{{{ and }}}} for braces"


def escape_braces(path: str) -> str:
    """Return a path as it must be written where placeholders are filled in: with its braces doubled."""
    return path.replace("{", "{{").replace("}", "}}")
