"""A run whose rows are read in its own event loop, as they come."""

import asyncio

from harvester import job as jobs
from harvester.channel import Channel, ReaderGone
from harvester.errors import ConsumerGone
from harvester.job import Job
from harvester.status import Outcome, Watcher
from harvester.stopping import Stopper


class RowSink:
    """A sink that is read in the event loop.

    The reader may take as long as it likes: a few hundred verdicts wait, and no further call is made meanwhile.
    """

    most_waiting = 100

    def __init__(self) -> None:
        self.channel: Channel[bytes] = Channel(self.most_waiting)

    def check(self) -> None:
        """Raise ConsumerGone when nobody reads any more."""
        if self.channel.closed:
            raise ConsumerGone("nobody takes rows any more")

    def write(self, line: bytes) -> None:
        """Hand a row over; raises ConsumerGone when nobody reads any more."""
        try:
            self.channel.put(line)
        except ReaderGone as error:
            raise ConsumerGone("nobody takes rows any more") from error

    def hurry(self) -> None:
        """Nothing: a consumer in the same process is waited for."""

    def leave(self) -> None:
        """Wait for nobody."""
        self.channel.close()


class Flowing:
    """An asynchronous context manager and iterator of a run's rows, each with its line feed.

    Leaving it early leaves nothing running. job: its sink is sink.
    """

    def __init__(self, job: Job, sink: RowSink, stopper: Stopper, watcher: Watcher) -> None:
        self._sink = sink
        self._run = asyncio.create_task(jobs.run(job, stopper, watcher))
        self._run.add_done_callback(lambda _: sink.channel.end())

    async def __aenter__(self) -> "Flowing":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sink.leave()
        await _ended(self._run)

    def __aiter__(self) -> "Flowing":
        return self

    async def __anext__(self) -> bytes:
        taken = await self._sink.channel.take(1)
        if not taken:
            raise StopAsyncIteration
        return taken[0]

    def outcome(self) -> Outcome:
        """Say how the run ended, once it has. Raises what `job.run` does."""
        return self._run.result()


async def _ended(run: asyncio.Task[Outcome]) -> None:
    """Cancel a run that is not over, and see it to its end even if that is cancelled too."""
    run.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not run.done():
        try:
            await asyncio.wait({run})
        except asyncio.CancelledError as error:
            cancelled = error
    if not run.cancelled():
        run.exception()  # seen
    if cancelled is not None:
        raise cancelled
