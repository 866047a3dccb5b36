"""Output to the terminal. A closed standard error must neither end a run nor change its exit code."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from harvester.errors import OutputError
from harvester.misplaced import misplaced

SUCCESS_MARK, FAILURE_MARK = "✓", "✗"
"""The first character of a summary, which a terminal shows in colour."""
_NAME = re.compile(r" +(?:\S+ {2,}| *)")
"""The beginning of a line whose text stands in a column: spaces, and a name with at least two spaces behind it."""
_COMMAND = re.compile(r" +command +\S")
"""The beginning of a line with a command: a line feed in it would run half of it where it is pasted."""
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[ \xa0](\d\d:\d\d)[ \xa0]UTC")
"""A moment, which no line break divides: it has no-break spaces while its line is broken."""
_INDENT, _NARROW = 2, 20


def escaped(text: str) -> str:
    """Escape every character of a foreign text that a terminal would act upon, in JSON's notation."""
    return "".join(c if c.isprintable() else _unicode_escape(c) for c in text)


def escaped_lines(text: str) -> str:
    """Escape a foreign text but for its line feeds."""
    return "\n".join(map(escaped, text.split("\n")))


def wrapped(text: str, width: int) -> str:
    """Break lines between words at a width, in columns; what a line continues with is indented like its text.

    A word that is longer, such as a path, stays whole: the terminal breaks it, and it can still be copied. A terminal
    that is too narrow for words breaks all lines itself, and so does any terminal the line of a command.
    """
    if width < _NARROW:
        return text
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, width))


def _pieces(line: str, width: int) -> list[str]:
    if len(line) <= width or _COMMAND.match(line):
        return [line]
    import textwrap  # noqa: PLC0415 - few lines are long

    name = _NAME.match(line)
    indent = min(name.end() if name else _INDENT, width // 3)
    indented = " " * indent
    pieces = textwrap.wrap(
        _MOMENT.sub("\\1\xa0\\2\xa0UTC", line),
        max(width, 1),
        subsequent_indent=indented,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return [_MOMENT.sub(r"\1 \2 UTC", piece) for piece in pieces] or [line]


def for_stdout(text: str) -> str:
    """Return a text for standard output: on a terminal broken between words, and a summary in colour."""
    if not sys.stdout.isatty():
        return text
    import shutil  # noqa: PLC0415 - with bz2 and lzma

    text = wrapped(text, shutil.get_terminal_size().columns)
    return coloured(text) if takes_colour(sys.stdout) else text


def takes_colour(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colours, and its user has not set NO_COLOR."""
    has_colours = os.environ.get("TERM", "") not in {"", "dumb", "unknown"}
    return has_colours and not os.environ.get("NO_COLOR") and stream.isatty()


def coloured(text: str) -> str:
    """Return a summary with its first line in green or red, by its mark; any other text as it is."""
    first, feed, rest = text.partition("\n")
    colour = {SUCCESS_MARK: 32, FAILURE_MARK: 31}.get(first[:1])
    return text if colour is None else f"\x1b[{colour}m{first}\x1b[0m{feed}{rest}"


def can_be_drawn_upon(lists: Sequence[str], out: str) -> bool:
    """Return whether standard error is a terminal with cursor control that shows no rows and takes no typed list."""
    typed = "-" in lists and sys.stdin.isatty()
    build = os.environ.get("CI", "") not in {"", "0", "false"}  # its log is no screen
    moves_cursor = os.environ.get("TERM", "") not in {"", "dumb", "unknown"}
    return out != "-" and not typed and not build and moves_cursor and sys.stderr.isatty()


def say(text: str, *, whole_lines: bool = False) -> None:
    """Write lines to standard error, escaped and without tokens; once it is closed nothing more is written.

    A terminal gets them broken between words, unless they are to stay whole.
    """
    shown = escaped_lines(misplaced.hidden_in_message(text))
    if not whole_lines:
        shown = wrapped(shown, _columns_of(sys.stderr) or len(shown))
    put(shown + "\n")


def _columns_of(stream: TextIO) -> int:
    """Return the columns of a stream's terminal; 0 if it is no terminal, or one that knows no size."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):  # closed, or not this process's own
        return 0


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
    """Print lines to standard output, escaped: they may hold foreign text. A token of the command line is hidden.

    Raises:
        BrokenPipeError: the reader has closed it. OutputError: it cannot be written.
    """
    with printing():
        print(escaped_lines(misplaced.hidden(text)), flush=True)


def print_html(text: str) -> None:
    """Print an HTML file, in which foreign texts are escaped for a browser, as it is. Raises as `print_out`."""
    with printing():
        print(text, flush=True)


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
