"""A verdict to its NDJSON line: the row a loader reads, and the line of a call without one."""

import hashlib
from datetime import datetime

import orjson

from harvester.bitly.query import Query
from harvester.bitly.verdicts import Answer
from harvester.jsonlines import one_line

SCHEMA_VERSION = 1
_SEPARATOR = "\x1f"


class RowBuilder:
    """Makes the rows of one dataset: what its query and run say in every row is prepared once."""

    def __init__(self, query: Query, run_id: str) -> None:
        self._query = query
        self._run_id = run_id
        window = (query.facet, query.unit, str(query.units), query.unit_reference)
        self._window = (_SEPARATOR + _SEPARATOR.join(window)).encode()

    def key(self, bitlink: str) -> bytes:
        """Give the call's 16 bytes: the beginning of SHA-256 over bitlink, facet, unit, units and unit_reference,
        joined by U+001F. In hexadecimal it is the row's record_id, a key to merge by.
        """
        return hashlib.sha256(bitlink.encode() + self._window).digest()[:16]

    def row(self, bitlink: str, key: bytes, answer: Answer, fetched_at: str) -> bytes:
        """Give one published line, without its line feed; every key is always present.

        fetched_at: when the answer was read, UTC with `Z`.
        """
        query = self._query
        return one_line(
            {
                "record_id": key.hex(),
                "run_id": self._run_id,
                "bitlink": bitlink,
                "facet": query.facet,
                "unit": query.unit,
                "units": query.units,
                "unit_reference": query.unit_reference,
                "size": query.size,
                "fetched_at": fetched_at,
                "units_returned": answer.units_returned,
                "unit_reference_returned": answer.unit_reference_returned,
                "clicks_listed": answer.clicks_listed,
                # As many as were asked for: the tail was probably cut.
                "truncated": len(answer.metrics) == query.size,
                "metrics": answer.metrics,
                "schema_version": SCHEMA_VERSION,
            }
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
        """Give the line of `_failures.ndjson` for a call that has no row, or for a line that is no bitlink.

        kind: refused, failed or invalid. bitlink: the call's; text: the invalid line's. file and line: where it was
        first seen. body: the beginning of an answer that could not be understood.
        """
        return one_line(
            {
                "bitlink": bitlink,
                "text": text,
                "facet": self._query.facet,
                "kind": kind,
                "status": status,
                "message": message,
                "attempts": attempts,
                "file": file,
                "line": line,
                "body": body,
            }
        )


def moment_fetched(row: bytes) -> float:
    """Give when a row's answer was read, seconds since 1970."""
    return datetime.fromisoformat(orjson.loads(row)["fetched_at"]).timestamp()
