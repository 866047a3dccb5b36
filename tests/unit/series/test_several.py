"""Several runs of one command: what stops all of them, what stops one, and how they are added up."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harvester.bearer import Token
from harvester.bitly.query import Query
from harvester.budget.limits import RequestedLimits
from harvester.cli.exit_codes import EXIT_CODES, most_urgent
from harvester.client.client import ClientSettings
from harvester.dataset.journal import PartLimits
from harvester.errors import DatasetBusy
from harvester.events import RunObserver, RunOutcome
from harvester.progress import AttemptCounts, ListCounts, RefreshCounts, RunProgress
from harvester.run.assembly import Job
from harvester.series.combined import combined
from harvester.series.several import FOR_EVERYBODY, Ended, run_all
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from tests.support.commands import TOKEN
from tests.support.in_process import Listener

COMPLETE = RunOutcome(complete=True, stop=None, status=RunProgress())


def job_of(folder: Path, facet: str, day: int) -> Job:
    return Job(
        sources=[],
        token=Token(lambda: TOKEN),
        out=f"{facet}-{day}",
        work_dir=None,
        query=Query(facet, "day", 1, f"2026-11-0{day}T00:00:00Z", 50),
        pin_reference=False,
        limits=RequestedLimits(),
        client_settings=ClientSettings("http://127.0.0.1:9/v4", 5, attempts=1, timeout_seconds=1.0),
        parts=PartLimits(1, 1),
        state_dir=str(folder),
    )


async def ran(folder: Path, stops: dict[str, Stop | Exception], shutdown: ShutdownSignal | None = None) -> list[Ended]:
    """Run two facets on three days, of which some end as it is said; those that do not, end when all are stopped."""
    waits = any(isinstance(stop, Stop) and stop.reason in FOR_EVERYBODY for stop in stops.values())

    async def run(job: Job, shutdown: ShutdownSignal, observer: RunObserver) -> RunOutcome:
        stop = stops.get(job.out)
        if isinstance(stop, Exception):
            raise stop
        if stop is not None:
            shutdown.request(stop)
        elif waits:
            await shutdown.wait()
        return replace(COMPLETE, complete=shutdown.stop is None, stop=shutdown.stop)

    rounds = [[job_of(folder, facet, day) for facet in ("referrers", "countries")] for day in (1, 2, 3)]
    return await run_all(rounds, run, shutdown or ShutdownSignal(), Listener())


async def test_all_are_run_a_round_after_another(tmp_path: Path) -> None:
    ended = await ran(tmp_path, {})
    assert [each.job.out for each in ended] == [
        f"{facet}-{day}" for day in (1, 2, 3) for facet in ("referrers", "countries")
    ]
    assert all(each.outcome.complete for each in ended)


@pytest.mark.parametrize("reason", sorted(FOR_EVERYBODY))
async def test_what_concerns_everybody_stops_all(tmp_path: Path, reason: StopReason) -> None:
    ended = await ran(tmp_path, {"countries-1": Stop(reason, "why")})
    assert [(each.job.out, each.stop and each.stop.reason) for each in ended] == [
        ("referrers-1", reason),
        ("countries-1", reason),
    ]


@pytest.mark.parametrize(
    "why",
    [Stop(StopReason.PLAN_REFUSED, "no"), Stop(StopReason.OUTPUT, "full"), DatasetBusy("busy"), RuntimeError("a bug")],
    ids=["plan", "output", "busy", "bug"],
)
async def test_what_concerns_a_facet_stops_it_alone_and_for_later_periods(
    tmp_path: Path, why: Stop | Exception
) -> None:
    ended = await ran(tmp_path, {"countries-2": why})
    assert [each.job.out for each in ended] == [
        "referrers-1",
        "countries-1",
        "referrers-2",
        "countries-2",
        "referrers-3",
    ]
    assert [each.job.out for each in ended if each.stop] == ["countries-2"]


async def test_a_command_that_is_stopped_between_rounds_is_not_complete(tmp_path: Path) -> None:
    shutdown = ShutdownSignal()
    shutdown.request(Stop(StopReason.SIGNAL, "SIGTERM"))
    (only,) = await ran(tmp_path, {}, shutdown)
    assert (only.begun, only.outcome.complete, only.stop and only.stop.reason) == (False, False, StopReason.SIGNAL)


def test_the_exit_code_is_the_one_that_asks_for_most() -> None:
    order = (1, 8, 2, 6, 4, 7, 5, 9, 3, 0)
    assert sorted(order) == sorted(EXIT_CODES)
    for place, code in enumerate(order):
        assert most_urgent(order[place:]) == code
    assert most_urgent([]) == 0


def test_progress_adds_up_calls_and_counts_the_list_once() -> None:
    listed = ListCounts(lines=12, links=10, invalid=2)
    done = RunProgress(listed=listed, read_to_end=True, rows=9, refused=1, attempts=AttemptCounts(total=11, retried=1))
    end = datetime(2026, 11, 27, tzinfo=UTC)
    going = RunProgress(
        listed=listed, read_to_end=True, rows=2, pending=8, per_second=[1.0, 3.0], ends=end, attempts=AttemptCounts(2)
    )
    found = combined([done, going], to_come=1)
    assert (found.rows, found.refused, found.pending, found.attempts.total, found.attempts.retried) == (11, 1, 8, 13, 1)
    assert (found.listed, found.outputs, found.remaining, found.read_to_end) == (listed, 3, 18, False)
    assert (found.per_second, found.ends) == ([1.0, 3.0], None)
    assert (combined([done, going]).remaining, combined([done, going]).ends) == (8, end)
    assert combined([], 3).remaining is None or combined([], 3).remaining == 0


def test_the_ages_of_answers_add_up_once_each_run_knows_its_own() -> None:
    one = RunProgress(refresh=RefreshCounts(3600.0, 5, 1, 4, "2026-11-02T00:00:00Z"), first=2, refreshed=1)
    other = RunProgress(refresh=RefreshCounts(3600.0, 0, 10, 0, "2026-11-01T00:00:00Z"))
    assert combined([one, other]).ages == RefreshCounts(3600.0, 3, 14, 3, "2026-11-01T00:00:00Z")
    assert combined([one, other], to_come=1).ages is None
    assert combined([one, RunProgress(refresh=RefreshCounts(3600.0))]).ages is None
    assert combined([one, RunProgress()]).ages is None
