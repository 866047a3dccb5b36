"""`harvester report` and `harvester top`: the command, and the file in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

import harvester
from harvester.bitly.facets import FACETS
from harvester.bitly.query import Period, query_for, query_for_period
from harvester.dataset.manifest import DatasetCounts
from harvester.rows.encode import Format
from harvester.rows.schema import Shape
from tests.conftest import Served
from tests.support.browsers import browsing, opened
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.in_process import command
from tests.support.made_outputs import Row, make_output, random_rows
from tests.support.s3_server import LINKS, Case
from tests.support.terminals import on_terminal

HOSTILE = (
    "<script>told('script')</script>",
    '"><img src=x onerror=told("img")>',
    "]]></style></svg><script>told(1)</script>",
    "</title><svg onload=told(2)>",
    "javascript:told(3)",
    "\u202e\u2066evil\x00\x1b[31m",
    "https://tracker.example/pixel.png",
    "x" * 10_000,
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
    "שלום עולם",
)


def hostile_lake(folder: Path) -> str:
    """Make outputs of several facets and days, in which every text from elsewhere is hostile."""
    metrics = [{"value": name, "clicks": 100 - place} for place, name in enumerate(HOSTILE)]
    rows = [
        Row(f"bit.ly/{number}", metrics[: number % 12], {name: name for name in HOSTILE[:6]}) for number in range(14)
    ]
    failures = [
        {"bitlink": name, "kind": "refused", "status": 403, "message": name, "text": None} for name in HOSTILE[:6]
    ]
    for day in ("2026-11-21", "2026-11-22"):
        period = Period("day", date.fromisoformat(day))
        for facet in ("referrers", "countries"):
            query = query_for_period(facet, period, 50)
            make_output(folder / facet / f"dt={day}", query, rows, failures=failures)
        cities = [replace(row, carried=None) for row in random_rows("cities", 3)]
        make_output(folder / "cities" / f"dt={day}", query_for_period("cities", period, 8), cities)
    return str(folder / "{facet}/dt={dt}")


@pytest.fixture
def browser() -> Iterator[Browser]:
    """For one test: playwright's event loop runs as long as the browser does, and other tests have their own."""
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "report.html"
    harvester.report(hostile_lake(folder / "lake")).save(path)
    return path


def test_nothing_runs_or_is_requested_and_all_can_read_it(browser: Browser, hostile: Path) -> None:
    for width, scheme in ((320, "light"), (1100, "dark")):
        view: Any = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        with opened(browser, hostile, **view) as file:
            assert file.faults() == []
            wide = file.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"a horizontal scroll bar at {width} pixels"
            assert (file.told, file.requests) == ([], [])
            levels = file.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
            assert levels == [1] + [2] * (len(levels) - 1)
    text = hostile.read_text(encoding="utf-8")
    assert not re.findall(r"<script(?!>\"use strict\")", text)
    assert not re.findall(r"[\u202a-\u202e\u2066-\u2069\x00]", text)
    assert len(text) < 2**20


def test_tables_are_sorted_and_filtered_and_colours_are_chosen(browser: Browser, hostile: Path) -> None:
    with opened(browser, hostile, color_scheme="light") as file:
        page = file.page
        table = page.get_by_role("table", name="Clicks by referrer")
        names, clicks = ("tbody tr:not([hidden]) th", "tbody tr:not([hidden]) td:nth-child(2)")

        def shown(cells: str) -> list[str]:
            return list(table.locator(cells).all_inner_texts())

        first = shown(clicks)
        assert [int(each.replace(",", "")) for each in first] == sorted(
            [int(each.replace(",", "")) for each in first], reverse=True
        )
        table.get_by_role("button", name="Clicks").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        assert shown(clicks) == first[::-1]
        assert table.get_by_role("columnheader", name="Clicks").get_attribute("aria-sort") == "ascending"
        table.get_by_role("button", name="Referrer").click()
        assert shown(names)[0].startswith(("\\", "&", '"', "]"))
        region = page.get_by_role("region", name="Table: Clicks by referrer")
        field = region.locator("xpath=preceding-sibling::label[1]//input")
        field.fill("SCRIPT>")
        assert len(shown(names)) == 2
        field.fill("")
        assert len(shown(names)) == len(HOSTILE)

        def ground() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        assert ground() == "rgb(255, 255, 255)"
        page.get_by_label("Dark").check()
        assert ground() != "rgb(255, 255, 255)"
        page.emulate_media(media="print")
        assert ground() == "rgb(255, 255, 255)"
        assert (file.told, file.requests) == ([], [])


def test_without_script_everything_is_there_but_what_the_script_does(browser: Browser, hostile: Path) -> None:
    with opened(browser, hostile, java_script_enabled=False) as file:
        assert file.page.get_by_role("table", name="Clicks by referrer").get_by_role("row").count() == len(HOSTILE) + 1
        assert file.page.get_by_role("button").count() == 0
        assert file.page.get_by_role("img", name="Clicks by referrer").locator("visible=true").count() == 1
        file.page.get_by_label("Dark").check()


# --- the command ----------------------------------------------------------------------------------------------------


async def harvested(served: Served, out: str, **options: Any) -> None:
    links = [f"bit.ly/{number}" for number in range(20)] + ["bit.ly/missing"]
    limits: Any = dict.fromkeys(("per_minute", "per_hour", "per_month"), 0)
    await harvester.harvest(links, out=out, token=TOKEN, base_url=served.url, **limits, **options)


async def test_a_report_is_written_and_replaced_but_no_other_file(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    days = {"since": "2026-11-21", "until": "2026-11-22"}
    await harvested(serve(), "lake/{facet}/dt={dt}", facet=["referrers", "clicks"], **days)
    for _ in range(2):
        done = command(capsys, "report", "lake/{facet}/dt=*")
        assert (done.code, done.out, done.err) == (0, "wrote report.html\n", "")
    text = Path("report.html").read_text(encoding="utf-8")
    for title in ("What was harvested", "Clicks by referrer", "Clicks a day", "Links with most clicks"):
        assert f">{title}</h2>" in text
    assert "NOT_FOUND" in text
    printed = command(capsys, "report", "lake", "--to", "-")
    assert printed.out.startswith("<!doctype html>")
    Path("notes.html").write_text("mine")
    refused = command(capsys, "report", "lake", "--to", "notes.html")
    assert (refused.code, Path("notes.html").read_text()) == (2, "mine")
    assert "exists, and is not a report" in refused.err
    assert command(capsys, "report", "elsewhere").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "notes.html", "report.html"]


async def test_the_browser_is_opened_if_there_is_one(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await harvested(serve(), str(tmp_path / "results.ndjson"))
    addresses: list[str] = []

    def opens(address: str) -> bool:
        addresses.append(address)
        return len(addresses) == 1

    monkeypatch.setattr("webbrowser.open", opens)
    words = ("report", str(tmp_path / "results.ndjson"), "--to", str(tmp_path / "it.html"), "--open")
    assert command(capsys, *words).err == ""
    assert command(capsys, *words).err == f"warning: no browser was found; open {tmp_path / 'it.html'}\n"
    assert addresses == [(tmp_path / "it.html").as_uri()] * 2


async def test_top_prints_the_same_sums_as_text_and_as_json(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "{facet}")
    await harvested(serve(), out, facet=[*FACETS])
    rows = [json.loads(line) for part in (tmp_path / "referrers").glob("part-*") for line in _lines(part)]
    clicks: dict[str, int] = {}
    for row in rows:
        for metric in row["metrics"]:
            clicks[metric["value"]] = clicks.get(metric["value"], 0) + metric["clicks"]
    found = json.loads(command(capsys, "top", out, "--json").out)
    assert {line["value"]: line["clicks"] for line in found["lines"]} == clicks
    text = command(capsys, "top", out, "-n", "1").out.splitlines()
    name, number = max(clicks.items(), key=lambda item: item[1])
    assert text[0].split() == ["Referrer", "Clicks", "Share"]
    assert text[2].startswith(f"{name} ")
    assert f" {number:,} " in text[2]
    for by in ("link", "day", "country", "city", "device", "domain", "referrer-name", "domain-and-referrer"):
        assert json.loads(command(capsys, "top", out, "--by", by, "--json").out)["lines"], by
    alone = command(capsys, "top", str(tmp_path / "devices"), "--by", "country")
    expected = f"--by country: {tmp_path}/devices has no facet countries; --by device, link can be printed"
    assert (alone.code, expected in alone.err) == (2, True)
    days = command(capsys, "top", str(tmp_path / "devices"), "--by", "day")
    assert (days.code, "--by day: " in days.err, "has no days: its rows are totals" in days.err) == (2, True, True)
    assert command(capsys, "top", str(tmp_path / "devices"), "--lines", "0").code == 2


def _lines(part: Path) -> list[bytes]:
    import gzip  # noqa: PLC0415

    return gzip.decompress(part.read_bytes()).splitlines()


def test_an_object_store_is_read_also_by_its_layout(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (case.s3.env | {"BITLY_TOKEN": TOKEN}).items():
        monkeypatch.setenv(name, value)
    above = case.out.rpartition("/")[0]
    for facet in ("referrers", "devices"):
        out, work = f"{above}/report/{facet}/dt=2026-11-22", str(case.work / facet)
        words = ("run", str(case.links), "--out", out, "--work-dir", work, "--base-url", case.served.url, *NO_LIMITS)
        assert command(capsys, *words, "--facet", facet, "--quiet").code == 0
    one = json.loads(command(capsys, "top", out, "--json").out)
    both = json.loads(command(capsys, "top", f"{above}/report/{{facet}}/dt=*", "--by", "device", "--json").out)
    assert one == both
    path = tmp_path / "store.html"
    assert command(capsys, "report", f"{above}/report/*/*", "--to", str(path)).code == 0
    assert "Clicks by referrer" in path.read_text()


def test_a_folder_of_a_store_is_searched_and_a_report_is_written_there(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (case.s3.env | {"BITLY_TOKEN": TOKEN}).items():
        monkeypatch.setenv(name, value)
    above = f"{case.out}/below"
    for day in ("2026-11-21", "2026-11-22"):
        out, work = f"{above}/devices/dt={day}", str(case.work / day)
        words = ("run", str(case.links), "--out", out, "--work-dir", work, "--base-url", case.served.url, *NO_LIMITS)
        assert command(capsys, *words, "--facet", "devices", "--day", day, "--quiet").code == 0
    bucket = case.out.removesuffix(f"/{case.prefix}")
    found = [
        json.loads(command(capsys, "top", out, "--json").out)
        for out in (above, f"{above}/", f"{above}/*", f"{bucket}/*/{case.prefix.split('/')[1]}/below/devices/dt=*")
    ]
    assert found[1:] == found[:1] * 3
    assert found[0]["links"] == len(LINKS)
    assert command(capsys, "report", "s3://*/x").err.startswith(
        "harvester: s3://*/x: a pattern stands for prefixes of one"
    )
    nothing = command(capsys, "report", f"{above}/nothing")
    assert (nothing.code, "neither it nor a folder below it has a _manifest.json" in nothing.err) == (2, True)
    store = case.s3.store(f"{case.prefix}/below")
    path = f"{above}/report.html"
    for _ in range(2):  # a report is replaced
        assert command(capsys, "report", above, "--to", path).out == f"wrote {path}\n"
    response = store.get("report.html")
    assert response.attributes["Content-Type"] == "text/html; charset=utf-8"
    assert b"Clicks by device" in bytes(response.bytes())
    store.put("notes.html", b"mine")
    refused = command(capsys, "report", above, "--to", f"{above}/notes.html")
    assert (refused.code, "exists, and is not a report" in refused.err) == (2, True)
    assert bytes(store.get("notes.html").bytes()) == b"mine"
    assert "--to" in command(capsys, "report", above, "--to", f"{above}/").err


async def test_a_link_stays_and_the_report_that_it_leads_to_is_written(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str]
) -> None:
    await harvested(serve(), out := str(tmp_path / "out"))
    link, file = tmp_path / "link.html", tmp_path / "real.html"
    link.symlink_to(file)
    for _ in range(2):
        assert command(capsys, "report", out, "--to", str(link)).code == 0
        assert link.is_symlink()
        assert file.read_bytes().startswith(b"<!doctype html>")
    file.write_text("mine")
    assert command(capsys, "report", out, "--to", str(link)).code == 2
    assert file.read_text() == "mine"
    missing = command(capsys, "report", out, "--to", str(tmp_path / "nodir/x.html"))
    assert (missing.code, f"the folder {tmp_path}/nodir does not exist; make it first" in missing.err) == (2, True)
    folder = command(capsys, "report", out, "--to", str(tmp_path))
    assert (folder.code, "is a folder: name a file in it" in folder.err) == (2, True)


def test_names_that_the_shell_has_put_for_a_pattern_are_an_error_that_says_quotes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("report", "top"):
        done = command(capsys, name, "lake/a", "lake/b")
        assert (done.code, "lake/b is one argument too many: put a pattern in quotes" in done.err) == (2, True)
    assert "quotes" not in command(capsys, "status", "lake/a", "lake/b").err


def test_of_damaged_parts_the_report_shows_the_rest_and_says_so_on_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
    for place, name in enumerate(("whole", "broken & torn")):
        rows = [Row(f"bit.ly/{name[0]}{n}", [{"value": "direct", "clicks": 5}]) for n in range(10 + place)]
        make_output(tmp_path / "lake" / name, query, rows)
    part = next((tmp_path / "lake/broken & torn").glob("part-*"))
    part.write_bytes(part.read_bytes()[:50])
    path, lake = tmp_path / "report.html", str(tmp_path / "lake")
    done = command(capsys, "report", lake, "--to", str(path))
    assert done.code == 8
    assert f"harvester: broken & torn/{part.name} should have 11 rows, and cannot be read as it is: " in done.err
    assert f"`harvester verify '{lake}/broken & torn'` says what is wrong." in done.err
    text = path.read_text()
    assert text.index("1 file is damaged. These sums lack 11 of 21 rows.") < text.index("<dt>Links</dt><dd>10</dd>")
    assert "broken &amp; torn/part-" in text
    assert re.search("<code>harvester verify &#x27;[^<]*/lake/broken &amp; torn&#x27;</code> says", text)
    assert len(harvester.report(lake).damaged) == 1
    assert command(capsys, "report", lake, "--to", "-").code == 8
    top = command(capsys, "top", lake, "--json")
    assert (top.code, json.loads(top.out)["clicks"], len(json.loads(top.out)["damaged"])) == (8, 50, 1)
    assert command(capsys, "verify", f"{lake}/broken & torn").code == 8


def test_rows_that_lack_clicks_are_told_at_the_pictures_and_below_the_table_of_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = [{"value": name, "clicks": 5} for name in "ab"]
    rows = [Row("bit.ly/a", metrics), Row("bit.ly/b", metrics[:1], units_returned=7), Row("bit.ly/c", metrics[:1])]
    out = make_output(tmp_path / "out", query_for("referrers", "day", 30, "2026-11-23T06:00:00Z", 2), rows)
    note = (
        "Of 3 rows of the facet referrers, 1 is truncated and 1 is clipped: there were more clicks than are shown here."
    )
    text = harvester.report(out).html
    sections = dict(re.findall(r"<h2 id=\"s\d+\">(.*?)</h2>(.*?)</section>", text, re.DOTALL))
    told = {title for title, content in sections.items() if f'<p class="note">{note}</p>' in content}
    assert told == {"Clicks by referrer", "Links with most clicks", "How clicks spread over links"}
    assert command(capsys, "top", str(out)).out.splitlines()[-1] == note
    whole = make_output(tmp_path / "whole", query_for("referrers", "day", 30, "2026-11-23T06:00:00Z", 50), rows[2:])
    assert '<p class="note">' not in harvester.report(whole).html
    assert "truncated" not in command(capsys, "top", str(whole)).out


def test_answers_that_are_in_no_part_yet_are_told_at_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query, counts = (
        query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50),
        DatasetCounts(500, 448, 0, 0, 52, 0, 0),
    )
    out = make_output(tmp_path / "out", query, [], dataset=counts, ended=None, complete=False)
    text = harvester.report(out).html
    for name in ("Links", "Clicks", "Rows"):
        assert f'<dt>{name}</dt><dd>0</dd><dd class="note">448 answers not in the parts yet</dd>' in text
    done = command(capsys, "top", str(out), "--by", "link")
    why = "a run ends by publishing all; repeat a killed one"
    warning = f"warning: 448 rows are not in the parts yet, and not added up: {why}\n"
    assert (done.code, done.err) == (0, warning)
    assert "must name a bucket" in command(capsys, "top", "s3://").err


def test_a_report_is_under_a_mebibyte_whatever_was_carried_and_however_many_outputs_there_are(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + number) for number in range(1000))
    carried = {f"{text[n]}欄{n}": text[n:] + text[:n] for n in range(40)}
    rows = [
        Row(f"bit.ly/{n}", [{"value": f"https://{text[n % 900 :][:90]}/{n}", "clicks": n}], carried)
        for n in range(1000)
    ]
    for facet in ("referrers", "referrer_name", "referring_domains"):
        make_output(tmp_path / "lake" / facet, query_for(facet, "day", -1, "2026-11-23T06:00:00Z", 50), rows)
    html = harvester.report(tmp_path / "lake").html
    assert 500_000 < len(html.encode()) < 2**20
    assert "Values of carried columns are shortened to 48 characters; the rows have all of them." in html
    assert re.search(r"[\d,]+ more lines are left out to keep this file small\.", html)
    assert "34 more carried columns are not shown." in html
    for number in range(400):
        name = f"{text[number:][:60]}-{number}"
        make_output(tmp_path / "many" / name, query_for("devices", "day", -1, "2026-11-23T06:00:00Z", 50), [])
    assert len(harvester.report(tmp_path / "many").html.encode()) < 2**19


@pytest.mark.parametrize(("columns", "titles"), [(90, "Link Clicks Share campaign"), (50, "Link Clicks")])
def test_a_terminal_gets_as_many_columns_as_it_is_wide_and_links_are_whole(
    tmp_path: Path, columns: int, titles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which would count for more than the terminal's size
    link = f"bit.ly/{'x' * 29}"
    rows = [Row(link, [{"value": "direct", "clicks": 5}], {"campaign": "Spring sale"})]
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), rows)
    with on_terminal("top", str(out), "--by", "link", columns=columns, new_interpreter=True) as terminal:
        terminal.until(lambda: "campaign" in terminal.everything())
        assert terminal.end() == 0
        lines, everything = terminal.lines, terminal.everything()
    assert " ".join(lines[0].split()) == titles
    assert [line for line in lines if line.startswith(link)]
    narrow = "Not shown on this terminal: Share, campaign."
    assert (narrow in everything) == (columns == 50), everything


def test_a_name_that_is_empty_blank_or_unknown_is_called_the_same_everywhere(tmp_path: Path) -> None:
    names = ["", "   ", "direct"]
    rows = [Row(f"bit.ly/{n}", [{"value": name, "clicks": 5}]) for n, name in enumerate(names)]
    out = make_output(tmp_path / "out", query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50), rows)
    text = harvester.report(out).html
    for name in ("(empty)", "(blank)"):
        assert f"<bdi>{name}</bdi>" in text
        assert len(re.findall(f">{re.escape(name)}</text>", text)) == 2  # in the wide and in the narrow picture
    assert ">unknown</text>" not in text


def test_others_have_no_bar_where_it_would_dwarf_those_with_a_name(tmp_path: Path) -> None:
    query = query_for("referrers", "day", -1, "2026-11-23T06:00:00Z", 50)
    for others, drawn in ((14, True), (400, False)):
        rows = [Row(f"bit.ly/{n}", [{"value": f"https://{n}.example", "clicks": 5}]) for n in range(others)]
        text = harvester.report(make_output(tmp_path / str(others), query, rows)).html
        assert (">others</text>" in text) == drawn
        assert f"{others - 12} others have {5 * (others - 12):,} clicks" in text


def test_an_output_without_rows_has_a_report(tmp_path: Path) -> None:
    for facet in FACETS:
        make_output(tmp_path / facet, query_for(facet, "day", -1, "2026-11-23T06:00:00Z", 50), [])
    text = harvester.report(tmp_path).html
    assert "What was harvested" in text


def test_a_notebook_shows_it_in_a_frame_of_its_own(tmp_path: Path) -> None:
    rows = random_rows("devices", 1)
    form = (Format.NDJSON, Shape.NESTED)
    out = make_output(tmp_path / "out", query_for("devices", "day", -1, "2026-11-23T06:00:00Z", 50), rows, form)
    found = harvester.report(out)
    shown = found._repr_html_()
    assert shown.startswith("<iframe ")
    assert 'sandbox="allow-scripts"' in shown
    assert shown.count("<") == 2
    assert repr(found).startswith("<harvester report")
