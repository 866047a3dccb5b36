"""Folders that are kept no longer than their process lives, however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester.errors import OutputError
from harvester.storage import scratch
from tests.conftest import Served
from tests.support.commands import ROOT, environment, harvester

STREAM = """
import asyncio, sys, harvester
async def main():
    async for _ in harvester.stream(["bit.ly/a"], base_url=sys.argv[1]):
        pass
asyncio.run(main())
"""


def kill_in_flight(served: Served, cwd: Path, temporary: Path, *arguments: str) -> list[Path]:
    """Kill Python once its call is in flight, and give what it leaves in its temporary folder."""
    env = environment({"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)})
    with subprocess.Popen([sys.executable, *arguments, served.url], env=env, cwd=cwd) as process:
        while not served.sandbox.at_once:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        assert process.wait(timeout=20) == -signal.SIGKILL
    return list(temporary.iterdir())


COMMANDS = {
    "run": ("-m", "harvester", "run", "links.txt", "--out", "-", "--base-url"),
    "stream": ("-c", STREAM),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_scratch_folders_of_killed_processes_are_deleted_by_the_next(
    tmp_path: Path, serve: Callable[..., Served], command: str
) -> None:
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    left = kill_in_flight(serve(latency_ms=60_000), tmp_path, temporary, *COMMANDS[command])
    assert [path.is_dir() for path in left] == [True]
    done = harvester(
        "run", "-", "--out", "-", "--base-url", serve().url, stdin=b"bit.ly/b\n", env={"TMPDIR": str(temporary)}
    )
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []


def test_one_link_needs_no_scratch_folder(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (temporary := tmp_path / "tmp").mkdir()
    command = ("-m", "harvester", "show", "bit.ly/a", "--base-url")
    assert kill_in_flight(serve(latency_ms=60_000), tmp_path, temporary, *command) == []


def test_the_scratch_folder_of_a_live_process_stays(tmp_path: Path) -> None:
    with scratch.scratch_folder(str(tmp_path)) as mine:
        with scratch.scratch_folder(str(tmp_path)) as other:
            assert sorted(map(str, tmp_path.iterdir())) == sorted([mine, other])
        assert list(map(str, tmp_path.iterdir())) == [mine]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    names = [
        "harvester-scratch-",
        "harvester-scratch-abcdefgh.bak",
        "harvester-results",
        "my-harvester-scratch-abcdefgh",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "harvester-scratch-afileabc").write_text("mine")
    (tmp_path / "harvester-scratch-alinkabc").symlink_to(tmp_path / "harvester-results")
    before = sorted(tmp_path.iterdir())
    with scratch.scratch_folder(str(tmp_path)):
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def swept_at_first(**where: str) -> str:
        made.append(make(**where))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_at_first)
    with scratch.scratch_folder(str(tmp_path)) as path:
        assert made[1:] == [path]
        assert os.path.isdir(path)


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--work-dir"), scratch.scratch_folder(str(tmp_path / "missing")):
        pass
