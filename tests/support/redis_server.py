"""A real Redis server on loopback, in a folder of its own: to be killed, restarted, emptied and filled."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

REQUIRED = "REDIS_TESTS"
"""A variable: with `required` it is a failure that there is no server, else these tests are skipped."""
_START_SECONDS = 20.0


def server_program() -> str:
    """Return the path of the server; skip the test where there is none."""
    if program := shutil.which("redis-server"):
        return program
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"redis-server is missing, and {REQUIRED}=required")
    pytest.skip("redis-server is missing: apt-get install redis-server")


class RedisProcess:
    """A server at a port of its own. options: words of its command line, which may be changed between two starts."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = _free_port()
        self.options = list(options)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and return when it answers."""
        words = [server_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        persistence = [] if "--appendonly" in self.options else ["--appendonly", "no"]
        self._process = subprocess.Popen(
            [*words, "--logfile", "log", "--save", "", *persistence, *self.options], stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with suppress(redis.ConnectionError), self.client() as client:
                with suppress(redis.AuthenticationError, redis.exceptions.NoPermissionError):
                    client.ping()
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def client(self, **options: Any) -> redis.Redis:
        """Return a connection for a test's own commands."""
        return redis.Redis(port=self.port, decode_responses=True, **options)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an administrator would."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it stand still: connections stay open, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


def _free_port() -> int:
    """Return a free port; a node of a cluster needs one 10,000 above it, too."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        if port < 55536:
            return port


@contextmanager
def running_redis(*options: str) -> Iterator[RedisProcess]:
    """Start a server in a temporary folder, and end it. options: words of its command line."""
    server_program()
    with tempfile.TemporaryDirectory(prefix="harvester-redis-") as folder:
        server = RedisProcess(Path(folder), *options)
        try:
            server.start()
            yield server
        finally:
            server.kill()
