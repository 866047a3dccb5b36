"""`--log-format json`: every line of standard error is an event that docs/logging.md describes, and nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.cli import harvesting
from harvester.cli import main as cli
from harvester.events import Event, level
from harvester.reporting.logs import _line
from tests.conftest import Served
from tests.support.commands import NO_LIMITS, ROOT, TOKEN, harvester, start
from tests.support.scripted_bitly import COLOURED, SEPARATED

JSON = ("--log-format", "json")
ALWAYS = {"timestamp", "level", "event", "message"}
ROWS = re.findall(r"^\| `([\w.]+)` \| (\w+) \| .* \| (.*) \|$", (ROOT / "docs/logging.md").read_text(), re.MULTILINE)
FIELDS = {event: dict(re.findall(r"`(\w+)` (\w+\??)", fields)) for event, _, fields in ROWS}
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "text": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "moment": str,
    "list": list,
    "object": dict,
}


def check(event: dict[str, Any]) -> None:
    """Hold an event against the table: its level, its fields, each field's type."""
    name = event["event"]
    assert event["level"] == level(Event(name))
    assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
    assert set(event) - ALWAYS == set(FIELDS[name]), name
    for field, kind in FIELDS[name].items():
        if not (kind.endswith("?") and event[field] is None):
            assert isinstance(event[field], TYPES[kind.rstrip("?")]), (name, field)
            assert kind.rstrip("?") != "moment" or event[field].endswith("Z")


def events(stderr: str) -> list[dict[str, Any]]:
    """Read standard error; every line has to be an event as it is documented."""
    assert TOKEN not in stderr
    found = [json.loads(line) for line in stderr.splitlines()]
    for event in found:
        check(event)
    return found


def one(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (event,) = [event for event in found if event["event"] == name]
    return event


@pytest.fixture
def links(tmp_path: Path) -> str:
    path = tmp_path / "links.txt"
    path.write_text("bit.ly/a\nbit.ly/b\nbit.ly/missing-c\nbit.ly/a\nnonsense\n")
    return str(path)


# --- names ----------------------------------------------------------------------------------------------------------


def test_every_name_is_in_the_table_with_its_level_and_nothing_else_is() -> None:
    assert {event: said for event, said, _ in ROWS} == {event.value: level(event) for event in Event}


@pytest.mark.parametrize("event", list(Event))
def test_every_name_is_told_somewhere(event: Event) -> None:
    code = "".join(path.read_text() for path in (ROOT / "harvester").rglob("*.py") if path.name != "events.py")
    assert f"Event.{event.name}" in code


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_is_told_from_start_to_end(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out = str(tmp_path / "out")
    done = harvester("run", links, "--out", out, "--base-url", serve(per_hour=1000).url, *JSON)
    found = events(done.stderr)
    assert done.returncode == 0
    assert [event["event"] for event in found] == [
        "run.started",
        "list.counted",
        "budget.described",
        "line.invalid",
        "limits.reported",
        "run.ended",
    ]
    counted, ended, bad = one(found, "list.counted"), one(found, "run.ended"), one(found, "line.invalid")
    assert (counted["lines"], counted["links"], counted["duplicates"], counted["calls"]) == (5, 3, 1, 3)
    assert (bad["file"], bad["line"], bad["text"]) == (links, 5, "nonsense")
    assert (ended["exit_code"], ended["rows"], ended["refused"], ended["failed"]) == (0, 2, 1, 0)
    assert ended["out"] == out
    assert one(found, "limits.reported")["limit"] == 1000


def test_the_option_may_stand_in_the_configuration(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    config = tmp_path / "my.toml"
    config.write_text('[run]\nlog_format = "json"\n')
    done = harvester("--config", str(config), "run", links, "--out", str(tmp_path / "out"), "--base-url", "nonsense")
    assert done.returncode == 2
    assert one(events(done.stderr), "run.refused")["exit_code"] == 2


def test_a_filter_tells_of_failures_beside_its_rows(serve: Callable[..., Served]) -> None:
    run = ("run", "-", "--out", "-", "--base-url", serve().url, *NO_LIMITS, *JSON)
    done = harvester(*run, stdin=b"bit.ly/a\nbit.ly/missing-b\n")
    assert json.loads(done.stdout)["bitlink"] == "bit.ly/a"
    failed = one(events(done.stderr), "call.failed")
    assert (failed["bitlink"], failed["kind"], failed["status"]) == ("bit.ly/missing-b", "refused", 404)


def test_a_signal_a_wait_and_the_stop_are_told(tmp_path: Path, serve: Callable[..., Served]) -> None:
    links = tmp_path / "links.txt"
    links.write_text("".join(f"bit.ly/{i}\n" for i in range(60)))
    limits = ("--per-minute", "0", "--per-hour", "20", "--per-month", "50")
    process = start("run", str(links), "--out", str(tmp_path / "out"), "--base-url", serve().url, *limits, *JSON)
    lines = []
    with process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line.decode())
            if '"progress"' in lines[-1]:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 5
    found = events("".join(lines))
    assert one(found, "month.short")["remaining"] == 50
    progress = one(found, "progress")
    assert progress["waiting"]["window"] == "hour"
    assert progress["waiting"]["limit"] == 20
    assert progress["remaining"] == 40
    assert progress["ends"] is not None
    assert one(found, "run.stopping")["signal"] == "SIGTERM"
    assert one(found, "run.ended")["reason"] == "signal"


def test_of_many_bad_lines_the_first_are_told(tmp_path: Path, serve: Callable[..., Served]) -> None:
    links = tmp_path / "links.txt"
    links.write_text("bad\n" * 100 + "bit.ly/a\n")
    done = harvester("run", str(links), "--out", str(tmp_path / "out"), "--base-url", serve().url, *NO_LIMITS, *JSON)
    names = [event["event"] for event in events(done.stderr)]
    assert names.count("line.invalid") == 20
    assert names.count("line.suppressed") == 1


def test_quiet_leaves_warnings(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out = str(tmp_path / "out")
    done = harvester("run", links, "--out", out, "--base-url", serve().url, *NO_LIMITS, *JSON, "--quiet")
    assert [event["event"] for event in events(done.stderr)] == ["line.invalid"]


def test_a_plan_without_a_token_warns_in_json(tmp_path: Path, links: str) -> None:
    done = harvester("plan", links, "--out", str(tmp_path / "out"), "--json", *JSON, env={"BITLY_TOKEN": ""})
    assert done.returncode == 0
    assert json.loads(done.stdout)["calls"] == 3
    assert "no token" in one(events(done.stderr), "warning")["message"]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("run", "links.txt", "--out", "out", "--nonsense", *JSON),
        ("run", "links.txt", "--out", "out", "--nonsense", "--log-format=json"),
        ("run", "nowhere.txt", "--out", "out", *JSON),
        ("run", *JSON),
        ("--config", "nowhere.toml", "run", "links.txt", "--out", "out", *JSON),
        ("run", "/dev/null", "--out", "out", "--facet", "none", *JSON),
    ],
)
def test_an_error_is_an_event_too(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = harvester(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert one(events(done.stderr), "run.refused")["exit_code"] == 2


def test_a_list_without_links_is_an_event(tmp_path: Path, serve: Callable[..., Served]) -> None:
    done = harvester("run", "-", "--out", str(tmp_path / "out"), "--base-url", serve().url, *JSON, stdin=b"\n")
    assert done.returncode == 2
    assert "no links" in one(events(done.stderr), "run.refused")["message"]


def test_another_format_is_refused(tmp_path: Path) -> None:
    done = harvester("run", "-", "--out", str(tmp_path / "out"), "--log-format", "xml")
    assert done.returncode == 2
    assert "must be one of text, json" in done.stderr


def test_a_bug_is_an_event_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(harvesting, "_run", broken)
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "links.txt", "--out", "out", *JSON])
    assert left.value.code == 1
    crashed = one(events(capfd.readouterr().err), "run.crashed")
    assert "RuntimeError: first\nsecond" in crashed["traceback"]
    assert "a bug" in crashed["message"]


def test_what_libraries_and_the_interpreter_say_is_an_event_too() -> None:
    code = (
        "import asyncio, logging, threading, warnings\n"
        "from harvester.reporting.logs import JsonLog, route_warnings_to\n"
        "route_warnings_to(JsonLog())\n"
        "warnings.simplefilter('always')\n"
        "warnings.warn('an old\\nway')\n"
        "logging.getLogger('aiohttp').error('lost\\nconnection')\n"
        "threading.Thread(target=lambda: 1 / 0).start()\n"
        "class Odd:\n    def __del__(self): 1 / 0\n"
        "Odd()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    messages = [event["message"] for event in events(done.stderr)]
    assert len(messages) == 4
    assert messages[1] == "aiohttp: lost connection"
    for said, message in zip(
        ("an old", "lost connection", "ZeroDivisionError", "ZeroDivisionError"), messages, strict=True
    ):
        assert said in message


# --- odd text -------------------------------------------------------------------------------------------------------


def test_tampered_text_stays_within_its_line(tmp_path: Path, serve: Callable[..., Served]) -> None:
    odd = SEPARATED.replace("\n", "").replace("\r", "") + COLOURED + '"}{'
    links = tmp_path / "links.txt"
    links.write_bytes(f"bit.ly/a\n{odd}\n".encode() + b"\xff\xfe broken\n")
    done = harvester("run", str(links), "--out", str(tmp_path / "out"), "--base-url", serve().url, *NO_LIMITS, *JSON)
    bad = [event for event in events(done.stderr) if event["event"] == "line.invalid"]
    assert bad[0]["text"] == odd
    assert len(bad) == 2
    assert all(character.isprintable() or character == "\n" for character in done.stderr)


def test_a_list_whose_name_is_no_utf_8_is_named(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.txt"
    done = subprocess.run(
        [sys.executable, "-m", "harvester", "run", name, "--out", "out", *JSON],
        cwd=tmp_path,
        env={**os.environ, "BITLY_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert "\\udcff.txt" in one(events(done.stderr.decode()), "run.refused")["message"]


@given(
    st.text(st.characters(exclude_categories=())), st.dictionaries(st.text(), st.text() | st.none() | st.integers(0, 9))
)
def test_any_text_is_one_line_and_comes_back(text: str, more: dict[str, Any]) -> None:
    event = {"timestamp": "", "level": "info", "event": "note", "message": text, "more": more}
    line = _line(event)
    assert len(line.splitlines()) == 1
    back = json.loads(line)
    assert back["message"] == text.encode("utf-8", "backslashreplace").decode()
    assert back["more"] == more


def test_nobody_reading_is_no_error(tmp_path: Path, links: str, serve: Callable[..., Served]) -> None:
    out = tmp_path / "out"
    process = start("run", links, "--out", str(out), "--base-url", serve(latency_ms=50).url, *NO_LIMITS, *JSON)
    with process:
        assert process.stderr
        process.stderr.close()
    assert process.returncode == 0
    assert (out / "_SUCCESS").exists()
