"""What a damaged journal still holds: every line that is whole, in its place."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvester.dataset.journal import (
    RECENT_FAILURES,
    VOID,
    Gap,
    Journal,
    PartLimits,
    encode,
    forget_failures,
    good_lines,
    mend,
    read,
    remove,
    segment_path,
    segments,
    survey,
)
from harvester.dataset.sidecars import AttemptFile, read_attempts
from harvester.errors import OutputError
from harvester.progress import AttemptCounts
from tests.conftest import quick_folder

LINES = [encode(bytes([number]) * 16, number % 3, b'{"n":%d}' % number * (1 + number % 4)) for number in range(8)]
ENDS = [sum(map(len, LINES[: count + 1])) for count in range(len(LINES))]


@given(st.lists(st.tuples(st.integers(0, ENDS[-1] - 1), st.integers(1, 255)), max_size=5), st.booleans())
@settings(max_examples=300)
def test_every_line_that_no_damage_has_touched_is_kept_in_its_place(
    damage: list[tuple[int, int]], committed: bool
) -> None:
    data = bytearray(b"".join(LINES))
    for position, change in damage:
        data[position] ^= change
    with quick_folder() as folder:
        path = str(folder / "journal-00000.journal")
        Path(path).write_bytes(data)
        length = ENDS[-1] * committed
        found = survey(path, length)
        whole = {start: record.payload for start, record in good_lines(path)}
        mend(path, found, length)
        assert os.path.getsize(path) == len(data)
        records = list(read(path, 0))
        for start, end, line in zip([0, *ENDS], ENDS, LINES, strict=False):
            if data[start : end - 1] == line[:-1]:  # a damaged line feed does no harm
                assert whole[start] == line[44:-1]
                assert (line[44:-1], end) in {(record.payload, record.end) for record in records}
        assert records[-1].end == found.end if records else not found.end
        assert not survey(path, length).gaps
        assert all(record.payload in {line[44:-1] for line in LINES} or record.state == VOID for record in records)


def test_failures_outlive_their_journal_until_the_failures_file_is_written(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 0)
    for number, state in enumerate((0, 1, 2)):
        journal.append(bytes([number]) * 16, state, b"{}")
    journal.close()
    remove(str(tmp_path), 0)
    remove(str(tmp_path), 0)
    kept = [record.state for _, record in good_lines(str(tmp_path / RECENT_FAILURES))]
    assert kept == [1, 2]
    assert not os.path.exists(segment_path(str(tmp_path), 0))
    for _ in range(2):
        forget_failures(str(tmp_path))
        assert os.listdir(tmp_path) == []


PIECES = st.lists(st.sampled_from(LINES) | st.binary(max_size=60), max_size=9)


@given(PIECES.map(b"".join), st.integers(0, 400))
def test_a_journal_of_any_bytes_is_mended_once(data: bytes, committed: int) -> None:
    with quick_folder() as folder:
        path = str(folder / "journal-00000.journal")
        Path(path).write_bytes(data)
        found = survey(path, committed)
        assert 0 <= found.end <= found.size == len(data)
        before = [record.payload for _, record in good_lines(path) if record.state != VOID]
        mend(path, found, committed)
        assert os.path.getsize(path) == len(data)
        again = survey(path, committed)
        assert (again.end, again.gaps) == (found.end, [])
        records = list(read(path, 0))
        assert [record.payload for record in records if record.state != VOID] == before


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 2), st.binary(max_size=40)), max_size=6))
def test_what_was_appended_is_read(entries: list[tuple[bytes, int, bytes]]) -> None:
    entries = [(key, state, payload.replace(b"\n", b"")) for key, state, payload in entries]
    with quick_folder() as folder:
        journal = Journal(str(folder), 0)
        for entry in entries:
            journal.append(*entry)
        journal.close()
        path = segment_path(str(folder), 0)
        assert [record[:3] for record in read(path, 0)] == entries
        assert survey(path, 0).end == os.path.getsize(path)


def test_journals_are_listed_by_segment_and_other_files_are_none(tmp_path: Path) -> None:
    for segment in (10, 9, 123_456):
        Path(segment_path(str(tmp_path), segment)).touch()
    for name in ("journal-7.journal", "journal-00001.journal.tmp", "xjournal-00001.journal", RECENT_FAILURES):
        (tmp_path / name).touch()
    assert segments(str(tmp_path)) == [9, 10, 123_456]


def test_lines_are_read_from_a_position_to_another_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "journal-00000.journal"
    path.write_bytes(b"".join(LINES))
    assert [record.end for record in read(str(path), ENDS[1], ENDS[3])] == ENDS[2:4]
    assert [record.end for record in read(str(path), ENDS[1], ENDS[3] - 1)] == ENDS[2:3]
    assert list(read(str(tmp_path / "none"), 0)) == []
    assert survey(str(tmp_path / "none")).size == 0


def test_damage_is_told_by_its_place_and_the_number_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal-00000.journal"
    damaged = bytearray(b"".join(LINES))
    damaged[ENDS[0] + 50 : ENDS[0] + 53] = b"\nx\n"  # within the second line
    damaged[-5] = 0
    path.write_bytes(damaged)
    found = survey(str(path), ENDS[3])
    assert (found.size, found.end, found.aligned) == (ENDS[-1], ENDS[-2], True)
    assert found.gaps == [Gap(ENDS[0], ENDS[1], 2)]
    assert [start for start, _ in good_lines(str(path))] == [0, *ENDS[1:-2]]
    assert not survey(str(path), ENDS[3] - 1).aligned
    assert survey(str(path), ENDS[1]).aligned
    assert mend(str(path), found, ENDS[-1]) == [2, 10]
    assert [record.state for record in read(str(path), 0)] == [0, VOID, 2, 0, 1, 2, 0, VOID]
    assert mend(str(path), survey(str(path), ENDS[-1]), ENDS[-1]) == []


def journal_with(tmp_path: Path, rows: int, row_bytes: int, payload: bytes = b"{}") -> Journal:
    journal = Journal(str(tmp_path), 0)
    journal.append(bytes(16), 0, payload, rows, row_bytes)
    journal.close()
    return journal


@pytest.mark.parametrize(
    ("limits", "full"),
    [
        (PartLimits(10, 1000), True),
        (PartLimits(11, 1000), False),
        (PartLimits(11, 500), True),
        (PartLimits(11, 501), False),
        (PartLimits(11, 501 * 10), False),
    ],
)
def test_a_part_is_full_by_its_rows_or_their_bytes(tmp_path: Path, limits: PartLimits, full: bool) -> None:
    assert limits.full(journal_with(tmp_path, 10, 500)) is full


def test_a_part_is_full_when_failures_alone_have_made_its_journal_long(tmp_path: Path) -> None:
    journal = journal_with(tmp_path, 0, 0, b"x" * (4 * 100 - len(encode(bytes(16), 0, b""))))
    assert journal.size == 400
    assert PartLimits(1, 100).full(journal)
    assert not PartLimits(1, 101).full(journal)


def test_a_part_is_old_by_its_first_row_and_a_clock_that_was_set_back_keeps_none_open(tmp_path: Path) -> None:
    journal = journal_with(tmp_path, 1, 1)
    assert (begun := journal.first_row_at) is not None
    ages = {-1.0: True, 0.0: False, 59.9: False, 61.0: True}
    assert {age: PartLimits(9, 9, 60.0).old(journal, begun + age) for age in ages} == ages
    assert not PartLimits(9, 9).old(journal, begun + 1e9)
    assert not PartLimits(9, 9, 60.0).old(journal_with(tmp_path, 0, 0), begun + 61)


def test_a_journal_counts_what_it_had_and_what_it_gets(tmp_path: Path) -> None:
    journal_with(tmp_path, 1, 1)
    journal = Journal(str(tmp_path), 0, rows=3, row_bytes=30, first_row_at=7.0)
    assert journal.size == os.path.getsize(segment_path(str(tmp_path), 0))
    journal.append(bytes(16), 1, b"{}")
    journal.append(bytes(16), 0, b"{}", 2, 20)
    journal.close()
    assert (journal.rows, journal.row_bytes, journal.first_row_at) == (5, 50, 7.0)
    assert journal.size == os.path.getsize(segment_path(str(tmp_path), 0))


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    for path in (segment_path(str(tmp_path), 0), str(tmp_path / "attempts")):
        os.symlink(tmp_path / "target", path)
    with pytest.raises(OSError, match="symbolic links"):
        Journal(str(tmp_path), 0)
    with pytest.raises(OSError, match="symbolic links"):
        AttemptFile(str(tmp_path), AttemptCounts())


# --- attempts -------------------------------------------------------------------------------------------------------


def test_attempts_of_all_runs_are_in_the_file_before_each_is_sent(tmp_path: Path) -> None:
    assert read_attempts(str(tmp_path)) == AttemptCounts()
    file = AttemptFile(str(tmp_path), AttemptCounts(10, 1, 2, 3))
    for run, expected in (
        (AttemptCounts(1), AttemptCounts(11, 1, 2, 3)),
        (AttemptCounts(2), AttemptCounts(12, 1, 2, 3)),
        (AttemptCounts(3, 1, 1, 1), AttemptCounts(13, 2, 3, 4)),
        (AttemptCounts(4, 1, 1, 1), AttemptCounts(14, 2, 3, 4)),
    ):
        file.write(run)
        assert read_attempts(str(tmp_path)) == expected
    assert file.tampering() is None
    (tmp_path / "attempts").unlink()
    assert file.tampering() is not None
    file.restore()
    file.close()
    assert read_attempts(str(tmp_path)) == AttemptCounts(14, 2, 3, 4)
    with pytest.raises(OutputError, match="attempts: "):
        file.write(AttemptCounts(5))
    (tmp_path / "attempts").write_bytes(b"0" * 20)
    assert read_attempts(str(tmp_path)) == AttemptCounts()
