"""The border to redis-py: connecting, and its errors in our words.

A call is never repeated by itself, because one without a reply may have been counted.
"""

from typing import TYPE_CHECKING, Any

from harvester.errors import UsageError
from harvester.extras import import_redis
from harvester.fleet.address import OPTION, RedisAddress

if TYPE_CHECKING:
    import redis

_CONNECT_SECONDS = 3.0
_MOST_SHOWN = 200


class RedisConnector:
    """Makes connections to the Redis at an address.

    foreign: the exceptions that a connection may raise. name: the address as it may be shown.

    Raises:
        UsageError: redis-py is not installed.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.name = str(address)
        self.prefix = address.prefix
        self._address = address
        self._library = import_redis(f"{OPTION} {address}")
        self.unknown_script: type[Exception] = self._library.exceptions.NoScriptError
        self.foreign: tuple[type[Exception], ...] = (self._library.exceptions.RedisError, OSError)

    def connect(self, call_seconds: float) -> tuple["redis.Redis", str]:
        """Return a connection, and the name of Redis' run, which changes when it restarts. May raise `foreign`.

        call_seconds: how long a call may take.
        """
        address, library = self._address, self._library
        client: redis.Redis = library.Redis(
            host=address.host,
            port=address.port,
            db=address.database,
            username=address.username or None,
            password=address.read_password() if address.read_password else None,
            ssl=address.tls,
            protocol=2,
            single_connection_client=True,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=call_seconds,
            retry=library.retry.Retry(library.backoff.NoBackoff(), 0),
        )
        try:
            return client, _run_of(client.info("server"))
        except self.foreign:
            client.close()
            raise

    def refusal(self, error: Exception) -> UsageError | None:
        """Return our error for one that another try would meet again; None if waiting may help."""
        kinds = self._library.exceptions
        refusals = (kinds.AuthenticationError, kinds.NoPermissionError, kinds.AskError, kinds.ClusterCrossSlotError)
        return (
            UsageError(f"{self.name}: {self.in_words(error)}", option=OPTION) if isinstance(error, refusals) else None
        )

    def other_version(self, theirs: str, ours: str) -> str:
        """Return what to do where another version of the script has its keys."""
        return (
            f"{self.name}: has a budget of version {theirs} under the prefix {self.prefix}, but this harvester "
            f"supports {ours}: use the same version on all hosts, or another --budget-prefix, where counting starts "
            "from zero"
        )

    def in_words(self, error: Exception) -> str:
        """Return why there is no answer."""
        kinds, text = self._library.exceptions, str(error)[:_MOST_SHOWN]
        if isinstance(error, kinds.AuthenticationError | kinds.AuthenticationWrongNumberOfArgsError):
            return (
                "it refuses the user or the password: check --budget-password-file, --budget-password-command or "
                "HARVESTER_BUDGET_PASSWORD, and the user in the URL"
            )
        if isinstance(error, kinds.NoPermissionError):
            return f"the user may not do what is needed (EVAL, EVALSHA, INFO, and all keys of the prefix): {text}"
        if isinstance(error, kinds.AskError | kinds.ClusterCrossSlotError | kinds.ClusterDownError):
            return "it is a node of a cluster, which is not supported: name a Redis without cluster mode"
        if isinstance(error, kinds.ReadOnlyError):
            return "it is a replica, which cannot be written: name the primary"
        if isinstance(error, kinds.BusyLoadingError):
            return "it is loading its data"
        if isinstance(error, kinds.OutOfMemoryError) or "OOM" in text:
            return "its memory is full: raise maxmemory, or remove what others have stored there"
        if isinstance(error, kinds.TimeoutError):
            return "it has not answered in time"
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        return text.rstrip(".") or type(error).__name__


def _run_of(info: Any) -> str:
    """Return the name of a server's present run from its answer to INFO."""
    return str(info.get("run_id", ""))
