"""The one-link command: tables for a person, rows for a program, and a sentence with an exit code for all the rest."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harvester.clock import utc_iso
from harvester.sandbox import metrics_for
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN, harvester, start
from tests.support.in_process import command
from tests.support.scripted_bitly import metrics_of, scripted

LINK = "bit.ly/3lU6hRt"


def show(url: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return harvester("show", *arguments, "--base-url", url, env={"COLUMNS": "100", **(env or {})})


# --- what is shown --------------------------------------------------------------------------------------------------


def test_a_link_is_shown_as_a_table(serve: Callable[..., Served]) -> None:
    done = show(serve().url, f"https://{LINK}")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = metrics_for(LINK, "referrers", 50, unit_reference=utc_iso(datetime.now(UTC)))["metrics"]
    total = sum(metric["clicks"] for metric in metrics)
    title = done.stdout.partition("\n")[0]
    assert re.match(rf"{LINK}, 30 days up to 20\S+ \d\d:\d\d UTC: {total:,} clicks listed", title)
    lines = [re.split(r"\s*│\s*", line)[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    shown = [(value, clicks, share) for value, clicks, share, _ in lines]
    expected = [(each["value"], f"{each['clicks']:,}", f"{each['clicks'] / total:.1%}") for each in metrics]
    assert shown == expected
    bars = [len(bar) for _, _, _, bar in lines]
    assert bars == sorted(bars, reverse=True)
    assert bars[0] > 20


@pytest.mark.parametrize(
    ("words", "window"),
    [
        (("--day", "2026-11-22"), "the day 2026-11-22"),
        (("--since", "2026-11-05", "--until", "2026-11-05", "--every", "week"), "the week from 2026-11-02"),
    ],
    ids=["day", "week"],
)
def test_a_period_is_shown_by_its_name(
    serve: Callable[..., Served],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    window: str,
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    done = command(capsys, "show", LINK, *words, "--base-url", serve().url)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{LINK}, {window}: ")


def test_rows_for_a_program_are_those_of_run_in_the_order_asked(serve: Callable[..., Served]) -> None:
    url, window = serve(latency_ms=5).url, ("--unit-reference", "2026-11-01", "--units", "7")
    names = [f"bit.ly/{name}" for name in "zyxwabc"]
    done = show(url, *names, names[0], *window, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["bitlink"] for row in found] == names
    ran = harvester("run", "-", "--out", "-", "--base-url", url, *window, stdin="\n".join(names).encode())
    own = re.compile(r'"(run_id|fetched_at)":"[^"]*",')
    assert sorted(own.sub("", line) for line in done.stdout.splitlines()) == sorted(
        own.sub("", line) for line in ran.stdout.splitlines()
    )


def test_a_truncated_row_is_reported(serve: Callable[..., Served]) -> None:
    done = show(serve().url, LINK, "--size", "2", "--no-complete", "--units", "90")
    assert done.returncode == 0
    assert "truncated: Bitly returned the 2 that were requested" in done.stdout
    assert "90 days were requested: the plan keeps no more than 30" in done.stdout
    whole = show(serve().url, LINK)
    assert "truncated" not in whole.stdout
    assert "requested" not in whole.stdout


def test_a_link_without_clicks_is_shown_too(serve: Callable[..., Served]) -> None:
    empty = next(f"bit.ly/{i}" for i in range(1000) if not metrics_for(f"bit.ly/{i}", "countries", 50)["metrics"])
    done = show(serve().url, empty, "--facet", "countries")
    assert done.returncode == 0
    assert "0 clicks listed" in done.stdout
    assert "no clicks in this window" in done.stdout
    assert "countries" in done.stdout


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_a_table_fits_into_any_terminal(serve: Callable[..., Served], width: int) -> None:
    done = show(serve().url, LINK, env={"COLUMNS": str(width)})
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= width
    assert "direct" in done.stdout


def test_a_pipe_gets_utf_8_without_colours_whatever_the_locale(serve: Callable[..., Served]) -> None:
    done = show(serve().url, LINK, env={"LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "xterm-256color"})
    assert done.returncode == 0
    assert "█" in done.stdout
    assert "\x1b" not in done.stdout


def test_text_from_bitly_is_escaped() -> None:
    with scripted() as bitly:
        done = show(bitly.url, "bit.ly/separators", "bit.ly/418-coloured", "bit.ly/402-coloured", "--attempts", "1")
    assert "\\u001c" in done.stdout
    for text in (done.stdout, done.stderr):
        assert not [character for character in text if character != "\n" and not character.isprintable()]


def test_a_closed_pipe_ends_show_quietly(serve: Callable[..., Served]) -> None:
    served = serve(latency_ms=20)
    names = [f"bit.ly/{i}" for i in range(300)]
    with start("show", *names, "--json", "--base-url", served.url, *NO_LIMITS) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=20) == 0
    assert served.sandbox.requests.total() < 300


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "row"])
def test_a_standard_output_that_is_full_ends_with_8(serve: Callable[..., Served], form: tuple[str, ...]) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        start("show", LINK, *form, "--base-url", serve().url, stdout=full) as process,
    ):
        assert process.stderr
        said = process.stderr.read().decode()
        assert process.wait(timeout=20) == 8
    assert said.startswith("harvester: standard output: No space left")
    assert said.count("\n") == 1


# --- what is refused ------------------------------------------------------------------------------------------------


def test_text_that_is_not_a_bitlink_is_refused_before_any_call(serve: Callable[..., Served]) -> None:
    served = serve()
    for text in ("nonsense", "-", "bit.ly/../user", "\x1b[31m"):
        done = show(served.url, LINK, text)
        assert done.returncode == 2
        assert "not a bitlink" in done.stderr
        assert "\x1b" not in done.stderr
    assert not served.sandbox.requests


def test_without_a_token_it_says_where_to_get_one(serve: Callable[..., Served]) -> None:
    done = show(serve().url, LINK, env={"BITLY_TOKEN": ""})
    assert done.returncode == 2
    assert "BITLY_TOKEN" in done.stderr
    assert "Settings > API" in done.stderr


def test_a_refused_token_ends_with_6(serve: Callable[..., Served]) -> None:
    done = show(serve().url, LINK, env={"BITLY_TOKEN": "revoked"})
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1
    assert "refused the token" in done.stderr


def test_refused_links_are_reported_after_those_that_are_shown(serve: Callable[..., Served]) -> None:
    links = ("bit.ly/missing-1", "bit.ly/a", "bit.ly/gone-1", "bit.ly/foreign-1", "bit.ly/b")
    done = show(serve().url, *links, "--json")
    assert done.returncode == 4
    assert [json.loads(line)["bitlink"] for line in done.stdout.splitlines()] == ["bit.ly/a", "bit.ly/b"]
    assert sorted(done.stderr.splitlines()) == [
        "bit.ly/foreign-1: this token may not see it (403 FORBIDDEN)",
        "bit.ly/gone-1: deleted (410 GONE)",
        "bit.ly/missing-1: no such bitlink (404 NOT_FOUND)",
    ]


def test_a_link_that_fails_ends_with_3() -> None:
    with scripted() as bitly:
        done = show(bitly.url, "bit.ly/ok", "bit.ly/418")
    assert done.returncode == 3
    assert "https://ok.example/" in done.stdout
    assert "bit.ly/418: failed (418" in done.stderr


@pytest.mark.parametrize("text", ["5x", "0", "-1s"])
def test_text_that_is_not_a_time_is_refused(serve: Callable[..., Served], text: str) -> None:
    done = show(serve().url, LINK, f"--max-time={text}")
    assert done.returncode == 2
    assert "--max-time" in done.stderr


# --- what is waited for ---------------------------------------------------------------------------------------------


def test_a_link_costs_one_call(serve: Callable[..., Served]) -> None:
    served = serve()
    assert show(served.url, LINK).returncode == 0
    assert served.sandbox.requests.total() == 1
    assert not served.sandbox.helped


def test_links_take_no_more_connections_than_they_can_use(tmp_path: Path, serve: Callable[..., Served]) -> None:
    url = serve().url
    for number in (1, 2, 7):
        links = [f"bit.ly/{i}" for i in range(number)]
        assert show(url, *links, "--state-dir", str(tmp_path)).returncode == 0
        assert len(list(tmp_path.glob("connections/*/slot-*"))) == min(number, 5)


def test_a_spent_month_ends_with_7_and_says_when_to_come_back(serve: Callable[..., Served]) -> None:
    served = serve()
    for name in "ab":
        assert show(served.url, f"bit.ly/{name}", "--per-month", "2").returncode == 0
    done = show(served.url, "bit.ly/c", "--per-month", "2")
    assert done.returncode == 7
    assert re.search(r"run it again from 20\d\d-\d\d-01 00:00 UTC", done.stderr)
    assert served.sandbox.requests.total() == 2


def test_a_guessed_month_refuses_nothing_before_it_is_spent(serve: Callable[..., Served]) -> None:
    served = serve()
    names = [f"bit.ly/{i}" for i in range(1001)]
    done = show(served.url, *names, "--json", "--per-minute", "0", "--per-hour", "0")
    assert done.returncode == 7
    assert len(done.stdout.splitlines()) == served.sandbox.requests.total() == 1000


def test_a_window_that_opens_too_late_is_not_waited_for(serve: Callable[..., Served]) -> None:
    limits = ("--per-minute", "0", "--per-hour", "2")
    done = show(serve().url, "bit.ly/a", "bit.ly/b", "bit.ly/c", "--json", *limits)
    assert done.returncode == 9
    assert len(done.stdout.splitlines()) == 2
    assert "the hour's limit of 2" in done.stderr
    assert "longer than 1m (--max-time)" in done.stderr
    assert re.search(r"run it again from 20\S+ \d\d:\d\d UTC", done.stderr)


def test_throttling_is_reported_and_waited_for() -> None:
    with scripted() as bitly:
        done = show(bitly.url, "bit.ly/429x1-then-ok", "--max-time", "2m")
    assert done.returncode == 0
    assert "waiting for Bitly to stop throttling" in done.stderr
    assert "for 2m at most (--max-time)" in done.stderr


def test_throttling_that_lasts_too_long_ends_with_9() -> None:
    with scripted() as bitly:
        done = show(bitly.url, "bit.ly/429", "--max-time", "5s")
    assert done.returncode == 9
    assert "Bitly to stop throttling" in done.stderr
    assert "run it again from" in done.stderr


def test_a_server_that_is_out_is_reported_at_once_and_ends_with_9() -> None:
    done = show("http://127.0.0.1:9/v4", LINK, "--max-time", "1s")
    assert done.returncode == 9
    assert "no good answer yet: " in done.stderr
    assert "cannot be reached: Connection refused" in done.stderr
    assert "(--max-time)" in done.stderr


def test_a_signal_ends_it_and_leaves_no_folder(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve(errors=1.0)
    with start("show", LINK, "--base-url", served.url, env={"TMPDIR": str(tmp_path)}) as process:
        while not served.sandbox.requests:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 5
    assert not list(tmp_path.glob("harvester-*"))


def terminal(*arguments: str) -> str:
    """Run the command with a terminal for its standard output, and give what that was sent."""
    master, slave = pty.openpty()
    sent = b""
    with start(*arguments, stdout=slave, env={"COLUMNS": "100", "TERM": "xterm"}) as process:
        os.close(slave)
        with suppress(OSError):  # how a terminal says that nobody writes any more
            while piece := os.read(master, 65536):
                sent += piece
        assert process.wait(timeout=20) == 0
    os.close(master)
    return sent.decode().replace("\r\n", "\n")


def test_a_terminal_gets_colours_and_escaped_rows_that_are_the_same_json() -> None:
    with scripted() as bitly:
        table = terminal("show", "bit.ly/separators", "--base-url", bitly.url)
        row = terminal("show", "bit.ly/separators", "--json", "--base-url", bitly.url)
    assert "\x1b[1m" in table
    assert json.loads(row)["metrics"] == metrics_of("separators")
    assert row.rstrip("\n").isprintable()
