"""The file that `harvester init` writes: commented, for one plan, one place and one interval; never with a token."""

import os
import re
import shlex
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, get_args

from harvester.budget.limits import PLAN_MONTHS
from harvester.config.options import PlanName, home_expanded
from harvester.config.placeholders import filled_path
from harvester.config.sources import toml_value
from harvester.errors import UsageError

TokenPlace = Literal["login", "variable", "file", "command"]
Interval = Literal["once", "day", "week", "month"]
PLANS: tuple[str, ...] = tuple(PLAN_MONTHS)
TOKEN_PLACES: tuple[str, ...] = get_args(TokenPlace)
INTERVALS: tuple[str, ...] = get_args(Interval)
_SECRET = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{32,}(?![0-9A-Za-z])")
_STORE = re.compile(r"[a-z0-9]+://")
_GROWING = (".ndjson", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a file is written for. token_source: the path or the command, where token is `file` or `command`."""

    token: TokenPlace
    token_source: str | None
    plan: PlanName
    out: str
    every: Interval


def checked_answer(option: str, text: str) -> str:
    """Return an answer. Raises UsageError if a token seems to stand in it; the error does not repeat it."""
    if _SECRET.search(text):
        raise UsageError(
            ": this looks like a token, and a token is never written into a config file. Store it with `harvester "
            "login --with-token`, and answer with its place: login, variable, file or command",
            option=option,
        )
    return text


def out_for(out: str, every: Interval) -> str:
    """Return the --out of each run: with the day in its name where each run has an output of its own.

    Raises:
        UsageError: it is standard output or empty, or has a placeholder that is not known.
    """
    if out.strip() in {"", "-"}:
        raise UsageError(": must be a folder, a file that ends in .ndjson, or a store's URL", option="--out")
    filled_path("--out", out, "referrers", "2026-01-01")
    if every == "once" or "{dt}" in out:
        return out
    stem, ending = os.path.splitext(out)
    return f"{stem}-{{dt}}{ending}" if ending in _GROWING else f"{out.rstrip('/')}/dt={{dt}}"


def starter_text(answers: Answers) -> str:
    """Return the file's text. Raises UsageError as `out_for`."""
    out = out_for(answers.out, answers.every)
    lines = [
        "# Options of harvester, written by `harvester init`; edit it freely. `harvester config` shows each value and",
        "# where it comes from, `harvester config --example` explains every option. Never put a token in here.",
        "",
        "# Your plan at Bitly, which sets the month: free 1,000 attempts, core 5,000, growth 25,000, premium 50,000.",
        f"plan = {toml_value(answers.plan)}",
        "",
        "# Where the rows are written: a folder, a file that ends in .ndjson, or a store's URL (s3://bucket/prefix).",
    ]
    if "{dt}" in out:
        what = answers.every if answers.every != "once" else "period"
        lines.append(f"# {{dt}} is the first UTC day of the {what}, so each {what} has a folder or file of its own.")
    lines.append(f"out = {toml_value(out)}")
    if _STORE.match(out):
        name = "{dt}" if "{dt}" in out else "all"
        lines += [
            "# A store needs a folder on a local disk for the run's private state.",
            f'work_dir = "~/.local/state/harvester/work/{name}"',
        ]
    if answers.every in {"week", "month"}:
        lines += [
            "",
            f"# A run fetches the whole {answers.every}s that contain the days from --since to --until.",
            f"every = {toml_value(answers.every)}",
        ]
    return "\n".join([*lines, "", *_token_lines(answers)]) + "\n"


def _token_lines(answers: Answers) -> list[str]:
    match answers.token:
        case "file":
            return ["# The first line of this file is the token.", f"token_file = {toml_value(answers.token_source)}"]
        case "command":
            return [
                "# The first line that this command prints is the token. It runs without a shell.",
                f"token_command = {toml_value(answers.token_source)}",
            ]
        case "variable":
            return ["# The token comes from the variable BITLY_TOKEN."]
        case _:
            return ["# The token is the one that `harvester login` has stored."]


def next_steps(answers: Answers, path: str, *, found: bool, today: date) -> str:
    """Return what to do next, with a first command. path: of the file. found: harvester finds it by itself."""
    program = "harvester" if found else f"harvester --config {path}"
    period = _period(answers.every, today)
    token = {
        "login": "harvester login --with-token",
        "variable": "" if os.environ.get("BITLY_TOKEN", "").strip() else "export BITLY_TOKEN=…",
    }.get(answers.token)
    steps = [
        *([f"{token}   # the token, from Bitly: Settings > API"] if token else []),
        f"{program} plan links.txt{period}   # what it costs and when it ends",
        f"{program} run links.txt{period}",
    ]
    if answers.every == "day":
        daily = f"{program} run links.txt --day yesterday --quiet"
        steps.append(f"0 6 * * * cd {shlex.quote(os.getcwd())} && {daily}   # each day, in a crontab")
    return "\n".join([f"wrote {path}", "next, with your links in links.txt:", *(f"  {step}" for step in steps)])


def _period(every: Interval, today: date) -> str:
    """Return the options that name the last day, week or month that is over, with a space before them."""
    if every == "once":
        return ""
    if every == "day":
        return f" --day {today - timedelta(days=1)}"
    last = today.replace(day=1) - timedelta(days=1) if every == "month" else today - timedelta(days=7)
    return f" --since {last} --until {last}"


def refuse_existing(path: str) -> None:
    """Raise UsageError if there is something at a path, before any question is asked."""
    if os.path.lexists(home_expanded(path, "--file")):
        raise UsageError(f"{path} exists, and is not overwritten: edit it, remove it, or name another with --file")


def write_new(path: str, text: str) -> str:
    """Write a file that does not exist yet, readable by its owner alone, and return its path with `~` expanded.

    Raises:
        UsageError: it exists, or cannot be written.
    """
    path = home_expanded(path, "--file")
    try:
        os.makedirs(os.path.dirname(path) or os.curdir, mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", option="--file") from error
    return path
