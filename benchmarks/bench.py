"""All questions that the benchmarks answer, one table each, into RESULTS.md.

usage: python -m benchmarks.bench [--short] [--only NAME ...] [--to benchmarks/RESULTS.md]

Each table is measured in one run, all that it compares in turn. --short: smaller lists and fewer rounds, about five
minutes in all; without the slowest.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import ROOT


class Question(NamedTuple):
    """What a benchmark answers. short, long: its arguments; short is None for one that the short form leaves out."""

    text: str
    short: tuple[str, ...] | None
    long: tuple[str, ...]


QUESTIONS = {
    "compare": Question("What does a call cost, and what by other programs?", ("--links", "2000"), ("--rounds", "5")),
    "cost": Question(
        "What does each way to harvest cost, against a bare aiohttp pool?",
        ("--links", "4000", "--rounds", "3"),
        ("--rounds", "5"),
    ),
    "cost --tls": Question("The same over TLS?", ("--links", "3000", "--rounds", "3"), ("--rounds", "5")),
    "instructions": Question("How many instructions does a call take?", None, ()),
    "busy": Question("Are the five connections kept busy?", ("--rounds", "1", "--seconds", "4"), ("--rounds", "5")),
    "startup": Question("How long does a command take to start?", ("--rounds", "7"), ()),
    "one_link": Question("What does one link cost beyond that?", ("--runs", "5"), ()),
    "memory": Question("Is memory flat?", None, ()),
    "memory --carry": Question("Also with columns that are carried?", None, ()),
    "written": Question("How many bytes does a link write to disk?", None, ()),
    "quota": Question("How much of Bitly's limits is used?", None, ()),
    "shared_budget": Question("Do hosts that share a budget keep its limits?", None, ()),
    "refresh": Question("How old do answers become with --refresh?", None, ()),
    "idle": Question("What does --skip-idle save?", None, ()),
    "verify": Question("What does verify cost?", None, ()),
    "report": Question("What does a report cost?", None, ()),
    "forms": Question("Does making a part slow the calls down?", None, ()),
    "parquet": Question("What does a Parquet part cost?", None, ()),
    "bombs": Question("Is memory bounded against small files that unpack to large ones?", None, ()),
    "house": Question("How large is the package, and of what shape?", (), ()),
}
"""By the command line behind `python -m benchmarks.`."""


def machine() -> list[str]:
    """Return what the figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    ours = " · ".join(f"{name} {version(name)}" for name in ("aiohttp", "aiolimiter", "orjson", "tenacity"))
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    others = " · ".join(name.replace("==", " ") for group in groups.values() for name in group)
    curl = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=False).stdout.split(" (")[0]
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, {model}, {memory:.0f} GiB"
    return [
        f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {system}",
        f"- CPython {platform.python_version()} · {ours}",
        f"- compared with: {others} · {curl}",
        f"- load when it began: {os.getloadavg()[0]:.1f}",
    ]


def answer(name: str, question: Question, arguments: tuple[str, ...]) -> tuple[str, bool]:
    """Run a benchmark, and return its part of the page, and whether its promises hold."""
    words = [*name.split(), *arguments]
    began = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    took = f"`python -m benchmarks.{' '.join(words)}`, {time.monotonic() - began:.0f} s"
    text = done.stdout + (done.stderr if done.returncode else "")
    ended = "" if done.returncode == 0 else f" It ended with {done.returncode}."
    return f"## {question.text}\n\n{took}.{ended}\n\n```\n{text.strip()}\n```\n", done.returncode == 0


def main() -> int:
    """Answer all questions; 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(description="All benchmarks, a table each, into one page.")
    parser.add_argument("--short", action="store_true", help="about five minutes in all")
    parser.add_argument("--only", nargs="*", choices=QUESTIONS, help="some of the questions")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "RESULTS.md")
    options = parser.parse_args()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    parts, broken = ["# Results\n\n" + "\n".join(machine()) + "\n"], []
    for name, question in QUESTIONS.items():
        arguments = question.short if options.short else question.long
        if arguments is None or (options.only and name not in options.only):
            continue
        print(f"{question.text} ({name})", flush=True)
        text, holds = answer(name, question, arguments)
        parts.append(text)
        broken += [] if holds else [name]
        options.to.write_text("\n".join(parts), encoding="utf-8")
    print(f"{options.to}" + (f"; broken: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
