"""The worklist: what of a list becomes a call, what is a duplicate, and when the list is read on."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harvester.bearer import Token
from harvester.errors import RunStopping
from harvester.links.feed import IterableFeed
from harvester.progress import RunProgress
from harvester.rows.call import CallState, Known
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.worklist.calls import Call
from harvester.worklist.worklist import LOW_WATER, Worklist
from tests.support.commands import TOKEN
from tests.support.in_process import Listener
from tests.support.simulated_bitly import MemoryStore


async def at_once(work: Callable[..., Any], *arguments: object) -> Any:
    """Stands in for the committer's thread."""
    return work(*arguments)


def worklist(
    links: Sequence[object], store: MemoryStore | None = None, per_minute: int = 100, **retry: Any
) -> Worklist:
    budget: Any = SimpleNamespace(limits=SimpleNamespace(per_minute=per_minute))
    dataset: Any = store or MemoryStore(invocation=2)
    feed, shutdown = IterableFeed(links), ShutdownSignal()
    return Worklist(
        feed,
        dataset,
        set(),
        at_once,
        deque(maxlen=8),
        budget,
        shutdown,
        Listener(),
        RunProgress(),
        token=Token(lambda: TOKEN),
        **retry,
    )


async def read_all(made: Worklist) -> list[Call]:
    calls: list[Call] = []
    while (found := await made.read()) is not None:
        made.add(found)
        calls += found
    made.close()
    return calls


async def test_a_link_named_twice_becomes_one_call() -> None:
    made = worklist(["bit.ly/a", "bit.ly/b", "https://bit.ly/a"])
    assert [call.link.bitlink for call in await read_all(made)] == ["bit.ly/a", "bit.ly/b"]
    listed = made.progress.listed
    assert (listed.lines, listed.links, listed.duplicates) == (3, 2, 1)
    assert made._in_progress == {b"bit.ly/a", b"bit.ly/b"}


async def test_what_was_settled_in_an_earlier_run_needs_no_call_and_a_second_mention_is_a_duplicate() -> None:
    store = MemoryStore(
        {b"bit.ly/a": Known(CallState.ROW, 0, 1), b"bit.ly/b": Known(CallState.ROW, 0, 2)}, invocation=2
    )
    made = worklist(["bit.ly/a", "bit.ly/b", "bit.ly/c"], store)
    assert [call.link.bitlink for call in await read_all(made)] == ["bit.ly/c"]
    assert (made.progress.known, made.progress.listed.duplicates, made.progress.pending) == (1, 1, 1)
    assert list(made._known_good_links) == ["bit.ly/a"]


@pytest.mark.parametrize(("retry", "calls"), [(False, 0), (True, 1)])
async def test_a_refused_link_is_asked_for_again_only_if_that_was_asked_for(retry: bool, calls: int) -> None:
    store = MemoryStore({b"bit.ly/a": Known(CallState.REFUSED, 0, 1)}, invocation=2)
    found = await read_all(worklist(["bit.ly/a"], store, retry_refused=retry))
    assert [call.previous for call in found] == [CallState.REFUSED] * calls


async def test_how_many_calls_remain_is_known_at_the_lists_end_and_no_sooner() -> None:
    made = worklist(["bit.ly/a", "bit.ly/b"])
    calls = await made.read()
    assert calls
    made.add(calls)
    assert made.remaining is None
    await read_all(made)
    assert made.remaining == 2
    assert await made.wait_for_call()
    made.take()
    assert made.remaining == 1


async def test_the_list_is_read_on_below_the_low_water_mark() -> None:
    made = worklist([])
    made.add([Call(*[None] * 3)] * (LOW_WATER + 1))  # type: ignore[arg-type]
    waiting = asyncio.create_task(made.wait_until_low())
    await asyncio.sleep(0)
    made.take()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    made.take()
    made.take()
    async with asyncio.timeout(5):
        await waiting


async def test_workers_that_wait_are_woken_by_the_end_and_a_reader_by_the_shutdown() -> None:
    made = worklist([])
    worker = asyncio.create_task(made.wait_for_call())
    await asyncio.sleep(0)
    made.close()
    assert not await worker
    made._shutdown.request(Stop(StopReason.SIGNAL, "SIGTERM"))
    with pytest.raises(RunStopping):
        await made.read()


async def test_the_token_in_a_line_is_neither_stored_nor_asked_for() -> None:
    store = MemoryStore(invocation=1)
    made = worklist([f"GET /v4/user?access_token={TOKEN}", f"bit.ly/{TOKEN}", "bit.ly/a"], store)
    assert [call.link.bitlink for call in await read_all(made)] == ["bit.ly/a"]
    assert made.progress.listed.invalid == 2
    assert TOKEN not in repr(store.invalid)


async def test_other_values_of_a_link_named_again_are_counted_and_the_first_ones_are_carried(tmp_path: Path) -> None:
    store = MemoryStore({b"bit.ly/old": Known(CallState.ROW, 0, 1)}, invocation=2)
    store.location.private = str(tmp_path)
    rows = [("a", "1"), ("b", "1"), ("a", "2"), ("a", "1"), ("b", None), ("old", "1"), ("old", "2"), ("c", "1")]
    made = worklist([(f"bit.ly/{name}", {"n": value, "m": "x"}) for name, value in rows] + ["bit.ly/d"], store)
    calls = [(call.link.bitlink, call.link.carried) for call in await read_all(made)]
    assert calls == [(f"bit.ly/{name}", {"n": "1", "m": "x"}) for name in "abc"] + [("bit.ly/d", None)]
    listed = made.progress.listed
    assert (listed.lines, listed.links, listed.duplicates, listed.differing) == (9, 5, 4, 3)
    assert list(tmp_path.iterdir()) == []


async def test_a_list_that_carries_nothing_writes_no_file(tmp_path: Path) -> None:
    store = MemoryStore(invocation=1)
    made = worklist(["bit.ly/a", "bit.ly/a"], store)  # the store has no folder
    assert len(await read_all(made)) == 1


async def test_the_token_is_not_carried() -> None:
    pairs = [("bit.ly/a", {"url": f"https://x.example/?access_token={TOKEN}"}), ("bit.ly/b", {TOKEN: "x"})]
    made = worklist([*pairs, ("bit.ly/c", {"url": None})], store := MemoryStore(invocation=1))
    store.location.private = None
    made._carried.close()
    assert [call.link.bitlink for call in await read_all(made)] == ["bit.ly/c"]
    assert TOKEN not in repr(store.invalid)


async def test_of_millions_of_invalid_lines_the_first_are_kept_and_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harvester.worklist.worklist.MOST_INVALID_LINES", 3)
    store = MemoryStore(invocation=1)
    made = worklist(["none"] * 300, store)
    assert await read_all(made) == []
    assert (made.progress.listed.invalid, len(store.invalid)) == (300, 3)
