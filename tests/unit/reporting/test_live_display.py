"""What a person sees on a terminal: read from the screen of a pseudo-terminal that the real command writes to."""

import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from harvester.progress import AttemptCounts, RunProgress, WaitReason, WindowState
from harvester.reporting.live_display import frame, title
from harvester.run.telemetry import Minute
from tests.conftest import Served
from tests.support.commands import NO_LIMITS
from tests.support.output_checks import check_reconciled
from tests.support.terminals import Terminal, on_terminal

AN_HOUR = ("--per-minute", "0", "--per-hour", "20", "--per-month", "1000")
WAITING = re.compile(r"waiting for the hour's limit of 20, until \d{4}-\d\d-\d\d \d\d:\d\d UTC \(in")
CHART = "last minute"


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(60)))
    return str(path)


def command(links: str, tmp_path: Path, served: Served, *options: str) -> tuple[str, ...]:
    return ("run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *options)


def frames(terminal: Terminal) -> int:
    """How many displays stand on the screen."""
    return terminal.text.count(CHART)


def test_a_run_shows_calls_results_end_speed_windows_and_what_it_waits_for(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    with on_terminal(*command(links, tmp_path, serve(), *AN_HOUR)) as terminal:
        terminal.until(lambda: WAITING.search(terminal.text) and "20 rows" in terminal.text)
        shown = terminal.text
        for said in (
            "referrers of links.txt → ",
            "20 of 60 links ━",
            "33 %",
            "20 rows · 0 refused · 0 failed",
            " elapsed · ",
            CHART,
        ):
            assert said in shown
        assert re.search(
            r"^hour   ━{20} 20 of 20\nmonth  ╌{20} 21 of 1,000$", shown, re.MULTILINE
        )  # a helper request, too
        assert frames(terminal) == 1
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 5
        assert frames(terminal) == 0
        for said in ("stopped: SIGTERM was received", "results   20 rows, 0 refused, 0 failed", "resumes"):
            assert said in terminal.text


def test_the_summary_remains_when_the_display_goes(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    with on_terminal(*command(links, tmp_path, serve(latency_ms=20), *NO_LIMITS)) as terminal:
        assert terminal.end() == 0
        assert CHART.encode() in terminal.raw
        assert frames(terminal) == 0
        assert "every link has an answer" in terminal.text
        assert "\x1b[32m✓ finished in ".encode() in terminal.raw
        assert b"\x1b[?25l" not in terminal.raw  # the cursor is never hidden: a kill would leave it so


def test_on_forty_columns_everything_is_told_on_more_lines(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    with on_terminal(*command(links, tmp_path, serve(), *AN_HOUR), columns=40, rows=20) as terminal:
        terminal.until(lambda: WAITING.search(" ".join(terminal.lines)) and "20 rows" in terminal.text)
        assert frames(terminal) == 1
        assert "…" not in terminal.text[terminal.text.index("20 of 60 links") :]  # the title alone is shortened
        assert "20 of 60 links ━" in terminal.text


@pytest.mark.parametrize(("columns", "rows"), [(10, 2), (1, 1)])
def test_a_tiny_terminal_does_no_harm(
    tmp_path: Path, links: str, serve: Callable[..., Served], columns: int, rows: int
) -> None:
    command_ = command(links, tmp_path, serve(latency_ms=20), *NO_LIMITS)
    with on_terminal(*command_, columns=columns, rows=rows) as terminal:
        assert terminal.end() == 0
        assert "every link has an answer" in terminal.everything() or columns < 10


def test_a_terminal_without_a_size_is_taken_for_a_usual_one(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    terminal = Terminal(80, 24)
    terminal.forget_size()
    terminal.start(*command(links, tmp_path, serve(latency_ms=20), *NO_LIMITS))
    try:
        assert terminal.end() == 0
        assert CHART.encode() in terminal.raw
    finally:
        terminal.close()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 120])
def test_after_a_resize_there_is_one_display(
    tmp_path: Path, links: str, serve: Callable[..., Served], columns: int
) -> None:
    with on_terminal(*command(links, tmp_path, serve(), *AN_HOUR)) as terminal:
        terminal.until(lambda: WAITING.search(terminal.text))
        terminal.resize(columns, 24)
        seen = len(terminal.raw)
        terminal.until(lambda: terminal.raw.count(CHART.encode(), seen) >= 2)
        terminal.until(lambda: frames(terminal) == 1)


@pytest.mark.slow
def test_what_the_shell_wrote_while_it_was_stopped_remains(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    with on_terminal(*command(links, tmp_path, serve(), *AN_HOUR)) as terminal:
        terminal.until(lambda: WAITING.search(terminal.text))
        terminal.process.send_signal(signal.SIGSTOP)
        stopped = psutil.Process(terminal.process.pid)
        terminal.until(lambda: stopped.status() == psutil.STATUS_STOPPED)
        terminal.write_as_shell("\n[1]+  Stopped   harvester\n$ fg\n")
        terminal.until(lambda: "$ fg" in terminal.text)
        seen = len(terminal.raw)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until(lambda: terminal.raw.count(CHART.encode(), seen) >= 2)
        assert "[1]+  Stopped   harvester\n$ fg\nreferrers of links.txt" in terminal.text


def test_in_the_background_nothing_is_drawn_and_what_is_told_is(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    run = command(links, tmp_path, serve(latency_ms=50), *NO_LIMITS)
    with on_terminal(*run, foreground=False) as terminal:
        assert terminal.end() == 0
        assert "every link has an answer" in terminal.text
        assert CHART.encode() not in terminal.raw


def test_a_list_that_is_typed_is_not_drawn_over(tmp_path: Path, serve: Callable[..., Served]) -> None:
    run = ("run", "-", "--out", str(tmp_path / "out"), "--base-url", serve().url, *NO_LIMITS)
    with on_terminal(*run) as terminal:
        terminal.until(lambda: "limits of account" in terminal.text)
        terminal.press(b"bit.ly/a\n\x04")
        assert terminal.end() == 0
        assert CHART.encode() not in terminal.raw


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_calls(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve(latency_ms=50)
    with on_terminal(*command(links, tmp_path, served, *NO_LIMITS)) as terminal:
        terminal.until(lambda: CHART in terminal.text)
        terminal.press(b"\x13")  # Ctrl-S
        terminal.until(lambda: served.sandbox.requests.total() == 60)
        terminal.press(b"\x11")
        assert terminal.end() == 0
        assert "every link has an answer" in terminal.text


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_the_run_with_all_committed(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    with on_terminal(*command(links, tmp_path, serve(), *AN_HOUR)) as terminal:
        terminal.until(lambda: WAITING.search(terminal.text))
        terminal.hang_up()
        assert terminal.process.wait(30) == 5
    assert len((tmp_path / "out" / "_manifest.json").read_text()) > 0


@pytest.mark.slow
def test_where_hang_ups_are_ignored_the_run_goes_on_without_its_terminal(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    signal_before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; children have it too
    try:
        run = command(links, tmp_path, serve(latency_ms=100), *NO_LIMITS)
        with on_terminal(*run, new_interpreter=True) as terminal:
            terminal.until(lambda: CHART in terminal.text)
            terminal.hang_up()
            assert terminal.process.wait(30) == 0
    finally:
        signal.signal(signal.SIGHUP, signal_before)
    check_reconciled(tmp_path / "out", {f"bit.ly/{i}" for i in range(60)})


def test_bad_lines_appear_above_it_escaped(tmp_path: Path, serve: Callable[..., Served]) -> None:
    links = tmp_path / "links.txt"
    links.write_text("".join(f"bit.ly/{i}\n" for i in range(30)) + "bad \x1b[2J\x9b31m\u202e line\n")
    with on_terminal(*command(str(links), tmp_path, serve(), *AN_HOUR), columns=240) as terminal:
        terminal.until(lambda: WAITING.search(terminal.text))
        assert "\\u001b[2J\\u009b31m\\u202e line" in terminal.everything()
        assert terminal.text.index("not a bitlink") < terminal.text.index(CHART)
        assert b"\x1b[2J" not in terminal.raw


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ((), {"TERM": "dumb"}),
        ((), {"CI": "true"}),
        (("--quiet",), {}),
        (("--log-format", "json"), {}),
        (("--out", "-"), {}),
    ],
)
def test_nothing_is_drawn_where_it_would_be_wrong(
    tmp_path: Path, links: str, serve: Callable[..., Served], options: tuple[str, ...], env: dict[str, str]
) -> None:
    out = () if "--out" in options else ("--out", str(tmp_path / "out"))
    run = ("run", links, *out, "--base-url", serve(latency_ms=20).url, *NO_LIMITS, *options)
    with on_terminal(*run, env=env) as terminal:
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.raw


def test_no_color_leaves_colours_out_and_the_display_in(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    run = command(links, tmp_path, serve(latency_ms=20), *NO_LIMITS)
    with on_terminal(*run, env={"NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 0
        assert CHART.encode() in terminal.raw
        assert not re.search(rb"\x1b\[(?:\d;)*3\dm", terminal.raw)


@pytest.mark.slow
def test_the_second_signal_leaves_a_clean_screen(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    with on_terminal(*command(links, tmp_path, serve(latency_ms=3000), *NO_LIMITS)) as terminal:
        terminal.until(lambda: CHART in terminal.text)
        terminal.process.send_signal(signal.SIGINT)
        terminal.until(lambda: "SIGINT: stopping" in terminal.text)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert frames(terminal) == 0


# --- the lines ----------------------------------------------------------------------------------------------------


def text_of(status: RunProgress, width: int = 80) -> str:
    return "\n".join(line.plain for line in frame(status, width))


def test_the_time_left_has_no_fractions_that_flicker() -> None:
    ends = datetime.now(UTC) + timedelta(seconds=4.3)
    assert "\n4 s left · until about " in text_of(RunProgress(to_make=9, rows=5, ends=ends))


@pytest.mark.parametrize("width", [*range(1, 45), 80, 100])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    now = datetime.now(UTC)
    status = RunProgress(
        to_make=10_000_000,
        rows=9_000_000,
        refused=123_456,
        attempts=AttemptCounts(9_200_000, 1000, 1000),
        waiting=WaitReason("connections", 5, now),
        windows=[WindowState("month", 50_000_000, 9_200_000, now, "asked")],
        per_second=[float(i) for i in range(60)],
        ends=now + timedelta(days=40),
        spent=now + timedelta(days=4),
    )
    assert max(line.cell_len for line in frame(status, width)) <= width


def test_without_a_count_there_is_no_bar_and_no_end() -> None:
    shown = text_of(RunProgress(rows=1234))
    assert "1,234 links done" in shown
    assert "%" not in shown
    assert "left" not in shown


def test_a_list_read_to_its_end_is_counted() -> None:
    assert "75 of 100 links" in text_of(RunProgress(read_to_end=True, rows=70, refused=5, pending=25))


def test_calls_beyond_the_most_are_not_awaited() -> None:
    assert "5 of 20 links" in text_of(RunProgress(read_to_end=True, rows=5, pending=1000, max_calls=20))


def test_a_month_that_will_be_spent_before_the_end_is_said() -> None:
    now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    status = RunProgress(to_make=100, ends=now + timedelta(days=60), spent=now + timedelta(days=2))
    assert "the month's calls are used up about 2026-11-25 12:00 UTC" in text_of(status)


def test_the_pace_is_no_reason_to_worry() -> None:
    assert "waiting" not in text_of(RunProgress(rows=1, waiting=WaitReason("pace", 100, None)))


def test_what_a_server_says_of_its_outage_is_cut_and_does_not_steer_the_terminal() -> None:
    odd = "\x1b]0;title\x07\x9b" + "x " * 2000
    waits = RunProgress(waiting=WaitReason("outage", 0, None, odd))
    for status in (waits, RunProgress(trouble=odd, per_second=[0.0] * 9)):
        shown = text_of(status)
        assert "\\u001b]0;title" in shown
        assert all(character.isprintable() for character in shown.replace("\n", ""))
        assert shown.count("\n") < 12


def test_how_attempts_fail_is_shown_while_nothing_moves() -> None:
    still = RunProgress(trouble="no answer: connection refused", per_second=[0.0] * 3)
    assert "no good answer lately: no answer: connection refused" in text_of(still)


def test_a_minute_without_calls_is_an_empty_chart_and_the_latest_call_is_at_its_right() -> None:
    assert "0.0 calls/s" + " " * 32 + " last minute" in text_of(RunProgress(per_second=[0.0] * 60))
    assert "█ last minute" in text_of(RunProgress(per_second=[0.0] * 59 + [1.0]))


def test_calls_are_counted_in_the_seconds_in_which_they_were_settled() -> None:
    minute = Minute(100.0)
    minute.see(101.0, 3)
    minute.see(103.0, 7)
    assert minute.seconds() == [3.0, 2.0, 2.0]
    minute.see(103.0, 8)
    minute.see(1000.0, 8 + 897)
    assert minute.seconds() == pytest.approx([1.0] * 60)


def test_limits_are_bars_below_one_another() -> None:
    now = datetime.now(UTC)
    windows = [
        WindowState("minute", 100, 25, None, "asked"),
        WindowState("hour", 0, 200, None, "asked"),
        WindowState("month", 25_000, 12_500, now, "asked"),
    ]
    shown = text_of(RunProgress(windows=windows)).split("\n")[-2:]
    assert shown == [
        "minute " + "━" * 5 + "╌" * 15 + "     25 of 100",
        "month  " + "━" * 10 + "╌" * 10 + " 12,500 of 25,000",
    ]
    assert text_of(RunProgress(windows=windows), 22).split("\n")[-1] == "month  12,500 of 25,0…"


def test_a_limit_below_what_was_sent_is_no_fraction() -> None:
    shown = text_of(RunProgress(windows=[WindowState("minute", 15, 98, None, "throttled")]))
    assert "minute " + "━" * 20 + " 98 sent; the limit is 15 now" in shown
    assert "98/15" not in shown


@pytest.mark.parametrize(("limit", "speed"), [(100, "90 calls/min"), (0, "1.5 calls/s")], ids=["a minute", "no limit"])
def test_the_speed_is_in_the_unit_of_the_limits(limit: int, speed: str) -> None:
    windows = [WindowState("minute", limit, 1, None, "asked")]
    assert speed in text_of(RunProgress(windows=windows, per_second=[1.5] * 20))


def test_the_time_since_the_start_is_shown() -> None:
    assert "0 s elapsed" in [line.plain for line in frame(RunProgress(), 80, elapsed=0.2)]
    assert "1 h 2 min elapsed" in [line.plain for line in frame(RunProgress(), 80, elapsed=3725.0)]


def test_the_title_names_facet_list_and_output_and_is_shortened_in_its_middle() -> None:
    named = title({"facet": "countries", "lists": ["/srv/lists/links.csv"], "out": "/srv/lake/dt=2026-11-23"})
    assert named == "countries of links.csv → /srv/lake/dt=2026-11-23"
    short = next(frame(RunProgress(), 30, named)).plain
    assert (len(short), short[-13:]) == (29, "dt=2026-11-23")
    assert title({"facet": "referrers", "lists": ["a", "b", "c"], "out": "-"}) == "referrers of a and 2 more"
    assert title({"facet": "referrers", "lists": [], "out": "lake\x1b[2J"}) == "referrers of links → lake\\u001b[2J"
