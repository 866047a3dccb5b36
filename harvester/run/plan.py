"""`harvester plan`: what a run would cost and when it would end, without a metrics call."""

import asyncio
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import ceil
from typing import Any

from harvester.bitly.account_limits import PlanLimit
from harvester.budget.budget import Budget
from harvester.budget.forecast import Forecast, Start, Suggestion, beginning, forecast, suggestions_for
from harvester.budget.limits import Limits
from harvester.clock import next_month, utc_iso
from harvester.dataset import opening
from harvester.dataset.opening import DatasetSnapshot
from harvester.errors import ConnectionsBusy, RunStopping, UsageError, as_output_error
from harvester.events import RunObserver
from harvester.groups.journal import ListRequest
from harvester.groups.listing import stopped
from harvester.groups.spool import read_before
from harvester.progress import WindowState
from harvester.run.abort_rules import too_many_invalid
from harvester.run.assembly import AccountClients, Budgets, Job, open_budgets, open_client
from harvester.run.job import list_groups, preflight_of, source_of
from harvester.run.preflight import ListCount
from harvester.run.telemetry import window_report
from harvester.shutdown import ShutdownSignal
from harvester.storage.filesystem import make_folder, remove_empty
from harvester.storage.folders import resolve
from harvester.storage.location import STDOUT
from harvester.storage.scratch import scratch_folder
from harvester.storage.watch import FolderLock

_ENOUGH_CALLS = 100
"""A dataset with fewer calls than this says nothing about the attempts that a call takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost and the end of a run that has not begun.

    found: the list, counted. pages: of groups' links that were read for it, None without groups; to_read: those that
    the run has to read again. attempts: for its calls, with as many retries as this dataset needed so far. account,
    windows: None and empty without a token. plan_limits: what Bitly reports of the account's plan, only shown. now:
    the moment from which the forecast counts, UTC.
    """

    found: ListCount
    pages: int | None
    to_read: int
    attempts: int
    limits: Limits
    account: str | None
    windows: list[WindowState]
    forecast: Forecast
    suggestions: list[Suggestion]
    plan_limits: list[PlanLimit]
    now: datetime


async def make(job: Job, observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Count a job's list, read its budget, fetch Bitly's limits, and forecast the end of a run.

    token_known: False without a token; then neither the account's budget nor Bitly's limits are known. offline: send
    no helper request.

    Raises:
        UsageError, OutputError: as `job.run`. RunStopping: Bitly reports that the month is spent.
    """
    shutdown = ShutdownSignal()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(None))
        location = None if job.out == STDOUT else resolve(job.out, job.work_dir)
        snapshot = stack.enter_context(opening.peek(location, job.query, pin_reference=job.pin_reference))
        pages, to_read = None, 0
        if job.listed is not None:
            spool = location.private if location else None
            asks = token_known and not offline
            job, pages = await _list_groups(job, job.listed, spool, folder, shutdown, observer, asks=asks)
            to_read = 0 if location else pages
        preflight = preflight_of(job, shutdown, observer)
        found = await preflight.count(snapshot.ledger, snapshot.rows, folder, job.sources)
        _warn_of_invalid(job, found, observer)
        if not token_known:
            return _plan(job, found, snapshot, None, [], pages, to_read)
        private = location.private if location and location.begun else folder
        budgets = stack.enter_context(open_budgets(job, snapshot.query.facet, private, observer))
        plan_limits = [] if offline else await _fetch_limits(job, budgets, snapshot, shutdown, observer)
        return _plan(job, found, snapshot, budgets.facet, plan_limits, pages, to_read)


async def _list_groups(
    job: Job,
    listed: ListRequest,
    private: str | None,
    scratch: str,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    *,
    asks: bool,
) -> tuple[Job, int]:
    """Return the job with the links of its groups as its list, and their pages.

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
        with ExitStack() as stack:
            if private:
                with as_output_error(private):
                    stack.callback(remove_empty, make_folder(private))
                    stack.enter_context(FolderLock(private, job.out))
            budgets = stack.enter_context(open_budgets(job, job.query.facet, private or scratch, observer))
            await budgets.slots.join()
            clients = AccountClients(job, budgets, shutdown)
            try:
                found = await list_groups(listed, private or scratch, clients, shutdown, observer)
            except RunStopping as error:
                raise stopped(shutdown) from error
    return replace(job, sources=[source_of(listed, found)]), found.state.pages


def _warn_of_invalid(job: Job, found: ListCount, observer: RunObserver) -> None:
    lines = found.links + found.duplicates + found.invalid
    if too_many_invalid(found.invalid, lines, job.invalid_limit):
        accept = ", or accept its invalid lines with --max-invalid 100%" if found.links else ""
        observer.warn(
            f"{found.invalid:,} of {lines:,} lines are no bitlinks, more than --max-invalid allows: the run would "
            f"fail. Fix the list (is it the one that was meant, and the column?){accept}"
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
    snapshot: DatasetSnapshot,
    budget: Budget | None,
    plan_limits: list[PlanLimit],
    pages: int | None,
    to_read: int,
) -> Plan:
    limits = budget.limits if budget else job.limits.limits()
    hour = budget.reported_per_hour if budget else None
    unreserved = replace(job.limits, reserve=0.0).limits(hour)
    own = budget.own_limits if budget else limits
    windows = budget.windows() if budget else []
    calls = found.calls if job.max_calls is None else min(found.calls, job.max_calls)
    each = snapshot.attempts / snapshot.calls if snapshot.calls >= _ENOUGH_CALLS else 1.0
    attempts = ceil(calls * max(each, 1.0)) + to_read
    now = budget.at(0.0) if budget else datetime.now(UTC)
    connections = job.client_settings.connections
    start = Start(now, month_left=limits.per_month or None, connections=connections)
    if budget:
        start = beginning(budget, windows, connections)
    return Plan(
        found=found,
        pages=pages,
        to_read=to_read,
        attempts=attempts,
        limits=limits,
        account=budget.account.name if budget else None,
        windows=windows,
        forecast=forecast(attempts, limits, start),
        suggestions=[] if _month_is_spent(windows) else suggestions_for(attempts, limits, own, unreserved, start),
        plan_limits=plan_limits,
        now=now,
    )


def _month_is_spent(windows: list[WindowState]) -> bool:
    """True if Bitly has reported it, which no option changes."""
    return bool(windows) and windows[-1].source == "bitly"


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan for a program: counts, and moments in UTC as text."""
    found, ahead = plan.found, plan.forecast
    return {
        "list": {
            "lines": found.lines,
            "links": found.links,
            "duplicates": found.duplicates,
            "invalid": found.invalid,
        },
        "pages": plan.pages,
        "settled": found.settled,
        "given_up": found.links - found.settled - found.calls,
        "calls": found.calls,
        "attempts": plan.attempts,
        "limits": asdict(plan.limits),
        "account": plan.account,
        "windows": [window_report(state) for state in plan.windows],
        "plan_limits": [asdict(limit) for limit in plan.plan_limits],
        "now": utc_iso(plan.now),
        "this_month": ahead.this_month,
        "pauses": [utc_iso(pause) for pause in ahead.pauses],
        "ends": utc_iso(ahead.ends) if ahead.ends else None,
        "suggestions": [
            {"option": each.option, "why": each.why, "ends": utc_iso(each.ends)} for each in plan.suggestions
        ],
    }


def as_text(plan: Plan) -> str:
    """Format the plan for a person."""
    found = plan.found
    lines = [
        f"{found.lines:>12,}  lines: {found.duplicates:,} duplicates, {found.invalid:,} invalid",
        f"{found.links:>12,}  links",
        f"{found.settled:>12,}  settled already",
        f"{found.calls:>12,}  calls to make",
    ]
    if plan.pages is not None:
        kept = "the run reads them again, which is among its attempts" if plan.to_read else "kept for the run"
        pages = "page" if plan.pages == 1 else "pages"
        lines.append(f"{plan.pages:>12,}  {pages} of the groups' links, counted in the month too: {kept}")
    given_up = found.links - found.settled - found.calls
    if given_up:
        lines.append(f"{given_up:>12,}  failed too often, and are not made again without --retry-failed")
    if plan.attempts - plan.to_read > found.calls:
        lines.append(f"{plan.attempts:>12,}  attempts, with the retries that this output has needed so far")
    return "\n".join([*lines, "", *_budget_lines(plan), "", *_end_lines(plan)])


_SOURCES = {
    "asked": "as requested",
    "default": "by default: Bitly's own limit is not known",
    "bitly": "says Bitly",
    "throttled": "lowered since Bitly throttled",
}


def _budget_lines(plan: Plan) -> list[str]:
    lines = []
    if plan.account is None:
        lines.append("budget: unknown without a token")
    else:
        lines.append(f"budget of account {plan.account}")
    lines += [_window_line(state) for state in plan.windows]
    for limit in plan.plan_limits:
        lines.append(f"  the plan's {limit.name}: {limit.count:,} of {limit.limit:,}, says Bitly ({limit.description})")
    return lines


def _window_line(state: WindowState) -> str:
    if not state.limit:
        return f"  {state.window:<7}no limit; {state.used:,} used"
    line = f"  {state.window:<7}{state.remaining:,} of {state.limit:,} left ({_SOURCES[state.source]})"
    return f"{line}, until {_shown(state.until)}" if state.until else line


def _end_lines(plan: Plan) -> list[str]:
    ahead = plan.forecast
    if not plan.attempts:
        return ["no calls are left to make"]
    lines = [f"would end {_shown(ahead.ends)}" if ahead.ends else "would not end within two hundred years"]
    if ahead.pauses:
        again = next_month(ahead.pauses[0])
        lines.append(
            f"  this month covers {ahead.this_month:,} of {plan.attempts:,} attempts; the run then stops with exit "
            f"code 7, and the same command goes on from {_shown(again)}: {_times(len(ahead.pauses))} in all"
        )
    if plan.suggestions:
        lines.append("  sooner with")
        lines += [f"    {each.option} ({each.why}): {_shown(each.ends)}" for each in plan.suggestions]
        lines.append("    a shorter list: each link costs a call, whether it was ever clicked or not")
    return lines


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def make_plan(job: Job, observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Make the plan in an event loop of its own. Raises as `make`."""
    return asyncio.run(make(job, observer, token_known=token_known, offline=offline))
