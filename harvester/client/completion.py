"""The second request after a full answer, for the metrics that the first one may lack."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias, TypeGuard

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query, larger
from harvester.bitly.verdicts import (
    Answer,
    ParameterRefused,
    PlanRefused,
    Refused,
    Throttled,
    Transient,
    Unknown,
    Verdict,
)
from harvester.errors import RunStopping
from harvester.shutdown import ShutdownSignal

SendQuery: TypeAlias = Callable[[str, Query, bool], Awaitable[Verdict | None]]
"""Sends a query for a link; True for one that is repeated. Returns None if it had to wait instead."""


class Completion:
    """Asks a link again for more metrics where its answer lists as many as were requested.

    Whether Bitly answers a larger size is not documented. If it refuses the size, it is not asked again in this run.
    query: None for requests that are none. max_size: the metrics to ask for; None to ask no link again. attempts,
    backoff_seconds: as for a call.
    """

    def __init__(
        self,
        send: SendQuery,
        shutdown: ShutdownSignal,
        query: Query | None,
        max_size: int | None,
        *,
        attempts: int,
        backoff_seconds: float,
    ) -> None:
        self._send = send
        self._shutdown = shutdown
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._facet = FACETS[query.facet] if query else None
        self._size = query.size if query else None
        self._larger = larger(query, max_size) if query else None

    def is_due(self, verdict: Verdict) -> TypeGuard[Answer]:
        """Return whether a verdict is an answer that may lack metrics, and Bitly may have more."""
        if self._larger is None or self._facet is None or not isinstance(verdict, Answer):
            return False
        return self._facet.is_full(verdict.metrics, self._size)

    async def of(self, bitlink: str, first: Verdict) -> Verdict:
        """Return the answer with more metrics, or the first verdict if it lacks none, or Bitly has no other."""
        # The first answer is paid for, so nothing that happens from here on may lose it; its row says `truncated`.
        if (query := self._larger) is None or not self.is_due(first):
            return first
        for tries in range(self._attempts):
            try:
                verdict: Verdict | None = None
                while verdict is None:
                    verdict = await self._send(bitlink, query, tries > 0)
                if isinstance(verdict, Transient):
                    await self._shutdown.sleep_unless_stopping(self._backoff_seconds * 2**tries)
            except RunStopping:
                return first
            if isinstance(verdict, Answer):
                return replace(verdict, larger_size=query.size)
            if not isinstance(verdict, Transient | Throttled):
                # A no to a link that has just been answered is one to the size.
                if isinstance(verdict, Refused | Unknown | ParameterRefused | PlanRefused):
                    self._larger = None
                break
        return first
