"""The history of the runs: entries of a minute, added up where they lie back, under any clock."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.clock import iso_second, seconds_since_1970
from harvester.history import (
    DAY_SECONDS,
    HOUR_SECONDS,
    MINUTE_SECONDS,
    MOST_RUNS,
    History,
    HistoryEntry,
    Recorded,
    RunEntry,
    StoredEntry,
    added_up,
    begun_run,
    errors_in,
    history_to_json,
    recorded_in,
    whole_runs,
    with_limits,
)
from harvester.jsonlines import from_json

MONTH_SECONDS = 30 * DAY_SECONDS
MIDNIGHT = 1_795_824_000 // MONTH_SECONDS * MONTH_SECONDS
MOST_ENTRIES = 25 * 60 + 15 * 24 + 122 + 12
"""In a year: the minutes of a day and an hour, the hours of two weeks, the days of a quarter, and months."""


def done(attempts: int = 1, **more: object) -> HistoryEntry:
    return HistoryEntry("", 0, attempts, **more)  # type: ignore[arg-type]


def read(*stored: StoredEntry) -> Recorded:
    """What the ledger gives back of entries that were stored."""
    return recorded_in((entry.kind, entry.start, entry.text) for entry in stored)


def starts(history: History) -> list[tuple[int, int]]:
    return [(seconds_since_1970(entry.start) - MIDNIGHT, entry.seconds) for entry in history.entries]


def never_overlap(entries: Sequence[HistoryEntry]) -> bool:
    return all(entry.has_own_time for entry in entries) and all(
        seconds_since_1970(one.start) + one.seconds <= seconds_since_1970(other.start)
        for one, other in pairwise(entries)
    )


def test_what_is_done_in_a_minute_is_one_entry() -> None:
    history = History()
    for second in (0, 59.9, 60, 119, 240):
        history.add(MIDNIGHT + second, done(2))
    assert starts(history) == [(0, 60), (60, 60), (240, 60)]
    assert [entry.attempts for entry in history.entries] == [4, 4, 2]


def test_entries_are_added_up_once_they_lie_a_day_two_weeks_and_a_quarter_back() -> None:
    history = History()
    for second in (0, 60, HOUR_SECONDS, DAY_SECONDS):
        history.add(MIDNIGHT + second, done(1, waits={"hour": 2.0}))
    assert starts(history) == [(0, 60), (60, 60), (3600, 60), (DAY_SECONDS, 60)]
    history.add(MIDNIGHT + DAY_SECONDS + HOUR_SECONDS, done())
    assert starts(history)[:2] == [(0, 3600), (3600, 60)]
    assert (history.entries[0].attempts, history.entries[0].waits) == (2, {"hour": 4.0})
    history.add(MIDNIGHT + 15 * DAY_SECONDS, done())
    assert starts(history)[:2] == [(0, DAY_SECONDS), (DAY_SECONDS, HOUR_SECONDS)]
    history.add(MIDNIGHT + 200 * DAY_SECONDS, done())
    assert [seconds for _, seconds in starts(history)] == [MONTH_SECONDS, 60]
    assert sum(entry.attempts for entry in history.entries) == 7


def test_a_year_without_a_pause_leaves_few_entries() -> None:
    history, fortnight = History(), 14 * 24 * 60
    minutes = [*range(0, 350 * 24 * 60, 240), *range(350 * 24 * 60, 350 * 24 * 60 + fortnight)]
    for minute in minutes:
        history.add(MIDNIGHT + 60 * minute, done())
    assert MOST_ENTRIES - 200 < len(history.entries) <= MOST_ENTRIES
    assert sum(entry.attempts for entry in history.entries) == len(minutes)
    assert never_overlap(history.entries)


def test_an_entry_that_waits_for_its_commit_is_written_once_and_in_place_of_those_that_it_adds_up() -> None:
    history = History()
    for minute in (0, 1):
        history.add(MIDNIGHT + 60 * minute, done())
        history.add(MIDNIGHT + 60 * minute, done())
    assert [stored.start - MIDNIGHT for stored in history.take_changed()] == [0, 60]
    assert history.take_changed() == []
    history.add(MIDNIGHT + 120, done())
    history.add(MIDNIGHT + 2 * DAY_SECONDS, done())
    changed = history.take_changed()
    assert [(stored.start - MIDNIGHT, stored.end - MIDNIGHT) for stored in changed] == [
        (0, 3600),
        (2 * DAY_SECONDS, 2 * DAY_SECONDS + 60),
    ]
    assert read(*changed) == (history.entries, (), 0)


def test_a_clock_that_is_set_back_adds_to_the_entry_of_that_time() -> None:
    history = History()
    history.add(MIDNIGHT + 30, done(waits={"pace": 50.0}))
    history.add(MIDNIGHT + 90, done())
    history.add(MIDNIGHT + 10, done(waits={"pace": 30.0, "hour": 20.0}))
    assert starts(history) == [(0, 60), (60, 60)]
    assert history.entries[0].attempts == 2
    assert history.entries[0].waits == {"pace": 48.0, "hour": 12.0}  # the minute has 60 s, though 100 were waited
    history.add(MIDNIGHT + 3 * DAY_SECONDS, done())
    history.add(MIDNIGHT + 600, done())
    assert starts(history)[0] == (0, 3600)
    assert history.entries[0].attempts == 4


def test_a_clock_that_was_years_ahead_for_a_while_leaves_one_entry_there() -> None:
    history = History()
    for minute in range(100):
        history.add(MIDNIGHT + 3000 * DAY_SECONDS + 60 * minute, done())
    history.add(MIDNIGHT, done())
    assert len(history.entries) == 2
    assert (history.entries[1].seconds, history.entries[1].attempts) == (MONTH_SECONDS, 100)
    history.add(MIDNIGHT + 60, done())
    assert starts(history)[:2] == [(0, 60), (60, 60)]


@given(st.lists(st.tuples(st.integers(0, 4_000_000_000), st.integers(1, 200)), max_size=12))
def test_under_any_clock_entries_never_overlap_and_lose_nothing(jumps: list[tuple[int, int]]) -> None:
    history, kept, attempts = History(), dict[int, tuple[int, str]](), 0
    for at, minutes in jumps:
        for minute in range(minutes):
            history.add(at + 60.0 * minute, done())
        attempts += minutes
        for _, start, end, text in history.take_changed():  # as the ledger does it
            kept = {other: row for other, row in kept.items() if not start <= other < end}
            kept[start] = (end, text)
    assert never_overlap(history.entries)
    assert sum(entry.attempts for entry in history.entries) == attempts
    assert recorded_in(("time", start, text) for start, (_, text) in sorted(kept.items())).times == history.entries


def test_of_entries_that_overlap_the_longer_and_then_the_fuller_count() -> None:
    hour, minute = (added_up([done(attempts)], MIDNIGHT, s) for s, attempts in ((3600, 9), (60, 1)))
    later = [added_up([done(attempts)], MIDNIGHT + 7200, 60) for attempts in (3, 2)]
    assert History([minute, hour, *later]).entries == (hour, later[0])


def test_the_last_limits_count_where_entries_are_added_up() -> None:
    limits: Iterable[dict[str, int]] = ({"minute": 100}, {"minute": 50, "hour": 900})
    assert added_up([done(limits=each) for each in limits], MIDNIGHT, 60).limits == {"minute": 50, "hour": 900}


@pytest.mark.parametrize(
    "change",
    [
        {"start": "2026-11-27T20:16:01Z"},
        {"start": "2026-11-27T20:16:00"},
        {"start": "yesterday"},
        {"seconds": 61},
        {"seconds": 3600},
        {"attempts": -1},
        {"attempts": "3"},
        {"waits": {"hour": "long"}},
        {"limits": [100]},
    ],
)
def test_an_entry_of_another_form_is_counted_as_unreadable(change: dict[str, object]) -> None:
    entry = HistoryEntry("2026-11-27T20:16:00Z", 60, 5, waits={"hour": 3.5}, limits={"minute": 100})
    assert read(entry.stored) == ((entry,), (), 0)
    assert recorded_in([("time", 0, orjson.dumps(entry.to_json() | change))]) == ((), (), 1)


@pytest.mark.parametrize(
    "change",
    [{"number": 0}, {"number": -1}, {"number": "7"}, {"runs": 0}, {"runs": 9}, {"started": "then"}, {"until": None}],
)
def test_a_run_of_another_form_is_counted_as_unreadable(change: dict[str, object]) -> None:
    run = RunEntry(7, "2026-11-27T20:16:01Z", "2026-11-27T20:16:02Z", 2, 5, not_sent=1)
    assert read(run.stored) == ((), (run,), 0)
    assert recorded_in([("run", 0, orjson.dumps(run.to_json() | change))]) == ((), (), 1)


def test_what_is_no_json_object_is_no_entry() -> None:
    rows = [("time", 0, text) for text in ("", "{", "[]", "null", b"\xff")]
    assert recorded_in([*rows, ("another", 0, "{}"), (None, 0, 7)]) == ((), (), 7)


def test_runs_are_one_entry_each_and_the_oldest_of_many_are_one_together() -> None:
    kept = dict[int, StoredEntry]()
    for number in range(1, MOST_RUNS + 51):
        runs = read(*(kept[start] for start in sorted(kept))).runs
        for stored in begun_run(runs, number):  # as the ledger does it
            kept = {start: entry for start, entry in kept.items() if not stored.start <= start < stored.end}
            kept[stored.start] = stored
        began = read(kept[number]).runs[0]
        kept[number] = RunEntry(number, began.started, began.until, attempts=number, answers=1).stored
    runs = read(*(kept[start] for start in sorted(kept))).runs
    assert (runs[0].first, runs[0].number, runs[0].runs, runs[0].answers) == (1, 50, 50, 50)
    assert [run.number for run in runs[1:]] == list(range(51, MOST_RUNS + 51))
    assert sum(run.attempts for run in runs) == sum(range(1, MOST_RUNS + 51))
    assert sum(len(orjson.dumps(run.to_json())) + 6 for run in runs) < 40_000


def test_of_runs_that_overlap_those_of_more_runs_and_then_the_fuller_count() -> None:
    moment = "2026-11-27T20:16:01Z"
    older = [RunEntry(number, moment, moment, attempts=2) for number in range(1, 7)]
    together = RunEntry(3, moment, moment, 3, attempts=6)
    fuller = RunEntry(5, moment, moment, attempts=9)
    found = whole_runs([*older, together, fuller, RunEntry(2, moment, moment, 2, attempts=4)])
    assert found == (together, older[3], fuller, older[5])


def test_an_attempt_that_was_not_sent_is_no_error_of_a_request() -> None:
    assert errors_in(done(server_errors=2, network_errors=5, not_sent=3)) == 4


def test_counts_of_nothing_are_left_out() -> None:
    history = History()
    history.add(MIDNIGHT, done(0, waits={"list": 1.5}))
    assert history.entries[0].to_json() == {
        "start": iso_second(MIDNIGHT),
        "seconds": MINUTE_SECONDS,
        "waits": {"list": 1.5},
    }


def test_limits_that_do_not_change_are_left_out_and_put_back() -> None:
    history = History()
    for minute, limits in enumerate(({}, {"minute": 100}, {"minute": 100}, {}, {}, {"hour": 5})):
        history.add(MIDNIGHT + 60 * minute, done(limits=limits))
    found = history_to_json(history.entries)
    assert [entry.get("limits") for entry in found] == [None, {"minute": 100}, None, {}, None, {"hour": 5}]
    with_limits(found)
    assert from_json(tuple[HistoryEntry, ...], found) == history.entries


@pytest.mark.parametrize("value", [None, 7, {}, [1, {"limits": 3}, {}]])
def test_limits_are_put_back_into_nothing_else(value: object) -> None:
    with_limits(value)


@pytest.mark.parametrize(("every", "most_bytes"), [(5, 300_000), (1, 400_000)])
def test_six_weeks_without_a_pause_take_little_of_the_manifest(every: int, most_bytes: int) -> None:
    """Errors and throttled answers come every few minutes, or in every minute."""
    history, trouble = History(), {"failed": 3, "throttled": 1, "server_errors": 12, "retries": 13}
    for minute in (*range(0, 40 * 24 * 60, 60), *range(40 * 24 * 60, 42 * 24 * 60)):
        waits, limits = {"pace": 12.345}, {"minute": 100 - minute // 30 % 2, "hour": 1000}
        counts = trouble if minute % every == 0 else {}
        history.add(MIDNIGHT + 60 * minute, done(100, answers=95, waits=waits, limits=limits, **counts))
    assert sum(len(orjson.dumps(entry)) + 6 for entry in history_to_json(history.entries)) < most_bytes
