"""`--carry`: what a list of each form says of its links, and what it may not say."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from harvester.errors import InputBroken, UsageError
from harvester.links.batch import Batch, batch_of_links
from harvester.links.columns import CARRIED_LIMIT
from harvester.links.files import read, resolve_lists
from harvester.progress import Carried
from tests.unit.links.lists import check_counts, merged, reasons, write, write_parquet

LINKS = ["bit.ly/a", "bit.ly/b", "bit.ly/c"]
LONG = "é" * CARRIED_LIMIT


def carried_in(path: str, carry: str, column: str | None = None) -> list[tuple[str, Carried]]:
    return [(link.bitlink, link.carried) for link in batch_in(path, carry, column).links]


def batch_in(path: str, carry: str, column: str | None = None) -> Batch:
    batch = merged(read(resolve_lists([path], column, None, carry)))
    check_counts(batch)
    return batch


def table(*records: tuple[str, ...], separator: str = ",") -> bytes:
    return "".join(separator.join(record) + "\n" for record in records).encode()


@pytest.mark.parametrize(("name", "separator"), [("links.csv", ","), ("links.csv", ";"), ("links.tsv", "\t")])
def test_columns_of_a_table_come_with_its_links(tmp_path: Path, name: str, separator: str) -> None:
    content = table(
        ("Campaign", "link", "note", "channel"),
        ("007", "bit.ly/a", "x", " paid "),
        ("", "bit.ly/b"),
        ("été", "bit.ly/c", "x", "1.50"),
        separator=separator,
    )
    assert carried_in(write(tmp_path, content, name), "channel, campaign") == [
        ("bit.ly/a", {"channel": " paid ", "campaign": "007"}),
        ("bit.ly/b", {"channel": None, "campaign": None}),
        ("bit.ly/c", {"channel": "1.50", "campaign": "été"}),
    ]


def test_a_record_over_several_lines_carries_its_cells_whole(tmp_path: Path) -> None:
    content = b'link,"a,b",c\nbit.ly/a,"one\ntwo",3\n'
    found = carried_in(write(tmp_path, content, "links.csv"), '"a,b",c')
    assert found == [("bit.ly/a", {"a,b": "one\ntwo", "c": "3"})]


def test_a_table_without_a_header_has_numbers_for_names(tmp_path: Path) -> None:
    path = write(tmp_path, b"autumn,bit.ly/a\n,bit.ly/b\n", "links.csv")
    assert carried_in(path, "1", column="2") == [("bit.ly/a", {"1": "autumn"}), ("bit.ly/b", {"1": None})]


def test_values_of_ndjson_are_texts_as_they_are_written(tmp_path: Path) -> None:
    values = ["007", "7.10", "12345678901234567890123", "1e2", "true", "null", '""', '{"a": [1.0]}', '"\\u00e9"']
    lines = [f'{{"link": "bit.ly/{at}", "note": {value}}}' for at, value in enumerate(values) if at] + [
        '{"link": "bit.ly/gone"}',
        '"bit.ly/text"',
    ]
    path = write(tmp_path, "\n".join(lines).encode(), "links.ndjson")
    found = [carried and carried["note"] for _, carried in carried_in(path, "note")]
    assert found == ["7.10", "12345678901234567890123", "1e2", "true", None, "", '{"a": [1.0]}', "é", None, None]


def test_columns_of_parquet_are_texts_as_arrow_writes_them(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path,
        {
            "link": LINKS,
            "text": ["x", None, ""],
            "coded": pa.array(["one", "two", None]).dictionary_encode(),
            "number": pa.array([1, None, -3], pa.int16()),
            "day": pa.array([0, 1, None], pa.date32()),
            "sure": [True, False, None],
            "raw": pa.array([b"a", None, "é".encode()]),
        },
    )
    first, second, third = (carried for _, carried in carried_in(path, "text,coded,number,day,sure,raw"))
    assert first == {"text": "x", "coded": "one", "number": "1", "day": "1970-01-01", "sure": "true", "raw": "a"}
    assert second == {"text": None, "coded": "two", "number": None, "day": "1970-01-02", "sure": "false", "raw": None}
    assert third == {"text": "", "coded": None, "number": "-3", "day": None, "sure": None, "raw": "é"}


def test_rows_of_parquet_keep_their_values_beyond_a_batch(tmp_path: Path) -> None:
    numbers = list(range(1003))
    path = write_parquet(tmp_path, {"link": [f"bit.ly/{number}" for number in numbers], "number": numbers})
    assert carried_in(path, "number,link") == [
        (f"bit.ly/{number}", {"number": str(number), "link": f"bit.ly/{number}"}) for number in numbers
    ]


def forms(folder: Path, value: str) -> list[str]:
    """A list of each form with one note."""
    return [
        write(folder, table(("link", "note"), ("bit.ly/a", value)), "links.csv"),
        write(folder, table(("link", "note"), ("bit.ly/a", value), separator="\t"), "links.tsv"),
        write(folder, json.dumps({"link": "bit.ly/a", "note": value}).encode(), "links.ndjson"),
        write_parquet(folder, {"link": ["bit.ly/a"], "note": [value]}),
    ]


@pytest.mark.parametrize("at", range(4))
def test_a_value_may_have_1000_characters_and_one_more_makes_its_line_invalid(tmp_path: Path, at: int) -> None:
    assert carried_in(forms(tmp_path, LONG)[at], "note") == [("bit.ly/a", {"note": LONG})]
    batch = batch_in(forms(tmp_path, LONG + "x")[at], "note")
    assert not batch.links
    (bad,) = batch.invalid
    assert (bad.text, bad.reason) == ("bit.ly/a", "note has more than 1,000 characters, too many to be carried")
    assert len(merged(read(resolve_lists([forms(tmp_path, LONG + "x")[at]]))).links) == 1


def test_what_is_not_utf_8_makes_its_line_invalid(tmp_path: Path) -> None:
    arrow = pa.array([b"caf\xe9", b"x" * 9999, b"good"])
    for path in (
        write(tmp_path, b"link,note\nbit.ly/a,caf\xe9\nbit.ly/b," + b"x" * 9999 + b"\nbit.ly/c,good\n", "links.csv"),
        write_parquet(tmp_path, {"link": LINKS, "note": arrow}),
    ):
        batch = batch_in(path, "note")
        assert [(link.bitlink, link.carried) for link in batch.links] == [("bit.ly/c", {"note": "good"})]
        assert [reason for _, reason in reasons(batch)] == ["note,", "note"]
        assert [bad.text for bad in batch.invalid] == ["bit.ly/a", "bit.ly/b"]


@pytest.mark.parametrize("at", range(4))
def test_an_unknown_column_is_refused_with_those_that_there_are(tmp_path: Path, at: int) -> None:
    with pytest.raises(InputBroken, match="no column is called channel; found: link, note"):
        resolve_lists([forms(tmp_path, "x")[at]], carry="note,channel")


def test_lists_and_structs_of_parquet_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, {"link": LINKS, "tags": [["a"], [], None]})
    with pytest.raises(InputBroken, match=r"column tags holds list<.*>, which --carry does not take"):
        resolve_lists([path], carry="tags")


def test_a_list_of_lines_has_no_columns_and_parquet_by_another_name_has(tmp_path: Path) -> None:
    for paths in ([write(tmp_path, b"bit.ly/a\n")], ["-"]):
        with pytest.raises(UsageError, match="a list of lines has no columns"):
            resolve_lists(paths, carry="note")
    Path(write_parquet(tmp_path, {"link": LINKS, "note": LINKS})).rename(tmp_path / "links.txt")
    assert len(carried_in(str(tmp_path / "links.txt"), "note")) == 3


@pytest.mark.parametrize("carry", ["", " ", "a,,b", "a,a", '"a'])
def test_names_of_columns_that_are_none_are_refused(tmp_path: Path, carry: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_lists([forms(tmp_path, "x")[0]], carry=carry)
    assert caught.value.option == "--carry"


def test_pairs_from_python_carry_their_mappings() -> None:
    links = [("bit.ly/a", {"n": 1, "s": "x", "b": True, "none": None}), "bit.ly/b", ("bit.ly/c", {}), ("bit.ly/d", 3)]
    links += [("nonsense", {"a": "b"}), ("bit.ly/e", {"n": "x" * 1001}), ("bit.ly/f", {"\ud800": "x"}), (7, {})]
    batch = batch_of_links(links, "<links>", 1)
    check_counts(batch)
    assert [(link.line, link.bitlink, link.carried) for link in batch.links] == [
        (1, "bit.ly/a", {"n": "1", "s": "x", "b": "true", "none": None}),
        (2, "bit.ly/b", None),
        (3, "bit.ly/c", {}),
    ]
    assert [bad.line for bad in batch.invalid] == [4, 5, 6, 7, 8]
