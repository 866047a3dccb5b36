"""`--carry`: columns of the list in the rows of a run, in each form of output, and what a later run may change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harvester
from harvester.verify.verify import output_at, verify
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.in_process import command
from tests.support.output_checks import manifest, rows

LIST = """link,campaign,channel
bit.ly/1,autumn,paid
https://bit.ly/2,autumn,
bit.ly/1,winter,paid
bit.ly/2,autumn,
bit.ly/3,"a ""quoted"" { }, one",x
"""


@pytest.fixture
def run(
    tmp_path: Path, serve: Callable[..., Served], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    served = serve()
    Path("links.csv").write_text(LIST)

    def harvest(*words: str, name: str = "links.csv") -> Any:
        done = command(capsys, "run", name, "--base-url", served.url, *NO_LIMITS, *words)
        return done, served.sandbox.requests.total()

    return harvest


def carried_in(out: Path) -> dict[str, Any]:
    return {row["bitlink"]: row["carried"] for row in rows(out)}


CARRIED = {
    "bit.ly/1": {"channel": "paid", "campaign": "autumn"},
    "bit.ly/2": {"channel": None, "campaign": "autumn"},
    "bit.ly/3": {"channel": "x", "campaign": 'a "quoted" { }, one'},
}


@pytest.mark.parametrize(
    ("name", "form", "shape"),
    [
        ("out", "ndjson.gz", "nested"),
        ("out", "ndjson", "flat"),
        ("out", "parquet", "nested"),
        ("out", "parquet", "flat"),
        ("out.ndjson", "", ""),
    ],
)
def test_each_row_has_the_columns_of_the_first_line_of_its_link(
    tmp_path: Path, run: Callable[..., Any], name: str, form: str, shape: str
) -> None:
    options = ("--format", form, "--shape", shape) if form else ()
    done, calls = run("--out", name, "--carry", "channel,campaign", *options)
    assert (done.code, calls) == (0, 3), done.err
    assert "1 repeated line has other --carry values than the first line of the link, which counts" in done.err
    assert manifest(tmp_path / name)["list"]["differing"] == 1
    table = harvester.read(tmp_path / name)
    maps = dict(zip(table["bitlink"].to_pylist(), map(dict, table["carried"].to_pylist()), strict=True))
    assert maps == CARRIED
    if form != "parquet":
        assert carried_in(tmp_path / name) == CARRIED
    found = verify(output_at(name))
    assert (found.ok, found.problems) == (True, [])


def test_a_later_run_may_carry_something_else_and_rows_that_are_written_stay(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    assert run("--out", "out", "--carry", "campaign", "--max-calls", "1")[0].code == 9
    (first,) = rows(tmp_path / "out")
    Path("links.csv").write_text("link,owner\n" + "".join(f"bit.ly/{number},me\n" for number in (1, 2, 3)))
    done, calls = run("--out", "out", "--carry", "owner")
    assert (done.code, calls) == (0, 3), done.err
    others = {name: {"owner": "me"} for name in CARRIED if name != first["bitlink"]}
    assert carried_in(tmp_path / "out") == {first["bitlink"]: {"campaign": "autumn"}, **others}
    assert run("--out", "out")[0].code == 0
    assert verify(output_at("out")).ok


@pytest.mark.parametrize(
    ("name", "carry", "said"),
    [
        ("links.csv", "campaign,chanel", "no column is called chanel; found: link, campaign, channel"),
        ("links.txt", "campaign", "--carry links.txt: a list of lines has no columns"),
    ],
)
def test_a_column_that_is_not_there_ends_the_run_before_the_first_call(
    tmp_path: Path, run: Callable[..., Any], name: str, carry: str, said: str
) -> None:
    Path("links.txt").write_text("bit.ly/1\n")
    done, calls = run("--out", "out", "--carry", carry, name=name)
    assert (done.code, calls) == (2, 0)
    assert said in done.err
    assert not (tmp_path / "out").exists()


async def test_python_takes_pairs_and_refuses_the_option_for_them(tmp_path: Path, serve: Callable[..., Served]) -> None:
    given: Any = {"token": TOKEN, "base_url": serve().url, "per_minute": 0, "per_hour": 0, "per_month": 0}
    pairs: list[Any] = [("bit.ly/1", {"rank": 1}), ("bit.ly/2", {"rank": None}), "bit.ly/3"]
    found = [row async for row in harvester.stream(pairs, **given)]
    carried = {row["bitlink"]: row["carried"] for row in found}
    assert carried == {"bit.ly/1": {"rank": "1"}, "bit.ly/2": {"rank": None}, "bit.ly/3": None}
    with pytest.raises(harvester.UsageError, match="links from Python have no columns"):
        await harvester.harvest(pairs, out=tmp_path / "out", carry="rank", **given)
    (tmp_path / "links.ndjson").write_text(json.dumps({"link": "bit.ly/1", "rank": 1.50}))
    manifest = await harvester.harvest(tmp_path / "links.ndjson", out=tmp_path / "out", carry="rank", **given)
    assert manifest["complete"]
    assert harvester.read(tmp_path / "out")["carried"].to_pylist() == [[("rank", "1.5")]]
