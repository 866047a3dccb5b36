"""Published into an object store: as safe as into a folder, for the real command against S3's protocol."""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest

import harvester as harvester_package
from harvester.arrow import read
from harvester.bitly.query import Query
from harvester.dataset.journal import PartLimits
from harvester.dataset.manifest import BudgetReport
from harvester.dataset.opening import open_dataset
from harvester.errors import OutputError, UsageError
from harvester.progress import RunProgress
from harvester.run.job import enter_in_thread
from harvester.run.telemetry import Throughput, run_report
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage import object_store as stores
from harvester.storage.folders import resolve
from tests.support.commands import TOKEN, harvester, start
from tests.support.s3_server import BUCKET, HALF, LINKS, LOST, S3, SECRET, Case, check_whole, rows_in

QUERY = Query("referrers", "day", -1, "2026-11-23T00:00:00Z", 50)


def calls(case: Case) -> int:
    return sum(case.served.sandbox.answered.values())


def test_a_list_is_published_under_a_prefix(case: Case) -> None:
    result = case.run()
    assert result.returncode == 0, result.stderr
    check_whole(case.held(), set(LINKS))
    assert set(case.held()) - {"_claim.json", "_manifest.json", "_failures.ndjson", "_SUCCESS"} == {
        part["path"] for part in json.loads(case.held()["_manifest.json"])["parts"]
    }
    assert not list(case.work.glob("public/.part-*"))


def test_the_same_command_again_asks_and_uploads_nothing_twice(case: Case) -> None:
    assert case.run().returncode == 0
    before, made = case.held(), calls(case)
    case.s3.requests.clear()
    assert case.run().returncode == 0
    assert calls(case) == made
    assert {name for method, name in case.s3.requests if method == "PUT" and name.startswith("part-")} == set()
    check_whole(case.held(), set(LINKS))
    assert {name: data for name, data in case.held().items() if "part-" in name} == {
        name: data for name, data in before.items() if "part-" in name
    }


def test_success_is_taken_back_before_a_new_call(case: Case) -> None:
    assert case.run().returncode == 0
    case.links.write_text("bit.ly/new\n")
    case.s3.requests.clear()
    seen: list[bool] = []
    case.served.sandbox.answered.clear()
    case.s3.after = lambda method, name: seen.append(calls(case) == 0) if method == "POST" else None
    assert case.run().returncode == 0
    assert seen == [True], "a deletion is a POST to the bucket"


def test_a_missing_work_dir_is_an_error_that_names_one(case: Case) -> None:
    result = harvester("run", str(case.links), "--out", case.out, env=case.s3.env)
    assert result.returncode == 2
    assert "--work-dir /var/lib/harvester/bitly" in result.stderr


def test_a_lost_work_dir_buys_and_publishes_nothing(case: Case) -> None:
    assert case.run().returncode == 0
    before, made = case.held(), calls(case)
    result = case.run(work=case.folder / "another")
    assert result.returncode == 8
    assert "belongs to another work dir" in result.stderr
    assert str(case.work) in result.stderr
    assert (case.held(), calls(case)) == (before, made)


def test_a_prefix_whose_claim_was_deleted_is_refused_too(case: Case) -> None:
    assert case.run().returncode == 0
    obstore.delete(case.store, "_claim.json")
    result = case.run(work=case.folder / "another")
    assert result.returncode == 8
    assert "was started with another --work-dir" in result.stderr
    assert "_claim.json" not in case.held()


def test_a_work_dir_that_was_carried_elsewhere_goes_on(case: Case) -> None:
    assert case.run("--max-calls", "4").returncode == 9
    case.work.rename(case.folder / "carried")
    assert case.run(work=case.folder / "carried").returncode == 0
    check_whole(case.held(), set(LINKS))
    assert calls(case) == len(LINKS)


def test_an_older_work_dir_is_refused(case: Case) -> None:
    assert case.run("--max-calls", "2").returncode == 9
    shutil.copytree(case.work, case.folder / "backup")
    assert case.run().returncode == 0
    obstore.delete(case.store, [name for name in case.held() if name.startswith("part-")])  # a loader has them
    made = calls(case)
    result = case.run(work=case.folder / "backup")
    assert result.returncode == 8
    assert "older than this output" in result.stderr
    assert calls(case) == made


def test_a_part_unknown_to_the_ledger_is_named_in_the_error(case: Case) -> None:
    obstore.put(case.store, "part-0000.parquet", b"PAR1")
    result = case.run()
    assert result.returncode == 8
    assert "part-0000.parquet is not in the ledger" in result.stderr
    assert calls(case) == 0


def test_a_work_dir_belongs_to_one_output(case: Case) -> None:
    assert case.run().returncode == 0
    case.out += "-other"
    result = case.run("--unit-reference", "2026-11-24")
    assert result.returncode == 2
    assert "belongs to --out" in result.stderr


def test_a_part_that_a_loader_has_moved_away_stays_settled(case: Case) -> None:
    assert case.run().returncode == 0
    parts = [name for name in case.held() if name.startswith("part-")]
    obstore.delete(case.store, parts)
    case.links.write_text("\n".join([*LINKS, "bit.ly/new"]) + "\n")
    assert case.run().returncode == 0
    assert [row["bitlink"] for row in rows_in(case.held())] == ["bit.ly/new"]
    assert len(json.loads(case.held()["_manifest.json"])["parts"]) == len(parts) + 1


def test_a_part_that_is_taken_before_it_was_read_back_is_published(case: Case) -> None:
    taken: dict[str, bytes] = {}

    def take(method: str, name: str) -> None:
        if method == "PUT" and name.startswith("part-"):
            taken.update({key: data for key, data in case.held().items() if key == name})
            obstore.delete(case.store, name)

    case.s3.after = take
    assert case.run().returncode == 0
    case.s3.calm()
    assert sorted(row["bitlink"] for row in rows_in(taken)) == LINKS
    assert len(taken) == 3


def once(method: str, start: str, code: str, times: int = 1) -> Callable[[str, str], str | None]:
    left = [times]

    def fault(has: str, name: str) -> str | None:
        if has == method and name.startswith(start) and left[0]:
            left[0] -= 1
            return code
        return None

    return fault


@pytest.mark.parametrize("start", ["_claim", "part-", "_manifest", "_SUCCESS"])
@pytest.mark.parametrize("code", ["SlowDown", LOST])
def test_a_transient_error_is_retried(case: Case, start: str, code: str) -> None:
    case.s3.fault = once("PUT", start, code, 1 if code == LOST else 2)
    result = case.run()
    assert result.returncode == 0, result.stderr
    case.s3.calm()
    check_whole(case.held(), set(LINKS))
    assert calls(case) == len(LINKS)


@pytest.mark.parametrize(("start", "made"), [("part-", 7), ("_manifest", 0)])
def test_a_refusal_ends_the_run_at_once_and_says_what_to_do(case: Case, start: str, made: int) -> None:
    case.s3.fault = once("PUT", start, "AccessDenied", 10**6)
    result = case.run()
    assert (result.returncode, calls(case)) == (8, made)
    assert "403 Forbidden (AccessDenied)" in result.stderr
    assert "must be able to list, read, write and delete" in result.stderr
    assert SECRET not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_store_that_stays_out_ends_the_run_and_the_same_command_uploads_the_rest(case: Case) -> None:
    case.s3.fault = once("PUT", "part-", "SlowDown", 10**6)
    result = case.run(patience=0.3)
    assert result.returncode == 8, result.stderr
    assert "503" in result.stderr
    assert rows_in(case.held()) == []
    assert "_SUCCESS" not in case.held()
    case.s3.calm()
    assert case.run().returncode == 0
    check_whole(case.held(), set(LINKS))
    assert calls(case) == len(LINKS)


def test_a_manifest_that_cannot_be_uploaded_at_the_end_is_no_success(case: Case) -> None:
    case.s3.fault = once("PUT", "_manifest", "SlowDown", 10**6)
    result = case.run(patience=0.3)
    assert result.returncode == 8
    assert "_SUCCESS" not in case.held()
    case.s3.calm()
    assert case.run().returncode == 0
    check_whole(case.held(), set(LINKS))
    assert calls(case) == len(LINKS)


def test_a_part_whose_file_was_lost_too_is_made_again(case: Case) -> None:
    case.s3.fault = once("PUT", "part-", "SlowDown", 10**6)
    assert case.run(patience=0.1).returncode == 8
    case.s3.calm()
    (made,) = case.work.glob("public/.part-*")
    made.unlink()
    assert case.run().returncode == 0
    check_whole(case.held(), set(LINKS))
    assert calls(case) == len(LINKS)


def test_a_manifest_that_cannot_be_uploaded_meanwhile_is_a_warning(case: Case) -> None:
    case.s3.fault = once("PUT", "_manifest", "SlowDown")
    result = case.run()
    assert result.returncode == 0
    assert "the run continues, and tries again later" in result.stderr
    check_whole(case.held(), set(LINKS))


def test_a_store_that_replaces_where_it_should_create_is_refused(case: Case) -> None:
    case.s3.deaf = True
    result = case.run()
    assert result.returncode == 8
    assert "cannot publish safely there" in result.stderr
    assert calls(case) == 0


def test_a_stop_does_not_wait_for_a_store_that_is_out(case: Case) -> None:
    process: list[subprocess.Popen[bytes]] = []

    def fault(method: str, name: str) -> str | None:
        if method != "PUT" or not name.startswith("part-"):
            return None
        process[0].terminate()
        return "SlowDown"

    case.s3.fault = fault
    process.append(start(*case.arguments(), env=case.s3.env))
    _, said = process[0].communicate(timeout=60)
    assert process[0].returncode in {8, 143}, said
    case.s3.calm()
    assert case.run().returncode == 0
    check_whole(case.held(), set(LINKS))
    assert calls(case) == len(LINKS)


def test_harvest_from_python_publishes_into_a_store(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in case.s3.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    limits: dict[str, Any] = {"per_minute": 0, "per_hour": 0, "per_month": 0}
    harvesting = harvester_package.harvest(LINKS, out=case.out, work_dir=case.work, base_url=case.served.url, **limits)
    result = asyncio.run(harvesting)
    assert result["complete"]
    check_whole(case.held(), set(LINKS))
    table = read(case.out + "/", columns=["bitlink", "metrics"])
    assert table.to_pylist() == [{"bitlink": row["bitlink"], "metrics": row["metrics"]} for row in rows_in(case.held())]
    with pytest.raises(UsageError, match="nothing here was written by harvester"):
        read(f"{case.out}/deeper")


def test_an_endpoint_that_is_down_costs_no_call(case: Case) -> None:
    case.s3 = S3(url="http://127.0.0.1:9")
    result = case.run(patience=0.3)
    assert result.returncode == 8
    assert "Connection refused" in result.stderr
    assert calls(case) == 0


def test_a_missing_bucket_is_reported(case: Case) -> None:
    case.out = case.out.replace(BUCKET, "no-such-lake")
    result = case.run()
    assert result.returncode == 8
    assert "Does the bucket exist?" in result.stderr


def test_an_object_that_differs_is_never_replaced(case: Case) -> None:
    begun: list[str] = []

    def stand_in_the_way(method: str, name: str) -> str | None:
        if method == "PUT" and name.startswith("part-") and not begun:
            begun.append(name)
            obstore.put(case.store, name, b"other")
        return None

    case.s3.fault = stand_in_the_way
    result = case.run()
    assert result.returncode == 8
    assert "has the name of a new part" in result.stderr
    case.s3.calm()
    assert [data for name, data in case.held().items() if name.startswith("part-")] == [b"other"]


def test_status_reads_the_manifest_in_the_store(case: Case) -> None:
    assert case.run().returncode == 0
    result = harvester("status", case.out, env=case.s3.env)
    assert result.returncode == 0, result.stderr
    assert "7" in result.stdout
    nothing = harvester("status", case.out + "/deeper", env=case.s3.env)
    assert nothing.returncode == 2
    assert "no run has started at" in nothing.stderr


def test_a_plan_counts_what_the_work_dir_knows(case: Case) -> None:
    assert case.run("--max-calls", "3").returncode == 9
    arguments = ["plan", *case.arguments()[1:]]
    result = harvester(*[a for a in arguments if a not in {"--part-rows", "3"}], "--json", env=case.s3.env)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["calls"] == 4


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("s3://lake", "a bucket and a prefix"),
        ("s3://lake/", "a bucket and a prefix"),
        ("s3:///prefix", "a bucket and a prefix"),
        ("s3://key:secret@lake/prefix", "credentials belong in the environment"),
        ("s3://lake/a//b", "single slashes"),
        ("s3://lake/../b", "single slashes"),
        ("s3://lake/a?versionId=1", "may have letters"),
        ("s3://lake/ä", "may have letters"),
        ("s3a://lake/a", "s3://, gs:// and az://"),
        ("https://lake.example/a", "s3://, gs:// and az://"),
    ],
)
def test_an_address_that_cannot_be_parsed_is_refused(out: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        resolve(out, str(tmp_path))
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_slashes_at_the_end_are_dropped(tmp_path: Path) -> None:
    assert resolve("s3://lake/a/", str(tmp_path)).out == "s3://lake/a"


def test_a_missing_library_names_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"pip install 'bitly-harvester\[cloud\]'"):
        stores.open_store("s3://lake/a")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_the_other_stores_are_opened_in_the_same_way(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert stores.open_store(f"{scheme}://lake/a").url == f"{scheme}://lake/a"


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_a_store_reads_creates_replaces_and_deletes(scheme: str, case: Case, monkeypatch: Any) -> None:
    for name, value in case.s3.env.items():
        monkeypatch.setenv(name, value)
    url = case.out if scheme == "s3" else f"file://{case.folder}/store"
    store = stores.open_store(url)
    assert store.get("a") is None
    with pytest.raises(FileNotFoundError):
        store.open("a")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.get("a") == b"1"
    store.replace("a", [b"3", b"3"])
    assert store.open("a").read() == b"33"
    assert store.names() == ["a"]
    store.delete("a")
    store.delete("a")
    assert store.names() == []


def test_the_local_store_takes_a_whole_run(case: Case) -> None:
    case.out = f"file://{case.folder}/store"
    assert case.run("--max-calls", "4").returncode == 9
    assert case.run().returncode == 0
    held = {path.name: path.read_bytes() for path in (case.folder / "store").iterdir()}
    check_whole(held, set(LINKS))
    assert calls(case) == len(LINKS)


@pytest.fixture
def store(case: Case, monkeypatch: pytest.MonkeyPatch) -> stores.ObjectStorage:
    """What is under the prefix, in this process."""
    for name, value in case.s3.env.items():
        monkeypatch.setenv(name, value)
    return stores.open_store(case.out)


def test_a_conflict_does_not_mean_that_the_object_exists(case: Case, store: stores.ObjectStorage) -> None:
    case.s3.fault = once("PUT", "a", "ConditionalRequestConflict")
    assert store.create("a", b"1")
    assert store.get("a") == b"1"


@pytest.mark.parametrize(
    ("code", "hint"),
    [("ExpiredToken", "have expired"), ("PermanentRedirect", "Is AWS_REGION"), ("AccessDenied", "must be able to")],
)
def test_an_error_that_a_retry_cannot_fix_is_not_retried(
    case: Case, store: stores.ObjectStorage, code: str, hint: str
) -> None:
    case.s3.fault = once("GET", BUCKET, code, 10**6)
    with pytest.raises(OutputError, match=hint):
        store.names()
    assert case.s3.requests.total() == 1


def test_an_object_whose_connection_is_lost_is_read_on(case: Case, store: stores.ObjectStorage) -> None:
    data = os.urandom(2_000_000)
    store.replace("a", [data])
    case.s3.fault = once("GET", "a", HALF, 2)
    assert store.open("a").read() == data
    case.s3.fault = once("GET", "a", HALF, 2)
    assert store.digest("a") == (len(data), hashlib.sha256(data).hexdigest())
    assert store.digest("b") is None


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "http://", "ftp://127.0.0.1", "https://[::1", "http://s3.example.com"]
)
def test_an_endpoint_that_cannot_be_asked_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL"):
        stores.open_store("s3://lake/a")


def test_parts_that_no_request_can_carry_are_refused(tmp_path: Path) -> None:
    location = resolve("s3://lake/a", str(tmp_path))
    with pytest.raises(UsageError, match="512MiB"), open_dataset(location, QUERY, PartLimits(10, 2**30), print):
        pass


def test_a_manifest_that_is_renewed_is_uploaded_again(tmp_path: Path) -> None:
    location = resolve(f"file://{tmp_path}/store", str(tmp_path / "work"))
    with open_dataset(location, QUERY, PartLimits(10, 2**20), print) as dataset:
        written = dataset.write_manifest(
            run_report(RunProgress(), None, Throughput().report(1, ()), BudgetReport("", "", None, ()))
        )
        shown = tmp_path / "store/_manifest.json"
        shown.unlink()
        dataset.renew_manifest(written)
        assert json.loads(shown.read_text())["run_id"] == dataset.run_id


def test_a_signal_is_heard_while_a_store_that_is_out_is_opened() -> None:
    ending = threading.Event()

    @contextmanager
    def opening() -> Iterator[Any]:
        yield ending.wait(30)

    async def enter() -> object:
        shutdown = ShutdownSignal()
        asyncio.get_running_loop().call_soon(shutdown.request, Stop(StopReason.SIGNAL, "SIGTERM was received"))
        with ExitStack() as stack:
            return await enter_in_thread(stack, opening(), shutdown, ending)

    assert asyncio.run(enter()) is True
