"""harvester from Python: a harvest, a stream of rows and one link's metrics, awaited in the caller's event loop.

Nothing is printed but a progress line in a notebook, and no signal handler is installed; notes and warnings go to the
logger `harvester`.
"""

import asyncio
import inspect
import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Unpack, cast

import orjson

from harvester.bitly.bitlinks import parse
from harvester.config.files import configured_values, paths_read
from harvester.config.keywords import (
    AnyPath,
    HarvestKeywords,
    MetricsKeywords,
    StreamKeywords,
    path_text,
    run_options,
)
from harvester.config.options import TOKEN_OPTIONS, RunOptions
from harvester.config.parsing import groups_of
from harvester.credentials.token_sources import TokenGiven, token_is_at_hand, token_reader
from harvester.dataset.stream_publisher import QueueSink
from harvester.errors import InputBroken, LinkFailed, LinkRefused, OutputError, RunStopped, UsageError
from harvester.events import Event, RunOutcome
from harvester.links.feed import IterableFeed, Links, lists_of
from harvester.lookup import look_up
from harvester.reporting.exporter import exporter_for
from harvester.reporting.logs import LoggingObserver, ProgressView
from harvester.reporting.reporter import Reporter
from harvester.reporting.terminal import can_be_drawn_upon
from harvester.run import job as jobs
from harvester.run.assembly import Job, build_job
from harvester.run.row_stream import RowStream
from harvester.series.expansion import jobs_of, rounds_of
from harvester.series.several import run_all
from harvester.series.window import WindowChecks
from harvester.shutdown import ShutdownSignal, StopReason
from harvester.storage.folders import resolve
from harvester.storage.location import MANIFEST, STDOUT
from harvester.threads import in_daemon

Row = dict[str, Any]
"""A row, or a failure as in `_failures.ndjson`, as it is published."""
Lists = list[str] | IterableFeed

_CANCELLED = "cancelled"
_CUT = (
    "the stream ended before its list: a wait for a row was cancelled, as by asyncio.timeout around anext or a "
    "notebook's interrupt, or its event loop has ended. Start another, with the timeout around the whole loop, or "
    "read it in a task of its own"
)
_AT_ONCE = 2
"""Calls of `metrics` that run at once in one event loop, because each counts among the machine's five harvesters."""
_STATE_DIR = "HARVESTER_STATE_DIR"
_COMMAND = "harvester.cli.command_line.app"
"""Loaded by its path, as the command loads its own commands: only if there is something that it has to check."""
_checking = threading.Lock()
"""Held while variables and files are read, which the command does once in a process."""
_checks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, WindowChecks]] = weakref.WeakKeyDictionary()
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


async def harvest(
    links: Links | None = None,
    *,
    out: AnyPath,
    token: TokenGiven = None,
    progress: bool | None = None,
    **options: Unpack[HarvestKeywords],
) -> dict[str, Any]:
    """Harvest links into a folder or a growing file, and return `_manifest.json`. The same call again resumes.

    links: a str or a path object is the path of a list, a list or tuple of path objects several; any other iterable,
    also an asynchronous one, yields links. None with group or all_groups. out: as in `run`, with {facet} and {dt}.
    token: a text, or a callable that returns one, which is called again when Bitly refuses it; by default the sources
    of the command. progress: True shows it, False does not; by default a notebook shows a line. options: those of
    `run`.

    A run that was stopped returns its manifest too, whose `stopped` says why. With several facets or periods `complete`
    and `outputs` are returned: the manifests of those that were begun. Links of an iterable are then all read first.

    Raises:
        UsageError: no request was sent. DatasetBusy: another process writes this output. ConnectionsBusy: other
            processes use all connections. OutputError: the output cannot be written. An exception of links is raised
            too, after every answer so far has been published.
    """
    target = path_text("out", out)
    if target == STDOUT:
        raise UsageError(
            "out: must be a folder, or a file that ends in .ndjson or .jsonl; for rows alone use harvester.stream"
        )
    rounds = rounds_of(_options(options, HarvestKeywords, target, token))
    chosen, several = rounds[0][0], len(rounds) > 1 or len(rounds[0]) > 1
    lists, observer = _lists_of(links, chosen), LoggingObserver()
    read_token = token_reader(token, chosen)
    exporter = exporter_for(chosen.output, observer.warn)
    job = await in_daemon(partial(build_job, lists, chosen, observer.warn, read_token, exporter=exporter))
    jobs_ = jobs_of(job, rounds, WindowChecks().open_guard, partial(exporter_for, warn=observer.warn))
    # Resolved now, because the working directory may change.
    paths = {each.out: Path(resolve(each.out, each.work_dir).public, MANIFEST) for round_ in jobs_ for each in round_}
    facets = ",".join(dict.fromkeys(each.query.facet for each in jobs_[0]))
    observer.view = _view_for(progress, _names_of(lists), target if several else job.out, facets)
    try:
        if several:
            return await _harvest_several(jobs_, paths, observer, lists)
        outcome = await jobs.run(jobs_[0][0], ShutdownSignal(), observer)
    finally:
        observer.close()
    _raise_broken(outcome, lists)
    return await _manifest_at(paths[job.out])


async def _harvest_several(
    rounds: list[list[Job]], paths: Mapping[str, Path], observer: LoggingObserver, lists: Lists
) -> dict[str, Any]:
    """Run the jobs of several datasets and return whether all are complete, with the manifests of those begun."""
    try:
        ended = await run_all(rounds, jobs.run, ShutdownSignal(), observer)
    except InputBroken as error:
        raise (lists.error if isinstance(lists, IterableFeed) else None) or error from None
    ended = [each for each in ended if each.begun]
    for each in ended:
        if each.error is not None:
            raise each.error
        _raise_broken(each.outcome, lists)
    complete = len(ended) == len(paths) and all(each.outcome.complete for each in ended)
    return {"complete": complete, "outputs": [await _manifest_at(paths[each.job.out]) for each in ended]}


async def _manifest_at(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(await in_daemon(path.read_bytes))
    return found


def stream(
    links: Links | None = None,
    *,
    token: TokenGiven = None,
    on_failure: Callable[[Row], object] | None = None,
    progress: bool | None = None,
    **options: Unpack[StreamKeywords],
) -> AsyncGenerator[Row, None]:
    """Yield rows as they arrive, in no order; nothing is stored. A slow consumer slows the calls down.

    links, token, progress, options: as for `harvest`. on_failure: called in the event loop with each refused or failed
    call and each invalid link, as in `_failures.ndjson`; an exception of it ends the stream.

    Raises, during the iteration:
        RunStopped: the run ended before the list did. UsageError, ConnectionsBusy, OutputError: as for `harvest`.
    """
    if on_failure is not None and (not callable(on_failure) or inspect.iscoroutinefunction(on_failure)):
        raise UsageError("on_failure: must be a plain function")
    chosen = _options(options, StreamKeywords, STDOUT, token)
    return _Stream(_rows(_lists_of(links, chosen), chosen, token_reader(token, chosen), on_failure, progress))


async def metrics(bitlink: str, *, token: TokenGiven = None, **options: Unpack[MetricsKeywords]) -> Row:
    """Return one link's row. bitlink: in any form that a list may have.

    A few of these go at once, the others wait; for many links take `stream`.

    Raises:
        InvalidBitlink: that is none. LinkRefused, LinkFailed: it has no row. RunStopped: something is wrong beside the
        link, such as the token or the month. UsageError, ConnectionsBusy, OutputError: as for `harvest`.
    """
    if not isinstance(bitlink, str):
        raise UsageError(f"bitlink: must be text, not {type(bitlink).__name__}")
    name = parse(bitlink)
    chosen = _options(options, MetricsKeywords, STDOUT, token)
    rows, failures = list[bytes](), list[Row]()
    observer = LoggingObserver(failures.append)
    build = partial(build_job, IterableFeed([]), chosen, observer.warn, token_reader(token, chosen))
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE))
    async with turns:
        job = build() if token_is_at_hand(token, chosen) else await in_daemon(build)
        job = replace(job, open_guard=_checks_of(job).open_guard)
        outcome = await look_up(job, [name], lambda _, row: rows.append(row), ShutdownSignal(), observer)
    if rows:
        row: Row = orjson.loads(rows[0])
        return row
    _raise_stopped(outcome)
    kind = LinkRefused if failures[0]["kind"] == "refused" else LinkFailed
    raise kind(name, failures[0]["status"], failures[0]["message"])


def _checks_of(job: Job) -> WindowChecks:
    """Return the checks of windows that all calls of `metrics` share, in this event loop and at the job's server."""
    checks = _checks.setdefault(asyncio.get_running_loop(), {})
    return checks.setdefault(job.client_settings.base_url, WindowChecks())


def _lists_of(links: Links | None, options: RunOptions) -> Lists:
    """Return the lists, none where the options name groups. Raises UsageError as `lists_of`, also for None."""
    named = groups_of(options.list.group, all_groups=options.list.all_groups)
    return [] if links is None and named is not None else lists_of(cast("Links", links))


def _options(given: Mapping[str, Any], allowed: type, out: str, token: TokenGiven) -> RunOptions:
    """Return the options: of the keywords, else of the variables and files that the command reads, else the defaults.

    Raises:
        UsageError: as `run_options`, or a file is wrong.
    """
    excluded = () if token is None else TOKEN_OPTIONS
    values = {name: value for name, value in _configured().items() if name in allowed.__annotations__}
    return run_options(given, allowed, out, {name: values[name] for name in values if name not in excluded})


def _configured() -> Mapping[str, Any]:
    """Return the values for `run` of variables and files, by name."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith("HARVESTER_"))
    named = os.environ.get("HARVESTER_CONFIG") or None
    read = tuple((path, os.stat(path).st_mtime_ns if os.path.exists(path) else 0) for path in paths_read(named))
    if not read and [name for name, _ in variables] in ([], [_STATE_DIR]):
        # Usually: the command line's machinery, which checks the rest, takes a tenth of a second to import.
        return {"state_dir": variables[0][1]} if variables and variables[0][1] else {}
    has_token = bool(os.environ.get("BITLY_TOKEN", "").strip())
    with _checking:
        return _checked(named, repr((variables, read, os.getcwd(), has_token)))


@lru_cache(maxsize=4)
def _checked(named: str | None, state: str) -> Mapping[str, Any]:  # noqa: ARG001 - the cache's key
    """Return what the command `run` would take from variables and files. state: all that this depends on."""
    command = import_module(_COMMAND)
    command.configure(named)
    return configured_values(command.app, "run")


class _Stream(AsyncGenerator[Row, None]):
    """A stream's rows. Once a cancelled wait has ended it early, the next read raises RunStopped instead of ending."""

    def __init__(self, rows: AsyncGenerator[Row, None]) -> None:
        self._rows = cast("AsyncGeneratorType[Row, None]", rows)
        self._over = False

    async def asend(self, value: None) -> Row:
        if self._rows.ag_frame is None and not self._over:
            raise RunStopped(_CANCELLED, _CUT)
        try:
            return await self._rows.asend(value)
        except asyncio.CancelledError:
            raise
        except BaseException:  # the end of the list, or the reason why it was not reached
            self._over = True
            raise

    async def athrow(self, *error: Any) -> Row:
        return await self._rows.athrow(*error)

    async def aclose(self) -> None:
        """End the run, and wait until its tasks, threads and files are gone."""
        self._over = True
        await self._rows.aclose()


async def _rows(
    lists: Lists,
    options: RunOptions,
    read_token: Callable[[], str] | None,
    on_failure: Callable[[Row], object] | None,
    progress: bool | None,
) -> AsyncGenerator[Row, None]:
    sink = QueueSink()
    observer = LoggingObserver(on_failure, sink.leave)
    job = await in_daemon(partial(build_job, lists, options, observer.warn, read_token, sink))
    job = replace(job, open_guard=WindowChecks().open_guard)
    observer.query = job.query
    observer.view = _view_for(progress, _names_of(lists), job.out, job.query.facet)
    try:
        async with RowStream(jobs.run(job, ShutdownSignal(), observer), sink) as rows:
            async for line in rows:
                yield orjson.loads(line)
    finally:
        observer.close()
    if observer.error is not None:
        raise observer.error
    _raise_stopped(rows.outcome(), lists)


def _view_for(progress: bool | None, lists: Sequence[str], out: str, facet: str) -> ProgressView | None:
    """Return a line below the cell in a notebook; elsewhere what the command shows on this standard error.

    progress: None to show it in a notebook only. lists, out, facet: what is harvested. None if nothing is to be shown.
    """
    notebook = _in_notebook()
    if progress is False or (progress is None and not notebook):
        return None
    from harvester.reporting import live_display  # noqa: PLC0415 - rich, which a program without it need not load

    if notebook:
        return live_display.NotebookLine()
    reporter = Reporter()
    if can_be_drawn_upon((), out=""):
        reporter.write_to(live_display.Display())
    reporter.tell(Event.RUN_STARTED, "", lists=lists, out=out, facet=facet)
    return reporter


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _names_of(lists: Lists) -> list[str]:
    return [] if isinstance(lists, IterableFeed) else lists


def _raise_broken(outcome: RunOutcome, lists: Lists | None) -> None:
    """Raise what the caller's iterable raised, or OutputError if the run ended because of its output."""
    if isinstance(lists, IterableFeed) and lists.error is not None:
        raise lists.error
    if outcome.stop is not None and outcome.stop.reason is StopReason.OUTPUT:
        raise OutputError(outcome.stop.message)


def _raise_stopped(outcome: RunOutcome, lists: Lists | None = None) -> None:
    """Raise why a run ended early, if it did."""
    _raise_broken(outcome, lists)
    if stop := outcome.stop:
        raise RunStopped(stop.reason.value, stop.message, stop.until)
