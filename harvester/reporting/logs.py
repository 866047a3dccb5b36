"""A run's events for programs: JSON lines on standard error for the command, `logging` for callers from Python.

`JsonLog` writes what --log-format json promises; docs/logging.md names its events. `LoggingObserver` is the observer of
`harvester.harvest` and its like: it writes to the logger `harvester`, and hands failures to the caller's function.
"""

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson
import structlog

from harvester.bitly.query import Query
from harvester.errors import UsageError
from harvester.events import Event, Field, level
from harvester.jsonlines import as_json
from harvester.progress import InvalidLine, RunProgress
from harvester.reporting.reporter import LONG_WAIT_SECONDS, seconds_until, wait_in_words
from harvester.reporting.terminal import escaped, put
from harvester.rows.row import RowBuilder

_MOMENTS = orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS
"""A moment, always in UTC here, is written as `2026-11-23T06:00:00Z`."""


class JsonLog:
    """An EventSink that writes each event as one JSON object a line, to standard error."""

    for_programs = True

    def __init__(self) -> None:
        self._log = structlog.wrap_logger(
            structlog.ReturnLogger(),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=_line),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=True,
        )

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:
        """Write an event; its message is the text's first line."""
        line_of = getattr(self._log, level(event))
        put(line_of(event.value, message=text.partition("\n")[0], **fields))

    def warn(self, text: str) -> None:
        """Write a warning that did not come from harvester itself, in one line."""
        self.tell(Event.WARNING, text.replace("\n", " "), {})

    def show(self, status: RunProgress) -> bool:  # noqa: ARG002
        """Return False: a log has no live display."""
        return False

    def close(self) -> None:
        """Do nothing: lines are written at once."""


def _line(event: dict[str, Any], **_: object) -> str:
    """Return an event as one line of JSON; control characters and line separators in it are escaped."""
    order = ("timestamp", "level", "event", "message")
    sorted_out = {name: event[name] for name in order} | event
    return escaped(as_json(sorted_out, _MOMENTS)) + "\n"


def route_warnings_to(log: JsonLog) -> None:
    """Write the whole process' warnings as JSON too: those of Python, of libraries' loggers and of threads that died.

    For the command alone. It replaces the root logger's handlers, `threading.excepthook` and `sys.unraisablehook`.
    """
    handler = _Handler(log)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    threading.excepthook = lambda args: log.warn(f"a thread died: {args.exc_value!r}")
    sys.unraisablehook = lambda args: log.warn(f"{args.err_msg or 'ignored'}: {args.exc_value!r}")


class _Handler(logging.Handler):
    """Passes records of libraries' loggers to the JSON log."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.warn(self.format(record))


class ProgressView(Protocol):
    """What shows a caller from Python the progress of a run."""

    def progress(self, status: RunProgress) -> None:
        """Show the progress."""

    def close(self) -> None:
        """End the display."""


log = logging.getLogger("harvester")
log.addHandler(logging.NullHandler())  # else Python prints our warnings in programs that have not set up logging


class LoggingObserver:
    """A RunObserver that writes to the logger `harvester`.

    Warnings, bad links and long waits have the level WARNING, refused and failed calls INFO, progress DEBUG.

    on_failure: called with each object that belongs in `_failures.ndjson`. give_up: called after on_failure has raised;
    error is that exception. query: the run's query, set once there is a job. view: also shown the progress.
    """

    def __init__(
        self,
        on_failure: Callable[[dict[str, Any]], object] | None = None,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self.query: Query | None = None
        self.view: ProgressView | None = None
        self.error: BaseException | None = None
        self._waited_for: str | None = None
        self._on_failure = on_failure
        self._give_up = give_up

    def invalid(self, line: InvalidLine) -> None:
        """Log a bad link, and call on_failure."""
        log.warning("%s:%d: not a bitlink: %s: %.200s", line.file, line.line, line.reason, line.text)
        if self._on_failure is not None and self.query is not None:
            rows = RowBuilder(self.query, "")
            self._call(rows.failure("invalid", file=line.file, line=line.line, text=line.text, message=line.reason))

    def failure(self, line: bytes) -> None:
        """Log a refused or failed call, and call on_failure."""
        log.info("%s", line.decode())
        self._call(line)

    def warn(self, text: str) -> None:
        """Log a warning."""
        log.warning("%s", text)

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:  # noqa: ARG002
        """Log a note."""
        log.info("%s", text)

    def progress(self, status: RunProgress) -> None:
        """Log the beginning of a long wait as a warning, and the progress for debugging; show it."""
        if self.view is not None:
            self.view.progress(status)
        waiting = status.waiting
        if waiting is None or waiting.until is None:
            self._waited_for = None
        elif waiting.window != self._waited_for and seconds_until(waiting.until) > LONG_WAIT_SECONDS:
            self._waited_for = waiting.window
            log.warning("waiting for %s", wait_in_words(waiting))
        log.debug(
            "%d rows, %d refused, %d failed, %d attempts, waiting for %s",
            status.rows, status.refused, status.failed, status.attempts.total, status.waiting,
        )  # fmt: skip

    def close(self) -> None:
        """End what shows the progress."""
        if self.view is not None:
            self.view.close()

    def _call(self, line: bytes) -> None:
        if self._on_failure is None or self.error is not None:
            return
        try:
            result = self._on_failure(orjson.loads(line))
            if inspect.iscoroutine(result):
                result.close()
                raise UsageError("on_failure: must be a plain function, not one that returns a coroutine")
        except (Exception, asyncio.CancelledError) as error:  # the caller's own error: the stream raises it later
            self.error = error
            if self._give_up:
                self._give_up()
