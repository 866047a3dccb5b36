"""The routes by which Bitly reports an account's limits: what to request, below the base URL, and what comes back."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard
from urllib.parse import quote, urlencode

from harvester.bitly.facets import Facet
from harvester.bitly.query import endpoint_of
from harvester.bitly.verdicts import truncate
from harvester.jsonlines import object_in

PLATFORM_LIMITS = "/user/platform_limits"
LIMITS_KEY = "platform_limits"
"""The key of an answer of that route."""
NOT_ASKED = 0
"""The status of a helper request that was not sent."""
_MOST_LIMIT = 2**31 - 1
_API = re.compile(r"(?<![a-z])api(?![a-z])", re.IGNORECASE)


class HelperResponse(NamedTuple):
    """A helper route's response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class PlatformLimit:
    """Bitly's limit for one endpoint and the requests counted so far.

    Bitly does not document the period of this limit; it is taken as an hour.
    """

    limit: int
    count: int


@dataclass(frozen=True, slots=True)
class PlanLimit:
    """One of the plan's monthly limits under Bitly's name; which of them counts API requests is not documented."""

    name: str
    description: str
    limit: int
    count: int


def platform_limits_target(facet: Facet) -> str:
    """Return the path and query that ask for a facet's limits: https://dev.bitly.com/api-reference/#getPlatformLimits."""
    return limits_target(endpoint_of(facet))


def limits_target(endpoint: str) -> str:
    """Return the path and query that ask for an endpoint's limits. endpoint: its path template."""
    return f"{PLATFORM_LIMITS}?{urlencode({'path': endpoint})}"


def plan_limits_target(organization: str) -> str:
    """Return the path that asks for an organization's plan limits."""
    return f"/organizations/{quote(organization, safe='')}/plan_limits"


def read_platform_limit(body: bytes, facet: Facet) -> PlatformLimit | None:
    """Return the limit of a facet's endpoint from a response of `/user/platform_limits`, or None if it has none."""
    for entry in _objects(object_in(body).get(LIMITS_KEY)):
        if not str(entry.get("endpoint")).endswith(endpoint_of(facet)):
            continue
        for method in _objects(entry.get("methods")):
            limit, count = method.get("limit"), method.get("count")
            if method.get("name") == "GET" and _is_count(limit) and _is_count(count) and limit:
                return PlatformLimit(limit, count)
    return None


def read_plan_limits(body: bytes) -> list[PlanLimit]:
    """Return the limits in a response of `/organizations/{guid}/plan_limits`, without malformed entries."""
    limits = []
    for entry in _objects(object_in(body).get("plan_limits")):
        name, limit, count = entry.get("name"), entry.get("limit"), entry.get("count")
        if isinstance(name, str) and _is_count(limit) and _is_count(count):
            limits.append(PlanLimit(truncate(name), truncate(str(entry.get("description") or "")), limit, count))
    return limits


def api_month(limits: Iterable[PlanLimit]) -> PlanLimit | None:
    """Return the limit that seems to be the month's API requests; None if none is recognised.

    Bitly does not document its name, so this may be shown to a person, and sets no limit by itself.
    """
    return next((each for each in limits if each.limit and _API.search(f"{each.name} {each.description}")), None)


def read_organization(body: bytes) -> str | None:
    """Return the guid of the first group's organization from a response of `/groups`, or None."""
    for group in _objects(object_in(body).get("groups")):
        guid = group.get("organization_guid")
        if isinstance(guid, str) and guid:
            return guid
    return None


def _objects(value: object) -> list[Mapping[str, Any]]:
    """Return the objects in a JSON list; nothing for another value."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_LIMIT
