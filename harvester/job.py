"""A run from its settings to its outcome: everything is opened here, in one place, and closed in the other order."""

import asyncio
from dataclasses import dataclass
from functools import partial

from harvester import client, store
from harvester.bitly import Query
from harvester.budget import Budget, Gate, GateRules, Limits
from harvester.errors import Stopping, UsageError
from harvester.harvest import Harvest, Options, Outcome, Status, Watcher
from harvester.keeper import in_daemon
from harvester.places import Form, resolve
from harvester.sources import Source, spool
from harvester.stopping import FailureLimit, Reason, Rules, Stop, Stopper
from harvester.store import PartPolicy, Store
from harvester.survey import Survey, survey

_GROWING_JOURNAL_BYTES = 64 * 1024 * 1024
_STDOUT_COMMIT_SECONDS = 0.05
"""A filter's rows go on quickly, so that `head` ends it before it has made many calls more."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run needs to know. pin_reference: the query's unit_reference is this moment, and was not asked for."""

    sources: list[Source]
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


async def run(job: Job, token: client.Token, stopper: Stopper, watcher: Watcher) -> Outcome:
    """Harvest a list.

    Raises:
        UsageError, DatasetBusy, OutputError: as `store.opened` says; UsageError also for a list that needs more calls
        than the month has, or that is not all bitlinks where strict says so.
    """
    place = resolve(job.out, job.work_dir)
    policy = job.parts if place.form is Form.FOLDER else PartPolicy(job.parts.rows, _GROWING_JOURNAL_BYTES)
    with store.opened(place, job.query, policy, watcher.warn, pin_reference=job.pin_reference) as opened:
        try:
            sources = await _look_ahead(job, opened, stopper, watcher)
        except Stopping:
            return Outcome(complete=False, stop=stopper.stop, status=Status())
        budget, gate = Budget(job.limits), Gate(job.gate_rules)
        rules = Rules(job.failure_limit, first_rows=opened.totals.rows == 0)
        options = _options_for(job, place.form)
        if job.max_time_seconds is not None:
            stop = Stop(Reason.MAX_TIME, f"{job.max_time_seconds:g} s have passed (--max-time)")
            asyncio.get_running_loop().call_later(job.max_time_seconds, stopper.request, stop)
        async with client.opened(job.asking, opened.query, token, budget, gate, stopper) as asker:
            return await Harvest(opened, asker, budget, stopper, rules, watcher, options).run(sources)


def _options_for(job: Job, form: Form) -> Options:
    if form is not Form.STDOUT:
        return job.harvesting
    return Options(
        workers=job.harvesting.workers,
        max_calls=job.harvesting.max_calls,
        commit_seconds=_STDOUT_COMMIT_SECONDS,
    )


async def _look_ahead(job: Job, opened: Store, stopper: Stopper, watcher: Watcher) -> list[Source]:
    """Refuse, before the first call, a list that strict forbids or that the month cannot cover; give it to read."""
    sources = job.sources
    if job.strict:
        copy = partial(spool, folder=opened.place.private)
        sources = [await stopper.guard(in_daemon(partial(copy, source))) for source in sources]
    countable = [source for source in sources if source.rereadable]
    if not countable or not (job.strict or job.limits.per_month):
        return sources

    def check() -> None:
        if stopper.stop is not None:
            raise Stopping

    # Waited for even when the run is to end (check sees to that soon): it uses the ledger.
    found = await in_daemon(
        lambda: survey(
            opened,
            countable,
            retry_failed=job.harvesting.retry_failed,
            retry_refused=job.harvesting.retry_refused,
            invalid=watcher.invalid if job.strict else lambda _: None,
            check=check,
        )
    )
    _refuse(job, found)
    return sources


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
