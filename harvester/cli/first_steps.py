"""Commands before the first harvest: `init`, `config`, `schema`, `login`, `logout`, `sandbox` and `demo`.

What a command needs is imported within it: to check a file or the variables, any command, also a `status` that is run
as a probe, loads this module for its options.
"""

import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, cast, get_args

from harvester.bitly.facets import FacetName
from harvester.cli.command_line.app import app, configure
from harvester.cli.exit_codes import exit_code
from harvester.config import files, sources, starter
from harvester.config.options import (
    AccessOptions,
    FormatName,
    PlanName,
    RowsName,
    ShapeName,
    TargetName,
)
from harvester.credentials.options import LoginOptions, TokenStoreOptions
from harvester.errors import UsageError
from harvester.parameters import Parameter, made_of, names_in
from harvester.reporting.terminal import for_stdout, print_out, say
from harvester.shutdown import OK

if TYPE_CHECKING:
    from harvester.bearer import Token


def init(
    *,
    token: str | None = None,
    token_file: str | None = None,
    token_command: str | None = None,
    plan: PlanName | None = None,
    out: str | None = None,
    every: starter.Interval | None = None,
    file: Annotated[str | None, Parameter(metavar="PATH")] = None,
) -> int:
    """Write a config file: asks for token, plan, output and interval; prints a first command.

    Parameters
    ----------
    token:
        Where the token comes from, never the token itself: login (stored), variable (BITLY_TOKEN), file or command.
    token_file:
        The file whose first line is the token; its path is written down, not the token.
    token_command:
        The command that prints the token, such as a password manager's. It runs without a shell.
    plan:
        Your plan at Bitly, which sets the month's limit.
    out:
        Where rows are written: a folder, a file that ends in .ndjson, or a store's URL.
    every:
        How often you harvest: once, or each day, week or month into an output of its own.
    file:
        The file to write; by default ~/.config/harvester/config.toml, which is found by itself. It must not exist yet.
    """
    given = {"--token": token, "--token-file": token_file, "--token-command": token_command, "--out": out}
    for option, text in given.items():
        starter.checked_answer(option, text or "")
    path = file or files.user_file()
    if path is None:
        raise UsageError("there is no home folder: name the file to write with --file")
    starter.refuse_existing(path)
    place, source = _token_place(token, token_file, token_command)
    answers = starter.Answers(
        token=cast("starter.TokenPlace", place),
        token_source=source,
        plan=plan or cast("PlanName", _answer("--plan", "Your plan at Bitly?", starter.PLANS)),
        out=out or _answer("--out", "Where are rows written (a folder, x.ndjson, s3://…)?", default="lake"),
        every=every or cast("starter.Interval", _answer("--every", "How often?", starter.INTERVALS, "once")),
    )
    written = starter.write_new(path, starter.starter_text(answers))
    found = os.path.abspath(written) in {os.path.abspath(each) for each in files.paths_read(None)}
    print_out(starter.next_steps(answers, written, found=found, today=datetime.now(UTC).date()))
    return OK


def _token_place(place: str | None, path: str | None, command: str | None) -> tuple[str, str | None]:
    """Return where the token comes from, and the path or command of that place."""
    if path is not None and command is not None:
        raise UsageError("and --token-command: use one of them", option="--token-file")
    if place is None:
        named = "file" if path is not None else "command" if command is not None else None
        usual = "variable" if os.environ.get("BITLY_TOKEN", "").strip() else "login"
        place = named or _answer("--token", "Where does the token come from?", starter.TOKEN_PLACES, usual)
    if place not in starter.TOKEN_PLACES:
        raise UsageError(f": must be one of {', '.join(starter.TOKEN_PLACES)}", option="--token")
    if place == "file":
        return place, path or _answer("--token-file", "The path of the token's file?")
    if place == "command":
        return place, command or _answer("--token-command", "The command that prints the token (without a shell)?")
    return place, None


def _answer(option: str, question: str, choices: tuple[str, ...] = (), default: str = "") -> str:
    """Ask a question on the terminal until it has an answer.

    default: the answer to an empty line, or where there is no terminal. Raises UsageError without both.
    """
    if not _has_terminal():
        if default:
            return default
        which = f": one of {', '.join(choices)}" if choices else ""
        raise UsageError(f"is missing, and without a terminal harvester cannot ask{which}", option=option)
    hint = f" {', '.join(choices)}" if choices else ""
    say(f"{question}{hint}{f' [{default}]' if default else ''}")
    while True:
        try:
            answer = starter.checked_answer(option, input("> ").strip()) or default
            answer = answer.lower() if choices else answer
        except EOFError as error:
            raise UsageError("has no answer; nothing was written", option=option) from error
        if answer and (not choices or answer in choices):
            return answer
        say(f"one of {', '.join(choices)}, please" if choices else "an answer is needed")


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def config(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    json: bool = False,
    example: Annotated[bool, Parameter(negative="")] = False,
    config: Annotated[str | None, Parameter(show=False)] = None,
) -> int:
    """Print the settings that a command would use, and where each comes from.

    Parameters
    ----------
    words:
        The command, with any of its options; run by default.
    json:
        Print one JSON object, for a program.
    example:
        Print a file with every option, explained, to start from.
    """
    if example:
        from importlib import resources

        print_out((resources.files("harvester") / "config.example.toml").read_text(encoding="utf-8").rstrip("\n"))
        return OK
    if config is not None:  # behind the command's name it is this command's
        configure(config)
    named = list(words) if words and not words[0].startswith("-") else ["run", *words]
    found = sources.effective(app, named)
    token, shown = _token_named(found)
    table = "" if named[0] == "run" else named[0]
    settings = [_without_secret(setting) for setting in found]
    head = "" if json else files.described(app.config) + "\n"
    text = sources.as_json(settings, shown) if json else head + sources.as_toml(settings, shown, table)
    print_out(token.hidden_if_long(text) if token else text)
    return OK


def _without_secret(setting: sources.Setting) -> sources.Setting:
    """Return a setting as it may be shown: without a token command's arguments, or a secret in place of its file."""
    from harvester.credentials.redaction import shown_command, shown_path, shown_url

    shorten = {
        "token_command": shown_command,
        "on_end": shown_command,
        "token_file": shown_path,
        "client_secret_file": shown_path,
        "budget": shown_url,
        "budget_password_file": shown_path,
        "budget_password_command": shown_command,
    }.get(setting.name)
    if shorten is None or setting.value is None:
        return setting
    shown = shorten(setting.value)
    return setting._replace(value=shown, cut=shown != setting.value)


def _token_named(found: list[sources.Setting]) -> "tuple[Token | None, sources.Setting | None]":
    """Return the token that these settings select, and its fingerprint and source as a setting."""
    from harvester.bearer import Token
    from harvester.credentials.token_sources import token_origin, token_source

    values = {name: value for name, value, *_ in found if name in names_in(AccessOptions)}
    if "token_file" not in values:
        return None, None
    access = made_of(AccessOptions, values)
    try:
        token = Token(token_source(access, lambda text: say(f"warning: {text}")))
    except UsageError as error:
        return None, sources.Setting("token", None, str(error))
    return token, sources.Setting("token", token.fingerprint, token_origin(access))


def schema(
    *,
    target: Annotated[TargetName, Parameter(name="--for")],
    rows: RowsName = "metrics",
    facet: FacetName = "referrers",
    shape: ShapeName = "nested",
    format: FormatName = "ndjson.gz",  # noqa: A002 - the option's name
) -> int:
    """Print the schema of the rows for a loader, as a file that it reads as it is (docs/loading.md).

    Parameters
    ----------
    target:
        Target system.
    rows:
        The rows of `run`, or the table of `links --out`, which has one shape.
    facet:
        The --facet of the rows, which have its columns.
    shape:
        The --shape of the rows.
    format:
        The --format of the parts; it changes how they are read, not the columns.
    """
    from harvester.rows.column_types import Target

    if rows == "links":
        from harvester.groups import table

        if format not in get_args(table.LinksFormat):
            raise UsageError(f"{format}: the table of links has no parts of this format", option="--format")
        print_out(table.schema_for(Target(target), cast("table.LinksFormat", format)))
        return OK
    from harvester.rows.encode import Format
    from harvester.rows.schema import Shape
    from harvester.rows.schema_export import Rows, schema_for

    print_out(schema_for(Target(target), Rows(Shape(shape), Format(format), facet)))
    return OK


def login(*, options: LoginOptions | None = None) -> int:
    """Store a token for later runs: from Bitly's page in a browser, or (--with-token) one that you have."""
    from harvester.cli import login as logins

    print_out(for_stdout(logins.log_in(options or LoginOptions(), say)))
    return OK


def logout(*, options: TokenStoreOptions | None = None) -> int:
    """Delete the token that `harvester login` has stored."""
    from harvester.cli import login as logins

    print_out(for_stdout(logins.log_out(options or TokenStoreOptions(), say)))
    return OK


def sandbox(
    *,
    port: int = 8080,
    connections: int = 5,
    per_minute: int = 100,
    per_hour: int = 1000,
    per_month: int = 5000,
    latency_ms: float = 80.0,
    errors: float = 0.01,
    links: int = 300,
    active: float = 0.1,
) -> int:
    """Serve a Bitly look-alike on 127.0.0.1, until interrupted.

    Parameters
    ----------
    port:
        Port to listen on; 0 for a free one.
    connections:
        Simultaneous connections that are allowed.
    per_minute:
        Requests allowed in a minute; 0 for no limit.
    per_hour:
        Requests allowed in an hour; 0 for no limit.
    per_month:
        Requests allowed in a month; 0 for no limit.
    latency_ms:
        Time that an answer takes, in milliseconds.
    errors:
        Share of answers that are 500 or 503, from 0 to 1.
    links:
        Bitlinks in the larger of its two groups.
    active:
        Share of a group's links that may have clicks, from 0 to 1.
    """
    import asyncio

    from harvester.sandbox import Sandbox, SandboxOptions, serving

    options = SandboxOptions(connections, per_minute, per_hour, per_month, latency_ms, errors, links, active)

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with serving(Sandbox(options), port) as url:
            print(f"sandbox: {url}", flush=True)
            await stop.wait()

    try:
        asyncio.run(serve())
    except (OSError, OverflowError) as error:
        raise UsageError(f"{port}: {getattr(error, 'strerror', error)}", option="--port") from error
    return OK


def demo(*, out: str | None = None) -> int:
    """Harvest a bundled list from a built-in sandbox: no token, no account, twenty seconds.

    Parameters
    ----------
    out:
        Folder for the rows; by default a new temporary one.
    """
    from harvester.cli import demo as demonstration

    folder = demonstration.folder_for(out)
    outcome = demonstration.run_demo(folder)
    print(_report_in(folder))
    return exit_code(outcome)


def _report_in(folder: str) -> str:
    """Make a report of an output in its folder; return the line that says where it is, or what it needs."""
    from harvester.reports.report import report

    path = f"{folder}/_report.html"  # loaders pass over such a name
    try:
        report(folder).save(path)
    except UsageError as error:  # a library is missing
        return f"report: {error}"
    return f"report: {path}"
