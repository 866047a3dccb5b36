"""The options of a run, and what they mean as typed values: everything is checked here before anything is opened."""

import atexit
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from cyclopts import Group, Parameter

from harvester.bitly import BASE_URL, FACETS, MAX_CONNECTIONS, UNITS, Query, utc_text
from harvester.errors import UsageError
from harvester.stopping import FailureLimit

if TYPE_CHECKING:
    from harvester.budget import Wanted

_ASKED = Group("What is asked", sort_key=1)
_WRITTEN = Group("What is written", sort_key=2)
_LIMITS = Group("Limits", sort_key=3)
_ENDS = Group("When to stop", sort_key=4)
_ACCESS = Group("Access", sort_key=5)
_MORE = Group("More", sort_key=6)

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TOKEN_COMMAND_SECONDS = 60
_LONGEST_SECONDS = 366 * 86400
_MOST = 2**31 - 1


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `harvester run` can be told, as it was written."""

    out: Annotated[str, Parameter(group=_WRITTEN)]
    "A folder for parts, a file that ends in .ndjson or .jsonl and grows, or - for standard output."

    work_dir: Annotated[str | None, Parameter(group=_WRITTEN)] = None
    "Where the run's private state lies, on a local disk; by default inside or beside --out."

    part_rows: Annotated[int, Parameter(group=_WRITTEN)] = 1_000_000
    "A part is published when it has this many rows."

    part_bytes: Annotated[str, Parameter(group=_WRITTEN)] = "128MiB"
    "A part is published when it has this many bytes."

    facet: Annotated[str, Parameter(group=_ASKED)] = "referrers"
    "Bitly's break-down: referrers, referrer_name, referring_domains or countries."

    unit: Annotated[str, Parameter(group=_ASKED)] = "day"
    "What --units counts: minute, hour, day, week or month."

    units: Annotated[int, Parameter(group=_ASKED, allow_leading_hyphen=True)] = -1
    "How many units back from --unit-reference; -1 for all that the plan keeps."

    unit_reference: Annotated[str | None, Parameter(group=_ASKED)] = None
    "The end of the window, ISO 8601, UTC unless it says otherwise; by default the moment the output is begun."

    size: Annotated[int, Parameter(group=_ASKED)] = 50
    "The most metrics that one row lists."

    retry_failed: Annotated[bool, Parameter(group=_ASKED, negative="")] = False
    "Ask again also for calls that have failed in three runs."

    retry_refused: Annotated[bool, Parameter(group=_ASKED, negative="")] = False
    "Ask again for calls that Bitly has refused."

    connections: Annotated[int, Parameter(group=_LIMITS)] = MAX_CONNECTIONS
    "Connections at once; Bitly allows five from one IP address."

    per_minute: Annotated[int | None, Parameter(group=_LIMITS)] = None
    "Attempts in any minute; 0 for no limit. By default what Bitly says, or else 100."

    per_hour: Annotated[int | None, Parameter(group=_LIMITS)] = None
    "Attempts in any hour; 0 for no limit. By default what Bitly says, or else 1,000."

    per_month: Annotated[int | None, Parameter(group=_LIMITS)] = None
    "The account's attempts in a calendar month, UTC; 0 for no limit. By default 1,000, as on Bitly's free plan."

    reserve: Annotated[str, Parameter(group=_LIMITS)] = "0%"
    "The share of each limit that is left to others, such as 10%."

    account: Annotated[str | None, Parameter(group=_LIMITS)] = None
    "Whose month it is: one name for all tokens of an account; by default each token has a month of its own."

    state_dir: Annotated[str | None, Parameter(group=_LIMITS, env_var="HARVESTER_STATE_DIR")] = None
    "Where the budget is kept for all runs of this machine; by default the user's state folder."

    attempts: Annotated[int, Parameter(group=_LIMITS)] = 5
    "Attempts that a call is worth before it has failed."

    timeout: Annotated[str, Parameter(group=_LIMITS)] = "30s"
    "Time for one attempt, such as 30s."

    max_failures: Annotated[str | None, Parameter(group=_ENDS)] = None
    "Stop when more calls were refused or failed: a count, or a share such as 5% (from 100 calls on, or at the end)."

    max_time: Annotated[str | None, Parameter(group=_ENDS)] = None
    "Stop after this time, such as 90s, 15m or 6h."

    max_calls: Annotated[int | None, Parameter(group=_ENDS)] = None
    "Stop after this many calls."

    outage_limit: Annotated[str, Parameter(group=_ENDS)] = "15m"
    "Stop when the server has been out for this long."

    strict: Annotated[bool, Parameter(group=_ENDS, negative="")] = False
    "Do not begin unless every line of the list is a bitlink."

    base_url: Annotated[str, Parameter(group=_ACCESS)] = BASE_URL
    "Bitly's API, or a sandbox."

    token_file: Annotated[str | None, Parameter(group=_ACCESS)] = None
    "A file whose first line is the token; otherwise BITLY_TOKEN holds it."

    token_command: Annotated[str | None, Parameter(group=_ACCESS)] = None
    "A command that prints the token, such as a password manager's."

    quiet: Annotated[bool, Parameter(group=_MORE, negative="")] = False
    "Say nothing but warnings and errors."


def query_of(options: RunOptions) -> tuple[Query, bool]:
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


def wanted_limits(options: RunOptions) -> "Wanted":
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


def account_of(options: RunOptions) -> str | None:
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
    for name in ("connections", "attempts", "part_rows"):
        _at_least("--" + name.replace("_", "-"), getattr(options, name), 1)
    if options.max_calls is not None:
        _at_least("--max-calls", options.max_calls, 1)


# --- the token ----------------------------------------------------------------------------------------------------


def token_source(options: RunOptions, warn: Callable[[str], None]) -> Callable[[], str]:
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


def has_token(options: RunOptions) -> bool:
    """Say whether a token is named anywhere; whether it can be read is another question."""
    return bool(options.token_file or options.token_command or os.environ.get("BITLY_TOKEN", "").strip())


def _token_from_environment() -> str:
    text = os.environ.get("BITLY_TOKEN", "")
    if not text.strip():
        raise UsageError(
            "no token: set BITLY_TOKEN, or give --token-file or --token-command (Bitly makes one under Settings > API)"
        )
    return _checked_token(text, "BITLY_TOKEN")


def _token_from_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return _checked_token(stream.readline(), f"--token-file {path}")
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from error


def _token_from_command(command: str) -> str:
    try:
        printed = _printed_by(shlex.split(command))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # Not the exception's text: it could hold what the command printed.
        raise UsageError(f"--token-command failed ({type(error).__name__}): run it by hand to see why") from error
    return _checked_token(printed.partition("\n")[0], "--token-command")


def _printed_by(words: list[str]) -> str:
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)  # noqa: S603 - the user's own command
    with process:
        atexit.register(process.kill)  # a run that ends meanwhile does not wait for its reader
        try:
            printed, _ = process.communicate(timeout=_TOKEN_COMMAND_SECONDS)
        except BaseException:
            process.kill()
            raise
        finally:
            atexit.unregister(process.kill)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words[0])
    return printed


def _checked_token(text: str, source: str) -> str:
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
