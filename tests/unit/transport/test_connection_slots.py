"""The machine's five connections: locks that end with their process, and processes that share them."""

import asyncio
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from harvester.bitly.query import MAX_CONNECTIONS
from harvester.errors import ConnectionsBusy, OutputError, RunStopping
from harvester.shutdown import ShutdownSignal, Stop, StopReason
from harvester.transport import connection_slots as slots
from harvester.transport.connection_slots import MOST_PROCESSES, ConnectionSlots, Holders
from harvester.transport.pool import Pool, Slot
from tests.e2e.test_run_against_a_hostile_server import many
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.output_checks import rows
from tests.support.scripted_bitly import Scripted, scripted
from tests.support.simulated_bitly import slot_over

LONG_ENOUGH_SECONDS = 60.0
"""What must come about does so long before; this only keeps a broken test from waiting for ever."""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_PAUSE_SECONDS", 0.0)


def sit(one: ConnectionSlots) -> None:
    """Join, in a loop or in none: with pauses of nothing there is nothing to wait for."""
    joining = one.join()
    with suppress(StopIteration):
        while True:
            joining.send(None)


@contextmanager
def joined(folder: Path, *most: int) -> Iterator[list[ConnectionSlots]]:
    """Let as many processes join as numbers are given, each with the connections that it would use alone."""
    with ExitStack() as stack:
        found = []
        for number in most:
            found.append(ConnectionSlots(str(folder), number))
            sit(found[-1])
            stack.callback(found[-1].leave)
        yield found


# --- process locks and slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "shares"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (4, [2, 1, 1, 1]), (5, [1, 1, 1, 1, 1])]
)
def test_processes_share_the_five_connections(quick_path: Path, processes: int, shares: list[int]) -> None:
    with joined(quick_path, *[5] * processes) as found:
        assert [one.share for one in found] == shares


@pytest.mark.parametrize(("most", "share"), [(1, 1), (4, 4), (9, 9)])
def test_a_process_alone_uses_as_many_as_it_wants(quick_path: Path, most: int, share: int) -> None:
    with joined(quick_path, most) as [alone]:
        assert alone.share == share
        assert [alone.grab() for _ in range(share)] == list(range(share))


def test_whoever_wants_fewer_than_its_share_leaves_the_rest_alone(quick_path: Path) -> None:
    with joined(quick_path, 1, 5) as [one, other]:
        assert (one.share, other.share) == (1, 2)


def test_a_sixth_process_is_told_to_wait_until_one_has_ended(quick_path: Path) -> None:
    with joined(quick_path, *[5] * MOST_PROCESSES) as found:
        sixth = ConnectionSlots(str(quick_path), 5)
        with pytest.raises(ConnectionsBusy, match="5 harvests already share") as refused:
            sit(sixth)
        assert str(quick_path) in str(refused.value)
        found[2].leave()
        sit(sixth)
        assert sixth.share == 1
        sixth.leave()


async def test_whoever_waits_for_a_process_lock_does_not_hold_up_the_loop(quick_path: Path) -> None:
    with joined(quick_path, *[5] * MOST_PROCESSES) as found:
        sixth = ConnectionSlots(str(quick_path), 5)
        waiting = asyncio.create_task(sixth.join())
        await asyncio.sleep(0)  # it has found all locks taken
        found[2].leave()
        await waiting
        assert sixth.share == 1
        sixth.leave()


def test_whoever_waits_for_a_connection_learns_who_holds_them(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_BLOCKED_SECONDS", 0.0)
    with joined(quick_path, 5, 5) as [one, other]:
        for _ in range(MAX_CONNECTIONS):
            one.grab()
        assert other.blockers == Holders()  # it has not tried yet
        assert other.grab() is None
        assert other.blockers == Holders((os.getpid(),))
        assert str(other.blockers) == f"process {os.getpid()}"
        one.give_back(2)
        assert other.grab() == 2
        assert other.blockers == Holders()


def test_a_live_process_is_not_named_at_once(quick_path: Path) -> None:
    with joined(quick_path, 5, 5) as [one, other]:
        for _ in range(MAX_CONNECTIONS):
            one.grab()
        assert other.grab() is None
        assert other.blockers == Holders()


def test_stopped_processes_that_use_up_the_connections_are_named(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_is_stopped", lambda _: True)
    with joined(quick_path, *[5] * MOST_PROCESSES):
        sixth = ConnectionSlots(str(quick_path), 5)
        with pytest.raises(ConnectionsBusy, match="are suspended and keep their connections: resume them"):
            sit(sixth)


def test_a_lock_that_names_no_process_is_passed_over(quick_path: Path) -> None:
    with joined(quick_path, 5, 5) as [_, other]:
        for content in ("", "nonsense", "99999999"):
            (quick_path / "process-0").write_text(content)
            assert other.holders().stopped_in_words == ""


def test_a_slot_is_one_processs_at_a_time(quick_path: Path) -> None:
    with joined(quick_path, 5, 5) as [one, other]:
        assert [one.grab() for _ in range(MAX_CONNECTIONS)] == [0, 1, 2, 3, 4]
        assert other.grab() is None
        one.give_back(3)
        assert (one.held, other.grab(), other.held) == (4, 3, 1)
        assert one.grab() is None


def test_whoever_leaves_gives_everything_back(quick_path: Path) -> None:
    with joined(quick_path, 5, 5) as [one, other]:
        while one.grab() is not None:
            pass
        one.leave()
        assert other.share == MAX_CONNECTIONS
        assert [other.grab() for _ in range(MAX_CONNECTIONS)] == [0, 1, 2, 3, 4]


def test_servers_have_connections_of_their_own(quick_path: Path) -> None:
    with joined(quick_path / "a", 5) as [one], joined(quick_path / "b", 5) as [other]:
        assert (one.share, other.share) == (5, 5)


def test_a_folder_that_cannot_be_written_is_an_error_that_says_what_to_do(quick_path: Path) -> None:
    (quick_path / "file").write_text("")
    with pytest.raises(OutputError, match="--state-dir"):
        sit(ConnectionSlots(str(quick_path / "file" / "connections"), 5))


def test_a_folder_that_is_taken_away_meanwhile_is_an_error_that_says_what_to_do(quick_path: Path) -> None:
    with joined(quick_path / "connections", 5) as [alone]:
        shutil.rmtree(quick_path / "connections")
        with pytest.raises(OutputError, match="--state-dir"):
            alone.grab()


# --- the pool -------------------------------------------------------------------------------------------------------


@dataclass
class Sessions:
    """Counts what a pool opens and closes, in the order of its slots' numbers."""

    opened: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    def open_slot(self, number: int) -> Slot:
        self.opened.append(number)
        session = cast("aiohttp.ClientSession", Session(self, number))
        return slot_over(number, session)


@dataclass
class Session:
    """As much of aiohttp's session as a pool needs."""

    sessions: Sessions
    number: int

    async def close(self) -> None:
        self.sessions.closed.append(self.number)


@pytest.fixture
def shutdown() -> ShutdownSignal:
    return ShutdownSignal()


async def test_a_pool_opens_its_share_and_gives_up_what_others_come_for(
    quick_path: Path, shutdown: ShutdownSignal
) -> None:
    with joined(quick_path, 5) as [mine]:
        sessions = Sessions()
        pool = Pool(mine, sessions.open_slot)
        await pool.rebalance()
        assert sessions.opened == [0, 1, 2, 3, 4]
        in_use = [await pool.get(shutdown) for _ in range(4)]
        with joined(quick_path, 5) as [other]:
            await pool.rebalance()
            assert (len(sessions.closed), other.grab() is None) == (1, False)
            assert other.grab() is None  # still in use
            pool.put(in_use.pop())
            await pool.rebalance()
            assert (len(sessions.closed), mine.held) == (2, 3)
            assert other.grab() is not None
            for slot in in_use:
                pool.put(slot)
            await pool.rebalance()
            assert (len(sessions.closed), mine.held) == (2, 3)
        await pool.rebalance()
        assert mine.held == 5
        await pool.close()
        assert sorted(sessions.closed) == sorted(sessions.opened)
        assert mine.held == 0


async def test_a_pool_without_a_slot_waits_for_one(quick_path: Path, shutdown: ShutdownSignal) -> None:
    with joined(quick_path, 5, 5) as [mine, other]:
        while other.grab() is not None:
            pass
        pool = Pool(mine, Sessions().open_slot)
        await pool.rebalance()
        assert pool.empty_handed
        waiting = asyncio.create_task(pool.get(shutdown))
        await asyncio.sleep(0)
        other.give_back(4)
        await pool.rebalance()
        assert (await waiting).number == 4
        assert not pool.empty_handed


async def test_a_wait_that_is_cancelled_as_a_slot_comes_gives_it_back(
    quick_path: Path, shutdown: ShutdownSignal
) -> None:
    with joined(quick_path, 1) as [mine]:
        pool = Pool(mine, Sessions().open_slot)
        await pool.rebalance()
        slot = await pool.get(shutdown)
        waiting = asyncio.create_task(pool.get(shutdown))
        await asyncio.sleep(0.01)
        pool.put(slot)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert pool.take() is slot


async def test_whoever_waits_for_a_slot_is_woken_by_the_runs_end(quick_path: Path, shutdown: ShutdownSignal) -> None:
    with joined(quick_path, 5, 5) as [mine, other]:
        while other.grab() is not None:
            pass
        pool = Pool(mine, Sessions().open_slot)
        waiting = asyncio.create_task(pool.get(shutdown))
        await asyncio.sleep(0)
        shutdown.request(Stop(StopReason.SIGNAL, "SIGTERM"))
        with pytest.raises(RunStopping):
            await waiting


# --- processes ------------------------------------------------------------------------------------------------------


class Machine:
    """Processes that harvest from one server and share a state folder; slow links keep all their workers busy."""

    def __init__(self, bitly: Scripted, folder: Path) -> None:
        self._bitly = bitly
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def out(self, name: str) -> Path:
        return self._folder / name

    def arguments(self, name: str, links: int) -> list[str]:
        path = self._folder / f"{name}.txt"
        path.write_text("".join(f"bit.ly/{link}\n" for link in many(f"later--{name}", links)))
        state = ("--state-dir", str(self._folder / "state"))
        return ["run", str(path), "--out", str(self.out(name)), "--base-url", self._bitly.url, *state, *NO_LIMITS]

    def start(self, name: str, links: int) -> subprocess.Popen[bytes]:
        """Start a process, and wait for its first request."""
        process = start(*self.arguments(name, links))
        self._running.append(process)
        self.wait_until(lambda: self.asked(name) > 0)
        return process

    def asked(self, name: str) -> int:
        return sum(seen.back_half.startswith(f"later--{name}--") for seen in list(self._bitly.requests))

    def wait_until(self, true: Callable[[], bool]) -> None:
        for _ in range(int(LONG_ENOUGH_SECONDS / 0.01)):
            if true():
                return
            threading.Event().wait(0.01)
        raise AssertionError("it never came about")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def end(self) -> None:
        for process in self._running:
            self.kill(process)


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    """A Bitly that fails the test if it sees a sixth connection."""
    with scripted() as server:
        yield server


@pytest.fixture
def machine(bitly: Scripted, quick_path: Path) -> Iterator[Machine]:
    found = Machine(bitly, quick_path)
    yield found
    found.end()


@pytest.mark.slow
def test_three_processes_together_have_five_connections_and_each_goes_on(bitly: Scripted, machine: Machine) -> None:
    processes = {name: machine.start(name, 150) for name in ("a", "b", "c")}
    for name, process in processes.items():
        _, err = process.communicate(timeout=LONG_ENOUGH_SECONDS)
        assert process.returncode == 0, err
        assert len(rows(machine.out(name))) == 150
    assert bitly.most_connections == MAX_CONNECTIONS


@pytest.mark.slow
def test_a_sixth_process_ends_at_once_with_5_and_says_why(bitly: Scripted, machine: Machine) -> None:
    for number in range(MOST_PROCESSES):
        machine.start(f"p{number}", 100_000)
    before = [machine.asked(f"p{number}") for number in range(MOST_PROCESSES)]
    sixth = harvester(*machine.arguments("sixth", 10))
    assert sixth.returncode == 5, sixth.stderr
    assert "5 harvests already share this machine's 5 connections" in sixth.stderr
    assert machine.asked("sixth") == 0
    machine.wait_until(lambda: all(machine.asked(f"p{n}") > asked + 10 for n, asked in enumerate(before)))


def test_a_run_whose_locks_are_taken_away_ends_with_8_and_what_it_has_is_kept(
    bitly: Scripted, machine: Machine, quick_path: Path
) -> None:
    process = machine.start("a", 100_000)
    shutil.rmtree(quick_path / "state" / "connections")
    _, err = process.communicate(timeout=LONG_ENOUGH_SECONDS)
    assert process.returncode == 8, err
    assert b"Traceback" not in err
    assert b"--state-dir" in err
    assert len(rows(machine.out("a"))) == machine.asked("a")


@pytest.mark.slow
def test_what_a_killed_process_had_is_taken_over_and_a_process_alone_has_five_again(
    bitly: Scripted, machine: Machine
) -> None:
    machine.start("stays", 100_000)
    machine.wait_until(lambda: bitly.open_connections == MAX_CONNECTIONS)
    comes = machine.start("comes", 100_000)
    machine.wait_until(lambda: bitly.open_connections == MAX_CONNECTIONS)
    machine.kill(comes)  # and the kernel closes its connections
    machine.wait_until(lambda: bitly.open_connections == MAX_CONNECTIONS)
