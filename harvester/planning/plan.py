"""A plan: the cost and the end of a run that has not begun, as `planner` found them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import ceil, floor
from typing import NamedTuple

from harvester.bitly.account_limits import PlanLimit
from harvester.bitly.exports import MOST_LINKS
from harvester.budget.forecast import Forecast, Start, SteadyState, Suggestion, forecast, steady_state
from harvester.budget.limits import PLAN_MONTHS, Limits
from harvester.progress import RefreshCounts, WindowState
from harvester.worklist.list_count import ListCount, ListSurvey

COMPARED_PLANS = {month: plan.capitalize() for plan, month in PLAN_MONTHS.items()}
"""Bitly's plans by their calls a month, which the table compares."""
_SIZES = (1_000, 10_000, 100_000)


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


class PlannedPages(NamedTuple):
    """Pages of groups' links. read: for the plan, now or before; again: by the run, as its output keeps none."""

    read: int
    again: int


class PlannedExports(NamedTuple):
    """What --skip-idle may save. exports: requests at most; least, most: all requests for the calls, if no further link
    has had clicks and if every link has. expected: with the share of this output so far; None if it has too few rows.
    """

    exports: int
    least: int
    most: int
    expected: int | None


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """What --refresh comes to. ages: the links by the age of their answers. days: the age at which one is due.

    never: requests for links without an answer; answered: when all have one, None if that is too far away. steady: the
    state that then follows. idle_days: the age at which an idle link is due, None without --prefer active.
    """

    ages: RefreshCounts
    days: float
    never: int
    answered: datetime | None
    steady: SteadyState
    idle_days: float | None = None


class Endpoint(NamedTuple):
    """A facet's limits in force, and how full its minute, its hour and the month are."""

    limits: Limits
    windows: list[WindowState]


@dataclass(frozen=True, slots=True)
class Plan:
    """The cost and the end of a run that has not begun.

    found: the list, counted. survey: what it looks like. pages: of groups' links that were read for it, None without
    groups. attempts: for its calls, with as many retries as this dataset needed so far. account, windows: None and
    empty without a token. plan_limits: what Bitly reports of the account's plan, only shown.
    plan_limits_age: the seconds since it did, None if it has not. now: the moment from which
    the forecast counts, UTC. durations: those of this list and of others, for each of Bitly's plans. completed_from:
    the metrics of an answer from which on its link takes a second request; None if none does. month_used: calls of the
    present month. refused: the run would ask for the account's plan before its first call. facets, periods: those that
    each link is asked for; found counts the calls of all. idle: None without --skip-idle; attempts are then those
    expected, or at most. refresh: None without --refresh. endpoints: the limits of each facet, empty for one facet;
    limits and windows are then those of the first one, and its month is that of all.
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
    plan_limits_age: float | None
    now: datetime
    durations: list[Duration]
    completed_from: int | None
    month_used: int
    refused: bool
    facets: int = 1
    periods: int = 1
    idle: PlannedExports | None = None
    refresh: RefreshPlan | None = None
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)

    @property
    def wanted(self) -> int:
        """The calls that all outputs of the command need in all, those already made among them."""
        return self.found.links * self.facets * self.periods


def refresh_plan(ages: RefreshCounts, never: int, requests: int, limits: Limits, start: Start) -> RefreshPlan:
    """Return what --refresh comes to. never, requests: those for links without an answer, and for all links once."""
    days = (ages.seconds or 0) / 86400
    return RefreshPlan(ages, days, never, forecast(never, limits, start).ends, steady_state(requests, limits, days))


def durations(attempts: int, limits: Limits, start: Start, used: int) -> Iterator[Duration]:
    """Yield how long this list, and lists of usual sizes, take with each of Bitly's plans. used: of this month."""
    for links in sorted({*_SIZES, attempts} - {0}):
        for per_month, name in COMPARED_PLANS.items():
            left = max(per_month - used, 0) if links == attempts else per_month
            found = forecast(links, replace(limits, per_month=per_month), replace(start, month_left=left))
            yield Duration(links, name, per_month, found.ends, len(found.pauses) + 1)


def exports_for(links: int, attempts: int, sure: int, active: float | None) -> PlannedExports:
    """Return what exports may save of attempts.

    links: those that no export has told of. sure: the attempts for links that are known to have clicks. active: the
    share of the others that have clicks, None if unknown.
    """
    exports = ceil(links / MOST_LINKS)
    expected = None if active is None else exports + sure + ceil((attempts - sure) * active)
    return PlannedExports(exports, exports + sure, exports + attempts, expected)


def month_is_spent(windows: list[WindowState]) -> bool:
    """True if Bitly has reported it, which no option changes."""
    return bool(windows) and windows[-1].source == "bitly"


def together(attempts: Mapping[str, int], endpoints: Mapping[str, Endpoint]) -> Limits:
    """Return the limits of facets that go side by side as one: the facet that takes longest decides.

    attempts: those of each facet. The month is one for all.
    """

    def combined(limits: Mapping[str, int]) -> int:
        limited = [facet for facet, limit in limits.items() if limit]
        longest = max((attempts[facet] / limits[facet] for facet in limited), default=0.0)
        return max(floor(sum(attempts.values()) / longest + 1e-9), 1) if longest else sum(limits.values())

    by_facet = {facet: endpoint.limits for facet, endpoint in endpoints.items()}
    return Limits(
        combined({facet: limits.per_minute for facet, limits in by_facet.items()}),
        combined({facet: limits.per_hour for facet, limits in by_facet.items()}),
        next(iter(by_facet.values())).per_month,
    )


def differ(endpoints: Mapping[str, Endpoint]) -> bool:
    """Return whether minute or hour are not the same for all facets."""
    seen = {tuple((w.window, w.limit, w.used, w.source) for w in each.windows[:-1]) for each in endpoints.values()}
    return len(seen) > 1
