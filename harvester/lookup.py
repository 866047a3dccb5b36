"""One link, or a few, without a dataset: the budget and the client alone.

For `harvester show` and `harvester.metrics`. A row is handed over as soon as it is answered and nothing is stored, so
there is no journal, no ledger and no private folder. The month, the windows and the machine's connections count as in
any run, and a run's abort rules hold.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

from harvester.bitly.bitlinks import Bitlink
from harvester.bitly.verdicts import Answer, Failure, Verdict, is_plain_no
from harvester.budget.states import ASK_ATTEMPTS
from harvester.client.attempt import record_nothing
from harvester.client.client import Client
from harvester.client.held_verdicts import Place
from harvester.client.limit_discovery import LimitDiscovery
from harvester.clock import utc_iso
from harvester.dataset.manifest import WindowCheck
from harvester.errors import RunStopping
from harvester.events import RunObserver, RunOutcome
from harvester.links.batch import Link
from harvester.links.feed import GIVEN
from harvester.progress import RunProgress
from harvester.rows.row import RowBuilder
from harvester.run.abort_rules import AbortRules, WindowGuard
from harvester.run.assembly import Job, Window, open_budgets, open_client
from harvester.run.harvest import GRACE_SECONDS
from harvester.shutdown import ShutdownSignal, StopReason, time_limited
from harvester.storage.scratch import scratch_folder


async def look_up(
    job: Job,
    bitlinks: Sequence[Bitlink],
    on_row: Callable[[Bitlink, bytes], None],
    shutdown: ShutdownSignal,
    observer: RunObserver,
) -> RunOutcome:
    """Fetch each bitlink once, and return how that ended.

    job: its list and output are not used; its guard makes sure of a period before the first call. on_row: called in the
    event loop with each row, as it is answered; what has none goes to observer.failure. What on_row raises ends the
    lookup.

    Raises:
        ConnectionsBusy: other processes use all of this machine's connections. OutputError: the budget's file.
    """
    # A link needs one connection at a time: more would be opened, and kept from other processes, for nothing.
    connections = max(min(job.client_settings.connections, len(bitlinks)), 1)
    job = replace(job, client_settings=replace(job.client_settings, connections=connections))
    async with AsyncExitStack() as stack:

        def scratch() -> str:
            return stack.enter_context(scratch_folder(job.work_dir))

        try:
            opening = open_budgets(job, job.query.facet, scratch, observer, shutdown)
            budgets = await stack.enter_async_context(opening)
        except RunStopping:
            return RunOutcome(complete=False, stop=shutdown.stop, status=RunProgress(pending=len(bitlinks)))
        await budgets.slots.join()
        async with open_client(job, budgets, job.query, shutdown) as (client, discovery):
            rules = AbortRules(job.failure_limit, first_rows=True, next_begins=budgets.facet.month.next_begins)
            guard = None
            if job.open_guard is not None:
                window = Window(job, job.query, client, scratch, shutdown, observer, record_nothing, None, _seen, _kept)
                guard = job.open_guard(window)
            lookup = Lookup(job, client, bitlinks, on_row, rules, shutdown, observer, guard)
            # For a few links a helper request would cost more than its answer is worth.
            return await lookup.run(discovery if len(bitlinks) >= ASK_ATTEMPTS else None)


def _seen(_: WindowCheck) -> None:
    """Show the check of a window nowhere: there is no manifest."""


async def _kept(_: WindowCheck) -> None:
    """Keep the check of a window nowhere: there is no dataset."""


class Lookup:
    """Calls for bitlinks that are all known at the beginning; `run` is its only use."""

    def __init__(
        self,
        job: Job,
        opened: Client,
        bitlinks: Sequence[Bitlink],
        on_row: Callable[[Bitlink, bytes], None],
        rules: AbortRules,
        shutdown: ShutdownSignal,
        observer: RunObserver,
        guard: WindowGuard | None = None,
    ) -> None:
        self._job = job
        self._guard = guard
        self._client = opened
        self._waiting = deque(bitlinks)
        self._on_row = on_row
        self._shutdown = shutdown
        self._observer = observer
        self._rules = rules
        self._rows = RowBuilder(job.query, secrets.token_hex(6))
        self._progress = RunProgress(
            read_to_end=True, pending=len(bitlinks), attempts=opened.sender.counters, to_make=len(bitlinks)
        )
        self._grace = asyncio.timeout(None)
        opened.pace_by(self)

    @property
    def remaining(self) -> int:
        """Calls that no worker has taken yet."""
        return len(self._waiting)

    async def run(self, discovery: LimitDiscovery | None) -> RunOutcome:
        """Make all calls. discovery: learns Bitly's limits first; None to do without."""
        # A single link costs little more than its request, so that each task more than needed is felt.
        self._report()
        ending = asyncio.create_task(self._cut_short())
        try:
            with time_limited(self._job.max_time_seconds, self._shutdown):
                async with self._grace:
                    await self._make_calls(discovery)
        except TimeoutError:
            pass
        except BaseExceptionGroup as group:  # the first is on_row's
            raise group.exceptions[0] from None
        finally:
            ending.cancel()
            self._next_report.cancel()
        if stop := self._rules.at_end():
            self._shutdown.request(stop)
        progress, stop = self._progress, self._shutdown.stop
        progress.not_sent = self._client.sender.not_sent
        if not progress.pending and stop and stop.reason in {StopReason.SIGNAL, StopReason.MAX_TIME}:
            stop = None
        return RunOutcome(not progress.pending and not progress.failed and stop is None, stop, progress)

    async def _cut_short(self) -> None:
        """Cancel the calls in flight GRACE_SECONDS after the run was asked to stop."""
        await self._shutdown.wait()
        self._client.calls_ended()
        self._grace.reschedule(asyncio.get_running_loop().time() + GRACE_SECONDS)

    def _report(self) -> None:
        """Report the progress, now and every report_seconds."""
        sender = self._client.sender
        self._progress.waiting, self._progress.trouble = sender.waiting, sender.trouble
        self._observer.progress(self._progress)
        self._next_report = asyncio.get_running_loop().call_later(self._job.report_seconds, self._report)

    async def _make_calls(self, discovery: LimitDiscovery | None) -> None:
        try:
            if discovery is not None and (news := await discovery.learn()):
                self._observer.note(news.text, news.event, **news.fields)
            if self._guard is not None:
                await self._guard.confirm([*self._waiting])
        except RunStopping:
            return
        async with asyncio.TaskGroup() as group:
            workers = min(self._job.client_settings.connections, len(self._waiting))
            others = [group.create_task(self._work(group)) for _ in range(workers - 1)]
            await self._work(group)
            if others:
                await asyncio.wait(others)
            self._client.calls_ended()

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Make calls until none is left; each that is not settled at once waits in a task of its own."""
        try:
            while self._waiting and self._shutdown.stop is None:
                bitlink = self._waiting.popleft()
                verdict = await self._client.fetch(bitlink)
                place = self._client.place_of(verdict)
                if self._client.is_final(verdict):
                    await self._complete(bitlink, verdict, 1)
                    continue
                in_doubt = self._client.asks_about(verdict)
                group.create_task(self._conclude(bitlink, verdict, place))
                if in_doubt:
                    await self._client.question_over()
        except RunStopping:
            return

    async def _conclude(self, bitlink: Bitlink, first: Verdict, place: Place) -> None:
        """Find a call's last verdict and settle it, unless the run ends first."""
        try:
            verdict, attempts = await self._client.conclude(bitlink, first, place)
        except RunStopping:
            return
        await self._complete(bitlink, verdict, attempts)

    async def _complete(self, bitlink: Bitlink, verdict: Verdict, attempts: int) -> None:
        """Settle a call, once its answer has the metrics that it lacks, or the lookup ends."""
        try:
            verdict = await self._client.completion.of(bitlink, verdict)
        finally:  # also if it is cancelled: the first answer was paid for
            self._settle(bitlink, verdict, attempts)

    def _settle(self, bitlink: Bitlink, verdict: Verdict, attempts: int) -> None:
        """Hand over a call's row, or its failure, and record what it says about the whole run.

        Awaits nothing, like all that it calls. A task is cancelled only where it awaits, so a verdict that has come,
        and whose attempts are spent, is handed over even if `_cut_short` or the caller ends the lookup at that moment.
        """
        if (
            self._guard is not None
            and isinstance(verdict, Answer)
            and not self._guard.accepts(verdict, Link(bitlink, GIVEN, 0))
        ):
            return
        stop, progress = self._rules.see(verdict), self._progress
        if isinstance(verdict, Answer):
            progress.rows, progress.pending = progress.rows + 1, progress.pending - 1
            self._on_row(bitlink, self._rows.row(bitlink, self._rows.key(bitlink), verdict, utc_iso(datetime.now(UTC))))
        elif isinstance(verdict, Failure):
            self._settle_failure(bitlink, verdict, attempts)
        if stop is not None:
            self._shutdown.request(stop)

    def _settle_failure(self, bitlink: Bitlink, verdict: Failure, attempts: int) -> None:
        """Report a call without a row to the observer; awaits nothing, as `_settle` says."""
        # As in a harvest: a server that knows no path at all may be the wrong one.
        refused = is_plain_no(verdict)
        self._progress.pending -= 1
        self._progress.refused += refused
        self._progress.failed += not refused
        line = self._rows.failed_call("refused" if refused else "failed", bitlink, GIVEN, 0, verdict, attempts)
        self._observer.failure(line)
