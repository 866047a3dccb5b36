"""A simulated Bitly and a dataset in memory, for harvests in virtual time.

The Bitly has what the real one is known or feared to have: fixed windows that begin nobody knows when, a month of the
calendar, others who use the same token, outages. It checks every arrival against the limits that harvester promised.
"""

import asyncio
import math
import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson
from yarl import URL

from harvester.bitly.account_limits import PLATFORM_LIMITS
from harvester.clock import month_of
from harvester.dataset.dataset import Batch
from harvester.dataset.manifest import RunReport
from harvester.rows.call import WHOLE, CallState, Entry, Known, Shortfall, Totals
from harvester.storage.location import OutputKind
from harvester.transport.connection import SlotConnection
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.pool import Pool, Slot
from harvester.transport.session import SessionTransport
from tests.support.virtual_time import VirtualClock

ROW = b'{"metrics":[{"value":"direct","clicks":3}],"units":30}'
JITTER_SECONDS = 0.5


@dataclass
class World:
    """What the server allows and does. Limits: 0 for none.

    others_per_hour: asked by others, in the hours for which others_busy says so. outages, spent: from and to, seconds
    since the beginning, of a server that is out, and of one that throttles whatever is asked. poisoned: links that
    always fail. throttled: links that are throttled whatever has passed. tells: answers platform_limits; told_per_hour:
    another limit than it has, 0 for its own. counts_throttled: in what it tells.
    """

    per_minute: int = 100
    per_hour: int = 1000
    per_month: int = 0
    latency: float = 0.12
    errors: float = 0.002
    others_per_hour: int = 0
    others_busy: Callable[[float], bool] = lambda seconds: False
    outages: Sequence[tuple[float, float]] = ()
    spent: Sequence[tuple[float, float]] = ()
    brown: Sequence[tuple[float, float, float]] = ()
    tells: bool = True
    told_per_hour: int = 0
    counts_throttled: bool = False
    hint: str | None = None
    count: Callable[[int], int] = lambda count: count
    poisoned: Callable[[str, float], bool] = lambda bitlink, seconds: False
    throttled: frozenset[str] = frozenset()


class Promise:
    """A sliding window of arrivals that must never hold more than its limit."""

    def __init__(self, limit: int, span: float) -> None:
        self._limit = limit
        self._span = span - 1e-6  # rounding
        self._times: deque[float] = deque(maxlen=limit)

    def check(self, at: float) -> None:
        if len(self._times) == self._limit:
            assert at - self._times[0] >= self._span, f"more than {self._limit} in {self._span:.0f} s"
        self._times.append(at)


class SimulatedBitly:
    """The server's side; promised: limits that our attempts must keep, whatever the server's are."""

    def __init__(self, world: World, clock: VirtualClock, rng: random.Random, promised: Sequence[Promise]) -> None:
        self.world = world
        self.clock = clock
        self.rng = rng
        self.began = clock.boot_seconds()
        self.answered: Counter[str] = Counter()
        self.last_at = self.began
        self.attempts = self.throttled = self.failed = self.helped = self.others = 0
        self.by_month: Counter[str] = Counter()
        self.month_refused = 0
        self._promised = promised
        self._arrivals: list[float] = []
        self._used: dict[str, tuple[int, int]] = {"minute": (0, 0), "hour": (0, 0)}
        self._starts = {"minute": rng.uniform(0, 60), "hour": rng.uniform(0, 3600)}
        self._others_seen = self.began
        self._owed = 0.0
        self.reached_at: list[float] = []
        self.attempts_while_out = 0

    @property
    def seconds(self) -> float:
        return self.clock.boot_seconds() - self.began

    def out(self) -> bool:
        return self._within(self.world.outages)

    def _errors(self) -> float:
        shares = [share for begin, end, share in self.world.brown if begin <= self.seconds < end]
        return max(shares, default=self.world.errors)

    def _within(self, spans: Sequence[tuple[float, float]]) -> bool:
        now = self.seconds
        return any(begin <= now < end for begin, end in spans)

    def answer(self, target: str) -> tuple[int, bytes]:
        if target.startswith(f"/v4{PLATFORM_LIMITS}"):
            return self._tell()
        bitlink = target.removeprefix("/v4/bitlinks/").partition("/referrers")[0]
        self.attempts += 1
        self._check_promises()
        self.last_at = self.clock.boot_seconds()
        if self.attempts % 100 == 0:
            self.reached_at.append(self.last_at)
        if self.out():
            self.attempts_while_out += 1
            self.failed += 1
            return 503, b'{"message":"TEMPORARILY_UNAVAILABLE"}'
        if refusal := self._over_a_limit():
            return refusal
        if bitlink in self.world.throttled:
            self.throttled += 1
            return 429, b'{"message":"RATE_LIMIT_EXCEEDED"}'
        if self.world.poisoned(bitlink, self.seconds) or self.rng.random() < self._errors():
            self.failed += 1
            return 500, b'{"message":"INTERNAL_ERROR"}'
        self.answered[bitlink] += 1
        return 200, ROW

    def utilisation(self, limit: int, span: float) -> float:
        """What came of what a window allows, between the moments at which it was first and last full.

        limit: a multiple of 100.
        """
        full = self.reached_at[limit // 100 - 1 :: limit // 100]
        return (len(full) - 1) * span / (full[-1] - full[0])

    def _check_promises(self) -> None:
        # On its way it took up to half a second; arrivals are looked at in their order, when no earlier one can come.
        now = self.clock.boot_seconds()
        for at in self._due(now - JITTER_SECONDS):
            for promise in self._promised:
                promise.check(at)
        arrival = now + self.rng.random() * JITTER_SECONDS
        self._arrivals.insert(bisect_right(self._arrivals, arrival), arrival)
        self.by_month[month_of(self.clock.wall())] += 1

    def _due(self, until: float) -> list[float]:
        index = bisect_right(self._arrivals, until)
        due, self._arrivals = self._arrivals[:index], self._arrivals[index:]
        return due

    def _over_a_limit(self) -> tuple[int, bytes] | None:
        self.let_others_ask()
        now = self.clock.boot_seconds()
        if self._within(self.world.spent) or any(
            limit and self._count(name, now) >= limit for name, limit in self._limits()
        ):
            self.throttled += 1
            if self.world.counts_throttled:
                self._use(1, now)
            return 429, b'{"message":"RATE_LIMIT_EXCEEDED"}'
        if self.world.per_month and self.by_month[month_of(self.clock.wall())] > self.world.per_month:
            self.month_refused += 1
            return 429, b'{"message":"MONTHLY_LIMIT_EXCEEDED"}'
        self._use(1, now)
        return None

    def _index(self, name: str, at: float) -> int:
        return math.floor((at + self._starts[name]) / (60.0 if name == "minute" else 3600.0))

    def _count(self, name: str, at: float) -> int:
        index, count = self._used[name]
        return count if index == self._index(name, at) else 0

    def _use(self, attempts: int, at: float) -> None:
        for name in self._used:
            self._used[name] = (self._index(name, at), self._count(name, at) + attempts)

    def let_others_ask(self) -> None:
        """Count what others have asked since the last request, minute by minute, as far as the limits let them."""
        now = self.clock.boot_seconds()
        while self._others_seen + 60.0 <= now:
            at = self._others_seen = self._others_seen + 60.0
            if self.world.others_per_hour and self.world.others_busy(at - self.began):
                self._owed += self.world.others_per_hour / 60.0
                rooms = [limit - self._count(name, at) for name, limit in self._limits() if limit]
                whole = max(min(int(self._owed), *rooms), 0)
                self._owed -= int(self._owed)
                self.others += whole
                self._use(whole, at)

    def _limits(self) -> tuple[tuple[str, int], ...]:
        return ("minute", self.world.per_minute), ("hour", self.world.per_hour)

    def _tell(self) -> tuple[int, bytes]:
        self.helped += 1
        self.by_month[month_of(self.clock.wall())] += 1
        self.let_others_ask()
        if not self.world.tells or not self.world.per_hour:
            return 404, b"404 page not found"
        method = {
            "name": "GET",
            "limit": self.world.told_per_hour or self.world.per_hour,
            "count": self.world.count(self._count("hour", self.clock.boot_seconds())),
        }
        entry = {"endpoint": "/bitlinks/{bitlink}/referrers", "methods": [method]}
        return 200, orjson.dumps({"platform_limits": [entry]})


class Answer:
    """An answer as the client reads it."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.headers = headers
        self.status = status
        self.content_length = len(body)
        self._body = body

    async def read(self) -> bytes:
        return self._body


class Request:
    """A request under way, as an asynchronous context manager."""

    def __init__(self, bitly: SimulatedBitly, target: str) -> None:
        self._bitly = bitly
        self._target = target

    async def __aenter__(self) -> Answer:
        status, body = self._bitly.answer(self._target)
        world = self._bitly.world
        await asyncio.sleep(world.latency)
        return Answer(status, body, {"Retry-After": world.hint} if status == 429 and world.hint else {})

    async def __aexit__(self, *_: object) -> None:
        return None


class Session:
    """Stands where aiohttp's session does."""

    def __init__(self, bitly: SimulatedBitly) -> None:
        self._bitly = bitly

    def get(self, url: URL, **_: Any) -> Request:
        return Request(self._bitly, url.raw_path_qs)

    async def close(self) -> None:
        return None


class AllSlots(ConnectionSlots):
    """Every slot of the machine, without locks."""

    def __init__(self, most: int) -> None:
        self._numbers: set[int] = set()
        self._all = most

    @property
    def held(self) -> int:
        return len(self._numbers)

    @property
    def share(self) -> int:
        return self._all

    def grab(self) -> int | None:
        number = len(self._numbers)
        self._numbers.add(number)
        return number

    def give_back(self, number: int) -> None:
        self._numbers.discard(number)


def slot_over(number: int, session: Any, origin: str = "https://bitly") -> Slot:
    """Return a slot whose requests are sent by a session, or by what stands in for one."""
    line = SlotConnection()
    return Slot(number, SessionTransport(session, URL(origin).origin(), line), line)


async def pool_of(bitly: SimulatedBitly, connections: int) -> Pool:
    session: Any = Session(bitly)
    pool = Pool(AllSlots(connections), lambda number: slot_over(number, session))
    await pool.rebalance()
    return pool


class _Rows:
    """Stands where RowMaker does: a link is its own key, and a row says nothing."""

    def key(self, bitlink: str) -> bytes:
        return bitlink.encode()

    def row(self, *_: object, **__: object) -> bytes:
        return b""

    def shortfall(self, _: object) -> Shortfall:
        return WHOLE

    def failure(self, *_: object, **fields: object) -> bytes:
        return repr(fields).encode()

    def failed_call(self, *fields: object) -> bytes:
        return repr(fields).encode()


@dataclass
class MemoryStore:
    """A dataset in memory, which several runs may open one after the other; committed at once."""

    calls: dict[bytes, Known] = field(default_factory=dict)
    invocation: int = 0
    rows: Any = field(default_factory=_Rows)
    location: Any = field(default_factory=lambda: SimpleNamespace(kind=OutputKind.FOLDER, out="memory"))
    backlogged: bool = False
    due: bool = False
    behind: bool = False
    waiting: int = 0
    rows_recorded: int = 0
    invalid: list[bytes] = field(default_factory=list)
    _batch: Batch = field(default_factory=Batch)

    @property
    def totals(self) -> Totals:
        states = Counter(known.state for known in self.calls.values())
        return Totals(states[CallState.ROW], states[CallState.REFUSED], states[CallState.FAILED])

    @property
    def ledger(self) -> Any:
        def known(keys: Sequence[bytes]) -> dict[bytes, Known]:
            return {key: self.calls[key] for key in keys if key in self.calls}

        return SimpleNamespace(last_refused=lambda _: [], known=known)

    def record(
        self, key: bytes, state: CallState, line: bytes, previous: CallState | None, *_: object, **__: object
    ) -> None:
        assert key not in self.calls or self.calls[key].state is not CallState.ROW, "a row was bought twice"
        failed_runs = self.calls[key].failed_runs if key in self.calls else 0
        self.calls[key] = Known(state, failed_runs + (state is CallState.FAILED), self.invocation)
        self._batch.entries.setdefault(0, []).append(Entry(key, state, None))

    def note_seen(self, key: bytes) -> None:
        self.calls[key] = self.calls[key]._replace(seen=self.invocation)

    def take_batch(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        return batch

    def commit(self, batch: Batch) -> None:
        batch.durable = True

    def publish(self) -> None: ...

    def free_bytes(self) -> int:
        return 2**40

    def count(self, name: str, more: int = 1) -> None: ...
    def note_invalid(self, line: bytes) -> None:
        self.invalid.append(line)

    def give_back(self, batch: Batch) -> None: ...
    def end_part(self) -> None: ...
    def shorten_waits(self) -> None: ...

    def leave(self) -> None: ...
    def write_failures(self) -> None: ...
    def write_manifest(self, report: RunReport) -> RunReport:
        return report

    def declare_success(self) -> None: ...
    def remove_success_marker(self) -> None: ...
