"""What Bitly's API v4 is, as data and pure functions: facets, a query's request, and what an answer means.

Nothing here does I/O. Rules come from https://dev.bitly.com/api-reference (documented) and from recorded answers
where the documentation is silent or wrong; tests/samples has one for every rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import orjson

from harvester.bitly.facets import _INT64_MAX, Facet, Metric, NotTheFacet
from harvester.clock import utc_iso
from harvester.jsonlines import object_in

BODY_LIMIT = 4 * 1024 * 1024
"""Bytes of a decoded answer that are read; a facet's answer is a few KiB."""
KEPT_BODY = 2048
"""Bytes kept of an answer that could not be understood."""
_MESSAGE_LIMIT = 200


# --- verdicts -----------------------------------------------------------------------------------------------------

Hint = float | datetime | None
"""How long, or until when, the server asks to wait: seconds, or a moment in UTC."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The facet's rows: the call is settled.

    units_returned: what Bitly used, which is less than was asked where the plan cuts history.
    """

    metrics: list[Metric]
    clicks_listed: int
    units_returned: int | None
    unit_reference_returned: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A definite no for this link: settled without a row. no_route: the server did not know the path at all."""

    status: int
    message: str
    no_route: bool = False


@dataclass(frozen=True, slots=True)
class Transient:
    """No answer to the question this time: ask again after a while. status: None when nothing came back."""

    status: int | None
    message: str
    hint: Hint = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A complete 200 that is not the facet's JSON: ask once more, then give the call up. body: its beginning."""

    status: int
    message: str
    body: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """An answer no rule knows: the call has failed, and is never written off for good. body: its beginning."""

    status: int
    message: str
    body: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """The minute's or the hour's limit is spent: everyone waits, and the call is charged no attempt."""

    status: int
    message: str
    hint: Hint = None


@dataclass(frozen=True, slots=True)
class MonthSpent:
    """The account's month is spent: waiting is useless, so the run stops."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """The token is missing, wrong or revoked: every call would get this."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class PlanRefused:
    """The account's plan lacks the facet: every call would get this."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class ParameterRefused:
    """A query parameter is wrong, so every call would get this. field: its name."""

    status: int
    message: str
    field: str


Verdict = (
    Answer
    | Refused
    | Transient
    | Unreadable
    | Unknown
    | Throttled
    | MonthSpent
    | TokenRefused
    | PlanRefused
    | ParameterRefused
)

_TRANSIENT_STATUSES = frozenset({500, 502, 503, 504})
_LINK_FIELDS = frozenset({"BITLINK", "BITLINK_ID", "LINK", "LINK_ID", "ID", "DOMAIN", "HASH", "BACK_HALF"})
_QUERY_FIELDS = frozenset({"UNIT", "UNITS", "UNIT_REFERENCE", "SIZE"})


def classify(status: int, headers: Mapping[str, str], body: bytes, facet: Facet, *, whole: bool = True) -> Verdict:
    """Say what an answer of Bitly's means for its call.

    Pure: no clock, no socket. Every rule has a sample in tests/samples.

    headers: case-insensitive names, as aiohttp gives them.
    whole: False when the body was cut at BODY_LIMIT.

    Raises nothing: bytes of any kind get a verdict.
    """
    return _read_success(body, facet, whole=whole) if status == 200 else classify_error(status, headers, body)


def classify_error(status: int, headers: Mapping[str, str], body: bytes) -> Verdict:
    """Say what an answer other than 200 means, on whatever route it came. Raises nothing."""
    said = object_in(body)
    message = str(said.get("message") or "").strip().upper()
    # The message decides, not the status: throttling has come as 403 (recorded in 2019), and a spent month comes
    # as 429 (https://dev.bitly.com/docs/getting-started/rate-limits).
    if message == "API_USAGE_LIMIT_EXCEEDED" or message.startswith("MONTHLY_"):
        return MonthSpent(status, truncate(message))
    if status == 429 or message == "RATE_LIMIT_EXCEEDED" or (status == 403 and "X-Ratelimit-Reason" in headers):
        return Throttled(status, truncate(message) or "no message", hint(headers))
    if status in _TRANSIENT_STATUSES:
        return Transient(status, truncate(message) or "no message", hint(headers))
    return _read_refusal(status, headers, body, said, message)


def hint(headers: Mapping[str, str]) -> Hint:
    """Read `Retry-After`: seconds or a date; zero, the unreadable and the absent are no hint.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after. Bitly has sent none in any recorded answer.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9]) or None
    try:
        moment = parsedate_to_datetime(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, IndexError, OverflowError):
        return None


def _read_success(body: bytes, facet: Facet, *, whole: bool) -> Answer | Unreadable:
    try:
        if not whole:
            raise NotTheFacet(f"larger than {BODY_LIMIT} bytes")
        said = orjson.loads(body)
        if type(said) is not dict:
            raise NotTheFacet("not a JSON object")
        metrics = facet.read(said)
        clicks_listed = sum(metric["clicks"] for metric in metrics)
        if clicks_listed > _INT64_MAX:
            raise NotTheFacet("clicks do not add up to a count")
    except NotTheFacet as why:
        return Unreadable(200, str(why), body_excerpt(body))
    except orjson.JSONDecodeError:
        return Unreadable(200, "not JSON", body_excerpt(body))
    units, reference = said.get("units"), said.get("unit_reference")
    return Answer(
        metrics=metrics,
        clicks_listed=clicks_listed,
        units_returned=units if type(units) is int and -_INT64_MAX <= units <= _INT64_MAX else None,
        unit_reference_returned=_reference_text(reference),
    )


def _reference_text(reference: object) -> str | None:
    """Write the answer's own unit_reference in UTC where it can be read, and as it came where not.

    Recorded as `2020-02-26T04:00:42+0000`, and for referrers_by_domains as epoch seconds, against the specification.
    """
    if isinstance(reference, str | int) and not isinstance(reference, bool):
        return _moment_text(reference)
    return None


@lru_cache(16)  # as the query pins it, it is mostly the same
def _moment_text(reference: str | int) -> str:
    try:
        if isinstance(reference, int):
            return utc_iso(datetime.fromtimestamp(reference, UTC))
        moment = datetime.fromisoformat(reference)
        return utc_iso(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError):
        return truncate(str(reference))


def _read_refusal(
    status: int, headers: Mapping[str, str], body: bytes, said: Mapping[str, Any], message: str
) -> Verdict:
    """Tell a no for this link from a no for every link; what neither fits is Unknown."""
    text = truncate(message)
    plain = headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/plain"
    if status == 401:
        return TokenRefused(status, text or "UNAUTHORIZED")
    if status == 402:
        return PlanRefused(status, text or "UPGRADE_REQUIRED")
    if status == 403 and message == "FORBIDDEN":
        # With a resource it is this link that is not yours; bare, the token is bad or revoked (both recorded).
        return Refused(status, text) if said.get("resource") else TokenRefused(status, text)
    if status == 404 and message == "NOT_FOUND":
        return Refused(status, text)
    if status == 404 and plain and not said:
        return Refused(status, truncate(body[:_MESSAGE_LIMIT].decode(errors="replace").strip()), no_route=True)
    if status == 410 and (message == "GONE" or not body.strip()):
        return Refused(status, text or "GONE")
    if status == 400:
        fields = _refused_fields(said, message)
        if about_all := fields & _QUERY_FIELDS:
            return ParameterRefused(status, text, min(about_all).lower())
        if fields & _LINK_FIELDS:
            return Refused(status, text)
    return Unknown(status, text or f"HTTP {status}", body_excerpt(body))


def _refused_fields(said: Mapping[str, Any], message: str) -> set[str]:
    """Name the request's fields that a 400 complains of, in upper case."""
    fields = {message.removeprefix("INVALID_ARG_")} if message.startswith("INVALID_ARG_") else set()
    errors = said.get("errors")
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict) and isinstance(error.get("field"), str):
            fields.add(error["field"].strip().upper())
    return fields


def body_excerpt(body: bytes) -> str:
    """Give the beginning of a body that could not be understood, for a person to look at."""
    return body[:KEPT_BODY].decode(errors="replace")


def truncate(text: str) -> str:
    """Give as much of a text of Bitly's as is kept of it."""
    return text[:_MESSAGE_LIMIT]
