"""Speaking to a person on standard error, who may have left: that must not end a run, nor change its exit code."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from harvester.errors import OutputError


def escaped(text: str) -> str:
    """Give a text from outside without anything that a terminal would act upon; JSON stays the same JSON."""
    return "".join(c if c.isprintable() else _unicode_escape(c) for c in text)


def can_be_drawn_upon(lists: Sequence[str], out: str) -> bool:
    """Say whether standard error is a terminal that can be drawn upon, and neither rows nor lists come over it."""
    typed = "-" in lists and sys.stdin.isatty()
    return out != "-" and not typed and sys.stderr.isatty() and _moves_its_cursor(os.environ)


def _moves_its_cursor(env: Mapping[str, str]) -> bool:
    """Not where the terminal cannot, nor where it is but the log of a build."""
    return env.get("TERM", "") not in {"", "dumb", "unknown"} and env.get("CI", "") in {"", "0", "false"}


def say(text: str) -> None:
    """Write lines to standard error, escaped; if nobody takes them, nothing more is written there."""
    put("\n".join(map(escaped, text.split("\n"))) + "\n")


def put(text: str) -> None:
    """Write to standard error what may steer a terminal; if nobody takes it, nothing more is written there."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process


@contextmanager
def printing() -> Iterator[None]:
    """Print to standard output within this, where a command's result goes.

    Raises:
        OutputError: it cannot be written. BrokenPipeError: nobody reads it any more.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}") from error


def print_out(text: str) -> None:
    """Print lines that may hold what others wrote.

    Raises:
        BrokenPipeError: nobody reads any more. OutputError: they cannot be written.
    """
    with printing():
        print("\n".join(map(escaped, text.split("\n"))), flush=True)


def open_closed_streams() -> None:
    """Open what the parent has closed of 0, 1 and 2, so that no file of the dataset is taken for one of them."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def _unicode_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def discard_output() -> None:
    """Redirect standard output, which nobody reads any more, to nowhere: the interpreter flushes it when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
