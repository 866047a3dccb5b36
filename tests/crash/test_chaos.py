"""Random runs under random faults: tests/crash/chaos.py, in short and at length."""

import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT, environment

PLANTED = """
from harvester.dataset import opening
from tests.crash import chaos
opening._Recovery._replay = lambda *_: None
chaos.main()
"""
"""A recovery that forgets what the last run left in the journals."""


def chaos(*arguments: str, program: tuple[str, ...] = ("-m", "tests.crash.chaos")) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)


def count(table: str, name: str) -> int:
    (line,) = (line for line in table.splitlines() if line.startswith(f"{name} "))
    return int(line.removeprefix(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "jobs"), [(6, 2), pytest.param(1000, os.cpu_count() or 1, marks=pytest.mark.chaos)], ids=["some", "many"]
)
def test_nothing_is_lost_doubled_or_bought_twice(runs: int, jobs: int) -> None:
    played = chaos("--seed", "1", "--runs", str(runs), "--jobs", str(jobs))
    assert played.returncode == 0, played.stdout + played.stderr
    assert count(played.stdout, "scenarios") == runs
    assert count(played.stdout, "rows checked") > runs


@pytest.mark.slow
def test_a_recovery_that_forgets_is_found() -> None:
    """Two of these seeds find it; one is enough, since the machine decides what a signal meets."""
    played = chaos("--seed", "8", "--runs", "4", "--jobs", "2", program=("-c", PLANTED))
    assert played.returncode == 1, played.stdout + played.stderr
    assert count(played.stdout, "rows doubled") > 0


def test_a_seed_always_draws_the_same_scenario() -> None:
    first, again = (chaos("--seed", "3") for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stdout
    drawn = [line.split(": ")[0] for line in first.stdout.splitlines() if line.startswith("- ")]
    assert len(drawn) > 2
    assert drawn == [line.split(": ")[0] for line in again.stdout.splitlines() if line.startswith("- ")]
