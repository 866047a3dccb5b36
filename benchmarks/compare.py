"""What does a call cost, in CPU, by harvester and by what people use otherwise? All in turn, in one run.

usage: python -m benchmarks.compare [--rounds 3] [--links 4000] [--folder /tmp]

The others are installed at first, each in an environment of its own below .venv-peers, with the versions of its
dependency group in pyproject.toml. What starting and ending takes is measured with a list of ten and subtracted.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.cost import FEW, START_RUNS
from benchmarks.measuring import ENVIRONMENT, NO_LIMITS, ROOT, check_number, check_rows, run, said, serving, write_list

ENVIRONMENTS = ROOT / ".venv-peers"


class Peer(NamedTuple):
    """A program. group: its dependency group, "" if it runs with harvester's own. script: in benchmarks/peers.

    check: raises SystemExit unless an output has a number of rows.
    """

    name: str
    group: str
    script: str
    check: Callable[[Path, int], None] = check_rows


def _check_pieces(pattern: str, lines: bool = True) -> Callable[[Path, int], None]:
    def check(out: Path, links: int) -> None:
        found = [*out.glob(pattern)]
        rows = sum(path.read_bytes().count(b"\n") for path in found) if lines else len(found)
        check_number(out, rows, links)

    return check


def _check_records(out: Path, links: int) -> None:
    rows = sum('"RECORD","stream":"daily_bitlink_clicks"' in line for line in out.open(encoding="utf-8"))
    check_number(out, rows, links)


PEERS = (
    Peer("harvester, folder", "", ""),
    Peer("bare aiohttp pool", "", "bare_pool"),
    Peer("curl --parallel", "bench-requests", "curl_parallel", _check_pieces("*.json", lines=False)),
    Peer("requests, a loop", "bench-requests", "requests_loop"),
    Peer("httpx, five tasks", "bench-httpx", "httpx_pool"),
    Peer("Scrapy", "bench-scrapy", "scrapy_spider"),
    Peer("dlt, rest_api", "bench-dlt", "dlt_source", _check_pieces("rows/referrers/*.jsonl")),
    Peer("tap-bitly (clicks)", "bench-tap-bitly", "tap", _check_records),
)


def python_of(group: str) -> str:
    """Return the interpreter of a dependency group's environment, which is made if it is missing or out of date."""
    if not group:
        return sys.executable
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"][group]
    folder = ENVIRONMENTS / group
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.exists() or installed.read_text(encoding="utf-8").splitlines() != wanted:
        print(f"installing {', '.join(wanted)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(install, check=True)
        installed.write_text("\n".join(wanted), encoding="utf-8")
    return str(python)


def cpu_seconds(peer: Peer, links: Path, number: int, url: str, folder: Path) -> float:
    """Do the job by a program in an empty folder, and return the CPU that it used."""
    out = folder / "out"
    if not peer.script:
        where = ("--out", str(out), "--state-dir", str(folder / "state"), "--base-url", url)
        words = ["-m", "harvester", "run", str(links), *where, "--quiet", *NO_LIMITS]
    elif peer.group:
        words = [str(ROOT / "benchmarks" / "peers" / f"{peer.script}.py"), str(links), url, str(out)]
    else:
        words = ["-m", f"benchmarks.{peer.script}", str(links), url, str(out)]
    used = run(*words, program=python_of(peer.group))
    peer.check(out, number)
    return used.cpu_seconds


def measure(rounds: int, links: int, where: str | None) -> dict[Peer, list[float]]:
    """Run all programs in turn, a number of rounds; return the µs of CPU a call of each."""
    for peer in PEERS:
        python_of(peer.group)
    costs: dict[Peer, list[float]] = {peer: [] for peer in PEERS}
    with tempfile.TemporaryDirectory(dir=where) as name, serving() as ordinary, serving("--clicks") as clicks:
        home = Path(name)
        ENVIRONMENT["HOME"] = name
        listed, few = write_list(home / "list.txt", links), write_list(home / "few.txt", FEW)

        def once(peer: Peer, path: Path, number: int) -> float:
            url = clicks if peer.script == "tap" else ordinary
            with tempfile.TemporaryDirectory(dir=name) as folder:
                return cpu_seconds(peer, path, number, url, Path(folder))

        starts = {peer: median(once(peer, few, FEW) for _ in range(START_RUNS)) for peer in PEERS}
        for number in range(1, rounds + 1):
            for peer in PEERS:
                costs[peer].append((once(peer, listed, links) - starts[peer]) / (links - FEW) * 1e6)
            print(f"round {number}: {', '.join(f'{costs[peer][-1]:.0f}' for peer in PEERS)}", flush=True)
    return costs


def main() -> int:
    """Measure, and print; 1 if harvester is less than ten times under Scrapy, or five times under requests."""
    parser = argparse.ArgumentParser(description="CPU a call: harvester and others.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--links", type=int, default=4000)
    parser.add_argument("--folder", help="where lists and output lie meanwhile")
    options = parser.parse_args()
    costs = measure(options.rounds, options.links, options.folder)
    ours = median(costs[PEERS[0]])
    print(f"{'µs of CPU a call':<20}{'median':>8}{'least':>8}{'most':>8}{'x harvester':>13}")
    times = {}
    for peer, found in costs.items():
        times[peer.name] = median(found) / ours
        print(f"{peer.name:<20}{median(found):>8.0f}{min(found):>8.0f}{max(found):>8.0f}{times[peer.name]:>13.2f}")
    holds = times["Scrapy"] >= 10 and times["requests, a loop"] >= 5
    print(f"promised: Scrapy at least 10 x, requests at least 5 x: {said(holds=holds)}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
