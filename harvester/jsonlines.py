"""jsonlines."""

from typing import Any

import orjson


def object_in(text: bytes | None) -> dict[str, Any]:
    """Read a JSON object that somebody may have spoilt; nothing in it then."""
    try:
        found = orjson.loads(text or b"")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def as_json(value: Any, option: int = 0) -> str:
    """Give a value as JSON; names of files that are no UTF-8 are written with backslashes. option: orjson's."""
    try:
        return orjson.dumps(value, option=option).decode()
    except TypeError:
        return orjson.dumps(_utf8(value), option=option).decode()


def _utf8(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _utf8(each) for name, each in value.items()}
    return [_utf8(each) for each in value] if isinstance(value, list | tuple) else value
