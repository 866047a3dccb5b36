"""Where an option's value comes from. Precedence: command line, variables, file, default.

Variables and file are sources of cyclopts' settings (https://cyclopts.readthedocs.io/en/latest/config_file.html),
called in order: each fills in the options that have no value yet.
"""

import codecs
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import orjson
from cyclopts import App, CoercionError, CycloptsError, Token
from cyclopts.argument import Argument, ArgumentCollection

from harvester.config.options import alternatives, nearest_of
from harvester.errors import HarvesterError, UsageError

PREFIX = "HARVESTER_"
DASH = "\x00dash"
"""Stands for a lone `-` on the command line, which cyclopts would take for an option."""
_TOKEN_OPTIONS = ("token_file", "token_command")
"""Once a source names one of these, sources of lower precedence are ignored for both; BITLY_TOKEN precedes the file."""
_SEPARATE = frozenset({"sandbox", "demo"})
"""Commands whose options have other meanings than those of `run` with the same names. They take no value that is for
all commands: only HARVESTER_SANDBOX_PORT and the like, and their own table in the file.
"""
_WIDEST_COLUMN = 48
_WIDE_MARKS = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
_EXPECTED = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
_LONGEST_SHOWN = 60
_LISTED = "; `harvester config` lists the valid ones"
_origins: dict[str, str] = {}
"""Option to the variable, or the file and key, that its value came from. Filled while the command line is parsed."""


class Setting(NamedTuple):
    """An option's effective value. source: `command line`, a variable, a file with the table, or `default`.

    cut: the value is shown without the part that may be a secret, and cannot be used as it is shown.
    """

    name: str
    value: Any
    source: str
    cut: bool = False


class Typed:
    """The command line of this process, for the manifest. words: what was typed. files: of options, absolute paths."""

    def __init__(self) -> None:
        self.words: tuple[str, ...] = ()
        self.files: tuple[str, ...] = ()

    def begin(self, words: Iterable[str]) -> None:
        """Remember the words of a command line that is about to be parsed."""
        self.words, self.files = tuple(words), ()

    def add_file(self, path: str) -> None:
        """Remember a file from which options were filled in."""
        self.files = tuple(dict.fromkeys((*self.files, os.path.abspath(path))))


typed = Typed()


def undashed(text: str) -> str:
    """Return `-` for the word that stands for it, and any other text as it is."""
    return "-" if text == DASH else text


def options_of(command: App) -> dict[str, Argument]:
    """Return a command's options by the names that they have in a file."""
    return _by_name(command.assemble_argument_collection())


def commands_of(app: App) -> dict[str, App]:
    """Return the commands that have settings, by name."""
    return {name: app[name] for name in app.resolved_commands() if not name.startswith("-") and name != "config"}


def _by_name(arguments: Iterable[Argument]) -> dict[str, Argument]:
    return {_key_of(each.name): each for each in arguments if each.name.startswith("--")}


def _key_of(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


# --- variables ----------------------------------------------------------------------------------------------------


def from_variables(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:  # noqa: ARG001
    """Fill options without a value from their variables; an empty variable counts as not set.

    HARVESTER_PER_MINUTE is for every command that has such an option; HARVESTER_RUN_PER_MINUTE is for run alone, and
    takes precedence.
    """
    _origins.clear()
    if not commands:
        return
    layers: tuple[dict[str, _Given], ...] = ({}, {})
    for name in _by_name(arguments):
        for rank, variable in enumerate(_variables(commands[-1], name)):
            if value := os.environ.get(variable):
                layers[rank][name] = _Given(variable, value, variable)
    for layer in layers:
        _fill(arguments, layer, "a variable")


def _variables(command: str, option: str) -> tuple[str, ...]:
    """Return the variables of an option, in order of precedence."""
    own, shared = f"{PREFIX}{command}_{option}".upper(), f"{PREFIX}{option}".upper()
    return (own,) if command in _SEPARATE else (own, shared)


def misspelt_variables(app: App, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable whose name is almost that of an option's variable, with that name."""
    unknown = {name for name in environment if name.startswith(PREFIX)}
    known: set[str] = set()
    for command, made in commands_of(app).items():
        if not unknown:  # usually at once; to collect a command's options takes milliseconds
            return
        own = {each for option in options_of(made) for each in _variables(command, option)}
        known |= own
        unknown -= own
    for name in sorted(unknown):
        if nearest := get_close_matches(name, known, 1, 0.9):
            yield name, nearest[0]


# --- the file -----------------------------------------------------------------------------------------------------


class File:
    """A TOML file of options, checked against all commands; a source of cyclopts' settings.

    A key above all tables is for every command that has such an option. A key in a command's table is for that command,
    and takes precedence. sandbox and demo use their own tables alone.

    Raises:
        UsageError: it cannot be read, or has a key that no command knows, or a value of the wrong type.
    """

    def __init__(self, path: str, app: App) -> None:
        self._path = path
        self._content = _read(path)
        commands = {name: options_of(command) for name, command in commands_of(app).items()}
        shared = [options for command, options in commands.items() if command not in _SEPARATE]
        everything = {name: option for options in shared for name, option in options.items()}
        for key, value in self._content.items():
            if key in commands:
                self._check_table(key, value, commands[key])
            elif isinstance(value, dict):
                raise UsageError(f"{path}: [{key}] is not a command{nearest_of(key, commands, _LISTED)}")
            else:
                self._check(key, value, "", everything)

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:  # noqa: ARG002
        """Fill options without a value from the file."""
        if not commands:
            return
        typed.add_file(self._path)
        command = commands[-1]
        known = set(_by_name(arguments))
        if os.environ.get("BITLY_TOKEN", "").strip():
            known.difference_update(_TOKEN_OPTIONS)
        tables = {f" [{command}]": self._content.get(command, {})}
        if command not in _SEPARATE:
            tables[""] = self._content
        for place, table in tables.items():
            layer = {
                name: _Given(f"{self._path}{place}", _written(table[name]), f"{self._path}:{place} {name}")
                for name in known & table.keys()
            }
            _fill(arguments, layer, "the file")

    def _check_table(self, command: str, table: Any, known: Mapping[str, Argument]) -> None:
        if not isinstance(table, dict):
            raise UsageError(f"{self._path}: {command} = {_shown(table)}: a table was expected, [{command}]")
        for name, value in table.items():
            self._check(name, value, f"[{command}] ", known)

    def _check(self, name: str, value: Any, table: str, known: Mapping[str, Argument]) -> None:
        if name not in known:
            nearest = nearest_of(name, known, _LISTED)
            raise UsageError(f"{self._path}: {table}{_bounded(name)} is not an option{nearest}")
        hint = known[name].hint
        if not _fits(value, hint):
            raise UsageError(f"{self._path}: {table}{name} = {_shown(value)}: {_expected(hint)} was expected")
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"{self._path}: {table}{name} = {_shown(value)}: text without \\u0000 was expected")


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            content = tomllib.loads(_decoded(path, stream.read()))
        str(content)  # so that whatever is in it can be shown
        return content
    except OSError as error:
        option = PREFIX + "CONFIG" if os.environ.get(PREFIX + "CONFIG") == path else "--config"
        raise UsageError(f"{path}: {error.strerror}", option=option) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8; save it as UTF-8") from error
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    except ValueError as error:  # Python reads, or shows, no number of more than 4,300 digits
        raise UsageError(f"{path}: a number in it has too many digits for any option") from error


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


def _choices(hint: Any) -> list[str]:
    return [choice for kind in alternatives(hint) if get_origin(kind) is Literal for choice in get_args(kind)]


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a value of a file has one of a hint's types; a whole number is a number, a flag is neither."""
    if choices := _choices(hint):
        return value in choices
    kinds = alternatives(hint)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _expected(hint: Any) -> str:
    if choices := _choices(hint):
        return f"one of {', '.join(choices)}"
    return " or ".join(_EXPECTED.get(kind, "text") for kind in alternatives(hint) if kind is not NoneType)


def _shown(value: Any) -> str:
    return _bounded(_toml(value) if isinstance(value, str | bool | int | float) else str(value))


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _written(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Given(NamedTuple):
    """A value as it is written in a variable or a file. source: its name in `harvester config`. origin: in errors."""

    source: str
    value: str
    origin: str


def _fill(arguments: ArgumentCollection, found: Mapping[str, _Given], source: str) -> None:
    by_name = _by_name(arguments)
    rivals = any(by_name[name].tokens for name in _TOKEN_OPTIONS if name in by_name)
    for name, given in found.items():
        if not by_name[name].tokens and not (rivals and name in _TOKEN_OPTIONS):
            by_name[name].append(Token(keyword=given.source, value=given.value, source=source))
            _origins[name] = given.origin


# --- errors -------------------------------------------------------------------------------------------------------


def parse_error_text(error: CycloptsError) -> str:
    """Return what is wrong with a command line, a variable or a file: what was expected, or which name is nearest."""
    error.verbose = False
    text = str(error)
    if isinstance(error, CoercionError) and error.token and error.argument and not error.msg:
        hint = error.argument.hint
        if not _choices(hint):  # of which cyclopts names the nearest
            name = error.token.keyword or error.argument.name
            text = f"{name} {_bounded(error.token.value)}: {_expected(hint)} was expected"
    return text.replace(DASH, "-")


def at_its_source(error: HarvesterError) -> str:
    """Return an error's text; the variable or the key that an option's value came from stands instead of the option."""
    if isinstance(error, UsageError) and error.option and (origin := _origins.get(_key_of(error.option))):
        return error.named(origin)
    return str(error)


# --- showing ------------------------------------------------------------------------------------------------------


class _Recorded(Exception):
    """Raised once the settings are recorded, so that the command does not run."""


def effective(app: App, words: list[str]) -> list[Setting]:
    """Return the settings that a command would have. words: as on the command line.

    Raises:
        CycloptsError: a word that is not an option of the command. UsageError: no such command.
    """
    name, known = words[0], commands_of(app)
    if name not in known:
        raise UsageError(f"there is no command {name}{nearest_of(name, known, '; `harvester --help` lists them')}")
    found: list[Setting] = []

    def record(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:  # noqa: ARG001
        found.extend(_setting(name, argument) for name, argument in _by_name(arguments).items())
        raise _Recorded

    sources, app.config = app.config, (*app.config, record)
    try:
        app.parse_known_args(words)
    except _Recorded:
        return found
    finally:
        app.config = sources
    return found


def _setting(name: str, argument: Argument) -> Setting:
    if not argument.tokens:
        default = argument.field_info.default
        return Setting(name, None if default is argument.field_info.empty else default, "default")
    token = argument.tokens[-1]
    return Setting(name, argument.convert(), "command line" if token.source == "cli" else str(token.keyword))


def as_json(settings: Iterable[Setting], token: Setting | None) -> str:
    """Return settings as a JSON object: value and source by name. token: its fingerprint."""
    named = [*settings, token] if token else settings
    found = {each.name: {"value": _text(each.value), "source": _text(each.source)} for each in named}
    return orjson.dumps(found, default=str, option=orjson.OPT_INDENT_2).decode()


def as_toml(settings: Iterable[Setting], token: Setting | None, table: str = "") -> str:
    """Return settings as a TOML file with the same effect, each with a comment that names its source.

    table: the command whose table they stand in; empty for `run`, whose settings are for all commands. token: its
    fingerprint, shown as a comment, because the token never stands in a file of options.
    """
    rows = [(_toml_line(each), each.source) for each in settings]
    if token:
        rows.append((f"# token {token.value}" if token.value else "# no token", token.source))
    width = min(max(len(row) for row, _ in rows), _WIDEST_COLUMN)
    return "\n".join([f"[{table}]"] * bool(table) + [f"{row:<{width}}  # {source}" for row, source in rows])


def _toml_line(setting: Setting) -> str:
    name, value = setting.name, setting.value
    if value is None:
        return f"# {name}"
    shown = _text(value)
    line = f"{name} = {_toml(shown)}"
    if setting.cut:
        return f"# {line}"
    return line if shown == value else f"# {line} in UTF-8, the only encoding of such a file"


def _text(value: Any) -> Any:
    """Return a text with replacement characters where it is not UTF-8, as a path may be."""
    return os.fsencode(value).decode(errors="replace") if isinstance(value, str) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return _written(value)
    # A TOML basic string escapes what a JSON string does: https://toml.io/en/v1.0.0#string.
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in str(value))
    return f'"{escaped}"'
