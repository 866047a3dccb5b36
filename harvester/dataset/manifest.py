"""A manifest as a reader finds it: where it lies, and whether it is one. What writes it is `store`."""

import errno
import os
import stat
from collections.abc import Mapping
from types import UnionType
from typing import Any, NamedTuple, cast

import orjson

from harvester.errors import OutputError, UsageError
from harvester.storage.object_store import is_url, normal, open_store

NAME = "_manifest.json"
NEWEST = 1
"""The newest form that is understood here."""
_BESIDE = ".harvester"
_GROWING_ENDINGS = (".ndjson", ".jsonl")
_MOST_BYTES = 256 * 1024 * 1024

_COUNT = int
_WINDOW = {
    "window": str,
    "limit": int | None,
    "used": _COUNT,
    "remaining": int | None,
    "until": str | None,
    "source": str,
}
_PART = {"path": str, "rows": _COUNT, "calls?": _COUNT, "bytes": _COUNT, "sha256?": str | None}
_LIST = dict.fromkeys(("links", "lines?", "blank?", "comments?", "headers?", "invalid?", "duplicates?"), _COUNT)
FORM: dict[str, Any] = {
    "schema_version": int,
    "tool": str,
    "run_id": str,
    "work_dir?": str | None,
    "query": dict,
    "format?": str,
    "shape?": str,
    "started": str,
    "updated": str,
    "complete": bool,
    "stopped": (None, {"reason": str, "message": str, "until": str | None}),
    "input_read_to_end": bool,
    "list": (None, _LIST),
    "ended?": str | None,
    "invocation?": {
        "number": _COUNT,
        "started": str,
        "lists": [str],
        "calls": _COUNT,
        "last_verdict": str | None,
        "rate": {"calls": _COUNT, "seconds": int | float},
    },
    "remaining?": int | None,
    "given_up?": _COUNT,
    "budget": {
        "account": str,
        "token": str,
        "limited_by": (None, {"window": str, "limit": int | None, "until": str | None}),
        "windows": [_WINDOW],
    },
    "dataset": dict.fromkeys(("calls", "rows", "refused", "failed", "pending"), _COUNT),
    "attempts": {"total": _COUNT},
    "parts": [_PART],
}
"""What a reader relies upon; more may stand in it. A key with ? may be missing: older versions did not write it."""


class NewerForm(UsageError):
    """A manifest of a harvester that is newer than this one."""


class Found(NamedTuple):
    """A manifest that was read. out: the output that it belongs to. path: its own."""

    out: str
    path: str
    content: Mapping[str, Any]


def read(out: str) -> Found:
    """Read the manifest of an output. out: its folder, its growing file, or the manifest itself.

    Raises:
        UsageError: there is none, it cannot be read, or it is none that is understood here.
    """
    if is_url(out):
        out = normal(out.removesuffix("/" + NAME))
        path, text = f"{out}/{NAME}", _text_in_store(out)
    else:
        path, out = locate(out)
        text = _text_of(path, out)
    return Found(out, path, parsed(text, path))


def parsed(text: bytes, path: str) -> Mapping[str, Any]:
    """Give what a manifest's text holds. path: what to call it.

    Raises:
        NewerForm: it is of a newer harvester. UsageError: it is none.
    """
    try:
        content: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON ({error}); it is torn, or no manifest of harvester's") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > NEWEST:
        tool = content.get("tool")
        raise NewerForm(f"{path}: written by {tool}, in a form newer than this harvester knows: update it")
    if problem := misfit(content, FORM):
        raise UsageError(f"{path}: not a manifest of harvester's ({problem})")
    assert isinstance(content, dict)
    return content


def misfit(value: Any, form: Any, name: str = "") -> str | None:
    """Say where a value does not have a form; None where it does.

    form: a type; a mapping of names to forms; a list of one form for each item; a tuple of None and
    another, one of which holds.
    """
    if isinstance(form, type | UnionType):
        # All its numbers are counts.
        fits = isinstance(value, cast("type", form)) and not (isinstance(value, int | float) and value < 0)
        return None if fits else f"{name} is not as expected"
    if isinstance(form, tuple):
        return None if value is None else misfit(value, form[1], name)
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        return next((bad for item in value if (bad := misfit(item, form[0], name))), None)
    return _misfit_in(value, form, name)


def _misfit_in(value: Any, form: Mapping[str, Any], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name or 'it'} is no object"
    for key, inner in form.items():
        bare = key.removesuffix("?")
        path = f"{name}.{bare}" if name else bare
        if bare not in value:
            if bare == key:
                return f"{path} is missing"
        elif bad := misfit(value[bare], inner, path):
            return bad
    return None


def locate(out: str) -> tuple[str, str]:
    """Give the manifest's path, and the output's.

    Raises:
        UsageError: standard output has none.
    """
    if out == "-":
        raise UsageError("rows on standard output leave no manifest behind: name a folder or a file")
    out = os.path.abspath(out)
    if os.path.basename(out) == NAME:
        path = out
    elif out.lower().endswith(_GROWING_ENDINGS) and not os.path.isdir(out):
        path = os.path.join(out + _BESIDE, NAME)
    else:
        path = os.path.join(out, NAME)
    folder = os.path.dirname(path)
    growing = folder.removesuffix(_BESIDE)
    return path, growing if folder != growing and growing.lower().endswith(_GROWING_ENDINGS) else folder


def _text_in_store(url: str) -> bytes:
    try:
        text = open_store(url).get(NAME)
    except OutputError as error:
        raise UsageError(str(error)) from error
    if text is None:
        raise UsageError(f"nothing was begun at {url}: there is no {url}/{NAME}")
    return text


def _text_of(path: str, out: str) -> bytes:
    try:
        # Whatever else bears the name must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: not a file")
            return stream.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"nothing was begun at {out}: there is no {path}") from error
    except OSError as error:
        if error.errno == errno.ESTALE:  # replaced meanwhile, on a network file system
            return _text_of(path, out)
        raise UsageError(f"{path}: {error.strerror}") from error
