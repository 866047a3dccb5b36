"""A run from its settings to its outcome: everything is opened here, in one place, and closed in the other order."""

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from harvester import client, store
from harvester.bitly import Query
from harvester.budget import Budget, Gate, GateRules, Limits
from harvester.errors import OutputError, Stopping, UsageError
from harvester.harvest import Harvest, Options
from harvester.places import Form, resolve
from harvester.sources import Source, spool
from harvester.status import Outcome, Status, Watcher
from harvester.stopping import FailureLimit, Reason, Rules, Stop, Stopper, in_daemon
from harvester.store import PartPolicy, Store
from harvester.survey import Survey, survey
from harvester.tokens import Token

_GROWING_JOURNAL_BYTES = 64 * 1024 * 1024
_STDOUT_COMMIT_SECONDS = 0.05
"""A filter's rows go on quickly, so that `head` ends it before it has made many calls more."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run needs to know. pin_reference: the query's unit_reference is this moment, and was not asked for."""

    sources: list[Source]
    token: Token
    out: str
    work_dir: str | None
    query: Query
    pin_reference: bool
    limits: Limits
    asking: client.Settings
    parts: PartPolicy
    harvesting: Options
    failure_limit: FailureLimit | None = None
    max_time_seconds: float | None = None
    strict: bool = False
    gate_rules: GateRules | None = None


_TELL_SECONDS = 10.0


async def run(job: Job, stopper: Stopper, watcher: Watcher) -> Outcome:
    """Harvest a list.

    Raises:
        UsageError, DatasetBusy, OutputError: as `store.opened` says; UsageError also for a list that needs more calls
        than the month has, or that is not all bitlinks where strict says so.
    """
    place = resolve(job.out, job.work_dir)
    policy = job.parts if place.form is Form.FOLDER else PartPolicy(job.parts.rows, _GROWING_JOURNAL_BYTES)
    with store.opened(place, job.query, policy, watcher.warn, pin_reference=job.pin_reference) as opened:
        if job.max_time_seconds is not None:
            stop = Stop(Reason.MAX_TIME, f"{job.max_time_seconds:g} s have passed (--max-time)")
            asyncio.get_running_loop().call_later(job.max_time_seconds, stopper.request, stop)
        spooled = [os.path.join(place.private, f"spool-{number}") for number in range(len(job.sources))]
        try:
            sources = await _look_ahead(job, opened, spooled, stopper, watcher)
            return await _harvest(job, opened, sources, stopper, watcher)
        except Stopping:
            return Outcome(complete=False, stop=stopper.stop, status=Status())
        finally:
            for path in spooled:
                with suppress(FileNotFoundError):
                    os.unlink(path)


async def _harvest(job: Job, opened: Store, sources: list[Source], stopper: Stopper, watcher: Watcher) -> Outcome:
    budget, gate = Budget(job.limits), Gate(job.gate_rules)
    rules = Rules(job.failure_limit, first_rows=opened.totals.rows == 0)
    options = _options_for(job, opened.place.form)
    async with client.opened(job.asking, opened.query, job.token, budget, gate, stopper) as asker:
        return await Harvest(opened, asker, budget, stopper, rules, watcher, options).run(sources)


def _options_for(job: Job, form: Form) -> Options:
    if form is not Form.STDOUT:
        return job.harvesting
    return Options(
        workers=job.harvesting.workers,
        max_calls=job.harvesting.max_calls,
        commit_seconds=_STDOUT_COMMIT_SECONDS,
    )


async def _look_ahead(job: Job, opened: Store, spooled: list[str], stopper: Stopper, watcher: Watcher) -> list[Source]:
    """Refuse, before the first call, a list that strict forbids or that the month cannot cover; give it to read.

    spooled: where sources that can be read only once may be copied to.
    """
    sources = job.sources
    if job.strict:
        pairs = zip(sources, spooled, strict=True)
        sources = [s if s.rereadable else await _spool(s, path, stopper) for s, path in pairs]
    countable = [source for source in sources if source.rereadable]
    most, month = job.harvesting.max_calls, job.limits.per_month
    month_matters = month and (most is None or most > month)
    if not countable or not (job.strict or month_matters):
        return sources
    found = await _count(job, opened, countable, stopper, watcher)
    watcher.note(f"{found.links:,} links in {found.lines:,} lines; {found.calls:,} calls to make")
    _refuse(job, found)
    return sources


async def _spool(source: Source, path: str, stopper: Stopper) -> Source:
    try:
        return await stopper.guard(in_daemon(partial(spool, source, path)))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}; --strict copies there what can be read only once") from error


async def _count(job: Job, opened: Store, sources: list[Source], stopper: Stopper, watcher: Watcher) -> Survey:
    """Count what the list would cost, in a thread; waited for even when the run is to end: it uses the ledger."""
    told = time.monotonic()

    def check(lines: int) -> None:
        nonlocal told
        if stopper.stop is not None:
            raise Stopping
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            watcher.note(f"reading the list through first: {lines:,} lines")

    return await in_daemon(
        lambda: survey(
            opened,
            sources,
            retry_failed=job.harvesting.retry_failed,
            retry_refused=job.harvesting.retry_refused,
            invalid=watcher.invalid if job.strict else lambda _: None,
            check=check,
        )
    )


def _refuse(job: Job, found: Survey) -> None:
    if job.strict and found.invalid:
        raise UsageError(f"{found.invalid} of {found.lines} lines are no bitlinks (--strict): nothing was asked")
    most = job.harvesting.max_calls
    needed = found.calls if most is None else min(found.calls, most)
    if job.limits.per_month and needed > job.limits.per_month:
        raise UsageError(
            f"this list needs {needed:,} calls, and --per-month allows {job.limits.per_month:,}: nothing was asked. "
            f"Set --per-month to what your plan has left for this (here at least {needed}), or to 0 for no limit; or "
            "take a part of it with --max-calls"
        )
