"""Our data classes behave as the standard library's do."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from harvester import records

Make = Callable[..., Any]


def classes(make: Make) -> dict[str, Any]:
    """Classes of each kind that harvester has, made by one of the two."""

    @make(frozen=True, slots=True)
    class Point:
        """Has defaults and a property."""

        x: int
        y: int = 0
        names: list[str] = field(default_factory=list)

        @property
        def total(self) -> int:
            return self.x + self.y

    @make(frozen=True, slots=True)
    class Sub(Point):
        """Has fields of its own, and one that is neither shown nor compared."""

        z: str = "z"
        secret: str = field(default="s", repr=False, compare=False)

    @make(slots=True)
    class Counts:
        """Can be changed."""

        rows: int = 0
        links: dict[str, int] = field(default_factory=dict)
        sum: int = field(init=False, default=3)

    @make(frozen=True, kw_only=True)
    class Options:
        """Has a fixed __post_init__."""

        out: str
        size: int = 50

        def __post_init__(self) -> None:
            object.__setattr__(self, "out", self.out.strip())

    @make(frozen=True, slots=True)
    class Empty:
        """Has nothing."""

    @make(slots=True)
    class Own:
        """Has its own text."""

        a: int

        def __repr__(self) -> str:
            return "own"

    return {each.__name__: each for each in (Point, Sub, Counts, Options, Empty, Own)}


OURS, THEIRS = classes(records.dataclass), classes(dataclasses.dataclass)
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Point", (1,), {}),
    ("Point", (1, 2, ["a"]), {}),
    ("Point", (), {"x": 1, "names": ["b"]}),
    ("Point", (), {}),
    ("Point", (1, 2, [], 4), {}),
    ("Sub", (1,), {"z": "other", "secret": "t"}),
    ("Counts", (), {}),
    ("Counts", (3, {"a": 1}), {}),
    ("Counts", (), {"sum": 1}),
    ("Options", (), {"out": " lake "}),
    ("Options", ("lake",), {}),
    ("Empty", (), {}),
    ("Own", (1,), {}),
]


def shown(make: Any, words: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What is made, or what it says instead."""
    try:
        made = make(*words, **named)
    except TypeError as error:
        return str(error)
    again = make(*words, **named)
    return {
        "text": repr(made),
        "equal": (made == again, made == object(), made != again),
        "fields": [(each.name, each.type, each.kw_only) for each in dataclasses.fields(made)],
        "dict": dataclasses.asdict(made),
        "match": type(made).__match_args__,
        "slots": hasattr(made, "__dict__"),
        "copy": copy.deepcopy(made) == made,
        "hash": hash_of(made) == hash_of(again),
        "hashable": hash_of(made) is not None,
        "parameters": [(each.name, each.kind) for each in inspect.signature(make).parameters.values()],
        "types": dict(make.__init__.__annotations__),
    }


def hash_of(made: Any) -> int | None:
    try:
        return hash(made)
    except TypeError:
        return None


@pytest.mark.parametrize(("name", "words", "named"), CALLS, ids=range(len(CALLS)))
def test_an_instance_is_like_the_standard_librarys(name: str, words: tuple[Any, ...], named: dict[str, Any]) -> None:
    assert shown(OURS[name], words, named) == shown(THEIRS[name], words, named)


def test_each_instance_has_a_value_of_its_own_from_a_factory() -> None:
    first, second = OURS["Point"](1), OURS["Point"](1)
    assert first.names is not second.names


def test_frozen_stays_frozen_and_can_be_replaced_copied_and_pickled() -> None:
    point = OURS["Point"](1, 2)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
        point.x = 5
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'x'"):
        del point.x
    with pytest.raises(FrozenInstanceError):
        OURS["Sub"](1).z = 5
    with pytest.raises((AttributeError, TypeError)):  # the standard library's own has another error in each version
        point.unknown = 5
    assert dataclasses.replace(point, x=7) == OURS["Point"](7, 2)
    assert pickle.loads(pickle.dumps(Pickled(1))) == Pickled(1)
    counts = OURS["Counts"]()
    counts.rows += 1
    assert counts.rows == 1


@records.dataclass(frozen=True, slots=True)
class Pickled:
    """At the top of a module, where pickle finds it."""

    a: int
