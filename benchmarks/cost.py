"""What does a call cost beyond HTTP? CPU per call of `harvester run`, against a bare aiohttp pool.

usage: python -m benchmarks.cost [--rounds 5] [--links 20000] [--folder /tmp] [--tls]
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measuring import (
    ENVIRONMENT,
    LARGE_LIMITS,
    NO_LIMITS,
    Used,
    check_rows,
    harvest,
    run,
    serving,
    write_list,
)

MOST = 1.5
"""The whole job may cost so many times what the bare pool does."""
FEW = 10
START_RUNS = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to do the job. run: a list, the server's URL and an output to what it used."""

    name: str
    out: str
    run: Callable[[Path, str, Path], Used]


def bare(links: Path, url: str, out: Path) -> Used:
    """Run the bare pool over a list."""
    return run("-m", "benchmarks.bare_pool", str(links), url, str(out))


VARIANTS = (
    Variant("bare pool", "bare.ndjson", bare),
    Variant("folder", "out", harvest),
    Variant("one file", "results.ndjson", harvest),
    Variant("session", "out", partial(harvest, options=(*NO_LIMITS, "--transport", "session"))),
    Variant("limits", "out", partial(harvest, options=LARGE_LIMITS)),
)
"""folder, one file: without limits. session: sent by aiohttp's session. limits: with limits that never bind."""


class Bench:
    """Runs variants in a folder; cost is CPU over the start-up's, which a list of FEW links shows."""

    def __init__(self, folder: Path, url: str, links: int) -> None:
        self._folder = folder
        self._url = url
        self._links = links
        self._list = write_list(folder / "list.txt", links)
        self._few = write_list(folder / "few.txt", FEW)
        self._start = {v.name: median(self._cpu(v, self._few, FEW) for _ in range(START_RUNS)) for v in VARIANTS}

    @property
    def start_seconds(self) -> dict[str, float]:
        """What each variant takes to start and end."""
        return self._start

    def cost(self, variant: Variant) -> float:
        """Give the µs of CPU that a variant takes for a call."""
        seconds = self._cpu(variant, self._list, self._links) - self._start[variant.name]
        return seconds / (self._links - FEW) * 1e6

    def _cpu(self, variant: Variant, listed: Path, links: int) -> float:
        place = self._folder / "run"
        place.mkdir()
        used = variant.run(listed, self._url, place / variant.out)
        check_rows(place / variant.out, links)
        shutil.rmtree(place)
        return used.cpu_seconds


def measure(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Run all variants in turn, so many times; print each round, and give the costs by variant."""
    costs: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    print_line("µs a call", [variant.name for variant in VARIANTS])
    print_line("start, s", [f"{bench.start_seconds[variant.name]:.2f}" for variant in VARIANTS])
    for number in range(1, rounds + 1):
        for variant in VARIANTS:
            costs[variant.name].append(bench.cost(variant))
        print_line(f"round {number}", [f"{costs[variant.name][-1]:.1f}" for variant in VARIANTS])
    return costs


def report(costs: dict[str, list[float]]) -> bool:
    """Print the medians and ratios; True when the folder, which is the promise's job, keeps it."""
    medians = [median(costs[variant.name]) for variant in VARIANTS]
    ratios = [value / medians[0] for value in medians]
    print_line("median", [f"{value:.1f}" for value in medians])
    print_line("ratio", [f"{value:.2f}" for value in ratios])
    for variant, ratio in zip(VARIANTS[1:], ratios[1:], strict=True):
        said = "holds" if ratio <= MOST else "DOES NOT HOLD"
        print(f"{variant.name}: {ratio:.2f} x the bare pool, promised at most {MOST}: {said}")
    return ratios[1] <= MOST


def print_line(title: str, cells: list[str]) -> None:
    """Print a row of the table."""
    print(f"{title:<10}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def main() -> int:
    """Measure; 1 when the promise does not hold."""
    parser = argparse.ArgumentParser(description="CPU per call of a harvest, against a bare aiohttp pool.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--links", type=int, default=20_000)
    parser.add_argument("--folder", help="where lists and output lie meanwhile")
    parser.add_argument("--tls", action="store_true", help="over TLS, as Bitly is asked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harvester-cost-", dir=options.folder) as folder, ExitStack() as stack:
        authority = str(Path(folder) / "authority.pem")
        url = stack.enter_context(serving(*(["--tls", authority] if options.tls else [])))
        if options.tls:
            ENVIRONMENT["SSL_CERT_FILE"] = authority
        costs = measure(Bench(Path(folder), url, options.links), options.rounds)
    return 0 if report(costs) else 1


if __name__ == "__main__":
    sys.exit(main())
