"""Runs the real command in a process of its own: a new interpreter, or a fork of one that is ready."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from tests.support.command_client import CommandServer, ForkedCommand

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef01234567"
NO_LIMITS = ("--per-minute", "0", "--per-hour", "0", "--per-month", "0")
STATE_DIR = "HARVESTER_STATE_DIR"
"""conftest.py points it at a folder of the tests' own: the user's budget is none of their business."""
TOKEN_STORE = "HARVESTER_TOKEN_STORE"
"""So with the user's own token, which must never be sent by a test."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's own environment and state folder, a token, and nothing else that changes what harvester does."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in {STATE_DIR, TOKEN_STORE}
        or (not name.upper().endswith("_PROXY") and not name.startswith(("HARVESTER_", "BITLY_", "PYTHONUNBUFFERED")))
    }
    return {**kept, "BITLY_TOKEN": TOKEN, "PYTHONWARNINGS": "error", **(extra or {})}


def start(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: IO[bytes] | int | None = subprocess.DEVNULL,
    stdout: IO[bytes] | int | None = subprocess.PIPE,
    cwd: Path | None = None,
    wrapper: Sequence[str] = (),
    new_interpreter: bool = False,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Start `harvester ARGUMENTS`; the caller ends it.

    The process is a fork of one that has imported harvester, unless the start itself is what matters: with
    new_interpreter, under a wrapper, or with variables that only a new interpreter reads.

    umask: as for subprocess.Popen, -1 for the test's own.
    """
    variables, folder = environment(env), cwd or ROOT
    if not wrapper and not new_interpreter and _server().can_run(variables):
        return ForkedCommand(
            _server(), arguments, variables, folder, umask=umask, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
        )
    return subprocess.Popen(
        [*wrapper, sys.executable, "-m", "harvester", *arguments],
        env=variables,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=folder,
        umask=umask,
    )


def start_session(*arguments: str, env: Mapping[str, str], terminal: int) -> subprocess.Popen[bytes]:
    """Start `harvester ARGUMENTS` as the leader of a session whose terminal this is. env: all of its variables."""
    assert _server().can_run(env)
    return ForkedCommand(
        _server(), arguments, env, ROOT, session=True, stdin=terminal, stdout=terminal, stderr=terminal
    )


def start_program(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE ARGUMENTS`, a program of the tests' own that runs harvester: a fork if possible."""
    variables, pipe = environment(env), subprocess.PIPE
    if _server().can_run(variables):
        return ForkedCommand(_server(), arguments, variables, ROOT, module, stdin=pipe, stdout=pipe, stderr=None)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=variables, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=None
    )


def harvester(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout: float = 60.0,
    cwd: Path | None = None,
    wrapper: Sequence[str] = (),
    umask: int = -1,
) -> subprocess.CompletedProcess[str]:
    """Run `harvester ARGUMENTS` to its end, as `start` does; return its exit code and what it wrote."""
    source = subprocess.PIPE if stdin is not None else subprocess.DEVNULL
    process = start(*arguments, env=env, stdin=source, cwd=cwd, wrapper=wrapper, umask=umask)
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())


def interrupt(reached: Callable[[], bool], *arguments: str, number: int = signal.SIGKILL) -> int:
    """Start `harvester ARGUMENTS`, send it a signal once a point is reached, and return its exit code.

    It may have ended by itself before.
    """
    process = start(*arguments)
    while process.poll() is None and not reached():
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate()
    return process.returncode


@cache
def _server() -> CommandServer:
    return CommandServer(environment())


def close_command_server() -> None:
    """End the process that commands are forked from, if there is one."""
    if _server.cache_info().currsize:
        _server().close()
        _server.cache_clear()
