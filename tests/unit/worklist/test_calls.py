"""Calls that are due: in which order they come back out of their file, and what each of them still knows then."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from harvester.bitly.bitlinks import Bitlink
from harvester.links.batch import Link
from harvester.rows.call import CallState, Known, Shortfall
from harvester.worklist import calls as calls_module
from harvester.worklist.calls import DUE, Call, DueCalls
from harvester.worklist.refresh import IDLE_TURN, Refresh

NOW = 1_800_000_000
DAY = 86400


@contextmanager
def due_calls(folder: Path, *, prefer_active: bool = True) -> Iterator[DueCalls]:
    with closing(DueCalls(Refresh(30.0 * DAY, NOW, prefer_active), lambda: str(folder))) as made:
        yield made


def answered(name: str, days: int, clicks: int | None) -> tuple[Call, Known]:
    """A call whose row is some days old and has some clicks; None: nobody knows how many."""
    key = name.encode()
    known = Known(CallState.ROW, 0, 1, asked_at=NOW - days * DAY, clicks=clicks)
    return Call(Link(Bitlink(f"bit.ly/{name}"), "list", 1), key, known.state, is_due=True), known


def active(number: int, days: int = 40) -> list[tuple[Call, Known]]:
    return [answered(f"active{each}", days, 1) for each in range(number)]


def idle(number: int, days: int = 100) -> list[tuple[Call, Known]]:
    return [answered(f"idle{each}", days, 0) for each in range(number)]


def taken(due: DueCalls) -> list[list[str]]:
    """The names that each `take` returns, until there are no more."""
    batches: list[list[str]] = []
    while found := due.take():
        batches.append([call.key.decode() for call in found])
    return batches


def pattern(names: list[str]) -> str:
    return "".join("i" if name.startswith("idle") else "a" for name in names)


def test_the_oldest_answer_comes_first_and_of_the_same_age_the_list_decides(tmp_path: Path) -> None:
    ages = {"a": 40, "b": 90, "c": 40, "d": 60, "e": 90}
    with due_calls(tmp_path, prefer_active=False) as due:
        for name, days in ages.items():  # in batches of the list, as they are read
            due.add([answered(name, days, 0)])
        assert due.waiting == 5
        assert taken(due) == [["b", "e", "d", "a", "c"]]
        assert due.waiting == 0


def test_of_five_calls_one_is_for_an_idle_link_and_each_kind_keeps_its_own_order(tmp_path: Path) -> None:
    with due_calls(tmp_path) as due:
        due.add(idle(3) + active(12))
        (names,) = taken(due)
    assert IDLE_TURN == 5
    assert pattern(names) == "aaaai" * 3
    assert [name for name in names if name.startswith("a")] == [f"active{each}" for each in range(12)]
    assert [name for name in names if name.startswith("i")] == [f"idle{each}" for each in range(3)]


@pytest.mark.parametrize(
    ("actives", "idles", "expected"),
    [(9, 1, "aaaaiaaaaa"), (2, 4, "aaiiii"), (5, 4, "aaaaiaiii"), (0, 3, "iii"), (3, 0, "aaa")],
    ids=["few idle", "few active", "active run out in a turn", "only idle", "only active"],
)
def test_where_one_kind_has_run_out_the_other_has_every_turn(
    tmp_path: Path, actives: int, idles: int, expected: str
) -> None:
    with due_calls(tmp_path) as due:
        due.add(active(actives) + idle(idles))
        assert [pattern(names) for names in taken(due)] == [expected]


def test_the_turns_go_on_from_one_batch_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "_CALLS_A_TAKE", 10)
    with due_calls(tmp_path) as due:
        due.add(active(20) + idle(10))
        assert due.waiting == 30
        batches = taken(due)
    assert [pattern(names) for names in batches] == ["aaaai" * 2, "aaaai" * 2, "aaaaii", "ii", "ii"]
    assert len({name for names in batches for name in names}) == 30


def test_a_link_of_which_nobody_knows_whether_it_is_clicked_is_not_idle(tmp_path: Path) -> None:
    with due_calls(tmp_path) as due:
        due.add([answered("idle", 90, 0), answered("unknown", 40, None)])
        assert taken(due) == [["unknown", "idle"]]


def test_a_call_comes_back_as_it_was_put_aside(tmp_path: Path) -> None:
    link = Link(Bitlink("bit.ly/Ünï"), "list.csv", 7, "https://bit.ly/Ünï ", {"campaign": "é", "none": None})
    call = Call(link, bytes(range(16)), CallState.FAILED, 2, Shortfall(clipped=True), is_due=True)
    with due_calls(tmp_path) as due:
        due.add([(call, Known(CallState.FAILED, 2, 1, asked_at=NOW - 40 * DAY))])
        assert due.take() == [call]


def test_the_file_is_made_by_the_first_call_and_deleted_at_the_end(tmp_path: Path) -> None:
    with due_calls(tmp_path) as due:
        assert due.take() == []
        assert list(tmp_path.iterdir()) == []
        due.add(active(1))
        assert (tmp_path / DUE).exists()
    assert list(tmp_path.iterdir()) == []
    due.add(active(1))  # by a thread that outlives the run
    assert (due.take(), list(tmp_path.iterdir())) == ([], [])
