"""What a run records of itself in the history, under a clock that the test sets."""

import pytest

from harvester.budget.limits import Limits
from harvester.clock import iso_second
from harvester.history import Activity, HistoryEntry, Recorded, RunEntry, StoredEntry, recorded_in
from harvester.run.recorder import Recorder

BEGAN = 1_795_824_000 // 60 * 60
LIMITS = Limits(100, 1000, 0)
IN_WORDS = {"minute": 100, "hour": 1000}


class Clocks:
    """A wall clock that may be set, and one that only goes on."""

    def __init__(self) -> None:
        self.wall, self.steady = float(BEGAN), 7.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def recorder(clocks: Clocks, kept: Recorded | None = None, invocation: int = 1) -> Recorder:
    return Recorder(kept or Recorded(), invocation, lambda: clocks.wall, lambda: clocks.steady)


def read(stored: list[StoredEntry]) -> Recorded:
    """What the ledger gives back of entries that were stored."""
    return recorded_in((entry.kind, entry.start, entry.text) for entry in stored)


def test_what_was_done_since_the_last_look_belongs_to_the_present_minute(clocks: Clocks) -> None:
    found = recorder(clocks)
    found.see(Activity(attempts=10, answers=8), None, LIMITS)
    clocks.pass_by(60)
    found.see(Activity(attempts=15, answers=9, failed=1, retries=4), None, LIMITS)
    assert found.entries == (
        HistoryEntry(iso_second(BEGAN), 60, 10, 8, limits=IN_WORDS),
        HistoryEntry(iso_second(BEGAN + 60), 60, 5, 1, failed=1, retries=4, limits=IN_WORDS),
    )


def test_only_seconds_in_which_nothing_was_sent_are_waits(clocks: Clocks) -> None:
    found = recorder(clocks)
    for attempts, waiting in ((1, "pace"), (1, "pace"), (2, "pace"), (2, "hour"), (2, "hour"), (2, None)):
        clocks.pass_by(1)
        found.see(Activity(attempts), waiting, LIMITS)
    assert found.entries[0].waits == {"pace": 1.0, "hour": 2.0}


def test_a_commit_between_two_looks_hides_no_attempt_from_the_next(clocks: Clocks) -> None:
    found = recorder(clocks)
    clocks.pass_by(0.5)
    found.take_changed(Activity(1), LIMITS)
    clocks.pass_by(0.5)
    found.see(Activity(1), "pace", LIMITS)
    assert found.entries[0].waits == {}


def test_a_minute_in_which_nothing_happens_has_no_entry(clocks: Clocks) -> None:
    found = recorder(clocks)
    for _ in range(300):
        clocks.pass_by(1)
        found.see(Activity(), None, LIMITS)
    assert found.entries == ()
    assert read(found.take_changed(Activity(), LIMITS)).times == ()


def test_a_wait_without_a_commit_is_kept_for_the_next_one_and_takes_little_memory(clocks: Clocks) -> None:
    found = recorder(clocks)
    for _ in range(10 * 24 * 60):
        clocks.pass_by(60)
        found.see(Activity(), "reader", LIMITS)
    changed = found.take_changed(Activity(), LIMITS)
    assert len(changed) < 10 * 24 + 25 * 60
    assert sum(entry.waits["reader"] for entry in read(changed).times) == pytest.approx(10 * 86400)


def test_a_count_that_goes_back_is_waited_for(clocks: Clocks) -> None:
    found = recorder(clocks)
    for answers in (5, 3, 4, 5, 7):
        clocks.pass_by(60)
        found.see(Activity(answers=answers), None, LIMITS)
    assert [entry.answers for entry in found.entries] == [5, 2]


def test_the_next_run_adds_to_what_was_committed(clocks: Clocks) -> None:
    found = recorder(clocks)
    clocks.pass_by(10)
    found.see(Activity(5), None, LIMITS)
    committed = found.take_changed(Activity(5), LIMITS)
    found.see(Activity(9), None, LIMITS)  # killed before the next commit
    resumed = recorder(clocks, read(committed), invocation=2)
    resumed.see(Activity(3), None, LIMITS)
    assert resumed.entries == (HistoryEntry(iso_second(BEGAN), 60, 8, limits=IN_WORDS),)
    assert len(read(resumed.take_changed(Activity(3), LIMITS)).times) == 1


def test_runs_of_one_minute_have_their_own_counts_start_and_end(clocks: Clocks) -> None:
    found = recorder(clocks)
    clocks.pass_by(10)
    committed = found.take_changed(Activity(5, answers=4), LIMITS)
    clocks.pass_by(10)
    found.see(Activity(9), None, LIMITS)  # killed before the next commit
    clocks.pass_by(10)
    resumed = recorder(clocks, read(committed), invocation=2)
    clocks.pass_by(5)
    resumed.see(Activity(3), None, LIMITS)
    assert resumed.runs == (
        RunEntry(1, iso_second(BEGAN), iso_second(BEGAN + 10), attempts=5, answers=4),
        RunEntry(2, iso_second(BEGAN + 30), iso_second(BEGAN + 35), attempts=3),
    )


def test_a_run_that_sends_nothing_has_its_start_and_end(clocks: Clocks) -> None:
    found = recorder(clocks)
    clocks.pass_by(100)
    assert read(found.take_changed(Activity(), LIMITS)).runs == (
        RunEntry(1, iso_second(BEGAN), iso_second(BEGAN + 100)),
    )
    clocks.wall -= 7200
    assert found.runs[0].until == iso_second(BEGAN)


def test_a_clock_that_is_set_changes_no_wait(clocks: Clocks) -> None:
    found = recorder(clocks)
    for step in (0, 7200, 0, -7200, -86400 * 40, 0):
        clocks.pass_by(1)
        clocks.wall += step
        found.see(Activity(), "outage", LIMITS)
    assert sum(sum(entry.waits.values()) for entry in found.entries) == 6.0
    assert [entry.start for entry in found.entries] == sorted({entry.start for entry in found.entries})


def test_limits_are_those_at_the_end_of_the_time(clocks: Clocks) -> None:
    found = recorder(clocks)
    found.see(Activity(1), None, LIMITS)
    found.see(Activity(2), None, Limits(50, 500, 1000))
    assert found.entries[0].limits == {"minute": 50, "hour": 500, "month": 1000}
