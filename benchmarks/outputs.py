"""Outputs that the real store has made, for the benchmarks of what reads them."""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import run
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

QUERY = Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
# As the server of the other benchmarks answers.
CLICKS = {
    "direct": 4711,
    "https://t.co/": 1204,
    "https://www.google.com/": 311,
    "https://www.linkedin.com/": 27,
    "X (Formerly Twitter)": 3,
}
ANSWER = Answer(
    [{"value": value, "clicks": clicks} for value, clicks in CLICKS.items()],
    sum(CLICKS.values()),
    30,
    "2026-11-23T06:00:00Z",
)


@contextmanager
def fill(
    out: Path,
    calls: int,
    made: tuple[Format, Shape],
    answer: Callable[[int], Answer] = lambda _: ANSWER,
    part_rows: int = 1_000_000,
) -> Iterator[Dataset]:
    """Begin an output, commit rows as a run does, and end their part; publishing is left to be done.

    answer: the number of a call to its answer.
    """
    limits = PartLimits(part_rows, 2**40)
    with open_dataset(resolve(str(out)), QUERY, limits, print, asked=RequestedPartFormat(*made)) as store:
        moment = str(store.ledger.facts()["started"])
        for number in range(calls):
            link = f"bit.ly/3{number:07x}"
            key = store.rows.key(link)
            store.record(key, CallState.ROW, store.rows.row(link, key, answer(number), moment), None)
            if number % 5000 == 0:
                store.commit(store.take_batch())
        store.end_part()
        store.commit(store.take_batch())
        yield store


def finish(store: Dataset, calls: int) -> None:
    """Publish the rows, and write what stands beside them, as at the end of a run."""
    store.publish()
    progress = RunProgress(listed=ListCounts(lines=calls, links=calls), read_to_end=True)
    outcome = RunOutcome(complete=True, stop=None, status=progress)
    invocation = Throughput().report(store.invocation, ())
    store.write_manifest(run_report(progress, outcome, invocation, BudgetReport("", "", None, ())))
    sidecars = Sidecars(store.location.public, None, print)
    sidecars.write_failures([])
    sidecars.write_success()


def main_over(
    outputs: Sequence[tuple[Format, Shape]],
    metrics: int,
    make: Callable[[Path, int, tuple[Format, Shape]], None],
    measure: Callable[[Path, int, tuple[Format, Shape]], bool],
    command: str,
) -> int:
    """Be the main program of a benchmark: make and measure an output of each form; 1 when a promise does not hold.

    metrics: of an answer on average. make: makes an output of so many calls. measure: prints what an output of so many
    rows took. command: what is measured, also the name of the benchmark's module.
    """
    parser = argparse.ArgumentParser(description=f"What `harvester {command}` takes.")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="ROWS")
    parser.add_argument("--folder", help="where the outputs lie meanwhile; about 1 GB for a million rows")
    parser.add_argument("--make", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        out, made_of, form, shape = options.make
        make(Path(out), int(made_of), (Format(form), Shape(shape)))
        return 0
    held = []
    for made in outputs:
        calls = options.rows if made[1] is Shape.NESTED else options.rows // metrics
        with tempfile.TemporaryDirectory(prefix=f"harvester-{command}-", dir=options.folder) as folder:
            out = Path(folder) / "out"
            # In a process of its own: a child's peak begins with the one of the process that it came from.
            run("-m", f"benchmarks.{command}", "--make", str(out), str(calls), *made)
            held.append(measure(out, options.rows, made))
    return 0 if all(held) else 1
