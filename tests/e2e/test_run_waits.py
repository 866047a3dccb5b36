"""Waits that say why and until when, and that a signal ends at once."""

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import orjson
import psutil
import pytest

from harvester.budget.database import BudgetDatabase
from tests.support.commands import NO_LIMITS, TOKEN, start
from tests.support.output_checks import rows
from tests.support.scripted_bitly import Scripted, scripted

LONG_ENOUGH_SECONDS = 60.0
"""What must come about does so long before; this only keeps a broken test from waiting for ever."""
AT_ONCE_SECONDS = 20.0
"""On a busy machine; each of the waits would last longer."""


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    return path


def list_of(folder: Path, *names: str) -> str:
    path = folder / "links.txt"
    path.write_text("".join(f"bit.ly/{name}\n" for name in names))
    return str(path)


class Running:
    """A run with a log of JSON lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[dict[str, object]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with suppress(orjson.JSONDecodeError):
                self.events.append(orjson.loads(line))

    def heard(self, about: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """Wait for an event."""
        until = time.monotonic() + LONG_ENOUGH_SECONDS
        while time.monotonic() < until:
            for event in list(self.events):
                if about(event):
                    return event
            assert self.process.poll() is None, self.events
            time.sleep(0.02)
        raise AssertionError(self.events)

    def waits_for(self, window: str) -> dict[str, object]:
        """Wait for a progress line that says so, and return its `waiting`."""

        def about(event: dict[str, object]) -> bool:
            waiting = event.get("waiting")
            return isinstance(waiting, dict) and waiting["window"] == window

        return self.heard(about)

    def warned(self, *words: str) -> None:
        self.heard(lambda event: event["event"] == "warning" and all(word in str(event["message"]) for word in words))

    def ended_by(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(AT_ONCE_SECONDS)
        self._reader.join(AT_ONCE_SECONDS)
        return code


@contextmanager
def running(bitly: Scripted, links: str, out: Path, *more: str) -> Iterator[Running]:
    where = ("--out", str(out), "--base-url", bitly.url, "--log-format", "json", *NO_LIMITS)
    with start("run", links, *where, *more) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def test_a_pause_that_the_server_asked_for_says_so_and_until_when(bitly: Scripted, tmp_path: Path) -> None:
    links = list_of(tmp_path, "ok", "503-for-minutes")
    with running(bitly, links, tmp_path / "out") as run:
        event = run.waits_for("retry_after")
        assert isinstance(event["waiting"], dict)
        assert event["waiting"]["until"]
        assert "the pause that the server asked for (Retry-After) (503" in str(event["message"])
        assert run.ended_by(signal.SIGTERM) == 5
    assert [row["bitlink"] for row in rows(tmp_path / "out")] == ["bit.ly/ok"]


def test_a_stopped_process_that_holds_the_connections_is_named(bitly: Scripted, tmp_path: Path) -> None:
    links = list_of(tmp_path, *(f"silent--{number}" for number in range(5)))
    with running(bitly, links, tmp_path / "stopped") as stopped:
        process = psutil.Process(stopped.process.pid)
        until = time.monotonic() + LONG_ENOUGH_SECONDS
        while len(bitly.requests) < 5 and time.monotonic() < until:
            time.sleep(0.02)
        process.suspend()
        with running(bitly, links, tmp_path / "out") as run:
            run.warned("waiting for a connection", f"process {process.pid} is suspended", f"kill -CONT {process.pid}")
            assert run.ended_by(signal.SIGTERM) == 5
        process.resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_named_pipe_for_the_token_says_so_and_a_signal_ends_the_wait(
    bitly: Scripted, tmp_path: Path, fifo: Path, number: signal.Signals
) -> None:
    with running(bitly, list_of(tmp_path, "ok"), tmp_path / "out", "--token-file", str(fifo)) as run:
        run.warned("waiting for the token", str(fifo))
        assert run.ended_by(number) == 128 + number
    assert not (tmp_path / "out").exists()


def test_a_token_comes_through_a_named_pipe_however_late(bitly: Scripted, tmp_path: Path, fifo: Path) -> None:
    with running(bitly, list_of(tmp_path, "ok"), tmp_path / "out", "--token-file", str(fifo)) as run:
        run.warned("waiting for the token")
        fifo.write_text(f"{TOKEN}\n")
        assert run.process.wait(LONG_ENOUGH_SECONDS) == 0


def test_a_named_pipe_that_is_read_again_after_a_refusal_says_so_and_a_signal_ends_the_run(
    bitly: Scripted, tmp_path: Path, fifo: Path
) -> None:
    with running(bitly, list_of(tmp_path, "401x1-then-ok"), tmp_path / "out", "--token-file", str(fifo)) as run:
        fifo.write_text(f"{TOKEN}\n")
        run.warned("waiting for the token", str(fifo))
        assert run.ended_by(signal.SIGTERM) == 5


def test_a_token_command_that_hangs_says_so(bitly: Scripted, tmp_path: Path) -> None:
    command = ("--token-command", "sleep 3600")
    with running(bitly, list_of(tmp_path, "ok"), tmp_path / "out", *command) as run:
        run.warned("waiting for the token", "--token-command")
        assert run.ended_by(signal.SIGTERM) == 128 + signal.SIGTERM


def test_a_list_that_nobody_writes_says_so_and_a_signal_ends_the_run(
    bitly: Scripted, tmp_path: Path, fifo: Path
) -> None:
    with running(bitly, str(fifo), tmp_path / "out") as run:
        event = run.waits_for("list")
        assert "waiting for the next line of the list" in str(event["message"])
        assert run.ended_by(signal.SIGTERM) == 5


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_budget_file_that_another_process_has_locked_says_so_and_a_signal_ends_the_run(
    bitly: Scripted, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "budget.sqlite"
    BudgetDatabase(str(path)).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {mode}")
        with running(bitly, list_of(tmp_path, "ok"), tmp_path / "out", "--state-dir", str(tmp_path)) as run:
            run.warned(f"waiting for {path}, which another process has locked (process {os.getpid()})")
            assert run.ended_by(signal.SIGTERM) == 5
    assert not bitly.requests
