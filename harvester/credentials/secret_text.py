"""Reading a secret from a file or a pipe, and refusing what stands around it.

A source must hold the secret and nothing else: Bitly answers a token in quotes as it answers a revoked one, so what
stands around a secret is refused here, before anything is sent. It is not removed either, because a guess may be wrong.
No error repeats a secret.
"""

import os
import re
import stat
import time
from collections.abc import Callable
from typing import TypeAlias

from harvester.credentials.redaction import may_be_secret
from harvester.errors import UsageError

SOURCE_SECONDS = 60
"""The longest that a token command, or the writer of a named pipe, is waited for."""
SILENT_SECONDS = 2.0
"""A wait that lasts longer is reported."""
_POLL_SECONDS = 0.02
_LONGEST_BYTES = 64 * 1024
_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_FLAWS: tuple[tuple[str, str], ...] = (
    (r"\ufeff", "begins with a byte order mark: save it as UTF-8 without one"),
    (r".*\x00", "is in UTF-16, or is not text: save it as UTF-8"),
    (r"[{\[]", "is in a JSON object: store its value alone, as `jq -r .access_token` prints it"),
    (r".*[\r\n]", "has more than one line: store it alone"),
    (r"[$<]", "is a placeholder that was not filled in: store the value itself"),
    (r"(?i)(authorization\s*:\s*)?(bearer|token)\s", "has `Bearer ` before it: remove that, harvester adds it"),
    (r"(?i)(export|set|setx|env)\s", "has an assignment before it: keep only what follows the `=`"),
    # A name and `=`; but `=` may also end a secret, as padding.
    (r"(?i)\w*(token|secret)\w*\s*[=:]", "has a name before it: keep only what follows the `=` or `:`"),
    (r"[A-Za-z_]\w*\s*[=:]\s*[^=:/\s]", "has a name before it: keep only what follows the `=` or `:`"),
    (rf"[{_QUOTES}]|.*[{_QUOTES}]$", "is in quotes: remove them"),
    (r".*(\s//|\s--|[#;])", "has a comment after it: remove that"),
)
"""What may stand around a secret, by a pattern from its beginning on, and what to do. The first that matches counts."""


CheckedSecret: TypeAlias = Callable[[str, str, str], str]
"""Returns the secret in a text, given where that comes from and what it is; raises UsageError if it is none."""


def secret_in_file(
    option: str, path: str, what: str, warn: Callable[[str], None], checked: "CheckedSecret | None" = None
) -> str:
    """Return the secret in a file's first line. Raises UsageError if it is none or cannot be read.

    option: the option that names the file. what: what the secret is, for errors. warn: called once if the file is a
    named pipe, and is not written to at once. checked: by default `checked_secret`.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            text = _text_from_pipe(option, path, what, warn)
        else:
            with open(path, encoding="utf-8", errors="replace") as stream:
                text = stream.read(_LONGEST_BYTES)
        return (checked or checked_secret)(first_line(text), f"{option} {path}", what)
    except OSError as error:
        if may_be_secret(path):  # must not be repeated
            raise UsageError(f"must be the path of a file that contains the {what}", option=option) from None
        raise UsageError(f"{path}: {error.strerror}", option=option) from error


def _text_from_pipe(option: str, path: str, what: str, warn: Callable[[str], None]) -> str:
    """Return what is written to a named pipe until its writer closes it. Raises UsageError if that takes too long."""
    # Without O_NONBLOCK, the opening itself would wait for a writer, for ever. With it, a read returns nothing as long
    # as there is no writer, and raises BlockingIOError as long as a writer is silent.
    written, began, warned = b"", time.monotonic(), False
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as pipe:
        while len(written) < _LONGEST_BYTES:
            piece = pipe.read(_LONGEST_BYTES)
            if piece:
                written += piece
                continue
            if piece is not None and written:
                break
            waited = time.monotonic() - began
            if waited > SOURCE_SECONDS:
                raise UsageError(f"{path}: nothing was written to this pipe for {SOURCE_SECONDS} s", option=option)
            if waited > SILENT_SECONDS and not warned:
                warn(f"waiting for the {what}: {option} {path} is a named pipe to which nothing has been written yet")
                warned = True
            time.sleep(_POLL_SECONDS)
    return written.decode(errors="replace")


def first_line(text: str) -> str:
    """Return the first line: password managers print notes below the secret."""
    return text.partition("\n")[0]


def checked_secret(text: str, source: str, what: str) -> str:
    """Return a secret without surrounding white space. Raises UsageError if it is empty, or anything else is there."""
    secret = text.strip()
    if not secret:
        raise UsageError(f"{source}: contains no {what}")
    stands = text.rstrip().lstrip(" \t")
    # As Bitly's own are: in letters and digits alone no flaw can be, and compiling the patterns takes 2 ms.
    if stands.isascii() and stands.isalnum():
        return secret
    for pattern, flaw in _FLAWS:
        if re.match(pattern, stands, re.DOTALL):
            raise UsageError(f"{source}: the {what} {flaw}")
    if not re.fullmatch(r"[!-~]+", secret):
        raise UsageError(f"{source}: a {what} has no spaces or special characters; is it the right one?")
    return secret


def any_password(text: str, source: str, what: str) -> str:
    """Return a password as it stands: unlike a token it may have any character but a line's end."""
    password = text.rstrip("\r\n")
    if not password:
        raise UsageError(f"{source}: contains no {what}")
    return password


def warn_of_readers(option: str, path: str, warn: Callable[[str], None]) -> None:
    """Warn if other users can read the file that an option names."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # reading it will raise an error that says why
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{option} {path} can be read by others: chmod 600 {path}")
