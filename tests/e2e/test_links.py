"""`harvester groups` and `links`: what is printed, what is written, and what is asked for how often."""

import gzip
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from harvester.sandbox.groups import LARGE, SMALL, link_of
from harvester.storage.watch import FolderLock
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, TOKEN, harvester, interrupt, start
from tests.support.in_process import Said, command
from tests.support.paged_group import Answer, page, paged

PAGES = f"/groups/{LARGE}/bitlinks"
Run = Callable[..., Said]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against a URL without limits."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)

    def run(url: str, *words: str) -> Said:
        return command(capsys, *words, "--base-url", url, *NO_LIMITS)

    return run


def expected(count: int, guid: str = LARGE) -> list[dict[str, Any]]:
    """The links that the sandbox lists without filters."""
    return [link for number in range(count) if not (link := link_of(guid, number))["archived"]]


def names_of(links: list[dict[str, Any]], *, custom: bool = True) -> list[str]:
    names = [[link["id"], *(link["custom_bitlinks"] if custom else [])] for link in links]
    return [name.removeprefix("https://") for each in names for name in each]


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob("part-*")) for line in gzip.open(path)]


def manifest_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "_manifest.json").read_text())
    return found


# --- printed --------------------------------------------------------------------------------------------------------


def test_groups_lists_each_group_and_marks_the_default_one(said: Run, serve: Callable[..., Served]) -> None:
    served = serve()
    shown = said(served.url, "groups")
    assert shown.code == 0
    assert [line.split() for line in shown.out.splitlines()] == [
        ["guid", "name", "organization", "role"],
        [LARGE, "sandbox", "Osandbox", "org-admin", "default"],
        [SMALL, "small", "Osandbox", "org-admin"],
    ]
    rows = [json.loads(line) for line in said(served.url, "groups", "--json").out.splitlines()]
    assert [(row["guid"], row["default"], row["active"]) for row in rows] == [(LARGE, True, True), (SMALL, False, True)]
    assert served.sandbox.helped == {"/groups": 2, "/user": 2}


def test_links_prints_each_bitlink_that_is_counted_apart(said: Run, serve: Callable[..., Served]) -> None:
    served = serve(links=230)
    shown = said(served.url, "links", "--group", LARGE)
    assert (shown.code, shown.out.splitlines()) == (0, names_of(expected(230)))
    assert served.sandbox.helped == {PAGES: 3}
    bare = said(served.url, "links", "--group", LARGE, "--no-custom")
    assert bare.out.splitlines() == names_of(expected(230), custom=False)
    both = said(served.url, "links", "--all", "--no-custom")
    assert both.out.splitlines() == names_of(expected(230) + expected(7, SMALL), custom=False)
    assert served.sandbox.helped["/groups"] == 1
    assert said(served.url, "links", "--group", f"{SMALL},{LARGE},{SMALL}", "--no-custom").out.splitlines() == names_of(
        expected(7, SMALL) + expected(230), custom=False
    )


def test_links_with_json_is_a_row_each(said: Run, serve: Callable[..., Served]) -> None:
    rows = [
        json.loads(line) for line in said(serve(links=30).url, "links", "--group", LARGE, "--json").out.splitlines()
    ]
    links = expected(30)
    assert [row["id"] for row in rows] == [link["id"] for link in links]
    keys = ["id", "link", "long_url", "title", "tags", "created_at", "archived", "custom_bitlinks", "group"]
    assert list(rows[3]) == keys
    assert rows[3] == {
        **{key: links[3][key] for key in ("id", "link", "long_url", "title", "tags", "archived")},
        "created_at": "2026-10-31T21:00:00Z",
        "custom_bitlinks": [name.removeprefix("https://") for name in links[3]["custom_bitlinks"]],
        "group": LARGE,
    }


def test_the_filters_are_bitlys(said: Run, serve: Callable[..., Served]) -> None:
    served = serve(links=60)

    def ids(*words: str) -> list[str]:
        return said(served.url, "links", "--group", LARGE, "--no-custom", *words).out.splitlines()

    every = [link_of(LARGE, number) for number in range(60)]
    assert ids("--archived", "both") == [link["id"] for link in every]
    assert ids("--archived", "on") == [link["id"] for link in every if link["archived"]]
    tagged = [link["id"] for link in expected(60) if {"email", "print"} & set(link["tags"])]
    assert ids("--tags", "email, print") == tagged
    words = ("--created-after", "2026-10-31T12:00:00Z", "--created-before", "2026-10-31T22:00:00Z")
    assert ids("--archived", "both", *words) == [link["id"] for link in every[3:12]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no group was named: --group GUID, or --all"),
        (("--group", "G", "--all"), "not both"),
        (("--group", "a/b"), "--group a/b: must be a guid such as"),
        (("--group", "G", "--created-after", "soon"), "--created-after soon: must be a moment such as"),
        (("--group", "G", "--created-after", "2026-11-02", "--created-before", "2026-11-01"), "earlier than"),
        (("--group", "G", "--archived", "maybe"), "--archived"),
        (("--group", "G", "--out", "x", "--json"), "leave one of them out"),
        (("--group", "G", "--out", "x.ndjson"), "a folder on a local disk"),
        (("--group", "G", "--out", "x", "--no-custom"), "--no-custom"),
        (("--group", "G", "--out", "lake/dt={dt}"), "no facet and no day to fill in"),
    ],
    ids=range(10),
)
def test_what_cannot_be_listed_is_refused_before_a_request(said: Run, words: tuple[str, ...], says: str) -> None:
    shown = said("http://127.0.0.1:9/v4", "links", *words)
    assert (shown.code, shown.out) == (2, "")
    assert says in shown.err


def test_printed_links_are_a_list_for_run(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(links=40)
    listed = said(served.url, "links", "--group", LARGE).out
    (tmp_path / "links.txt").write_text(listed)
    out = tmp_path / "out"
    assert said(served.url, "run", str(tmp_path / "links.txt"), "--out", str(out)).code == 0
    assert {row["bitlink"] for row in rows_in(out)} == set(listed.split())


# --- paging ---------------------------------------------------------------------------------------------------------


def test_a_cursor_that_repeats_ends_the_group(said: Run) -> None:
    full = [f"n{number}" for number in range(100)]
    for cursors in (["a", "a"], ["a", "b", "a"], ["a", "b", "b"]):
        answers = {"": [page(["first"], cursors[0])]}
        for number, cursor in enumerate(cursors[1:]):
            answers[cursors[number]] = [page(full if number == len(cursors) - 2 else ["x"], cursor)]
        with paged(answers) as group:
            shown = said(group.url, "links", "--group", "G")
        assert shown.code == 0
        assert "a full page names a cursor that was followed before" in shown.err
        assert group.asked == ["", *dict.fromkeys(cursors)]
        assert len(shown.out.splitlines()) == len(set(shown.out.splitlines()))
        assert "bit.ly/n99" in shown.out


@pytest.mark.parametrize("names", [["a", "b"], []], ids=["the same page", "empty pages"])
def test_new_cursors_that_lead_to_no_other_links_end_the_group(said: Run, names: list[str]) -> None:
    pages = {"1": [page(names, "2")], "2": [page(names, "3")], "3": [page(names, "4")]}
    with paged({"": [page(["first"], "1")], **pages}) as group:
        shown = said(group.url, "links", "--group", "G")
    assert shown.code == 0
    assert group.asked == ["", "1", "2"]
    assert shown.out.splitlines() == ["bit.ly/first", *(f"bit.ly/{name}" for name in names)]
    assert "no other links than the one before it" in shown.err


def test_null_and_missing_fields_of_a_page_are_no_error(said: Run) -> None:
    answers: dict[str, list[Answer]] = {
        "": [(200, {"links": None, "pagination": {"next": "https://x", "search_after": "a"}})],
        "a": [(200, {"links": [{"id": "bit.ly/x"}, {"title": "no id"}, None], "pagination": None})],
    }
    with paged(answers) as group:
        shown = said(group.url, "links", "--group", "G")
    assert (shown.code, shown.out.splitlines()) == (0, ["bit.ly/x"])
    assert shown.err.count("not a bitlink") == 2


def test_a_page_is_asked_for_again_after_an_error_and_a_torn_answer(said: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvester.client.pacer._LONGEST_BACKOFF_SECONDS", 0.01)
    answers = {"": [(503, {"message": "TEMPORARILY_UNAVAILABLE"}), page(["a"], "x")], "x": [(200, "{"), page(["b"])]}
    with paged(answers) as group:
        shown = said(group.url, "links", "--group", "G")
    assert (shown.code, shown.out.splitlines()) == (0, ["bit.ly/a", "bit.ly/b"])
    assert group.asked == ["", "", "x", "x"]


def test_a_wait_says_what_for(said: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvester.groups.listing._TELL_SECONDS", 0.01)
    out = (503, {"message": "TEMPORARILY_UNAVAILABLE"})  # several, because each wait is drawn and may be next to none
    with paged({"": [out, out, out, page(["a"])]}) as group:
        shown = said(group.url, "links", "--group", "G")
    assert (shown.code, shown.out) == (0, "bit.ly/a\n")
    assert "no good answer yet (503 TEMPORARILY_UNAVAILABLE); retrying" in shown.err


def test_a_full_window_is_waited_for_and_named() -> None:
    with paged({"": [page(["a"], "x")], "x": [page(["b"])]}) as group:
        process = start("links", "--group", "G", "--base-url", group.url, "--per-minute", "1")
        assert process.stderr is not None
        told = process.stderr.readline()
        process.terminate()
        process.communicate()
    assert told == b"waiting for the next call's turn (1 a minute)\n"
    assert process.returncode == 5


def test_links_that_stand_in_two_pages_are_printed_and_published_once(said: Run, tmp_path: Path) -> None:
    with paged({"": [page(["a", "b", "a"], "x")], "x": [page(["b", "c"])]}) as group:
        assert said(group.url, "links", "--group", "G").out.splitlines() == ["bit.ly/a", "bit.ly/b", "bit.ly/c"]
        assert said(group.url, "links", "--group", "G", "--out", str(tmp_path / "out")).code == 0
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["bit.ly/a", "bit.ly/b", "bit.ly/c"]


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, {"message": "UNAUTHORIZED"}, 6),
        (403, {"message": "FORBIDDEN"}, 6),
        (403, {"message": "FORBIDDEN", "resource": "groups"}, 6),
        (402, {"message": "UPGRADE_REQUIRED"}, 6),
        (429, {"message": "MONTHLY_LIMIT_EXCEEDED"}, 7),
        (404, {"message": "NOT_FOUND", "resource": "groups"}, 2),
        (404, "404 page not found", 5),
        (400, {"message": "INVALID_ARG_TAGS"}, 2),
        (200, {"metrics": []}, 5),
    ],
    ids=range(9),
)
def test_an_answer_that_is_no_page_ends_with_its_code(said: Run, status: int, body: Any, code: int) -> None:
    with paged({"": [(status, body)]}) as group:
        shown = said(group.url, "links", "--group", "G")
        assert (shown.code, shown.out) == (code, ""), shown.err
        assert said(group.url, "plan", "--group", "G", "--out", "-").code == code


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_published_once_and_bought_once(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=230), tmp_path / "lake" / "links"
    words = ("links", "--all", "--out", str(out))
    assert said(served.url, *words).code == 0
    rows = rows_in(out)
    assert [row["id"] for row in rows] == names_of(expected(230) + expected(7, SMALL), custom=False)
    manifest = manifest_of(out)
    assert (manifest["complete"], manifest["pages"], manifest["links"]) == (True, 4, len(rows))
    assert [(part["path"], part["rows"]) for part in manifest["parts"]] == [(next(out.glob("part-*")).name, len(rows))]
    assert (out / "_SUCCESS").exists()
    helped, times = dict(served.sandbox.helped), {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert said(served.url, *words).code == 0
    assert served.sandbox.helped == helped
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    shown = harvester("status", str(out))
    assert (shown.returncode, "describes a table of links" in shown.stderr) == (2, True)
    (part,) = out.glob("part-*")
    part.write_bytes(part.read_bytes() + b"x")
    assert said(served.url, *words).code == 8
    part.unlink()  # as a loader does
    assert said(served.url, *words).code == 0
    assert (served.sandbox.helped, list(out.glob("part-*"))) == (helped, [])


def test_what_is_no_bitlink_is_in_the_failures(said: Run, tmp_path: Path) -> None:
    with paged({"": [(200, {"links": [{"id": "a/b/c"}, {"id": "bit.ly/x"}], "pagination": {}})]}) as group:
        shown = said(group.url, "links", "--group", "G", "--out", str(tmp_path / "out"))
    assert shown.code == 0
    (failure,) = map(json.loads, (tmp_path / "out" / "_failures.ndjson").read_text().splitlines())
    assert (failure["text"], failure["kind"]) == ("a/b/c", "invalid")
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["bit.ly/x"]
    assert manifest_of(tmp_path / "out")["invalid"] == 1


@pytest.mark.parametrize("format_", ["ndjson", "ndjson.gz", "parquet"])
def test_each_format_loads_with_the_printed_schema(
    said: Run, capsys: pytest.CaptureFixture[str], serve: Callable[..., Served], tmp_path: Path, format_: str
) -> None:
    served, out = serve(links=40), tmp_path / "out"
    assert said(served.url, "links", "--group", LARGE, "--out", str(out), "--format", format_).code == 0
    ddl = command(capsys, "schema", "--rows", "links", "--for", "duckdb", "--format", format_).out
    with duckdb.connect() as database:
        database.execute(ddl)
        database.execute(f"INSERT INTO bitly_links FROM bitly_links_parts('{out}/part-*.{format_}')")
        found = database.execute(
            'SELECT id, long_url, tags, epoch(created_at)::BIGINT, archived, custom_bitlinks, "group" FROM bitly_links'
        ).fetchall()
    rows = [json.loads(line) for line in said(served.url, "links", "--group", LARGE, "--json").out.splitlines()]
    assert [(id_, url, tags, archived, customs, group) for id_, url, tags, _, archived, customs, group in found] == [
        (row["id"], row["long_url"], row["tags"], row["archived"], row["custom_bitlinks"], row["group"]) for row in rows
    ]
    assert found[0][3] == 1793491200


@pytest.mark.parametrize(
    "target", ["json-schema", "bigquery", "spark", "snowflake", "athena", "clickhouse", "pyarrow", "polars"]
)
def test_each_target_has_every_column(capsys: pytest.CaptureFixture[str], target: str) -> None:
    shown = command(capsys, "schema", "--rows", "links", "--for", target)
    assert shown.code == 0
    for name in ("id", "long_url", "custom_bitlinks", "created_at", "group"):
        assert name in shown.out.lower()
    if target in {"pyarrow", "polars"}:
        exec(compile(shown.out, target, "exec"), {})
    if target in {"json-schema", "bigquery", "spark"}:
        json.loads(shown.out)


def test_the_month_spent_in_the_middle_ends_with_7_and_the_rest_is_bought_later(
    said: Run, capsys: pytest.CaptureFixture[str], serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=500), tmp_path / "out"
    words = ("links", "--group", LARGE, "--out", str(out), "--archived", "both", "--base-url", served.url)
    spent = command(capsys, *words, "--per-minute", "0", "--per-hour", "0", "--per-month", "3")
    assert spent.code == 7
    assert served.sandbox.helped[PAGES] == 3
    manifest = manifest_of(out)
    assert (manifest["complete"], manifest["pages"], manifest["stopped"]["reason"]) == (False, 3, "month_spent")
    assert not list(out.glob("part-*"))
    assert command(capsys, *words, *NO_LIMITS).code == 0
    assert served.sandbox.helped[PAGES] == 5
    assert len(rows_in(out)) == 500


def test_a_month_that_bitly_says_is_spent_ends_with_7(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=500, per_month=3), tmp_path / "out"
    words = ("links", "--group", LARGE, "--out", str(out), "--archived", "both")
    assert said(served.url, *words).code == 7
    asked = served.sandbox.helped[PAGES]
    assert asked == 5  # the page that was refused, and one that was answered before, to make sure
    assert manifest_of(out)["pages"] == 3
    assert said(served.url, *words).code == 7
    assert served.sandbox.helped[PAGES] == asked


def test_other_links_or_another_format_are_refused(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=20), tmp_path / "out"
    assert said(served.url, "links", "--group", LARGE, "--out", str(out)).code == 0
    for words in (("--all",), ("--group", LARGE, "--archived", "on"), ("--group", LARGE, "--format", "parquet")):
        shown = said(served.url, "links", *words, "--out", str(out))
        assert shown.code == 2
        assert "was started with" in shown.err
    (out / "_harvester" / "links.pages").unlink()
    assert said(served.url, "links", "--group", LARGE, "--out", str(out)).code == 8


def test_a_folder_that_another_process_has_open_is_left_alone(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, private = serve(links=20), tmp_path / "out" / "_harvester"
    private.mkdir(parents=True)
    with FolderLock(str(private), "out"):
        assert said(served.url, "links", "--group", LARGE, "--out", str(tmp_path / "out")).code == 5
    run = tmp_path / "run"
    (tmp_path / "list").write_text("bit.ly/a\n")
    assert said(served.url, "run", str(tmp_path / "list"), "--out", str(run)).code == 0
    assert said(served.url, "links", "--group", LARGE, "--out", str(run)).code == 2
    assert served.sandbox.helped[PAGES] == 0


@pytest.mark.parametrize("moment", ["before the rename", "after the rename", "taken by a loader"])
def test_a_part_is_published_once_whenever_the_process_ends(
    said: Run, serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The journal names a part before it appears, and there are three moments after that."""
    served, out = serve(links=40), tmp_path / "out"
    words = ("links", "--group", LARGE, "--out", str(out))
    with monkeypatch.context() as patch:
        name = "_recover" if moment == "before the rename" else "_write_failures"

        def die(*_: Any) -> Iterator[None]:
            raise KeyboardInterrupt

        patch.setattr(f"harvester.groups.output.LinksOutput.{name}", die)
        assert said(served.url, *words).code == 130
    taken = []
    if moment == "taken by a loader":
        (part,) = out.glob("part-*")
        taken = [part.rename(tmp_path / part.name)]
    assert not (out / "_SUCCESS").exists()
    assert said(served.url, *words).code == 0
    parts = [*out.glob("part-*"), *taken]
    assert len(parts) == 1
    assert rows_in(tmp_path if taken else out)
    assert served.sandbox.helped[PAGES] == 1
    assert (out / "_SUCCESS").exists()


@pytest.mark.slow
def test_an_end_in_the_middle_buys_no_page_twice(serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=900, latency_ms=60), tmp_path / "out"
    words = ("links", "--group", LARGE, "--archived", "both", "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    journal = out / "_harvester" / "links.pages"

    def reached(pages: int) -> bool:
        return journal.exists() and journal.read_bytes().count(b'"links"') >= pages

    for number, pages in ((signal.SIGKILL, 2), (signal.SIGTERM, 4), (signal.SIGKILL, 6)):
        code = interrupt(partial(reached, pages), *words, number=number)
        assert code == (5 if number == signal.SIGTERM else -9)
        assert not (out / "_SUCCESS").exists()
        stopped = manifest_of(out)["stopped"]
        assert (stopped and stopped["reason"]) == ("signal" if number == signal.SIGTERM else None)
    done = harvester(*words)
    assert done.returncode == 0, done.stderr
    assert served.sandbox.helped[PAGES] <= 9 + 2  # at most the page in flight, for each kill
    assert [row["id"] for row in rows_in(out)] == [link_of(LARGE, number)["id"] for number in range(900)]
    assert manifest_of(out)["pages"] == 9
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_the_recipe_of_the_page_joins_metrics_to_links(
    said: Run, capsys: pytest.CaptureFixture[str], serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, lake = serve(links=40), tmp_path / "lake"
    assert said(served.url, "links", "--group", LARGE, "--out", str(lake / "links")).code == 0
    assert said(served.url, "run", "--group", LARGE, "--out", str(lake / "referrers")).code == 0
    page = (ROOT / "docs" / "loading.md").read_text().partition("## Joining links")[2]
    recipe = page.partition("```sql\n")[2].partition("```")[0].replace("'lake/", f"'{lake}/")
    with duckdb.connect() as database:
        database.execute(command(capsys, "schema", "--for", "duckdb").out)
        database.execute(f"INSERT INTO bitly_metrics FROM bitly_parts('{lake}/referrers/part-*.ndjson.gz')")
        database.execute(command(capsys, "schema", "--rows", "links", "--for", "duckdb").out)
        found = database.execute(recipe.replace(".read links.sql", "")).fetchall()
    clicks: dict[str, int] = {}
    links = {name: link["id"] for link in expected(40) for name in names_of([link])}
    for row in rows_in(lake / "referrers"):
        clicks[links[row["bitlink"]]] = clicks.get(links[row["bitlink"]], 0) + row["clicks_listed"]
    assert {id_: total for id_, _, total in found} == clicks
    assert None not in clicks
