"""The connections that this process holds, each a session of one connection, lent to one attempt at a time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from harvester.errors import OutputError
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.transport.connection import SlotConnection
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.exchange import JSON_BODY, Exchange

_REBALANCE_SECONDS = 0.5


@dataclass(slots=True)
class SlotSession:
    """One of the machine's connections, held by this process: a session of one connection.

    line: that connection. direct: sends over it without the session; None to use that.
    """

    number: int
    session: aiohttp.ClientSession
    origin: URL
    line: SlotConnection = field(default_factory=SlotConnection)
    direct: Callable[[str, str, bytes | None], Exchange] | None = None

    def send(self, target: str, authorization: str, body: bytes | None = None) -> Exchange:
        """Return a request to be sent.

        target: path and query, encoded. body: JSON to be posted; None for a GET request.
        """
        if self.direct is not None:
            return self.direct(target, authorization, body)
        url = self.origin.join(URL(target, encoded=True))
        # Not a header of the session, which would be quicker: aiohttp sends those to the proxy too, in the clear.
        headers = {"Authorization": authorization}
        if body is None:
            return self.session.get(url, headers=headers, allow_redirects=False)
        return self.session.post(url, data=body, headers={**headers, **JSON_BODY}, allow_redirects=False)


class Pool:
    """The slots that this process holds, kept at its share while other processes come and go.

    slots: this process's. open_slot: opens a slot's session.
    """

    def __init__(self, slots: ConnectionSlots, open_slot: Callable[[int], SlotSession]) -> None:
        self.slots = slots
        self._open_slot = open_slot
        self._free: asyncio.LifoQueue[SlotSession] = asyncio.LifoQueue()
        self._surplus: list[SlotSession] = []
        self._too_many = 0

    @property
    def empty_handed(self) -> bool:
        """True until other processes have released a connection."""
        return self.slots.held == 0

    def take(self) -> SlotSession | None:
        """Return a slot if one is free; the caller returns it with `put`."""
        return None if self._free.empty() else self._free.get_nowait()

    async def get(self, shutdown: ShutdownSignal) -> SlotSession:
        """Return a free slot as soon as there is one; the caller returns it with `put`.

        Raises:
            RunStopping: the run ended first.
        """
        if (slot := self.take()) is None:
            getting = asyncio.ensure_future(self._free.get())
            try:
                slot = await shutdown.unless_stopping(getting)
            except BaseException:
                if getting.done() and not getting.cancelled():  # in the moment in which the wait was cancelled
                    self.put(getting.result())
                raise
        return slot

    def put(self, slot: SlotSession) -> None:
        """Return a slot to the pool; one beyond this process's share is closed by the next `rebalance`."""
        if self._too_many > 0:
            self._too_many -= 1
            self._surplus.append(slot)
        else:
            self._free.put_nowait(slot)

    async def rebalance(self) -> None:
        """Release slots beyond the share, and take those missing as far as others have released them."""
        share = self.slots.share
        self._too_many = max(self.slots.held - len(self._surplus) - share, 0)
        while self._too_many and not self._free.empty():
            self.put(self._free.get_nowait())
        await self._close_surplus()
        while self.slots.held < share and (number := self.slots.grab()) is not None:
            self._free.put_nowait(self._open_slot(number))

    async def keep_balanced(self, shutdown: ShutdownSignal) -> None:
        """Rebalance until cancelled; end the run if the lock files have gone."""
        try:
            while True:
                await asyncio.sleep(_REBALANCE_SECONDS)
                await self.rebalance()
        except OutputError as error:
            shutdown.request(Stop(StopReason.OUTPUT, str(error)))

    async def close(self) -> None:
        """Close the sessions that are not in use, and release their slots."""
        while not self._free.empty():
            self._surplus.append(self._free.get_nowait())
        await self._close_surplus()

    async def _close_surplus(self) -> None:
        while self._surplus:
            slot = self._surplus.pop()
            await slot.session.close()
            self.slots.give_back(slot.number)
