"""`harvester plan`: what a run would cost and when it would end, without a metrics call.

A command with several outputs has a plan for each, and their calls are added up against one month.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from math import ceil

from harvester.bitly.account_limits import PlanLimit
from harvester.bitly.exports import MOST_LINKS
from harvester.bitly.query import host_of, larger
from harvester.budget.budget import Budget
from harvester.budget.forecast import Start, beginning, forecast, suggestions_for
from harvester.budget.limits import Limits, PlanReport
from harvester.dataset import opening
from harvester.dataset.opening import DatasetSnapshot
from harvester.events import RunObserver
from harvester.groups.activity import read_active_links
from harvester.planning.endpoints import budget_folder, endpoints_of, fetch_limits, location_of
from harvester.planning.group_pages import list_for_plan
from harvester.planning.plan import (
    Endpoint,
    Plan,
    PlannedExports,
    PlannedPages,
    RefreshPlan,
    durations,
    exports_for,
    month_is_spent,
    refresh_plan,
    together,
)
from harvester.progress import WindowState
from harvester.run.abort_rules import too_many_invalid
from harvester.run.assembly import Job, open_budgets
from harvester.shutdown import ShutdownSignal
from harvester.storage.folders import has_ledger, resolve
from harvester.storage.location import STDOUT
from harvester.storage.scratch import scratch_folder
from harvester.worklist.list_count import ListCount, ListSurvey
from harvester.worklist.preflight import Preflight, month_must_be_named
from harvester.worklist.refresh import IDLE_AGES, refresh_of

_ENOUGH_CALLS = 100
"""A dataset with fewer calls than this says nothing about the attempts that a call takes."""


def make_plan(jobs: Sequence[Job], observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Make the plan in an event loop of its own. Raises as `make`."""
    return asyncio.run(make_all(jobs, observer, token_known=token_known, offline=offline))


async def make_all(jobs: Sequence[Job], observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Make the plan of a command's jobs, whose list is the same. Raises as `make`."""
    plans: list[Plan] = []
    unbegun: Plan | None = None
    facets = {job.query.facet for job in jobs}
    about = f"{jobs[0].query.facet}: " if len(facets) > 1 else ""
    for job in jobs:
        is_new = job.out != STDOUT and not has_ledger(resolve(job.out, job.work_dir))
        if unbegun is None or not is_new:
            made = await make(
                job, observer, token_known=token_known, offline=offline, limits_asked=bool(plans), about=about
            )
            plans.append(made)
            unbegun = plans[-1] if is_new else unbegun
        else:  # the list was counted already, and nothing of it is done
            plans.append(unbegun)
    if len(jobs) == 1:
        return plans[0]
    first = Endpoint(plans[0].limits, plans[0].windows)
    if not token_known:
        return _sum(plans, jobs, dict.fromkeys((job.query.facet for job in jobs), first))
    asks = not (offline or month_is_spent(first.windows))
    return _sum(plans, jobs, await endpoints_of(jobs, first, observer, asks=asks))


def _refresh_of(plans: Sequence[Plan], limits: Limits, start: Start) -> RefreshPlan | None:
    found = [plan.refresh for plan in plans if plan.refresh is not None]
    if not found:
        return None
    never, requests = sum(each.never for each in found), sum(each.steady.requests for each in found)
    return replace(refresh_plan(found[0].ages, never, requests, limits, start), idle_days=found[0].idle_days)


def _sum(plans: Sequence[Plan], jobs: Sequence[Job], endpoints: dict[str, Endpoint]) -> Plan:
    """Return the plan of several outputs: facets go side by side, each with its endpoint's windows, in one month."""
    first, facets = plans[0], len(endpoints)
    windows = [*first.windows[:-1], *[*endpoints.values()][-1].windows[-1:]]  # the month as it was read last
    calls, most = sum(plan.found.calls for plan in plans), jobs[0].max_calls
    found = replace(first.found, calls=calls, done=sum(plan.found.done for plan in plans))
    attempts = sum(plan.attempts for plan in plans)
    attempts = attempts if most is None else min(attempts, most)
    by_facet = Counter[str]()
    for job, plan in zip(jobs, plans, strict=True):
        by_facet[job.query.facet] += plan.attempts
    limits = together(by_facet, endpoints)
    left = windows[-1].remaining if windows else limits.per_month or None
    used = windows[-1].used if windows else 0
    start = Start(first.now, month_left=left, connections=jobs[0].client_settings.connections)
    return replace(
        first,
        found=found,
        attempts=attempts,
        windows=windows,
        month_used=used,
        endpoints=endpoints if facets > 1 else {},
        forecast=forecast(attempts, limits, start),
        suggestions=[],
        durations=list(durations(attempts, limits, start, used)),
        refresh=_refresh_of(plans, limits, start),
        facets=facets,
        periods=len(jobs) // facets,
        idle=_sum_of_exports([plan.idle for plan in plans if plan.idle]),
        refused=bool(windows) and any(_is_refused(*each, windows[-1]) for each in zip(jobs, plans, strict=True)),
    )


def _is_refused(job: Job, plan: Plan, month: WindowState) -> bool:
    """Return whether the preflight of one of several outputs refuses it, for the calls of all that have none yet."""
    calls = plan.found.calls * job.outputs
    calls = calls if job.max_calls is None else min(calls, job.max_calls)
    return month_must_be_named(month, ceil(calls / MOST_LINKS) if job.skip_idle else calls)


def _sum_of_exports(planned: Sequence[PlannedExports]) -> PlannedExports | None:
    expected = [each.expected for each in planned if each.expected is not None]
    exports, least, most = sum(p.exports for p in planned), sum(p.least for p in planned), sum(p.most for p in planned)
    known = sum(expected) if len(expected) == len(planned) else None
    return PlannedExports(exports, least, most, known) if planned else None


async def make(
    job: Job,
    observer: RunObserver,
    *,
    token_known: bool,
    offline: bool,
    limits_asked: bool = False,
    about: str = "",
) -> Plan:
    """Count a job's list, read its budget, fetch Bitly's limits, and forecast the end of a run.

    token_known: False without a token; then neither the account's budget nor Bitly's limits are known. offline: send
    no helper request. limits_asked: do not fetch the limits, as another plan of the command has. about: as in
    `fetch_limits`.

    Raises:
        UsageError, OutputError: as `job.run`. RunStopping: Bitly reports that the month is spent.
    """
    shutdown = ShutdownSignal()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch_folder(None))
        location = location_of(job)
        server = host_of(job.client_settings.base_url)
        peeking = opening.peek(location, job.query, server=server, pin_reference=job.pin_reference)
        snapshot = stack.enter_context(peeking)
        pages = None
        if job.listed is not None:
            private, asks = location.private if location else None, token_known and not offline
            job, pages = await list_for_plan(job, job.listed, private, folder, shutdown, observer, asks=asks)
        preflight = Preflight(shutdown, observer, job, refresh_of(job, job.query.unit_reference, job.query.units))
        survey = ListSurvey()
        found = await preflight.count(snapshot.ledger, snapshot.rows, folder, job.sources, survey)
        _warn_of_invalid(job, found, observer)
        clicked = sum(1 for _ in read_active_links(location.private)) if job.skip_idle and location else 0
        if not token_known:
            return _plan(job, found, survey, snapshot, None, None, pages, clicked)
        private = budget_folder(location, folder)
        budgets = await stack.enter_async_context(open_budgets(job, snapshot.query.facet, private, observer, shutdown))
        if offline or limits_asked:
            reported = budgets.facet.month.plan_report()
        else:
            reported = await fetch_limits(job, budgets, snapshot.query, shutdown, observer, about=about)
        return _plan(job, found, survey, snapshot, budgets.facet, reported, pages, clicked)


def _warn_of_invalid(job: Job, found: ListCount, observer: RunObserver) -> None:
    lines = found.links + found.duplicates + found.invalid
    if too_many_invalid(found.invalid, lines, job.invalid_limit):
        accept = ", or accept its invalid lines with --max-invalid 100%" if found.links else ""
        observer.warn(
            f"{found.invalid:,} of {lines:,} lines are not bitlinks, more than --max-invalid allows: the run would "
            f"fail. Fix the list (is it the right file, and the right column?){accept}"
        )


def _plan(
    job: Job,
    found: ListCount,
    survey: ListSurvey,
    snapshot: DatasetSnapshot,
    budget: Budget | None,
    reported: PlanReport | None,
    pages: PlannedPages | None,
    clicked: int,
) -> Plan:
    """Return the plan. clicked: links that exports for this output have stated clicks of."""
    windows = budget.windows() if budget else []  # first: the limits are as of the last read of the file
    limits = budget.limits if budget else job.limits.limits()
    hour = budget.reported_per_hour if budget else None
    unreserved = replace(job.limits, reserve=0.0).limits(hour)
    own = budget.own_limits if budget else limits
    each = _attempts_per_call(snapshot)
    active = _active_share(snapshot, clicked) if job.skip_idle else None
    least, attempts, idle = _attempts_for(job, found.calls, each, snapshot, clicked)
    attempts += pages.again if pages else 0
    now = budget.at(0.0) if budget else datetime.now(UTC)
    connections = job.client_settings.connections
    start = Start(now, month_left=limits.per_month or None, connections=connections)
    if budget:
        start = beginning(budget, windows, connections)
    used = windows[-1].used if windows else 0
    plan_limits = [PlanLimit(**entry) for entry in reported.entries] if reported else []
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
        plan_limits_age=reported.age_seconds if reported and plan_limits else None,
        now=now,
        durations=list(durations(attempts, limits, start, used)),
        month_used=used,
        refused=bool(windows) and month_must_be_named(windows[-1], least) and any(s.rereadable for s in job.sources),
        refresh=_refresh_plan(job, found, each, active, limits, start),
        completed_from=snapshot.query.size if larger(snapshot.query, job.client_settings.max_size) else None,
        idle=idle,
    )


def _attempts_per_call(snapshot: DatasetSnapshot) -> float:
    """Return how many attempts a call of this dataset took so far; 1.0 if it had too few calls to say."""
    made = snapshot.calls
    if snapshot.ledger.refreshing:
        # The ledger counts a link once, however often it was answered, and a part counts each answer that it has. One
        # growing file has no parts.
        made = sum(part.calls for part in snapshot.ledger.parts())
    made -= snapshot.idle
    return max(snapshot.attempts / made, 1.0) if made >= _ENOUGH_CALLS else 1.0


def _attempts_for(
    job: Job, calls: int, each: float, snapshot: DatasetSnapshot, clicked: int
) -> tuple[int, int, PlannedExports | None]:
    """Return the fewest and the expected attempts for calls, and what exports have to do with that.

    each: the attempts that a call takes. clicked: as in `_plan`.
    """
    least = calls if job.max_calls is None else min(calls, job.max_calls)
    attempts = ceil(least * each)
    if not job.skip_idle:
        return least, attempts, None
    waiting = min(max(clicked - (snapshot.calls - snapshot.idle), 0), calls)
    share = _active_share(snapshot, clicked)
    idle = exports_for(calls - waiting, attempts, min(ceil(waiting * each), attempts), share)
    return idle.least, idle.most if idle.expected is None else idle.expected, idle


def _active_share(snapshot: DatasetSnapshot, clicked: int) -> float | None:
    """Return the share of links with clicks; None if this dataset has too few to say. clicked: as in `_plan`.

    Links without clicks are done with the export, and those with clicks later: of the rows so far too many are idle.
    """
    active = max(clicked, snapshot.calls - snapshot.idle)
    return active / (active + snapshot.idle) if active + snapshot.idle >= _ENOUGH_CALLS else None


def _requests_for(links: int, each: float, active: float | None) -> int:
    """Return the requests for links. each: the attempts of a call. active: the share that needs one; None for all."""
    return ceil(links * each) if active is None else ceil(links / MOST_LINKS) + ceil(links * each * active)


def _refresh_plan(
    job: Job, found: ListCount, each: float, active: float | None, limits: Limits, start: Start
) -> RefreshPlan | None:
    """Return what --refresh comes to. each, active: as in `_requests_for`."""
    if job.refresh is None:
        return None
    never, requests = (_requests_for(links, each, active) for links in (found.never, found.links))
    made = refresh_plan(found.ages(job.refresh.seconds), never, requests, limits, start)
    return replace(made, idle_days=made.days * IDLE_AGES if job.refresh.prefer_active else None)
