"""Commands before the first harvest: `config`, `schema`, `login`, `logout`, `sandbox` and `demo`.

What a command needs is imported within it: to check a file or the variables, any command, also a `status` that is run
as a probe, loads this module for its options.
"""

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from harvester.cli.exit_codes import exit_code
from harvester.cli.main import app, configure
from harvester.config import sources
from harvester.config.options import (
    AccessOptions,
    FormatName,
    LoginOptions,
    RowsName,
    ShapeName,
    TargetName,
    TokenStoreOptions,
    made_of,
    names_in,
)
from harvester.errors import UsageError
from harvester.reporting.terminal import print_out, say
from harvester.shutdown import OK

if TYPE_CHECKING:
    from harvester.bearer import Token


def config(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    json: bool = False,
    example: Annotated[bool, Parameter(negative="")] = False,
    config: Annotated[Path | None, Parameter(show=False)] = None,
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
        from importlib.resources import files

        print_out((files("harvester") / "config.example.toml").read_text(encoding="utf-8").rstrip("\n"))
        return OK
    if config is not None:  # behind the command's name it is this command's
        configure(config)
    named = list(words) if words and not words[0].startswith("-") else ["run", *words]
    found = sources.effective(app, named)
    token, shown = _token_named(found)
    table = "" if named[0] == "run" else named[0]
    settings = [_without_secret(setting) for setting in found]
    text = sources.as_json(settings, shown) if json else sources.as_toml(settings, shown, table)
    print_out(token.hidden_if_long(text) if token else text)
    return OK


def _without_secret(setting: sources.Setting) -> sources.Setting:
    """Return a setting as it may be shown: without a token command's arguments, or a secret in place of its file."""
    from harvester.config import credentials

    shorten = {
        "token_command": credentials.shown_command,
        "token_file": credentials.shown_path,
        "client_secret_file": credentials.shown_path,
    }.get(setting.name)
    if shorten is None or setting.value is None:
        return setting
    shown = shorten(setting.value)
    return setting._replace(value=shown, cut=shown != setting.value)


def _token_named(found: list[sources.Setting]) -> "tuple[Token | None, sources.Setting | None]":
    """Return the token that these settings select, and its fingerprint and source as a setting."""
    from harvester.bearer import Token
    from harvester.config import credentials

    values = {name: value for name, value, *_ in found if name in names_in(AccessOptions)}
    if "token_file" not in values:
        return None, None
    access = made_of(AccessOptions, values)
    try:
        token = Token(credentials.token_source(access, lambda text: say(f"warning: {text}")))
    except UsageError as error:
        return None, sources.Setting("token", None, str(error))
    return token, sources.Setting("token", token.fingerprint, credentials.token_origin(access))


def schema(
    *,
    target: Annotated[TargetName, Parameter(name="--for")],
    rows: RowsName = "metrics",
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
    shape:
        The --shape of the rows.
    format:
        The --format of the parts; it changes how they are read, not the columns.
    """
    if rows == "links":
        from harvester.groups import table

        if format == "ndjson.zst":
            raise UsageError("ndjson.zst: the table of links has no parts of this format", option="--format")
        print_out(table.schema_for(target, format))
        return OK
    from harvester.rows.encode import Format
    from harvester.rows.schema import Shape
    from harvester.rows.schema_export import Target, schema_for

    print_out(schema_for(Target(target), Shape(shape), Format(format)))
    return OK


def login(*, options: LoginOptions | None = None) -> int:
    """Store a token for later runs: from Bitly's page in a browser, or (--with-token) one that you have."""
    from harvester.cli import login as logins

    print_out(logins.log_in(options or LoginOptions(), say))
    return OK


def logout(*, options: TokenStoreOptions | None = None) -> int:
    """Delete the token that `harvester login` has stored."""
    from harvester.cli import login as logins

    print_out(logins.log_out(options or TokenStoreOptions(), say))
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
    """
    from harvester.sandbox import Sandbox, SandboxOptions, serving

    options = SandboxOptions(connections, per_minute, per_hour, per_month, latency_ms, errors, links)

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

    return exit_code(demonstration.run_demo(out))
