"""A process that runs harvester in forks of itself, and has the kernel kill them at a chosen operation on a file.

Reads an order a line from standard input,
`{"arguments": [...], "operation": "rename part", "nth": 2, "when": "before"}`, and answers with a line
`{"killed": true, "code": null, "counts": null}`, or with the exit code and the number of times that each operation took
place. Operations are the writes, fsyncs, renames, unlinks, truncations and commits of journal, ledger and dataset;
`any` counts them all. A fork's id stands in REPORT.pid while it runs: a server may kill it too.
"""

import contextlib
import gc
import io
import json
import os
import re
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

# Imported here, so that a fork begins at once.
from harvester.cli import harvesting
from harvester.cli import main as cli
from harvester.cli.signals import die_of_signals
from harvester.config.options import RunOptions

# Imported here, so that a fork begins at once.
from harvester.dataset import file_publisher, journal, part_publisher
from harvester.run import harvest, job  # noqa: F401
from harvester.storage import filesystem, object_store, sqlite, storage

T = TypeVar("T")
ANY = "any"
_KINDS = (("part", r"part-"), ("journal", r"journal-"), ("manifest", r"_manifest"), ("failures", r"_failures"),
          ("success", r"_SUCCESS"), ("claim", r"_claim"), ("growing", r"\.ndjson$"))  # fmt: skip


def kind_of(path: str) -> str:
    """What a path is, without its numbers."""
    name = os.path.basename(path.rstrip("/"))
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "folder")


class Killer:
    """Counts operations, and kills this process before or after the chosen one."""

    def __init__(self, operation: str, nth: int, when: str) -> None:
        self._chosen = operation
        self._nth = nth
        self._when = when
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def around(self, name: str, operation: Callable[[], T]) -> T:
        with self._lock:
            self.counts.update([name, ANY])
            mine = name == self._chosen or self._chosen == ANY
            mine = mine and self.counts[self._chosen] == self._nth
        if mine and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = operation()
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class KillingOs:
    """Stands before the os module of a module under test."""

    def __init__(self, killer: Killer) -> None:
        self._killer = killer

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _on_descriptor(self, name: str, descriptor: int, operation: Callable[[], T]) -> T:
        return self._killer.around(f"{name} {kind_of(os.readlink(f'/proc/self/fd/{descriptor}'))}", operation)

    def write(self, descriptor: int, data: bytes) -> int:
        return self._on_descriptor("write", descriptor, lambda: os.write(descriptor, data))

    def fsync(self, descriptor: int) -> None:
        self._on_descriptor("fsync", descriptor, lambda: os.fsync(descriptor))

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._on_descriptor("truncate", descriptor, lambda: os.ftruncate(descriptor, size))

    def rename(self, source: str, target: str) -> None:
        self._killer.around(f"rename {kind_of(target)}", lambda: os.rename(source, target))

    def unlink(self, path: str) -> None:
        self._killer.around(f"unlink {kind_of(path)}", lambda: os.unlink(path))


class KillingFile(io.FileIO):
    """A file whose writes and truncations are counted, one for each system call."""

    killer: Killer

    def write(self, data: Any) -> int:
        return self.killer.around(f"write {kind_of(str(self.name))}", lambda: super(KillingFile, self).write(data))

    def truncate(self, size: int | None = None) -> int:
        name = f"truncate {kind_of(str(self.name))}"
        return self.killer.around(name, lambda: super(KillingFile, self).truncate(size))


class KillingConnection(sqlite3.Connection):
    """A connection whose commits are counted."""

    killer: Killer

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            return self.killer.around("commit ledger", lambda: super(KillingConnection, self).execute(sql))
        return super().execute(sql, *parameters)


class KillingSqlite:
    """Stands before the sqlite3 module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, path: str, **options: Any) -> sqlite3.Connection:
        return sqlite3.connect(path, factory=KillingConnection, **options)


def killing_open(path: str, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
    if mode in {"wb", "ab", "r+b"}:
        return io.BufferedRandom(KillingFile(path, mode)) if "+" in mode else io.BufferedWriter(KillingFile(path, mode))
    return open(path, mode, buffering, **options)


def put_in_place(killer: Killer) -> None:
    """Let the modules under test go through the killer."""
    KillingFile.killer = KillingConnection.killer = killer
    for module in (journal, filesystem, storage, part_publisher, file_publisher):
        vars(module)["os"] = KillingOs(killer)
        vars(module)["open"] = killing_open
    vars(sqlite)["sqlite3"] = KillingSqlite()
    vars(harvest)["COMMIT_VERDICTS"] = 3  # so that a short list has several commits


def run_in_fork(order: dict[str, Any], report: str) -> dict[str, Any]:
    asked(order["arguments"])  # once, for all forks
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
    killer = Killer(order["operation"], order["nth"], order["when"])
    put_in_place(killer)
    code = 99
    try:
        die_of_signals()
        code = run(order["arguments"])
    finally:
        sys.stderr.flush()
        with open(report, "w") as stream:
            json.dump(killer.counts, stream)
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
    object_store._library()
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
