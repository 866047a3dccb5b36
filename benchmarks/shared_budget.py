"""Do hosts that share a budget in Redis keep its limits, and use them? By the log of a server that they all call.

usage: python -m benchmarks.shared_budget [--seconds 60]

Four processes ask one Redis for as much as they get, under 100 attempts in 2 s and 400 in 10 s: the minute and the hour
are so short for this, with a margin of 200 ms. First they run undisturbed. Then one of them is killed and started again
every 5 s, and Redis is killed and started again once (its file of commands is synced once a second). Last, ten hosts in
virtual time over a month. Needs redis-server.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

from benchmarks.measuring import said
from harvester.budget import limits as budget_limits
from harvester.budget.budget import Budget
from harvester.budget.limits import Account, RequestedLimits, RetryAfter
from harvester.events import RunObserver
from harvester.fleet import server
from harvester.fleet.address import parse_address
from harvester.sharing.machine_home import open_machine_home
from harvester.sharing.redis_home import open_redis_home
from harvester.shutdown import ShutdownSignal
from tests.support.redis_server import RedisProcess, running_redis
from tests.support.simulated_fleet import SimulatedFleet

PROCESSES = 4
WINDOWS = {2.0: 100, 10.0: 400}
MARGIN_SECONDS = 0.2
KILL_SECONDS = 5.0
LEAST = 0.98


# --- a host -----------------------------------------------------------------------------------------------------------


def quiet() -> RunObserver:
    """Return an observer that tells nobody anything."""
    return Mock(spec=RunObserver)


def shorten() -> None:
    """Make the minute 2 s long and the hour 10 s, and all that follows from them shorter."""
    spans = dict(zip(("minute", "hour"), WINDOWS, strict=True))
    budget_limits.SPANS.update(spans)
    budget_limits.COUNTED_SECONDS.update({window: span + MARGIN_SECONDS for window, span in spans.items()})
    server.BEAT_SECONDS, server.SETTLE_SECONDS = 0.1, 1.0


async def host(url: str, port: int, folder: str) -> None:
    """Call the server as often as the budget allows, until killed."""
    shorten()
    observer, shutdown = quiet(), ShutdownSignal()
    machine = await open_machine_home(folder, observer, shutdown)
    home = await open_redis_home(parse_address(url, "bench", "bench"), machine.database, folder, observer, shutdown)
    minute, hour = WINDOWS.values()
    requested = RequestedLimits(minute, hour, 0)
    budget = home.budget(Account("bitly:443", "token", "account"), "endpoint", requested)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            refused = budget.try_acquire()
            if refused is None:
                connection.sendall(b".")
            elif isinstance(refused, RetryAfter):
                await asyncio.sleep(min(refused.seconds, 0.1))


# --- the server -------------------------------------------------------------------------------------------------------


class Log:
    """A server that notes when each call arrives."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while calls := connection.recv(4096):
                self.arrivals += [time.monotonic()] * len(calls)

    def close(self) -> None:
        self._listener.close()


@dataclass
class Result:
    """What the log shows. most: the most calls in a window of each length. used: of what is allowed in that time."""

    calls: int
    used: float
    most: dict[float, int] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        return all(self.most[span] <= limit for span, limit in WINDOWS.items())


def judged(arrivals: list[float], seconds: float) -> Result:
    """Hold a log against the limits. seconds: from the first call on."""
    times = sorted(arrivals)
    within = [at for at in times if at < times[0] + seconds]
    longest, limit = max(WINDOWS), WINDOWS[max(WINDOWS)]
    allowed = limit * -(-seconds // longest)  # a window's limit at once, again and again
    return Result(len(within), len(within) / allowed, {span: most_in(times, span) for span in WINDOWS})


def most_in(times: list[float], span: float) -> int:
    """Return the most calls in any window of this length."""
    first = most = 0
    for last, at in enumerate(times):
        while times[first] <= at - span:
            first += 1
        most = max(most, last - first + 1)
    return most


# --- the cases --------------------------------------------------------------------------------------------------------


def start(redis: RedisProcess, log: Log, folder: Path) -> "subprocess.Popen[bytes]":
    words = ["--host", redis.url, str(log.port), str(folder)]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.shared_budget", *words], stdin=subprocess.DEVNULL)


def run(seconds: float, *, disturbed: bool) -> Result:
    """Let four hosts run. disturbed: one is killed every KILL_SECONDS, and Redis once."""
    folder = tempfile.TemporaryDirectory(prefix="harvester-bench-")
    with folder, running_redis("--appendonly", "yes") as redis, closing(Log()) as log:
        folders = [Path(folder.name) / str(number) for number in range(PROCESSES)]
        for each in folders:
            each.mkdir()
        hosts = [start(redis, log, each) for each in folders]
        try:
            while not log.arrivals:
                time.sleep(0.01)
            began, victim, restarted = time.monotonic(), 0, False
            kill_at = began + KILL_SECONDS
            while (now := time.monotonic()) < began + seconds:
                time.sleep(0.01)
                if disturbed and now >= kill_at:
                    hosts[victim].kill()
                    hosts[victim].wait()
                    hosts[victim] = start(redis, log, folders[victim])
                    kill_at, victim = kill_at + KILL_SECONDS, (victim + 1) % PROCESSES
                if disturbed and not restarted and now >= began + seconds / 2 + KILL_SECONDS / 2:
                    redis.kill()
                    redis.start()
                    restarted = True
        finally:
            for process in hosts:
                process.kill()
                process.wait()
        return judged(log.arrivals, seconds)


def month() -> tuple[int, int, float, int]:
    """Return, of ten hosts' December: calls, the limit, how long they took for it in hours, and windows over."""
    limits = RequestedLimits(100, 1000, 25_000)
    with running_redis() as redis:
        begin, end = datetime(2026, 12, 1, 0, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
        with closing(SimulatedFleet(redis.url, begin, limits)) as fleet:
            seen = fleet.run(end)
    return seen.months["2026-12"], 25_000, seen.spent_after / 3600, len(seen.over)


def attempt_seconds(endpoints: int = 20, calls: int = 100) -> float:
    """Return what counting an attempt takes, in seconds: one call of the script on loopback, without leases."""
    with running_redis() as redis, tempfile.TemporaryDirectory(prefix="harvester-bench-") as folder:
        budgets = asyncio.run(_opened(redis.url, folder, endpoints, calls))
        began = time.perf_counter()
        for budget in budgets:
            for _ in range(calls):
                assert budget.try_acquire() is None
        return (time.perf_counter() - began) / endpoints / calls


async def _opened(url: str, folder: str, endpoints: int, calls: int) -> list[Budget]:
    machine = await open_machine_home(folder, quiet(), ShutdownSignal())
    address = parse_address(url, "bench", "bench")
    home = await open_redis_home(address, machine.database, folder, quiet(), ShutdownSignal())
    account, limits = Account("bitly:443", "token", "account"), RequestedLimits(0, calls, 0)
    return [home.budget(account, str(number), limits) for number in range(endpoints)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run of four processes")
    parser.add_argument("--host", nargs=3, metavar=("URL", "PORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        url, port, folder = options.host
        asyncio.run(host(url, int(port), folder))
        return 0
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    failed = False
    print("| four processes | calls | used | most in 2 s | most in 10 s |\n|---|---|---|---|---|")
    for name, disturbed in (("undisturbed", False), ("one killed every 5 s, Redis once", True)):
        found = run(options.seconds, disturbed=disturbed)
        failed = failed or not found.kept or found.used < LEAST
        counts = " | ".join(f"{found.most[span]} of {limit}" for span, limit in WINDOWS.items())
        print(f"| {name} | {found.calls:,} | {found.used:.1%} | {counts} |", flush=True)
    calls, limit, hours, over = month()
    failed = failed or over > 0 or not LEAST * limit <= calls <= limit
    print(
        f"\nTen hosts, December in virtual time: {calls:,} of {limit:,} calls, spent after {hours:.1f} h, {over} over"
    )
    print(f"Counting an attempt: {attempt_seconds() * 1e6:.0f} µs")
    print(f"Promise: no window over, and {LEAST:.0%} used: {said(holds=not failed)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
