"""Events as lines of JSON on standard error, for machines that collect logs; docs/logging.md names them all."""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import orjson
import structlog

from harvester.events import Event, Field, level
from harvester.status import Status
from harvester.terminal import escaped


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

    def show(self, status: Status) -> bool:  # noqa: ARG002
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
