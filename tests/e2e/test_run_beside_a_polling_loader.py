"""Loading twice is harmless: what a polling loader has seen of a part stays so, through kills, resumes and options."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served
from tests.crash.test_kill_at_every_operation import check_only_grew, published
from tests.crash.test_kill_storm import end, make_links
from tests.support.commands import NO_LIMITS, ROOT, environment, harvester, start
from tests.support.polling_loader import Poller

LONGEST_SECONDS = 20.0


@contextmanager
def polled(out: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Let a loader in a process of its own poll a folder; give what ends it and gives its report."""
    command = [sys.executable, "-m", "tests.support.polling_loader", str(out)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment()) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

        def report() -> dict[str, Any]:
            told: dict[str, Any] = json.loads(process.communicate()[0])
            return told

        try:
            yield report
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ndjson.gz", "parquet"])
@pytest.mark.parametrize("most", [4, pytest.param(12, marks=pytest.mark.nightly)])
def test_a_loader_that_polls_never_sees_a_part_torn_changed_or_gone(
    tmp_path: Path, serve: Callable[..., Served], form: str, most: int
) -> None:
    rng, served, out = random.Random(f"poll {form}"), serve(latency_ms=3), tmp_path / "out"
    links = tmp_path / "links.txt"
    links.write_text("\n".join(make_links(4000, "p")))
    where = ["--out", str(out), "--base-url", served.url, "--format", form, *NO_LIMITS]
    began, kills = time.monotonic(), 0
    with polled(out) as report:
        while kills < most and time.monotonic() - began < LONGEST_SECONDS:
            # Another size of parts each time: those that are there must not be made anew.
            size = ("--part-rows", str(rng.choice((20, 20, 7, 50))))
            process = start("run", str(links), *where, *size)
            kills += end(process, signal.SIGKILL, rng.uniform(0.1, 1.0)) == -signal.SIGKILL
        process = start("run", str(links), *where, "--part-rows", "20", "--max-calls", "200")
        assert end(process, None, 60) in {0, 9}
        seen = report()
    assert kills >= 3
    assert seen["wrong"] == []
    assert seen["polls"] > kills
    assert seen["parts"] == len(list(out.glob("part-*"))) >= 8
    manifest = json.loads((out / "_manifest.json").read_bytes())
    assert seen["rows"] == sum(part["rows"] for part in manifest["parts"]) == manifest["dataset"]["rows"]
    assert harvester("verify", str(out)).returncode == 0


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda part: part.unlink(), "is gone"),
        (lambda part: part.write_bytes(b"{}\n"), "has changed"),
        (lambda part: part.with_name("part-1.ndjson").write_bytes(b'{"torn'), "part-1.ndjson is torn"),
    ],
)
def test_the_loader_would_see_it(tmp_path: Path, spoil: Callable[[Path], object], wrong: str) -> None:
    part, poller = tmp_path / "part-0.ndjson", Poller(tmp_path)
    part.write_bytes(b"{}\n{}\n")
    poller.poll()
    poller.poll()
    assert (poller.wrong, poller.rows) == ([], 2)
    spoil(part)
    poller.poll()
    assert len(poller.wrong) == 1
    assert wrong in poller.wrong[0]


def test_a_resumed_run_with_other_part_sizes_leaves_published_parts_as_they_are(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, out, links = serve(), tmp_path / "out", tmp_path / "links.txt"
    links.write_text("\n".join(make_links(200, "r")))
    command = ["run", str(links), "--out", str(out), "--base-url", served.url, *NO_LIMITS]
    assert harvester(*command, "--part-rows", "30", "--max-calls", "90").returncode == 9
    before = published(out)
    assert len(before) == 3
    assert harvester(*command, "--part-rows", "7").returncode == 0
    check_only_grew(before, published(out))
    assert len(published(out)) > 3 + 80 // 7
    assert harvester("verify", str(out)).returncode == 0


@pytest.mark.parametrize("option", [("--format", "ndjson"), ("--shape", "flat")])
def test_another_form_of_parts_is_refused_when_a_run_is_resumed(
    tmp_path: Path, serve: Callable[..., Served], option: tuple[str, str]
) -> None:
    served, out, links = serve(), tmp_path / "out", tmp_path / "links.txt"
    links.write_text("bit.ly/a\n")
    command = ["run", str(links), "--out", str(out), "--base-url", served.url, *NO_LIMITS]
    assert harvester(*command).returncode == 0
    before = published(out)
    done = harvester(*command, *option)
    assert done.returncode == 2
    assert (
        f"{out} was started with --format ndjson.gz --shape nested: leave them out, or use another --out" in done.stderr
    )
    assert published(out) == before
    assert (out / "_SUCCESS").exists()
