"""`--refresh`: links without an answer first, then those whose answer is oldest, each with a row of its own."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harvester.bitly.query import Query
from harvester.clock import utc_iso
from harvester.dataset.opening import peek
from harvester.events import RunOutcome
from harvester.planning.planner import _attempts_per_call
from harvester.rows.call import CallState, Known
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.rows.schema import Shape
from harvester.sandbox.groups import LARGE, SMALL, link_of
from harvester.shutdown import StopReason
from harvester.storage.folders import resolve
from harvester.verify.repair import repair
from harvester.verify.verify import output_at, verify
from harvester.worklist.refresh import Refresh, RequestedRefresh, was_answered
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, TOKEN
from tests.support.in_process import command, harvest
from tests.support.output_checks import failures, manifest, public, rows
from tests.support.s3_server import Case, rows_in

BEGIN = datetime(2026, 11, 1, 6, tzinfo=UTC)
DAY = 86400.0
FORMS = pytest.mark.parametrize("form", ["out", "results.ndjson"])
NAMES = [f"ok-{number}" for number in range(8)]


class Days:
    """Runs of one dataset, each on a day of its own."""

    def __init__(self, url: str, folder: Path, form: str = "out") -> None:
        self.url, self.folder, self.out = url, folder, folder / form

    async def run(
        self, day: float, names: Sequence[str], age: float | None = 30, *, prefer_active: bool = False, **changes: Any
    ) -> RunOutcome:
        """Run on a day with an age in days; None without --refresh."""
        reference = f"{BEGIN + timedelta(days=day):%Y-%m-%dT%H:%M:%SZ}"
        query = Query("referrers", "day", -1, reference, 50)
        refresh = None if age is None else RequestedRefresh(age * DAY, prefer_active)
        changes = {"query": query, "refresh": refresh, "out": str(self.out), **changes}
        return await harvest(self.url, self.folder, names, **changes)

    def asked(self, since: int = 0) -> list[str]:
        """The links of the rows in the order in which they were asked for."""
        return [row["bitlink"].removeprefix("bit.ly/") for row in rows(self.out)[since:]]

    def check(self) -> None:
        found, all_rows = verify(output_at(str(self.out))), rows(self.out)
        assert (found.problems, found.ledger_checked) == ([], True)
        assert len({row["record_id"] for row in all_rows}) == len(all_rows)
        counts = manifest(self.out)["dataset"]
        assert counts["rows"] + counts["refreshed"] >= len(
            {(row["bitlink"], row["unit_reference"]) for row in all_rows}
        )


@FORMS
async def test_an_answer_is_asked_for_again_when_it_is_due_and_has_a_row_of_its_own(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    days = Days(serve().url, tmp_path, form)
    for day, complete in ((0, 8), (29, 8), (30, 16), (31, 16)):
        outcome = await days.run(day, NAMES)
        assert outcome.complete
        assert (public(days.out) / "_SUCCESS").exists()
        assert len(rows(days.out)) == complete
        days.check()
    assert Counter(days.asked()) == dict.fromkeys(NAMES, 2)
    counts = manifest(days.out)["dataset"]
    assert (counts["calls"], counts["rows"], counts["refreshed"]) == (8, 8, 8)
    references = Counter(row["unit_reference"] for row in rows(days.out))
    assert references == {"2026-11-01T06:00:00Z": 8, "2026-12-01T06:00:00Z": 8}


async def test_new_links_come_first_then_the_oldest_answers_and_removed_links_are_left(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    days = Days(serve().url, tmp_path)
    settings = _one_connection(days.url)
    await days.run(0, ["b", "a"], client_settings=settings)
    await days.run(1, ["b", "a", "c", "d"], client_settings=settings)
    before = len(rows(days.out))
    outcome = await days.run(40, ["d", "new-1", "b", "c", "new-2", "d"], client_settings=settings)
    assert outcome.complete
    assert days.asked(before) == ["new-1", "new-2", "b", "d", "c"]
    days.check()
    ages = manifest(days.out)["refresh"]
    assert (ages["never"], ages["fresh"], ages["due"]) == (0, 5, 0)
    assert ages["oldest"] == "2026-12-11T06:00:00Z"


async def test_idle_links_are_refreshed_by_an_export_and_the_others_by_a_call(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve(links=60)
    days, names = Days(served.url, tmp_path), [link_of(LARGE, n)["id"].removeprefix("bit.ly/") for n in range(60)]
    idle = sum("idle" in name for name in names)
    for day, refreshed in ((0, 0), (10, 0), (40, 60)):
        outcome = await days.run(day, names, skip_idle=True, in_group=LARGE)
        assert (outcome.complete, outcome.status.pending, outcome.status.repeated) == (True, 0, 0)
        counts = manifest(days.out)["dataset"]
        assert (counts["rows"], counts["refreshed"]) == (60, refreshed)
        assert idle <= counts["idle"] < 60
        ages = manifest(days.out)["refresh"]
        assert (ages["never"], ages["fresh"], ages["due"]) == (0, 60, 0)
        days.check()
    assert sum(served.sandbox.requests.values()) == 2 * (60 - manifest(days.out)["dataset"]["idle"])
    assert len(served.sandbox.exported) == 2
    assert Counter(days.asked()) == dict.fromkeys(names, 2)


def _one_connection(url: str) -> Any:
    from harvester.client.client import ClientSettings  # noqa: PLC0415

    return ClientSettings(url, 1, attempts=5, timeout_seconds=10.0, backoff_seconds=0.01)


async def test_a_run_that_ends_before_all_are_refreshed_is_not_complete_and_the_next_goes_on_with_the_oldest(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    days = Days(serve().url, tmp_path)
    settings = {"client_settings": _one_connection(days.url)}
    await days.run(0, NAMES, **settings)
    for day in (30, 31):
        outcome = await days.run(day, NAMES, max_calls=3, **settings)
        assert outcome.stop is not None
        assert outcome.stop.reason is StopReason.MAX_CALLS
        assert not (days.out / "_SUCCESS").exists()
        days.check()
    assert days.asked(8) == NAMES[:6]
    ages = manifest(days.out)["refresh"]
    assert (ages["never"], ages["fresh"], ages["due"], ages["oldest"]) == (0, 6, 2, "2026-11-01T06:00:00Z")
    assert (await days.run(32, NAMES, **settings)).complete
    assert Counter(days.asked()) == dict.fromkeys(NAMES, 2)


async def test_no_link_is_asked_for_twice_before_all_were_asked_for_once(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    days = Days(serve().url, tmp_path)
    for day in range(0, 60, 10):
        await days.run(day, NAMES, age=1, max_calls=3)
        times = [Counter(days.asked())[name] for name in NAMES]
        assert max(times) == 1 or min(times) >= 1
    assert min(times) == 2
    days.check()


async def test_a_dataset_that_was_begun_without_it_is_refreshed_by_the_end_of_its_window(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    days = Days(serve().url, tmp_path)
    await days.run(0, NAMES, age=None)
    assert "refresh" not in {name for name, value in manifest(days.out).items() if value is not None}
    assert (await days.run(10, NAMES)).complete
    assert len(rows(days.out)) == 8
    assert (await days.run(30, NAMES)).complete
    assert len(rows(days.out)) == 16
    days.check()


async def test_refused_links_stay_refused_unless_that_was_asked_for(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    days = Days(serve().url, tmp_path)
    names = ["ok-1", "missing-1"]
    for day, again, calls in ((0, False, 2), (30, False, 1), (31, True, 1), (60, False, 1), (60.5, True, 0)):
        assert (await days.run(day, names, retry_refused=again)).complete
        assert manifest(days.out)["dataset"]["refused"] == 1
        assert manifest(days.out)["invocation"]["calls"] == calls
    assert [line["kind"] for line in failures(days.out)] == ["refused"]
    days.check()


def known(state: CallState, asked_at: int | None, **more: Any) -> Known:
    return Known(state, more.pop("failed_runs", 0), 1, asked_at=asked_at, **more)


@pytest.mark.parametrize(
    ("has", "due"),
    [
        (known(CallState.ROW, 70), True),
        (known(CallState.ROW, 71), False),
        (known(CallState.ROW, None), True),
        (known(CallState.REFUSED, 0), False),
        (known(CallState.FAILED, 99, failed_runs=1), True),
        (known(CallState.FAILED, 71, failed_runs=3), False),
        (known(CallState.FAILED, 70, failed_runs=3), True),
        (known(CallState.ROW, 70, clicks=0), False),
        (known(CallState.ROW, 70, clicks=5, clicks_before=5), False),
        (known(CallState.ROW, 70, clicks=6, clicks_before=5), True),
        (known(CallState.ROW, 10, clicks=0), True),
    ],
    ids=[
        "old", "young", "of the pinned window", "refused", "failed once", "given up lately", "given up long ago",
        "without clicks", "without new clicks", "clicked", "idle for long",
    ],
)  # fmt: skip
def test_the_rule_says_which_answers_are_due(has: Known, due: bool) -> None:
    assert was_answered(has)
    assert Refresh(30.0, 100, prefer_active=True).is_due(has) == due


@pytest.mark.parametrize(
    ("words", "ended", "warned"),
    [
        (("--refresh", "30d"), "2026-01-01T00:00:00Z", True),
        (("--refresh", "30d"), utc_iso(datetime.now(UTC)), False),
        ((), "2026-01-01T00:00:00Z", False),
    ],
    ids=["old", "new", "not refreshed"],
)
def test_a_list_of_a_group_that_is_as_old_as_an_answer_that_is_due_is_warned_of(
    tmp_path: Path,
    serve: Callable[..., Served],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    ended: str,
    warned: bool,
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    command_words = ("run", "--group", SMALL, "--base-url", serve().url, "--out", str(tmp_path / "out"), *NO_LIMITS)
    with monkeypatch.context() as then:
        then.setattr("harvester.groups.listing.utc_iso", lambda _: ended)
        assert command(capsys, *command_words, *words, "--max-calls", "1").code == 9
    done = command(capsys, *command_words, *words)
    assert done.code == 0, done.err
    said = f"--group={SMALL}: the links were listed at {ended}, and those made since are missing"
    assert (said in done.err) == warned


@FORMS
async def test_a_plan_takes_answers_that_were_refreshed_for_calls_and_not_for_retries(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    days, names = Days(serve().url, tmp_path, form), [f"ok-{number}" for number in range(120)]
    for day in (0, 30, 60):
        assert (await days.run(day, names)).status.attempts.total == len(names)
    query = Query("referrers", "day", -1, "2026-11-01T06:00:00Z", 50)
    with peek(resolve(str(days.out), None), query, server="127.0.0.1") as snapshot:
        assert (snapshot.attempts, _attempts_per_call(snapshot)) == (3 * len(names), 1.0)


@FORMS
async def test_a_ledger_of_refreshed_rows_can_be_built_again(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    days = Days(serve().url, tmp_path, form)
    for day in (0, 30, 60):
        await days.run(day, NAMES[: 8 - day // 30])
    for file in [*public(days.out).rglob("ledger.sqlite*")]:
        file.unlink()
    found = repair(str(days.out), None, None, apply=True, ask_again=False)
    assert (found.applied, found.losses) == (True, [])
    outcome = await days.run(61, NAMES)
    assert outcome.complete
    days.check()
    assert Counter(days.asked()) == {**dict.fromkeys(NAMES[:6], 3), NAMES[6]: 3, NAMES[7]: 2}


async def test_links_that_are_clicked_are_preferred_and_idle_ones_are_not_forgotten(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    days = Days(serve().url, tmp_path)
    settings = {"client_settings": _one_connection(days.url), "prefer_active": True}
    names = [f"direct-{number}" for number in range(4)] + [f"none-{number}" for number in range(4)]
    await days.run(0, names, **settings)
    assert (await days.run(30, names, **settings)).complete
    assert (public(days.out) / "_SUCCESS").exists()


@pytest.mark.parametrize("shape", list(Shape))
async def test_the_newest_answer_of_each_link_is_a_query_away(
    tmp_path: Path, serve: Callable[..., Served], shape: Shape
) -> None:
    days, form = Days(serve().url, tmp_path), RequestedPartFormat(Format.NDJSON, shape)
    for day in (0, 30, 60):
        await days.run(day, NAMES[: 8 - day // 30], part_format=form)
    days.check()
    page = (ROOT / "docs" / "loading.md").read_text()
    (statement,) = re.findall(rf"^```sql newest {shape}\n(.*?);?\n```$", page, re.MULTILINE | re.DOTALL)
    with duckdb.connect() as database:
        database.execute(f"CREATE VIEW bitly_metrics AS FROM read_json_auto('{days.out}/part-*.ndjson')")
        found = database.execute(
            f"SELECT bitlink, unit_reference::VARCHAR FROM ({statement.rstrip().rstrip(';')})"
        ).fetchall()
    newest = {f"bit.ly/{name}": 60 for name in NAMES[:6]} | {"bit.ly/ok-6": 30, "bit.ly/ok-7": 0}
    assert {(link, str(moment)[:10]) for link, moment in found} == {
        (link, str((BEGIN + timedelta(days=day)).date())) for link, day in newest.items()
    }
    if shape is Shape.NESTED:
        assert len(found) == 8


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--day", "yesterday"], "--day ends the window at a fixed moment"),
        (["--since", "2026-11-01"], "--since ends the window at a fixed moment"),
        (["--unit-reference", "2026-11-01"], "--unit-reference ends the window at a fixed moment"),
        (["--out", "-"], "rows on standard output are not remembered"),
        (["--refresh", "10m"], "must be an hour or more"),
    ],
    ids=["day", "since", "reference", "stdout", "short"],
)
def test_what_cannot_be_refreshed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    links = tmp_path / "links.txt"
    links.write_text("bit.ly/a\n")
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    age = [] if "--refresh" in words else ["--refresh", "30d"]
    said = command(capsys, "run", str(links), *age, *out, *words)
    assert said.code == 2
    assert reason in said.err


@pytest.mark.slow
def test_rows_in_an_object_store_are_refreshed_in_new_parts(case: Case) -> None:
    assert case.run("--unit-reference", "2026-01-01").returncode == 0
    before = {name: data for name, data in case.held().items() if "part-" in name}
    done = case.run("--refresh", "1d")
    assert done.returncode == 0, done.stderr
    after = {name: data for name, data in case.held().items() if "part-" in name}
    assert {name: after[name] for name in before} == before
    found = Counter(row["bitlink"] for row in rows_in(case.held()))
    assert set(found.values()) == {2}
    again = case.run("--refresh", "1d")
    assert again.returncode == 0
    assert "no link is due" in again.stderr
