"""What a dataset makes of a journal that is torn, cut, damaged or gone, and of a ledger that is."""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from harvester.bitly.facets import Metric
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.clock import seconds_since_1970
from harvester.dataset import stream_publisher
from harvester.dataset.dataset import Dataset
from harvester.dataset.file_publisher import FilePublisher
from harvester.dataset.journal import PartLimits
from harvester.dataset.manifest import BudgetReport, Invocation, Rate, RunReport
from harvester.dataset.opening import open_dataset, peek
from harvester.errors import DatasetBusy, OutputError, UsageError
from harvester.progress import AttemptCounts
from harvester.rows.call import CallState
from harvester.storage import appended_file
from harvester.storage.folders import located, resolve
from harvester.verify.repair import repair
from tests.support.committing import keep
from tests.support.output_checks import rows

QUERY = Query("referrers", "day", -1, "2026-11-23T00:00:00Z", 50)
REPORT = RunReport(
    complete=False,
    stopped=None,
    input_read_to_end=True,
    list=None,
    ended=None,
    invocation=Invocation(1, "2026-11-23T00:00:00Z", None, (), 0, None, Rate(0, 0.0)),
    remaining=None,
    given_up=0,
    budget=BudgetReport("t", "t", None, ()),
    pending=2,
)
FORMS = ["out", "results.ndjson"]
ANY_CUT = pytest.mark.parametrize(
    "stride", [211, pytest.param(1, marks=pytest.mark.nightly)], ids=["telling cuts", "all cuts"]
)


@contextmanager
def dataset(
    out: Path, warnings: list[str] | None = None, work_dir: Path | None = None, query: Query = QUERY
) -> Iterator[Dataset]:
    location = resolve(str(out), str(work_dir) if work_dir else None)
    warn = (warnings if warnings is not None else []).append
    with open_dataset(location, query, PartLimits(1000, 1_000_000), warn) as store:
        yield store


def settle(store: Dataset, *names: str) -> None:
    """Record a row for each name, or a refusal for those that begin with `no`; a row of `cut` lacks something."""
    for name in names:
        bitlink = f"bit.ly/{name}"
        key = store.rows.key(bitlink)
        if name.startswith("no"):
            line = store.rows.failure("refused", bitlink=bitlink, file="f", line=1, status=404, message="NOT_FOUND")
            store.record(key, CallState.REFUSED, line, None)
        else:
            metrics: list[Metric] = [{"value": name, "clicks": 1}] * (2 if name.startswith("cut") else 1)
            answer = Answer(metrics, len(metrics), 30 if name.startswith("cut") else 90, None)
            row = store.rows.row(bitlink, key, answer, "2026-11-23T00:00:00Z")
            store.record(key, CallState.ROW, row, None, store.rows.shortfall(answer))


def test_no_call_is_made_while_many_parts_wait_to_be_made(tmp_path: Path) -> None:
    """The commits wait for them too: a power cut must not cost what would be answered meanwhile."""
    query = Query("referrers", "day", -1, "2026-11-23T00:00:00Z", 50)
    with open_dataset(resolve(str(tmp_path / "out")), query, PartLimits(1, 2**20), print) as store:
        for number in range(8):
            assert not store.backlogged
            settle(store, f"n{number}")
            store.commit(store.take_batch())
        assert store.backlogged
        store.publish()
        assert not store.backlogged


def known(store: Dataset, *names: str) -> list[str]:
    keys = {store.rows.key(f"bit.ly/{name}"): name for name in names}
    return [keys[key] for key in store.ledger.known(list(keys))]


def journal(out: Path) -> Path:
    private = out / "_harvester" if out.suffix == "" else out.with_name(out.name + ".harvester")
    (found,) = private.glob("journal-*.journal")
    return found


def each_cut(source: Path, form: str, sizes: Iterable[int]) -> Iterator[tuple[int, Path]]:
    """Copy a dataset's folder once for each size, cut its journal to that, and give the size and the output."""
    for cut in sizes:
        copy = source.with_name("copy")
        shutil.copytree(source, copy)
        with journal(copy / form).open("r+b") as stream:
            stream.truncate(cut)
        yield cut, copy / form
        shutil.rmtree(copy)


def cuts(whole: bytes, stride: int) -> list[int]:
    """Give the sizes about each line's end and about what stands before its JSON, and others with a stride."""
    ends = [0, *(place for place, byte in enumerate(whole, 1) if byte == ord("\n"))]
    near = {end + step for end in ends for step in (-2, -1, 0, 1, 7, 8, 9, 10, 41, 42, 43, 44, 45)}
    return sorted(size for size in near | set(range(0, len(whole), stride)) if 0 <= size < len(whole))


def finish(out: Path, warnings: list[str] | None = None) -> list[str]:
    """Publish all that the dataset has, and give the bitlinks of its rows."""
    with dataset(out, warnings) as store:
        store.end_part()
        keep(store)
        parts = store.write_manifest(REPORT).parts
    found = rows(out)
    there = [part for part in parts if out.is_file() or (out / part.path).exists()]
    assert sum(part.rows for part in there) == len(found)
    return [row["bitlink"].removeprefix("bit.ly/") for row in found]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@ANY_CUT
def test_a_journal_cut_at_any_byte_keeps_every_whole_line(quick_path: Path, form: str, stride: int) -> None:
    source = quick_path / "source"
    source.mkdir()
    names = ["a", "no-b", "c"]
    with dataset(source / form) as store:
        settle(store, *names)
    whole = journal(source / form).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut, out in each_cut(source, form, [*cuts(whole, stride), len(whole)]):
        there = names[: sum(end <= cut for end in ends)]
        with dataset(out) as store:
            assert sorted(known(store, *names)) == sorted(there)
        assert finish(out) == [name for name in there if name != "no-b"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@ANY_CUT
def test_a_journal_shorter_than_committed_unsettles_its_calls_and_counts_them(
    quick_path: Path, form: str, stride: int
) -> None:
    source = quick_path / "source"
    source.mkdir()
    names = ["a", "no-b", "c", "d"]
    with dataset(source / form) as store:
        settle(store, *names)
        store.ledger.commit(  # committed, and not yet published
            entries=list(store.take_batch().entries.items()),
            invocation=1,
            journals={0: journal(source / form).stat().st_size},
        )
    whole = journal(source / form).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut, out in each_cut(source, form, cuts(whole, stride)):
        warnings: list[str] = []
        there = names[: sum(end <= cut for end in ends)]
        with dataset(out, warnings) as store:
            assert sorted(known(store, *names)) == sorted(there)
            settle(store, *names[len(there) :])
        assert [warning.split()[0] for warning in warnings] == [str(len(names) - len(there))]
        assert sorted(finish(out)) == ["a", "c", "d"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@ANY_CUT
def test_verdicts_that_replaced_others_survive_any_cut(quick_path: Path, form: str, stride: int) -> None:
    """Failed twice, failed and then a row, refused and then a row, all in one journal: never two rows, never stuck."""
    source = quick_path / "source"
    source.mkdir()
    row, refused, failed = CallState.ROW, CallState.REFUSED, CallState.FAILED
    history = [("a", failed), ("b", failed), ("c", refused), ("a", failed), ("b", row), ("c", row), ("d", row)]
    for name, state in history:  # each in a run of its own, and published as far as that goes
        with dataset(source / form) as store:
            settle_as(store, name, state)
            keep(store)
    whole = journal(source / form).read_bytes()
    for _, out in each_cut(source, form, cuts(whole, stride)):
        with dataset(out) as store:
            known = {name: store.ledger.known([store.rows.key(f"bit.ly/{name}")]) for name in "abcd"}
            for name, found in known.items():
                if not found or next(iter(found.values())).state is not CallState.ROW:
                    settle_as(store, name, CallState.ROW)
            keep(store)
        assert sorted(finish(out)) == ["a", "b", "c", "d"]


def row_of(store: Dataset, name: str, metrics: int) -> bytes:
    answer = Answer([{"value": name, "clicks": 1}] * metrics, metrics, 90, None)
    return store.rows.row(f"bit.ly/{name}", store.rows.key(f"bit.ly/{name}"), answer, "2026-11-23T00:00:00Z")


def hold(store: Dataset, *names: str) -> None:
    for name in names:
        store.hold(store.rows.key(f"bit.ly/{name}"), row_of(store, name, 50))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@ANY_CUT
def test_a_row_that_was_held_is_its_calls_row_unless_another_follows(quick_path: Path, form: str, stride: int) -> None:
    """At any cut: there is one row for each call whose answer had come, the newer one if it is whole."""
    source = quick_path / "source"
    source.mkdir()
    with dataset(source / form) as store:
        hold(store, "a", "b")
        settle(store, "c", "a")
        hold(store, "d")
    whole = journal(source / form).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut, out in each_cut(source, form, [*cuts(whole, stride), len(whole)]):
        lines = sum(end <= cut for end in ends)
        with dataset(out) as store:
            there = "abcad"[:lines]
            assert sorted(known(store, *"abcd")) == sorted(set(there))
            assert store.totals.truncated == len(set(there)) - ("c" in there) - (lines > 3)
        assert sorted(finish(out)) == sorted(set(there))
        of_a = [len(row["metrics"]) for row in rows(out) if row["bitlink"] == "bit.ly/a"]
        assert of_a == ([1 if lines > 3 else 50] if lines else [])


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_held_outlives_the_journals_that_were_published_meanwhile(tmp_path: Path, form: str) -> None:
    location = resolve(str(tmp_path / form))
    with open_dataset(location, QUERY, PartLimits(1, 1_000_000), print) as store:
        hold(store, "a", "b")
        for name in ("c", "d", "b"):
            settle(store, name)
            keep(store)
        assert sorted(row["bitlink"] for row in rows(tmp_path / form)) == ["bit.ly/b", "bit.ly/c", "bit.ly/d"]
    for _ in range(2):
        assert sorted(finish(tmp_path / form)) == ["a", "b", "c", "d"]


def test_a_row_that_was_held_is_dropped_if_a_published_one_had_followed_it(tmp_path: Path) -> None:
    """The published row's line in the journal is damaged, so that it does not show there."""
    out = tmp_path / "results.ndjson"
    with dataset(out) as store:
        hold(store, "a")
        settle(store, "a", "b")
        keep(store)
        lines = journal(out).read_bytes().splitlines(keepends=True)
    path = out.with_name(out.name + ".harvester") / "journal-00000.journal"
    path.write_bytes(lines[0] + b"x" * (len(lines[1]) - 1) + b"\n" + lines[2])
    assert finish(out) == ["a", "b"]


@pytest.mark.parametrize("form", FORMS)
def test_a_refreshed_row_that_was_held_follows_the_one_that_is_published(tmp_path: Path, form: str) -> None:
    """Twice: another run in the same window does not have it again."""
    later = replace(QUERY, unit_reference="2026-12-23T00:00:00Z")
    limits, location = PartLimits(1000, 1_000_000), resolve(str(tmp_path / form))
    with dataset(tmp_path / form) as store:
        settle(store, "a", "b")
        store.end_part()
        keep(store)
    for known in (2, 2, 2):
        with open_dataset(location, later, limits, print, refreshing=True) as store:
            assert store.totals.rows == known
            if not store.refreshed:
                hold(store, "a")
            store.end_part()
            keep(store)
    found = [(row["bitlink"], row["unit_reference"]) for row in rows(tmp_path / form)]
    assert sorted(found) == [
        ("bit.ly/a", QUERY.unit_reference),
        ("bit.ly/a", later.unit_reference),
        ("bit.ly/b", QUERY.unit_reference),
    ]


def settle_as(store: Dataset, name: str, state: CallState) -> None:
    bitlink = f"bit.ly/{name}"
    key = store.rows.key(bitlink)
    found = store.ledger.known([key])
    line = store.rows.failure(state.name.lower(), bitlink=bitlink, file="f", line=1)
    if state is CallState.ROW:
        line = store.rows.row(bitlink, key, Answer([], 0, 30, None), "2026-11-23T00:00:00Z")
    store.record(key, state, line, found[key].state if found else None)


@pytest.mark.slow
@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("form", FORMS)
@ANY_CUT
def test_what_rows_lack_is_counted_with_the_rows_that_any_cut_leaves(
    quick_path: Path, form: str, committed: bool, stride: int
) -> None:
    query, names, source = replace(QUERY, units=90, size=2), ["whole", "cut-a", "no-b", "cut-c"], quick_path / "source"
    source.mkdir()
    with dataset(source / form, query=query) as store:
        settle(store, *names)
        if committed:
            keep(store)
    whole = journal(source / form).read_bytes()
    for _, out in each_cut(source, form, cuts(whole, stride)):
        with dataset(out, query=query) as store:
            left, totals = known(store, *names), store.totals
            lacking = sum(name.startswith("cut") for name in left)
            assert (totals.truncated, totals.clipped) == (lacking, lacking)
            settle(store, *(set(names) - set(left)))
            keep(store)
        with dataset(out, query=query) as store:
            assert store.totals == (3, 1, 0, 2, 2, 0)


def counted(store: Dataset) -> AttemptCounts:
    return AttemptCounts.among(store.ledger.facts())


def test_attempts_since_the_last_commit_are_counted_by_the_next_run(quick_path: Path) -> None:
    out = quick_path / "out"
    with dataset(out) as store:
        store.count("total", 3)
        keep(store)
        store.record_attempts(AttemptCounts(7, 2, 1, 1))  # a kill comes before the next commit
    with dataset(out) as store:
        assert counted(store) == AttemptCounts(7, 2, 1, 1)
        store.record_attempts(AttemptCounts(2, 0, 0, 1))
        store.count("total", 2)
        store.count("helper", 1)
        keep(store)
    for _ in range(2):  # what is counted is not counted again
        with dataset(out) as store:
            assert counted(store) == AttemptCounts(9, 2, 1, 2)


@pytest.mark.parametrize(
    "text", [None, b"", b"1 2 3 4\n", b"%020d " * 3, b"\0" * 84, b"%020d %020d %020d %020d\n" % (2, 0, 0, 0)]
)
def test_attempts_that_a_power_cut_took_back_are_those_of_the_ledger(quick_path: Path, text: bytes | None) -> None:
    out = quick_path / "out"
    with dataset(out) as store:
        store.record_attempts(AttemptCounts(5))
        store.count("total", 5)
        keep(store)
    (out / "_harvester" / "attempts").unlink()
    if text is not None:
        (out / "_harvester" / "attempts").write_bytes(text)
    with dataset(out) as store:
        assert counted(store) == AttemptCounts(5)


def test_an_attempt_that_cannot_be_recorded_is_an_error(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dataset(quick_path / "out") as store:
        monkeypatch.setattr(os, "pwrite", lambda *_: 3)
        with pytest.raises(OutputError, match="attempts: no space left"):
            store.record_attempts(AttemptCounts(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_ledger_of_another_version_is_refused(quick_path: Path, form: str) -> None:
    out = quick_path / form
    with dataset(out) as store:
        settle(store, "a")
        keep(store)
        store.ledger.replace_facts({"schema": 2})
    message = "schema 2, and this harvester supports 6; use the one that made it"
    with pytest.raises(OutputError, match=message), dataset(out):
        pass
    with pytest.raises(OutputError, match=message), peek(resolve(str(out)), QUERY):
        pass


@pytest.mark.parametrize("form", FORMS)
def test_a_journal_that_is_gone_costs_only_what_was_not_published(quick_path: Path, form: str) -> None:
    with dataset(quick_path / form) as store:
        settle(store, "a", "b")
        keep(store)
    journal(quick_path / form).unlink()
    with dataset(quick_path / form) as store:
        left = known(store, "a", "b")
        assert left == ([] if form == "out" else ["a", "b"])
        settle(store, *({"a", "b"} - set(left)), "c")
    assert sorted(finish(quick_path / form)) == ["a", "b", "c"]


def damage(out: Path, *numbers: int, byte: int = 60) -> None:
    """Flip a bit of these lines of the journal, counted from 1. byte: its place in the line."""
    lines = journal(out).read_bytes().splitlines(keepends=True)
    for number in numbers:
        line = bytearray(lines[number - 1])
        line[byte] ^= 1
        lines[number - 1] = bytes(line)
    journal(out).write_bytes(b"".join(lines))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("byte", [0, 20, 60, -1], ids=["sum", "key", "row", "line feed"])
def test_a_damaged_line_costs_its_own_call_and_no_other(
    quick_path: Path, form: str, committed: bool, number: int, byte: int
) -> None:
    """The growing file has the row already where it was committed; and a line feed alone is put back."""
    out, names, warnings = quick_path / form, ["a", "no-b", "c", "d"], list[str]()
    with dataset(out) as store:
        settle(store, *names)
        if committed:
            keep(store)
    damage(out, number, byte=byte)
    torn_tail = not committed and number == len(names)
    costs = byte != -1 and not (committed and form == "results.ndjson" and number != 2)
    with dataset(out, warnings) as store:
        left = [name for at, name in enumerate(names, 1) if at != number or not costs]
        assert sorted(known(store, *names)) == sorted(left)
        settle(store, *sorted(set(names) - set(left)))
    assert len(warnings) == (byte != -1 and not torn_tail)
    if warnings:
        assert warnings[0].startswith(f"{journal(out)}:{number}: ")
        assert "1 damaged line in the journal" in warnings[0]
    assert sorted(finish(out)) == ["a", "c", "d"]
    with dataset(out) as store:
        assert store.totals[:3] == (3, 1, 0)


@pytest.mark.parametrize("form", FORMS)
def test_damage_over_several_lines_costs_these(quick_path: Path, form: str) -> None:
    out, names, warnings = quick_path / form, ["a", "b", "c", "d", "e"], list[str]()
    with dataset(out) as store:
        settle(store, *names)
    whole = journal(out).read_bytes()
    ends = [0, *(at + 1 for at, byte in enumerate(whole) if byte == ord("\n"))]
    journal(out).write_bytes(whole[: ends[1] + 9] + bytes(ends[2] + 30 - ends[1] - 9) + whole[ends[2] + 30 :])
    with dataset(out, warnings) as store:
        assert sorted(known(store, *names)) == ["a", "d", "e"]
    assert [warning.split()[0] for warning in warnings] == [f"{journal(out)}:2:"]
    assert finish(out) == ["a", "d", "e"]


@pytest.mark.parametrize("form", FORMS)
def test_a_bad_last_line_that_was_not_committed_is_a_torn_write(quick_path: Path, form: str) -> None:
    warnings = list[str]()
    with dataset(quick_path / form) as store:
        settle(store, "a", "b", "c")
    damage(quick_path / form, 3)
    with dataset(quick_path / form, warnings) as store:
        assert sorted(known(store, "a", "b", "c")) == ["a", "b"]
    assert warnings == []
    assert finish(quick_path / form) == ["a", "b"]


def test_what_a_follower_has_read_is_completed_and_never_withdrawn(quick_path: Path) -> None:
    out, state = quick_path / "results.ndjson", quick_path / "results.ndjson.harvester"
    with dataset(out) as store:
        for name in ("a", "b", "c"):
            settle(store, name)
            keep(store)
        checkpoint = store.ledger.checkpoint().bytes
    whole = out.read_bytes()
    assert 0 < checkpoint < len(whole), "some rows were appended behind the checkpoint"
    shutil.copytree(state, quick_path / "kept")
    for size in range(checkpoint, len(whole) + 1):
        shutil.rmtree(state)
        shutil.copytree(quick_path / "kept", state)
        out.write_bytes(whole[:size])
        inode = out.stat().st_ino
        assert finish(out) == ["a", "b", "c"]
        assert out.read_bytes() == whole
        assert out.stat().st_ino == inode


class FullDisk:
    """Stands before the os module: the disk has room for 100 bytes more."""

    def __init__(self) -> None:
        self._room = 100

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(descriptor, data[: self._room])
        self._room -= written
        return written


def test_an_append_that_fails_half_way_is_completed_once_there_is_room(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b")
        with monkeypatch.context() as full:
            full.setattr(appended_file, "os", FullDisk())
            with pytest.raises(OutputError, match="No space left"):
                keep(store)
        begun = out.read_bytes()
        settle(store, "c")
        keep(store)
        assert out.read_bytes().startswith(begun)
    assert finish(out) == ["a", "b", "c"]


def test_failures_that_could_not_be_written_hold_up_no_other_thread(quick_path: Path) -> None:
    with dataset(quick_path / "out") as store, ThreadPoolExecutor(1) as other:
        settle(store, "no-a", "no-b")
        keep(store)
        lines = store.ledger.failure_lines()
        next(lines)  # and then the disk was full
        try:
            assert other.submit(store.ledger.journals).result(timeout=10)
        finally:
            del lines


def test_the_failures_are_given_in_their_order_page_by_page(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvester.dataset.ledger._PAGE_LINES", 2)
    names = ["no-a", "no-b", "no-c", "no-d", "no-e"]
    with dataset(quick_path / "out") as store:
        settle(store, *names)
        for bad in ("x", "y", "z"):
            store.note_invalid(store.rows.failure("invalid", file="f", line=1, text=bad))
        keep(store)
        found = [orjson.loads(each) for each in store.ledger.failure_lines()]
    assert [each["bitlink"] or each["text"] for each in found] == [*(f"bit.ly/{name}" for name in names), *"xyz"]


class Stalling:
    """A reader that takes a row, is slow until it is given up, and then goes on."""

    uncommitted_limit = 100
    awaits_reader = False

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.asked = 0

    def write(self, line: bytes) -> None:
        self.asked += 1
        if self.asked == 2:
            raise OutputError("takes no more rows")
        self.taken.append(orjson.loads(line)["bitlink"])

    def check(self) -> None:
        """It still exists."""

    shorten_waits = leave = check


def test_a_reader_that_was_given_up_gets_no_row_twice() -> None:
    reader = Stalling()
    with (
        located("-", None) as location,
        open_dataset(location, QUERY, PartLimits(1000, 1_000_000), print, sink=reader) as store,
    ):
        settle(store, "a", "b", "c")
        for _ in range(2):
            with pytest.raises(OutputError, match="takes no more rows"):
                store.commit(store.take_batch())
    assert reader.taken == ["bit.ly/a"]


def test_bytes_of_another_program_in_the_growing_file_are_refused(quick_path: Path) -> None:
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a")
        keep(store)
    with out.open("ab") as stream:
        stream.write(b'{"not":"ours"}\n')
    with pytest.raises(OutputError, match="another program"), dataset(out):
        pass


def test_zeros_that_a_power_failure_left_are_cut(quick_path: Path) -> None:
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a")
        keep(store)
    with out.open("ab") as stream:
        stream.write(b"\0" * 5000)
    assert finish(out) == ["a"]
    assert b"\0" not in out.read_bytes()


def test_a_growing_file_that_a_power_failure_left_with_holes_is_completed(quick_path: Path) -> None:
    """Any block that was not synced may be missing, also before one that is there."""
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b")
        keep(store)
    whole = out.read_bytes()
    for start, end in ((0, 700), (100, 200), (len(whole) - 300, len(whole) - 10), (0, len(whole))):
        out.write_bytes(whole[:start] + b"\0" * (end - start) + whole[end:])
        with dataset(out):
            pass
        assert out.read_bytes() == whole
    out.write_bytes(whole[:100] + b"\0" * 100 + b"x" + whole[201:])
    with pytest.raises(OutputError, match="another program, after byte 100:"), dataset(out):
        pass


def test_a_growing_file_that_was_replaced_before_the_end_keeps_its_journal(quick_path: Path) -> None:
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b")
        keep(store)
        out.rename(quick_path / "results.ndjson.1")
        out.write_bytes((quick_path / "results.ndjson.1").read_bytes())
        store.end_part()
        for _ in range(2):
            with pytest.raises(OutputError, match="was moved away"):
                keep(store)
    assert journal_sizes(out) != [0]
    assert sorted(finish(out)) == ["a", "b"]


def journal_sizes(out: Path) -> list[int]:
    return [each.stat().st_size for each in sorted(out.with_name(out.name + ".harvester").glob("journal-*.log"))]


def test_a_growing_file_with_lost_and_with_kept_rows_can_be_cut_later(quick_path: Path) -> None:
    """The journal lost rows that the file has: from then on the file's end cannot be told from the journal alone."""
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b", "c")
        keep(store)
    whole = out.read_bytes()
    os.truncate(journal(out), journal(out).read_bytes().index(b"\n") + 1)
    with dataset(out, []) as store:
        settle(store, "d")
        keep(store)
    os.truncate(out, len(whole) + 10)
    assert finish(out) == ["a", "b", "c", "d"]


def test_a_growing_file_that_was_cut_is_completed_from_the_journal(quick_path: Path) -> None:
    out, warnings = quick_path / "results.ndjson", list[str]()
    with dataset(out) as store:
        settle(store, "a", "b")
        keep(store)
        store.count("total")
        keep(store)  # with the checkpoint
    whole = out.read_bytes()
    for size in range(1, len(whole), 97):
        os.truncate(out, size)
        with dataset(out, warnings):
            pass
        assert out.read_bytes() == whole
        assert warnings.pop() == f"{out} has {size} bytes, expected {len(whole)}: the rest is written again"
    for content in (b"", b"x" + whole[1:-1], whole[:-1] + b"x", b"x" * 10):
        out.write_bytes(content)
        with pytest.raises(OutputError, match=r"or emptied|was changed from byte"), dataset(out):
            pass


def test_a_growing_file_that_was_cut_is_refused(quick_path: Path) -> None:
    out = quick_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b")
        keep(store)
    finish(out)
    with out.open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(OutputError, match=r"it was truncated\. Restore the rows\. If"), dataset(out):
        pass


def test_of_a_growing_file_that_was_cut_what_no_journal_has_is_enough(quick_path: Path) -> None:
    out = quick_path / "results.ndjson"
    limits = PartLimits(2, 1_000_000)  # so that the rows of a and b have a journal of their own, which goes
    with open_dataset(resolve(str(out)), QUERY, limits, print) as store:
        for name in "abc":
            settle(store, name)
            keep(store)
        store.count("total")
        keep(store)  # with the checkpoint behind c
        ends = [0, *(place for place, byte in enumerate(out.read_bytes(), 1) if byte == ord("\n"))]
    with dataset(out):
        pass
    os.truncate(out, ends[2] - 1)
    enough = f"Restore the rows \\(its first {ends[2]} bytes are enough\\)\\. If"
    with pytest.raises(OutputError, match=enough), dataset(out):
        pass


def test_rows_whose_journal_lost_their_lines_are_kept_and_counted_by_the_growing_file(quick_path: Path) -> None:
    out, warnings = quick_path / "results.ndjson", list[str]()
    with open_dataset(resolve(str(out)), QUERY, PartLimits(2, 1_000_000), print) as store:
        for name in "abc":
            settle(store, name)
            keep(store)
    assert journal(out).name == "journal-00001.journal"
    os.truncate(journal(out), 0)
    with dataset(out, warnings) as store:
        assert sorted(known(store, "a", "b", "c", "d")) == ["a", "b", "c"]
        settle(store, "d")
        keep(store)
    assert [text.split(" (")[0] for text in warnings] == ["committed lines are missing from the journal"]
    assert finish(out) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("form", FORMS)
def test_a_journal_that_lost_a_line_without_a_trace_costs_its_call(quick_path: Path, form: str) -> None:
    """An older copy, or an editor: every line is good, but the committed length is across one."""
    out, warnings = quick_path / form, list[str]()
    with dataset(out) as store:
        settle(store, "no-a", "b", "c")
        store.commit(store.take_batch())
        settle(store, "with-a-long-name")
    lines = journal(out).read_bytes().splitlines(keepends=True)
    journal(out).write_bytes(b"".join(lines[1:]))
    with dataset(out, warnings) as store:
        assert sorted(known(store, "no-a", "b", "c", "with-a-long-name")) == ["b", "c", "with-a-long-name"]
        settle(store, "no-a")
    assert [text.split(" (")[0] for text in warnings] == ["committed lines are missing from the journal"]
    assert finish(out) == ["b", "c", "with-a-long-name"]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_a_newer_one_has_followed_is_counted_through_restarts(quick_path: Path, form: str) -> None:
    location, refreshed = resolve(str(quick_path / form)), list[int]()
    for run in range(4):
        query = replace(QUERY, unit_reference=f"2026-11-{20 + run}T00:00:00Z")
        with open_dataset(location, query, PartLimits(2, 2**20), print, refreshing=True) as store:
            refreshed.append(store.refreshed)
            key = store.rows.key("bit.ly/a")
            row = store.rows.row("bit.ly/a", key, Answer([], 0, 90, None), "2026-11-23T00:00:00Z")
            store.record(key, CallState.ROW, row, CallState.ROW if run else None)
            if run != 2:  # which ends without a commit
                keep(store)
            settle(store, f"no-b{run}")
            assert store.refreshed == run
    assert refreshed == [0, 0, 1, 2]
    with open_dataset(location, query, PartLimits(2, 2**20), print, refreshing=True) as store:
        last = store.ledger.known([store.rows.key("bit.ly/no-b3")])
        assert [each.asked_at for each in last.values()] == [seconds_since_1970(query.unit_reference)]


def test_lost_and_damaged_lines_are_told_by_their_number(quick_path: Path) -> None:
    out, warnings = quick_path / "out", list[str]()
    with dataset(out) as store:
        settle(store, "a", "no-b", "c", "no-d", "e")
        store.commit(store.take_batch())
    path, text = journal(out), journal(out).read_bytes()
    lines = text.splitlines(keepends=True)
    told = []
    for damaged in (b"".join(lines[:2]), text.replace(lines[1][:9], b"x" * 9)):
        copy = out.with_name("copy")
        shutil.copytree(out, copy)
        (copy / path.relative_to(out)).write_bytes(damaged)
        with dataset(copy, warnings):
            told.append(warnings.pop().removeprefix(str(copy / path.relative_to(out))).split(" (")[0])
        shutil.rmtree(copy)
    assert told == [
        "3 committed calls are missing from the journal",
        ":2: 1 damaged line in the journal",
    ]
    path.write_bytes(b"x" + lines[0][1:] + lines[1] + b"x" + b"".join(lines[2:])[1:])
    with dataset(out, warnings):
        assert warnings.pop().startswith(f"{path}:1, 3: 2 damaged lines in the journal (a failing disk")


def test_parts_that_were_being_written_are_deleted_and_no_other_file(quick_path: Path) -> None:
    out = quick_path / "out"
    finish(out)
    others = {".part-of-something", "notes.tmp", "part-of-something.tmp"}
    for name in {".part-0123456789ab-00000.tmp", *others}:
        (out / name).touch()
    finish(out)
    assert {path.name for path in out.iterdir() if "part" in path.name or path.suffix == ".tmp"} == others


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_ledger_is_refused(quick_path: Path, form: str) -> None:
    with dataset(quick_path / form) as store:
        settle(store, "a")
        keep(store)
    journal(quick_path / form).with_name("ledger.sqlite").unlink()
    with pytest.raises(OutputError, match="is missing"), dataset(quick_path / form):
        pass


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", [0, 4096 + 3])
def test_a_damaged_ledger_is_refused(quick_path: Path, form: str, where: int) -> None:
    with dataset(quick_path / form) as store:
        settle(store, *(f"link-{i}" for i in range(2000)))
        keep(store)
    ledger = journal(quick_path / form).with_name("ledger.sqlite")
    with ledger.open("r+b") as stream:
        stream.seek(where)
        stream.write(b"\xff" * 64)
    with pytest.raises(OutputError, match="the ledger is damaged"), dataset(quick_path / form):
        pass


@pytest.mark.parametrize("moved", [False, True], ids=["part there", "part moved away by a loader"])
def test_a_ledger_older_than_its_output_is_refused(quick_path: Path, moved: bool) -> None:
    out, backup = quick_path / "out", quick_path / "backup"
    with dataset(out) as store:
        settle(store, "a")
        keep(store)
    shutil.copytree(out / "_harvester", backup)
    finish(out)
    (part,) = out.glob("part-*")
    if moved:
        (out / "_manifest.json").write_bytes(orjson.dumps({"parts": [{"path": part.name}]}))
        part.unlink()
    shutil.rmtree(out / "_harvester")
    shutil.copytree(backup, out / "_harvester")
    with pytest.raises(OutputError, match="older than this output"), dataset(out):
        pass


def test_a_second_process_is_refused(quick_path: Path) -> None:
    with (
        dataset(quick_path / "out"),
        pytest.raises(DatasetBusy, match="another harvester"),
        dataset(quick_path / "out"),
    ):
        pass


def test_a_part_that_a_loader_moved_away_stays_settled(quick_path: Path) -> None:
    out = quick_path / "out"
    with dataset(out) as store:
        settle(store, "a")
    assert finish(out) == ["a"]
    for part in out.glob("part-*"):
        part.unlink()
    with dataset(out) as store:
        assert known(store, "a") == ["a"]
    assert finish(out) == []


def test_a_work_dir_belongs_to_one_output(quick_path: Path) -> None:
    work = quick_path / "work"
    with dataset(quick_path / "one", work_dir=work) as store:
        settle(store, "a")
    with (
        pytest.raises(UsageError, match=r"^--work-dir .* belongs to --out"),
        dataset(quick_path / "two", work_dir=work),
    ):
        pass


def test_a_work_dir_whose_name_begins_like_the_output_belongs_to_its_own(quick_path: Path) -> None:
    with dataset(quick_path / "lake1", work_dir=quick_path / "lake1-work") as store:
        settle(store, "a")
    with (
        pytest.raises(UsageError, match="belongs to --out"),
        dataset(quick_path / "lake", work_dir=quick_path / "lake1-work"),
    ):
        pass


def test_what_somebody_makes_of_a_part_is_theirs(quick_path: Path) -> None:
    out = quick_path / "out"
    with dataset(out) as store:
        settle(store, "a")
    finish(out)
    for part in out.glob("part-*"):
        part.rename(part.with_name(part.name + ".gz"))
    with dataset(out) as store:
        assert known(store, "a") == ["a"]


def test_something_in_the_way_of_a_part_is_named_each_time(quick_path: Path) -> None:
    out = quick_path / "out"
    with dataset(out) as store:
        settle(store, "a")
        (out / f"part-{store.run_id}-00000.ndjson.gz").mkdir()
        store.end_part()
        for _ in range(2):
            with pytest.raises(OutputError, match="move it away"):
                keep(store)
    next(out.glob("part-*")).rmdir()
    assert finish(out) == ["a"]


def test_a_run_without_a_verdict_pins_nothing(quick_path: Path) -> None:
    with dataset(quick_path / "out"):
        pass
    location, other = resolve(str(quick_path / "out")), replace(QUERY, facet="countries")
    with open_dataset(location, other, PartLimits(1000, 1_000_000), list[str]().append) as store:
        assert store.query == other


def test_rows_of_two_servers_do_not_come_into_one_dataset(quick_path: Path) -> None:
    """Until there is a verdict the server may change, as the query may."""
    location, limits, said = resolve(str(quick_path / "out")), PartLimits(1000, 1_000_000), list[str]()
    with dataset(quick_path / "out"):
        pass
    with open_dataset(location, QUERY, limits, said.append, server="127.0.0.1") as store:
        settle(store, "no")
        keep(store)
    refused = pytest.raises(UsageError, match=r"started against 127\.0\.0\.1, and --base-url names api-ssl\.bitly\.com")
    with refused, dataset(quick_path / "out"):
        pass
    with refused, peek(location, QUERY):
        pass
    with peek(location, QUERY, server="127.0.0.1") as snapshot:
        assert snapshot.calls == 1


def test_a_lost_work_dir_buys_nothing_twice(quick_path: Path) -> None:
    work = quick_path / "work"
    with dataset(quick_path / "out", work_dir=work) as store:
        settle(store, "a")
        store.end_part()
        keep(store)
    shutil.rmtree(work)
    with pytest.raises(OutputError, match="was started before"), dataset(quick_path / "out", work_dir=work):
        pass


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("answer", [True, False], ids=["by an answer", "at the end"])
def test_a_state_that_is_gone_when_a_journal_ends_is_written_again(tmp_path: Path, form: str, answer: bool) -> None:
    """The journal is full, or the run over, and no other journal can be created."""
    location, limits = resolve(str(tmp_path / form)), PartLimits(3, 2**20)
    with open_dataset(location, QUERY, limits, print) as store:
        settle(store, "a")
        store.commit(store.take_batch())
        settle(store, "b")
        shutil.rmtree(location.private)
        with pytest.raises(OutputError) as raised:
            settle(store, "c") if answer else store.end_part()
        error = store.cause_of(raised.value)
        assert "by another program while the run had it open" in str(error)
        assert os.path.exists(location.ledger)
    with open_dataset(location, QUERY, limits, print) as store:
        assert sorted(known(store, "a", "b", "c")) == ["a", "b", *(["c"] if answer else [])]


@pytest.mark.parametrize("damage", ["an old backup", "a byte of its log"])
def test_a_ledger_older_than_the_growing_file_is_refused_and_repaired(tmp_path: Path, damage: str) -> None:
    """What SQLite does not find in a damaged log it drops without a word."""
    out, names = tmp_path / "was" / "results.ndjson", [f"n{number}" for number in range(12)]
    with open_dataset(resolve(str(out)), QUERY, PartLimits(2, 2**20), print) as store:
        ledger = Path(store.location.ledger)
        for number, name in enumerate(names):
            settle(store, name)
            store.commit(store.take_batch())
            if number == 4:
                log = ledger.with_name("ledger.sqlite-wal").stat().st_size
                shutil.copytree(tmp_path / "was", tmp_path / "then")
        shutil.copytree(tmp_path / "was", tmp_path / "killed")
    out = tmp_path / "killed" / "results.ndjson"
    private = out.with_name("results.ndjson.harvester")
    if damage == "an old backup":
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):
            shutil.copy(tmp_path / "then" / private.name / name, private / name)
    else:
        with (private / "ledger.sqlite-wal").open("r+b") as stream:
            stream.seek(log + 1000)
            stream.write(b"\xff\x00\xff")
    with pytest.raises(OutputError, match=r"is older than .*harvester repair .* --apply"):
        finish(out)
    assert repair(str(out), None, None, apply=True, ask_again=False).applied
    with dataset(out) as store:
        assert sorted(known(store, *names)) == sorted(names)
    assert sorted(finish(out)) == sorted(names)


@pytest.mark.parametrize("number", [0, 3])
def test_a_ledger_that_does_not_know_a_part_is_refused_and_repaired(tmp_path: Path, number: int) -> None:
    """The older one may even be as it was before the first call, when a run may still choose another query."""
    out, names = tmp_path / "was" / "out", [f"n{number}" for number in range(6)]
    with open_dataset(resolve(str(out)), QUERY, PartLimits(2, 2**20), print) as store:
        for name in [*names, ""]:
            if name == names[number]:
                shutil.copytree(out / "_harvester", tmp_path / "then")
            if name:
                settle(store, name)
            store.commit(store.take_batch())
            store.publish()
        shutil.copytree(tmp_path / "was", tmp_path / "killed")
    out = tmp_path / "killed" / "out"
    for path in (out / "_harvester").iterdir():
        path.unlink()
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        shutil.copy(tmp_path / "then" / name, out / "_harvester" / name)
    with pytest.raises(OutputError, match=r"part-.*-0000[01]\..* is not in the ledger.*harvester repair"):
        finish(out)
    assert repair(str(out), None, None, apply=True, ask_again=False).applied
    with dataset(out) as store:
        assert sorted(known(store, *names)) == sorted(names)
    assert sorted(finish(out)) == sorted(names)


def test_a_damaged_row_in_the_growing_file_is_no_bug(tmp_path: Path) -> None:
    out = tmp_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b")
        store.commit(store.take_batch())
    journal(out).unlink()
    out.write_bytes(out.read_bytes().replace(b'"record_id":"', b'"record_id":"\xff', 1))
    with suppress(OutputError), dataset(out) as store:
        store.end_part()
        keep(store)
    with pytest.raises(UnicodeDecodeError):
        rows(out)  # it was left as it was


def test_keys_are_those_of_whole_rows_and_damaged_ones_have_none(tmp_path: Path) -> None:
    out = tmp_path / "results.ndjson"
    with dataset(out) as store:
        settle(store, "a", "b")
        keep(store)
        publisher = FilePublisher(store.location, store.ledger)
        first, second = out.read_bytes().splitlines()
        row = orjson.loads(first)
        damaged = [row | {"bitlink": 7}, row | {"unit_reference": 7}, row | {"unit_reference": "soon"}, {}, [row]]
        out.write_bytes(b"\n".join([first, *map(orjson.dumps, damaged), b"{", second, first]))  # the last is torn
        assert list(publisher.published_keys()) == [store.rows.key("bit.ly/a"), store.rows.key("bit.ly/b")]
        publisher.close()
        out.write_bytes(first + b"\n" + second + b"\n")


def test_an_error_that_nobody_else_has_caused_stays_what_it_is(tmp_path: Path) -> None:
    with dataset(tmp_path / "out") as store:
        error = OutputError("no space left")
        assert store.cause_of(error) is error


def test_a_reader_that_takes_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(stream_publisher, "_STDOUT", writing)
    monkeypatch.setattr(stream_publisher, "_POLL_MILLISECONDS", 1)
    sink = stream_publisher.StdoutSink()
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(sink.write, b"x" * 2**20)
        while not sink.awaits_reader:
            time.sleep(0.001)
        read = 0
        while read < 2**20:
            read += len(os.read(reading, 2**20))
        written.result()
    assert not sink.awaits_reader
    os.close(reading)
    os.close(writing)
