"""What does one link cost? CPU of `harvester.metrics` and of `harvester show`, beyond start-up.

usage: python -m benchmarks.one_link [--times 50] [--runs 15]

Start-up is the interpreter, all imports, also those that the command makes only when it needs them, and an event loop.
What reading the command line takes is shown by itself: each command pays it, whether it asks Bitly or not.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from statistics import median

import harvester
from benchmarks.measuring import NO_LIMITS, output_of, serving

MOST_MILLISECONDS = 5.0

_SHOW = """
import asyncio, sys, time
import email.utils, encodings.ascii
import harvester.cli.command_line.plain, harvester.cli.main, harvester.cli.outputs, harvester.cli.show

seconds, run = [time.process_time()], asyncio.run

async def timed(main):
    seconds.append(time.process_time())
    try:
        return await main
    finally:
        seconds.append(time.process_time())

def run_timed(main):
    seconds.append(time.process_time())
    return run(timed(main))

asyncio.run = run_timed
try:
    harvester.cli.main.main(sys.argv[1:])
except SystemExit as end:
    print(*seconds)
    sys.exit(end.code)
"""
"""Runs the command, then prints the CPU seconds of the process when everything was imported, when the command line was
parsed, and at the beginning and the end of what ran in the event loop."""


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


def show_costs(url: str, state_dir: str, runs: int) -> tuple[float, float, float]:
    """Return the median CPU of `harvester show` in milliseconds: of start-up, the command line, and the link."""
    words = ("show", "bit.ly/a", "--json", "--base-url", url, "--state-dir", state_dir, *NO_LIMITS)
    found = []
    for _ in range(runs + 1):
        imported, parsed, began, ended = map(float, output_of("-c", _SHOW, *words).splitlines()[-1].split())
        found.append((imported + began - parsed, parsed - imported, ended - began))
    startup, command_line, link = (median(costs) * 1000 for costs in zip(*found[1:], strict=True))
    return startup, command_line, link


def main() -> int:
    """Measure; 1 when a link costs more than is promised."""
    parser = argparse.ArgumentParser(description="CPU of one link beyond start-up.")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harvester-one-link-") as folder, serving() as url:
        metrics = asyncio.run(metrics_cost(url, os.path.join(folder, "metrics"), options.times))
        print(f"harvester.metrics: {metrics:.1f} ms of CPU a link", flush=True)
        startup, command_line, link = show_costs(url, os.path.join(folder, "show"), options.runs)
    print(
        f"harvester show: {link:.1f} ms of CPU a link, after {startup:.0f} ms of start-up and {command_line:.1f} ms of "
        "reading the command line"
    )
    return 0 if max(metrics, link) <= MOST_MILLISECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
