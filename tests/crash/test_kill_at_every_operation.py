"""Killed before and after every operation on its files, harvester carries on: nothing lost, doubled or asked twice."""

import json
import pickle
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, start_program
from tests.support.file_operations import Operation
from tests.support.killed_forks import ANY
from tests.support.output_checks import check_reconciled, failures, rows

LINKS = [f"bit.ly/{i}" for i in range(9)]
REFUSED = ["bit.ly/missing-1", "bit.ly/gone-2"]
LINES = [*LINKS[:3], REFUSED[0], LINKS[2], "not a link", *LINKS[3:], REFUSED[1], LINKS[0]]

# Every operation that the promise rests on must have been interrupted, or this test has lost its subject.
ALWAYS = {
    "write journal", "fsync journal", "fsync folder", "commit ledger", "unlink journal", "write manifest",
    "fsync manifest", "rename manifest", "write failures", "fsync failures", "rename failures", "fsync success",
    "rename success",
}  # fmt: skip
OF_FORM = {
    "out": ALWAYS | {"write part", "fsync part", "rename part"},
    "results.ndjson": ALWAYS | {"write growing", "fsync growing"},
}


class Crasher:
    """Gives orders to tests/support/killed_forks.py."""

    def __init__(self, process: subprocess.Popen[bytes], report: Path) -> None:
        self._process = process
        self._report = report

    @property
    def pid(self) -> int:
        """The run that goes on."""
        return int(self._beside(".pid").read_text())

    @property
    def log(self) -> str:
        """What the last run has said."""
        return self._beside(".log").read_text()

    def recorded(self) -> list[Operation]:
        """The operations of the last run, which was recorded."""
        operations: list[Operation] = pickle.loads(self._beside(".operations").read_bytes())
        return operations

    def _beside(self, ending: str) -> Path:
        return self._report.with_name(self._report.name + ending)

    def run(
        self, arguments: list[str], operation: str = "", nth: int = 0, when: str = "", error: int = 0
    ) -> dict[str, Any]:
        order = {"arguments": arguments, "operation": operation, "nth": nth, "when": when, "error": error}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._process.stdout.readline())
        return result


@contextmanager
def crashing(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Crasher]:
    report = folder / "report"
    with start_program("tests.support.killed_forks", str(report), env=env) as process:
        yield Crasher(process, report)
        assert process.stdin
        process.stdin.close()


def published(out: Path) -> dict[str, bytes]:
    """What a consumer may have read: whole parts, or the growing file as far as it goes."""
    if out.is_dir():
        return {part.name: part.read_bytes() for part in out.glob("part-*")}
    return {out.name: out.read_bytes()} if out.exists() else {}


def check_only_grew(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    for name, content in before.items():
        assert after[name].startswith(content)
        if name.startswith("part-"):
            assert after[name] == content


@pytest.mark.slow
@pytest.mark.parametrize("form", OF_FORM)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("spread", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["spread", "all"])
def test_a_kill_at_any_operation_costs_nothing(
    quick_path: Path, serve: Callable[..., Served], form: str, when: str, spread: bool
) -> None:
    served = serve()
    links = quick_path / "links.txt"
    links.write_text("\n".join(LINES) + "\n")
    with crashing(quick_path) as crasher:
        counts = {each: counted(crasher, links, quick_path / "whole" / each, served) for each in OF_FORM}
        for operation, nth in points(counts, form, when) if spread else every(counts[form]):
            served.sandbox.answered.clear()
            out = quick_path / f"{operation} {nth}" / form
            arguments = arguments_for(links, out, served)
            killed = run_through(crasher, arguments, out, (operation, nth, when), served.sandbox.answered)
            # Threads meet differently each time, so the last of many may not come; the first always does.
            assert killed or nth > 1


def counted(crasher: Crasher, links: Path, out: Path, served: Served) -> dict[str, int]:
    """Count each operation of a run that nothing kills."""
    counts: dict[str, int] = crasher.run(arguments_for(links, out, served))["counts"]
    assert OF_FORM[out.name] - counts.keys() == set()
    del counts[ANY]
    return counts


def every(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield each operation with the number of each of its times."""
    return ((operation, nth) for operation, count in counts.items() for nth in range(1, count + 1))


def points(counts: Mapping[str, Mapping[str, int]], form: str, when: str) -> Iterator[tuple[str, int]]:
    """Yield this form's share: an operation's first time, before and after it, and of its others about a fifth.

    The forms take turns at what both of them do: where one is killed before an operation, the other is killed after it.
    An operation of one alone is tried each time, in turn before and after it. The nightly form tries everything.
    """
    common = set(counts[form]).intersection(*(theirs for each, theirs in counts.items() if each != form))
    turn = list(counts).index(form) + (when == "after")

    def is_ours(point: tuple[str, int]) -> bool:
        operation, nth = point
        if operation not in common:
            return nth == 1 or (nth + turn) % 2 == 0
        return (nth + turn) % (len(counts) * (1 if nth == 1 else 5)) == 0

    return (point for point in every(counts[form]) if is_ours(point))


def arguments_for(links: Path, out: Path, served: Served) -> list[str]:
    limits = [*NO_LIMITS, "--connections", "1", "--part-rows", "3"]
    return ["run", str(links), "--out", str(out), "--base-url", served.url, *limits]


def run_through(
    crasher: Crasher, arguments: list[str], out: Path, point: tuple[str, int, str], answered: Counter[str]
) -> bool:
    """Kill at the point, kill the recovery too, let the third run end, and check; False if the point did not come."""
    first = crasher.run(arguments, *point)
    seen = published(out)
    second = crasher.run(arguments, ANY, 1 + point[1] * 7 % 30, point[2])
    kills = first["killed"] + second["killed"]
    now = published(out)
    check_only_grew(seen, now)
    assert crasher.run(arguments)["code"] == 0
    check_only_grew(now, published(out))
    check_reconciled(out, {*LINKS, *REFUSED})
    assert sum(line["kind"] == "invalid" for line in failures(out)) == 1
    assert len(rows(out)) == len(LINKS)
    repeated = sum(answered.values()) - len(answered)
    assert repeated <= kills, "with one connection a kill costs at most the one answer that was on its way"
    return bool(first["killed"])
