"""What does one link cost? CPU of `harvester.metrics` and of `harvester show`, beyond start-up.

usage: python -m benchmarks.one_link [--times 50]
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from statistics import median

import harvester
from benchmarks.measuring import NO_LIMITS, run, serving

MOST_MILLISECONDS = 5.0
RUNS = 7


async def metrics_cost(url: str, state_dir: str, times: int) -> float:
    """Return the median CPU of a call of `harvester.metrics` in milliseconds, without the first."""
    costs = []
    for number in range(times + 1):
        began = time.process_time()
        await harvester.metrics(
            f"bit.ly/{number}",
            token="benchmark",
            base_url=url,
            state_dir=state_dir,
            per_minute=0,
            per_hour=0,
            per_month=0,
        )
        costs.append((time.process_time() - began) * 1000)
    return median(costs[1:])


def show_cost(url: str, state_dir: str) -> float:
    """Return the CPU of `harvester show` in milliseconds, less that of importing what it imports."""
    where = ("--base-url", url, "--state-dir", state_dir, *NO_LIMITS)
    shown = median(run("-m", "harvester", "show", "bit.ly/a", "--json", *where).cpu_seconds for _ in range(RUNS))
    modules = "import harvester.cli.main, harvester.cli.show, asyncio; asyncio.run(asyncio.sleep(0))"
    return (shown - median(run("-c", modules).cpu_seconds for _ in range(RUNS))) * 1000


def main() -> int:
    """Measure; 1 when a link costs more than is promised."""
    parser = argparse.ArgumentParser(description="CPU of one link beyond start-up.")
    parser.add_argument("--times", type=int, default=50)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="harvester-one-link-") as folder, serving() as url:
        cost = asyncio.run(metrics_cost(url, os.path.join(folder, "metrics"), times))
        print(f"harvester.metrics: {cost:.1f} ms of CPU a link")
        print(
            f"harvester show: {show_cost(url, os.path.join(folder, 'show')):.1f} ms of CPU beyond its imports",
            flush=True,
        )
    return 0 if cost <= MOST_MILLISECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
