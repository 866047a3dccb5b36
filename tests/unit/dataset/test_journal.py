"""What a damaged journal still holds: every line that is whole, in its place."""

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from harvester.dataset.journal import (
    RECENT_FAILURES,
    VOID,
    Journal,
    encode,
    forget_failures,
    good_lines,
    mend,
    read,
    remove,
    segment_path,
    survey,
)
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
