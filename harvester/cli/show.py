"""`harvester show`: the metrics of links given on the command line, as tables or as rows, in the order given."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from harvester.bitly.bitlinks import Bitlink, parse
from harvester.bitly.facets import FACETS
from harvester.bitly.query import Period
from harvester.clock import utc_iso, utc_text
from harvester.config.options import RunOptions, ShowOptions
from harvester.config.parsing import seconds_of
from harvester.credentials.token_sources import token_is_at_hand
from harvester.errors import InvalidBitlink, OutputError, UsageError
from harvester.events import Event, Field
from harvester.links.feed import IterableFeed
from harvester.lookup import look_up
from harvester.parameters import by_name, made_of
from harvester.progress import InvalidLine, RunProgress, WaitReason
from harvester.reporting.reporter import wait_in_words
from harvester.reporting.terminal import escaped, printing, say
from harvester.run.assembly import Job, build_job
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.storage.location import STDOUT
from harvester.threads import in_daemon

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_REPORT_SECONDS = 0.1
"""How often the current wait is checked."""
_UNREPORTED = {"pace", "budget"}
"""Waits too short to mention."""
_BAR, _LEAST_BAR = 24, 5
_PIPE_WIDTH = 80
"""Columns of what is no terminal."""
_DECIDES = frozenset({"COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"})
"""Variables that rich follows."""
_BESIDE_BAR, _BESIDE_SHARE = 56, 36
"""Columns that the table needs beside a bar, and to show shares at all."""
_REFUSED = {
    400: "Bitly says this is not a bitlink",
    403: "this token may not see it",
    404: "no such bitlink",
    410: "deleted",
}


@dataclass(slots=True)
class Shown:
    """The number of links without a row, by cause. stop: why some were not fetched."""

    refused: int = 0
    failed: int = 0
    stop: Stop | None = None


async def show(texts: Sequence[str], options: ShowOptions, shutdown: ShutdownSignal, *, json: bool) -> Shown:
    """Fetch the links that the texts name and print their rows; links without a row go to standard error.

    Raises:
        UsageError: a text is no bitlink, an option is invalid, there is no token; nothing was sent.
        ConnectionsBusy, OutputError: as `look_up`.
    """
    names = list(dict.fromkeys(_named(text) for text in texts))
    chosen = made_of(RunOptions, {**by_name(options), "out": STDOUT})
    in_order = _InOrder(names, _print_row if json else _print_table)
    waits = _Waits(shutdown, options.max_time, in_order)
    build = partial(build_job, IterableFeed([]), chosen, waits.warn)
    job = build() if token_is_at_hand(None, chosen) else await in_daemon(build)
    if job.query.period_start is not None:
        from harvester.series.window import WindowChecks  # noqa: PLC0415 - a single link waits for each import

        job = replace(job, open_guard=WindowChecks().open_guard)
    outcome = await look_up(_watched(job), names, in_order.came, shutdown, waits)
    in_order.write_rest()
    waits.shown.stop = outcome.stop
    if outcome.stop is not None:
        say(f"harvester: {_ending(outcome.stop)}")
    return waits.shown


def _named(text: str) -> Bitlink:
    try:
        return parse(text)
    except InvalidBitlink as why:
        raise UsageError(f"{text}: not a bitlink: {why}; no request was sent") from why


def _watched(job: Job) -> Job:
    """Return the job without --max-time: `_Waits` enforces it, knowing the current wait and called often."""
    return replace(job, max_time_seconds=None, report_seconds=_REPORT_SECONDS)


def _ending(stop: Stop) -> str:
    return f"{stop.message}; run it again from {utc_text(stop.until, round_up=True)}" if stop.until else stop.message


class _InOrder:
    """Writes rows in the order of their links on the command line, each as soon as those before it are settled."""

    def __init__(self, links: Sequence[str], write: Callable[[bytes], None]) -> None:
        self._expected = deque(links)
        self._rows: dict[str, bytes | None] = {}
        self._write = write

    def came(self, link: str, line: bytes | None) -> None:
        """Record a link's row; None if it has none."""
        self._rows[link] = line
        while self._expected and self._expected[0] in self._rows:
            self._write_one(self._expected.popleft())

    def write_rest(self) -> None:
        """Write the rows that wait behind links that were never settled."""
        while self._expected:
            self._write_one(self._expected.popleft())

    def _write_one(self, link: str) -> None:
        if not (line := self._rows.get(link)):
            return
        try:
            self._write(line)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output: {error.strerror}; the answer was paid for, and is lost") from error


class _Waits:
    """The observer of a lookup: reports a wait as soon as it begins, and ends the run at --max-time."""

    def __init__(self, shutdown: ShutdownSignal, max_time: str, in_order: _InOrder) -> None:
        self.shown = Shown()
        self._shutdown = shutdown
        self._most = max_time
        self._seconds = seconds_of("--max-time", max_time)
        self._began = time.monotonic()
        self._in_order = in_order
        self._reported: str | None = None
        self._retry_reported = False

    def invalid(self, line: InvalidLine) -> None:
        """Do nothing: the links were parsed before the lookup."""

    def failure(self, line: bytes) -> None:
        """Report why a link has no row."""
        failure = orjson.loads(line)
        reason = f"{failure['status'] or 'no answer'} {failure['message']}".strip()
        if failure["kind"] == "refused":
            self.shown.refused += 1
            say(f"{failure['bitlink']}: {_REFUSED.get(failure['status'], 'refused')} ({reason})")
        else:
            self.shown.failed += 1
            say(f"{failure['bitlink']}: failed ({reason}); try it again later")
        self._in_order.came(failure["bitlink"], None)

    def warn(self, text: str) -> None:
        """Show a warning."""
        say(f"warning: {text}")

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        """Do nothing: notes are for long runs."""

    def progress(self, status: RunProgress) -> None:
        """Report a new wait, or end the run if it lasts too long."""
        waiting, left = status.waiting, self._seconds - (time.monotonic() - self._began)
        until = waiting.until if waiting else None
        if left <= 0 or (until is not None and (until - datetime.now(UTC)).total_seconds() > left):
            why = self._too_long(waiting, status.trouble)
            self._shutdown.request(Stop(StopReason.MAX_TIME, why, utc_iso(until) if until else None))
        elif waiting is not None and waiting.window not in _UNREPORTED and waiting.window != self._reported:
            self._reported = waiting.window
            say(f"waiting for {wait_in_words(waiting)}; for {self._most} at most (--max-time)")
        elif waiting is None and status.trouble and not self._retry_reported:
            self._retry_reported = True
            cause = status.trouble.removeprefix("no answer ")
            say(f"no good answer yet: {cause}; retrying, for {self._most} at most (--max-time)")

    def _too_long(self, waiting: WaitReason | None, trouble: str | None) -> str:
        if waiting is None or waiting.window in _UNREPORTED:
            why = f" ({trouble})" if trouble else ""
            return f"not every link was answered within {self._most} (--max-time){why}: run it again in a moment"
        return f"waiting for {wait_in_words(waiting)} takes longer than {self._most} (--max-time)"


# --- what is printed ----------------------------------------------------------------------------------------------


def _print_row(line: bytes) -> None:
    text = line.decode()
    with printing():
        print(escaped(text.rstrip("\n")) if sys.stdout.isatty() else text.rstrip("\n"), flush=True)


def _print_table(line: bytes) -> None:
    row = orjson.loads(line)
    heading = f"{row['bitlink']}, {_window(row)}: {row['clicks_listed']:,} clicks listed"
    text = None if _width_varies() else _plain_text(heading, *_cells(row, _PIPE_WIDTH), _remarks(row))
    if text is None:
        text = _drawn_text(heading, row)
    with printing():
        print(text, flush=True)


def _width_varies() -> bool:
    """Return whether something other than a pipe or a file decides how wide and how coloured a table is."""
    return any(map(os.isatty, (0, 1, 2))) or not _DECIDES.isdisjoint(os.environ)


def _drawn_text(heading: str, row: dict[str, Any]) -> str:
    """Return a row as rich draws it: on any terminal, with any letters."""
    from rich.console import Console  # noqa: PLC0415 - in a pipe most rows need no drawing

    # Captured, because the console itself would end the process when the reader leaves.
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    with printing(), console.capture() as captured:
        console.print(_text(heading), style="bold")
        console.print(_table(*_cells(row, console.width), console.width), *map(_text, _remarks(row)), sep="\n")
    return captured.get()


def _plain_text(heading: str, head: list[str], body: list[list[str]], remarks: list[str]) -> str | None:
    """Return a row as rich writes it into a pipe; None where that takes rich: for wide letters, or to break lines."""
    lines = [heading, *remarks]
    if not body or any(len(line) > _PIPE_WIDTH for line in lines) or not all(map(_is_narrow, lines)):
        return None
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    widths[3:] = [_BAR for _ in widths[3:]]
    if sum(widths) + 3 * len(widths) + 1 > _PIPE_WIDTH or not all(_is_narrow(cells[0]) for cells in body):
        return None

    def bordered(left: str, fill: str, between: str, right: str) -> str:
        return left + between.join(fill * (width + 2) for width in widths) + right

    def written(cells: list[str], border: str) -> str:
        aligned = [
            cell.rjust(width) if 1 <= place <= 2 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"{border} {f' {border} '.join(aligned)} {border}"

    rows = [written(cells, "│") for cells in body]
    top, rule = bordered("┏", "━", "┳", "┓"), bordered("┡", "━", "╇", "┩")
    return "\n".join([heading, top, written(head, "┃"), rule, *rows, bordered("└", "─", "┴", "┘"), *remarks, ""])


def _is_narrow(text: str) -> bool:
    """Return whether each character of a text takes one column, and none needs escaping."""
    return text.isascii() and text.isprintable()


def _cells(row: dict[str, Any], width: int) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of a row's table, without the columns that a narrow terminal has no room for."""
    total, metrics, facet = row["clicks_listed"] or 1, row["metrics"], FACETS[row["facet"]]
    most = max((metric["clicks"] or 0 for metric in metrics), default=0) or 1
    bar = min(_BAR, width - _BESIDE_BAR)
    columns = 2 + (width >= _BESIDE_SHARE) + (width >= _BESIDE_SHARE and bar >= _LEAST_BAR)
    head = [row["facet"].replace("_", " "), "clicks", "share", ""]
    body = []
    for metric in metrics:
        clicks = metric["clicks"] or 0
        share, drawn = f"{clicks / total:.1%}", "█" * round(bar * clicks / most)
        body.append([facet.label(metric), f"{clicks:,}", share, drawn][:columns])
    return head[:columns], body


def _table(head: list[str], body: list[list[str]], width: int) -> "Table":
    """Return the table that rich draws. width: of the terminal."""
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(
            name,
            justify="right" if name else "left",
            width=None if name else min(_BAR, width - _BESIDE_BAR),
            no_wrap=True,
        )
    for label, *others in body:
        table.add_row(_text(label), *others)
    return table


def _text(text: str) -> "Text":
    from rich.text import Text  # noqa: PLC0415

    return Text("\n".join(map(escaped, text.split("\n"))))


def _window(row: dict[str, Any]) -> str:
    """Return the time span that the clicks were counted in, as far as Bitly reports it."""
    if row["period_start"] is not None:
        return str(Period(row["unit"], date.fromisoformat(row["period_start"][:10])))
    units = row["units_returned"] if row["units_returned"] is not None else row["units"]
    many = f"all {row['unit']}s" if units == -1 else f"{units:,} {row['unit']}{'s' if units != 1 else ''}"
    return f"{many} up to {utc_text(row['unit_reference'])}"


def _remarks(row: dict[str, Any]) -> list[str]:
    remarks = []
    if not row["metrics"]:
        remarks.append("no clicks in this window")
    if row["truncated"]:
        remarks.append(f"truncated: Bitly returned the {row['size']:,} that were requested; there may be more")
    returned = row["units_returned"]
    if returned is not None and returned < row["units"]:
        remarks.append(f"{row['units']:,} {row['unit']}s were requested: the plan keeps no more than {returned:,}")
    return remarks
