"""`harvester plan`: what a run would cost and when it would end, without a metrics call."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import ceil
from typing import Any

from harvester.bitly.account_limits import PlanLimit, api_month
from harvester.bitly.query import larger
from harvester.budget.budget import Budget
from harvester.budget.forecast import Forecast, Start, Suggestion, beginning, forecast, suggestions_for
from harvester.budget.limits import DEFAULTS, PLAN_MONTHS, Limits, option_for
from harvester.clock import next_month, utc_iso, utc_text
from harvester.dataset import opening
from harvester.dataset.opening import DatasetSnapshot
from harvester.errors import ConnectionsBusy, RunStopping
from harvester.events import RunObserver
from harvester.progress import WindowState, duration
from harvester.run.abort_rules import too_many_invalid
from harvester.run.assembly import Budgets, Job, open_budgets, open_client
from harvester.run.job import PlannedPages, list_for_plan, preflight_of
from harvester.run.preflight import ListCount, ListSurvey, month_must_be_named
from harvester.run.telemetry import window_report
from harvester.shutdown import ShutdownSignal
from harvester.storage.folders import resolve
from harvester.storage.location import STDOUT
from harvester.storage.scratch import scratch_folder

_ENOUGH_CALLS = 100
"""A dataset with fewer calls than this says nothing about the attempts that a call takes."""

_COMPARED = {month: plan.capitalize() for plan, month in PLAN_MONTHS.items()}
"""Bitly's plans by their calls a month, which the table compares."""
_SIZES = (1_000, 10_000, 100_000)
_MOST_DOMAINS = 10
_SHOWN_TEXT = 80
_YEARS = 120
"""From this number of months on, a time is shown in years."""


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


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost and the end of a run that has not begun.

    found: the list, counted. survey: what it looks like. pages: of groups' links that were read for it, None without
    groups. attempts: for its calls, with as many retries as this dataset needed so far. account, windows: None and
    empty without a token. plan_limits: what Bitly reports of the account's plan, only shown. now: the moment from which
    the forecast counts, UTC. durations: those of this list and of others, for each of Bitly's plans. completed_from:
    the metrics of an answer from which on its link takes a second request; None if none does. month_used: calls of the
    present month. refused: the run would ask for the account's plan before its first call.
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
        snapshot = stack.enter_context(opening.peek(location, job.query, pin_reference=job.pin_reference))
        pages = None
        if job.listed is not None:
            private, asks = location.private if location else None, token_known and not offline
            job, pages = await list_for_plan(job, job.listed, private, folder, shutdown, observer, asks=asks)
        preflight = preflight_of(job, shutdown, observer)
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
        suggestions=[] if _month_is_spent(windows) else suggestions_for(attempts, limits, own, unreserved, start),
        plan_limits=plan_limits,
        now=now,
        durations=list(_durations(attempts, limits, start, used)),
        month_used=used,
        refused=bool(windows) and month_must_be_named(windows[-1], calls) and any(s.rereadable for s in job.sources),
        completed_from=snapshot.query.size if larger(snapshot.query, job.client_settings.max_size) else None,
    )


def _durations(attempts: int, limits: Limits, start: Start, used: int) -> Iterator[Duration]:
    """Yield how long this list, and lists of usual sizes, take with each of Bitly's plans."""
    for links in sorted({*_SIZES, attempts} - {0}):
        for per_month, name in _COMPARED.items():
            left = max(per_month - used, 0) if links == attempts else per_month
            found = forecast(links, replace(limits, per_month=per_month), replace(start, month_left=left))
            yield Duration(links, name, per_month, found.ends, len(found.pauses) + 1)


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
        "pages": plan.pages.read if plan.pages else None,
        "domains": dict(plan.survey.domains.most_common(_MOST_DOMAINS)),
        "other_domains": _elsewhere(plan.survey),
        "invalid_lines": [each._asdict() for each in plan.survey.examples],
        "done": found.done,
        "given_up": found.links - found.done - found.calls,
        "calls": found.calls,
        "attempts": plan.attempts,
        "completed_from": plan.completed_from,
        "limits": asdict(plan.limits),
        "account": plan.account,
        "windows": [window_report(state) for state in plan.windows],
        "plan_limits": [asdict(limit) for limit in plan.plan_limits],
        "plan_option": _option_for_month(plan),
        "now": utc_iso(plan.now),
        "this_month": ahead.this_month,
        "pauses": [utc_iso(pause) for pause in ahead.pauses],
        "ends": utc_iso(ahead.ends) if ahead.ends else None,
        "suggestions": [
            {"option": each.option, "why": each.why, "ends": utc_iso(each.ends)} for each in plan.suggestions
        ],
        "durations": [{**asdict(each), "ends": utc_iso(each.ends) if each.ends else None} for each in plan.durations],
    }


def as_text(plan: Plan) -> str:
    """Format the plan for a person."""
    parts = [_list_lines(plan), _survey_lines(plan.survey), _budget_lines(plan), _end_lines(plan), _table(plan)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _list_lines(plan: Plan) -> list[str]:
    """Return a calculation from the lines of the list to the calls to make."""
    found = plan.found
    beside = (
        ("blank lines, comments and headers", found.lines - found.invalid - found.duplicates - found.links),
        ("not bitlinks", found.invalid),
        ("repeated links", found.duplicates),
    )
    done = (
        ("already done", found.done),
        ("failed in three runs (made again with --retry-failed)", found.links - found.done - found.calls),
    )
    lines = [f"{found.lines:>12,}  {'line' if found.lines == 1 else 'lines'}"]
    lines += [f"{'-':>3}{number:>9,}  {what}" for what, number in beside if number]
    lines.append(f"{'=':>3}{found.links:>9,}  links")
    lines += [f"{'-':>3}{number:>9,}  {what}" for what, number in done if number]
    lines.append(f"{'=':>3}{found.calls:>9,}  calls to make")
    again = 0
    if plan.pages is not None:
        read, again = plan.pages
        kept = "the run reads them again, which is among its requests" if again else "kept for the run"
        pages = "page" if read == 1 else "pages"
        lines.append(f"{read:>12,}  {pages} of the groups' links, counted in the month too: {kept}")
    if plan.attempts - again > found.calls:
        lines.append(f"{plan.attempts:>12,}  requests, with as many retries as this output has needed so far")
    if plan.completed_from is not None and found.calls:
        lines.append(
            f"{'':>14}a link with {plan.completed_from} metrics or more takes two requests (--no-complete: one)"
        )
    return lines


def _survey_lines(survey: ListSurvey) -> list[str]:
    """Return the domains of the list, the most frequent first, and the first bad lines."""
    lines = []
    if survey.domains:
        lines.append("lines by domain")
        lines += [f"{count:>12,}  {domain}" for domain, count in survey.domains.most_common(_MOST_DOMAINS)]
    if elsewhere := _elsewhere(survey):
        more = "" if survey.elsewhere else f"{len(survey.domains) - _MOST_DOMAINS:,} "
        lines.append(f"{elsewhere:>12,}  {more}other domains")
    if survey.examples:
        lines += ["", "the first lines that are not bitlinks"] if lines else ["the first lines that are not bitlinks"]
    for bad in survey.examples:
        text = bad.text[:_SHOWN_TEXT].replace("\n", " ")
        lines.append(f'  {bad.file}:{bad.line}: "{text}" ({bad.reason})')
    return lines


def _elsewhere(survey: ListSurvey) -> int:
    """Return the lines of all domains beyond the most frequent ones."""
    return sum(count for _, count in survey.domains.most_common()[_MOST_DOMAINS:]) + survey.elsewhere


_SOURCES = {
    "asked": "as requested",
    "default": "default: Bitly's own limit is not known",
    "bitly": "from Bitly",
    "throttled": "lowered after throttling",
}


def _budget_lines(plan: Plan) -> list[str]:
    if plan.account is None:
        return ["limits: unknown without a token"]
    lines = [f"limits of account {plan.account}"]
    digits = max((len(f"{state.remaining:,}") for state in plan.windows if state.remaining is not None), default=0)
    lines += [_window_line(state, digits) for state in plan.windows]
    for limit in plan.plan_limits:
        lines.append(f"  Bitly reports {limit.count:,} of {limit.limit:,} used: {limit.description} ({limit.name})")
    if option := _option_for_month(plan):
        lines.append(f"  the month above is only the default: use {option}")
    return lines


def _option_for_month(plan: Plan) -> str | None:
    """Return the option that sets the month to what Bitly reports, if nobody named one and the default is another."""
    reported = api_month(plan.plan_limits)
    if reported is None or not plan.windows or plan.windows[-1].source != "default":
        return None
    return option_for(reported.limit) if reported.limit != DEFAULTS.per_month else None


def _window_line(state: WindowState, digits: int) -> str:
    if not state.limit:
        return f"  {state.window:<8}no limit; {state.used:,} used"
    line = f"  {state.window:<8}{state.remaining:>{digits},} of {state.limit:,} left ({_SOURCES[state.source]})"
    if state.until is None:
        return line
    return f"{line}; {'a new month begins' if state.window == 'month' else 'more from'} {utc_text(state.until)}"


def _end_lines(plan: Plan) -> list[str]:
    ahead = plan.forecast
    if not plan.attempts:
        return ["no calls are left to make" if plan.found.links else "no links to fetch"]
    if ahead.ends:
        lines = [f"estimated end: {utc_text(ahead.ends)} (in {duration((ahead.ends - plan.now).total_seconds())})"]
    else:
        lines = ["estimated end: in more than two hundred years"]
    if plan.refused:
        assumed = f"harvester assumes {plan.limits.per_month:,} calls a month, as on Bitly's free plan"
        lines.append(f"  run asks for --plan or --per-month first: {assumed}, and the list needs more")
    elif ahead.pauses:
        months = f"{len(ahead.pauses):,} more month" + "s" * (len(ahead.pauses) > 1)
        enough = f"{ahead.this_month:,} of {plan.attempts:,}"
        lines.append(f"  this month's calls are enough for {enough}; the run then stops with exit code 7")
        again = utc_text(next_month(ahead.pauses[0]))
        lines.append(f"  run the same command again from {again}; it will take {months}")
    if plan.suggestions:
        lines.append("  sooner with")
        lines += [f"    {each.option} ({each.why}): {utc_text(each.ends)}" for each in plan.suggestions]
        lines.append("    a shorter list: each link costs a call, whether it was ever clicked or not")
    return lines


def _table(plan: Plan) -> list[str]:
    """Return a table of links and Bitly's plans, with how long each takes; an arrow stands before this list."""
    limits = plan.limits
    rates = [f"{limits.per_minute:,} a minute" if limits.per_minute else ""]
    rates.append(f"{limits.per_hour:,} an hour" if limits.per_hour else "")
    rate = " and ".join(filter(None, rates)) or "no limit a minute or an hour"
    lines = [
        f"how long it takes by plan and calls a month, at {rate}",
        f"{'':>12}" + "".join(f"{name:>12}" for name in _COMPARED.values()),
        f"{'links':>12}" + "".join(f"{per_month:>12,}" for per_month in _COMPARED),
    ]
    sizes = dict.fromkeys(each.links for each in plan.durations)
    for links in sizes:
        cells = [_cell(each, plan.now) for each in plan.durations if each.links == links]
        mark = "→" if links == plan.attempts else ""
        lines.append(f"{mark:<2}{links:>10,}" + "".join(f"{cell:>12}" for cell in cells))
    if any(each.months > 1 for each in plan.durations):
        lines.append("  (N months: the command is run again in each of N calendar months)")
    if plan.month_used:
        used = f"{plan.month_used:,} {'call' if plan.month_used == 1 else 'calls'}"
        lines.append(f"  (→ counts the {used} made this month; the other rows have a whole one)")
    return lines


def _cell(each: Duration, now: datetime) -> str:
    if each.ends is None:
        return "–"
    if each.months >= _YEARS:
        return f"{each.months // 12:,} years"
    return f"{each.months} months" if each.months > 1 else duration(round((each.ends - now).total_seconds()))


def make_plan(job: Job, observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Make the plan in an event loop of its own. Raises as `make`."""
    return asyncio.run(make(job, observer, token_known=token_known, offline=offline))
