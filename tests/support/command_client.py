"""Runs commands as children of tests/support/command_server.py, which has imported harvester already."""

import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_READ_AT_START = ("PYTHON", "LANG", "LC_", "SSL_", "TZ", "LD_", "TMPDIR")
"""Variables that Python, or a module as it is imported, reads once; a command that changes them needs a new process."""
_NUMBER = struct.Struct("q")


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_START)}


class CommandServer:
    """The server's process, and the socket that takes its orders."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = _read_at_start(env)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.support.command_server", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, env=dict(env), cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Return whether a fork of the server behaves as a new process with these variables would."""
        return _read_at_start(env) == self._env

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, stdin: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. stdin: written into a pipe; None for an empty input.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        pipes = [os.pipe() for _ in range(4)]
        (stdin_read, stdin_write), (out, out_write), (err, err_write), (report, report_write) = pipes
        order = json.dumps({"arguments": arguments, "env": env, "cwd": str(cwd)}).encode("utf-8", "surrogateescape")
        socket.send_fds(self._orders, [order], [stdin_read, out_write, err_write, report_write])
        for descriptor in (stdin_read, out_write, err_write, report_write):
            os.close(descriptor)
        with ExitStack() as stack:
            for descriptor in (out, err, report):
                stack.callback(os.close, descriptor)
            exchange = _Exchange(stdin_write, stdin or b"", {out: b"", err: b"", report: b""})
            in_time = exchange.run(time.monotonic() + timeout)
            pid = _NUMBER.unpack(exchange.received[report][: _NUMBER.size])[0]
            if not in_time:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([*arguments], timeout, exchange.received[out], exchange.received[err])
        status = _NUMBER.unpack(exchange.received[report][_NUMBER.size :])[0]
        texts = (exchange.received[stream].decode() for stream in (out, err))
        return subprocess.CompletedProcess(["harvester", *arguments], os.waitstatus_to_exitcode(status), *texts)

    def close(self) -> None:
        """End the server."""
        self._orders.close()
        self._process.wait()


class _Exchange:
    """Writes the input and reads all outputs at once, so that no pipe is full for ever."""

    def __init__(self, stdin: int, data: bytes, received: dict[int, bytes]) -> None:
        self._stdin = stdin
        self._data = memoryview(data)
        self.received = received

    def run(self, until: float) -> bool:
        """Exchange until every output has ended; return False if that took too long."""
        os.set_blocking(self._stdin, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            for descriptor in self.received:
                selector.register(descriptor, selectors.EVENT_READ)
            try:
                while selector.get_map().keys() - {self._stdin}:
                    ready = selector.select(until - time.monotonic())
                    if not ready and time.monotonic() >= until:
                        return False
                    for key, _ in ready:
                        self._step(selector, key.fd)
            finally:
                if self._stdin in selector.get_map():
                    os.close(self._stdin)
        return True

    def _step(self, selector: selectors.BaseSelector, descriptor: int) -> None:
        if descriptor == self._stdin:
            if not self._write():
                selector.unregister(descriptor)
                os.close(descriptor)
        elif chunk := os.read(descriptor, 2**16):
            self.received[descriptor] += chunk
        else:
            selector.unregister(descriptor)

    def _write(self) -> bool:
        """Write some of the input; return False when all is written or nobody reads it."""
        try:
            self._data = self._data[os.write(self._stdin, self._data) :] if self._data else self._data
        except BrokenPipeError:
            return False
        return bool(self._data)
