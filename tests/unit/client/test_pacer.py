"""The pace: attempts that wait for it go at once when the list turns out to end within the room left."""

import asyncio
import math
from typing import Any

import pytest

from harvester.bitly.verdicts import Transient, Unknown, Unreadable, Verdict
from harvester.budget.limits import Limits
from harvester.client.pacer import HintedPauses, Pacer, StrangeAnswers
from harvester.shutdown import ShutdownSignal


class OnePerMinute:
    """A budget with room, whose minute has one attempt."""

    limits = Limits(1, 0, 0)

    def room(self) -> float:
        return math.inf


class Worklist:
    """A list that has not been read to its end."""

    remaining: int | None = None


async def paced() -> tuple[Pacer, Worklist, asyncio.Task[None]]:
    """Return a pacer and an attempt that waits, behind one that took what there was."""
    budget: Any = OnePerMinute()
    pacer, worklist = Pacer(budget, ShutdownSignal()), Worklist()
    pacer.worklist = worklist
    await pacer.acquire(lambda: None)
    return pacer, worklist, asyncio.create_task(pacer.acquire(lambda: None))


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_the_end_of_the_list_wakes_a_wait_however_far_it_has_come(rounds: int) -> None:
    """After one round of the loop the wait is there, and has not begun."""
    pacer, worklist, attempt = await paced()
    for _ in range(rounds):
        await asyncio.sleep(0)
    worklist.remaining = 0
    pacer.input_ended()
    async with asyncio.timeout(5):
        await attempt
    assert not attempt.cancelled()


@pytest.mark.parametrize("rounds", [1, 2, 5])
async def test_an_attempt_that_is_cancelled_stays_so(rounds: int) -> None:
    _, _, attempt = await paced()
    for _ in range(rounds):
        await asyncio.sleep(0)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt


# --- pauses that the server asks for --------------------------------------------------------------------------------


def test_the_pause_that_ends_first_is_reported_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("harvester.client.pacer.time.monotonic", lambda: now)
    pauses = HintedPauses()
    assert pauses.seconds(Transient(503, "out", 200.0), 1.0) == 200.0
    assert pauses.seconds(Transient(503, "busy", 20.0), 1.0) == 20.0
    assert pauses.seconds(Transient(503, "at most five minutes", 9e9), 1.0) == 300.0
    assert pauses.first is not None
    assert (pauses.first.window, "busy" in pauses.first.why) == ("retry_after", True)
    now += 21
    assert pauses.first is not None
    assert "out" in pauses.first.why
    now += 300
    assert pauses.first is None


@pytest.mark.parametrize("verdict", [Transient(503, ""), Transient(503, "", 0.5), Unreadable(200, "", "")])
def test_a_back_off_of_our_own_is_no_pause_that_the_server_asked_for(verdict: Verdict) -> None:
    pauses = HintedPauses()
    assert pauses.seconds(verdict, 1.0) == 1.0
    assert pauses.first is None


def test_strange_answers_end_their_calls_unless_some_that_failed_in_an_earlier_run_are_answered() -> None:
    page, cut = Unknown(403, "HTTP 403", ""), Unreadable(200, "not JSON", "<")
    strange = StrangeAnswers()
    strange.repeated(answered=True)
    assert [strange.is_final(page, 0), strange.is_final(cut, 1), strange.is_final(cut, 2)] == [True, False, True]
    strange.passed()
    for _ in range(3):
        strange.repeated(answered=True)
        for _ in range(11):
            strange.repeated(answered=False)
            assert not strange.is_final(page, 0)
            assert not strange.is_final(cut, 2)
    strange.repeated(answered=False)
    assert strange.is_final(page, 0)
    assert strange.is_final(cut, 2)
