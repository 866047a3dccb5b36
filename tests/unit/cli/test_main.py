"""What is set up around every command."""

import gc
import os
import subprocess
import sys

import pytest

from harvester.cli.main import main


def test_unreachable_objects_are_searched_as_ever_once_the_command_has_begun() -> None:
    gc.collect()
    usual, callbacks = gc.get_threshold(), [*gc.callbacks]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert gc.get_threshold()[0] > usual[0]
    gc.collect()
    assert gc.get_threshold() == usual
    assert gc.callbacks == callbacks


def test_what_waits_for_the_end_of_the_process_is_called() -> None:
    code = (
        "import atexit, sys, threading, time\nfrom harvester.cli import main\nsys.argv = ['harvester', *sys.argv[1:]]\n"
        "def run(words):\n"
        "    atexit.register(lambda: (print('last words'), print('to people', file=sys.stderr)))\n"
        "    threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\n"
        "    return 3\n"
        "main._run = run\nmain.main()"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code, "run"], capture_output=True, text=True, check=False, env=buffered
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "thread\nlast words\n", "to people\n")


def test_a_command_that_is_ended_by_an_exception_leaves_as_python_does() -> None:
    code = "import sys\nfrom harvester.cli import main\ndef run(words): sys.exit(143)\nmain._run = run\nmain.main()"
    done = subprocess.run([sys.executable, "-c", code, "run"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "")
