"""Running a command that prints a secret, without a shell. No error repeats what it printed, or its words."""

import atexit
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import partial

from harvester.credentials.secret_text import (
    SILENT_SECONDS,
    SOURCE_SECONDS,
    CheckedSecret,
    checked_secret,
    first_line,
)
from harvester.errors import UsageError

_WITHOUT_SHELL = "runs without a shell, so pipes, variables and ~ are not understood; for those, use sh -c '…'"
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish"})
SECRET_VARIABLES = frozenset({"BITLY_TOKEN", "HARVESTER_CLIENT_SECRET", "HARVESTER_BUDGET_PASSWORD"})
"""Not handed to the commands that print a secret, nor to that of --on-end, which need none of them."""


def secret_in_command(
    option: str, command: str, what: str, warn: Callable[[str], None], checked: CheckedSecret = checked_secret
) -> str:
    """Return the secret that a command prints in its first line. Raises UsageError if it is none, or the command fails.

    option: the option that has the command. what: what the secret is, for errors. warn: called if the command takes
    longer than a moment.
    """
    try:
        printed = _printed_by(shlex.split(command), partial(_silent, option, what, warn))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # Without the exception's text, which may contain what the command printed.
        raise UsageError(
            f"failed ({_failure(error)}). It {_WITHOUT_SHELL}. Run it by hand to see what is wrong",
            option=option,
        ) from error
    try:
        return checked(first_line(printed), option, what)
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
    """Return what happened to a command, without its words and what it printed."""
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


def _silent(option: str, what: str, warn: Callable[[str], None]) -> None:
    warn(f"waiting for the {what}: {option} has not ended yet; it gets {SOURCE_SECONDS} s")


def _printed_by(words: list[str], warn: Callable[[], None]) -> str:
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
                warn()
                printed, _ = process.communicate(timeout=SOURCE_SECONDS - SILENT_SECONDS)
        finally:
            process.kill()  # does nothing to a command that has ended
            process.wait()  # Popen.__exit__ does not wait for long after KeyboardInterrupt
            atexit.unregister(process.kill)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words[0])
    return printed.decode(errors="replace")
