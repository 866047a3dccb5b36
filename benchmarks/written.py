"""What does a link cost the disk? Bytes that a harvest writes for each link: ledger, journal, parts.

Synthetic answers go through the real dataset: each is recorded, a thousand are committed and published at a time. Then
the dataset is opened again and every link is found settled, as when a command is repeated. The real command, over a
short list, shows that both write the same.

usage: python -m benchmarks.written [--links 10000 100000 1000000] [--command 100000] [--batch 1000] [--folder /tmp]
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import check_rows, harvest, output_of, said, serving, write_list
from benchmarks.outputs import ANSWER, QUERY
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import PartLimits
from harvester.dataset.opening import open_dataset
from harvester.rows.call import CallState
from harvester.storage.folders import resolve
from harvester.storage.sqlite import SqliteFile

MOST_LEDGER_BYTES = 2000
"""What the ledger may write for each link of the longest list."""
MOST_DIFFERENCE = 0.5
"""The command may write this share more or less than the synthetic answers: it commits by time, and counts attempts."""
_BLOCK_BYTES = 512  # of getrusage(2), ru_oublock


class Written:
    """Bytes handed to the kernel by this process, told apart by what wrote them."""

    def __init__(self) -> None:
        self.bytes = Counter[str]()
        self._nested = 0

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count what the block writes, except what is counted within it."""
        outer, self._nested, before = self._nested, 0, _bytes_written()
        try:
            yield
        finally:
            total = _bytes_written() - before
            self.bytes[name] += total - self._nested
            self._nested = outer + total


def _bytes_written() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.partition(":")[2])
    raise SystemExit("/proc/self/io has no wchar")


def drive(out: Path, links: int, batch: int) -> dict[str, float]:
    """Settle so many links in a new dataset, then find them settled; return what each took of a link."""
    written, transaction = Written(), SqliteFile.transaction

    @contextmanager
    def counted(file: SqliteFile) -> Iterator[None]:
        with written.counted("ledger"), transaction(file):
            yield

    SqliteFile.transaction = counted  # type: ignore[assignment, method-assign]
    limits = PartLimits(100_000, 2**30)
    begun, blocks = time.process_time(), _blocks()
    with open_dataset(resolve(str(out)), QUERY, limits, print) as dataset:
        for numbers in _batches(links, batch):
            with written.counted("journal"):
                _record(dataset, numbers)
            _commit(dataset, written)
        dataset.end_part()
        _commit(dataset, written)
    found: dict[str, float] = {**written.bytes, "cpu": time.process_time() - begun, "disk": _blocks() - blocks}
    written.bytes.clear()
    begun = time.process_time()
    with open_dataset(resolve(str(out)), QUERY, limits, print) as dataset:
        for numbers in _batches(links, batch):
            keys = [dataset.rows.key(_link(number)) for number in numbers]
            known = dataset.ledger.known(keys)
            for key in keys:
                if known[key].seen != dataset.invocation:
                    dataset.note_seen(key)
            _commit(dataset, written)
    again = {"ledger_again": written.bytes["ledger"], "cpu_again": time.process_time() - begun}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {name: value / links for name, value in (found | again).items()} | {"peak_mb": peak / 1000}


def _batches(links: int, batch: int) -> Iterator[range]:
    return (range(start, min(start + batch, links)) for start in range(0, links, batch))


def _link(number: int) -> str:
    return f"bit.ly/3{number:07x}"


def _record(dataset: Dataset, numbers: range) -> None:
    moment = str(dataset.ledger.facts()["started"])
    for number in numbers:
        key = dataset.rows.key(_link(number))
        dataset.record(key, CallState.ROW, dataset.rows.row(_link(number), key, ANSWER, moment), None)


def _commit(dataset: Dataset, written: Written) -> None:
    with written.counted("parts"):
        dataset.commit(dataset.take_batch())
        dataset.publish()


def _blocks(who: int = resource.RUSAGE_SELF) -> int:
    """Return the bytes of blocks that were dirtied, which the disk gets: a page written twice before a sync is one."""
    return resource.getrusage(who).ru_oublock * _BLOCK_BYTES


def synthetic(folder: Path, links: int, batch: int) -> dict[str, float]:
    """Drive a dataset in a process of its own."""
    out = folder / f"out-{links}"
    found: dict[str, float] = json.loads(
        output_of("-m", "benchmarks.written", "--drive", str(out), "--links", str(links), "--batch", str(batch))
    )
    check_rows(out, links)
    print(
        f"{links:>9,} links: ledger {found['ledger']:6.0f} B, journal {found['journal']:5.0f} B, parts "
        f"{found['parts']:5.0f} B, disk {found['disk']:6.0f} B, CPU {found['cpu'] * 1e6:5.1f} us; again: ledger "
        f"{found['ledger_again']:5.0f} B, CPU {found['cpu_again'] * 1e6:5.1f} us; peak {found['peak_mb']:.1f} MB",
        flush=True,
    )
    return found


def by_command(folder: Path, links: int, url: str) -> float:
    """Harvest as many links by the real command, and return what the disk got of each."""
    out, before = folder / f"command-{links}", _blocks(resource.RUSAGE_CHILDREN)
    harvest(write_list(folder / f"{links}.txt", links), url, out)
    disk = (_blocks(resource.RUSAGE_CHILDREN) - before) / links
    check_rows(out, links)
    print(f"{links:>9,} links by the command: disk {disk:6.0f} B", flush=True)
    return disk


def report(ledger: float, disk: float, command: float) -> bool:
    """Print whether the promises hold. ledger: bytes a link of the longest list; disk, command: of the short one."""
    small, same = ledger < MOST_LEDGER_BYTES, abs(command / disk - 1) <= MOST_DIFFERENCE
    print(f"ledger {ledger:.0f} B a link, promised under {MOST_LEDGER_BYTES}: {said(holds=small)}")
    print(f"the command writes {command / disk:.2f} x as much as synthetic answers: {said(holds=same)}")
    return small and same


def main() -> int:
    """Measure every length, then the command; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description="Bytes that a harvest writes for each link.")
    parser.add_argument("--links", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="LINES")
    parser.add_argument("--command", type=int, default=100_000, metavar="LINES", help="list of the real command")
    parser.add_argument("--batch", type=int, default=1000, metavar="LINKS", help="answers in a commit")
    parser.add_argument("--folder", help="where output lies meanwhile; about 1 GB for a million links")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        print(json.dumps(drive(options.drive, options.links[0], options.batch)))
        return 0
    with tempfile.TemporaryDirectory(prefix="harvester-written-", dir=options.folder) as name:
        folder = Path(name)
        found = {links: synthetic(folder, links, options.batch) for links in options.links}
        folder.joinpath("short").mkdir()
        short = found.get(options.command) or synthetic(folder / "short", options.command, options.batch)
        with serving() as url:
            command = by_command(folder, options.command, url)
    return 0 if report(found[max(found)]["ledger"], short["disk"], command) else 1


if __name__ == "__main__":
    sys.exit(main())
