"""What a command line and `--help` must know of an option, as the options' own modules state it.

cyclopts has classes of the same names and meanings, but importing it takes 40 % of the time that aiohttp takes.
`cli.command_line.described` makes its classes of these where it parses; `cli.command_line.plain` reads these alone.
"""

from typing import Any, NamedTuple, TypeVar

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
