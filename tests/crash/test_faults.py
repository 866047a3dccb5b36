"""An operation on a file fails: the run says which file and why, and the same command carries on as if nothing was."""

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.crash.test_kill_at_every_operation import (
    LINES,
    LINKS,
    REFUSED,
    Crasher,
    arguments_for,
    check_only_grew,
    crashing,
    published,
)
from tests.support.killed_forks import ANY
from tests.support.output_checks import check_reconciled, rows

ERRORS = {
    "open": (errno.EMFILE, errno.EACCES),
    "write": (errno.ENOSPC, errno.EIO),
    "pwrite": (errno.ENOSPC,),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.ENOSPC, errno.EACCES),
    "unlink": (errno.EACCES,),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "truncate": (errno.EIO,),
}
"""What each kind of operation fails with; https://man7.org/linux/man-pages/man2/write.2.html and the like."""
# Each must have failed once, or this test has lost its subject.
TRIED = {"open journal", "open manifest", "write journal", "write manifest", "fsync journal", "fsync folder",
         "fsync manifest", "rename manifest", "pwrite attempts", "unlink journal", "mkdir folder"}  # fmt: skip
TRIED_IN = {
    "out": TRIED | {"open part", "write part", "fsync part", "rename part"},
    "results.ndjson": TRIED | {"open growing", "write growing", "fsync growing"},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["out", "results.ndjson"])
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.chaos)], ids=["some", "all"])
def test_an_operation_that_fails_costs_nothing(
    quick_path: Path, serve: Callable[..., Served], form: str, short: bool
) -> None:
    served = serve()
    links = quick_path / "links.txt"
    links.write_text("\n".join(LINES) + "\n")
    with crashing(quick_path) as crasher:
        counts = crasher.run(with_state(quick_path / "whole", form, links, served), when="record")["counts"]
        assert TRIED_IN[form] - counts.keys() == set()
        for number, (operation, nth, error, when) in enumerate(faults(counts, short=short)):
            served.sandbox.answered.clear()
            folder = quick_path / str(number)
            folder.mkdir()
            arguments = with_state(folder, form, links, served)
            failed = crasher.run(arguments, operation, nth, when, error)["code"]
            point = f"{when} {errno.errorcode[error]} {operation} {nth}: {failed} {crasher.log}"
            check_ended_well(failed, crasher.log, point)
            check_carried_on(crasher, arguments, folder / form, point)
            assert served.sandbox.answered.total() <= len(LINKS) + len(REFUSED) + 1, point


def with_state(folder: Path, form: str, links: Path, served: Served) -> list[str]:
    return [*arguments_for(links, folder / form, served), "--state-dir", str(folder / "state" / "budget")]


def faults(counts: Mapping[str, int], *, short: bool) -> Iterator[tuple[str, int, int, str]]:
    """Yield the operation that fails, its number, the error, and whether it fails once or from then on.

    In short: one of each kind, the first or a middle one, with an error and a manner in turn.
    """
    number = 0
    for operation, count in sorted(counts.items()):
        errors = ERRORS.get(operation.partition(" ")[0], ())
        if operation == ANY or not errors:
            continue
        if not short:
            for nth in range(1, count + 1):
                yield from ((operation, nth, error, when) for error in errors for when in ("fail", "fail on"))
            continue
        nth = (1, (count + 1) // 2)[number % 2]
        yield operation, nth, errors[number // 2 % len(errors)], ("fail", "fail on")[number // 3 % 2]
        number += 1


def check_ended_well(code: int, log: str, point: str) -> None:
    """It went on, where that is possible, or said which file could not be used, and why."""
    assert code in {0, 8}, point
    assert "Traceback" not in log, point
    if code == 8:
        reason = r"/\S+.*[ (](no space left|input/output error|permission denied|too many open files)"
        assert re.search(reason, log, re.IGNORECASE), point


def check_carried_on(crasher: Crasher, arguments: list[str], out: Path, point: str) -> None:
    seen = published(out)
    code = crasher.run(arguments)["code"]
    assert code == 0, (point, crasher.log)
    check_only_grew(seen, published(out))
    check_reconciled(out, {*LINKS, *REFUSED})
    assert len(rows(out)) == len(LINKS), point
