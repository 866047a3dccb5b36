"""How runs went, as the report sums it up."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harvester.bitly.query import query_for
from harvester.dataset.manifest import BudgetReport, DatasetCounts, Invocation, Rate, Stopped, WindowUsage
from harvester.history import HistoryEntry, RunEntry
from harvester.progress import AttemptCounts
from harvester.reports import runs
from harvester.reports.report import sections_of
from harvester.sums.figures import Sums
from harvester.sums.sources import Source, sources_at
from tests.support.made_outputs import NOW, make_output

QUERY = query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
START = datetime(2026, 11, 20, tzinfo=UTC)


def moment(minute: int) -> str:
    return (START + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")


def entry(minute: int, seconds: int = 60, **counts: Any) -> HistoryEntry:
    return HistoryEntry(moment(minute), seconds, **counts)


def source(tmp_path: Path, *history: HistoryEntry, **changes: Any) -> Source:
    out = make_output(tmp_path / f"out-{len(list(tmp_path.iterdir()))}", QUERY, [], **changes)
    (found,) = sources_at(str(out), [str(out)]).found
    names = type(found.manifest).__dataclass_fields__
    content = SimpleNamespace(**{name: getattr(found.manifest, name) for name in names} | {"history": history})
    return replace(found, manifest=cast("Any", content))


def test_what_was_sent_is_held_against_what_came(tmp_path: Path) -> None:
    counts = DatasetCounts(
        calls=95, rows=80, refused=10, failed=5, pending=0, truncated=0, clipped=0, idle=8, refreshed=3
    )
    attempts = AttemptCounts(total=100, retried=9, throttled=2, helper=4)
    made = [source(tmp_path, dataset=counts, attempts=attempts) for _ in range(2)]
    found = runs.costs_of(made)
    assert found == (200, 2 * (80 + 10 + 3 - 8), 18, 4, 8)
    assert found.wasted == 30


def test_the_month_is_that_of_the_last_manifest_and_is_spent_at_its_pace(tmp_path: Path) -> None:
    month = WindowUsage("month", 1000, 400, 600, "2026-12-01T00:00:00Z", "asked")
    budget = BudgetReport("mine", "0a", None, (month,))
    old = source(tmp_path, updated="2026-11-22T00:00:00Z", budget=replace(budget, windows=(replace(month, used=1),)))
    now = Invocation(2, NOW, None, (), 100, None, Rate(100, 3600.0))
    going_on = source(tmp_path, budget=budget, invocation=now, ended=None, complete=False, remaining=5000)
    (found,) = runs.months_of([going_on, old])
    assert (found.account, found.used, found.limit) == ("mine", 400, 1000)
    assert found.spent == datetime(2026, 11, 23, 12, 0, 1, tzinfo=UTC)
    few = source(tmp_path, budget=budget, invocation=now, ended=None, complete=False, remaining=52)
    assert runs.months_of([few])[0].spent is None  # the list ends before the month's room does
    slow = source(tmp_path, budget=budget, invocation=replace(now, rate=Rate(1, 3600.0)), ended=None, complete=False)
    assert runs.months_of([slow])[0].spent is None
    assert runs.months_of([old])[0].spent is None  # it has ended
    assert runs.months_of([source(tmp_path)]) == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "complete"),
        (
            {"complete": False, "stopped": Stopped("signal", "SIGTERM was received", None)},
            "stopped: SIGTERM was received",
        ),
        ({"complete": False}, "ended, the list was not read to its end"),
        ({"complete": False, "dataset": DatasetCounts(9, 5, 0, 1, 3, 0, 0)}, "ended, with calls left"),
        ({"complete": False, "ended": None}, "running, or interrupted"),
    ],
)
def test_the_state_of_an_output_in_words(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert runs.state_of(source(tmp_path, **changes).manifest) == expected


def test_minutes_are_added_up_over_outputs_and_attempts_are_never_lost(tmp_path: Path) -> None:
    first = [
        entry(
            0,
            attempts=90,
            answers=80,
            throttled=4,
            server_errors=3,
            retries=7,
            limits={"minute": 100},
            waits={"pace": 9.5},
        ),
        entry(2, attempts=10, answers=2, network_errors=50, not_sent=44, waits={"outage": 30.0}),
    ]
    of_runs = (
        RunEntry(1, moment(0), moment(1), attempts=90, answers=80, throttled=4, server_errors=3, retries=7),
        RunEntry(2, moment(1), moment(2), attempts=10, answers=2, network_errors=50, not_sent=44),
    )
    both = [
        source(tmp_path, *first, runs=of_runs),
        source(tmp_path, entry(0, attempts=10, answers=10, limits={"hour": 1000})),
    ]
    found = runs.history_of(both)
    assert found is not None
    assert found.seconds == 60
    assert sum(point.value for point in found.points) == pytest.approx(110)
    by_name = {name: [p.value for p in found.points if p.series == name] for name in runs.SERIES}
    assert by_name == {
        "answers": [90, 0, 2, 0],
        "throttled": [4, 0, 0, 0],
        "errors": [3, 0, 6, 0],
        "other": [3, 0, 2, 0],
    }
    assert (found.waits, found.limits) == ({"pace": 9.5, "outage": 30.0}, {"minute": 100, "hour": 1000})
    start, end = "2026-11-20T00:00:00+00:00", "2026-11-20T00:03:00+00:00"
    expected = [(start, 100, "minute"), (start, 1000 / 60, "hour"), (end, 100, "minute"), (end, 1000 / 60, "hour")]
    assert [*found.ceilings] == expected
    assert [(run.number, run.attempts, run.errors) for run in runs.runs_of(both)] == [(1, 90, 3), (2, 10, 6)]
    assert sum(run.errors for run in runs.runs_of(both)) == sum(by_name["errors"])
    assert runs.history_of([source(tmp_path)]) is None


def test_an_outcome_that_comes_a_minute_after_its_request_is_nothing_other(tmp_path: Path) -> None:
    history = [entry(0, attempts=10, answers=6), entry(1, attempts=5, answers=9), entry(2, attempts=3, answers=1)]
    found = runs.history_of([source(tmp_path, *history)])
    assert found is not None
    assert [point.value for point in found.points if point.series == "other"] == [0, 0, 2, 0]


def test_outages_are_known_by_their_time(tmp_path: Path) -> None:
    waits = [{"outage": 50.0}, {"outage": 60.0, "pace": 1.0}, {"pace": 3.0}, {"outage": 12.0}]
    made = source(tmp_path, *(entry(minute, attempts=9, waits=waited) for minute, waited in enumerate(waits)))
    found = runs.history_of([made])
    assert found is not None
    assert [*found.outages.values()] == [50.0, 60.0, 12.0]
    first, second = found.shaded
    assert (first.start, first.end) == ("2026-11-20T00:00:00+00:00", "2026-11-20T00:02:00+00:00")
    assert second.start == "2026-11-20T00:03:00+00:00"
    sections = {each.title: each for each in sections_of([made], Sums("referrers", (), (), {}, ()))}
    pace = sections["Requests a minute"]
    assert "Shaded: the server did not answer (an outage), 2 min 2 s in all." in pace.figures[0].caption
    assert pace.tables[0].columns[-1].title == "Outage, seconds"
    assert [line[-1] for line in pace.tables[0].lines] == ["50", "60", "0", "12"]


def test_hours_and_days_are_spread_over_their_time_in_a_bounded_number_of_points(tmp_path: Path) -> None:
    entries = [entry(1440 * day, 86400, attempts=1440, answers=1440) for day in range(60)]
    entries += [entry(1440 * 60 + minute, attempts=2, answers=1) for minute in range(120)]
    found = runs.history_of([source(tmp_path, *entries)])
    assert found is not None
    moments = {point.moment for point in found.points}
    assert 200 <= len(moments) <= 242
    total = sum(point.value for point in found.points) * found.seconds / 60
    assert total == pytest.approx(60 * 1440 + 240)


def test_the_sections_say_how_the_run_went(tmp_path: Path) -> None:
    history = [
        entry(minute, attempts=100, answers=90, throttled=minute % 7, waits={"minute": 20.0}) for minute in range(60)
    ]
    of_runs = (RunEntry(9, moment(0), moment(30), 9), RunEntry(10, moment(30), moment(60)))
    limited = replace(history[-1], limits={"minute": 100, "hour": 1000, "month": 50_000})
    made = source(tmp_path, *history[:-1], limited, runs=of_runs)
    sections = {
        each.title: each for each in sections_of([made], Sums("referrers", (), (), {}, ("something was left out",)))
    }
    pace = sections["Requests a minute"]
    assert pace.sentences[0] == "Limits in the end: 100 a minute, 1,000 an hour."
    assert "Other requests were answered and ended no call" in pace.sentences[1]
    assert "Broken lines: the minute's limit and the hour's limit, by the minute." in pace.figures[0].caption
    assert len(pace.tables[0].lines) == 60
    assert sections["What runs waited for"].figures[0].caption == "20 min in all, most of it for the minute's limit."
    assert [line[0] for line in sections["Runs, one after another"].tables[0].lines] == ["1–9", "10"]
    assert sections["What is not in these sums"].sentences == ["something was left out."]
