"""How many instructions does a call take? As `cost`, but by callgrind, whose figures other processes hardly move.

Needs valgrind (Debian: apt-get install valgrind). The kernel's share of a call is not counted.
usage: python -m benchmarks.instructions ["bare pool"] [folder] ["one file"] [--links 2000] [--folder /tmp]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import LONGEST_SECONDS, NO_LIMITS, ROOT, check_rows, harvest, serving, write_list

FEWEST = 1000
"""Links of the short list, whose instructions are subtracted."""
_FEW = 10
_SLOWER = 50
"""How many times slower a program is under callgrind. Its clocks go as much slower, or it would commit more often."""
_RUN = f"""
import runpy, selectors, sys, time
monotonic, used, select, idle = time.monotonic, time.process_time, selectors.DefaultSelector.select, 0.0

def timed_select(self, timeout=None):
    global idle
    began = monotonic()
    try:
        return select(self, timeout)
    finally:
        idle += min(monotonic() - began, timeout or 0.0)

selectors.DefaultSelector.select = timed_select
time.monotonic = lambda: 1e6 + used() / {_SLOWER} + idle
time.clock_gettime = lambda clock: time.monotonic()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Slows the clocks of a program before it runs. They go by the CPU that it uses, whatever else the machine does, and by
the time that the event loop waits. A wait is no slower under callgrind: with a clock that is, the loop would wake and
wait again until a timer is due.
"""
_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "BITLY_TOKEN": "benchmark", "PYTHONHASHSEED": "0"}
_JOBS = {"bare pool": "bare.ndjson", "folder": "out", "one file": "results.ndjson"}
"""The variants of `cost`, and their outputs."""


def instructions(job: str, links: Path, url: str, folder: Path) -> int:
    """Do a job over a list in a folder, and return the instructions that it took."""
    out, profile = folder / _JOBS[job], folder / "callgrind.out"
    words = ["harvester", "run", links, "--out", out, "--state-dir", folder / "state", "--base-url", url, "--quiet"]
    words = ["benchmarks.bare_pool", links, url, out] if job == "bare pool" else [*words, *NO_LIMITS]
    valgrind = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}")
    command = [*valgrind, sys.executable, "-c", _RUN, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=_ENVIRONMENT, capture_output=True, timeout=LONGEST_SECONDS, check=False
    )
    found = re.search(r"^(?:totals|summary): (\d+)", profile.read_text(), re.MULTILINE) if profile.exists() else None
    if done.returncode or found is None:
        raise SystemExit(f"{job} ended with {done.returncode}: {done.stderr.decode()}")
    return int(found[1])


def per_call(job: str, links: int, url: str, where: str | None) -> float:
    """Return the instructions that a job takes for each link more."""
    found = []
    for length in (FEWEST, FEWEST + links):
        with tempfile.TemporaryDirectory(prefix="harvester-instructions-", dir=where) as name:
            folder = Path(name)
            found.append(instructions(job, write_list(folder / "list.txt", length), url, folder))
            check_rows(folder / _JOBS[job], length)
    return (found[1] - found[0]) / links


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Instructions per call of a harvest, and of a bare aiohttp pool.")
    parser.add_argument("jobs", nargs="*", choices=[*_JOBS, []], help="one or more of them; all by default")
    parser.add_argument("--links", type=int, default=2000, help="how many more links the long list has")
    parser.add_argument("--folder", help="where lists and output lie meanwhile")
    options = parser.parse_args()
    with serving() as url:
        with tempfile.TemporaryDirectory() as name:  # so that the bytecode of all modules is there
            harvest(write_list(Path(name) / "list.txt", _FEW), url, Path(name) / "out")
        for job in options.jobs or _JOBS:
            print(f"{job:<10}{per_call(job, options.links, url, options.folder):>12,.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
