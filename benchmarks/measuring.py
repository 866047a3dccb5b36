"""What both benchmarks do: write a list, serve, run a command in a process of its own, read what it used."""

import gzip
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
NO_LIMITS = ("--per-minute", "0", "--per-hour", "0", "--per-month", "0")
LARGE_LIMITS = ("--per-minute", "10000000", "--per-hour", "100000000", "--per-month", "1000000000")
LONGEST_SECONDS = 3600.0
_ANSWER_SECONDS = 10.0
ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "BITLY_TOKEN": "benchmark"}
"""Of all processes. Nothing else: a proxy variable or a configuration would change what is measured."""


class Used(NamedTuple):
    """What a process used: CPU of all its threads, user and system, and its largest resident set."""

    cpu_seconds: float
    peak_bytes: int


def write_list(path: Path, links: int) -> Path:
    """Write a list of so many different bitlinks, a line each."""
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(f"bit.ly/3{number:07x}\n" for number in range(links))
    return path


def write_table(path: Path, links: int) -> tuple[Path, tuple[str, ...]]:
    """Write the same list as CSV with further columns, and return their names. Each link has other values."""
    columns = ("campaign", "channel")
    with path.open("w", encoding="utf-8") as lines:
        lines.write(f"link,{','.join(columns)}\n")
        lines.writelines(f"bit.ly/3{number:07x},spring-{number},channel {number % 7}\n" for number in range(links))
    return path, columns


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Serve benchmarks/server.py in a process of its own, and give its base URL."""
    command = [sys.executable, "-m", "benchmarks.server", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not url:
            raise SystemExit("benchmarks/server.py did not start")
        yield url
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def harvest(links: Path, url: str, out: Path, options: Sequence[str] = NO_LIMITS) -> Used:
    """Run `harvester run` over a list."""
    where = ("--out", str(out), "--state-dir", str(out.parent / "state"), "--base-url", url)
    return run("-m", "harvester", "run", str(links), *where, "--quiet", *options)


def output_of(*arguments: str) -> str:
    """Run Python with arguments to its end, and give what it printed."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=LONGEST_SECONDS, check=False)
    _check(done.returncode, arguments)
    return done.stdout.decode()


def run(
    *arguments: str, program: str = sys.executable, variables: Mapping[str, str] | None = None, silent: bool = False
) -> Used:
    """Run Python with arguments to its end, and give what it used. program: another Python. silent: drop its output.

    Keep the calling process small: on Linux a child's peak begins with the one of the process that it came from.
    """
    process = subprocess.Popen(
        [program, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | (dict(variables) if variables else {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if silent else None,
        stderr=subprocess.DEVNULL if silent else None,
    )
    # Not process.kill(), which may reap the process, and what it used with it.
    deadline = threading.Timer(LONGEST_SECONDS, os.kill, (process.pid, signal.SIGKILL))
    deadline.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _end(process)
        raise
    finally:
        deadline.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    _check(process.returncode, arguments)
    return _used(usage)


def _check(code: int, arguments: Sequence[str]) -> None:
    if code != 0:
        raise SystemExit(f"python {' '.join(arguments)} ended with {code}: nothing was measured")


def _used(usage: resource.struct_rusage) -> Used:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts bytes there, KiB here
    return Used(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def check_rows(out: Path, links: int) -> None:
    """Make sure that a harvest has a row for every link: a run that did less would look cheap."""
    files = sorted(out.glob("part-*.ndjson*")) if out.is_dir() else [out]
    check_number(out, sum(_lines_of(file) for file in files), links)


def check_number(out: Path, rows: int, links: int) -> None:
    """Make sure that as many rows were found in an output as there are links."""
    if rows != links:
        raise SystemExit(f"{out} has {rows} rows, and the list {links} links: nothing was measured")


def said(*, holds: bool) -> str:
    """Return what is printed of a promise."""
    return "holds" if holds else "DOES NOT HOLD"


def _lines_of(path: Path) -> int:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: lines.read(1 << 20), b""))
