"""Calendar periods and several facets in one command: a folder for each, the same numbers whatever happens between."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from harvester import api
from harvester.bitly.facets import Facet
from harvester.errors import RunStopped
from harvester.sandbox import server
from harvester.sandbox.clicks import metrics_for
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN, harvester, interrupt
from tests.support.in_process import Said
from tests.support.in_process import command as command_inside
from tests.support.output_checks import manifest, rows

LAYOUT = "lake/{facet}/dt={dt}"
FIRST = date(2026, 11, 2)
LINKS = [f"bit.ly/link{number}" for number in range(6)]
Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process and in a folder with a list, with a token."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    (tmp_path / "links.txt").write_text("\n".join(LINKS))
    monkeypatch.chdir(tmp_path)
    return partial(command_inside, capsys)


def run(*words: str, served: Served, out: str = LAYOUT) -> list[str]:
    return ["run", "links.txt", "--out", out, "--base-url", served.url, *NO_LIMITS, *words]


def days(count: int) -> list[str]:
    return [(FIRST + timedelta(number)).isoformat() for number in range(count)]


def clicks_of(found: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in found:
        total[row["bitlink"]] += sum(metric["clicks"] for metric in row["metrics"])
    return total


def window_clicks(links: list[str], facet: str, count: int) -> Counter[str]:
    """What the sandbox has for a window of this many days, in one answer a link."""
    end = f"{days(count)[-1]}T00:00:00+0000"
    bodies = {link: metrics_for(link, facet, 1000, "day", count, end) for link in links}
    return Counter({link: sum(each["clicks"] for each in body["metrics"]) for link, body in bodies.items()})


# --- one day ----------------------------------------------------------------------------------------------------------


def test_a_day_has_its_folder_its_rows_and_a_checked_window(serve: Callable[..., Served], command: Command) -> None:
    served = serve()
    done = command(*run("--day", "2026-11-02", served=served))
    assert done.code == 0, done.err
    out = Path("lake/referrers/dt=2026-11-02")
    found = rows(out)
    assert {(row["unit"], row["units"], row["unit_reference"]) for row in found} == {("day", 1, "2026-11-02T00:00:00Z")}
    assert {(row["period_start"], row["period_end"]) for row in found} == {
        ("2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z")
    }
    assert clicks_of(found) == window_clicks(LINKS, "referrers", 1)
    assert manifest(out)["window_check"] == {
        "unit": "day",
        "unit_reference": "2026-11-02T00:00:00Z",
        "link": LINKS[0],
        "buckets": ["2026-11-02T00:00:00Z"],
        "ok": True,
    }
    assert manifest(out)["attempts"]["total"] == len(LINKS) + 1
    assert command("verify", LAYOUT, "--day", "2026-11-02").code == 0
    before = served.sandbox.requests.total()
    assert command(*run("--day", "2026-11-02", served=served)).code == 0
    assert served.sandbox.requests.total() == before


def test_a_resumed_day_does_not_check_its_window_again(serve: Callable[..., Served], command: Command) -> None:
    served = serve()
    assert command(*run("--day", "2026-11-02", "--max-calls", "2", served=served)).code == 9
    assert served.sandbox.requests.total() == 3
    assert command(*run("--day", "2026-11-02", served=served)).code == 0
    assert served.sandbox.requests.total() == len(LINKS) + 1


def test_a_series_is_its_own_check(serve: Callable[..., Served], command: Command) -> None:
    served = serve()
    assert command(*run("--day", "2026-11-02", "--facet", "clicks", served=served)).code == 0
    assert served.sandbox.requests.total() == len(LINKS)
    assert manifest(Path("lake/clicks/dt=2026-11-02"))["window_check"]["ok"] is True


def test_several_facets_are_taken_in_a_program_that_has_imported_pydantic(
    serve: Callable[..., Served], command: Command
) -> None:
    """Where pydantic is imported, cyclopts has it check the values of options, too."""
    pytest.importorskip("pydantic")
    served = serve()
    assert command(*run("--day", "2026-11-02", "--facet", "referrers,devices", served=served)).code == 0
    done = command(*run("--day", "2026-11-02", "--facet", "referrers,browsers", served=served))
    assert (done.code, done.err.partition(",")[0]) == (2, "harvester: --facet browsers: must be one of referrers")


def a_day_earlier(bitlink: str, facet: str, size: int, **window: Any) -> dict[str, Any]:
    """A server whose windows end at the reference, instead of containing it."""
    moment = date.fromisoformat(window["unit_reference"][:10]) - timedelta(1)
    body = metrics_for(bitlink, facet, size, **(window | {"unit_reference": f"{moment}T00:00:00+0000"}))
    return body | {"unit_reference": window["unit_reference"]}


@pytest.mark.parametrize(("facet", "checks"), [("referrers", 1), ("clicks", 0)])
def test_a_link_that_is_shown_for_a_day_has_its_window_checked_first(
    serve: Callable[..., Served], command: Command, monkeypatch: pytest.MonkeyPatch, facet: str, checks: int
) -> None:
    served = serve()
    shown = ("show", "bit.ly/a", "bit.ly/b", "--day", "2026-11-02", "--facet", facet, "--json")
    words = (*shown, "--base-url", served.url, *NO_LIMITS)
    done = command(*words)
    assert (done.code, done.err) == (0, "")
    assert served.sandbox.requests.total() == 2 + checks
    assert command(*[word for word in words if word not in {"--day", "2026-11-02"}]).code == 0
    assert served.sandbox.requests.total() == 4 + checks
    monkeypatch.setattr(server, "metrics_for", a_day_earlier)
    done = command(*words)
    assert done.code == 2
    assert done.out == ""
    assert "covers 2026-11-01T00:00:00Z" in done.err


async def test_metrics_check_a_window_once_for_a_server(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = serve()
    options: Any = {"token": "t", "base_url": served.url, "state_dir": tmp_path, "per_minute": 0, "per_hour": 0}
    for day in ("2026-11-02", "2026-11-03", "2026-11-03"):
        assert (await api.metrics("bit.ly/a", day=day, **options))["period_start"] == f"{day}T00:00:00Z"
    assert served.sandbox.requests.total() == 4
    monkeypatch.setattr(server, "metrics_for", a_day_earlier)
    other = serve()
    with pytest.raises(RunStopped, match="covers 2026-11-01"):
        await api.metrics("bit.ly/a", day="2026-11-02", **{**options, "base_url": other.url})


@pytest.mark.parametrize("facet", ["referrers", "clicks", "referrers,devices"])
def test_a_window_that_is_another_day_stops_the_run_before_anything_is_published(
    serve: Callable[..., Served], command: Command, monkeypatch: pytest.MonkeyPatch, facet: str
) -> None:
    monkeypatch.setattr(server, "metrics_for", a_day_earlier)
    served = serve()
    words = run("--since", "2026-11-02", "--until", "2026-11-04", "--facet", facet, served=served)
    done = command(*words)
    assert done.code == 2
    assert "covers 2026-11-01T00:00:00Z: nothing was published" in done.err
    found = [manifest(Path(f"lake/{each}/dt=2026-11-02")) for each in facet.split(",")]
    assert {each["stopped"]["reason"] for each in found} == {"window_mismatch"}
    # Of two facets the other may have been stopped before it heard of the check.
    assert False in [each["window_check"] and each["window_check"]["ok"] for each in found]
    assert [path for path in Path("lake").rglob("*") if path.name.startswith(("part-", "_SUCCESS"))] == []
    assert sorted(path.name for path in Path("lake").rglob("dt=*")) in (
        ["dt=2026-11-02"],
        ["dt=2026-11-02", "dt=2026-11-02"],
    )
    assert served.sandbox.requests.total() == (5 if facet == "clicks" else 1)


@pytest.mark.parametrize("refused", [2, 3])
def test_a_refused_link_is_no_check_and_after_three_it_is_left_open(
    serve: Callable[..., Served], command: Command, refused: int
) -> None:
    served = serve()
    links = [*(f"bit.ly/missing{number}" for number in range(refused)), *LINKS]
    Path("links.txt").write_text("\n".join(links))
    done = command(*run("--day", "2026-11-02", served=served))
    assert done.code == 0, done.err
    check = manifest(Path("lake/referrers/dt=2026-11-02"))["window_check"]
    assert (check["link"], check["ok"]) == ((LINKS[0], True) if refused == 2 else (None, None))
    assert ("could not be checked" in done.err) == (refused == 3)


def without_history(*arguments: Any, **window: Any) -> dict[str, Any]:
    """A server whose plan does not keep the period: it answers for none of its units."""
    body = metrics_for(*arguments, **window)
    return body | {"units": 0} | {name: [] for name in ("metrics", "link_clicks") if name in body}


@pytest.mark.parametrize("facet", ["referrers", "clicks"])
@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_period_out_of_the_plans_history_is_clipped_and_no_mismatch(
    serve: Callable[..., Served], command: Command, monkeypatch: pytest.MonkeyPatch, facet: str, shape: str
) -> None:
    monkeypatch.setattr(server, "metrics_for", without_history)
    done = command(*run("--day", "2025-11-02", "--facet", facet, "--shape", shape, served=serve()))
    assert done.code == 0, done.err
    out = Path(f"lake/{facet}/dt=2025-11-02")
    assert manifest(out)["dataset"]["clipped"] == len(LINKS)
    assert manifest(out)["window_check"]["ok"] is None
    assert command("verify", str(out)).code == 0


# --- several periods and facets ---------------------------------------------------------------------------------------


def test_each_period_and_facet_is_an_output_and_the_days_add_up(serve: Callable[..., Served], command: Command) -> None:
    served = serve()
    words = ["--since", "2026-11-02", "--until", "2026-11-04", "--facet", "referrers,countries"]
    planned = json.loads(command("plan", *run(*words, served=served)[1:], "--json", "--offline").out)
    assert (planned["calls"], planned["facets"], planned["periods"]) == (len(LINKS) * 6, 2, 3)
    done = command(*run(*words, served=served))
    assert done.code == 0, done.err
    assert "36 rows, 0 refused, 0 failed" in done.err
    assert "referrers: 18 rows" in done.err
    for facet in ("referrers", "countries"):
        found = [row for day in days(3) for row in rows(Path(f"lake/{facet}/dt={day}"))]
        assert len(found) == len({row["record_id"] for row in found}) == len(LINKS) * 3
        assert clicks_of(found) == window_clicks(LINKS, facet, 3)
        assert all(Path(f"lake/{facet}/dt={day}/_SUCCESS").exists() for day in days(3))
    assert served.sandbox.requests.total() == len(LINKS) * 6 + 1
    assert served.sandbox.too_many_connections == 0
    assert command(*run(*words, served=served)).code == 0
    assert command(*run("--day", "2026-11-03", served=served)).code == 0  # one of them alone
    assert served.sandbox.requests.total() == len(LINKS) * 6 + 1
    seen = command("status", LAYOUT, "--day", "2026-11-03", "--facet", "referrers,countries")
    assert (seen.code, seen.out.count("complete")) == (0, 3)
    checked = command("verify", LAYOUT, "--day", "2026-11-03", "--facet", "referrers,countries", "--json")
    assert (checked.code, len(json.loads(checked.out))) == (0, 2)


def test_weeks_and_months_are_whole(serve: Callable[..., Served], command: Command) -> None:
    served = serve()
    done = command(*run("--since", "2026-10-07", "--until", "2026-10-14", "--every", "week", served=served))
    assert done.code == 0, done.err
    assert sorted(path.name for path in Path("lake/referrers").iterdir()) == ["dt=2026-10-05", "dt=2026-10-12"]
    assert command(*run("--since", "2026-10-07", "--until", "2026-10-14", "--every", "month", served=served, out="m"))
    assert {row["period_end"] for row in rows(Path("m"))} == {"2026-11-01T00:00:00Z"}


def test_the_calls_of_a_command_are_bounded_in_all(serve: Callable[..., Served], command: Command) -> None:
    served = serve()
    done = command(*run("--facet", "referrers,countries", "--max-calls", "4", served=served, out="lake/{facet}"))
    assert done.code == 9, done.err
    assert served.sandbox.requests.total() == 4


def test_the_month_is_compared_with_the_calls_of_all_outputs(serve: Callable[..., Served], command: Command) -> None:
    served = serve(per_month=25_000)
    Path("links.txt").write_text("\n".join(f"bit.ly/month{number}" for number in range(400)))
    words = ["run", "links.txt", "--out", LAYOUT, "--day", "2026-11-02", "--base-url", served.url]
    done = command(*words, "--facet", "referrers,countries,devices")
    assert (done.code, "this list needs 1,200 calls" in done.err) == (2, True), done.err
    assert "Bitly reports 25,000 for your plan: use --plan growth." in done.err
    assert done.err.count("this list needs") == 1
    assert "✗ stopped by the error above" in done.err
    assert "next      nothing was lost; do what the message says, then run it again" in done.err
    assert "there are no links" not in done.err
    assert (served.sandbox.requests.total(), served.sandbox.helped.total()) == (0, 2)
    assert "use --plan growth." in command(*words, "--facet", "referrers,countries,devices").err
    assert served.sandbox.helped.total() == 2  # it is asked for once a day
    done = command(*words, "--facet", "referrers,countries", "--per-month", "600", "--max-time", "1s")
    assert "enough for 598 of 800 calls" in done.err
    assert "400 links in 400 lines; 400 calls to make for each of 2 outputs" in done.err


def test_standard_input_is_read_once_for_all(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve()
    words = ["run", "-", "--out", str(tmp_path / "{facet}"), "--base-url", served.url, *NO_LIMITS]
    done = harvester(*words, "--facet", "referrers,devices", stdin=b"bit.ly/a\nbit.ly/b\n")
    assert done.returncode == 0, done.stderr
    assert [len(rows(tmp_path / facet)) for facet in ("referrers", "devices")] == [2, 2]


def test_a_facet_that_the_plan_lacks_stops_alone(
    serve: Callable[..., Served], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = server.Sandbox._answer

    async def without_devices(sandbox: server.Sandbox, request: web.Request, facet: Facet) -> web.Response:
        if facet.name == "devices":
            return web.json_response({"message": "UPGRADE_REQUIRED"}, status=402)
        return await answer(sandbox, request, facet)

    monkeypatch.setattr(server.Sandbox, "_answer", without_devices)
    words = ["--facet", "devices,referrers,countries", "--since", "2026-11-02", "--until", "2026-11-03"]
    done = command(
        *run(
            *words,
            served=serve(),
        )
    )
    assert done.code == 6, done.err
    for facet in ("referrers", "countries"):
        assert [len(rows(Path(f"lake/{facet}/dt={day}"))) for day in days(2)] == [len(LINKS)] * 2
    assert manifest(Path("lake/devices/dt=2026-11-02"))["stopped"]["reason"] == "plan_refused"
    assert not Path("lake/devices/dt=2026-11-03").exists()
    assert "1 were not" in done.err
    assert "stopped   lake/devices/dt=2026-11-02: the reason above" in done.err


def test_each_output_that_stops_has_its_reason_in_full(serve: Callable[..., Served], command: Command) -> None:
    folder = Path("a" * 150, "b" * 150)
    for facet in ("cities", "devices"):
        (folder / facet).mkdir(parents=True)
        (folder / facet / "_manifest.json").write_text("{")
    done = command(*run("--facet", "cities,devices", served=serve(), out=f"{folder}/{{facet}}"))
    assert done.code == 8, done.err
    errors = [line.removeprefix("harvester: ") for line in done.err.splitlines() if line.startswith("harvester: ")]
    assert min(map(len, errors)) > 300
    assert "✗ stopped by the error above" in done.err
    for facet, error in zip(("cities", "devices"), errors, strict=True):
        assert f"{folder}/{facet}: {error}\n" in done.err


def test_the_five_connections_are_busy_when_the_window_of_one_endpoint_is_full(
    serve: Callable[..., Served], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, peak = serve(latency_ms=30), [0]
    answer = server.Sandbox._answer

    async def counted(sandbox: server.Sandbox, request: web.Request, facet: Facet) -> web.Response:
        peak[0] = max(peak[0], sandbox.at_once)
        return await answer(sandbox, request, facet)

    monkeypatch.setattr(server.Sandbox, "_answer", counted)
    Path("links.txt").write_text("\n".join(f"bit.ly/busy{number}" for number in range(20)))
    limits = ["--per-minute", "20", "--per-hour", "20", "--per-month", "0", "--base-url", served.url]
    assert command("run", "links.txt", "--out", "first", *limits).code == 0
    peak[0] = 0
    words = ["--facet", "referrers,countries", "--max-time", "3s"]
    done = command("run", "links.txt", "--out", "{facet}", *limits, *words)
    assert done.code == 9, done.err
    assert (len(rows(Path("countries"))), peak[0], served.sandbox.too_many_connections) == (20, 5, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "facets", "kills"),
    [
        (3, ("referrers", "countries"), 2),
        pytest.param(10, ("referrers", "countries", "devices"), 5, marks=pytest.mark.nightly),
    ],
    ids=["short", "full"],
)
def test_kills_between_days_and_facets_lose_and_double_nothing(
    tmp_path: Path, serve: Callable[..., Served], count: int, facets: tuple[str, ...], kills: int
) -> None:
    served, wanted = serve(latency_ms=25), 30 * count * len(facets)
    links = [f"bit.ly/storm{number}" for number in range(30)]
    (tmp_path / "links.txt").write_text("\n".join(links))
    words = ["run", str(tmp_path / "links.txt"), "--out", str(tmp_path / LAYOUT), "--facet", ",".join(facets)]
    words += ["--since", days(count)[0], "--until", days(count)[-1], "--base-url", served.url, *NO_LIMITS]

    def reached(calls: int) -> bool:
        return served.sandbox.answered.total() >= calls

    for kill in range(1, kills + 1):
        assert interrupt(partial(reached, wanted * kill // (kills + 1)), *words) == -signal.SIGKILL
    done = harvester(*words)
    assert done.returncode == 0, done.stderr
    for facet in facets:
        found = [row for day in days(count) for row in rows(tmp_path / f"lake/{facet}/dt={day}")]
        assert len(found) == len({row["record_id"] for row in found}) == len(links) * count
        assert clicks_of(found) == window_clicks(links, facet, count)
    assert 0 <= served.sandbox.requests.total() - wanted - 1 <= 5 * kills
    assert served.sandbox.too_many_connections == 0


async def test_python_gets_a_manifest_for_each_output_and_reads_an_iterable_once(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    found = await api.harvest(
        (link for link in LINKS),
        out=tmp_path / LAYOUT,
        facet=["referrers", "clicks"],
        since=FIRST,
        until=FIRST + timedelta(1),
        base_url=serve().url,
        token=TOKEN,
        per_month=0,
    )
    assert found["complete"]
    outputs = [(each["query"]["facet"], each["complete"]) for each in found["outputs"]]
    assert outputs == [("referrers", True), ("clicks", True)] * 2
    one = await api.harvest(LINKS, out=tmp_path / "one", day=FIRST, base_url=serve().url, token=TOKEN, per_month=0)
    assert one["query"]["period_start"] == "2026-11-02T00:00:00Z"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--day", "today"], "--day"),
        (["--day", "2026-13-01"], "--day 2026-13-01: must be a day such as 2026-11-22, or yesterday"),
        (["--day", "yesterday", "--units", "7"], "--day: is a window by itself"),
        (["--day", "yesterday", "--since", "2026-11-02"], "--since and --until name several days"),
        (["--until", "2026-11-02"], "--until: needs --since"),
        (["--since", "2026-11-02", "--until", "2026-11-01"], "is before --since"),
        (["--since", "2026-11-02", "--until", "today"], "wait for its end, or accept them as they are with --partial"),
        (["--since", "2026-11-02", "--every", "month", "--until", "yesterday", "--out", "x"], "--partial"),
        (["--since", "2026-11-02", "--until", "2026-11-03", "--out", "lake"], "put {dt} into it"),
        (["--facet", "referrers,devices", "--out", "lake"], "put {facet} into it"),
        (["--facet", "referrers,devices", "--out", "-"], "several facets or periods need a folder each"),
        (["--facet", "referrers,device"], "--facet device: must be one of"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_begun(
    command: Command, words: list[str], message: str
) -> None:
    layout = [] if "--out" in words else ["--out", "lake/{facet}/dt={dt}"]
    done = command("run", "links.txt", *layout, *words)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not Path("lake").exists()


def test_a_partial_period_is_warned_of(serve: Callable[..., Served], command: Command) -> None:
    done = command(*run("--day", "today", "--partial", served=serve()))
    assert done.code == 0, done.err
    assert "its numbers will change" in done.err
    assert orjson.loads(next(Path("lake/referrers").glob("dt=*/_manifest.json")).read_bytes())["complete"]
