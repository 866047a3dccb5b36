"""What to run next, given how a run stands: a sentence, a command, and from when on it is worth running."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from harvester.layout import escaped
from harvester.options import QueryOptions
from harvester.stopping import Reason


class State(StrEnum):
    """How a run stands, as far as its manifest tells."""

    RUNNING = "running"
    SILENT = "silent"
    UNCLEAR = "unclear"
    STOPPED = "stopped"
    FAILURES = "failures"
    EMPTY = "empty"
    COMPLETE = "complete"


class Next(NamedTuple):
    """What to do. command: None where no command helps. after: UTC, None for now."""

    says: str
    command: str | None = None
    after: datetime | None = None


_CARRIES_ON = "the same command carries on, with the options it was begun with"
_BY_REASON: dict[Reason, str] = {
    Reason.SIGNAL: _CARRIES_ON,
    Reason.MAX_TIME: _CARRIES_ON,
    Reason.MAX_CALLS: _CARRIES_ON,
    Reason.OUTAGE: f"when Bitly answers again, {_CARRIES_ON}",
    Reason.THROTTLED: f"in an hour or so, {_CARRIES_ON}",
    Reason.MONTH_SPENT: _CARRIES_ON,
    Reason.TOKEN_REFUSED: f"set BITLY_TOKEN, --token-file or --token-command to a token that Bitly takes; then "
    f"{_CARRIES_ON}",
    Reason.PLAN_REFUSED: f"name another --facet with another --out; or when the plan has been changed, {_CARRIES_ON}",
    Reason.PARAMETER_REFUSED: "correct the option that Bitly refused, and name another --out with it",
    Reason.CONNECTION_REFUSED: f"mend the way to Bitly (certificate, proxy); then {_CARRIES_ON}",
    Reason.NO_ROUTE: f"correct --base-url; then {_CARRIES_ON}",
    Reason.TOO_MANY_FAILURES: f"see in _failures.ndjson why; then {_CARRIES_ON}, or with a larger --max-failures",
    Reason.ALL_REFUSED: "make sure that the links belong to the token's account; then the same command carries on, or "
    "with --max-failures 100% if they do",
    Reason.UNREADABLE: f"see in _failures.ndjson what answered instead of Bitly; then {_CARRIES_ON}",
    Reason.OUTPUT: f"mend what the message names; then {_CARRIES_ON}",
    Reason.CONSUMER_GONE: _CARRIES_ON,
    Reason.INPUT: f"mend the list; then {_CARRIES_ON}",
    Reason.NOT_BEGUN: f"do what the message says; then {_CARRIES_ON}",
}
_NO_COMMAND = {Reason.PARAMETER_REFUSED}


def command_for(
    out: str, lists: Sequence[str], query: Mapping[str, Any], account: str | None, work_dir: str | None
) -> str:
    """Write the command that carries an output on, as far as its manifest knows it.

    lists: as they were named; empty where that is not known. query: the options that belong to the output. account:
    as --account named it, or None. work_dir: so too.
    """
    words = ["harvester", "run", *(_as_argument(name) for name in lists or ("LINKS",)), "--out", escaped(out)]
    for option in fields(QueryOptions):
        value = query.get(option.name, option.default)
        # The moment is kept with the output; whoever does not name it gets the one that is kept.
        if option.name != "unit_reference" and value != option.default:
            words += [f"--{option.name.replace('_', '-')}", str(value)]
    words += ["--account", account] if account else []
    return shlex.join(words + (["--work-dir", escaped(work_dir)] if work_dir else []))


def _as_argument(name: str) -> str:
    return f"./{name}" if name.startswith("-") and name != "-" else name


def next_step(
    state: State, command: str, *, reason: str | None, until: datetime | None, asked_again: bool, input_piped: bool
) -> Next:
    """Say what to do next.

    command: carries the output on. reason, until: of a run that stopped. asked_again: some calls have failed, and the
    same command asks for them. input_piped: a list came on standard input.
    """
    piped = "; give it the same list on standard input" if input_piped else ""
    match state:
        case State.RUNNING:
            return Next("nothing: it goes on by itself")
        case State.UNCLEAR:
            return Next("look again in a minute: a run that goes on writes its manifest once a minute")
        case State.SILENT:
            return Next(f"{_CARRIES_ON}; if the run goes on after all, it says so and asks nothing{piped}", command)
        case State.STOPPED:
            return _after_stop(command, reason, until, piped)
        case State.FAILURES if asked_again:
            return Next(
                "the same command asks again for what failed (in three runs; then only with --retry-failed); "
                f"_failures.ndjson says why it did{piped}",
                command,
            )
        case State.FAILURES:
            says = f"_failures.ndjson says why they failed; --retry-failed asks for them once more{piped}"
            return Next(says, f"{command} --retry-failed")
        case State.EMPTY:
            return Next("give it a list that has bitlinks", command)
        case State.COMPLETE:
            return Next("nothing: every call is settled")


def _after_stop(command: str, reason: str | None, until: datetime | None, piped: str) -> Next:
    known = Reason(reason) if reason in set(Reason) else None
    if known in _NO_COMMAND:
        return Next(_BY_REASON[known])
    return Next((_CARRIES_ON if known is None else _BY_REASON[known]) + piped, command, until)
