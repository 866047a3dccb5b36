"""`harvester normalize` and `harvester.bitlink`: a text becomes a bitlink, or the reason why it is none."""

import json
from pathlib import Path
from typing import Any

import pytest

import harvester
from tests.support.commands import harvester as run
from tests.support.in_process import command


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_line_gets_its_bitlink_or_the_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text("https://Bit.ly/x?utm=1\n\n# a comment\nnothing\nbit.ly/x\n")
    shown = command(capsys, "normalize", str(tmp_path / "links.txt"))
    assert shown.code == 0
    found = lines(shown.out)
    assert [(each["line"], each["text"], each["bitlink"]) for each in found] == [
        (1, "https://Bit.ly/x?utm=1", "bit.ly/x"), (4, "nothing", None), (5, "bit.ly/x", "bit.ly/x"),
    ]  # fmt: skip
    assert {each["file"] for each in found} == {str(tmp_path / "links.txt")}
    assert [each["reason"] for each in found] == [None, "no slash: a bitlink is domain/back-half", None]


def test_a_column_of_a_table_and_standard_input_are_read_as_by_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "campaigns.csv").write_text('campaign,url\n"a, b",https://es.pn/SuperBowl\nc,oops\n')
    found = lines(command(capsys, "normalize", str(tmp_path / "campaigns.csv"), "--column", "url").out)
    assert [(each["line"], each["text"], each["bitlink"]) for each in found] == [
        (2, "https://es.pn/SuperBowl", "es.pn/SuperBowl"), (3, "oops", None),
    ]  # fmt: skip
    piped = run("normalize", "-", "--list-format", "ndjson", stdin=b'{"link": "https://bit.ly/y+"}\n')
    assert lines(piped.stdout) == [
        {"file": "-", "line": 1, "text": "https://bit.ly/y+", "bitlink": "bit.ly/y", "reason": None}
    ]


def test_a_list_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command(capsys, "normalize", str(tmp_path / "missing")).code == 2


def test_from_python_a_text_becomes_a_bitlink_or_a_value_error() -> None:
    assert harvester.bitlink("https://bit.ly/x?utm=1") == "bit.ly/x"
    with pytest.raises(ValueError, match="no slash") as refused:
        harvester.bitlink("nothing")
    assert isinstance(refused.value, harvester.InvalidBitlink)
    wrong: Any = None
    with pytest.raises(ValueError, match="must be text, not NoneType"):
        harvester.bitlink(wrong)
