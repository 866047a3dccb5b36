"""Links without clicks get their rows without a call, where an export of their group states it (`--skip-idle`).

A row that was not asked for says as much as an answer would, and no more: the export covers the query's window, and a
link of which it does not state zero is asked for as any other. Exports are requests of the account's month, beside the
calls: they have a client of their own over the run's connections, with the limits of their endpoint.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from harvester.bitly.exports import MOST_LINKS, ExportRequests, Span, span_of
from harvester.bitly.verdicts import MonthSpent, Transient, Verdict, reason
from harvester.budget.budget import Budget
from harvester.client.attempt import ClientContext
from harvester.client.circuit_breaker import BreakerRules, CircuitBreaker
from harvester.client.client import Client, ClientSettings, opened
from harvester.clock import iso_second
from harvester.dataset.dataset import Dataset
from harvester.dataset.manifest import WindowCheck
from harvester.errors import InputBroken, RunStopping
from harvester.events import RunObserver
from harvester.groups.activity import ActiveLinks, Asks, LinkActivity, NamedLink, SharedExports
from harvester.progress import AttemptCounts, RunProgress
from harvester.rows.call import IDLE, ROW_STATE
from harvester.shutdown import ShutdownSignal, StopReason, month_spent
from harvester.worklist.calls import Call
from harvester.worklist.elsewhere import CallSource

_PATIENCE_SECONDS = 60.0
"""Exports that get no answer for longer are given up. The run's own calls then show whether the server is out."""
_MOST_QUESTIONS = 3
"""Calls that are made to see one answer before links are skipped."""
_POLL_SECONDS = 0.05
GATHERED = 10 * MOST_LINKS
"""Calls whose links are exported together, if the list can be read at once."""
_OF_EXPORTS = frozenset({StopReason.OUTAGE, StopReason.THROTTLED})
"""Reasons to stop that may concern exports alone."""


@dataclass(frozen=True, slots=True)
class ExportAccess:
    """What exports are asked for with.

    budget: of their endpoint. helpers: as in ClientContext. clock: the budget's seconds since boot. client: that of the
    run's calls, whose connections and token they share. group_of: returns the guid of a line's group. gathered: the
    calls that are waited for before their links are exported; 0 for a list that comes bit by bit. shared: the exports
    of the command's other facets, None without any.
    """

    budget: Budget
    helpers: Budget
    clock: Callable[[], float]
    settings: ClientSettings
    rules: BreakerRules
    client: Client
    group_of: Callable[[int], str | None]
    gathered: int
    shared: SharedExports | None


class IdleRows:
    """Gives links their rows that an export states to have no clicks.

    window_check: returns what is known of the window, where that is a period.
    """

    def __init__(
        self,
        access: ExportAccess,
        dataset: Dataset,
        progress: RunProgress,
        window_check: Callable[[], WindowCheck | None],
        shutdown: ShutdownSignal,
        observer: RunObserver,
    ) -> None:
        self._access = access
        self._dataset = dataset
        self._progress = progress
        self._window_check = window_check
        self._shutdown = shutdown
        self._observer = observer
        self._sent = 0
        self._told = False
        self._activity = LinkActivity(access.group_of, ActiveLinks(dataset.location.private), observer.warn)

    async def settle(self, calls: list[Call], worklist: CallSource) -> list[Call]:
        """Record the rows of calls whose links are idle, and return the others.

        worklist: is read further, so that few exports have less than all the links that they may have.

        Raises:
            RunStopping: the run is ending. OutputError: a row could not be recorded. InputBroken: the list cannot be
            read further; the worklist has the calls before.
        """
        calls = await self._after_an_answer(calls, worklist)
        if (span := self._span()) is None:
            return calls
        try:
            while len(calls) < self._access.gathered and not worklist.progress.read_to_end:
                calls = calls + (await worklist.read() or [])
        except InputBroken:
            worklist.add(await self._without_idle(calls, span))
            raise
        return await self._without_idle(calls, span)

    async def finish(self) -> None:
        """Do nothing: no call is outstanding."""

    async def _after_an_answer(self, calls: list[Call], worklist: CallSource) -> list[Call]:
        """Hand out a few calls if none has had an answer yet, which shows how much history the plan keeps.

        Return the others. A period was checked before, and there is no more than all that the plan keeps.

        Raises:
            RunStopping: the run is ending.
        """
        query, client, progress = self._dataset.rows.query, self._access.client, self._progress
        if self._answered or query.period_start is not None or query.units == -1:
            return calls
        first, rest = calls[:_MOST_QUESTIONS], calls[_MOST_QUESTIONS:]
        taken = progress.started + len(first)
        worklist.add(first)
        # Refusals before the first answer are held, so nothing but the first attempts is waited for.
        while not self._answered and (progress.started < taken or client.under_way):
            await self._shutdown.sleep_unless_stopping(_POLL_SECONDS)
        return rest

    @property
    def _answered(self) -> bool:
        totals = self._dataset.totals
        return totals.rows > totals.idle

    async def _without_idle(self, calls: list[Call], span: Span) -> list[Call]:
        left = {call.link.bitlink: call for call in calls}
        async with self._asking(span) as ask:
            async for idle in self._activity.idle_among([NamedLink(c.link.bitlink, c.link.line) for c in calls], ask):
                # As for an answer, nothing is awaited before all that it says is in the journal.
                fetched_at = iso_second(int(time.time()))
                for bitlink in sorted(idle):
                    self._record(left.pop(bitlink), fetched_at)
        return [*left.values()]

    def _record(self, call: Call, fetched_at: str) -> None:
        line = self._dataset.rows.idle_row(call.link.bitlink, call.key, fetched_at, call.link.carried)
        self._dataset.record(call.key, ROW_STATE, line, call.previous, IDLE, call.lacked, 0)
        self._progress.count_idle(call)

    def _span(self) -> Span | None:
        """Return the time to ask for; None, with a warning, if no export can be believed to cover the window."""
        query, why = self._dataset.rows.query, ""
        span = span_of(query, datetime.now(UTC))
        if span is None:
            why = "the window has not begun"
        elif self._dataset.totals.clipped:
            why = "the account's plan keeps a shorter history than was requested, and an export does not say which"
        elif query.period_start is None and query.units != -1 and not self._answered:
            why = "no link was answered, so it is not known whether the account's plan keeps the whole window"
        elif query.period_start is not None and not ((check := self._window_check()) and check.ok):
            why = "it could not be checked that Bitly's window is the period"
        if why and not self._told:
            self._told = True
            self._observer.warn(f"--skip-idle: {why}; every link is asked for")
        return None if why else span

    @asynccontextmanager
    async def _asking(self, span: Span) -> AsyncIterator[Asks]:
        """Open a client for exports. An outage of theirs is no reason to end the run, so they have their own signal."""
        own = ShutdownSignal()
        async with _following(self._shutdown, own), self._client_for(span, own) as client:

            async def ask(name: str) -> Verdict:
                try:
                    verdict = await client.verdict_on(name)
                except RunStopping:
                    stop = own.stop
                    if stop is None or self._shutdown.stop is not None:
                        raise
                    if stop.reason in _OF_EXPORTS:
                        return Transient(None, stop.message)
                    self._shutdown.request(stop)
                    raise
                if isinstance(verdict, MonthSpent):
                    self._shutdown.request(month_spent(reason(verdict), self._access.budget.month.next_begins()))
                    raise RunStopping
                return verdict

            # The export of a window that is no period ends with the present moment, so each is for another time.
            shared = self._access.shared if self._dataset.rows.query.period_start is not None else None
            yield ask if shared is None else lambda name: shared.verdict_on(name, span, ask)

    @asynccontextmanager
    async def _client_for(self, span: Span, own: ShutdownSignal) -> AsyncIterator[Client]:
        access, earlier = self._access, self._sent
        calls = access.client.sender

        def record(counts: AttemptCounts) -> None:
            sent = earlier + counts.total + counts.helper
            calls.counters.helper += sent - self._sent
            self._sent = self._progress.exports = sent
            self._dataset.record_attempts(calls.counters)

        patience = min(access.rules.limit_seconds, _PATIENCE_SECONDS)
        breaker = CircuitBreaker(replace(access.rules, limit_seconds=patience), access.clock)
        token, clock = access.client.token, access.clock
        context = ClientContext(token, access.budget, breaker, own, clock, record, access.helpers)
        async with opened(calls.pool, access.settings, ExportRequests(span), context) as client:
            client.work_alone()
            yield client


@asynccontextmanager
async def _following(leading: ShutdownSignal, own: ShutdownSignal) -> AsyncIterator[None]:
    """Pass what stops the run on to another signal."""

    async def follow() -> None:
        await leading.wait()
        assert leading.stop is not None
        own.request(leading.stop)

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        following.cancel()
