"""A process that runs harvester in forks of itself, and kills, fails or records them at their operations on files.

Reads an order a line from standard input, `{"arguments": [...], "operation": "rename part", "nth": 2, "when":
"before"}`, and answers with a line `{"killed": true, "code": null, "counts": null}`, or with the exit code and the
number of times that each operation took place. `any` counts all operations. when: `before` or `after` for a kill;
`fail` for an error of that operation, whose number is `error`, and `fail on` for that one and all later ones; `record`
to write all operations to REPORT.operations. A fork's id stands in REPORT.pid while it runs: a server may kill it too.
What it says stands in REPORT.log.
"""

import contextlib
import gc
import json
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar, cast

# Imported here, so that a fork begins at once.
from harvester.cli import harvesting
from harvester.cli.command_line import app as cli
from harvester.config.options import RunOptions
from harvester.run import job  # noqa: F401
from harvester.signals import die_of_signals
from harvester.storage import object_store
from tests.support.file_operations import Operation, put_in_place

T = TypeVar("T")
ANY = "any"
_KILLED = {"write", "fsync", "truncate", "rename", "unlink", "commit"}


class Counting:
    """Counts operations, and finds the chosen one. killed: True to leave out those that no kill is tried at."""

    def __init__(self, operation: str, nth: int, *, killed: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._chosen = operation
        self._nth = nth
        self._killed = killed
        self._lock = threading.Lock()

    def number(self, operation: Operation) -> int:
        """Count an operation; return its number after the chosen one, 0 for that one, negative for any other."""
        if self._killed and operation.verb not in _KILLED:
            return -1
        with self._lock:
            self.counts.update([operation.name, ANY])
            chosen = self._chosen in {operation.name, ANY}
            return self.counts[self._chosen] - self._nth if chosen else -1


class Killer(Counting):
    """Kills this process before or after the chosen operation."""

    def __init__(self, operation: str, nth: int, when: str) -> None:
        super().__init__(operation, nth, killed=True)
        self._when = when

    def around(self, operation: Operation, do: Callable[[], T]) -> T:
        mine = self.number(operation) == 0
        if mine and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = do()
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class Faults(Counting):
    """Lets the chosen operation fail.

    lasting: True as on a full disk: the chosen write has room for half, and all later operations of its name fail.
    """

    def __init__(self, operation: str, nth: int, error: int, *, lasting: bool) -> None:
        super().__init__(operation, nth, killed=False)
        self._error = error
        self._lasting = lasting

    def around(self, operation: Operation, do: Callable[[], T]) -> T:
        number = self.number(operation)
        if number < 0 or (number > 0 and not self._lasting) or operation.verb == "commit":
            return do()
        if operation.verb == "write" and self._lasting and not number:
            with open(operation.path, "ab") as stream:
                return cast("T", stream.write(operation.data[: len(operation.data) // 2]))
        raise OSError(self._error, os.strerror(self._error), *self._named(operation))

    def _named(self, operation: Operation) -> list[str]:
        return [operation.path] if operation.verb in {"open", "rename", "unlink", "mkdir"} else []


class Recorder(Counting):
    """Keeps every operation in its order."""

    def __init__(self) -> None:
        super().__init__("", 0, killed=False)
        self.operations: list[Operation] = []
        self._turn = threading.RLock()

    def around(self, operation: Operation, do: Callable[[], T]) -> T:
        with self._turn:
            self.number(operation)
            result = do()
            content = operation.snapshot() if operation.snapshot else operation.data
            self.operations.append(replace(operation, data=content, snapshot=None))
            return result


def observer_of(order: dict[str, Any]) -> Killer | Faults | Recorder:
    operation, nth, when = order["operation"], order["nth"], order["when"]
    if when == "record":
        return Recorder()
    if when.startswith("fail"):
        return Faults(operation, nth, order["error"], lasting=when == "fail on")
    return Killer(operation, nth, when)


def run_in_fork(order: dict[str, Any], report: str) -> dict[str, Any]:
    _, options = asked(order["arguments"])  # once, for all forks
    if "://" in (options.output.out or ""):
        object_store._library()
    child = os.fork()
    if child == 0:
        run_and_leave(order, report)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"killed": True, "code": None, "counts": None}
    with open(report) as stream:
        return {"killed": False, "code": os.WEXITSTATUS(status), "counts": json.load(stream)}


def run_and_leave(order: dict[str, Any], report: str) -> None:
    """Run the command in this fork, and end it."""
    log = os.open(report + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with open(report + ".pid", "w") as stream:
        stream.write(str(os.getpid()))
    observer = observer_of(order)
    put_in_place(observer, budget=not isinstance(observer, Killer))
    code = 99
    try:
        die_of_signals()
        code = run(order["arguments"])
    finally:
        sys.stderr.flush()
        with open(report, "w") as stream:
            json.dump(observer.counts, stream)
        if isinstance(observer, Recorder):
            with open(report + ".operations", "wb") as operations:
                pickle.dump(observer.operations, operations)
        os._exit(code)


def run(arguments: list[str]) -> int:
    """Do what `harvester` does with a command line, and give its exit code."""
    links, options = asked(arguments)
    return harvesting.run(links, options=options)


def asked(arguments: list[str]) -> tuple[list[str], RunOptions]:
    """Read a command line; all that differ in --out alone are read once, since that takes as long as a short run."""
    place = arguments.index("--out") + 1
    links, options = read_options((*arguments[:place], "out", *arguments[place + 1 :]))
    return links, replace(options, output=replace(options.output, out=arguments[place]))


@cache
def read_options(arguments: tuple[str, ...]) -> tuple[list[str], RunOptions]:
    cli.configure(None)
    _, bound, _ = cli.app.parse_args(arguments)
    return bound.args[0], bound.kwargs["options"]


def warm_up() -> None:
    """Import what a run needs: each fork then has it for nothing."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        run(["run", "/no/such/list", "--out", "out"])
    assert threading.active_count() == 1, "a fork has one thread"
    gc.collect()
    gc.freeze()  # so that a fork's collections touch no page that it shares


def main() -> None:
    report = sys.argv[1]
    warm_up()
    for line in sys.stdin:
        print(json.dumps(run_in_fork(json.loads(line), report)), flush=True)


if __name__ == "__main__":
    main()
