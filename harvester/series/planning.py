"""`harvester plan` for a command with one output or several: each counted, the calls added up against one month."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from harvester.budget.forecast import Start, forecast
from harvester.budget.limits import Limits
from harvester.events import RunObserver
from harvester.run.assembly import Job
from harvester.run.plan import Plan, RefreshPlan, durations, make, refresh_plan
from harvester.storage.folders import has_ledger, resolve
from harvester.storage.location import STDOUT


def make_plan(jobs: Sequence[Job], observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Make the plan in an event loop of its own. Raises as `make`."""
    return asyncio.run(make_all(jobs, observer, token_known=token_known, offline=offline))


async def make_all(jobs: Sequence[Job], observer: RunObserver, *, token_known: bool, offline: bool) -> Plan:
    """Make the plan of a command's jobs, whose list is the same. Raises as `make`."""
    plans: list[Plan] = []
    unbegun: Plan | None = None
    for job in jobs:
        is_new = job.out != STDOUT and not has_ledger(resolve(job.out, job.work_dir))
        if unbegun is None or not is_new:
            plans.append(await make(job, observer, token_known=token_known, offline=offline or bool(plans)))
            unbegun = plans[-1] if is_new else unbegun
        else:  # the list was counted already, and nothing of it is done
            plans.append(unbegun)
    return plans[0] if len(jobs) == 1 else _sum(plans, jobs)


def _refresh_of(plans: Sequence[Plan], limits: Limits, start: Start) -> RefreshPlan | None:
    found = [plan.refresh for plan in plans if plan.refresh is not None]
    if not found:
        return None
    never, requests = sum(each.never for each in found), sum(each.steady.requests for each in found)
    return refresh_plan(found[0].ages, never, requests, limits, start)


def _sum(plans: Sequence[Plan], jobs: Sequence[Job]) -> Plan:
    """Return the plan of several outputs: facets go side by side, each with its endpoint's windows, in one month."""
    first, facets = plans[0], len({job.query.facet for job in jobs})
    calls, most = sum(plan.found.calls for plan in plans), jobs[0].max_calls
    found = replace(first.found, calls=calls, done=sum(plan.found.done for plan in plans))
    attempts = sum(plan.attempts for plan in plans)
    attempts = attempts if most is None else min(attempts, most)
    limits = first.limits
    together = replace(limits, per_minute=limits.per_minute * facets, per_hour=limits.per_hour * facets)
    left = first.windows[-1].remaining if first.windows else limits.per_month or None
    start = Start(first.now, month_left=left, connections=jobs[0].client_settings.connections)
    return replace(
        first,
        found=found,
        attempts=attempts,
        forecast=forecast(attempts, together, start),
        suggestions=[],
        durations=list(durations(attempts, together, start, first.month_used)),
        refresh=_refresh_of(plans, together, start),
        facets=facets,
        periods=len(jobs) // facets,
    )
