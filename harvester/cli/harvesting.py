"""`harvester run` and `harvester plan`: options and lists become a job, and its end an exit code.

Heavy modules are imported within the functions, so that `harvester --help` does not wait for aiohttp.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson

from harvester._version import __version__
from harvester.bitly.query import MAX_CONNECTIONS
from harvester.cli.exit_codes import exit_code, report_error
from harvester.cli.signals import stop_on_signals
from harvester.config.options import RunOptions
from harvester.config.sources import undashed
from harvester.events import Event
from harvester.jsonlines import as_json
from harvester.reporting.terminal import can_be_drawn_upon, print_out
from harvester.shutdown import OK, USAGE, ShutdownSignal

if TYPE_CHECKING:
    from harvester.events import RunOutcome
    from harvester.reporting.reporter import Reporter
    from harvester.run.assembly import Job

SWITCH_SECONDS = 0.0001
"""The longest that the thread writing parts keeps the interpreter while the event loop waits for it. With Python's
default of 5 ms, calls were up to 9 % slower while a part was written (benchmarks/forms.py).
"""


def run(links: list[str], /, *, options: RunOptions) -> int:
    """Harvest every bitlink of LINKS; the same command again resumes.

    Parameters
    ----------
    links:
        Lists of bitlinks: a line each, or CSV, TSV, NDJSON, Parquet (--column); glob patterns; - for standard input.
    """
    lists, options = [undashed(link) for link in links], _with_undashed_out(options)
    return _observed(lists, options, lambda observer: _run(lists, options, observer), live=True)


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
    lists, options = [undashed(link) for link in links], _with_undashed_out(options)
    return _observed(
        lists, options, lambda observer: _plan(lists, options, observer, json=json, offline=offline), live=False
    )


def _with_undashed_out(options: RunOptions) -> RunOptions:
    return replace(options, output=replace(options.output, out=undashed(options.output.out)))


def _run(lists: list[str], options: RunOptions, observer: "Reporter") -> int:
    from harvester.config.parsing import fill_output
    from harvester.reporting.exporter import exporter_for
    from harvester.run.assembly import build_job

    options = fill_output(options)
    facet, out = options.query.facet, options.output.out
    observer.tell(Event.RUN_STARTED, "", version=__version__, pid=os.getpid(), lists=[*lists], out=out, facet=facet)
    metrics = exporter_for(options.output, observer.warn)
    outcome = _run_job(build_job(lists, options, observer.warn, metrics=metrics), observer)
    code = exit_code(outcome)
    observer.ended(outcome, out, code)
    if outcome.stop is None and code == USAGE:
        cure = "" if outcome.status.listed.invalid else "; if that is no mistake, take --allow-empty"
        observer.tell(Event.RUN_REFUSED, f"harvester: no links at all in the list{cure}", exit_code=code)
    return code


def _run_job(job: "Job", observer: "Reporter") -> "RunOutcome":
    from harvester.run import job as jobs

    if (connections := job.client_settings.connections) > MAX_CONNECTIONS:
        observer.warn(
            f"--connections {connections}: Bitly allows {MAX_CONNECTIONS} at once from one IP address "
            "(https://dev.bitly.com/docs/getting-started/rate-limits)"
        )

    async def harvested() -> "RunOutcome":
        shutdown = ShutdownSignal()
        stop_on_signals(shutdown, observer)
        return await jobs.run(job, shutdown, observer)

    switch_threads_quickly()
    return asyncio.run(harvested())


def switch_threads_quickly() -> None:
    """Shorten this process's thread switch interval, so that writing parts does not hold up the event loop."""
    sys.setswitchinterval(SWITCH_SECONDS)


def _plan(lists: list[str], options: RunOptions, observer: "Reporter", *, json: bool, offline: bool) -> int:
    from harvester.config.credentials import has_token
    from harvester.config.parsing import fill_output
    from harvester.reporting.exporter import exporter_for
    from harvester.run import plan as plans
    from harvester.run.assembly import build_job

    options = fill_output(options)
    token_known = has_token(options.access)
    if not token_known:
        observer.warn("no token: what is spent is not known, and Bitly is not asked")
    exporter_for(options.output, observer.warn)  # a wrong --metrics-file is refused here as it would be by run
    job = build_job(lists, options, observer.warn, None if token_known else lambda: "-")
    found = plans.play(job, observer, token_known=token_known, offline=offline)
    print_out(as_json(plans.as_dict(found), orjson.OPT_INDENT_2) if json else plans.as_text(found))
    return OK


def _observed(lists: list[str], options: RunOptions, work: Callable[["Reporter"], int], *, live: bool) -> int:
    """Return the exit code of a command's work, whose events and errors an observer reports.

    live: draw the progress, where standard error is a terminal that can be drawn upon.
    """
    log_format, quiet, out = options.log.log_format, options.log.quiet, options.output.out
    observer = observer_for(log_format, quiet=quiet, show_failures=live and out == "-")
    drawn: AbstractContextManager[None] = nullcontext()
    if live and not quiet and log_format == "text" and can_be_drawn_upon(lists, out):
        from harvester.reporting import live_display  # with rich, which a batch job need not wait for

        display = live_display.Display()
        observer.write_to(display)
        drawn = live_display.redrawn_after_stop(display)
    try:
        with drawn:
            return work(observer)
    except BrokenPipeError:
        raise
    except Exception as error:
        return report_error(error, observer)
    finally:
        observer.close()


def observer_for(log_format: str, *, quiet: bool = False, show_failures: bool = False) -> "Reporter":
    """Return an observer that writes to standard error, as text or as JSON."""
    from harvester.reporting.reporter import Reporter

    observer = Reporter(quiet=quiet, show_failures=show_failures)
    if log_format == "json":
        from harvester.reporting.logs import JsonLog, route_warnings_to

        log = JsonLog()
        route_warnings_to(log)
        observer.write_to(log)
    return observer
