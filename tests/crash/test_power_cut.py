"""After a power cut at any moment harvester carries on: nothing lost or doubled, nothing committed asked again.

A run is recorded, and the disk that a power cut leaves after its first operations is made by a model, in which what was
not synced may be gone, torn or zeros. The same command must end well on each of them.
"""

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.crash.test_kill_at_every_operation import LINES, LINKS, REFUSED, Crasher, arguments_for, crashing, published
from tests.support.file_operations import Operation
from tests.support.output_checks import check_reconciled, rows
from tests.support.power_cut import Disk, Loss

SHORT = 10
"""States of each form and beginning: 60 in all."""
BEGINNINGS: dict[str, Callable[[Crasher, list[str]], object]] = {
    "new": lambda _crasher, _arguments: None,
    "stopped": lambda crasher, arguments: crasher.run([*arguments, "--max-calls", "4"]),
    "killed": lambda crasher, arguments: crasher.run(arguments, "commit ledger", 5, "before"),
}
"""What happened before the run whose power is cut."""


@pytest.mark.slow
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("form", ["out", "results.ndjson"])
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.chaos)], ids=["some", "all"])
def test_a_power_cut_at_any_operation_costs_a_batch_at_most(
    quick_path: Path, serve: Callable[..., Served], form: str, beginning: str, short: bool
) -> None:
    served, disk = serve(), quick_path / "disk"
    links = quick_path / "links.txt"
    links.write_text("\n".join(LINES) + "\n")
    disk.mkdir()
    arguments = [*arguments_for(links, disk / form, served), "--state-dir", str(disk / "state" / "budget")]
    with crashing(quick_path) as crasher:
        BEGINNINGS[beginning](crasher, arguments)
        before = shutil.copytree(disk, quick_path / "before")
        assert crasher.run(arguments, when="record")["code"] == 0, crasher.log
        operations = crasher.recorded()
        for cut, loss, seed in states(operations, short=short):
            put_back(before, disk)
            model = Disk(disk)
            model.do(operations[:cut])
            model.lose_power(loss, seed)
            point = f"{loss} {seed}, after {operations[cut - 1].name}, {cut} of {len(operations)}"
            check_resumed(crasher, arguments, disk / form, served.sandbox.answered, point)
            check_budget(operations[:cut], disk, point)


def states(operations: Sequence[Operation], *, short: bool) -> Iterator[tuple[int, Loss, int]]:
    """Yield after how many operations the power is cut, what is lost, and a seed."""
    if not short:
        for cut in range(1, len(operations) + 1):
            for loss in Loss:
                yield from ((cut, loss, seed) for seed in range(2 if loss in {Loss.TORN, Loss.HOLES} else 1))
        return
    rng = random.Random(f"{len(operations)}")
    shown = [cut for cut, each in enumerate(operations, 1) if each.name in {"write part", "write growing"}]
    for losses, cuts in (
        ([Loss.DROPPED, Loss.TORN, Loss.ZEROS], range(1, len(operations) + 1)),
        ([Loss.HOLES, Loss.TORN], shown),
    ):
        for number in range(SHORT // 2):
            share = len(cuts) * 2 / SHORT
            yield cuts[int(share * (number + rng.random()))], losses[number % len(losses)], number


def put_back(before: Path, disk: Path) -> None:
    shutil.rmtree(disk)
    shutil.copytree(before, disk)


def check_resumed(crasher: Crasher, arguments: list[str], out: Path, answered: Counter[str], point: str) -> None:
    settled, marked = known_to_the_ledger(out)
    shown = published(out)
    answered.clear()
    result = crasher.run(arguments)
    assert result["code"] == 0, (point, crasher.log)
    check_reconciled(out, {*LINKS, *REFUSED})
    assert len(rows(out)) == len(LINKS), point
    assert max(answered.values(), default=0) <= 1, point
    assert answered.total() <= len(LINKS) + len(REFUSED) - settled, point
    if out.is_dir():
        now = published(out)
        assert {name: now[name] for name in shown} == shown, point
    else:
        assert out.read_bytes()[:marked] == shown.get(out.name, b"")[:marked], point


def known_to_the_ledger(out: Path) -> tuple[int, int]:
    """The calls that the ledger has as settled, and the checkpoint in the growing file."""
    folder = out / "_harvester" if out.suffix == "" else out.with_name(out.name + ".harvester")
    path = folder / "ledger.sqlite"
    if not path.exists() or not path.stat().st_size:
        return 0, 0
    with sqlite3.connect(path) as ledger:
        settled = ledger.execute("SELECT count(*) FROM calls WHERE state < 2").fetchone()[0]
        marked = ledger.execute("SELECT max(bytes) FROM checkpoint").fetchone()[0]
    ledger.close()
    path.with_name(path.name + "-wal").unlink(missing_ok=True)
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    return settled, marked or 0


def check_budget(operations: Sequence[Operation], disk: Path, point: str) -> None:
    """What was counted before the power cut is still counted: the state folder has not gone with its parent."""
    counted = [each.data for each in operations if each.name == "commit budget"]
    if counted:
        with sqlite3.connect(":memory:") as before:
            # A database in memory cannot be in WAL mode: https://www.sqlite.org/c3ref/deserialize.html
            before.deserialize(counted[-1][:18] + b"\1\1" + counted[-1][20:])
            was = spent(before)
        before.close()
        with sqlite3.connect(disk / "state" / "budget" / "budget.sqlite") as after:
            assert spent(after) >= was, point
        after.close()


def spent(budget: sqlite3.Connection) -> int:
    tables = {name for (name,) in budget.execute("SELECT name FROM sqlite_master")}
    return int(budget.execute("SELECT coalesce(sum(spent), 0) FROM months").fetchone()[0]) if "months" in tables else 0
