"""The command line: options to a job, a job's end to an exit code. Nothing heavy is imported before it is needed."""

import asyncio
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from harvester import __version__
from harvester.errors import ConnectionsBusy, ConsumerGone, DatasetBusy, HarvesterError, OutputError, UsageError
from harvester.options import RunOptions, ShowOptions
from harvester.stopping import Reason, Stop, Stopper
from harvester.terminal import open_closed_streams, say

if TYPE_CHECKING:
    from harvester.job import Job
    from harvester.progress import StderrWatcher
    from harvester.show import Shown
    from harvester.status import Outcome

OK, BUG, USAGE, SOME_FAILED, TOO_MANY_FAILED, STOPPED, REFUSED, MONTH_SPENT, OUTPUT = range(9)

EXIT_CODES: dict[int, str] = {
    OK: "every call is settled",
    BUG: "a bug in harvester",
    USAGE: "usage, configuration or input: nothing more will come of repeating it",
    SOME_FAILED: "finished, but some calls failed: repeat it later",
    TOO_MANY_FAILED: "too many calls failed or were refused",
    STOPPED: "stopped and resumable (a signal, --max-time, --max-calls, an outage, throttled for hours, dataset or "
    "connections in use): repeat it",
    REFUSED: "the token or the plan was refused",
    MONTH_SPENT: "the month is spent: repeat it next month",
    OUTPUT: "the output could not be written",
}

_BY_REASON: dict[Reason, int] = {
    Reason.SIGNAL: STOPPED,
    Reason.MAX_TIME: STOPPED,
    Reason.MAX_CALLS: STOPPED,
    Reason.OUTAGE: STOPPED,
    Reason.THROTTLED: STOPPED,
    Reason.MONTH_SPENT: MONTH_SPENT,
    Reason.TOKEN_REFUSED: REFUSED,
    Reason.PLAN_REFUSED: REFUSED,
    Reason.PARAMETER_REFUSED: USAGE,
    Reason.CONNECTION_REFUSED: USAGE,
    Reason.NO_ROUTE: USAGE,
    Reason.INPUT: USAGE,
    Reason.TOO_MANY_FAILURES: TOO_MANY_FAILED,
    Reason.ALL_REFUSED: TOO_MANY_FAILED,
    Reason.UNREADABLE: TOO_MANY_FAILED,
    Reason.OUTPUT: OUTPUT,
    Reason.CONSUMER_GONE: OK,
}

_BY_ERROR: tuple[tuple[type[HarvesterError], int], ...] = (
    (ConsumerGone, OK),
    (OutputError, OUTPUT),
    (DatasetBusy, STOPPED),
    (ConnectionsBusy, STOPPED),
    (UsageError, USAGE),
)


_SHOW = ShowOptions()


def _no_token() -> str:
    return "-"


_DASH = "\x00dash"  # cyclopts takes a lone - for an option


def _dashed(text: str) -> str:
    return "-" if text == _DASH else text


def _plain_error(error: CycloptsError) -> str:
    return f"harvester: {str(error).replace(_DASH, '-')}"


app = App(
    name="harvester",
    version=__version__,
    help="Harvest Bitly metrics in bulk: a file of bitlinks in, NDJSON rows out, each call made once.",
    result_action="return_value",
    error_formatter=_plain_error,
    exit_on_error=False,
    print_error=False,
)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(env_var="HARVESTER_CONFIG")] = None,
) -> int:
    """Read the configuration, then run the command.

    Parameters
    ----------
    config:
        A TOML file with options, by command: see config.example.toml.
    """
    if config is not None:
        if not config.is_file():
            raise UsageError(f"--config {config}: no such file")
        app.config = (Toml(config),)
    code = app(tokens)
    return code if isinstance(code, int) else OK


@app.command
def run(links: list[str], /, *, options: RunOptions) -> int:
    """Harvest every bitlink of LINKS; the same command again resumes.

    Parameters
    ----------
    links:
        Lists of bitlinks, a line each, plain or gzipped; - for standard input.
    """
    from harvester import progress
    from harvester.assembly import job_of

    options = replace(options, output=replace(options.output, out=_dashed(options.output.out)))
    watcher = progress.StderrWatcher(quiet=options.say.quiet, show_failures=options.output.out == "-")
    job = job_of([_dashed(link) for link in links], options, watcher.warn)
    began = time.monotonic()
    outcome = _run_job(job, watcher)
    if not options.say.quiet or outcome.stop:
        say(progress.summary(outcome, job.out, time.monotonic() - began))
    return exit_code(outcome)


@app.command
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
    from harvester import plan as plans
    from harvester import progress, settings
    from harvester.assembly import job_of

    options = replace(options, output=replace(options.output, out=_dashed(options.output.out)))
    watcher = progress.StderrWatcher(quiet=options.say.quiet)
    known = settings.has_token(options.access)
    if not known:
        watcher.warn("no token: what is spent is not known, and Bitly is not asked")
    job = job_of([_dashed(link) for link in links], options, watcher.warn, None if known else _no_token)
    made = plans.play(job, watcher, token_known=known, offline=offline)
    print(orjson.dumps(plans.as_dict(made), option=orjson.OPT_INDENT_2).decode() if json else plans.as_text(made))
    return OK


@app.command
def show(
    links: list[str], /, *, options: ShowOptions = _SHOW, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Show the metrics of a few LINKS: the notebook's use. A full window is waited for, but not for long.

    Parameters
    ----------
    links:
        Bitlinks in any form, such as https://bit.ly/3lU6hRt.
    json:
        Print the rows as `run` writes them, a line each, for a program.
    """
    from harvester import show as shows

    async def go() -> "Shown":
        stopper = Stopper()
        _stop_on_signals(stopper)
        return await shows.show([_dashed(link) for link in links], options, stopper, json=json)

    shown = asyncio.run(go())
    if shown.stop is not None:
        return _BY_REASON[shown.stop.reason]
    return TOO_MANY_FAILED if shown.refused else SOME_FAILED if shown.failed else OK


@app.command
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


@app.command
def demo(*, out: str | None = None) -> int:
    """Harvest a bundled list from a sandbox of its own: no token, no account, twenty seconds.

    Parameters
    ----------
    out:
        Where the rows go; by default a new temporary folder.
    """
    from harvester import demo as demonstration

    return exit_code(demonstration.play(out))


def exit_code(outcome: "Outcome") -> int:
    """Give the exit code of a run's end: the table is EXIT_CODES."""
    if outcome.stop is not None:
        return _BY_REASON[outcome.stop.reason]
    if outcome.status.listed.links == 0:
        say("harvester: no links at all in the list")
        return USAGE
    return OK if outcome.complete else SOME_FAILED


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit code."""
    open_closed_streams()
    sys.exit(_guarded([_DASH if word == "-" else word for word in (sys.argv[1:] if argv is None else argv)]))


def _guarded(words: list[str]) -> int:
    """Run the command; the only place where errors become exit codes."""
    if sys.platform == "win32":
        say("harvester: runs on Linux and macOS; on Windows use WSL")
        return USAGE
    try:
        code = app.meta(words)
        return code if isinstance(code, int) else OK
    except CycloptsError as error:
        say(_plain_error(error))
        return USAGE
    except HarvesterError as error:
        code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), BUG)
        if code != OK:
            say(f"harvester: {error}")
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush is quiet
        return OK
    except Exception:
        say(traceback.format_exc() + "harvester: a bug; what was harvested is safe. Please report the lines above")
        return BUG


def _run_job(job: "Job", watcher: "StderrWatcher") -> "Outcome":
    from harvester import job as jobs
    from harvester.bitly import MAX_CONNECTIONS

    if job.asking.connections > MAX_CONNECTIONS:
        watcher.warn(
            f"--connections {job.asking.connections}: Bitly allows {MAX_CONNECTIONS} at once from one IP address "
            "(https://dev.bitly.com/docs/getting-started/rate-limits)"
        )

    async def go() -> "Outcome":
        stopper = Stopper()
        _stop_on_signals(stopper)
        return await jobs.run(job, stopper, watcher)

    return asyncio.run(go())


def _stop_on_signals(stopper: Stopper) -> None:
    """End the run at the first signal, and the process at the second: what is known is in the journal by then."""
    loop = asyncio.get_running_loop()

    def heard(number: signal.Signals) -> None:
        if stopper.stop is not None and stopper.stop.reason is Reason.SIGNAL:
            os._exit(128 + number)
        print(
            f"{number.name}: stopping; calls in flight get 5 s (a second signal ends at once)",
            file=sys.stderr,
        )
        stopper.request(Stop(Reason.SIGNAL, f"{number.name} was received"))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and shells in the background ignore some
            loop.add_signal_handler(number, heard, number)
