"""Plain command lines, read without cyclopts, whose import alone takes 40 % of the time that aiohttp takes.

A command line is plain if it names one of COMMANDS, its options by their full names, each once, and values that mean
what they say, and if nothing else can have a say: no file of options, and no variable but those of its own options.
Every other command line is left to cyclopts: also each one with a mistake, because cyclopts knows what to say of it.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter as Argument
from inspect import signature
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

from harvester.cli.command_line import COMMANDS
from harvester.config import sources
from harvester.config.files import paths_read
from harvester.config.options import RunOptions
from harvester.errors import UsageError
from harvester.parameters import Parameter, alternatives, made_of, names_in

_FOR_CYCLOPTS = frozenset(("init", "config", "login", "logout", "schema", "demo", "sandbox"))
"""Commands that are not run often enough for a difference."""
_FLAGS = frozenset(("--help", "-h", "--version"))
_WHOLE = re.compile("-?(?:0|[1-9][0-9]{0,17})")
_NOTHING = frozenset({"none", "null"})
"""Texts that cyclopts takes for None where an option may have no value."""


class _Option(NamedTuple):
    """Where an option's value goes. name: of the field or of the function's parameter."""

    name: str
    hint: Any
    settings: Mapping[str, Any]


class _NotPlain(Exception):
    """The command line is one for cyclopts."""


def plain_call(words: Sequence[str]) -> Callable[[], Any] | None:
    """Return the call that a plain command line stands for; None if it is not plain."""
    if not words or words[0] not in COMMANDS or words[0] in _FOR_CYCLOPTS:
        return None
    if {*words} & _FLAGS or os.environ.get(sources.PREFIX + "CONFIG") or paths_read(None):
        return None
    function = getattr(import_module(COMMANDS[words[0]]), words[0])
    try:
        return _bound(function, words[0], words[1:])
    except (_NotPlain, UsageError):
        return None


def _bound(function: Callable[..., Any], command: str, words: Sequence[str]) -> Callable[[], Any]:
    """Return a function with the arguments that words and variables give it.

    Raises:
        _NotPlain, UsageError: they are for cyclopts.
    """
    arguments = signature(function).parameters.values()
    options = {name: option for each in arguments for name, option in _options_of(each)}
    values, places = _read(words, options)
    positional = []
    for each in arguments:
        if each.kind is each.POSITIONAL_ONLY:
            positional.append(places or _default(each))
            places = []
        elif each.kind is each.POSITIONAL_OR_KEYWORD and places and each.name not in values:
            values[each.name] = places.pop(0)
    _refuse_if(bool(places))
    values |= _from_variables(command, {*values}, options)
    named = {each.name: _made(each, values) for each in arguments if each.kind is not each.POSITIONAL_ONLY}
    return partial(function, *positional, **named)


def _made(argument: Argument, values: Mapping[str, Any]) -> Any:
    """Return the value of a function's parameter: an option, or a class of them."""
    kind = _kind_of(argument.annotation)
    if not is_dataclass(kind):
        return values[argument.name] if argument.name in values else _default(argument)
    try:
        return made_of(cast("type", kind), values)
    except TypeError as error:  # an option without a default is missing
        raise _NotPlain from error


def _default(argument: Argument) -> Any:
    _refuse_if(argument.default is argument.empty)
    return argument.default


def _refuse_if(strange: bool) -> None:
    if strange:
        raise _NotPlain


# --- the options ------------------------------------------------------------------------------------------------------


def _options_of(argument: Argument) -> Iterator[tuple[str, _Option]]:
    """Yield the options of a function's parameter, which may be a class of them, by the names they are typed with."""
    if argument.kind is not argument.POSITIONAL_ONLY:
        yield from _options_in(argument.name, argument.annotation)


def _options_in(name: str, hint: Any) -> Iterator[tuple[str, _Option]]:
    kind = _kind_of(hint)
    if is_dataclass(kind):
        for each in fields(kind):
            yield from _options_in(each.name, each.type)
        return
    settings = next((note.settings for note in get_args(hint) if isinstance(note, Parameter)), {})
    option = _Option(name, kind, settings)
    yield settings.get("name", f"--{name.replace('_', '-')}"), option
    if "alias" in settings:
        yield settings["alias"], option


def _kind_of(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


# --- their values -----------------------------------------------------------------------------------------------------


def _read(words: Sequence[str], options: Mapping[str, _Option]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of typed options by the names of their fields, and the words that belong to none."""
    values: dict[str, Any] = {}
    places: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            _refuse_if(not word or word.lower() in _NOTHING)
            places.append(word)
            continue
        name, equals, text = word.partition("=")
        _refuse_if(name not in options or (bool(equals) and not name.startswith("--")))
        option = options[name]
        _refuse_if(option.name in values)
        if option.hint is bool:
            _refuse_if(bool(equals))
            values[option.name] = True
        else:
            text = text if equals else next(rest, "")
            _refuse_if(text.startswith("-"))
            values[option.name] = _value(option, text)
    return values, places


def _from_variables(command: str, typed: set[str], options: Mapping[str, _Option]) -> dict[str, Any]:
    """Return the values of options that were not typed, by the names of their fields."""
    by_key = {sources.key_of(name): option for name, option in options.items() if name.startswith("--")}
    # Those of `run` may be set for every command: one that has no such option does not mind.
    known = {variable for key in by_key for variable in sources.variables_of(command, key)} | _shared_variables()
    _refuse_if(any(name.startswith(sources.PREFIX) and name not in known for name in os.environ))
    values: dict[str, Any] = {}
    for layer in sources.given_in_variables(command, by_key):
        taken = {key for key, option in by_key.items() if option.name in typed or option.name in values}
        for key, given in sources.not_excluded(layer, taken):
            values[by_key[key].name] = _value(by_key[key], given.value)
    return values


def _shared_variables() -> set[str]:
    return {f"{sources.PREFIX}{name}".upper() for name in ("config", *names_in(RunOptions))}


def _value(option: _Option, text: str) -> Any:
    """Return the value that a text has for an option, if cyclopts and people agree on it."""
    _refuse_if(not text or text.lower() in _NOTHING)
    if convert := option.settings.get("converter"):
        return convert([text])
    kinds = alternatives(option.hint)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        _refuse_if(text not in choices)
    elif int in kinds:
        _refuse_if(not _WHOLE.fullmatch(text))
        return int(text)
    else:
        _refuse_if(str not in kinds)
    return text
