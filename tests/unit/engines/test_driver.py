"""A list's calls made by processes beside the driver, which are killed, as tasks of a cluster are."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from harvester.bitly.bitlinks import Bitlink
from harvester.config.keywords import HarvestKeywords, SparkKeywords, run_options
from harvester.engines import driver, tasks
from harvester.engines.driver import ClusterDriver, Submit
from harvester.engines.shared_folder import open_shared
from harvester.events import RunOutcome
from harvester.links.batch import Link
from harvester.links.feed import IterableFeed
from harvester.reporting.logs import LoggingObserver
from harvester.run import job as jobs
from harvester.run.assembly import build_job
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from tests.support.commands import ROOT, TOKEN, harvester
from tests.support.output_checks import failures, manifest, rows
from tests.support.process_cluster import ProcessCluster
from tests.support.scripted_bitly import Scripted, scripted

if TYPE_CHECKING:
    from tests.support.redis_server import RedisProcess

CONNECTIONS = 5
LINKS = [f"bit.ly/ok--{number}" for number in range(200)]


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


@pytest.fixture(autouse=True)
def tasks_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an earlier driver runs on in these tests, unless they wait for it themselves."""
    monkeypatch.setattr(driver, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(driver, "FENCE_SECONDS", 0.05)
    monkeypatch.setattr(driver, "_POLL_SECONDS", 0.1)


class Harvested:
    """Harvests lists into one output, by two shards of a cluster."""

    def __init__(self, folder: Path, url: str, place: str | None = None) -> None:
        self.out = folder / "out"
        self.options: dict[str, Any] = {"base_url": url, "state_dir": str(folder / "state"), "attempts": 2}
        self.options |= {"per_minute": 0, "per_hour": 0, "per_month": 0}
        self.place = place or str(self.out / ".harvester" / "spark")

    def __call__(
        self, links: Sequence[Any], submit: Submit, shutdown: ShutdownSignal | None = None, **more: Any
    ) -> RunOutcome:
        return asyncio.run(self._run(links, submit, shutdown or ShutdownSignal(), self.options | more))

    async def _run(
        self, links: Sequence[Any], submit: Submit, shutdown: ShutdownSignal, options: dict[str, Any]
    ) -> RunOutcome:
        chosen = run_options(options, SparkKeywords, str(self.out))
        job = build_job(IterableFeed(links), chosen, lambda _: None, lambda: TOKEN)
        cluster = ClusterDriver(self.place, submit, 2, chosen, TOKEN, most=job.max_calls)
        return await jobs.run(replace(job, cluster=cluster), shutdown, LoggingObserver())

    def bitlinks(self) -> list[str]:
        return sorted(row["bitlink"] for row in rows(self.out))

    def holds(self) -> bool:
        return harvester("verify", str(self.out)).returncode == 0


@pytest.fixture
def harvest(tmp_path: Path, bitly: Scripted) -> Harvested:
    return Harvested(tmp_path, bitly.url)


def asked(bitly: Scripted) -> Counter[str]:
    return Counter(seen.back_half for seen in bitly.requests if seen.back_half)


def when_answered(bitly: Scripted, calls: int, act: Callable[..., None]) -> Callable[..., None]:
    """Return what waits for some calls, and then acts."""

    def wait(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
        while len(bitly.requests) < calls:
            assert None in [process.poll() for process in processes]
            time.sleep(0.002)
        act(processes)

    return wait


def test_each_link_is_asked_for_once_and_the_output_is_as_of_a_run(harvest: Harvested, bitly: Scripted) -> None:
    links = [*LINKS[:40], "bit.ly/404", "bit.ly/418", LINKS[0], "not a link", ("bit.ly/ok--carried", {"team": "A"})]
    outcome = harvest(links, ProcessCluster(), part_rows=20)
    assert (outcome.complete, outcome.stop) == (False, None)  # 418 failed
    assert harvest.bitlinks() == sorted([*LINKS[:40], "bit.ly/ok--carried"])
    assert {line["kind"]: line["line"] for line in failures(harvest.out)} == {
        "refused": 41,
        "failed": 42,
        "invalid": 44,
    }
    assert [row["carried"] for row in rows(harvest.out) if row["carried"]] == [{"team": "A"}]
    assert {row["run_id"] for row in rows(harvest.out)} == {manifest(harvest.out)["run_id"]}
    once = {name: count for name, count in asked(bitly).items() if name.startswith("ok--")}
    assert set(once.values()) == {1}
    assert len(once) == 41
    assert manifest(harvest.out)["attempts"]["total"] == len([seen for seen in bitly.requests if seen.back_half])
    assert harvest.holds()


def test_what_the_output_has_costs_no_call(harvest: Harvested, bitly: Scripted) -> None:
    assert harvest(LINKS[:20], ProcessCluster()).complete
    before, cluster = len(bitly.requests), ProcessCluster()
    assert harvest(LINKS[:20], cluster).complete
    assert (len(bitly.requests), cluster.attempts) == (before, 0)
    assert harvest(LINKS[:30], ProcessCluster()).complete
    assert set(asked(bitly).values()) == {1}
    assert harvest.bitlinks() == sorted(LINKS[:30])


@pytest.mark.parametrize("kind", ["mounted", "objects"])
def test_a_task_that_is_killed_repeats_at_most_what_was_in_flight(
    tmp_path: Path, bitly: Scripted, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = CONNECTIONS
    harvest = Harvested(tmp_path, bitly.url)
    if kind == "objects":
        harvest.place, lost = f"file://{tmp_path}/store", CONNECTIONS + 2 * 100
    kill = when_answered(bitly, 60, lambda processes: os.kill(processes[0].pid, signal.SIGKILL))
    cluster = ProcessCluster(kill)
    assert harvest(LINKS, cluster).complete
    assert cluster.attempts == 3
    assert harvest.bitlinks() == sorted(LINKS)
    assert len(bitly.requests) - len(LINKS) <= lost
    assert harvest.holds()


def test_what_tasks_have_paid_for_outlives_their_driver(harvest: Harvested, bitly: Scripted) -> None:
    code = f"""if True:
        from {__name__} import *
        Harvested(Path({str(harvest.out.parent)!r}), {bitly.url!r})(LINKS, ProcessCluster())
    """
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        try:
            while len(bitly.requests) < 100:
                assert process.poll() is None
                time.sleep(0.002)
        finally:
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children()]:
                each.kill()
    assert harvest(LINKS, ProcessCluster()).complete
    assert harvest.bitlinks() == sorted(LINKS)
    assert len(bitly.requests) - len(LINKS) <= CONNECTIONS
    assert len(LINKS) <= manifest(harvest.out)["attempts"]["total"] <= len(bitly.requests)
    assert harvest.holds()


def test_outputs_may_share_a_folder_of_answers(tmp_path: Path, bitly: Scripted) -> None:
    place = str(tmp_path / "shared")
    first, second = (Harvested(tmp_path / name, bitly.url, place) for name in ("first", "second"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterDriver, "clean", _kept)  # as a driver that was killed leaves it
        assert first(LINKS[:20], ProcessCluster()).complete
    assert second(LINKS[20:40], ProcessCluster()).complete
    assert (first.bitlinks(), second.bitlinks()) == (sorted(LINKS[:20]), sorted(LINKS[20:40]))


async def _kept(_: object) -> None:
    pass


def test_where_the_list_comes_from_is_no_business_of_the_tasks(tmp_path: Path) -> None:
    options = run_options({"group": "Ba1bc23dE4F", "strict": True, "shard": "1/2"}, HarvestKeywords, str(tmp_path))
    query = build_job([], options, lambda _: None, lambda: TOKEN).query
    folder = open_shared(str(tmp_path))
    folder.put("links", tasks.line_of(Link(Bitlink("bit.ly/a"), "group", 7, "bit.ly/a")))
    plan = tasks.TaskPlan(str(tmp_path), "job", query, "run", options, TOKEN, None)
    feed = tasks.ShardFeed(folder, "links", query, set())
    job = tasks._job_of(plan, tasks.ShardCalls(0, 1), feed, folder.log("log"), LoggingObserver(), 0)
    assert (job.listed, job.strict, job.feed) == (None, False, feed)
    (link,) = asyncio.run(feed.next()).links  # type: ignore[union-attr]
    assert (link.bitlink, link.line) == ("bit.ly/a", 7)


def test_the_calls_that_may_be_made_are_divided_among_the_shards(harvest: Harvested, bitly: Scripted) -> None:
    outcome = harvest(LINKS, ProcessCluster(), max_calls=30)
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.MAX_CALLS
    assert len(bitly.requests) == 30
    assert manifest(harvest.out)["dataset"]["rows"] == 30
    assert harvest(LINKS, ProcessCluster()).complete
    assert set(asked(bitly).values()) == {1}


def test_a_spent_month_is_how_a_run_ends_and_no_error(harvest: Harvested, bitly: Scripted) -> None:
    spent = [False]
    bitly.everyone = lambda: "429-month" if spent[0] or len(bitly.requests) > 50 else None
    outcome = harvest(LINKS, ProcessCluster())
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.MONTH_SPENT
    found = manifest(harvest.out)
    assert found["stopped"]["reason"] == "month_spent"
    assert found["dataset"]["rows"] + found["dataset"]["pending"] == len(LINKS)
    assert harvest.holds()


def test_tasks_end_when_the_driver_is_asked_to(harvest: Harvested, bitly: Scripted) -> None:
    shutdown = ShutdownSignal()

    def submit(plan: tasks.TaskPlan, shards: Sequence[tasks.ShardCalls]) -> list[tasks.TaskResult]:
        def stop(_: object) -> None:
            loop.call_soon_threadsafe(shutdown.request, Stop(StopReason.SIGNAL, "by the test"))

        return ProcessCluster(when_answered(bitly, 20, stop))(plan, shards)

    bitly.everyone = lambda: time.sleep(0.01)  # so that some calls are left
    loop = asyncio.new_event_loop()
    outcome = loop.run_until_complete(harvest._run(LINKS * 1, submit, shutdown, harvest.options))
    loop.close()
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.SIGNAL
    answered = manifest(harvest.out)["dataset"]["rows"]
    assert answered + CONNECTIONS >= 20
    bitly.everyone = lambda: None
    assert harvest(LINKS, ProcessCluster()).complete
    assert len(bitly.requests) - len(LINKS) <= 2 * CONNECTIONS


def test_what_tasks_write_after_their_job_has_failed_is_settled_by_the_next_run(
    harvest: Harvested, bitly: Scripted
) -> None:
    cluster = ProcessCluster()

    def submit(plan: tasks.TaskPlan, shards: Sequence[tasks.ShardCalls]) -> list[tasks.TaskResult]:
        cluster(plan, shards[1:])
        # This task is still running when its job is given up, and is asked to end some seconds later.
        late.append(cluster.start(plan, shards[0]))
        raise RuntimeError("the stage was aborted")

    late: list[subprocess.Popen[bytes]] = []
    outcome = harvest(LINKS, submit)
    assert outcome.stop is not None
    assert "the stage was aborted" in outcome.stop.message
    for process in late:
        assert process.stdout is not None
        with process:
            process.stdout.read()
    before = len(bitly.requests)
    assert harvest(LINKS, ProcessCluster()).complete
    assert len(bitly.requests) - before == len(LINKS) - before
    assert harvest.bitlinks() == sorted(LINKS)


def test_tasks_and_their_driver_share_a_budget_and_an_address_in_redis(
    harvest: Harvested, bitly: Scripted, redis_server: "RedisProcess"
) -> None:
    shared: dict[str, Any] = {"budget": redis_server.url, "egress": "office", "per_hour": 10_000}
    assert harvest(LINKS, ProcessCluster(), **shared).complete
    assert set(asked(bitly).values()) == {1}
    assert harvest.bitlinks() == sorted(LINKS)
    assert bitly.most_connections == CONNECTIONS  # the driver has left them to its tasks
    (hour,) = [window for window in manifest(harvest.out)["budget"]["windows"] if window["window"] == "hour"]
    assert hour["used"] == len(bitly.requests)


def test_an_error_of_a_task_names_its_machine(harvest: Harvested) -> None:
    outcome = harvest(LINKS[:4], partial(_refused))
    assert outcome.stop is not None
    assert "worker-7: no token" in outcome.stop.message


def _refused(plan: tasks.TaskPlan, shards: Sequence[tasks.ShardCalls]) -> list[tasks.TaskResult]:
    return [tasks.TaskResult("answers", "worker-7", {}, error="no token") for _ in shards]
