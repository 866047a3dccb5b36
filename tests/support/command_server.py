"""A process that has imported harvester and forks one child a command, so that a command costs no interpreter start.

Most of a short command's CPU time (0.4 s of 0.45 s) is Python starting and importing aiohttp. A fork of a process that
has done this already is a process as real as any other: it has its own signals, environment, folder, descriptors and
exit code. What it cannot show is the start itself, or anything that Python reads from the environment only once
(PYTHON…, the locale, the time zone, certificates): `commands.harvester` starts an interpreter for these.

Orders arrive on a Unix socket, inherited as the descriptor in argv: JSON of argv, env and cwd, with four descriptors:
standard input, output and error, and a pipe on which the server writes the child's pid and then its wait status. It
ends when the other end of the socket is closed.
"""

import array
import atexit
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any

import harvester
from harvester.cli.main import main

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
    """Run the command as `python -m harvester` would, and end the process without returning to the server's loop."""
    code = 70
    try:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _open_streams()
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        sys.argv = [str(importlib.import_module("harvester.__main__").__file__), *order["arguments"]]
        code = _run()
    finally:
        os._exit(code)


def _open_streams() -> None:
    """Open 0, 1 and 2 as Python does at its start."""
    # ruff: noqa: SIM115 - they live as long as the process
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _run() -> int:
    """Do what the interpreter does around a program: print what it raised, join threads, call atexit, flush."""
    code: Any = 0
    try:
        main()
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


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        Server(orders).serve()
