"""JSON as harvester reads and writes it."""

import json
import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.jsonlines import as_json, object_in, one_line, whole_lines

NOT_UTF_8 = os.fsdecode(b"list-\xff.txt")


@pytest.mark.parametrize("text", [None, b"", b"{", b"[1]", b"null", b"<html>", b"\xff"])
def test_text_that_is_not_a_json_object_reads_as_an_empty_one(text: bytes | None) -> None:
    assert object_in(text) == {}


@given(st.dictionaries(st.text(), st.text() | st.none() | st.integers(0, 9)))
def test_a_record_of_any_text_is_one_line_to_every_reader(record: dict[str, object]) -> None:
    line = one_line(record)
    assert len(line.decode().splitlines()) == 1
    assert object_in(line) == record


def test_a_file_name_that_is_not_utf_8_is_written_with_an_escape_as_value_and_as_key() -> None:
    found = json.loads(as_json({"file": NOT_UTF_8, "lists": [{NOT_UTF_8: 1}]}, orjson.OPT_INDENT_2))
    assert found == {"file": "list-\\udcff.txt", "lists": [{"list-\\udcff.txt": 1}]}


def test_whole_lines_begin_where_they_are_told_and_leave_out_a_torn_last_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    assert not list(whole_lines(str(path), 0))
    path.write_bytes(b"one\ntwo\nthr")
    assert list(whole_lines(str(path), 0)) == [(4, b"one\n"), (8, b"two\n")]
    assert list(whole_lines(str(path), 4)) == [(8, b"two\n")]
