"""The pace: whoever waits for it goes at once when the list turns out to end within the room left."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from harvester.client.pacer import Pacer
from harvester.shutdown import ShutdownSignal


class Asking:
    """Stands where the budget is asked."""

    def ask(self, question: Callable[[], Any]) -> Any:
        return question()


async def waiting(pace: Pacer) -> asyncio.Task[None]:
    """An attempt that waits for the pace, behind one that took what there was."""
    await pace.keep(1, lambda: None)
    return asyncio.create_task(pace.keep(1, lambda: None))


def paced() -> Pacer:
    asking: Any = Asking()
    return Pacer(asking, ShutdownSignal())


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_the_end_of_the_list_wakes_a_wait_however_far_it_has_come(rounds: int) -> None:
    """After one round of the loop the wait is there, and has not begun."""
    pace = paced()
    attempt = await waiting(pace)
    for _ in range(rounds):
        await asyncio.sleep(0)
    pace.sprint = lambda: True
    pace.hurry()
    async with asyncio.timeout(5):
        await attempt
    assert not attempt.cancelled()


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_an_attempt_that_is_cancelled_stays_so(rounds: int) -> None:
    attempt = await waiting(paced())
    for _ in range(rounds):
        await asyncio.sleep(0)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
