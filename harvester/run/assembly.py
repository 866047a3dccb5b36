"""Options become a job, and what all runs of the machine share is opened for it: budgets and connections."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from harvester.bearer import Token
from harvester.bitly.exports import EXPORTS_ENDPOINT
from harvester.bitly.facets import FACETS
from harvester.bitly.groups import LINKS_ENDPOINT
from harvester.bitly.query import Query, endpoint_of
from harvester.bitly.requests import Requests
from harvester.budget.budget import Budget
from harvester.budget.limits import Account, RequestedLimits
from harvester.client.attempt import ClientContext, record_nothing
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.client.client import Client, ClientSettings, opened
from harvester.client.limit_discovery import HELPERS, LimitDiscovery
from harvester.clock import Clock
from harvester.config.options import LimitOptions, QueryOptions, RunOptions
from harvester.config.parsing import TypedOptions, future_reference, groups_of, typed
from harvester.credentials.budget_password import budget_password
from harvester.credentials.token_sources import token_source
from harvester.dataset.journal import PartLimits
from harvester.dataset.manifest import Command, WindowCheck
from harvester.dataset.stream_publisher import RowSink
from harvester.errors import UsageError
from harvester.events import RunObserver
from harvester.fleet.address import RedisAddress, parse_address
from harvester.groups.activity import SharedExports
from harvester.groups.journal import ListRequest
from harvester.groups.spool import CARRIED, COLUMN, SharedList, Spooled
from harvester.links.batch import Shard, parse_shard
from harvester.links.columns import ListFormat, find_carried
from harvester.links.feed import IterableFeed
from harvester.links.files import Source, resolve_lists
from harvester.links.tables import columns_in
from harvester.progress import AttemptCounts
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.rows.schema import Shape
from harvester.run.abort_rules import WindowGuard
from harvester.run.committer import COMMIT_SECONDS, ManifestExporter
from harvester.run.telemetry import PROGRESS_SECONDS
from harvester.sharing.home import MACHINE, Home
from harvester.sharing.machine_home import machine_slots, open_machine_home
from harvester.shutdown import Allowance, FailureLimit, ShutdownSignal
from harvester.storage.folders import state_folder
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.http import pooled
from harvester.transport.pool import Pool
from harvester.worklist.elsewhere import Cluster, JournalCopy
from harvester.worklist.refresh import RequestedRefresh


class OpensGuard(Protocol):
    """Returns the guard of a run's window; None for a window that needs none."""

    def __call__(self, window: "Window", /) -> WindowGuard | None:
        """Called once the run's client is open."""


@dataclass(frozen=True, slots=True)
class Window:
    """What a guard works with. private: as in `open_budgets`. known: the dataset's earlier check. note: shows a check
    in the manifest. keep: also stores it in the dataset.

    record_attempts: as in ClientContext; the guard's attempts are counted among those of the run's client.
    """

    job: "Job"
    query: Query
    client: Client
    private: str | Callable[[], str]
    shutdown: ShutdownSignal
    observer: RunObserver
    record_attempts: Callable[[AttemptCounts], None]
    known: WindowCheck | None
    note: Callable[[WindowCheck], None]
    keep: Callable[[WindowCheck], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """The settings of one run.

    sources: the lists; feed: links from Python instead; listed: the links of groups instead. sink: the reader of rows
    that go to no file, None for standard output. pin_reference: the query's unit_reference is the present moment, and
    nobody asked for it, so that a dataset begun earlier keeps its own. account: the name under which the month is
    counted, None for the token's own. state_dir: where the budget is kept, None for the user's state folder. exporter:
    called with each manifest. max_calls: the most calls of this run. retry_*: make calls again that failed or were
    refused. allow_empty: a list without links is complete. commit_seconds: the longest that a verdict waits for its
    commit. report_seconds: the interval between two reports of the progress. command: what was typed, for the manifest;
    None from Python. pool: connections that several runs of this process share, None for some of its own. allowance:
    keeps count of max_calls over several runs. open_guard: see OpensGuard; None for no check of the window. outputs:
    those of the command that need the list's calls each, to compare them with the month. carry: the columns that rows
    carry of the links of groups. shared: the list of groups' links that this run has together with others of its
    command; None for one of its own. skip_idle: no call for a link of which an export of its group states that it has
    no clicks. in_group: the group of the links of the lists. refresh: None for links that are asked for once. exports:
    see SharedExports. redis: where the budget is shared with other hosts; None for this machine's own. shard: the part
    of the links to harvest, None for all. copy: another dataset's copy of the journal. cluster: makes the calls instead
    of this run.
    """

    sources: list[Source]
    token: Token
    out: str
    work_dir: str | None
    query: Query
    pin_reference: bool
    limits: RequestedLimits
    client_settings: ClientSettings
    parts: PartLimits
    max_calls: int | None = None
    retry_failed: bool = False
    retry_refused: bool = False
    allow_empty: bool = False
    commit_seconds: float = COMMIT_SECONDS
    report_seconds: float = PROGRESS_SECONDS
    failure_limit: FailureLimit | None = None
    invalid_limit: FailureLimit | None = None
    max_time_seconds: float | None = None
    strict: bool = False
    breaker_rules: BreakerRules = field(default_factory=BreakerRules)
    account: str | None = None
    state_dir: str | None = None
    part_format: RequestedPartFormat = field(default_factory=RequestedPartFormat)
    exporter: ManifestExporter | None = None
    feed: IterableFeed | None = None
    sink: RowSink | None = None
    listed: ListRequest | None = None
    carry: tuple[str, ...] = ()
    shared: SharedList | None = None
    command: Command | None = None
    pool: Pool | None = None
    allowance: Allowance | None = None
    open_guard: OpensGuard | None = None
    outputs: int = 1
    skip_idle: bool = False
    in_group: str | None = None
    refresh: RequestedRefresh | None = None
    exports: SharedExports | None = None
    copy: JournalCopy | None = None
    cluster: Cluster | None = None
    redis: RedisAddress | None = None
    shard: Shard | None = None


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets of the endpoints of the facet, of the helper routes, of groups' pages and of their exports, and this
    process's share of the connections.
    """

    facet: Budget
    helpers: Budget
    pages: Budget
    exports: Budget
    slots: ConnectionSlots
    clock: Clock


@asynccontextmanager
async def open_budgets(
    job: Job, facet: str, private: str | Callable[[], str], observer: RunObserver, shutdown: ShutdownSignal
) -> AsyncIterator[Budgets]:
    """Open what all runs that share a home share. private: where it is kept if the state folder cannot be written.

    Raises:
        RunStopping: the run is ending, and another process still holds the file. OutputError: it cannot be used.
    """
    with closing(await _open_home(job, private, observer, shutdown)) as home:
        slots = job.pool.slots if job.pool else home.slots(_server_of(job), job.client_settings.connections)
        account = Account(_server_of(job), job.token.fingerprint, job.account or job.token.fingerprint)
        budget = home.budget(account, endpoint_of(FACETS[facet]), job.limits, leads=True)
        helpers = home.budget(
            account, HELPERS, RequestedLimits(per_month=job.limits.per_month, reserve=job.limits.reserve)
        )
        pages = home.budget(account, LINKS_ENDPOINT, job.limits)
        exports = home.budget(account, EXPORTS_ENDPOINT, job.limits) if job.skip_idle else pages
        try:
            yield Budgets(budget, helpers, pages, exports, slots, home.clock)
        finally:
            if not job.pool:
                slots.leave()
            exports.close()
            pages.close()
            budget.close()


async def _open_home(
    job: Job, private: str | Callable[[], str], observer: RunObserver, shutdown: ShutdownSignal
) -> Home:
    folder = state_folder(job.state_dir, private, observer.warn)
    machine = await open_machine_home(folder, observer, shutdown)
    if job.redis is None:
        return machine
    from harvester.sharing.redis_home import open_redis_home  # noqa: PLC0415 - few runs share a budget

    try:
        return await open_redis_home(job.redis, machine.database, folder, observer, shutdown)
    except BaseException:
        machine.close()
        raise


@asynccontextmanager
async def shared_pool(job: Job, private: str, observer: RunObserver, shutdown: ShutdownSignal) -> AsyncIterator[Pool]:
    """Open the connections that several runs of this process share. private: as in `open_budgets`.

    Raises:
        ConnectionsBusy: other processes use all of them. UsageError: as `pooled`.
    """
    settings = job.client_settings
    with ExitStack() as stack:
        if job.redis is None:
            folder = state_folder(job.state_dir, private, observer.warn)
            slots = machine_slots(folder, _server_of(job), settings.connections)
        else:
            home = stack.enter_context(closing(await _open_home(job, private, observer, shutdown)))
            slots = home.slots(_server_of(job), settings.connections)
        await slots.join()
        stack.callback(slots.leave)
        async with pooled(slots, shutdown, settings.base_url, direct=settings.direct, note=observer.note) as pool:
            yield pool


def _server_of(job: Job) -> str:
    """Return host and port: each server has budgets of its own."""
    parts = urlsplit(job.client_settings.base_url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


@asynccontextmanager
async def open_client(
    job: Job,
    budgets: Budgets,
    query: Query,
    shutdown: ShutdownSignal,
    record_attempts: Callable[[AttemptCounts], None] = record_nothing,
) -> AsyncIterator[tuple[Client, LimitDiscovery]]:
    """Open a client for a query, and what learns Bitly's limits through it; close its connections at the end.

    record_attempts: as in ClientContext.

    Raises:
        UsageError: a proxy variable is not an HTTP proxy's URL.
    """
    clock = budgets.clock.boot_seconds
    breaker = CircuitBreaker(job.breaker_rules, clock)
    context = ClientContext(job.token, budgets.facet, breaker, shutdown, clock, record_attempts, budgets.helpers)
    async with opened(job.pool or budgets.slots, job.client_settings, query, context) as client:
        yield client, LimitDiscovery(client.sender, budgets.facet, budgets.helpers, query.facet, shutdown)


class AccountClients:
    """Opens clients for the routes of groups, one at a time, each counted in the budget of its endpoint.

    record_attempts: as in ClientContext; these requests are helper requests. sent: by all of these clients.
    next_begins: as in budget.Month.
    """

    def __init__(
        self,
        job: Job,
        budgets: Budgets,
        shutdown: ShutdownSignal,
        record_attempts: Callable[[AttemptCounts], None] = record_nothing,
    ) -> None:
        self.sent = 0
        self.next_begins = budgets.facet.month.next_begins
        self._job = job
        self._budgets = budgets
        self._shutdown = shutdown
        self._record_attempts = record_attempts

    @asynccontextmanager
    async def open(self, requests: Requests) -> AsyncIterator[Client]:
        """Open a client for the requests of one endpoint. Raises UsageError as `open_client`."""
        job, budgets, earlier = self._job, self._budgets, self.sent

        def record(counts: AttemptCounts) -> None:
            self.sent = earlier + counts.total + counts.helper
            self._record_attempts(AttemptCounts(helper=self.sent))

        budget = budgets.pages if requests.endpoint == LINKS_ENDPOINT else budgets.helpers
        clock = budgets.clock.boot_seconds
        breaker = CircuitBreaker(job.breaker_rules, clock)
        context = ClientContext(job.token, budget, breaker, self._shutdown, clock, record, budgets.helpers)
        async with opened(job.pool or budgets.slots, job.client_settings, requests, context) as client:
            client.work_alone()
            yield client


def build_job(
    lists: Sequence[str] | IterableFeed,
    options: RunOptions,
    warn: Callable[[str], None],
    read_token: Callable[[], str] | None = None,
    sink: RowSink | None = None,
    exporter: ManifestExporter | None = None,
) -> Job:
    """Return the job that options and lists describe.

    lists: the paths of lists, or - for standard input; or links from Python. read_token: returns the token, instead of
    the source that the options name. sink: the reader of the rows, instead of standard output. exporter: called with
    each manifest. warn: called for what is no error, such as a window that is not over.

    Raises:
        UsageError: an invalid value, a list that does not exist, no token.
    """
    values, output = typed(options), options.output
    shard = parse_shard(text) if (text := options.list.shard) is not None else None
    if warning := future_reference(values.query):
        warn(warning)
    sources, feed, listed = _input_of(lists, options)
    if feed is not None:
        feed.shard = shard
    return Job(
        sources=[source._replace(shard=shard) for source in sources],
        shard=shard,
        feed=feed,
        listed=listed,
        carry=_carried_of(listed, options) if listed else (),
        strict=options.list.strict,
        token=Token(read_token or token_source(options.access, warn)),
        query=values.query,
        pin_reference=values.pin_reference,
        out=output.out,
        work_dir=output.work_dir,
        parts=PartLimits(output.part_rows, values.part_bytes, values.part_age_seconds),
        part_format=RequestedPartFormat(output.format and Format(output.format), output.shape and Shape(output.shape)),
        exporter=exporter,
        sink=sink,
        limits=values.limits,
        account=values.account,
        state_dir=options.limits.state_dir,
        redis=_redis_of(options.limits, warn),
        client_settings=_client_settings(values, options.limits, options.query),
        breaker_rules=BreakerRules(limit_seconds=values.outage_limit_seconds),
        max_calls=options.stopping.max_calls,
        retry_failed=options.list.retry_failed,
        retry_refused=options.list.retry_refused,
        allow_empty=options.list.allow_empty or shard is not None,
        failure_limit=values.failure_limit,
        invalid_limit=values.invalid_limit,
        max_time_seconds=values.max_time_seconds,
        skip_idle=options.list.skip_idle,
        in_group=options.list.in_group,
        refresh=RequestedRefresh(values.refresh_seconds, values.prefer_active) if values.refresh_seconds else None,
    )


def _input_of(
    lists: Sequence[str] | IterableFeed, options: RunOptions
) -> tuple[list[Source], IterableFeed | None, ListRequest | None]:
    if (groups := groups_of(options.list.group, all_groups=options.list.all_groups)) is not None:
        if isinstance(lists, IterableFeed) or lists:
            raise UsageError("--group and --all-groups take the place of LINKS: leave one of them out")
        return [], None, ListRequest(groups)
    if isinstance(lists, IterableFeed):
        if options.list.carry is not None:
            raise UsageError(": links from Python have no columns; pairs of a link and a mapping do", option="--carry")
        return [], lists, None
    return resolve_lists(lists, options.list.column, options.list.list_format, options.list.carry), None, None


def _carried_of(listed: ListRequest, options: RunOptions) -> tuple[str, ...]:
    """Return the columns that rows carry of the links of groups. Raises InputBroken if there is no such column."""
    names = columns_in(options.list.carry) if options.list.carry is not None else ()
    find_carried(CARRIED, names, listed.words)
    return names


def _redis_of(limits: LimitOptions, warn: Callable[[str], None]) -> RedisAddress | None:
    if limits.budget in {None, MACHINE}:
        return None
    egress = limits.egress or os.uname().nodename
    return parse_address(str(limits.budget), limits.budget_prefix, egress, budget_password(limits, warn))


def _client_settings(values: TypedOptions, limits: LimitOptions, query: QueryOptions) -> ClientSettings:
    return ClientSettings(
        base_url=values.base_url,
        connections=limits.connections,
        attempts=limits.attempts,
        timeout_seconds=values.timeout_seconds,
        direct=limits.transport == "auto",
        max_size=query.max_size if query.complete else None,
    )


def source_of(job: Job, listed: ListRequest, found: Spooled) -> Source:
    """Return the spooled links of groups as a list."""
    return Source(listed.words, found.path, ListFormat.NDJSON, COLUMN, job.carry, job.shard)
