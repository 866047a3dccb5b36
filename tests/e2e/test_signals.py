"""A signal at any moment of a command ends it clearly: with a code that is documented, and without Python's own words.

The moment is a number of calls and returns of Python's functions in the main thread, so that a failure can be repeated.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, environment

PROGRAM = """
import os, sys
from harvester.cli.main import main
number, nth, times = map(int, sys.argv[1:4])
del sys.argv[1:4]
count = 0
def profile(frame, event, argument):
    global count
    count += 1
    if nth <= count < nth + times:
        os.kill(os.getpid(), number)
sys.setprofile(profile)
main()
"""
# Before the first of these Python has its own handlers: its imports take longer than that.
MOMENTS = [100, 1_000, 15_000, 50_000, 100_000, 150_000, 200_000, 260_000, 330_000, 400_000, 470_000, 540_000]
PYTHONS_OWN = re.compile(r"Traceback|Exception ignored|Warning|never awaited|never retrieved|Error\b|a bug;")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("words", "moments"),
    [
        (("run", "links.txt", "--out", "out", *NO_LIMITS), MOMENTS),
        (("show", "bit.ly/a"), MOMENTS[4::4]),
        (("verify", "no-such-output"), MOMENTS[1::4]),
        (("run", "--help"), MOMENTS[2::4]),
    ],
    ids=["run", "show", "verify", "help"],
)
def test_a_signal_at_any_moment_ends_a_command_clearly(
    tmp_path: Path,
    serve: Callable[..., Served],
    number: signal.Signals,
    words: tuple[str, ...],
    moments: list[int],
) -> None:
    (tmp_path / "links.txt").write_text("".join(f"bit.ly/{n}\n" for n in range(20)))
    env = environment({"HARVESTER_BASE_URL": serve().url, "PYTHONPATH": str(ROOT)})
    for turn, moment in enumerate(moments[number % 3 :: 3] if len(moments) > 4 else moments):
        times = 1 + turn % 2
        command = [sys.executable, "-W", "default", "-c", PROGRAM, str(int(number)), str(moment), str(times)]
        ended = subprocess.run(
            [*command, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode in {0, 2, 5, 128 + number}, (moment, ended.stderr)
        assert not PYTHONS_OWN.search(ended.stderr), (moment, ended.stderr)
