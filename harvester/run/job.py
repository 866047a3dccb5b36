"""A run from its job to its outcome: everything is opened here, and closed in the opposite order."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from harvester.bitly.query import host_of
from harvester.budget.budget import Budget
from harvester.dataset import opening
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import PartLimits
from harvester.dataset.ledger import UNANSWERED
from harvester.dataset.stream_publisher import QueueSink, RowSink, StdoutSink
from harvester.errors import OutputError, RunStopping, UsageError, as_output_error
from harvester.events import Event, RunObserver, RunOutcome
from harvester.groups.journal import ListRequest
from harvester.groups.listing import AccountReader, stopped
from harvester.groups.spool import COLUMN, Spooled, read_before, spooled
from harvester.links.batch import Feed
from harvester.links.columns import ListFormat
from harvester.links.feed import GIVEN, FileFeed
from harvester.links.files import Source
from harvester.progress import RunProgress, WindowState
from harvester.run.abort_rules import AbortRules
from harvester.run.assembly import AccountClients, Budgets, Job, open_budgets, open_client
from harvester.run.committer import MANIFEST_SECONDS, STORE_SECONDS, Heartbeat
from harvester.run.harvest import Harvest, HarvestOptions
from harvester.run.preflight import Preflight, spool_paths
from harvester.run.telemetry import Telemetry, window_report
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage.filesystem import make_folder, remove_empty
from harvester.storage.folders import located
from harvester.storage.location import OutputLocation
from harvester.storage.watch import FolderLock
from harvester.threads import in_daemon

_KNOWN_GOOD = "known_good"
"""The ledger's fact with known-good links: a list may name no link that was answered in an earlier run."""
_INVALID, _SPENT = "invalid_reported", "month_reported"
"""The ledger's facts with the invalid lines of the last list, and with the end of the last month whose calls were used
up: --quiet reports both only when they change.
"""
_GROWING_JOURNAL_BYTES = 64 * 1024 * 1024
_STDOUT_COMMIT_SECONDS = 0.05
"""Short, so that in a pipe `head` ends the run before many calls are made whose rows nobody reads."""


class PlannedPages(NamedTuple):
    """Pages of groups' links. read: for the plan, now or before; again: by the run, as its output keeps none."""

    read: int
    again: int


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
        _time_limited(job.max_time_seconds, shutdown),
    ):
        sink = job.sink or StdoutSink()
        dataset = await _open_dataset(job, location, sink, stack, shutdown, observer)
        try:
            async with AsyncExitStack() as opened:
                spools = opened.enter_context(spool_paths(location.private, max(len(job.sources), 1)))
                opening_budgets = open_budgets(job, dataset.query.facet, location.private, observer, shutdown)
                budgets = await opened.enter_async_context(opening_budgets)
                await budgets.slots.join()
                names, reader = _names_of(job), lambda: sink.awaits_reader
                telemetry = Telemetry(budgets.facet, dataset.invocation, names, job.command, reader)
                seconds = STORE_SECONDS if location.in_store else MANIFEST_SECONDS
                heartbeat = Heartbeat(dataset, telemetry, job.exporter, seconds)
                async with heartbeat.before_harvest(shutdown):
                    job, asked = await _list_groups(job, dataset, budgets, shutdown, observer)
                    feed, calls = await _check_list(job, dataset, budgets.facet, spools, shutdown, observer)
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
        asked=job.part_format,
        sink=sink,
        ending=ending,
    )
    return await enter_in_thread(stack, dataset, shutdown, ending)


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


@contextmanager
def _time_limited(seconds: float | None, shutdown: ShutdownSignal) -> Iterator[None]:
    if seconds is None:
        yield
        return
    stop = Stop(StopReason.MAX_TIME, f"{seconds:g} s have passed (--max-time)")
    timer = asyncio.get_running_loop().call_later(seconds, shutdown.request, stop)
    try:
        yield
    finally:
        timer.cancel()


def preflight_of(job: Job, shutdown: ShutdownSignal, observer: RunObserver) -> Preflight:
    """Return the check of a job's list."""
    return Preflight(
        shutdown,
        observer,
        token=job.token,
        max_calls=job.max_calls,
        retry_failed=job.retry_failed,
        retry_refused=job.retry_refused,
        strict=job.strict,
    )


def _names_of(job: Job) -> list[str]:
    """Return the lists' names for the manifest."""
    if job.listed is not None:
        return [job.listed.words]
    return [GIVEN] if job.feed else [source.name for source in job.sources]


async def list_groups(
    listed: ListRequest, folder: str, clients: AccountClients, shutdown: ShutdownSignal, observer: RunObserver
) -> Spooled:
    """Read the links of groups into a folder, unless they were read before. Raises as `spooled`."""
    reader = AccountReader(clients.open, clients.next_begins, shutdown, observer)
    found = await spooled(folder, listed, reader.complete)
    state = found.state
    when = "read now" if clients.sent else f"read before, until {state.ended}"
    text = f"{listed.words}: {state.words}, {when}"
    observer.note(text, Event.LIST_READING, lines=state.links)
    return found


def source_of(listed: ListRequest, found: Spooled) -> Source:
    """Return the spooled links of groups as a list."""
    return Source(listed.words, found.path, ListFormat.NDJSON, COLUMN)


async def _list_groups(
    job: Job, dataset: Dataset, budgets: Budgets, shutdown: ShutdownSignal, observer: RunObserver
) -> tuple[Job, int]:
    """Return the job with the links of its groups as its list, if it has groups, and the requests that this took."""
    if job.listed is None:
        return job, 0
    clients = AccountClients(job, budgets, shutdown, dataset.record_attempts)
    found = await list_groups(job.listed, dataset.location.private, clients, shutdown, observer)
    dataset.count("helper", clients.sent)
    return replace(job, sources=[source_of(job.listed, found)]), clients.sent


async def list_for_plan(
    job: Job,
    listed: ListRequest,
    private: str | None,
    scratch: str,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    *,
    asks: bool,
) -> tuple[Job, PlannedPages]:
    """Return the job with the links of its groups as its list, and their pages, without harvesting.

    private: where the run looks for them, and where they are read; None for an output that keeps nothing: they are
    then read into the scratch folder. asks: whether Bitly may be asked for pages that were not read yet.

    Raises:
        UsageError: it may not. DatasetBusy: a run has the folder open. RunStopped: they could not be read.
    """
    found = read_before(private, listed) if private else None
    if found is None and not asks:
        raise UsageError(
            f"{listed.words}: its links were not read yet, which takes a token and a request for every hundred of them"
        )
    if found is None:
        async with AsyncExitStack() as stack:
            if private:
                with as_output_error(private):
                    stack.callback(remove_empty, make_folder(private))
                    stack.enter_context(FolderLock(private, job.out))
            opening_budgets = open_budgets(job, job.query.facet, private or scratch, observer, shutdown)
            budgets = await stack.enter_async_context(opening_budgets)
            await budgets.slots.join()
            clients = AccountClients(job, budgets, shutdown)
            try:
                found = await list_groups(listed, private or scratch, clients, shutdown, observer)
            except RunStopping as error:
                raise stopped(shutdown) from error
    pages = found.state.pages
    return replace(job, sources=[source_of(listed, found)]), PlannedPages(pages, 0 if private else pages)


async def _check_list(
    job: Job, dataset: Dataset, budget: Budget, spools: list[str], shutdown: ShutdownSignal, observer: RunObserver
) -> tuple[Feed, int | None]:
    """Return the list to harvest, and how many calls it needs, None if it was not counted. Raises as `Preflight`."""
    preflight = preflight_of(job, shutdown, observer)
    if job.feed is None:
        sources, calls = await preflight.check_sources(job.sources, dataset, budget, spools)
        return FileFeed(sources), calls
    await preflight.check_feed(job.feed)
    return job.feed, None


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
    rules = AbortRules(job.failure_limit, first_rows=dataset.totals.rows == 0, next_begins=budget.month.next_begins)
    options = _options_for(job, to_make=to_make, kept=dataset.location.kept)
    _report_budget(budget, observer)
    async with open_client(job, budgets, dataset.query, shutdown, dataset.record_attempts) as (client, discovery):
        client.sender.counters.helper += asked
        harvest = Harvest(dataset, client, budget, discovery, shutdown, rules, observer, options, heartbeat)
        client.charges_tries = True
        known_good = client.known_good
        facts = dataset.ledger.facts()
        known_good.links.extend(str(facts.get(_KNOWN_GOOD, "")).split())
        known_good.earlier_unanswered = int(facts.get(UNANSWERED, 0))
        harvest.progress.invalid_before = int(facts.get(_INVALID, 0))
        harvest.progress.spent_before = str(facts.get(_SPENT, ""))
        try:
            outcome = await harvest.run(feed)
            _keep_reported(dataset, outcome)
            return outcome
        finally:
            if known_good.in_run:
                with suppress(OutputError):  # the run's own error is the one to report
                    dataset.ledger.replace_facts(
                        {_KNOWN_GOOD: " ".join(known_good.links), UNANSWERED: known_good.unanswered}
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


def _report_budget(budget: Budget, observer: RunObserver) -> None:
    windows = budget.windows()
    text = f"budget of account {budget.account.name}: {', '.join(map(_window_text, windows))}"
    reports = [window_report(state) for state in windows]
    observer.note(text, Event.BUDGET_DESCRIBED, account=budget.account.name, windows=reports)


_SOURCES = {"asked": "", "default": "default", "bitly": "from Bitly", "throttled": "lowered after throttling"}


def _window_text(state: WindowState) -> str:
    article = "an" if state.window == "hour" else "a"
    limit = f"{state.limit:,} {article} {state.window}" if state.limit else f"no limit {article} {state.window}"
    remarks = [_SOURCES[state.source] if state.limit else "", f"{state.used:,} used" if state.used else ""]
    remark = ", ".join(filter(None, remarks))
    return f"{limit} ({remark})" if remark else limit


def _options_for(job: Job, *, to_make: int | None, kept: bool) -> HarvestOptions:
    """Return how to harvest. kept: False for rows on standard output, which leave no failures to make again."""
    return HarvestOptions(
        workers=job.client_settings.connections,
        max_calls=job.max_calls,
        to_make=to_make,
        retry_failed=job.retry_failed and kept,
        retry_refused=job.retry_refused and kept,
        allow_empty=job.allow_empty,
        commit_seconds=job.commit_seconds if kept else _STDOUT_COMMIT_SECONDS,
        report_seconds=job.report_seconds,
        invalid_limit=job.invalid_limit,
    )


class RowStream:
    """The rows of a run in the background, each with its line feed: an asynchronous context manager and iterator.

    Leaving it early ends the run, and returns when nothing of it is left. sink: the job's.
    """

    def __init__(self, job: Job, sink: QueueSink, shutdown: ShutdownSignal, observer: RunObserver) -> None:
        self._sink = sink
        self._run = asyncio.create_task(run(job, shutdown, observer))
        self._run.add_done_callback(lambda _: sink.channel.end())

    async def __aenter__(self) -> "RowStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sink.leave()
        await _cancel_and_wait(self._run)

    def __aiter__(self) -> "RowStream":
        return self

    async def __anext__(self) -> bytes:
        rows = await self._sink.channel.take(1)
        if not rows:
            raise StopAsyncIteration
        return rows[0]

    def outcome(self) -> RunOutcome:
        """Return the outcome of a run that has ended. Raises what `run` raised."""
        return self._run.result()


async def _cancel_and_wait(run: asyncio.Task[RunOutcome]) -> None:
    """Cancel a run unless it is over, and wait for its end even if cancelled meanwhile."""
    run.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not run.done():
        try:
            await asyncio.wait({run})
        except asyncio.CancelledError as error:
            cancelled = error
    if not run.cancelled():
        run.exception()  # or asyncio would log that nobody retrieved it
    if cancelled is not None:
        raise cancelled
