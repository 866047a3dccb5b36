"""Killed while the list is counted, or with no room to count it: the dataset is whole, and the count begins anew."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.support.commands import harvester, start
from tests.support.output_checks import check_reconciled

PLAIN = [f"bit.ly/{i}" for i in range(60)]


def commands(path: Path, out: Path, served: Served) -> list[str]:
    return ["run", str(path), "--out", str(out), "--base-url", served.url, "--per-minute", "0", "--per-hour", "0"]


@pytest.mark.parametrize("form", ["out", "results.ndjson"])
def test_a_kill_while_the_list_is_counted_leaves_the_dataset_whole(
    tmp_path: Path, serve: Callable[..., Served], form: str
) -> None:
    served, path, out = serve(), tmp_path / "links.txt", tmp_path / form
    path.write_text("\n".join(PLAIN[:20]))
    command = [*commands(path, out, served), "--per-month", "1000000"]
    assert harvester(*command).returncode == 0
    scratch = next(tmp_path.rglob("ledger.sqlite")).with_name("scratch.sqlite")
    for _ in range(2):
        path.write_text("".join(f"bit.ly/{i}\n" for i in range(400_000)))
        with start(*command) as process:
            while not scratch.exists() or scratch.stat().st_size < 100_000:
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
    # A page of zeros is what a power cut, too, leaves of a file that is never synced.
    assert scratch.exists()
    with scratch.open("r+b") as stream:
        stream.write(bytes(4096))
    path.write_text("\n".join(PLAIN))
    done = harvester(*command)
    assert done.returncode == 0, done.stderr
    check_reconciled(out, set(PLAIN))
    assert served.sandbox.answered.total() == len(PLAIN)
    assert not scratch.exists()


def test_what_a_killed_count_has_left_goes_even_if_the_next_run_does_not_count(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    path, out = tmp_path / "links.txt", tmp_path / "out"
    path.write_text("\n".join(PLAIN))
    private = out / "_harvester"
    private.mkdir(parents=True)
    for name in ("scratch.sqlite", "spool-0"):
        (private / name).write_bytes(os.urandom(5000))
    assert harvester(*commands(path, out, serve()), "--per-month", "0").returncode == 0
    assert not {"scratch.sqlite", "spool-0"} & set(os.listdir(private))


def test_no_room_for_the_count_names_its_file_and_not_the_ledger(tmp_path: Path, serve: Callable[..., Served]) -> None:
    """A limit on the size of files stands for the disk."""
    served, path, out = serve(), tmp_path / "links.txt", tmp_path / "out"
    path.write_text("".join(f"bit.ly/{i}\n" for i in range(100_000)))
    command = [*commands(path, out, served), "--per-month", "1000000", "--max-calls", "5"]
    done = harvester(*command, "--strict", wrapper=("prlimit", "--fsize=262144"))
    assert done.returncode == 8, done.stderr
    assert "scratch.sqlite: " in done.stderr
    assert "ledger" not in done.stderr
    assert served.sandbox.requests.total() == 0
    assert harvester(*command).returncode == 9
