"""What a person sees while a run goes on: how far it is, and why nothing moves, until when."""

from datetime import UTC, datetime, timedelta

import pytest

from harvester.events import RunOutcome
from harvester.progress import AttemptCounts, InvalidLine, ListCounts, RunProgress, WaitReason
from harvester.reporting import reporter as progress
from harvester.reporting.reporter import Reporter, status_line
from harvester.shutdown import Stop, StopReason


class Time:
    """Stands before the time module: seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def test_a_status_line_names_the_window_that_binds_what_it_holds_and_until_when() -> None:
    until = (datetime.now(UTC) + timedelta(minutes=26)).replace(second=0, microsecond=0)
    line = status_line(RunProgress(rows=1000, waiting=WaitReason("hour", 1000, until)), 600.0)
    assert "1,000 rows" in line
    assert f"waiting for the hour's limit of 1,000, until {until:%Y-%m-%d %H:%M} UTC (in 2" in line


def test_a_status_line_says_what_is_left_and_until_when_where_the_list_was_counted() -> None:
    ends = datetime(2126, 11, 24, 3, 10, tzinfo=UTC)
    status = RunProgress(to_make=12_400, rows=50, refused=5, ends=ends)
    assert "; 12,345 left, until about 2126-11-24 03:10 UTC" in status_line(status, 10.0)
    status.spent = ends - timedelta(hours=2)
    assert "; 12,345 left, the month's calls are used up about 2126-11-24 01:10 UTC" in status_line(status, 1)
    assert "left" not in status_line(RunProgress(rows=50), 10.0)


def test_a_status_line_says_how_attempts_fail_while_nothing_comes_of_them() -> None:
    still = RunProgress(
        trouble="503 " + "x" * 500, per_second=[5.0, 0.0, 0.0, 0.0], waiting=WaitReason("pace", 100, None)
    )
    line = status_line(still, 1.0)
    assert "no good answer lately: 503 xxx" in line
    assert len(line) < 500
    for moving in ([5.0, 0.0, 0.0, 1.0], [0.0]):
        assert "no good answer" not in status_line(RunProgress(trouble="503", per_second=moving), 1.0)
    waits = RunProgress(trouble="503", per_second=[0.0] * 9, waiting=WaitReason("outage", 0, None, "503"))
    assert "no good answer" not in status_line(waits, 1.0)


def test_a_rate_does_not_count_the_time_that_counting_the_list_took(
    time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    observer, status = Reporter(), RunProgress()
    time.seconds = 600.0
    observer.progress(status)
    status.attempts.total = 100
    time.seconds = 660.0
    observer.progress(status)
    assert "100 requests (100/min)" in capsys.readouterr().err


@pytest.mark.parametrize("window", ["pace", "minute", "hour", "month", "throttled", "outage", "connections"])
def test_every_window_has_words_of_its_own(window: str) -> None:
    assert f"waiting for {window}" not in status_line(RunProgress(waiting=WaitReason(window, 0, None)), 1.0)


def test_lines_come_rarer_as_time_goes_by(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    observer, status = Reporter(), RunProgress()
    for second in range(6 * 3600):
        time.seconds = float(second)
        observer.progress(status)
    lines = capsys.readouterr().err.splitlines()
    assert 60 < len(lines) < 120


def test_a_long_wait_is_said_at_once_and_only_once(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    observer, status = Reporter(), RunProgress()
    until = datetime.now(UTC) + timedelta(minutes=50)
    for wobble in range(5):
        time.seconds += 0.5
        status.waiting = WaitReason("hour", 1000, until + timedelta(seconds=wobble))
        observer.progress(status)
    assert capsys.readouterr().err.count("the hour's limit of 1,000") == 1
    status.waiting = WaitReason("hour", 1000, until + timedelta(minutes=60))
    observer.progress(status)
    assert capsys.readouterr().err.count("the hour's limit of 1,000") == 1


def test_short_waits_are_not_said(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    observer, status = Reporter(), RunProgress()
    status.waiting = WaitReason("minute", 100, datetime.now(UTC) + timedelta(seconds=20))
    observer.progress(status)
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing_of_it(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    observer, status = Reporter(quiet=True), RunProgress()
    time.seconds = 1000.0
    status.waiting = WaitReason("hour", 1000, datetime.now(UTC) + timedelta(minutes=50))
    observer.progress(status)
    assert capsys.readouterr().err == ""


def bad_lines(observer: Reporter, count: int) -> None:
    for number in range(1, count + 1):
        observer.invalid(InvalidLine(f"bad {number}", "no slash", "links.txt", number))


def test_bad_lines_are_one_line_with_an_example(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    observer = Reporter()
    bad_lines(observer, 1200)
    observer.progress(RunProgress())
    bad_lines(observer, 5)
    observer.progress(RunProgress())
    observer.close()
    assert capsys.readouterr().err == (
        '1,200 lines so far are not bitlinks, such as: links.txt:1: "bad 1" (no slash); _failures.ndjson lists them\n'
    )


def test_where_no_file_lists_bad_lines_the_first_are_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    observer = Reporter(show_failures=True)
    bad_lines(observer, 25)
    observer.close()
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[1]) == (21, "links.txt:2: not a bitlink: no slash: bad 2")
    assert lines[-1] == "more invalid lines follow; they are only counted here"


@pytest.mark.parametrize(
    ("found", "before", "whole", "told"),
    [(3, 0, True, True), (3, 3, True, False), (3, 3, False, False), (1, 3, False, False), (1, 3, True, True)],
    ids=["new", "the same", "the same so far", "a part", "fewer"],
)
def test_quiet_reports_bad_lines_whose_number_has_changed(
    capsys: pytest.CaptureFixture[str], found: int, before: int, whole: bool, told: bool
) -> None:
    observer = Reporter(quiet=True)
    bad_lines(observer, found)
    status = RunProgress(listed=ListCounts(invalid=found), read_to_end=whole, invalid_before=before)
    observer.ended(RunOutcome(True, None, status), "lake", 0)
    observer.close()
    assert bool(capsys.readouterr().err) is told


def test_a_wait_of_less_than_a_minute_has_its_seconds_and_no_date() -> None:
    waiting = WaitReason("minute", 100, datetime.now(UTC) + timedelta(seconds=20.5))
    assert status_line(RunProgress(waiting=waiting), 1.0).endswith("waiting for the minute's limit of 100, 20 s left")


@pytest.mark.parametrize(
    ("minutes", "told"), [(-1, False), (5, False), (20, True)], ids=["past", "in the wait", "later"]
)
def test_an_estimate_that_is_over_or_inside_of_a_wait_is_not_shown(minutes: int, told: bool) -> None:
    now = datetime.now(UTC)
    waiting = WaitReason("outage", 0, now + timedelta(minutes=10))
    status = RunProgress(to_make=100, ends=now + timedelta(minutes=minutes), waiting=waiting)
    assert ("until about" in status_line(status, 1.0).partition("waiting")[0]) is told


def test_an_attempt_without_a_connection_is_no_request() -> None:
    status = RunProgress(attempts=AttemptCounts(total=5), connecting=5)
    assert "0 requests (0/min)" in status_line(status, 4.0)


@pytest.mark.parametrize("reason", [StopReason.MAX_TIME, StopReason.MAX_CALLS, StopReason.OUTAGE])
def test_quiet_says_nothing_of_a_limit_that_the_user_has_set(
    capsys: pytest.CaptureFixture[str], reason: StopReason
) -> None:
    Reporter(quiet=True).ended(RunOutcome(False, Stop(reason, "x"), RunProgress()), "lake", 0)
    assert bool(capsys.readouterr().err) is (reason is StopReason.OUTAGE)
