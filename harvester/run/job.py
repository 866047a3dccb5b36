"""A run from its job to its outcome: everything is opened here, and closed in the opposite order."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial

import orjson

from harvester.bitly.query import Query, host_of
from harvester.budget.budget import Budget
from harvester.client.client import Client
from harvester.clock import seconds_since_1970
from harvester.dataset import opening
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import PartLimits
from harvester.dataset.ledger import UNANSWERED
from harvester.dataset.manifest import WINDOW_CHECK, WindowCheck
from harvester.dataset.stream_publisher import RowSink, StdoutSink
from harvester.errors import OutputError, RunStopping
from harvester.events import Event, RunObserver, RunOutcome
from harvester.groups.activity import GroupsOfLines
from harvester.groups.journal import ListRequest, ListState
from harvester.groups.listing import list_groups
from harvester.groups.spool import Spooled
from harvester.links.batch import Feed
from harvester.links.feed import GIVEN, FileFeed
from harvester.progress import RefreshCounts, RunProgress, window_in_words
from harvester.rows.row import RowBuilder
from harvester.run.abort_rules import AbortRules
from harvester.run.assembly import (
    AccountClients,
    Budgets,
    Job,
    Window,
    open_budgets,
    open_client,
    source_of,
)
from harvester.run.committer import MANIFEST_SECONDS, STORE_SECONDS, Heartbeat
from harvester.run.harvest import Harvest, HarvestOptions
from harvester.run.idle import GATHERED, ExportAccess, IdleRows
from harvester.run.telemetry import Telemetry, window_report
from harvester.shutdown import Allowance, ShutdownSignal, StopReason, time_limited
from harvester.storage.folders import located
from harvester.storage.location import OutputLocation
from harvester.threads import in_daemon
from harvester.transport.direct import note_fallback
from harvester.worklist.elsewhere import Bound, Elsewhere
from harvester.worklist.preflight import Preflight, spool_paths
from harvester.worklist.refresh import refresh_of

_KNOWN_GOOD = "known_good"
"""The ledger's fact with known-good links: a list may name no link that was answered in an earlier run."""
_INVALID, _SPENT = "invalid_reported", "month_reported"
"""The ledger's facts with the invalid lines of the last list, and with the end of the last month whose calls were used
up: --quiet reports both only when they change.
"""
_GROWING_JOURNAL_BYTES = 64 * 1024 * 1024
_STDOUT_COMMIT_SECONDS = 0.05
"""Short, so that in a pipe `head` ends the run before many calls are made whose rows nobody reads."""


async def run(job: Job, shutdown: ShutdownSignal, observer: RunObserver) -> RunOutcome:
    """Harvest a list.

    Opened in this order, and closed in the opposite one: location, dataset (its lock, journal and ledger), budgets and
    connection slots, client. The dataset's lock comes before anything that another run could disturb; the budgets
    before the count of the list, because the month decides whether it is counted at all.

    Raises:
        UsageError, DatasetBusy, OutputError: as `opening.open_dataset` and `Preflight` say.
        ConnectionsBusy: other processes use all of this machine's connections.
    """
    with (
        located(job.out, job.work_dir) as location,
        ExitStack() as stack,
        time_limited(job.max_time_seconds, shutdown),
    ):
        sink = job.sink or StdoutSink()
        try:
            dataset = await _open_dataset(job, location, sink, stack, shutdown, observer)
            async with AsyncExitStack() as opened:
                spools = opened.enter_context(spool_paths(location.private, max(len(job.sources), 1)))
                opening_budgets = open_budgets(job, dataset.query.facet, location.private, observer, shutdown)
                budgets = await opened.enter_async_context(opening_budgets)
                if job.pool is None:
                    await budgets.slots.join()
                names, reader = _names_of(job), lambda: sink.awaits_reader
                history = dataset.ledger.history()  # an entry that cannot be read is no reason to stop
                telemetry = Telemetry(budgets.facet, dataset.invocation, names, job.command, reader, history)
                if dataset.ledger.refreshing:
                    telemetry.progress.refresh = RefreshCounts(job.refresh.seconds if job.refresh else None)
                seconds = STORE_SECONDS if location.in_store else MANIFEST_SECONDS
                heartbeat = Heartbeat(dataset, telemetry, job.exporter, seconds)
                async with heartbeat.before_harvest(shutdown):
                    job, asked = await _list_groups(job, dataset, budgets, shutdown, observer)
                    query = dataset.rows.query
                    refresh = refresh_of(job, query.unit_reference, query.units)
                    preflight = Preflight(shutdown, observer, job, refresh)
                    plan_month = partial(_plan_month, job, dataset, budgets, shutdown)
                    feed, calls = await _check_list(job, dataset, budgets.facet, spools, preflight, plan_month)
                if job.refresh and preflight.found:
                    telemetry.progress.refresh = preflight.found.ages(job.refresh.seconds)
                return await _harvest(
                    job, dataset, budgets, feed, shutdown, observer, heartbeat, to_make=calls, asked=asked
                )
        except RunStopping:
            return RunOutcome(complete=False, stop=shutdown.stop, status=RunProgress())
        finally:
            if job.feed is not None:
                await job.feed.close()


async def _open_dataset(
    job: Job,
    location: OutputLocation,
    sink: RowSink,
    stack: ExitStack,
    shutdown: ShutdownSignal,
    observer: RunObserver,
) -> Dataset:
    # A journal that is not made into a part, but copied on in order, is ended at a size of its own.
    limits = job.parts if location.in_parts else PartLimits(job.parts.rows, _GROWING_JOURNAL_BYTES)
    ending = threading.Event()
    dataset = opening.open_dataset(
        location,
        job.query,
        limits,
        observer.warn,
        server=host_of(job.client_settings.base_url),
        pin_reference=job.pin_reference,
        refreshing=job.refresh is not None,
        asked=job.part_format,
        sink=sink,
        ending=ending,
    )
    opened = await enter_in_thread(stack, dataset, shutdown, ending)
    if job.copy is not None:
        opened.copy_journal(job.copy.append)
        opened.rows = RowBuilder(opened.query, job.copy.run_id)
    if job.cluster is not None:
        await job.cluster.adopt(opened, shutdown, observer)
    return opened


async def enter_in_thread(
    stack: ExitStack, dataset: AbstractContextManager[Dataset], shutdown: ShutdownSignal, ending: threading.Event
) -> Dataset:
    """Enter a dataset in a thread, so that signals are heard while an object store does not answer.

    ending: set here once the run is ending; the store is then given up.
    """

    async def watch_shutdown() -> None:
        await shutdown.wait()
        ending.set()

    watching = asyncio.create_task(watch_shutdown())
    entering = asyncio.ensure_future(in_daemon(partial(stack.enter_context, dataset)))
    try:
        return await asyncio.shield(entering)
    finally:
        # Also when cancelled: the thread would otherwise open a dataset that nobody closes.
        await asyncio.wait([entering])
        watching.cancel()


def _names_of(job: Job) -> list[str]:
    """Return the lists' names for the manifest."""
    if job.listed is not None:
        return [job.listed.words]
    return [GIVEN] if job.feed else [source.name for source in job.sources]


async def _list_groups(
    job: Job, dataset: Dataset, budgets: Budgets, shutdown: ShutdownSignal, observer: RunObserver
) -> tuple[Job, int]:
    """Return the job with the links of its groups as its list, if it has groups, and the requests that this took."""
    if job.listed is None:
        return job, 0
    listed, private = job.listed, dataset.location.private
    clients = AccountClients(job, budgets, shutdown, dataset.record_attempts)

    async def read(folder: str, outputs: Sequence[str] = ()) -> Spooled:
        return await list_groups(listed, folder, clients, shutdown, observer, outputs)

    found = await (job.shared.found(private, listed, read, shutdown) if job.shared else read(private))
    if warning := _outdated(job, listed, found.state, dataset.rows.query.unit_reference):
        observer.warn(warning)
    dataset.count("helper", clients.sent)
    return replace(job, sources=[source_of(job, listed, found)]), clients.sent


def _outdated(job: Job, listed: ListRequest, state: ListState, now: str) -> str | None:
    """Return a warning if a dataset goes on for so long with one list of its groups that links are missing there.

    now: the run's beginning, in UTC.
    """
    if job.refresh is None or state.ended is None:
        return None
    if seconds_since_1970(now) - seconds_since_1970(state.ended) < job.refresh.seconds:
        return None
    return (
        f"{listed.words}: the links were listed at {state.ended}, and those made since are missing. For a dataset that "
        "goes on, print the list with `harvester links`, and harvest that (docs/refresh.md)"
    )


async def _check_list(
    job: Job,
    dataset: Dataset,
    budget: Budget,
    spools: list[str],
    preflight: Preflight,
    plan_month: Callable[[], Awaitable[int | None]],
) -> tuple[Feed, int | None]:
    """Return the list to harvest, and how many calls it needs, None if it was not counted. Raises as `Preflight`."""
    if job.feed is None:
        sources, calls = await preflight.check_sources(job.sources, dataset, budget, spools, plan_month)
        return FileFeed(sources), calls
    await preflight.check_feed(job.feed)
    return job.feed, None


async def _plan_month(job: Job, dataset: Dataset, budgets: Budgets, shutdown: ShutdownSignal) -> int | None:
    """Return the calls a month that Bitly reports for the account's plan; None if it does not."""
    opening_client = open_client(job, budgets, dataset.rows.query, shutdown, dataset.record_attempts)
    async with opening_client as (client, discovery):
        try:
            return await discovery.plan_month()
        finally:
            dataset.count("helper", client.sender.counters.helper)


async def _harvest(
    job: Job,
    dataset: Dataset,
    budgets: Budgets,
    feed: Feed,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    heartbeat: Heartbeat,
    *,
    to_make: int | None,
    asked: int,
) -> RunOutcome:
    """Harvest a list. to_make: the calls that it needs, if known. asked: requests that it took to read it."""
    budget = budgets.facet
    rules = AbortRules(
        job.failure_limit, first_rows=dataset.totals.rows == dataset.totals.idle, next_begins=budget.month.next_begins
    )
    query = dataset.rows.query
    options = _options_for(job, query, to_make=to_make, kept=dataset.location.kept)
    _report_budget(budget, observer)
    if not job.pool:
        note_fallback(observer.note, direct=job.client_settings.direct)
    async with open_client(job, budgets, query, shutdown, dataset.record_attempts) as (client, discovery):
        client.sender.counters.helper += asked
        heartbeat.telemetry.progress.listing = asked
        harvest = Harvest(dataset, client, budget, discovery, shutdown, rules, observer, options, heartbeat)
        client.charges_tries = True
        known_good = client.known_good
        facts = dataset.ledger.facts()
        known_good.links.extend(str(facts.get(_KNOWN_GOOD, "")).split())
        if job.open_guard is not None:
            harvest.window = job.open_guard(_window_of(job, dataset, client, shutdown, observer, harvest, heartbeat))
        harvest.elsewhere = await _elsewhere_of(job, dataset, budgets, client, harvest, shutdown, observer, heartbeat)
        known_good.earlier_unanswered = int(facts.get(UNANSWERED, 0))
        harvest.progress.invalid_before = int(facts.get(_INVALID, 0))
        harvest.progress.spent_before = str(facts.get(_SPENT, ""))
        try:
            outcome = await harvest.run(feed)
            if job.cluster is not None:
                await job.cluster.clean()
            _keep_reported(dataset, outcome)
            _keep_window(dataset, heartbeat)
            return outcome
        finally:
            if known_good.in_run:
                with suppress(OutputError):  # the run's own error is the one to report
                    dataset.ledger.replace_facts(
                        {_KNOWN_GOOD: " ".join(known_good.links), UNANSWERED: known_good.unanswered}
                    )


async def _elsewhere_of(
    job: Job,
    dataset: Dataset,
    budgets: Budgets,
    client: Client,
    harvest: Harvest,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    heartbeat: Heartbeat,
) -> Elsewhere | None:
    """Return what settles calls in place of the run's workers; None if they make all of them."""
    telemetry, sender = heartbeat.telemetry, client.sender
    if job.cluster is not None:
        bound = Bound(
            dataset, harvest.progress, sender.counters, shutdown, observer,
            sender.pool.leave, harvest.wait_for_disk, harvest.in_thread, telemetry.throughput.count_verdict,
        )  # fmt: skip
        return job.cluster.begin(bound)
    if not job.skip_idle:
        return None
    access = await _access_of(job, budgets, client)
    return IdleRows(access, dataset, harvest.progress, lambda: telemetry.window_check, shutdown, observer)


def _window_of(
    job: Job,
    dataset: Dataset,
    client: Client,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    harvest: Harvest,
    heartbeat: Heartbeat,
) -> Window:
    kept = str(dataset.ledger.facts().get(WINDOW_CHECK, ""))
    known = WindowCheck(**{**(found := orjson.loads(kept)), "buckets": tuple(found["buckets"])}) if kept else None
    telemetry = heartbeat.telemetry
    telemetry.window_check = known

    def note(check: WindowCheck) -> None:
        telemetry.window_check = check

    async def keep(check: WindowCheck) -> None:
        note(check)
        if check != known:
            await harvest.in_thread(dataset.ledger.replace_facts, {WINDOW_CHECK: orjson.dumps(asdict(check)).decode()})

    private, record = dataset.location.private, dataset.record_attempts
    return Window(job, dataset.query, client, private, shutdown, observer, record, known, note, keep)


async def _access_of(job: Job, budgets: Budgets, client: Client) -> ExportAccess:
    """Return what exports of the list's links are asked for with. job: with its list."""
    named = () if job.in_group is None else (job.in_group,)
    guids = named if job.listed is None else job.listed.groups
    of_lines = None if len(guids) == 1 else await in_daemon(partial(GroupsOfLines, str(job.sources[0].path)))
    group_of = of_lines or (lambda _: guids[0])
    clock, settings, rules = budgets.clock.boot_seconds, job.client_settings, job.breaker_rules
    gathered = GATHERED if job.feed is None and all(source.rereadable for source in job.sources) else 0
    return ExportAccess(
        budgets.exports, budgets.helpers, clock, settings, rules, client, group_of, gathered, job.exports
    )


def _keep_reported(dataset: Dataset, outcome: RunOutcome) -> None:
    """Store for the next run what this one reports of bad lines and of a spent month."""
    status, stop = outcome.status, outcome.stop
    invalid, spent = status.listed.invalid, status.spent_before
    if not status.read_to_end:
        invalid = max(invalid, status.invalid_before)
    if stop and stop.reason is StopReason.MONTH_SPENT and stop.until:
        spent = stop.until
    if (invalid, spent) != (status.invalid_before, status.spent_before):
        with suppress(OutputError):  # the run has ended; at worst it is reported once more
            dataset.ledger.replace_facts({_INVALID: invalid, _SPENT: spent})


def _keep_window(dataset: Dataset, heartbeat: Heartbeat) -> None:
    """Store the check of a series' window, which its own answers have made, for the next run."""
    check = heartbeat.telemetry.window_check
    if check is not None and check.ok is not False:
        with suppress(OutputError):  # the next run's answers are a check, too
            dataset.ledger.replace_facts({WINDOW_CHECK: orjson.dumps(asdict(check)).decode()})


def _report_budget(budget: Budget, observer: RunObserver) -> None:
    windows = budget.windows()
    text = f"limits of account {budget.account.name}: {', '.join(map(window_in_words, windows))}"
    reports = [window_report(state) for state in windows]
    observer.note(text, Event.BUDGET_DESCRIBED, account=budget.account.name, windows=reports)


def _options_for(job: Job, query: Query, *, to_make: int | None, kept: bool) -> HarvestOptions:
    """Return how to harvest. query: what is asked for.

    kept: False for rows on standard output, which leave no failures to make again.
    """
    return HarvestOptions(
        workers=job.client_settings.connections,
        allowance=job.allowance or Allowance(job.max_calls),
        to_make=to_make,
        retry_failed=job.retry_failed and kept,
        retry_refused=job.retry_refused and kept,
        refresh=refresh_of(job, query.unit_reference, query.units),
        allow_empty=job.allow_empty,
        commit_seconds=job.commit_seconds if kept else _STDOUT_COMMIT_SECONDS,
        report_seconds=job.report_seconds,
        invalid_limit=job.invalid_limit,
    )
