"""A path with placeholders to the path that it means: `lake/{facet}/dt={dt}`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from string import Formatter

from harvester.errors import UsageError

_MEANINGS = {"dt": "the UTC day of --unit-reference", "facet": "--facet"}
_LEAST_ALIKE = 0.3
"""`{day}` is nearer to `{dt}` than to anything else that it could be."""


def filled(path: str, values: Mapping[str, str | None], *, name: str, because: str = "") -> str:
    """Give a path with its placeholders filled in; doubled braces stand for themselves.

    values: of facet, and of dt, which is None where nobody has said the day. name: what the path is called in errors.
    because: why dt is not made up, for the error.

    Raises:
        UsageError: a placeholder that is none, one without a value, or a brace without its other half.
    """
    if "{" not in path and "}" not in path:
        return path
    try:
        pieces = list(Formatter().parse(path))
    except ValueError as error:
        raise UsageError(f"{name} {path}: a brace without its other half; write {{{{ or }}}} for a brace") from error
    return "".join(text + _value(path, piece, values, name, because) for text, *piece in pieces)


def escaped(path: str) -> str:
    """Give a path as it is to be written where placeholders are filled in."""
    return path.replace("{", "{{").replace("}", "}}")


def _value(path: str, piece: list[str | None], values: Mapping[str, str | None], name: str, because: str) -> str:
    """Give what stands for a placeholder: its name, and what Python's formats may have behind it."""
    field, form, conversion = piece
    if field is None:
        return ""
    shown = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
    if shown not in _MEANINGS:
        raise UsageError(f"{name} {path}: {{{shown}}} is no placeholder; {_nearest(shown)}")
    if (value := values[field]) is None:
        today = datetime.now(UTC).date()
        raise UsageError(
            f"{name} {path}: {{{shown}}} is {_MEANINGS[shown]}, which is not given{because}. "
            f"Today's would be --unit-reference {today}"
        )
    return value


def _nearest(shown: str) -> str:
    if nearest := get_close_matches(shown, _MEANINGS, 1, _LEAST_ALIKE):
        return f"did you mean {{{nearest[0]}}}, {_MEANINGS[nearest[0]]}? Write {{{{ and }}}} for braces"
    known = " and ".join(f"{{{each}}}, {meaning}" for each, meaning in _MEANINGS.items())
    return f"there are {known}. Write {{{{ and }}}} for braces"
