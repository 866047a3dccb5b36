"""The rows of a run, read one by one while it goes on."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from harvester.dataset.stream_publisher import QueueSink
from harvester.events import RunOutcome


class RowStream:
    """The rows of a run in the background, each with its line feed: an asynchronous context manager and iterator.

    Leaving it early ends the run, and returns when nothing of it is left. run: of `job.run`, not begun. sink: the
    job's.
    """

    def __init__(self, run: Coroutine[Any, Any, RunOutcome], sink: QueueSink) -> None:
        self._sink = sink
        self._run = asyncio.create_task(run)
        self._run.add_done_callback(lambda _: sink.channel.end())

    async def __aenter__(self) -> "RowStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sink.leave()
        await _cancel_and_wait(self._run)

    def __aiter__(self) -> "RowStream":
        return self

    async def __anext__(self) -> bytes:
        rows = await self._sink.channel.take(1)
        if not rows:
            raise StopAsyncIteration
        return rows[0]

    def outcome(self) -> RunOutcome:
        """Return the outcome of a run that has ended. Raises what `run` raised."""
        return self._run.result()


async def _cancel_and_wait(run: asyncio.Task[RunOutcome]) -> None:
    """Cancel a run unless it is over, and wait for its end even if cancelled meanwhile."""
    run.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not run.done():
        try:
            await asyncio.wait({run})
        except asyncio.CancelledError as error:
            cancelled = error
    if not run.cancelled():
        run.exception()  # or asyncio would log that nobody retrieved it
    if cancelled is not None:
        raise cancelled
