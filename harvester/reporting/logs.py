"""Events as lines of JSON on standard error, for machines that collect logs; docs/logging.md names them all."""

import asyncio
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

import orjson
import structlog

from harvester.bitly.query import Query
from harvester.errors import UsageError
from harvester.events import Event, Field, InvalidLine, level
from harvester.progress import RunProgress
from harvester.reporting.reporter import explained
from harvester.reporting.terminal import escaped
from harvester.rows.row import RowBuilder


class JsonLog:
    """Says events as one JSON object a line."""

    def __init__(self) -> None:
        self._log = _logger()
        self._take_over()

    def tell(self, event: Event, text: str, fields: Mapping[str, Field]) -> None:
        """Write an event; its message is the text's first line. If nobody takes it, nothing more is written."""
        say = getattr(self._log, level(event))
        try:
            say(event.value, message=text.partition("\n")[0], **fields)
        except (OSError, ValueError):
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
            self._log = _logger()

    def _take_over(self) -> None:
        """Have the interpreter and its libraries speak JSON too, whatever they have to say."""
        handler = _Handler(self)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.captureWarnings(capture=True)
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
        threading.excepthook = lambda args: self.warn(f"a thread has died: {args.exc_value!r}")
        sys.unraisablehook = lambda args: self.warn(f"{args.err_msg or 'ignored'}: {args.exc_value!r}")

    def warn(self, text: str) -> None:
        """Say what something else than harvester has to say, in one line."""
        self.tell(Event.WARNING, text.replace("\n", " "), {})

    def show(self, status: RunProgress) -> bool:  # noqa: ARG002
        """Show nothing all the time."""
        return False

    def close(self) -> None:
        """Leave the lines where they are."""


class _Handler(logging.Handler):
    """Takes what libraries log."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Say it as a warning."""
        self._log.warn(self.format(record))


def _logger() -> Any:
    return structlog.wrap_logger(
        structlog.BytesLogger(cast("BinaryIO", sys.stderr.buffer)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=True,
    )


def _line(event: dict[str, Any], **_: object) -> bytes:
    """Give an event as JSON whose line nothing ends but its end: no separator of any reader stands in it."""
    order = ("timestamp", "level", "event", "message")
    sorted_out = {name: event[name] for name in order} | event
    return escaped(orjson.dumps(_clean(sorted_out)).decode()).encode()


def _clean(value: Any) -> Any:
    """Give a value as JSON takes it: names of files that are no UTF-8 are written with backslashes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Mapping):
        return {str(name): _clean(each) for name, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list | tuple) else value


_LONG_WAIT = timedelta(minutes=1)

log = logging.getLogger("harvester")
log.addHandler(logging.NullHandler())  # or warnings would be printed where nobody has set logging up


class LoggingObserver:
    """Tells a run to the logger. Bad links and long waits are warnings, too; refused and failed calls are information.

    on_failure: called with what would stand in `_failures.ndjson`. give_up: called when it raises. query: the run's,
    known once there is a job. error: what on_failure has raised.
    """

    def __init__(
        self,
        on_failure: Callable[[dict[str, Any]], object] | None = None,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self.query: Query | None = None
        self.error: BaseException | None = None
        self._waited_for: str | None = None
        self._on_failure = on_failure
        self._give_up = give_up

    def invalid(self, line: InvalidLine) -> None:
        """Log a bad link, and call back."""
        log.warning("%s:%d: not a bitlink: %s: %.200s", line.file, line.line, line.reason, line.text)
        if self._on_failure is not None and self.query is not None:
            rows = RowBuilder(self.query, "")
            self._call(rows.failure("invalid", file=line.file, line=line.line, text=line.text, message=line.reason))

    def failure(self, line: bytes) -> None:
        """Log a call without a row, and call back."""
        log.info("%s", line.decode())
        self._call(line)

    def warn(self, text: str) -> None:
        """Log a warning."""
        log.warning("%s", text)

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:  # noqa: ARG002
        """Log it."""
        log.info("%s", text)

    def progress(self, status: RunProgress) -> None:
        """Warn of a long wait that begins; log how far a run is, for whoever debugs."""
        waiting = status.waiting
        if waiting is None or waiting.until is None:
            self._waited_for = None
        elif waiting.window != self._waited_for and waiting.until - datetime.now(UTC) > _LONG_WAIT:
            self._waited_for = waiting.window
            log.warning("waiting for %s", explained(waiting))
        log.debug(
            "%d rows, %d refused, %d failed, %d attempts, waiting for %s",
            status.rows, status.refused, status.failed, status.attempts.total, status.waiting,
        )  # fmt: skip

    def _call(self, line: bytes) -> None:
        if self._on_failure is None or self.error is not None:
            return
        try:
            result = self._on_failure(orjson.loads(line))
            if inspect.iscoroutine(result):
                result.close()
                raise UsageError("on_failure: a plain function was expected, not one that gives a coroutine")
        except (Exception, asyncio.CancelledError) as error:  # the caller's own: the stream raises it
            self.error = error
            if self._give_up:
                self._give_up()
