"""What a job's options are warned of, for every caller: run, plan, show and Python."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import harvester
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, TOKEN
from tests.support.commands import harvester as command

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
SAYS = f"--unit-reference {TOMORROW:%Y-%m-%dT%H:%M:%SZ} is in the future: the window is not over"


@pytest.mark.parametrize(
    "words",
    [
        ("run", "-", "--out", "out"),
        ("run", "-", "--out", "-"),
        ("plan", "links.txt", "--out", "out"),
        ("show", "bit.ly/a"),
    ],
)
def test_a_unit_reference_in_the_future_is_warned_of_once_and_no_error(
    tmp_path: Path, serve: Callable[..., Served], words: tuple[str, ...]
) -> None:
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    options = ("--base-url", serve().url, *NO_LIMITS)
    for moment, warnings in ((TOMORROW, 1), (TOMORROW - timedelta(days=2), 0)):
        done = command(
            *(word.replace("out", f"out{warnings}") if word == "out" else word for word in words),
            *options, "--unit-reference", moment.isoformat(), stdin=b"bit.ly/a\n", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(SAYS) == warnings


def test_a_variable_and_quiet_warn_too(tmp_path: Path, serve: Callable[..., Served]) -> None:
    env = {"HARVESTER_UNIT_REFERENCE": TOMORROW.isoformat(), "HARVESTER_QUIET": "true"}
    words = ("run", "-", "--out", "out", "--base-url", serve().url)
    assert SAYS in command(*words, env=env, stdin=b"bit.ly/a\n", cwd=tmp_path).stderr


async def test_from_python_it_is_logged(
    tmp_path: Path, serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    with caplog.at_level(logging.WARNING, "harvester"):
        row = await harvester.metrics("bit.ly/a", token=TOKEN, base_url=served.url, unit_reference=TOMORROW)
        await harvester.harvest(
            ["bit.ly/a"], out=tmp_path / "out", token=TOKEN, base_url=served.url, unit_reference=TOMORROW
        )
    assert row["unit_reference"] == f"{TOMORROW:%Y-%m-%dT%H:%M:%SZ}"
    assert [record.levelname for record in caplog.records if SAYS in record.getMessage()] == ["WARNING"] * 2
