"""A shared budget's Redis: one call of the script at a time, without waiting for a server that is not there.

A budget is asked in the event loop, with a connection to Bitly in hand, and nothing is awaited between its yes and the
request. So a call is a plain one of a fraction of a millisecond, and blocks for CALL_SECONDS at most. Connecting may
take longer, so a thread does it: while there is no connection each call fails at once, and attempts wait. The same
thread tells Redis each second that this process lives.
"""

import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import orjson

from harvester.budget.limits import COUNTED_SECONDS, HOUR
from harvester.clock import Clock
from harvester.errors import BudgetBusy, OutputError, UsageError
from harvester.fleet.memory import SharedMemory
from harvester.fleet.script import Keys, budget_script

CALL_SECONDS = 0.5
"""The longest that a call may block."""
BEAT_SECONDS = 1.0
"""The time between two contacts. A process was alive when Redis ended if it was in contact within _ALIVE_BEATS."""
_ALIVE_BEATS = 3
SETTLE_SECONDS = 5.0
"""How long the processes that were alive have to tell a restarted Redis what they have seen."""
LEASE_SECONDS = 50.0
"""How long a process without contact keeps its connections: its last attempt has ended by then."""
_LEAVE_SECONDS = 3.0


class Connector(Protocol):
    """What makes connections, and knows the errors of the library that does; `connecting.RedisConnector`."""

    name: str
    foreign: tuple[type[Exception], ...]
    unknown_script: type[Exception]

    def connect(self, call_seconds: float) -> tuple[Any, str]:
        """Return a connection, and the name of Redis' run."""

    def refusal(self, error: Exception) -> UsageError | None:
        """Return our error for one that another try would meet again."""

    def other_version(self, theirs: str, ours: str) -> str:
        """Return what to do where another version of the script has its keys."""

    def in_words(self, error: Exception) -> str:
        """Return why there is no answer."""


class RedisServer:
    """A shared budget's Redis, open from `connect` to `close`.

    clock: for seconds since boot. memory: what to remind Redis of. warn: told once when attempts begin to wait, and
    when they go on. time_ms: only for tests, the time instead of Redis' own.

    process: the name of this process there. reopened: how often Redis was new to this process; settling_seconds: how
    long others then have had to say what they know. egress_keys: of the
    connections that this process shares, live: the processes that share them, held: the numbers of its own.
    """

    def __init__(
        self,
        connector: Connector,
        keys: Keys,
        clock: Clock,
        memory: SharedMemory,
        warn: Callable[[str], None],
        time_ms: Callable[[], float] | None = None,
    ) -> None:
        self.clock = clock
        self.memory = memory
        self.keys = keys
        self.process = uuid.uuid4().hex
        self.reopened = 0
        self.settling_seconds = 0.0
        self.egress_keys: list[str] = []
        self.live: list[str] = []
        self.held: frozenset[int] = frozenset()
        self._connector = connector
        self._warn = warn
        self._time_ms = time_ms
        self._lock = threading.RLock()
        self._client: Any = None
        self._run = ""
        self._why = "not connected yet"
        self._told = False
        self._news: list[str] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked_at = self._answered_at = clock.boot_seconds()
        self._redis_ms = 0

    @property
    def name(self) -> str:
        """The address, as it may be shown."""
        return self._connector.name

    # --- life ------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, and tell Redis what this process knows.

        Raises:
            UsageError: Redis refuses us, and will again. BudgetBusy: it cannot be reached, or is not ready.
        """
        client = None
        try:
            client, run = self._connector.connect(CALL_SECONDS)
            with self._lock:
                self._run = run
                self._open(client)
                self._client = client
        except self._connector.foreign as error:
            raise self._lost(client, error) from error

    def start(self) -> None:
        """Stay in contact, and connect again whenever the connection is lost, until `close`."""
        self._thread = threading.Thread(target=self._stay_in_contact, name="harvester-redis", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take leave of Redis, so that nobody waits for this process, and close the connection."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_LEAVE_SECONDS)
        with suppress(OutputError):
            self.call("leave", self.egress_keys)
        with self._lock:
            self.memory.keep()
            if self._client is not None:
                self._client.close()
                self._client = None

    def _stay_in_contact(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OutputError, UsageError):  # whoever is to be counted next meets it, too
                if self._client is None:
                    self.connect()
                self.beat()

    # --- calls -----------------------------------------------------------------------------------------------------

    def call(self, operation: str, keys: list[str], arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run an operation of the script once and return its reply.

        Raises:
            BudgetBusy: Redis has not answered; it may have run the operation all the same. OutputError: another version
            of harvester has taken over its keys.
        """
        with self._lock:
            client = self._client
            if client is None:
                raise BudgetBusy(f"{self.name}: {self._why}")
            try:
                reply = self._run_script(client, operation, keys, arguments or {})
                if "reopen" in reply:  # nothing was run
                    self._open(client)
                    reply = self._run_script(client, operation, keys, arguments or {})
            except self._connector.foreign as error:
                raise self._lost(client, error) from error
            if "reopen" in reply:
                raise BudgetBusy(f"{self.name}: its memory is lost again and again")
            return reply

    def learn(self, months: Mapping[str, int]) -> None:
        """Send Redis the months that this machine knows. Raises as `call`."""
        self.memory.see_months(months)
        if months:
            self.call("learn", [], {"months": months})

    def beat(self) -> None:
        """Renew this process in Redis, and read who else shares its connections."""
        reply = self.call("beat", self.egress_keys)
        self.live, self.held = list(reply.get("live", ())), frozenset(reply.get("held", ()))

    def tell(self) -> None:
        """Warn of what has happened to Redis since; called in the thread of the event loop."""
        while self._news:
            self._warn(self._news.pop(0))
        if self._client is None and not self._told:
            self._told = True
            self._warn(f"the shared budget is out of reach ({self.name}: {self._why}); attempts wait for it")
        elif self._client is not None and self._told:
            self._told = False
            self._warn(f"the shared budget is back ({self.name}); attempts go on")

    @property
    def why_away(self) -> str:
        """Why there is no connection; empty if there is one."""
        return "" if self._client is not None else f"{self.name}: {self._why}"

    # --- time ------------------------------------------------------------------------------------------------------

    @property
    def silent_seconds(self) -> float:
        """The time since Redis last answered."""
        return self.clock.boot_seconds() - self._answered_at

    def redis_seconds(self, boot_seconds: float) -> float:
        """Return the time by Redis' clock at a moment of ours, or a little less: a reply takes time to arrive."""
        return self._redis_ms / 1000 + boot_seconds - self._answered_at

    def boot_seconds(self, redis_ms: int) -> float:
        """Return our seconds since boot at a moment of Redis', or a little less, as of the last reply."""
        return self._asked_at + (redis_ms - self._redis_ms) / 1000

    # --- the script ------------------------------------------------------------------------------------------------

    def _run_script(self, client: Any, operation: str, keys: list[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = {
            "generation": self.memory.generation,
            "run": self._run,
            "process": self.process,
            "lease": round(LEASE_SECONDS * 1000),
            "settle": round(SETTLE_SECONDS * 1000),
            "alive": round(_ALIVE_BEATS * BEAT_SECONDS * 1000),
            "kept": round(COUNTED_SECONDS[HOUR] * 1000),
            **arguments,
        }
        if self._time_ms is not None:
            given["now"] = self._time_ms()
        names = [*self.keys.common, *keys]
        words = [len(names), *names, operation, orjson.dumps(given)]
        script, asked_at = budget_script(), self.clock.boot_seconds()
        try:
            answer = client.execute_command("EVALSHA", script.digest, *words)
        except self._connector.unknown_script:
            answer = client.execute_command("EVAL", script.text, *words)
        reply: dict[str, Any] = orjson.loads(answer)
        if "other_version" in reply:
            text = self._connector.other_version(reply["other_version"], reply["version"])
            raise OutputError(text) if self.reopened else UsageError(text)
        if "now" in reply:
            self._asked_at, self._answered_at, self._redis_ms = asked_at, self.clock.boot_seconds(), reply["now"]
        return reply

    def _open(self, client: Any) -> None:
        """Begin with a Redis that is new to this process, or has restarted: both sides say what they know."""
        memory = self.memory
        known = {"known": memory.generation, "recent": memory.is_recent, "months": dict(memory.months)}
        reply = self._run_script(client, "open", [], {"candidate": uuid.uuid4().hex, **known})
        lost = memory.generation not in {"", reply["generation"]}
        memory.begin(reply["generation"])
        self.reopened += 1
        for keys, (seq, total) in list(memory.totals.items()):
            self._run_script(client, "report", list(keys), {"seq": seq, "total": total})
        reply = self._run_script(client, "reported", [], {})
        self.settling_seconds = reply["settling"] / 1000
        if lost and reply["closed_at"]:
            self._news.append(
                f"{self.name} has lost its counts: the month is restored from what its hosts know, and each window "
                "counts as full for its whole length"
            )

    def _lost(self, client: Any, error: Exception) -> BudgetBusy | UsageError:
        """Drop a connection after an error, and return what to raise. client: None if there is none yet."""
        self._why = self._connector.in_words(error)
        if self._client is client:
            self._client = None
        if client is not None:
            with suppress(*self._connector.foreign):
                client.close()
        if not self.reopened and (refusal := self._connector.refusal(error)):
            return refusal
        return BudgetBusy(f"{self.name}: {self._why}")
