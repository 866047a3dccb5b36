"""`run --group` with several facets and periods: the pages are bought once for all, whatever ends the command."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harvester import api
from harvester.sandbox.groups import LARGE
from harvester.verify.verify import output_at, verify
from tests.conftest import Served
from tests.e2e.test_links import PAGES, expected, names_of
from tests.e2e.test_run_groups import Run, bitlinks_in, manifest_of, said
from tests.support.commands import NO_LIMITS, TOKEN, harvester, interrupt
from tests.support.paged_group import paged

__all__ = ["said"]
FACETS = ("referrers", "countries")
DAYS = ("2026-11-02", "2026-11-03")
SEVERAL = ("--facet", ",".join(FACETS), "--since", DAYS[0], "--until", DAYS[-1])


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all outputs, in the present one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lake"


def run(*words: str, name: str = "run") -> tuple[str, ...]:
    return (name, "--group", LARGE, "--out", "lake/{facet}/dt={dt}", *words)


def outputs(lake: Path, days: tuple[str, ...] = DAYS) -> list[Path]:
    return [lake / facet / f"dt={day}" for day in days for facet in FACETS]


def helped(outs: list[Path]) -> int:
    return sum(manifest_of(out)["attempts"]["helper"] for out in outs)


def test_pages_are_bought_once_for_all_facets_and_periods(said: Run, serve: Callable[..., Served], lake: Path) -> None:
    served = serve(links=230)
    done = said(served.url, *run(*SEVERAL, "--carry", "title"))
    assert done.code == 0, done.err
    assert served.sandbox.helped[PAGES] == 3
    for out in outputs(lake):
        assert sorted(bitlinks_in(out)) == sorted(names_of(expected(230)))
        assert (manifest_of(out)["complete"], manifest_of(out)["invocation"]["lists"]) == (True, [f"--group={LARGE}"])
    assert helped(outputs(lake)) == 3
    assert done.err.count("links in 3 pages") == 1
    assert said(served.url, *run(*SEVERAL)).code == 0
    assert all(verify(output_at(str(out))).ok for out in outputs(lake))
    assert served.sandbox.helped[PAGES] == 3


def test_each_output_keeps_the_list_and_a_new_period_lists_anew(
    said: Run, serve: Callable[..., Served], lake: Path
) -> None:
    served = serve(links=120)
    assert said(served.url, *run(*SEVERAL, "--max-calls", "5")).code == 9
    assert served.sandbox.helped[PAGES] == 2
    grown = serve(links=150)
    assert said(grown.url, *run(*SEVERAL)).code == 0
    assert grown.sandbox.helped[PAGES] == 0
    more = (*SEVERAL[:-1], "2026-11-04")
    assert said(grown.url, *run(*more)).code == 0
    assert grown.sandbox.helped[PAGES] == 2
    sizes = [len(bitlinks_in(out)) for out in outputs(lake, (*DAYS, "2026-11-04"))]
    assert sizes == [len(names_of(expected(120)))] * 4 + [len(names_of(expected(150)))] * 2
    shutil.rmtree(outputs(lake)[0])
    one = said(grown.url, *run("--facet", FACETS[0], "--day", DAYS[1]))
    assert (one.code, grown.sandbox.helped[PAGES]) == (0, 2), "a period alone needs no other"


def test_plan_counts_the_pages_once_and_the_run_finds_them(said: Run, serve: Callable[..., Served], lake: Path) -> None:
    served, count = serve(links=230), len(names_of(expected(230)))
    assert said(served.url, *run(*SEVERAL, "--offline", name="plan")).code == 2
    assert not lake.exists()
    found = json.loads(said(served.url, *run(*SEVERAL, "--json", name="plan")).out)
    assert (found["pages"], found["calls"], found["list"]["links"]) == (3, 4 * count, count)
    again = json.loads(said(served.url, *run(*SEVERAL, "--json", "--offline", name="plan")).out)
    assert (again["pages"], served.sandbox.helped[PAGES]) == (3, 3)
    assert said(served.url, *run(*SEVERAL)).code == 0
    assert served.sandbox.helped[PAGES] == 3
    done = json.loads(said(served.url, *run(*SEVERAL, "--json", "--offline", name="plan")).out)
    assert (done["pages"], done["calls"]) == (3, 0)


def test_the_month_spent_among_the_pages_ends_all_and_they_are_taken_up_again(
    said: Run, serve: Callable[..., Served], lake: Path
) -> None:
    served = serve(links=500)
    limits = ("--per-minute", "0", "--per-hour", "0", "--per-month", "3")
    assert said(served.url, *run(*SEVERAL), *limits).code == 7
    assert served.sandbox.helped[PAGES] == 3
    assert [manifest_of(out)["stopped"]["reason"] for out in outputs(lake, DAYS[:1])] == ["month_spent"] * 2
    assert said(served.url, *run(*SEVERAL)).code == 0
    assert served.sandbox.helped[PAGES] == helped(outputs(lake)) == 5


@pytest.mark.parametrize(
    ("status", "message", "code"), [(402, "UPGRADE_REQUIRED", 6), (404, "NOT_FOUND", 2), (403, "FORBIDDEN", 6)]
)
def test_a_list_that_is_refused_is_asked_for_once(said: Run, lake: Path, status: int, message: str, code: int) -> None:
    with paged({"": [(status, {"message": message, "resource": "groups"})]}) as group:
        done = said(group.url, "run", "--group", "G", "--out", "lake/{facet}/dt={dt}", *SEVERAL)
        assert (done.code, group.asked) == (code, [""]), done.err
    assert not list(lake.glob("*/dt=*/_SUCCESS"))


async def test_several_facets_of_a_group_from_python(serve: Callable[..., Served], lake: Path) -> None:
    served = serve(links=20)
    options: dict[str, Any] = {"token": TOKEN, "base_url": served.url, "per_month": 0, "facet": [*FACETS]}
    found = await api.harvest(group=LARGE, out="lake/{facet}", **options)
    assert (found["complete"], served.sandbox.helped[PAGES]) == (True, 1)


@pytest.mark.slow
def test_kills_buy_no_page_twice(serve: Callable[..., Served], lake: Path) -> None:
    served, kills = serve(links=300, latency_ms=15), 0
    where = ("--out", f"{lake}/{{facet}}/dt={{dt}}", "--base-url", served.url)
    words = ("run", "--group", LARGE, *where, *SEVERAL, *NO_LIMITS)

    def reached(pages: int, calls: int) -> bool:
        return served.sandbox.helped[PAGES] >= pages and served.sandbox.answered.total() >= calls

    for pages, calls in ((1, 0), (2, 0), (0, 1), (0, 300), (0, 900)):
        interrupt(partial(reached, pages, calls), *words)
        kills += 1
    done = harvester(*words)
    assert done.returncode == 0, done.stderr
    assert 3 <= served.sandbox.helped[PAGES] <= 3 + 2
    assert served.sandbox.helped[PAGES] <= helped(outputs(lake)) <= 3 + kills
    for out in outputs(lake):
        assert sorted(bitlinks_in(out)) == sorted(names_of(expected(300)))
    assert served.sandbox.answered.total() <= 4 * len(names_of(expected(300))) + 1 + 5 * kills
