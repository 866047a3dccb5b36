"""Options become a job: the typed values of config/ are handed to the packages that take them."""

from collections.abc import Callable, Sequence

from harvester.client.circuit_breaker import BreakerRules
from harvester.client.client import ClientSettings
from harvester.client.token import Token
from harvester.config.credentials import token_source
from harvester.config.options import LimitOptions, RunOptions
from harvester.config.parsing import TypedOptions, typed
from harvester.dataset.dataset import PartLimits
from harvester.dataset.stream_publisher import RowSink
from harvester.links.feed import IterableFeed
from harvester.links.files import Source, resolve_lists
from harvester.rows.encode import Format, RequestedPartFormat
from harvester.rows.schema import Shape
from harvester.run.committer import Metrics
from harvester.run.harvest import HarvestOptions
from harvester.run.job import Job


def build_job(
    lists: Sequence[str] | IterableFeed,
    options: RunOptions,
    warn: Callable[[str], None],
    read_token: Callable[[], str] | None = None,
    sink: RowSink | None = None,
    metrics: Metrics | None = None,
) -> Job:
    """Return the job that options and lists describe.

    lists: the paths of lists, or - for standard input; or links from Python. read_token: returns the token, instead of
    the source that the options name. sink: the reader of the rows, instead of standard output. metrics: called with
    each manifest.

    Raises:
        UsageError: an invalid value, a list that does not exist, no token.
    """
    values, output = typed(options), options.output
    sources, given = _input_of(lists, options)
    return Job(
        sources=sources,
        given=given,
        strict=options.list.strict,
        token=Token(read_token or token_source(options.access, warn)),
        query=values.query,
        pin_reference=values.pin_reference,
        out=output.out,
        work_dir=output.work_dir,
        parts=PartLimits(output.part_rows, values.part_bytes, values.part_age_seconds),
        making=RequestedPartFormat(output.format and Format(output.format), output.shape and Shape(output.shape)),
        metrics=metrics,
        sink=sink,
        wanted=values.limits,
        account=values.account,
        state_dir=options.limits.state_dir,
        asking=_client_settings(values, options.limits),
        gate_rules=BreakerRules(limit_seconds=values.outage_limit_seconds),
        harvesting=_harvest_options(options),
        failure_limit=values.failure_limit,
        max_time_seconds=values.max_time_seconds,
    )


def _input_of(lists: Sequence[str] | IterableFeed, options: RunOptions) -> tuple[list[Source], IterableFeed | None]:
    if isinstance(lists, IterableFeed):
        return [], lists
    return resolve_lists(lists, options.list.column, options.list.list_format), None


def _client_settings(values: TypedOptions, limits: LimitOptions) -> ClientSettings:
    return ClientSettings(
        base_url=values.base_url,
        connections=limits.connections,
        attempts=limits.attempts,
        timeout_seconds=values.timeout_seconds,
    )


def _harvest_options(options: RunOptions) -> HarvestOptions:
    return HarvestOptions(
        workers=options.limits.connections,
        max_calls=options.stopping.max_calls,
        retry_failed=options.list.retry_failed,
        retry_refused=options.list.retry_refused,
    )
