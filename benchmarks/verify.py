"""What does `harvester verify` take for a million rows? CPU and peak RSS, on outputs made by the real store.

usage: python -m benchmarks.verify [--rows 1000000] [--folder /tmp]
"""

import sys
from pathlib import Path

from benchmarks.measuring import run, said
from benchmarks.outputs import CLICKS, fill, finish, main_over
from harvester.rows.encode import Format
from harvester.rows.schema import Shape

MOST_CPU_SECONDS = 15.0
MOST_BYTES = 300 * 10**6
"""Both for a million rows."""
OUTPUTS = (
    (Format.NDJSON_GZ, Shape.NESTED),
    (Format.NDJSON, Shape.NESTED),
    (Format.NDJSON_ZST, Shape.NESTED),
    (Format.PARQUET, Shape.NESTED),
    (Format.NDJSON_GZ, Shape.FLAT),
    (Format.PARQUET, Shape.FLAT),
)


def make(out: Path, calls: int, made: tuple[Format, Shape]) -> None:
    """Make an output as a run leaves it."""
    with fill(out, calls, made) as store:
        finish(store, calls)


def measure(out: Path, rows: int, made: tuple[Format, Shape]) -> bool:
    """Verify an output, print what that took, and say whether the promise holds."""
    used = run("-m", "harvester", "verify", str(out))
    share = max(rows / 1_000_000, 0.1)  # starting takes its part, too
    holds = used.cpu_seconds < MOST_CPU_SECONDS * share and used.peak_bytes < MOST_BYTES
    print(
        f"{' '.join(made):<20} {rows:>9,} rows: CPU {used.cpu_seconds:5.1f} s, peak {used.peak_bytes / 1e6:5.1f} MB: "
        f"{said(holds=holds)}",
        flush=True,
    )
    return holds


if __name__ == "__main__":
    sys.exit(main_over(OUTPUTS, len(CLICKS), make, measure, "verify"))
