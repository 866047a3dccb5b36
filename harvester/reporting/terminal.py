"""Output to the terminal. A closed standard error must neither end a run nor change its exit code."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from harvester.errors import OutputError


def escaped(text: str) -> str:
    """Escape every character of a foreign text that a terminal would act upon, in JSON's notation."""
    return "".join(c if c.isprintable() else _unicode_escape(c) for c in text)


def escaped_lines(text: str) -> str:
    """Escape a foreign text but for its line feeds."""
    return "\n".join(map(escaped, text.split("\n")))


def can_be_drawn_upon(lists: Sequence[str], out: str) -> bool:
    """Return whether standard error is a terminal with cursor control that shows no rows and takes no typed list."""
    typed = "-" in lists and sys.stdin.isatty()
    build = os.environ.get("CI", "") not in {"", "0", "false"}  # its log is no screen
    moves_cursor = os.environ.get("TERM", "") not in {"", "dumb", "unknown"}
    return out != "-" and not typed and not build and moves_cursor and sys.stderr.isatty()


def say(text: str) -> None:
    """Write lines to standard error, escaped; once it is closed nothing more is written."""
    put(escaped_lines(text) + "\n")


def put(text: str) -> None:
    """Write to standard error unescaped, with control sequences; once it is closed nothing more is written."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process


@contextmanager
def printing() -> Iterator[None]:
    """Turn errors of standard output inside into OutputError.

    Raises:
        OutputError: it cannot be written. BrokenPipeError: its reader has closed it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}") from error


def print_out(text: str) -> None:
    """Print lines to standard output, escaped: they may hold foreign text.

    Raises:
        BrokenPipeError: the reader has closed it. OutputError: it cannot be written.
    """
    with printing():
        print(escaped_lines(text), flush=True)


def open_closed_streams() -> None:
    """Open descriptors 0, 1 and 2 if the parent closed them: no file of the dataset may get one of these numbers."""
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
