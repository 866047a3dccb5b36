"""Ended while full answers are asked for once more, harvester keeps the first answers, and asks for none again."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from harvester.verify.verify import output_at, verify
from tests.crash.test_kill_storm import end
from tests.support import scripted_bitly
from tests.support.commands import NO_LIMITS, start
from tests.support.output_checks import manifest, rows
from tests.support.scripted_bitly import Line, Scripted, be_silent, metrics_of, scripted

NAMES = ["full--1", "full--2", "503x1-then-full--3", "503x1-then-full--4"]
OTHERS = [f"ok--{number}" for number in range(20)]


def size_of(target: str) -> str:
    (size,) = parse_qs(urlsplit(target).query)["size"]
    return size


async def answer_the_first(line: Line) -> None:
    """Answer with as many metrics as were requested, and let a larger request wait for ever."""
    if size_of(line.seen.target) == "2":
        line.writer.write(scripted_bitly.good(line.seen).wire())
    else:
        await be_silent(line)


@pytest.fixture
def bitly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    assert len(metrics_of("full")) == 2
    monkeypatch.setitem(scripted_bitly.TRICKS, "full", answer_the_first)
    with scripted() as served:
        yield served


def wait_until_all_are_asked_again(bitly: Scripted) -> None:
    while not {seen.back_half for seen in bitly.requests if size_of(seen.target) == "9"}.issuperset([*NAMES, *OTHERS]):
        time.sleep(0.005)


def answers_of_first_size(bitly: Scripted) -> Counter[str]:
    return Counter(seen.back_half for seen in bitly.requests if size_of(seen.target) == "2")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["out", "results.ndjson"])
@pytest.mark.parametrize("part_rows", ["1", "1000"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_first_answer_is_its_calls_row_if_the_run_ends_before_the_second(
    tmp_path: Path, bitly: Scripted, form: str, part_rows: str, number: signal.Signals
) -> None:
    """Part of one row each: the first answers are older than journals that are published and deleted meanwhile."""
    links, out = tmp_path / "links.txt", tmp_path / form
    links.write_text("".join(f"bit.ly/{name}\n" for name in [*NAMES, *OTHERS]))
    words = ("run", str(links), "--out", str(out), "--base-url", bitly.url, *NO_LIMITS, "--part-rows", part_rows)
    process = start(*words, "--size", "2", "--max-size", "9")
    wait_until_all_are_asked_again(bitly)
    assert end(process, number, 0.3) == (0 if number == signal.SIGTERM else -number)
    asked = answers_of_first_size(bitly)
    assert end(start(*words, "--size", "2", "--no-complete"), None, 60.0) == 0
    assert {name: answers_of_first_size(bitly)[name] for name in NAMES} == {name: asked[name] for name in NAMES}
    found = {row["bitlink"].removeprefix("bit.ly/"): row for row in rows(out)}
    assert len(found) == len(rows(out)) == 24
    assert all((found[name]["size"], found[name]["truncated"]) == (2, True) for name in NAMES)
    assert manifest(out)["dataset"]["rows"] == 24
    assert verify(output_at(str(out))).problems == []


@pytest.mark.slow
def test_a_first_answer_is_printed_if_a_signal_ends_the_run_before_the_second(tmp_path: Path, bitly: Scripted) -> None:
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/{name}\n" for name in [*NAMES, *OTHERS]))
    words = ("run", str(tmp_path / "links.txt"), "--out", "-", "--base-url", bitly.url, *NO_LIMITS)
    process = start(*words, "--size", "2", "--max-size", "9")
    wait_until_all_are_asked_again(bitly)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    sizes = {(row := json.loads(line))["bitlink"]: row["size"] for line in printed.splitlines()}
    assert sizes == {f"bit.ly/{name}": 2 for name in NAMES} | {f"bit.ly/{name}": 9 for name in OTHERS}
