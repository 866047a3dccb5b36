"""Random runs under random faults: tests/crash/chaos.py, in short and at length."""

import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT, environment


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.crash.chaos", *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "jobs"), [(6, 2), pytest.param(3000, os.cpu_count() or 1, marks=pytest.mark.chaos)], ids=["some", "many"]
)
def test_nothing_is_lost_doubled_or_bought_twice(runs: int, jobs: int) -> None:
    played = chaos("--seed", "1", "--runs", str(runs), "--jobs", str(jobs))
    assert played.returncode == 0, played.stdout + played.stderr
    assert f"scenarios {runs:>42}"[-40:] in played.stdout
