"""A process that has imported harvester and forks one child a command, so that a command costs no interpreter start.

Most of a short command's CPU time (0.4 s of 0.45 s) is Python starting and importing aiohttp, and half of the rest is
what happens once a process: late imports, caches, bytecode that adapts to its types. The server has done all this
already, by commands of its own. A fork of it is a process as real as any other: it has its own signals, environment,
folder, descriptors and exit code. What it cannot show is the start itself, or anything that Python reads from the
environment only once (PYTHON…, the locale, the time zone, certificates): `commands.harvester` starts an interpreter for
these.

Orders arrive on a Unix socket, inherited as the descriptor in argv: JSON of the module whose `main` is called, argv,
env, cwd, umask, and whether it leads a session on the terminal that is its standard input, with four descriptors:
standard input, output and error, and a pipe on which the server writes the child's pid and then its wait status. It
ends when the other end of the socket is closed.
"""

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import tempfile
import termios
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import harvester
from harvester.cli.main import main
from harvester.sandbox import Sandbox, SandboxOptions, serving
from tests.support.remembered_signatures import remember_signatures
from tests.support.servers import in_thread

ORDER_BYTES = 2**20
_EXTRAS = {"harvester.arrow"}
"""Imports pyarrow, which few commands need."""


class Server:
    """Forks a child for each order, and reports its end."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._reports: dict[int, int] = {}

    def serve(self) -> None:
        """Serve until no process holds the socket's other end."""
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken)
        with selectors.DefaultSelector() as selector:
            selector.register(self._orders, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if wake in ready:
                    os.read(wake, 4096)
                    self._report_ends()
                if self._orders in ready and not self._take_order(selector, (wake, woken)):
                    return

    def _take_order(self, selector: selectors.BaseSelector, own: tuple[int, int]) -> bool:
        text, descriptors, _, _ = socket.recv_fds(self._orders, ORDER_BYTES, 4)
        if not text:
            return False
        *streams, report = descriptors
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            selector.close()
            self._orders.close()
            for descriptor in (*own, report, *self._reports.values()):
                os.close(descriptor)
            _become(json.loads(text), streams)
        self._reports[pid] = report
        for descriptor in streams:
            os.close(descriptor)
        _write(report, pid)
        return True

    def _report_ends(self) -> None:
        while self._reports:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            report = self._reports.pop(pid)
            _write(report, status)
            os.close(report)


def _write(report: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the test gave up
        os.write(report, array.array("q", [number]).tobytes())


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Run the command as `python -m MODULE` would, and end the process without returning to the server's loop."""
    code = 70
    try:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _open_streams()
        os.environ.clear()
        os.environ.update(order["env"])
        tempfile.tempdir = None  # the warm-up has looked it up in another environment
        os.chdir(order["cwd"])
        if order["session"]:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if order["umask"] >= 0:
            os.umask(order["umask"])
        program = importlib.import_module(order["module"])
        sys.argv = [str(program.__file__), *order["arguments"]]
        code = _run(program.main)
    finally:
        os._exit(code)


def _open_streams() -> None:
    """Open 0, 1 and 2 as Python does at its start."""
    # ruff: noqa: SIM115 - they live as long as the process
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _run(program: Callable[[], object]) -> int:
    """Do what the interpreter does around a program: print what it raised, join threads, call atexit, flush."""
    code: Any = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()  # warns of what was not closed, as the interpreter's end would
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    return code or 0


def _import_all() -> None:
    for module in pkgutil.walk_packages(harvester.__path__, "harvester."):
        if module.name not in _EXTRAS and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _warm_up() -> None:
    """Run the commands that tests run most, in a folder of their own, against a server that then is no more."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    calm = SandboxOptions(per_minute=0, per_hour=0, per_month=0, latency_ms=0, errors=0.0)
    with tempfile.TemporaryDirectory() as folder, in_thread(serving(Sandbox(calm))) as url, _silence():
        links = os.path.join(folder, "links.txt")
        with open(links, "w") as stream:
            stream.writelines(f"bit.ly/{name}\n" for name in ("a", "b", "missing-c", "d"))
        server = ("--base-url", url, "--state-dir", os.path.join(folder, "state"))
        for form in ("out", "results.ndjson"):
            out = os.path.join(folder, form)
            harvesting = (links, "--out", out, *server, "--per-minute", "0", "--per-hour", "0", "--per-month", "0")
            for words in (
                ("plan", *harvesting),
                ("run", *harvesting, "--max-calls", "2", "--part-rows", "1"),
                ("run", *harvesting, "--log-format", "json"),
                ("status", out),
                ("verify", out),
                ("repair", out),
                ("login", "--client-id", "warm-up", "--port", "-1", *server[:2]),
            ):
                with suppress(SystemExit):
                    main(words)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert threading.active_count() == 1, "a fork has one thread"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    remember_signatures()
    _import_all()
    _warm_up()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        Server(orders).serve()
