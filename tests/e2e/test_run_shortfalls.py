"""Rows that lack metrics or a part of their time are counted, and said, wherever a run's counts are."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harvester import harvest
from harvester.progress import shortfalls_in_words
from harvester.verify.verify import output_at, verify
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester
from tests.support.output_checks import manifest, rows

COUNT = 20
CUT = ("--size", "2", "--no-complete", "--units", "90")  # the sandbox keeps 30 days


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(COUNT)) + "bit.ly/missing-a\n")
    return str(path)


def run(links: str, out: Path, url: str, *options: str) -> str:
    done = harvester("run", links, "--out", str(out), "--base-url", url, *NO_LIMITS, *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def lacking(out: Path) -> tuple[int, int]:
    """Count the calls whose rows are truncated, and those whose rows are clipped, from the rows alone."""
    calls = {row["bitlink"]: row for row in rows(out)}.values()
    truncated = sum(row["truncated"] for row in calls)
    return truncated, sum((row["units_returned"] or 0) < row["units"] for row in calls)


@pytest.mark.parametrize(("form", "shape"), [("out", "nested"), ("out", "flat"), ("results.ndjson", "nested")])
def test_what_rows_lack_is_counted_and_said_everywhere(
    tmp_path: Path, links: str, serve: Callable[..., Served], form: str, shape: str
) -> None:
    out, prom, url = tmp_path / form, tmp_path / "run.prom", serve().url
    options = ("--metrics-file", str(prom), *(("--shape", shape) if shape == "flat" else ()), *CUT)
    said = run(links, out, url, *options)
    truncated, clipped = lacking(out)
    assert COUNT // 2 < truncated < clipped == COUNT
    sentences = shortfalls_in_words(20, truncated, 20)
    counts = manifest(out)["dataset"]
    assert counts == {
        "calls": 21, "rows": 20, "refused": 1, "failed": 0, "pending": 0, "truncated": truncated, "clipped": 20,
        "idle": 0,
        "refreshed": 0,
    }  # fmt: skip
    status, checked = harvester("status", str(out)).stdout, harvester("verify", str(out))
    assert checked.returncode == 0
    for sentence in sentences:
        for text in (said, status, checked.stdout):
            assert text.count(sentence) == 1
    assert json.loads(harvester("status", str(out), "--json").stdout)["calls"] == counts
    found = verify(output_at(str(out)))
    assert (found.ok, found.ledger_checked, found.truncated, found.clipped) == (True, True, truncated, 20)
    numbers = dict(re.findall(r'^harvester_(\w+)_rows\{run="run"\} ([\d.]+)$', prom.read_text(), re.MULTILINE))
    assert numbers == {"truncated": f"{truncated}.0", "clipped": "20.0", "idle": "0.0"}


def test_the_log_has_what_the_rows_of_this_run_lack(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out, url = tmp_path / "out", serve().url
    for truncated, clipped in [(None, 20), (0, 0)]:  # the second run makes no call
        lines = run(links, out, url, "--log-format", "json", *CUT).splitlines()
        (ended,) = [event for event in map(json.loads, lines) if event["event"] == "run.ended"]
        wanted = lacking(out)[0] if truncated is None else truncated
        assert (ended["truncated"], ended["clipped"]) == (wanted, clipped)
        assert manifest(out)["dataset"]["clipped"] == 20


def test_whole_rows_are_not_spoken_of(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out, url = tmp_path / "out", serve().url
    said = run(links, out, url)
    for text in (said, harvester("status", str(out)).stdout, harvester("verify", str(out)).stdout):
        assert "truncated" not in text
        assert "clipped" not in text


def test_python_gets_the_counts_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    options: Any = {
        "base_url": serve().url,
        "per_minute": 0,
        "per_hour": 0,
        "per_month": 0,
        "size": 2,
        "units": 90,
        "complete": False,
    }
    found = asyncio.run(harvest([f"bit.ly/{i}" for i in range(COUNT)], out=tmp_path / "out", token="t", **options))
    truncated, clipped = lacking(tmp_path / "out")
    assert (found["dataset"]["truncated"], found["dataset"]["clipped"]) == (truncated, clipped)
    assert truncated > 0


def test_rows_that_a_loader_has_taken_are_not_missed(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out, url = tmp_path / "out", serve().url
    run(links, out, url, "--part-rows", "7", *CUT)
    first, *left = sorted(out.glob("part-*"))
    first.unlink()
    found = verify(output_at(str(out)), allow_moved=True)
    assert (found.ok, len(found.moved_away), found.truncated) == (True, 1, lacking(out)[0])
    assert found.clipped < manifest(out)["dataset"]["clipped"] == COUNT
    for part in left:
        part.unlink()
    assert verify(output_at(str(out)), allow_moved=True).ok
