"""The links of groups, read for a plan before it counts them."""

from contextlib import AsyncExitStack
from dataclasses import replace

from harvester.errors import RunStopping, UsageError, as_output_error
from harvester.events import RunObserver
from harvester.groups.journal import ListRequest
from harvester.groups.listing import list_groups, stopped
from harvester.groups.spool import read_before
from harvester.planning.plan import PlannedPages
from harvester.run.assembly import AccountClients, Job, open_budgets, source_of
from harvester.shutdown import ShutdownSignal
from harvester.storage.filesystem import make_folder, remove_empty
from harvester.storage.watch import FolderLock


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
