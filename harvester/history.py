"""The history of a dataset's runs: what was sent and answered in each minute, and what kept the runs from sending.

It is stored in the ledger and shown in the manifest. Entries that lie back are added up to hours, then to longer times,
so that their number is bounded however long a dataset is run.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """What was done from `start` (UTC) on, in `seconds` seconds: 60, or more where it lies back.

    invocation: the last run that did something then. attempts, throttled, retries: as AttemptCounts has them. answers:
    calls that were settled by an answer, with a row or refused. failed: calls that ended with neither. server_errors:
    attempts whose response was no answer. network_errors: those without a response, also if they did not reach the
    server and are no attempts. waits: seconds in which nothing was sent, by the window of WaitReason. limits: those in
    force at the end, in attempts, by window; without those that are unlimited.
    """

    invocation: int
    start: str
    seconds: int
    attempts: int = 0
    answers: int = 0
    failed: int = 0
    throttled: int = 0
    server_errors: int = 0
    network_errors: int = 0
    retries: int = 0
    waits: dict[str, float] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without counts that are 0."""
        always = {"invocation": self.invocation, "start": self.start, "seconds": self.seconds}
        return always | {name: value for name in _COUNTED if (value := getattr(self, name))}


_COUNTED = tuple(name for name in HistoryEntry.__slots__ if name not in {"invocation", "start", "seconds"})
