"""What does `harvester report` take for a million rows? CPU, peak RSS and the size of the file it writes.

usage: python -m benchmarks.report [--rows 1000000] [--folder /tmp]

The rows are published by the real store. Few links have nearly all clicks, as in life: a link's clicks fall with its
place, and referrers with a long tail come with it.
"""

import random
import sys
from itertools import accumulate
from pathlib import Path

from benchmarks.measuring import run, said
from benchmarks.outputs import QUERY, fill, finish, main_over
from harvester.bitly.verdicts import Answer
from harvester.rows.encode import Format
from harvester.rows.schema import Shape

MOST_CPU_SECONDS = 20.0
MOST_BYTES = 500 * 10**6
MOST_REPORT_BYTES = 1024 * 1024
"""All for a million rows."""
OUTPUTS = (
    (Format.NDJSON_GZ, Shape.NESTED),
    (Format.NDJSON_ZST, Shape.NESTED),
    (Format.PARQUET, Shape.NESTED),
    (Format.NDJSON_GZ, Shape.FLAT),
    (Format.PARQUET, Shape.FLAT),
)
_NAMES = 50_000
"""Different referrers."""
_METRICS = 5
"""Referrers of a link on average."""


def make(out: Path, calls: int, made: tuple[Format, Shape]) -> None:
    """Make an output of so many links as a run leaves it, in parts of 100,000 links."""
    dice = random.Random(7)
    weights = [*accumulate(1 / (place + 1) for place in range(_NAMES))]
    names = [f"https://site-{place}.example/some/path" for place in range(_NAMES)]

    def answer(number: int) -> Answer:
        most = calls * 10 // (number + 1)
        chosen = dict.fromkeys(dice.choices(names, cum_weights=weights, k=dice.randrange(2 * _METRICS + 1)))
        clicks = [max(most >> place, 1) for place in range(len(chosen))]
        metrics = [{"value": name, "clicks": count} for name, count in zip(chosen, clicks, strict=True)]
        return Answer(metrics, sum(clicks), 30, QUERY.unit_reference)

    with fill(out, calls, made, answer, part_rows=100_000) as store:
        finish(store, calls)


def measure(out: Path, rows: int, made: tuple[Format, Shape]) -> bool:
    """Make a report of an output, print what that took, and say whether the promise holds."""
    path = out.with_suffix(".html")
    used = run("-m", "harvester", "report", str(out), "--to", str(path), silent=True)
    share, size = max(rows / 1_000_000, 0.25), path.stat().st_size  # starting takes its part, too
    fast, small = used.cpu_seconds < MOST_CPU_SECONDS * share, used.peak_bytes < MOST_BYTES
    holds = fast and small and size < MOST_REPORT_BYTES
    print(
        f"{' '.join(made):<20} {rows:>9,} rows: CPU {used.cpu_seconds:5.1f} s, peak {used.peak_bytes / 1e6:5.1f} MB, "
        f"file {size / 1e3:6.1f} kB: {said(holds=holds)}",
        flush=True,
    )
    return holds


if __name__ == "__main__":
    sys.exit(main_over(OUTPUTS, _METRICS, make, measure, "report"))
