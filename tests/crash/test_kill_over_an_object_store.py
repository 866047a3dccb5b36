"""Killed at any operation and in any request: the store then holds each row once, and no half part."""

import os
import random
import signal
import threading
from collections import Counter
from typing import Any

import pytest

from tests.crash.test_kill_at_every_operation import Crasher, crashing
from tests.support.file_operations import kind_of
from tests.support.killed_forks import ANY
from tests.support.s3_server import LINKS, Case, check_whole, rows_in

ALWAYS = {
    "write journal", "fsync journal", "unlink journal", "commit ledger", "write part", "fsync part", "unlink part",
    "fsync folder", "write manifest", "rename manifest", "rename failures", "rename success",
}  # fmt: skip
REQUESTS = {
    ("GET", "folder"), ("GET", "claim"), ("PUT", "claim"), ("PUT", "part"), ("GET", "part"), ("PUT", "manifest"),
    ("PUT", "failures"), ("POST", "folder"), ("PUT", "success"),
}  # fmt: skip
"""A deletion is a POST to the bucket."""
KNOWN = {"_claim.json", "_manifest.json", "_failures.ndjson", "_SUCCESS"}


class Chain:
    """Runs of one dataset, each of them killed on its way, until one ends; then all is whole, and another begins."""

    def __init__(self, case: Case, crasher: Crasher) -> None:
        self._case = case
        self._crasher = crasher
        self._kills = 0

    def count(self) -> Counter[str]:
        """Give how often each operation takes place in a run that nothing kills."""
        ended = self._crasher.run(self._case.arguments())
        self._check_end(ended["code"])
        return Counter(ended["counts"])

    def killed(self, operation: str = "", nth: int = 0, when: str = "") -> bool:
        """Let a run go on, and be killed; False if it has ended instead."""
        return self._judged(self._crasher.run(self._case.arguments(), operation, nth, when))

    def _judged(self, ended: dict[str, Any]) -> bool:
        if not ended["killed"]:
            self._check_end(ended["code"])
            return False
        self._kills += 1
        seen = Counter(row["bitlink"] for row in rows_in(self._case.held()))
        assert set(seen.values()) <= {1}, "what a loader sees in between: whole parts, each row once"
        return True

    def killed_in(self, method: str, kind: str, when: str) -> bool:
        """Let the server have a request and kill who sent it: instead of doing what was asked, or after it."""
        s3, struck = self._case.s3, threading.Event()

        def strike(has: str, name: str) -> str | None:
            if (has, kind_of(name)) == (method, kind) and not struck.is_set():
                struck.set()
                os.kill(self._crasher.pid, signal.SIGKILL)
                return "InternalError"
            return None

        if when == "before":
            s3.fault = strike
        else:
            s3.after = strike
        ended = self._crasher.run(self._case.arguments())
        assert ended["killed"] == struck.is_set()
        s3.calm()
        return self._judged(ended)

    def _check_end(self, code: int) -> None:
        held, answered = self._case.held(), self._case.served.sandbox.answered
        assert code == 0
        check_whole(held, set(LINKS))
        assert not [name for name in held if name not in KNOWN and not name.startswith("part-")]
        repeated = sum(answered.values()) - len(answered)
        assert repeated <= self._kills, "with one connection a kill costs at most the answer that was on its way"
        self._case.begin_again()
        self._kills = 0


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_operation_costs_nothing(case: Case, when: str) -> None:
    chance = random.Random(20261123)
    with crashing(case.folder, case.s3.env) as crasher:
        chain = Chain(case, crasher)
        counts = chain.count()
        assert ALWAYS - counts.keys() == set()
        del counts[ANY]
        points = [(name, nth) for name, count in counts.items() for nth in chosen(chance, name, count)]
        for operation, nth in points:
            # Threads meet differently each time, so the last of many may not come; in a new dataset the first does.
            assert chain.killed(operation, nth, when) or chain.killed(operation, 1, when)
        while chain.killed(ANY, 40, when):
            pass


def chosen(chance: random.Random, operation: str, count: int) -> list[int]:
    """Choose which of an operation's times are killed: the ledger's commits part the steps, so more of them."""
    return chance.sample(range(1, count + 1), min(count, 4 if operation == "commit ledger" else 1))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_within_any_request_costs_nothing(case: Case, when: str) -> None:
    with crashing(case.folder, case.s3.env) as crasher:
        chain = Chain(case, crasher)
        for method, kind in sorted(REQUESTS, key=lambda request: request[1] not in {"claim", "folder"}):
            assert chain.killed_in(method, kind, when) or chain.killed_in(method, kind, when), (method, kind)
        assert not chain.killed()
