"""Signals around an event loop: one meets it before it is made, while it runs, or when it is closed."""

import subprocess
import sys

import pytest

from tests.support.commands import ROOT, environment

PROGRAM = """
import asyncio, gc, os, sys, warnings
from harvester.cli.exit_codes import observer_for, run_until_signal
from harvester.signals import die_of_signals

(number, stride), stops, moment = map(int, sys.argv[1:]), 0, 0
warnings.simplefilter("default")
gc.freeze()

async def work(shutdown):
    await asyncio.sleep(0)
    return 5 if shutdown.stop else 0

def end(nth):
    "In a fork: send the signal at the nth call or return, and end with what comes of it."
    count = 0
    def profile(*_):
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), number)
    code = 99
    try:
        die_of_signals()
        sys.setprofile(profile)
        code = run_until_signal(work, observer_for("text"))
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.setprofile(None)
        gc.collect()
        os._exit(77 if count < nth else code)

while True:
    moment += stride
    child = os.fork()
    if child == 0:
        end(moment)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 77:
        break
    assert code in (0, 5, 128 + number), (moment, code)
    stops += code == 5
print(moment, stops)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 15])
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"])
def test_a_signal_at_any_moment_of_an_event_loop_ends_it_or_the_process(number: int, stride: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(number), str(stride)]
    env = environment({"PYTHONWARNINGS": "default"})
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moments, stops = map(int, done.stdout.split())
    assert moments > 200
    said = done.stderr.splitlines()
    assert [line for line in said if "stopping; calls in flight get 5 s" not in line] == []
    assert stops > 200 // stride
