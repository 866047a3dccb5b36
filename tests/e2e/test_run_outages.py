"""Whose fault is it? Links that always fail beside a server that is out, told apart in the test's own process."""

import asyncio
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.budget.limits import RequestedLimits
from harvester.cli.exit_codes import exit_code
from harvester.dataset.manifest import read as read_manifest
from harvester.reporting.summary import summary
from harvester.shutdown import SOME_FAILED, STOPPED, StopReason
from tests.e2e.test_run_against_a_hostile_server import many
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.in_process import QUICK_GATE, harvest
from tests.support.output_checks import failures, manifest, rows
from tests.support.scripted_bitly import Scripted, scripted


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


def out_between(bitly: Scripted, first: int, last: int) -> None:
    """Let the server be out for the requests of these numbers, counted from 0."""
    bitly.out = lambda: first <= len(bitly.requests) - 1 <= last


# --- links at fault -------------------------------------------------------------------------------------------------


async def test_poisoned_links_at_the_end_of_a_list_have_failed_and_are_no_outage(
    bitly: Scripted, quick_path: Path
) -> None:
    outcome = await harvest(bitly.url, quick_path, [*many("ok", 10), *many("503", 3)])
    assert exit_code(outcome) == SOME_FAILED
    assert outcome.stop is None
    assert len(rows(quick_path / "out")) == 10
    lines = failures(quick_path / "out")
    assert sorted(line["bitlink"] for line in lines) == [f"bit.ly/{name}" for name in many("503", 3)]
    assert {(line["kind"], line["status"], line["attempts"]) for line in lines} == {("failed", 503, 5)}
    # Five attempts for each, and a witness or two for each at most.
    assert 10 + 3 * 5 <= len(bitly.requests) <= 10 + 3 * 5 + 6


async def test_a_single_poisoned_link_that_ends_a_list_costs_one_witness(bitly: Scripted, quick_path: Path) -> None:
    outcome = await harvest(bitly.url, quick_path, ["ok", "503"])
    assert exit_code(outcome) == SOME_FAILED
    assert [line["attempts"] for line in failures(quick_path / "out")] == [5]
    assert (len(bitly.visits("503")), len(bitly.visits("ok"))) == (5, 2)


async def test_a_server_that_has_answered_nobody_is_out(bitly: Scripted, quick_path: Path) -> None:
    rules = replace(QUICK_GATE, limit_seconds=0.3)
    outcome = await harvest(bitly.url, quick_path, many("503", 3), breaker_rules=rules)
    assert exit_code(outcome) == STOPPED
    assert failures(quick_path / "out") == []


async def test_a_row_of_an_earlier_run_is_a_witness_too(bitly: Scripted, quick_path: Path) -> None:
    assert (await harvest(bitly.url, quick_path, ["ok"])).complete
    outcome = await harvest(bitly.url, quick_path, ["ok", "503"])
    assert exit_code(outcome) == SOME_FAILED
    assert (len(bitly.visits("503")), len(bitly.visits("ok"))) == (5, 2)


async def test_sixty_poisoned_links_in_a_row_are_the_links_fault(bitly: Scripted, quick_path: Path) -> None:
    """Twenty in a row look like an outage, until a link that answered before is answered again."""
    names = [*many("ok", 5), *many("503", 60), *many("ok--more", 5)]
    outcome = await harvest(bitly.url, quick_path, names)
    assert exit_code(outcome) == SOME_FAILED
    assert outcome.stop is None
    counts = manifest(quick_path / "out")["dataset"]
    assert counts == {
        "calls": 70, "rows": 10, "refused": 0, "failed": 60, "pending": 0, "truncated": 0, "clipped": 0, "idle": 0,
        "refreshed": 0,
    }  # fmt: skip
    assert {(line["kind"], line["status"]) for line in failures(quick_path / "out")} == {("failed", 503)}


# --- the server at fault --------------------------------------------------------------------------------------------


async def test_a_server_that_goes_down_for_the_last_two_links_costs_no_failure(
    bitly: Scripted, quick_path: Path
) -> None:
    out_between(bitly, 18, 18 + 15)
    outcome = await harvest(bitly.url, quick_path, many("ok", 20))
    assert outcome.complete
    assert len(rows(quick_path / "out")) == 20
    assert failures(quick_path / "out") == []


async def test_an_outage_in_the_middle_costs_no_failure_and_few_requests(bitly: Scripted, quick_path: Path) -> None:
    def out() -> bool:
        return len(bitly.requests) > 200 and bitly.requests[-1].at < bitly.requests[200].at + 1.5

    bitly.out = out
    outcome = await harvest(bitly.url, quick_path, many("ok", 500))
    assert outcome.complete
    assert len(rows(quick_path / "out")) == 500
    assert failures(quick_path / "out") == []
    # Twenty calls that fail before it is known to be an outage, with their repeats until then; a few probes after that.
    assert 520 <= len(bitly.requests) < 600


async def test_an_outage_longer_than_its_limit_ends_the_run_and_the_next_carries_on(
    bitly: Scripted, quick_path: Path
) -> None:
    bitly.out = lambda: len(bitly.requests) > 10
    rules = replace(QUICK_GATE, limit_seconds=0.3)
    outcome = await harvest(bitly.url, quick_path, many("ok", 50), breaker_rules=rules)
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.OUTAGE
    assert exit_code(outcome) == STOPPED
    assert failures(quick_path / "out") == []
    assert len(rows(quick_path / "out")) == 10
    bitly.out = lambda: False
    assert (await harvest(bitly.url, quick_path, many("ok", 50))).complete
    assert len(rows(quick_path / "out")) == 50


@pytest.mark.slow
async def test_without_a_network_a_run_ends_and_has_spent_nothing(quick_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v4"
    limits, rules = RequestedLimits(100, None, 1000), replace(QUICK_GATE, limit_seconds=0.3)
    for _ in range(2):
        outcome = await harvest(url, quick_path, many("ok", 40), breaker_rules=rules, limits=limits)
        assert exit_code(outcome) == STOPPED
        assert [window.used for window in outcome.status.windows] == [0, 0, 0]
        assert manifest(quick_path / "out")["attempts"] == {"total": 0, "retried": 0, "throttled": 0, "helper": 0}
        assert outcome.stop is not None
        assert re.fullmatch(
            r"the server was never reached \(127.0.0.1:\d+ cannot be reached: Connection refused\); check --base-url "
            r"and the network, then run the same command again",
            outcome.stop.message,
        )
        lines = summary(outcome, "out", 1.0).split("\n")
        [cost] = [line for line in lines if "requests  " in line]
        assert re.fullmatch(r"  requests  \d+ did not reach the server, and cost nothing", cost)
    assert failures(quick_path / "out") == []


def test_a_stopped_process_reads_its_answers_when_it_goes_on(bitly: Scripted, tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/{name}\n" for name in many("later", 20)))
    command = ("run", str(tmp_path / "links.txt"), "--out", str(tmp_path / "out"), "--base-url", bitly.url)
    process = start(*command, *NO_LIMITS, "--timeout", "1s", "--attempts", "1")
    while len(bitly.requests) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(bitly.requests) == 20
    assert manifest(tmp_path / "out")["attempts"]["total"] == 20


def test_the_outage_limit_is_an_option(bitly: Scripted, tmp_path: Path) -> None:
    bitly.out = lambda: True
    links, out = tmp_path / "links.txt", tmp_path / "out"
    links.write_text("".join(f"bit.ly/{name}\n" for name in many("ok", 30)))
    command = ("run", str(links), "--out", str(out), "--base-url", bitly.url, *NO_LIMITS)
    done = harvester(*command, "--outage-limit", "1s")
    assert done.returncode == 5, done.stderr
    assert "--outage-limit" in done.stderr
    assert manifest(out)["stopped"]["reason"] == "outage"
    assert failures(out) == []


async def test_an_outage_is_in_the_manifest_as_soon_as_it_begins(bitly: Scripted, quick_path: Path) -> None:
    """Without the rule, the manifest would be written after ten seconds."""
    bitly.out = lambda: True
    running = asyncio.create_task(harvest(bitly.url, quick_path, many("ok", 30)))
    out, seen = quick_path / "out" / "_manifest.json", None
    async with asyncio.timeout(30):
        while seen is None or seen.window != "outage":
            await asyncio.sleep(0.05)
            seen = read_manifest(str(out)).content.budget.limited_by if out.exists() else None
    bitly.out = lambda: False
    assert (await running).complete
    assert seen.since is not None
    assert "503" in str(seen.why)
    assert manifest(quick_path / "out")["budget"]["limited_by"] is None
