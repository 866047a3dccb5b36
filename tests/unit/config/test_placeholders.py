"""Placeholders in --out: which they are, what they stand for, and what is said where they cannot stand."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harvester
from harvester.config.options import OutputOptions, QueryOptions, RunOptions
from harvester.config.placeholders import escape_braces, fill_output, filled_path
from harvester.errors import UsageError
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.commands import harvester as real_command
from tests.support.in_process import Said
from tests.support.in_process import command as command_inside
from tests.support.output_checks import manifest, rows

LAYOUT = "lake/{facet}/dt={dt}"
DAY = "2026-11-23"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command in this process and in an empty folder, with a token and two lists."""
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    (tmp_path / "one.txt").write_text("bit.ly/a\n")
    (tmp_path / "two.txt").write_text("bit.ly/a\nbit.ly/b\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return partial(command_inside, capsys)


def meant(out: str, work_dir: str | None = None, **query: Any) -> OutputOptions:
    output = OutputOptions(out=out, work_dir=work_dir)
    return fill_output(RunOptions(output=output, query=QueryOptions(**query))).output


# --- what they stand for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lake", "lake"),
        (LAYOUT, "lake/countries/dt=2026-11-23"),
        ("{dt}{dt}", "2026-11-232026-11-23"),
        ("{facet}-{dt}.ndjson", "countries-2026-11-23.ndjson"),
        ("a{{dt}}b", "a{dt}b"),
        ("{{{dt}}}", "{2026-11-23}"),
        ("s3://lake/{facet}/dt={dt}/", "s3://lake/countries/dt=2026-11-23/"),
    ],
)
def test_placeholders_are_filled_in_and_doubled_braces_are_braces(path: str, expected: str) -> None:
    assert filled_path("--out", path, "countries", DAY) == expected


@given(st.text("{}dt/é", max_size=20))
def test_an_escaped_path_means_itself(path: str) -> None:
    assert filled_path("--out", escape_braces(path), "countries", DAY) == path


@pytest.mark.parametrize(
    ("reference", "day"),
    [
        ("2026-11-23", "2026-11-23"),
        ("2026-11-23T23:59:59Z", "2026-11-23"),
        ("2026-11-23T01:00:00+02:00", "2026-11-22"),
        ("2026-12-31T23:00:00-01:00", "2027-01-01"),
        ("0999-01-01", "0999-01-01"),
    ],
)
def test_dt_is_the_day_in_utc(reference: str, day: str) -> None:
    assert meant("dt={dt}", unit_reference=reference).out == f"dt={day}"


def test_the_work_dir_is_filled_in_like_the_output() -> None:
    found = meant(LAYOUT, "/var/{facet}/{dt}", unit_reference=DAY, facet="countries")
    assert (found.out, found.work_dir) == ("lake/countries/dt=2026-11-23", "/var/countries/2026-11-23")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("lake/{date}", "--out lake/{date}: {date} is not a placeholder; did you mean {dt}, the first UTC day of"),
        ("lake/{day}", "did you mean {dt}"),
        ("lake/{facets}", "did you mean {facet}, --facet? Write {{ and }} for braces"),
        (
            "lake/{DT}",
            "{DT} is not a placeholder; there are {dt}, the first UTC day of the period, else that of",
        ),
        ("lake/{}", "{} is not a placeholder; there are {dt}"),
        ("lake/{0}", "{0} is not a placeholder"),
        ("lake/{dt!r}", "{dt!r} is not a placeholder; did you mean {dt}"),
        ("lake/{dt:%Y}", "{dt:%Y} is not a placeholder; did you mean {dt}"),
        ("lake/{dt.year}", "{dt.year} is not a placeholder; did you mean {dt}"),
        ("lake/{dt", "--out lake/{dt: an unmatched brace; write {{ or }} for a brace"),
        ("lake/dt}", "--out lake/dt}: an unmatched brace"),
        ("lake/{{dt}", "an unmatched brace"),
        ("lake/{facet{dt}}", "an unmatched brace"),
    ],
)
def test_what_is_no_placeholder_is_refused_with_the_nearest(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message.replace(", and", " and"))):
        meant(path, unit_reference=DAY)


def test_dt_without_a_reference_is_refused_with_the_reason_and_todays_option(command: Callable[..., Said]) -> None:
    before = datetime.now(UTC).date()
    done = command("run", "../one.txt", "--out", "lake/dt={dt}")
    after = datetime.now(UTC).date()
    assert done.code == 2
    assert done.err in {
        "harvester: --out lake/dt={dt}: {dt} is the first UTC day of the period, else that of --unit-reference, which "
        "is not set: by default it is the moment of the first run, and tomorrow the same command would pay for the "
        f"list again. Today's would be --unit-reference {day}; one day's metrics are --day yesterday\n"
        for day in (before, after)
    }
    assert list(Path().iterdir()) == []


def test_a_facet_that_is_none_makes_no_folder() -> None:
    with pytest.raises(UsageError, match=r"^--facet \.\./x: must be one of"):
        meant("lake/{facet}", facet="../x")


# --- commands -------------------------------------------------------------------------------------------------------


def flags(served: Served, *more: str) -> tuple[str, ...]:
    return ("--unit-reference", DAY, "--base-url", served.url, *NO_LIMITS, *more)


def test_a_run_and_all_that_is_asked_of_it_mean_the_same_folder(
    tmp_path: Path, serve: Callable[..., Served], command: Callable[..., Said]
) -> None:
    served, here = serve(), Path.cwd()
    query, state = ("--facet", "countries"), ("--work-dir", str(tmp_path / "{facet}/{dt}"))
    run = real_command("run", "../two.txt", "--out", LAYOUT, *state, *flags(served, *query), cwd=here)
    assert run.returncode == 0, run.stderr
    assert "lake/countries/dt=2026-11-23" in run.stderr
    assert "{" not in run.stderr
    out = here / "lake/countries/dt=2026-11-23"
    assert len(rows(out)) == 2
    assert manifest(out)["query"]["unit_reference"] == "2026-11-23T00:00:00Z"
    made = command("plan", "../two.txt", "--out", LAYOUT, *state, *flags(served, *query, "--json"))
    assert json.loads(made.out)["calls"] == 0
    seen = json.loads(command("status", LAYOUT, "--unit-reference", DAY, *query, "--json").out)
    assert (seen["state"], seen["out"]) == ("complete", str(out))
    told = json.loads(command("verify", LAYOUT, *state, "--unit-reference", DAY, *query, "--json").out)
    assert (told["ok"], told["out"], told["ledger_checked"]) == (True, str(out), True)


def test_the_same_command_resumes_and_another_day_is_another_output(
    serve: Callable[..., Served], command: Callable[..., Said]
) -> None:
    served = serve()
    for day in (DAY, DAY, "2026-11-24"):
        done = command("run", "../one.txt", "--out", "lake/dt={dt}", "--base-url", served.url, "--unit-reference", day)
        assert done.code == 0, done.err
    assert sorted(path.name for path in Path("lake").iterdir()) == ["dt=2026-11-23", "dt=2026-11-24"]
    assert served.sandbox.requests["bit.ly/a"] == 2


def test_a_growing_file_may_have_placeholders_in_its_name(
    serve: Callable[..., Served], command: Callable[..., Said]
) -> None:
    done = command("run", "../one.txt", "--out", "{facet}-{dt}.ndjson", *flags(serve()))
    assert done.code == 0, done.err
    assert {path.name for path in Path().iterdir()} == {
        "referrers-2026-11-23.ndjson",
        "referrers-2026-11-23.ndjson.harvester",
    }
    assert len(rows(Path("referrers-2026-11-23.ndjson"))) == 1


def test_the_layout_may_stand_in_the_configuration(serve: Callable[..., Served], command: Callable[..., Said]) -> None:
    text = f'out = "{LAYOUT}"\nwork_dir = "state/{{dt}}"\nunit_reference = "{DAY}"\nbase_url = "{serve().url}"\n'
    Path("my.toml").write_text(text)
    done = command("--config", "my.toml", "run", "../one.txt")
    assert done.code == 0, done.err
    for name in ("status", "verify"):
        for out in ([], [LAYOUT], ["--out", LAYOUT]):
            seen = json.loads(command("--config", "my.toml", name, *out, "--json").out)
            assert seen["out"] == str(Path.cwd() / "lake/referrers/dt=2026-11-23")
    assert seen["ledger_checked"]


@pytest.mark.parametrize("name", ["status", "verify"])
def test_a_layout_without_a_day_says_what_to_give(command: Callable[..., Said], name: str) -> None:
    done = command(name, "lake/dt={dt}")
    assert done.code == 2
    assert done.err.startswith(
        "harvester: OUT lake/dt={dt}: {dt} is the first UTC day of the period, else that of "
        "--unit-reference, which is not set. Today's would be"
    )


def test_what_to_run_next_keeps_braces_that_stand_for_themselves(
    serve: Callable[..., Served], command: Callable[..., Said]
) -> None:
    done = command("run", "../two.txt", "--out", "a{{b}}", "--max-calls", "1", *flags(serve()))
    assert done.code == 9, done.err
    assert [path.name for path in Path().iterdir()] == ["a{b}"]
    seen = json.loads(command("status", "a{{b}}", "--json").out)
    assert seen["out"] == str(Path("a{b}").absolute())
    assert " --out 'a{{b}}' " in seen["next"]["command"]


# --- from Python ----------------------------------------------------------------------------------------------------


async def test_harvest_and_read_fill_in_too(
    tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moment = datetime(2026, 11, 23, 5, tzinfo=UTC)
    given_: Any = {"token": TOKEN, "base_url": serve().url, "unit_reference": moment, "facet": "countries"}
    made = await harvester.harvest(["bit.ly/a", "bit.ly/b"], out=LAYOUT, **given_)
    folder = Path("lake/countries/dt=2026-11-23")
    assert [part["path"] for part in made["parts"]] == [path.name for path in folder.glob("part-*")]
    table = harvester.read(LAYOUT, facet="countries", unit_reference=moment)
    assert table["bitlink"].to_pylist() == ["bit.ly/a", "bit.ly/b"]
    assert harvester.read(folder) == table
    with pytest.raises(harvester.UsageError, match="--unit-reference"):
        harvester.read(LAYOUT)
    with pytest.raises(harvester.UsageError, match="--unit-reference"):
        await harvester.harvest(["bit.ly/a"], out=LAYOUT, token=TOKEN)
