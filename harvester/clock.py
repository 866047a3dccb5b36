"""The machine's clocks, and the calendar by which Bitly counts months."""

import time
from datetime import UTC, datetime, timedelta

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Clock:
    """The time sources of the budget; tests replace them.

    boot: the kernel's boot id; empty where the system has none.
    """

    def __init__(self) -> None:
        self.boot = _boot_id()

    def boot_seconds(self) -> float:
        """Return seconds since boot, alike for all processes; no step of the wall clock moves them."""
        # On Linux they include the time asleep, as Bitly's windows do; elsewhere waits get longer.
        return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)

    def wall(self) -> float:
        """Return the wall clock's seconds since 1970."""
        return time.time()


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as stream:
            return stream.read().strip()
    except (OSError, ValueError):
        return ""


def from_epoch(seconds: float) -> datetime:
    """Return the moment, in UTC, of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def month_of(seconds: float) -> str:
    """Return the calendar month in UTC of seconds since 1970: `2026-11`."""
    return from_epoch(seconds).strftime("%Y-%m")


def next_month(now: datetime) -> datetime:
    """Return the start of the next month in UTC, when Bitly counts from zero again."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def utc_iso(moment: datetime) -> str:
    """Return a moment as `2026-11-23T06:00:00Z`: UTC, whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z"
