"""The options of the commands as dataclasses, with the names, defaults and help texts that people see.

A value is what was written: `parsing` checks it and gives it its unit. The groups are the headings of `--help`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias, TypeVar, cast, get_args

from harvester.bitly.facets import FacetName
from harvester.bitly.query import BASE_URL, MAX_CONNECTIONS
from harvester.errors import UsageError
from harvester.parameters import Group, Parameter

T = TypeVar("T")
ListFormatName = Literal["lines", "csv", "tsv", "ndjson", "parquet"]
LogFormatName = Literal["text", "json"]
StoreName = Literal["keyring", "file"]
PlanName = Literal["free", "core", "growth", "premium"]
UnitName = Literal["minute", "hour", "day", "week", "month"]
PreferName = Literal["active"]
PeriodName = Literal["day", "week", "month"]
TransportName = Literal["auto", "session"]
EngineName = Literal["local", "spark"]
FormatName = Literal["ndjson", "ndjson.gz", "ndjson.zst", "parquet"]
RowsName = Literal["metrics", "links"]
ShapeName = Literal["nested", "flat"]
TargetName = Literal[
    "json-schema", "bigquery", "spark", "duckdb", "snowflake", "athena", "clickhouse", "pyarrow", "polars"
]

_QUERY = Group("Query", sort_key=1)
_STOPPING = Group("Stopping", sort_key=4)
AUTHENTICATION = Group("Authentication", sort_key=5)

COMMON = frozenset(
    {"facet", "day", "since", "until", "units", "column", "out", "format"}
    | {"plan", "per_month", "max_time", "max_calls", "token_file", "quiet"}
)
"""The options of a run that `--help` shows, beside --config; `--help-all` shows all of them."""
TOKEN_OPTIONS = ("token_file", "token_command")
_PATHS = frozenset(
    {"out", "work_dir", "metrics_file", "state_dir", "token_file", "token_store", "client_secret_file"}
    | {"budget_password_file", "shared_dir"}
)


def home_expanded(path: str, option: str) -> str:
    """Return a path with the home folder in place of `~`, which a shell expands outside quotes only.

    Raises:
        UsageError: there is no such home folder. The path would otherwise name a folder called `~`.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UsageError(f"{path}: this home folder is not known; write the whole path, or ./ before it", option=option)
    return expanded


class PathOptions:
    """Options among which are paths: `~` is expanded, wherever a value comes from."""

    def __post_init__(self) -> None:
        for name in vars(self).keys() & _PATHS:
            value = getattr(self, name)
            if value is not None and value.startswith("~"):
                # The instance is frozen, and not in use yet.
                object.__setattr__(self, name, home_expanded(value, f"--{name.replace('_', '-')}"))


def facets_in(written: str | Iterable[str]) -> tuple[FacetName, ...]:
    """Return the facets of a text with commas, or of several such texts: each once, unchecked."""
    texts = [written] if isinstance(written, str) else written
    names = [name.strip() for text in texts for name in text.split(",")]
    return cast("tuple[FacetName, ...]", tuple(dict.fromkeys(names)))


def _as_facets(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the facets of an option's values: cyclopts would refuse one with a comma.

    Raises UsageError for an unknown one: left for later, it would get pydantic's message where that is imported.
    """
    names, known = facets_in(texts), get_args(FacetName)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{unknown[0]}: must be one of {', '.join(known)}", option="--facet")
    return names


_FACETS = Parameter(converter=_as_facets, negative="", show_default=",".join)
Facets: TypeAlias = Annotated[tuple[FacetName, ...], _FACETS]


@Parameter(name="*", group=_QUERY)
@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """The query for each link; it is fixed when the output is started, except what completes an answer."""

    def __post_init__(self) -> None:
        # The instance is frozen, and not in use yet.
        object.__setattr__(self, "facet", facets_in(self.facet))

    facet: Facets = ("referrers",)
    "Bitly's breakdown of the clicks; several with commas between them, or repeated, for a dataset each."

    day: str | None = None
    "The metrics of this UTC day alone, such as 2026-11-22, or yesterday."

    since: str | None = None
    "The first day of several periods, each with an output of its own; --until names the last."

    until: str | None = None
    "The last day, included; by default yesterday."

    every: PeriodName = "day"
    "The period of --since: day, week (from Monday) or month; those that contain its days."

    partial: Annotated[bool, Parameter(negative="")] = False
    "Accept a period that is not over, whose numbers will change."

    unit: UnitName = "day"
    "The unit that --units counts."

    units: Annotated[int, Parameter(allow_leading_hyphen=True)] = -1
    "Number of units back from --unit-reference; -1 for all that the plan keeps."

    unit_reference: str | None = None
    "End of the time window, in ISO 8601, UTC unless it has an offset; by default the moment the output is started."

    size: int = 50
    "Maximum number of metrics in an answer."

    max_size: int = 1000
    "Maximum number of metrics in a second request, which is made where an answer has as many as --size."

    complete: bool = True
    "Make that second request, as by default; --no-complete leaves such rows truncated."


@Parameter(name="*", group=Group("Output", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class OutputOptions(PathOptions):
    """Where rows are written, and in which form."""

    out: Annotated[str, Parameter(alias="-o")]
    (
        "A folder for parts, a growing file that ends in .ndjson or .jsonl, or - for standard output; {facet} and {dt} "
        "(the first UTC day of the period, else that of --unit-reference) are filled in."
    )

    work_dir: str | None = None
    "Folder of the run's private state, on a local disk; by default inside or next to --out. Filled in like --out."

    part_rows: int = 1_000_000
    "Publish a part when it has this many rows."

    part_bytes: str = "128MiB"
    "Publish a part when it has this many bytes as NDJSON, before compression."

    part_age: str = "6h"
    "Publish a part when its first row is this old."

    format: FormatName | None = None
    "Format of a folder's parts; by default ndjson.gz, which every loader reads."

    shape: ShapeName | None = None
    "What a row is: a call with the list of its metrics (nested, the default), or one metric (flat)."

    metrics_file: str | None = None
    (
        "A .prom file in the folder of Prometheus' textfile collector; it is replaced every minute. With several "
        "facets there is one for each, whose name ends in the facet."
    )


@Parameter(name="*", group=_QUERY, negative="")
@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How the list is read, and which of its calls are made again."""

    group: str | None = None
    "Harvest the links of a group instead of LINKS: its guid, or several with commas (`harvester groups` lists them)."

    all_groups: bool = False
    "Harvest the links of all groups of the account instead of LINKS."

    skip_idle: bool = False
    "Make no call for a link without clicks: an export of its group tells 200 links with one request."

    in_group: str | None = None
    "The group that the links of LINKS belong to, for --skip-idle."
    refresh: str | None = None
    "Ask again for links whose answer is this old, such as 30d, the oldest first, behind those without an answer."

    prefer: PreferName | None = None
    "With --refresh: links that are clicked before idle ones, which are due at three times the age."

    shard: str | None = None
    "Only a part of the links, such as 3/8: the third of eight, for eight jobs with the same list and an output each."

    retry_failed: bool = False
    "Also make calls again that have failed in three runs."

    retry_refused: bool = False
    "Make calls again that Bitly has refused."

    column: str | None = None
    "Column of the links in CSV, TSV, NDJSON and Parquet: its name, or its number from 1 if there is no header."

    carry: str | None = None
    (
        "Columns of the list that come along into each row as `carried`, such as campaign,channel; of a group's links "
        "id, title, tags, created_at or group."
    )

    list_format: ListFormatName | None = None
    "Format of the lists; overrides the file ending."

    max_invalid: Annotated[str | None, Parameter(group=_STOPPING)] = None
    "Fail if more lines than this are invalid: a count, or a share such as 5%; by default over 20 and over half."

    allow_empty: Annotated[bool, Parameter(group=_STOPPING)] = False
    "Treat an empty list as success (0) instead of an error (2)."

    strict: Annotated[bool, Parameter(group=_STOPPING)] = False
    "Do not start unless every line of the list is a bitlink."


@Parameter(name="*", group=Group("Limits", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class LimitOptions(PathOptions):
    """How fast, how often and how long requests are made."""

    connections: int = MAX_CONNECTIONS
    "Simultaneous connections; Bitly allows five from one IP address."

    plan: PlanName | None = None
    "Your plan at Bitly, which sets the month: free 1,000 attempts, core 5,000, growth 25,000, premium 50,000."

    per_minute: int | None = None
    "Maximum attempts in any minute; 0 for no limit. By default what Bitly reports, else 100."

    per_hour: int | None = None
    "Maximum attempts in any hour; 0 for no limit. By default what Bitly reports, else 1,000."

    per_month: int | None = None
    "Maximum attempts of the account in a calendar month (UTC), instead of the plan's; 0 for no limit."

    reserve: str = "0%"
    "Share of each limit that is left to other programs, such as 10%."

    account: str | None = None
    "Name of the account whose month is counted, the same for all its tokens; by default each token has its own month."

    state_dir: str | None = None
    "Folder of the budget, shared by all runs on this machine; by default the user's state folder."

    budget: str | None = None
    "A Redis that many hosts share in place of that folder's budget, such as redis://cache.example:6379/0."

    budget_password_file: str | None = None
    "A file whose first line is Redis' password; otherwise it comes from HARVESTER_BUDGET_PASSWORD, if that is set."

    budget_password_command: str | None = None
    "A command that prints Redis' password."

    budget_prefix: str = "harvester"
    "Prefix of the budget's keys in Redis."

    egress: str | None = None
    "Name of the IP address from which this host reaches Bitly, the same on all hosts behind it; by default its own."

    attempts: int = 5
    "Attempts before a call counts as failed."

    timeout: str = "30s"
    "Time limit of one attempt, such as 30s."

    transport: TransportName = "auto"
    "auto writes requests directly where this aiohttp was tested for it; session sends each by aiohttp's session."

    outage_limit: Annotated[str, Parameter(group=_STOPPING)] = "15m"
    "Stop after an outage of this length."


@Parameter(name="*", group=_STOPPING)
@dataclass(frozen=True, kw_only=True)
class StopOptions:
    """When a run stops before the end of its list."""

    max_failures: str | None = None
    (
        "Stop when more calls than this were refused or failed: a count, or a share such as 5% (from 100 calls on, or "
        "at the end)."
    )

    max_time: str | None = None
    "Stop after this time, such as 90s, 15m or 6h."

    max_calls: int | None = None
    "Stop after this many calls."


@Parameter(name="*", group=AUTHENTICATION)
@dataclass(frozen=True, kw_only=True)
class AccessOptions(PathOptions):
    """The server, and the source of the token."""

    base_url: str = BASE_URL
    "URL of Bitly's API, or of a sandbox."

    token_file: str | None = None
    "A file whose first line is the token; otherwise it comes from BITLY_TOKEN, or from `harvester login`."

    token_command: str | None = None
    "A command that prints the token, such as a password manager's."

    token_store: str | None = None
    "Folder where `harvester login` stores tokens in files; by default one in the user's data folder."


@Parameter(name="*", group=Group("Cluster", sort_key=7))
@dataclass(frozen=True, kw_only=True)
class ClusterOptions(PathOptions):
    """Who makes the calls."""

    engine: EngineName = "local"
    "local: this process; spark: the tasks of a Spark cluster (docs/spark.md)."

    tasks: int | None = None
    "Most tasks of the cluster at the same time; by default Spark's default parallelism."

    shared_dir: str | None = None
    "What all machines of the cluster see at the same path, or an object store's URL; by default within --out."


@Parameter(name="*", group=Group("Logging", sort_key=6), negative="")
@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is written to standard error, and how."""

    quiet: bool = False
    "Show only warnings and errors; bad lines and a spent month only when they are new."

    log_format: LogFormatName = "text"
    "Format of standard error: text, or json with one event per line (docs/logging.md)."

    on_end: str | None = None
    "A command to run at the end, without a shell: it has HARVESTER_EXIT_CODE and HARVESTER_MANIFEST (a path)."


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
    cluster: ClusterOptions = field(default_factory=ClusterOptions)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The options of `harvester show`."""

    query: QueryOptions = field(default_factory=QueryOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    access: AccessOptions = field(default_factory=AccessOptions)

    max_time: Annotated[str, Parameter(group=_STOPPING)] = "1m"
    "Wait no longer than this for a limit or an outage."


def nearest_of(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the end of an error about an unknown name: the known name nearest to it, or otherwise if none is near."""
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    nearest = get_close_matches(name.replace("-", "_"), [*known], 1)
    return f"; did you mean {nearest[0]}?" if nearest else otherwise
