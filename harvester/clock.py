"""The machine's clocks, and the calendar by which Bitly counts months."""

import time
from datetime import UTC, datetime, timedelta

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Clock:
    """What the budget takes for time; tests give another one.

    boot: names the kernel's present life; empty where the system does not say.
    """

    def __init__(self) -> None:
        self.boot = _boot_id()

    def boot_seconds(self) -> float:
        """Give seconds that no step of the wall clock moves, alike for all processes since the machine's start."""
        # On Linux this goes on while the machine sleeps, as Bitly's windows do; elsewhere a sleep makes us careful.
        return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)

    def wall(self) -> float:
        """Give seconds since 1970, as the wall clock has them."""
        return time.time()


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as stream:
            return stream.read().strip()
    except (OSError, ValueError):
        return ""


def from_epoch(seconds: float) -> datetime:
    """Give seconds since 1970 as a moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def month_of(seconds: float) -> str:
    """Name the calendar month, UTC, of seconds since 1970: `2026-11`."""
    return from_epoch(seconds).strftime("%Y-%m")


def next_month(now: datetime) -> datetime:
    """Give the first moment of the month after this one, UTC: when Bitly counts from zero again."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def utc_iso(moment: datetime) -> str:
    """Write a moment as `2026-11-23T06:00:00Z`: UTC, whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z"
