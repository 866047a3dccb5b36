"""The limits of the endpoints that a command uses, one for each facet, fetched from Bitly and read from the budget."""

from collections.abc import Sequence

from harvester.bitly.query import Query
from harvester.budget.limits import PlanReport
from harvester.errors import ConnectionsBusy, RunStopping
from harvester.events import RunObserver
from harvester.planning.plan import Endpoint
from harvester.run.assembly import Budgets, Job, open_budgets, open_client
from harvester.shutdown import ShutdownSignal
from harvester.storage.folders import resolve
from harvester.storage.location import STDOUT, OutputLocation
from harvester.storage.scratch import scratch_folder


def location_of(job: Job) -> OutputLocation | None:
    """Return where a job's output lies; None for rows on standard output."""
    return None if job.out == STDOUT else resolve(job.out, job.work_dir)


def budget_folder(location: OutputLocation | None, scratch: str) -> str:
    """Return where a job's budget is kept if the state folder cannot be written."""
    return location.private if location and location.begun else scratch


async def fetch_limits(
    job: Job,
    budgets: Budgets,
    query: Query,
    shutdown: ShutdownSignal,
    observer: RunObserver,
    *,
    about: str = "",
    plan: bool = True,
) -> PlanReport | None:
    """Fetch the endpoint's limits into the budget and return the plan's: at most three helper requests, all counted.

    The plan's are None where Bitly was not asked and has not reported them lately. about: stands before what Bitly
    reports of the endpoint. plan: False to fetch the endpoint's limits alone.
    """
    try:
        await budgets.slots.join()
    except ConnectionsBusy as error:
        observer.warn(f"{about}{error}; Bitly was not asked for its limits")
        return budgets.facet.month.plan_report()
    async with open_client(job, budgets, query, shutdown) as (_, discovery):
        try:
            if learned := await discovery.learn():
                observer.note(about + learned.text, learned.event, **learned.fields)
            return await discovery.plan() if plan and shutdown.stop is None else None
        except RunStopping:
            return None
        finally:
            if shutdown.stop is not None:
                observer.warn(shutdown.stop.message)


async def endpoints_of(
    jobs: Sequence[Job], first: Endpoint, observer: RunObserver, *, asks: bool
) -> dict[str, Endpoint]:
    """Return the endpoint of each facet, as the budget knows it. first: that of the first job's facet.

    asks: fetch the limits of the others from Bitly first, with a helper request each, where that is due.

    Raises:
        OutputError: the budget's file. RunStopping: another process still holds it.
    """
    found, shutdown = {jobs[0].query.facet: first}, ShutdownSignal()
    with scratch_folder(None) as scratch:
        for job in jobs:
            facet = job.query.facet
            if facet in found:
                continue
            folder = budget_folder(location_of(job), scratch)
            async with open_budgets(job, facet, folder, observer, shutdown) as budgets:
                if asks and shutdown.stop is None:
                    await fetch_limits(job, budgets, job.query, shutdown, observer, about=f"{facet}: ", plan=False)
                windows = budgets.facet.windows()  # first: the limits are as of the last read of the file
                found[facet] = Endpoint(budgets.facet.limits, windows)
    return found
