"""How a run ends: signals, limits of its own, a full disk, an output that is not what it should be."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester.cli.main import main
from harvester.dataset.dataset import Dataset
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.output_checks import check_reconciled, failures, manifest, rows

LINKS = [f"bit.ly/{i}" for i in range(300)]


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("\n".join(LINKS))
    return str(path)


def wait_for_answers(served: Served, count: int) -> None:
    while served.sandbox.answered.total() < count:
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_commits_publishes_and_leaves_a_run_to_resume(
    tmp_path: Path, links: str, serve: Callable[..., Served], number: signal.Signals
) -> None:
    served, out = serve(latency_ms=20), tmp_path / "out"
    command = ("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    process = start(*command)
    wait_for_answers(served, 50)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5, err
    assert b"the same command resumes" in err
    answered = served.sandbox.answered.total()
    assert len(rows(out)) == answered < len(LINKS)
    assert manifest(out)["stopped"]["reason"] == "signal"
    assert not manifest(out)["complete"]
    assert not (out / "_SUCCESS").exists()
    assert harvester(*command).returncode == 0
    check_reconciled(out, set(LINKS))
    assert served.sandbox.requests.total() == len(LINKS)


def test_a_second_signal_ends_at_once_and_loses_nothing(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(latency_ms=2000), tmp_path / "out"
    process = start("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    while served.sandbox.at_once < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.stderr
    assert any(b"SIGTERM: stopping" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_signal_ends_a_run_that_waits_for_a_silent_pipe(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    with start("run", "-", "--out", str(out), "--base-url", served.url, *NO_LIMITS, stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(b"bit.ly/a\n")
        process.stdin.flush()
        wait_for_answers(served, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 5
        assert b"Fatal" not in process.stderr.read()
    assert len(rows(out)) == 1


def test_max_calls_ends_with_9_and_the_next_run_carries_on(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(), tmp_path / "out"
    command = ("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    first = harvester(*command, "--max-calls", "120")
    assert first.returncode == 9, first.stderr
    assert len(rows(out)) == 120 == served.sandbox.requests.total()
    assert harvester(*command, "--max-calls", "180").returncode == 0
    check_reconciled(out, set(LINKS))


@pytest.mark.parametrize(("most", "code"), [("1", 9), ("2", 9), ("3", 0), ("4", 0)])
def test_max_calls_reached_exactly_at_the_lists_end_is_no_stop(
    tmp_path: Path, serve: Callable[..., Served], most: str, code: int
) -> None:
    """What needs no call (duplicates, links known before, lines that are no links) does not count."""
    given = b"bit.ly/a\nbit.ly/b\nbit.ly/missing\nbit.ly/a\nnonsense\n"
    command = ("run", "-", "--out", "out", "--base-url", serve().url, "--max-calls", most)
    assert harvester(*command, stdin=given, cwd=tmp_path).returncode == code
    assert harvester(*command, stdin=given, cwd=tmp_path).returncode == (9 if most == "1" else 0)
    assert (tmp_path / "out" / "_SUCCESS").exists() == (most != "1")


@pytest.mark.parametrize(("list_length", "bound"), [(40, ("--max-calls", "4")), (40, ("--max-time", "1s"))])
def test_a_bound_ends_with_9_and_status_and_log_say_that_the_same_command_goes_on(
    tmp_path: Path, serve: Callable[..., Served], list_length: int, bound: tuple[str, str]
) -> None:
    served = serve(latency_ms=200)
    given = "".join(f"bit.ly/{i}\n" for i in range(list_length)).encode()
    command = ("run", "-", "--out", "out", "--base-url", served.url, *NO_LIMITS, "--log-format", "json", *bound)
    done = harvester(*command, stdin=given, cwd=tmp_path)
    ended = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert (done.returncode, ended["event"], ended["exit_code"]) == (9, "run.ended", 9)
    assert ended["reason"] == bound[0].removeprefix("--").replace("-", "_")
    said = harvester("status", "out", cwd=tmp_path).stdout
    assert bound[0] in said
    assert "when you want to continue, the same command resumes" in said


def test_max_time_ends_with_9(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    served = serve(latency_ms=100)
    done = harvester(
        "run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS, "--max-time", "1s"
    )
    assert done.returncode == 9, done.stderr
    assert "--max-time" in done.stderr


def test_max_failures_ends_with_4(tmp_path: Path, serve: Callable[..., Served]) -> None:
    path = tmp_path / "links.txt"
    path.write_text("\n".join(f"bit.ly/{'missing-' if i % 4 else ''}{i}" for i in range(400)))
    for limit in ("30", "10%"):
        served, out = serve(), tmp_path / limit
        done = harvester(
            "run", str(path), "--out", str(out), "--base-url", served.url, *NO_LIMITS, "--max-failures", limit
        )
        assert done.returncode == 4, done.stderr
        assert len(rows(out)) + len(failures(out)) == served.sandbox.requests.total() < 400


def test_a_list_that_no_free_plan_covers_is_refused_before_the_first_call_unless_a_month_is_named(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, path = serve(), tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(1001)))
    command = ("run", str(path), "--out", str(tmp_path / "out"), "--base-url", served.url, "--per-minute", "0")
    done = harvester(*command, "--per-hour", "0")
    assert done.returncode == 2
    assert "needs 1,001 calls" in done.stderr
    assert "--per-month" in done.stderr
    assert served.sandbox.requests.total() == 0
    # Enough for a part of it, and for what is then still to ask.
    assert harvester(*command, "--per-hour", "0", "--max-calls", "10").returncode == 9
    # Two of the calls have asked Bitly for the plan.
    assert harvester(*command, "--per-hour", "0", "--per-month", "1003").returncode == 0


def test_a_month_that_covers_part_of_the_list_is_reported_and_used_up(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(), tmp_path / "out"
    command = ("run", links, "--out", str(out), "--base-url", served.url, "--per-minute", "0", "--per-hour", "0")
    done = harvester(*command, "--per-month", "10")
    assert done.returncode == 7, done.stderr
    assert "this month's calls are enough for 10 of 300 links" in done.stderr
    assert len(rows(out)) == 10 == served.sandbox.requests.total()
    assert harvester(*command, "--per-month", "300").returncode == 0
    check_reconciled(out, set(LINKS))


def test_a_pipe_stops_with_7_where_the_month_ends(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    done = harvester(
        "run", "-", "--out", str(out), "--base-url", served.url, "--per-minute", "0", "--per-hour", "0",
        "--per-month", "40", stdin="\n".join(LINKS).encode(),
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert len(rows(out)) == 40 == served.sandbox.requests.total()
    assert manifest(out)["stopped"]["until"].endswith("-01T00:00:00Z")


def test_the_month_spent_at_bitly_stops_at_once_with_7(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(per_month=25), tmp_path / "out"
    done = harvester("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert done.returncode == 7, done.stderr
    assert len(rows(out)) == 25
    assert served.sandbox.requests.total() <= 25 + 5 + 1  # and a link that was answered before
    assert manifest(out)["stopped"]["until"].endswith("-01T00:00:00Z")


def test_limits_are_kept_and_a_short_list_is_not_paced(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(per_minute=100, per_hour=1000), tmp_path / "out"
    path = tmp_path / "links.txt"
    path.write_text("\n".join(LINKS[:90]))
    done = harvester("run", str(path), "--out", str(out), "--base-url", served.url, timeout=20)
    assert done.returncode == 0, done.stderr
    assert served.sandbox.throttled == 0


def test_another_query_on_the_same_output_is_refused_and_both_are_shown(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve()
    command = ("run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    assert harvester(*command).returncode == 0
    done = harvester(*command, "--facet", "countries")
    assert done.returncode == 2
    assert "--facet referrers" in done.stderr
    assert "--facet countries" in done.stderr
    assert served.sandbox.requests.total() == len(LINKS)


def test_a_second_process_on_the_same_output_ends_with_5(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve(latency_ms=50)
    command = ("run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS)
    first = start(*command)
    wait_for_answers(served, 1)
    second = harvester(*command)
    assert second.returncode == 5
    assert "another harvester works on" in second.stderr
    first.communicate(timeout=60)
    assert first.returncode == 0


def test_a_lost_ledger_ends_with_8_and_says_what_to_do(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(), tmp_path / "out"
    command = ("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert harvester(*command).returncode == 0
    before = rows(out)
    shutil.rmtree(out / "_harvester")
    done = harvester(*command)
    assert done.returncode == 8
    assert "start a new --out" in done.stderr
    assert rows(out) == before


def test_foreign_files_and_endings_are_refused(tmp_path: Path, links: str) -> None:
    (tmp_path / "theirs.ndjson").write_text('{"not": "ours"}\n')
    (tmp_path / "file").write_text("x")
    for out in ("theirs.ndjson", "file", "results.csv", "results.ndjson.gz", "results.json"):
        done = harvester("run", links, "--out", str(tmp_path / out), *NO_LIMITS)
        assert done.returncode == 2, out
        assert "--out" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "theirs.ndjson").read_text() == '{"not": "ours"}\n'


def test_a_full_disk_ends_with_8_and_the_next_run_carries_on(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    """A limit on the size of files stands for the disk: the kernel then really writes less than it was asked to."""
    served, out = serve(), tmp_path / "out"
    command = ("run", links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    full = harvester(*command, wrapper=("prlimit", "--fsize=65536"))
    assert full.returncode == 8, full.stderr
    assert "Traceback" not in full.stderr
    answered = served.sandbox.answered.total()
    done = harvester(*command)
    assert done.returncode == 0, done.stderr
    check_reconciled(out, set(LINKS))
    assert served.sandbox.requests.total() <= len(LINKS) + 5 + (answered == 0)


def test_dispatch_stops_before_the_disk_is_full(
    tmp_path: Path,
    links: str,
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    served = serve(latency_ms=20)
    monkeypatch.setenv("BITLY_TOKEN", "any")
    monkeypatch.setattr(Dataset, "free_bytes", lambda _: 2**26 - 1 if served.sandbox.answered.total() > 20 else 2**30)
    with pytest.raises(SystemExit) as left:
        main(["run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *NO_LIMITS])
    assert left.value.code == 8
    assert "63 MiB are free" in capfd.readouterr().err
    assert len(rows(tmp_path / "out")) == served.sandbox.requests.total() < len(LINKS)


def test_an_unwritable_output_ends_with_8(tmp_path: Path, links: str) -> None:
    done = harvester("run", links, "--out", "/proc/out", *NO_LIMITS)
    assert done.returncode == 8, done.stderr


def test_strict_starts_nothing_when_a_line_is_bad(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    options = ("--base-url", served.url, *NO_LIMITS, "--strict")
    path = tmp_path / "links.txt"
    path.write_text("bit.ly/a\nnonsense\n")
    done = harvester("run", str(path), "--out", str(tmp_path / "out"), *options)
    assert done.returncode == 2
    assert f'{path}:2: "' in done.stderr
    piped = harvester("run", "-", "--out", str(tmp_path / "out2"), *options, stdin=b"bit.ly/a\nnonsense\n")
    assert piped.returncode == 2
    assert served.sandbox.requests.total() == 0
    good = harvester("run", "-", "--out", str(tmp_path / "out3"), *options, stdin=b"bit.ly/a\nbit.ly/b\n")
    assert good.returncode == 0, good.stderr
    assert len(rows(tmp_path / "out3")) == 2


def test_a_list_that_breaks_off_keeps_what_could_be_read(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    path = tmp_path / "links.gz"
    many = [f"bit.ly/{i}-{hash(str(i))}" for i in range(1500)]
    packed = gzip.compress("\n".join(many).encode())
    path.write_bytes(packed[: len(packed) // 3])
    done = harvester("run", str(path), "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert done.returncode == 2
    assert "cannot be read past line" in done.stderr
    assert len(rows(out)) == served.sandbox.requests.total() > 250
    assert not (out / "_SUCCESS").exists()


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "nonsense\n"])
def test_no_links_at_all_is_an_error(tmp_path: Path, serve: Callable[..., Served], text: str) -> None:
    done = harvester(
        "run", "-", "--out", str(tmp_path / "o"), "--base-url", serve().url, *NO_LIMITS, stdin=text.encode()
    )
    assert done.returncode == 2
    assert "no links" in done.stderr


def test_a_closed_pipe_ends_quietly_with_0_and_soon(serve: Callable[..., Served]) -> None:
    served = serve(latency_ms=20)
    with start("run", "-", "--out", "-", "--base-url", served.url, *NO_LIMITS, stdin=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdin
        process.stdin.write("\n".join(LINKS).encode())
        process.stdin.close()
        for _ in range(10):
            json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.wait(timeout=10) == 0
        assert b"Error" not in process.stderr.read()
    assert served.sandbox.requests.total() < 100


def test_a_failed_call_is_tried_in_three_runs_and_then_only_when_asked(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, out = serve(errors=1.0), tmp_path / "out"
    command = ("run", "-", "--out", str(out), "--base-url", served.url, *NO_LIMITS, "--attempts", "1")
    for calls in (1, 2, 3, 3):
        done = harvester(*command, stdin=b"bit.ly/a\n")
        assert done.returncode == 3, done.stderr
        assert served.sandbox.requests.total() == calls
    assert manifest(out)["dataset"] == {
        "calls": 1,
        "rows": 0,
        "refused": 0,
        "failed": 1,
        "pending": 0,
        "truncated": 0,
        "clipped": 0,
        "idle": 0,
        "refreshed": 0,
    }
    assert harvester(*command, "--retry-failed", stdin=b"bit.ly/a\n").returncode == 3
    assert served.sandbox.requests.total() == 4


def test_a_refused_call_is_asked_again_only_when_wanted(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    command = ("run", "-", "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    for options, calls in (([], 2), ([], 2), (["--retry-refused"], 3)):
        assert harvester(*command, *options, stdin=b"bit.ly/missing\nbit.ly/a\n").returncode == 0
        assert served.sandbox.requests.total() == calls
    assert len(failures(out)) == 1


def test_the_failures_are_themselves_a_list(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served, out = serve(), tmp_path / "out"
    options = ("--base-url", served.url, *NO_LIMITS)
    harvester("run", "-", "--out", str(out), *options, stdin=b"bit.ly/missing-a\nbit.ly/b\nbit.ly/gone-c\nbad\n")
    again = harvester("run", str(out / "_failures.ndjson"), "--out", str(tmp_path / "again"), *options)
    assert again.returncode == 3, again.stderr  # nobody was answered there
    assert [line["bitlink"] or line["text"] for line in failures(tmp_path / "again")][-1] == "bad"
    assert manifest(tmp_path / "again")["list"]["links"] == 2


def test_the_token_is_missing(tmp_path: Path, links: str) -> None:
    done = harvester("run", links, "--out", str(tmp_path / "out"), env={"BITLY_TOKEN": ""})
    assert done.returncode == 2
    assert "BITLY_TOKEN" in done.stderr
    assert not (tmp_path / "out").exists()


def test_more_connections_than_bitly_allows_are_warned_about(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve(connections=9)
    done = harvester(
        "run", "-", "--out", str(tmp_path / "out"), "--base-url", served.url, "--connections", "9", stdin=b"bit.ly/a\n"
    )
    assert done.returncode == 0
    assert "Bitly allows 5" in done.stderr


def test_a_demo_needs_no_token_and_shows_the_busiest_referrers() -> None:
    done = harvester("demo", env={"BITLY_TOKEN": ""}, timeout=40)
    assert done.returncode == 0, done.stderr
    assert "top referrers" in done.stdout
    folder = Path(next(words[1] for line in done.stdout.splitlines() if (words := line.split())[:1] == ["output"]))
    assert f"report: {folder}/_report.html" in done.stdout
    assert "Clicks by referrer" in (folder / "_report.html").read_text()
    assert harvester("verify", str(folder)).returncode == 0
    shutil.rmtree(folder)


def test_python_m_harvester_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "harvester", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
