"""What may be shown of a command line and of options, in which a secret may stand by mistake."""

import os
import re
from collections.abc import Iterable, Iterator

_SHORTEST_SECRET = 20


def may_be_secret(path: str) -> bool:
    """Return whether the name of a missing file looks like a secret that was given instead of its file's path."""
    plain = "/" not in path and "." not in path and any(character.isdigit() for character in path)
    return len(path) >= _SHORTEST_SECRET and plain and not os.path.exists(path)


def shown_path(path: str) -> str:
    """Return a secret file's path, or `…` if it seems to be the secret itself."""
    return "…" if may_be_secret(path) else path


def shown_command(command: str) -> str:
    """Return a token command's first word; those behind it may hold a secret."""
    name, _, arguments = command.strip().partition(" ")
    return f"{name} …" if arguments else name


def shown_url(url: str) -> str:
    """Return a URL with `…` in place of a user and a password."""
    return re.sub(r"//.*@", "//…@", url)


def without_secrets(words: Iterable[str]) -> Iterator[str]:
    """Yield the words of a command line; `…` stands for what may be a secret.

    No option takes a token, but one may stand by mistake where the path of its file was expected, and the arguments of
    a token command may hold a password.
    """
    hide = {
        "--token-file": shown_path,
        "--token-command": shown_command,
        "--budget": shown_url,
        "--budget-password-file": shown_path,
        "--budget-password-command": shown_command,
    }
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if option:
            yield hide[option](word)
            option = ""
        elif equals and name in hide:
            yield f"{name}={hide[name](value)}"
        else:
            yield word
            option = word if word in hide else ""


def may_hold_secret(variable: str, value: str) -> bool:
    """Return whether a variable's value may not be kept: a command with arguments, or a secret in a path's place."""
    if variable.endswith(("_TOKEN_FILE", "_PASSWORD_FILE")):
        return may_be_secret(value)
    if variable.endswith("_BUDGET"):
        return shown_url(value) != value
    return variable.endswith(("_TOKEN_COMMAND", "_PASSWORD_COMMAND", "_ON_END")) and shown_command(value) != value
