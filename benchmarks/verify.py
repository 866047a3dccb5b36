"""What does `harvester verify` take for a million rows? CPU and peak RSS, on outputs made by the real store.

usage: python -m benchmarks.verify [--rows 1000000] [--folder /tmp]
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import run, said
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import PartLimits
from harvester.dataset.manifest import BudgetReport
from harvester.dataset.opening import open_dataset
from harvester.dataset.sidecars import Sidecars
from harvester.events import RunOutcome
from harvester.progress import ListCounts, RunProgress
from harvester.rows.call import CallState
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.rows.schema import Shape
from harvester.run.telemetry import Throughput, run_report
from harvester.storage.folders import resolve

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
QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
# As the server of the other benchmarks answers.
_CLICKS = {
    "direct": 4711,
    "https://t.co/": 1204,
    "https://www.google.com/": 311,
    "https://www.linkedin.com/": 27,
    "X (Formerly Twitter)": 3,
}
ANSWER = Answer(
    [{"value": value, "clicks": clicks} for value, clicks in _CLICKS.items()],
    sum(_CLICKS.values()),
    30,
    "2026-11-23T06:00:00Z",
)


@contextmanager
def fill(out: Path, calls: int, made: tuple[Format, Shape]) -> Iterator[Dataset]:
    """Begin an output, commit rows as a run does, and end their part; publishing is left to be done."""
    policy = PartLimits(1_000_000, 2**40)
    with open_dataset(resolve(str(out)), QUERY, policy, print, asked=RequestedPartFormat(*made)) as store:
        moment = str(store.ledger.facts()["started"])
        for number in range(calls):
            link = f"bit.ly/3{number:07x}"
            key = store.rows.key(link)
            store.record(key, CallState.ROW, store.rows.row(link, key, ANSWER, moment), None)
            if number % 5000 == 0:
                store.commit(store.take_batch())
        store.end_part()
        store.commit(store.take_batch())
        yield store


def make(out: Path, calls: int, made: tuple[Format, Shape]) -> None:
    """Make an output as a run leaves it."""
    with fill(out, calls, made) as store:
        store.publish()
        finish(store, calls)


def finish(store: Dataset, calls: int) -> None:
    """Write what stands beside the rows."""
    progress = RunProgress(listed=ListCounts(lines=calls, links=calls), read_to_end=True)
    outcome = RunOutcome(complete=True, stop=None, status=progress)
    invocation = Throughput().report(store.invocation, ())
    store.write_manifest(run_report(progress, outcome, invocation, BudgetReport("", "", None, ())))
    sidecars = Sidecars(store.location.public, None, print)
    sidecars.write_failures([])
    sidecars.write_success()


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


def main() -> int:
    """Measure every form; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="What `harvester verify` takes.")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="ROWS")
    parser.add_argument("--folder", help="where the outputs lie meanwhile; about 700 MB for a million rows")
    parser.add_argument("--make", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        out, made_of, form, shape = options.make
        make(Path(out), int(made_of), (Format(form), Shape(shape)))
        return 0
    held = []
    for made in OUTPUTS:
        calls = options.rows if made[1] is Shape.NESTED else options.rows // len(_CLICKS)
        with tempfile.TemporaryDirectory(prefix="harvester-verify-", dir=options.folder) as folder:
            out = Path(folder) / "out"
            # In a process of its own: a child's peak begins with the one of the process that it came from.
            run("-m", "benchmarks.verify", "--make", str(out), str(calls), *made)
            held.append(measure(out, options.rows, made))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
