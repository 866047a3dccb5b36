"""The first line of a list that says anything: it may show that a text is no list of lines.

A page, a JSON array, or an object over several lines must not be read line by line: a few of its lines look like
bitlinks, and the run would end well with most links missing. The line is looked at when its end has come, so a pipe's
lines are never held back.
"""

import codecs
import io
import json
import os
import re
import shlex

from harvester.errors import InputBroken
from harvester.jsonlines import object_in
from harvester.links.columns import AS_TEXT, LINE_LIMIT, NAMES, ListFormat

_SHOWN_KEYS = 200
"""Characters of the keys that an error message lists."""
_UNPACKERS = {".gz": "zcat", ".zst": "zstdcat", ".bz2": "bzcat", ".xz": "xzcat"}
_LINE_ENDS = re.compile(rb"[\r\n]+")
_MARKUP = re.compile(rb"</?(?:!--|(?:!doctype|\?xml|[a-z][a-z0-9]*)(?:[\s/>]|$))", re.IGNORECASE)
"""A page's tag. `<https://bit.ly/x>`, as mail programs write a link, is none."""
_ARRAY = re.compile(rb"\[[\s\[]*(?:[\"{]|\]|$|(?:null|true|false|[-+.0-9eE]+)\s*(?:,|\]\s*,?$))")
"""The beginning of a JSON array. `[bit.ly/x]` is a link in brackets."""


class CheckedText(io.BufferedIOBase):
    """The text of a list, which is checked at its first line that is neither blank nor a comment.

    An object that the first line leaves open is checked at the second one: it may be damaged, or go on there.
    """

    def __init__(self, raw: io.BufferedIOBase, name: str, list_format: ListFormat) -> None:
        self._raw = raw
        self._name = name
        self._format = list_format
        self._has_json = list_format in (ListFormat.LINES, ListFormat.NDJSON)
        self._pending = bytearray()
        self._open_object = b""
        self._checked = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Return the bytes that one read brings; b"" at the end.

        Raises:
            InputBroken: they complete a line that shows that this is no list.
        """
        chunk = self._raw.read1(size)
        if not self._checked:
            self._look_at(chunk)
        return chunk

    def _look_at(self, chunk: bytes) -> None:
        """Check the lines that a chunk completes, until one has decided. chunk: b"" at the end."""
        self._pending += chunk
        overlong = len(self._pending) > LINE_LIMIT
        if chunk and not overlong and not _LINE_ENDS.search(chunk):
            return
        start = 0
        for found in _LINE_ENDS.finditer(self._pending):
            if self._decides(bytes(self._pending[start : found.start()])):
                self._checked = True
                return
            start = found.end()
        rest = self._pending[start:]
        if not chunk or len(rest) > LINE_LIMIT:
            self._decides(bytes(rest))
            self._checked = True
        self._pending = rest

    def _decides(self, line: bytes) -> bool:
        """Return whether a line shows that this may be a list; False if a later one must.

        Raises:
            InputBroken: it shows that this is no list.
        """
        while line.startswith(codecs.BOM_UTF8):
            line = line.removeprefix(codecs.BOM_UTF8)
        line = line.strip()
        if not line or (self._has_json and line.startswith(b"#")):
            return False
        if self._open_object:
            if _goes_on(self._open_object, line):
                self._refuse_object()
            return True
        if _MARKUP.match(line):
            raise InputBroken(f"{self._name}: a page of HTML or XML, not a list; {AS_TEXT}")
        return not self._has_json or self._decides_json(line)

    def _decides_json(self, line: bytes) -> bool:
        """As `_decides`, for a first line in a format whose lines may be JSON."""
        if _ARRAY.match(line):
            raise InputBroken(
                f"{self._name}: a JSON array, not a list of lines; write one entry per line: {self._jq('.[]')}"
            )
        if not line.startswith(b"{"):
            return True
        if len(line) > LINE_LIMIT:
            self._refuse_object()
        if _is_open(line):
            self._open_object = line
            return False
        if self._format is ListFormat.LINES:
            self._check_object(line)
        return True

    def _check_object(self, line: bytes) -> None:
        """Raise InputBroken for an object other than those of `_failures.ndjson`, which name their links."""
        record = object_in(line)
        if record and not {"bitlink", "text"} & set(record):
            shown = ", ".join(record)[:_SHOWN_KEYS]
            raise InputBroken(
                f"{self._name}: lines of JSON without a bitlink ({shown}). Use --list-format ndjson, and --column KEY "
                f"if none is called {', '.join(NAMES)}"
            )

    def _refuse_object(self) -> None:
        raise InputBroken(
            f"{self._name}: a JSON object over several lines, not a list of lines; write one entry per line: "
            f"{self._jq('.')} for objects one after another, {self._jq('.links[]')} for a list inside of one"
        )

    def _jq(self, path: str) -> str:
        """Return the shell command that writes the entries of a JSON file as lines."""
        path = path if path == "." else f"'{path}'"
        if self._name == "-":
            return f"jq -c {path} > links.ndjson"
        unpack, name = _UNPACKERS.get(os.path.splitext(self._name)[1].lower()), shlex.quote(self._name)
        return f"{unpack} {name} | jq -c {path} > links.ndjson" if unpack else f"jq -c {path} {name} > links.ndjson"


def _is_open(line: bytes) -> bool:
    """Return whether a line is the beginning of a JSON value, rather than a whole or a damaged one."""
    return _error_position(line.decode(errors="replace")) == -1


def _goes_on(first: bytes, second: bytes) -> bool:
    """Return whether a second line continues the JSON value that a first one has begun."""
    text = first.decode(errors="replace") + second.decode(errors="replace")
    return _error_position(text) in (None, -1)


def _error_position(text: str) -> int | None:
    """Return where a text ceases to be JSON: -1 for its end, None for nowhere."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return -1 if error.pos >= len(text) else error.pos
    except (ValueError, RecursionError):  # a number too long, or nested too deeply
        return 0
    return None
