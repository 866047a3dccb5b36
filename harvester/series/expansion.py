"""A command's options, and its job, as those of each of its datasets: one for each facet and period."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from harvester.bitly.periods import Period
from harvester.config.options import OutputOptions, PeriodName, RunOptions, facets_in
from harvester.config.parsing import facets_of, fill_output, periods_of, query_of
from harvester.errors import UsageError
from harvester.run.assembly import Job, OpensGuard
from harvester.run.committer import ManifestExporter
from harvester.shutdown import Allowance
from harvester.storage.location import STDOUT

Rounds = list[list[RunOptions]]
"""The options of each dataset: a round for each period, the oldest first, and in it a dataset for each facet."""


def rounds_of(options: RunOptions) -> Rounds:
    """Return the options of a command's datasets, whose paths are filled in. To be called once, as `fill_output`.

    Raises:
        UsageError: as `facets_of`, `periods_of` and `fill_output`; or datasets would share an output.
    """
    facets, periods = facets_of(options.query), periods_of(options.query)
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
    shared = replace(first, open_guard=open_guard, allowance=Allowance(first.max_calls))

    def job_of(options: RunOptions) -> Job:
        query, is_now = query_of(options.query)
        if is_now:  # the same moment for all
            query = replace(query, unit_reference=first.query.unit_reference)
        out, work_dir = options.output.out, options.output.work_dir
        return replace(shared, query=query, out=out, work_dir=work_dir, exporter=exporter_for(options.output))

    return [[job_of(options) for options in datasets] for datasets in rounds]
