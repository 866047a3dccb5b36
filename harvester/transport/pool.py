"""The connections that this process holds, each lent to one attempt at a time."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from harvester.errors import OutputError
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.transport.connection import SlotConnection
from harvester.transport.connection_slots import ConnectionSlots
from harvester.transport.exchange import Transport

_REBALANCE_SECONDS = 0.5


@dataclass(slots=True)
class Slot:
    """One of the machine's connections, held by this process. transport: sends over it. line: the connection itself."""

    number: int
    transport: Transport
    line: SlotConnection


class Pool:
    """The slots that this process holds, kept at its share while other processes come and go.

    slots: this process's. open_slot: opens one.
    """

    def __init__(self, slots: ConnectionSlots, open_slot: Callable[[int], Slot]) -> None:
        self.slots = slots
        self._open_slot = open_slot
        self._free: list[Slot] = []
        self._waiters: deque[asyncio.Future[Slot]] = deque()
        self._surplus: list[Slot] = []
        self._too_many = 0
        self._has_left = False

    @property
    def empty_handed(self) -> bool:
        """True until other processes have released a connection."""
        return self.slots.held == 0

    def take(self) -> Slot | None:
        """Return a slot if one is free; the caller returns it with `put`."""
        return self._free.pop() if self._free else None

    async def get(self, shutdown: ShutdownSignal) -> Slot:
        """Return a free slot as soon as there is one; the caller returns it with `put`.

        Raises:
            RunStopping: the run ended first.
        """
        if (slot := self.take()) is not None:
            return slot
        waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await shutdown.unless_stopping(waiter)
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # in the moment in which the wait was cancelled
                self.put(waiter.result())
            waiter.cancel()
            raise

    def put(self, slot: Slot) -> None:
        """Return a slot to the pool; one beyond this process's share is closed by the next `rebalance`."""
        if self._too_many > 0:
            self._too_many -= 1
            self._surplus.append(slot)
            return
        while self._waiters:
            if not (waiter := self._waiters.popleft()).done():
                waiter.set_result(slot)
                return
        self._free.append(slot)

    async def rebalance(self) -> None:
        """Release slots beyond the share, and take those missing as far as others have released them."""
        if self._has_left:
            return
        share = self.slots.share
        self._too_many = max(self.slots.held - len(self._surplus) - share, 0)
        while self._too_many and self._free:
            self.put(self._free.pop())
        await self._close_surplus()
        while self.slots.held < share and (number := self.slots.grab()) is not None:
            self.put(self._open_slot(number))

    async def keep_balanced(self, shutdown: ShutdownSignal) -> None:
        """Rebalance until cancelled; end the run if the lock files have gone."""
        try:
            while True:
                await asyncio.sleep(_REBALANCE_SECONDS)
                await self.rebalance()
        except OutputError as error:
            shutdown.request(Stop(StopReason.OUTPUT, str(error)))

    async def leave(self) -> None:
        """Release this process's share of the connections for good: others make the calls."""
        self._has_left = True
        await self.close()
        self.slots.leave()

    async def close(self) -> None:
        """Close the connections that are not in use, and release their slots."""
        self._surplus += self._free
        self._free.clear()
        await self._close_surplus()

    async def _close_surplus(self) -> None:
        while self._surplus:
            slot = self._surplus.pop()
            await slot.transport.close()
            self.slots.give_back(slot.number)
