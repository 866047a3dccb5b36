"""Does making a part slow the calls? How many calls a second are answered while one is made, against before and after.

A part of ROWS rows is made as a run makes it, in a thread of its own, while five workers ask a server that takes so
long for an answer. usage: python -m benchmarks.forms [--rounds 3] [--rows 100000] [--latency-ms 50]
"""

import argparse
import asyncio
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, NamedTuple, cast

import aiohttp

from benchmarks.bare_pool import WORKERS, work
from benchmarks.measuring import output_of, said, serving
from benchmarks.outputs import fill
from harvester.cli.harvesting import SWITCH_SECONDS
from harvester.rows.encode import Format
from harvester.rows.schema import Shape

MOST_SLOWER = 0.05
"""Calls may be so much slower while a part is made; one run differs from the next by a few per cent."""
QUIET_SECONDS = 2.0
FORMS = tuple(product(Format, Shape))


class Pace(NamedTuple):
    """seconds: what a part took. quiet, making: calls answered a second without and with a part being made."""

    seconds: float
    quiet: float
    making: float

    @property
    def slower(self) -> float:
        """How much slower calls were meanwhile, as a share."""
        return 1 - self.making / self.quiet


class Counted(io.RawIOBase):
    """Takes answers, and counts them."""

    def __init__(self) -> None:
        self.answers = 0

    def write(self, row: Any) -> int:
        """Take one."""
        self.answers += 1
        return len(row)


async def pace(url: str, publish: Callable[[], None]) -> Pace:
    """Ask without end; publish in between."""
    counted, loop = Counted(), asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:
        endless = iter(lambda: "bit.ly/3lU6hRt", None)
        workers = [asyncio.create_task(work(endless, url, session, cast("BinaryIO", counted))) for _ in range(WORKERS)]
        await asyncio.sleep(QUIET_SECONDS / 2)

        async def rate_of(meanwhile: "asyncio.Future[None]") -> tuple[float, float]:
            begun, before = time.monotonic(), counted.answers
            await meanwhile
            seconds = time.monotonic() - begun
            return seconds, (counted.answers - before) / seconds

        def quiet() -> "asyncio.Future[None]":
            return asyncio.ensure_future(asyncio.sleep(QUIET_SECONDS))

        _, before = await rate_of(quiet())
        seconds, making = await rate_of(loop.run_in_executor(ThreadPoolExecutor(1), publish))
        _, after = await rate_of(quiet())
        for worker in workers:
            worker.cancel()
    return Pace(seconds, (before + after) / 2, making)


def measure_one(url: str, rows: int, form: tuple[Format, Shape]) -> Pace:
    """Commit rows, then make the part of them."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with tempfile.TemporaryDirectory() as folder, fill(Path(folder) / "out", rows, form) as store:
        return asyncio.run(pace(url, store.publish))


def report(form: tuple[Format, Shape], paces: list[Pace]) -> bool:
    """Print a form's medians; True when it keeps the promise."""
    slower = median(each.slower for each in paces)
    holds = slower <= MOST_SLOWER
    print(
        f"{' '.join(form):<18} a part took {median(each.seconds for each in paces):5.2f} s; calls a second: "
        f"{median(each.quiet for each in paces):7.1f}, meanwhile {median(each.making for each in paces):7.1f}: "
        f"{slower:6.1%} slower: {said(holds=holds)}",
        flush=True,
    )
    return holds


def main() -> int:
    """Measure every form in turn; 1 when the promise does not hold."""
    parser = argparse.ArgumentParser(description="What making a part costs the calls.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        url, form, shape = options.one
        print(json.dumps(measure_one(url, options.rows, (Format(form), Shape(shape)))))
        return 0
    paces: dict[tuple[Format, Shape], list[Pace]] = {form: [] for form in FORMS}
    with serving("--latency-ms", str(options.latency_ms)) as url:
        for _, form in product(range(options.rounds), FORMS):
            # In a process of its own, as a run is: what one form has loaded stays.
            found = output_of("-m", "benchmarks.forms", "--rows", str(options.rows), "--one", url, *form)
            paces[form].append(Pace(*json.loads(found)))
    held = [report(form, found) for form, found in paces.items()]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
