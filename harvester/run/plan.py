"""`harvester plan`: what a run would cost and when it would end, without a metrics call."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from typing import NamedTuple

from harvester.bitly.account_limits import PlanLimit
from harvester.bitly.query import host_of, larger
from harvester.budget.budget import Budget
from harvester.budget.forecast import (
    Forecast,
    Start,
    SteadyState,
    Suggestion,
    beginning,
    forecast,
    steady_state,
    suggestions_for,
)
from harvester.budget.limits import PLAN_MONTHS, Limits
from harvester.dataset import opening
from harvester.dataset.opening import DatasetSnapshot
from harvester.errors import ConnectionsBusy, RunStopping, UsageError, as_output_error
from harvester.events import RunObserver
from harvester.groups.journal import ListRequest
from harvester.groups.listing import list_groups, stopped
from harvester.groups.spool import read_before
from harvester.progress import RefreshCounts, WindowState
from harvester.run.abort_rules import too_many_invalid
from harvester.run.assembly import AccountClients, Budgets, Job, open_budgets, open_client, source_of
from harvester.run.preflight import ListCount, ListSurvey, Preflight, month_must_be_named
from harvester.run.refresh import refresh_of
from harvester.shutdown import ShutdownSignal
from harvester.storage.filesystem import make_folder, remove_empty
from harvester.storage.folders import resolve
from harvester.storage.location import STDOUT
from harvester.storage.scratch import scratch_folder
from harvester.storage.watch import FolderLock

_ENOUGH_CALLS = 100
"""A dataset with fewer calls than this says nothing about the attempts that a call takes."""

COMPARED_PLANS = {month: plan.capitalize() for plan, month in PLAN_MONTHS.items()}
"""Bitly's plans by their calls a month, which the table compares."""
_SIZES = (1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Duration:
    """How long a number of links takes with one of Bitly's plans, from now on, with its month still unused.

    For this list, with what has been used of the present month.
    ends: None if that is more than 200 years away. months: calendar months in which the command has to be run.
    """

    links: int
    plan: str
    per_month: int
    ends: datetime | None
    months: int


class PlannedPages(NamedTuple):
    """Pages of groups' links. read: for the plan, now or before; again: by the run, as its output keeps none."""

    read: int
    again: int


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """What --refresh comes to. ages: the links by the age of their answers. days: the age at which one is due.

    never: requests for links without an answer; answered: when all have one, None if that is too far away. steady: the
    state that then follows.
    """

    ages: RefreshCounts
    days: float
    never: int
    answered: datetime | None
    steady: SteadyState


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost and the end of a run that has not begun.

    found: the list, counted. survey: what it looks like. pages: of groups' links that were read for it, None without
    groups. attempts: for its calls, with as many retries as this dataset needed so far. account, windows: None and
    empty without a token. plan_limits: what Bitly reports of the account's plan, only shown. now: the moment from which
    the forecast counts, UTC. durations: those of this list and of others, for each of Bitly's plans. completed_from:
    the metrics of an answer from which on its link takes a second request; None if none does. month_used: calls of the
    present month. refused: the run would ask for the account's plan before its first call. facets, periods: those that
    each link is asked for; found counts the calls of all.
    refresh: None without --refresh.
    """

    found: ListCount
    survey: ListSurvey
    pages: PlannedPages | None
    attempts: int
    limits: Limits
    account: str | None
    windows: list[WindowState]
    forecast: Forecast
    suggestions: list[Suggestion]
    plan_limits: list[PlanLimit]
    now: datetime
    durations: list[Duration]
    completed_from: int | None
    month_used: int
    refused: bool
    facets: int = 1
    periods: int = 1
    refresh: RefreshPlan | None = None

    @property
    def wanted(self) -> int:
        """The calls that all outputs of the command need in all, those already made among them."""
        return self.found.links * self.facets * self.periods


async def make(job: Job, observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Count a job's list, read its budget, fetch Bitly's limits, and forecast the end of a run.

    token_known: False without a token; then neither the account's budget nor Bitly's limits are known. offline: send
    no helper request.

    Raises:
        UsageError, OutputError: as `job.run`. RunStopping: Bitly reports that the month is spent.
    """
    shutdown = ShutdownSignal()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch_folder(None))
        location = None if job.out == STDOUT else resolve(job.out, job.work_dir)
        server = host_of(job.client_settings.base_url)
        peeking = opening.peek(location, job.query, server=server, pin_reference=job.pin_reference)
        snapshot = stack.enter_context(peeking)
        pages = None
        if job.listed is not None:
            private, asks = location.private if location else None, token_known and not offline
            job, pages = await list_for_plan(job, job.listed, private, folder, shutdown, observer, asks=asks)
        preflight = Preflight(shutdown, observer, job, refresh_of(job, job.query))
        survey = ListSurvey()
        found = await preflight.count(snapshot.ledger, snapshot.rows, folder, job.sources, survey)
        _warn_of_invalid(job, found, observer)
        if not token_known:
            return _plan(job, found, survey, snapshot, None, [], pages)
        private = location.private if location and location.begun else folder
        budgets = await stack.enter_async_context(open_budgets(job, snapshot.query.facet, private, observer, shutdown))
        plan_limits = [] if offline else await _fetch_limits(job, budgets, snapshot, shutdown, observer)
        return _plan(job, found, survey, snapshot, budgets.facet, plan_limits, pages)


def _warn_of_invalid(job: Job, found: ListCount, observer: RunObserver) -> None:
    lines = found.links + found.duplicates + found.invalid
    if too_many_invalid(found.invalid, lines, job.invalid_limit):
        accept = ", or accept its invalid lines with --max-invalid 100%" if found.links else ""
        observer.warn(
            f"{found.invalid:,} of {lines:,} lines are not bitlinks, more than --max-invalid allows: the run would "
            f"fail. Fix the list (is it the right file, and the right column?){accept}"
        )


async def _fetch_limits(
    job: Job, budgets: Budgets, snapshot: DatasetSnapshot, shutdown: ShutdownSignal, observer: RunObserver
) -> list[PlanLimit]:
    """Fetch the endpoint's limits into the budget and return the plan's: at most three helper requests, all counted."""
    try:
        await budgets.slots.join()
    except ConnectionsBusy as error:
        observer.warn(f"{error}; Bitly was not asked for its limits")
        return []
    async with open_client(job, budgets, snapshot.query, shutdown) as (_, discovery):
        try:
            learned = await discovery.learn()
            if learned:
                observer.note(learned.text, learned.event, **learned.fields)
            return await discovery.plan() if shutdown.stop is None else []
        except RunStopping:
            return []
        finally:
            if shutdown.stop is not None:
                observer.warn(shutdown.stop.message)


def _plan(
    job: Job,
    found: ListCount,
    survey: ListSurvey,
    snapshot: DatasetSnapshot,
    budget: Budget | None,
    plan_limits: list[PlanLimit],
    pages: PlannedPages | None,
) -> Plan:
    limits = budget.limits if budget else job.limits.limits()
    hour = budget.reported_per_hour if budget else None
    unreserved = replace(job.limits, reserve=0.0).limits(hour)
    own = budget.own_limits if budget else limits
    windows = budget.windows() if budget else []
    calls = found.calls if job.max_calls is None else min(found.calls, job.max_calls)
    each = snapshot.attempts / snapshot.calls if snapshot.calls >= _ENOUGH_CALLS else 1.0
    attempts = ceil(calls * max(each, 1.0)) + (pages.again if pages else 0)
    now = budget.at(0.0) if budget else datetime.now(UTC)
    connections = job.client_settings.connections
    start = Start(now, month_left=limits.per_month or None, connections=connections)
    if budget:
        start = beginning(budget, windows, connections)
    used = windows[-1].used if windows else 0
    return Plan(
        found=found,
        survey=survey,
        pages=pages,
        attempts=attempts,
        limits=limits,
        account=budget.account.name if budget else None,
        windows=windows,
        forecast=forecast(attempts, limits, start),
        suggestions=[] if month_is_spent(windows) else suggestions_for(attempts, limits, own, unreserved, start),
        plan_limits=plan_limits,
        now=now,
        durations=list(durations(attempts, limits, start, used)),
        month_used=used,
        refused=bool(windows) and month_must_be_named(windows[-1], calls) and any(s.rereadable for s in job.sources),
        refresh=_refresh_plan(job, found, max(each, 1.0), limits, start),
        completed_from=snapshot.query.size if larger(snapshot.query, job.client_settings.max_size) else None,
    )


def _refresh_plan(job: Job, found: ListCount, each: float, limits: Limits, start: Start) -> RefreshPlan | None:
    if job.refresh is None:
        return None
    return refresh_plan(
        found.ages(job.refresh.seconds), ceil(found.never * each), ceil(found.links * each), limits, start
    )


def refresh_plan(ages: RefreshCounts, never: int, requests: int, limits: Limits, start: Start) -> RefreshPlan:
    """Return what --refresh comes to. never, requests: those for links without an answer, and for all links once."""
    days = (ages.seconds or 0) / 86400
    return RefreshPlan(ages, days, never, forecast(never, limits, start).ends, steady_state(requests, limits, days))


def durations(attempts: int, limits: Limits, start: Start, used: int) -> Iterator[Duration]:
    """Yield how long this list, and lists of usual sizes, take with each of Bitly's plans. used: of this month."""
    for links in sorted({*_SIZES, attempts} - {0}):
        for per_month, name in COMPARED_PLANS.items():
            left = max(per_month - used, 0) if links == attempts else per_month
            found = forecast(links, replace(limits, per_month=per_month), replace(start, month_left=left))
            yield Duration(links, name, per_month, found.ends, len(found.pauses) + 1)


def month_is_spent(windows: list[WindowState]) -> bool:
    """True if Bitly has reported it, which no option changes."""
    return bool(windows) and windows[-1].source == "bitly"


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
