"""Are the five connections kept busy? Calls a second behind a server that takes a while, against the bare pool.

usage: python -m benchmarks.busy [--rounds 3] [--seconds 6]

The share of time in which the connections wait for the server: answers x latency / (5 x wall time), from the difference
between a long list and a short one, so that starting and ending are not in it. In turn, in one run.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.bare_pool import WORKERS
from benchmarks.cost import bare
from benchmarks.measuring import Used, harvest, said, serving, write_list

LATENCIES_MS = (20, 100, 400)
SHARE = 0.98
"""Of the bare pool's own figure."""
_JOBS: dict[str, tuple[str, Callable[[Path, str, Path], Used]]] = {
    "bare pool": ("bare.ndjson", bare),
    "harvester": ("out", harvest),
}


def wall_seconds(job: str, links: Path, url: str) -> float:
    """Do a job over a list, and return how long it took."""
    name, do = _JOBS[job]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        do(links, url, Path(folder) / name)
        return time.monotonic() - began


def busy_shares(latency_ms: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the share of each job in each round."""
    more = round(seconds * 1000 / latency_ms) * WORKERS
    shares: dict[str, list[float]] = {job: [] for job in _JOBS}
    with tempfile.TemporaryDirectory() as name, serving("--latency-ms", str(latency_ms)) as url:
        short = write_list(Path(name) / "short.txt", WORKERS)
        long = write_list(Path(name) / "long.txt", WORKERS + more)
        for _ in range(rounds):
            for job, found in shares.items():
                taken = wall_seconds(job, long, url) - wall_seconds(job, short, url)
                found.append(more * latency_ms / 1000 / (WORKERS * taken))
    return shares


def main() -> int:
    """Measure, and print; 1 if harvester keeps the connections less busy than is promised."""
    parser = argparse.ArgumentParser(description="How busy five connections are kept.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long the long list takes at least")
    options = parser.parse_args()
    holds = True
    print(f"{'latency':<10}{'bare pool':>24}{'harvester':>24}{'ratio':>8}")
    for latency_ms in LATENCIES_MS:
        shares = busy_shares(latency_ms, options.rounds, options.seconds)
        pool, ours = (median(found) for found in shares.values())
        cells = [f"{median(found):.1%} ({min(found):.1%} to {max(found):.1%})" for found in shares.values()]
        print(f"{latency_ms:>4} ms   {cells[0]:>24}{cells[1]:>24}{ours / pool:>8.3f}", flush=True)
        holds &= ours / pool >= SHARE
    print(f"promised: at least {SHARE} x the bare pool's share: {said(holds=holds)}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
