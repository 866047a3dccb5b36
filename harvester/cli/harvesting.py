"""`harvester run` and `harvester plan`: options and lists become a job, and its end an exit code.

Slow imports are local: every command, even `status` as a probe, loads this module to validate config and variables.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import orjson

from harvester._version import __version__
from harvester.bitly.query import MAX_CONNECTIONS
from harvester.cli.exit_codes import (
    die_of_signals,
    exit_code,
    observer_for,
    report_error,
    run_on_end,
    stop_on_signals,
    words_of,
)
from harvester.config.options import RunOptions
from harvester.config.parsing import fill_output
from harvester.config.sources import typed, undashed, variables_used
from harvester.dataset.manifest import locate
from harvester.errors import HarvesterError
from harvester.events import Event, RunOutcome
from harvester.jsonlines import as_json
from harvester.reporting.exporter import exporter_for
from harvester.reporting.reporter import Reporter
from harvester.reporting.terminal import can_be_drawn_upon, for_stdout, print_out
from harvester.shutdown import OK, USAGE, ShutdownSignal
from harvester.storage.location import MANIFEST, is_url, normal

if TYPE_CHECKING:
    from harvester.bearer import Token
    from harvester.dataset.manifest import Command
    from harvester.run.assembly import Job

SWITCH_SECONDS = 0.0001
"""The longest that the thread writing parts keeps the interpreter while the event loop waits for it. With Python's
default of 5 ms, calls were up to 9 % slower while a part was written (benchmarks/forms.py).
"""


def run(links: list[str] | None = None, /, *, options: RunOptions) -> int:
    """Harvest every bitlink of LINKS; the same command again resumes.

    Parameters
    ----------
    links:
        Lists of bitlinks: one per line, or CSV, TSV, NDJSON, Parquet (--column); glob patterns; - for standard input.
        None with --group or --all-groups.
    """
    code = _observed(_run, links or [], options, live=True)
    if options.log.on_end is not None:
        die_of_signals()  # the loop, which had the signals, is over
        run_on_end(options.log.on_end, _manifest_of(options), code, observer_for(options.log.log_format).warn)
    return code


def plan(links: list[str] | None = None, /, *, options: RunOptions, json: bool = False, offline: bool = False) -> int:
    """Show what `run` with the same options would cost and when it would end, without fetching metrics.

    Parameters
    ----------
    links:
        Lists of bitlinks, as for run.
    json:
        Print one JSON object, for a program.
    offline:
        Do not ask Bitly for its limits, which would take up to three helper requests.
    """
    return _observed(partial(_plan, json=json, offline=offline), links or [], options, live=False)


def _manifest_of(options: RunOptions) -> str:
    """Return the path of the manifest of a run's output; empty for rows on standard output, or a wrong --out."""
    try:
        out = fill_output(options).output.out
        return f"{normal(out)}/{MANIFEST}" if is_url(out) else locate(undashed(out))[0]
    except HarvesterError:
        return ""


def _run(lists: list[str], options: RunOptions, observer: Reporter) -> int:
    from harvester.reporting.run_status import in_shell
    from harvester.run.assembly import build_job

    words_of(options.log.on_end)
    facet, out = options.query.facet, options.output.out
    observer.tell(Event.RUN_STARTED, "", version=__version__, pid=os.getpid(), lists=[*lists], out=out, facet=facet)
    exporter = exporter_for(options.output, observer.warn)
    job = build_job(lists, options, observer.warn, exporter=exporter)
    command = _command(job.token)
    outcome = _run_job(replace(job, command=command), observer)
    code = exit_code(outcome)
    observer.ended(outcome, out, code, in_shell(command))
    if outcome.stop is None and code == USAGE:
        status, column = outcome.status, ""
        if status.column and (status.listed.blank or status.listed.invalid):
            column = f"; its column {status.column} has none (--column)"
        cure = "" if status.listed.invalid else "; if that is no mistake, use --allow-empty"
        observer.tell(Event.RUN_REFUSED, f"harvester: there are no links in the list{column}{cure}", exit_code=code)
    return code


def _command(token: "Token") -> "Command":
    """Return the command line of this process for the manifest, which others may read: without any secret."""
    from harvester.config.credentials import may_hold_secret, without_secrets
    from harvester.dataset.manifest import Command

    def text(path: str) -> str:
        return os.fsencode(token.hidden_if_long(path)).decode(errors="backslashreplace")  # JSON is UTF-8

    words, cwd = ["harvester", *without_secrets(typed.words)], None
    with suppress(FileNotFoundError):  # the folder was deleted
        cwd = text(os.getcwd())
    variables: dict[str, str | None] = {}
    for name, value in variables_used().items():
        secret = may_hold_secret(name, value) or token.hidden_if_long(value) != value
        variables[name] = None if secret else text(value)
    return Command(tuple(map(text, words)), cwd, tuple(map(text, typed.files)), variables)


def _run_job(job: "Job", observer: Reporter) -> RunOutcome:
    from harvester.run import job as jobs

    if (connections := job.client_settings.connections) > MAX_CONNECTIONS:
        observer.warn(
            f"--connections {connections}: Bitly allows {MAX_CONNECTIONS} at once from one IP address "
            "(https://dev.bitly.com/docs/getting-started/rate-limits)"
        )

    async def harvested() -> RunOutcome:
        shutdown = ShutdownSignal()
        stop_on_signals(shutdown, observer)
        return await jobs.run(job, shutdown, observer)

    sys.setswitchinterval(SWITCH_SECONDS)
    return asyncio.run(harvested())


def _plan(lists: list[str], options: RunOptions, observer: Reporter, *, json: bool, offline: bool) -> int:
    from harvester.config.credentials import has_token
    from harvester.run import plan as plans
    from harvester.run.assembly import build_job

    token_known = has_token(options.access)
    if not token_known:
        observer.warn("no token: the calls used so far are unknown, and Bitly was not asked for its limits")
    exporter_for(options.output, observer.warn)  # a wrong --metrics-file is refused here as it would be by run
    job = build_job(lists, options, observer.warn, None if token_known else lambda: "-")
    found = plans.make_plan(job, observer, token_known=token_known, offline=offline)
    print_out(as_json(plans.as_dict(found), orjson.OPT_INDENT_2) if json else for_stdout(plans.as_text(found)))
    return OK


def _observed(
    work: Callable[[list[str], RunOptions, Reporter], int], links: list[str], options: RunOptions, *, live: bool
) -> int:
    """Return the exit code of a command's work, whose events and errors an observer reports.

    live: draw the progress, where standard error is a terminal that can be drawn upon.
    """
    lists, out = [undashed(link) for link in links], undashed(options.output.out)
    options = replace(options, output=replace(options.output, out=out))
    log_format, quiet = options.log.log_format, options.log.quiet
    observer = observer_for(log_format, quiet=quiet, show_failures=live and out == "-")
    try:
        with ExitStack() as stack:
            if live and not quiet and log_format == "text" and can_be_drawn_upon(lists, out):
                from harvester.reporting import live_display  # with rich, which a batch job need not wait for

                display = live_display.Display()
                observer.write_to(display)
                stack.enter_context(live_display.redrawn_after_stop(display))
            return work(lists, fill_output(options), observer)
    except BrokenPipeError:
        raise
    except Exception as error:
        return report_error(error, observer)
    finally:
        observer.close()
