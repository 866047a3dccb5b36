"""Options to a job: the border between what was written and what is done."""

from collections.abc import Callable, Sequence

from harvester import client, settings, sources
from harvester.errors import UsageError
from harvester.gate import GateRules
from harvester.harvesting import Options
from harvester.intake import Given
from harvester.job import Job
from harvester.keeper import Metrics
from harvester.options import LimitOptions, OutputOptions, RunOptions
from harvester.parts import Asked, Format
from harvester.schema import Shape
from harvester.stdout import Sink
from harvester.store import PartPolicy
from harvester.tokens import Token


def job_of(
    lists: Sequence[str] | Given,
    options: RunOptions,
    warn: Callable[[str], None],
    read_token: Callable[[], str] | None = None,
    sink: Sink | None = None,
) -> Job:
    """Turn options into a job.

    lists: the paths of lists, or - for standard input; or links given one by one. read_token: gives the token, instead
    of where the options say. sink: who reads the rows, instead of standard output.

    Raises:
        UsageError: a value that means nothing, a list that is not there, no token.
    """
    query, pin_reference = settings.query_of(options.query)
    settings.check_counts(options)
    output, limits, ends = options.output, options.limits, options.ends
    return Job(
        sources=[] if isinstance(lists, Given) else sources.find(lists, options.list.column, options.list.list_format),
        token=Token(read_token or settings.token_source(options.access, warn)),
        out=output.out,
        work_dir=output.work_dir,
        query=query,
        pin_reference=pin_reference,
        wanted=settings.wanted_limits(limits),
        account=settings.account_of(limits),
        state_dir=limits.state_dir,
        gate_rules=GateRules(limit_seconds=settings.seconds_of("--outage-limit", limits.outage_limit)),
        asking=_asking(options.access.base_url, limits),
        parts=PartPolicy(
            output.part_rows,
            settings.bytes_of("--part-bytes", output.part_bytes),
            settings.seconds_of("--part-age", output.part_age),
        ),
        making=Asked(output.format and Format(output.format), output.shape and Shape(output.shape)),
        harvesting=_harvesting(options),
        failure_limit=settings.failure_limit_of(ends.max_failures),
        max_time_seconds=settings.seconds_of("--max-time", ends.max_time) if ends.max_time else None,
        strict=options.list.strict,
        metrics=_metrics(output, warn),
        given=lists if isinstance(lists, Given) else None,
        sink=sink,
    )


def _asking(base_url: str, limits: LimitOptions) -> client.Settings:
    return client.Settings(
        base_url=settings.checked_base_url(base_url),
        connections=limits.connections,
        attempts=limits.attempts,
        timeout_seconds=settings.seconds_of("--timeout", limits.timeout),
    )


def _harvesting(options: RunOptions) -> Options:
    return Options(
        workers=options.limits.connections,
        max_calls=options.ends.max_calls,
        retry_failed=options.list.retry_failed,
        retry_refused=options.list.retry_refused,
    )


def _metrics(options: OutputOptions, warn: Callable[[str], None]) -> Metrics | None:
    if options.metrics_file is None:
        return None
    try:
        from harvester.metrics_file import MetricsFile  # noqa: PLC0415 - not everyone has the library
    except ModuleNotFoundError as error:
        raise UsageError("--metrics-file needs a library more: pip install 'harvester[metrics]'") from error
    return MetricsFile(options.metrics_file, options.out, warn).show
