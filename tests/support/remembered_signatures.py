"""Lets cyclopts read each command's signature once a process, because reading them takes most of a command's CPU time.

To parse one command line, cyclopts reads signatures seven times (50 of 62 ms for `run`), always with the same result.
Here each time but the first returns a copy of that result, without what a command line has put into it. An option's
negative flags, which cyclopts works out whenever it reads an option's name, are also remembered: that is half of the
rest.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from cyclopts import App
from cyclopts.argument import Argument, ArgumentCollection

_READ: dict[tuple[Any, ...], ArgumentCollection] = {}
_NEGATIVES = ("negatives", "_negatives_hint")


def remember_signatures() -> None:
    """Put this in place for as long as the process and its forks live."""
    if getattr(App.assemble_argument_collection, "remembers", False):
        return
    App.assemble_argument_collection = _remembering(App.assemble_argument_collection)  # type: ignore[method-assign]
    for name in _NEGATIVES:
        setattr(Argument, name, _remembered_property(getattr(Argument, name).fget))


def _remembering(read: Callable[..., ArgumentCollection]) -> Callable[..., ArgumentCollection]:
    def assemble_argument_collection(app: App, **options: Any) -> ArgumentCollection:
        inherited = repr(app.app_stack.default_parameter)
        key = (app.default_command, inherited, tuple(sorted(options.items())))
        if key not in _READ:
            _READ[key] = read(app, **options)
        return _unused(_READ[key])

    assemble_argument_collection.remembers = True  # type: ignore[attr-defined]
    return assemble_argument_collection


def _remembered_property(work_out: Callable[[Argument], Any]) -> property:
    """Work a property out once for all copies of an argument, which share what it depends on."""
    known: dict[tuple[int, int], tuple[Any, ...]] = {}

    def remembered(argument: Argument) -> Any:
        shared = (argument.parameter, argument.field_info)
        key = (id(shared[0]), id(shared[1]))
        if key not in known:
            known[key] = (work_out(argument), shared)  # kept, so that no other object gets one of these ids
        return known[key][0]

    return property(remembered)


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
