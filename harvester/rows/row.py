"""The NDJSON lines of a dataset: the row of an answered call, and the failure of a call or line without a row."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from harvester.bitly.facets import FACETS
from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer, Failure, Unknown, Unreadable
from harvester.clock import seconds_since_1970
from harvester.jsonlines import one_line
from harvester.progress import Carried
from harvester.rows.call import WHOLE, CallState, Entry, Shortfall
from harvester.rows.schema import GROUP_EXPORT, SEPARATOR, is_clipped, shortfall_of

SCHEMA_VERSION = 2


class RowBuilder:
    """Makes the lines of one run of a dataset, whose query and run_id are the same in every line.

    begun: the query that the dataset was begun with, if it is another: where rows are refreshed each run asks for the
    window up to its own beginning, and a link keeps its key.
    """

    def __init__(self, query: Query, run_id: str, begun: Query | None = None) -> None:
        self.query = query
        self._facet = FACETS[query.facet]
        self._window = _window_of(begun or query)
        self._moved = _window_of(query) if begun not in {None, query} else None
        self._columns = {
            "record_id": None,
            "run_id": run_id,
            "bitlink": None,
            "facet": query.facet,
            "unit": query.unit,
            "units": query.units,
            "unit_reference": query.unit_reference,
            "period_start": query.period_start,
            "period_end": query.period_end,
            "size": query.size,
            "fetched_at": None,
            "units_returned": None,
            "unit_reference_returned": None,
            "clicks_listed": None,
            "truncated": None,
            "source": None,
            **{field.name: None for field in self._facet.totals},
            "carried": None,
            "metrics": None,
            "schema_version": SCHEMA_VERSION,
        }

    def record_id(self, bitlink: str, unit_reference: str) -> bytes:
        """Return the 16 bytes of the record_id of a row with this unit_reference, whatever the dataset's own is."""
        window = _window_of(replace(self.query, unit_reference=unit_reference))
        return _first_16(bitlink.encode() + window)

    def key(self, bitlink: str) -> bytes:
        """Return the call's key: the first 16 bytes of SHA-256 over bitlink, facet, unit, units and unit_reference,
        joined by U+001F. In hexadecimal it is the row's record_id, unless rows are refreshed.
        """
        return _first_16(bitlink.encode() + self._window)

    def row(
        self,
        bitlink: str,
        key: bytes,
        answer: Answer,
        fetched_at: str,
        carried: Carried = None,
        source: str | None = None,
        lacks: Shortfall | None = None,
    ) -> bytes:
        """Return a published line, without its line feed; it always has every key.

        fetched_at: when the response was read, UTC with `Z`. carried: what the list says of the link. source: None
        for the link's own answer. lacks: what `shortfall` says of the answer, if it is known already.
        """
        if self._moved is not None:
            key = _first_16(bitlink.encode() + self._moved)
        return one_line(
            {
                **self._columns,  # which are in their order, and most of them the same in every row
                "record_id": key.hex(),
                "bitlink": bitlink,
                "size": answer.larger_size or self.query.size,
                "fetched_at": fetched_at,
                "units_returned": answer.units_returned,
                "unit_reference_returned": answer.unit_reference_returned,
                "clicks_listed": answer.clicks_listed,
                "truncated": (lacks or self.shortfall(answer)).truncated,
                "source": source,
                "carried": carried,
                "metrics": answer.metrics,
                **answer.totals,
            }
        )

    def idle_row(self, bitlink: str, key: bytes, fetched_at: str, carried: Carried = None) -> bytes:
        """Return the line of a link of which its group's export states that it has no clicks."""
        answer = Answer([], 0, None, None, {field.name: 0 for field in self._facet.totals})
        return self.row(bitlink, key, answer, fetched_at, carried, GROUP_EXPORT)

    def shortfall(self, answer: Answer) -> Shortfall:
        """Return what the row of an answer lacks."""
        query, returned = self.query, answer.units_returned
        truncated = self._facet.is_full(answer.metrics, answer.larger_size or query.size)
        clipped = returned is not None and 0 <= returned < query.units
        if query.period_start is not None and not clipped:
            used = {"units_returned": returned, "unit_reference_returned": answer.unit_reference_returned}
            clipped = is_clipped({**query.as_dict(), **used}, is_empty=not answer.metrics)
        return Shortfall(truncated, clipped) if truncated or clipped else WHOLE

    def failed_call(self, kind: str, bitlink: str, file: str, line: int, verdict: Failure, attempts: int) -> bytes:
        """Return the line of `_failures.ndjson` about a call with this last verdict; the rest is as for `failure`."""
        return self.failure(
            kind,
            bitlink=bitlink,
            file=file,
            line=line,
            status=verdict.status,
            message=verdict.message,
            attempts=attempts,
            body=verdict.body if isinstance(verdict, Unreadable | Unknown) else None,
        )

    def failure(
        self,
        kind: str,
        *,
        file: str,
        line: int,
        bitlink: str | None = None,
        text: str | None = None,
        status: int | None = None,
        message: str = "",
        attempts: int = 0,
        body: str | None = None,
    ) -> bytes:
        """Return the line of `_failures.ndjson` about a call without a row, or a line of the list that is invalid.

        kind: refused, failed or invalid. bitlink: the call's. text: the invalid line's. file, line: where the list
        names it first. body: the beginning of a response that no rule understands.
        """
        return one_line(
            {
                "bitlink": bitlink,
                "text": text,
                "facet": self.query.facet,
                "kind": kind,
                "status": status,
                "message": message,
                "attempts": attempts,
                "file": file,
                "line": line,
                "body": body,
            }
        )


def _first_16(text: bytes) -> bytes:
    """Return the first 16 bytes of a text's SHA-256."""
    # Told that it protects nothing, OpenSSL takes half the time.
    return hashlib.sha256(text, usedforsecurity=False).digest()[:16]


def _window_of(query: Query) -> bytes:
    return (SEPARATOR + SEPARATOR.join((query.facet, query.unit, str(query.units), query.unit_reference))).encode()


def moment_fetched(row: bytes) -> float:
    """Return the time at which a row's response was read, in seconds since 1970."""
    return datetime.fromisoformat(orjson.loads(row)["fetched_at"]).timestamp()


def entry_of(key: bytes, row: Mapping[str, Any]) -> Entry:
    """Return the verdict that a row is."""
    asked_at = seconds_since_1970(row["unit_reference"])
    return Entry(key, CallState.ROW, None, shortfall_of(row), asked_at, row["clicks_listed"])
