"""A ledger says the same of its calls wherever the index has their keys, and is refused if the index lacks some."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from harvester.dataset.ledger import Ledger
from harvester.errors import OutputError
from harvester.rows.call import CallState, Entry, Known, Shortfall
from harvester.storage import sqlite

DEFAULTS = Known(CallState.ROW, 0, 0)[3:]
KEYS = [sha256(b"%d" % number).digest()[:16] for number in range(60)]


@contextmanager
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger(str(path))) as opened:
        if opened.fresh:
            opened.create({"run_id": "r"})
        yield opened


def verdicts(chance: random.Random, asked_at: int) -> list[Entry]:
    """Some calls' verdicts, new and old ones, some of them twice."""
    found = []
    for key in chance.choices(KEYS[: chance.randrange(5, 60)], k=9):
        state = chance.choice(list(CallState))
        line = None if state is CallState.ROW else b"%s %d" % (key.hex().encode(), asked_at)
        found.append(Entry(key, state, line, Shortfall(truncated=chance.random() < 0.5), asked_at, 5))
    return found


def history(path: Path, *, refreshing: bool) -> list[Any]:
    """What a ledger answers through a random life with restarts: the same life each time."""
    chance, answers = random.Random(7), list[Any]()
    for run in range(1, 5):
        with ledger(path) as opened:
            if refreshing and not opened.refreshing:
                opened.begin_refreshing(1)
            for number in range(3):
                segment = run * 10 + number
                entries = [(segment, verdicts(chance, segment)), (segment + 1, verdicts(chance, segment))]
                opened.commit(entries=entries, invocation=run, journals={segment: 1})
                known = [key for key in KEYS if key in opened.known(KEYS)]
                opened.commit(seen=chance.sample(known, len(known) // 2), invocation=run)
                opened.take_back_failed_runs(chance.sample(KEYS, 5))
                opened.set_failed_runs([(key, 2) for key in chance.sample(KEYS, 5)])
                answers += [opened.known(KEYS), opened.totals(), list(opened.failure_lines()), opened.last_refused(5)]
            opened.forget_calls(run * 10 + 1, chance.sample(KEYS, 20))
            answers += [opened.known(KEYS), opened.totals(), list(opened.failure_lines())]
            answers += [opened.calls_of(segment) for segment in range(50)]
            answers += [opened.oldest_answer(run)] if refreshing else []
            opened.check()
            with closing(Ledger(str(path), read_only=True)) as reader:
                assert reader.known(KEYS) == opened.known(KEYS)
                assert sum(reader.totals()[:3]) == len(reader.known(KEYS))
    return answers


@pytest.mark.parametrize("refreshing", [False, True], ids=["pinned", "refreshed"])
def test_it_says_the_same_wherever_the_index_has_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refreshing: bool
) -> None:
    expected = history(tmp_path / "memory", refreshing=refreshing)
    assert len(expected) > 200
    for most in (1, 25):
        monkeypatch.setattr(sqlite, "MOST_RECENT", most)
        assert history(tmp_path / str(most), refreshing=refreshing) == expected


@pytest.mark.parametrize(
    ("states", "failed_runs"),
    [
        ("F", 1),
        ("FF", 1),  # in one run
        ("F F", 2),
        ("RF", 0),  # a refusal that was taken back at the run's end: the call was not tried again
        ("F RF", 1),
        ("FR", 0),
        ("FO", 0),
    ],
)
def test_a_call_has_failed_in_as_many_runs_as_tried_it(tmp_path: Path, states: str, failed_runs: int) -> None:
    kinds = {"O": CallState.ROW, "R": CallState.REFUSED, "F": CallState.FAILED}
    with ledger(tmp_path / "ledger.sqlite") as opened:
        for run, letters in enumerate(states.split(), 1):
            entries = [Entry(KEYS[0], kinds[letter], b"{}" if letter != "O" else None) for letter in letters]
            opened.commit(entries=[(run, entries)], invocation=run)
        assert opened.known(KEYS) == {KEYS[0]: (kinds[states[-1]], failed_runs, len(states.split()), *DEFAULTS)}


@pytest.mark.parametrize(
    "damage", ["DELETE FROM by_key WHERE id = 3", "DELETE FROM indexed", "UPDATE indexed SET last = 'x'"]
)
def test_an_index_that_lacks_calls_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """A call that is not found would be made, and paid for, again."""
    monkeypatch.setattr(sqlite, "MOST_RECENT", 4)
    path = tmp_path / "ledger.sqlite"
    with ledger(path) as opened:
        for key in KEYS[:6]:
            opened.commit(entries=[(0, [Entry(key, CallState.ROW, None)])], invocation=1)
        opened.check()
    with closing(sqlite.SqliteFile(str(path), "the ledger", "Mend it")) as file:
        file.connection.execute(damage)
    with ledger(path) as opened, pytest.raises(OutputError, match="its index lacks calls"):
        opened.check()


def test_a_run_has_its_entry_in_the_history_from_its_start_on(tmp_path: Path) -> None:
    """Also one that ends before it has anything to commit."""
    with closing(Ledger(str(tmp_path / "ledger.sqlite"))) as ledger:
        ledger.create({})
        assert [ledger.begin_invocation() for _ in range(3)] == [1, 2, 3]
        found = ledger.history()
    assert [run.number for run in found.runs] == [1, 2, 3]
    assert all(run.started == run.until for run in found.runs)
    assert (found.times, found.unreadable) == ((), 0)
