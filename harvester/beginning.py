"""The manifest from a run's beginning to its harvest: while a list is read through, it says that the run goes on."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from harvester.budget import Budget
from harvester.errors import HarvesterError, InputBroken, OutputError, Stopping
from harvester.keeper import MANIFEST_SECONDS, Metrics
from harvester.pulse import Pulse
from harvester.report import budget_report, harvest_report
from harvester.status import Outcome, Status
from harvester.stopping import Reason, Stop, Stopper, in_daemon
from harvester.store import Store


@asynccontextmanager
async def announced(
    store: Store,
    budget: Budget,
    lists: Sequence[str],
    stopper: Stopper,
    metrics: Metrics | None,
    seconds: float = MANIFEST_SECONDS,
) -> AsyncIterator[Pulse]:
    """Say in the manifest that the run goes on, every so many seconds too; and how it ended, if no harvest comes of it.

    lists: as they were named. Gives the pulse for the harvest.

    Raises:
        OutputError: the manifest cannot be written.
    """
    pulse = Pulse()
    pulse.lists = lists

    async def write(outcome: Outcome | None) -> Mapping[str, Any]:
        report = harvest_report(Status(), outcome, pulse.report(store.invocation), budget_report(budget, None))
        return await _shown(await in_daemon(partial(store.write_manifest, report)), metrics)

    manifest, over = await write(None), asyncio.Event()
    renewing = asyncio.create_task(_renew(store, manifest, metrics, seconds, over))
    stop: Stop | None = None
    try:
        yield pulse
    except Stopping:
        stop = stopper.stop
        raise
    except HarvesterError as error:
        stop = Stop(_reason_of(error), str(error))
        raise
    finally:
        over.set()
        await renewing
        if stop is not None:
            store.abandon()
            with suppress(OutputError):  # what ended the run is to be told, and not this
                await in_daemon(store.take_success_back)
                await write(Outcome(complete=False, stop=stop, status=Status()))


async def _renew(
    store: Store, manifest: Mapping[str, Any], metrics: Metrics | None, seconds: float, over: asyncio.Event
) -> None:
    """Write the manifest anew until it is over. The ledger is not asked meanwhile: the list is compared with it."""
    while not over.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await over.wait()
                return
        with suppress(OutputError):  # the harvest will find out
            await _shown(await in_daemon(partial(store.renew_manifest, manifest)), metrics)


async def _shown(manifest: Mapping[str, Any], metrics: Metrics | None) -> Mapping[str, Any]:
    if metrics is not None:
        await metrics(manifest)
    return manifest


def _reason_of(error: HarvesterError) -> Reason:
    if isinstance(error, InputBroken):
        return Reason.INPUT
    return Reason.OUTPUT if isinstance(error, OutputError) else Reason.NOT_BEGUN
