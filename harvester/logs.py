"""What a program hears of a run: the logger `harvester`, and a callback for what has no row."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from harvester.bitly import Query
from harvester.errors import UsageError
from harvester.events import Event, Field
from harvester.progress import explained
from harvester.rows import RowMaker
from harvester.sources import Invalid
from harvester.status import Status

_LONG_WAIT = timedelta(minutes=1)

log = logging.getLogger("harvester")
log.addHandler(logging.NullHandler())  # or warnings would be printed where nobody has set logging up


class LogWatcher:
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

    def invalid(self, line: Invalid) -> None:
        """Log a bad link, and call back."""
        log.warning("%s:%d: not a bitlink: %s: %.200s", line.file, line.line, line.reason, line.text)
        if self._on_failure is not None and self.query is not None:
            rows = RowMaker(self.query, "")
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

    def progress(self, status: Status) -> None:
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
