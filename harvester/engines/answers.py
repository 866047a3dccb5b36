"""The logs of answers: what a task writes of each call, in the journal's form, and what others read of them.

`answers-JOB-SHARD-ATTEMPT`: one for each attempt at a shard, because only its own process may append to it.
`links-JOB-SHARD`: the shard's links, one JSON object a line. `job`: the name of the job that is going on; empty once it
has ended.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from harvester.dataset.journal import HELD, VOID, Record, decode
from harvester.engines.shared_folder import SharedFolder, log_of, whole_lines_of

JOB = "job"
_LOG = re.compile(r"answers-(?P<job>[0-9a-f-]+)-(?P<shard>\d{5})-(?P<attempt>\d+)")


class FoundAnswer(NamedTuple):
    """A line of a log."""

    log: str
    record: Record


def links_name(job: str, shard: int) -> str:
    """Return the name of the file with a shard's links."""
    return f"links-{job}-{shard:05d}"


def log_name(job: str, shard: int, attempt: int) -> str:
    """Return the name of the log of one attempt at a shard."""
    return f"answers-{job}-{shard:05d}-{attempt}"


class AnswerReader:
    """Reads the logs of a shared folder as they grow. job: None for the logs of all jobs; shard: of all shards.

    damaged: logs with a line that is no answer, though it is whole.
    """

    def __init__(self, folder: SharedFolder, job: str | None = None, shard: int | None = None) -> None:
        self.damaged: set[str] = set()
        self._folder = folder
        self._job, self._shard = job, shard
        self._read: dict[str, int] = {}

    def names(self) -> list[str]:
        """Return the names of the files of the logs, sorted."""
        return [name for name in self._folder.names() if self._is_mine(name)]

    def new(self) -> Iterator[FoundAnswer]:
        """Yield what was appended since the last call, log by log. Blocks; raises OutputError."""
        for name in self.names():
            start = self._read.get(name, 0)
            if start and log_of(name) != name:  # an object does not grow
                continue
            for line in whole_lines_of(self._folder.get(name, start)):
                start += len(line)
                record = decode(line, start)
                if record is None:
                    self.damaged.add(name)
                elif record.state != VOID:
                    yield FoundAnswer(log_of(name), record)
            self._read[name] = start

    def _is_mine(self, name: str) -> bool:
        found = _LOG.fullmatch(log_of(name))
        if found is None or self._job not in {None, found["job"]}:
            return False
        return self._shard in {None, int(found["shard"])}


def answered_keys(folder: SharedFolder, job: str, shard: int) -> set[bytes]:
    """Return the keys of the calls that earlier attempts at a shard have paid for. Blocks; raises OutputError.

    A row that is held counts: the driver makes it the call's row where nothing followed it.
    """
    return {found.record.key for found in AnswerReader(folder, job, shard).new()}


def is_held(record: Record) -> bool:
    """Return whether a line is a row that another verdict may follow."""
    return record.state == HELD
