"""Runs a job, or the command, in the test's own process; a job with a server's outages over in a moment."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harvester.bearer import Token
from harvester.bitly.query import Query
from harvester.budget.limits import RequestedLimits
from harvester.cli import main as cli
from harvester.client.circuit_breaker import BreakerRules
from harvester.client.client import ClientSettings
from harvester.dataset.journal import PartLimits
from harvester.events import Event, Field, RunOutcome
from harvester.links import files as sources
from harvester.progress import InvalidLine, RunProgress
from harvester.run import job
from harvester.run.assembly import Job
from harvester.shutdown import ShutdownSignal
from tests.support.commands import TOKEN

QUICK_GATE = BreakerRules(first_probe_seconds=0.05, longest_probe_seconds=0.2, limit_seconds=60.0, poll_seconds=0.02)


@dataclass
class Listener:
    """Keeps what a person would have been told."""

    said: list[str] = field(default_factory=list)

    def invalid(self, line: InvalidLine) -> None:
        self.said.append(line.text)

    def failure(self, line: bytes) -> None:
        self.said.append(line.decode())

    def warn(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str, event: Event = Event.NOTE, /, **fields: Field) -> None:
        self.said.append(text)

    def progress(self, status: RunProgress) -> None:
        pass


async def harvest(url: str, folder: Path, names: Sequence[str], **changes: Any) -> RunOutcome:
    """Harvest `bit.ly/NAME` for each name into `folder/out`. changes: to the job."""
    links = folder / "links.txt"
    links.write_text("".join(f"bit.ly/{name}\n" for name in names))
    settings = {
        "sources": sources.resolve_lists([str(links)]),
        "token": Token(lambda: TOKEN),
        "out": str(folder / "out"),
        "work_dir": None,
        "query": Query("referrers", "day", -1, "2026-11-23T06:00:00Z", 50),
        "pin_reference": True,
        "limits": RequestedLimits(per_minute=0, per_hour=0, per_month=0),
        "client_settings": ClientSettings(url, 5, attempts=5, timeout_seconds=10.0, backoff_seconds=0.01),
        "parts": PartLimits(1_000_000, 2**27),
        "commit_seconds": 0.05,
        "breaker_rules": QUICK_GATE,
        "state_dir": str(folder / "state"),
    }
    return await job.run(Job(**{**settings, **changes}), ShutdownSignal(), Listener())


class Said(NamedTuple):
    """A command's exit code, and what it wrote."""

    code: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *words: str) -> Said:
    """Run `harvester WORDS` without the second that a process takes to begin."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert isinstance(left.value.code, int)
    return Said(left.value.code, *capsys.readouterr())
