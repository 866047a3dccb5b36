"""The machine's clocks, the calendar by which Bitly counts months, and the waits that servers ask for."""

import math
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_OWN_NAMESPACE, _CHILDREN_NAMESPACE = "/proc/self/ns/time", "/proc/self/ns/time_for_children"
_OFFSETS = "/proc/self/timens_offsets"


class Clock:
    """The time sources of the budget; tests replace them.

    boot: the kernel's boot id; empty where the system has none. Two processes with the same one have the same seconds
    since boot.
    """

    def __init__(self) -> None:
        self.boot = _boot_id()
        # A container may have seconds since boot of its own: https://man7.org/linux/man-pages/man7/time_namespaces.7.html
        self._ahead, namespace = _time_namespace()
        if namespace:
            self.boot = f"{self.boot} {namespace}"

    def boot_seconds(self) -> float:
        """Return seconds since boot, the same for all processes and unaffected by changes of the wall clock."""
        # On Linux they include time asleep, as Bitly's windows do. Elsewhere they do not, which makes waits longer.
        return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME) - self._ahead

    def wall(self) -> float:
        """Return the wall clock's seconds since 1970."""
        return time.time()


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, "rb", buffering=0) as stream:
            return stream.read().decode("ascii").strip()
    except (OSError, ValueError):
        return ""


def _time_namespace() -> tuple[float, str]:
    """Return by how much this process's seconds since boot are ahead of the machine's.

    And the namespace's name where that is not known: its seconds then compare with those of its own processes only.
    """
    try:
        own, childrens = os.readlink(_OWN_NAMESPACE), os.readlink(_CHILDREN_NAMESPACE)
    except OSError:  # a kernel without time namespaces, or no /proc
        return 0.0, ""
    try:
        with open(_OFFSETS, "rb", buffering=0) as stream:
            fields = [line.split() for line in stream.read().splitlines()]
        ahead = next(int(seconds) + int(nanos) / 1e9 for name, seconds, nanos in fields if name == b"boottime")
    except (OSError, ValueError, StopIteration):
        return 0.0, own
    return (ahead, "") if own == childrens else (0.0, own)  # the offsets are the children's


def from_epoch(seconds: float) -> datetime:
    """Return the moment, in UTC, of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def seconds_since_1970(moment: str) -> int:
    """Return a moment such as `2026-11-23T06:00:00Z` as seconds since 1970."""
    return int(datetime.fromisoformat(moment).timestamp())


def month_of(seconds: float) -> str:
    """Return the calendar month in UTC of seconds since 1970: `2026-11`."""
    return from_epoch(seconds).strftime("%Y-%m")


def next_month(now: datetime) -> datetime:
    """Return the start of the next month in UTC, when Bitly counts from zero again."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def parse_http_date(text: str) -> datetime | None:
    """Return the moment of a Date header, None if it is not one."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - `status` parses none, and email is large

    try:
        date = parsedate_to_datetime(text)
        date.timestamp()
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else None


def utc_text(moment: datetime | str, *, round_up: bool = False) -> str:
    """Return a moment, or its ISO text, as people are shown it everywhere: `2026-12-01 00:00 UTC`.

    round_up: to the next minute, for the end of a wait, which must be over at the moment shown.
    """
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if round_up and (moment.second or moment.microsecond):
        moment += timedelta(minutes=1)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@lru_cache(1)
def iso_second(second: int) -> str:
    """Return a second since 1970 as `utc_iso` does, formatted once for all the answers of that second."""
    return utc_iso(datetime.fromtimestamp(second, UTC))


def utc_iso(moment: datetime) -> str:
    """Return a moment as `2026-11-23T06:00:00Z`: UTC, whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z"


def as_utc(moment: datetime) -> datetime:
    """Return a moment in UTC; one without a zone is taken to be in UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


# --- the wait that a server asks for --------------------------------------------------------------------------------

_EPOCHS = (1_577_836_800, 4_102_444_800)
"""2020 and 2100 in seconds since 1970: no server asks for a wait of so many seconds."""
_MILLISECOND_DIGITS = 13
"""Digits of the present in milliseconds since 1970."""

_DECIMAL = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}")

Hint = float | datetime | None
"""The wait that the server asks for: a number of seconds, or the moment (UTC) at which it ends."""


def hint(headers: Mapping[str, str]) -> Hint:
    """Return the wait that `Retry-After` asks for, or None if it is absent, zero or malformed; callers cap it.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after. No recorded response of Bitly has it.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return _epoch_hint(text) or float(text[:9]) or None
    if _DECIMAL.fullmatch(text):  # no valid form, and meant as seconds all the same
        return float(math.ceil(float(text))) or None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return as_utc(parsedate_to_datetime(text))
    except (ValueError, IndexError, OverflowError):
        return None


def _epoch_hint(digits: str) -> datetime | None:
    """Return the moment that digits name if they are seconds, or milliseconds, since 1970; None if they are a wait.

    Some servers send the end of the wait in place of its length. As a length it would be fifty years.
    """
    if len(digits) > _MILLISECOND_DIGITS:
        return None
    seconds = int(digits) / (1000 if len(digits) == _MILLISECOND_DIGITS else 1)
    return from_epoch(seconds) if _EPOCHS[0] <= seconds < _EPOCHS[1] else None
