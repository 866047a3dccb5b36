"""When a run ends before its list does, and why: reasons, the switch that everyone watches, the rules of verdicts."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar, cast

from harvester.bitly import (
    Answer,
    MonthSpent,
    ParameterRefused,
    PlanRefused,
    Refused,
    TokenRefused,
    Unreadable,
    Verdict,
    utc_text,
)
from harvester.clocks import next_month
from harvester.errors import Stopping

T = TypeVar("T")


class Reason(StrEnum):
    """Why a run stopped; written to the manifest, and turned into an exit code by the command."""

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
    ALL_REFUSED = "all_refused"
    UNREADABLE = "unreadable"
    OUTPUT = "output"
    CONSUMER_GONE = "consumer_gone"
    INPUT = "input"
    NOT_BEGUN = "not_begun"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends early. message: for a person, with what to do next. until: when to run again, UTC, if known."""

    reason: Reason
    message: str
    until: str | None = None


class Stopper:
    """The switch that ends a run: whoever finds a reason turns it, and whoever waits is woken by it."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self._turned = asyncio.Event()

    def request(self, stop: Stop) -> None:
        """End the run for this reason, unless it is ending already."""
        if self.stop is None:
            self.stop = stop
            self._turned.set()

    async def wait(self) -> None:
        """Return when the run is to end."""
        await self._turned.wait()

    async def pause(self, seconds: float) -> None:
        """Sleep, unless the run ends meanwhile.

        Raises:
            Stopping: it does.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._turned.wait()
        except TimeoutError:
            return
        raise Stopping

    async def guard(self, work: Awaitable[T]) -> T:
        """Await work, and give it up when the run ends first.

        Raises:
            Stopping: the run ended first; work was cancelled.
        """
        if self.stop is not None:
            _drop(work)
            raise Stopping
        task = asyncio.ensure_future(work)
        turned = asyncio.ensure_future(self._turned.wait())
        try:
            await asyncio.wait({task, turned}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopping
        finally:
            turned.cancel()
            task.cancel()


async def in_daemon(work: Callable[[], T]) -> T:
    """Do work that may block for ever (reading from a silent pipe) in a thread that nobody waits for at the end.

    Raises what work raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def do() -> None:
        result: T | None = None
        caught: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # handed to whoever waits, who would wait for ever without it
            caught = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result, caught)

    threading.Thread(target=do, name="harvester-reader", daemon=True).start()
    return await future


def _drop(work: Awaitable[object]) -> None:
    if asyncio.iscoroutine(work):
        work.close()
    elif isinstance(work, asyncio.Future):
        work.cancel()


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many calls may be refused or fail before the run stops: a count, or a share of the calls made.

    A share is looked at from SHARE_FLOOR calls on, because the first failure of three would be a third, and at the end.
    """

    count: int | None = None
    share: float | None = None

    SHARE_FLOOR = 100

    def exceeded(self, failed: int, calls: int, *, final: bool = False) -> bool:
        """True when failed calls of calls made are too many. final: no more will be made."""
        if self.count is not None and failed > self.count:
            return True
        return self.share is not None and (final or calls >= self.SHARE_FLOOR) and failed > self.share * calls


ALIKE = 50
"""This many first calls, all refused alike, are not the links' fault."""
NO_ROUTE = 20
"""This many first calls answered with a plain 404 mean that the base URL is wrong."""
UNREADABLE = 20
"""This many unreadable answers in a row mean that something else than Bitly answers."""


class Rules:
    """Watches the verdicts of one invocation for what makes going on a waste of calls.

    first_rows: True when the dataset has no row yet; a dataset with rows has shown that its query and token work.
    """

    def __init__(self, failure_limit: FailureLimit | None, *, first_rows: bool) -> None:
        self._limit = failure_limit
        self._first_rows = first_rows
        self._alike: dict[tuple[int, str], int] = {}
        self._unreadable = 0
        self.calls = 0
        self.failed = 0
        self._rows = 0

    @property
    def answered(self) -> bool:
        """True when a call of this invocation had a row: the base URL is that of a server that knows the path."""
        return self._rows > 0

    def see(self, verdict: Verdict) -> Stop | None:
        """Take note of a call's last verdict, and say whether the run should end."""
        if isinstance(verdict, Answer):
            self.calls += 1
            self._rows += 1
            self._unreadable = 0
            return self._too_many() if self._limit else None
        if stop := for_every_call(verdict):
            return stop
        self.calls += 1
        self.failed += 1
        return self._in_a_row(verdict) or self._all_alike(verdict) or self._too_many()

    def _in_a_row(self, verdict: Verdict) -> Stop | None:
        self._unreadable = self._unreadable + 1 if isinstance(verdict, Unreadable) else 0
        if self._unreadable < UNREADABLE:
            return None
        return Stop(
            Reason.UNREADABLE,
            f"{UNREADABLE} answers in a row said 200 but were not the facet's JSON ({_said(verdict)}). Look at their "
            "beginnings in _failures.ndjson: a proxy's page, or a change of Bitly's",
        )

    def _all_alike(self, verdict: Verdict) -> Stop | None:
        if not isinstance(verdict, Refused) or self._rows:
            return None
        # A plain 404 may quote the path it did not know.
        kind = (verdict.status, "" if verdict.no_route else verdict.message)
        self._alike[kind] = self._alike.get(kind, 0) + 1
        alike = self._alike[kind] == self.calls
        if alike and verdict.no_route and self.calls >= NO_ROUTE:
            return Stop(
                Reason.NO_ROUTE,
                f"the first {self.calls} calls were all answered 404 in plain text: the server does not know the "
                "path. Check --base-url (Bitly's ends in /v4)",
            )
        if alike and self.calls >= ALIKE and self._first_rows and self._limit is None:
            return Stop(
                Reason.ALL_REFUSED,
                f"the first {self.calls} calls were all refused alike ({_said(verdict)}). Check that these links "
                "belong to the token's account; to go on all the same, say --max-failures 100%",
            )
        return None

    def at_end(self) -> Stop | None:
        """Look at the share of failures once more when the list is over, however short it was."""
        if self._limit is None or not self._limit.exceeded(self.failed, max(self.calls, 1), final=True):
            return None
        return self._stop_for_failures()

    def _too_many(self) -> Stop | None:
        if self._limit is None or not self._limit.exceeded(self.failed, self.calls):
            return None
        return self._stop_for_failures()

    def _stop_for_failures(self) -> Stop:
        return Stop(
            Reason.TOO_MANY_FAILURES,
            f"{self.failed} of {self.calls} calls were refused or failed, more than --max-failures allows. "
            "_failures.ndjson says which and why",
        )


def month_spent(verdict: MonthSpent) -> Stop:
    """Give the stop for Bitly's word that the month is spent, with the moment from which it counts anew."""
    message = f"Bitly says that the account's month is spent ({_said(verdict)})"
    return Stop(Reason.MONTH_SPENT, message, utc_text(next_month(datetime.now(UTC))))


def for_every_call(verdict: Verdict) -> Stop | None:
    """Give the reason to stop that one such answer is, because every further call would get it too."""
    match verdict:
        case MonthSpent():
            return month_spent(verdict)
        case TokenRefused():
            return Stop(
                Reason.TOKEN_REFUSED,
                f"Bitly refused the token ({_said(verdict)}). Make a new one under Settings > API and set "
                "BITLY_TOKEN, --token-file or --token-command",
            )
        case PlanRefused():
            return Stop(
                Reason.PLAN_REFUSED,
                f"the account's plan lacks this facet ({_said(verdict)}). Choose another --facet, or upgrade the plan",
            )
        case ParameterRefused():
            option = "--" + verdict.field.replace("_", "-")
            return Stop(
                Reason.PARAMETER_REFUSED,
                f"Bitly refused {option} ({_said(verdict)}): every call would fail. Correct it, with a new --out",
            )
        case _:
            return None


def _said(verdict: Verdict) -> str:
    assert not isinstance(verdict, Answer)
    status = "no answer" if verdict.status is None else str(verdict.status)
    return f"{status} {verdict.message}".strip()
