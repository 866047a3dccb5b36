"""`harvester run --group` and `plan --group`: the list is bought once, and pages count in the month."""

import gzip
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import harvester as package
from harvester.sandbox.groups import LARGE, SMALL
from tests.conftest import Served
from tests.e2e.test_links import PAGES, expected, names_of
from tests.support.commands import NO_LIMITS, TOKEN, harvester, interrupt
from tests.support.in_process import Said, command
from tests.support.paged_group import paged

Run = Callable[..., Said]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against a URL without limits, or with those given."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)

    def run(url: str, *words: str) -> Said:
        limits = () if "--per-month" in words else NO_LIMITS
        return command(capsys, *words, "--base-url", url, *limits)

    return run


def bitlinks_in(out: Path) -> list[str]:
    return [json.loads(line)["bitlink"] for path in out.glob("part-*") for line in gzip.open(path)]


def manifest_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "_manifest.json").read_text())
    return found


def test_a_groups_links_and_their_custom_bitlinks_are_harvested(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=230), tmp_path / "out"
    shown = said(served.url, "run", "--group", LARGE, "--out", str(out))
    assert shown.code == 0, shown.err
    assert sorted(bitlinks_in(out)) == sorted(names_of(expected(230)))
    manifest = manifest_of(out)
    assert (manifest["complete"], manifest["invocation"]["lists"]) == (True, [f"--group={LARGE}"])
    assert manifest["attempts"]["helper"] == 3
    assert "; 3 to list a group's links\n" in shown.err
    assert manifest["attempts"]["total"] == len(names_of(expected(230)))
    assert harvester("verify", str(out)).returncode == 0


def test_the_list_is_kept_with_the_output_and_a_new_output_lists_anew(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=120), tmp_path / "out"
    assert said(served.url, "run", "--all-groups", "--out", str(out), "--max-calls", "5").code == 9
    assert (served.sandbox.helped[PAGES], served.sandbox.helped["/groups"]) == (2, 1)
    again = said(served.url, "run", "--all-groups", "--out", str(out))
    assert (again.code, served.sandbox.helped[PAGES], served.sandbox.helped["/groups"]) == (0, 2, 1)
    assert re.search(r"read before, at 20\S+ \d\d:\d\d UTC\n", again.err)
    assert sorted(bitlinks_in(out)) == sorted(names_of(expected(120) + expected(7, SMALL)))
    assert manifest_of(out)["attempts"]["helper"] == 4  # /groups, two pages of one group and one of the other
    assert said(served.url, "run", "--group", LARGE, "--out", str(tmp_path / "other"), "--max-calls", "1").code == 9
    assert served.sandbox.helped[PAGES] == 4


def test_status_says_the_command_that_carries_on(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=20), tmp_path / "out"
    for words in (("--group", f"{LARGE},{SMALL}"), ("--all-groups",)):
        assert said(served.url, "run", *words, "--out", str(out), "--max-calls", "1").code == 9
        step = json.loads(harvester("status", str(out), "--json").stdout)["next"]["command"]
        assert f" harvester run {' '.join(words)} --out " in f" {step}"


def test_links_or_groups_are_named_and_not_both(said: Run, tmp_path: Path) -> None:
    url, out = "http://127.0.0.1:9/v4", str(tmp_path / "out")
    for words, says in [
        (("links.txt", "--group", "G"), "take the place of LINKS"),
        (("--group", "G", "--all-groups"), "not both"),
        ((), "no list of links was named"),
    ]:
        for name in ("run", "plan"):
            shown = said(url, name, *words, "--out", out)
            assert shown.code == 2
            assert says in shown.err
    assert not (tmp_path / "out").exists()


def test_what_is_no_bitlink_is_a_failure_of_the_run(said: Run, tmp_path: Path, serve: Callable[..., Served]) -> None:
    links = [{"id": "bit.ly/a/b", "custom_bitlinks": ["https://bit.ly/missing"]}, {"id": "nothing"}, None]
    with paged({"": [(200, {"links": links, "pagination": {}})]}) as group:
        assert said(group.url, "plan", "--group", "G", "--out", str(tmp_path / "out")).code == 0
    out = tmp_path / "out"
    assert said(serve().url, "run", "--group", "G", "--out", str(out)).code in {0, 3}
    kinds = [json.loads(line) for line in (out / "_failures.ndjson").read_text().splitlines()]
    assert sorted((each["kind"], each["text"] or each["bitlink"]) for each in kinds if each["kind"] == "invalid") == [
        ("invalid", "None"), ("invalid", "bit.ly/a/b"), ("invalid", "nothing"),
    ]  # fmt: skip
    assert manifest_of(out)["list"]["links"] == 1


# --- what is carried ------------------------------------------------------------------------------------------------


def carried_in(out: Path) -> dict[str, dict[str, str | None]]:
    return {row["bitlink"]: row["carried"] for path in out.glob("part-*") for row in map(json.loads, gzip.open(path))}


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_rows_carry_what_bitly_says_of_a_link_and_its_custom_bitlinks_too(
    said: Run, serve: Callable[..., Served], tmp_path: Path, shape: str
) -> None:
    served, out = serve(links=30), tmp_path / "out"
    words = ("run", "--group", LARGE, "--out", str(out), "--carry", "id,Title,tags,created_at,group", "--shape", shape)
    shown = said(served.url, *words)
    assert shown.code == 0, shown.err
    assert carried_in(out) == {
        name: {
            "id": link["id"],
            "Title": link["title"],
            "tags": json.dumps(link["tags"]),
            "created_at": link["created_at"].replace("+0000", "Z"),
            "group": LARGE,
        }
        for link in expected(30)
        for name in names_of([link])
    }
    assert manifest_of(out)["list"]["differing"] == 0


def test_a_resumed_run_may_carry_something_else_of_the_same_list(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=20), tmp_path / "out"
    words = ("run", "--group", LARGE, "--out", str(out))
    assert said(served.url, *words, "--carry", "tags", "--max-calls", "3").code == 9
    assert said(served.url, *words, "--max-calls", "3", "--carry", "title").code == 9
    assert said(served.url, *words).code == 0
    kinds = [tuple(carried or ()) for carried in carried_in(out).values()]
    assert (kinds.count(("tags",)), kinds.count(("title",)), kinds.count(())) == (3, 3, len(kinds) - 6)
    assert served.sandbox.helped[PAGES] == 1
    assert harvester("verify", str(out)).returncode == 0


def test_a_link_that_stands_twice_carries_what_is_said_first_and_the_other_is_counted(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    links = [{"id": "bit.ly/a", "title": "A"}, {"id": "bit.ly/a", "title": "B"}, {"id": "bit.ly/b", "title": None}]
    with paged({"": [(200, {"links": [None, *links, {"id": "bit.ly/a", "title": "A"}], "pagination": {}})]}) as group:
        assert said(group.url, "plan", "--group", "G", "--out", str(tmp_path / "out"), "--carry", "title").code == 0
    out = tmp_path / "out"
    shown = said(serve().url, "run", "--group", "G", "--out", str(out), "--carry", "title")
    assert "1 repeated line has other --carry values" in shown.err
    assert carried_in(out) == {"bit.ly/a": {"title": "A"}, "bit.ly/b": {"title": None}}
    assert manifest_of(out)["list"]["differing"] == 1


def test_a_column_that_links_of_groups_do_not_have_is_refused_before_a_page_is_read(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=20), tmp_path / "out"
    for name in ("run", "plan"):
        shown = said(served.url, name, "--group", LARGE, "--out", str(out), "--carry", "title,campaign")
        assert shown.code == 2
        assert "no column is called campaign; found: id, title, tags, created_at, group" in shown.err
    assert (served.sandbox.helped[PAGES], out.exists()) == (0, False)


# --- plan -----------------------------------------------------------------------------------------------------------


def test_plan_reads_the_pages_that_the_run_then_finds(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=230), tmp_path / "out"
    words = ("--group", LARGE, "--out", str(out))
    offline = said(served.url, "plan", *words, "--offline")
    assert (offline.code, out.exists()) == (2, False)
    wrong = said(served.url, "plan", "--group", "Gnone", "--out", str(out))
    assert (wrong.code, out.exists()) == (2, False)
    shown = said(served.url, "plan", *words, "--json")
    found = json.loads(shown.out)
    count = len(names_of(expected(230)))
    assert (found["pages"], found["calls"], found["attempts"], found["list"]["links"]) == (3, count, count, count)
    assert served.sandbox.helped[PAGES] == 3
    assert json.loads(said(served.url, "plan", *words, "--offline", "--json").out)["pages"] == 3
    assert (
        "3  pages of the groups' links, counted in the month too: kept for the run"
        in said(served.url, "plan", *words, "--offline").out
    )
    assert said(served.url, "run", *words).code == 0
    assert served.sandbox.helped[PAGES] == 3
    assert sorted(bitlinks_in(out)) == sorted(names_of(expected(230)))


def test_plan_for_an_output_that_keeps_nothing_counts_the_pages_of_the_run(
    said: Run, serve: Callable[..., Served]
) -> None:
    served = serve(links=230)
    found = json.loads(said(served.url, "plan", "--group", LARGE, "--out", "-", "--json").out)
    assert (found["pages"], found["attempts"]) == (3, found["calls"] + 3)
    words = ("run", "--group", SMALL, "--out", "-", "--base-url", served.url, *NO_LIMITS)
    rows = [json.loads(line)["bitlink"] for line in harvester(*words).stdout.splitlines()]
    assert sorted(rows) == sorted(names_of(expected(7, SMALL)))


# --- interruptions --------------------------------------------------------------------------------------------------


def test_the_month_spent_in_the_middle_of_the_list_ends_with_7(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=500), tmp_path / "out"
    words = ("run", "--group", LARGE, "--out", str(out))
    limits = ("--per-minute", "0", "--per-hour", "0", "--per-month", "3")
    assert said(served.url, *words, *limits).code == 7
    assert served.sandbox.helped[PAGES] == 3
    assert manifest_of(out)["stopped"]["reason"] == "month_spent"
    assert said(served.url, *words).code == 0
    assert served.sandbox.helped[PAGES] == 5
    assert sorted(bitlinks_in(out)) == sorted(names_of(expected(500)))
    assert manifest_of(out)["attempts"]["helper"] == 5


def test_a_damaged_journal_is_left_as_it_is(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=150), tmp_path / "out"
    assert said(served.url, "plan", "--group", LARGE, "--out", str(out)).code == 0
    (journal,) = (out / "_harvester").glob("group-*.pages")
    damaged = journal.read_bytes().replace(b'"groups"', b'"Groups"')
    journal.write_bytes(damaged)
    (out / "_harvester").joinpath(journal.name.replace(".pages", ".list")).unlink()
    shown = said(served.url, "run", "--group", LARGE, "--out", str(out))
    assert (shown.code, "is damaged" in shown.err) == (8, True)
    assert journal.read_bytes() == damaged
    assert served.sandbox.helped[PAGES] == 2


@pytest.mark.slow
def test_a_kill_in_the_middle_buys_no_page_twice(serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=400, latency_ms=15), tmp_path / "out"
    words = ("run", "--group", LARGE, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    kills = 0

    def reached(pages: int, calls: int) -> bool:
        return served.sandbox.helped[PAGES] >= pages and len(served.sandbox.answered) >= calls

    for pages, calls in ((2, 0), (0, 50)):
        interrupt(partial(reached, pages, calls), *words)
        kills += 1
    done = harvester(*words)
    assert done.returncode == 0, done.stderr
    assert served.sandbox.helped[PAGES] <= 4 + 1
    assert sorted(bitlinks_in(out)) == sorted(names_of(expected(400)))
    assert sum(served.sandbox.answered.values()) <= len(names_of(expected(400))) + 5 * kills
    attempts = manifest_of(out)["attempts"]
    sent = sum(served.sandbox.requests.values()) + served.sandbox.helped[PAGES]
    assert sent <= attempts["total"] + attempts["helper"] <= sent + 6 * kills
    assert harvester("verify", str(out)).returncode == 0


# --- from Python ----------------------------------------------------------------------------------------------------


async def test_a_group_is_harvested_from_python(serve: Callable[..., Served], tmp_path: Path) -> None:
    options: dict[str, Any] = {"token": TOKEN, "base_url": serve(links=30).url, "per_minute": 0}
    manifest = await package.harvest(group=SMALL, out=tmp_path / "out", **options)
    assert manifest["complete"]
    await package.harvest(group=SMALL, out=tmp_path / "begun", max_calls=1, **options)
    step = json.loads(harvester("status", str(tmp_path / "begun"), "--json").stdout)["next"]["command"]
    assert step.startswith(f"harvester run --group={SMALL} --out ")
    rows = [row["bitlink"] async for row in package.stream(all_groups=True, **options)]
    assert sorted(rows) == sorted(names_of(expected(30) + expected(7, SMALL)))
    with pytest.raises(package.UsageError, match="take the place of LINKS"):
        await package.harvest(["bit.ly/a"], group=SMALL, out=tmp_path / "other", **options)
    with pytest.raises(package.UsageError, match="an iterable of links"):
        await package.harvest(out=tmp_path / "other", **options)
