"""The token: which source it comes from, and reading it.

Precedence: --token-file or --token-command, BITLY_TOKEN, the store of `harvester login`. The source is read again when
Bitly refuses the token, because it may have been rotated. A source must hold the secret and nothing else: Bitly answers
a token in quotes as it answers a revoked one, so what stands around a secret is refused here, before anything is sent.
It is not removed either, because a guess may be wrong. No error repeats a secret.
"""

import atexit
import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator

from harvester.bitly.query import BASE_URL
from harvester.config.options import AccessOptions
from harvester.config.parsing import checked_base_url
from harvester.config.token_store import TokenStore
from harvester.errors import UsageError

_SOURCE_SECONDS = 60
"""The longest that a token command, or the writer of a named pipe, is waited for."""
_SILENT_SECONDS = 2.0
"""A wait that lasts longer is reported."""
_POLL_SECONDS = 0.02
_LONGEST_BYTES = 64 * 1024
_SHORTEST_SECRET = 20
_WITHOUT_SHELL = "runs without a shell, so pipes, variables and ~ are not understood; for those, use sh -c '…'"
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish"})
SECRET_VARIABLES = frozenset({"BITLY_TOKEN", "HARVESTER_CLIENT_SECRET"})
"""Not handed to the commands of --token-command and --on-end, which need neither."""
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


def token_source(options: AccessOptions, warn: Callable[[str], None]) -> Callable[[], str]:
    """Return a function that reads the token from the source that the options name; it blocks, and raises UsageError.

    warn: called if others can read the file, and when reading takes longer than a moment. Raises UsageError if two
    sources are named.
    """
    path, command = options.token_file, options.token_command
    if path is not None and command is not None:
        raise UsageError("and --token-command: use one of them", option="--token-file")
    if path is not None:
        warn_of_readers("--token-file", path, warn)
        return lambda: secret_in_file("--token-file", path, "token", warn)
    if command is not None:
        return lambda: _token_from_command(command, warn)
    return lambda: _unnamed_token(options)


def has_token(options: AccessOptions) -> bool:
    """Return True if a source is named or a token is stored. Raises as `token_origin`."""
    return bool(token_origin(options))


def token_origin(options: AccessOptions) -> str:
    """Return the name of the source that `token_source` would read; empty if there is none.

    Reads the store if no other source is named. Raises UsageError if that fails.
    """
    if options.token_file:
        return f"--token-file {shown_path(options.token_file)}"
    if options.token_command:
        return "--token-command"
    if os.environ.get("BITLY_TOKEN", "").strip():
        return "BITLY_TOKEN"
    stored = _store_for(options).read()
    return stored[1] if stored else ""


def _unnamed_token(options: AccessOptions) -> str:
    """Return the token of BITLY_TOKEN, else the stored one."""
    text = os.environ.get("BITLY_TOKEN", "")
    if text.strip():
        return checked_secret(text, "BITLY_TOKEN", "token")
    stored = _store_for(options).read()
    if stored is None:
        server = "" if options.base_url == BASE_URL else f" --base-url {options.base_url}"
        raise UsageError(
            "no token: set BITLY_TOKEN, use --token-file or --token-command (Bitly makes one under Settings > API), "
            f"or store one: harvester login{server}"
        )
    text, where = stored
    return checked_secret(text, f"{where} (made by harvester login)", "token")


def _store_for(options: AccessOptions) -> TokenStore:
    return TokenStore(checked_base_url(options.base_url), options.token_store)


def secret_in_file(option: str, path: str, what: str, warn: Callable[[str], None]) -> str:
    """Return the secret in a file's first line. Raises UsageError if it is none or cannot be read.

    option: the option that names the file. what: what the secret is, for errors. warn: called once if the file is a
    named pipe, and is not written to at once.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            text = _text_from_pipe(option, path, what, warn)
        else:
            with open(path, encoding="utf-8", errors="replace") as stream:
                text = stream.read(_LONGEST_BYTES)
        return checked_secret(_first_line(text), f"{option} {path}", what)
    except OSError as error:
        if _may_be_secret(path):  # must not be repeated
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
            if waited > _SOURCE_SECONDS:
                raise UsageError(f"{path}: nothing was written to this pipe for {_SOURCE_SECONDS} s", option=option)
            if waited > _SILENT_SECONDS and not warned:
                warn(f"waiting for the {what}: {option} {path} is a named pipe to which nothing has been written yet")
                warned = True
            time.sleep(_POLL_SECONDS)
    return written.decode(errors="replace")


def _may_be_secret(path: str) -> bool:
    """Return whether the name of a missing file looks like a secret that was given instead of its file's path."""
    plain = "/" not in path and "." not in path and any(character.isdigit() for character in path)
    return len(path) >= _SHORTEST_SECRET and plain and not os.path.exists(path)


def shown_path(path: str) -> str:
    """Return a secret file's path, or `…` if it seems to be the secret itself."""
    return "…" if _may_be_secret(path) else path


def shown_command(command: str) -> str:
    """Return a token command's first word; those behind it may hold a secret."""
    name, _, arguments = command.strip().partition(" ")
    return f"{name} …" if arguments else name


def without_secrets(words: Iterable[str]) -> Iterator[str]:
    """Yield the words of a command line; `…` stands for what may be a secret.

    No option takes a token, but one may stand by mistake where the path of its file was expected, and the arguments of
    a token command may hold a password.
    """
    hide = {"--token-file": shown_path, "--token-command": shown_command}
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if option:
            yield hide[option](word)
            option = ""
        elif equals and name in hide:
            yield f"{name}={hide[name](value)}"
        else:
            yield word
            option = word if word in hide else ""


def may_hold_secret(variable: str, value: str) -> bool:
    """Return whether a variable's value may not be kept: a command with arguments, or a secret in a path's place."""
    if variable.endswith("_TOKEN_FILE"):
        return _may_be_secret(value)
    return variable.endswith(("_TOKEN_COMMAND", "_ON_END")) and shown_command(value) != value


def _token_from_command(command: str, warn: Callable[[str], None]) -> str:
    try:
        printed = _printed_by(shlex.split(command), warn)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        # Without the exception's text, which may contain what the command printed.
        raise UsageError(
            f"failed ({_failure(error)}). It {_WITHOUT_SHELL}. Run it by hand to see what is wrong",
            option="--token-command",
        ) from error
    try:
        return checked_secret(_first_line(printed), "--token-command", "token")
    except UsageError as error:
        if hint := shell_hint(shlex.split(command)):
            raise UsageError(f"{error}. {hint}") from None
        raise


def shell_hint(words: list[str]) -> str:
    """Return what to do if a command that runs without a shell seems to need one; empty if not."""
    if os.path.basename(words[0]) in _SHELLS:
        return ""
    if any("|" in word or "$" in word or "`" in word or word.startswith("~") for word in words):
        return f"It {_WITHOUT_SHELL}"
    if os.sep not in words[0] and os.path.isfile(words[0]) and shutil.which(words[0]) is None:
        return f"It runs without a shell and is looked for in PATH: for the file in this folder, use ./{words[0]}"
    return ""


def _failure(error: Exception) -> str:
    """Return what happened to a token command, without its words and what it printed."""
    match error:
        case FileNotFoundError():
            return "no such program"
        case subprocess.CalledProcessError():
            return f"exit code {error.returncode}"
        case subprocess.TimeoutExpired():
            return f"no end within {_SOURCE_SECONDS} s"
        case ValueError() | IndexError():
            return "it is empty, or a quote is not closed"
    return type(error).__name__


def _printed_by(words: list[str], warn: Callable[[str], None]) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    process = subprocess.Popen(  # noqa: S603 - the user's own command
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
    )
    with process:
        atexit.register(process.kill)  # the process can end while a thread still reads from the command
        try:
            try:
                printed, _ = process.communicate(timeout=_SILENT_SECONDS)
            except subprocess.TimeoutExpired:
                warn(f"waiting for the token: --token-command has not ended yet; it gets {_SOURCE_SECONDS} s")
                printed, _ = process.communicate(timeout=_SOURCE_SECONDS - _SILENT_SECONDS)
        finally:
            process.kill()  # does nothing to a command that has ended
            process.wait()  # Popen.__exit__ does not wait for long after KeyboardInterrupt
            atexit.unregister(process.kill)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words[0])
    return printed.decode(errors="replace")


def _first_line(text: str) -> str:
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


def warn_of_readers(option: str, path: str, warn: Callable[[str], None]) -> None:
    """Warn if other users can read the file that an option names."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # reading it will raise an error that says why
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{option} {path} can be read by others: chmod 600 {path}")
