"""The runs of the chaos runner: each is a fork of a process that has harvester imported, with one fault of its own."""

import ctypes
import errno
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import platformdirs  # noqa: F401 - imported here as all that a run needs, so that a fork begins at once
import psutil  # noqa: F401

from harvester.cli import harvesting, outputs
from harvester.cli.exit_codes import observer_for, report_error
from harvester.client import attempt
from harvester.client.circuit_breaker import BreakerRules
from harvester.client.client import ClientSettings
from harvester.config.options import RunOptions
from harvester.parameters import made_of
from harvester.rows.decode import HashingReader, rows_of
from harvester.rows.encode import PartFormat
from harvester.run import assembly, harvest, job  # noqa: F401
from harvester.signals import ENDING, end_at_once, signals_held
from harvester.verify import repair, repair_text, verify  # noqa: F401
from tests.support.file_operations import Observer, Operation, put_in_place
from tests.support.killed_forks import Faults, Killer, Recorder

T = TypeVar("T")
HANGS_SECONDS = 60.0
"""A run that takes longer than this hangs."""
SIGNALS = {name: signal.Signals[name] for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGSTOP")}
_KILL_WITH_PARENT = 1, signal.SIGKILL
"""PR_SET_PDEATHSIG: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html"""


@dataclass(frozen=True)
class Fault:
    """What happens to a run.

    kind: a signal after so many seconds, perhaps twice; `kill before` or `kill after` the nth operation on a file,
    `power cut` after it; `fail` and `fail on`, where the nth operation of this name has this error; `clock`, a jump by
    so many seconds; `dns`, where the first n names are not found; empty for nothing.
    """

    kind: str = ""
    seconds: float = 0.0
    operation: str = "any"
    nth: int = 0
    error: int = 0
    jump_seconds: float = 0.0
    twice: bool = False

    def __str__(self) -> str:
        match self.kind:
            case name if name in SIGNALS:
                return f"{self.kind} after {self.seconds * 1000:.0f} ms{', twice' if self.twice else ''}"
            case "fail" | "fail on":
                lasting = ", as have all after it" if self.kind == "fail on" else ""
                return f"{self.operation} {self.nth} has {errno.errorcode[self.error]}{lasting}"
            case "kill before" | "kill after" | "power cut":
                return f"{self.kind} operation {self.nth}"
            case "clock":
                return f"the clock jumps by {self.jump_seconds / 86400:.1f} days after {self.seconds * 1000:.0f} ms"
            case "dns":
                return f"the first {self.nth} names are not found"
        return "undisturbed"


@dataclass(frozen=True)
class Ended:
    """How a run has ended. code: None if it was killed. log: what it wrote. hung: it had to be killed."""

    code: int | None
    log: str
    hung: bool = False


class PowerCut(Recorder):
    """Records every operation, and ends the process at the nth."""

    def __init__(self, nth: int, path: str) -> None:
        super().__init__()
        self._nth = nth
        self._path = path

    def around(self, operation: Operation, do: Callable[[], T]) -> T:
        with self._turn:
            result = super().around(operation, do)
            if len(self.operations) == self._nth:
                self.write()
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    def write(self) -> None:
        with open(self._path, "wb") as stream:
            pickle.dump(self.operations, stream)


class Runs:
    """Starts runs, one after another. folder: of their logs, and of what they leave for their parent."""

    def __init__(self, folder: Path) -> None:
        self._log = str(folder / "log")
        self._operations = folder / "operations"
        self._asked_again = folder / "asked-again"

    def run(self, lists: list[str], given: dict[str, Any], fault: Fault, commit_verdicts: int) -> Ended:
        """Run `harvester run` with these options by name."""
        self._operations.unlink(missing_ok=True)
        self._asked_again.unlink(missing_ok=True)

        def work() -> int:
            observer = self._observer(fault)
            if observer:
                put_in_place(observer)
            vars(harvest)["COMMIT_VERDICTS"] = commit_verdicts
            self._note_questions()
            be_quick()
            if fault.kind == "clock":
                jump(fault.seconds, fault.jump_seconds)
            if fault.kind == "dns":
                lose_names(fault.nth)
            code = harvesting.run(lists, options=made_of(RunOptions, given))
            if isinstance(observer, PowerCut):  # the power goes after the run's end
                observer.write()
            return code

        return self._wait(self._fork(work), fault)

    def verify(self, out: Path, work_dir: str | None) -> Ended:
        choice = outputs.StateChoice(work_dir=work_dir)
        return self._wait(self._fork(lambda: outputs.verify(str(out), choice=choice)), Fault())

    def repair(self, out: Path, work_dir: str | None, *, apply: bool, ask_again: bool) -> Ended:
        choice = outputs.StateChoice(work_dir=work_dir)
        work = partial(outputs.repair, str(out), apply=apply, ask_again=ask_again, choice=choice)
        return self._wait(self._fork(work), Fault())

    def rows_of(self, path: Path, part_format: PartFormat) -> list[dict[str, Any]]:
        """Read a published file; in a fork, because what reads Parquet has threads. Raises ValueError if it cannot."""
        found = self._operations.with_name("rows")

        def work() -> int:
            with path.open("rb") as stream:
                rows = [row for _, row in rows_of(HashingReader(stream), part_format)]
            found.write_bytes(pickle.dumps(rows))
            return 0

        ended = self._wait(self._fork(work), Fault())
        if ended.code:
            raise ValueError(ended.log)
        rows: list[dict[str, Any]] = pickle.loads(found.read_bytes())
        return rows

    def operations(self) -> list[Operation]:
        """Those of the last run, whose power was cut."""
        found: list[Operation] = pickle.loads(self._operations.read_bytes())
        return found

    def asked_again(self) -> int:
        """How often the last run has asked a known-good link again, to find out whom a bad answer concerns."""
        return self._asked_again.stat().st_size if self._asked_again.exists() else 0

    def _observer(self, fault: Fault) -> Observer | None:
        match fault.kind:
            case "kill before" | "kill after":
                return Killer(fault.operation, fault.nth, fault.kind.removeprefix("kill "))
            case "fail" | "fail on":
                return Faults(fault.operation, fault.nth, fault.error, lasting=fault.kind == "fail on")
            case "power cut":
                return PowerCut(fault.nth, str(self._operations))
        return None

    def _note_questions(self) -> None:
        send = attempt.AttemptSender.send

        async def noted(
            sender: attempt.AttemptSender, *arguments: Any, known_good: bool = False, **options: Any
        ) -> Any:
            if known_good:
                with open(self._asked_again, "ab", buffering=0) as stream:
                    stream.write(b".")
            return await send(sender, *arguments, known_good=known_good, **options)

        vars_of(attempt.AttemptSender, "send", noted)

    def _fork(self, work: Callable[[], int]) -> int:
        Path(self._log).write_text("")  # for one that is killed before it has begun
        with signals_held():
            child = os.fork()
            if child == 0:
                end_at_once()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                _leave(work, self._log)
        return child

    def _wait(self, child: int, fault: Fault) -> Ended:
        """Wait for a run's end, and send it the signal of its fault meanwhile."""
        hung = False
        with open(os.pidfd_open(child), "rb") as process:
            if fault.kind in SIGNALS and not _ended(process.fileno(), fault.seconds):
                os.kill(child, SIGNALS[fault.kind])
                if fault.kind == "SIGSTOP":
                    time.sleep(fault.jump_seconds)
                    os.kill(child, signal.SIGCONT)
                elif fault.twice and not _ended(process.fileno(), fault.jump_seconds):
                    os.kill(child, SIGNALS[fault.kind])
            if not _ended(process.fileno(), HANGS_SECONDS):
                hung = True
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        with open(self._log, errors="backslashreplace") as stream:
            return Ended(code, stream.read(), hung)


def _ended(process: int, seconds: float) -> bool:
    return bool(select.select([process], [], [], seconds)[0])


def _leave(work: Callable[[], int], path: str) -> NoReturn:
    """Do the work of a fork, and end it with its exit code, as `harvester` does."""
    code = 99
    try:
        ctypes.CDLL(None).prctl(*_KILL_WITH_PARENT, 0, 0, 0)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        warnings.simplefilter("error")
        try:
            code = work()
        except Exception as error:
            code = report_error(error, observer_for("text"))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 99
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def vars_of(owner: Any, name: str, value: Any) -> None:
    """Replace a name of a module or class in this process, which is a fork."""
    setattr(owner, name, value)


def be_quick() -> None:
    """Let pauses and outages be over in a moment."""

    def rules(limit_seconds: float) -> BreakerRules:
        return BreakerRules(
            first_probe_seconds=0.05, longest_probe_seconds=0.1, limit_seconds=limit_seconds, poll_seconds=0.01
        )

    vars_of(assembly, "BreakerRules", rules)
    vars_of(assembly, "ClientSettings", partial(ClientSettings, backoff_seconds=0.005))


class _Moments(type(datetime)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class _Shifted(datetime, metaclass=_Moments):
    """A datetime whose present is that of `time.time`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.fromtimestamp(time.time(), tz)


def jump(after_seconds: float, seconds: float) -> None:
    """Set the wall clock of this process by so many seconds, so many seconds from now."""
    true, at = time.time, time.monotonic() + after_seconds
    vars_of(time, "time", lambda: true() + (seconds if time.monotonic() >= at else 0.0))
    for name, module in list(sys.modules.items()):
        if name.startswith("harvester.") and vars(module).get("datetime") is datetime:
            vars_of(module, "datetime", _Shifted)


def lose_names(count: int) -> None:
    """Let the first names that this process looks up not be found."""
    true, left = socket.getaddrinfo, [count]

    def found(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return true(*arguments, **options)

    vars_of(socket, "getaddrinfo", found)
