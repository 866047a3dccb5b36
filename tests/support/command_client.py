"""Starts commands as children of tests/support/command_server.py, which has imported harvester already."""

import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_ROOT = Path(__file__).parents[2]
_READ_AT_START = ("PYTHON", "LANG", "LC_", "SSL_", "TZ", "LD_")
"""Variables that Python, or a module as it is imported, reads once; a command that changes them needs a new process."""
_READ_LATER = {"PYTHON_KEYRING_BACKEND"}
"""Read as keyring is imported, which the server leaves to the command."""
_NUMBER = struct.Struct("q")


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_START) and name not in _READ_LATER}


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

    def fork(self, order: Mapping[str, Any], streams: Sequence[int]) -> tuple[int, int]:
        """Start a command; return its process id and the descriptor on which its wait status will arrive."""
        report, theirs = os.pipe()
        socket.send_fds(self._orders, [json.dumps(order).encode("ascii")], [*streams, theirs])
        os.close(theirs)
        return _NUMBER.unpack(os.read(report, _NUMBER.size))[0], report

    def close(self) -> None:
        """End the server."""
        self._orders.close()
        self._process.wait()


class ForkedCommand(subprocess.Popen[bytes]):
    """A command that the server has forked; to the test it is a Popen, although the process is no child of the test's.

    Popen starts and awaits a process in the three methods replaced here, and leaves all else to the others.
    """

    def __init__(
        self,
        server: CommandServer,
        arguments: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        module: str = "harvester.__main__",
        umask: int = -1,
        session: bool = False,
        **streams: IO[bytes] | int | None,
    ) -> None:
        self._server = server
        self._order = {
            "module": module,
            "arguments": arguments,
            "env": dict(env),
            "cwd": str(cwd),
            "umask": umask,
            "session": session,
        }
        super().__init__(["harvester", *arguments], **streams)  # type: ignore[call-overload]

    def _execute_child(self, *arguments: Any) -> None:
        pipes = arguments[10:16]  # behind args, executable … shell
        stdin, _, _, stdout, _, stderr = pipes
        streams = [own if theirs == -1 else theirs for own, theirs in enumerate((stdin, stdout, stderr))]
        try:
            self.pid, self._report = self._server.fork(self._order, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        return self._ended_within(0)

    def _wait(self, timeout: float | None) -> int:
        if self._ended_within(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(_NUMBER.unpack(os.read(self._report, _NUMBER.size))[0])
            os.close(self._report)
        return self.returncode
