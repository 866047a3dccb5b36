"""Where a shared budget lies: Redis' address, as the options name it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from harvester.errors import UsageError

OPTION = "--budget"
_PORT = 6379
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EGRESS = re.compile(r"[!-~]{1,100}")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis server, and what of it is ours.

    username: empty for the default user. read_password: returns the password, and may block; None without one. prefix:
    of all keys. egress: the name of the address from which this host reaches Bitly.
    """

    host: str
    port: int
    database: int
    tls: bool
    username: str
    prefix: str
    egress: str
    read_password: Callable[[], str] | None = None

    def __str__(self) -> str:
        """Return the URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


def parse_address(url: str, prefix: str, egress: str, read_password: Callable[[], str] | None = None) -> RedisAddress:
    """Parse the URL of a shared budget, such as `redis://user@host:6379/0`; `rediss` is Redis over TLS.

    Raises:
        UsageError: it is no such URL, or has a password, which no error repeats; a prefix or name that is unfit.
    """
    try:
        parts = urlsplit(url.strip())
        host, port, database = parts.hostname, parts.port or _PORT, parts.path.removeprefix("/") or "0"
    except ValueError as error:
        raise UsageError(_expected(), option=OPTION) from error
    if parts.password is not None:
        raise UsageError(
            "has a password, which every user of this machine can read in the list of processes: leave it out, and "
            "use --budget-password-file, --budget-password-command or HARVESTER_BUDGET_PASSWORD",
            option=OPTION,
        )
    if parts.scheme not in {"redis", "rediss"} or not host or not database.isdecimal() or parts.query or parts.fragment:
        raise UsageError(_expected(), option=OPTION)
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(
            f"{prefix}: must be at most 64 letters, digits, dots, dashes and underscores", option="--budget-prefix"
        )
    if not _EGRESS.fullmatch(egress):
        raise UsageError(f"{egress}: must be a name without spaces, of at most 100 characters", option="--egress")
    username = unquote(parts.username or "")
    tls = parts.scheme == "rediss"
    return RedisAddress(host, port, int(database), tls, username, prefix, egress, read_password)


def _expected() -> str:
    return "must be the URL of a Redis server, such as redis://cache.example:6379/0 (rediss:// with TLS)"
