"""What does `harvester report` take for a million rows? CPU, peak RSS and the size of the file it writes.

usage: python -m benchmarks.report [--rows 1000000] [--folder /tmp]

The rows are published by the real store. Few links have nearly all clicks, as in life: a link's clicks fall with its
place, and referrers with a long tail come with it.
"""

import argparse
import random
import sys
import tempfile
from itertools import accumulate
from pathlib import Path

from benchmarks.measuring import run, said
from benchmarks.verify import QUERY, finish
from harvester.bitly.verdicts import Answer
from harvester.dataset.journal import PartLimits
from harvester.dataset.opening import open_dataset
from harvester.rows.call import CallState
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.rows.schema import Shape
from harvester.storage.folders import resolve

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
    policy = PartLimits(100_000, 2**40)
    with open_dataset(resolve(str(out)), QUERY, policy, print, asked=RequestedPartFormat(*made)) as store:
        moment = str(store.ledger.facts()["started"])
        for number in range(calls):
            link, most = f"bit.ly/3{number:07x}", calls * 10 // (number + 1)
            chosen = dict.fromkeys(dice.choices(names, cum_weights=weights, k=dice.randrange(2 * _METRICS + 1)))
            clicks = [max(most >> place, 1) for place in range(len(chosen))]
            metrics = [{"value": name, "clicks": count} for name, count in zip(chosen, clicks, strict=True)]
            answer = Answer(metrics, sum(clicks), 30, QUERY.unit_reference)
            key = store.rows.key(link)
            store.record(key, CallState.ROW, store.rows.row(link, key, answer, moment), None)
            if number % 5000 == 0:
                store.commit(store.take_batch())
        store.end_part()
        store.commit(store.take_batch())
        store.publish()
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


def main() -> int:
    """Measure every form; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="What `harvester report` takes.")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="ROWS")
    parser.add_argument("--folder", help="where the outputs lie meanwhile; about 1 GB for a million rows")
    parser.add_argument("--make", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        out, made_of, form, shape = options.make
        make(Path(out), int(made_of), (Format(form), Shape(shape)))
        return 0
    held = []
    for made in OUTPUTS:
        calls = options.rows if made[1] is Shape.NESTED else options.rows // _METRICS
        with tempfile.TemporaryDirectory(prefix="harvester-report-", dir=options.folder) as folder:
            out = Path(folder) / "out"
            # In a process of its own: a child's peak begins with the one of the process that it came from.
            run("-m", "benchmarks.report", "--make", str(out), str(calls), *made)
            held.append(measure(out, options.rows, made))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
