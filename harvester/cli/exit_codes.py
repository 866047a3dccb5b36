"""Exit codes and the errors that lead to one, and the observer that errors are reported to.

`shutdown.CONSEQUENCES` has the reasons to stop.
"""

import traceback

from harvester.config import sources
from harvester.errors import (
    ConnectionsBusy,
    DatasetBusy,
    HarvesterError,
    OutputError,
    ReaderClosed,
    RunStopped,
    UsageError,
)
from harvester.events import Event, RunOutcome
from harvester.reporting.reporter import Reporter
from harvester.shutdown import (
    BOUND_REACHED,
    BUG,
    CONSEQUENCES,
    MONTH_SPENT,
    OK,
    OUTPUT,
    REFUSED,
    SOME_FAILED,
    STOPPED,
    TOO_MANY_FAILED,
    USAGE,
    StopReason,
)

_LONGEST_ERROR = 4000
"""Characters of an error that are shown: it may repeat an option's value, which can be of any length."""

EXIT_CODES: dict[int, str] = {
    OK: "every call is settled",
    BUG: "a bug in harvester",
    USAGE: "usage, configuration or input: repeating it will not help",
    SOME_FAILED: "finished, but some calls failed: repeat it later; "
    "or too many lines are invalid (the message says so): fix the list",
    TOO_MANY_FAILED: "too many calls failed or were refused",
    STOPPED: "stopped and resumable (a signal, an outage, throttled for hours, dataset or connections in use): "
    "repeat it",
    REFUSED: "the token or the plan was refused",
    MONTH_SPENT: "the month is spent: repeat it next month",
    OUTPUT: "the output could not be written, or is damaged (verify, repair)",
    BOUND_REACHED: "stopped at a bound that you set (--max-calls, --max-time): repeat it when you want to go on",
}

_BY_ERROR: tuple[tuple[type[HarvesterError], int], ...] = (
    (ReaderClosed, OK),
    (OutputError, OUTPUT),
    (DatasetBusy, STOPPED),
    (ConnectionsBusy, STOPPED),
    (UsageError, USAGE),
)


def exit_code(outcome: RunOutcome) -> int:
    """Return the exit code of a run's outcome, one of EXIT_CODES."""
    if outcome.stop is not None:
        return CONSEQUENCES[outcome.stop.reason].exit_code
    if outcome.complete:
        return OK
    return SOME_FAILED if outcome.status.listed.links else USAGE


def report_error(error: Exception, observer: Reporter) -> int:
    """Report an error and return its exit code; the only place where errors become exit codes."""
    observer.close()
    if isinstance(error, HarvesterError):
        code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), BUG)
        if isinstance(error, RunStopped):
            code = CONSEQUENCES[StopReason(error.reason)].exit_code
        if code != OK:
            text = sources.at_its_source(error)
            observer.tell(Event.RUN_REFUSED, f"harvester: {text[:_LONGEST_ERROR]}", exit_code=code)
        return code
    trace = "".join(traceback.format_exception(error))
    text = "harvester: a bug; the rows that were fetched are safe. Please report these lines\n" + trace.rstrip()
    observer.tell(Event.RUN_CRASHED, text, exit_code=BUG, traceback=trace)
    return BUG


def observer_for(log_format: str, *, quiet: bool = False, show_failures: bool = False) -> Reporter:
    """Return an observer that writes to standard error, as text or as JSON."""
    observer = Reporter(quiet=quiet, show_failures=show_failures)
    if log_format == "json":
        from harvester.reporting.logs import JsonLog, route_warnings_to  # noqa: PLC0415 - structlog, which few runs need

        log = JsonLog()
        route_warnings_to(log)
        observer.write_to(log)
    return observer
