"""`harvester status`: what is told of a run from its manifest alone, in every state that it can be in."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from harvester.credentials.redaction import without_secrets
from harvester.dataset import manifest
from harvester.errors import UsageError
from harvester.progress import WAIT_REASONS
from harvester.reporting import run_status as glance
from harvester.reporting import status_text as printing
from harvester.reporting import status_text as tell
from harvester.reporting.run_status import RunState, read_status
from harvester.run.telemetry import Throughput
from harvester.shutdown import CONSEQUENCES, StopReason
from harvester.storage import filesystem
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN, environment, harvester, start
from tests.support.in_process import command as in_process
from tests.support.output_checks import manifest as manifest_of
from tests.support.output_checks import public

NOBODY = 65534
NOW = datetime(2026, 11, 23, 14, 5, 0, tzinfo=UTC)
WRITTEN: dict[str, Any] = {
    "schema_version": 1,
    "tool": "harvester 0.1.0",
    "run_id": "9a0822b22f12",
    "server": "api-ssl.bitly.com",
    "work_dir": None,
    "query": {
        "facet": "referrers",
        "unit": "day",
        "units": -1,
        "unit_reference": "2026-11-23T06:00:00Z",
        "size": 50,
    },
    "format": "ndjson.gz",
    "shape": "nested",
    "started": "2026-11-23T06:00:00Z",
    "updated": "2026-11-23T14:04:30Z",
    "complete": False,
    "stopped": None,
    "input_read_to_end": True,
    "list": {
        "lines": 5,
        "blank": 0,
        "comments": 0,
        "headers": 0,
        "invalid": 0,
        "duplicates": 0,
        "links": 5,
        "differing": 0,
    },
    "ended": None,
    "invocation": {
        "number": 2,
        "started": "2026-11-23T12:00:00Z",
        "command": {
            "words": ["harvester", "run", "links.txt", "--out", "lake"],
            "cwd": "/",
            "config": [],
            "variables": {},
        },
        "lists": ["links.txt"],
        "calls": 1500,
        "last_verdict": "2026-11-23T14:04:29Z",
        "rate": {"calls": 900, "seconds": 3600.0},
    },
    "remaining": 4000,
    "given_up": 0,
    "budget": {
        "account": "d6a7cd2a7371",
        "token": "d6a7cd2a7371",
        "limited_by": {
            "window": "hour",
            "limit": 1000,
            "until": "2026-11-23T14:30:00Z",
            "since": "2026-11-23T14:04:20Z",
            "why": None,
        },
        "windows": [
            {"window": "minute", "limit": 100, "used": 10, "remaining": 90, "until": None, "source": "default"},
            {"window": "hour", "limit": 1000, "used": 1000, "remaining": 0, "until": None, "source": "default"},
            {"window": "month", "limit": None, "used": 2000, "remaining": None, "until": None, "source": "asked"},
        ],
    },
    "dataset": {"calls": 5005, "rows": 990, "refused": 10, "failed": 5, "pending": 4000, "truncated": 0, "clipped": 0},
    "attempts": {"total": 1005, "retried": 0, "throttled": 0, "helper": 1},
    "parts": [{"path": "part-0.ndjson", "rows": 990, "calls": 990, "bytes": 400000, "sha256": "00"}],
    "window_check": None,
    "refresh": None,
    "runs": [
        {
            "number": 1,
            "started": "2026-11-23T13:00:00Z",
            "until": "2026-11-23T13:40:00Z",
            "attempts": 995,
            "answers": 990,
        },
        {"number": 2, "started": "2026-11-23T14:00:00Z", "until": "2026-11-23T14:04:20Z", "attempts": 10, "answers": 9},
    ],
    "history": [
        {
            "start": "2026-11-23T14:04:00Z",
            "seconds": 60,
            "attempts": 10,
            "answers": 9,
            "waits": {"hour": 10.5},
            "limits": {"minute": 100, "hour": 1000},
        }
    ],
}
STOPPED = {"reason": "month_spent", "message": "the month is spent", "until": "2026-12-01T00:00:00Z"}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Write a manifest, changed where the test says so, and give its folder."""

    def write(**changes: Any) -> str:
        (tmp_path / "_manifest.json").write_text(json.dumps(deepcopy(WRITTEN) | changes))
        return str(tmp_path)

    return write


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "my links.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(60)))
    return str(path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="harvester-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def status(*arguments: str) -> dict[str, Any]:
    done = harvester("status", *arguments, "--json", env={"BITLY_TOKEN": ""})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def as_typed(command: str) -> str:
    """A command without the variables before it, which the tests set, and without its folder."""
    return command[command.index("harvester run") :]


def wait_for_manifest(out: Path) -> None:
    while not (out / "_manifest.json").exists() and not Path(f"{out}.harvester/_manifest.json").exists():
        time.sleep(0.002)


# --- a run ----------------------------------------------------------------------------------------------------------


def test_what_a_run_writes_is_what_status_reads(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out = tmp_path / "out"
    assert harvester("run", links, "--out", str(out), "--base-url", serve().url, *NO_LIMITS).returncode == 0
    found = manifest_of(out)
    parsed = manifest.parse((out / "_manifest.json").read_bytes(), "_manifest.json")
    assert orjson.loads(orjson.dumps(parsed.to_json())) == found
    assert list(found) == list(WRITTEN) == [field.name for field in fields(manifest.Manifest)]
    assert found["invocation"].keys() == WRITTEN["invocation"].keys()
    assert found["invocation"]["calls"] == found["invocation"]["rate"]["calls"] == 60
    assert found["remaining"] == 0
    assert found["ended"] >= found["invocation"]["last_verdict"] >= found["invocation"]["started"]


@pytest.mark.parametrize("name", ["out", "results.ndjson"])
def test_a_run_is_seen_from_its_beginning_past_a_kill_to_its_end(
    tmp_path: Path, links: str, serve: Callable[..., Served], name: str
) -> None:
    out, hanging, served = tmp_path / name, serve(latency_ms=60_000), serve()
    options = ("run", links, "--out", str(out), *NO_LIMITS)
    process = start(*options, "--base-url", hanging.url)
    wait_for_manifest(out)
    seen = status(str(out))
    assert (seen["state"], seen["next"]["command"], seen["ended"]) == ("running", None, None)
    process.kill()
    process.communicate()
    later = read_status(str(out), datetime.now(UTC) + timedelta(minutes=10))
    assert later.state is RunState.STALE
    assert "no update since" in tell.as_text(later)
    command = as_typed(str(later.next.command))
    assert command == shlex.join(["harvester", *options, "--base-url", hanging.url])
    again = harvester(*shlex.split(command.replace(hanging.url, served.url))[1:])
    assert again.returncode == 0, again.stderr
    assert status(str(out))["state"] == "complete"
    assert status(str(public(out)))["out"] == str(out)
    assert status(str(public(out) / "_manifest.json"))["invocation"]["number"] == 2


def test_a_spent_month_says_until_when_and_gives_the_command_that_was_run(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    out, served = str(tmp_path / "out"), serve()
    query = ("--facet", "countries", "--size", "7", "--no-complete", "--account", "team")
    limits = ("--per-minute", "0", "--per-hour", "0", "--base-url", served.url)
    words = ("run", links, "--out", out, *query, *limits, "--per-month", "20")
    done = harvester(*words)
    assert done.returncode == 7, done.stderr
    seen = status(out)
    assert seen["state"] == "stopped"
    assert seen["next"]["after"] == seen["stopped"]["until"]
    assert seen["next"]["after_seconds"] > 0
    assert (seen["done"], seen["calls"]["pending"]) == (20, 40)
    assert as_typed(seen["next"]["command"]) == shlex.join(["harvester", *words])
    again = harvester(*shlex.split(as_typed(seen["next"]["command"]))[1:-1], "0")
    assert again.returncode == 0, again.stderr
    assert status(out)["done"] == 60


@pytest.mark.parametrize("name", ["out", "results.ndjson"])
def test_the_command_names_the_work_dir_without_which_it_would_be_refused(
    tmp_path: Path, links: str, serve: Callable[..., Served], name: str
) -> None:
    out, options = str(tmp_path / name), ("--base-url", serve().url, *NO_LIMITS)
    words = ("run", links, "--out", out, "--work-dir", str(tmp_path / "work"), *options, "--max-calls")
    assert harvester(*words, "3").returncode == 9
    command = as_typed(status(out)["next"]["command"])
    assert command == shlex.join(["harvester", *words, "3"])
    assert harvester(*shlex.split(command)[1:-1], "60").returncode == 0
    assert status(out)["done"] == 60


def test_failed_calls_are_asked_for_again_in_three_runs_and_then_only_when_that_is_said(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    links, out, served = tmp_path / "links.txt", str(tmp_path / "out"), serve(errors=1.0)
    links.write_text("bit.ly/a\n")
    command = ("run", str(links), "--out", out, "--base-url", served.url, "--attempts", "1", *NO_LIMITS)
    for number in range(3):
        assert harvester(*command).returncode == 3
        assert status(out)["next"]["command"].endswith("--retry-failed") is (number == 2)
    assert harvester(*command).returncode == 3
    seen = status(out)
    assert (seen["state"], seen["given_up"]) == ("failures", 1)
    assert as_typed(seen["next"]["command"]) == shlex.join(["harvester", *command, "--retry-failed"])


def test_the_command_goes_to_its_folder_and_names_its_file_of_options_and_its_variables(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my job"
    folder.mkdir()
    (folder / "links.csv").write_text("name,link\n" + "".join(f"{i},bit.ly/{i}\n" for i in range(5)))
    (folder / "my.toml").write_text(f'base_url = "{serve().url}"\nper_month = 3\n')
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HARVESTER_PER_HOUR", "0")
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    words = ("--config", "my.toml", "run", "links.csv", "--column", "link", "--out", "out", "--state-dir", "state")
    monkeypatch.setenv("HARVESTER_ON_END", "true secret")
    monkeypatch.setenv("HARVESTER_SANDBOX_PORT", "80")
    for name in ("HARVESTER_STATE_DIR", "HARVESTER_TOKEN_STORE"):  # the tests' own
        monkeypatch.delenv(name)
    done = in_process(capsys, *words)
    assert done.code == 7
    command = manifest_of(folder / "out")["invocation"]["command"]
    assert command["words"] == ["harvester", *words]
    assert (command["cwd"], command["config"]) == (str(folder), [str(folder / "my.toml")])
    assert command["variables"] == {"HARVESTER_ON_END": None, "HARVESTER_PER_HOUR": "0"}
    whole = f"cd '{folder}' && HARVESTER_PER_HOUR=0 {shlex.join(['harvester', *words])}"
    assert f"\n  command   {whole}\n" in done.err
    here = in_process(capsys, "status", "out").out
    assert f"\n  command    {whole}\n" in here
    assert "not set here" not in here
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARVESTER_PER_HOUR")
    monkeypatch.delenv("HARVESTER_ON_END")
    seen = json.loads(in_process(capsys, "status", "my job/out", "--json").out)
    assert seen["next"]["command"] == whole
    text = in_process(capsys, "status", "my job/out").out
    assert f"options    from {folder / 'my.toml'}" in text
    assert "options    from variables that are not kept, and not set here: HARVESTER_ON_END\n" in text


def test_neither_a_token_nor_a_token_commands_arguments_are_kept(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BITLY_TOKEN", raising=False)
    (tmp_path / "links.txt").write_text("bit.ly/1\n")
    words = ("run", "links.txt", "--out", f"./{TOKEN}", "--base-url", serve().url, "--token-command")
    assert in_process(capsys, *words, f"echo {TOKEN}").code == 0
    manifest = manifest_of(tmp_path / TOKEN)
    kept = [word.replace(TOKEN, "[token]") for word in words]
    assert manifest["invocation"]["command"]["words"] == ["harvester", *kept, "echo …"]
    assert TOKEN not in json.dumps(manifest["invocation"])


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--token-file", TOKEN, "run"], ["--token-file", "…", "run"]),
        ([f"--token-file={TOKEN}"], ["--token-file=…"]),
        (["--token-file", "/run/secrets/t"], ["--token-file", "/run/secrets/t"]),
        (["--token-command=pass show x", "--out", "lake"], ["--token-command=pass …", "--out", "lake"]),
        (["--token-file", "--token-file", TOKEN], ["--token-file", "--token-file", TOKEN]),
    ],
)
def test_what_may_be_a_secret_is_hidden_in_the_words(words: list[str], kept: list[str]) -> None:
    assert [*without_secrets(words)] == kept


@pytest.mark.parametrize(
    ("words", "config", "variables", "moved"),
    [
        (["run", "links.txt"], (), {}, True),
        (["run", "/a/links.txt", "--out", "s3://b/c", "--facet", "countries"], (), {}, False),
        (["run", "/a/links.txt", "--out=lake/x"], (), {}, True),
        (["run", "/a/links.txt", "--out", "lake-{dt}"], (), {}, True),
        (["run", "/a/links.txt", "--token-command", "sh ./get"], (), {}, True),
        (["run", "/a/links.txt"], ("{cwd}/harvester.toml",), {}, True),
        (["run", "/a/links.txt"], ("/etc/harvester.toml",), {"HARVESTER_PLAN": "free"}, False),
        (["run", "/a/links.txt"], (), {"HARVESTER_OUT": "links.txt"}, True),
    ],
)
def test_the_command_goes_to_its_folder_only_where_it_depends_on_it(
    tmp_path: Path, words: list[str], config: tuple[str, ...], variables: dict[str, str | None], moved: bool
) -> None:
    (tmp_path / "links.txt").touch()
    files = tuple(path.format(cwd=tmp_path) for path in config)
    command = manifest.Command(("harvester", *words), str(tmp_path), files, variables)
    assert glance.in_shell(command).startswith(f"cd {tmp_path} && ") == moved
    assert glance.in_shell(command, from_elsewhere=True).startswith(f"cd {tmp_path} && ")


def test_a_run_from_python_is_continued_by_the_same_call(written: Callable[..., str]) -> None:
    python = WRITTEN["invocation"] | {"command": None}
    seen = read_status(written(**ENDED, stopped=STOPPED, invocation=python, work_dir="/a{b}"), NOW)
    assert str(seen.next.command).endswith(" --work-dir '/a{{b}}'")
    assert seen.next.summary.startswith("the same call from Python resumes")
    assert str(seen.next.command).startswith("harvester run links.txt --out ")
    seen = read_status(written(**ENDED, stopped=STOPPED, invocation=python | {"lists": ["<links>"]}), NOW)
    assert seen.next.command is None


def test_another_user_sees_the_status_without_reading_the_private_folder(
    open_folder: Path, serve: Callable[..., Served]
) -> None:
    links, out = open_folder / "links.txt", open_folder / "out"
    links.write_text("bit.ly/a\n")
    assert harvester("run", str(links), "--out", str(out), "--base-url", serve().url, *NO_LIMITS).returncode == 0
    private = out / "_harvester"
    private.chmod(0)  # keeps this user out of it, unless it is root, who becomes another one
    become = f"import os; os.getuid() or os.setuid({NOBODY})"
    check = f"import os; assert not os.access({str(private)!r}, os.R_OK)"
    code = (
        "from harvester.cli import main\nfrom harvester.cli.command_line.app import app\n"
        f"app.resolved_commands()\n{become}\n{check}\n"
        f"import os\nos.environ.pop('BITLY_TOKEN')\nmain.main(['status', {str(out)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment(), cwd="/"
    )
    private.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert "complete: every link has an answer" in done.stdout


def test_a_manifest_that_is_replaced_while_it_is_read_is_one_or_the_other(tmp_path: Path) -> None:
    path, over = str(tmp_path / "_manifest.json"), threading.Event()
    forms = [WRITTEN | {"parts": WRITTEN["parts"] * count} for count in (0, 5000)]
    texts = [json.dumps(form).encode() for form in forms]
    filesystem.atomic_replace(path, [texts[0]])

    def replace() -> None:
        while not over.is_set():
            for text in texts:
                filesystem.atomic_replace(path, [text])

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        files: set[int] = set()
        while files != {0, 5000}:
            files.add(read_status(path, NOW).parts[0])
            assert files <= {0, 5000}
    finally:
        over.set()
        writer.join()


# --- states ---------------------------------------------------------------------------------------------------------

ENDED = {"ended": "2026-11-23T14:04:30Z"}
EMPTY = dict.fromkeys(WRITTEN["list"], 0)


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({}, "running", "nothing: the run continues when that is over"),
        ({"budget": WRITTEN["budget"] | {"limited_by": None}}, "running", "nothing: the run continues"),
        ({"updated": "2026-11-23T14:01:00Z"}, "stale", "the same command resumes"),
        ({"updated": "2026-11-23T14:07:00Z"}, "clock_skew", "look again in a minute"),
        (ENDED | {"stopped": STOPPED}, "stopped", "the same command resumes"),
        (ENDED, "failures", "makes the failed calls again"),
        (ENDED | {"given_up": 5}, "failures", "--retry-failed"),
        (ENDED | {"list": EMPTY}, "empty", "a list that has bitlinks"),
        (ENDED | {"complete": True, "remaining": 0}, "complete", "every link has an answer"),
    ],
)
def test_each_state_is_told_from_the_others_and_has_its_next_step(
    written: Callable[..., str], changes: dict[str, Any], state: str, says: str
) -> None:
    seen = read_status(written(**changes), NOW)
    assert seen.state == state
    assert says in seen.next.summary
    assert says in tell.as_text(seen)
    assert state in tell.as_line(seen)
    assert tell.as_dict(seen)["state"] == state


def test_an_end_that_is_weeks_old_is_not_stale(written: Callable[..., str]) -> None:
    assert read_status(written(**ENDED, complete=True), NOW + timedelta(days=90)).state is RunState.COMPLETE


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_reason_to_stop_has_its_own_next_step(written: Callable[..., str], reason: StopReason) -> None:
    seen = read_status(written(**ENDED, stopped=STOPPED | {"reason": reason}), NOW)
    assert CONSEQUENCES[reason].next_step in seen.next.summary
    lost = {StopReason.PARAMETER_REFUSED, StopReason.WINDOW_MISMATCH}
    assert (seen.next.command is None) == (reason in lost)


def test_a_reason_of_a_later_version_does_no_harm(written: Callable[..., str]) -> None:
    seen = read_status(written(**ENDED, stopped=STOPPED | {"reason": "meteor"}), NOW)
    assert "resumes" in seen.next.summary


def test_a_refused_token_says_what_to_set(written: Callable[..., str]) -> None:
    seen = read_status(written(**ENDED, stopped={"reason": "token_refused", "message": "401", "until": None}), NOW)
    assert "BITLY_TOKEN" in seen.next.summary


# --- numbers --------------------------------------------------------------------------------------------------------


def test_the_text_has_every_number_and_what_the_run_waits_for(written: Callable[..., str]) -> None:
    text = tell.as_text(read_status(written(), NOW))
    for part in (
        "30 s old",
        "1,000 calls (990 rows, 10 refused)",
        "900 calls an hour (900 in 1 h)",
        "the hour's limit of 1,000, since 2026-11-23 14:04 UTC (40 s), until 2026-11-23 14:30 UTC (in 25 min)",
        "token d6a7cd2a7371",
        "minute 10 of 100 used",
        "month  2,000 used, no limit",
        "1 with 990 rows, 400,000 bytes",
        "list: links.txt",
    ):
        assert part in text


def test_the_estimate_follows_the_hourly_limit(written: Callable[..., str]) -> None:
    seen = read_status(written(), NOW)
    assert seen.ends is not None
    assert 3 <= (seen.ends - NOW) / timedelta(hours=1) <= 4.1
    assert "estimated end" in tell.as_text(seen)


def test_a_list_of_unknown_length_has_no_estimate(written: Callable[..., str]) -> None:
    seen = read_status(written(remaining=None, list=None, input_read_to_end=False), NOW)
    assert seen.ends is None
    assert "left" not in tell.as_text(seen).split()


def test_a_window_that_has_passed_is_shown_as_over(written: Callable[..., str]) -> None:
    assert "which has passed" in tell.as_text(read_status(written(), NOW + timedelta(hours=2)))
    assert "waiting" not in tell.as_text(read_status(written(**ENDED, complete=True), NOW))


@pytest.mark.parametrize("window", WAIT_REASONS)
def test_every_window_has_words_of_its_own(written: Callable[..., str], window: str) -> None:
    binds = {"window": window, "limit": None, "until": None, "since": None, "why": None}
    seen = read_status(written(budget=WRITTEN["budget"] | {"limited_by": binds}), NOW)
    assert f"for {window}" not in tell.as_text(seen)


def test_during_an_outage_the_status_says_what_is_tried_and_since_when(written: Callable[..., str]) -> None:
    outage = {
        "window": "outage",
        "limit": None,
        "until": "2026-11-23T14:05:20Z",
        "since": "2026-11-23T14:00:00Z",
        "why": "no answer api.example cannot be reached: Connection refused",
    }
    seen = read_status(written(budget=WRITTEN["budget"] | {"limited_by": outage}), NOW)
    text = tell.as_text(seen)
    assert (
        "for the server to answer again (api.example cannot be reached: Connection refused), "
        "since 2026-11-23 14:00 UTC (5 min), next attempt in 20 s\n"
    ) in text
    assert "one attempt at a time tests whether the server answers again" in seen.next.summary
    assert "--outage-limit" in seen.next.summary
    assert "since 2026-11-23 14:00 UTC" in tell.as_line(seen)
    assert seen.ends is None
    assert "next attempt" not in tell.as_text(read_status(seen.path, NOW + timedelta(minutes=1)))


def test_a_list_from_standard_input_must_be_given_again(written: Callable[..., str]) -> None:
    lists = {"lists": ["-", "-odd.txt"], "command": None}
    seen = read_status(written(**ENDED, invocation=WRITTEN["invocation"] | lists), NOW)
    assert "standard input" in seen.next.summary
    assert "harvester run - ./-odd.txt --out" in str(seen.next.command)


def test_the_rate_is_the_last_hours_however_long_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    throughput = Throughput(lambda: now)
    for minute in range(600):
        now = 60.0 * minute
        for _ in range(3 if minute < 500 else 1):
            throughput.count_verdict(now)
        throughput.rate()
    assert throughput.rate() == manifest.Rate(60, 3600.0)
    assert len(throughput._samples) < 70


def test_text_from_a_manifest_is_escaped_for_a_terminal(written: Callable[..., str]) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    folder = written(**ENDED, stopped=STOPPED | {"message": evil, "reason": evil}, run_id=evil)
    for option in ((), ("--json",), ("--watch",), ("--watch", "--json")):
        done = harvester("status", folder, *option)
        assert done.returncode == 0, done.stderr
        assert not set("\x1b\x07\x9b\u202e") & set(done.stdout)
    assert status(folder)["stopped"]["message"] == evil


# --- what is no manifest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        (json.dumps(WRITTEN)[:-40], "not JSON"),
        ("[]", "not a harvester manifest"),
        ("null", "not a harvester manifest"),
        ('{"name": "app", "version": 3}', "not a harvester manifest .*schema_version is missing"),
        (json.dumps(WRITTEN | {"schema_version": 2, "tool": "harvester 9.0"}), "harvester 9.0.*update"),
        (json.dumps(WRITTEN | {"updated": "yesterday"}), "not a harvester manifest"),
        (json.dumps(WRITTEN | {"updated": "2026-11-23T14:04:30"}), "not a harvester manifest"),
        (json.dumps(WRITTEN | {"dataset": WRITTEN["dataset"] | {"rows": -1}}), "dataset.rows"),
        (json.dumps(WRITTEN | {"budget": []}), "budget is not an object"),
        (json.dumps({key: WRITTEN[key] for key in WRITTEN if key != "ended"}), "ended is missing"),
        (json.dumps(WRITTEN | {"parts": [{"path": 3}]}), "parts.path"),
        (json.dumps(WRITTEN | {"remaining": 10**18}), None),
    ],
)
def test_a_file_that_is_not_a_manifest_is_reported(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "_manifest.json").write_text(text)
    if message is None:
        assert tell.as_text(read_status(str(tmp_path), NOW))
        return
    with pytest.raises(UsageError, match=message):
        read_status(str(tmp_path), NOW)


@pytest.mark.parametrize("name", ["nothing", "results.ndjson", "links.txt/out", "-"])
def test_where_nothing_was_begun_the_exit_code_is_2(tmp_path: Path, name: str) -> None:
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    done = harvester("status", name, cwd=tmp_path)
    assert done.returncode == 2
    assert "no run has started" in done.stderr or "standard output have no manifest" in done.stderr
    assert done.stdout == ""


def test_a_named_pipe_in_place_of_the_manifest_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "_manifest.json")
    with pytest.raises(UsageError, match="not a file"):
        read_status(str(tmp_path))


# --- many outputs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Three days in two folders, a growing file, a manifest of another program, and one in a private folder."""
    stopped = ENDED | {"stopped": STOPPED}
    for name, changes in (
        ("referrers/dt=2026-11-22", ENDED | {"complete": True, "remaining": 0}),
        ("referrers/dt=2026-11-23", stopped),
        ("countries/dt=2026-11-23", {"updated": datetime.now(UTC).isoformat()}),
        ("old.ndjson.harvester", ENDED),
        ("referrers/dt=2026-11-22/_harvester", {}),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "_manifest.json").write_text(json.dumps(WRITTEN | changes))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/_manifest.json").write_text("{}")
    return tmp_path


def test_a_folder_of_outputs_is_a_table_with_a_line_each(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = in_process(capsys, "status", str(lake))
    assert done.code == 8, done.err
    head, *lines, last = done.out.splitlines()
    assert head.split() == ["STATE", "DONE", "FAILED", "LEFT", "UPDATED", "(UTC)", "OUTPUT"]
    assert [line.split()[0] for line in lines] == ["running:", "failures", "unreadable", "complete", "stopped:"]
    assert lines[4] == "stopped: month spent  1,000       5  4,000  2026-11-23 14:04  referrers/dt=2026-11-23"
    assert lines[0].startswith("running: hour ")
    assert lines[1].endswith("  old.ndjson")
    assert "other: " in lines[2]
    assert last == "5 outputs: 1 running, 1 failures, 1 unreadable, 1 complete, 1 stopped"
    below = in_process(capsys, "status", str(lake / "referrers"))
    assert (below.code, len(below.out.splitlines())) == (0, 4)


def test_a_folder_of_outputs_is_an_object_a_line_for_a_program(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = in_process(capsys, "status", str(lake), "--json")
    assert done.code == 8
    seen = [json.loads(line) for line in done.out.splitlines()]
    assert [os.path.relpath(each["out"], lake) for each in seen] == [
        "countries/dt=2026-11-23",
        "old.ndjson",
        "other",
        "referrers/dt=2026-11-22",
        "referrers/dt=2026-11-23",
    ]
    assert [each["state"] for each in seen] == ["running", "failures", "unreadable", "complete", "stopped"]
    assert "not a harvester manifest" in seen[2]["summary"]
    assert seen[4]["next"]["after"] == STOPPED["until"]


def test_a_folder_with_one_output_has_one(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "status", str(lake / "countries")).out.endswith("\n1 output: 1 running\n")


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_gets_the_last_columns_of_a_table_below_the_others(
    lake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    table = in_process(capsys, "status", str(lake)).out.splitlines()
    assert all(len(line) <= columns or " " not in line.strip() for line in table)  # a path stays whole
    assert table[:2] == ["STATE                  DONE  FAILED   LEFT", "  UPDATED (UTC)     OUTPUT"]
    assert "  2026-11-23 14:04  referrers/dt=2026-11-23" in table
    assert " ".join(" ".join(table).split()).count("not a harvester manifest") == 1


def test_a_terminal_breaks_a_status_between_words(
    lake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = in_process(capsys, "status", str(lake / "referrers/dt=2026-11-23")).out.splitlines()
    assert all(len(line) <= 60 or line.startswith("  command ") for line in lines[1:])
    assert [line for line in lines if line.startswith("  command ")] == [
        "  command    cd / && harvester run links.txt --out lake"
    ]


def test_one_output_can_be_watched_and_a_folder_of_them_cannot(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = in_process(capsys, "status", str(lake), "--watch")
    assert (done.code, done.out) == (2, "")
    assert f"--watch follows one output, and {lake} has 5: name one of them" in done.err


# --- watching -------------------------------------------------------------------------------------------------------


def test_watching_through_a_pipe_gives_an_object_a_line_at_each_change_and_ends_with_the_run(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(latency_ms=20), tmp_path / "out"
    process = start("run", links, "--out", str(out), "--base-url", served.url, "--part-rows", "10", *NO_LIMITS)
    wait_for_manifest(out)
    watching = harvester("status", str(out), "--watch", "--every", "0.02s", "--json")
    process.communicate()
    assert watching.returncode == 0, watching.stderr
    seen = [json.loads(line) for line in watching.stdout.splitlines()]
    assert seen[-1]["state"] == "complete"
    assert {each["state"] for each in seen[:-1]} <= {"running"}
    for each in seen:
        for volatile in ("now", "age_seconds"):
            del each[volatile]
    assert all(one != other for one, other in pairwise(seen))


def test_an_unchanged_status_is_not_printed_again(
    written: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            written(**ENDED, complete=True)

    folder = written(updated=datetime.now(UTC).isoformat())
    printing.follow(glance.changes(folder, 5.0, sleep), json=False)
    assert looks == [5.0] * 3
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["running:", "complete:"]


def test_an_interrupt_ends_watching_with_0(written: Callable[..., str]) -> None:
    process = start("status", written(updated=datetime.now(UTC).isoformat()), "--watch", "--every", "1h")
    assert process.stdout
    assert b"running" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_on_a_terminal_the_status_is_drawn_in_place(written: Callable[..., str]) -> None:
    folder = written(updated=datetime.now(UTC).isoformat())
    controller, terminal = pty.openpty()
    env = {"TERM": "xterm", "COLUMNS": "60", "LINES": "50"}
    process = start("status", folder, "--watch", "--every", "0.02s", env=env, stdout=terminal)
    os.close(terminal)
    shown = b""
    while b"command" not in shown:
        shown += os.read(controller, 65536)
    filesystem.atomic_replace(
        os.path.join(folder, "_manifest.json"), [json.dumps(WRITTEN | ENDED | {"complete": True}).encode()]
    )
    try:
        while chunk := os.read(controller, 65536):
            shown += chunk
    except OSError:  # Linux: the other side has closed it
        pass
    os.close(controller)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    before, _, after = re.sub(rb"\s+", b" ", shown).partition(b"complete: every link has an answer")
    assert b"it is running" in before
    assert after
    assert b"\x1b[1A" in shown
    assert b"list:\r\n" + b" " * 13 + b"links.txt" in shown  # it continues below its column


def test_a_terminal_that_cannot_be_redrawn_gets_lines(written: Callable[..., str]) -> None:
    controller, terminal = pty.openpty()
    process = start("status", written(**ENDED, complete=True), "--watch", env={"TERM": "dumb"}, stdout=terminal)
    os.close(terminal)
    shown = os.read(controller, 65536)
    process.communicate(timeout=30)
    os.close(controller)
    assert shown.startswith(b"2026-11-23 14:04 UTC complete: 990 rows")
    assert b"\x1b" not in shown


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_standard_output_that_is_full_is_reported(written: Callable[..., str]) -> None:
    with open("/dev/full", "wb") as full:
        process = start("status", written(), stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 8
    assert err == b"harvester: standard output: No space left on device\n"
