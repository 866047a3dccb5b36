"""The command line that this process was started with, which `run` keeps in the manifest."""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Typed:
    """What was typed. words: the command's arguments. config: the absolute path of the file of options, or None."""

    words: tuple[str, ...] = ()
    config: str | None = None


typed = Typed()
"""Set by the command, before it parses its words; empty where harvester is called from Python."""


def remember(words: Sequence[str]) -> None:
    """Remember the words of a command line, which has no file of options yet."""
    typed.words, typed.config = tuple(words), None


def variables_set(prefix: str) -> list[str]:
    """Return the names of the variables that set options. prefix: of their names."""
    return sorted(name for name, value in os.environ.items() if name.startswith(prefix) and value)
