"""The signals that end a command, and what they do before and after its event loop, which hears them itself.

Without handlers of our own, PID 1 would ignore these signals. Light, because it is what a command imports first.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that Ctrl-C has ended."""


def handle_signals(handler: Callable[[int, object], None]) -> None:
    """Install a handler of all signals that end a command. Those that are ignored stay so: by nohup, or by a shell for
    jobs in the background.
    """
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def end_at_once() -> None:
    """Have signals end the process where it has nothing to leave in order: before a command's work, and after it.

    An exception could be raised in the middle of an import, or of Python's own housekeeping, which prints it and goes
    on.
    """

    def leave(number: int, _: object) -> None:
        os._exit(128 + number)

    handle_signals(leave)


def die_of_signals() -> None:
    """Have signals raise SystemExit, so that what the command has begun is ended too: programs, files, a prompt."""

    def exit_with(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    handle_signals(exit_with)


@contextmanager
def signals_held() -> Iterator[None]:
    """Have signals wait until this is left, so that none meets what is half made."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
