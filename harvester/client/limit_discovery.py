"""The limits that Bitly itself reports for an endpoint and an account, fetched over its helper routes."""

import asyncio
from dataclasses import asdict
from weakref import WeakKeyDictionary

from harvester.bitly.account_limits import (
    NOT_ASKED,
    HelperResponse,
    PlanLimit,
    api_month,
    plan_limits_target,
    platform_limits_target,
    read_organization,
    read_plan_limits,
    read_platform_limit,
)
from harvester.bitly.facets import FACETS
from harvester.bitly.query import GROUPS
from harvester.bitly.verdicts import MonthSpent, PlanRefused, Refused, classify_error, reason
from harvester.budget.budget import Budget
from harvester.budget.limits import PlanReport
from harvester.client.attempt import AttemptSender
from harvester.errors import BudgetBusy, OutputError, RunStopping
from harvester.events import Event, EventMessage, Field
from harvester.jsonlines import object_in
from harvester.shutdown import ShutdownSignal, Stop, StopReason, month_spent

HELPERS = "helpers"
"""The endpoint under which the budget counts helper requests: they have windows of their own, the month is shared."""
_COUNTED_OVER = 1.1
"""Bitly perhaps counts throttled attempts too: up to this many times the limit, a count stands for a full hour."""
_PLAN_SECONDS = 3600.0
"""How long a plan is forecast with the limits that Bitly reported, which change when another plan is bought."""
_asking: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""Held while the plan is asked for."""


class LimitDiscovery:
    """Fetches a facet's limits whenever that pays, and records them in the budget.

    budget: of the facet's endpoint. helpers: of the helper routes.
    """

    def __init__(
        self, sender: AttemptSender, budget: Budget, helpers: Budget, facet: str, shutdown: ShutdownSignal
    ) -> None:
        self._sender = sender
        self._budget = budget
        self._helpers = helpers
        self._facet = FACETS[facet]
        self._shutdown = shutdown
        self._requests = 0
        self._reported = False

    async def learn(self) -> EventMessage | None:
        """Fetch the endpoint's limits if that is due, and return what a person should know; None for no news.

        Raises:
            RunStopping: the run ended, Bitly reports the month as spent, or the budget's file is broken.
        """
        try:
            if not self._budget.ask_due(begin=self._requests == 0):
                return None
            self._requests += 1
            return self._record(await self._sender.look_up(platform_limits_target(self._facet), self._helpers))
        except BudgetBusy:
            return None
        except OutputError as error:
            self._shutdown.request(Stop(StopReason.OUTPUT, str(error)))
            raise RunStopping from error

    def _record(self, response: HelperResponse | None) -> EventMessage | None:
        before = self._budget.limits
        reported = read_platform_limit(response.body, self._facet) if response and response.status == 200 else None
        if reported is None:
            self._stop_if_spent(response)
            if response is None or response.status in {NOT_ASKED, 429} or response.status >= 500:
                self._budget.not_answered()
            why = _what_came(response)
            text = f"Bitly gave no limits ({why}); using {_in_words(self._budget)}"
            return EventMessage(Event.LIMITS_UNAVAILABLE, text, {"reason": why, **self._limits()})
        sensible = reported.count <= reported.limit * _COUNTED_OVER
        others = self._budget.record_reported(reported.limit, min(reported.count, reported.limit) if sensible else None)
        changed = self._budget.limits != before
        news, self._reported = changed or others or not self._reported, True
        return self._news(reported.limit, reported.count, others, sensible=sensible, changed=changed) if news else None

    def _news(self, limit: int, count: int, others: int, *, sensible: bool, changed: bool) -> EventMessage:
        text = f"Bitly allows {limit:,} calls an hour for this endpoint and counts {count:,}"
        if not sensible:
            text += " (implausible, so ignored)"
        if others:
            text += f" ({others:,} of them not in this budget)"
        if changed:
            text += f"; limiting to {_in_words(self._budget)}"
        return EventMessage(
            Event.LIMITS_REPORTED, text, {"limit": limit, "count": count, "others": others, **self._limits()}
        )

    def _limits(self) -> dict[str, Field]:
        return {"per_minute": self._budget.limits.per_minute, "per_hour": self._budget.limits.per_hour}

    async def plan(self) -> PlanReport | None:
        """Return what Bitly reports of the account's plan, for which it is asked once an hour; None if it does not.

        Raises:
            RunStopping: the run ended first. OutputError: the budget's file is broken.
        """
        report = self._budget.month.plan_report()
        if report is None or report.age_seconds >= _PLAN_SECONDS:
            await self._fetch_plan()
        return self._budget.month.plan_report()

    async def _fetch_plan(self) -> None:
        """Fetch the plan's limits with two helper requests, and record them; also that Bitly has none for this token.

        What fails for another reason is not recorded, so it is tried again the next time.
        """
        groups = await self._sender.look_up(GROUPS, self._helpers)
        organization = read_organization(groups.body) if groups and groups.status == 200 else None
        limits, response = list[PlanLimit](), groups
        if organization is not None:
            response = await self._sender.look_up(plan_limits_target(organization), self._helpers)
            limits = read_plan_limits(response.body) if response and response.status == 200 else []
        if not _is_final(response):
            return
        month = api_month(limits)
        self._budget.month.note_plan(month.limit if month else 0, [asdict(limit) for limit in limits])

    async def plan_month(self) -> int | None:
        """Return the calls a month that Bitly reports for the account's plan, asked for once a day; None for none.

        Raises:
            RunStopping: the run ended first. OutputError: the budget's file is broken.
        """
        async with _asking.setdefault(asyncio.get_running_loop(), asyncio.Lock()):  # the facets of a command ask once
            month = self._budget.month
            if month.plan_report() is None:
                await self._fetch_plan()
            report = month.plan_report()
            return report.month or None if report else None

    def _stop_if_spent(self, response: HelperResponse | None) -> None:
        if response is None or response.status in {NOT_ASKED, 200}:
            return
        verdict = classify_error(response.status, response.headers, response.body)
        if isinstance(verdict, MonthSpent):
            self._budget.month.mark_spent()
            self._shutdown.request(month_spent(reason(verdict), self._budget.month.next_begins()))


def _is_final(response: HelperResponse | None) -> bool:
    """Return whether a response is Bitly's word on what a token may know, which the same request would get again."""
    if response is None or response.status == NOT_ASKED:
        return False
    if response.status == 200:
        return bool(object_in(response.body))
    return isinstance(classify_error(response.status, response.headers, response.body), Refused | PlanRefused)


def _in_words(budget: Budget) -> str:
    limits = budget.limits.per_minute, budget.limits.per_hour
    minute, hour = (f"{limit:,}" if limit else "no limit" for limit in limits)
    return f"{minute} a minute and {hour} an hour"


def _what_came(response: HelperResponse | None) -> str:
    if response is None:
        return "no answer"
    if response.status == NOT_ASKED:
        return "no call was left for the question"
    return "its answer has none" if response.status == 200 else f"HTTP {response.status}"
