"""A run from its settings to its outcome: everything is opened here, in one place, and closed in the other order."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from urllib.parse import urlsplit

from harvester import client, opening
from harvester.beginning import announced
from harvester.bitly import FACETS, Query, endpoint, utc_text
from harvester.book import Book
from harvester.budget import Budget
from harvester.clocks import Clock
from harvester.errors import OutputError, Stopping, UsageError
from harvester.events import Event
from harvester.gate import Gate, GateRules
from harvester.harvesting import Harvest, Options, names_of
from harvester.intake import Given
from harvester.keeper import Metrics
from harvester.ledger import Ledger
from harvester.limits import HELPERS, Inquiry
from harvester.parts import Asked
from harvester.places import BUDGET_FILE, Form, lock_folder, state_folder, taken
from harvester.pulse import Pulse
from harvester.quota import Account, Wanted, WindowState
from harvester.report import window_report
from harvester.rows import RowMaker
from harvester.sending import Means
from harvester.slots import Slots
from harvester.sources import Source, spool
from harvester.status import Outcome, Status, Watcher
from harvester.stdout import Sink
from harvester.stopping import FailureLimit, Reason, Rules, Stop, Stopper, in_daemon
from harvester.store import PartPolicy, Store
from harvester.survey import Survey, survey
from harvester.tokens import Token

_GROWING_JOURNAL_BYTES = 64 * 1024 * 1024
_STDOUT_COMMIT_SECONDS = 0.05
"""A filter's rows go on quickly, so that `head` ends it before it has made many calls more."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run needs to know.

    pin_reference: the query's unit_reference is this moment, and was not asked for. account: whose month it is, None
    for the token's own. state_dir: where the budget is kept, None for the user's state folder. metrics: shows each
    manifest's numbers somewhere else too. given: links instead of sources. sink: who reads what goes to no file, None
    for standard output.
    """

    sources: list[Source]
    token: Token
    out: str
    work_dir: str | None
    query: Query
    pin_reference: bool
    wanted: Wanted
    asking: client.Settings
    parts: PartPolicy
    harvesting: Options
    failure_limit: FailureLimit | None = None
    max_time_seconds: float | None = None
    strict: bool = False
    gate_rules: GateRules = field(default_factory=GateRules)
    account: str | None = None
    state_dir: str | None = None
    making: Asked = field(default_factory=Asked)
    metrics: Metrics | None = None
    given: Given | None = None
    sink: Sink | None = None


_TELL_SECONDS = 10.0


async def run(job: Job, stopper: Stopper, watcher: Watcher) -> Outcome:
    """Harvest a list.

    Raises:
        UsageError, DatasetBusy, OutputError: as `opening.opened` says; UsageError also for a list that needs more calls
        than the month has where nobody said what it has, or that is not all bitlinks where strict says so.
        ConnectionsBusy: other processes use all of this machine's connections.
    """
    with (
        taken(job.out, job.work_dir) as place,
        ExitStack() as stack,
        _time_limited(job.max_time_seconds, stopper),
    ):
        hurried = threading.Event()
        dataset = opening.opened(
            place,
            job.query,
            _policy(job, place.form),
            watcher.warn,
            pin_reference=job.pin_reference,
            asked=job.making,
            sink=job.sink,
            hurried=hurried,
        )
        opened = await _entered(stack, dataset, stopper, hurried)
        spooled = [os.path.join(place.private, f"spool-{number}") for number in range(len(job.sources))]
        try:
            with budgeted(job, opened.query.facet, place.private, watcher) as budgets:
                await budgets.slots.join()
                lists = names_of(job.given or job.sources)
                async with announced(opened, budgets.facet, lists, stopper, job.metrics) as pulse:
                    sources, calls = await _look_ahead(job, opened, budgets.facet, spooled, stopper, watcher)
                return await _harvest(job, opened, budgets, sources, stopper, watcher, pulse, to_make=calls)
        except Stopping:
            return Outcome(complete=False, stop=stopper.stop, status=Status())
        finally:
            if job.given is not None:
                await job.given.close()
            for path in spooled:
                with suppress(FileNotFoundError):
                    os.unlink(path)


async def _entered(
    stack: ExitStack, dataset: AbstractContextManager[Store], stopper: Stopper, hurried: threading.Event
) -> Store:
    """Open the dataset in a thread: an object store may be out, and signals are to be heard meanwhile."""

    async def hurry() -> None:
        await stopper.wait()
        hurried.set()

    hurrying = asyncio.create_task(hurry())
    entering = asyncio.ensure_future(in_daemon(partial(stack.enter_context, dataset)))
    try:
        return await asyncio.shield(entering)
    finally:
        await asyncio.wait([entering])  # whoever is cancelled leaves nothing open behind
        hurrying.cancel()


def _policy(job: Job, form: Form) -> PartPolicy:
    return job.parts if form in {Form.FOLDER, Form.STORE} else PartPolicy(job.parts.rows, _GROWING_JOURNAL_BYTES)


@contextmanager
def _time_limited(seconds: float | None, stopper: Stopper) -> Iterator[None]:
    if seconds is None:
        yield
        return
    stop = Stop(Reason.MAX_TIME, f"{seconds:g} s have passed (--max-time)")
    timer = asyncio.get_running_loop().call_later(seconds, stopper.request, stop)
    try:
        yield
    finally:
        timer.cancel()


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budget of a facet's endpoint and that of the helper routes, and this process's part of the connections."""

    facet: Budget
    helpers: Budget
    slots: Slots
    clock: Clock


@contextmanager
def budgeted(job: Job, facet: str, private: str, watcher: Watcher) -> Iterator[Budgets]:
    """Open what all runs of this machine share. private: where it is kept if the state folder cannot be written."""
    folder = state_folder(job.state_dir, private, watcher.warn)
    server = _server_of(job.asking.base_url)
    slots = Slots(lock_folder(folder, server), job.asking.connections)
    with closing(Book(os.path.join(folder, BUDGET_FILE))) as book:
        account = Account(server, job.token.fingerprint, job.account or job.token.fingerprint)
        budget = Budget(book, account, endpoint(FACETS[facet]), job.wanted)
        helpers = Budget(book, account, HELPERS, Wanted(per_month=job.wanted.per_month, reserve=job.wanted.reserve))
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
    opened: Store,
    budgets: Budgets,
    sources: list[Source],
    stopper: Stopper,
    watcher: Watcher,
    pulse: Pulse,
    *,
    to_make: int | None,
) -> Outcome:
    clock = budgets.clock.elapsed
    rules = Rules(job.failure_limit, first_rows=opened.totals.rows == 0)
    options = replace(_options_for(job, opened.place.form), to_make=to_make)
    asking, budget = job.asking, budgets.facet
    gate = Gate(job.gate_rules, clock)
    windows = budget.windows()
    text, reports = describe(budget.account.name, windows), [window_report(state) for state in windows]
    watcher.note(text, Event.BUDGET_DESCRIBED, account=budget.account.name, windows=reports)
    means = Means(job.token, budget, gate, stopper, clock)
    async with client.opened(budgets.slots, asking, opened.query, means) as asker:
        inquiry = Inquiry(asker, budget, budgets.helpers, opened.query.facet, stopper)
        harvest = Harvest(opened, asker, budget, inquiry, stopper, rules, watcher, options, job.metrics, pulse)
        return await harvest.run(job.given or sources)


def describe(account: str, windows: Sequence[WindowState]) -> str:
    """Say in a line what is left of a budget."""
    return f"budget of account {account}: {', '.join(map(_described, windows))}"


_SOURCES = {"asked": "", "default": ", by default", "bitly": ", says Bitly", "throttled": ", since it throttled"}


def _described(state: WindowState) -> str:
    if not state.limit:
        return f"{state.window} {state.used:,} used of no limit"
    return f"{state.window} {state.used:,} of {state.limit:,} used{_SOURCES[state.source]}"


def _options_for(job: Job, form: Form) -> Options:
    if form is not Form.STDOUT:
        return job.harvesting
    return replace(job.harvesting, retry_failed=False, retry_refused=False, commit_seconds=_STDOUT_COMMIT_SECONDS)


async def _look_ahead(
    job: Job, opened: Store, budget: Budget, spooled: list[str], stopper: Stopper, watcher: Watcher
) -> tuple[list[Source], int | None]:
    """Say before the first call what the month covers of the list, and refuse what strict forbids; give it to read.

    Gives the calls that it needs too, if all of it was counted.

    spooled: where sources that can be read only once may be copied to.
    """
    sources = job.sources
    if job.given is not None:
        if job.strict:
            await _check_given(job, job.given, stopper, watcher)
        return sources, None
    if job.strict:
        pairs = zip(sources, spooled, strict=True)
        sources = [s if s.rereadable else await _spool(s, path, stopper) for s, path in pairs]
    countable = [source for source in sources if source.rereadable]
    most, left = job.harvesting.max_calls, budget.windows()[-1].left
    month_matters = left is not None and (most is None or most > left)
    if not countable or not (job.strict or month_matters):
        return sources, None
    found = await count(job, opened.ledger, opened.rows, opened.place.private, countable, stopper, watcher)
    text = f"{found.links:,} links in {found.lines:,} lines; {found.calls:,} calls to make"
    watcher.note(text, Event.LIST_COUNTED, **asdict(found))
    _refuse(job, found)
    _compare(job, found, budget, watcher)
    return sources, found.calls if len(countable) == len(sources) else None


async def _check_given(job: Job, given: Given, stopper: Stopper, watcher: Watcher) -> None:
    batches = await stopper.guard(given.all())
    found = Survey(lines=sum(batch.lines for batch in batches), invalid=sum(len(batch.invalid) for batch in batches))
    for batch in batches:
        for bad in batch.invalid:
            watcher.invalid(bad)
    _refuse(job, found)


async def _spool(source: Source, path: str, stopper: Stopper) -> Source:
    try:
        return await stopper.guard(in_daemon(partial(spool, source, path)))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}; --strict copies there what can be read only once") from error


async def count(
    job: Job, ledger: Ledger, rows: RowMaker, folder: str, sources: list[Source], stopper: Stopper, watcher: Watcher
) -> Survey:
    """Count what the list would cost, in a thread; waited for even when the run is to end: it uses the ledger.

    folder: for a scratch file.

    Raises:
        Stopping: the run is to end. InputBroken: a list cannot be read.
    """
    told = time.monotonic()

    def check(lines: int) -> None:
        nonlocal told
        if stopper.stop is not None:
            raise Stopping
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            watcher.note(
                f"reading the list through before the first call: {lines:,} lines so far",
                Event.LIST_READING,
                lines=lines,
            )

    return await in_daemon(
        lambda: survey(
            ledger,
            rows,
            sources,
            folder=folder,
            retry_failed=job.harvesting.retry_failed,
            retry_refused=job.harvesting.retry_refused,
            invalid=watcher.invalid if job.strict else lambda _: None,
            check=check,
        )
    )


def _refuse(job: Job, found: Survey) -> None:
    if job.strict and found.invalid:
        raise UsageError(f"{found.invalid} of {found.lines} lines are no bitlinks (--strict): nothing was asked")


def _compare(job: Job, found: Survey, budget: Budget, watcher: Watcher) -> None:
    """Say if the month covers only a part of the list; refuse it where that month is a guess.

    Raises:
        UsageError: nobody said what the month has, and the list needs more than the least plan's.
    """
    month, most = budget.windows()[-1], job.harvesting.max_calls
    needed = found.calls if most is None else min(found.calls, most)
    if month.left is None or needed <= month.left:
        return
    if month.source == "default" and needed > month.limit:
        raise UsageError(
            f"this list needs {needed:,} calls, and a month is taken to have {month.limit:,}, as on Bitly's free plan: "
            "nothing was asked. Set --per-month to what your plan has (the run then stops at the month's end, and the "
            "same command goes on in the next), or to 0 for no limit; or take a part of the list with --max-calls"
        )
    assert month.until is not None
    watcher.note(
        f"this month covers {month.left:,} of the {needed:,} calls ({month.used:,} of {month.limit:,} are spent): the "
        f"run will stop then, and the same command goes on from {utc_text(month.until)}",
        Event.MONTH_SHORT,
        calls=needed,
        left=month.left,
        used=month.used,
        limit=month.limit,
        until=month.until,
    )
