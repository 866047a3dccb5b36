"""The machine's clocks, and the calendar's months."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from harvester import clock as clocks
from harvester.clock import Clock, from_epoch, month_of, next_month, parse_http_date, utc_text
from tests.support.commands import ROOT, environment


def test_elapsed_seconds_are_alike_for_all_processes_since_the_machines_start() -> None:
    before = Clock().boot_seconds()
    program = "from harvester.clock import Clock; clock = Clock(); print(clock.boot); print(clock.boot_seconds())"
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert other[0] == Clock().boot
    assert before < float(other[1]) < Clock().boot_seconds()


def test_the_wall_clock_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 12.5)
    assert Clock().wall() == 12.5


@pytest.mark.skipif(clocks._BOOTTIME is None, reason="Linux's clock")
def test_on_linux_elapsed_seconds_go_on_while_the_machine_sleeps() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= Clock().boot_seconds() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_elsewhere_elapsed_seconds_are_the_monotonic_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "_BOOTTIME", None)
    monkeypatch.setattr(time, "monotonic", lambda: 77.0)
    assert Clock().boot_seconds() == 77.0


def test_a_boot_has_the_name_that_the_kernel_gives_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = tmp_path / "boot_id"
    name.write_text("0b1d-2c3e\n")
    monkeypatch.setattr(clocks, "_BOOT_ID", str(name))
    assert Clock().boot == "0b1d-2c3e"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_boot_has_no_name_where_the_system_does_not_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    name = tmp_path / "boot_id"
    if content is not None:
        name.write_bytes(content)
    monkeypatch.setattr(clocks, "_BOOT_ID", str(name))
    assert Clock().boot == ""


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with what the kernel says of this process's time namespace."""
    for name, path in (("_OWN_NAMESPACE", "own"), ("_CHILDREN_NAMESPACE", "childrens"), ("_OFFSETS", "offsets")):
        monkeypatch.setattr(clocks, name, str(tmp_path / path))
    for link in ("own", "childrens"):
        (tmp_path / link).symlink_to("time:[4026532178]")
    (tmp_path / "offsets").write_text("monotonic           0         0\nboottime       100000 500000000\n")
    return tmp_path


@pytest.mark.skipif(clocks._BOOTTIME is None, reason="Linux's clock")
def test_seconds_since_boot_are_the_machines_in_any_time_namespace(namespace: Path) -> None:
    clock, machine = Clock(), time.clock_gettime(time.CLOCK_BOOTTIME) - 100_000.5
    assert machine <= clock.boot_seconds() < machine + 1.0
    assert "time:" not in clock.boot


@pytest.mark.parametrize("content", [None, "", "boottime x y", "monotonic 0 0\n"])
def test_a_time_namespace_of_which_nothing_is_known_is_a_boot_of_its_own(namespace: Path, content: str | None) -> None:
    (namespace / "offsets").unlink()
    if content is not None:
        (namespace / "offsets").write_text(content)
    assert Clock().boot.endswith(" time:[4026532178]")


def test_a_process_that_has_left_its_time_namespace_to_its_children_has_a_boot_of_its_own(namespace: Path) -> None:
    (namespace / "childrens").unlink()
    (namespace / "childrens").symlink_to("time:[4026532200]")
    assert Clock().boot.endswith(" time:[4026532178]")


def test_where_there_are_no_time_namespaces_seconds_since_boot_are_the_clocks(namespace: Path) -> None:
    (namespace / "own").unlink()
    assert "time:" not in Clock().boot


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Mon, 23 Nov 2026 12:00:00 GMT", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("Mon, 23 Nov 2026 12:00:00 -0000", None),
        ("", None),
        ("yesterday", None),
        ("Mon, 23 Nov 99999 12:00:00 GMT", None),
    ],
)
def test_a_date_header_is_a_moment_or_nothing(text: str, moment: datetime | None) -> None:
    assert parse_http_date(text) == moment


def test_a_moment_is_in_utc() -> None:
    assert from_epoch(1_795_435_200.0) == datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("when", "month"),
    [
        (datetime(2026, 11, 30, 23, 59, 59, 999_000, tzinfo=UTC), "2026-11"),
        (datetime(2026, 12, 1, tzinfo=UTC), "2026-12"),
        (datetime(2027, 1, 1, tzinfo=UTC), "2027-01"),
        (datetime.fromisoformat("2026-12-01T01:00:00+02:00"), "2026-11"),
    ],
)
def test_a_month_is_in_utc(when: datetime, month: str) -> None:
    assert month_of(when.timestamp()) == month


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
        (datetime(2028, 2, 29, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
        (datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        (datetime.fromisoformat("2026-12-01T01:00:00+02:00"), datetime(2026, 12, 1, tzinfo=UTC)),
    ],
)
def test_the_next_month_begins_on_its_first_in_utc(when: datetime, expected: datetime) -> None:
    assert next_month(when) == expected


@pytest.mark.parametrize(
    ("moment", "round_up", "text"),
    [
        (datetime(2026, 12, 1, tzinfo=UTC), True, "2026-12-01 00:00 UTC"),
        (datetime(2026, 12, 1, 0, 0, 59, tzinfo=UTC), False, "2026-12-01 00:00 UTC"),
        (datetime(2026, 11, 30, 23, 59, 1, tzinfo=UTC), True, "2026-12-01 00:00 UTC"),
        (datetime(2026, 12, 1, 1, tzinfo=timezone(timedelta(hours=1))), False, "2026-12-01 00:00 UTC"),
        ("2026-12-01T00:00:00Z", False, "2026-12-01 00:00 UTC"),
    ],
    ids=["whole", "cut", "up", "offset", "text"],
)
def test_people_are_shown_a_moment_in_utc(moment: datetime | str, round_up: bool, text: str) -> None:
    assert utc_text(moment, round_up=round_up) == text
