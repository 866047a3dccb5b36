"""`harvester run` and `harvester plan`: options and lists become a job, and its end an exit code.

Slow imports are local: every command, even `status` as a probe, loads this module to validate config and variables.
"""

import gc
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from harvester._version import __version__
from harvester.bitly.query import MAX_CONNECTIONS
from harvester.cli.exit_codes import (
    exit_code,
    most_urgent,
    observer_for,
    report_error,
    reported,
    run_on_end,
    run_until_signal,
    words_of,
)
from harvester.config.options import RunOptions
from harvester.config.sources import typed, undashed, variables_used
from harvester.dataset.manifest import locate
from harvester.errors import HarvesterError, UsageError
from harvester.events import Event, RunOutcome
from harvester.jsonlines import as_json
from harvester.reporting.exporter import exporter_for
from harvester.reporting.reporter import Reporter
from harvester.reporting.terminal import can_be_drawn_upon, for_stdout, print_out
from harvester.shutdown import OK, USAGE, ShutdownSignal
from harvester.signals import die_of_signals, end_at_once
from harvester.storage.location import MANIFEST, STDOUT, is_url, normal

if TYPE_CHECKING:
    from harvester.bearer import Token
    from harvester.dataset.manifest import Command
    from harvester.run.assembly import Job
    from harvester.series.several import Ended

T = TypeVar("T")
_SPARK = "harvester.spark"
"""Loaded by its name, only if there is something for it to do."""
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
    end_at_once()  # while modules are imported
    deciding = [STDOUT]
    code = _observed(partial(_run, deciding=deciding), links or [], options, live=True)
    if options.log.on_end is not None:
        die_of_signals()  # the loop, which had the signals, is over; the command must not outlive this process
        run_on_end(options.log.on_end, _manifest_at(deciding[-1]), code, observer_for(options.log.log_format).warn)
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


def _manifest_at(out: str) -> str:
    """Return the path of the manifest of a run's output; empty for rows on standard output, or a wrong --out."""
    try:
        return f"{normal(out)}/{MANIFEST}" if is_url(out) else locate(undashed(out))[0]
    except HarvesterError:
        return ""


def _run(lists: list[str], options: RunOptions, observer: Reporter, *, deciding: list[str]) -> int:
    """Run a command's datasets. deciding: gets the output whose run has decided the exit code."""
    from harvester.run.assembly import build_job
    from harvester.series.expansion import jobs_of, rounds_of
    from harvester.series.window import WindowChecks

    die_of_signals()  # a token's command must not outlive this process
    words_of(options.log.on_end)
    rounds = rounds_of(options)
    first, several = rounds[0][0], len(rounds) > 1 or len(rounds[0]) > 1
    deciding.append(first.output.out)
    out, facet = options.output.out if several else first.output.out, ",".join(options.query.facet)
    observer.tell(Event.RUN_STARTED, "", version=__version__, pid=os.getpid(), lists=[*lists], out=out, facet=facet)
    exporter = exporter_for(first.output, observer.warn)
    job = build_job(lists, first, observer.warn, exporter=exporter)
    job = replace(job, command=_command(job.token))
    open_guard = WindowChecks().open_guard
    if several:
        if first.cluster.engine != "local":
            raise UsageError(f"{first.cluster.engine}: takes one facet and one period", option="--engine")
        jobs = jobs_of(job, rounds, open_guard, partial(exporter_for, warn=observer.warn))
        return _run_several(jobs, out, observer, deciding)
    job = replace(job, open_guard=open_guard)
    if first.cluster.engine == "spark":
        job = import_module(_SPARK).on_spark(job, first)
    outcome = _run_job(job, observer)
    code = exit_code(outcome)
    observer.ended(outcome, out, code, _words_of(job))
    _report_empty(outcome, code, observer)
    return code


def _words_of(job: "Job") -> str:
    from harvester.reporting.run_status import in_shell

    return in_shell(job.command) if job.command else ""


def _report_empty(outcome: RunOutcome, code: int, observer: Reporter) -> None:
    if outcome.stop is None and code == USAGE:
        status, column = outcome.status, ""
        if status.column and (status.listed.blank or status.listed.invalid):
            column = f"; its column {status.column} has none (--column)"
        cure = "" if status.listed.invalid else "; if that is no mistake, use --allow-empty"
        observer.tell(Event.RUN_REFUSED, f"harvester: there are no links in the list{column}{cure}", exit_code=code)


def _run_several(rounds: list[list["Job"]], out: str, observer: Reporter, deciding: list[str]) -> int:
    """Run the jobs of several datasets, and report them as one."""
    from harvester.run import job as jobs
    from harvester.series.several import progress_of, run_all

    ended = _in_loop(partial(run_all, rounds, jobs.run), rounds[0][0], observer)
    not_begun = sum(map(len, rounds)) - sum(each.begun for each in ended)
    reported: dict[str, int] = {}  # an error that concerns all of them is said once
    for each in ended:
        if each.error is not None and str(each.error) not in reported:
            reported[str(each.error)] = report_error(each.error, observer)
    codes = [exit_code(each.outcome) if each.error is None else reported[str(each.error)] for each in ended]
    code = most_urgent(codes)
    decides = ended[codes.index(code)]
    deciding.append(decides.job.out)
    complete = not not_begun and all(each.outcome.complete for each in ended)
    outcome = RunOutcome(complete, decides.stop, progress_of(ended, not_begun))
    observer.ended(outcome, out, code, _words_of(decides.job), _details(ended, decides, not_begun))
    if decides.error is None:
        _report_empty(decides.outcome, code, observer)
    return code


def _details(ended: list["Ended"], decides: "Ended", not_begun: int) -> list[tuple[str, str]]:
    """Return the summary's lines on each facet, on each output that stopped for a reason of its own, and on those that
    were not begun. decides: the run whose reason is the summary's first line, and is not repeated here.
    """
    lines = []
    for facet in dict.fromkeys(each.job.query.facet for each in ended):
        runs = [each.outcome.status for each in ended if each.job.query.facet == facet]
        rows, refused, failed = (sum(getattr(run, name) for run in runs) for name in ("rows", "refused", "failed"))
        lines.append(("facets", f"{facet}: {rows:,} rows, {refused:,} refused, {failed:,} failed"))
    own = [each for each in ended if each.stop and (each is decides or each.stop != decides.stop)]
    errors = {str(each.error) for each in ended if each.error is not None}
    for each in own:
        why = each.stop.message if each.stop and (each is not decides or len(errors) > 1) else "the reason above"
        lines.append(("stopped", f"{each.job.out}: {why}"))
    if not_begun:
        lines.append(("outputs", f"{sum(each.begun for each in ended):,} were begun, {not_begun:,} were not"))
    return lines


def _command(token: "Token") -> "Command":
    """Return the command line of this process for the manifest, which others may read: without any secret."""
    from harvester.credentials.redaction import may_hold_secret, without_secrets
    from harvester.dataset.manifest import Command
    from harvester.misplaced import misplaced

    def text(path: str) -> str:
        return os.fsencode(misplaced.hidden(token.hidden_if_long(path))).decode(
            errors="backslashreplace"
        )  # JSON is UTF-8

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

    return _in_loop(partial(jobs.run, job), job, observer)


def _in_loop(work: Callable[[ShutdownSignal, Reporter], Coroutine[Any, Any, T]], job: "Job", observer: Reporter) -> T:
    """Run what signals may end in an event loop of its own. job: one of those that are run."""
    if (connections := job.client_settings.connections) > MAX_CONNECTIONS:
        observer.warn(
            f"--connections {connections}: Bitly allows {MAX_CONNECTIONS} at once from one IP address "
            "(https://dev.bitly.com/docs/getting-started/rate-limits)"
        )
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what was imported stays until the end, and is not looked through again and again
    return run_until_signal(lambda shutdown: work(shutdown, observer), observer)


def _plan(lists: list[str], options: RunOptions, observer: Reporter, *, json: bool, offline: bool) -> int:
    from harvester.credentials.token_sources import has_token
    from harvester.planning.plan_text import as_dict, as_text
    from harvester.planning.planner import make_plan
    from harvester.run.assembly import build_job
    from harvester.series.expansion import jobs_of, rounds_of
    from harvester.series.window import WindowChecks

    token_known = has_token(options.access)
    if not token_known:
        observer.warn("no token: the calls used so far are unknown, and Bitly was not asked for its limits")
    rounds = rounds_of(options)
    first = rounds[0][0]
    exporter_for(first.output, observer.warn)  # a wrong --metrics-file is refused here as it would be by run
    job = build_job(lists, first, observer.warn, None if token_known else lambda: "-")
    jobs = [each for round_ in jobs_of(job, rounds, WindowChecks().open_guard, lambda _: None) for each in round_]
    found = make_plan(jobs, observer, token_known=token_known, offline=offline)
    print_out(as_json(as_dict(found), orjson.OPT_INDENT_2) if json else for_stdout(as_text(found)))
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

    def shown() -> int:
        with ExitStack() as stack:
            if live and not quiet and log_format == "text" and can_be_drawn_upon(lists, out):
                from harvester.reporting import live_display  # with rich, which a batch job need not wait for

                display = live_display.Display()
                observer.write_to(display)
                stack.enter_context(live_display.redrawn_after_stop(display))
            return work(lists, options, observer)

    return reported(shown, observer)
