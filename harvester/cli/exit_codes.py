"""How a command ends: exit codes, the errors and signals that lead to one, and the observer they are reported to.

`shutdown.CONSEQUENCES` has the reasons to stop.
"""

import os
import signal
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from harvester.config import sources
from harvester.errors import (
    BudgetUnreachable,
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
    ShutdownSignal,
    Stop,
    StopReason,
)
from harvester.signals import die_of_signals, handle_signals, signals_held

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")
_LONGEST_ERROR = 4000
"""Characters of an error that are shown: it may repeat an option's value, which can be of any length."""

_END_SECONDS = 30.0
"""The longest that the command of --on-end may take."""

EXIT_CODES: dict[int, str] = {
    OK: "every link has an answer",
    BUG: "a bug in harvester",
    USAGE: "usage, configuration or input: repeating it will not help",
    SOME_FAILED: "finished, but some calls failed: repeat it later; "
    "or too many lines are invalid (the message says so): fix the list",
    TOO_MANY_FAILED: "too many calls failed or were refused",
    STOPPED: "stopped and resumable (a signal, an outage, throttled for hours, dataset or connections in use, "
    "shared budget out of reach): repeat it",
    REFUSED: "the token or the plan was refused",
    MONTH_SPENT: "the month is spent: repeat it next month",
    OUTPUT: "the output could not be written, or is damaged (verify, repair)",
    BOUND_REACHED: "stopped at a limit that you set (--max-calls, --max-time): repeat it when you want to continue",
}

_MOST_URGENT = (BUG, OUTPUT, USAGE, REFUSED, TOO_MANY_FAILED, MONTH_SPENT, STOPPED, BOUND_REACHED, SOME_FAILED, OK)
"""The codes of several outputs' runs, by how much they ask for."""

_BY_ERROR: tuple[tuple[type[HarvesterError], int], ...] = (
    (ReaderClosed, OK),
    (OutputError, OUTPUT),
    (DatasetBusy, STOPPED),
    (ConnectionsBusy, STOPPED),
    (BudgetUnreachable, STOPPED),
    (UsageError, USAGE),
)


def exit_code(outcome: RunOutcome) -> int:
    """Return the exit code of a run's outcome, one of EXIT_CODES."""
    if outcome.stop is not None:
        return CONSEQUENCES[outcome.stop.reason].exit_code
    if outcome.complete:
        return OK
    return SOME_FAILED if outcome.status.listed.links else USAGE


def most_urgent(codes: Collection[int]) -> int:
    """Return the code that asks for most, which is that of a command with several outputs."""
    return min(codes, key=_MOST_URGENT.index, default=OK)


def reported(work: Callable[[], int], observer: Reporter) -> int:
    """Return the exit code of a command's work, whose errors its observer reports; close the observer.

    Raises:
        BrokenPipeError: nobody reads standard output any more.
    """
    try:
        return work()
    except BrokenPipeError:
        raise
    except Exception as error:
        return report_error(error, observer)
    finally:
        observer.close()


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
    import traceback  # noqa: PLC0415

    trace = "".join(traceback.format_exception(error))
    text = "harvester: a bug; the rows that were fetched are safe. Please report these lines\n" + trace.rstrip()
    observer.tell(Event.RUN_CRASHED, text, exit_code=BUG, traceback=trace)
    return BUG


def words_of(command: str | None) -> list[str]:
    """Return the words of --on-end's command; none without the option.

    Raises:
        UsageError: quotes that are not closed, or no words.
    """
    if command is None:
        return []
    import shlex  # noqa: PLC0415

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{command}: {str(error).lower()}", option="--on-end") from error
    if not words:
        raise UsageError("must name a command", option="--on-end")
    return words


def run_on_end(command: str, manifest: str, code: int, warn: Callable[[str], None]) -> None:
    """Run the command of --on-end, without a shell and without the token, for at most 30 s.

    manifest: its path, empty where there is none. warn: called if the command fails, which changes no exit code.
    """
    from harvester.credentials.secret_command import SECRET_VARIABLES, shell_hint  # noqa: PLC0415 - few runs need it

    try:
        words = words_of(command)
    except UsageError:
        return  # the run was refused because of it
    hint = f". {text}" if (text := shell_hint(words)) else ""
    about = {"HARVESTER_MANIFEST": manifest, "HARVESTER_EXIT_CODE": str(code)}
    environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES} | about
    try:
        status = _run_bounded(words, environment)
    except (OSError, ValueError) as error:
        warn(f"--on-end {words[0]}: {getattr(error, 'strerror', None) or 'cannot be run'}{hint}")
        return
    if status is None:
        warn(f"--on-end {words[0]} was killed: it took longer than {_END_SECONDS:g} s")
    elif status:
        ends = f"exit code {status}" if status > 0 else f"signal {-status}"
        warn(f"--on-end {words[0]} failed ({ends}){hint}")
    elif hint:
        warn(f"--on-end {words[0]}{hint}")


def _run_bounded(words: list[str], environment: dict[str, str]) -> int | None:
    """Run a command for at most _END_SECONDS; return its status as subprocess has it, None if it was killed.

    Raises:
        OSError, ValueError: it cannot be run.
    """
    import subprocess  # noqa: PLC0415 - few runs need it

    # Its output goes to standard error, because standard output may hold rows. A session of its own, so that all of its
    # processes can be ended.
    process = subprocess.Popen(  # noqa: S603 - the user's own command
        words, stdin=subprocess.DEVNULL, stdout=2, env=environment, start_new_session=True
    )
    ended = False
    try:
        status = process.wait(_END_SECONDS)
        ended = True
        return status
    except subprocess.TimeoutExpired:
        return None
    finally:
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def observer_for(log_format: str, *, quiet: bool = False, show_failures: bool = False) -> Reporter:
    """Return an observer that writes to standard error, as text or as JSON."""
    observer = Reporter(quiet=quiet, show_failures=show_failures)
    if log_format == "json":
        from harvester.reporting.logs import JsonLog, route_warnings_to  # noqa: PLC0415 - structlog, which few runs need

        log = JsonLog()
        route_warnings_to(log)
        observer.write_to(log)
    return observer


# --- signals ---------------------------------------------------------------------------------------------------------


def run_until_signal(work: Callable[[ShutdownSignal], Coroutine[Any, Any, T]], observer: Reporter) -> T:
    """Run work in an event loop of its own, and return its result. The first signal requests its shutdown, the second
    ends the process. That loses no answer: each is in the journal as soon as it is known.
    """
    import asyncio  # noqa: PLC0415 - only what sends requests has an event loop

    # The handlers are there before the coroutine is, which a signal would leave without anybody to await it.
    with signals_held():
        runner, shutdown = asyncio.Runner(), ShutdownSignal()
        missed = _stop_on_signals(runner.get_loop(), shutdown, observer)
    try:
        return runner.run(work(shutdown))
    finally:
        runner.close()
        with signals_held():  # an exception in the loop's own end would only be printed
            del runner
            die_of_signals()
        if missed:
            raise SystemExit(128 + missed[0])


def _stop_on_signals(loop: "AbstractEventLoop", shutdown: ShutdownSignal, observer: Reporter) -> list[int]:
    """Install handlers that do what `run_until_signal` says; return a list of signals that come behind the loop's end.

    They raise nothing: that would leave a loop half closed.
    """
    missed: list[int] = []

    def stop(number: signal.Signals) -> None:
        if shutdown.stop is not None and shutdown.stop.reason is StopReason.SIGNAL:
            observer.close()
            os._exit(128 + number)
        text = f"{number.name}: stopping; calls in flight get 5 s (a second signal ends at once)"
        observer.tell(Event.RUN_STOPPING, text, signal=number.name)
        shutdown.request(Stop(StopReason.SIGNAL, f"{number.name} was received"))

    def hear(number: int, _: object) -> None:
        if loop.is_closed():
            missed.append(number)
        else:
            loop.call_soon_threadsafe(stop, signal.Signals(number))  # which wakes the loop, too

    handle_signals(hear)  # the loop's own way takes three times as long, which a single link feels
    return missed
