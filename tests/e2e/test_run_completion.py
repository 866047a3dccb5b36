"""Answers with as many metrics as --size: asked for once more, counted, and checked."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from harvester.verify.verify import output_at, verify
from tests.support import scripted_bitly
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.in_process import command
from tests.support.output_checks import manifest, rows
from tests.support.scripted_bitly import Reply, Seen, scripted


def listing(has: int, most: int, seen: Seen) -> Reply:
    """Answer with what a link has, as far as it was requested; refuse a larger size."""
    size = int(parse_qs(urlsplit(seen.target).query)["size"][0])
    if size > most:
        return Reply(400, b'{"message":"INVALID_ARG_SIZE","errors":[{"field":"size","error_code":"invalid"}]}')
    metrics = [{"value": f"https://{number}.example/", "clicks": 1} for number in range(min(has, size))]
    return Reply(200, json.dumps({"metrics": metrics, "facet": "referrers", "unit": "day"}).encode())


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("BITLY_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    for most in (3, 9):
        for has in range(11):
            monkeypatch.setitem(scripted_bitly.REPLIES, f"has{has}of{most}", partial(listing, has, most))

    def harvest(names: Sequence[str], *words: str, name: str = "run") -> tuple[Any, list[str]]:
        Path("links.txt").write_text("".join(f"bit.ly/{each}\n" for each in names))
        with scripted() as bitly:
            done = command(capsys, name, "links.txt", "-o", "out", "--base-url", bitly.url, *NO_LIMITS, *words)
            asked = [parse_qs(urlsplit(seen.target).query)["size"][0] for seen in bitly.requests if seen.back_half]
        return done, asked

    return harvest


@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_full_answer_is_asked_for_once_more_and_its_row_has_the_larger_size(
    tmp_path: Path, run: Callable[..., Any], shape: str
) -> None:
    names = ["has0of9", "has2of9", "has3of9", "has5of9", "has10of9"]
    done, asked = run(names, "--size", "3", "--max-size", "9", "--shape", shape)
    assert done.code == 0, done.err
    assert sorted(asked) == ["3"] * 5 + ["9"] * 3
    sizes = {row["bitlink"]: (row["size"], row["clicks_listed"], row["truncated"]) for row in rows(tmp_path / "out")}
    assert sizes == {
        "bit.ly/has0of9": (3, 0, False),
        "bit.ly/has2of9": (3, 2, False),
        "bit.ly/has3of9": (9, 3, False),
        "bit.ly/has5of9": (9, 5, False),
        "bit.ly/has10of9": (9, 9, True),
    }
    found = verify(output_at("out"))
    assert (found.ok, found.truncated) == (True, 1), found.problems
    written = manifest(tmp_path / "out")
    assert (written["query"]["size"], written["dataset"]["truncated"]) == (3, 1)
    assert (written["attempts"]["total"], written["attempts"]["retried"]) == (8, 0)


def test_a_size_that_bitly_refuses_is_tried_once_and_the_first_answers_stay(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    done, asked = run(["has10of3", *(f"has{has}of3" for has in range(4, 10))], "--size", "3", "--connections", "1")
    assert done.code == 0, done.err
    assert sorted(asked) == ["1000"] + ["3"] * 7
    assert {(row["size"], row["truncated"]) for row in rows(tmp_path / "out")} == {(3, True)}
    assert "7 of 7 rows are truncated" in done.err
    assert verify(output_at("out")).ok


def test_without_completion_a_full_answer_is_the_row(tmp_path: Path, run: Callable[..., Any]) -> None:
    done, asked = run(["has5of9"], "--size", "3", "--no-complete")
    assert (done.code, asked) == (0, ["3"])
    assert [row["truncated"] for row in rows(tmp_path / "out")] == [True]


def test_a_later_run_may_have_another_largest_size(tmp_path: Path, run: Callable[..., Any]) -> None:
    assert run(["has5of9"], "--size", "3", "--max-size", "4")[0].code == 0
    assert run(["has5of9", "has10of9"], "--size", "3", "--max-size", "9")[0].code == 0
    assert sorted((row["size"], row["truncated"]) for row in rows(tmp_path / "out")) == [(4, True), (9, True)]
    assert verify(output_at("out")).ok


def test_a_smaller_size_than_the_manifests_is_a_problem(tmp_path: Path, run: Callable[..., Any]) -> None:
    assert run(["has2of9"], "--size", "3", "--format", "ndjson")[0].code == 0
    (part,) = (tmp_path / "out").glob("part-*")
    part.write_bytes(part.read_bytes().replace(b'"size":3', b'"size":1'))
    assert "size is 1, and 3 in the manifest" in verify(output_at("out")).problems[0].text


def test_the_plan_says_what_a_full_answer_costs(run: Callable[..., Any]) -> None:
    done, asked = run(["has5of9"], "--size", "3", "--offline", name="plan")
    assert (done.code, asked) == (0, [])
    assert "a link with 3 metrics or more takes two requests (--no-complete: one)" in done.out
    for words in (("--no-complete",), ("--facet", "clicks")):
        assert "two requests" not in run(["has5of9"], "--offline", *words, name="plan")[0].out
