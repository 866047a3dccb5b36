"""Where an option's value comes from. Precedence: command line, variables, files, default.

Variables and files are sources of cyclopts' settings (https://cyclopts.readthedocs.io/en/latest/config_file.html),
called in order: each fills in the options that have no value yet.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from harvester.config.options import TOKEN_OPTIONS, nearest_of
from harvester.errors import HarvesterError, UsageError

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import Argument, ArgumentCollection

PREFIX = "HARVESTER_"
DASH = "\x00dash"
"""Stands for a lone `-` on the command line, which cyclopts would take for an option."""
SEPARATE = frozenset({"sandbox", "demo", "init"})
"""Commands whose options have other meanings than those of `run` with the same names. They take no value that is for
all commands: only HARVESTER_SANDBOX_PORT and the like, and their own table in the file.
"""
_OWN = {"status": frozenset({"every"})}
"""So with single options of a command: --every is a time for status, and a calendar period for run."""
_WITHOUT = frozenset({"config", "init"})
"""Commands without settings of their own: they are about settings."""
RIVALS = (TOKEN_OPTIONS, ("plan", "per_month"), ("budget_password_file", "budget_password_command"))
"""Once a source names one option of a group, sources of lower precedence are ignored for the whole group."""
_PERIOD_OPTIONS = ("day", "since", "until")
_WINDOW_OPTIONS = ("unit", "units", "unit_reference")
_WIDEST_COLUMN = 48
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


def options_of(command: "App") -> dict[str, "Argument"]:
    """Return a command's options by the names that they have in a file."""
    return options_by_name(command.assemble_argument_collection())


def takes_shared(command: str, option: str) -> bool:
    """Return whether an option of a command takes a value that is for all commands."""
    return command not in SEPARATE and option not in _OWN.get(command, ())


def commands_of(app: "App") -> dict[str, "App"]:
    """Return the commands that have settings, by name."""
    return {name: app[name] for name in app.resolved_commands() if not name.startswith("-") and name not in _WITHOUT}


def options_by_name(arguments: Iterable["Argument"]) -> dict[str, "Argument"]:
    """Return options by the names that they have in a file."""
    return {key_of(each.name): each for each in arguments if each.name.startswith("--")}


def key_of(option: str) -> str:
    """Return the name that an option has in a file."""
    return option.removeprefix("--").replace("-", "_")


# --- variables ----------------------------------------------------------------------------------------------------


def from_variables(app: "App", commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:  # noqa: ARG001
    """Fill options without a value from their variables; an empty variable counts as not set.

    HARVESTER_PER_MINUTE is for every command that has such an option; HARVESTER_RUN_PER_MINUTE is for run alone, and
    takes precedence.
    """
    _origins.clear()
    if not commands:
        return
    for layer in given_in_variables(commands[-1], options_by_name(arguments)):
        fill(arguments, layer, "a variable")


def given_in_variables(command: str, options: Iterable[str]) -> tuple[dict[str, "Given"], ...]:
    """Return the values of a command's options in variables: the command's own, then those for all commands."""
    _origins.clear()
    layers: tuple[dict[str, Given], ...] = ({}, {})
    for name in {*options} - {"config"}:  # whose variable names the file
        for rank, variable in enumerate(variables_of(command, name)):
            if value := os.environ.get(variable):
                layers[rank][name] = Given(variable, value, variable)
    return layers


def variables_of(command: str, option: str) -> tuple[str, ...]:
    """Return the variables of an option, in order of precedence."""
    own, shared = f"{PREFIX}{command}_{option}".upper(), f"{PREFIX}{option}".upper()
    return (own, shared) if takes_shared(command, option) else (own,)


def variables_used() -> dict[str, str]:
    """Return the variables that the present command's options came from, with their values."""
    names = {PREFIX + "CONFIG", *(origin for origin in _origins.values() if origin.startswith(PREFIX))}
    return {name: value for name in sorted(names) if (value := os.environ.get(name))}


def misspelt_variables(app: "App", environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable whose name is almost that of an option's variable, with that name."""
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    unknown = {name for name in environment if name.startswith(PREFIX)}
    known: set[str] = set()
    for command, made in commands_of(app).items():
        if not unknown:  # usually at once; to collect a command's options takes milliseconds
            return
        own = {each for option in options_of(made) for each in variables_of(command, option)}
        known |= own
        unknown -= own
    for name in sorted(unknown):
        if nearest := get_close_matches(name, known, 1, 0.9):
            yield name, nearest[0]


class Given(NamedTuple):
    """A value as it is written in a variable or a file.

    source: its name in `harvester config`. origin: in errors.
    """

    source: str
    value: str
    origin: str


def excluded_by(given: Collection[str]) -> set[str]:
    """Return the options that sources of lower precedence may not set any more. given: names that have a value.

    Of each group of rivals that is the whole group. A period and a window exclude each other.
    """
    excluded = {name for group in RIVALS if {*given} & {*group} for name in group}
    for one, other in ((_PERIOD_OPTIONS, _WINDOW_OPTIONS), (_WINDOW_OPTIONS, _PERIOD_OPTIONS)):
        excluded |= {*other} if {*given} & {*one} else set()
    return excluded


def fill(arguments: "ArgumentCollection", found: Mapping[str, Given], source: str) -> None:
    """Add a source's values to the options that have none, unless a rival of the option has one."""
    from cyclopts import Token  # noqa: PLC0415 - whoever has arguments has imported it

    options = options_by_name(arguments)
    for name, given in not_excluded(found, {name for name, option in options.items() if option.tokens}):
        options[name].append(Token(keyword=given.source, value=given.value, source=source))


def not_excluded(found: Mapping[str, Given], taken: Collection[str]) -> Iterator[tuple[str, Given]]:
    """Yield those of a source's values that count, and remember their origins. taken: options that have a value."""
    excluded = {*taken} | excluded_by(taken)
    for name, given in found.items():
        if name not in excluded:
            _origins[name] = given.origin
            yield name, given


# --- errors -------------------------------------------------------------------------------------------------------


def at_its_source(error: HarvesterError) -> str:
    """Return an error's text; the variable or the key that an option's value came from stands instead of the option."""
    if isinstance(error, UsageError) and error.option and (origin := _origins.get(key_of(error.option))):
        return error.named(origin)
    return str(error)


# --- showing ------------------------------------------------------------------------------------------------------


class _Recorded(Exception):
    """Raised once the settings are recorded, so that the command does not run."""


def effective(app: "App", words: list[str]) -> list[Setting]:
    """Return the settings that a command would have. words: as on the command line.

    Raises:
        CycloptsError: a word that is not an option of the command. UsageError: no such command.
    """
    name, known = words[0], commands_of(app)
    if name not in known:
        raise UsageError(f"unknown command {name}{nearest_of(name, known, '; `harvester --help` lists them')}")
    found: list[Setting] = []

    def record(app: "App", commands: tuple[str, ...], arguments: "ArgumentCollection") -> None:  # noqa: ARG001
        found.extend(_setting(name, argument) for name, argument in options_by_name(arguments).items())
        raise _Recorded

    sources, app.config = app.config, (*app.config, record)
    try:
        app.parse_known_args(words)
    except _Recorded:
        return found
    finally:
        app.config = sources
    return found


def _setting(name: str, argument: "Argument") -> Setting:
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
    line = f"{name} = {toml_value(shown)}"
    if setting.cut:
        return f"# {line}"
    return line if shown == value else f"# {line} in UTF-8, the only encoding of such a file"


def _text(value: Any) -> Any:
    """Return a text with replacement characters where it is not UTF-8, as a path may be."""
    return os.fsencode(value).decode(errors="replace") if isinstance(value, str) else value


def written(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def toml_value(value: Any) -> str:
    """Return a value as it is written in a file."""
    if isinstance(value, bool | int | float):
        return written(value)
    if isinstance(value, list | tuple):
        return toml_value(value[0]) if len(value) == 1 else f"[{', '.join(map(toml_value, value))}]"
    # A TOML basic string escapes what a JSON string does: https://toml.io/en/v1.0.0#string.
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in str(value))
    return f'"{escaped}"'
