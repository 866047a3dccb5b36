"""The token: which source it comes from, and reading it.

Precedence: --token-file or --token-command, BITLY_TOKEN, the store of `harvester login`; from Python, a text or a
callable that is passed. The source is read again when Bitly refuses the token, because it may have been rotated. No
error repeats a secret.
"""

import inspect
import os
from collections.abc import Callable
from typing import TypeAlias

from harvester.bitly.query import BASE_URL
from harvester.config.base_url import checked_base_url
from harvester.config.options import AccessOptions, RunOptions
from harvester.credentials.redaction import shown_path
from harvester.credentials.secret_command import secret_in_command
from harvester.credentials.secret_text import checked_secret, secret_in_file, warn_of_readers
from harvester.credentials.token_store import TokenStore
from harvester.errors import HarvesterError, UsageError

TokenGiven: TypeAlias = str | Callable[[], str] | None
"""A token passed from Python: a text, or a callable that returns one."""


def token_source(options: AccessOptions, warn: Callable[[str], None]) -> Callable[[], str]:
    """Return a function that reads the token from the source that the options name; it blocks, and raises UsageError.

    warn: called if others can read the file, and when reading takes longer than a moment. Raises UsageError if two
    sources are named.
    """
    path, command = options.token_file, options.token_command
    if path is not None and command is not None:
        raise UsageError("and --token-command: use one of them", option="--token-file")
    if path is not None:
        warn_of_readers("--token-file", path, warn)
        return lambda: secret_in_file("--token-file", path, "token", warn)
    if command is not None:
        return lambda: secret_in_command("--token-command", command, "token", warn)
    return lambda: _unnamed_token(options)


def has_token(options: AccessOptions) -> bool:
    """Return True if a source is named or a token is stored. Raises as `token_origin`."""
    return bool(token_origin(options))


def token_origin(options: AccessOptions) -> str:
    """Return the name of the source that `token_source` would read; empty if there is none.

    Reads the store if no other source is named. Raises UsageError if that fails.
    """
    if options.token_file:
        return f"--token-file {shown_path(options.token_file)}"
    if options.token_command:
        return "--token-command"
    if os.environ.get("BITLY_TOKEN", "").strip():
        return "BITLY_TOKEN"
    stored = _store_for(options).read()
    return stored[1] if stored else ""


def _unnamed_token(options: AccessOptions) -> str:
    """Return the token of BITLY_TOKEN, else the stored one."""
    text = os.environ.get("BITLY_TOKEN", "")
    if text.strip():
        return checked_secret(text, "BITLY_TOKEN", "token")
    stored = _store_for(options).read()
    if stored is None:
        server = "" if options.base_url == BASE_URL else f" --base-url {options.base_url}"
        raise UsageError(
            "no token: set BITLY_TOKEN, use --token-file or --token-command (Bitly makes one under Settings > API), "
            f"or store one: harvester login{server}"
        )
    text, where = stored
    return checked_secret(text, f"{where} (made by harvester login)", "token")


def _store_for(options: AccessOptions) -> TokenStore:
    return TokenStore(checked_base_url(options.base_url), options.token_store)


# --- from Python ---------------------------------------------------------------------------------------------------


def token_reader(token: TokenGiven, options: RunOptions) -> Callable[[], str] | None:
    """Return a function that returns the token and may block; None if no token was passed.

    Raises:
        UsageError: the options name a source too, or the token is neither a text nor a callable.
    """
    if token is None:
        return None
    if options.access.token_file is not None or options.access.token_command is not None:
        raise UsageError("token, token_file and token_command: use one of them")
    if isinstance(token, str):
        return lambda: checked_secret(token, "token", "token")
    if callable(token):
        return lambda: _result_of(token)
    raise UsageError(f"token: must be text, or a callable that returns it, not {type(token).__name__}")


def token_is_at_hand(token: TokenGiven, options: RunOptions) -> bool:
    """Return whether reading the token cannot block: a text, a variable or a regular file.

    A callable, a command, a pipe and a keyring, which may ask a person for a password, are read in a thread instead, so
    that the event loop goes on.
    """
    if token is not None:
        return isinstance(token, str)
    access = options.access
    if access.token_command is not None:
        return False
    if access.token_file is not None:
        return os.path.isfile(access.token_file)
    return bool(os.environ.get("BITLY_TOKEN", "").strip())


def _result_of(token: Callable[[], object]) -> str:
    try:
        found = token()
    except HarvesterError:
        raise
    except BaseException as error:  # in a thread nobody else would notice, not even of sys.exit
        # Without its text, which may contain the token.
        raise UsageError(f"token: the callable raised {type(error).__name__}") from error
    if inspect.iscoroutine(found):
        found.close()
        raise UsageError("token: must be a plain callable, not an asynchronous one")
    if not isinstance(found, str):
        raise UsageError(f"token: the callable must return text, not {type(found).__name__}")
    return checked_secret(found, "token", "token")
