"""What the manifest says of how its runs went: the sums agree with the other counts, through kills and repairs."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harvester.dataset.ledger import Ledger
from harvester.dataset.manifest import Manifest
from harvester.history import Activity
from harvester.shutdown import StopReason
from tests.conftest import Served
from tests.e2e.test_repair import LINKS, Case, damage_ledger, remove_ledger
from tests.e2e.test_run_against_a_hostile_server import many
from tests.support.commands import harvester
from tests.support.in_process import QUICK_GATE, harvest
from tests.support.output_checks import manifest
from tests.support.s3_server import Case as S3Case
from tests.support.scripted_bitly import Scripted, scripted

FORMS = ["out", "results.ndjson"]


class Taking:
    """A reader of rows that takes each at once."""

    uncommitted_limit = 1000
    awaits_reader = False

    def check(self) -> None:
        pass

    def write(self, line: bytes) -> None:
        pass

    def shorten_waits(self) -> None:
        pass

    def leave(self) -> None:
        pass


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


def sums(history: list[dict[str, Any]]) -> Counter[str]:
    """The counts over all entries, and the waits under the names of their reasons."""
    found: Counter[str] = Counter()
    for entry in history:
        found.update({name: entry.get(name, 0) for name in Activity._fields})
        found.update({f"waited for {name}": seconds for name, seconds in entry.get("waits", {}).items()})
    return found


def check_sums(content: dict[str, Any], *, lost: int = 0) -> Counter[str]:
    """The history has all attempts and answers that the manifest has, but for those lost by kills."""
    found, attempts, dataset = sums(content["history"]), content["attempts"], content["dataset"]
    assert attempts["total"] - lost <= found["attempts"] <= attempts["total"]
    assert dataset["rows"] + dataset["refused"] - lost <= found["answers"] <= dataset["rows"] + dataset["refused"]
    assert attempts["throttled"] - lost <= found["throttled"] <= attempts["throttled"]
    assert attempts["retried"] - lost <= found["retries"] <= attempts["retried"]
    starts = [entry["start"] for entry in content["history"]]
    assert starts == sorted(set(starts))
    return found


@pytest.mark.parametrize("form", FORMS)
async def test_the_sums_are_those_of_the_run(bitly: Scripted, quick_path: Path, form: str) -> None:
    """Links that are throttled, fail for a while or for good, or are refused, and a server that is out for a while."""
    out, names = quick_path / form, [*many("ok", 60), "429x1-then-ok", *many("404", 3), *many("503x2-then-ok", 4)]
    bitly.out = lambda: 80 <= len(bitly.requests) - 1 <= 130
    names += [*many("ok--later", 60), "204"]
    await harvest(bitly.url, quick_path, names, out=str(out), report_seconds=0.01)
    found = check_sums(content := manifest(out))
    assert found["attempts"] == len(bitly.requests)
    assert found["failed"] == content["dataset"]["failed"] == 1
    assert (found["throttled"], found["network_errors"]) == (content["attempts"]["throttled"], 0)
    assert found["server_errors"] >= 4 * 2 + 1
    assert found["waited for outage"] > 0
    (run,) = content["runs"]
    assert sums([run]) == {name: number for name, number in found.items() if not name.startswith("waited")}
    assert content["started"] <= run["started"] <= run["until"] <= content["ended"]


@pytest.mark.parametrize("form", FORMS)
async def test_an_outage_that_ends_the_run_before_any_answer_is_recorded(
    bitly: Scripted, quick_path: Path, form: str
) -> None:
    """Nothing is settled, so that no commit is due before the end."""
    out, rules = quick_path / form, replace(QUICK_GATE, limit_seconds=0.5)
    bitly.out = lambda: True
    outcome = await harvest(
        bitly.url, quick_path, many("ok", 30), out=str(out), breaker_rules=rules, report_seconds=0.01
    )
    assert outcome.stop is not None
    assert outcome.stop.reason is StopReason.OUTAGE
    found = check_sums(manifest(out))
    assert found["attempts"] == found["server_errors"] == len(bitly.requests)
    assert found["waited for outage"] > 0.2
    assert found["answers"] == 0


async def test_rows_without_an_output_of_their_own_have_a_history_too(bitly: Scripted, quick_path: Path) -> None:
    manifests: list[Manifest] = []

    async def keep(found: Manifest) -> None:
        manifests.append(found)

    await harvest(bitly.url, quick_path, many("ok", 20), out="-", sink=Taking(), exporter=keep)
    assert check_sums(manifests[-1].to_json())["answers"] == 20


def test_an_object_store_has_the_history_in_its_manifest(case: S3Case) -> None:
    assert case.run("--max-calls", "3").returncode == 9
    assert case.run().returncode == 0
    content = json.loads(case.held()["_manifest.json"])
    found = check_sums(content)
    assert found["answers"] == content["dataset"]["rows"] + content["dataset"]["refused"]
    assert found["attempts"] == content["attempts"]["total"]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_is_killed_has_recorded_what_it_committed_and_the_next_adds_to_it(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    case, lost, unrecorded = Case(tmp_path, serve(latency_ms=50), form), 0, 0
    for kill in (1, 2, 3):
        case.killed(kill * len(LINKS) // 4)
        with closing(Ledger(str(case.private / "ledger.sqlite"), read_only=True)) as ledger:
            totals, committed = ledger.totals(), int(ledger.facts().get("total", 0))
            found = sums([entry.to_json() for entry in ledger.history().times])
        # Those that have no connection yet may turn out not to have been sent.
        assert committed - lost - 5 <= found["attempts"] <= committed
        assert totals.rows + totals.refused - unrecorded <= found["answers"] <= totals.rows + totals.refused
        lost, unrecorded = case.bought - found["attempts"] + 5, case.bought - found["answers"]
    case.finish(asked_again=15)
    content = manifest(case.out)
    assert check_sums(content, lost=lost)["attempts"] > 0
    assert [run["number"] for run in content["runs"]] == [1, 2, 3, 4]
    assert sums(content["runs"])["answers"] == sums(content["history"])["answers"]


def test_each_run_has_its_own_numbers_also_one_without_a_request(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """All within a minute or two: the time belongs to all of them, the counts to each."""
    case = Case(tmp_path, serve())
    for most in (30, 60):
        assert harvester(*case.command, "--max-calls", str(most)).returncode == 9
    for _ in range(2):
        case.finish()
    content = manifest(case.out)
    told = [(run["number"], run.get("attempts", 0), run.get("answers", 0)) for run in content["runs"]]
    assert told == [(1, 30, 30), (2, 60, 60), (3, len(LINKS) - 90, len(LINKS) - 90), (4, 0, 0)]
    moments = [moment for run in content["runs"] for moment in (run["started"], run["until"])]
    assert moments == sorted(moments)
    check_sums(content)


@pytest.mark.parametrize("spoil", [remove_ledger, damage_ledger])
def test_repair_keeps_the_history(tmp_path: Path, serve: Callable[..., Served], spoil: Callable[[Case], None]) -> None:
    case = Case(tmp_path, serve())
    assert harvester(*case.command, "--max-calls", "90").returncode == 9
    before, runs = manifest(case.out)["history"], manifest(case.out)["runs"]
    spoil(case)
    case.repair("--apply")
    assert harvester("verify", str(case.out)).returncode == 0
    case.finish()
    content = manifest(case.out)
    found = check_sums(content)
    assert sums(before)["answers"] == 90
    assert content["runs"][:-1] == runs
    assert found["answers"] == len(LINKS)


def test_an_entry_that_cannot_be_read_is_noted_by_verify_and_left_out_by_the_next_run(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case = Case(tmp_path, serve())
    assert harvester(*case.command, "--max-calls", "90").returncode == 9
    with closing(sqlite3.connect(case.private / "ledger.sqlite")) as db, db:
        db.execute("INSERT INTO history VALUES ('time', 60, '{')")
    checked = harvester("verify", str(case.out))
    assert checked.returncode == 0
    assert "history of the runs has 1 entries that cannot be read" in checked.stdout
    case.finish()
    assert check_sums(manifest(case.out))["answers"] == len(LINKS)


def test_status_has_the_history_for_programs(tmp_path: Path, serve: Callable[..., Served]) -> None:
    case = Case(tmp_path, serve())
    case.finish()
    told = json.loads(harvester("status", str(case.out), "--json").stdout)
    assert (told["history"], told["runs"]) == (manifest(case.out)["history"], manifest(case.out)["runs"])
    assert sums(told["history"])["answers"] == len(LINKS)
