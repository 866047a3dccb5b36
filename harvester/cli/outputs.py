"""Commands about an output: `status`, `verify` and `repair`; and `show`, which fetches a few links from Bitly.

Both `verify` and what needs aiohttp are imported within the functions: `status` is run as a probe, every few seconds.
"""

import asyncio
from contextlib import suppress
from typing import Annotated

import orjson
from cyclopts import Parameter

from harvester.bitly.facets import FacetName
from harvester.cli.exit_codes import observer_for
from harvester.cli.signals import stop_on_signals
from harvester.config.options import ShowOptions
from harvester.config.parsing import filled_path, seconds_of
from harvester.config.sources import undashed
from harvester.jsonlines import as_json
from harvester.reporting import run_status, status_text
from harvester.reporting.terminal import discard_output, print_out
from harvester.shutdown import CONSEQUENCES, OK, OUTPUT, SOME_FAILED, TOO_MANY_FAILED, ShutdownSignal

_SHOW_DEFAULTS = ShowOptions()


def status(
    out: str,
    /,
    *,
    json: bool = False,
    watch: bool = False,
    every: str = "5s",
    facet: FacetName = "referrers",
    unit_reference: str | None = None,
) -> int:
    """Show the state of a run and what to run next. Reads only the manifest, without a lock, as any user.

    Parameters
    ----------
    out:
        The run's --out: a folder, a growing file or a store's URL; or the manifest itself.
    json:
        Print a JSON object, for a program; with --watch, one per line.
    watch:
        Repeat until the run has ended: in place on a terminal, otherwise as a line at each change.
    every:
        How often --watch reads the manifest.
    facet:
        The value of {facet} in OUT.
    unit_reference:
        The moment whose UTC day is the value of {dt} in OUT.
    """
    path = filled_path("OUT", undashed(out), facet, unit_reference)
    if not watch:
        status_text.print_status(run_status.read_status(path), json=json)
        return OK
    with suppress(KeyboardInterrupt):
        status_text.follow(run_status.changes(path, seconds_of("--every", every)), json=json)
    return OK


def verify(
    out: str,
    /,
    *,
    work_dir: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    facet: FacetName = "referrers",
    unit_reference: str | None = None,
) -> int:
    """Check an output: parts, rows, counts and failures against manifest and ledger; exits with 0 only if all agree.

    Parameters
    ----------
    out:
        The run's --out: a folder, a growing file or a store's URL; the run may still be going on.
    work_dir:
        The run's --work-dir; by default the private state is looked for inside or next to OUT.
    json:
        Print a JSON object, for a program.
    facet:
        The value of {facet} in OUT and --work-dir.
    unit_reference:
        The moment whose UTC day is the value of {dt} in OUT and --work-dir.
    """
    from harvester.verify import findings, verify

    path = filled_path("OUT", undashed(out), facet, unit_reference)
    state = work_dir and filled_path("--work-dir", work_dir, facet, unit_reference)
    found = verify.verify(verify.output_at(path, state))
    try:
        print_out(as_json(findings.as_dict(found), orjson.OPT_INDENT_2) if json else findings.as_text(found))
    except BrokenPipeError:  # a reader that has gone still relies on the exit code
        discard_output()
    return OK if found.ok else OUTPUT


def repair(
    out: str,
    /,
    *,
    apply: Annotated[bool, Parameter(negative="")] = False,
    ask_again: Annotated[bool, Parameter(negative="")] = False,
    parts: str | None = None,
    work_dir: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    facet: FacetName = "referrers",
    unit_reference: str | None = None,
) -> int:
    """Rebuild a lost or damaged ledger from rows, journals and failures; nothing is changed without --apply.

    Parameters
    ----------
    out:
        What --out was: a folder, a growing file or a store's URL; no run may go on.
    apply:
        Put the rebuilt ledger in place. The old one is kept beside it.
    ask_again:
        Apply also if some calls are known nowhere any more: the next run makes them again.
    parts:
        A folder to which a loader has moved parts; they are only read.
    work_dir:
        What --work-dir was; by default the private state is looked for inside or beside OUT.
    json:
        Print a JSON object, for a program.
    facet:
        What {facet} in OUT and --work-dir stands for.
    unit_reference:
        The moment whose UTC day {dt} in OUT and --work-dir stands for.
    """
    from harvester.verify import repair as repairs

    path = filled_path("OUT", undashed(out), facet, unit_reference)
    state = work_dir and filled_path("--work-dir", work_dir, facet, unit_reference)
    found = repairs.repair(path, state, parts, apply=apply, ask_again=ask_again)
    try:
        print_out(as_json(repairs.as_dict(found), orjson.OPT_INDENT_2) if json else repairs.as_text(found))
    except BrokenPipeError:  # as above
        discard_output()
    return OK if found.ok else OUTPUT


def show(
    links: list[str], /, *, options: ShowOptions = _SHOW_DEFAULTS, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Show the metrics of a few LINKS, for interactive use. Waits if a limit is used up, but not for long.

    Parameters
    ----------
    links:
        Bitlinks in any form, such as https://bit.ly/3lU6hRt. Each costs a call every time: nothing is stored.
    json:
        Print the rows as `run` writes them, one per line, for a program.
    """
    from harvester.cli import show as shows

    async def shown_links() -> shows.Shown:
        shutdown = ShutdownSignal()
        stop_on_signals(shutdown, observer_for("text"))
        return await shows.show([undashed(link) for link in links], options, shutdown, json=json)

    shown = asyncio.run(shown_links())
    if shown.stop is not None:
        return CONSEQUENCES[shown.stop.reason].exit_code
    return TOO_MANY_FAILED if shown.refused else SOME_FAILED if shown.failed else OK
