"""A token's windows, month and throttling in a Redis that many hosts share.

Windows, month and the probe are decided by the script, in one call an attempt. What a throttled response teaches is
decided here, by the same functions as for one machine: the state is read, changed, and written if nobody else has
changed it meanwhile.
"""

import math
import random
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from typing import Any

from harvester.budget import throttling
from harvester.budget.limits import (
    MINUTE,
    MOST_LEASED,
    SPANS,
    THROTTLED,
    Account,
    Counted,
    Lease,
    Limits,
    MonthExhausted,
    RequestedLimits,
    RetryAfter,
)
from harvester.budget.states import EndpointThrottle, ReportedLimits, ScopeState
from harvester.budget.throttling import LearnedBefore
from harvester.clock import from_epoch
from harvester.errors import BudgetBusy, OutputError
from harvester.fleet.endpoint import MOST_TRIES, RedisEndpoint, Reply
from harvester.fleet.month import LATEST_SECONDS, RedisMonth
from harvester.fleet.server import RedisServer
from harvester.progress import WindowState

REDIS = "redis"
"""RetryAfter.window while Redis is out of reach, or has restarted and waits for what other hosts have counted."""
_BUSY_SECONDS = 0.5
_POLL_SECONDS = 0.2


class RedisBudget:
    """A `Budget` in Redis; its methods are described there. requested: the limits that the options ask for.

    Raises:
        BudgetBusy: Redis is out of reach.
    """

    def __init__(
        self,
        redis: RedisServer,
        account: Account,
        endpoint: str,
        requested: RequestedLimits,
        rng: random.Random | None = None,
    ) -> None:
        self.month = RedisMonth(redis, account)
        self.requested = requested
        self._redis = redis
        self._name = endpoint
        self._rng = rng or throttling.RNG
        self._before = LearnedBefore()
        self._lease = Lease()
        self._endpoint = self._endpoint_for(account.token)
        self._windows = self._read_windows()

    @property
    def account(self) -> Account:
        return self.month.account

    @property
    def limits(self) -> Limits:
        return self._endpoint.limits

    @property
    def own_limits(self) -> Limits:
        return self._endpoint.own_limits

    @property
    def paused(self) -> bool:
        """True from a throttled response until a probe has passed."""
        return self._endpoint.state.throttle.paused

    @property
    def wants_known_good(self) -> bool:
        return self._endpoint.state.throttle.wants_known_good

    @property
    def reported_per_hour(self) -> int | None:
        reported = self._endpoint.state.reported
        return reported.limit if reported else None

    def use_token(self, fingerprint: str) -> None:
        try:
            self.close()
        except OutputError:  # then the rest of a lease stays counted
            self._lease = Lease()
        self.month.account = self.account._replace(token=fingerprint)
        self._endpoint = self._endpoint_for(fingerprint)

    # --- attempts --------------------------------------------------------------------------------------------------

    def try_acquire(self) -> RetryAfter | MonthExhausted | None:
        if self._lease.left and self._redis.clock.boot_seconds() < self._lease.counted.at:
            self._lease.left -= 1
            return None
        refusal: RetryAfter | MonthExhausted | None
        try:
            refusal = self._acquire()
        except BudgetBusy:
            refusal = RetryAfter(_BUSY_SECONDS, REDIS)
        self._redis.tell()
        return refusal

    def close(self) -> None:
        if self._lease.left:
            self._read()

    def _acquire(self) -> RetryAfter | MonthExhausted | None:
        for _ in range(MOST_TRIES):
            want = 1 if self.paused else max(self._lease.next_size, 1)
            reply = self._call("acquire", {"want": want, "share": MOST_LEASED, **self._probe()})
            if "stale" in reply:
                continue
            if (refusal := self._refusal(reply)) is None:
                self._count(reply)
            return refusal
        return RetryAfter(_POLL_SECONDS, REDIS)  # others change the state all the time

    def _probe(self) -> dict[str, Any]:
        """Return what makes an attempt the probe, and its earliest moment; nothing while the endpoint is open."""
        opens_at = self._endpoint.state.throttle.opens_at
        if opens_at is None:
            return {}
        probing = deepcopy(self._endpoint.state)
        # By a clock that is a little behind: the probe counts as lost a little earlier than it might.
        now = self._redis.redis_seconds(self._redis.clock.boot_seconds())
        throttling.begin_probe(probing.throttle, max(now, opens_at))
        return {"not_before": math.ceil(opens_at * 1000), "state": probing.to_json()}

    def _refusal(self, reply: Reply) -> RetryAfter | MonthExhausted | None:
        if (settling := reply.get("settling")) is not None:
            return RetryAfter(min(settling / 1000, _POLL_SECONDS), REDIS)
        if (refusal := self.month.refusal(reply, self.limits.per_month)) is not None:
            return refusal
        if "throttled" in reply:
            throttle = self._endpoint.state.throttle
            left = max((throttle.opens_at or 0.0) - reply["now"] / 1000, 0.0)
            return RetryAfter(min(left, _POLL_SECONDS) if throttle.probing else left, THROTTLED)
        if (wait := reply.get("wait")) is None:
            return None
        window, limit = self._endpoint.limited_windows()[reply["window"]]
        return RetryAfter(wait / 1000, window, limit)

    def _count(self, reply: Reply) -> None:
        """Take the attempts that the script has counted."""
        attempts, asks = reply["attempts"], reply["asks"]
        self.month.reported_spent = asks
        at, months = self._redis.boot_seconds(reply["at"]), tuple(reply["months"])
        self._lease = Lease(attempts, attempts - 1, Counted(self.account.token, at, months, asks, record=reply["at"]))
        self._redis.memory.see_counted(reply["spent"])

    def try_ask_date(self) -> bool:
        return False  # the calendar is Redis' clock, which no other of ours contradicts

    @property
    def counted(self) -> Counted:
        return self._lease.counted

    def give_back(self, attempt: Counted) -> None:
        given = {"at": attempt.record, "months": attempt.months, "asks": attempt.asks_month}
        self._counted_by(attempt).call("give_back", given)

    def sent_late(self, attempt: Counted) -> Counted | None:
        given = {"at": attempt.record, "months": attempt.months, "latest": round(LATEST_SECONDS * 1000)}
        reply = self._counted_by(attempt).call("move", given)
        if "refused" in reply:
            return None
        at, months = self._redis.boot_seconds(reply["at"]), tuple(reply["months"])
        return attempt._replace(at=at, months=months, record=reply["at"])

    def _counted_by(self, attempt: Counted) -> RedisEndpoint:
        """Return what counted an attempt: the token may have been rotated since."""
        return self._endpoint if attempt.token == self.account.token else self._endpoint_for(attempt.token)

    def _endpoint_for(self, token: str) -> RedisEndpoint:
        names = tuple(dict.fromkeys((self.account.name, token)))
        return RedisEndpoint(self._redis, self.account.server, names, token, self._name, self.requested)

    # --- throttling ------------------------------------------------------------------------------------------------

    def throttled(self, hint: float | datetime | None, *, sent_at: float, bitlink: str = "") -> None:
        sent = self._redis.redis_seconds(sent_at)

        def change(state: ScopeState, reply: Reply) -> bool:
            throttle, now = state.throttle, reply["now"] / 1000
            if throttle.paused and sent <= throttle.paused_at:  # it was under way when an earlier one began the pause
                throttling.note_late(throttle)
                return True
            if not throttle.paused:
                self._before.keep(bitlink, throttle.learned_limits)
            passed = {window: _passed(throttle, reply, window, index) for index, window in enumerate(SPANS)}
            utc = self.month.utc(now)
            throttling.pause_as_hinted(throttle, hint, utc, self._rng, now=now, passed=passed)
            return True

        self._change(change)

    def unlearn(self, bitlink: str) -> None:
        if self.paused or (before := self._before.take(bitlink)) is None:
            return

        def change(state: ScopeState, _: Reply) -> bool:
            state.throttle.learned_limits = deepcopy(before)
            state.throttle.suspected.clear()
            return True

        self._change(change)

    def answered(self, *, sent_at: float) -> None:
        if not self.paused:
            return
        sent = self._redis.redis_seconds(sent_at)

        def change(state: ScopeState, reply: Reply) -> bool:
            # An attempt that was under way before the throttled one says nothing about what came after it.
            if not state.throttle.probing or sent < state.throttle.paused_at:
                return False
            limits = {window: self.limits.of(window) for window in SPANS}
            throttling.reopen(state.throttle, sent_at=sent, total=reply["total"], limits=limits)
            return True

        self._change(change)

    # --- Bitly's report --------------------------------------------------------------------------------------------

    def ask_due(self, *, begin: bool = False) -> bool:
        if not self.requested.needs_report:
            return False

        def change(state: ScopeState, reply: Reply) -> bool:
            reported, total, now = state.reported, reply["total"], reply["now"] / 1000
            if reported and not reported.asking_pays(state.throttle, total=total, now=now, begin=begin):
                return False
            state.reported = replace(reported or ReportedLimits(0.0, 0), asked_at=now, asked_total=total)
            return True

        return self._change(change)

    def not_answered(self) -> None:
        def change(state: ScopeState, reply: Reply) -> bool:
            if state.reported is None or state.reported.limit is not None:
                return False
            state.reported.ask_soon(reply["now"] / 1000)
            return True

        self._change(change)

    def record_reported(self, limit: int, count: int | None) -> int:
        others = 0

        def change(state: ScopeState, reply: Reply) -> bool:
            nonlocal others
            reported = state.reported or ReportedLimits(reply["now"] / 1000, reply["total"])
            if count is not None:
                others = reported.others(count, total=reply["total"], used=reply["used"][1])
            reported.limit, state.reported = limit, reported
            if count is not None and count >= limit >= self.requested.limits(limit).per_hour > 0:
                throttling.note_full(state.throttle)
            return True

        self._change(change, lambda: others)
        return others

    # --- state -----------------------------------------------------------------------------------------------------

    def room(self) -> float:
        reply = self._read()
        if self.paused:
            return 0.0
        used = dict(zip(SPANS, reply["used"], strict=True))
        rooms = [limit - used[window] for window, limit in self._endpoint.limited_windows()]
        if self.limits.per_month:
            rooms.append(self.limits.per_month - reply["near"])
        return max(min(rooms, default=math.inf), 0)

    def windows(self) -> list[WindowState]:
        # While Redis is out of reach they are as they were: a run that waits for it may begin with them.
        with suppress(BudgetBusy):
            self._windows = self._read_windows()
        return self._windows

    def _read_windows(self) -> list[WindowState]:
        reply = self._read()
        utc = self.month.utc(reply["now"] / 1000)
        states = [self._window_state(window, reply, index) for index, window in enumerate(SPANS)]
        reported = self.month.reported_lately(reply.get("reported"), utc)
        limit, used, source = self.requested.month_use(self.limits.per_month, reply["month"], reported_spent=reported)
        return [*states, WindowState("month", limit, used, self.month.ends_at(utc), source)]

    def hour_releases(self) -> list[tuple[float, int]]:
        reply = self._read({"records": True, "minute": round(SPANS[MINUTE] * 1000)})
        return sorted((int(minute) * SPANS[MINUTE], count) for minute, count in reply["records"].items())

    def opens_in(self) -> float:
        reply = self._read()
        opens_at = self._endpoint.state.throttle.opens_at
        return 0.0 if opens_at is None else max(opens_at - reply["now"] / 1000, 0.0)

    def at(self, seconds: float) -> datetime:
        return from_epoch(self.month.now() + seconds)

    def _window_state(self, window: str, reply: Reply, index: int) -> WindowState:
        limit, wait = self.limits.of(window), reply["waits"][index]
        until = from_epoch(self.month.utc((reply["now"] + wait) / 1000)) if wait else None
        return WindowState(window, limit, reply["used"][index], until, self._source(window))

    def _source(self, window: str) -> str:
        own = self.own_limits.of(window)
        lowered = self._endpoint.state.throttle.lowered(window, own) != own
        return self.requested.source_of(window, throttled=lowered, reported=self.reported_per_hour is not None)

    # --- the script ------------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[ScopeState, Reply], bool], others: Callable[[], int] = int) -> bool:
        return self._endpoint.change(self._read, change, others)

    def _read(self, arguments: Reply | None = None) -> Reply:
        """Read the counts, and give back what is left of the lease."""
        reply = self._call("read", arguments or {}, both=True)
        self._redis.memory.months.update(reply["spent"])
        return reply

    def _call(self, operation: str, arguments: Reply, *, both: bool = False) -> Reply:
        reply = self._endpoint.call(operation, {**arguments, **self._leftover()}, both=both)
        self.month.see(reply)
        return reply

    def _leftover(self) -> dict[str, Any]:
        """Return what is left of the lease, which a call gives back: once, even if nobody answers it."""
        lease = self._lease
        if not lease.left:
            return {}
        back = {"attempts": lease.left, "at": lease.counted.record, "months": lease.counted.months}
        lease.end()
        return {"back": back}


def _passed(throttle: EndpointThrottle, reply: Reply, window: str, index: int) -> int:
    """Return how many attempts passed in a window before the throttled response that has just come."""
    # What was sent before the probe that last reopened the window lay in an earlier window of Bitly's.
    since_reopened = reply["total"] - throttle.reopened.get(window, 0)
    passed: int = min(reply["used"][index], since_reopened) - 1
    return max(passed, 0)
