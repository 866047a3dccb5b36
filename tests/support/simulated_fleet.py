"""Ten hosts that share a budget in a real Redis, in virtual time: what arrives is held against the limits."""

import heapq
import random
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from harvester.budget.limits import SPANS, Account, MonthExhausted, RequestedLimits, RetryAfter
from harvester.clock import month_of
from harvester.fleet.budget import RedisBudget
from tests.support.fleets import Host, a_prefix, settled
from tests.support.virtual_time import VirtualClock

_ACCOUNT = Account("api.example:443", "token", "acme")
_ANSWER_SECONDS = 0.3


class Apart(VirtualClock):
    """A host's clock, which shows another time than Redis'. fleet: has the time."""

    def __init__(self, fleet: "SimulatedFleet", wrong: float) -> None:
        super().__init__(0.0)
        self._fleet, self._wrong = fleet, wrong

    def boot_seconds(self) -> float:
        return self._fleet.now + self._wrong


@dataclass
class Seen:
    """What has arrived. months: by calendar month. over: windows that held more than their limit."""

    months: Counter[str] = field(default_factory=Counter)
    over: list[str] = field(default_factory=list)
    spent_after: float = 0.0


class SimulatedFleet:
    """Hosts that ask for as much as they get, and now and then crash and start again. now: seconds since 1970.

    url: of the Redis. limits: of the token and the account. hosts: how many.
    """

    def __init__(self, url: str, begin: datetime, limits: RequestedLimits, hosts: int = 10, seed: int = 1) -> None:
        self.now = self.began = begin.timestamp()
        self.seen = Seen()
        self._url = url
        self._limits = limits
        self._prefix = a_prefix()
        self._rng = random.Random(seed)
        self._recent = {window: deque[float]() for window in SPANS}
        self._budgets = [self._start() for _ in range(hosts)]

    def _start(self) -> RedisBudget:
        """Start a host, whose clock is minutes apart from the others'."""
        clock = Apart(self, self._rng.uniform(-600.0, 600.0))
        host = Host(self._url, self._prefix, clock, lambda: self.now * 1000)
        host.redis.connect()
        settled(host, self._prefix)
        return host.budget(_ACCOUNT, "clicks", self._limits, self._rng)

    def run(self, until: datetime) -> Seen:
        """Let the hosts work until a moment."""
        due = [(self.now + self._rng.random(), number) for number in range(len(self._budgets))]
        heapq.heapify(due)
        while due[0][0] < until.timestamp():
            self.now, number = heapq.heappop(due)
            heapq.heappush(due, (self.now + self._step(number), number))
        return self.seen

    def _step(self, number: int) -> float:
        """Let a host make its next attempt; return when it makes another, in seconds from now."""
        if self._rng.random() < 0.001:  # killed, with what it had leased
            self._budgets[number]._redis._client.close()
            self._budgets[number] = self._start()
        refused = self._budgets[number].try_acquire()
        if refused is None:
            self._arrives()
            return self._rng.uniform(0.5, 1.5) * _ANSWER_SECONDS
        if isinstance(refused, MonthExhausted):
            self.seen.spent_after = self.seen.spent_after or self.now - self.began
            return refused.until.timestamp() - self.now + self._rng.random()
        assert isinstance(refused, RetryAfter)
        return max(refused.seconds, 0.001) + self._rng.random() * 0.05

    def _arrives(self) -> None:
        self.seen.months[month_of(self.now)] += 1
        for window, times in self._recent.items():
            times.append(self.now)
            while times[0] <= self.now - SPANS[window]:
                times.popleft()
            limit = self._limits.limits().of(window)
            if len(times) > limit:
                self.seen.over.append(f"{window}: {len(times)} of {limit}")

    def close(self) -> None:
        """Let the hosts go."""
        for budget in self._budgets:
            with suppress(AttributeError):
                budget._redis._client.close()
