"""The token is in nothing that a run writes or says, however it ends."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import NO_LIMITS, ROOT, TOKEN, harvester
from tests.support.in_process import command
from tests.support.scripted_bitly import Scripted, scripted


@pytest.fixture
def bitly() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


def broken(folder: Path) -> dict[str, str]:
    """Give an environment in which harvester has a bug that comes to light with the first answer."""
    (folder / "sitecustomize.py").write_text(
        "import harvester.rows.row\n"
        "def row(*arguments):\n"
        "    raise RuntimeError('a bug')\n"
        "harvester.rows.row.RowBuilder.row = row\n"
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


SCRIPTS: dict[str, tuple[list[str], int]] = {
    "success": (["ok"], 0),
    "refused and failed": (["ok", "404", "418-echo", "html-echo", "400-echo", "500-for-ever"], 3),
    "token refused": (["401"], 6),
    "plan refused": (["402"], 6),
    "month spent": (["429-month"], 7),
    "a bug": (["ok"], 1),
}


@pytest.mark.parametrize("end", list(SCRIPTS))
@pytest.mark.parametrize("form", ["out", "out.ndjson", "-"])
def test_the_token_is_in_no_output_however_a_run_ends(tmp_path: Path, bitly: Scripted, end: str, form: str) -> None:
    names, code = SCRIPTS[end]
    kept = tmp_path / "kept"
    kept.mkdir()
    out = form if form == "-" else str(kept / form)
    options = ("--base-url", bitly.url, *NO_LIMITS, "--attempts", "2", "--state-dir", str(kept / "state"))
    command = ("run", "-", "--out", out, *options)
    links = "".join(f"bit.ly/{name}\n" for name in names).encode()
    done = harvester(*command, stdin=links, env=broken(tmp_path) if end == "a bug" else {})
    assert done.returncode == code, done.stderr
    assert ("Traceback" in done.stderr) == (end == "a bug")
    files = {str(path): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert any(path.endswith("budget.sqlite") for path in files)
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert [name for name, data in {**files, **said}.items() if TOKEN.encode() in data.lower()] == []


def test_a_list_that_holds_the_token_leaves_it_in_no_file(tmp_path: Path, bitly: Scripted) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    options = ("--base-url", bitly.url, *NO_LIMITS, "--state-dir", str(kept / "state"), "--max-invalid", "100%")
    links = f"bit.ly/ok\nGET /v4/user?access_token={TOKEN}\nbit.ly/{TOKEN}\n".encode()
    done = harvester("run", "-", "--out", str(kept / "out"), *options, stdin=links)
    assert done.returncode == 0, done.stderr
    files = {str(path): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert [name for name, data in {**files, **said}.items() if TOKEN.encode() in data] == []
    assert (kept / "out" / "_failures.ndjson").read_text().count('"invalid"') == 2
    assert [seen.back_half for seen in bitly.requests] == ["ok"]


MISPLACED = "fedcba9876543210" * 2 + "fedcba98"
"""Looks like a token of Bitly's; the one in use is another."""


@pytest.mark.parametrize(
    "words",
    [
        ("run", MISPLACED, "--out", "out"),
        ("run", MISPLACED, "--out", "out", "--log-format", "json"),
        ("plan", MISPLACED, "--out", "out", "--offline"),
        ("show", MISPLACED),
        ("normalize", MISPLACED),
        ("status", MISPLACED),
        ("verify", MISPLACED),
        ("repair", MISPLACED),
        (MISPLACED,),
        ("login", "--with-token", MISPLACED),
        ("--config", MISPLACED, "run", "links.txt", "--out", "out"),
        ("run", "links.txt", "--out", "out", "--plan", MISPLACED),
        ("run", "links.txt", "--out", MISPLACED),
        ("run", "links.txt", "--out", "out", f"--work-dir={MISPLACED}"),
        ("run", "links.txt", "--out", "out", "--state-dir", MISPLACED),
        ("run", "links.txt", "--out", "out", "--account", MISPLACED),
        ("run", "links.txt", "--out", "out", "--metrics-file", MISPLACED),
    ],
    ids=lambda words: " ".join(words).replace(MISPLACED, "TOKEN"),
)
def test_a_token_in_the_place_of_something_else_is_neither_said_nor_stored(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("links.txt").write_text("bit.ly/a\n")
    done = command(capsys, *words)
    assert done.code == 2
    assert "token" in done.err
    assert MISPLACED not in done.out + done.err
    assert [*tmp_path.iterdir()] == [tmp_path / "links.txt"]


def test_a_token_is_refused_as_a_folder_and_a_folder_of_such_a_name_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("links.txt").write_text("bit.ly/a\n")
    plan = ("plan", "links.txt", "--offline", "--state-dir", "state", "--out")
    assert "--out looks like a token" in command(capsys, *plan, MISPLACED).err
    assert command(capsys, *plan, f"./{MISPLACED}").code == 0
    Path(MISPLACED).mkdir()
    assert command(capsys, *plan, MISPLACED).code == 0
