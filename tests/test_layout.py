"""Placeholders in --out: which they are, what they stand for, and what is said where they cannot stand."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harvester
from harvester.errors import UsageError
from harvester.layout import escaped, filled
from harvester.options import OutputOptions, QueryOptions, RunOptions
from harvester.settings import laid_out
from tests.commands import NO_LIMITS, TOKEN
from tests.commands import harvester as command
from tests.conftest import Served
from tests.outputs import manifest, rows

VALUES = {"dt": "2026-11-23", "facet": "countries"}
LAYOUT = "lake/{facet}/dt={dt}"
DAY = "2026-11-23"


def meant(out: str, work_dir: str | None = None, **query: Any) -> OutputOptions:
    output = OutputOptions(out=out, work_dir=work_dir)
    return laid_out(RunOptions(output=output, query=QueryOptions(**query))).output


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
    assert filled(path, VALUES, name="--out") == expected


@given(st.text())
def test_an_escaped_path_means_itself(path: str) -> None:
    assert filled(escaped(path), VALUES, name="--out") == path


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
        ("lake/{date}", "--out lake/{date}: {date} is no placeholder; did you mean {dt}, the UTC day of"),
        ("lake/{day}", "did you mean {dt}"),
        ("lake/{facets}", "did you mean {facet}, --facet? Write {{ and }} for braces"),
        ("lake/{DT}", "{DT} is no placeholder; there are {dt}, the UTC day of --unit-reference, and"),
        ("lake/{}", "{} is no placeholder; there are {dt}"),
        ("lake/{0}", "{0} is no placeholder"),
        ("lake/{dt!r}", "{dt!r} is no placeholder; did you mean {dt}"),
        ("lake/{dt:%Y}", "{dt:%Y} is no placeholder; did you mean {dt}"),
        ("lake/{dt.year}", "{dt.year} is no placeholder; did you mean {dt}"),
        ("lake/{dt", "--out lake/{dt: a brace without its other half; write {{ or }} for a brace"),
        ("lake/dt}", "--out lake/dt}: a brace without its other half"),
        ("lake/{{dt}", "a brace without its other half"),
        ("lake/{facet{dt}}", "a brace without its other half"),
    ],
)
def test_what_is_no_placeholder_is_refused_with_the_nearest(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message.replace(", and", " and"))):
        meant(path, unit_reference=DAY)


def test_dt_without_a_reference_is_refused_with_the_reason_and_todays_option(tmp_path: Path) -> None:
    before = datetime.now(UTC).date()
    done = command("run", "-", "--out", "lake/dt={dt}", stdin=b"bit.ly/a\n", cwd=tmp_path)
    after = datetime.now(UTC).date()
    assert done.returncode == 2
    assert done.stderr in {
        "harvester: --out lake/dt={dt}: {dt} is the UTC day of --unit-reference, which is not given: by default it is "
        "the moment of the first run, and tomorrow's same command would buy the list again. "
        f"Today's would be --unit-reference {day}\n"
        for day in (before, after)
    }
    assert list(tmp_path.iterdir()) == []


def test_a_facet_that_is_none_makes_no_folder() -> None:
    with pytest.raises(UsageError, match=r"^--facet \.\./x: one of"):
        meant("lake/{facet}", facet="../x")


# --- commands -------------------------------------------------------------------------------------------------------


def flags(served: Served, *more: str) -> tuple[str, ...]:
    return ("--unit-reference", DAY, "--base-url", served.url, *NO_LIMITS, *more)


def test_a_run_its_plan_and_its_status_mean_the_same_folder(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/{i}\n" for i in range(7)))
    query = ("--facet", "countries")
    run = command("run", "links.txt", "--out", LAYOUT, *flags(served, *query), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "lake/countries/dt=2026-11-23" in run.stderr
    assert "{" not in run.stderr
    out = tmp_path / "lake/countries/dt=2026-11-23"
    assert len(rows(out)) == 7
    assert manifest(out)["query"]["unit_reference"] == "2026-11-23T00:00:00Z"
    made = command("plan", "links.txt", "--out", LAYOUT, *flags(served, *query, "--json"), cwd=tmp_path)
    assert json.loads(made.stdout)["calls"] == 0
    seen = command("status", LAYOUT, "--unit-reference", DAY, *query, "--json", cwd=tmp_path)
    shown = json.loads(seen.stdout)
    assert (shown["state"], shown["out"]) == ("complete", str(out))


def test_the_same_command_resumes_and_another_day_is_another_output(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served = serve()
    for day in (DAY, DAY, "2026-11-24"):
        words = ("run", "-", "--out", "lake/dt={dt}", "--base-url", served.url, "--unit-reference", day)
        done = command(*words, stdin=b"bit.ly/a\n", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "lake").iterdir()) == ["dt=2026-11-23", "dt=2026-11-24"]
    assert served.sandbox.requests["bit.ly/a"] == 2


def test_a_growing_file_may_have_placeholders_in_its_name(tmp_path: Path, serve: Callable[..., Served]) -> None:
    words = ("run", "-", "--out", "{facet}-{dt}.ndjson", *flags(serve()))
    done = command(*words, stdin=b"bit.ly/a\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "referrers-2026-11-23.ndjson",
        "referrers-2026-11-23.ndjson.harvester",
    }
    assert len(rows(tmp_path / "referrers-2026-11-23.ndjson")) == 1


def test_the_layout_may_stand_in_the_configuration(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "my.toml").write_text(f'out = "{LAYOUT}"\nunit_reference = "{DAY}"\nbase_url = "{serve().url}"\n')
    done = command("--config", "my.toml", "run", "-", stdin=b"bit.ly/a\n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = command("--config", "my.toml", "status", LAYOUT, "--json", cwd=tmp_path)
    assert json.loads(seen.stdout)["out"] == str(tmp_path / "lake/referrers/dt=2026-11-23")


def test_status_of_a_layout_without_a_day_says_what_to_give(tmp_path: Path) -> None:
    done = command("status", "lake/dt={dt}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "harvester: OUT lake/dt={dt}: {dt} is the UTC day of --unit-reference, which is not given. Today's would be"
    )


def test_what_to_run_next_keeps_braces_that_stand_for_themselves(tmp_path: Path, serve: Callable[..., Served]) -> None:
    words = ("run", "-", "--out", "a{{b}}", "--max-calls", "1", *flags(serve()))
    done = command(*words, stdin=b"bit.ly/a\nbit.ly/b\n", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a{b}"]
    seen = json.loads(command("status", "a{{b}}", "--json", cwd=tmp_path).stdout)
    assert seen["out"] == str(tmp_path / "a{b}")
    assert f"--out '{tmp_path}/a{{{{b}}}}'" in seen["next"]["command"]


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
