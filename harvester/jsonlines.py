"""JSON as harvester reads and writes it: objects that may be damaged, records of one line, names that are not UTF-8."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import orjson

_CHUNK = 1024 * 1024


def object_in(text: bytes | None) -> dict[str, Any]:
    """Return the JSON object in a text, or an empty one if the text is missing, damaged or another JSON value."""
    try:
        value = lenient_json(text or b"")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def object_with_numbers_as_written(text: bytes) -> dict[str, Any]:
    """Return the JSON object in a text with its numbers as texts: `1.50` stays that. Empty if it is none."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text.decode("utf-8-sig"), parse_int=str, parse_float=str, parse_constant=str)
        return value if isinstance(value, dict) else {}
    return {}


def lenient_json(text: bytes) -> Any:
    """Return a JSON value from a text that programs write and orjson refuses: with a byte order mark, a lone surrogate,
    NaN, or bytes that are not UTF-8. What is no character becomes U+FFFD, which every writer of JSON takes.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        readable = text.decode("utf-8", "replace").lstrip("\ufeff")
        try:
            again = json.dumps(json.loads(readable), ensure_ascii=False)
            return json.loads(again.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def one_line(record: Mapping[str, Any]) -> bytes:
    r"""Return a record as JSON that every reader takes for one line, without its line feed.

    Some readers (Python's str.splitlines, JavaScript before 2019) also end lines at U+0085, U+2028 and U+2029, which
    JSON allows bare in strings.
    """
    line = orjson.dumps(record)
    if line.isascii():
        return line
    line = line.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return line.replace(b"\xc2\x85", b"\\u0085")


def as_json(value: Any, option: int = 0) -> str:
    """Return a value as JSON text. A file name that is not UTF-8 gets backslash escapes. option: flags of orjson."""
    try:
        return orjson.dumps(value, option=option).decode()
    except TypeError:
        return orjson.dumps(_with_escapes(value), option=option).decode()


def whole_lines(path: str, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield each complete line from the byte `start` on, with the position behind it.

    A last line without a line feed is torn and left out. A file that does not exist reads as an empty one.
    """
    if not os.path.exists(path):
        return
    with open(path, "rb", buffering=_CHUNK) as stream:
        stream.seek(start)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield start, line


def _with_escapes(value: Any) -> Any:
    """Return a value whose strings are all valid UTF-8: Python reads other bytes of a file name as lone surrogates."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_with_escapes(str(name)): _with_escapes(item) for name, item in value.items()}
    return [_with_escapes(item) for item in value] if isinstance(value, list | tuple) else value


class Misfit(ValueError):
    """A JSON value that does not have the form of its field; the message names the field."""


def from_json(form: Any, value: Any, name: str = "") -> Any:
    """Return a JSON value in the form of a field. form: the field's type. name: the field's, with dots.

    A dataclass is an object: more keys than its fields are ignored, and one is missing only if its field has a default.
    No number is negative.

    Raises:
        Misfit: the value has another form.
    """
    if form in (int, str) and type(value) is form and (form is str or value >= 0):  # most, without what takes time
        return value
    if type(None) in get_args(form):
        if value is None:
            return None
        form = get_args(form)[0]
    if is_dataclass(form):
        return _object_from_json(form, value, name)
    if get_origin(form) is tuple:
        if not isinstance(value, list):
            raise Misfit(f"{name} is not a list")
        return tuple(from_json(get_args(form)[0], item, name) for item in value)
    kind = (int, float) if form is float else get_origin(form) or form
    if not isinstance(value, kind) or (isinstance(value, int | float) and value < 0):
        raise Misfit(f"{name} is not as expected")
    if isinstance(value, dict) and get_args(form)[1] in (int, float):
        return {key: from_json(get_args(form)[1], item, f"{name}.{key}") for key, item in value.items()}
    return value


def _object_from_json(form: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise Misfit(f"{name or 'it'} is not an object")
    found = {}
    for key, (inner, required) in _fields_of(form).items():
        path = f"{name}.{key}" if name else key
        if key in value:
            found[key] = from_json(inner, value[key], path)
        elif required:
            raise Misfit(f"{path} is missing")
    return form(**found)


@cache
def _fields_of(form: Any) -> Mapping[str, tuple[Any, bool]]:
    """Return a dataclass' fields: the type of each, and whether its key must be there."""
    types = get_type_hints(form)
    return {
        each.name: (types[each.name], each.default is MISSING and each.default_factory is MISSING)
        for each in fields(form)
    }
