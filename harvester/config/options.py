"""The options of the commands as dataclasses, with the names, defaults and help texts that people see.

A value is what was written: `parsing` checks it and gives it its unit. The groups are the headings of `--help`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from cyclopts import Group, Parameter

from harvester.bitly.facets import FacetName
from harvester.bitly.query import BASE_URL, MAX_CONNECTIONS
from harvester.errors import UsageError

T = TypeVar("T")
ListFormatName = Literal["lines", "csv", "tsv", "ndjson", "parquet"]
LogFormatName = Literal["text", "json"]
StoreName = Literal["keyring", "file"]
UnitName = Literal["minute", "hour", "day", "week", "month"]
FormatName = Literal["ndjson", "ndjson.gz", "ndjson.zst", "parquet"]
ShapeName = Literal["nested", "flat"]
TargetName = Literal["json-schema", "bigquery", "spark", "duckdb", "snowflake", "athena"]

_QUERY = Group("Query", sort_key=1)
_OUTPUT = Group("Output", sort_key=2)
_LIST = Group("List", sort_key=3)
_LIMITS = Group("Limits", sort_key=4)
_STOPPING = Group("Stopping", sort_key=5)
_ACCESS = Group("Access", sort_key=6)
_LOGGING = Group("Logging", sort_key=7)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """The query that each link is asked; it is fixed when the output is begun."""

    facet: Annotated[FacetName, Parameter(group=_QUERY)] = "referrers"
    "Bitly's break-down of the clicks."

    unit: Annotated[UnitName, Parameter(group=_QUERY)] = "day"
    "What --units counts."

    units: Annotated[int, Parameter(group=_QUERY, allow_leading_hyphen=True)] = -1
    "How many units back from --unit-reference; -1 for all that the plan keeps."

    unit_reference: Annotated[str | None, Parameter(group=_QUERY)] = None
    "The end of the window, ISO 8601, UTC unless it says otherwise; by default the moment the output is begun."

    size: Annotated[int, Parameter(group=_QUERY)] = 50
    "The most metrics that one row lists."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where rows are written, and in which form."""

    out: Annotated[str, Parameter(group=_OUTPUT)]
    (
        "A folder for parts, a file that ends in .ndjson or .jsonl and grows, or - for standard output; {facet} and "
        "{dt}, the UTC day of --unit-reference, are filled in."
    )

    work_dir: Annotated[str | None, Parameter(group=_OUTPUT)] = None
    "Where the run's private state lies, on a local disk; by default inside or beside --out. Filled in as --out is."

    part_rows: Annotated[int, Parameter(group=_OUTPUT)] = 1_000_000
    "A part is published when it has this many rows."

    part_bytes: Annotated[str, Parameter(group=_OUTPUT)] = "128MiB"
    "A part is published when it has this many bytes as NDJSON, before compression."

    part_age: Annotated[str, Parameter(group=_OUTPUT)] = "6h"
    "A part is published when its first row is this old."

    format: Annotated[FormatName | None, Parameter(group=_OUTPUT)] = None
    "What a folder's parts are; by default ndjson.gz, which every loader takes."

    shape: Annotated[ShapeName | None, Parameter(group=_OUTPUT)] = None
    "A row is a call with a list of metrics (nested, by default), or one of its metrics (flat)."

    metrics_file: Annotated[str | None, Parameter(group=_OUTPUT)] = None
    "A .prom file in the folder of Prometheus' textfile collector; replaced each minute."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How the list is read, and which of its calls are made again."""

    retry_failed: Annotated[bool, Parameter(group=_LIST, negative="")] = False
    "Ask again also for calls that have failed in three runs."

    retry_refused: Annotated[bool, Parameter(group=_LIST, negative="")] = False
    "Ask again for calls that Bitly has refused."

    column: Annotated[str | None, Parameter(group=_LIST)] = None
    "Where links stand in CSV, TSV, NDJSON and Parquet: a column's name, or its number from 1 where there is no header."

    list_format: Annotated[ListFormatName | None, Parameter(group=_LIST)] = None
    "What the lists are, whatever their names say."

    strict: Annotated[bool, Parameter(group=_STOPPING, negative="")] = False
    "Do not begin unless every line of the list is a bitlink."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """How fast, how often and how long requests are made."""

    connections: Annotated[int, Parameter(group=_LIMITS)] = MAX_CONNECTIONS
    "Connections at once; Bitly allows five from one IP address."

    per_minute: Annotated[int | None, Parameter(group=_LIMITS)] = None
    "Attempts in any minute; 0 for no limit. By default what Bitly says, or else 100."

    per_hour: Annotated[int | None, Parameter(group=_LIMITS)] = None
    "Attempts in any hour; 0 for no limit. By default what Bitly says, or else 1,000."

    per_month: Annotated[int | None, Parameter(group=_LIMITS)] = None
    "The account's attempts in a calendar month, UTC; 0 for no limit. By default 1,000, as on Bitly's free plan."

    reserve: Annotated[str, Parameter(group=_LIMITS)] = "0%"
    "The share of each limit that is left to others, such as 10%."

    account: Annotated[str | None, Parameter(group=_LIMITS)] = None
    "Whose month it is: one name for all tokens of an account; by default each token has a month of its own."

    state_dir: Annotated[str | None, Parameter(group=_LIMITS)] = None
    "Where the budget is kept for all runs of this machine; by default the user's state folder."

    attempts: Annotated[int, Parameter(group=_LIMITS)] = 5
    "Attempts that a call is worth before it has failed."

    timeout: Annotated[str, Parameter(group=_LIMITS)] = "30s"
    "Time for one attempt, such as 30s."

    outage_limit: Annotated[str, Parameter(group=_STOPPING)] = "15m"
    "Stop when the server has been out for this long."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StopOptions:
    """When a run stops before the end of its list."""

    max_failures: Annotated[str | None, Parameter(group=_STOPPING)] = None
    "Stop when more calls were refused or failed: a count, or a share such as 5% (from 100 calls on, or at the end)."

    max_time: Annotated[str | None, Parameter(group=_STOPPING)] = None
    "Stop after this time, such as 90s, 15m or 6h."

    max_calls: Annotated[int | None, Parameter(group=_STOPPING)] = None
    "Stop after this many calls."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """The server, and the source of the token."""

    base_url: Annotated[str, Parameter(group=_ACCESS)] = BASE_URL
    "Bitly's API, or a sandbox."

    token_file: Annotated[str | None, Parameter(group=_ACCESS)] = None
    "A file whose first line is the token; otherwise BITLY_TOKEN holds it, or `harvester login` has kept it."

    token_command: Annotated[str | None, Parameter(group=_ACCESS)] = None
    "A command that prints the token, such as a password manager's."

    token_store: Annotated[str | None, Parameter(group=_ACCESS)] = None
    "The folder of a token that `harvester login` has kept in a file; by default one in the user's data folder."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is written to standard error, and how."""

    quiet: Annotated[bool, Parameter(group=_LOGGING, negative="")] = False
    "Say nothing but warnings and errors."

    log_format: Annotated[LogFormatName, Parameter(group=_LOGGING)] = "text"
    "How standard error is written: text, or json, one event a line (docs/logging.md)."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `harvester run` and `harvester plan`."""

    output: OutputOptions
    query: QueryOptions = field(default_factory=QueryOptions)
    list: ListOptions = field(default_factory=ListOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    stopping: StopOptions = field(default_factory=StopOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    log: LogOptions = field(default_factory=LogOptions)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TokenStoreOptions:
    """The server whose stored token is meant, and the folder of the store."""

    base_url: Annotated[str, Parameter(group=_ACCESS)] = BASE_URL
    "The API that the token is for: Bitly's, or a sandbox."

    token_store: Annotated[str | None, Parameter(group=_ACCESS)] = None
    "The folder of tokens that are kept in files; by default one in the user's data folder."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LoginOptions:
    """The options of `harvester login`."""

    with_token: Annotated[bool, Parameter(negative="")] = False
    "Keep a token that is there already (Bitly: Settings > API): read from standard input, or asked for."

    client_id: str | None = None
    "The id of your OAuth app at Bitly."

    client_secret_file: str | None = None
    "A file whose first line is the app's secret; otherwise HARVESTER_CLIENT_SECRET holds it, or it is asked for."

    port: int = 8472
    "The port of the app's redirect URI, which is http://127.0.0.1:PORT/callback; 0 for a free one."

    no_browser: Annotated[bool, Parameter(negative="")] = False
    "Only print the address to open, on any machine; the address it ends at may be pasted here."

    store: StoreName | None = None
    "Where the token is kept; by default the keyring, where there is one."

    wait: str = "5m"
    "How long the browser is waited for, such as 5m."

    kept: TokenStoreOptions = field(default_factory=TokenStoreOptions)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The options of `harvester show`."""

    query: QueryOptions = field(default_factory=QueryOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    access: AccessOptions = field(default_factory=AccessOptions)

    max_time: Annotated[str, Parameter(group=_STOPPING)] = "1m"
    "Wait no longer than this for limits, or for a server that is out."


def by_name(options: Any) -> dict[str, Any]:
    """Return the values of a group's options, also of the groups in it, by name."""
    found: dict[str, Any] = {}
    for each in fields(options):
        value = getattr(options, each.name)
        found |= by_name(value) if is_dataclass(value) else {each.name: value}
    return found


def made_of(kind: type[T], given: Mapping[str, Any]) -> T:
    """Return a group of options, with the groups in it, from values by name; others have their defaults.

    Raises:
        UsageError: an unknown name, or no value for an option without a default.
    """
    refuse_unknown(given, names_in(kind))
    return _built(kind, given)


def refuse_unknown(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise UsageError for an unknown name, with the known name nearest to it."""
    for name in given:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f": it is none of {', '.join(known)}"
            raise UsageError(f"there is no option {name}{hint}")


def names_in(kind: type) -> list[str]:
    """Return the names of a group's options, also of the groups in it."""
    return list(hints_in(kind))


def hints_in(kind: type) -> dict[str, Any]:
    """Return the type hints of a group's options, also of the groups in it, by name; without what Annotated adds."""
    found: dict[str, Any] = {}
    for each in _fields_of(kind):
        hint: Any = each.type
        if is_dataclass(hint) and isinstance(hint, type):
            found |= hints_in(hint)
        else:
            found[each.name] = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return found


def _fields_of(kind: type) -> Sequence[Field[Any]]:
    """Return a group's fields. Their types are types, not text, as long as this module does not postpone annotations.

    `typing.get_type_hints`, which evaluates text too, took a quarter of the CPU of one link from Python.
    """
    return fields(kind)


def _built(kind: type[T], given: Mapping[str, Any]) -> T:
    values = {}
    for each in _fields_of(kind):
        if is_dataclass(each.type) and isinstance(each.type, type):
            values[each.name] = _built(each.type, given)
        elif each.name in given:
            values[each.name] = given[each.name]
    required = [each.name for each in _fields_of(kind) if each.default is each.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"{', '.join(missing)}: a value is needed")
    return kind(**values)
