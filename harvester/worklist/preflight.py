"""The preflight: what a list will cost, counted before the first call, in memory that does not grow with the list."""

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from math import ceil
from typing import Protocol

from harvester.bearer import Token
from harvester.bitly.exports import MOST_LINKS
from harvester.budget.budget import Budget
from harvester.budget.limits import option_for
from harvester.clock import utc_text
from harvester.dataset.dataset import Dataset
from harvester.dataset.ledger import Ledger
from harvester.errors import OutputError, RunStopping, UsageError, as_output_error
from harvester.events import Event, RunObserver
from harvester.links.feed import IterableFeed
from harvester.links.files import Source, read, spool
from harvester.progress import WindowState, counted
from harvester.rows.call import CallState, Known
from harvester.rows.row import RowBuilder
from harvester.shutdown import ShutdownSignal
from harvester.storage.scratch import DistinctKeys
from harvester.threads import in_daemon
from harvester.worklist.calls import DUE
from harvester.worklist.list_count import ListCount, ListSurvey
from harvester.worklist.refresh import Refresh, asked_at_of, has_row, was_answered
from harvester.worklist.worklist import SCRATCH, hide_token, should_retry

_REPORT_SECONDS = 10.0
_SPOOL = "spool-"


@contextmanager
def spool_paths(folder: str, count: int) -> Iterator[list[str]]:
    """Yield paths for copies of sources that can be read only once; the copies are deleted at the end.

    What a killed run has left of them, or of its count, is deleted first.
    """
    with as_output_error(folder):
        names = os.listdir(folder)
    for name in names:
        if name in {SCRATCH, DUE} or name.startswith(_SPOOL):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))
    paths = [os.path.join(folder, f"{_SPOOL}{number}") for number in range(count)]
    try:
        yield paths
    finally:
        for path in paths:
            with suppress(OSError):
                os.unlink(path)


def month_must_be_named(month: WindowState, needed: int) -> bool:
    """Return whether a run is refused before its first call, because a month that nobody named is too small for it."""
    return month.source == "default" and needed > month.limit


class ListSettings(Protocol):
    """What a run's settings say of its list."""

    @property
    def token(self) -> Token:
        """The run's token, which no line may contain."""

    @property
    def max_calls(self) -> int | None:
        """The most calls of the run."""

    @property
    def retry_failed(self) -> bool:
        """Also calls that failed too often are made again."""

    @property
    def retry_refused(self) -> bool:
        """Refused calls are made again."""

    @property
    def outputs(self) -> int:
        """The outputs of the command that need the list's calls each, this one among them."""

    @property
    def skip_idle(self) -> bool:
        """An export may state that a link has no clicks; then it needs no call."""

    @property
    def strict(self) -> bool:
        """A list with lines that are no bitlinks is refused."""


class Preflight:
    """Counts a list before its run, reports what the month covers of it, and refuses what must not begin.

    settings: the run's, which decide which calls are counted. refresh: the rules of --refresh, None without it. found:
    what was counted, None before.
    """

    def __init__(
        self, shutdown: ShutdownSignal, observer: RunObserver, settings: ListSettings, refresh: Refresh | None = None
    ) -> None:
        self.found: ListCount | None = None
        self._refresh = refresh
        self._token = settings.token
        self._max_calls = settings.max_calls
        self._retry_failed = settings.retry_failed
        self._retry_refused = settings.retry_refused
        self._shutdown = shutdown
        self._observer = observer
        self._strict = settings.strict
        self._outputs = settings.outputs
        self._skip_idle = settings.skip_idle

    async def check_feed(self, feed: IterableFeed) -> None:
        """Read a feed to its end if strict: what it gives can be counted in no other way.

        Raises:
            UsageError: strict, and some are no bitlinks. RunStopping: the run is ending. InputBroken: as the feed.
        """
        if not self._strict:
            return
        batches = await self._shutdown.unless_stopping(feed.all())
        for batch in batches:
            hide_token(batch, self._token)
        invalid = [bad for batch in batches for bad in batch.invalid]
        for bad in invalid:
            self._observer.invalid(bad)
        self._refuse_invalid(ListCount(lines=sum(batch.lines for batch in batches), invalid=len(invalid)))

    async def check_sources(
        self,
        sources: list[Source],
        dataset: Dataset,
        budget: Budget,
        spools: list[str],
        plan_month: Callable[[], Awaitable[int | None]],
    ) -> tuple[list[Source], int | None]:
        """Count the sources if strict or if the month may not cover them; return the sources to harvest from, and the
        calls that they need, None if not all were counted.

        spools: a path for each source, which is copied there if strict and it can be read only once. plan_month: asks
        Bitly for the plan's calls a month, if the list is refused for want of them.

        Raises:
            UsageError: strict, and some lines are no bitlinks; or the list needs more calls than a month whose limit
            nobody named. RunStopping: the run is ending. InputBroken: a source cannot be read. OutputError: no copy.
        """
        if self._strict:
            pairs = zip(sources, spools, strict=False)  # there may be more paths than sources
            sources = [source if source.rereadable else await self._spool(source, path) for source, path in pairs]
        countable = [source for source in sources if source.rereadable]
        most, left = self._max_calls, budget.windows()[-1].remaining
        month_matters = left is not None and (most is None or most > left)
        if not countable or not (self._strict or month_matters or self._refresh):
            return sources, None
        found = await self.count(dataset.ledger, dataset.rows, dataset.location.private, countable)
        links, lines = counted(found.links, "link"), counted(found.lines, "line")
        each = f" for each of {self._outputs:,} outputs" if self._outputs > 1 else ""
        text = f"{links} in {lines}; {counted(found.calls, 'call')} to make{each}"
        self._observer.note(text, Event.LIST_COUNTED, **asdict(found))
        self._refuse_invalid(found)
        await self._compare_with_month(found, budget, plan_month)
        self.found = found if len(countable) == len(sources) else None
        return sources, found.calls if len(countable) == len(sources) else None

    async def count(
        self, ledger: Ledger, rows: RowBuilder, folder: str, sources: list[Source], survey: ListSurvey | None = None
    ) -> ListCount:
        """Count sources in a thread. folder: for a scratch file. survey: brought up to date with each batch.

        Raises:
            RunStopping: the run is ending. InputBroken: a source cannot be read.
        """
        # The thread is awaited even when the run is ending: it uses the ledger, which is closed after the run. Its own
        # check ends it with the next batch.
        return await in_daemon(partial(self._count_list, ledger, rows, folder, sources, survey))

    def _count_list(
        self, ledger: Ledger, rows: RowBuilder, folder: str, sources: Sequence[Source], survey: ListSurvey | None
    ) -> ListCount:
        """Read the sources to their end and count; blocks. Raises as `count`."""
        found, check = ListCount(), self._count_check()

        def keys() -> Iterator[list[bytes]]:
            for batch in read(sources):
                hide_token(batch, self._token)
                if survey is not None:
                    survey.see(batch)
                found.lines += batch.lines
                check(found.lines)
                found.invalid += len(batch.invalid)
                found.duplicates += len(batch.links)
                for bad in batch.invalid if self._strict else ():
                    self._observer.invalid(bad)
                yield [rows.key(link.bitlink) for link in batch.links]

        def count(known: Known) -> None:
            if self._refresh is not None and was_answered(known):
                pending = self._refresh.is_due(known)
                found.due += pending
                if has_row(known):
                    found.oldest_answer = min(found.oldest_answer or asked_at_of(known), asked_at_of(known))
            else:
                pending = should_retry(known, retry_failed=self._retry_failed, retry_refused=self._retry_refused)
                found.never += pending
            found.calls += pending
            found.done += not pending and known.state is not CallState.FAILED

        all_new = ledger.unused
        with DistinctKeys(os.path.join(folder, SCRATCH)) as distinct:
            for batch in keys():
                new = distinct.add(sorted(set(batch)))
                known = {} if all_new else ledger.known(new)
                for key in known:
                    count(known[key])
                found.links += len(new)
                found.never += len(new) - len(known)
                found.calls += len(new) - len(known)
        found.duplicates -= found.links
        return found

    def _count_check(self) -> Callable[[int], None]:
        """Return a callback that reports the lines read so far, and raises RunStopping if the run is ending."""
        reported = time.monotonic()

        def check(lines: int) -> None:
            nonlocal reported
            if self._shutdown.stop is not None:
                raise RunStopping
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                text = f"reading the whole list before the first call: {lines:,} lines so far"
                self._observer.note(text, Event.LIST_READING, lines=lines)

        return check

    async def _spool(self, source: Source, path: str) -> Source:
        try:
            return await self._shutdown.unless_stopping(in_daemon(partial(spool, source, path)))
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; --strict copies there what can be read only once") from error

    def _refuse_invalid(self, found: ListCount) -> None:
        if self._strict and found.invalid:
            raise UsageError(f"{found.invalid} of {found.lines} lines are not bitlinks (--strict): no request was sent")

    async def _compare_with_month(
        self, found: ListCount, budget: Budget, plan_month: Callable[[], Awaitable[int | None]]
    ) -> None:
        """Report a month that covers only a part of the list; refuse it if the month's limit is only the default.

        Raises:
            UsageError: nobody named the month's limit, and the list needs more than the least plan has.
        """
        month, most = budget.windows()[-1], self._max_calls
        calls = found.calls * self._outputs
        needed = calls if most is None else min(calls, most)
        if month.remaining is None or needed <= month.remaining:
            return
        if month_must_be_named(month, ceil(needed / MOST_LINKS) if self._skip_idle else needed):
            plan = await plan_month()
            option = (
                f"Bitly reports {plan:,} for your plan: use {option_for(plan)}"
                if plan
                else "Set your plan with --plan core, growth or premium, or its calls with --per-month (0: no limit)"
            )
            raise UsageError(
                f"this list needs {needed:,} calls, and harvester assumes {month.limit:,} a month, as on Bitly's free "
                f"plan: nothing was fetched. {option}. A run that uses up its month stops, and the same command "
                "resumes next month. To fetch only a part of the list, use --max-calls"
            )
        if month.until is None:
            self._observer.note(
                f"this machine's clocks disagree about the month, of which {month.used:,} of {month.limit:,} attempts "
                f"seem to be used: Bitly's date decides whether it is enough for the {needed:,} calls"
            )
            return
        what = "links" if self._outputs == 1 else "calls"
        if self._skip_idle:
            what += ", if all of them have clicks"
        self._observer.note(
            f"this month's calls are enough for {month.remaining:,} of {needed:,} {what} ({month.used:,} of "
            f"{month.limit:,} are used): the run will stop there; run the same command again from "
            f"{utc_text(month.until)}",
            Event.MONTH_SHORT,
            calls=needed,
            remaining=month.remaining,
            used=month.used,
            limit=month.limit,
            until=month.until,
        )
