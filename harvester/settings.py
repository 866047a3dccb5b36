"""What options mean as typed values: everything is checked here before anything is opened."""

import atexit
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from harvester import layout
from harvester.bitly import BASE_URL, FACETS, UNITS, Query, utc_text
from harvester.errors import UsageError
from harvester.options import AccessOptions, LimitOptions, QueryOptions, RunOptions, SayOptions
from harvester.quota import Wanted
from harvester.stopping import FailureLimit
from harvester.vault import Store, Vault

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TOKEN_COMMAND_SECONDS = 60
_LONGEST_SECONDS = 366 * 86400
_MOST = 2**31 - 1
_BUYS_AGAIN = ": by default it is the moment of the first run, and tomorrow's same command would buy the list again"


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


def laid_out(options: RunOptions) -> RunOptions:
    """Give the options with the placeholders in --out and --work-dir filled in: `lake/{facet}/dt={dt}`.

    Once only: what it gives may have braces that stand for themselves.

    Raises:
        UsageError: a placeholder that is none, or {dt} without --unit-reference.
    """
    output, query = options.output, options.query
    out = path_of("--out", output.out, query.facet, query.unit_reference, because=_BUYS_AGAIN)
    work_dir = output.work_dir
    if work_dir is not None:
        work_dir = path_of("--work-dir", work_dir, query.facet, query.unit_reference, because=_BUYS_AGAIN)
    return replace(options, output=replace(output, out=out, work_dir=work_dir))


def path_of(name: str, path: str, facet: str, unit_reference: str | None, *, because: str = "") -> str:
    """Give the path that one with placeholders means, as `layout.filled` does. Raises UsageError."""
    _one_of("--facet", facet, tuple(FACETS))
    day = None if unit_reference is None else _moment(unit_reference).date().isoformat()
    return layout.filled(path, {"dt": day, "facet": facet}, name=name, because=because)


def wanted_limits(options: LimitOptions) -> Wanted:
    """Give the limits as they were asked for. Raises UsageError for negative ones, and for a reserve of everything."""
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


def store_of(text: str | None) -> Store | None:
    """Read --store; None leaves it to what there is. Raises UsageError."""
    if text is not None:
        _one_of("--store", text, tuple(Store))
    return None if text is None else Store(text)


def log_format_of(options: SayOptions) -> str:
    """Give the form of standard error: text or json. Raises UsageError for another."""
    _one_of("--log-format", options.log_format, ("text", "json"))
    return options.log_format


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
        warn_of_readers("--token-file", path, warn)
        return lambda: secret_in_file("--token-file", path, "token")
    if options.token_command is not None:
        command = options.token_command
        return lambda: _token_from_command(command)
    return lambda: _token_from_environment() or _kept_token(options)


def has_token(options: AccessOptions) -> bool:
    """Say whether a token is named or kept anywhere; whether it can be read is another question.

    Raises:
        UsageError: nothing is named, and the kept token cannot be looked for.
    """
    named = options.token_file or options.token_command or os.environ.get("BITLY_TOKEN", "").strip()
    return bool(named) or _vault_of(options).read() is not None


def token_origin(options: AccessOptions) -> str:
    """Name the source that `token_source` would read."""
    if options.token_file is not None:
        return f"--token-file {options.token_file}"
    if options.token_command is not None:
        return "--token-command"
    if os.environ.get("BITLY_TOKEN", "").strip():
        return "BITLY_TOKEN"
    kept = _vault_of(options).read()
    return kept[1] if kept else "BITLY_TOKEN"


def _token_from_environment() -> str | None:
    text = os.environ.get("BITLY_TOKEN", "")
    return checked_secret(text, "BITLY_TOKEN", "token") if text.strip() else None


def _kept_token(options: AccessOptions) -> str:
    kept = _vault_of(options).read()
    if kept is None:
        server = "" if options.base_url == BASE_URL else f" --base-url {options.base_url}"
        raise UsageError(
            "no token: set BITLY_TOKEN, give --token-file or --token-command (Bitly makes one under Settings > API), "
            f"or keep one: harvester login{server}"
        )
    text, where = kept
    return checked_secret(text, f"{where} (made by harvester login)", "token")


def _vault_of(options: AccessOptions) -> Vault:
    return Vault(checked_base_url(options.base_url), options.token_store)


def secret_in_file(option: str, path: str, what: str) -> str:
    """Give a file's first line, a secret. Raises UsageError where there is none, without repeating it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return checked_secret(stream.readline(), f"{option} {path}", what)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def _token_from_command(command: str) -> str:
    try:
        printed = _printed_by(shlex.split(command))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # Not the exception's text: it could hold what the command printed.
        raise UsageError(f"--token-command failed ({type(error).__name__}): run it by hand to see why") from error
    return checked_secret(printed.partition("\n")[0], "--token-command", "token")


def _printed_by(words: list[str]) -> str:
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)  # noqa: S603 - the user's own command
    with process:
        atexit.register(process.kill)  # a run that ends meanwhile does not wait for its reader
        try:
            printed, _ = process.communicate(timeout=_TOKEN_COMMAND_SECONDS)
        except BaseException:
            process.kill()
            process.wait()  # leaving the block does not wait after Ctrl-C
            raise
        finally:
            atexit.unregister(process.kill)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words[0])
    return printed


def checked_secret(text: str, source: str, what: str) -> str:
    """Give a secret without the white space around it. Raises UsageError for what is none, without repeating it."""
    secret = text.strip()
    if not secret:
        raise UsageError(f"{source}: no {what} in it")
    if not re.fullmatch(r"[!-~]+", secret):
        raise UsageError(f"{source}: a {what} has no spaces or special characters; is it the right one?")
    return secret


def warn_of_readers(option: str, path: str, warn: Callable[[str], None]) -> None:
    """Warn of a file that others can read."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # reading it says why
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{option} {path} can be read by others: chmod 600 {path}")


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
