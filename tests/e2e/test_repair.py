"""`harvester repair`: a lost, damaged or old ledger is rebuilt, and the same run goes on with nothing bought twice."""

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harvester.storage.sqlite import rows_left
from tests.conftest import Served
from tests.crash.test_tampering import wait_for
from tests.support.commands import NO_LIMITS, TOKEN, harvester, start
from tests.support.in_process import command
from tests.support.output_checks import check_reconciled, manifest, rows

LINKS = [f"bit.ly/{'missing-' * (i % 20 == 7)}{i}" for i in range(200)]
"""The refusals stand apart: many in a row, or at the end, are doubted, which costs a call."""
GOOD = {link for link in LINKS if "missing" not in link}
FORMS = ["out", "results.ndjson"]


class Case:
    """An output of LINKS, as far as its run has come."""

    def __init__(self, tmp_path: Path, served: Served, form: str = "out", *options: str) -> None:
        self.out, self.served = tmp_path / form, served
        self.private = self.out / "_harvester" if form == "out" else self.out.with_name(form + ".harvester")
        path = tmp_path / "links.txt"
        path.write_text("\n".join(LINKS))
        self.command = ["run", str(path), "--out", str(self.out), "--base-url", served.url, *NO_LIMITS, *options]

    def killed(self, answers: int) -> None:
        with start(*self.command) as process:
            wait_for(self.served.sandbox, answers, process)
            process.send_signal(signal.SIGKILL)
        self.bought = self.served.sandbox.answered.total()

    def repair(self, *options: str, code: int = 0) -> str:
        done = harvester("repair", str(self.out), *options)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def snapshot(self) -> dict[str, bytes]:
        folders = (self.out, self.private)
        files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files if not path.name.endswith("-shm")}

    def finish(self, asked_again: int = 0) -> None:
        """The same command goes on. A kill may cost the calls in flight."""
        done = harvester(*self.command)
        assert done.returncode == 0, done.stderr
        check_reconciled(self.out, set(LINKS))
        assert self.served.sandbox.answered.total() <= len(LINKS) + asked_again + 5
        checked = harvester("verify", str(self.out))
        assert checked.returncode == 0, checked.stdout
        assert "nothing to repair" in self.repair()


def remove_ledger(case: Case) -> None:
    for path in case.private.glob("ledger.sqlite*"):
        path.unlink()


def damage_ledger(case: Case) -> None:
    remove = case.private / "ledger.sqlite-wal"
    if remove.exists():
        remove.unlink()
    ledger = case.private / "ledger.sqlite"
    with ledger.open("r+b") as stream:
        stream.write(b"\xff" * min(8192, ledger.stat().st_size))


@pytest.mark.parametrize("what", [remove_ledger, damage_ledger], ids=["lost", "damaged"])
@pytest.mark.parametrize("form", FORMS)
def test_the_ledger_of_a_killed_run_is_rebuilt_and_nothing_is_bought_twice(
    tmp_path: Path, serve: Callable[..., Served], form: str, what: Callable[[Case], None]
) -> None:
    case = Case(tmp_path, serve(latency_ms=20), form, *(("--part-rows", "30") if form == "out" else ()))
    case.killed(110)
    what(case)
    refused = harvester(*case.command)
    assert refused.returncode == 8
    assert f"harvester repair {case.out}" in refused.stderr
    assert refused.stderr.index("harvester repair") < refused.stderr.index("start a new --out")
    before = case.snapshot()
    assert "can be repaired without a loss: add --apply" in case.repair(code=8)
    assert case.snapshot() == before, "nothing is changed without --apply"
    assert "is repaired" in case.repair("--apply")
    assert ("server", "127.0.0.1") in rows_left(str(case.private / "ledger.sqlite"), "facts", ("name", "value"))
    case.finish()


@pytest.mark.parametrize("form", FORMS)
def test_the_state_of_a_finished_run_is_rebuilt_from_its_rows(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    """The whole state folder is lost; what was refused is in `_failures.ndjson`, which a growing file has there too."""
    case = Case(tmp_path, serve(), form)
    assert harvester(*case.command).returncode == 0
    shutil.rmtree(case.private)
    assert harvester(*case.command).returncode in {2, 8}
    shutil.rmtree(case.private, ignore_errors=True)
    assert "can be repaired" in case.repair(code=8)
    assert not case.private.exists()
    case.repair("--apply")
    case.finish(asked_again=0 if form == "out" else 10)


@pytest.mark.parametrize("options", [(), ("--format", "ndjson", "--shape", "flat"), ("--format", "parquet")])
def test_every_format_is_read_without_a_manifest_too(
    tmp_path: Path, serve: Callable[..., Served], options: tuple[str, ...]
) -> None:
    case = Case(tmp_path, serve(), "out", "--part-rows", "50", *options)
    assert harvester(*case.command).returncode == 0
    remove_ledger(case)
    (case.out / "_manifest.json").unlink()
    case.repair("--apply")
    done = harvester(*case.command)
    assert done.returncode == 0, done.stderr
    assert case.served.sandbox.answered.total() == len(LINKS)
    assert harvester("verify", str(case.out)).returncode == 0


def test_an_older_ledger_learns_what_was_published_since(tmp_path: Path, serve: Callable[..., Served]) -> None:
    case = Case(tmp_path, serve(latency_ms=10), "out", "--part-rows", "30")
    assert harvester(*case.command, "--max-calls", "40").returncode == 9
    shutil.copytree(case.private, tmp_path / "backup")
    assert harvester(*case.command, "--max-calls", "80").returncode == 9
    shutil.rmtree(case.private)
    shutil.copytree(tmp_path / "backup", case.private)
    assert harvester(*case.command).returncode == 8
    assert "is older than its output" in case.repair(code=8)
    case.repair("--apply")
    case.finish()


def test_parts_that_a_loader_has_moved_are_named_and_read_where_they_are(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case = Case(tmp_path, serve(), "out", "--part-rows", "30")
    assert harvester(*case.command).returncode == 0
    loaded = tmp_path / "loaded"
    loaded.mkdir()
    parts = sorted(case.out.glob("part-*"))
    for part in parts[:2]:
        part.rename(loaded / part.name)
    remove_ledger(case)
    said = case.repair("--apply", code=8)
    assert f"lost: 60 calls of {parts[0].name}, {parts[1].name}, moved away since" in said
    assert not (case.private / "ledger.sqlite").exists()
    case.repair("--apply", "--parts", str(loaded))
    done = harvester(*case.command)
    assert done.returncode == 0, done.stderr
    assert case.served.sandbox.answered.total() == len(LINKS)
    assert len(rows(case.out)) == len(GOOD) - 60
    assert harvester("verify", str(case.out)).returncode == 8
    assert harvester("verify", str(case.out), "--allow-moved").returncode == 0


def test_what_a_damaged_ledger_still_says_of_moved_parts_is_enough(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case = Case(tmp_path, serve(), "out", "--part-rows", "30")
    assert harvester(*case.command).returncode == 0
    next(case.out.glob("part-*-00001.*")).unlink()
    ledger = case.private / "ledger.sqlite"
    with closing(sqlite3.connect(ledger)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'failures'").fetchone()
    with ledger.open("r+b") as stream:
        stream.seek((page - 1) * 4096)
        stream.write(b"\xff" * 8)
    assert "the ledger is damaged" in harvester(*case.command).stderr
    said = case.repair(code=8)
    assert said.startswith("the ledger is damaged")
    assert "can be repaired without a loss" in said
    case.repair("--apply")
    done = harvester(*case.command)
    assert done.returncode == 0, done.stderr
    assert case.served.sandbox.answered.total() == len(LINKS)


def test_calls_that_are_known_nowhere_are_asked_again_only_if_that_is_said(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case = Case(tmp_path, serve(), "out", "--part-rows", "30")
    assert harvester(*case.command).returncode == 0
    next(case.out.glob("part-*-00001.*")).unlink()
    remove_ledger(case)
    assert "--apply --ask-again" in case.repair("--apply", code=8)
    case.repair("--apply", "--ask-again")
    assert harvester(*case.command).returncode == 0
    assert case.served.sandbox.answered.total() == len(LINKS) + 30
    assert {row["bitlink"] for row in rows(case.out)} == GOOD
    checked = harvester("verify", str(case.out))
    assert checked.returncode == 0, checked.stdout
    assert "was lost, and the calls of its rows were made again" in checked.stdout
    assert checked.stdout.endswith(f"; {len(GOOD)} of {len(GOOD)} published rows are here\n")


def test_the_links_of_a_deleted_part_are_fetched_again_only_if_that_is_said(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case = Case(tmp_path, serve(), "out", "--part-rows", "30")
    assert harvester(*case.command).returncode == 0
    next(case.out.glob("part-*-00001.*")).unlink()
    said = harvester("verify", str(case.out))
    assert said.returncode == 8
    assert f"fetch its links again (`harvester repair {case.out} --ask-again` says at what cost)" in said.stdout
    assert "note: 1 part is not there; if no loader has it, --ask-again makes its 30 calls again" in case.repair()
    before = case.snapshot()
    lost = case.repair("--ask-again", code=8)
    assert "lost: 30 calls of part-" in lost
    assert ": the next run makes them again" in lost
    assert case.snapshot() == before, "nothing is changed without --apply"
    assert harvester(*case.command).returncode == 0
    assert case.served.sandbox.answered.total() == len(LINKS)
    case.repair("--apply", "--ask-again")
    assert "nothing to repair" in case.repair("--apply", "--ask-again")
    assert harvester(*case.command).returncode == 0
    assert case.served.sandbox.answered.total() == len(LINKS) + 30
    assert {row["bitlink"] for row in rows(case.out)} == GOOD
    assert len(rows(case.out)) == len(GOOD)
    checked = harvester("verify", str(case.out))
    assert checked.returncode == 0, checked.stdout
    assert "note:" not in case.repair("--ask-again")


def test_rows_that_are_cut_off_a_growing_file_are_asked_again_only_if_that_is_said(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case = Case(tmp_path, serve(), "results.ndjson")
    assert harvester(*case.command).returncode == 0
    lines = case.out.read_bytes().splitlines(keepends=True)
    case.out.write_bytes(b"".join(lines[:150]))
    assert harvester(*case.command).returncode == 8
    said = case.repair("--apply", code=8)
    assert said.startswith(f"the ledger counts rows that {case.out} no longer has")
    assert f"lost: {len(lines) - 150} calls whose rows are gone from {case.out}: restore it" in said
    case.repair("--apply", "--ask-again")
    case.finish(asked_again=len(lines) - 150)


def test_a_ledger_that_is_overwritten_while_a_run_has_it_open_is_rebuilt(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    """An older copy is written into the same file, as cp does: what the run has open is no ledger any more."""
    case = Case(tmp_path, serve(latency_ms=25), "out", "--part-rows", "30")
    assert harvester(*case.command, "--max-calls", "60").returncode == 9
    ledger, backup = case.private / "ledger.sqlite", tmp_path / "backup"
    shutil.copy(ledger, backup)
    assert harvester(*case.command, "--max-calls", "60").returncode == 9
    answered = case.served.sandbox.answered.total()
    with start(*case.command) as process:
        wait_for(case.served.sandbox, answered + 30, process)
        with ledger.open("r+b") as stream:
            stream.truncate()
            stream.write(backup.read_bytes())
        _, err = process.communicate(timeout=30)
    assert process.returncode == 8, err.decode()
    if harvester(*case.command, "--max-calls", "0").returncode == 8:
        case.repair("--apply")
    case.finish()


def test_a_ledger_that_was_lost_in_a_runs_first_moments_goes_with_its_folder(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    """A kill before the first manifest, and the loss of the ledger's log, leave nothing that could be rebuilt."""
    case = Case(tmp_path, serve())
    case.private.mkdir(parents=True)
    for name in ("ledger.sqlite", "journal-00000.journal", "attempts"):
        (case.private / name).touch()
    assert harvester(*case.command).returncode == 8
    assert f"remove {case.private} and run the same command again" in case.repair(code=2)
    shutil.rmtree(case.private)
    case.finish()


def test_a_healthy_output_a_running_one_and_no_output(tmp_path: Path, serve: Callable[..., Served]) -> None:
    case = Case(tmp_path, serve(latency_ms=20))
    assert "nothing to repair at" in case.repair(code=2)
    with start(*case.command) as process:
        wait_for(case.served.sandbox, 5, process)
        assert "another harvester works on" in case.repair(code=5)
        process.communicate(timeout=60)
    before = case.snapshot()
    assert "nothing to repair" in case.repair("--apply")
    assert json.loads(case.repair("--json"))["whole"] is True
    assert case.snapshot() == before


def test_a_stores_lost_work_dir_is_rebuilt_and_its_claim_taken_over(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    case, store = Case(tmp_path, serve(), "out", "--part-rows", "50"), tmp_path / "store"
    url = f"file://{store}"
    command = [url if word == str(case.out) else word for word in case.command]
    assert harvester(*command, "--work-dir", str(tmp_path / "work")).returncode == 0
    shutil.rmtree(tmp_path / "work")
    new = ("--work-dir", str(tmp_path / "new"))
    refused = harvester(*command, *new)
    assert refused.returncode == 8
    assert f"harvester repair {url} --work-dir {tmp_path / 'new'}" in refused.stderr
    told = harvester("repair", url, *new)
    assert told.returncode == 8
    assert "is claimed by another work dir" in told.stdout
    assert harvester("repair", url, *new, "--apply").returncode == 0
    done = harvester(*command, *new)
    assert done.returncode == 0, done.stderr
    assert case.served.sandbox.answered.total() == len(LINKS)
    assert harvester("verify", url, *new).returncode == 0
    assert "nothing to repair" in harvester("repair", url, *new).stdout


@pytest.mark.parametrize("table", ["calls", "invalid", "parts"])
def test_a_ledger_that_lacks_a_table_is_rebuilt(tmp_path: Path, serve: Callable[..., Served], table: str) -> None:
    case = Case(tmp_path, serve(), "out")
    assert harvester(*case.command).returncode == 0
    with closing(sqlite3.connect(case.private / "ledger.sqlite")) as db:
        db.execute(f"DROP TABLE {table}")
    assert f"is damaged (no such table: {table})" in harvester(*case.command).stderr
    assert "is repaired" in case.repair("--apply")
    case.finish()


@pytest.mark.parametrize("known", ["manifest", "ledger", "nothing"])
def test_the_check_of_a_window_is_kept_as_far_as_it_is_known(
    tmp_path: Path,
    serve: Callable[..., Served],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    known: str,
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    served, out = serve(), tmp_path / "out"
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    run = ("run", str(tmp_path / "links.txt"), "--out", str(out), "--day", "2026-11-02", "--base-url", served.url)
    assert command(capsys, *run).code == 0
    checked = manifest(out)["window_check"]
    assert checked["ok"] is True
    ledger = out / "_harvester" / "ledger.sqlite"
    if known == "ledger":
        with closing(sqlite3.connect(ledger)) as db:
            db.execute("DROP TABLE invalid")
    else:
        ledger.unlink()
    if known != "manifest":
        (out / "_manifest.json").unlink()
    done = command(capsys, "repair", str(out), "--apply")
    assert (done.code, "the check of the window is lost" in done.out) == (0, known == "nothing"), done.out
    assert command(capsys, *run).code == 0
    assert manifest(out)["window_check"] == (None if known == "nothing" else checked)
    assert served.sandbox.requests.total() == 2


@pytest.mark.parametrize("lost", [False, True], ids=["damaged", "lost"])
def test_a_failed_call_keeps_the_number_of_runs_that_it_failed_in_as_far_as_it_is_known(
    tmp_path: Path, serve: Callable[..., Served], lost: bool
) -> None:
    """Of a ledger that is lost nobody knows: a call that is known to have failed counts as failed once."""
    served, out = serve(errors=1.0), tmp_path / "out"
    command = ("run", "-", "--out", str(out), "--base-url", served.url, *NO_LIMITS, "--attempts", "1")
    for _ in range(2):
        assert harvester(*command, stdin=b"bit.ly/a\n").returncode == 3
    ledger = out / "_harvester" / "ledger.sqlite"
    with closing(sqlite3.connect(ledger)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'journals'").fetchone()
    with ledger.open("r+b") as stream:
        stream.seek(4096 * (page - 1))
        stream.write(b"\xff" * 4096)
    if lost:
        ledger.unlink()
    done = harvester("repair", str(out), "--apply")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is repaired" in done.stdout
    for calls in (3, 4, 4) if lost else (3, 3):
        assert harvester(*command, stdin=b"bit.ly/a\n").returncode == 3
        assert served.sandbox.requests.total() == calls
