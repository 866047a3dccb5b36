"""How lines stand on a terminal: broken between words, and the first line of a summary in colour."""

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from harvester.events import Event
from harvester.reporting.reporter import Plain
from harvester.reporting.terminal import coloured, takes_colour, wrapped


def test_a_line_that_fits_stays_as_it_is() -> None:
    text = "  results   284 rows, 9 refused\nshort  and  spaced"
    assert wrapped(text, 80) == text


def test_lines_are_broken_between_words_and_options_stay_whole() -> None:
    assert wrapped("the month is used up; see --per-month and --max-calls for more", 30).split("\n") == [
        "the month is used up; see",
        "  --per-month and --max-calls",
        "  for more",
    ]


def test_what_stands_in_a_column_goes_on_below_it() -> None:
    assert wrapped("  next      nothing was lost; run the same command again", 40).split("\n") == [
        "  next      nothing was lost; run the",
        "            same command again",
    ]


def test_a_path_is_not_broken_so_that_it_can_be_copied() -> None:
    path = "/srv/lake/" + "long/" * 20
    assert path in wrapped(f"written to {path} as parts", 40)


def test_a_moment_is_not_broken() -> None:
    text = "run the same command again from 2026-12-01 00:00 UTC; it will take 1 more month"
    for width in range(28, 80):
        assert "2026-12-01 00:00 UTC" in wrapped(text, width), width
        assert " ".join(map(str.strip, wrapped(text, width).split("\n"))) == text


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Event, str], list[str]]]:
    """Write an event as plain text to a terminal of 40 columns, and return its lines."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))

    with os.fdopen(slave, "w") as stream:

        def lines(event: Event, text: str) -> list[str]:
            monkeypatch.setattr(sys, "stderr", stream)  # pytest has set its own before each phase of a test
            Plain().tell(event, text, {})
            return os.read(master, 4096).decode().split("\r\n")[:-1]

        yield lines
    os.close(master)


def test_a_terminal_without_a_live_display_gets_lines_broken_between_words(
    shown: Callable[[Event, str], list[str]],
) -> None:
    text = "harvester: unknown option --outt; did you mean --out? See harvester run --help-all"
    lines = shown(Event.RUN_REFUSED, text)
    assert max(map(len, lines)) <= 40
    assert " ".join(map(str.strip, lines)) == text


def test_the_lines_of_a_traceback_stay_whole(shown: Callable[[Event, str], list[str]]) -> None:
    line = '  File "harvester/cli/main.py", line 12, in a_function_with_a_long_name'
    assert shown(Event.RUN_CRASHED, f"a bug\n{line}") == ["a bug", line]


def test_a_terminal_too_narrow_for_words_breaks_lines_itself() -> None:
    assert wrapped("finished in 6.2 s: every link has an answer", 9) == "finished in 6.2 s: every link has an answer"


@pytest.mark.parametrize(("mark", "colour"), [("✓", "32"), ("✗", "31")], ids=["success", "failure"])
def test_a_summary_is_coloured_by_its_mark(mark: str, colour: str) -> None:
    assert coloured(f"{mark} so\n  output    lake") == f"\x1b[{colour}m{mark} so\x1b[0m\n  output    lake"


def test_any_other_text_has_no_colour() -> None:
    assert coloured("a note\n✓ in it") == "a note\n✓ in it"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "no_color", "colours"),
    [("xterm", "", True), ("xterm", "1", False), ("dumb", "", False), ("", "", False)],
    ids=["terminal", "NO_COLOR", "dumb", "no TERM"],
)
def test_colour_is_for_terminals_whose_user_wants_it(
    monkeypatch: pytest.MonkeyPatch, term: str, no_color: str, colours: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert takes_colour(Screen()) is colours
    assert not takes_colour(io.StringIO())


def test_a_command_is_never_broken() -> None:
    line = "  command   cd '/srv/a b' && harvester run links.txt --out lake --plan growth --reserve 10%"
    assert wrapped(line, 30) == line
