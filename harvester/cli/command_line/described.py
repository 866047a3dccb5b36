"""The functions of the commands with cyclopts' own parameters and groups in place of ours.

`app` registers them by their paths in this module, which makes each when it is asked for.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Annotated, Any, get_args, get_origin

import cyclopts

from harvester.cli.command_line import COMMANDS
from harvester.parameters import Group, Parameter


def __getattr__(name: str) -> Any:
    """Return the function of a command."""
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _described(getattr(import_module(COMMANDS[name]), name))
    globals()[name] = value
    return value


def _described(function: FunctionType) -> FunctionType:
    """Return a copy of a function whose annotations are cyclopts' own; `plain` reads those of the original."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__doc__, copy.__module__ = function.__kwdefaults__, function.__doc__, function.__module__
    copy.__annotations__ = {name: _hint(hint) for name, hint in function.__annotations__.items()}
    return copy


def _hint(hint: Any) -> Any:
    """Return a type hint with cyclopts' parameters; describe the class of options that it is or may be."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        return Annotated[kind, *(_parameter(each) if isinstance(each, Parameter) else each for each in notes)]
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and is_dataclass(kind):
            _describe(kind)
    return hint


@cache
def _describe(kind: type) -> None:
    """Set cyclopts' parameters on a class of options and on those in it. `dataclasses.fields` still returns ours."""
    kind.__annotations__ = {each.name: _hint(each.type) for each in fields(kind)}
    parameter: Parameter = kind.parameter  # type: ignore[attr-defined]
    _parameter(parameter)(kind)


def _parameter(ours: Parameter) -> cyclopts.Parameter:
    settings = dict(ours.settings)
    if "group" in settings:
        settings["group"] = _group(settings["group"])
    if "converter" in settings:
        settings["converter"] = _of_tokens(settings["converter"])
    return cyclopts.Parameter(**settings)


@cache
def _group(ours: Group) -> cyclopts.Group:
    return cyclopts.Group(ours.title, sort_key=ours.sort_key)


def _of_tokens(convert: Callable[[list[str]], Any]) -> Callable[[Any, Any], Any]:
    """Return a converter of cyclopts' tokens, made of one of texts."""
    return lambda _, tokens: convert([token.value for token in tokens])
