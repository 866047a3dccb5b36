"""The parts that a report consists of: sections, with their figures and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harvester.progress import counted
from harvester.reports.charts import Picture
from harvester.reports.tables import Table

_MOST_SENTENCES = 12


class Fact(NamedTuple):
    """A number that is shown large. note: what it leaves out."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and what it shows, in a sentence."""

    picture: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report. note: what its pictures leave out. notices: what must not be overlooked."""

    title: str
    sentences: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    note: str = ""
    notices: list[str] = field(default_factory=list)


def bounded_list(sentences: Sequence[str]) -> Iterator[str]:
    """Yield the first of many sentences, and how many more there are."""
    yield from sentences[:_MOST_SENTENCES]
    if (more := len(sentences) - _MOST_SENTENCES) > 0:
        yield f"{counted(more, 'more is', 'more are')} not listed here."
