"""Why a run ends before its list does, what follows from each reason, and the signal that ends it."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeVar

from harvester.clock import utc_iso
from harvester.errors import RunStopping

T = TypeVar("T")


class StopReason(StrEnum):
    """Why a run stopped, as the manifest has it."""

    SIGNAL = "signal"
    MAX_TIME = "max_time"
    MAX_CALLS = "max_calls"
    OUTAGE = "outage"
    THROTTLED = "throttled"
    MONTH_SPENT = "month_spent"
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a reason, not a secret
    PLAN_REFUSED = "plan_refused"
    PARAMETER_REFUSED = "parameter_refused"
    CONNECTION_REFUSED = "connection_refused"
    NO_ROUTE = "no_route"
    TOO_MANY_FAILURES = "too_many_failures"
    TOO_MANY_INVALID = "too_many_invalid"
    ALL_REFUSED = "all_refused"
    OUTPUT = "output"
    CONSUMER_GONE = "consumer_gone"
    INPUT = "input"
    ENGINE = "engine"
    NOT_BEGUN = "not_begun"
    WINDOW_MISMATCH = "window_mismatch"


OK, BUG, USAGE, SOME_FAILED, TOO_MANY_FAILED, STOPPED, REFUSED, MONTH_SPENT, OUTPUT, BOUND_REACHED = range(10)
"""Exit codes of the command; `cli.exit_codes` says what each means."""

RESUMES = "the same command resumes, with the same options"


class Consequence(NamedTuple):
    """What follows from a stop.

    next_step: what to do, for a person. repeating_helps: False if something must change before the same command gets
    any further. same_command: False if no command carries this output on.
    """

    exit_code: int
    next_step: str = RESUMES
    repeating_helps: bool = True
    same_command: bool = True


CONSEQUENCES: dict[StopReason, Consequence] = {
    StopReason.SIGNAL: Consequence(STOPPED),
    # Not STOPPED, which schedulers repeat at once: that would undo the bound.
    StopReason.MAX_TIME: Consequence(BOUND_REACHED, f"when you want to continue, {RESUMES}"),
    StopReason.MAX_CALLS: Consequence(BOUND_REACHED, f"when you want to continue, {RESUMES}"),
    StopReason.OUTAGE: Consequence(STOPPED, f"when Bitly answers again, {RESUMES}"),
    StopReason.THROTTLED: Consequence(STOPPED, f"in an hour or so, {RESUMES}"),
    StopReason.MONTH_SPENT: Consequence(MONTH_SPENT),
    StopReason.TOKEN_REFUSED: Consequence(
        REFUSED,
        f"set BITLY_TOKEN, --token-file or --token-command to a token that Bitly accepts; then {RESUMES}",
        repeating_helps=False,
    ),
    StopReason.PLAN_REFUSED: Consequence(
        REFUSED,
        f"choose another --facet with another --out; or when the plan has been upgraded, {RESUMES}",
        repeating_helps=False,
    ),
    StopReason.PARAMETER_REFUSED: Consequence(
        USAGE,
        "correct the option that Bitly refused, and choose another --out",
        repeating_helps=False,
        same_command=False,
    ),
    StopReason.CONNECTION_REFUSED: Consequence(
        USAGE, f"fix the connection to Bitly (certificate, proxy); then {RESUMES}", repeating_helps=False
    ),
    StopReason.NO_ROUTE: Consequence(USAGE, f"correct --base-url; then {RESUMES}", repeating_helps=False),
    StopReason.TOO_MANY_FAILURES: Consequence(
        TOO_MANY_FAILED, f"see _failures.ndjson for the reasons; then {RESUMES}, or with a larger --max-failures"
    ),
    StopReason.TOO_MANY_INVALID: Consequence(
        SOME_FAILED,
        f"fix the list, or accept its invalid lines with --max-invalid 100%; then {RESUMES}",
        repeating_helps=False,
    ),
    StopReason.ALL_REFUSED: Consequence(
        TOO_MANY_FAILED,
        "check that the links belong to the token's account; then the same command resumes, "
        "or with --max-failures 100% if they do",
        repeating_helps=False,
    ),
    StopReason.OUTPUT: Consequence(OUTPUT, f"fix what the message names; then {RESUMES}", repeating_helps=False),
    StopReason.CONSUMER_GONE: Consequence(OK),
    StopReason.INPUT: Consequence(USAGE, f"fix the list; then {RESUMES}", repeating_helps=False),
    StopReason.ENGINE: Consequence(STOPPED, f"what was answered is kept: see the cluster's log; then {RESUMES}"),
    StopReason.WINDOW_MISMATCH: Consequence(
        USAGE,
        "Bitly's windows are not what these options take them for: choose another window (--unit, --units, "
        "--unit-reference) with another --out, and report what was seen",
        repeating_helps=False,
        same_command=False,
    ),
    StopReason.NOT_BEGUN: Consequence(USAGE, "do what the message says, then run it again", repeating_helps=False),
}
"""For every StopReason: exit code, next step for a person, and whether repeating the command helps."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A reason to end a run. message: for a person, with what to do next. until: when to run again, UTC, if known."""

    reason: StopReason
    message: str
    until: str | None = None


def refuses_everything(answer: str, *, no_route: bool) -> Stop:
    """Return the stop for a server that refuses a link that it has answered before. no_route: in plain text alone."""
    if no_route:
        return Stop(
            StopReason.NO_ROUTE,
            "calls were answered 404 in plain text one after another, also for a link that was answered before: "
            "the server does not know the path. Check --base-url (Bitly's ends in /v4)",
        )
    return Stop(
        StopReason.OUTAGE,
        f"links were refused one after another, and so was one that was answered before ({answer}): "
        "the server refuses everything. None of them is marked as refused; run the same command again later",
    )


def outage_over_limit(trouble: str, *, reached: bool) -> Stop:
    """Return the stop for an outage longer than --outage-limit. reached: False if no attempt reached the server."""
    if not reached:
        why = trouble.removeprefix("no answer ")
        return Stop(
            StopReason.OUTAGE,
            f"the server was never reached ({why}); check --base-url and the network, then run the same command again",
        )
    return Stop(
        StopReason.OUTAGE,
        f"the server was out for longer than --outage-limit; run the same command again later. Lately: {trouble}",
    )


def throttled_for_hours() -> Stop:
    """Return the stop for two hours in which every response was a throttled one."""
    return Stop(
        StopReason.THROTTLED,
        "Bitly has throttled every attempt for two hours: the account's month may be spent, or "
        "other programs use up this token's limits. Check the account's usage, then run the same command again",
    )


def month_spent(answer: str, next_begins: datetime) -> Stop:
    """Return the stop for Bitly's report that the month is spent. answer: Bitly's. next_begins: as in budget.Month."""
    return Stop(
        StopReason.MONTH_SPENT, f"Bitly says that the account's month is spent ({answer})", utc_iso(next_begins)
    )


def token_refused(answer: str) -> Stop:
    """Return the stop for a token that Bitly refuses. answer: Bitly's."""
    return Stop(
        StopReason.TOKEN_REFUSED,
        f"Bitly refused the token ({answer}). Make a new one under Settings > API and set "
        "BITLY_TOKEN, --token-file or --token-command",
    )


class ShutdownSignal:
    """The signal that ends a run: any task may request it, once, and all tasks that wait are woken.

    It cancels nothing by itself. Waits (for the pace, a window, a back-off, the next line) go through
    `sleep_unless_stopping` or `unless_stopping` and end at once with RunStopping; an attempt in flight does not watch
    the signal, because it is counted already, and gets the harvest's grace instead. stop: the first reason requested.
    """

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415 - `status` reads reasons, and has no event loop

        self.stop: Stop | None = None
        self._requested = asyncio.Event()

    def request(self, stop: Stop) -> None:
        """End the run for this reason; later reasons are dropped."""
        if self.stop is None:
            self.stop = stop
            self._requested.set()

    async def wait(self) -> None:
        """Return when the run is asked to end."""
        await self._requested.wait()

    async def sleep_unless_stopping(self, seconds: float) -> None:
        """Sleep.

        Raises:
            RunStopping: the run is ending; raised at once.
        """
        import asyncio  # noqa: PLC0415

        try:
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        except TimeoutError:
            return
        raise RunStopping

    async def unless_stopping(self, work: Awaitable[T]) -> T:
        """Await work and return its result, which is preferred if both come at once.

        Raises:
            RunStopping: the run is ending; work is cancelled.
        """
        import asyncio  # noqa: PLC0415

        task = asyncio.ensure_future(work)
        requested = asyncio.ensure_future(self._requested.wait())
        try:
            if self.stop is None:
                await asyncio.wait({task, requested}, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
            raise RunStopping
        finally:
            requested.cancel()
            task.cancel()


@contextmanager
def time_limited(seconds: float | None, shutdown: ShutdownSignal) -> Iterator[None]:
    """Ask a run to stop after some seconds, unless this is left before; None for never."""
    import asyncio  # noqa: PLC0415

    if seconds is None:
        yield
        return
    stop = Stop(StopReason.MAX_TIME, f"{seconds:g} s have passed (--max-time)")
    timer = asyncio.get_running_loop().call_later(seconds, shutdown.request, stop)
    try:
        yield
    finally:
        timer.cancel()


class Allowance:
    """The calls that --max-calls allows, to one run or to several that share it. most: None without a limit."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._taken = 0

    def take(self) -> bool:
        """Take a call. Return False if all are taken."""
        if self._taken == self.most:
            return False
        self._taken += 1
        return True


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """The number of refused and failed calls, or of invalid lines, that is too many: a count, or a share of all.

    A share applies from SHARE_FLOOR calls on, because one failure in three calls is a third already, and at the end.
    """

    count: int | None = None
    share: float | None = None

    SHARE_FLOOR = 100

    def exceeded(self, failed: int, calls: int, *, final: bool = False) -> bool:
        """Return True when `failed` of `calls` are too many. final: no more calls will be made."""
        if self.count is not None and failed > self.count:
            return True
        return self.share is not None and (final or calls >= self.SHARE_FLOOR) and failed > self.share * calls
