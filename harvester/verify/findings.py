"""The result of a verification: counts, problems with file and line, remarks, and what could not be checked."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST_PROBLEMS = 20
"""Problems listed one by one; further ones are only counted."""


class Problem(NamedTuple):
    """A check that failed. line: from 1; in Parquet the row's number; None for the file as a whole."""

    file: str
    line: int | None
    text: str


@dataclass(slots=True)
class Findings:
    """The result of verifying one output.

    ended: the manifest is of a run's end, and no run has begun since. parts, rows, calls, bytes: what was read, whole
    or in part. ledger: whether the ledger was compared. moved_away: published parts that are no longer there. remarks:
    facts worth knowing that are no problems. unchecked: what could not be read, with the reason. count: all problems.
    """

    out: str
    run_id: str = ""
    complete: bool = False
    ended: bool = False
    parts: int = 0
    rows: int = 0
    calls: int = 0
    bytes: int = 0
    failures: int = 0
    ledger: bool = False
    moved_away: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return not self.count

    def problem(self, file: str, line: int | None, text: str) -> None:
        """Add a problem."""
        self.count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(file, line, text))


def as_dict(found: Findings) -> dict[str, Any]:
    """Return findings as an object for programs."""
    return {
        "out": found.out,
        "holds": found.ok,
        "run_id": found.run_id,
        "complete": found.complete,
        "ended": found.ended,
        "parts": found.parts,
        "rows": found.rows,
        "calls": found.calls,
        "bytes": found.bytes,
        "failures": found.failures,
        "ledger_checked": found.ledger,
        "moved_away": found.moved_away,
        "remarks": found.remarks,
        "not_checked": found.unchecked,
        "problem_count": found.count,
        "problems": [problem._asdict() for problem in found.problems],
    }


def as_text(found: Findings) -> str:
    """Return findings as lines for a person."""
    return "\n".join([*_problem_lines(found), *_other_lines(found), _counts(found), _last_line(found)])


def _problem_lines(found: Findings) -> list[str]:
    lines = [f"{p.file}{f':{p.line}' if p.line else ''}: {p.text}" for p in found.problems]
    more = found.count - len(found.problems)
    return [*lines, f"and {more:,} more problems"] if more else lines


def _other_lines(found: Findings) -> list[str]:
    moved = [f"moved away, not looked into: {name}" for name in found.moved_away[:MOST_PROBLEMS]]
    if more := len(found.moved_away) - len(moved):
        moved.append(f"and {more:,} more parts that were moved away")
    return [*moved, *(f"note: {text}" for text in found.remarks), *(f"not checked: {text}" for text in found.unchecked)]


def _counts(found: Findings) -> str:
    ledger = "reconciled with the ledger" if found.ledger else "not held against a ledger"
    return (
        f"read: {_many(found.parts, 'file')}, {found.bytes:,} bytes, {_many(found.rows, 'row')} of "
        f"{_many(found.calls, 'call')}; {_many(found.failures, 'failure')}; {ledger}"
    )


def _last_line(found: Findings) -> str:
    if not found.ok:
        return f"{found.out} does not hold: {_many(found.count, 'problem')}"
    state = "complete" if found.complete and found.ended else "not complete"
    if not found.ended:
        state = "as far as its run has come"
    return f"{found.out} holds: {state}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
