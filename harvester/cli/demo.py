"""`harvester demo`: a harvest from end to end, against a sandbox in the same process."""

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path

import orjson

from harvester.bearer import Token
from harvester.bitly.query import MAX_CONNECTIONS, Query
from harvester.budget.limits import RequestedLimits
from harvester.client.client import ClientSettings
from harvester.clock import utc_iso
from harvester.dataset.journal import PartLimits
from harvester.errors import OutputError
from harvester.events import Event, RunOutcome
from harvester.links.files import resolve_lists
from harvester.reporting import live_display
from harvester.reporting.reporter import Reporter
from harvester.reporting.summary import summary
from harvester.reporting.terminal import can_be_drawn_upon, escaped, for_stdout
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.run import job as jobs
from harvester.run.assembly import Job
from harvester.sandbox import Sandbox, SandboxOptions, serving
from harvester.shutdown import ShutdownSignal

_LIST = "demo-links.txt"
_SHOWN = 5
_LONGEST_BAR, _BEFORE_BARS = 30, 46
"""Columns of the chart's bars, and of what stands before them."""


def folder_for(out: str | None) -> str:
    """Return the demonstration's folder; None for a new temporary one.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        return out or tempfile.mkdtemp(prefix="harvester-demo-")
    except OSError as error:
        raise OutputError("cannot create a temporary folder: name a folder with --out") from error


def run_demo(folder: str) -> RunOutcome:
    """Harvest the bundled list from a sandbox into a folder, and print the results."""
    began = time.monotonic()
    with as_file(files("harvester") / _LIST) as links:
        outcome = asyncio.run(_harvest(str(links), folder))
    print(for_stdout(summary(outcome, folder, time.monotonic() - began)))
    _print_busiest(Path(folder))
    print(f"\nrows: {folder}/part-*.ndjson\nwithout a row: {folder}/_failures.ndjson\ncounts: {folder}/_manifest.json")
    return outcome


async def _harvest(links: str, folder: str) -> RunOutcome:
    # Minute and hour are wide, so that the demonstration takes seconds; the month is below the sandbox's.
    sandbox = Sandbox(SandboxOptions(per_minute=6000, per_hour=0, per_month=5000, latency_ms=80, errors=0.02))
    async with serving(sandbox) as url:
        print(
            f"sandbox: {url}\n         five connections, 80 ms per answer, 2 % errors\nlist:    {links}\n", flush=True
        )
        job = Job(
            sources=resolve_lists([links]),
            token=Token(lambda: "sandbox"),
            out=folder,
            work_dir=None,
            query=Query("referrers", "day", -1, utc_iso(datetime.now(UTC)), 50),
            pin_reference=True,
            limits=RequestedLimits(per_minute=6000, per_hour=0, per_month=1000),
            client_settings=ClientSettings(url, MAX_CONNECTIONS, attempts=5, timeout_seconds=10.0, backoff_seconds=0.2),
            parts=PartLimits(rows=1_000_000, bytes=128 * 1024 * 1024),
            part_format=RequestedPartFormat(Format.NDJSON),
            state_dir=str(Path(folder) / "_harvester"),  # its calls must not count in the user's own budget
        )
        with closing(Reporter()) as observer, ExitStack() as stack:
            if can_be_drawn_upon([links], folder):
                display = live_display.Display()
                stack.enter_context(live_display.redrawn_after_stop(display))
                observer.write_to(display)
            observer.tell(Event.RUN_STARTED, "", lists=[_LIST], out=folder, facet=job.query.facet)
            return await jobs.run(job, ShutdownSignal(), observer)


def _print_busiest(folder: Path) -> None:
    clicks: Counter[str] = Counter()
    for part in sorted(folder.glob("part-*.ndjson")):
        with part.open("rb") as lines:
            for line in lines:
                for metric in orjson.loads(line)["metrics"]:
                    clicks[escaped(metric["value"])] += metric["clicks"]
    most, columns = max(clicks.values(), default=1), shutil.get_terminal_size().columns
    longest = max(min(_LONGEST_BAR, columns - _BEFORE_BARS), 0)
    print("\ntop referrers")
    for value, number in clicks.most_common(_SHOWN):
        print(f"  {value:<32} {number:>9,}  {'█' * round(longest * number / most)}")
