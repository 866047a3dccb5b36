"""The time limit of an attempt, which does not throw away an answer that has come."""

import asyncio
from types import TracebackType
from typing import Any, cast

READ_TURNS = 4
"""Turns of the event loop in which what lies in a socket is read: select, the transport's read, its close."""
_FROZEN_SECONDS = 0.1
"""A timer that fires this late shows that the process stood still."""
_GRACE_SECONDS = 2.0
"""The time to read an answer that came while the process stood still."""


class Deadline:
    """Ends one block at a time with TimeoutError after some seconds, but not before what has come by then was read.

    A process that was stopped, or a laptop that slept, finds its answer in the socket and its timer overdue at the same
    moment. The answer is paid for, so the event loop gets some turns to read it, and some time if it stood still.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = self._at = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._expired = False
        self._timer: asyncio.Handle | None = None

    def __call__(self, seconds: float) -> "Deadline":
        """Return a context manager for a block of at most this duration."""
        self._seconds = seconds
        return self

    def __enter__(self) -> None:
        self._task = task = cast("asyncio.Task[Any]", asyncio.current_task(self._loop))
        self._cancelling = task.cancelling()
        self._at = self._loop.time() + self._seconds
        if self._timer is None:  # one from an earlier block runs on, and looks at the new deadline when it is due
            self._timer = self._loop.call_at(self._at, self._due)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        # As asyncio.timeout does it: who else cancelled the task is not deprived of that.
        expired, self._expired = self._expired, False
        if expired and task and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _due(self) -> None:
        """Look at the deadline, which may be another block's by now."""
        self._timer = None
        if self._task is None:
            return
        now = self._loop.time()
        if now - self._at > _FROZEN_SECONDS:
            self._at = now + _GRACE_SECONDS
        if self._at > now:
            self._timer = self._loop.call_at(self._at, self._due)
        else:
            self._read_on(READ_TURNS)

    def _read_on(self, turns: int) -> None:
        if self._task is None or self._at > self._loop.time():
            self._due()
        elif turns:
            self._timer = self._loop.call_soon(self._read_on, turns - 1)
        else:
            self._timer, self._expired = None, True
            self._task.cancel()
