"""The end of a run in words: what came, what it cost, what to do next."""

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from harvester.events import RunOutcome
from harvester.progress import AttemptCounts, ListCounts, RefreshCounts, RunProgress, WindowState, duration
from harvester.reporting.summary import refusals_in_words, summary
from harvester.shutdown import Stop, StopReason

MONTH = WindowState("month", 5000, 1000, datetime(2026, 12, 1, tzinfo=UTC), "asked")


def told(status: RunProgress, stop: Stop | None = None, *, complete: bool = False, out: str = "lake") -> list[str]:
    return summary(RunOutcome(complete, stop, status), out, 125.0).split("\n")


def test_a_good_run_says_what_came_what_it_cost_and_where_it_is() -> None:
    status = RunProgress(
        listed=ListCounts(lines=1300, duplicates=60, invalid=2, links=1236),
        read_to_end=True,
        rows=1234,
        refused=13,
        refused_by=Counter({404: 12, 410: 1, 403: 0}),
        known=1,
        attempts=AttemptCounts(1252, 5, 0, 2),
        windows=[MONTH],
    )
    assert told(status, complete=True) == [
        "✓ finished in 2 min 5 s: every link has an answer",
        "  results   1,234 rows, 13 refused, 0 failed",
        "  refused   404 ×12, 410 ×1",
        "  list      1,300 lines: 1,236 links, 60 repeated; 2 lines are not bitlinks",
        "            1 of 1,236 links was already done",
        "  requests  1,252 for links, of which 5 were retries; 2 to ask Bitly for its limits",
        "  time      2 min 5 s, 10.0 links/s",
        "  month     4,000 of 5,000 requests left; a new month begins 2026-12-01 00:00 UTC",
        "  output    lake",
        "  next      _failures.ndjson lists the refused links, with Bitly's message",
    ]


def test_many_kinds_of_refusals_are_not_all_named() -> None:
    status = RunProgress(refused_by=Counter({400 + number: 20 - number for number in range(9)}))
    assert refusals_in_words(status) == "400 ×20, 401 ×19, 402 ×18, 403 ×17, 404 ×16, 405 ×15, others ×39"


def test_a_refusal_that_is_taken_back_is_a_failure_and_no_reason() -> None:
    status = RunProgress()
    call = SimpleNamespace(previous=None, is_last_try=False, is_due=False)
    status.count_without_row(404, call, refused=True)
    status.count_without_row(503, call, refused=False)
    status.take_back_refusal(404, call)
    assert (status.refused, status.failed, refusals_in_words(status)) == (0, 2, "")


@pytest.mark.parametrize("is_due", [False, True], ids=["never answered", "due"])
def test_a_link_whose_refusal_is_taken_back_is_as_old_as_before_until_it_is_answered(is_due: bool) -> None:
    status = RunProgress(refresh=RefreshCounts(3600.0, never=5, fresh=5, due=5))
    call = SimpleNamespace(previous=None, is_last_try=False, is_due=is_due)
    status.count_without_row(404, call, refused=True)
    answered = status.ages
    assert answered == RefreshCounts(3600.0, never=5 - (not is_due), fresh=6, due=5 - is_due)
    status.take_back_refusal(404, call)
    assert status.ages == RefreshCounts(3600.0, never=5, fresh=5, due=5)
    status.count_row(call, truncated=False, clipped=False)
    assert status.ages == answered


@pytest.mark.parametrize(
    ("complete", "stop", "mark"),
    [
        (True, None, "✓ "),
        (False, None, "✗ "),
        (False, Stop(StopReason.SIGNAL, "SIGINT was received"), "✗ "),
        (False, Stop(StopReason.CONSUMER_GONE, "nobody reads"), "✓ "),
    ],
    ids=["complete", "failed", "stopped", "pipe closed"],
)
def test_the_first_character_says_success_or_failure(complete: bool, stop: Stop | None, mark: str) -> None:
    assert told(RunProgress(), stop, complete=complete)[0].startswith(mark)


def test_helper_requests_are_counted_by_their_purpose() -> None:
    def requests(*, exports: int, listing: int, links: int = 0) -> list[str]:
        status = RunProgress(attempts=AttemptCounts(links, helper=9), exports=exports, listing=listing)
        return [line for line in told(status) if "requests" in line]

    assert requests(links=1, exports=5, listing=4) == [
        "  requests  1 for links, of which 0 were retries; 5 exports of a group's clicks; 4 to list a group's links"
    ]
    assert requests(exports=1, listing=6) == [
        "  requests  1 export of a group's clicks; 6 to list a group's links; 2 to ask Bitly for its limits"
    ]


def test_one_is_not_many() -> None:
    status = RunProgress(
        listed=ListCounts(lines=1, links=1), read_to_end=True, rows=1, attempts=AttemptCounts(1, 0, 0, 1)
    )
    text = "\n".join(told(status, complete=True))
    for said in ("1 row,", "1 line: 1 link, 0 repeated", "1 for links", "1 to ask Bitly for its limits"):
        assert said in text


def test_of_several_outputs_the_calls_that_were_done_are_counted_and_not_the_links() -> None:
    status = RunProgress(listed=ListCounts(lines=3, links=3), read_to_end=True, rows=7, known=5, outputs=4)
    assert "            5 of 12 calls were already done" in told(status, complete=True)


def test_what_is_said_of_the_list_stands_together_and_the_ages_of_its_answers_behind_it() -> None:
    ages = RefreshCounts(3600.0, never=0, fresh=3, due=0, oldest="2026-11-01T00:00:00Z")
    status = RunProgress(listed=ListCounts(lines=3, links=3), read_to_end=True, known=3, refresh=ages)
    labels = [line.split()[0] for line in told(status, complete=True)[1:] if not line.startswith(" " * 12)]
    assert labels == ["list", "refresh", "output"]


def test_requests_that_were_no_calls_are_told_by_what_they_were_for() -> None:
    status = RunProgress(attempts=AttemptCounts(9, 0, 0, 1 + 42 + 3), exports=1, listing=42)
    (line,) = [line for line in told(status) if "requests" in line]
    assert line.endswith("; 1 export of a group's clicks; 42 to list a group's links; 3 to ask Bitly for its limits")


def test_where_everything_was_known_no_call_was_made() -> None:
    lines = told(RunProgress(listed=ListCounts(lines=3, links=3), read_to_end=True, known=3), complete=True)
    assert lines[0] == "✓ nothing to do: every link has an answer already"
    assert not [line for line in lines if "results" in line or "time" in line]


def test_a_list_without_links_has_nothing_to_do() -> None:
    assert told(RunProgress(read_to_end=True))[0] == "✗ nothing to do: the list has no links"


def test_a_run_that_was_stopped_at_once_says_only_that() -> None:
    assert told(RunProgress(), Stop(StopReason.SIGNAL, "SIGINT was received")) == [
        "✗ stopped: SIGINT was received",
        "  output    lake",
        "  next      nothing was lost; the same command resumes",
    ]


def test_a_spent_month_names_the_day_to_go_on() -> None:
    stop = Stop(StopReason.MONTH_SPENT, "the month is spent", "2026-12-01T00:00:00Z")
    assert "  next      nothing was lost; run the same command again from 2026-12-01 00:00 UTC" in told(
        RunProgress(), stop
    )


@pytest.mark.parametrize("reason", [StopReason.TOKEN_REFUSED, StopReason.OUTPUT, StopReason.INPUT])
def test_what_must_be_mended_is_not_to_be_repeated(reason: StopReason) -> None:
    assert "the same command resumes" not in "\n".join(told(RunProgress(), Stop(reason, "so")))


def test_a_refused_command_is_to_be_changed_before_it_is_run_again() -> None:
    assert told(RunProgress(), Stop(StopReason.NOT_BEGUN, "use --plan core"))[1:] == [
        "  output    lake",
        "  next      nothing was lost; do what the message says, then run it again",
    ]


@pytest.mark.parametrize("reason", [StopReason.PARAMETER_REFUSED, StopReason.WINDOW_MISMATCH])
def test_an_output_that_no_command_continues_has_no_command(reason: StopReason) -> None:
    text = summary(RunOutcome(False, Stop(reason, "so"), RunProgress()), "lake", 1.0, "harvester run links.txt")
    assert "another --out" in text
    assert "command" not in text


def test_failed_calls_are_tried_again_and_those_that_failed_too_often_only_when_asked() -> None:
    status = RunProgress(listed=ListCounts(lines=9, links=9), read_to_end=True, rows=5, failed=3, given_up=1)
    text = "\n".join(told(status))
    assert "finished in 2 min 5 s, but 4 links have failed" in text
    assert "3 links have failed: see _failures.ndjson; the same command tries again" in text
    assert "1 link has failed in three runs: only --retry-failed tries again" in text


def test_rows_that_lack_something_are_counted_with_what_to_do() -> None:
    status = RunProgress(listed=ListCounts(lines=20, links=20), read_to_end=True, rows=20, truncated=19, clipped=1)
    result, *lacking = told(status, complete=True)[1:4]
    assert result == "  results   20 rows, 0 refused, 0 failed"
    assert [line.partition(":")[0] for line in lacking] == [
        "            19 of 20 rows are truncated (Bitly returned as many metrics as were requested)",
        "            1 of 20 rows are clipped (the account's plan keeps a shorter history than was requested)",
    ]
    assert "a larger --size or --max-size, with a new --out, fetches the rest" in lacking[0]


def test_a_filter_keeps_nothing_to_carry_on_with() -> None:
    text = "\n".join(told(RunProgress(), Stop(StopReason.SIGNAL, "SIGINT was received"), out="-"))
    assert "starts over" in text
    assert "  output " not in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (125, "2 min 5 s"),
        (7380, "2 h 3 min"),
        (439200, "5 days 2 h"),
    ],
)
def test_a_time_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_command_that_was_run_is_printed_where_it_is_to_be_run_again() -> None:
    status, command = RunProgress(listed=ListCounts(lines=9, links=9), rows=5), "harvester run 'my list' --out lake"

    def last(status: RunProgress, stop: Stop | None, out: str = "lake") -> str:
        return summary(RunOutcome(not stop, stop, status), out, 1.0, command).splitlines()[-1]

    line = f"  command   {command}"
    assert last(status, Stop(StopReason.SIGNAL, "SIGTERM")) == line
    assert last(RunProgress(listed=ListCounts(lines=9, links=9), failed=1, read_to_end=True), None) == line
    given_up = RunProgress(listed=ListCounts(lines=9, links=9), failed=1, exhausted=1, read_to_end=True)
    assert last(given_up, None) == f"{line} --retry-failed"
    assert last(RunProgress(listed=ListCounts(lines=9, links=9), given_up=1), None) == f"{line} --retry-failed"
    assert last(status, Stop(StopReason.SIGNAL, "SIGTERM"), "-") != line
    assert last(status, Stop(StopReason.CONSUMER_GONE, "gone")) != line
    assert last(status, None) != line
