"""The token is in nothing that a run writes or says, however it ends."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import NO_LIMITS, ROOT, TOKEN, harvester
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
