"""The live display: lines at the bottom of the terminal, redrawn every second below the lines of events.

rich makes the lines, but not the live region: its own hides the cursor, which a kill leaves hidden, and does not know
of a terminal that was resized, of Ctrl-Z, or of one that takes nothing (Ctrl-S), where a write would hold up the calls.
"""

import importlib
import io
import os
import select
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harvester.clock import utc_text
from harvester.events import Event, Field
from harvester.progress import RunProgress, WindowState, duration
from harvester.reporting.reporter import moves, seconds_until, trouble_of, wait_in_words
from harvester.reporting.terminal import coloured, escaped, escaped_lines, put, takes_colour, wrapped

SHORTEST_SECONDS = 0.25
"""The shortest time between two frames."""
_STDERR = 2
_WIDEST = 100
_CHART = 30
_LEVELS = "▁▂▃▄▅▆▇█"
_WINDOW_BAR, _LINE_BAR = 20, 45
_SHORTEST_BAR = 5
_IN_SECONDS = 59.0
_LOW = 12
_SMALL = (80, 24)


class Display:
    """An EventSink that writes events as lines and draws the progress below them; threads may share it."""

    for_programs = False

    def __init__(self) -> None:
        # It only makes text of lines: what it wrote itself would fail with the terminal.
        self._console = Console(file=io.StringIO(), force_terminal=True, highlight=False, soft_wrap=True)
        self._lock = threading.RLock()
        self._drawn: list[int] = []
        self._frame: list[Text] = []
        self._pending: list[str] = []
        self._due = 0.0
        self._closed = False
        self._title = ""
        self._began = time.monotonic()

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:
        """Write a text, escaped and broken between words, above the frame. The run's start gives the frame's title."""
        with self._lock:
            if event is Event.RUN_STARTED:
                self._title = title(fields)
            if text:
                self._pending.append(self._shown(event, escaped_lines(text)) + "\n")
            if self._closed:
                self._write()
            elif _takes_more():
                self._draw(self._frame if self._drawn and _in_foreground() else [])

    def show(self, status: RunProgress) -> bool:
        """Draw the progress, unless a frame is recent or another job has the terminal. Return True: no lines needed."""
        with self._lock:
            now = time.monotonic()
            if now < self._due or self._closed or not _takes_more():
                return True
            if not _in_foreground():
                self.forget()
                return True
            self._due = now + SHORTEST_SECONDS
            columns, rows = _size()
            elapsed = time.monotonic() - self._began
            lines = frame(status, min(columns - 1, _WIDEST), self._title, elapsed)
            # The title is the first line to go where there is too little room.
            self._frame = [*lines][self._title != "" and rows <= _LOW :][: max(rows - 1, 1)]
            self._draw(self._frame)
        return True

    def close(self) -> None:
        """Erase the frame; later events are written as plain lines."""
        with self._lock:
            if not self._closed and _takes_more():
                self._draw([])
            self._closed = True

    def _shown(self, event: Event, text: str) -> str:
        if event is Event.RUN_CRASHED:  # a traceback, to be copied
            return text
        text = wrapped(text, max(_size()[0] - 1, 1))
        return coloured(text) if event is Event.RUN_ENDED and takes_colour(sys.stderr) else text

    def _draw(self, lines: list[Text]) -> None:
        before, after = self._erasure(), "\n".join(map(self._styled, lines))
        self._drawn = [line.cell_len for line in lines]
        self._write(before, after)

    def _write(self, before: str = "", after: str = "") -> None:
        """Write erasure, events and the new frame in one call, so that no half-drawn frame is visible."""
        text = before + "".join(self._pending) + after
        self._pending.clear()
        if text:
            put(text)

    def _erasure(self) -> str:
        """Return the control sequence that erases the last frame; a narrower terminal has wrapped its lines."""
        if not self._drawn or not _in_foreground():
            return ""
        columns = max(_size()[0], 1)
        height = sum(max(-(-cells // columns), 1) for cells in self._drawn)
        return "\r" + f"\x1b[{height - 1}A" * (height > 1) + "\x1b[J"

    def _styled(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", no_wrap=True, overflow="ignore", crop=False)
        return captured.get()

    def forget(self) -> None:
        """Draw the next frame below the cursor: the shell has written over the last one."""
        self._drawn = [0]


class NotebookLine:
    """The progress of a run from Python as one line below a notebook's cell, replaced in place."""

    def __init__(self) -> None:
        # Imported by name, because a program outside a notebook need not have IPython. rich's own live region would
        # need ipywidgets in addition.
        self._display: Any = importlib.import_module("IPython.display").display
        self._handle: Any = None
        self._status: RunProgress | None = None
        self._began = time.monotonic()

    def progress(self, status: RunProgress) -> None:
        """Show the progress."""
        self._status = status
        text = progress_line(status, time.monotonic() - self._began)
        with suppress(Exception):  # a front end that has gone must not end the run
            if self._handle is None:
                self._handle = self._display(text, display_id=True)
            else:
                self._handle.update(text)

    def close(self) -> None:
        """Show the final numbers, which stay below the cell."""
        if self._status is not None:
            self.progress(self._status)


@contextmanager
def redrawn_after_stop(display: Display) -> Iterator[None]:
    """Handle SIGCONT while inside: after Ctrl-Z and `fg` the display goes on below what the shell has written.

    For the command alone, and in the main thread: a signal handler belongs to the whole process.
    """
    before = signal.signal(signal.SIGCONT, lambda *_: display.forget())
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, before or signal.SIG_DFL)


def _takes_more() -> bool:
    """Return True if the terminal accepts a write now; it does not after Ctrl-S, or when its other end is not read."""
    ready = select.poll()
    ready.register(_STDERR, select.POLLOUT)
    return bool(ready.poll(0))


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(_STDERR) == os.getpgrp()
    except OSError:  # not this session's terminal
        return True


def _size() -> tuple[int, int]:
    """Return the terminal's present columns and rows."""
    try:
        columns, rows = os.get_terminal_size(_STDERR)
    except OSError:
        return _SMALL
    return columns or _SMALL[0], rows or _SMALL[1]


# --- what is shown ------------------------------------------------------------------------------------------------


def title(fields: Mapping[str, Any]) -> str:
    """Return what a run fetches, of which lists and into which output. fields: those of the event `run.started`."""
    lists = [os.path.basename(name) or name for name in fields["lists"]]
    names = lists[0] if len(lists) == 1 else f"{lists[0]} and {len(lists) - 1:,} more" if lists else "links"
    out = "" if fields["out"] == "-" else f" → {fields['out']}"
    return escaped(f"{fields['facet']} of {names}{out}")


def progress_line(status: RunProgress, elapsed: float) -> Text:
    """Return the progress in one line: how many links are done, the results, why nothing moves, and the time."""
    pieces = [bar(status, _LINE_BAR), *_results(status), *_standstill(status), *_ahead(status, elapsed)]
    return Text(" · ").join(pieces)


def frame(status: RunProgress, width: int, title: str = "", elapsed: float | None = None) -> Iterator[Text]:
    """Yield the lines of a frame, below the title the most important first, none wider than width.

    title: what is harvested. elapsed: seconds since the run's start, None where they are not known.
    """
    lines = [
        *([Text(_fitting(title, width), "dim")] if title else []),
        bar(status, width),
        *_packed(_results(status), width),
        *_packed(_standstill(status), width),
        *_packed(_ahead(status, elapsed), width),
        _chart(status, width),
        *_windows(status, width),
    ]
    for line in lines:
        line.truncate(max(width, 1), overflow="ellipsis")
        yield line


def _fitting(title: str, width: int) -> str:
    """Return a title that is too long without its middle: its end names the output's last folder."""
    if cell_len(title) <= width:
        return title
    kept = max(width - 1, 2) // 2
    return f"{title[:kept]}…{title[-kept:]}"


def _broken(piece: Text, width: int) -> Iterable[Text]:
    if piece.cell_len <= width:
        return [piece]
    return [Text(part, piece.style) for part in textwrap.wrap(piece.plain, max(width, 1))]


def bar(status: RunProgress, width: int) -> Text:
    """Return how many links have an answer, of how many, as a bar."""
    if status.remaining is None:
        return Text.assemble((f"{status.finished:,}", "bold"), " link done" if status.finished == 1 else " links done")
    total = status.finished + status.remaining
    share = status.finished / total if total else 1.0
    counts = f"{status.finished:,} of {total:,} links "
    text = Text.assemble((counts, "bold"))
    room = width - cell_len(counts) - len(" 100 %")
    if room >= _SHORTEST_BAR:
        _append_bar(text, share, room, "green")
    return text.append(f" {int(share * 100):>3} %")


def _append_bar(text: Text, share: float, columns: int, style: str) -> None:
    full = min(int(columns * share), columns)
    text.append("━" * full, style).append("╌" * (columns - full), "dim")


def _results(status: RunProgress) -> Iterator[Text]:
    yield Text.assemble((f"{status.rows:,}", "green"), " row" if status.rows == 1 else " rows")
    yield Text.assemble((f"{status.refused:,}", "yellow" if status.refused else ""), " refused")
    yield Text.assemble((f"{status.failed:,}", "red" if status.failed else ""), " failed")
    if status.listed.invalid:
        yield Text(f"{status.listed.invalid:,} not bitlinks", "yellow")
    if status.idle:
        yield Text(f"{status.idle:,} without a call")
    if status.truncated:
        yield Text(f"{status.truncated:,} truncated", "yellow")
    if status.clipped:
        yield Text(f"{status.clipped:,} clipped", "yellow")
    if status.attempts.retried:
        yield Text(f"{status.attempts.retried:,} retried")
    if status.attempts.throttled:
        yield Text(f"{status.attempts.throttled:,} throttled")


def _standstill(status: RunProgress) -> list[Text]:
    """Return a line that says why no call finishes, and until when."""
    if trouble := trouble_of(status):
        return [Text(escaped(trouble), "bold yellow")]
    if status.waiting is None or status.waiting.window == "pace":
        return []
    if status.waiting.until is None and moves(status):
        return []
    return [Text("waiting for " + escaped(wait_in_words(status.waiting)), "bold yellow")]


def _ahead(status: RunProgress, elapsed: float | None) -> Iterator[Text]:
    """Yield the time since the start, the time left, and the end."""
    if elapsed is not None:
        yield Text(f"{_in_whole_seconds(elapsed)} elapsed")
    if not status.remaining:
        return
    if status.spent:
        yield Text.assemble("the month's calls are used up about ", (utc_text(status.spent), "bold"))
        if status.ends:
            yield Text(f"all done about {utc_text(status.ends)}")
    elif ends := status.likely_end:
        yield Text.assemble((_in_whole_seconds(max(seconds_until(ends), 0.0)), "bold"), " left")
        yield Text(f"until about {utc_text(ends)}")


def _in_whole_seconds(seconds: float) -> str:
    """Return a time in words without a fraction, which would flicker."""
    return duration(round(seconds)) if seconds > _IN_SECONDS else f"{seconds:.0f} s"


def _speed(status: RunProgress) -> str:
    """Return the speed of the last minute in the unit of the limits: calls a minute where they are per minute."""
    counts = status.per_second
    each = sum(counts) / len(counts) if counts else 0.0
    if any(state.window == "minute" and state.limit for state in status.windows):
        return f"{each * 60:,.0f} calls/min"
    return f"{each:,.1f} calls/s"


def _chart(status: RunProgress, width: int) -> Text:
    """Return the speed and a bar chart of the calls of the last minute."""
    counts = list(status.per_second)
    text = Text.assemble((_speed(status), "bold"))
    room = width - text.cell_len - 2
    label = " last minute" if room > 20 else ""
    columns = min(_CHART, room - len(label))
    if columns < 5:
        return text
    counts = [0.0] * (60 - len(counts)) + counts
    sums = [sum(counts[60 * i // columns : 60 * (i + 1) // columns]) for i in range(columns)]
    most = max(sums)
    # Nothing at all is a gap, so that it is seen when calls stood still.
    bars = "".join(_LEVELS[min(int(each / most * 8), 7)] if each > 0.01 else " " for each in sums)
    return text.append("  ").append(bars, "cyan").append(label, "dim")


def _windows(status: RunProgress, width: int) -> Iterator[Text]:
    """Yield a bar for each window that has a limit, below one another; the one that blocks sending is highlighted."""
    limited = [state for state in status.windows if state.limit]
    blocking = status.waiting.window if status.waiting else None
    used = max((len(f"{state.used:,}") for state in limited), default=0)
    for state in limited:
        text = Text(f"{state.window:<7}", "bold yellow" if state.window == blocking else "")
        numbers = _use(state, used)
        columns = min(width - text.cell_len - len(numbers) - 1, _WINDOW_BAR)
        if columns >= _SHORTEST_BAR:
            _append_bar(text, state.used / state.limit, columns, "yellow" if state.window == blocking else "cyan")
            text.append(" ")
        yield text.append(numbers)


def _use(state: WindowState, digits: int) -> str:
    if state.used > state.limit:  # it was lowered after these were sent
        return f"{state.used:>{digits},} sent; the limit is {state.limit:,} now"
    return f"{state.used:>{digits},} of {state.limit:,}"


def _packed(pieces: Iterable[Text], width: int) -> Iterator[Text]:
    """Yield lines of pieces side by side; a piece that is too wide is wrapped between words."""
    line: Text | None = None
    for piece in (part for whole in pieces for part in _broken(whole, width)):
        if line is None:
            line = piece
        elif line.cell_len + 3 + piece.cell_len <= width:
            line = Text.assemble(line, (" · ", "dim"), piece)
        else:
            yield line
            line = piece
    if line is not None:
        yield line
