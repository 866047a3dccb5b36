"""A token at an endpoint, in Redis: calls of the script, and the state that hosts share, as of the last reply."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from harvester.budget import throttling
from harvester.budget.limits import COUNTED_SECONDS, SPANS, Limits, RequestedLimits
from harvester.budget.states import EndpointThrottle, ScopeState
from harvester.errors import BudgetBusy
from harvester.fleet.server import RedisServer

MOST_TRIES = 8
"""How often a change is made anew because others have changed the state meanwhile."""
_NO_STATE = -1

Reply = Mapping[str, Any]


class RedisEndpoint:
    """A token's counts and state at an endpoint. state, limits: as of the last reply.

    server: host and port of Bitly. names: those under which the month is counted. requested: what the options ask for.
    """

    def __init__(
        self,
        redis: RedisServer,
        server: str,
        names: tuple[str, ...],
        token: str,
        endpoint: str,
        requested: RequestedLimits,
    ) -> None:
        self.state = ScopeState(EndpointThrottle())
        self.limits = requested.limits()
        self._redis = redis
        self._server = server
        self._names = names
        self._keys = redis.keys.of_endpoint(server, token, endpoint)
        self._requested = requested
        self._version, self._reopened = _NO_STATE, 0

    @property
    def own_limits(self) -> Limits:
        """The limits without what throttled responses have taught."""
        reported = self.state.reported
        return self._requested.limits(reported.limit if reported else None)

    def limited_windows(self) -> list[tuple[str, int]]:
        """Return the windows that have a limit, with it, in order."""
        return [(window, limit) for window in SPANS if (limit := self.limits.of(window))]

    def call(self, operation: str, arguments: Reply, *, both: bool = False) -> dict[str, Any]:
        """Run an operation and return its reply; the state follows it. both: name windows without a limit, too.

        Raises:
            BudgetBusy: as RedisServer.call.
        """
        redis, keys = self._redis, self._keys
        if self._reopened != redis.reopened:  # numbers of versions may come again
            self._version, self._reopened = _NO_STATE, redis.reopened
        seq, total = redis.memory.totals.get(tuple(keys), (0, 0))
        windows = [(window, self.limits.of(window)) for window in SPANS] if both else self.limited_windows()
        given = {
            "server": self._server,
            "names": self._names,
            "version": self._version,
            "seq": seq,
            "total": total,
            "windows": [{"span": round(COUNTED_SECONDS[name] * 1000), "limit": limit} for name, limit in windows],
            "month_limit": self.limits.per_month,
            **arguments,
        }
        reply = redis.call(operation, keys, given)
        redis.memory.see(tuple(keys), reply["seq"], reply["total"])
        if "state" in reply:
            text = reply["state"]
            self.state = ScopeState.parse(text) if text else ScopeState(EndpointThrottle())
            self._refresh_limits()
        self._version = reply["version"]
        if self.state.throttle.learned_limits and operation != "write":
            self._raise_learned_limits(reply["total"])
        return reply

    def change(
        self,
        read: Callable[[], Reply],
        change: Callable[[ScopeState, Reply], bool],
        others: Callable[[], int] = int,
    ) -> bool:
        """Change the state, and return whether it was changed: `change` returns False for nothing to do.

        read: reads the counts. change: called with a copy of the state and what was read, again if another process
        was faster. others: returns the attempts to count with it.

        Raises:
            BudgetBusy: Redis is out of reach, or others change the state all the time.
        """
        for _ in range(MOST_TRIES):
            reply = read()
            state = deepcopy(self.state)
            if not change(state, reply):
                return False
            if "stale" not in self.call("write", {"state": state.to_json(), "add": others()}):
                return True
        raise BudgetBusy(f"{self._redis.name}: other processes change the limits all the time")

    def _raise_learned_limits(self, total: int) -> None:
        own, state = self.own_limits, deepcopy(self.state)
        limits = {window: own.of(window) for window in SPANS}
        if throttling.raise_learned_limits(state.throttle, total=total, limits=limits):
            self.call("write", {"state": state.to_json()})  # if another process was faster, the next call sees to it

    def _refresh_limits(self) -> None:
        own, throttle = self.own_limits, self.state.throttle
        per_minute, per_hour = (throttle.lowered(window, own.of(window)) for window in SPANS)
        self.limits = Limits(per_minute, per_hour, own.per_month)
