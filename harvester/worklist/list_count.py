"""What a list holds, and what it looks like, counted batch by batch."""

from collections import Counter
from dataclasses import dataclass, field

from harvester.clock import from_epoch, utc_iso
from harvester.links.batch import Batch
from harvester.progress import InvalidLine, RefreshCounts

_MOST_DOMAINS = 1000
_MOST_EXAMPLES = 3


@dataclass(slots=True)
class ListCount:
    """What a list holds. links: distinct bitlinks; done: with a row or a refusal; calls: those that need a call.

    With --refresh, never: links without an answer; due: those whose answer is due; oldest_answer: the end of the oldest
    answer's window, in seconds since 1970, None without one.
    """

    lines: int = 0
    invalid: int = 0
    duplicates: int = 0
    links: int = 0
    done: int = 0
    calls: int = 0
    never: int = 0
    due: int = 0
    oldest_answer: int | None = None

    def ages(self, seconds: float) -> RefreshCounts:
        """Return the links by the age of their answers. seconds: from which on an answer is due."""
        oldest = None if self.oldest_answer is None else utc_iso(from_epoch(self.oldest_answer))
        return RefreshCounts(seconds, self.never, self.links - self.never - self.due, self.due, oldest)


@dataclass(slots=True)
class ListSurvey:
    """What a list looks like, so that a wrong column is seen at once; its size does not grow with the list.

    domains: lines with a bitlink, by domain. elsewhere: those of the domains that came after the first thousand.
    examples: the first lines that are no bitlinks.
    """

    domains: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    examples: list[InvalidLine] = field(default_factory=list)

    def see(self, batch: Batch) -> None:
        """Count a batch."""
        for domain, lines in Counter(link.bitlink.partition("/")[0] for link in batch.links).items():
            if domain in self.domains or len(self.domains) < _MOST_DOMAINS:
                self.domains[domain] += lines
            else:
                self.elsewhere += lines
        self.examples += batch.invalid[: _MOST_EXAMPLES - len(self.examples)]
