"""Options to a job: the border between what was written and what is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harvester.bitly.query import Query
from harvester.budget.limits import RequestedLimits
from harvester.client import client
from harvester.client.circuit_breaker import BreakerRules
from harvester.client.token import Token
from harvester.config import credentials, parsing
from harvester.config.options import LimitOptions, RunOptions
from harvester.dataset.dataset import PartLimits
from harvester.dataset.stream_publisher import RowSink
from harvester.links import files
from harvester.links.feed import IterableFeed
from harvester.links.files import Source
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.rows.schema import Shape
from harvester.run.committer import Metrics
from harvester.run.harvest import HarvestOptions
from harvester.shutdown import FailureLimit


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run needs to know.

    pin_reference: the query's unit_reference is this moment, and was not asked for. account: whose month it is, None
    for the token's own. state_dir: where the budget is kept, None for the user's state folder. metrics: shows each
    manifest's numbers somewhere else too. given: links instead of sources. sink: who reads what goes to no file, None
    for standard output.
    """

    sources: list[Source]
    token: Token
    out: str
    work_dir: str | None
    query: Query
    pin_reference: bool
    wanted: RequestedLimits
    asking: client.ClientSettings
    parts: PartLimits
    harvesting: HarvestOptions
    failure_limit: FailureLimit | None = None
    max_time_seconds: float | None = None
    strict: bool = False
    gate_rules: BreakerRules = field(default_factory=BreakerRules)
    account: str | None = None
    state_dir: str | None = None
    making: RequestedPartFormat = field(default_factory=RequestedPartFormat)
    metrics: Metrics | None = None
    given: IterableFeed | None = None
    sink: RowSink | None = None


def build_job(
    lists: Sequence[str] | IterableFeed,
    options: RunOptions,
    warn: Callable[[str], None],
    read_token: Callable[[], str] | None = None,
    sink: RowSink | None = None,
    metrics: Metrics | None = None,
) -> Job:
    """Turn options into a job.

    lists: the paths of lists, or - for standard input; or links given one by one. read_token: gives the token, instead
    of where the options say. sink: who reads the rows, instead of standard output.
    metrics: shows each manifest's numbers elsewhere too.

    Raises:
        UsageError: a value that means nothing, a list that is not there, no token.
    """
    query, pin_reference = parsing.query_of(options.query)
    parsing.check_counts(options)
    output, limits, ends = options.output, options.limits, options.stopping
    return Job(
        sources=[]
        if isinstance(lists, IterableFeed)
        else files.resolve_lists(lists, options.list.column, options.list.list_format),
        token=Token(read_token or credentials.token_source(options.access, warn)),
        out=output.out,
        work_dir=output.work_dir,
        query=query,
        pin_reference=pin_reference,
        wanted=parsing.wanted_limits(limits),
        account=parsing.account_of(limits),
        state_dir=limits.state_dir,
        gate_rules=BreakerRules(limit_seconds=parsing.seconds_of("--outage-limit", limits.outage_limit)),
        asking=_asking(options.access.base_url, limits),
        parts=PartLimits(
            output.part_rows,
            parsing.bytes_of("--part-bytes", output.part_bytes),
            parsing.seconds_of("--part-age", output.part_age),
        ),
        making=RequestedPartFormat(output.format and Format(output.format), output.shape and Shape(output.shape)),
        harvesting=_harvesting(options),
        failure_limit=parsing.failure_limit_of(ends.max_failures),
        max_time_seconds=parsing.seconds_of("--max-time", ends.max_time) if ends.max_time else None,
        strict=options.list.strict,
        metrics=metrics,
        given=lists if isinstance(lists, IterableFeed) else None,
        sink=sink,
    )


def _asking(base_url: str, limits: LimitOptions) -> client.ClientSettings:
    return client.ClientSettings(
        base_url=credentials.checked_base_url(base_url),
        connections=limits.connections,
        attempts=limits.attempts,
        timeout_seconds=parsing.seconds_of("--timeout", limits.timeout),
    )


def _harvesting(options: RunOptions) -> HarvestOptions:
    return HarvestOptions(
        workers=options.limits.connections,
        max_calls=options.stopping.max_calls,
        retry_failed=options.list.retry_failed,
        retry_refused=options.list.retry_refused,
    )
