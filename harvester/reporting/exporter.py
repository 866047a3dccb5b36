"""The exporter for `--metrics-file`. Its library is an extra, and is imported only for runs with this option."""

from collections.abc import Awaitable, Callable

from harvester.config.options import OutputOptions
from harvester.dataset.manifest import Manifest
from harvester.errors import UsageError, install_line


def exporter_for(options: OutputOptions, warn: Callable[[str], None]) -> Callable[[Manifest], Awaitable[None]] | None:
    """Return the coroutine function that exports a manifest's numbers, or None without `--metrics-file`.

    Raises:
        UsageError: the library is not installed, or the path cannot be such a file.
    """
    if options.metrics_file is None:
        return None
    try:
        from harvester.reporting.prometheus import TextfileExporter  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise UsageError(
            f"needs the package prometheus-client: {install_line('metrics')}", option="--metrics-file"
        ) from error
    return TextfileExporter(options.metrics_file, options.out, warn).export
