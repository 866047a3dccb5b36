"""The sinks of rows: what they do with a reader that is slow, or leaves."""

import json
import os
from collections.abc import Iterator
from threading import Thread

import pytest

from harvester.dataset import stream_publisher
from harvester.dataset.journal import PartLimits
from harvester.dataset.opening import open_dataset
from harvester.dataset.stream_publisher import QueueSink, StdoutSink
from harvester.errors import OutputError, ReaderClosed
from harvester.storage.folders import located
from tests.unit.dataset.test_recovery import QUERY, settle


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The reading end of a pipe in standard output's place; take it out of the list to close it yourself."""
    reading, writing = os.pipe()
    monkeypatch.setattr(stream_publisher, "_STDOUT", writing)
    monkeypatch.setattr(stream_publisher, "_POLL_MILLISECONDS", 1)
    held = [reading]
    yield held
    for descriptor in (*held, writing):
        os.close(descriptor)


def test_a_row_longer_than_the_pipe_reaches_a_slow_reader_whole(reader: list[int]) -> None:
    sink, line = StdoutSink(), os.urandom(100_000) + b"\n"
    sink.check()
    thread = Thread(target=sink.write, args=(line,))
    thread.start()
    while not sink.awaits_reader:
        pass
    received = b""
    while len(received) < len(line):
        received += os.read(reader[0], 4096)
    thread.join()
    assert received == line
    assert not sink.awaits_reader


def test_a_reader_that_takes_nothing_is_not_waited_for_at_the_end(reader: list[int]) -> None:
    sink = StdoutSink()
    sink.shorten_waits()
    sink.write(b"x" * 1000)
    with pytest.raises(OutputError, match="accepts no more rows") as lost:
        sink.write(b"x" * 100_000)
    assert not isinstance(lost.value, ReaderClosed)


def test_a_reader_that_has_left_is_noticed_before_and_during_a_row(reader: list[int]) -> None:
    sink = StdoutSink()
    os.close(reader.pop())
    for use in (sink.check, lambda: sink.write(b"x")):
        with pytest.raises(ReaderClosed, match="standard output was closed"):
            use()


async def test_a_python_reader_that_has_left_is_noticed() -> None:
    sink = QueueSink()
    sink.check()
    sink.leave()
    for use in (sink.check, lambda: sink.write(b"x")):
        with pytest.raises(ReaderClosed, match="the reader has stopped taking rows"):
            use()


class Reading:
    """A sink that takes so many rows, and then fails."""

    uncommitted_limit = 7
    awaits_reader = False

    def __init__(self, most: int = 10) -> None:
        self.taken: list[str] = []
        self._most = most

    def write(self, line: bytes) -> None:
        if len(self.taken) == self._most:
            raise OutputError("no more rows")
        assert line.endswith(b"}\n")
        self.taken.append(json.loads(line)["bitlink"].removeprefix("bit.ly/"))

    def check(self) -> None:
        """It still exists."""

    shorten_waits = leave = check


def test_rows_are_written_once_as_they_are_committed_and_their_journals_go() -> None:
    reader = Reading()
    with (
        located("-", None) as location,
        open_dataset(location, QUERY, PartLimits(2, 1_000_000), print, sink=reader) as store,
    ):
        for names in ("a", "no-b", "cd", "efg"):
            settle(store, *([names] if names.startswith("no") else names))
            store.commit(store.take_batch())
        assert reader.taken == list("acdefg")
        kept = [name for name in os.listdir(location.private) if name.startswith("journal")]
        assert kept == ["journal-00003.journal"]


def test_a_reader_that_failed_gets_no_more_rows() -> None:
    reader = Reading(1)
    with (
        located("-", None) as location,
        open_dataset(location, QUERY, PartLimits(2, 1_000_000), print, sink=reader) as store,
    ):
        settle(store, "a", "b")
        for _ in range(2):
            with pytest.raises(OutputError, match="no more rows"):
                store.commit(store.take_batch())
            reader._most = 10
    assert reader.taken == ["a"]
