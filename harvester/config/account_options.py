"""The options of the commands about an account's groups and their links, as `options` has those of the others."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from cyclopts import Group, Parameter

from harvester.bitly.groups import ArchivedName, Filters
from harvester.config.options import AccessOptions, LimitOptions, LogOptions
from harvester.config.parsing import check_choice, moment_of

LinksFormatName = Literal["ndjson", "ndjson.gz", "parquet"]


@Parameter(name="*", group=Group("Links", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Which links of which groups are listed."""

    group: str | None = None
    "Guid of the group, or several with commas (`harvester groups` lists them)."

    all_groups: Annotated[bool, Parameter(name="--all", negative="")] = False
    "The links of all groups of the account."

    archived: ArchivedName = "off"
    "Archived links: none (off), these alone (on), or these too (both)."

    created_after: str | None = None
    "Only links made after this moment, in ISO 8601, UTC unless it has an offset."

    created_before: str | None = None
    "Only links made before this moment."

    tags: str | None = None
    "Only links with one of these tags, separated by commas."

    custom: bool = True
    "Also print custom bitlinks, which Bitly counts apart."


@Parameter(name="*", group=Group("Output", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class LinksOutputOptions:
    """What is made of the links."""

    out: str | None = None
    "A folder for the table of links; without it they are printed."

    work_dir: str | None = None
    "Folder of the private state, on a local disk; by default inside --out."

    format: LinksFormatName = "ndjson.gz"
    "Format of the table's parts."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GroupsOptions:
    """The options of `harvester groups`."""

    limits: LimitOptions = field(default_factory=LimitOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    log: LogOptions = field(default_factory=LogOptions)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LinksOptions:
    """The options of `harvester links`."""

    filters: FilterOptions = field(default_factory=FilterOptions)
    output: LinksOutputOptions = field(default_factory=LinksOutputOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    access: AccessOptions = field(default_factory=AccessOptions)
    log: LogOptions = field(default_factory=LogOptions)


def filters_of(options: FilterOptions) -> Filters:
    """Return the filters of a listing. Raises UsageError for what is no moment."""
    check_choice("--archived", options.archived, get_args(ArchivedName))
    tags = tuple(tag.strip() for tag in (options.tags or "").split(",") if tag.strip())
    after = _seconds("--created-after", options.created_after)
    return Filters(options.archived, after, _seconds("--created-before", options.created_before), tags)


def _seconds(option: str, text: str | None) -> int | None:
    """Return a moment in seconds since 1970, as Bitly takes it."""
    return None if text is None else int(moment_of(option, text).timestamp())
