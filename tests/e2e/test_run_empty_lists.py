"""A list without links: an error, or with --allow-empty a day that is done."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import harvester
from tests.conftest import Served
from tests.support.commands import TOKEN
from tests.support.commands import harvester as command
from tests.support.output_checks import manifest

EMPTY = {
    "empty.txt": b"",
    "blank.txt": b"\n \r\n\n",
    "mark.txt": b"\xef\xbb\xbf",
    "comments.txt": b"# no links today\n\n",
    "packed.txt.gz": gzip.compress(b"\n"),
    "header.csv": b"bitlink,title\n",
    "empty.csv": b"",
    "header.tsv": b"title\tbitlink\r\n",
    "empty.ndjson": b"",
    "empty.ndjson.gz": gzip.compress(b""),
}


def listed(folder: Path, name: str) -> str:
    (folder / name).write_bytes(EMPTY[name])
    return str(folder / name)


def check_done(out: Path) -> None:
    written = manifest(out)
    assert (written["complete"], written["stopped"], written["parts"], written["remaining"]) == (True, None, [], 0)
    assert written["list"]["links"] == 0
    assert written["dataset"]["calls"] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "_SUCCESS",
        "_failures.ndjson",
        "_harvester",
        "_manifest.json",
    ]


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_list_is_an_error_unless_it_is_allowed(
    tmp_path: Path, serve: Callable[..., Served], name: str
) -> None:
    served, out = serve(), tmp_path / "out"
    words = ("run", listed(tmp_path, name), "--out", str(out), "--base-url", served.url)
    refused = command(*words)
    assert refused.returncode == 2
    assert "there are no links in the list; if that is no mistake, use --allow-empty" in refused.stderr
    assert not (out / "_SUCCESS").exists()
    assert json.loads(command("status", str(out), "--json").stdout)["state"] == "empty"
    for _ in range(2):
        done = command(*words, "--allow-empty")
        assert done.returncode == 0, done.stderr
        assert "the list has no links" in done.stderr
        check_done(out)
    assert json.loads(command("status", str(out), "--json").stdout)["state"] == "complete"
    assert command("verify", str(out)).returncode == 0
    # The next empty list that is not allowed takes the word back.
    assert command(*words).returncode == 2
    assert not (out / "_SUCCESS").exists()
    assert not served.sandbox.requests
    assert not served.sandbox.helped


def test_a_parquet_list_without_rows_is_empty_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    pq.write_table(pa.table({"bitlink": pa.array([], pa.string())}), tmp_path / "none.parquet")
    words = ("run", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "out"), "--base-url", serve().url)
    assert command(*words).returncode == 2
    assert command(*words, "--allow-empty", "--strict").returncode == 0
    check_done(tmp_path / "out")


@pytest.mark.parametrize("out", ["out", "results.ndjson", "-"])
def test_standard_input_and_every_kind_of_output(tmp_path: Path, serve: Callable[..., Served], out: str) -> None:
    words = ("run", "-", "--out", out, "--base-url", serve().url)
    assert command(*words, stdin=b"", cwd=tmp_path).returncode == 2
    done = command(*words, "--allow-empty", stdin=b"", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "harvester: there are no links" not in done.stderr


@pytest.mark.parametrize(
    ("text", "code"), [(b"nonsense\n", 2), (b"# a\n\nnonsense\n", 2), (b"bit.ly/a\nnonsense\n", 0)]
)
def test_a_list_of_lines_that_are_no_links_is_not_empty(
    tmp_path: Path, serve: Callable[..., Served], text: bytes, code: int
) -> None:
    """It is another file, or another column."""
    words = ("run", "-", "--out", "out", "--base-url", serve().url, "--allow-empty")
    done = command(*words, stdin=text, cwd=tmp_path)
    assert done.returncode == code
    assert (tmp_path / "out" / "_SUCCESS").exists() == (code == 0)
    assert "use --allow-empty" not in done.stderr


@pytest.mark.parametrize("name", ["missing.txt", "missing-*.txt"])
def test_a_list_that_is_not_there_is_not_empty(tmp_path: Path, serve: Callable[..., Served], name: str) -> None:
    words = ("run", str(tmp_path / name), "--out", str(tmp_path / "out"), "--base-url", serve().url, "--allow-empty")
    assert command(*words).returncode == 2


def test_an_empty_list_after_another_keeps_its_rows_and_links_may_come_later(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    served, out = serve(), tmp_path / "out"
    words = ("run", "-", "--out", str(out), "--base-url", served.url, "--allow-empty")
    for given, rows in ((b"", 0), (b"bit.ly/a\n", 1), (b"", 1), (b"bit.ly/a\nbit.ly/b\n", 2)):
        done = command(*words, stdin=given)
        assert done.returncode == 0, done.stderr
        assert (out / "_SUCCESS").exists()
        assert manifest(out)["dataset"]["rows"] == rows == sum(part["rows"] for part in manifest(out)["parts"])
    assert command("verify", str(out)).returncode == 0
    assert served.sandbox.requests.total() == 2


def test_a_variable_or_the_configuration_file_may_allow_it(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "my.toml").write_text("[run]\nallow_empty = true\n")
    words = ("run", "-", "--base-url", serve().url, "--out")
    assert command(*words, "one", env={"HARVESTER_ALLOW_EMPTY": "true"}, stdin=b"", cwd=tmp_path).returncode == 0
    assert command("--config", "my.toml", *words, "two", stdin=b"", cwd=tmp_path).returncode == 0
    assert command(*words, "three", stdin=b"", cwd=tmp_path).returncode == 2


async def test_from_python_it_is_a_keyword(tmp_path: Path, serve: Callable[..., Served]) -> None:
    url = serve().url
    given: list[Any] = [[], iter([]), tmp_path / "empty.txt"]
    for number, links in enumerate(given):
        (tmp_path / "empty.txt").touch()
        out = tmp_path / f"out-{number}"
        refused = await harvester.harvest(links, out=out, token=TOKEN, base_url=url)
        assert (refused["complete"], refused["stopped"]) == (False, None)
        found = await harvester.harvest(links, out=out, token=TOKEN, base_url=url, allow_empty=True)
        assert (found["complete"], found["parts"]) == (True, [])
        check_done(out)
