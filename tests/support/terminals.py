"""Runs the real command on a terminal of its own, and reads its screen as a person would."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pyte

from tests.support.commands import ROOT, environment, start_session

_LEADER = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'harvester', *sys.argv[1:]])"
)
_BACKGROUND = _LEADER.replace(
    "os.execv",
    "child = os.fork(); os.setpgid(child, child or 0); child and sys.exit(os.waitpid(child, 0)[1] >> 8); os.execv",
)
"""As a shell does it: the leader waits in the terminal's foreground group, the command has a group of its own."""
_PATIENCE_SECONDS = 30.0


class Terminal:
    """A command on a terminal. raw: all that it has written."""

    def __init__(self, columns: int, rows: int) -> None:
        self.raw = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self._master, self.slave = pty.openpty()
        self._open = {self._master, self.slave}
        self.resize(columns, rows)

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        foreground: bool = True,
        new_interpreter: bool = False,
    ) -> None:
        variables = environment({"TERM": "xterm-256color", "COLORTERM": "", "CI": "", "NO_COLOR": "", **(env or {})})
        if foreground and not new_interpreter:
            self.process = start_session(*arguments, env=variables, terminal=self.slave)
            return
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LEADER if foreground else _BACKGROUND, *arguments],
            env=variables,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=ROOT,
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def forget_size(self) -> None:
        """Have no size, as some terminals in containers."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, bytes(8))

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without the empty lines at its end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def everything(self) -> str:
        """What stands on the screen and what has gone over its top, without ends of lines: a narrow one breaks them."""
        columns = self.screen.columns
        above = ["".join(line[x].data for x in range(columns)) for line in self.screen.history.top]
        return "".join([*above, *self.screen.display])

    def until(self, seen: Callable[[], object]) -> None:
        """Read what the command writes until something can be seen."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not seen():
            assert time.monotonic() < deadline, f"not seen in time:\n{self.text}"
            self._read()

    def end(self) -> int:
        """Read on until the command has ended, and give its exit code."""
        self.until(lambda: self.process.poll() is not None)
        while self._read():
            pass
        return self.process.returncode

    def hang_up(self) -> None:
        """Close the terminal's window."""
        for descriptor in (self.slave, self._master):
            os.close(descriptor)
            self._open.discard(descriptor)

    def write_as_shell(self, text: str) -> None:
        os.write(self.slave, text.encode())

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.05)[0]:
            return False
        data = os.read(self._master, 65536)
        self.raw += data
        self._stream.feed(data)
        return True

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def on_terminal(
    *arguments: str,
    columns: int = 80,
    rows: int = 24,
    env: Mapping[str, str] | None = None,
    foreground: bool = True,
    new_interpreter: bool = False,
) -> Iterator[Terminal]:
    """Start `harvester ARGUMENTS` on a new terminal, and end it; `commands.start` says what new_interpreter is for."""
    terminal = Terminal(columns, rows)
    terminal.start(*arguments, env=env, foreground=foreground, new_interpreter=new_interpreter)
    try:
        yield terminal
    finally:
        terminal.close()
