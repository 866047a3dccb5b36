"""Commands about outputs: `status`, `verify`, `repair`, `report` and `top`; and `show`, which fetches a few links.

What `verify` and `report` need, and what needs aiohttp, is imported within the functions: `status` is run as a probe,
every few seconds.
"""

import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson

from harvester.cli.exit_codes import observer_for, run_until_signal
from harvester.config.options import Facets, ShowOptions, facets_in
from harvester.config.placeholders import filled_path
from harvester.config.sources import undashed
from harvester.dataset import manifest
from harvester.errors import UsageError
from harvester.jsonlines import as_json
from harvester.parameters import Parameter
from harvester.reporting.terminal import discard_output, for_stdout, print_html, print_out, say
from harvester.shutdown import CONSEQUENCES, OK, OUTPUT, SOME_FAILED, TOO_MANY_FAILED, ShutdownSignal
from harvester.signals import INTERRUPTED
from harvester.storage.location import STDOUT, is_url

Out = Annotated[str, Parameter(name="--out")]
"""The run's --out, written with or without the option's name; like any option it may come from a variable or a file."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OutputChoice:
    """The options of every command about an output: the placeholders' values, and the form of what is printed."""

    json: bool = False
    "Print JSON, for a program."

    facet: Facets = ("referrers",)
    "The value of {facet} in OUT and --work-dir; several, with commas between them, for an output each."

    day: str | None = None
    "The value of {dt} in OUT and --work-dir: the first day of the output's period, or yesterday."

    unit_reference: str | None = None
    "The moment whose UTC day is the value of {dt} in OUT and --work-dir."

    def paths(self, out: str) -> list[str]:
        """Return OUT with its placeholders filled in, for each facet."""
        return list(dict.fromkeys(self.filled("OUT", undashed(out))))

    def filled(self, name: str, path: str) -> list[str]:
        """Return a path with its placeholders filled in, for each facet. name: what errors call it."""
        day = self.unit_reference
        if self.day is not None:
            from harvester.config.parsing import day_of

            day = day_of("--day", self.day).isoformat()
        return [filled_path(name, path, facet, day) for facet in facets_in(self.facet)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StateChoice:
    """The options of the commands that read the private state too."""

    output: OutputChoice = field(default_factory=OutputChoice)

    work_dir: str | None = None
    "The run's --work-dir; by default the private state is looked for inside or next to OUT."

    def outputs(self, out: str) -> list[tuple[str, str | None]]:
        """Return OUT and --work-dir with their placeholders filled in, for each facet."""
        paths = self.output.filled("OUT", undashed(out))
        folders = [None] * len(paths) if self.work_dir is None else self.output.filled("--work-dir", self.work_dir)
        return list(dict.fromkeys(zip(paths, folders, strict=True)))


_SHOW_DEFAULTS = ShowOptions()
_OUTPUT_DEFAULTS, _STATE_DEFAULTS = OutputChoice(), StateChoice()


def status(
    out: Out,
    *,
    watch: bool = False,
    every: str = "5s",
    choice: OutputChoice = _OUTPUT_DEFAULTS,
) -> int:
    """Show the state of a run and what to run next. Reads only the manifest, without a lock, as any user.

    Parameters
    ----------
    out:
        The run's --out: a folder, a growing file or a store's URL; the manifest itself; or a folder with many outputs.
    watch:
        Repeat until the run has ended: in place on a terminal, otherwise as a line at each change.
    every:
        How often --watch reads the manifest.
    """
    from harvester.reporting import run_status, status_text

    paths = choice.paths(out)
    path = paths[0]
    if len(paths) > 1:
        if watch:
            raise UsageError("follows one output: name one --facet", option="--watch")
        manifests = [each if is_url(each) else manifest.locate(each)[0] for each in paths]
        status_text.print_table(run_status.read_each(manifests), ".", json=choice.json)
        return OK
    if below := manifest.below(path):
        if watch:
            raise UsageError(f"follows one output, and {path} has {len(below):,}: name one of them", option="--watch")
        return OK if status_text.print_table(run_status.read_each(below), path, json=choice.json) else OUTPUT
    if not watch:
        status_text.print_status(run_status.read_status(path), json=choice.json)
        return OK
    from harvester.config.parsing import seconds_of

    try:
        status_text.follow(run_status.changes(path, seconds_of("--every", every)), json=choice.json)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
    return OK


def verify(
    out: Out, *, allow_moved: Annotated[bool, Parameter(negative="")] = False, choice: StateChoice = _STATE_DEFAULTS
) -> int:
    """Check an output: parts, rows, counts and failures against manifest and ledger; exits with 0 only if all agree.

    Parameters
    ----------
    out:
        The run's --out: a folder, a growing file or a store's URL; the run may still be going on.
    allow_moved:
        Accept that published parts are gone, because a loader takes them away.
    """
    from harvester.verify import findings, verify

    outputs = [verify.output_at(path, folder) for path, folder in choice.outputs(out)]
    reports = [verify.verify(output, allow_moved=allow_moved) for output in outputs]
    if choice.output.json:
        found = [findings.as_dict(each) for each in reports]
        _print_report(as_json(found if len(found) > 1 else found[0], orjson.OPT_INDENT_2))
    else:
        _print_report(for_stdout("\n\n".join(findings.as_text(each) for each in reports)))
    return OK if all(each.ok for each in reports) else OUTPUT


def repair(
    out: Out,
    *,
    apply: Annotated[bool, Parameter(negative="")] = False,
    ask_again: Annotated[bool, Parameter(negative="")] = False,
    parts: str | None = None,
    choice: StateChoice = _STATE_DEFAULTS,
) -> int:
    """Rebuild a lost or damaged ledger from rows, journals and failures; nothing is changed without --apply.

    Parameters
    ----------
    out:
        The run's --out: a folder, a growing file or a store's URL; no run may be going on.
    apply:
        Put the rebuilt ledger in place. The old one is kept beside it.
    ask_again:
        Apply also if some calls are known nowhere any more: the next run makes them again, for another request each.
        With a ledger that is whole: make the calls of parts that are gone again.
    parts:
        A folder to which a loader has moved parts; they are only read.
    """
    from harvester.verify import repair as repairs
    from harvester.verify.repair_text import as_dict, as_text

    outputs, json = choice.outputs(out), choice.output.json
    if len(outputs) > 1:
        raise UsageError("repairs one output: name one", option="--facet")
    (path, folder), *_ = outputs
    found = repairs.repair(path, folder, parts, apply=apply, ask_again=ask_again)
    _print_report(as_json(as_dict(found), orjson.OPT_INDENT_2) if json else for_stdout(as_text(found)))
    return OK if found.ok else OUTPUT


LayoutOut = Annotated[str, Parameter(name="--out")]
"""The run's --out, or a pattern of several; here `{facet}` and `{dt}` stand for every facet and day."""
ByName = Literal[
    "link", "day", "referrer", "referrer-name", "domain", "domain-and-referrer", "country", "city", "device"
]


def report(
    out: LayoutOut,
    *,
    to: str = "report.html",
    open: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002
) -> int:
    """Write a report: what was harvested, and how the run went, in one HTML file that needs nothing else.

    Parameters
    ----------
    out:
        The run's --out: a folder, a growing file or a store's URL; a folder of outputs; or a layout with {facet}, {dt}
        and *, such as 'lake/{facet}/dt=*'. The runs may still be going on.
    to:
        The file to write, a store's URL, or - for standard output. A report of this name is replaced, no other file.
    open:
        Show it in the browser.
    """
    from harvester.config.options import home_expanded
    from harvester.reports import report as reports

    path = undashed(to)
    if path == STDOUT:
        made = reports.report(undashed(out))
        _warn_of_gaps(made.left_out, made.damaged)
        print_html(made.html)
        return OUTPUT if made.damaged else OK
    path = path if is_url(path) else home_expanded(path, "--to")
    reports.check_replaceable(path)
    made = reports.report(undashed(out))
    made.save(path)
    _warn_of_gaps(made.left_out, made.damaged)
    _print_report(f"wrote {path}")
    if open:
        import webbrowser

        if is_url(path) or not webbrowser.open(f"file://{os.path.abspath(path)}"):
            say(f"warning: no browser was found; open {path}")
    return OUTPUT if made.damaged else OK


def _warn_of_gaps(left_out: Sequence[str], damaged: Sequence[str]) -> None:
    """Print what sums leave out, and which files are damaged."""
    for text in damaged:
        say(f"harvester: {text}")
    for text in left_out:
        say(f"warning: {text}")


def top(
    out: LayoutOut,
    *,
    by: ByName | None = None,
    lines: Annotated[int, Parameter(alias="-n")] = 20,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Print the referrers, countries, cities, devices, links or days with most clicks, as `report` shows them.

    Parameters
    ----------
    out:
        As for `report`.
    by:
        What to print; by default the first of referrers, domains, countries, devices and cities that was harvested.
        Of days, the newest are printed.
    lines:
        How many lines to print, at most.
    json:
        Print JSON, for a program.
    """
    from harvester.reports import top as tops

    found = tops.top_of(undashed(out), by, lines)
    _warn_of_gaps(found.left_out, found.damaged)
    _print_report(as_json(tops.as_dict(found), orjson.OPT_INDENT_2) if json else tops.as_text(found))
    return OUTPUT if found.damaged else OK


def _print_report(text: str) -> None:
    """Print what a command has found; if its reader has gone, the exit code still says the result."""
    try:
        print_out(text)
    except BrokenPipeError:
        discard_output()


def show(
    links: list[str], /, *, options: ShowOptions = _SHOW_DEFAULTS, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Show the metrics of a few LINKS. Waits up to --max-time (1 minute by default) when a limit is used up.

    Parameters
    ----------
    links:
        Bitlinks in any form, such as https://bit.ly/3lU6hRt. Each costs a call every time: nothing is stored.
    json:
        Print the rows as `run` writes them, one per line, for a program.
    """
    from harvester.cli import show as shows

    def work(shutdown: ShutdownSignal) -> Coroutine[Any, Any, shows.Shown]:
        return shows.show([undashed(link) for link in links], options, shutdown, json=json)

    shown = run_until_signal(work, observer_for("text"))
    if shown.stop is not None:
        return CONSEQUENCES[shown.stop.reason].exit_code
    return TOO_MANY_FAILED if shown.refused else SOME_FAILED if shown.failed else OK
