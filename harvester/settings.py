"""What options mean as typed values: everything is checked here before anything is opened."""

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harvester.bitly import BASE_URL, FACETS, UNITS, Query, utc_text
from harvester.errors import UsageError
from harvester.options import AccessOptions, LimitOptions, QueryOptions, RunOptions
from harvester.stopping import FailureLimit

if TYPE_CHECKING:
    from harvester.budget import Wanted

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TOKEN_COMMAND_SECONDS = 60
_LONGEST_SECONDS = 366 * 86400
_MOST = 2**31 - 1


def query_of(options: QueryOptions) -> tuple[Query, bool]:
    """Give the query, and whether its unit_reference is merely this moment.

    Raises:
        UsageError: a value that Bitly does not know.
    """
    _one_of("--facet", options.facet, tuple(FACETS))
    _one_of("--unit", options.unit, UNITS)
    if options.units != -1:
        _at_least("--units", options.units, 1, "or -1 for all")
    _at_least("--size", options.size, 1)
    reference = datetime.now(UTC) if options.unit_reference is None else _moment(options.unit_reference)
    query = Query(options.facet, options.unit, options.units, utc_text(reference), options.size)
    return query, options.unit_reference is None


def wanted_limits(options: LimitOptions) -> "Wanted":
    """Give the limits as they were asked for. Raises UsageError for negative ones, and for a reserve of everything."""
    from harvester.budget import Wanted  # noqa: PLC0415 - --help must not wait for SQLite

    for name in ("per_minute", "per_hour", "per_month"):
        if (value := getattr(options, name)) is not None:
            _at_least("--" + name.replace("_", "-"), value, 0, "0 means no limit")
    return Wanted(options.per_minute, options.per_hour, options.per_month, _reserve_of(options.reserve))


def _reserve_of(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if not match or float(match[1]) >= 100:
        raise UsageError(f"--reserve {text}: a share such as 10% was expected, below 100%")
    return float(match[1]) / 100


def account_of(options: LimitOptions) -> str | None:
    """Give the account's name. Raises UsageError for one that cannot be shown."""
    if options.account is not None and not re.fullmatch(r"[^\x00-\x20\x7f-\x9f]{1,100}", options.account):
        raise UsageError("--account: a name without spaces, of at most 100 characters, was expected")
    return options.account


def failure_limit_of(text: str | None) -> FailureLimit | None:
    """Read --max-failures: `25`, or `5%`. Raises UsageError."""
    if text is None:
        return None
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if not value >= 0 or (percent and value > 100):  # not even a number is not >= 0
        raise UsageError(f"--max-failures {text}: a count such as 25, or a share such as 5%, was expected")
    return FailureLimit(share=value / 100) if percent else FailureLimit(count=int(value))


def seconds_of(option: str, text: str) -> float:
    """Read a duration: `90`, `90s`, `15m`, `1h30m`, `2d`. Raises UsageError."""
    pieces = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in pieces)
    whole = "".join(number + unit for number, unit in pieces) == text.strip().lower()
    if not whole or not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(f"{option} {text}: a time such as 90s, 15m or 6h was expected")
    return seconds


def bytes_of(option: str, text: str) -> int:
    """Read a size: `1048576`, `64MB`, `128MiB`. Raises UsageError."""
    match = re.fullmatch(r"(\d+)\s*([kmg]i?|)b?", text.strip().lower())
    if not match or not int(match[1]):
        raise UsageError(f"{option} {text}: a size such as 64MB or 128MiB was expected")
    return int(match[1]) * _SIZES[match[2]]


def checked_base_url(url: str) -> str:
    """Give the base URL, if the token may be sent there: HTTPS, or this machine. Raises UsageError."""
    if set(url) & set("@?#"):
        raise UsageError("--base-url: no user name, query or fragment may stand in it")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port or an address that is none
        fine = False
    if not fine or not parts.hostname or not re.fullmatch(r"[!-~]+", url):
        raise UsageError(f"--base-url {url}: a URL such as {BASE_URL} was expected")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise UsageError(f"--base-url {url}: the token would travel unencrypted; use https")
    return url.rstrip("/")


def check_counts(options: RunOptions) -> None:
    """Refuse counts below one. Raises UsageError."""
    _at_least("--connections", options.limits.connections, 1)
    _at_least("--attempts", options.limits.attempts, 1)
    _at_least("--part-rows", options.output.part_rows, 1)
    if options.ends.max_calls is not None:
        _at_least("--max-calls", options.ends.max_calls, 1)


# --- the token ----------------------------------------------------------------------------------------------------


def token_source(options: AccessOptions, warn: Callable[[str], None]) -> Callable[[], str]:
    """Give the function that reads the token from where the options say; it raises UsageError and may block."""
    if options.token_file is not None and options.token_command is not None:
        raise UsageError("--token-file and --token-command: give one of them")
    if options.token_file is not None:
        path = options.token_file
        _warn_of_readers(path, warn)
        return lambda: _token_from_file(path)
    if options.token_command is not None:
        command = options.token_command
        return lambda: _token_from_command(command)
    return _token_from_environment


def has_token(options: AccessOptions) -> bool:
    """Say whether a token is named anywhere; whether it can be read is another question."""
    return bool(options.token_file or options.token_command or os.environ.get("BITLY_TOKEN", "").strip())


def _token_from_environment() -> str:
    text = os.environ.get("BITLY_TOKEN", "")
    if not text.strip():
        raise UsageError(
            "no token: set BITLY_TOKEN, or give --token-file or --token-command (Bitly makes one under Settings > API)"
        )
    return checked_token(text, "BITLY_TOKEN")


def _token_from_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return checked_token(stream.readline(), f"--token-file {path}")
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from error


def _token_from_command(command: str) -> str:
    try:
        words = shlex.split(command)
        done = subprocess.run(  # noqa: S603 - the user's own command
            words,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=_TOKEN_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # Not the exception's text: it could hold what the command printed.
        raise UsageError(f"--token-command failed ({type(error).__name__}): run it by hand to see why") from error
    return checked_token(done.stdout.partition("\n")[0], "--token-command")


def checked_token(text: str, source: str) -> str:
    """Give the token in a text, stripped. Raises UsageError, which names the source and not the text."""
    token = text.strip()
    if not token:
        raise UsageError(f"{source}: no token in it")
    if not re.fullmatch(r"[!-~]+", token):
        raise UsageError(f"{source}: a token has no spaces or special characters; is it the right one?")
    return token


def _warn_of_readers(path: str, warn: Callable[[str], None]) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # reading it says why
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"--token-file {path} can be read by others: chmod 600 {path}")


# --- checks -------------------------------------------------------------------------------------------------------


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value}: one of {', '.join(known)} was expected")


def _at_least(option: str, value: int, least: int, hint: str = "") -> None:
    if value > _MOST:
        raise UsageError(f"{option} {value}: at most {_MOST} was expected")
    if value < least:
        raise UsageError(f"{option} {value}: at least {least} was expected{f' ({hint})' if hint else ''}")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--unit-reference {text}: a moment such as 2026-11-23T00:00:00Z was expected") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
