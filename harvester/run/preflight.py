"""What a list would cost: counted before the first call, in memory that does not grow with the list."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from harvester.budget.budget import Budget
from harvester.clock import utc_iso
from harvester.dataset.dataset import Dataset
from harvester.dataset.ledger import Known, Ledger, State, should_retry
from harvester.errors import OutputError, RunStopping, UsageError
from harvester.events import Event, InvalidLine, RunObserver
from harvester.links.feed import IterableFeed
from harvester.links.files import Source, read, spool
from harvester.rows.row import RowBuilder
from harvester.run.assembly import Job
from harvester.shutdown import ShutdownSignal
from harvester.threads import in_daemon


@dataclass(slots=True)
class ListCount:
    """A list's lines taken apart. links: distinct bitlinks; settled: those with a row or a refusal; calls: those that
    need a call.
    """

    lines: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0
    settled: int = 0
    calls: int = 0


def count_list(
    ledger: Ledger,
    rows: RowBuilder,
    sources: Sequence[Source],
    *,
    folder: str,
    retry_failed: bool,
    retry_refused: bool,
    invalid: Callable[[InvalidLine], None],
    check: Callable[[int], None],
) -> ListCount:
    """Read the sources through, and count.

    folder: for a scratch file. invalid: called with each bad line. check: called at each batch with the lines so far;
    it raises to give the survey up. Blocks.

    Raises:
        InputBroken: a source cannot be read.
    """
    found = ListCount()

    def keys() -> Iterator[list[bytes]]:
        for batch in read(sources):
            found.lines += batch.lines
            check(found.lines)
            found.invalid += len(batch.invalid)
            found.duplicates += len(batch.links)
            for bad in batch.invalid:
                invalid(bad)
            yield [rows.key(link.bitlink) for link in batch.links]

    def count(known: Known | None) -> None:
        found.links += 1
        again = known is None or should_retry(known, retry_failed=retry_failed, retry_refused=retry_refused)
        found.calls += again
        found.settled += known is not None and not again and known.state is not State.FAILED

    ledger.count_distinct(keys(), count, os.path.join(folder, "scratch.sqlite"))
    found.duplicates -= found.links
    return found


_TELL_SECONDS = 10.0


async def _look_ahead(
    job: Job, opened: Dataset, budget: Budget, spooled: list[str], shutdown: ShutdownSignal, observer: RunObserver
) -> tuple[list[Source], int | None]:
    """Say before the first call what the month covers of the list, and refuse what strict forbids; give it to read.

    Gives the calls that it needs too, if all of it was counted.

    spooled: where sources that can be read only once may be copied to.
    """
    sources = job.sources
    if job.given is not None:
        if job.strict:
            await _check_given(job, job.given, shutdown, observer)
        return sources, None
    if job.strict:
        pairs = zip(sources, spooled, strict=True)
        sources = [s if s.rereadable else await _spool(s, path, shutdown) for s, path in pairs]
    countable = [source for source in sources if source.rereadable]
    most, left = job.harvesting.max_calls, budget.windows()[-1].remaining
    month_matters = left is not None and (most is None or most > left)
    if not countable or not (job.strict or month_matters):
        return sources, None
    found = await count(job, opened.ledger, opened.rows, opened.place.private, countable, shutdown, observer)
    text = f"{found.links:,} links in {found.lines:,} lines; {found.calls:,} calls to make"
    observer.note(text, Event.LIST_COUNTED, **asdict(found))
    _refuse(job, found)
    _compare(job, found, budget, observer)
    return sources, found.calls if len(countable) == len(sources) else None


async def _check_given(job: Job, given: IterableFeed, shutdown: ShutdownSignal, observer: RunObserver) -> None:
    batches = await shutdown.unless_stopping(given.all())
    found = ListCount(lines=sum(batch.lines for batch in batches), invalid=sum(len(batch.invalid) for batch in batches))
    for batch in batches:
        for bad in batch.invalid:
            observer.invalid(bad)
    _refuse(job, found)


async def _spool(source: Source, path: str, shutdown: ShutdownSignal) -> Source:
    try:
        return await shutdown.unless_stopping(in_daemon(partial(spool, source, path)))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}; --strict copies there what can be read only once") from error


async def count(
    job: Job,
    ledger: Ledger,
    rows: RowBuilder,
    folder: str,
    sources: list[Source],
    shutdown: ShutdownSignal,
    observer: RunObserver,
) -> ListCount:
    """Count what the list would cost, in a thread; waited for even when the run is to end: it uses the ledger.

    folder: for a scratch file.

    Raises:
        Stopping: the run is to end. InputBroken: a list cannot be read.
    """
    told = time.monotonic()

    def check(lines: int) -> None:
        nonlocal told
        if shutdown.stop is not None:
            raise RunStopping
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            observer.note(
                f"reading the list through before the first call: {lines:,} lines so far",
                Event.LIST_READING,
                lines=lines,
            )

    return await in_daemon(
        lambda: count_list(
            ledger,
            rows,
            sources,
            folder=folder,
            retry_failed=job.harvesting.retry_failed,
            retry_refused=job.harvesting.retry_refused,
            invalid=observer.invalid if job.strict else lambda _: None,
            check=check,
        )
    )


def _refuse(job: Job, found: ListCount) -> None:
    if job.strict and found.invalid:
        raise UsageError(f"{found.invalid} of {found.lines} lines are no bitlinks (--strict): nothing was asked")


def _compare(job: Job, found: ListCount, budget: Budget, observer: RunObserver) -> None:
    """Say if the month covers only a part of the list; refuse it where that month is a guess.

    Raises:
        UsageError: nobody said what the month has, and the list needs more than the least plan's.
    """
    month, most = budget.windows()[-1], job.harvesting.max_calls
    needed = found.calls if most is None else min(found.calls, most)
    if month.remaining is None or needed <= month.remaining:
        return
    if month.source == "default" and needed > month.limit:
        raise UsageError(
            f"this list needs {needed:,} calls, and a month is taken to have {month.limit:,}, as on Bitly's free plan: "
            "nothing was asked. Set --per-month to what your plan has (the run then stops at the month's end, and the "
            "same command goes on in the next), or to 0 for no limit; or take a part of the list with --max-calls"
        )
    assert month.until is not None
    observer.note(
        f"this month covers {month.remaining:,} of the {needed:,} calls ({month.used:,} of {month.limit:,} are spent): "
        f"the run will stop then, and the same command goes on from {utc_iso(month.until)}",
        Event.MONTH_SHORT,
        calls=needed,
        remaining=month.remaining,
        used=month.used,
        limit=month.limit,
        until=month.until,
    )
