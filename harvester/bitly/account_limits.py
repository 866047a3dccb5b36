"""Bitly's helper routes, which tell an account's limits: where to ask, and what an answer says. Pure, as `bitly` is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import quote, urlencode

from harvester.bitly.facets import Facet
from harvester.bitly.query import endpoint_of
from harvester.bitly.verdicts import truncate
from harvester.jsonlines import object_in

PLATFORM_LIMITS = "/user/platform_limits"
GROUPS = "/groups"
_MOST_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PlatformLimit:
    """What Bitly allows at an endpoint, taken as an hour's (it does not say of what), and has counted so far."""

    limit: int
    count: int


@dataclass(frozen=True, slots=True)
class PlanLimit:
    """One of the plan's monthly limits, by Bitly's name; which of them counts API requests is not documented."""

    name: str
    description: str
    limit: int
    count: int


def platform_limits_target(facet: Facet) -> str:
    """Give path and query that ask for the limits of a facet's endpoint, below the base URL.

    https://dev.bitly.com/api-reference/#getPlatformLimits.
    """
    return f"{PLATFORM_LIMITS}?{urlencode({'path': endpoint_of(facet)})}"


def plan_limits_target(organization: str) -> str:
    """Give the path that asks for an organization's plan limits, below the base URL."""
    return f"/organizations/{quote(organization, safe='')}/plan_limits"


def read_platform_limit(body: bytes, facet: Facet) -> PlatformLimit | None:
    """Find the limit of a facet's endpoint in an answer of `/user/platform_limits`; None if it makes no sense."""
    for entry in _objects(object_in(body).get("platform_limits")):
        if not str(entry.get("endpoint")).endswith(endpoint_of(facet)):
            continue
        for method in _objects(entry.get("methods")):
            limit, count = method.get("limit"), method.get("count")
            if method.get("name") == "GET" and _is_count(limit) and _is_count(count) and limit:
                return PlatformLimit(limit, count)
    return None


def read_plan_limits(body: bytes) -> list[PlanLimit]:
    """Read an answer of `/organizations/{guid}/plan_limits`; what makes no sense in it is left out."""
    found = []
    for entry in _objects(object_in(body).get("plan_limits")):
        name, limit, count = entry.get("name"), entry.get("limit"), entry.get("count")
        if isinstance(name, str) and _is_count(limit) and _is_count(count):
            found.append(PlanLimit(truncate(name), truncate(str(entry.get("description") or "")), limit, count))
    return found


def read_organization(body: bytes) -> str | None:
    """Find the organization's guid in an answer of `/groups`: the first group's."""
    for group in _objects(object_in(body).get("groups")):
        guid = group.get("organization_guid")
        if isinstance(guid, str) and guid:
            return guid
    return None


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_LIMIT
