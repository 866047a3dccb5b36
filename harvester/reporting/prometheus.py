"""Export of a manifest's numbers to a file for Prometheus' textfile collector; docs/metrics.md documents them."""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from harvester._version import __version__
from harvester.dataset.manifest import Manifest
from harvester.errors import UsageError
from harvester.progress import WAIT_REASONS
from harvester.threads import in_daemon

ENDING = ".prom"
PATIENCE_SECONDS = 5.0
"""A write that takes longer goes on in its thread, and the run no longer waits for it."""


class TextfileExporter:
    """Replaces a file with a manifest's numbers atomically; its mode follows the umask.

    out: what the run calls its output. warn: called when the file cannot be written, once.

    Raises:
        UsageError: the path cannot be such a file.
    """

    def __init__(self, path: str, out: str, warn: Callable[[str], None]) -> None:
        self._path = _checked(path)
        self._run = _text(os.path.basename(self._path).removesuffix(ENDING))
        self._out = _text(out)
        self._warn = warn
        self._warned = False
        self._writing = False

    async def export(self, manifest: Manifest) -> None:
        """Write a manifest's numbers, waiting PATIENCE_SECONDS at most. The first error goes to warn; none raises."""
        if self._writing:
            return
        self._writing = True
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await in_daemon(partial(self._write, manifest))
        except (OSError, ValueError) as error:
            if not self._warned:
                reason = getattr(error, "strerror", None) or str(error) or "it took too long"
                self._warn(f"--metrics-file {self._path}: {reason}; the run continues, and tries again every minute")
            self._warned = True

    def _write(self, manifest: Manifest) -> None:
        try:
            registry = CollectorRegistry()
            registry.register(_Numbers(manifest, self._run, self._out))
            _replace(self._path, generate_latest(registry))
        finally:
            self._writing = False


def _replace(path: str, content: bytes) -> None:
    """Replace a file atomically, through a new one beside it that follows no link planted there."""
    # It does not end in .prom, so that the collector never takes it for another run's.
    hidden = f"{path}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with open(hidden, "xb") as stream:
            stream.write(content)
        os.replace(hidden, path)
    except OSError:
        with suppress(OSError):
            os.unlink(hidden)
        raise


def _checked(path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    if not name.endswith(ENDING) or name == ENDING:
        misfit = f"must be a name such as harvester{ENDING}; the collector reads no other"
    elif not os.path.isdir(folder):
        misfit = f"the folder {folder} does not exist; use the textfile collector's"
    elif not os.access(folder, os.W_OK | os.X_OK):
        misfit = f"Permission denied; this user must be able to write to {folder}"
    elif os.path.isdir(path):
        misfit = "a folder; name a file in it"
    elif os.path.exists(path) and not os.path.isfile(path):
        misfit = "a pipe, a socket or a device, which would be replaced by a file; name another"
    else:
        return os.path.join(folder, name)
    raise UsageError(f"{path}: {misfit}", option="--metrics-file")


def _text(name: str) -> str:
    """Return a file name as valid UTF-8 text."""
    return os.fsencode(name).decode(errors="replace")


class _Numbers(Collector):
    """A prometheus_client collector over one manifest; an unknown number has no sample."""

    def __init__(self, manifest: Manifest, run: str, out: str) -> None:
        self._manifest = manifest
        self._run = run
        self._out = out

    def collect(self) -> Iterator[Metric]:
        yield self._info()
        yield from self._calls()
        yield from self._budget()
        yield from self._moments()
        yield from self._published()

    def _info(self) -> Metric:
        manifest, budget = self._manifest, self._manifest.budget
        about = {
            "out": self._out,
            "run_id": manifest.run_id,
            "facet": manifest.query["facet"],
            "account": budget.account,
            "token": budget.token,
            "version": __version__,
        }
        info = InfoMetricFamily("harvester", "Which output, query and account the run belongs to.", labels=["run"])
        info.add_metric([self._run], about)
        return info

    def _calls(self) -> Iterator[Metric]:
        counts, left, made = self._manifest.dataset, self._manifest.remaining, self._manifest.attempts
        states = {state: getattr(counts, state) for state in ("rows", "refused", "failed", "pending")}
        yield self._gauge("calls", "Calls of the output by their state.", states, "state")
        text = "Rows with as many metrics as were requested: the smallest ones are probably missing."
        yield self._gauge("truncated_rows", text, {"": counts.truncated})
        text = "Rows over a shorter time than was requested, because the plan keeps no more."
        yield self._gauge("clipped_rows", text, {"": counts.clipped})
        text = "Rows without a call: exports of the group state that the links have no clicks."
        yield self._gauge("idle_rows", text, {"": counts.idle})
        yield self._gauge("calls_left", "Calls without a verdict in the whole list.", {"": left})
        yield self._counter("attempts", "Requests for metrics over all runs of this output.", made.total)
        text = "Attempts that retried one that had failed transiently."
        yield self._counter("attempts_retried", text, made.retried)
        yield self._counter("attempts_throttled", "Attempts that Bitly throttled.", made.throttled)
        yield self._counter(
            "helper_requests",
            "Helper requests, which ask for Bitly's own limits, groups, their links and their exports.",
            made.helper,
        )

    def _budget(self) -> Iterator[Metric]:
        windows, limited_by = self._manifest.budget.windows, self._manifest.budget.limited_by
        used = {state.window: state.used for state in windows}
        limits = {state.window: state.limit for state in windows}
        yield self._gauge("window_used", "Attempts counted in a window.", used, "window")
        yield self._gauge("window_limit", "Attempts that a window allows.", limits, "window")
        waiting = dict.fromkeys(WAIT_REASONS, 0) | ({limited_by.window: 1} if limited_by else {})
        until = limited_by.until if limited_by else None
        yield self._gauge("waiting", "1 for what the run is waiting for, 0 for everything else.", waiting, "window")
        yield self._moment("waiting_until", "When that wait ends; 0 if it is not known.", until)

    def _moments(self) -> Iterator[Metric]:
        manifest, stopped, run = self._manifest, self._manifest.stopped, self._manifest.invocation
        yield self._moment("started", "When the present run started.", run.started)
        yield self._moment("updated", "When these numbers were taken.", manifest.updated)
        text = "When a call of this run last got its verdict; 0 for none."
        yield self._moment("last_verdict", text, run.last_verdict)
        yield self._moment("ended", "When the run ended; 0 during the run.", manifest.ended)
        yield self._gauge("complete", "1 if every link has an answer.", {"": int(manifest.complete)})
        reasons = {stopped.reason: 1} if stopped else {}
        yield self._gauge("stopped", "1 for the reason why the run ended before its list did.", reasons, "reason")

    def _published(self) -> Iterator[Metric]:
        parts = self._manifest.parts
        yield self._counter("parts", "Files published.", len(parts))
        yield self._counter("published_rows", "Rows published.", sum(part.rows for part in parts))
        yield self._counter("published_bytes", "Bytes published.", sum(part.bytes for part in parts))

    def _moment(self, name: str, text: str, moment: str | None) -> Metric:
        seconds = datetime.fromisoformat(moment).timestamp() if moment else 0.0
        return self._gauge(f"{name}_timestamp_seconds", f"{text} Seconds since 1970.", {"": seconds})

    def _gauge(self, name: str, text: str, values: Mapping[str, float | None], label: str = "") -> Metric:
        family = GaugeMetricFamily(f"harvester_{name}", text, labels=["run", label] if label else ["run"])
        for kind, value in values.items():
            if value is not None:
                family.add_metric([self._run, kind] if label else [self._run], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"harvester_{name}", text, labels=["run"])
        family.add_metric([self._run], value)
        return family
