"""The command's entry: what is set up around every command, and who reads its command line.

A program that waits for `--version`, `status` or one link should not wait for modules that do nothing for it. So this
module imports what it needs when it needs it (docs/decisions/0001-cyclopts.md).
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from harvester import _version
from harvester._version import __version__
from harvester.errors import UsageError
from harvester.misplaced import misplaced
from harvester.reporting.terminal import discard_output, open_closed_streams, print_out, say
from harvester.signals import die_of_signals, end_at_once

_UNCOLLECTED = 120_000
"""Objects made before the first search for unreachable ones; the imports of `run` make 90,000."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit code. argv: None in a process of the command's own."""
    ended: list[int] = []
    if argv is None:
        end_at_once()
        atexit.register(_leave, ended)
    _collect_later()
    open_closed_streams()
    words = [*(sys.argv[1:] if argv is None else argv)]
    misplaced.begin(words, os.environ.get("BITLY_TOKEN", "").strip())
    try:
        ended.append(_flush_output(_exit_code(words)))
    finally:
        if argv is None:
            end_at_once()
    sys.exit(ended[0])


def _leave(ended: list[int]) -> None:
    """End the process without taking the interpreter apart, which is a tenth of a short command's time.

    Registered first, so it is called last: threads have ended, and whatever else waits for the end was called. ended:
    the exit code, if the command came to its end.
    """
    if ended:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(ended[0])


def _collect_later() -> None:
    """Put off the first search for unreachable objects: what imports make stays, and is searched many times.

    From the first search on they come as often as they did before.
    """
    usual = gc.get_threshold()

    def as_usual(phase: str, _: object) -> None:
        if phase == "stop":
            gc.callbacks.remove(as_usual)
            gc.set_threshold(*usual)

    if usual[0] < _UNCOLLECTED:
        gc.callbacks.append(as_usual)
        gc.set_threshold(_UNCOLLECTED, *usual[1:])


def _flush_output(code: int) -> int:
    """Flush standard output; return the exit code, which is OUTPUT instead of OK if that fails.

    A failed print leaves its text in the buffer. The interpreter would try to write it once more as it ends, fail
    again, and exit with 120 whatever code was given.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    except OSError:
        from harvester.shutdown import OUTPUT

        discard_output()
        return code or OUTPUT
    return code


def _exit_code(words: list[str]) -> int:
    """Run the command and return its exit code, whatever it raises."""
    if sys.platform == "win32":
        from harvester.shutdown import USAGE

        say("harvester: runs on Linux and macOS; on Windows use WSL")
        return USAGE
    try:
        _check_installation()
        if words in (["--version"], ["version"]):
            print_out(__version__)
            return 0
        code = _run(words)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        discard_output()
        return 0
    except Exception as error:
        return _report(error, words)


def _run(words: list[str]) -> object:
    """Run the command that a command line names, and return what it returns."""
    from harvester.cli.command_line.plain import plain_call
    from harvester.config.sources import DASH, typed

    typed.begin(words)
    words = [DASH if word == "-" else word for word in words]
    if call := plain_call(words):
        die_of_signals()
        return call()
    from harvester.cli.command_line import app

    die_of_signals()
    return app.run(words)


def _report(error: Exception, words: list[str]) -> int:
    """Report an error and return its exit code."""
    from harvester.cli.exit_codes import observer_for, report_error
    from harvester.events import Event
    from harvester.shutdown import USAGE

    observer = observer_for("json" if _asks_for_json(words) else "text")
    if "cyclopts" in sys.modules:
        from cyclopts import CycloptsError

        from harvester.cli.command_line.app import usage_text

        if isinstance(error, CycloptsError):
            observer.tell(Event.RUN_REFUSED, usage_text(error), exit_code=USAGE)
            return USAGE
    return report_error(error, observer)


def _asks_for_json(words: list[str]) -> bool:
    """Return whether a command line that could not be parsed has `--log-format json`."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def _check_installation() -> None:
    """Warn of the distribution `harvester` in the folder where ours is installed.

    It is another program, whose `harvester/__init__.py` and `harvester/_version.py` have the paths of ours. The later
    of two installations overwrites them, and uninstalling either deletes them for both. One listing of the folder
    (0.3 ms) finds it; importing importlib.metadata alone takes 40 ms.

    Raises:
        UsageError: it has overwritten our files.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(_version.__file__)))
    with suppress(OSError):  # a zip file has no listing
        strangers = [
            name for name in os.listdir(folder) if name.startswith("harvester-") and name.endswith(".dist-info")
        ]
        if not strangers:
            return
        cure = "run pip uninstall -y harvester, then pip install --force-reinstall --no-deps bitly-harvester"
        name = " ".join(strangers[0].removesuffix(".dist-info").rsplit("-", 1))
        if getattr(_version, "DISTRIBUTION", None) is None:
            raise UsageError(
                f"the package {name}, another program, has overwritten files of this one in {folder}: {cure}"
            )
        say(f"warning: the package {name} in {folder} is another program that shares files with this one: {cure}")
