"""`dataclass` as the standard library has it, made in a third of the time.

A run has 80 data classes. Before Python 3.13 the standard library compiles up to six methods for each, one by one; this
took a seventh of the CPU of a run of one link. Here only `__init__` is compiled, because it is called most; the others
are shared code that goes through the fields. Modules that import none of ours need not use it.
"""

import sys
from dataclasses import MISSING, Field, FrozenInstanceError, fields
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 13):
    from dataclasses import dataclass
else:
    from dataclasses import dataclass as _with_fields

    def dataclass(kind=None, /, *, frozen=False, slots=False, kw_only=False):
        """Return a class as a data class, or a decorator that does."""

        def made(kind):
            own = {**vars(kind)}
            kind = _with_fields(kind, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)
            methods = _methods(kind, fields(kind), frozen=frozen)
            if frozen and slots:
                methods |= {"__getstate__": _state, "__setstate__": _set_state}
            for name, method in methods.items():
                if name not in own:
                    setattr(kind, name, method)
            return kind

        return made if kind is None else made(kind)


__all__ = ["dataclass"]


def _methods(kind: type, all_fields: tuple[Field[Any], ...], *, frozen: bool) -> dict[str, Any]:
    compared = _values_of([each.name for each in all_fields if each.compare])
    shown = [each.name for each in all_fields if each.repr]

    def equal(self: Any, other: Any) -> Any:
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    def text(self: Any) -> str:
        return f"{self.__class__.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    methods: dict[str, Any] = {
        "__init__": _init(kind, all_fields, frozen=frozen),
        "__eq__": equal,
        "__repr__": recursive_repr()(text),
        "__hash__": None,
    }
    return methods | _frozen(kind, all_fields) if frozen else methods


def _frozen(kind: Any, all_fields: tuple[Field[Any], ...]) -> dict[str, Any]:
    names = frozenset(each.name for each in all_fields)
    hashed = _values_of([each.name for each in all_fields if (each.compare if each.hash is None else each.hash)])

    def assign(self: Any, name: str, value: Any) -> None:
        if type(self) is kind or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(kind, self).__setattr__(name, value)

    def delete(self: Any, name: str) -> None:
        if type(self) is kind or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(kind, self).__delattr__(name)

    return {"__setattr__": assign, "__delattr__": delete, "__hash__": lambda self: hash(hashed(self))}


def _values_of(names: list[str]) -> Any:
    """Return what gets the values of some fields as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple(getattr(self, name) for name in names)


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)


def _init(kind: type, all_fields: tuple[Field[Any], ...], *, frozen: bool) -> Any:
    """Return `__init__`, as the standard library would write it."""
    known: dict[str, Any] = {"_MISSING": MISSING, "_set": object.__setattr__}
    head: dict[bool, list[str]] = {False: ["self"], True: []}
    body = []
    for each in all_fields:
        name, value = each.name, each.name
        known[f"_{name}"] = each.default if each.default is not MISSING else each.default_factory
        if each.default_factory is not MISSING:
            value = f"_{name}() if {name} is _MISSING else {name}" if each.init else f"_{name}()"
        default = "" if known[f"_{name}"] is MISSING else "=_MISSING" if value != name else f"=_{name}"
        if each.init:
            head[bool(each.kw_only)].append(name + default)
        elif known[f"_{name}"] is MISSING:
            continue
        elif each.default_factory is MISSING:
            value = f"_{name}"
        body.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(kind, "__post_init__"):
        body.append("self.__post_init__()")
    words = ", ".join([*head[False], *(["*"] if head[True] else []), *head[True]])
    exec(f"def __init__({words}):\n  " + "\n  ".join(body or ["pass"]), known)  # noqa: S102 - of names in our own code
    init = known["__init__"]
    init.__qualname__ = f"{kind.__qualname__}.__init__"
    init.__annotations__ = {each.name: each.type for each in all_fields if each.init} | {"return": None}
    return init
