"""The command: its commands in the order of `--help`, where options come from, and what is set up around each.

A command is registered by its path in `described`: its module is loaded when the command is used, or when the options
of all commands are needed to check a file or the variables. `--help` loads none of these modules.
"""

import os
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from harvester._version import __version__
from harvester.cli.command_line import described
from harvester.config import sources
from harvester.config.files import files_read
from harvester.config.mistakes import parse_error_text
from harvester.config.options import COMMON, RunOptions, home_expanded
from harvester.parameters import names_in
from harvester.reporting.terminal import say

if TYPE_CHECKING:
    from cyclopts.help import DefaultFormatter, HelpPanel


def usage_text(error: CycloptsError) -> str:
    """Return what is wrong with a command line, as it is shown."""
    return f"harvester: {parse_error_text(error)}"


def run(words: list[str]) -> object:
    """Run the command that a command line names, and return what it returns."""
    _help.all = HELP_ALL in words
    return app.meta(_with_flags(words))


def _with_flags(words: list[str]) -> list[str]:
    """Return a command line with flags instead of `help`, `help COMMAND`, `version` and `--help-all`."""
    match words:
        case ["version"]:
            return ["--version"]
        case ["help", command, *_] if command not in app.resolved_commands():
            return [command]
        case ["help", *command]:
            return [*command, "--help"]
    return ["--help" if word == HELP_ALL else word for word in words]


# --- help -------------------------------------------------------------------------------------------------------------

HELP_ALL = "--help-all"
_SHORTENED = ("run", "plan", "show")
_RARE = {f"--{name.replace('_', '-')}" for name in names_in(RunOptions) if name not in COMMON}


class _Help:
    """Draws `--help`: of run, plan and show without the options that few people use, unless `all` is set."""

    all = False

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Draw the first line, which names the command."""
        words = str(usage).split()
        self._hidden = _RARE if not self.all and {*words[1:3]} & {*_SHORTENED} else set()
        _drawn().render_usage(console, options, usage)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Draw what the command does."""
        _drawn().render_description(console, options, description)

    def __call__(self, console: Any, options: Any, panel: "HelpPanel") -> None:
        """Draw a group of options or commands; a flag without its default, which is always the same."""
        kept = [entry for entry in panel.entries if not {*entry.names} & self._hidden]
        shown = [entry.copy(default=None) if entry.default in {"False", "True"} else entry for entry in kept]
        _drawn()(console, options, panel.copy(entries=shown))


def _drawn() -> "DefaultFormatter":
    from cyclopts.help.formatters import DefaultFormatter  # noqa: PLC0415 - with rich, which few commands need

    return DefaultFormatter()


_help = _Help()


# --- the commands -----------------------------------------------------------------------------------------------------


def _examples(*lines: str) -> str:
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


app = App(
    name="harvester",
    version=__version__,
    version_flags=["--version", "-V"],
    help_formatter=_help,
    help="Harvest Bitly metrics in bulk: bitlinks in, rows for a data lake out. Every answer is paid for once.",
    help_format="plaintext",
    help_epilogue=_examples(
        "harvester demo                        see it work, without a token",
        "harvester plan links.txt --out lake   what it will cost, when it will end",
        "harvester run links.txt --out lake    fetch the rows; run it again to resume",
        "harvester init                        write a config file",
        "harvester COMMAND --help              a command's options, with examples",
    ),
    result_action="return_value",
    error_formatter=usage_text,
    exit_on_error=False,
    print_error=False,
    verbose=False,
)


def _register(name: str, summary: str, *examples: str) -> None:
    """Add a command below those that are registered already.

    summary: the first line of the function's docstring, so that the list of commands can be printed without its module.
    """
    app.command(
        f"{described.__name__}:{name}",
        name=name,
        help=summary,
        sort_key=len([*app]),
        help_epilogue=_examples(*examples),
    )


_register(
    "run",
    "Harvest every bitlink of LINKS; the same command again resumes.",
    "harvester run links.txt --out lake/dt=2026-11-23   parts, for a loader",
    "harvester run links.txt --out results.ndjson       a file: tail -f follows",
    "zcat links.gz | harvester run - --out - | jq .     a filter",
    "harvester run links.txt --out lake --plan growth --reserve 10%",
    "harvester run links.txt --out 'lake/dt={dt}' --day yesterday",
    "harvester run links.txt --out 'lake/{facet}' --facet countries,devices",
    "",
    "harvester run --help-all   all options; a config file can hold them too,",
    "                           and a variable each: HARVESTER_PLAN=growth",
)
_register(
    "plan",
    "Show what `run` with the same options would cost and when it would end, without fetching metrics.",
    "harvester plan links.txt --out lake",
    "harvester plan links.txt --out lake --plan growth --json",
    "harvester plan links.txt --out 'lake/{dt}' --since 2026-11-01",
    "harvester plan links.txt --out lake --offline   without any request to Bitly",
    "harvester plan --help-all             all options",
)
_register(
    "show",
    "Show the metrics of a few LINKS. Waits up to --max-time (1 minute by default) when a limit is used up.",
    "harvester show https://bit.ly/3lU6hRt",
    "harvester show bit.ly/3lU6hRt bit.ly/2Ab --facet countries",
    "harvester show bit.ly/3lU6hRt --json | jq .metrics",
    "harvester show --help-all                     all options",
)
_register(
    "groups",
    "List the account's groups, whose guids `links` and `run --group` take. Costs two requests of the month.",
    "harvester groups",
    "harvester groups --json | jq -r .guid",
)
_register(
    "links",
    "List the bitlinks of groups: one a line for `run -`, a row each, or (--out) as a table for a loader.",
    "harvester links --group Ba1bc23dE4F > links.txt",
    "harvester links --all --archived both --json | jq .tags",
    "harvester links --group Ba1bc23dE4F --out lake/links/dt=2026-11-23",
)
_register(
    "normalize",
    "Print the bitlink of each line of LINKS, or why it has none, as JSON. Sends no request.",
    "harvester normalize links.txt | jq -r .bitlink",
    "harvester normalize campaigns.csv --column url > campaigns.ndjson",
)
_register(
    "status",
    "Show the state of a run and what to run next. Reads only the manifest, without a lock, as any user.",
    "harvester status lake                   its state, and what to run next",
    "harvester status lake --watch           until it has ended",
    "harvester status results.ndjson --json  for a program",
    "harvester status 'lake/{facet}/dt={dt}' --day 2026-11-22",
)
_register(
    "verify",
    "Check an output: parts, rows, counts and failures against manifest and ledger; exits with 0 only if all agree.",
    "harvester verify lake/dt=2026-11-23   before it is loaded",
    "harvester verify results.ndjson       while it grows, too",
    "harvester verify lake --work-dir /var/lib/harvester/lake --json",
    "harvester verify 'lake/{facet}/dt={dt}' --day 2026-11-22",
)
_register(
    "repair",
    "Rebuild a lost or damaged ledger from rows, journals and failures; nothing is changed without --apply.",
    "harvester repair lake                 what is lost, and what can be rebuilt",
    "harvester repair lake --apply         rebuild it; then the same run resumes",
    "harvester repair lake --parts /loaded --apply   parts were moved there",
)
_register(
    "report",
    "Write a report: what was harvested, and how the run went, in one HTML file that needs nothing else.",
    "harvester report lake                 writes report.html",
    "harvester report 'lake/{facet}/dt=*' --to week.html --open",
    "harvester report s3://my-bucket/bitly --to /tmp/bitly.html",
)
_register(
    "top",
    "Print the referrers, countries, cities, devices, links or days with most clicks, as `report` shows them.",
    "harvester top lake                    the busiest referrers",
    "harvester top 'lake/{facet}/dt=*' --by country -n 5",
    "harvester top results.ndjson --by link --json | jq .lines",
)
_register(
    "init",
    "Write a config file: asks for token, plan, output and interval; prints a first command.",
    "harvester init                        asks four questions",
    "harvester init --token login --plan growth --out lake --every day",
    "harvester init --file harvester.toml  for this folder alone",
)
_register(
    "config",
    "Print the settings that a command would use, and where each comes from.",
    "harvester config                      the settings of run",
    "harvester config plan --reserve 10%   of plan, with this option",
    "harvester --config my.toml config > whole.toml",
    "harvester config --example > my.toml  every option, explained",
)
_register(
    "login",
    "Store a token for later runs: from Bitly's page in a browser, or (--with-token) one that you have.",
    "harvester login --with-token           store a token from Settings > API",
    "harvester login --client-id ID         from Bitly's page in the browser",
    "harvester login --client-id ID --no-browser   on another machine",
)
_register(
    "logout",
    "Delete the token that `harvester login` has stored.",
    "harvester logout",
)
_register(
    "schema",
    "Print the schema of the rows for a loader, as a file that it reads as it is (docs/loading.md).",
    "harvester schema --for json-schema > row.json",
    "harvester schema --for duckdb --shape flat --format parquet",
    "harvester schema --for athena > table.sql",
)
_register(
    "demo",
    "Harvest a bundled list from a built-in sandbox: no token, no account, twenty seconds.",
    "harvester demo",
    "harvester demo --out /tmp/demo",
)
_register(
    "sandbox",
    "Serve a Bitly look-alike on 127.0.0.1, until interrupted.",
    "harvester sandbox --port 8080 --per-minute 100 --errors 0.05",
    "export BITLY_TOKEN=any HARVESTER_BASE_URL=http://127.0.0.1:8080/v4",
    "harvester run links.txt --out out",
)
app.register_install_completion_command(help="Install completion of commands and options for bash, zsh or fish.")


# --- around the commands ----------------------------------------------------------------------------------------------


_CONFIGURATION = Group("Configuration", sort_key=7)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        str | None, Parameter(env_var=sources.PREFIX + "CONFIG", group=_CONFIGURATION, metavar="PATH")
    ] = None,
) -> object:
    """Read the configuration, then run the command.

    Parameters
    ----------
    config:
        A TOML file of options, read instead of ./harvester.toml and ~/.config/harvester/config.toml.
    """
    configure(config)
    if any(name.startswith(sources.PREFIX) for name in os.environ):  # else the modules of other commands stay unloaded
        for name, nearest in sources.misspelt_variables(app, os.environ):
            say(f"warning: unknown variable {name}; did you mean {nearest}?")
    return app(tokens)


def configure(path: str | None) -> None:
    """Fill in options from the variables and from files. path: of the only file; None for those found by themselves."""
    if path == "" and not os.environ.get(sources.PREFIX + "CONFIG", "."):
        path = None  # an empty variable counts as unset
    named = path if path is None else home_expanded(path, "--config")
    app.config = (sources.from_variables, *files_read(named, app))
