"""Lets cyclopts read each command's signature once a process, because reading them takes most of a command's CPU time.

To parse one command line, cyclopts reads signatures seven times (50 of 62 ms for `run`), always with the same result.
Here each time but the first returns a copy of that result, without what a command line has put into it.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from cyclopts import App
from cyclopts.argument import Argument, ArgumentCollection

_READ: dict[tuple[Any, ...], ArgumentCollection] = {}


def remember_signatures() -> None:
    """Put this in place for as long as the process and its forks live."""
    if getattr(App.assemble_argument_collection, "remembers", False):
        return
    App.assemble_argument_collection = _remembering(App.assemble_argument_collection)  # type: ignore[method-assign]


def _remembering(read: Callable[..., ArgumentCollection]) -> Callable[..., ArgumentCollection]:
    def assemble_argument_collection(app: App, **options: Any) -> ArgumentCollection:
        inherited = repr(app.app_stack.default_parameter)
        key = (app.default_command, inherited, tuple(sorted(options.items())))
        if key not in _READ:
            _READ[key] = read(app, **options)
        return _unused(_READ[key])

    assemble_argument_collection.remembers = True  # type: ignore[attr-defined]
    return assemble_argument_collection


def _unused(arguments: ArgumentCollection) -> ArgumentCollection:
    """Copy arguments, and how they belong together, without their values."""
    copies: dict[int, Argument] = {}
    for each in arguments:
        copies[id(each)] = mine = copy.copy(each)
        mine.tokens = []
    for each in copies.values():
        each.children = _collection(copies[id(child)] for child in each.children)
    return _collection(copies.values())


def _collection(arguments: Iterable[Argument]) -> ArgumentCollection:
    return ArgumentCollection(arguments)  # type: ignore[no-untyped-call]
