"""The manifest before there is a harvest: a run that reads its list through is seen to go on, and how it ended."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from harvester.bitly.query import Query
from harvester.budget.database import BudgetDatabase
from harvester.budget.limits import Account, RequestedLimits
from harvester.budget.machine import MachineBudget
from harvester.dataset.dataset import Dataset
from harvester.dataset.journal import PartLimits
from harvester.dataset.manifest import Manifest, read
from harvester.dataset.opening import open_dataset
from harvester.errors import UsageError
from harvester.reporting.run_status import read_status
from harvester.run.committer import Heartbeat
from harvester.run.telemetry import Telemetry
from harvester.shutdown import ShutdownSignal
from harvester.storage.folders import resolve
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.output_checks import manifest

LINKS = "".join(f"bit.ly/{i}\n" for i in range(5))


@contextmanager
def reading_through(out: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run that was stopped at its second call, and is resumed with a list that does not end."""
    command = ("run", "-", "--out", str(out), "--base-url", url, "--strict", *NO_LIMITS)
    assert harvester(*command, "--max-calls", "2", stdin=LINKS.encode()).returncode == 9
    assert read_status(str(out)).state == "stopped"
    process = start(*command, stdin=subprocess.PIPE)
    assert process.stdin
    try:
        process.stdin.write(LINKS.encode())
        process.stdin.flush()
        while manifest(out)["invocation"]["number"] == 1:
            time.sleep(0.002)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_resumed_run_that_reads_its_list_first_is_running(tmp_path: Path, serve: Callable[..., Served]) -> None:
    out = tmp_path / "out"
    with reading_through(out, serve().url) as process:
        seen = read_status(str(out))
        assert (seen.state, seen.manifest.dataset.rows, seen.parts[1]) == ("running", 2, 2)
        assert seen.manifest.invocation.lists == ("-",)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert (read_status(str(out)).state, read_status(str(out)).manifest.dataset.rows) == ("complete", 5)


def test_a_run_that_is_interrupted_while_it_reads_its_list_has_stopped(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    out = tmp_path / "out"
    with reading_through(out, serve().url) as process:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    seen = read_status(str(out))
    assert seen.manifest.stopped
    assert (process.returncode, seen.state, seen.manifest.stopped.reason) == (5, "stopped", "signal")
    assert seen.next.command


def test_a_list_that_is_refused_says_so_in_the_manifest(tmp_path: Path, serve: Callable[..., Served]) -> None:
    out, links = tmp_path / "out", tmp_path / "links.txt"
    links.write_text("bit.ly/a\nno link\n")
    done = harvester("run", str(links), "--out", str(out), "--base-url", serve().url, "--strict", *NO_LIMITS)
    assert done.returncode == 2
    seen = read_status(str(out))
    stopped = seen.manifest.stopped
    assert stopped
    assert (seen.state, stopped.reason) == ("stopped", "not_begun")
    assert f"harvester: {stopped.message}" in done.stderr
    assert seen.next.summary.startswith("do what the message says")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Dataset]:
    query = Query("referrers", "day", -1, "2026-11-23T00:00:00Z", 50)
    with open_dataset(resolve(str(tmp_path / "out"), None), query, PartLimits(1000, 1_000_000), print) as store:
        yield store


@pytest.fixture
def budget(quick_path: Path) -> Iterator[MachineBudget]:
    with ExitStack() as stack:
        book = stack.enter_context(closing(BudgetDatabase(str(quick_path / "budget.sqlite"))))
        yield MachineBudget(book, Account("api.example:443", "token", "acme"), "referrers", RequestedLimits())


async def test_the_manifest_is_renewed_until_the_list_is_read(
    store: Dataset, budget: MachineBudget, tmp_path: Path
) -> None:
    shown: list[Manifest] = []
    often = asyncio.Event()

    async def show(written: Manifest) -> None:
        shown.append(written)
        if len(shown) == 4:
            often.set()

    heartbeat = Heartbeat(store, Telemetry(budget, 1, ["links.txt"]), show, seconds=0.0)
    async with heartbeat.before_harvest(ShutdownSignal()):
        await often.wait()
    count = len(shown)
    await asyncio.sleep(0)
    assert len(shown) == count >= 4
    assert {(each.ended, each.run_id) for each in shown} == {(None, store.run_id)}
    assert read(str(tmp_path / "out")).content == shown[-1]


async def test_the_first_error_is_reported_and_not_that_of_the_manifest_after_it(
    store: Dataset, budget: MachineBudget, tmp_path: Path
) -> None:
    async def refuse() -> None:
        async with Heartbeat(store, Telemetry(budget, 1, ["links.txt"])).before_harvest(ShutdownSignal()):
            os.rename(tmp_path / "out", tmp_path / "elsewhere")
            raise UsageError("the list is none")

    with pytest.raises(UsageError, match="the list is none"):
        await refuse()
