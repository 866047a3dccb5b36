"""The live display: lines at the bottom of the terminal, redrawn every second below the lines of events.

rich makes the lines, but not the live region: its own hides the cursor, which a kill leaves hidden, and does not know
of a terminal that was resized, of Ctrl-Z, or of one that takes nothing (Ctrl-S), where a write would hold up the calls.
"""

import io
import os
import select
import signal
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harvester.events import Event, Field
from harvester.progress import RunProgress, duration
from harvester.reporting.reporter import clock, moves, seconds_until, trouble_of, wait_in_words
from harvester.reporting.terminal import escaped, escaped_lines, put

SHORTEST_SECONDS = 0.25
"""The shortest time between two frames."""
_STDERR = 2
_WIDEST = 100
_CHART = 30
_LEVELS = "▁▂▃▄▅▆▇█"
_SOON_SECONDS = 60.0
_SMALL = (80, 24)


class Display:
    """An EventSink that writes events as lines and draws the progress below them; threads may share it."""

    def __init__(self) -> None:
        # It only makes text of lines: what it wrote itself would fail with the terminal.
        self._console = Console(file=io.StringIO(), force_terminal=True, highlight=False, soft_wrap=True)
        self._lock = threading.RLock()
        self._drawn: list[int] = []
        self._frame: list[Text] = []
        self._pending: list[str] = []
        self._due = 0.0
        self._closed = False

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:  # noqa: ARG002
        """Write a text, escaped, above the frame."""
        with self._lock:
            if text:
                self._pending.append(escaped_lines(text) + "\n")
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
            self._frame = list(frame(status, min(columns - 1, _WIDEST)))[: max(rows - 1, 1)]
            self._draw(self._frame)
        return True

    def close(self) -> None:
        """Erase the frame; later events are written as plain lines."""
        with self._lock:
            if not self._closed and _takes_more():
                self._draw([])
            self._closed = True

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


def frame(status: RunProgress, width: int) -> Iterator[Text]:
    """Yield the lines of a frame, the most important first, none wider than width."""
    lines = [
        _bar(status, width),
        *_packed(_results(status), width),
        *_packed(_standstill(status), width),
        *_packed(_ahead(status), width),
        _chart(status, width),
        *_packed(_windows(status), width),
    ]
    for line in lines:
        line.truncate(max(width, 1), overflow="ellipsis")
        yield line


def _broken(piece: Text, width: int) -> Iterable[Text]:
    if piece.cell_len <= width:
        return [piece]
    return [Text(part, piece.style) for part in textwrap.wrap(piece.plain, max(width, 1))]


def _bar(status: RunProgress, width: int) -> Text:
    if status.remaining is None:
        return Text.assemble((f"{status.finished:,}", "bold"), " calls settled")
    total = status.finished + status.remaining
    share = status.finished / total if total else 1.0
    percent = int(share * 100)
    counts = f"{status.finished:,} of {total:,} calls "
    room = width - cell_len(counts) - len(" 100 %")
    bar = Text.assemble((counts, "bold"))
    if room >= 5:
        full = int(room * share)
        bar.append("━" * full, "green").append("╌" * (room - full), "dim")
    return bar.append(f" {percent:>3} %")


def _results(status: RunProgress) -> Iterator[Text]:
    yield Text.assemble((f"{status.rows:,}", "green"), " rows")
    yield Text.assemble((f"{status.refused:,}", "yellow" if status.refused else ""), " refused")
    yield Text.assemble((f"{status.failed:,}", "red" if status.failed else ""), " failed")
    if status.truncated:
        yield Text(f"{status.truncated:,} truncated", "yellow")
    if status.clipped:
        yield Text(f"{status.clipped:,} clipped", "yellow")
    if status.attempts.retried:
        yield Text(f"{status.attempts.retried:,} retried")
    if status.attempts.throttled:
        yield Text(f"{status.attempts.throttled:,} throttled")


def _standstill(status: RunProgress) -> list[Text]:
    """Return lines that say why no call finishes, and until when."""
    if trouble := trouble_of(status):
        return [Text(escaped(trouble), "bold yellow")]
    if status.waiting is None or status.waiting.window == "pace":
        return []
    if status.waiting.until is None and moves(status):
        return []
    text = Text("waiting for " + escaped(wait_in_words(status.waiting)), "bold yellow")
    left = seconds_until(status.waiting.until) if status.waiting.until else 0
    return [text, Text(f"{duration(round(left))} from now")] if left > _SOON_SECONDS else [text]


def _ahead(status: RunProgress) -> Iterator[Text]:
    if not status.remaining:
        return
    if status.spent:
        yield Text.assemble("the month is spent about ", (_about(status.spent), "bold"))
        if status.ends:
            yield Text(f"all done about {_about(status.ends)}")
    elif status.ends:
        left = round(max(seconds_until(status.ends), 0.0))
        yield Text.assemble((duration(left), "bold"), " left")
        yield Text(f"until about {_about(status.ends)}")


def _about(moment: datetime) -> str:
    """Return a moment in local time without its seconds."""
    return clock(moment).rpartition(":")[0]


def _chart(status: RunProgress, width: int) -> Text:
    """Return the speed and a bar chart of the calls of the last minute."""
    counts = list(status.per_second)
    speed = sum(counts) / len(counts) if counts else 0.0
    text = Text.assemble((f"{speed:,.1f} calls/s", "bold"))
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


def _windows(status: RunProgress) -> Iterator[Text]:
    """Yield the use of each window; the one that blocks sending is highlighted."""
    binds = status.waiting.window if status.waiting else None
    for state in status.windows:
        if state.limit:
            style = "bold yellow" if binds == state.window else ""
            yield Text.assemble(f"{state.window} ", (f"{state.used:,}/{state.limit:,}", style))


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
