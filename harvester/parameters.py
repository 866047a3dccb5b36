"""What a command line and `--help` must know of an option, as the options' own modules state it.

cyclopts has classes of the same names and meanings, but importing it takes 40 % of the time that aiohttp takes.
`cli.command_line.described` makes its classes of these where it parses; `cli.command_line.plain` reads these alone.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin

T = TypeVar("T")


class Group(NamedTuple):
    """A heading of `--help`. sort_key: its place among the others."""

    title: str
    sort_key: int


class Parameter:
    """The settings of an option, in Annotated, or of a class of options, as its decorator.

    settings: as cyclopts.Parameter takes them; group: one of ours; converter: makes a value of the texts given.
    """

    __slots__ = ("settings",)

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, kind: type[T]) -> type[T]:
        """Attach the settings to a class."""
        kind.parameter = self  # type: ignore[attr-defined]
        return kind


def by_name(options: Any) -> dict[str, Any]:
    """Return the values of a group's options, also of the groups in it, by name."""
    groups, own = _layout(cast("type", type(options)))
    found = {name: getattr(options, name) for name in own}
    for name in groups:
        found |= by_name(getattr(options, name))
    return found


def made_of(kind: type[T], given: Mapping[str, Any]) -> T:
    """Return a group of options, with the groups in it, from values by name, among which may be those of others."""
    groups, own = _layout(cast("type", kind))
    values = {name: given[name] for name in own if name in given}
    for name, group in groups.items():
        values[name] = made_of(group, given)
    return kind(**values)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or any other hint alone."""
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)


def names_in(kind: type) -> list[str]:
    """Return the names of a group's options, also of the groups in it."""
    return list(hints_in(kind))


@cache
def hints_in(kind: type) -> Mapping[str, Any]:
    """Return the type hints of a group's options, also of the groups in it, by name; without what Annotated adds."""
    groups, own = _layout(kind)
    found = {name: get_args(hint)[0] if get_origin(hint) is Annotated else hint for name, hint in own.items()}
    for group in groups.values():
        found |= hints_in(group)
    return found


@cache
def _layout(kind: type) -> tuple[dict[str, type], dict[str, Any]]:
    """Return the groups in a group of options, and the type hints of its own options, by name.

    They are types, not text, as long as their modules do not postpone annotations. `typing.get_type_hints`, which
    evaluates text too, took a quarter of the CPU of one link from Python.
    """
    hints = {each.name: each.type for each in fields(kind)}
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    return groups, {name: hint for name, hint in hints.items() if name not in groups}
