"""A run from its settings to its outcome: everything is opened here, in one place, and closed in the other order."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from harvester.bitly.facets import FACETS
from harvester.bitly.query import endpoint_of
from harvester.budget.budget import Budget
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, RequestedLimits
from harvester.client import client
from harvester.client.attempt import ClientContext
from harvester.client.circuit_breaker import CircuitBreaker
from harvester.client.connection_slots import ConnectionSlots
from harvester.client.limit_discovery import HELPERS, LimitDiscovery
from harvester.clock import Clock
from harvester.dataset import opening
from harvester.dataset.dataset import Dataset, PartLimits
from harvester.dataset.stream_publisher import QueueSink
from harvester.errors import RunStopping
from harvester.events import Event, RunObserver
from harvester.links.files import Source
from harvester.progress import RunOutcome, RunProgress, WindowState
from harvester.run.abort_rules import AbortRules
from harvester.run.assembly import Job
from harvester.run.committer import Heartbeat
from harvester.run.harvest import Harvest, HarvestOptions, names_of
from harvester.run.preflight import _look_ahead
from harvester.run.telemetry import Telemetry, window_report
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage.location import BUDGET_FILE, OutputKind, located, lock_folder, state_folder
from harvester.threads import in_daemon

_GROWING_JOURNAL_BYTES = 64 * 1024 * 1024
_STDOUT_COMMIT_SECONDS = 0.05
"""A filter's rows go on quickly, so that `head` ends it before it has made many calls more."""


async def run(job: Job, shutdown: ShutdownSignal, observer: RunObserver) -> RunOutcome:
    """Harvest a list.

    Raises:
        UsageError, DatasetBusy, OutputError: as `opening.opened` says; UsageError also for a list that needs more calls
        than the month has where nobody said what it has, or that is not all bitlinks where strict says so.
        ConnectionsBusy: other processes use all of this machine's connections.
    """
    with (
        located(job.out, job.work_dir) as place,
        ExitStack() as stack,
        _time_limited(job.max_time_seconds, shutdown),
    ):
        hurried = threading.Event()
        dataset = opening.open_dataset(
            place,
            job.query,
            _policy(job, place.form),
            observer.warn,
            pin_reference=job.pin_reference,
            asked=job.making,
            sink=job.sink,
            hurried=hurried,
        )
        opened = await _entered(stack, dataset, shutdown, hurried)
        spooled = [os.path.join(place.private, f"spool-{number}") for number in range(len(job.sources))]
        try:
            with open_budgets(job, opened.query.facet, place.private, observer) as budgets:
                await budgets.slots.join()
                lists = names_of(job.given or job.sources)
                heartbeat = Heartbeat(opened, Telemetry(budgets.facet, opened.invocation, lists), job.metrics)
                async with heartbeat.before_harvest(shutdown):
                    sources, calls = await _look_ahead(job, opened, budgets.facet, spooled, shutdown, observer)
                return await _harvest(job, opened, budgets, sources, shutdown, observer, heartbeat, to_make=calls)
        except RunStopping:
            return RunOutcome(complete=False, stop=shutdown.stop, status=RunProgress())
        finally:
            if job.given is not None:
                await job.given.close()
            for path in spooled:
                with suppress(FileNotFoundError):
                    os.unlink(path)


async def _entered(
    stack: ExitStack, dataset: AbstractContextManager[Dataset], shutdown: ShutdownSignal, hurried: threading.Event
) -> Dataset:
    """Open the dataset in a thread: an object store may be out, and signals are to be heard meanwhile."""

    async def hurry() -> None:
        await shutdown.wait()
        hurried.set()

    hurrying = asyncio.create_task(hurry())
    entering = asyncio.ensure_future(in_daemon(partial(stack.enter_context, dataset)))
    try:
        return await asyncio.shield(entering)
    finally:
        await asyncio.wait([entering])  # whoever is cancelled leaves nothing open behind
        hurrying.cancel()


def _policy(job: Job, form: OutputKind) -> PartLimits:
    return (
        job.parts
        if form in {OutputKind.FOLDER, OutputKind.STORE}
        else PartLimits(job.parts.rows, _GROWING_JOURNAL_BYTES)
    )


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


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budget of a facet's endpoint and that of the helper routes, and this process's part of the connections."""

    facet: Budget
    helpers: Budget
    slots: ConnectionSlots
    clock: Clock


@contextmanager
def open_budgets(job: Job, facet: str, private: str, observer: RunObserver) -> Iterator[Budgets]:
    """Open what all runs of this machine share. private: where it is kept if the state folder cannot be written."""
    folder = state_folder(job.state_dir, private, observer.warn)
    server = _server_of(job.asking.base_url)
    slots = ConnectionSlots(lock_folder(folder, server), job.asking.connections)
    with closing(BudgetDatabase(os.path.join(folder, BUDGET_FILE))) as book:
        account = Account(server, job.token.fingerprint, job.account or job.token.fingerprint)
        budget = Budget(book, account, endpoint_of(FACETS[facet]), job.wanted)
        helpers = Budget(
            book, account, HELPERS, RequestedLimits(per_month=job.wanted.per_month, reserve=job.wanted.reserve)
        )
        book.set_fast(fast=budget.fast)
        try:
            yield Budgets(budget, helpers, slots, book.clock)
        finally:
            slots.leave()
            budget.close()


def _server_of(base_url: str) -> str:
    """Name the server: host and port, which a budget belongs to."""
    parts = urlsplit(base_url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


async def _harvest(
    job: Job,
    opened: Dataset,
    budgets: Budgets,
    sources: list[Source],
    shutdown: ShutdownSignal,
    observer: RunObserver,
    heartbeat: Heartbeat,
    *,
    to_make: int | None,
) -> RunOutcome:
    clock = budgets.clock.boot_seconds
    rules = AbortRules(job.failure_limit, first_rows=opened.totals.rows == 0)
    options = replace(_options_for(job, opened.place.form), to_make=to_make)
    asking, budget = job.asking, budgets.facet
    gate = CircuitBreaker(job.gate_rules, clock)
    windows = budget.windows()
    text, reports = describe(budget.account.name, windows), [window_report(state) for state in windows]
    observer.note(text, Event.BUDGET_DESCRIBED, account=budget.account.name, windows=reports)
    means = ClientContext(job.token, budget, gate, shutdown, clock)
    async with client.opened(budgets.slots, asking, opened.query, means) as asker:
        inquiry = LimitDiscovery(asker, budget, budgets.helpers, opened.query.facet, shutdown)
        harvest = Harvest(opened, asker, budget, inquiry, shutdown, rules, observer, options, heartbeat)
        return await harvest.run(job.given or sources)


def describe(account: str, windows: Sequence[WindowState]) -> str:
    """Say in a line what is left of a budget."""
    return f"budget of account {account}: {', '.join(map(_described, windows))}"


_SOURCES = {"asked": "", "default": ", by default", "bitly": ", says Bitly", "throttled": ", since it throttled"}


def _described(state: WindowState) -> str:
    if not state.limit:
        return f"{state.window} {state.used:,} used of no limit"
    return f"{state.window} {state.used:,} of {state.limit:,} used{_SOURCES[state.source]}"


def _options_for(job: Job, form: OutputKind) -> HarvestOptions:
    if form is not OutputKind.STDOUT:
        return job.harvesting
    return replace(job.harvesting, retry_failed=False, retry_refused=False, commit_seconds=_STDOUT_COMMIT_SECONDS)


class RowStream:
    """An asynchronous context manager and iterator of a run's rows, each with its line feed.

    Leaving it early leaves nothing running. job: its sink is sink.
    """

    def __init__(self, job: Job, sink: QueueSink, shutdown: ShutdownSignal, observer: RunObserver) -> None:
        self._sink = sink
        self._run = asyncio.create_task(run(job, shutdown, observer))
        self._run.add_done_callback(lambda _: sink.channel.end())

    async def __aenter__(self) -> "RowStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sink.leave()
        await _ended(self._run)

    def __aiter__(self) -> "RowStream":
        return self

    async def __anext__(self) -> bytes:
        taken = await self._sink.channel.take(1)
        if not taken:
            raise StopAsyncIteration
        return taken[0]

    def outcome(self) -> RunOutcome:
        """Say how the run ended, once it has. Raises what `job.run` does."""
        return self._run.result()


async def _ended(run: asyncio.Task[RunOutcome]) -> None:
    """Cancel a run that is not over, and see it to its end even if that is cancelled too."""
    run.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not run.done():
        try:
            await asyncio.wait({run})
        except asyncio.CancelledError as error:
            cancelled = error
    if not run.cancelled():
        run.exception()  # seen
    if cancelled is not None:
        raise cancelled
