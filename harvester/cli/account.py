"""Commands about an account's groups and their links, `groups` and `links`; and `normalize`, which asks nobody.

What needs aiohttp is imported within the functions: to check a file or the variables, any command, also a `status` that
is run as a probe, loads this module for its options.
"""

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from harvester.bitly.groups import ArchivedName, Filters, GroupLink, NoLink
from harvester.bitly.groups import Group as AccountGroup
from harvester.cli.exit_codes import observer_for, reported, run_until_signal
from harvester.config.options import (
    AccessOptions,
    LimitOptions,
    ListFormatName,
    LogFormatName,
    RunOptions,
)
from harvester.config.parsing import check_choice, groups_of, moment_of
from harvester.config.sources import undashed
from harvester.errors import RunStopping, UsageError
from harvester.jsonlines import as_json
from harvester.parameters import Group, Parameter, by_name, made_of
from harvester.progress import InvalidLine, counted
from harvester.reporting.reporter import Reporter
from harvester.reporting.terminal import print_out
from harvester.shutdown import OK, ShutdownSignal
from harvester.storage.location import STDOUT

if TYPE_CHECKING:
    from harvester.groups.journal import ListRequest
    from harvester.groups.listing import AccountReader
    from harvester.groups.output import LinksOutput
    from harvester.run.assembly import Job

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
    "Also print custom bitlinks, as by default; Bitly counts them apart."


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


@Parameter(name="*", group=Group("Logging", sort_key=6), negative="")
@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is written to standard error, and how. A listing is no run, so it has no --on-end."""

    quiet: bool = False
    "Show only warnings and errors."

    log_format: LogFormatName = "text"
    "Format of standard error: text, or json with one event per line (docs/logging.md)."


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


_GROUPS_DEFAULTS = GroupsOptions()
_LINKS_DEFAULTS = LinksOptions()


def groups(*, options: GroupsOptions = _GROUPS_DEFAULTS, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """List the account's groups, whose guids `links` and `run --group` take. Costs two requests of the month.

    Parameters
    ----------
    json:
        Print one JSON object per line, for a program.
    """

    async def listed(observer: Reporter, shutdown: ShutdownSignal) -> int:
        async with _reader(options, shutdown, observer) as reader:
            found, default = await reader.groups(), await reader.default_group()
        marked = [group._replace(default=group.guid == default) for group in found]
        print_out("\n".join(as_json(each._asdict()) for each in marked) if json else _table(marked))
        return OK

    return _observed(listed, options.log)


def links(*, options: LinksOptions = _LINKS_DEFAULTS, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """List the bitlinks of groups: one a line for `run -`, a row each, or (--out) as a table for a loader.

    Parameters
    ----------
    json:
        Print a row for each link as a JSON object, one per line.
    """

    out = undashed(options.output.out) if options.output.out is not None else STDOUT
    printed = out == STDOUT

    async def listed(observer: Reporter, shutdown: ShutdownSignal) -> int:
        from harvester.groups.journal import ListRequest

        guids = groups_of(options.filters.group, all_groups=options.filters.all_groups)
        if guids is None:
            raise UsageError("no group was named: --group GUID, or --all; `harvester groups` lists them")
        request = ListRequest(guids, _filters_of(options.filters))
        if printed:
            return await _print_links(options, request, shutdown, observer, json=json)
        if json:
            raise UsageError("--json prints rows, --out writes them: leave one of them out")
        return await _write_links(options, request, out, shutdown, observer)

    return _observed(listed, options.log, show_failures=printed)


def normalize(
    links: list[str],
    /,
    *,
    column: str | None = None,
    list_format: ListFormatName | None = None,
) -> int:
    """Print the bitlink of each line of LINKS, or why it has none, as JSON. Sends no request.

    Parameters
    ----------
    links:
        Lists, as for run; - for standard input.
    column:
        Column of the links in CSV, TSV, NDJSON and Parquet: its name, or its number from 1 if there is no header.
    list_format:
        Format of the lists; overrides the file ending.
    """
    from harvester.links.files import read, resolve_lists

    for batch in read(resolve_lists([undashed(link) for link in links], column, list_format)):
        found = [(each.line, each.file, each.text, each.bitlink, None) for each in batch.links]
        wrong = [(each.line, each.file, each.text, None, each.reason) for each in batch.invalid]
        for line, file, text, bitlink, reason in sorted([*found, *wrong], key=lambda each: each[0]):
            print_out(as_json({"file": file, "line": line, "text": text, "bitlink": bitlink, "reason": reason}))
    return OK


def _observed(
    work: Callable[[Reporter, ShutdownSignal], Awaitable[int]], log: LogOptions, *, show_failures: bool = False
) -> int:
    """Return the exit code of a command's work. show_failures: as in Reporter."""
    observer = observer_for(log.log_format, quiet=log.quiet, show_failures=show_failures)

    async def observed(shutdown: ShutdownSignal) -> int:
        try:
            return await work(observer, shutdown)
        except RunStopping as error:
            from harvester.groups.listing import stopped

            raise stopped(shutdown) from error

    return reported(lambda: run_until_signal(observed, observer), observer)


@asynccontextmanager
async def _reader(
    options: GroupsOptions | LinksOptions, shutdown: ShutdownSignal, observer: Reporter
) -> AsyncIterator["AccountReader"]:
    """Open budget and connections, and what reads groups through them."""
    from harvester.groups.listing import AccountReader
    from harvester.run.assembly import AccountClients, open_budgets
    from harvester.storage.scratch import scratch_folder
    from harvester.threads import in_daemon

    job = await in_daemon(partial(_job, options, observer))
    async with AsyncExitStack() as stack:

        def scratch() -> str:
            return stack.enter_context(scratch_folder(None))

        opening_budgets = open_budgets(job, job.query.facet, scratch, observer, shutdown)
        budgets = await stack.enter_async_context(opening_budgets)
        await budgets.slots.join()
        clients = AccountClients(job, budgets, shutdown)
        yield AccountReader(clients.open, clients.next_begins, shutdown, observer)


def _job(options: GroupsOptions | LinksOptions, observer: Reporter) -> "Job":
    from harvester.links.feed import IterableFeed
    from harvester.run.assembly import build_job

    chosen = made_of(RunOptions, {**by_name(options.limits), **by_name(options.access), "out": STDOUT})
    job = build_job(IterableFeed([]), chosen, observer.warn)
    # One request goes at a time: more connections would be kept from other processes for nothing.
    return replace(job, client_settings=replace(job.client_settings, connections=1))


async def _print_links(
    options: LinksOptions, request: "ListRequest", shutdown: ShutdownSignal, observer: Reporter, *, json: bool
) -> int:
    from harvester.groups.journal import PageJournal
    from harvester.groups.table import row
    from harvester.storage.scratch import DistinctKeys, scratch_folder

    custom = options.filters.custom
    with scratch_folder(options.output.work_dir) as folder, DistinctKeys(os.path.join(folder, "listed")) as distinct:

        def show(links: list[GroupLink], bad: list[NoLink]) -> None:
            _tell_invalid(bad, observer)
            if json:
                shown = [link if custom else link._replace(custom_bitlinks=[]) for link in links]
                texts = {f"{link.group} {link.id}".encode(): row(link).decode().rstrip("\n") for link in shown}
            else:
                texts = {name.encode(): name for link in links for name in link.names(custom=custom)}
            if fresh := distinct.add(list(texts)):
                print_out("\n".join(texts[key] for key in fresh))

        journal = PageJournal(os.path.join(folder, "pages"))
        try:
            journal.open(request, secrets.token_hex(6), "")
            async with _reader(options, shutdown, observer) as reader:
                await reader.complete(journal, request, show)
        finally:
            journal.close()
    observer.note(journal.state.words)
    return OK


async def _write_links(
    options: LinksOptions, request: "ListRequest", out: str, shutdown: ShutdownSignal, observer: Reporter
) -> int:
    from harvester.groups.output import opened
    from harvester.threads import in_daemon

    if not options.filters.custom:
        raise UsageError("--no-custom is for printed links: the table has a column of them")
    format_, work_dir = options.output.format, options.output.work_dir
    with opened(out, work_dir, request, format_, secrets.token_hex(6)) as output:
        state = output.journal.state
        if output.complete:
            await in_daemon(output.check)
        else:
            await _read_into(output, options, request, shutdown, observer)
            await in_daemon(output.publish)
        rows = counted(sum(part.rows for part in state.parts), "row")
        where = f"{rows} in {counted(len(state.parts), 'part')}"
        observer.note(f"done: {state.words}, {where}, {state.bad:,} invalid")
    return OK


async def _read_into(
    output: "LinksOutput", options: LinksOptions, request: "ListRequest", shutdown: ShutdownSignal, observer: Reporter
) -> None:
    """Read the pages that an output lacks; its manifest says how far that is."""
    output.write_manifest()
    try:
        async with _reader(options, shutdown, observer) as reader:
            await reader.complete(output.journal, request, lambda _, bad: _tell_invalid(bad, observer))
    finally:
        output.write_manifest(shutdown.stop)


def _tell_invalid(bad: list[NoLink], observer: Reporter) -> None:
    for each in bad:
        observer.invalid(InvalidLine(each.text, each.reason, "group", 0))


def _table(found: list[AccountGroup]) -> str:
    head = ("guid", "name", "organization", "role", "")
    rows = [(each.guid, each.name, each.organization or "", each.role or "", _remark(each)) for each in found]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in [head, *rows])


def _remark(group: AccountGroup) -> str:
    remarks = ["default"] * group.default + ["not active"] * (group.active is False)
    return ", ".join(remarks)


def _filters_of(options: FilterOptions) -> Filters:
    """Return the filters of a listing. Raises UsageError for what is no moment, and for an end before its beginning."""
    check_choice("--archived", options.archived, get_args(ArchivedName))
    tags = tuple(tag.strip() for tag in (options.tags or "").split(",") if tag.strip())
    after = _seconds("--created-after", options.created_after)
    before = _seconds("--created-before", options.created_before)
    if after is not None and before is not None and before < after:
        raise UsageError(f"{options.created_before}: is earlier than --created-after", option="--created-before")
    return Filters(options.archived, after, before, tags)


def _seconds(option: str, text: str | None) -> int | None:
    """Return a moment in seconds since 1970, as Bitly takes it."""
    return None if text is None else int(moment_of(option, text).timestamp())
