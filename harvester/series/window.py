"""Is the window of Bitly's answers the period that was asked for? Checked by a series, once for a command and unit.

Bitly rounds `unit_reference`, in a way that it documents nowhere. A roll-up such as referrers does not name the days it
covers, a series (`clicks`) does. So before the first call of a period one call of the series is made, for a link of the
list, with the same unit, units and reference. Where the facet is itself a series, its own answers are the check.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import NamedTuple

from harvester.bitly.facets import FACETS, Metric
from harvester.bitly.query import Query, query_for
from harvester.bitly.verdicts import Answer, MonthSpent, PlanRefused, TokenRefused
from harvester.dataset.manifest import WindowCheck
from harvester.errors import RunStopping
from harvester.links.batch import Link
from harvester.run.abort_rules import WindowGuard, for_every_call
from harvester.run.assembly import AtOnce, Window, open_budgets, open_client
from harvester.shutdown import Stop, StopReason

_SERIES = "clicks"
_MOST_LINKS = 3
"""As many links are asked, one after another, if the first are refused or not answered."""
_BUCKETS_KEPT = 10


class _Seen(NamedTuple):
    """What a series answer says of the window. ok: None if it names no bucket, or another time than was asked for."""

    buckets: tuple[str, ...]
    ok: bool | None


def seen_in(metrics: Sequence[Metric], returned: str | None, query: Query) -> _Seen:
    """Return what the buckets of a series answer say of a query's period. returned: the reference in the answer.

    A period that the plan's history does not hold is answered without buckets, or for another moment: that is no
    mismatch, and says nothing of the periods within the history.
    """
    buckets = tuple(str(metric["date"]) for metric in metrics)
    if buckets == (query.period_start,):
        return _Seen(buckets, ok=True)
    elsewhere = returned is not None and not str(query.period_start) <= returned <= str(query.period_end)
    return _Seen(buckets[:_BUCKETS_KEPT], ok=None if not buckets or elsewhere else False)


class WindowChecks:
    """The checks of one command, which all its runs share."""

    def __init__(self) -> None:
        self._by_unit: dict[str, WindowCheck] = {}
        self._by_window: dict[tuple[str, str], WindowCheck] = {}
        self._asking = asyncio.Lock()

    def open_guard(self, window: Window) -> WindowGuard | None:
        """Return the guard of a run's window; None if that is no period."""
        if window.query.period_start is None:
            return None
        if window.known is not None:
            self.add(window.known)
        return _Answers(window, self) if FACETS[window.query.facet].is_series else _Question(window, self)

    def find(self, query: Query) -> WindowCheck | None:
        """Return the check that holds for a query's window."""
        return self._by_unit.get(query.unit) or self._by_window.get((query.unit, query.unit_reference))

    def add(self, check: WindowCheck) -> None:
        """Remember a check: for all periods of its unit, or for this one if it was left open by what was answered."""
        if check.ok is not None or check.link is None:
            self._by_unit[check.unit] = check
        else:
            self._by_window[check.unit, check.unit_reference] = check

    async def found_by(self, question: "_Question", bitlinks: Sequence[str]) -> WindowCheck | None:
        """Return the check of a question's window, made now unless another run has made it."""
        async with self._asking:
            query = question.window.query
            if (check := self.find(query)) is None and (check := await question.ask(bitlinks)) is not None:
                self.add(check)
            return check


class _Guard:
    """What both kinds of guards do with a check."""

    def __init__(self, window: Window, checks: WindowChecks) -> None:
        self.window = window
        self.checks = checks

    def refuse(self, check: WindowCheck) -> None:
        """Ask the run to stop."""
        query = self.window.query
        self.window.shutdown.request(
            Stop(
                StopReason.WINDOW_MISMATCH,
                f"the {query.unit} from {query.period_start} was asked for, and Bitly's answer for {check.link} covers "
                f"{', '.join(check.buckets)}: nothing was published, because its rows would be of another time",
            )
        )

    def check_of(self, link: str | None, seen: _Seen) -> WindowCheck:
        """Return what is recorded of an answer."""
        return WindowCheck(self.window.query.unit, self.window.query.unit_reference, link, seen.buckets, seen.ok)


class _Answers(_Guard):
    """The guard of a series: its own answers are the check."""

    async def confirm(self, bitlinks: Sequence[str]) -> None:
        """Do nothing: no answer has come yet."""

    def accepts(self, answer: Answer, link: Link) -> bool:
        """Return whether an answer's buckets are those of the period; if not, the run is asked to stop."""
        seen = seen_in(answer.metrics, answer.unit_reference_returned, self.window.query)
        check = self.check_of(link.bitlink, seen)
        if seen.ok is False:
            self.window.note(check)
            self.refuse(check)
            return False
        if self.checks.find(self.window.query) is None:
            self.checks.add(check)
            self.window.note(check)
        return True


class _Question(_Guard):
    """The guard of a roll-up, whose answers do not name their days: a series is asked."""

    def accepts(self, answer: Answer, link: Link) -> bool:  # noqa: ARG002 - it does not tell
        """Return True: the window was checked before."""
        return True

    async def confirm(self, bitlinks: Sequence[str]) -> None:
        """Make sure that the window is the period, with a call unless it is known.

        Raises:
            RunStopping: it is not, or the run is ending.
        """
        check = await self.window.shutdown.unless_stopping(self.checks.found_by(self, bitlinks))
        if check is None:
            return
        self.window.note(check)
        if check.ok is False:
            self.refuse(check)
            raise RunStopping
        await self.window.keep(check)

    async def ask(self, bitlinks: Sequence[str]) -> WindowCheck | None:
        """Ask for the series of up to three links and return what it says; None if the run will stop anyway."""
        window = self.window
        query = query_for(_SERIES, window.query.unit, window.query.units, window.query.unit_reference, size=1)
        job = replace(window.job, pool=window.client.sender.pool)
        # One that was answered before is the likeliest to be answered now.
        candidates = dict.fromkeys([*list(window.client.known_good.links)[-1:], *bitlinks[:_MOST_LINKS]])
        async with AsyncExitStack() as stack:
            opening = open_budgets(job, _SERIES, window.private, window.observer, window.shutdown)
            budgets = await stack.enter_async_context(opening)
            opening_client = open_client(job, budgets, query, window.shutdown, window.record_attempts)
            client, _ = await stack.enter_async_context(opening_client)
            client.sender.counters = window.client.sender.counters
            client.pace_by(AtOnce())
            client.calls_ended()  # no other call will tell whom a bad answer concerns
            for bitlink in [*candidates][:_MOST_LINKS]:
                verdict = await client.verdict_on(bitlink)
                if isinstance(verdict, Answer):
                    seen = seen_in(verdict.metrics, verdict.unit_reference_returned, window.query)
                    return self.check_of(bitlink, seen)
                if isinstance(verdict, TokenRefused | MonthSpent):
                    if stop := for_every_call(verdict, budgets.facet.month.next_begins):
                        window.shutdown.request(stop)
                    return None
                if isinstance(verdict, PlanRefused):
                    break
        window.observer.warn(
            f"it could not be checked that Bitly's window is {window.query.period_start} to {window.query.period_end}: "
            "no link's clicks were answered. Compare one link with Bitly's own page before you add up the numbers"
        )
        return self.check_of(None, _Seen((), ok=None))
