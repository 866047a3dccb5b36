"""What does a command cost before it does anything? CPU of whole short commands, against importing aiohttp.

usage: python -m benchmarks.startup [--rounds 15]

A round runs each command once, in turn with the import, so that all have the same share of what else the machine does.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from benchmarks.measuring import ROOT, check_rows, run, serving, write_list

IMPORT = "import aiohttp"


class Command(NamedTuple):
    """A command, and how many times as long as the import it may take at most; None without a promise."""

    name: str
    words: tuple[str, ...]
    most: float | None


def commands(folder: Path) -> list[Command]:
    """Return what is measured. folder: has a list of one link, and the finished output `done`."""
    harvester = ("-c", "from harvester.cli.main import main; main()")  # as the installed script does
    return [
        Command(IMPORT, ("-c", IMPORT), None),
        Command("python", ("-c", "pass"), None),
        Command("--version", (*harvester, "--version"), 0.24),
        Command("status FOLDER", (*harvester, "status", str(folder / "done")), 0.48),
        Command("verify FOLDER", (*harvester, "verify", str(folder / "done")), None),
        Command("--help", (*harvester, "--help"), None),
        Command("run --help", (*harvester, "run", "--help"), None),
        Command("show bit.ly/x", (*harvester, "show", "bit.ly/x"), 1.34),
        Command("run, one link", (*harvester, "run", str(folder / "one.txt"), "--out", str(folder / "new")), 1.34),
    ]


def measured(folder: Path, variables: Mapping[str, str], rounds: int) -> dict[Command, list[float]]:
    """Return the CPU milliseconds of each command in each round, without the first, which fills the caches."""
    found: dict[Command, list[float]] = {each: [] for each in commands(folder)}
    for number in range(rounds + 1):
        for command, costs in found.items():
            used = run(*command.words, variables=variables, silent=True)
            if number:
                costs.append(used.cpu_seconds * 1000)
        check_rows(folder / "new", 1)
        shutil.rmtree(folder / "new")
    return found


def main() -> int:
    """Measure; 1 when a command takes longer than is promised."""
    parser = argparse.ArgumentParser(description="CPU of short commands, against importing aiohttp.")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harvester-startup-") as name, serving() as url:
        folder = Path(name)
        variables = {"HOME": name, "HARVESTER_BASE_URL": url}
        # An installed package is compiled once.
        run("-m", "compileall", "-q", str(ROOT / "harvester"))
        write_list(folder / "one.txt", 1)
        done = ("run", str(folder / "one.txt"), "--out", str(folder / "done"))
        run("-m", "harvester", *done, variables=variables, silent=True)
        found = measured(folder, variables, max(options.rounds, 2))
    base = median(next(costs for command, costs in found.items() if command.name == IMPORT))
    broken = False
    for command, costs in found.items():
        ratio, (low, _, high) = median(costs) / base, quantiles(costs, n=4)
        broken |= command.most is not None and ratio > command.most
        promise = "" if command.most is None else f"  (promised: {command.most:.2f})"
        print(
            f"{command.name:<16} {median(costs):6.1f} ms ({low:.1f} to {high:.1f})  {ratio:.2f} x the import{promise}"
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
