"""The password of the Redis that has the budget: from a file, a command or a variable, as the token."""

import os
from collections.abc import Callable

from harvester.config.options import LimitOptions
from harvester.credentials.secret_command import secret_in_command
from harvester.credentials.secret_text import any_password, secret_in_file, warn_of_readers
from harvester.errors import UsageError

_VARIABLE = "HARVESTER_BUDGET_PASSWORD"
_FILE, _COMMAND = "--budget-password-file", "--budget-password-command"
_WHAT = "password"


def budget_password(options: LimitOptions, warn: Callable[[str], None]) -> Callable[[], str] | None:
    """Return a function that reads the password, which may block and raises UsageError; None if no source is named.

    It is read for each connection, so that it may be changed. warn: as for `token_source`. Raises UsageError if two
    sources are named.
    """
    path, command = options.budget_password_file, options.budget_password_command
    if path is not None and command is not None:
        raise UsageError(f"and {_COMMAND}: use one of them", option=_FILE)
    if path is not None:
        warn_of_readers(_FILE, path, warn)
        return lambda: secret_in_file(_FILE, path, _WHAT, warn, any_password)
    if command is not None:
        return lambda: secret_in_command(_COMMAND, command, _WHAT, warn, any_password)
    if os.environ.get(_VARIABLE):
        return lambda: os.environ.get(_VARIABLE, "")
    return None
