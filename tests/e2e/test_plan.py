"""`harvester plan` from outside: what it counts, what it asks, and that it changes nothing."""

import json
import re
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harvester.bitly.account_limits import PLATFORM_LIMITS
from harvester.links.batch import batch_of_lines
from harvester.sandbox import server
from harvester.worklist.list_count import ListSurvey
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN, harvester, start
from tests.support.in_process import command as in_process

LINKS = [f"bit.ly/{i}" for i in range(300)]


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("\n".join([*LINKS, "bit.ly/0", "nonsense", "https://bit.ly/1/"]))
    return str(path)


def plan(*arguments: str, **options: Any) -> dict[str, Any]:
    done = harvester("plan", *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_plan_counts_the_list_and_makes_no_metrics_call(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(per_minute=100, per_hour=1000, per_month=5000), tmp_path / "out"
    found = plan(links, "--out", str(out), "--base-url", served.url)
    assert found["list"] == {"lines": 303, "links": 300, "duplicates": 2, "invalid": 1}
    assert (found["domains"], found["other_domains"]) == ({"bit.ly": 302}, 0)
    assert [(line["line"], line["text"]) for line in found["invalid_lines"]] == [(302, "nonsense")]
    assert [(each["plan"], each["months"]) for each in found["durations"] if each["links"] == 10_000] == [
        ("Free", 10),
        ("Core", 2),
        ("Growth", 1),
        ("Premium", 1),
    ]
    assert (found["done"], found["calls"], found["attempts"]) == (0, 300, 300)
    assert found["ends"] > found["now"]
    assert [window["window"] for window in found["windows"]] == ["minute", "hour", "month"]
    assert [window["source"] for window in found["windows"]] == ["bitly", "bitly", "default"]
    assert found["plan_limits"][0]["limit"] == 5000
    assert served.sandbox.requests.total() == 0
    assert served.sandbox.helped.total() == 3
    assert not out.exists()


@pytest.mark.parametrize(
    ("reported", "options", "option"),
    [
        (25_000, (), "--plan growth"),
        (30_000, (), "--per-month 30000"),
        (1000, (), None),
        (25_000, ("--plan", "core"), None),
        (25_000, ("--per-month", "7"), None),
    ],
    ids=str,
)
def test_a_plan_names_the_option_for_the_month_that_bitly_reports(
    tmp_path: Path,
    links: str,
    serve: Callable[..., Served],
    reported: int,
    options: tuple[str, ...],
    option: str | None,
) -> None:
    words = (links, "--out", str(tmp_path / "out"), "--base-url", serve(per_month=reported).url, *options)
    assert plan(*words)["plan_option"] == option
    done = harvester("plan", *words)
    assert (f"the month above is only the default: use {option}" in done.stdout) is (option is not None)


@pytest.mark.parametrize(
    ("invalid", "options", "warned"),
    [(21, (), True), (20, (), False), (21, ("--max-invalid", "100%"), False), (2, ("--max-invalid", "5%"), True)],
)
def test_a_plan_warns_of_too_many_invalid_lines_as_the_run_would(
    tmp_path: Path, invalid: int, options: tuple[str, ...], warned: bool
) -> None:
    path = tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{n}\nbit.ly/{n}\n" for n in range(10)) + "not a link\n" * invalid)
    done = harvester("plan", str(path), "--out", str(tmp_path / "out"), "--offline", *options)
    assert done.returncode == 0
    words = f"{invalid} of {20 + invalid} lines are not bitlinks, more than --max-invalid allows"
    assert (words in done.stderr) is warned
    assert ("--max-invalid 100%" in done.stderr) is warned


def test_a_plans_helper_requests_are_counted_and_offline_makes_none(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve(per_hour=1000)
    command = (links, "--out", str(tmp_path / "out"), "--base-url", served.url)
    assert plan(*command, "--offline")["windows"][2]["used"] == 0
    assert served.sandbox.helped.total() == 0
    plan(*command)
    assert plan(*command, "--offline")["windows"][2]["used"] == served.sandbox.helped.total() > 0


def test_a_plan_without_a_token_counts_and_forecasts_and_sends_nothing(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve(per_hour=1000)
    command = (links, "--out", str(tmp_path / "out"), "--base-url", served.url)
    found = plan(*command, env={"BITLY_TOKEN": ""})
    assert found["calls"] == 300
    assert found["account"] is None
    assert served.sandbox.helped.total() == 0


def test_a_plan_knows_what_is_settled_even_during_a_run(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(latency_ms=50), tmp_path / "out"
    command = (links, "--out", str(out), "--base-url", served.url, *NO_LIMITS)
    assert harvester("run", *command, "--max-calls", "100").returncode == 9
    assert (plan(*command)["done"], plan(*command)["calls"]) == (100, 200)
    process = start("run", *command)
    while served.sandbox.answered.total() < 120:
        signal.sigtimedwait([], 0.01)
    assert 100 <= plan(*command)["done"] < 300
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert served.sandbox.answered.total() == len(served.sandbox.answered)
    rest = plan(*command)["calls"]
    before = served.sandbox.requests.total()
    assert harvester("run", *command).returncode == 0
    assert served.sandbox.requests.total() - before == rest
    found = plan(*command)
    assert (found["done"], found["calls"], found["ends"]) == (
        300,
        0,
        found["now"],
    )


def test_a_plan_with_another_query_than_the_outputs_is_refused(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    command = (links, "--out", str(tmp_path / "out"), "--base-url", serve().url, *NO_LIMITS)
    assert harvester("run", *command).returncode == 0
    done = harvester("plan", *command, "--units", "7")
    assert done.returncode == 2
    assert "another query" in done.stderr


def test_an_output_goes_on_against_its_own_server_only(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served, out = serve(), tmp_path / "out"
    command = (links, "--out", str(out), *NO_LIMITS, "--base-url")
    assert harvester("run", *command, served.url).returncode == 0
    assert json.loads((out / "_manifest.json").read_bytes())["server"] == "127.0.0.1"
    requests = served.sandbox.requests.total()
    for words in ("run", "plan"):
        refused = harvester(words, *command, served.url.replace("127.0.0.1", "localhost"))
        assert refused.returncode == 2
        assert "was started against 127.0.0.1, and --base-url names localhost" in refused.stderr
    assert served.sandbox.requests.total() == requests


def test_a_plan_says_what_it_costs_when_it_ends_and_what_would_be_sooner(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve(per_hour=1000)
    done = harvester(
        "plan",
        links,
        "--out",
        str(tmp_path / "out"),
        "--base-url",
        served.url,
        "--per-month",
        "200",
        "--reserve",
        "50%",
    )
    assert done.returncode == 0, done.stderr
    for said in (
        "  -        1  not bitlinks\n  -        2  repeated links\n  =      300  links\n  =      300  calls to make\n",
        "lines by domain\n         302  bit.ly\n",
        f'  {links}:302: "nonsense" (no slash: a bitlink is domain/back-half)\n',
        "estimated end: ",
        "97 of 100 left (as requested)",
        "this month's calls are enough for 97 of 300; the run then stops with exit code 7",
        "it will take 3 more months",
        "--reserve 0%",
        "--plan core (if that is your plan: 5,000 a month)",
    ):
        assert said in done.stdout


def test_run_says_what_the_month_covers_before_it_starts(
    tmp_path: Path, links: str, serve: Callable[..., Served]
) -> None:
    served = serve()
    limits = ("--per-minute", "0", "--per-hour", "0", "--per-month", "10")
    done = harvester("run", links, "--out", str(tmp_path / "out"), "--base-url", served.url, *limits)
    assert done.returncode == 7
    assert "this month's calls are enough for 10 of 300 links" in done.stderr
    assert served.sandbox.requests.total() == 10


def test_the_ten_most_frequent_domains_are_named_and_the_numbers_add_up(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    counts = range(1, 13)
    lines = [f"d{number}.example/{line}" for number in counts for line in range(number)]
    path.write_text("link\n" + "\n".join([*lines, "", "x", "y", "z", "w"]) + "\n")
    command = ("plan", str(path), "--out", str(tmp_path / "out"), "--offline")
    done = harvester(*command, env={"BITLY_TOKEN": ""})
    shown = done.stdout.partition("\n\nbudget")[0].split("\n")
    assert shown[:5] == [
        "          84  lines",
        "  -        2  blank lines, comments and headers",
        "  -        4  not bitlinks",
        "  =       78  links",
        "  =       78  calls to make",
    ]
    domains = shown[shown.index("lines by domain") + 1 :]
    assert domains[:11] == [f"{n:>12}  d{n}.example" for n in reversed(counts) if n > 2] + [
        "           3  2 other domains"
    ]
    assert [line.partition('"')[2][:2] for line in domains if str(path) in line] == ['x"', 'y"', 'z"']
    assert len(done.stdout) < 4000


def test_a_list_of_countless_domains_is_surveyed_in_little_memory() -> None:
    survey = ListSurvey()
    for first in range(0, 5000, 1000):
        lines = [f"d{number}.example/x".encode() for number in range(first, first + 1000)]
        survey.see(batch_of_lines(lines, "links.txt", first + 1))
    survey.see(batch_of_lines([b"d0.example/y"], "links.txt", 5001))
    assert len(survey.domains) == 1000
    assert survey.domains.most_common(1) == [("d0.example", 2)]
    assert survey.elsewhere == 4000


def test_the_table_has_this_list_among_others_and_each_plan(tmp_path: Path) -> None:
    path = tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{n}\n" for n in range(1500)))
    done = harvester("plan", str(path), "--out", str(tmp_path / "out"), "--offline", env={"BITLY_TOKEN": ""})
    table = done.stdout.partition("how long it takes by plan and calls a month, at 100 a minute and 1,000 an hour\n")[2]
    assert [line.split()[:5] for line in table.splitlines()[:2]] == [
        ["Free", "Core", "Growth", "Premium"],
        ["links", "1,000", "5,000", "25,000", "50,000"],
    ]
    mine = re.split(r" {2,}", table.splitlines()[3])
    assert mine[:3] == ["→", "1,500", "2 months"]
    assert mine[3] == mine[4] == mine[5]
    assert max(map(len, table.splitlines()[:-1])) <= 60
    assert table.splitlines()[-1] == "  (N months: the command is run again in each of N calendar months)"


def test_a_plan_says_that_the_run_would_ask_for_the_accounts_plan_first(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    path, served = tmp_path / "links.txt", serve()
    path.write_text("".join(f"bit.ly/{n}\n" for n in range(1200)))
    words = (
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--base-url",
        served.url,
        "--state-dir",
        str(tmp_path / "state"),
    )
    said = in_process(capsys, "plan", *words, "--offline").out
    assert "  run asks for --plan or --per-month first: harvester assumes 1,000 calls a month" in said
    assert "exit code 7" not in said
    assert in_process(capsys, "run", *words).code == 2
    assert served.sandbox.requests.total() == 0
    assert "exit code 7" in in_process(capsys, "plan", *words, "--offline", "--plan", "free").out
    assert "run asks for" not in in_process(capsys, "plan", *words, "--offline", "--max-calls", "900").out


def test_the_row_of_this_list_counts_what_the_month_has_used(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    path, served = tmp_path / "links.txt", serve()
    path.write_text("".join(f"bit.ly/{n}\n" for n in range(700)))
    state = ("--base-url", served.url, "--state-dir", str(tmp_path / "state"), "--plan", "free")
    limits = ("--per-minute", "0", "--per-hour", "0")
    words = ("--out", str(tmp_path / "out"), *state)
    assert in_process(capsys, "run", str(path), *words, *limits, "--max-calls", "400").code == 9
    said = in_process(capsys, "plan", str(path), "--out", str(tmp_path / "other"), *state, "--offline").out
    assert "this month's calls are enough for 600 of 700" in said
    mine = next(line for line in said.splitlines() if line.startswith("→"))
    assert re.split(r" {2,}", mine)[1:3] == ["700", "2 months"]
    assert "  (→ counts the 400 calls made this month; the other rows have a whole one)" in said


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command in this process, with a token, in a folder of its own."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    return partial(in_process, capsys)


def test_a_plan_asks_for_the_accounts_plan_once_an_hour_and_says_how_old_its_figure_is(
    serve: Callable[..., Served], command: Callable[..., Any], tmp_path: Path
) -> None:
    served = serve(per_month=25_000)
    Path("links.txt").write_text("bit.ly/1\n")
    words = ("plan", "links.txt", "--out", "lake", "--base-url", served.url, "--state-dir", str(tmp_path / "state"))
    assert json.loads(command(*words, "--offline", "--json").out)["plan_limits_age"] is None
    said, asked = command(*words).out, served.sandbox.helped.total()
    assert re.search(r"\n  Bitly reports for API requests \(api_requests\): \d+ of 25,000 used\n", said)
    more = "the month above is more than Bitly reports: use --plan growth"
    for option, said_so in ((("--plan", "premium"), True), (("--per-month", "0"), True), (("--plan", "growth"), False)):
        assert (more in command(*words, *option).out) is said_so, option
    again = json.loads(command(*words, "--json").out)
    assert served.sandbox.helped.total() == asked == 3
    assert (again["plan_limits"][0]["limit"], again["plan_option"]) == (25_000, "--plan growth")
    assert 0 <= again["plan_limits_age"] < 60

    def age(seconds: float) -> None:
        with closing(sqlite3.connect(tmp_path / "state" / "budget.sqlite")) as budget, budget:
            ((name, value),) = budget.execute("SELECT name, value FROM meta WHERE name LIKE 'plan of %'").fetchall()
            month, entries, at = json.loads(value)
            value = json.dumps([month, entries, at - seconds])
            budget.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    age(1800)
    assert re.search(r" used, asked 30 min( \d+ s)? ago\n", command(*words).out)
    assert served.sandbox.helped.total() == asked
    age(1800)
    assert re.search(r" used, asked 1 h ago\n", command(*words, "--offline").out)
    assert "25,000 used\n" in command(*words).out
    assert served.sandbox.helped.total() == asked + 2
    age(86400)
    assert "Bitly reports" not in command(*words, "--offline").out


@pytest.mark.parametrize(
    ("refusal", "again"),
    [
        ((402, b'{"message":"UPGRADE_REQUIRED"}'), 0),
        ((403, b'{"message":"FORBIDDEN","resource":"organizations"}'), 0),
        ((200, b'{"plan_limits":[]}'), 0),
        ((200, b"<html>"), 2),
        ((503, b""), 2),
    ],
    ids=str,
)
def test_that_bitly_reports_no_plan_is_remembered_too_but_no_failure(
    serve: Callable[..., Served],
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    refusal: tuple[int, bytes],
    again: int,
) -> None:
    async def refuse(sandbox: server.Sandbox, request: web.Request) -> web.Response:
        sandbox.helped[request.path] += 1
        return web.Response(status=refusal[0], body=refusal[1])

    monkeypatch.setattr(server.Sandbox, "_plan_limits", refuse)
    served = serve(per_month=25_000)
    Path("links.txt").write_text("bit.ly/1\n")
    words = ("plan", "links.txt", "--out", "lake", "--base-url", served.url, "--json")
    assert json.loads(command(*words).out)["plan_limits"] == []
    before = served.sandbox.helped.total()
    assert command(*words).code == 0
    assert served.sandbox.helped.total() - before == again


async def limits_by_endpoint(_: server.Sandbox, request: web.Request) -> web.Response:
    """Report another hourly limit for each of two endpoints, of which nothing is used."""
    path = request.query["path"]
    method = {"name": "GET", "limit": 2000 if path.endswith("/countries") else 1000, "count": 0}
    return web.json_response({"platform_limits": [{"endpoint": path, "methods": [method]}]})


def test_a_plan_of_several_facets_asks_for_the_limits_of_each_endpoint(
    serve: Callable[..., Served], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.Sandbox, "_platform_limits", limits_by_endpoint)
    Path("links.txt").write_text("".join(f"bit.ly/{n}\n" for n in range(3000)))
    words = ("plan", "links.txt", "--out", "lake/{facet}", "--base-url", serve().url, "--per-month", "0")
    found = json.loads(command(*words, "--facet", "countries,referrers", "--json").out)
    assert {facet: [window["limit"] for window in each] for facet, each in found["endpoints"].items()} == {
        "countries": [200, 2000],
        "referrers": [100, 1000],
    }
    assert found["windows"][-1]["used"] == 4  # two endpoints' limits, the groups, and the plan's limits
    alone = json.loads(command(*words, "--facet", "referrers", "--json", "--offline").out)
    assert alone["endpoints"] == {}
    took = [datetime.fromisoformat(each["ends"]) - datetime.fromisoformat(each["now"]) for each in (found, alone)]
    assert took[0] == took[1]  # the slower facet decides
    alone = json.loads(command(*words, "--facet", "countries", "--json", "--offline").out)
    assert (alone["limits"]["per_minute"], alone["limits"]["per_hour"]) == (200, 2000)  # as was reported before
    said = command(*words, "--facet", "countries,referrers", "--offline")
    assert (
        "  countries\n    minute    200 of 200 left (from Bitly)\n    hour    2,000 of 2,000 left (from Bitly)\n"
        "  referrers\n    minute    100 of 100 left (from Bitly)\n    hour    1,000 of 1,000 left (from Bitly)\n"
        "  month   no limit; "
    ) in said.out
    assert "calls a month, at the limits of each facet\n" in said.out
    said = command(*words[:-2], "--facet", "countries,referrers", "--offline", "--max-calls", "900")
    assert "run asks for --plan" not in said.out
    Path("links.txt").write_text("".join(f"bit.ly/{n}\n" for n in range(600)))
    said = command(*words[:-2], "--facet", "countries,referrers", "--offline")
    assert "  run asks for --plan or --per-month first" in said.out  # 600 calls for each facet, and a month of 1,000


def test_a_plan_of_several_facets_shows_their_windows_once_where_they_are_alike(
    serve: Callable[..., Served], command: Callable[..., Any]
) -> None:
    served = serve(per_minute=100, per_hour=1000)
    Path("links.txt").write_text("".join(f"bit.ly/{n}\n" for n in range(3)))
    words = ("--out", "lake/{facet}", "--base-url", served.url)
    said = command("plan", "links.txt", *words, "--facet", "countries,referrers")
    assert "\n  minute    100 of 100 left (from Bitly)\n  hour    1,000 of 1,000 left (from Bitly)\n" in said.out
    assert "at 100 a minute and 1,000 an hour for each facet\n" in said.out
    assert served.sandbox.helped[PLATFORM_LIMITS] == 2
    assert command("run", "links.txt", *words, "--facet", "referrers").code == 0
    said = command("plan", "links.txt", *words, "--facet", "countries,referrers", "--offline")
    assert re.findall(r"hour +([\d,]+) of", said.out) == ["1,000", "997"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--out", "out"), ["then 91 days old", "takes 305 requests a month, or a list of at most 98 links"]),
        (
            ("--out", "{facet}", "--facet", "referrers,countries"),
            ["then 183 days old", "takes 609 requests a month, or a list of at most 49 links"],
        ),
        (("--out", "out", "--per-month", "1000"), ["30 days can be kept: the oldest answer is then 30 days old, if"]),
        (
            ("--out", "out", "--per-month", "1000", "--prefer", "active"),
            ["30 days old (90 days of an idle link), if the command runs every day"],
        ),
    ],
    ids=["one facet", "two facets", "large month", "idle links"],
)
def test_a_plan_says_how_old_answers_become_and_which_list_would_do(
    links: str, capsys: Any, monkeypatch: Any, tmp_path: Path, words: tuple[str, ...], says: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    month = () if "--per-month" in words else ("--per-month", "100")
    done = in_process(capsys, "plan", links, "--refresh", "30d", "--offline", *month, *words)
    assert done.code == 0, done.err
    assert all(text in done.out for text in says), done.out
