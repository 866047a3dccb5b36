"""`harvester run --skip-idle`: exports give idle links their rows, others are asked for, and the sums are the same."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import pytest

import harvester as package
from harvester.bitly.exports import MOST_LINKS
from harvester.client.client import ClientSettings
from harvester.sandbox.groups import LARGE, SMALL, link_of
from tests.conftest import Served
from tests.e2e.test_links import PAGES, expected, manifest_of, names_of, rows_in
from tests.support.commands import NO_LIMITS, TOKEN, harvester, interrupt
from tests.support.in_process import QUICK_GATE, Said, command, harvest

Run = Callable[..., Said]
EXPORTS = f"/groups/{LARGE}/exports"
DAY = f"{datetime.now(UTC) - timedelta(3):%Y-%m-%d}"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against a URL without limits."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    return lambda url, *words: command(capsys, *words, "--base-url", url, *NO_LIMITS)


def clicks_by_link(out: Path) -> dict[str, int]:
    rows = rows_in(out)
    found = {row["bitlink"]: row["clicks_listed"] for row in rows}
    assert len(found) == len(rows)
    return found


def sources(out: Path) -> Counter[str | None]:
    return Counter(row["source"] for row in rows_in(out))


def sent_to(served: Served) -> int:
    """All requests for links and exports."""
    return sum(served.sandbox.requests.values()) + len(served.sandbox.exported)


@pytest.mark.parametrize(
    "window", [(), ("--day", DAY), ("--unit", "week", "--units", "2")], ids=["all", "day", "weeks"]
)
@pytest.mark.parametrize("facet", ["referrers", "cities", "clicks", "clicks_summary"])
def test_idle_links_cost_an_export_of_200_and_the_sums_are_the_same(
    said: Run, serve: Callable[..., Served], tmp_path: Path, facet: str, window: tuple[str, ...]
) -> None:
    served, names = serve(links=300), names_of(expected(300))
    words = ("run", "--group", LARGE, "--facet", facet, *window, "--out")
    assert said(served.url, *words, str(tmp_path / "all")).code == 0
    before = sent_to(served)
    shown = said(served.url, *words, str(tmp_path / "few"), "--skip-idle")
    assert shown.code == 0, shown.err
    assert clicks_by_link(tmp_path / "few") == clicks_by_link(tmp_path / "all")
    assert set(clicks_by_link(tmp_path / "few")) == set(names)
    active = sum("/idle" not in name for name in names)
    manifest = manifest_of(tmp_path / "few")
    idle = manifest["dataset"]["idle"]
    assert sources(tmp_path / "few") == {"group_export": idle, None: len(names) - idle}
    assert len(names) - active <= idle < len(names)
    checks = bool("--day" in window)  # a call of clicks shows that the window is the day
    exports = ceil(len(names) / MOST_LINKS)
    assert sent_to(served) - before == len(names) - idle + exports + checks
    assert manifest["attempts"]["total"] == len(names) - idle + checks
    assert manifest["attempts"]["helper"] == exports + 3  # and the pages of the group
    assert f"{idle:,} of {len(names):,} rows without a call" in shown.err
    assert harvester("verify", str(tmp_path / "few")).returncode == 0


def test_the_facets_of_a_day_share_its_exports_and_the_sums_are_the_same(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, calls = serve(links=210), len(names_of(expected(210)))
    facets, days = ("referrers", "clicks"), (DAY, f"{date.fromisoformat(DAY) + timedelta(1)}")
    words = ("run", "--group", LARGE, "--facet", ",".join(facets), "--since", days[0], "--until", days[1], "--out")
    assert said(served.url, *words, str(tmp_path / "all/{facet}/{dt}")).code == 0
    shown = said(served.url, *words, str(tmp_path / "few/{facet}/{dt}"), "--skip-idle")
    assert shown.code == 0, shown.err
    outputs = [f"{facet}/{day}" for facet in facets for day in days]
    for each in outputs:
        assert clicks_by_link(tmp_path / "few" / each) == clicks_by_link(tmp_path / "all" / each)
        assert manifest_of(tmp_path / "few" / each)["dataset"]["idle"] > 150
    assert len(served.sandbox.exported) == ceil(calls / MOST_LINKS) * len(days) == 4
    assert f"; {len(served.sandbox.exported)} exports of a group's clicks; " in shown.err
    helped = sum(manifest_of(tmp_path / "few" / each)["attempts"]["helper"] for each in outputs)
    assert helped == len(served.sandbox.exported) + 2  # and the pages of the group


@pytest.mark.parametrize("fault", ["missing", "truncated", "columns", "402", "403", "403-token", "404", "400", "{}"])
def test_without_a_clear_word_of_the_export_a_link_is_asked_for(
    said: Run, serve: Callable[..., Served], tmp_path: Path, fault: str
) -> None:
    served, names = serve(links=500, exports=fault), names_of(expected(500))
    shown = said(served.url, "run", "--group", LARGE, "--out", str(tmp_path / "out"), "--skip-idle")
    assert shown.code == 0, shown.err
    idle = {row["bitlink"] for row in rows_in(tmp_path / "out") if row["source"]}
    assert set(served.sandbox.requests) == set(names) - idle
    stated = {name for links in served.sandbox.exported for name in links[::2]} if fault == "missing" else set()
    assert idle <= stated
    assert len(idle) > 200 or fault != "missing"
    warnings = [line for line in shown.err.splitlines() if "export" in line and "asked for" in line]
    assert len(warnings) == 1, shown.err
    twice = fault in {"columns", "{}"}  # a 200 that cannot be read is asked for once more
    assert len(served.sandbox.exported) == (3 if fault in {"missing", "truncated"} else 2 if twice else 1)


async def test_exports_that_are_not_answered_are_given_up_and_the_links_asked_for(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, names = serve(links=300, exports="503"), [f"idle{number}" for number in range(2500)]
    outcome = await harvest(
        served.url,
        tmp_path,
        names,
        skip_idle=True,
        in_group=LARGE,
        client_settings=ClientSettings(served.url, 5, attempts=3, timeout_seconds=10.0, backoff_seconds=0.01),
        breaker_rules=replace(QUICK_GATE, limit_seconds=0.1),
    )
    assert (outcome.complete, outcome.status.rows, outcome.status.idle) == (True, len(names), 0)
    assert len(served.sandbox.exported) < 20  # two of three batches, and what each was repeated


def test_the_group_of_a_list_is_named_and_links_of_others_are_asked_for(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=50), tmp_path / "out"
    names = [f"bit.ly/{name}" for name in ("idle1", "foreign", "idle2", "missing", "active1")]
    (tmp_path / "links.csv").write_text("link,campaign\n" + "".join(f"{name},c{name[-1]}\n" for name in names))
    words = ("run", str(tmp_path / "links.csv"), "--skip-idle", "--carry", "campaign", "--out", str(out))
    assert "name it with --in-group" in said(served.url, *words).err
    shown = said(served.url, *words, "--in-group", LARGE)
    assert shown.code == 0, shown.err
    assert served.sandbox.exported == [names]
    rows = {row["bitlink"]: (row["source"], row["carried"]) for row in rows_in(out)}
    assert rows["bit.ly/idle1"] == ("group_export", {"campaign": "c1"})
    assert rows["bit.ly/idle2"] == ("group_export", {"campaign": "c2"})
    assert set(served.sandbox.requests) <= {"bit.ly/foreign", "bit.ly/missing", "bit.ly/active1"}
    assert {"bit.ly/foreign", "bit.ly/missing"} <= set(served.sandbox.requests)
    assert "says nothing of 2 of 5 links" in shown.err


def test_the_calls_before_a_broken_end_of_the_list_are_made(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out, path = serve(links=50), tmp_path / "out", tmp_path / "links.txt"
    lines = [f"bit.ly/{'idle' if number % 10 else 'active'}{number}" for number in range(1500)]
    path.write_text("\n".join([*lines, "bit.ly/a bit.ly/b bit.ly/c", ""]))
    shown = said(served.url, "run", str(path), "--skip-idle", "--in-group", LARGE, "--out", str(out))
    assert (shown.code, manifest_of(out)["stopped"]["reason"]) == (2, "input")
    assert set(clicks_by_link(out)) >= {*lines[:1000]}


def test_each_link_is_exported_by_its_own_group(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=120), tmp_path / "out"
    assert said(served.url, "run", "--all-groups", "--skip-idle", "--out", str(out)).code == 0
    large, small = names_of(expected(120)), names_of(expected(7, SMALL))
    assert served.sandbox.exported == [large, small]
    assert (served.sandbox.helped[EXPORTS], served.sandbox.helped[f"/groups/{SMALL}/exports"]) == (1, 1)
    assert set(clicks_by_link(out)) == {*large, *small}


def test_a_resumed_run_exports_only_what_nothing_is_known_of(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=900, active=0.2), tmp_path / "out"
    words = ("run", "--group", LARGE, "--skip-idle", "--out", str(out))
    codes = []
    while 0 not in codes:
        codes.append(said(served.url, *words, "--max-calls", "60").code)
        assert len(codes) < 10
    assert set(codes) == {0, 9}
    exported = Counter(name for links in served.sandbox.exported for name in links)
    assert max(exported.values()) == 1
    manifest = manifest_of(out)
    assert manifest["dataset"]["rows"] == len(names_of(expected(900)))
    assert manifest["attempts"]["total"] == sum(served.sandbox.requests.values()) == len(set(served.sandbox.requests))
    assert harvester("verify", str(out)).returncode == 0


def test_an_idle_link_is_not_taken_for_one_that_was_answered(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=300), tmp_path / "out"
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/idle{number}\n" for number in range(20)))
    words = ("run", str(tmp_path / "links.txt"), "--skip-idle", "--in-group", LARGE, "--out", str(out))
    assert said(served.url, *words).code == 0
    assert not served.sandbox.requests
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/idle{number}\n" for number in range(20)) + "bit.ly/missing\n")
    shown = said(served.url, *words)
    assert set(served.sandbox.requests) == {"bit.ly/missing"}
    assert "no link was ever answered" in shown.err


def test_where_the_plan_keeps_a_shorter_history_no_link_is_skipped(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, out = serve(links=40), tmp_path / "out"
    words = ("--unit", "day", "--units", "90", "--out", str(out))  # the sandbox keeps 30
    shown = said(served.url, "run", "--group", LARGE, *words, "--skip-idle")
    assert (shown.code, served.sandbox.exported) == (0, [])
    assert "--skip-idle: the account's plan keeps a shorter history" in shown.err
    assert manifest_of(out)["dataset"]["clipped"] == len(names_of(expected(40)))


def test_where_no_link_is_answered_none_is_skipped(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=40), tmp_path / "out"
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/missing{number}\n" for number in range(5)))
    words = ("--unit", "day", "--units", "9", "--skip-idle", "--in-group", LARGE, "--out", str(out))
    shown = said(served.url, "run", str(tmp_path / "links.txt"), *words)
    assert (shown.code, served.sandbox.exported) == (3, [])
    assert "--skip-idle: no link was answered" in shown.err
    assert len(served.sandbox.requests) == 5


def test_a_day_out_of_the_plans_history_is_not_skipped(
    said: Run, serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harvester.sandbox import server  # noqa: PLC0415

    def without(link: str, facet: str, *size: Any, **window: Any) -> dict[str, Any]:
        return {
            "unit": "day",
            "units": 0,
            "unit_reference": "2026-11-01T00:00:00+0000",
            "link_clicks": [],
            "metrics": [],
        }

    monkeypatch.setattr(server, "metrics_for", without)
    served, out = serve(links=40), tmp_path / "out"
    shown = said(served.url, "run", "--group", LARGE, "--day", DAY, "--skip-idle", "--out", str(out))
    assert (shown.code, served.sandbox.exported) == (0, [])
    assert "could not be checked that Bitly's window is the period" in shown.err
    assert manifest_of(out)["dataset"]["clipped"] == len(rows_in(out))


@pytest.mark.parametrize("shape", ["nested", "flat"])
@pytest.mark.parametrize("form", ["ndjson.gz", "ndjson.zst", "parquet"])
def test_idle_rows_are_in_every_format_and_shape(
    said: Run, serve: Callable[..., Served], tmp_path: Path, form: str, shape: str
) -> None:
    served, out = serve(links=60), tmp_path / "out"
    made = ("--format", form, "--shape", shape, "--out", str(out))
    assert said(served.url, "run", "--group", LARGE, "--skip-idle", *made).code == 0
    checked = harvester("verify", str(out), "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["idle"] == manifest_of(out)["dataset"]["idle"] > 50
    table = package.read(out)
    assert table["source"].to_pylist().count("group_export") == manifest_of(out)["dataset"]["idle"]
    assert table.schema.field("source").nullable


def test_verify_notices_an_idle_row_that_says_more(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=40), tmp_path / "out.ndjson"
    assert said(served.url, "run", "--group", LARGE, "--skip-idle", "--out", str(out)).code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    at = next(at for at, row in enumerate(lines) if row["source"])
    changes: list[tuple[dict[str, Any], str]] = [
        ({"source": "guess"}, "source is 'guess'"),
        ({"units_returned": 30}, "states more than that there are no clicks"),
        ({"clicks_listed": 3, "metrics": [{"value": "direct", "clicks": 3}]}, "states more than"),
        ({"metrics": [{"value": "direct", "clicks": 0}]}, "and 1 metrics are there"),
    ]
    for change, text in changes:
        changed = [*lines[:at], {**lines[at], **change}, *lines[at + 1 :]]
        out.write_text("".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in changed))
        checked = harvester("verify", str(out))
        assert (checked.returncode, text in checked.stdout) == (8, True), checked.stdout


def test_what_cannot_be_skipped_is_refused(said: Run, tmp_path: Path) -> None:
    url, out = "http://127.0.0.1:9/v4", ("--out", str(tmp_path / "out"))
    for words, says in [
        (("--group", "G", "--skip-idle", "--facet", "engagements"), "not the engagements of a link"),
        (("--group", "G", "--skip-idle", "--in-group", "G"), "names the group by itself"),
        (("links.txt", "--in-group", "G"), "is only for --skip-idle"),
        (("links.txt", "--skip-idle", "--in-group", "a/b"), "must be one guid"),
    ]:
        for name in ("run", "plan"):
            shown = said(url, name, *words, *out)
            assert (shown.code, says in shown.err) == (2, True), shown.err


def test_plan_shows_what_it_may_save(said: Run, serve: Callable[..., Served], tmp_path: Path) -> None:
    served, words = serve(links=900), ("--group", LARGE, "--skip-idle", "--out", str(tmp_path / "out"))
    calls = len(names_of(expected(900)))
    found = json.loads(said(served.url, "plan", *words, "--json").out)
    exports = ceil(calls / MOST_LINKS)
    assert found["idle"] == {"exports": exports, "least": exports, "most": exports + calls, "expected": None}
    assert found["attempts"] == exports + calls
    assert f"{exports} to {exports + calls:,} requests, by the share" in said(served.url, "plan", *words).out


def test_plan_counts_the_links_whose_clicks_are_known_though_most_of_them_were_not_asked_for(
    said: Run, serve: Callable[..., Served], tmp_path: Path
) -> None:
    served, words = serve(links=900), ("--group", LARGE, "--skip-idle", "--out", str(tmp_path / "out"))
    assert said(served.url, "run", *words, "--max-calls", "20").code == 9
    found = json.loads(said(served.url, "plan", *words, "--json").out)
    assert "exports have stated clicks of all these links" in said(served.url, "plan", *words).out
    before = sum(served.sandbox.requests.values())
    assert said(served.url, "run", *words).code == 0
    sent = sum(served.sandbox.requests.values()) - before
    assert found["idle"] == {"exports": 0, "least": sent, "most": sent, "expected": sent}
    assert found["attempts"] == found["calls"] == sent


def test_a_month_too_small_for_the_list_may_be_enough(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Served], tmp_path: Path
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    served = serve(links=1500)
    words = ("run", "--group", LARGE, "--base-url", served.url, "--per-minute", "0", "--per-hour", "0", "--out")
    state = ("--state-dir", str(tmp_path / "state"))
    assert command(capsys, *words, str(tmp_path / "all"), *state).code == 2  # 1,000 calls are assumed
    shown = command(capsys, *words, str(tmp_path / "few"), *state, "--skip-idle")
    assert shown.code == 0, shown.err
    assert "if all of them have clicks" in shown.err


def test_exports_count_in_the_month(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Served], tmp_path: Path
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    served, out = serve(links=900), tmp_path / "out"
    words = ("run", "--group", LARGE, "--skip-idle", "--out", str(out), "--base-url", served.url)
    limits = ("--per-minute", "0", "--per-hour", "0", "--per-month", "10", "--state-dir", str(tmp_path / "state"))
    assert command(capsys, *words, *limits).code == 7
    sent = served.sandbox.helped[PAGES] + served.sandbox.helped[EXPORTS] + sum(served.sandbox.requests.values())
    assert sent == 10
    manifest = manifest_of(out)
    assert manifest["attempts"]["total"] + manifest["attempts"]["helper"] == 10
    assert (manifest["stopped"]["reason"], manifest["dataset"]["idle"] > 100) == ("month_spent", True)


@pytest.mark.slow
def test_a_kill_in_the_middle_repeats_only_what_was_in_flight(serve: Callable[..., Served], tmp_path: Path) -> None:
    served, out = serve(links=1500, active=0.2, latency_ms=10), tmp_path / "out"
    words = ("run", "--group", LARGE, "--skip-idle", "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    links = [link for number in range(1500) if not (link := link_of(LARGE, number, 0.2))["archived"]]
    names, kills = names_of(links), 0

    def reached(exports: int, calls: int) -> bool:
        return len(served.sandbox.exported) >= exports and len(served.sandbox.answered) >= calls

    for exports, calls in ((2, 0), (5, 0), (6, 40), (6, 100)):
        interrupt(partial(reached, exports, calls), *words)
        kills += 1
    done = harvester(*words)
    assert done.returncode == 0, done.stderr
    rows = rows_in(out)
    assert sorted(row["bitlink"] for row in rows) == sorted(names)
    exported = Counter(name for links in served.sandbox.exported for name in links)
    assert sum(exported.values()) - len(exported) <= kills * MOST_LINKS  # the one in flight
    called = sum(row["source"] is None for row in rows)
    assert sum(served.sandbox.answered.values()) <= called + 5 * kills
    sent = sum(served.sandbox.requests.values()) + served.sandbox.helped[PAGES] + served.sandbox.helped[EXPORTS]
    attempts = manifest_of(out)["attempts"]
    assert sent <= attempts["total"] + attempts["helper"] <= sent + 6 * kills
    assert harvester("verify", str(out)).returncode == 0


async def test_idle_links_are_skipped_from_python(serve: Callable[..., Served]) -> None:
    served = serve(links=50)
    options: dict[str, Any] = {"token": TOKEN, "base_url": served.url, "per_minute": 0}
    links = [link_of(LARGE, number)["id"] for number in range(20)]
    rows = [row async for row in package.stream(links, skip_idle=True, in_group=LARGE, **options)]
    assert Counter(row["source"] for row in rows)["group_export"] >= 18
    assert {row["bitlink"] for row in rows} == set(links)
