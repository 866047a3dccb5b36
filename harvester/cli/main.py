"""The command line: options to a job, a job's end to an exit code. Nothing heavy is imported before it is needed."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
from cyclopts import App, CycloptsError, Parameter

from harvester._version import __version__
from harvester.cli.exit_codes import BY_REASON, OK, OUTPUT, SOME_FAILED, TOO_MANY_FAILED, USAGE, exit_code, report_error
from harvester.cli.signals import die_of_signals, stop_on_signals
from harvester.config import sources
from harvester.config.options import (
    FacetName,
    FormatName,
    LoginOptions,
    RunOptions,
    ShapeName,
    ShowOptions,
    TargetName,
    TokenStoreOptions,
)
from harvester.errors import UsageError
from harvester.events import Event
from harvester.jsonlines import as_json
from harvester.reporting.terminal import can_be_drawn_upon, open_closed_streams, print_out, say
from harvester.shutdown import ShutdownSignal

if TYPE_CHECKING:
    from harvester.cli.show import Shown
    from harvester.client.token import Token
    from harvester.progress import RunOutcome
    from harvester.reporting.reporter import Reporter
    from harvester.run.assembly import Job


_SHOW = ShowOptions()


def _no_token() -> str:
    return "-"


_DASH = "\x00dash"  # cyclopts takes a lone - for an option
HANDOVER_SECONDS = 0.0001
"""The thread that makes parts lets the calls go on after so long. Python's usual 5 ms is what each step of a call would
wait for it: calls were up to 9 % slower meanwhile (benchmarks/forms.py).
"""


def _dashed(text: str) -> str:
    return "-" if text == _DASH else text


def _with_dash(options: RunOptions) -> RunOptions:
    return replace(options, output=replace(options.output, out=_dashed(options.output.out)))


def _plain_error(error: CycloptsError) -> str:
    return f"harvester: {sources.explained(error).replace(_DASH, '-')}"


def _examples(*lines: str) -> str:
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


app = App(
    name="harvester",
    version=__version__,
    help="Harvest Bitly metrics in bulk: a file of bitlinks in, NDJSON rows out, each call made once.",
    help_format="plaintext",
    help_epilogue=_examples(
        "harvester demo                        see it work, without a token",
        "harvester plan links.txt --out lake   what it will cost, when it will end",
        "harvester run links.txt --out lake    the main job; again: it resumes",
        "harvester COMMAND --help              a command's options, with examples",
    ),
    result_action="return_value",
    error_formatter=_plain_error,
    exit_on_error=False,
    print_error=False,
    verbose=False,
)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(env_var=sources.PREFIX + "CONFIG")] = None,
) -> int:
    """Read the configuration, then run the command.

    Parameters
    ----------
    config:
        A TOML file of options: see config.example.toml.
    """
    _configure(config)
    for name, nearest in sources.misspelt_variables(app, os.environ):
        say(f"warning: {name}: no option has this name; did you mean {nearest}?")
    code = app(tokens)
    return code if isinstance(code, int) else OK


def _configure(path: Path | None) -> None:
    if path == Path() and not os.environ.get(sources.PREFIX + "CONFIG", "."):
        path = None  # an empty variable says nothing
    file = () if path is None else (sources.File(str(path), app),)
    app.config = (sources.from_variables, *file)


@app.command(
    sort_key=1,
    help_epilogue=_examples(
        "harvester run links.txt --out lake/dt=2026-11-23   parts, for a loader",
        "harvester run links.txt --out results.ndjson       a file: tail -f follows",
        "zcat links.gz | harvester run - --out - | jq .     a filter",
        "harvester run links.txt --out lake --per-month 25000 --reserve 10%",
        "harvester run links.txt --out 'lake/dt={dt}' --unit-reference 2026-11-23",
        "",
        "Every option may also stand in a file, --config, or in a variable:",
        "HARVESTER_PER_MONTH=25000 harvester run links.txt --out lake",
    ),
)
def run(links: list[str], /, *, options: RunOptions) -> int:
    """Harvest every bitlink of LINKS; the same command again resumes.

    Parameters
    ----------
    links:
        Lists of bitlinks: a line each, or CSV, TSV, NDJSON, Parquet (--column); glob patterns; - for standard input.
    """
    lists, options = [_dashed(link) for link in links], _with_dash(options)
    return _told(lists, options, lambda observer: _run(lists, options, observer), live=True)


def _run(links: list[str], options: RunOptions, observer: "Reporter") -> int:
    from harvester.config import parsing
    from harvester.reporting.exporter import exporter_for
    from harvester.run.assembly import build_job

    options = parsing.laid_out(options)
    facet, out = options.query.facet, options.output.out
    observer.tell(Event.RUN_STARTED, "", version=__version__, pid=os.getpid(), lists=[*links], out=out, facet=facet)
    outcome = _run_job(
        build_job(links, options, observer.warn, metrics=exporter_for(options.output, observer.warn)), observer
    )
    code = exit_code(outcome)
    observer.ended(outcome, out, code)
    if outcome.stop is None and not outcome.status.listed.links:
        observer.tell(Event.RUN_REFUSED, "harvester: no links at all in the list", exit_code=code)
    return code


@app.command(
    sort_key=2,
    help_epilogue=_examples(
        "harvester plan links.txt --out lake",
        "harvester plan links.txt --out lake --per-month 25000 --json",
        "harvester plan links.txt --out lake --offline   Bitly is asked nothing",
    ),
)
def plan(links: list[str], /, *, options: RunOptions, json: bool = False, offline: bool = False) -> int:
    """Say what `run` with the same options would cost and when it would end; no metrics call is made.

    Parameters
    ----------
    links:
        Lists of bitlinks, as for run.
    json:
        Print one JSON object, for a program.
    offline:
        Do not ask Bitly for its limits either; that takes up to three calls.
    """
    lists, options = [_dashed(link) for link in links], _with_dash(options)
    return _told(
        lists, options, lambda observer: _plan(lists, options, observer, json=json, offline=offline), live=False
    )


def _plan(links: list[str], options: RunOptions, observer: "Reporter", *, json: bool, offline: bool) -> int:
    from harvester.config import credentials, parsing
    from harvester.reporting.exporter import exporter_for
    from harvester.run import plan as plans
    from harvester.run.assembly import build_job

    options = parsing.laid_out(options)
    known = credentials.has_token(options.access)
    if not known:
        observer.warn("no token: what is spent is not known, and Bitly is not asked")
    exporter_for(options.output, observer.warn)  # a wrong --metrics-file is refused here as it would be by run
    job = build_job(links, options, observer.warn, None if known else _no_token)
    made = plans.play(job, observer, token_known=known, offline=offline)
    print_out(as_json(plans.as_dict(made), orjson.OPT_INDENT_2) if json else plans.as_text(made))
    return OK


@app.command(
    sort_key=3,
    help_epilogue=_examples(
        "harvester show https://bit.ly/3lU6hRt",
        "harvester show bit.ly/3lU6hRt bit.ly/2Ab --facet countries",
        "harvester show bit.ly/3lU6hRt --json | jq .metrics",
    ),
)
def show(
    links: list[str], /, *, options: ShowOptions = _SHOW, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Show the metrics of a few LINKS: the notebook's use. A full window is waited for, but not for long.

    Parameters
    ----------
    links:
        Bitlinks in any form, such as https://bit.ly/3lU6hRt. Each costs a call, each time: nothing is kept.
    json:
        Print the rows as `run` writes them, a line each, for a program.
    """
    from harvester.cli import show as shows

    async def go() -> "Shown":
        shutdown = ShutdownSignal()
        stop_on_signals(shutdown, _observer("text"))
        return await shows.show([_dashed(link) for link in links], options, shutdown, json=json)

    shown = asyncio.run(go())
    if shown.stop is not None:
        return BY_REASON[shown.stop.reason]
    return TOO_MANY_FAILED if shown.refused else SOME_FAILED if shown.failed else OK


@app.command(
    sort_key=4,
    help_epilogue=_examples(
        "harvester status lake                   how it stands, and what to run next",
        "harvester status lake --watch           until it has ended",
        "harvester status results.ndjson --json  for a program",
        "harvester status 'lake/{facet}/dt={dt}' --unit-reference 2026-11-23",
    ),
)
def status(
    out: str,
    /,
    *,
    json: bool = False,
    watch: bool = False,
    every: str = "5s",
    facet: FacetName = "referrers",
    unit_reference: str | None = None,
) -> int:
    """Say how a run stands, and what to run next: from its manifest alone, without a lock, for any user.

    Parameters
    ----------
    out:
        What --out was: a folder, a growing file or a store's URL; or the manifest itself.
    json:
        Print a JSON object, for a program; with --watch one a line.
    watch:
        Look again until the run has ended: on a terminal in place, else a line at each change.
    every:
        How often --watch looks.
    facet:
        What {facet} in OUT stands for.
    unit_reference:
        The moment whose UTC day {dt} in OUT stands for.
    """
    from harvester.config.parsing import path_of, seconds_of
    from harvester.reporting import run_status, status_text

    path = path_of("OUT", _dashed(out), facet, unit_reference)
    if not watch:
        status_text.put_glance(run_status.look(path), json=json)
        return OK
    with suppress(KeyboardInterrupt):
        status_text.follow(run_status.changes(path, seconds_of("--every", every)), json=json)
    return OK


@app.command(
    sort_key=4.5,
    help_epilogue=_examples(
        "harvester verify lake/dt=2026-11-23   before it is loaded",
        "harvester verify results.ndjson       while it grows, too",
        "harvester verify lake --work-dir /var/lib/harvester/lake --json",
        "harvester verify 'lake/{facet}/dt={dt}' --unit-reference 2026-11-23",
    ),
)
def verify(
    out: str,
    /,
    *,
    work_dir: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    facet: FacetName = "referrers",
    unit_reference: str | None = None,
) -> int:
    """Check an output: parts, rows, counts and failures against manifest and ledger; 0 only if all holds.

    Parameters
    ----------
    out:
        What --out was: a folder, a growing file or a store's URL; a run may go on meanwhile.
    work_dir:
        What --work-dir was; by default the private state is looked for inside or beside OUT.
    json:
        Print a JSON object, for a program.
    facet:
        What {facet} in OUT and --work-dir stands for.
    unit_reference:
        The moment whose UTC day {dt} in OUT and --work-dir stands for.
    """
    from harvester.config.parsing import path_of
    from harvester.verify import findings, verify

    path = path_of("OUT", _dashed(out), facet, unit_reference)
    state = work_dir and path_of("--work-dir", work_dir, facet, unit_reference)
    found = verify.verify(verify.output_at(path, state))
    try:
        print_out(as_json(findings.as_dict(found), orjson.OPT_INDENT_2) if json else findings.as_text(found))
    except BrokenPipeError:  # who reads no more relies on the exit code all the same
        _hush()
    return OK if found.ok else OUTPUT


@app.command(
    name="config",
    sort_key=5,
    help_epilogue=_examples(
        "harvester config                      of run",
        "harvester config plan --reserve 10%   of plan, with this option",
        "harvester --config my.toml config > whole.toml",
    ),
)
def show_config(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    json: bool = False,
    config: Annotated[Path | None, Parameter(show=False)] = None,
) -> int:
    """Print the settings that a command would have, and where each comes from.

    Parameters
    ----------
    words:
        The command, with any of its options; run by default.
    json:
        Print one JSON object, for a program.
    """
    if config is not None:  # behind the command's name it is this command's, and not _launch's
        _configure(config)
    named = list(words) if words and not words[0].startswith("-") else ["run", *words]
    found = sources.effective(app, named)
    token, shown = _token_named(found)
    table = "" if named[0] == "run" else named[0]
    text = sources.as_json(found, shown) if json else sources.as_toml(found, shown, table)
    print_out(token.hidden_if_long(text) if token else text)
    return OK


def _token_named(found: list[sources.Setting]) -> "tuple[Token | None, sources.Setting | None]":
    """Give the token that these settings lead to, and its fingerprint and source as a setting."""
    from harvester.client.token import Token
    from harvester.config import credentials
    from harvester.config.options import AccessOptions, made_of, names_in

    values = {name: value for name, value, _ in found if name in names_in(AccessOptions)}
    if "token_file" not in values:
        return None, None
    access = made_of(AccessOptions, values)
    try:
        token = Token(credentials.token_source(access, lambda text: say(f"warning: {text}")))
    except UsageError as error:
        return None, sources.Setting("token", None, str(error))
    return token, sources.Setting("token", token.fingerprint, credentials.token_origin(access))


@app.command(
    sort_key=6,
    help_epilogue=_examples(
        "harvester login --with-token           keep a token of Settings > API",
        "harvester login --client-id ID         by Bitly's page in the browser",
        "harvester login --client-id ID --no-browser   on another machine",
    ),
)
def login(*, options: LoginOptions | None = None) -> int:
    """Keep a token for later runs: by Bitly's own page in a browser, or (--with-token) one that you have."""
    from harvester.cli import login as logins

    print_out(logins.play(options or LoginOptions(), say))
    return OK


@app.command(sort_key=7, help_epilogue=_examples("harvester logout"))
def logout(*, options: TokenStoreOptions | None = None) -> int:
    """Forget the token that `harvester login` has kept."""
    from harvester.cli import login as logins

    print_out(logins.undo(options or TokenStoreOptions(), say))
    return OK


@app.command(
    sort_key=8,
    help_epilogue=_examples(
        "harvester schema --for json-schema > row.json",
        "harvester schema --for duckdb --shape flat --format parquet",
        "harvester schema --for athena > table.sql",
    ),
)
def schema(
    *,
    target: Annotated[TargetName, Parameter(name="--for")],
    shape: ShapeName = "nested",
    format: FormatName = "ndjson.gz",  # noqa: A002 - the option's name
) -> int:
    """Print the rows' schema for who loads them: a file that it takes as it is (docs/loading.md).

    Parameters
    ----------
    target:
        Who is to understand it.
    shape:
        The rows' --shape, as run was told.
    format:
        The parts' --format, as run was told: it changes how they are read, not the columns.
    """
    from harvester.rows.encode import Format
    from harvester.rows.schema import Shape
    from harvester.rows.schema_export import Target, schema_for

    print_out(schema_for(Target(target), Shape(shape), Format(format)))
    return OK


@app.command(
    sort_key=10,
    help_epilogue=_examples(
        "harvester sandbox --port 8080 --per-minute 100 --errors 0.05",
        "export BITLY_TOKEN=any HARVESTER_BASE_URL=http://127.0.0.1:8080/v4",
        "harvester run links.txt --out out",
    ),
)
def sandbox(
    *,
    port: int = 8080,
    connections: int = 5,
    per_minute: int = 100,
    per_hour: int = 1000,
    per_month: int = 5000,
    latency_ms: float = 80.0,
    errors: float = 0.01,
) -> int:
    """Serve a Bitly look-alike on 127.0.0.1, until interrupted.

    Parameters
    ----------
    port:
        The port to listen on; 0 for a free one.
    connections:
        Connections that are allowed at once.
    per_minute:
        Requests that are allowed in a minute; 0 for no limit.
    per_hour:
        Requests that are allowed in an hour; 0 for no limit.
    per_month:
        Requests that are allowed in a month; 0 for no limit.
    latency_ms:
        Milliseconds that an answer takes.
    errors:
        The share of answers that are 500 or 503, from 0 to 1.
    """
    from harvester.sandbox import Sandbox, SandboxOptions, serving

    options = SandboxOptions(connections, per_minute, per_hour, per_month, latency_ms, errors)

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
        raise UsageError(f"--port {port}: {getattr(error, 'strerror', error)}") from error
    return OK


@app.command(sort_key=9, help_epilogue=_examples("harvester demo", "harvester demo --out /tmp/demo"))
def demo(*, out: str | None = None) -> int:
    """Harvest a bundled list from a sandbox of its own: no token, no account, twenty seconds.

    Parameters
    ----------
    out:
        Where the rows go; by default a new temporary folder.
    """
    from harvester.cli import demo as demonstration

    return exit_code(demonstration.play(out))


app.register_install_completion_command(help="Let the shell complete commands and options: bash, zsh, fish.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit code."""
    open_closed_streams()
    die_of_signals()
    code = _guarded([_DASH if word == "-" else word for word in (sys.argv[1:] if argv is None else argv)])
    sys.exit(_flush_output(code))


def _flush_output(code: int) -> int:
    """Flush standard output; return the exit code, which is OUTPUT instead of OK if that fails.

    A failed print leaves its text in the buffer. The interpreter would try to write it once more as it ends, fail
    again, and exit with 120 whatever code was given.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _hush()
    except OSError:
        _hush()
        return code or OUTPUT
    return code


def _guarded(words: list[str]) -> int:
    """Run the command, and give its exit code whatever happens."""
    if sys.platform == "win32":
        say("harvester: runs on Linux and macOS; on Windows use WSL")
        return USAGE
    try:
        code = app.meta(words)
        return code if isinstance(code, int) else OK
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _hush()
        return OK
    except Exception as error:
        observer = _observer("json" if _asks_for_json(words) else "text")
        if not isinstance(error, CycloptsError):
            return report_error(error, observer)
        observer.tell(Event.RUN_REFUSED, _plain_error(error), exit_code=USAGE)
        return USAGE


def _hush() -> None:
    """Let nothing more go to a standard output that nobody reads, so that the interpreter's last flush is quiet."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _asks_for_json(words: list[str]) -> bool:
    """Look for the option in a command line that could not be read."""
    return "--log-format=json" in words or ("--log-format", "json") in pairwise(words)


def _told(lists: list[str], options: RunOptions, work: Callable[["Reporter"], int], *, live: bool) -> int:
    """Do a command's work with somebody who tells of it, errors too. live: it may be shown all the time."""
    from harvester.config import parsing

    log_format, quiet, out = parsing.log_format_of(options.say), options.say.quiet, options.output.out
    observer = _observer(log_format, quiet=quiet, show_failures=live and out == "-")
    if live and not quiet and log_format == "text" and can_be_drawn_upon(lists, out):
        from harvester.reporting import live_display  # with rich, which a batch job need not wait for

        observer.speak(live_display.Display())
    try:
        return work(observer)
    except BrokenPipeError:
        raise
    except Exception as error:
        return report_error(error, observer)
    finally:
        observer.close()


def _observer(log_format: str, *, quiet: bool = False, show_failures: bool = False) -> "Reporter":
    from harvester.reporting.reporter import Reporter

    observer = Reporter(quiet=quiet, show_failures=show_failures)
    if log_format == "json":
        from harvester.reporting.logs import JsonLog

        observer.speak(JsonLog())
    return observer


def _run_job(job: "Job", observer: "Reporter") -> "RunOutcome":
    from harvester.bitly.query import MAX_CONNECTIONS
    from harvester.run import job as jobs

    sys.setswitchinterval(HANDOVER_SECONDS)
    if job.asking.connections > MAX_CONNECTIONS:
        observer.warn(
            f"--connections {job.asking.connections}: Bitly allows {MAX_CONNECTIONS} at once from one IP address "
            "(https://dev.bitly.com/docs/getting-started/rate-limits)"
        )

    async def go() -> "RunOutcome":
        shutdown = ShutdownSignal()
        stop_on_signals(shutdown, observer)
        return await jobs.run(job, shutdown, observer)

    return asyncio.run(go())
