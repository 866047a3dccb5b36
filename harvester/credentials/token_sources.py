"""The token: which source it comes from, and reading it.

Precedence: --token-file or --token-command, BITLY_TOKEN, the store of `harvester login`; from Python, a text or a
callable that is passed. The source is read again when Bitly refuses the token, because it may have been rotated. No
error repeats a secret.
"""

import atexit
import inspect
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import TypeAlias

from harvester.bitly.query import BASE_URL
from harvester.config.base_url import checked_base_url
from harvester.config.options import AccessOptions, RunOptions
from harvester.credentials.redaction import shown_path
from harvester.credentials.secret_text import (
    SILENT_SECONDS,
    SOURCE_SECONDS,
    checked_secret,
    first_line,
    secret_in_file,
    warn_of_readers,
)
from harvester.credentials.token_store import TokenStore
from harvester.errors import HarvesterError, UsageError

_WITHOUT_SHELL = "runs without a shell, so pipes, variables and ~ are not understood; for those, use sh -c '…'"
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish"})
SECRET_VARIABLES = frozenset({"BITLY_TOKEN", "HARVESTER_CLIENT_SECRET"})
"""Not handed to the commands of --token-command and --on-end, which need neither."""

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
        return lambda: _token_from_command(command, warn)
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


def _token_from_command(command: str, warn: Callable[[str], None]) -> str:
    try:
        printed = _printed_by(shlex.split(command), warn)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # Without the exception's text, which may contain what the command printed.
        raise UsageError(
            f"failed ({_failure(error)}). It {_WITHOUT_SHELL}. Run it by hand to see what is wrong",
            option="--token-command",
        ) from error
    try:
        return checked_secret(first_line(printed), "--token-command", "token")
    except UsageError as error:
        if hint := shell_hint(shlex.split(command)):
            raise UsageError(f"{error}. {hint}") from None
        raise


def shell_hint(words: list[str]) -> str:
    """Return what to do if a command that runs without a shell seems to need one; empty if not."""
    if os.path.basename(words[0]) in _SHELLS:
        return ""
    if any("|" in word or "$" in word or "`" in word or word.startswith("~") for word in words):
        return f"It {_WITHOUT_SHELL}"
    if os.sep not in words[0] and os.path.isfile(words[0]) and shutil.which(words[0]) is None:
        return f"It runs without a shell and is looked for in PATH: for the file in this folder, use ./{words[0]}"
    return ""


def _failure(error: Exception) -> str:
    """Return what happened to a token command, without its words and what it printed."""
    match error:
        case FileNotFoundError():
            return "no such program"
        case subprocess.CalledProcessError():
            return f"exit code {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"no end within {SOURCE_SECONDS} s"
        case ValueError() | IndexError():
            return "it is empty, or a quote is not closed"
    return type(error).__name__


def _printed_by(words: list[str], warn: Callable[[str], None]) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    process = subprocess.Popen(  # noqa: S603 - the user's own command
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
    )
    with process:
        atexit.register(process.kill)  # the process can end while a thread still reads from the command
        try:
            try:
                printed, _ = process.communicate(timeout=SILENT_SECONDS)
            except subprocess.TimeoutExpired:
                warn(f"waiting for the token: --token-command has not ended yet; it gets {SOURCE_SECONDS} s")
                printed, _ = process.communicate(timeout=SOURCE_SECONDS - SILENT_SECONDS)
        finally:
            process.kill()  # does nothing to a command that has ended
            process.wait()  # Popen.__exit__ does not wait for long after KeyboardInterrupt
            atexit.unregister(process.kill)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words[0])
    return printed.decode(errors="replace")


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
