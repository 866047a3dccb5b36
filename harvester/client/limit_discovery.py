"""What Bitly itself says of an account's limits, asked for over its helper routes."""

from harvester.bitly.account_limits import (
    GROUPS,
    PlanLimit,
    plan_limits_target,
    platform_limits_target,
    read_organization,
    read_plan_limits,
    read_platform_limit,
)
from harvester.bitly.facets import FACETS
from harvester.bitly.verdicts import MonthSpent, classify_error
from harvester.budget.budget import Budget
from harvester.client.attempt import NOT_ASKED, HelperResponse
from harvester.client.client import Client
from harvester.client.stops import month_spent
from harvester.events import Event, EventMessage, Field
from harvester.shutdown import ShutdownSignal

HELPERS = "helpers"
"""The helper routes' own windows, under this name; the month is the account's."""
_COUNTED_OVER = 1.1
"""Perhaps Bitly counts throttled attempts, too: a count of up to so many times the limit is a full hour's."""


class LimitDiscovery:
    """Asks for a facet's limits when that pays, and has the budget keep them.

    budget: the facet's; helpers: the helper routes'.
    """

    def __init__(self, client: Client, budget: Budget, helpers: Budget, facet: str, shutdown: ShutdownSignal) -> None:
        self._client = client
        self._budget = budget
        self._helpers = helpers
        self._facet = FACETS[facet]
        self._shutdown = shutdown
        self._asked = 0
        self._told = False

    async def learn(self) -> EventMessage | None:
        """Ask Bitly for the endpoint's limits, if that is due; give what a person should know of it.

        Raises:
            Stopping: the run ended, or the answer is that the month is spent. OutputError: the budget's file.
        """
        if not self._budget.ask_due(begin=self._asked == 0):
            return None
        self._asked += 1
        before = self._budget.limits
        looked = await self._client.sender.look_up(platform_limits_target(self._facet), self._helpers)
        said = read_platform_limit(looked.body, self._facet) if looked and looked.status == 200 else None
        if said is None:
            self._stop_if_spent(looked)
            if looked is None or looked.status in {NOT_ASKED, 429} or looked.status >= 500:
                self._budget.not_answered()
            return self._untold(_what_came(looked))
        sensible = said.count <= said.limit * _COUNTED_OVER
        others = self._budget.observe(said.limit, min(said.count, said.limit) if sensible else None)
        changed = self._budget.limits != before
        news, self._told = changed or others or not self._told, True
        return self._tell(said.limit, said.count, others, sensible=sensible, changed=changed) if news else None

    def _untold(self, why: str) -> EventMessage:
        text = f"Bitly did not tell its limits ({why}); going on with {_kept(self._budget)}"
        return EventMessage(Event.LIMITS_UNAVAILABLE, text, {"reason": why, **self._keeping()})

    def _tell(self, limit: int, count: int, others: int, *, sensible: bool, changed: bool) -> EventMessage:
        told = f"Bitly allows {limit:,} an hour here and has counted {count:,}"
        if not sensible:
            told += ", which makes no sense and is not relied upon"
        if others:
            told += f", {others:,} of them not by this machine"
        if changed:
            told += f"; keeping {_kept(self._budget)}"
        return EventMessage(
            Event.LIMITS_REPORTED, told, {"limit": limit, "count": count, "others": others, **self._keeping()}
        )

    def _keeping(self) -> dict[str, Field]:
        return {"per_minute": self._budget.limits.per_minute, "per_hour": self._budget.limits.per_hour}

    async def plan(self) -> list[PlanLimit]:
        """Ask for the plan's limits, in two calls; empty when Bitly does not tell."""
        groups = await self._client.sender.look_up(GROUPS, self._helpers)
        organization = read_organization(groups.body) if groups and groups.status == 200 else None
        if organization is None:
            return []
        looked = await self._client.sender.look_up(plan_limits_target(organization), self._helpers)
        return read_plan_limits(looked.body) if looked and looked.status == 200 else []

    def _stop_if_spent(self, looked: HelperResponse | None) -> None:
        known = looked is not None and looked.status not in {NOT_ASKED, 200}
        found = classify_error(looked.status, looked.headers, looked.body) if looked and known else None
        if isinstance(found, MonthSpent):
            self._budget.month.mark_spent()
            self._shutdown.request(month_spent(found))


def _kept(budget: Budget) -> str:
    per_minute, per_hour = budget.limits.per_minute, budget.limits.per_hour
    minute = f"{per_minute:,} a minute" if per_minute else "no limit a minute"
    return f"{minute} and {per_hour:,} an hour" if per_hour else f"{minute} and no limit an hour"


def _what_came(looked: HelperResponse | None) -> str:
    if looked is None:
        return "no answer"
    if looked.status == NOT_ASKED:
        return "no call was left to ask"
    return "an answer without them" if looked.status == 200 else f"HTTP {looked.status}"
