"""The manifest before there is a harvest: a run that reads its list through is seen to go on, and how it ended."""

import asyncio
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

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
from harvester.run import committer
from harvester.run.committer import Heartbeat
from harvester.run.telemetry import Telemetry
from harvester.shutdown import ShutdownSignal
from harvester.storage.folders import resolve
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, STATE_DIR, TOKEN, TOKEN_STORE, harvester, start
from tests.support.in_process import Said, command
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


async def test_the_manifest_is_due_at_once_when_something_begins_to_block(
    store: Dataset, budget: MachineBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = False
    monkeypatch.setattr(Telemetry, "begins_to_block", property(lambda _: blocked))
    now = 100.0
    monkeypatch.setattr(committer, "time", SimpleNamespace(monotonic=lambda: now))
    heartbeat = Heartbeat(store, Telemetry(budget, 1, ["links.txt"]), seconds=10.0)
    await heartbeat.write(None)
    assert not heartbeat.due
    blocked = True
    assert not heartbeat.due  # a second must pass, or two limits that take turns would write at each commit
    now = 101.0
    assert heartbeat.due
    blocked, now = False, 109.0
    assert not heartbeat.due
    now = 110.0
    assert heartbeat.due


async def test_the_first_error_is_reported_and_not_that_of_the_manifest_after_it(
    store: Dataset, budget: MachineBudget, tmp_path: Path
) -> None:
    async def refuse() -> None:
        async with Heartbeat(store, Telemetry(budget, 1, ["links.txt"])).before_harvest(ShutdownSignal()):
            os.rename(tmp_path / "out", tmp_path / "elsewhere")
            raise UsageError("the list is none")

    with pytest.raises(UsageError, match="the list is none"):
        await refuse()


# --- what cannot begin ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run the command on a list, to its error; it must be one that is explained."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    links = tmp_path / "links.txt"
    links.write_text(LINKS)

    def run(*more: str, config: str | None = None, name: str = "run") -> Said:
        before: tuple[str, ...] = ()
        if config is not None:
            (tmp_path / "options.toml").write_text(config)
            before = ("--config", str(tmp_path / "options.toml"))
        said = command(capsys, *before, name, str(links), *more)
        assert "Traceback" not in said.err
        return said

    return run


DIGITS = "9" * 5000
HEXADECIMAL = "0x" + "f" * 20_000


@pytest.mark.parametrize(
    "config",
    [
        f"per_minute = {DIGITS}",
        f"per_minute = -{DIGITS}",
        f"per_minute = {HEXADECIMAL}",
        f"per_minute = {2**70}",
        f"unknown = {DIGITS}",
        f"strict = {HEXADECIMAL}",
        f"size = [[{HEXADECIMAL}]]",
        f"[run]\nmax_calls = {DIGITS}",
        f"run = {HEXADECIMAL}",
        f'part_bytes = "{DIGITS}"',
        f'max_failures = "{DIGITS}"',
        f'reserve = "{DIGITS}%"',
        *(rf'{name} = "a\u0000b"' for name in ("work_dir", "state_dir", "token_file", "token_store", "token_command")),
    ],
    ids=lambda config: config[:30],
)
@pytest.mark.parametrize("name", ["run", "plan"])
def test_a_value_of_the_file_that_no_option_takes_is_refused(
    refused: Callable[..., Said], tmp_path: Path, config: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STATE_DIR)
    monkeypatch.delenv(TOKEN_STORE)
    said = refused("--out", str(tmp_path / "out"), config=config, name=name)
    assert said.code == 2
    assert said.err.startswith((f"harvester: {tmp_path}/options.toml: ", f"harvester: {tmp_path}/options.toml:1: "))
    assert len(said.err) < 8000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["--per-minute", "--max-calls", "--part-bytes", "--size", "--max-failures", "--timeout"]
)
def test_a_number_of_thousands_of_digits_is_refused(refused: Callable[..., Said], tmp_path: Path, option: str) -> None:
    assert refused("--out", str(tmp_path / "out"), option, DIGITS).code == 2


@pytest.mark.parametrize("url", ["https://a..b/", "https://xn--/v4", f"https://{'a' * 64}.example", "https://h:99999"])
def test_an_address_that_cannot_be_looked_up_is_refused(refused: Callable[..., Said], tmp_path: Path, url: str) -> None:
    assert refused("--out", str(tmp_path / "out"), "--base-url", url).code == 2


@pytest.mark.parametrize("url", ["http://a..b:1", f"http://{'a' * 64}:1", "http://user:secret@a..b:3"])
def test_so_is_that_of_a_proxy(
    refused: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    said = refused("--out", str(tmp_path / "out"), "--base-url", "https://api.example")
    assert (said.code, "secret" in said.err) == (2, False)


@pytest.mark.parametrize("option", ["--out", "--work-dir", "--state-dir"])
@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "x/" * 1500 + "y" * 300, "links.txt/below", "/proc/none"])
def test_a_folder_that_cannot_be_made_is_refused_and_leaves_nothing(
    refused: Callable[..., Said], tmp_path: Path, option: str, path: str
) -> None:
    out = () if option == "--out" else ("--out", str(tmp_path / "out"))
    assert refused(*out, option, str(tmp_path / path)).code == 8
    left = set(os.listdir(tmp_path))
    assert left == ({"links.txt", "out"} if option == "--state-dir" else {"links.txt"})


@pytest.mark.parametrize("words", [("run", "--out", "-"), ("plan", "--out", "out")])
def test_without_a_temporary_folder_the_message_names_the_variable(
    refused: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/none"])
    said = refused(*words[1:], name=words[0])
    assert said.code == 8
    assert "TMPDIR" in said.err


def test_a_resume_that_is_refused_leaves_nothing_behind(refused: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "_manifest.json").write_text("{}")
    (tmp_path / "other.ndjson").write_text("{}\n")
    before = everything(tmp_path)
    assert refused("--out", str(tmp_path / "begun")).code == 8
    assert refused("--out", str(tmp_path / "begun"), "--work-dir", str(tmp_path / "wrong" / "work")).code == 8
    assert refused("--out", str(tmp_path / "other.ndjson")).code == 2
    assert everything(tmp_path) == before


def test_nor_does_one_that_names_another_outputs_work_dir(
    refused: Callable[..., Said], tmp_path: Path, serve: Callable[..., Served]
) -> None:
    work = ("--work-dir", str(tmp_path / "work"), "--base-url", serve().url, *NO_LIMITS)
    assert refused("--out", str(tmp_path / "out"), *work).code == 0
    before = everything(tmp_path)
    for out in ("new", "new.ndjson", "deep/down/new"):
        said = refused("--out", str(tmp_path / out), *work)
        assert said.code == 2
        assert "belongs to --out" in said.err
    assert refused("--out", str(tmp_path / "out"), *work, "--size", "7").code == 2
    assert everything(tmp_path) == before


def test_a_ledger_that_cannot_be_looked_at_is_not_taken_for_lost(
    refused: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_manifest.json").write_text("{}")
    real = os.lstat

    def lstat(path: str, **options: int) -> os.stat_result:
        if str(path).endswith("ledger.sqlite"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, **options)

    monkeypatch.setattr("os.lstat", lstat)
    for name in ("run", "plan"):
        said = refused("--out", str(tmp_path / "out"), name=name)
        assert said.code == 8
        assert "ledger.sqlite: Permission denied" in said.err


@pytest.mark.parametrize("unreadable", ["out", "_harvester"])
def test_a_folder_that_cannot_be_listed_is_named(
    refused: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    (tmp_path / "out" / "_harvester").mkdir(parents=True)
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if os.path.basename(path) == unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.listdir", listdir)
    said = refused("--out", str(tmp_path / "out"))
    assert said.code == 8
    assert f"{unreadable}: Permission denied" in said.err


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of the files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
