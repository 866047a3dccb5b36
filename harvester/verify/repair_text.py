"""The result of `harvester repair` as text for a person, and as an object for a program."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from harvester.verify.repair import Repair


def as_dict(found: Repair) -> dict[str, Any]:
    """Return the result as an object for programs."""
    return asdict(found)


def as_text(found: Repair) -> str:
    """Return the result as lines for a person."""
    return "\n".join(_lines(found))


def _lines(found: Repair) -> Iterator[str]:
    tally = found.rebuilt
    yield from (f"note: {text}" for text in found.remarks)
    if found.whole:
        yield f"{found.out}: the ledger is whole and knows every row: nothing to repair"
        if tally.moved_calls:
            one = len(tally.moved) == 1
            gone = (
                "1 part is not there; if no loader has it"
                if one
                else (f"{len(tally.moved):,} parts are not there; if no loader has them")
            )
            yield f"note: {gone}, --ask-again makes {'its' if one else 'their'} {tally.moved_calls:,} calls again"
        return
    yield f"the ledger {found.ledger}"
    yield f"found: {tally.part_calls:,} calls with a published row, in {tally.parts:,} parts or the growing file"
    if tally.moved:
        yield f"found: the calls of {len(tally.moved):,} parts that were moved away"
    damaged = f", {tally.damaged_lines:,} damaged lines" if tally.damaged_lines else ""
    yield f"found: {tally.journal_lines:,} answers in {tally.journals:,} journals{damaged}"
    yield f"found: {tally.refused:,} refusals and {tally.failed:,} failures"
    yield from (f"lost: {text}" for text in found.losses)
    if found.applied:
        aside = f"; the old one is {found.set_aside}" if found.set_aside else ""
        yield f"{found.out} is repaired{aside}: the same run command resumes"
    elif found.losses:
        yield (
            f"{found.out} can be repaired in part: restore what is lost, or make those calls again with "
            "--apply --ask-again"
        )
    else:
        yield f"{found.out} can be repaired without a loss: add --apply"
