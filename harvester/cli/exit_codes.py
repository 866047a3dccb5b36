"""How a command ends: exit codes, what each means, and which reason or error leads to which."""

import traceback
from typing import TYPE_CHECKING

from harvester.config import sources
from harvester.errors import ConnectionsBusy, ConsumerGone, DatasetBusy, HarvesterError, OutputError, UsageError
from harvester.events import Event
from harvester.shutdown import Reason

if TYPE_CHECKING:
    from harvester.progress import Outcome
    from harvester.reporting.reporter import StderrWatcher


_LONGEST_ERROR = 4000
"""Characters: an option's value, which an error may repeat, can be as long as anything."""

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
    OUTPUT: "the output could not be written, or (verify) does not hold",
}

BY_REASON: dict[Reason, int] = {
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
    Reason.NOT_BEGUN: USAGE,
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


def exit_code(outcome: "Outcome") -> int:
    """Give the exit code of a run's end: the table is EXIT_CODES."""
    if outcome.stop is not None:
        return BY_REASON[outcome.stop.reason]
    if outcome.status.listed.links == 0:
        return USAGE
    return OK if outcome.complete else SOME_FAILED


def tell_error(error: Exception, watcher: "StderrWatcher") -> int:
    """Tell of an error, and give its exit code; the only place where errors become exit codes."""
    watcher.close()
    if isinstance(error, HarvesterError):
        code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), BUG)
        if code != OK:
            text = sources.at_its_source(str(error))
            watcher.tell(Event.RUN_REFUSED, f"harvester: {text[:_LONGEST_ERROR]}", exit_code=code)
        return code
    trace = "".join(traceback.format_exception(error))
    text = "harvester: a bug; what was harvested is safe. Please report these lines\n" + trace.rstrip()
    watcher.tell(Event.RUN_CRASHED, text, exit_code=BUG, traceback=trace)
    return BUG
