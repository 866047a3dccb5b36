"""Mistakes on a command line, in a variable or in a file: what is wrong, and what to do."""

import re
from collections.abc import Iterable
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from harvester.config.sources import DASH
from harvester.parameters import alternatives

if TYPE_CHECKING:
    from cyclopts import CycloptsError, MissingArgumentError

_MUST_BE = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
_LONGEST_SHOWN = 60
_OUT = (
    "--out is missing: where the rows are written, such as --out lake (a folder) or --out results.ndjson (a file that "
    "grows); or set `out` in a config file"
)


def parse_error_text(error: "CycloptsError") -> str:
    """Return what is wrong with a command line, a variable or a file, and what to do."""
    return _in_words(error).replace(DASH, "-")


def _in_words(error: "CycloptsError") -> str:
    from difflib import get_close_matches  # noqa: PLC0415

    from cyclopts import (  # noqa: PLC0415 - it has made the error
        CoercionError,
        MissingArgumentError,
        RepeatArgumentError,
        UnknownCommandError,
        UnknownOptionError,
        UnusedCliTokensError,
    )

    match error:
        case UnknownCommandError(unused_tokens=[word, *_]):
            return f'unknown command "{bounded(word)}"{_nearest(word, error.app or (), "harvester --help")}'
        case UnknownOptionError():
            word = (error.token.keyword or error.token.value).partition("=")[0]
            known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
            return f"unknown option {bounded(word)}{_nearest(word, known, _help(error))}"
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            return f"{bounded(word)} is one argument too many; see {_help(error)}"
        case RepeatArgumentError():
            return f"{error.token.keyword} was given twice; it takes one value"
        case MissingArgumentError(argument=argument) if argument is not None:
            return _missing(error, argument.name)
        case CoercionError(argument=argument, token=token) if argument and token and not error.msg:
            near = get_close_matches(token.value, choices_in(argument.hint), 1)
            wrong = f"{token.keyword or argument.name} {bounded(token.value)}: must be {must_be(argument.hint)}"
            return wrong + (f"; did you mean {near[0]}?" if near else "")
    error.verbose = False
    return str(error)


def _missing(error: "MissingArgumentError", name: str) -> str:
    if error.keyword or name.startswith("--"):
        if name == "--out" and not error.keyword and (example := _example(error)):
            return f"name the output: {example}; see {_help(error)}"
        gone = f"{error.keyword} needs a value" if error.keyword else f"{name} is missing{_as_in(error)}"
        return f"{gone}; see {_help(error)}"
    if name == "*":  # the options of a run, of which one has no default
        bare = list(error.root_input_tokens or ()) == list(error.command_chain or ())
        return f"LINKS is missing{_as_in(error)}; see {_help(error)}" if bare else _OUT
    return f"{name} is missing{_as_in(error)}; see {_help(error)}"


def _as_in(error: "CycloptsError") -> str:
    example = _example(error)
    return f", as in: {example}" if example else ""


def _help(error: "CycloptsError") -> str:
    """Return the command that prints the help of the command with the mistake."""
    command = " ".join(error.command_chain or ())
    return f"harvester {command} --help-all" if command in {"run", "plan", "show"} else f"harvester {command} --help"


def _example(error: "CycloptsError") -> str:
    """Return the first example of the command's help."""
    found = re.search(r"^ *(harvester .*?)(?:  |$)", str(error.app and error.app.help_epilogue), re.MULTILINE)
    return found[1] if found else ""


def _nearest(word: str, known: Iterable[str], explained_by: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    near = get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}? See {explained_by}" if near else f"; see {explained_by}"


def choices_in(hint: Any) -> list[str]:
    """Return the values that a hint allows; empty if it is not a list of values."""
    kinds = get_args(hint)[:1] if get_origin(hint) is tuple else alternatives(hint)
    return [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


def must_be(hint: Any) -> str:
    """Return what a value with this hint must be, to follow `must be`."""
    if choices := choices_in(hint):
        return f"one of {', '.join(choices)}"
    return " or ".join(_MUST_BE.get(kind, "text") for kind in alternatives(hint) if kind is not NoneType)


def bounded(text: str) -> str:
    """Return a text that may be of any length as it is shown."""
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
