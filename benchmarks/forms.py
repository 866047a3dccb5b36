"""Does making parts slow the calls? Wall time and CPU per call of `harvester run`, by format and shape.

The server answers at once and nothing limits the calls, so rows come some hundred times as fast as Bitly's limits let
them, and parts are made without a pause. usage: python -m benchmarks.forms [--rounds 5] [--links 40000]
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measuring import harvest, serving, write_list
from harvester.parts import Format
from harvester.schema import Shape

MOST = 1.05
"""Making a part in another form than plain lines may make the calls so many times as long."""
PARTS = 4


class Form(NamedTuple):
    """What parts are made in."""

    format: Format
    shape: Shape

    @property
    def options(self) -> tuple[str, ...]:
        """The command's options that ask for it."""
        return ("--format", self.format, "--shape", self.shape)


PLAIN = Form(Format.NDJSON, Shape.NESTED)
FORMS = (
    PLAIN,
    Form(Format.GZIP, Shape.NESTED),
    Form(Format.ZSTD, Shape.NESTED),
    Form(Format.PARQUET, Shape.NESTED),
    Form(Format.GZIP, Shape.FLAT),
    Form(Format.PARQUET, Shape.FLAT),
)


class Cost(NamedTuple):
    """What a call took: µs of wall time, and of CPU on all threads."""

    wall: float
    cpu: float


def cost(folder: Path, url: str, listed: Path, links: int, form: Form) -> Cost:
    """Harvest a list once."""
    place = folder / "run"
    place.mkdir()
    begun = time.monotonic()
    used = harvest(listed, url, place / "out", *form.options, "--part-rows", str(links // PARTS))
    wall = time.monotonic() - begun
    assert (place / "out" / "_SUCCESS").exists()
    shutil.rmtree(place)
    return Cost(wall / links * 1e6, used.cpu_seconds / links * 1e6)


def measure(folder: Path, url: str, rounds: int, links: int) -> dict[Form, list[Cost]]:
    """Harvest in every form in turn, so many times; print each round."""
    listed = write_list(folder / "list.txt", links)
    costs: dict[Form, list[Cost]] = {form: [] for form in FORMS}
    for number in range(1, rounds + 1):
        for form in FORMS:
            costs[form].append(cost(folder, url, listed, links, form))
        walls = " ".join(f"{form.format}/{form.shape} {costs[form][-1].wall:.0f}" for form in FORMS)
        print(f"round {number}, µs of wall time a call: {walls}", flush=True)
    return costs


def report(costs: dict[Form, list[Cost]]) -> bool:
    """Print medians and ratios; True when every form keeps the promise."""
    held = True
    for form in FORMS:
        # Round by round, since the machine's speed changes between them.
        ratio = median(mine.wall / plain.wall for mine, plain in zip(costs[form], costs[PLAIN], strict=True))
        cpu = median(mine.cpu for mine in costs[form])
        held &= ratio <= MOST
        print(
            f"{form.format:<11} {form.shape:<7} {median(mine.wall for mine in costs[form]):6.0f} µs of wall time a "
            f"call, {ratio:.3f} x plain lines; {cpu:6.0f} µs of CPU: {'holds' if ratio <= MOST else 'DOES NOT HOLD'}"
        )
    return held


def main() -> int:
    """Measure; 1 when the promise does not hold."""
    parser = argparse.ArgumentParser(description="What making parts costs the calls.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--links", type=int, default=40_000)
    parser.add_argument("--folder", help="where lists and output lie meanwhile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harvester-forms-", dir=options.folder) as folder, serving() as url:
        return 0 if report(measure(Path(folder), url, options.rounds, options.links)) else 1


if __name__ == "__main__":
    sys.exit(main())
