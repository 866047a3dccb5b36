"""Does memory grow with the list? Peak RSS of `harvester run` over a short and a long list.

usage: python -m benchmarks.memory [--carry] [--short 10000] [--long 1000000] [--folder /tmp]

With --carry the list is a CSV file, two of whose columns go into each row.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import NO_LIMITS, check_rows, harvest, said, serving, write_list, write_table

MOST_GROWTH = 1.2
"""The long list's peak may be so many times the short one's."""
MOST_BYTES = 150 * 10**6


def peak(folder: Path, url: str, links: int, *, carry: bool) -> int:
    """Harvest a list of so many links, print what that took, and give the peak in bytes."""
    out = folder / f"out-{links}"
    if carry:
        listed, columns = write_table(folder / f"{links}.csv", links)
        used = harvest(listed, url, out, (*NO_LIMITS, "--carry", ",".join(columns)))
    else:
        used = harvest(write_list(folder / f"{links}.txt", links), url, out)
    check_rows(out, links)
    print(f"{links:>9,} links: peak {used.peak_bytes / 1e6:6.1f} MB, CPU {used.cpu_seconds:7.1f} s", flush=True)
    return used.peak_bytes


def report(short: int, long: int) -> bool:
    """Print whether the promises hold for these peaks, in bytes."""
    growth = long / short
    grows_little, is_small = growth <= MOST_GROWTH, long < MOST_BYTES
    print(f"ratio {growth:.3f}, promised at most {MOST_GROWTH}: {said(holds=grows_little)}")
    print(f"peak {long / 1e6:.1f} MB, promised under {MOST_BYTES / 1e6:.0f} MB: {said(holds=is_small)}")
    return grows_little and is_small


def main() -> int:
    """Measure both lists; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="Peak memory of a harvest, over a short and a long list.")
    parser.add_argument("--short", type=int, default=10_000, metavar="LINES")
    parser.add_argument("--long", type=int, default=1_000_000, metavar="LINES")
    parser.add_argument("--carry", action="store_true", help="lists with two columns that go into each row")
    parser.add_argument("--folder", help="where lists and output lie meanwhile; about 1 GB for a million links")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harvester-memory-", dir=options.folder) as folder, serving() as url:
        short, long = (peak(Path(folder), url, links, carry=options.carry) for links in (options.short, options.long))
    return 0 if report(short, long) else 1


if __name__ == "__main__":
    sys.exit(main())
