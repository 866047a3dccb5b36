"""JSON as harvester reads and writes it: objects that may be damaged, records of one line, names that are not UTF-8."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

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
