"""The result of a verification: counts, problems with file and line, remarks, and what could not be checked."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from harvester.progress import shortfalls_in_words

MOST_PROBLEMS = 20
"""Problems listed one by one; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A check that failed. line: from 1; in Parquet the row's number; None for the file as a whole."""

    file: str
    line: int | None
    text: str


@dataclass(slots=True)
class Findings:
    """The result of verifying one output; the fields are the keys of the JSON object, in its order.

    ended: the manifest is of a run's end, and no run has begun since. parts, rows, calls, bytes: what was read, whole
    or in part. published_rows: the rows that the run has published, None if that is unknown. truncated, clipped: calls
    whose rows lack some metrics, or a part of the time. idle: links that have their row without a call. moved_away:
    published parts that are no longer there, which is a problem unless allow_moved. remarks: facts worth knowing that
    are no problems. not_checked: what could not be read, with the reason. problem_count: all problems, also those
    beyond MOST_PROBLEMS.
    """

    out: str
    run_id: str = ""
    complete: bool = False
    ended: bool = False
    parts: int = 0
    rows: int = 0
    calls: int = 0
    bytes: int = 0
    published_rows: int | None = None
    truncated: int = 0
    clipped: int = 0
    idle: int = 0
    failures: int = 0
    ledger_checked: bool = False
    allow_moved: bool = False
    moved_away: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return not self.problem_count

    def problem(self, file: str, line: int | None, text: str) -> None:
        """Add a problem. text: an error's message may begin with the file's name, which is left out."""
        self.problem_count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(file, line, text.removeprefix(f"{file}: ")))


def as_dict(found: Findings) -> dict[str, Any]:
    """Return findings as an object for programs."""
    return {"out": found.out, "ok": found.ok, **asdict(found)}


def as_text(found: Findings) -> str:
    """Return findings as lines for a person."""
    return "\n".join([*_remarkable(found), _counts(found), _last_line(found)])


def _remarkable(found: Findings) -> Iterator[str]:
    for problem in found.problems:
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        yield f"{place}: {problem.text}"
    if more := found.problem_count - len(found.problems):
        yield f"and {more:,} more problems"
    if found.allow_moved:
        yield from (f"moved away, not read: {name}" for name in found.moved_away[:MOST_PROBLEMS])
        if (more := len(found.moved_away) - MOST_PROBLEMS) > 0:
            yield f"and {more:,} more parts that were moved away"
    yield from (f"note: {text}" for text in found.remarks)
    yield from (f"note: {text}" for text in shortfalls_in_words(found.calls, found.truncated, found.clipped))
    yield from (f"not checked: {text}" for text in found.not_checked)


def _counts(found: Findings) -> str:
    ledger = "compared with the ledger" if found.ledger_checked else "not compared with a ledger"
    return (
        f"{found.out}: read {_many(found.parts, 'file')}, {found.bytes:,} bytes, {_many(found.rows, 'row')} of "
        f"{_many(found.calls, 'call')}, {_many(found.failures, 'line')} of _failures.ndjson; {ledger}"
    )


def _last_line(found: Findings) -> str:
    if not found.ok:
        return f"FAILED: {_many(found.problem_count, 'problem')}; {_rows(found)}"
    if not found.ended:
        return f"OK so far: the run has not ended; {_rows(found)}"
    return (
        f"OK: the run is complete; {_rows(found)}"
        if found.complete
        else f"OK so far: the run is not complete; {_rows(found)}"
    )


def _rows(found: Findings) -> str:
    if found.published_rows is None:
        return "it is not known how many rows belong here"
    moved = " (parts were moved away)" if found.allow_moved and found.moved_away else ""
    are = "is" if found.published_rows == 1 else "are"
    return f"{found.rows:,} of {_many(found.published_rows, 'published row')} {are} here{moved}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
