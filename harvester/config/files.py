"""Files of options: which are read, what may stand in them, and the values that they give to a command.

Without `--config` two files are found by themselves, in the user's configuration folder and in the working folder. The
working folder may be anyone's: a file there that others could have written names no program, server or token.
"""

import codecs
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_origin

from harvester.config.mistakes import bounded, choices_in, must_be, parse_error_text
from harvester.config.options import TOKEN_OPTIONS, AccessOptions, facets_in, nearest_of
from harvester.config.sources import (
    PREFIX,
    SEPARATE,
    Given,
    commands_of,
    effective,
    fill,
    options_by_name,
    options_of,
    takes_shared,
    toml_value,
    typed,
    written,
)
from harvester.errors import UsageError
from harvester.parameters import alternatives, names_in

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import Argument, ArgumentCollection

PROJECT_FILE = os.path.join(os.curdir, "harvester.toml")
"""Found in the working folder; its values go before those of the user's file, key by key."""
_GUARDED = frozenset({*names_in(AccessOptions), "client_id", "client_secret_file"})
"""Not taken from a file in the working folder that others could have written: it would run their program, or send the
token to their server."""
_TOKEN_KEYS = frozenset({"token", "bitly_token", "access_token", "api_token", "api_key"})
_WIDE_MARKS = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
_LISTED = "; `harvester config` lists the valid ones"


def user_file() -> str | None:
    """Return the path of the user's own file, `~/.config/harvester/config.toml`; None without a home folder."""
    # As the XDG base directory specification has it: a relative path counts as unset.
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.config")
    return os.path.join(base, "harvester", "config.toml") if os.path.isabs(base) else None


def paths_read(named: str | None) -> list[str]:
    """Return the paths of the files that are read, in order of precedence. named: by --config, the only one then."""
    if named is not None:
        return [named]
    found = (PROJECT_FILE, user_file())
    # What exists and cannot be read is an error later; a folder that cannot be entered, as another user's home, is not.
    return [path for path in found if path is not None and os.path.isfile(path)]


def described(sources: Iterable[object]) -> str:
    """Return which files the sources of settings read, in order of precedence, as comments of a TOML file."""
    files = [source for source in sources if isinstance(source, File)]
    lines = [f"# {file.path}: read" for file in files]
    if all(file.found for file in files):
        read = {file.path for file in files}
        lines += [f"# {path}: not there" for path in (PROJECT_FILE, user_file()) if path and path not in read]
    return "\n".join(lines)


def files_read(named: str | None, app: "App") -> tuple["File", ...]:
    """Return the files that are read, in order of precedence. named: as in `paths_read`. Raises as `File`."""
    return tuple(File(path, app, found=named is None) for path in paths_read(named))


def configured_values(app: "App", command: str) -> dict[str, Any]:
    """Return the values that a command would take from variables and files, by name.

    Raises:
        UsageError: a variable has a value of the wrong type.
    """
    from cyclopts import CycloptsError  # noqa: PLC0415 - whoever has an app has imported it

    try:
        return {each.name: each.value for each in effective(app, [command]) if each.source != "default"}
    except CycloptsError as error:
        raise UsageError(parse_error_text(error)) from error


class File:
    """A TOML file of options, checked against all commands; a source of cyclopts' settings.

    A key above all tables is for every command that has such an option. A key in a command's table is for that command,
    and takes precedence. sandbox and demo use their own tables alone. found: discovered, not named by --config.

    Raises:
        UsageError: it cannot be read, or has a key that no command knows, a value of the wrong type, or a key that is
        not taken from a file that others could have written.
    """

    def __init__(self, path: str, app: "App", *, found: bool = False) -> None:
        self.path = path
        self.found = found
        self._text, self._content, doubt = _read(path, found=found)
        self._doubt = doubt if found and path == PROJECT_FILE else None
        commands = {name: options_of(command) for name, command in commands_of(app).items()}
        everything = {
            name: option
            for command, options in reversed(commands.items())  # if two share a name, the first command's wins
            for name, option in options.items()
            if takes_shared(command, name)
        }
        for key, value in self._content.items():
            if key in commands and not (key in everything and isinstance(value, str)):  # `plan` is both
                self._check_table(key, value, commands[key])
            elif isinstance(value, dict):
                raise self._error(key, "", f"[{key}] is not a command{nearest_of(key, commands, _LISTED)}")
            else:
                self._check(key, value, "", everything)

    def __call__(self, app: "App", commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:  # noqa: ARG002
        """Fill options without a value from the file."""
        if not commands:
            return
        typed.add_file(self.path)
        command = commands[-1]
        options = options_by_name(arguments)
        known = set(options)
        if os.environ.get("BITLY_TOKEN", "").strip():
            known.difference_update(TOKEN_OPTIONS)
        own = self._content.get(command)
        tables = {command: own if isinstance(own, dict) else {}}
        if command not in SEPARATE:
            tables[""] = self._content
        for table, content in tables.items():
            shown = f" [{table}]" if table else ""
            layer = {
                name: Given(f"{self.path}{shown}", written(content[name]), f"{self._place(name, table)}:{shown} {name}")
                for name in known & content.keys()
                if not isinstance(content[name], dict)
                # Several facets are for commands that take several.
                and (table or (takes_shared(command, name) and _fits(content[name], options[name].hint)))
            }
            fill(arguments, layer, "the file")

    def _check_table(self, command: str, table: Any, known: Mapping[str, "Argument"]) -> None:
        if not isinstance(table, dict):
            raise self._error(command, "", f"{command} = {_shown(table)}: must be a table, [{command}]")
        for name, value in table.items():
            self._check(name, value, command, known)

    def _check(self, name: str, value: Any, table: str, known: Mapping[str, "Argument"]) -> None:
        shown = f"[{table}] {bounded(name)}" if table else bounded(name)
        if name not in known:
            if name.lower() in _TOKEN_KEYS:
                raise self._error(
                    name,
                    table,
                    f"{shown}: do not put a token in this file, which people copy and publish. Remove it, and store "
                    "it with `harvester login --with-token`, set BITLY_TOKEN, or name its place with token_file or "
                    "token_command",
                )
            raise self._error(name, table, f"{shown} is not an option{nearest_of(name, known, _LISTED)}")
        hint = known[name].hint
        if not _fits(value, hint):
            raise self._error(name, table, f"{shown} = {_shown(value)}: must be {must_be(hint)}")
        if isinstance(value, str) and "\0" in value:
            raise self._error(name, table, f"{shown} = {_shown(value)}: must be text without \\u0000")
        if self._doubt and name in _GUARDED:
            raise self._error(
                name,
                table,
                f"{shown} is not taken from this file, because {self._doubt}, and it decides where your token comes "
                f"from or goes to. Move it to {user_file() or 'a file of your own'}, or name this file with --config "
                "if you trust it",
            )

    def _error(self, name: str, table: str, text: str) -> UsageError:
        return UsageError(f"{self._place(name, table)}: {text}")

    def _place(self, name: str, table: str) -> str:
        """Return the file's path with the number of a key's line, if that can be told."""
        line = _line_of(self._text, name, table)
        return f"{self.path}:{line}" if line else self.path


def _line_of(text: str, name: str, table: str) -> int | None:
    """Return the number of the line with a key, or with a table's head, from 1; None if it is written another way."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[\s*[\"']?([^\"'\]]+?)[\"']?\s*\]", line):
            current = head[1]
            if not table and current == name:
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=", line):
            return number
    return None


def _read(path: str, *, found: bool) -> tuple[str, dict[str, Any], str | None]:
    """Return a file's text and content, and why others could have written it; None if they could not."""
    import tomllib  # noqa: PLC0415 - most commands have no file

    try:
        with open(path, "rb") as stream:
            doubt = _doubt(path, os.fstat(stream.fileno()))
            text = _decoded(path, stream.read())
        content = tomllib.loads(text)
        str(content)  # so that whatever is in it can be shown
        return text, content, doubt
    except OSError as error:
        option = PREFIX + "CONFIG" if os.environ.get(PREFIX + "CONFIG") == path else "--config"
        raise UsageError(f"{path}: {error.strerror}", option=None if found else option) from error
    except tomllib.TOMLDecodeError as error:
        twice = re.search(r"^plan\s*=", text, re.MULTILINE) and re.search(r"^\[plan\]", text, re.MULTILINE)
        hint = (
            "; `plan = …` and the table [plan] exclude each other: write plan in [run] and in [plan] instead"
            if twice
            else ""
        )
        raise UsageError(f"{path}: {error}{hint}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8; save it as UTF-8") from error
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    except ValueError as error:  # Python reads, or shows, no number of more than 4,300 digits
        raise UsageError(f"{path}: a number in it has too many digits for any option") from error


def _doubt(path: str, found: os.stat_result) -> str | None:
    """Return why others could have written a file: its owner and mode, or those of its folder."""
    folder = os.stat(os.path.dirname(path) or os.curdir)
    trusted = {os.geteuid(), 0}
    if found.st_uid not in trusted:
        return "it belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write it (chmod go-w {path})"
    if folder.st_uid not in trusted:
        return "its folder belongs to another user"
    if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others can write to its folder"
    return None


def _decoded(path: str, content: bytes) -> str:
    """Return a TOML file's text without a byte order mark, which editors on Windows write.

    Raises:
        UsageError: it is UTF-16 or UTF-32. UnicodeDecodeError: it is not UTF-8.
    """
    # UTF-32 first: in little-endian order its mark begins as that of UTF-16 does.
    wide = next((encoding for encoding, marks in _WIDE_MARKS if content.startswith(marks)), None)
    # Without a mark: ASCII text in a wide encoding has a zero byte in its first characters, TOML has none anywhere.
    if wide or b"\0" in content[:4]:
        raise UsageError(f"{path}: {wide or 'UTF-16 or UTF-32'}; save it as UTF-8, which TOML requires")
    return content.decode("utf-8-sig")


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a value of a file has one of a hint's types; a whole number is a number, a flag is neither."""
    if choices := choices_in(hint):
        return all(each in choices for each in _values_of(value, hint))
    kinds = alternatives(hint)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _values_of(value: Any, hint: Any) -> list[Any]:
    """Return the values that stand in one: of an option that takes several, a list or a text with commas."""
    if get_origin(hint) is not tuple:
        return [value]
    if isinstance(value, str):
        return [*facets_in(value)]
    return value if isinstance(value, list) and value else [None]


def _shown(value: Any) -> str:
    return bounded(toml_value(value) if isinstance(value, str | bool | int | float) else str(value))
