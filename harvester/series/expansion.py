"""A command's options, and its job, as those of each of its datasets: one for each facet and period."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

from harvester.bitly.query import Period
from harvester.config.options import OutputOptions, PeriodName, RunOptions, facets_in
from harvester.config.parsing import check_skip_idle, facets_of, periods_of, query_of, refresh_seconds_of
from harvester.config.placeholders import fill_output
from harvester.dataset.opening import peek
from harvester.errors import HarvesterError, UsageError
from harvester.groups.activity import SharedExports
from harvester.groups.journal import ListRequest
from harvester.groups.spool import shared_lists
from harvester.run.assembly import Job, OpensGuard
from harvester.run.committer import ManifestExporter
from harvester.shutdown import Allowance
from harvester.storage.folders import has_ledger, resolve
from harvester.storage.location import STDOUT

Rounds = list[list[RunOptions]]
"""The options of each dataset: a round for each period, the oldest first, and in it a dataset for each facet."""


def rounds_of(options: RunOptions) -> Rounds:
    """Return the options of a command's datasets, whose paths are filled in. To be called once, as `fill_output`.

    Raises:
        UsageError: as `facets_of`, `periods_of` and `fill_output`; or datasets would share an output.
    """
    refresh_seconds_of(options)  # before anything is said of periods, which it excludes
    facets, periods = facets_of(options.query), periods_of(options.query)
    check_skip_idle(options)
    if options.output.out == STDOUT and (len(facets) > 1 or len(periods) > 1):
        raise UsageError(
            "-: several facets or periods need a folder each: name a path with {facet}, {dt}", option="--out"
        )
    rounds = [
        [fill_output(_of_one(options, facet, period, several=len(facets) > 1)) for facet in facets]
        for period in (*periods,) or (None,)
    ]
    for option, paths in (
        ("--out", [[each.output.out for each in datasets] for datasets in rounds]),
        ("--work-dir", [[each.output.work_dir for each in datasets] for datasets in rounds]),
    ):
        _refuse_shared(option, paths)
    return rounds


def _refuse_shared(option: str, paths: Sequence[Sequence[str | None]]) -> None:
    if paths[0][0] is None:
        return
    if len({*paths[0]}) < len(paths[0]):
        raise UsageError(f"{paths[0][0]}: each facet needs a folder of its own: put {{facet}} into it", option=option)
    if len({each[0] for each in paths}) < len(paths):
        raise UsageError(f"{paths[0][0]}: each period needs a folder of its own: put {{dt}} into it", option=option)


def _of_one(options: RunOptions, facet: str, period: Period | None, *, several: bool) -> RunOptions:
    query, output = replace(options.query, facet=facets_in(facet)), options.output
    if period is not None:
        day = period.first.isoformat()
        query = replace(query, day=None, since=day, until=day, every=cast("PeriodName", period.unit))
    if several and output.metrics_file is not None:
        stem, ending = os.path.splitext(output.metrics_file)
        output = replace(output, metrics_file=f"{stem}-{facet}{ending}")
    return replace(options, query=query, output=output)


def jobs_of(
    first: Job,
    rounds: Rounds,
    open_guard: OpensGuard,
    exporter_for: Callable[[OutputOptions], ManifestExporter | None],
) -> list[list[Job]]:
    """Return the jobs of a command's datasets. first: that of the first, whose list and token all share."""
    exports = SharedExports() if len(rounds[0]) > 1 else None
    shared = replace(first, open_guard=open_guard, allowance=Allowance(first.max_calls), exports=exports)

    def job_of(options: RunOptions) -> Job:
        query, is_now = query_of(options.query)
        if is_now:  # the same moment for all
            query = replace(query, unit_reference=first.query.unit_reference)
        out, work_dir = options.output.out, options.output.work_dir
        return replace(shared, query=query, out=out, work_dir=work_dir, exporter=exporter_for(options.output))

    jobs = [[job_of(options) for options in datasets] for datasets in rounds]
    if sum(map(len, rounds)) > 1:
        # The first round compares the calls of all with the month, before any is made.
        unused = [job for round_ in jobs for job in round_ if _is_unused(job)]
        jobs[0] = [replace(job, outputs=len(unused)) if job in unused else job for job in jobs[0]]
        jobs = _with_shared_list(jobs, first.listed)
    return jobs


def _with_shared_list(jobs: list[list[Job]], listed: ListRequest | None) -> list[list[Job]]:
    """Return the jobs, of which those without a list of the groups' links get a new one together."""
    if listed is None:
        return jobs
    privates = {_name(job): resolve(job.out, job.work_dir).private for round_ in jobs for job in round_}
    lists = shared_lists(privates, listed)
    return [[replace(job, shared=lists.get(_name(job))) for job in round_] for round_ in jobs]


def _name(job: Job) -> str:
    """Return what names a job's output among those of its command, also if the folder of all was moved."""
    return " ".join(filter(None, (job.query.facet, job.query.period_start)))


def _is_unused(job: Job) -> bool:
    """Return whether a job's output has no call yet, so that it needs one for each link of the list."""
    location = resolve(job.out, job.work_dir)
    if not has_ledger(location):
        return True
    with suppress(HarvesterError), peek(location, job.query, pin_reference=job.pin_reference) as snapshot:
        return snapshot.calls == 0
    return False  # what is wrong with it, its run will say
