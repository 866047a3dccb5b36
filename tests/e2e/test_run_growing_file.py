"""The growing file while other programs move, cut, empty, replace or write to it: the run stops, nothing is lost."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Served
from tests.support.commands import NO_LIMITS, harvester, start
from tests.support.output_checks import check_reconciled, manifest, public

LINKS = [f"bit.ly/{i}" for i in range(320)]
ROWS_FIRST = 60
"""Rows that the file has when another program comes."""
STOP_SECONDS = 5.0
"""A stop takes half a second; the rest is for a loaded machine. The whole list would take longer."""

Serve = Callable[..., Served]


class Growing:
    """A growing file and the server that its rows come from."""

    def __init__(self, folder: Path, served: Served) -> None:
        self.out = folder / "data" / "results.ndjson"
        self.served = served
        self._links = folder / "links.txt"
        self._links.write_text("\n".join(LINKS))
        self.out.parent.mkdir()

    def words(self, *more: str) -> list[str]:
        return ["run", str(self._links), "--out", str(self.out), "--base-url", self.served.url, *NO_LIMITS, *more]

    def begin(self, then: Callable[[Path], None], *more: str) -> str:
        """Start a run, let another program come when there are rows, and return why the run stopped."""
        rows_there = lines_in(self.out)
        process = start(*self.words(*more))
        while lines_in(self.out) < rows_there + ROWS_FIRST:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        then(self.out)
        came = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 8, err.decode()
        assert time.monotonic() - came < STOP_SECONDS
        assert b"Traceback" not in err
        assert self.served.sandbox.answered.total() < len(LINKS), "it stopped before the list did"
        return err.decode()

    def refused(self) -> str:
        """Run the same command, which is refused before a call; return why."""
        before = self.served.sandbox.requests.total()
        done = harvester(*self.words())
        assert done.returncode == 8, done.stderr
        assert self.served.sandbox.requests.total() == before
        return done.stderr

    def finish(self) -> str:
        """Run the same command to its end, without delay: every row is there once, and no call was made twice."""
        self.served.sandbox.options = replace(self.served.sandbox.options, latency_ms=0)
        done = harvester(*self.words())
        assert done.returncode == 0, done.stderr
        check_reconciled(self.out, set(LINKS))
        assert self.served.sandbox.answered.total() == len(LINKS)
        assert (public(self.out) / "_SUCCESS").exists()
        return done.stderr


@pytest.fixture
def growing(tmp_path: Path, serve: Serve) -> Growing:
    return Growing(tmp_path, serve(latency_ms=40))


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rotated(out: Path) -> None:
    out.rename(out.with_name("results.ndjson.1"))


def rotated_and_made_anew(out: Path) -> None:
    rotated(out)
    out.touch()


def copied_and_truncated(out: Path) -> None:
    shutil.copy(out, out.with_name("results.ndjson.1"))
    os.truncate(out, 0)


def overwritten_in_place(out: Path) -> None:
    """As `cp OTHER results.ndjson` does with a file of the same size: the inode stays as well."""
    shutil.copy(out, out.with_name("results.ndjson.1"))
    with out.open("r+b") as stream:
        stream.write(b"\n" * out.stat().st_size)


def replaced_by_one_of_the_same_size(out: Path) -> None:
    rotated(out)
    out.write_bytes(b"x" * out.with_name("results.ndjson.1").stat().st_size)


def put_back(out: Path) -> None:
    out.with_name("results.ndjson.1").replace(out)


class Change(NamedTuple):
    """What another program does, and what the run says of it."""

    by: Callable[[Path], None]
    says: str


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        Change(rotated, r"was moved away, to \S+results\.ndjson\.1, while"),
        Change(rotated_and_made_anew, r"was moved away, to \S+results\.ndjson\.1, while"),
        Change(copied_and_truncated, r"has \d+ bytes, expected \d+: it was truncated"),
        Change(overwritten_in_place, "was overwritten by another program|another program has written to it"),
        Change(replaced_by_one_of_the_same_size, r"was moved away, to \S+results\.ndjson\.1, while"),
    ],
    ids=lambda change: change.by.__name__,
)
def test_a_file_that_was_changed_stops_the_run_until_it_is_put_back(growing: Growing, change: Change) -> None:
    assert re.search(change.says, growing.begin(change.by))
    assert manifest(growing.out)["stopped"]["reason"] == "output"
    assert not (public(growing.out) / "_SUCCESS").exists()
    growing.refused()
    put_back(growing.out)
    growing.finish()


def cut_off_what_is_committed(out: Path) -> None:
    """Cut rows off whose length the ledger has: it is committed before the next rows are published."""
    size = out.stat().st_size
    for _ in range(2000):
        if out.stat().st_size > size:
            break
        time.sleep(0.005)
    os.truncate(out, size - 5000)


@pytest.mark.slow
def test_what_was_cut_off_is_written_again(growing: Growing) -> None:
    said = growing.begin(cut_off_what_is_committed)
    assert "it was truncated" in said
    assert "the rest is written again" in growing.finish()


@pytest.mark.slow
def test_a_removed_file_is_saved_with_the_rows_of_all_runs(growing: Growing) -> None:
    """The journals of the first run are gone: only the file has its rows."""
    assert harvester(*growing.words("--max-calls", "100")).returncode == 9
    said = growing.begin(Path.unlink)
    assert "Its " in said
    for text in (said, growing.refused()):
        (move,) = re.findall(r"\((mv \S+ \S+)\)", text)
    subprocess.run(move.split(), check=True)
    growing.finish()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [Path.unlink, lambda out: os.truncate(out, 0)], ids=["removed", "emptied"])
def test_rows_that_are_lost_are_written_again_under_another_name(
    growing: Growing, lost: Callable[[Path], None]
) -> None:
    growing.begin(lost)
    (growing.out.with_name("results.ndjson.harvester") / "removed-rows").unlink(missing_ok=True)
    said = growing.refused()
    move = re.search(r"mv (\S+) NEW\.ndjson\.harvester, then run with --out NEW\.ndjson", said)
    assert move
    growing.out = growing.out.with_name("new.ndjson")
    Path(move[1]).rename(growing.out.with_name("new.ndjson.harvester"))
    assert "the rest is written again" in growing.finish()
    growing.out.unlink()
    assert "it was moved, removed or emptied" in growing.refused()


@pytest.mark.slow
def test_what_another_program_has_written_is_named(growing: Growing) -> None:
    def append(out: Path) -> None:
        with out.open("ab") as stream:
            stream.write(b'{"not": "ours"}\n')

    assert "another program has written to it" in growing.begin(append)
    (cut,) = re.findall(r"\((truncate --size=\d+ \S+)\)", growing.refused())
    subprocess.run(cut.split(), check=True)
    growing.finish()


@pytest.mark.slow
def test_a_renamed_folder_goes_on_under_its_new_name(growing: Growing, tmp_path: Path) -> None:
    def rename_folder(out: Path) -> None:
        out.parent.rename(tmp_path / "renamed")

    # Whichever is missed first: the file, the state beside it, or the folder whose free space is looked at.
    said = growing.begin(rename_folder)
    assert re.search(
        r"name its new path as --out|had it open\. Move it back|harvester: No such file or directory", said
    )
    growing.out = tmp_path / "renamed" / "results.ndjson"
    growing.finish()


@pytest.mark.slow
def test_a_renamed_state_folder_is_missed_until_it_is_put_back(growing: Growing) -> None:
    away = growing.out.with_name("away")

    def rename_state(out: Path) -> None:
        public(out).rename(away)

    said = growing.begin(rename_state)
    assert re.search(r"while the run had it open\. Move it back|No such file or directory", said)
    away.rename(public(growing.out))
    growing.finish()


def test_a_file_that_was_touched_alone_does_not_stop_the_run(growing: Growing) -> None:
    process = start(*growing.words())
    while process.poll() is None:
        if growing.out.exists():
            growing.out.touch()
        time.sleep(0.05)
    assert process.returncode == 0, process.communicate()
    process.communicate()
    check_reconciled(growing.out, set(LINKS))


def test_a_file_that_is_removed_after_success_is_missed(growing: Growing) -> None:
    growing.finish()
    growing.out.rename(growing.out.with_name("results.ndjson.1"))
    said = growing.refused()
    assert "it was moved, removed or emptied. Restore it" in said
    growing.out.write_bytes(growing.out.with_name("results.ndjson.1").read_bytes().replace(b"run_id", b"run-id"))
    assert "another file took its place" in growing.refused()
    put_back(growing.out)
    growing.finish()
